//! What bridges say in place of what they cannot bridge.
//!
//! Some of it is marked, most is a notice of the ghost with one of the texts of the bridge's source. Nobody on a
//! network can send a notice, so that the text tells as long as a bridge wrote the message.

use serde_json::{Map, Value};

use super::{Call, ReadContext, text};

/// Members of a content that stand with what could not be bridged.
const MARKS: [&str; 7] = [
    "fi.mau.unsupported",
    "fi.mau.telegram.unsupported",
    "fi.mau.meta.unsupported_slide_content",
    "fi.mau.meta.unsupported_slide_content_too_long",
    "fi.mau.whatsapp.unsupported_message_data",
    "fi.mau.whatsapp.undecryptable",
    "fi.mau.bridge.internal_error",
];

/// How notices in place of what could not be bridged begin (mautrix-instagram, -meta, -whatsapp, -signal, -telegram).
const UNSUPPORTED: [&str; 10] = [
    "Unsupported message",
    "Unsupported encrypted Instagram message",
    "Unsupported sticker, view in Messenger",
    "An error occurred while processing an incoming ",
    "Unknown message type, please view it on the WhatsApp app",
    "The bridge does not support this message type yet.",
    "This message is not supported on your version of Mautrix-Telegram.",
    "Payments are not yet supported",
    "Gift badges are not yet supported",
    "Failed to transfer ",
];

/// The whole of others.
const UNSUPPORTED_ALONE: [&str; 2] = ["Too large attachment", "Failed to decode media message"];

/// Beginnings and ends of others, between which stands what it was.
const UNSUPPORTED_AROUND: [(&str, &str); 4] = [
    ("Unrecognized ", " attachment message. Use the Instagram app to view."),
    ("Unrecognized ", " attachment message. Use the Messenger app to view."),
    ("Unrecognized ", " attachment type"),
    ("", " are not yet supported. Open Telegram to view."),
];

/// Beginnings and ends of notices in place of what can be looked at once.
const VIEW_ONCE: [(&str, &str); 5] = [
    ("This ", " once. Use the Instagram app to view."),
    ("This ", " once. Use the Messenger app to view."),
    ("You received a view once message.", " you can only open it on the WhatsApp app."),
    ("You sent a view once message from another device", "."),
    ("You received a view once ", " you can only open it on the Telegram app."),
];

/// What Signal's bridge says after what can be looked at once, which it bridges.
const VIEW_ONCE_BRIDGED: &str = "This is a view-once message. It will disappear in 5 minutes.";

/// What a notice stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Notice {
    /// Something that the bridge could not bridge.
    pub(super) is_unsupported: bool,
    /// Something that can be looked at once.
    pub(super) is_view_once: bool,
}

/// Returns what a content stands for.
pub(super) fn read(content: &Map<String, Value>, context: &ReadContext<'_>) -> Notice {
    let mark =
        |key: &&str| content.get(*key).is_some_and(|mark| mark != &Value::Bool(false) && !mark.is_null());
    let body = text(content, "body").filter(|_| context.is_bridged).unwrap_or_default();
    if context.network == Some("signal") && body == VIEW_ONCE_BRIDGED {
        return Notice { is_unsupported: false, is_view_once: true };
    }
    let notice = if is_notice(content) { body } else { "" };
    let around = |(start, end): &(&str, &str)| {
        notice.strip_prefix(start).is_some_and(|rest| rest.ends_with(end) && !notice.contains('\n'))
    };
    let is_view_once = VIEW_ONCE.iter().any(around);
    let is_unsupported = is_view_once
        || MARKS.iter().any(mark)
        || (is_notice(content) && mark(&"fi.mau.meta.temporary_unsupported_type"))
        || UNSUPPORTED.iter().any(|start| notice.starts_with(start))
        || UNSUPPORTED_ALONE.contains(&notice)
        || UNSUPPORTED_AROUND.iter().any(around);
    Notice { is_unsupported, is_view_once }
}

