//! What an event refers to, and the fallback text of replies for clients that cannot show them.

use ruma::OwnedEventId;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    messages::html,
    model::{Repair, text::read_event_id},
};

/// `data.relates_to`: the event that a message refers to ([spec](https://spec.matrix.org/latest/client-server-api/#forming-relationships-between-events)).
///
/// Event ids, of which coucou may not know the event. A reply within a thread has two of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RelatesTo {
    /// The event it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub reply_to: Option<OwnedEventId>,
    /// The event whose content it replaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub replaces: Option<OwnedEventId>,
    /// The event it is a reaction to.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub reacts_to: Option<OwnedEventId>,
    /// The first event of the thread it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub thread: Option<OwnedEventId>,
    /// The event it belongs to in another way: the poll that a response or an end is of.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub references: Option<OwnedEventId>,
    /// Whether the text may begin with a reply's fallback.
    #[serde(skip)]
    pub(super) is_reply: bool,
}

impl RelatesTo {
    /// Reads `m.relates_to` of a content; none when it refers to nothing that the payload knows. What is no id is noted,
    /// and the relation left out.
    #[must_use]
    pub fn read(content: &Map<String, Value>, repairs: &mut Vec<Repair>) -> Option<Self> {
        let raw = content.get("m.relates_to")?.as_object()?;
        let mut id = |value: Option<&Value>, place: &str| {
            let id = value.map(|value| read_event_id(value.as_str().unwrap_or_default()))?;
            id.map_err(|reason| repairs.push(Repair::new(format!("/content/m.relates_to/{place}"), reason)))
                .ok()
        };
        let mut target = || id(raw.get("event_id"), "event_id");
        let mut to = Self::default();
        match raw.get("rel_type").and_then(Value::as_str) {
            Some("m.replace") => to.replaces = target(),
            Some("m.annotation") => to.reacts_to = target(),
            Some("m.reference") => to.references = target(),
            Some("m.thread" | "io.element.thread") => to.thread = target(),
            _ => {}
        }
        let reply = raw.get("m.in_reply_to").and_then(|reply| reply.get("event_id"));
        if let Some(reply_to) = id(reply, "m.in_reply_to/event_id") {
            to.is_reply = true;
            // In a thread, a reply may only be there for clients that do not know threads.
            let fallback = raw.get("is_falling_back") == Some(&Value::Bool(true));
            if to.thread.is_none() || !fallback {
                to.reply_to = Some(reply_to);
            }
        }
        (to != Self::default()).then_some(to)
    }
}

/// Returns the text and the HTML of a reply without the quotation that older clients put before them
/// ([spec](https://spec.matrix.org/v1.12/client-server-api/#fallbacks-for-rich-replies)).
///
/// The HTML decides where there is some: clients that write the fallback mark it there as `<mx-reply>`, so a quotation
/// in the text alone is the sender's own. Without HTML only what looks exactly as the spec had it is taken off. What
/// is nothing but a quotation stays: it is all that was said.
#[must_use]
pub fn without_fallback<'a>(body: &'a str, html: Option<&'a str>) -> (&'a str, Option<&'a str>) {
    let Some(html) = html else { return (strip_text(body, false).unwrap_or(body), None) };
    match html::split_first(html, "mx-reply") {
        None => (body, Some(html)),
        Some((_, rest)) => {
            let rest = Some(rest).filter(|rest| !rest.trim().is_empty()).unwrap_or(html);
            (strip_text(body, true).unwrap_or(body), Some(rest))
        }
    }
}

/// Returns whether HTML begins with the quotation of a reply, which nothing but a reply has.
#[must_use]
pub fn has_fallback(html: &str) -> bool {
    html::split_first(html, "mx-reply").is_some()
}

/// Takes the quotation off a text: `> <@user:server> …` or `> <Name> …`, further lines that begin with `>`, a blank
/// line. `is_known` says that there is one, so that it may look less exact. Returns `None` when there is none, or
/// nothing else.
fn strip_text(body: &str, is_known: bool) -> Option<&str> {
    let quoted = body.strip_prefix("> ")?;
    let (name, said) = quoted.strip_prefix("* ").unwrap_or(quoted).strip_prefix('<')?.split_once('>')?;
    if name.is_empty() || name.contains('\n') || !said.starts_with([' ', '\n']) {
        return None;
    }
    let mut rest = body;
    while rest.starts_with("> ") || rest.starts_with(">\n") {
        rest = rest.split_once('\n')?.1;
    }
    let after_blank = rest.strip_prefix('\n').or_else(|| rest.strip_prefix("\r\n"));
    let is_user = name.starts_with('@') && name.contains(':');
    let rest = after_blank.or_else(|| (is_known || is_user).then_some(rest))?;
    (!rest.trim().is_empty()).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fallback_is_taken_off_whatever_the_quoted_person_is_called() {
        for body in [
            "> <@a:example.org> where?\n\nhere",
            "> <@a:example.org> where?\nhere",
            "> <Alice A.> where?\n> and when?\n>\n> so?\n\nhere",
            "> * <Alice> waves\n\nhere",
            "> <アリス 🌷> where?\r\n\r\nhere",
        ] {
            assert_eq!(without_fallback(body, None), ("here", None), "{body}");
        }
    }

    #[test]
    fn a_quotation_of_ones_own_stays() {
        for body in [
            "> a line of a poem\n\nnice",
            "> <b>bold</b> and <i>\n\nx",
            "> <Alice> where?\nhere",
            "> <> where?\n\nhere",
            "> <Alice> where?",
            "> <Alice> where?\n\n",
            "> <@a:example.org> where?\n\n \n",
            ">",
            "",
            "here\n> <Alice> where?\n\nhere",
        ] {
            assert_eq!(without_fallback(body, None), (body, None), "{body}");
        }
    }

    #[test]
    fn the_html_decides_whether_there_is_a_fallback() {
        let body = "> <Alice> where?\n\nhere";
        let own = "<blockquote>&lt;Alice&gt; where?</blockquote>here";
        assert_eq!(without_fallback(body, Some(own)), (body, Some(own)));
        let html = "<mx-reply><blockquote>where?</blockquote></mx-reply>here";
        assert_eq!(without_fallback(body, Some(html)), ("here", Some("here")));
        assert_eq!(without_fallback("> <Alice> where?\nhere", Some(html)), ("here", Some("here")));
        assert_eq!(without_fallback("here", Some(html)), ("here", Some("here")));
        let poem = "> a line of a poem\n\nnice";
        assert_eq!(without_fallback(poem, Some(html)), (poem, Some("here")));
        let nothing_else = "<mx-reply><blockquote>where?</blockquote></mx-reply> ";
        assert_eq!(
            without_fallback("> <Alice> where?", Some(nothing_else)),
            ("> <Alice> where?", Some(nothing_else))
        );
        assert!(has_fallback(html) && !has_fallback(own));
    }
}
