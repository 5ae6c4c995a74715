//! A room event as the homeserver sent it, parsed as far as the inbox needs it.

use matrix_sdk_crypto::vodozemac::megolm::MegolmMessage;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use crate::{
    clock::Timestamp,
    crypto::RoomKey,
    model::{
        JsonObject, Repair, RepairReason,
        json::{self, EventBody},
        ledger::Malformed,
        text,
    },
};

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
    /// The reason that an encrypted event cannot be decrypted with whichever key.
    pub flaw: Option<Flaw>,
    /// What of it had to be repaired before its content was looked at.
    pub repairs: Vec<Repair>,
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

/// The reason that an event cannot be decrypted, which is seen without a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// It is not what an encrypted event must be.
    Malformed(Malformed),
    /// Its algorithm is not one that this version can decrypt.
    UnsupportedAlgorithm,
}

/// What is read of an event before it is known what it says. What others may write in any shape is looked at apart.
#[derive(Deserialize)]
struct Head<'a> {
    event_id: OwnedEventId,
    room_id: OwnedRoomId,
    sender: OwnedUserId,
    #[serde(rename = "type")]
    event_type: String,
    state_key: Option<String>,
    #[serde(borrow)]
    origin_server_ts: Option<&'a RawValue>,
    #[serde(borrow)]
    redacts: Option<&'a RawValue>,
    #[serde(borrow)]
    unsigned: Option<&'a RawValue>,
}

