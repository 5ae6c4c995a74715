//! Which to-device messages were taken in lately.
//!
//! Where the homeserver pushes to-device messages, each comes twice: by push and by the key lane. The machine
//! recognises a repeat, but warns of it as of an attack; so the second one is left out here. This is a
//! courtesy to the log only: what is forgotten, at a restart or for want of room, is given to the machine.

use std::collections::{HashSet, VecDeque};

use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::model::AccountId;

/// Messages remembered: some hours of key sharing, in under a megabyte.
const MOST: usize = 8_192;

type Print = [u8; 32];

/// The messages of late.
#[derive(Debug, Default)]
pub(super) struct Seen {
    known: HashSet<Print>,
    order: VecDeque<Print>,
}

/// What is the same however a message comes.
#[derive(Deserialize)]
struct Message<'a> {
    sender: std::borrow::Cow<'a, str>,
    #[serde(rename = "type", borrow)]
    event_type: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    content: Content<'a>,
}

/// Of the content, what was encrypted: Synapse pushes `org.matrix.msgid` with it, which the key lane does not have.
#[derive(Deserialize)]
struct Content<'a> {
    #[serde(borrow)]
    ciphertext: &'a RawValue,
}

impl Seen {
    /// Whether a message has not come before, and remembers it.
    pub(super) fn is_news(&mut self, account_id: AccountId, message: &RawValue) -> bool {
        let Ok(message) = serde_json::from_str::<Message<'_>>(message.get()) else { return true };
        // Plain messages are few, and two of the same content need not be the same message.
        if message.event_type != "m.room.encrypted" {
            return true;
        }
        let mut hash = Sha256::new();
        hash.update(account_id.0.to_be_bytes());
        hash.update(message.sender.as_bytes());
        hash.update(b"\0");
        hash.update(message.content.ciphertext.get().as_bytes());
        let print: Print = hash.finalize().into();
        if !self.known.insert(print) {
            return false;
        }
        self.order.push_back(print);
        if self.order.len() > MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{json, value::to_raw_value};

    use super::*;

    #[test]
    fn the_same_message_by_push_and_by_the_lane_is_one() {
        let mut seen = Seen::default();
        let content =
            json!({"algorithm": "m.olm.v1.curve25519-aes-sha2", "ciphertext": {"k": {"body": "x"}}});
        let lane = json!({"type": "m.room.encrypted", "sender": "@a:b", "content": content});
        let mut push = lane.clone();
        push["to_user_id"] = json!("@c:d");
        push["to_device_id"] = json!("D");
        push["content"]["org.matrix.msgid"] = json!("x");
        let mut is_news =
            |id, message: &serde_json::Value| seen.is_news(AccountId(id), &to_raw_value(message).unwrap());
        assert!(is_news(1, &push));
        assert!(!is_news(1, &lane));
        assert!(is_news(2, &lane));
        let mut other = lane.clone();
        other["sender"] = json!("@x:y");
        assert!(is_news(1, &other));
        let plain = json!({"type": "m.room_key_request", "sender": "@a:b", "content": {}});
        assert!(is_news(1, &plain) && is_news(1, &plain));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut seen = Seen::default();
        for n in 0..=MOST {
            let message = json!({"type": "m.room.encrypted", "sender": "@a:b", "content": {"ciphertext": n}});
            assert!(seen.is_news(AccountId(1), &to_raw_value(&message).unwrap()));
        }
        assert_eq!((seen.known.len(), seen.order.len()), (MOST, MOST));
    }
}
