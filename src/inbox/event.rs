//! A room event as the homeserver sent it, parsed as far as the inbox needs it.

use matrix_sdk_crypto::vodozemac::megolm::MegolmMessage;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId};
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

use crate::{clock::Timestamp, crypto::RoomKey};

/// A room event as it came.
#[derive(Clone, Debug)]
pub struct WireEvent {
    /// The event's id.
    pub event_id: OwnedEventId,
    /// Its room.
    pub room_id: OwnedRoomId,
    /// Who sent it.
    pub sender: OwnedUserId,
    /// Its type, `m.room.encrypted` for an encrypted one.
    pub event_type: String,
    /// Present on state events only.
    pub state_key: Option<String>,
    /// When it was sent, as its sender's homeserver says.
    pub origin_server_ts: Timestamp,
    /// What a redaction redacts, in room versions that say so beside the content.
    pub redacts: Option<OwnedEventId>,
    /// The Megolm session, for an event that is encrypted with one.
    pub session: Option<SessionPlace>,
    /// The whole event.
    pub raw: Box<RawValue>,
    /// When it reached coucou.
    pub received_at: Timestamp,
    /// Whether the homeserver says that it was taken back; then there is nothing left in it.
    pub redacted: bool,
    /// Whether it was sent before the account that read it had joined the room.
    pub before_join: bool,
    /// Whether the webhooks were told that it cannot be decrypted.
    pub told: bool,
    /// By what it has its place in its room.
    pub place: Place,
}

/// By what an event has its place in its room's order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// By when it came.
    #[default]
    Arrival,
    /// By the homeserver's order, in which it was read.
    Reading,
    /// It has lost it: what follows it was relayed before.
    Lost,
}

/// Where in which Megolm session an event was encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionPlace {
    /// The room and the session id.
    pub key: RoomKey,
    /// The message index; `None` when the ciphertext cannot be read.
    pub index: Option<i64>,
}

#[derive(Deserialize)]
struct Head<'a> {
    event_id: OwnedEventId,
    room_id: OwnedRoomId,
    sender: OwnedUserId,
    #[serde(rename = "type")]
    event_type: String,
    state_key: Option<String>,
    #[serde(default)]
    origin_server_ts: f64,
    redacts: Option<Value>,
    #[serde(borrow)]
    unsigned: Option<&'a RawValue>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct EncryptedContent<'a> {
    session_id: Option<String>,
    #[serde(borrow)]
    ciphertext: Option<std::borrow::Cow<'a, str>>,
}

/// The type of encrypted events
/// ([spec](https://spec.matrix.org/latest/client-server-api/#mroomencrypted)).
pub const ENCRYPTED: &str = "m.room.encrypted";

/// The most bytes of an id ([spec](https://spec.matrix.org/latest/appendices/#common-identifier-format)).
const LONGEST_ID: usize = 255;

/// Whether a text may stand in a column that is looked up by. PostgreSQL stores no NUL and indexes nothing
/// long: one such event would fail the whole step, and hold up everything behind it for ever.
pub(super) fn can_be_kept(id: &str) -> bool {
    id.len() <= LONGEST_ID && !id.contains('\0')
}

/// The type of an event, of which nothing else is read.
pub(super) fn clear_type(event: &RawValue) -> Option<String> {
    #[derive(Deserialize)]
    struct Head {
        #[serde(rename = "type")]
        event_type: String,
    }
    serde_json::from_str::<Head>(event.get()).ok().map(|head| head.event_type)
}

impl WireEvent {
    /// Reads an event.
    ///
    /// # Errors
    /// When it is not an event of a room: an id is missing or malformed. The text says which, without
    /// anything of the content.
    pub fn parse(raw: Box<RawValue>, received_at: Timestamp) -> Result<Self, String> {
        let head: Head<'_> = serde_json::from_str(raw.get()).map_err(|error| {
            // serde_json quotes at most the value of the wrong type, which for an id can be anything.
            format!("{:?} error at line {} column {}", error.classify(), error.line(), error.column())
        })?;
        let ids = [
            ("event_id", head.event_id.as_str()),
            ("room_id", head.room_id.as_str()),
            ("sender", head.sender.as_str()),
        ];
        if let Some((name, _)) = ids.iter().find(|(_, id)| !can_be_kept(id)) {
            return Err(format!("{name} is longer than {LONGEST_ID} bytes or holds a NUL"));
        }
        let session = (head.event_type == ENCRYPTED).then(|| place(head.content?, &head.room_id)).flatten();
        let redacted = head.unsigned.is_some_and(is_redacted);
        let redacts = head.redacts.and_then(|redacts| OwnedEventId::try_from(redacts.as_str()?).ok());
        #[expect(clippy::cast_possible_truncation, reason = "saturates, and no real time is near the ends")]
        let origin_server_ts = Timestamp(head.origin_server_ts as i64);
        Ok(Self {
            event_id: head.event_id,
            room_id: head.room_id,
            sender: head.sender,
            event_type: head.event_type,
            state_key: head.state_key,
            origin_server_ts,
            redacts,
            session,
            raw,
            received_at,
            redacted,
            before_join: false,
            told: false,
            place: Place::Arrival,
        })
    }

    /// Returns whether it was read in the homeserver's order.
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.place == Place::Reading
    }

    /// Returns whether what follows it in its room was relayed before.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.place == Place::Lost
    }

    /// Whether it is encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.event_type == ENCRYPTED
    }

    /// The content; empty when it is none.
    #[must_use]
    pub fn content(&self) -> Map<String, Value> {
        content(&self.raw)
    }
}

