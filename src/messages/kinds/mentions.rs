//! Who is meant in particular.
//!
//! `m.mentions` says so ([spec](https://spec.matrix.org/latest/client-server-api/#user-and-room-mentions)). Bridges
//! often leave it empty and name people by links in the HTML alone, which clients show as pills.

use ruma::{MatrixToUri, MatrixUri, matrix_uri::MatrixId};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::messages::html::{self, Piece, Pieces};

/// Maximum number of people whom pills are told to name.
const MAX_PILLS: usize = 200;

/// `data.content.mentions`: who is meant in particular.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Mentions {
    /// Matrix users, each once: those that the sender lists (`m.mentions`), as it wrote them, then those of `pills`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub user_ids: Vec<String>,
    /// Whether everybody in the room is meant.
    pub room: bool,
    /// Those of `user_ids` whom the sender does not list, but names by a link in the HTML.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pills: Vec<String>,
}

/// Returns who is meant by a content with this text and HTML; none when nobody is.
pub(super) fn read(content: &Map<String, Value>, text: Option<&str>, html: Option<&str>) -> Option<Mentions> {
    let listed = content.get("m.mentions").and_then(Value::as_object);
    let mut mentions = Mentions::default();
    let users = listed.and_then(|listed| listed.get("user_ids")).and_then(Value::as_array);
    for user in users.into_iter().flatten().filter_map(Value::as_str) {
        if !mentions.user_ids.iter().any(|known| known == user) {
            mentions.user_ids.push(user.to_owned());
        }
    }
    mentions.room = match listed {
        Some(listed) => listed.get("room") == Some(&Value::Bool(true)),
        // Who does not list anybody means everybody by the word, as the push rule `.m.rule.roomnotif` has it.
        None => text.is_some_and(has_room_word),
    };
    for pill in html.into_iter().flat_map(pills) {
        match pill {
            Pill::Room => mentions.room = true,
            Pill::User(user) if mentions.user_ids.contains(&user) => {}
            Pill::User(user) if mentions.pills.len() < MAX_PILLS => {
                mentions.user_ids.push(user.clone());
                mentions.pills.push(user);
            }
            Pill::User(_) => {}
        }
    }
    (mentions != Mentions::default()).then_some(mentions)
}

/// Whom a link names.
enum Pill {
    User(String),
    Room,
}

fn pills(html: &str) -> Vec<Pill> {
    let mut found = Vec::new();
    // Where the words of a link begin that everybody may be meant by.
    let mut room_link = None;
    for (range, piece) in Pieces::of(html) {
        match piece {
            Piece::Open(tag) if tag.is("a") => {
                let link = tag.attribute("href").and_then(|href| linked(&href));
                room_link = None;
                match link {
                    Some(Linked::User(user)) => found.push(Pill::User(user)),
                    Some(Linked::Room) => room_link = Some(range.end),
                    None if tag.attribute("data-mention-type").as_deref() == Some("at-room") => {
                        found.push(Pill::Room);
                    }
                    None => {}
                }
            }
            Piece::Close(name) if name.eq_ignore_ascii_case("a") => {
                let words = room_link.take().map(|start| html::text(&html[start..range.start]));
                if words.as_deref() == Some("@room") {
                    found.push(Pill::Room);
                }
            }
            _ => {}
        }
    }
    found
}

/// What a link leads to.
enum Linked {
    User(String),
    Room,
}

fn linked(href: &str) -> Option<Linked> {
    let href = href.trim();
    let secure = href.strip_prefix("http://").map(|rest| format!("https://{rest}"));
    let href = secure.as_deref().unwrap_or(href);
    if href.eq_ignore_ascii_case("https://matrix.to/#/@room") {
        return Some(Linked::Room);
    }
    let to = MatrixToUri::parse(href).map(|uri| uri.id().clone()).ok();
    match to.or_else(|| MatrixUri::parse(href).map(|uri| uri.id().clone()).ok())? {
        MatrixId::User(user) => Some(Linked::User(user.to_string())),
        MatrixId::Room(_) | MatrixId::RoomAlias(_) => Some(Linked::Room),
        _ => None,
    }
}

/// Whether a text has `@room` as a word of its own.
fn has_room_word(text: &str) -> bool {
    const WORD: &str = "@room";
    let is_part = |char: char| char.is_ascii_alphanumeric() || char == '_';
    text.match_indices(WORD)
        .any(|(at, _)| !text[..at].ends_with(is_part) && !text[at + WORD.len()..].starts_with(is_part))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(content: &Value, text: &str, html: &str) -> Option<Mentions> {
        read(content.as_object().unwrap(), Some(text), Some(html))
    }

    fn users(mentions: Option<&Mentions>) -> Vec<&str> {
        mentions.into_iter().flat_map(|mentions| &mentions.user_ids).map(String::as_str).collect()
    }

    #[test]
    fn whoever_a_link_names_is_meant() {
        let html = "<a href=\"https://matrix.to/#/@owner:localhost\">Owner</a>, \
             <a class='x' href='https://matrix.to/#/%40a_b%3Aexample.org?via=example.org'>A</a> \
             <a href=\"matrix:u/bob:example.org?action=chat\">Bob</a> <a href=\"https://example.org/@x:y\">no</a> \
             <a href=\"https://matrix.to/#/!room:example.org\">a room</a> <a href=\"matrix:r/room:example.org\">x</a>";
        let found = of(&json!({"m.mentions": {}}), "Owner, A Bob", html);
        assert_eq!(users(found.as_ref()), ["@owner:localhost", "@a_b:example.org", "@bob:example.org"]);
        let found = found.unwrap();
        assert_eq!((found.pills == found.user_ids, found.room), (true, false));
    }

    #[test]
    fn nobody_is_named_twice() {
        let html = "<a href=\"https://matrix.to/#/@owner:localhost\">Owner</a> ".repeat(2);
        let content =
            json!({"m.mentions": {"user_ids": ["@owner:localhost", "@owner:localhost", "@b:localhost"]}});
        let found = of(&content, "Owner", &html);
        assert_eq!(users(found.as_ref()), ["@owner:localhost", "@b:localhost"]);
        assert_eq!(found.unwrap().pills, Vec::<String>::new());
    }

    #[test]
    fn everybody_is_meant_by_a_pill_and_by_the_word_of_who_lists_nobody() {
        let room = |content: Value, text, html| of(&content, text, html).is_some_and(|found| found.room);
        let listed = json!({"m.mentions": {}});
        assert!(room(listed.clone(), "@room", "<a href=\"https://matrix.to/#/!r:example.org\">@room</a>"));
        assert!(room(listed.clone(), "@room", "<a data-mention-type=\"at-room\" href=\"#\">@room</a>"));
        assert!(!room(listed.clone(), "@room", "@room"));
        assert!(!room(listed, "@room", "<a href=\"https://example.org\">@room</a>"));
        assert!(room(json!({"m.mentions": {"room": true}}), "", ""));
        for (text, expected) in [
            ("@room: come", true),
            ("hey (@room)", true),
            ("x@room", false),
            ("@roommate", false),
            ("@rOOm", false),
        ] {
            assert_eq!(room(json!({}), text, ""), expected, "{text}");
        }
    }
}
