//! Events that say nothing to anybody: what programs tell each other in a room.
//!
//! They are no messages. Nothing is lost by that: only what is listed here, in `docs/webhook.md` too, is taken for one;
//! whatever else somebody sends is told, and what nobody knows has the kind `unknown`.

use serde_json::{Map, Value};

/// What an event is that is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Control {
    /// What became of a message that was sent to the network.
    Status,
    /// A bridge's words for people about a message that it could not send to the network, or their correction.
    ErrorNotice,
    /// A step of devices that verify each other.
    Verification,
    /// Something that a client has a bridge do.
    Command,
    /// Something that is there for the sake of being there.
    Dummy,
    /// What somebody has read, or does just now.
    Receipt,
    /// A key, or a secret.
    Key,
}

impl Control {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Status,
        Self::ErrorNotice,
        Self::Verification,
        Self::Command,
        Self::Dummy,
        Self::Receipt,
        Self::Key,
    ];

    /// Returns whether people see it, and it may be taken back for them.
    #[must_use]
    pub fn is_seen(self) -> bool {
        matches!(self, Self::ErrorNotice | Self::Verification)
    }

    /// Returns the name in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::ErrorNotice => "error_notice",
            Self::Verification => "verification",
            Self::Command => "command",
            Self::Dummy => "dummy",
            Self::Receipt => "receipt",
            Self::Key => "key",
        }
    }
}

/// Returns what an event is that is no message; none when it is one. `is_bridge_bot` says that a bridge's own bot sent
/// it.
#[must_use]
pub fn read(event_type: &str, content: &Map<String, Value>, is_bridge_bot: bool) -> Option<Control> {
    let by_type = match event_type {
        "m.room.message" => {
            let new = content.get("m.new_content").and_then(Value::as_object);
            return by_content(new.unwrap_or(content), content, is_bridge_bot);
        }
        "com.beeper.message_send_status" => Control::Status,
        "com.beeper.accept_message_request" | "com.beeper.delete_chat" | "com.beeper.send_state" => {
            Control::Command
        }
        "m.dummy" => Control::Dummy,
        "m.receipt"
        | "m.typing"
        | "m.presence"
        | "m.fully_read"
        | "m.marked_unread"
        | "m.room.message.feedback" => Control::Receipt,
        "m.forwarded_room_key" | "com.beeper.room_key.ack" | "io.element.call.encryption_keys" => {
            Control::Key
        }
        other => {
            const PREFIXES: [(&str, Control); 5] = [
                ("m.key.verification.", Control::Verification),
                ("fi.mau.dummy.", Control::Dummy),
                ("com.beeper.stream.", Control::Command),
                ("m.room_key", Control::Key),
                ("m.secret.", Control::Key),
            ];
            return PREFIXES
                .iter()
                .find(|(prefix, _)| other.starts_with(prefix))
                .map(|(_, control)| *control);
        }
    };
    Some(by_type)
}

/// `said` is the content, or what an edit makes of it.
fn by_content(
    said: &Map<String, Value>,
    content: &Map<String, Value>,
    is_bridge_bot: bool,
) -> Option<Control> {
    match said.get("msgtype").and_then(Value::as_str)? {
        "m.key.verification.request" => Some(Control::Verification),
        "m.notice" if is_bridge_bot && is_error(said) && refers(content) => Some(Control::ErrorNotice),
        _ => None,
    }
}

/// Returns whether a notice has the words that mautrix' bridges have for an error: `⚠️ Your message was not bridged: …`.
fn is_error(said: &Map<String, Value>) -> bool {
    let Some(body) = said.get("body").and_then(Value::as_str) else { return false };
    // An answer's quotation, as older bridges put it before the words.
    let body = crate::messages::relations::without_fallback(body, None).0;
    let Some(words) = body.trim_start().strip_prefix('\u{26a0}') else { return false };
    let words = words.strip_prefix('\u{fe0f}').unwrap_or(words).trim_start();
    let is_about = || {
        let (what, said) = words.strip_prefix("Your ")?.split_once(' ')?;
        let is_word = what.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._".contains(&byte));
        let outcomes = ["was not bridged", "may not have been bridged"];
        (is_word && outcomes.iter().any(|outcome| said.starts_with(outcome))).then_some(())
    };
    words.starts_with("Handling your command panicked")
        || words.starts_with("Bridging your message is taking longer than usual")
        || is_about().is_some()
}