/// The type of encrypted events
/// ([spec](https://spec.matrix.org/latest/client-server-api/#mroomencrypted)).
pub const ENCRYPTED: &str = "m.room.encrypted";

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
        // What no strict reader takes is read again as JSON has it.
        let strict = serde_json::from_str::<Head<'_>>(raw.get()).is_ok();
        let raw = if strict { raw } else { json::repaired(&raw).unwrap_or(raw) };
        let head: Head<'_> = serde_json::from_str(raw.get()).map_err(|error| {
            // serde_json quotes at most the value of the wrong type, which for an id can be anything.
            format!("{:?} error at line {} column {}", error.classify(), error.line(), error.column())
        })?;
        let ids = [
            ("event_id", head.event_id.as_str()),
            ("room_id", head.room_id.as_str()),
            ("sender", head.sender.as_str()),
        ];
        if let Some((name, _)) = ids.iter().find(|(_, id)| !text::is_id(id)) {
            return Err(format!("{name} is longer than {} bytes or holds a NUL", text::MAX_ID));
        }
        let (session, flaw) =
            if head.event_type == ENCRYPTED { place(&raw, &head.room_id) } else { (None, None) };
        let redacted = head.unsigned.is_some_and(is_redacted);
        let redacts =
            head.redacts.and_then(|redacts| serde_json::from_str::<OwnedEventId>(redacts.get()).ok());
        let (origin_server_ts, repair) = read_time(head.origin_server_ts.map(RawValue::get), received_at);
        let repairs = repair.map(|reason| Repair::new("/origin_server_ts", reason)).into_iter().collect();
        Ok(Self {
            event_id: head.event_id,
            room_id: head.room_id,
            sender: head.sender,
            event_type: head.event_type,
            state_key: head.state_key,
            origin_server_ts,
            redacts,
            session,
            flaw,
            repairs,
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

    /// What it says, as it came.
    #[must_use]
    pub fn body(&self) -> EventBody {
        EventBody::read(self.raw.get().as_bytes()).unwrap_or_default()
    }

    /// The content; empty when it is none.
    #[must_use]
    pub fn content(&self) -> JsonObject {
        self.body().content
    }
}

/// Returns when an event was sent, and what had to be done so that it can be told. An event without a time was sent when
/// it came, as far as anyone knows.
fn read_time(written: Option<&str>, received_at: Timestamp) -> (Timestamp, Option<RepairReason>) {
    let Some(written) = written else { return (received_at, Some(RepairReason::Missing)) };
    if let Ok(time) = written.parse().map(Timestamp) {
        let clamped = time.clamp(Timestamp::default(), Timestamp::LAST);
        return (clamped, (clamped != time).then_some(RepairReason::OutOfRange));
    }
    // A text that says `inf` is no number.
    let is_number = written.starts_with(|first: char| first == '-' || first.is_ascii_digit());
    let Some(time) = written.parse::<f64>().ok().filter(|_| is_number) else {
        return (received_at, Some(RepairReason::WrongType));
    };
    #[expect(clippy::cast_possible_truncation, reason = "saturates, and what follows bounds it")]
    let time = Timestamp(time as i64);
    let clamped = time.clamp(Timestamp::default(), Timestamp::LAST);
    let reason = if clamped == time { RepairReason::NotAnInteger } else { RepairReason::OutOfRange };
    (clamped, Some(reason))
}

/// What a homeserver adds to an event that was taken back
/// ([spec](https://spec.matrix.org/latest/client-server-api/#redactions)).
fn is_redacted(unsigned: &RawValue) -> bool {
    const MARK: &str = "redacted_because";
    // Hardly any event has it, so hardly any is read for it.
    unsigned.get().contains(MARK) && json::read_object(unsigned).get(MARK).is_some_and(Value::is_object)
}

/// Returns where in which session an event was encrypted, or the reason that nothing can be known of it.
fn place(raw: &RawValue, room_id: &OwnedRoomId) -> (Option<SessionPlace>, Option<Flaw>) {
    const MEGOLM: &str = "m.megolm.v1.aes-sha2";
    let content = EventBody::read(raw.get().as_bytes()).unwrap_or_default().content;
    let text = |key: &str| content.get(key).and_then(Value::as_str);
    let (algorithm, ciphertext) = (text("algorithm"), text("ciphertext"));
    let session_id = text("session_id").filter(|session_id| text::is_id(session_id));
    let flaw = if algorithm.is_some_and(|algorithm| algorithm != MEGOLM) {
        Some(Flaw::UnsupportedAlgorithm)
    } else if algorithm.is_none() || ciphertext.is_none() {
        Some(Flaw::Malformed(Malformed::NotEncrypted))
    } else {
        session_id.is_none().then_some(Flaw::Malformed(Malformed::NoSession))
    };
    let place = session_id.map(|session_id| {
        let message = ciphertext.and_then(|text| MegolmMessage::from_base64(text).ok());
        SessionPlace {
            key: RoomKey { room_id: room_id.clone(), session_id: session_id.to_owned() },
            index: message.map(|message| i64::from(message.message_index())),
        }
    });
    (place, flaw)
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
        let long = "x".repeat(text::MAX_ID);
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

    #[test]
    fn what_no_key_can_decrypt_says_what_it_lacks() {
        let good = json!({"algorithm": "m.megolm.v1.aes-sha2", "session_id": "s", "ciphertext": "garbage"});
        let of = |change: &dyn Fn(&mut Value)| {
            let mut content = good.clone();
            change(&mut content);
            let event = json!({"event_id": "$a", "room_id": "!r", "sender": "@a:b", "type": ENCRYPTED,
                "content": content});
            parse(&event).unwrap().flaw
        };
        let malformed = |lack| Some(Flaw::Malformed(lack));
        assert_eq!(of(&|_| ()), None);
        assert_eq!(of(&|content| *content = json!({})), malformed(Malformed::NotEncrypted));
        assert_eq!(of(&|content| *content = json!("text")), malformed(Malformed::NotEncrypted));
        assert_eq!(of(&|content| content["algorithm"] = json!(1)), malformed(Malformed::NotEncrypted));
        assert_eq!(of(&|content| content["ciphertext"] = json!(["a"])), malformed(Malformed::NotEncrypted));
        assert_eq!(of(&|content| content["session_id"] = json!(7)), malformed(Malformed::NoSession));
        assert_eq!(of(&|content| content["session_id"] = json!("a\0")), malformed(Malformed::NoSession));
        assert_eq!(of(&|content| content["algorithm"] = json!("m.rot13")), Some(Flaw::UnsupportedAlgorithm));
    }

    #[test]
    fn a_time_that_cannot_be_is_mended_and_told() {
        use RepairReason::{Missing, NotAnInteger, OutOfRange, WrongType};
        let received_at = Timestamp(5);
        for (written, time, reason) in [
            ("17", 17, None),
            ("0", 0, None),
            ("253402300799999", 253_402_300_799_999, None),
            ("253402300800000", 253_402_300_799_999, Some(OutOfRange)),
            ("18446744073709551615", 253_402_300_799_999, Some(OutOfRange)),
            ("1e400", 253_402_300_799_999, Some(OutOfRange)),
            ("-1", 0, Some(OutOfRange)),
            ("-1e400", 0, Some(OutOfRange)),
            ("1700000000000.75", 1_700_000_000_000, Some(NotAnInteger)),
            ("1.7e12", 1_700_000_000_000, Some(NotAnInteger)),
            ("null", 5, Some(Missing)),
            ("\"17\"", 5, Some(WrongType)),
            ("[]", 5, Some(WrongType)),
        ] {
            let event = format!(
                "{{\"event_id\": \"$a\", \"room_id\": \"!r\", \"sender\": \"@a:b\", \"type\": \"x\", \"origin_server_ts\": {written}}}"
            );
            let event = WireEvent::parse(RawValue::from_string(event).unwrap(), received_at).unwrap();
            let reasons: Vec<_> = event.repairs.iter().map(|repair| repair.reason).collect();
            assert_eq!(
                (event.origin_server_ts, reasons),
                (Timestamp(time), Vec::from_iter(reason)),
                "{written}"
            );
        }
    }

    #[test]
    fn an_event_that_no_strict_reader_takes_is_read() {
        let event = "{\"event_id\": \"$a\", \"room_id\": \"!r\", \"sender\": \"@a:b\", \"type\": \"odd \\ud83d\", \"\\udc00\": 1e400, \
            \"content\": {\"body\": \"half \\ud83d\", \"big\": 1e400}}";
        let event = WireEvent::parse(RawValue::from_string(event.to_owned()).unwrap(), Timestamp(5)).unwrap();
        assert_eq!(event.event_type, "odd \u{fffd}");
        assert_eq!(event.content()["body"], "half \u{fffd}");
        assert_eq!(
            serde_json::to_string(&event.content()).unwrap(),
            "{\"body\":\"half \u{fffd}\",\"big\":1e400}"
        );
    }
}
