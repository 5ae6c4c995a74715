//! What the machines were given lately.
//!
//! Where the homeserver pushes to-device messages, each comes twice: by push and by the key lane. The machine
//! recognises a repeat, but warns of it as of an attack; so the second one is left out here. This is a
//! courtesy to the log only: what is forgotten, at a restart or for want of room, is given to the machine.
//!
//! Synapse tells the counts of one-time keys with every transaction. A machine that hears them writes its account
//! anew, so it hears only what has changed or may call for new keys.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::{
    crypto::{Changes, ENOUGH_KEYS},
    model::AccountId,
};

/// Messages remembered: some hours of key sharing, in under a megabyte.
const MOST: usize = 8_192;

type Print = [u8; 32];

/// Key counts by algorithm, and the algorithms with an unused fallback key.
type Counts = (BTreeMap<String, u64>, Option<Vec<String>>);

/// The messages of late, and the last counts of each account's keys.
#[derive(Debug, Default)]
pub(super) struct Seen {
    known: HashSet<Print>,
    order: VecDeque<Print>,
    counts: HashMap<AccountId, Counts>,
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

    /// Whether a machine need not hear of changes: they are counts of keys only, the same as before, and there are
    /// enough keys. What it hears of is remembered.
    pub(super) fn is_nothing(&mut self, account_id: AccountId, changes: &Changes) -> bool {
        let Changes { to_device, changed, one_time_key_counts: counts, unused_fallback_keys: fallback } =
            changes;
        let is_short = counts.get("signed_curve25519").is_some_and(|left| *left < ENOUGH_KEYS);
        let is_used = fallback.as_ref().is_some_and(Vec::is_empty);
        let told = self.counts.get(&account_id).is_some_and(|last| (&last.0, &last.1) == (counts, fallback));
        if to_device.is_empty() && changed.is_empty() && told && !is_short && !is_used {
            return true;
        }
        self.counts.insert(account_id, (counts.clone(), fallback.clone()));
        false
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
    fn only_counts_that_change_or_are_low_are_heard() {
        let mut seen = Seen::default();
        let mut is_nothing = |id, count: u64, fallback: Option<&[&str]>| {
            let changes = Changes {
                one_time_key_counts: [("signed_curve25519".to_owned(), count)].into(),
                unused_fallback_keys: fallback.map(|names| names.iter().map(ToString::to_string).collect()),
                ..Changes::default()
            };
            seen.is_nothing(AccountId(id), &changes)
        };
        let there: Option<&[&str]> = Some(&["signed_curve25519"]);
        assert!(!is_nothing(1, ENOUGH_KEYS, there));
        assert!(is_nothing(1, ENOUGH_KEYS, there));
        assert!(!is_nothing(2, ENOUGH_KEYS, there), "another account");
        assert!(
            !is_nothing(1, ENOUGH_KEYS - 1, there) && !is_nothing(1, ENOUGH_KEYS - 1, there),
            "too few, as long as it is so"
        );
        assert!(!is_nothing(1, ENOUGH_KEYS, there));
        assert!(
            !is_nothing(1, ENOUGH_KEYS, Some(&[])) && !is_nothing(1, ENOUGH_KEYS, Some(&[])),
            "the fallback key is used"
        );
        assert!(!is_nothing(1, ENOUGH_KEYS, None) && is_nothing(1, ENOUGH_KEYS, None));
        let devices = Changes { changed: vec!["@a:b".try_into().unwrap()], ..Changes::default() };
        assert!(!seen.is_nothing(AccountId(1), &devices) && !seen.is_nothing(AccountId(1), &devices));
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