/// Returns whether a content answers an event, continues a thread, or replaces an event.
fn refers(content: &Map<String, Value>) -> bool {
    let Some(to) = content.get("m.relates_to") else { return false };
    let is_event =
        |value: Option<&Value>| value.and_then(Value::as_str).is_some_and(|id| id.starts_with('$'));
    is_event(to.get("m.in_reply_to").and_then(|reply| reply.get("event_id"))) || is_event(to.get("event_id"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(event_type: &str, content: &Value, is_bridge_bot: bool) -> Option<Control> {
        read(event_type, content.as_object().unwrap(), is_bridge_bot)
    }

    fn notice(body: &str) -> Value {
        json!({"msgtype": "m.notice", "body": body, "m.mentions": {"user_ids": ["@owner:localhost"]},
            "m.relates_to": {"m.in_reply_to": {"event_id": "$ours"}}})
    }

    #[test]
    fn what_programs_tell_each_other_is_no_message() {
        for (event_type, expected) in [
            ("com.beeper.message_send_status", Control::Status),
            ("m.key.verification.start", Control::Verification),
            ("m.key.verification.cancel", Control::Verification),
            ("com.beeper.accept_message_request", Control::Command),
            ("fi.mau.dummy.portal_created", Control::Dummy),
            ("m.receipt", Control::Receipt),
            ("m.room_key.withheld", Control::Key),
        ] {
            assert_eq!(of(event_type, &json!({}), false), Some(expected), "{event_type}");
        }
        let request =
            json!({"msgtype": "m.key.verification.request", "body": "…", "to": "@a:b", "methods": []});
        assert_eq!(of("m.room.message", &request, false), Some(Control::Verification));
    }

    #[test]
    fn what_people_say_is_a_message_whatever_its_type() {
        for event_type in [
            "m.room.message",
            "m.sticker",
            "m.reaction",
            "m.room.redaction",
            "m.room.encrypted",
            "m.call.candidates",
            "org.matrix.msc3381.poll.start",
            "com.beeper.transcription",
            "org.example.type",
            "fi.mau.dummy",
            "m.room_",
            "",
        ] {
            assert_eq!(of(event_type, &json!({"body": "x"}), true), None, "{event_type}");
        }
    }

    #[test]
    fn a_bridges_notice_of_an_error_is_known_with_its_edits() {
        for body in [
            "\u{26a0}\u{fe0f} Your message was not bridged: the message is not encrypted",
            "\u{26a0}\u{fe0f} Your reaction may not have been bridged: timeout",
            "\u{26a0} Your m.room.message may not have been bridged: failed",
            "\u{26a0}\u{fe0f} Handling your command panicked: nil",
            "> <@owner:localhost> hi\n\n\u{26a0} Your message was not bridged: failed",
        ] {
            assert_eq!(of("m.room.message", &notice(body), true), Some(Control::ErrorNotice), "{body}");
            let edit = json!({"msgtype": "m.notice", "body": format!("* {body}"), "m.new_content": notice(body),
                "m.relates_to": {"rel_type": "m.replace", "event_id": "$notice"}});
            assert_eq!(of("m.room.message", &edit, true), Some(Control::ErrorNotice), "{body}");
        }
    }

    #[test]
    fn what_only_looks_like_one_is_a_message() {
        let body = "\u{26a0}\u{fe0f} Your message was not bridged: failed";
        assert_eq!(of("m.room.message", &notice(body), false), None, "not the bridge's bot");
        let mut alone = notice(body);
        alone["m.relates_to"] = json!({});
        assert_eq!(of("m.room.message", &alone, true), None, "about no event");
        let mut text = notice(body);
        text["msgtype"] = json!("m.text");
        assert_eq!(of("m.room.message", &text, true), None, "not a notice");
        for other in [
            "Your message was not bridged: failed",
            "\u{26a0}\u{fe0f} This is not your management room.",
            "\u{26a0} Your very own message was not bridged",
            "\u{26a0}\u{fe0f} Your login was lost",
            "",
        ] {
            assert_eq!(of("m.room.message", &notice(other), true), None, "{other}");
        }
    }
}
