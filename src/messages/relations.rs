//! What an event refers to, and the fallback text of replies for clients that cannot show them.

use ruma::{EventId, OwnedEventId};
use serde::Serialize;
use serde_json::{Map, Value};

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
    /// Reads `m.relates_to` of a content; none when it refers to nothing that the payload knows.
    #[must_use]
    pub fn read(content: &Map<String, Value>) -> Option<Self> {
        let raw = content.get("m.relates_to")?.as_object()?;
        let id = |value: Option<&Value>| value.and_then(Value::as_str).and_then(|id| EventId::parse(id).ok());
        let target = || id(raw.get("event_id"));
        let mut to = Self::default();
        match raw.get("rel_type").and_then(Value::as_str) {
            Some("m.replace") => to.replaces = target(),
            Some("m.annotation") => to.reacts_to = target(),
            Some("m.reference") => to.references = target(),
            Some("m.thread" | "io.element.thread") => to.thread = target(),
            _ => {}
        }
        if let Some(reply_to) = id(raw.get("m.in_reply_to").and_then(|reply| reply.get("event_id"))) {
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

/// The text of a reply without the quotation that older clients put before it.
///
/// Only what looks as the spec had it (`> <@user:server> …`) is taken off, so that a quotation of the sender's
/// own stays ([spec](https://spec.matrix.org/v1.12/client-server-api/#fallbacks-for-rich-replies)).
#[must_use]
pub fn strip_text(body: &str) -> &str {
    if !body.starts_with("> <@") && !body.starts_with("> * <@") {
        return body;
    }
    let mut rest = body;
    while rest.starts_with("> ") || rest.starts_with(">\n") {
        rest = rest.split_once('\n').map_or("", |(_, after)| after);
    }
    rest.strip_prefix('\n').unwrap_or(rest)
}

/// The HTML of a reply without the quotation that older clients put before it.
#[must_use]
pub fn strip_html(html: &str) -> &str {
    let trimmed = html.trim_start();
    if !trimmed.starts_with("<mx-reply>") {
        return html;
    }
    trimmed.split_once("</mx-reply>").map_or(html, |(_, after)| after)
}
