//! Calls: signalled in Matrix itself, and those on the network that a bridge tells of.

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Content, Kind, text};

/// `data.content.call`: what happened to a call. coucou neither takes nor makes calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Call {
    /// What happened: `invite`, `answer`, `hangup`, `reject` and other names of the `m.call.*` events, `notify` for
    /// ringing in a group, `notice` for what a bridge tells of a call on the network.
    pub action: String,
    /// The call's id, when it is one of Matrix; its events share it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
    /// Whether it is (offered) with pictures; left out when that is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub video: Option<bool>,
    /// Why it ended, or what became of it, in the words of who says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// How long it lasted, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
}

/// The content of a call's event ([spec](https://spec.matrix.org/latest/client-server-api/#voice-over-ip)); none
/// when it is not one.
pub(super) fn read(event_type: &str, content: &Map<String, Value>) -> Option<Content> {
    let action = match event_type {
        "org.matrix.msc4075.call.notify" | "org.matrix.msc4075.rtc.notification" | "m.rtc.notification" => {
            "notify"
        }
        other => other.strip_prefix("m.call.").filter(|action| !action.is_empty())?,
    };
    let offer = content.get("offer").and_then(|offer| offer.get("sdp")).and_then(Value::as_str);
    let call = Call {
        action: action.to_owned(),
        call_id: text(content, "call_id").map(str::to_owned),
        video: offer.map(|sdp| sdp.contains("m=video")),
        state: text(content, "reason").map(str::to_owned),
        duration_ms: None,
    };
    Some(Content { call: Some(call), ..Content::of(Kind::Call) })
}

/// What a bridge tells of a call on the network; none when the message is about something else.
pub(super) fn read_notice(content: &Map<String, Value>) -> Option<Content> {
    let action = content.get("com.beeper.action_message")?.as_object()?;
    if text(action, "type") != Some("call") {
        return None;
    }
    let seconds = action.get("duration").and_then(Value::as_u64);
    let call = Call {
        action: "notice".to_owned(),
        call_id: None,
        video: text(action, "call_type").map(|call_type| call_type == "video"),
        state: text(action, "call_state").map(str::to_owned),
        duration_ms: seconds.and_then(|seconds| seconds.checked_mul(1_000)),
    };
    let words = text(content, "body").map(str::to_owned);
    Some(Content { text: words, call: Some(call), ..Content::of(Kind::Call) })
}
