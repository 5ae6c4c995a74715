//! Which events become messages now, which wait, and in which order: the rules, without any I/O.
//!
//! A room's events are relayed in the order in which they came. An event whose key is not there yet holds
//! up those behind it for a short time (`grace`), because without the homeserver's experimental features
//! keys come a moment after their events as a rule. When the time is up it goes to the *ledger*, where it
//! waits for its key alone, and the room goes on.

use std::{collections::HashMap, time::Duration};

use ruma::OwnedEventId;

use super::event::WireEvent;
use crate::{
    clock::Timestamp,
    crypto::{Clear, Decrypted},
};

/// How long an event may hold up its room.
pub(super) const GRACE: Duration = Duration::from_secs(10);

/// What is to be done with an event.
#[derive(Debug)]
pub(super) enum Fate {
    /// Relay it: never encrypted (`None`), or decrypted.
    Relay(Option<Box<Clear>>),
    /// It keeps its place in the room's order, for this reason.
    Queue(&'static str),
    /// It waits for its key alone, for this reason.
    Ledger(String),
}

/// Reasons on the ledger and in the queue.
pub(super) mod reason {
    /// The key has not come.
    pub(in crate::inbox) const NO_KEY: &str = "no_key";
    /// Behind an event whose key has not come.
    pub(in crate::inbox) const ORDER: &str = "order";
    /// The room's state has not been read.
    pub(in crate::inbox) const ROOM_STATE: &str = "room_state";
    /// The key does not reach back to the message.
    pub(in crate::inbox) const UNKNOWN_INDEX: &str = "unknown_index";
    /// The ciphertext is damaged.
    pub(in crate::inbox) const BAD_CIPHERTEXT: &str = "bad_ciphertext";
    /// The algorithm is not known.
    pub(in crate::inbox) const UNSUPPORTED_ALGORITHM: &str = "unsupported_algorithm";
    /// The message index was used by another event.
    pub(in crate::inbox) const REPLAY: &str = "replay";
    /// Encrypted by somebody who is neither the sender nor the room's bridge.
    pub(in crate::inbox) const UNTRUSTED_SENDER: &str = "untrusted_sender";
}

/// One room's walk through its events, oldest first.
#[derive(Debug)]
pub(super) struct Walk {
    now: Timestamp,
    /// Waiting counts from here for events that came before the process took over.
    since: Timestamp,
    blocked: bool,
}

impl Walk {
    /// A walk that begins at the head of the room's order.
    #[must_use]
    pub(super) fn new(now: Timestamp, since: Timestamp) -> Self {
        Self { now, since, blocked: false }
    }

    /// The fate of the next event.
    pub(super) fn next(
        &mut self,
        event: &WireEvent,
        decrypted: &mut HashMap<OwnedEventId, Decrypted>,
    ) -> Fate {
        if self.blocked {
            return Fate::Queue(reason::ORDER);
        }
        if !event.is_encrypted() {
            return Fate::Relay(None);
        }
        let fate = fate(decrypted.remove(&event.event_id));
        if matches!(fate, Fate::Queue(_)) {
            if self.now >= deadline(event.received_at, self.since) {
                return Fate::Ledger(reason::NO_KEY.to_owned());
            }
            self.blocked = true;
        }
        fate
    }
}

/// When an event stops holding up its room.
#[must_use]
pub(super) fn deadline(received_at: Timestamp, since: Timestamp) -> Timestamp {
    received_at.max(since).plus(GRACE)
}

/// What an outcome means for an event that nothing holds up.
#[must_use]
pub(super) fn fate(decrypted: Option<Decrypted>) -> Fate {
    match decrypted {
        Some(Decrypted::Clear(clear)) => Fate::Relay(Some(clear)),
        Some(Decrypted::AwaitingKey) => Fate::Queue(reason::NO_KEY),
        Some(Decrypted::UnknownIndex) => Fate::Ledger(reason::UNKNOWN_INDEX.to_owned()),
        Some(Decrypted::Withheld(code)) => Fate::Ledger(format!("withheld:{code}")),
        Some(Decrypted::UnsupportedAlgorithm) => Fate::Ledger(reason::UNSUPPORTED_ALGORITHM.to_owned()),
        // An encrypted event without a session that can be named was never given to a machine.
        Some(Decrypted::BadCiphertext) | None => Fate::Ledger(reason::BAD_CIPHERTEXT.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{json, value::to_raw_value};

    use super::*;

    fn event(id: &str, event_type: &str, received_at: i64) -> WireEvent {
        let event = json!({"event_id": id, "room_id": "!r", "sender": "@a:b", "type": event_type,
            "origin_server_ts": 1, "content": {}});
        WireEvent::parse(to_raw_value(&event).unwrap(), Timestamp(received_at)).unwrap()
    }

    fn awaiting(ids: &[&str]) -> HashMap<OwnedEventId, Decrypted> {
        ids.iter().map(|id| (OwnedEventId::try_from(*id).unwrap(), Decrypted::AwaitingKey)).collect()
    }

    #[test]
    fn an_event_without_its_key_holds_up_its_room_for_a_while() {
        let mut decrypted = awaiting(&["$a"]);
        let mut walk = Walk::new(Timestamp(9_000), Timestamp(0));
        assert!(matches!(walk.next(&event("$0", "m.room.message", 1), &mut decrypted), Fate::Relay(None)));
        assert!(matches!(
            walk.next(&event("$a", "m.room.encrypted", 1), &mut decrypted),
            Fate::Queue("no_key")
        ));
        assert!(matches!(walk.next(&event("$b", "m.reaction", 2), &mut decrypted), Fate::Queue("order")));

        let mut decrypted = awaiting(&["$a"]);
        let mut walk = Walk::new(Timestamp(10_001), Timestamp(0));
        let fate = walk.next(&event("$a", "m.room.encrypted", 1), &mut decrypted);
        assert!(matches!(fate, Fate::Ledger(reason) if reason == "no_key"));
        assert!(matches!(walk.next(&event("$b", "m.reaction", 2), &mut decrypted), Fate::Relay(None)));
    }

    #[test]
    fn the_wait_counts_from_when_the_process_took_over() {
        let mut decrypted = awaiting(&["$a"]);
        let mut walk = Walk::new(Timestamp(100_000), Timestamp(95_000));
        assert!(matches!(walk.next(&event("$a", "m.room.encrypted", 1), &mut decrypted), Fate::Queue(_)));
    }

    #[test]
    fn what_no_key_can_mend_holds_up_nobody() {
        let id = |id: &str| OwnedEventId::try_from(id).unwrap();
        let mut decrypted = HashMap::from([
            (id("$a"), Decrypted::BadCiphertext),
            (id("$b"), Decrypted::Withheld("m.unverified".to_owned())),
            (id("$c"), Decrypted::UnknownIndex),
        ]);
        let mut walk = Walk::new(Timestamp(1), Timestamp(0));
        for (at, expected) in
            [("$a", "bad_ciphertext"), ("$b", "withheld:m.unverified"), ("$c", "unknown_index")]
        {
            let fate = walk.next(&event(at, "m.room.encrypted", 1), &mut decrypted);
            assert!(matches!(fate, Fate::Ledger(reason) if reason == expected));
        }
    }
}
