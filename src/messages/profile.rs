//! Profiles that belong to one message alone
//! ([MSC4144](https://github.com/matrix-org/matrix-spec-proposals/pull/4144)).
//!
//! Bridges have one Matrix user speak for many people so. Whoever may send a message may call itself anything in it:
//! a profile says how the sender wants to be shown, and proves nothing.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::messages::{
    html::{Piece, Pieces},
    kinds::File,
};

/// The names of the member of a content that holds one.
const KEYS: [&str; 2] = ["m.per_message_profile", "com.beeper.per_message_profile"];

/// Maximum number of bytes of an id or a name, as the proposal has it.
const MAX_LENGTH: usize = 255;

/// `data.sender.profile`: how the sender presents itself in this message alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MessageProfile {
    /// Whose profile it is: the same of the same sender (`mxid`) means the same person. Bridges give the id on the
    /// network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The name to show in place of `name`. Chosen by the sender: not to be trusted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The picture to show in place of `avatar`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avatar: Option<File>,
    /// Whether no picture is to be shown, `avatar` neither.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub without_avatar: bool,
    /// Whether the text begins with the name for clients that do not know profiles.
    #[serde(skip)]
    has_fallback: bool,
}

impl MessageProfile {
    /// Reads the profile of a content that stands at `base` in the event's; none when it has none.
    #[must_use]
    pub fn read(content: &Map<String, Value>, base: &str) -> Option<Self> {
        let key = KEYS.into_iter().find(|key| content.get(*key).is_some_and(Value::is_object))?;
        let raw = content.get(key)?.as_object()?;
        let filled = |key| raw.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let short = |key| filled(key).filter(|text| text.len() <= MAX_LENGTH && !text.contains('\0'));
        let profile = Self {
            id: short("id").map(str::to_owned),
            name: short("displayname").map(str::to_owned),
            avatar: File::at(raw, "avatar_url", &["avatar_file"], &format!("{base}/{key}"), "avatar"),
            without_avatar: raw.get("avatar_url").and_then(Value::as_str) == Some(""),
            has_fallback: raw.get("has_fallback") == Some(&Value::Bool(true)),
        };
        (profile != Self { has_fallback: profile.has_fallback, ..Self::default() }).then_some(profile)
    }

    /// Returns a text without the name that it begins with for clients that do not know profiles.
    #[must_use]
    pub fn without_fallback<'a>(&self, text: &'a str) -> &'a str {
        let name = self.name.as_deref().filter(|_| self.has_fallback);
        name.and_then(|name| text.strip_prefix(name)?.strip_prefix(": ")).unwrap_or(text)
    }

    /// Returns HTML without that name, wherever it stands.
    #[must_use]
    pub fn without_html_fallback(&self, html: &str) -> String {
        if !self.has_fallback || self.name.is_none() {
            return html.to_owned();
        }
        let mut kept = String::with_capacity(html.len());
        let (mut from, mut opened) = (0, None);
        for (range, piece) in Pieces::of(html) {
            match piece {
                Piece::Open(tag)
                    if opened.is_none()
                        && tag.is("strong")
                        && tag.attribute("data-mx-profile-fallback").is_some() =>
                {
                    opened = Some(range.start);
                }
                Piece::Close(name) if name.eq_ignore_ascii_case("strong") => {
                    if let Some(start) = opened.take() {
                        kept.push_str(&html[from..start]);
                        from = range.end;
                    }
                }
                _ => {}
            }
        }
        kept.push_str(&html[from..]);
        kept
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(raw: &Value) -> Option<MessageProfile> {
        let content = json!({"com.beeper.per_message_profile": raw});
        MessageProfile::read(content.as_object().unwrap(), "/m.new_content")
    }

    #[test]
    fn a_profile_is_read_as_far_as_it_makes_sense() {
        let profile = of(&json!({"id": "1", "displayname": "cat", "avatar_url": "mxc://a/b"})).unwrap();
        assert_eq!((profile.id.as_deref(), profile.name.as_deref()), (Some("1"), Some("cat")));
        let avatar = profile.avatar.unwrap();
        assert_eq!((&*avatar.mxc, &*avatar.part, avatar.encrypted), ("mxc://a/b", "avatar", false));
        let sealed =
            of(&json!({"id": "1", "avatar_file": {"url": "mxc://a/b", "key": {}}})).unwrap().avatar.unwrap();
        let key_at = "/m.new_content/com.beeper.per_message_profile/avatar_file";
        assert_eq!((sealed.encrypted, sealed.key_at.as_deref()), (true, Some(key_at)));
        let bare = of(&json!({"id": "1", "displayname": "", "avatar_url": ""})).unwrap();
        assert_eq!((bare.name, bare.avatar, bare.without_avatar), (None, None, true));
        for odd in [
            json!({}),
            json!([]),
            json!({"id": 7, "displayname": "x".repeat(256), "avatar_url": "https://a/b"}),
        ] {
            assert_eq!(of(&odd), None, "{odd}");
        }
    }

    #[test]
    fn the_name_is_taken_off_only_where_it_is_said_to_be_there() {
        let mut raw = json!({"id": "1", "displayname": "cat <3"});
        let said = "cat <3: hi";
        let html = "<p><strong data-mx-profile-fallback=\"\">cat &lt;3: </strong><strong>hi</strong></p>";
        let without = of(&raw).unwrap();
        assert_eq!((without.without_fallback(said), &*without.without_html_fallback(html)), (said, html));
        raw["has_fallback"] = json!(true);
        let with = of(&raw).unwrap();
        assert_eq!(with.without_fallback(said), "hi");
        assert_eq!(with.without_fallback("dog: hi"), "dog: hi");
        assert_eq!(with.without_html_fallback(html), "<p><strong>hi</strong></p>");
    }
}