/// Returns what a notice of Meta's networks tells of a call: they say it in words alone, of which the English ones are
/// known.
pub(super) fn call(content: &Map<String, Value>, context: &ReadContext<'_>) -> Option<Call> {
    const CALLS: [&str; 8] = [
        "video call",
        "audio call",
        "voice call",
        "missed call",
        "video chat",
        "audio chat",
        "missed a call",
        "started a call",
    ];
    const MAX_LENGTH: usize = 200;
    let body =
        text(content, "body").filter(|_| context.is_bridged && context.is_of_meta() && is_notice(content))?;
    if body.len() > MAX_LENGTH || body.contains('\n') || read(content, context) != Notice::default() {
        return None;
    }
    let words = body.to_lowercase();
    CALLS.iter().find(|call| words.contains(**call))?;
    let state = ["missed", "declined", "ended", "started"].into_iter().find(|state| words.contains(state));
    let is_sound = words.contains("audio") || words.contains("voice");
    Some(Call {
        action: "notice".to_owned(),
        call_id: None,
        video: if words.contains("video") { Some(true) } else { is_sound.then_some(false) },
        state: state.map(str::to_owned),
        duration_ms: None,
    })
}

fn is_notice(content: &Map<String, Value>) -> bool {
    text(content, "msgtype") == Some("m.notice")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(msgtype: &str, body: &str, is_bridged: bool) -> (Notice, Option<Call>) {
        let content = json!({"msgtype": msgtype, "body": body});
        let context = ReadContext { is_bridged, network: Some("instagram"), ..ReadContext::default() };
        let content = content.as_object().unwrap();
        (read(content, &context), call(content, &context))
    }

    #[test]
    fn what_could_not_be_bridged_is_known_by_the_words_of_the_bridge_alone() {
        for body in [
            "Unsupported message. Use the Instagram app to view.",
            "Unsupported message (contact)\n\nPlease open in the Messenger app",
            "Unrecognized video attachment message. Use the Instagram app to view.",
            "Unrecognized XMA attachment type",
            "Failed to transfer attachment",
            "Too large attachment",
            "An error occurred while processing an incoming message",
            "Unknown message type, please view it on the WhatsApp app",
        ] {
            let expected = Notice { is_unsupported: true, is_view_once: false };
            assert_eq!(of("m.notice", body, true), (expected, None), "{body}");
            assert_eq!(of("m.text", body, true).0, Notice::default(), "a person's words: {body}");
            assert_eq!(of("m.notice", body, false).0, Notice::default(), "a bot's words: {body}");
        }
    }

    #[test]
    fn what_can_be_looked_at_once_is_known() {
        for body in [
            "This image can only be viewed once. Use the Instagram app to view.",
            "This photo can only be replayed once. Use the Messenger app to view.",
            "You received a view once message. For added privacy, you can only open it on the WhatsApp app.",
            "You sent a view once message from another device.",
            "You received a view once photo. For added privacy, you can only open it on the Telegram app.",
        ] {
            let expected = Notice { is_unsupported: true, is_view_once: true };
            assert_eq!(of("m.notice", body, true), (expected, None), "{body}");
            assert_eq!(of("m.text", body, true).0, Notice::default(), "{body}");
        }
    }

    #[test]
    fn calls_are_known_by_their_words() {
        let (notice, call) = of("m.notice", "You missed a video call with Alice", true);
        assert_eq!(notice, Notice::default());
        let call = call.unwrap();
        assert_eq!(
            (&*call.action, call.video, call.state.as_deref()),
            ("notice", Some(true), Some("missed"))
        );
        let (_, call) = of("m.notice", "Audio call ended", true);
        assert_eq!(call.map(|call| call.video), Some(Some(false)));
        for other in ["Alice named the group Calls", "I will call you", ""] {
            assert_eq!(of("m.notice", other, true).1, None, "{other}");
        }
        assert_eq!(of("m.text", "You missed a video call", true).1, None);
        assert_eq!(of("m.notice", "You missed a video call", false).1, None);
    }
}