/// What a homeserver adds to an event that was taken back
/// ([spec](https://spec.matrix.org/latest/client-server-api/#redactions)).
fn is_redacted(unsigned: &RawValue) -> bool {
    const MARK: &str = "redacted_because";
    // Hardly any event has it, so hardly any is read for it.
    unsigned.get().contains(MARK)
        && serde_json::from_str::<Value>(unsigned.get()).is_ok_and(|unsigned| unsigned[MARK].is_object())
}

/// The content of an event; empty when it is none.
#[must_use]
pub fn content(raw: &RawValue) -> Map<String, Value> {
    told(raw).1
}

/// The type and the content of an event, as far as it has them.
pub(super) fn told(raw: &RawValue) -> (Option<String>, Map<String, Value>) {
    #[derive(Default, Deserialize)]
    struct Body {
        r#type: Option<Value>,
        content: Option<Value>,
    }
    let Body { r#type, content } = serde_json::from_str(raw.get()).unwrap_or_default();
    let event_type = match r#type {
        Some(Value::String(event_type)) => Some(event_type),
        _ => None,
    };
    let content = match content {
        Some(Value::Object(content)) => content,
        _ => Map::new(),
    };
    (event_type, content)
}

fn place(content: &RawValue, room_id: &OwnedRoomId) -> Option<SessionPlace> {
    let content = serde_json::from_str::<EncryptedContent<'_>>(content.get()).ok()?;
    let session_id = content.session_id.filter(|session_id| can_be_kept(session_id))?;
    let key = RoomKey { room_id: room_id.clone(), session_id };
    let message = content.ciphertext.and_then(|text| MegolmMessage::from_base64(&text).ok());
    Some(SessionPlace { key, index: message.map(|message| i64::from(message.message_index())) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(event: &Value) -> Result<WireEvent, String> {
        WireEvent::parse(serde_json::value::to_raw_value(event).unwrap(), Timestamp(5))
    }

    #[test]
    fn an_event_needs_its_ids() {
        let good = json!({"event_id": "$a", "room_id": "!r", "sender": "@a:b", "type": "m.room.message",
            "origin_server_ts": 17, "content": {"body": "x"}});
        let event = parse(&good).unwrap();
        assert_eq!((event.origin_server_ts, event.state_key.is_none()), (Timestamp(17), true));
        assert_eq!(event.content()["body"], "x");
        for key in ["event_id", "room_id", "sender", "type"] {
            let mut bad = good.clone();
            bad[key] = json!(3);
            assert!(parse(&bad).is_err());
            bad.as_object_mut().unwrap().remove(key);
            let error = parse(&bad).unwrap_err();
            assert!(!error.contains('x'), "{error}");
        }
    }

    #[test]
    fn an_event_that_was_taken_back_says_so() {
        let mut event = json!({"event_id": "$a", "room_id": "!r", "sender": "@a:b", "type": ENCRYPTED,
            "origin_server_ts": 17, "content": {}});
        assert!(!parse(&event).unwrap().redacted);
        for (unsigned, expected) in [
            (json!({"age": 4}), false),
            (json!("redacted_because"), false),
            (json!({"x": {"redacted_because": {}}}), false),
            (json!({"redacted_because": {"type": "m.room.redaction"}}), true),
        ] {
            event["unsigned"] = unsigned;
            assert_eq!(parse(&event).unwrap().redacted, expected, "{event}");
        }
    }

    #[test]
    fn ids_that_no_column_holds_are_refused() {
        let good = json!({"event_id": "$a", "room_id": "!r", "sender": "@a:b", "type": ENCRYPTED,
            "content": {"session_id": "s", "ciphertext": ""}});
        let long = "x".repeat(LONGEST_ID);
        for (key, bad) in [
            ("event_id", "$a\0b".to_owned()),
            ("event_id", format!("${long}")),
            ("room_id", format!("!{long}")),
            ("sender", format!("@{long}:b")),
            ("sender", format!("@a:{long}.b")),
        ] {
            let mut event = good.clone();
            event[key] = json!(bad);
            assert!(parse(&event).unwrap_err().contains(key), "{key}");
        }
        for bad in ["s\0", &*long.repeat(2)] {
            let mut event = good.clone();
            event["content"]["session_id"] = json!(bad);
            assert_eq!(parse(&event).unwrap().session, None, "it is kept, without a session");
        }
    }

    #[test]
    fn a_place_in_a_session_is_read_from_the_ciphertext() {
        let mut event = json!({"event_id": "$a", "room_id": "!r", "sender": "@a:b", "type": ENCRYPTED,
            "content": {"algorithm": "m.megolm.v1.aes-sha2", "session_id": "s", "ciphertext": "garbage"}});
        let place = parse(&event).unwrap().session.unwrap();
        assert_eq!((place.key.session_id.as_str(), place.index), ("s", None));
        event["content"] = json!({"ciphertext": 3});
        assert_eq!(parse(&event).unwrap().session, None);
    }
}
