//! Ids of messages: derived, never drawn, so that doing the work again gives the same id.

use ruma::EventId;
use sha2::{Digest, Sha256};

use crate::model::MessageId;

/// Of 32 bytes of SHA-256, how many the id keeps: 160 bits, where no collision will ever be found.
const ID_BYTES: usize = 20;

/// What of an event a message tells. One event makes at most one message of each class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PayloadClass {
    /// What the event says. The type is not part of the class: whether a redaction took back a message or
    /// a reaction may be seen differently when looked at again, and must not change the id.
    Event,
    /// That the event could not be decrypted; it may still be, and then has a message of class `Event`.
    Undecryptable,
    /// That a room came or went.
    Room,
}

impl PayloadClass {
    /// What goes into the hash. Never change one: consumers remember ids.
    fn label(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Undecryptable => "undecryptable",
            Self::Room => "room",
        }
    }
}

/// The id of the message that tells `class` of the event.
#[must_use]
pub fn message_id(class: PayloadClass, event_id: &EventId) -> MessageId {
    let mut hash = Sha256::new();
    hash.update(class.label());
    // Neither a label nor an event id holds a NUL, so no two pairs hash the same text.
    hash.update([0]);
    hash.update(event_id.as_bytes());
    written(&hash.finalize())
}

/// The id of the message that tells that `target` was taken back by a membership event, which takes back many.
#[must_use]
pub fn takeback_id(event_id: &EventId, target: &EventId) -> MessageId {
    let mut hash = Sha256::new();
    hash.update("takeback");
    for id in [event_id, target] {
        hash.update([0]);
        hash.update(id.as_bytes());
    }
    written(&hash.finalize())
}

/// The id that a hash makes.
pub(super) fn written(hash: &[u8]) -> MessageId {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let mut id = String::with_capacity(4 + 2 * ID_BYTES);
    id.push_str("msg_");
    for byte in hash.iter().take(ID_BYTES) {
        id.extend([byte >> 4, byte & 0x0f].map(|nibble| DIGITS[usize::from(nibble)]));
    }
    MessageId(id)
}

#[cfg(test)]
mod tests {
    use ruma::event_id;

    use super::*;

    #[test]
    fn an_id_is_the_same_every_time() {
        // A literal: this very id is in somebody's database.
        let id = message_id(PayloadClass::Event, event_id!("$Sj0ybSElA9u4eUwd3Jl8bucBC6AgZqg5UGnerY-0sv0"));
        assert_eq!(id.as_str(), "msg_f1c7e5b38171947b61cce4fda713f1969a464f7d");
    }

    #[test]
    fn classes_and_events_have_ids_of_their_own() {
        let event = message_id(PayloadClass::Event, event_id!("$a"));
        let undecryptable = message_id(PayloadClass::Undecryptable, event_id!("$a"));
        let room = message_id(PayloadClass::Room, event_id!("$a"));
        let other = message_id(PayloadClass::Event, event_id!("$b"));
        assert!(event != undecryptable && event != room && undecryptable != room && event != other);
    }

    #[test]
    fn an_id_has_neither_dots_nor_anything_else_odd() {
        let id = message_id(PayloadClass::Room, event_id!("$a.b:example.org"));
        let digits = id.as_str().strip_prefix("msg_").unwrap();
        assert_eq!(digits.len(), 40);
        assert!(digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)));
    }
}
