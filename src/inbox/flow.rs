//! Which events become messages now, which wait, and in which order: the rules, without any I/O.
//!
//! A room's events are relayed in the order in which they came. An event whose key is not there yet holds
//! up those behind it for a short time (`grace`), because without the homeserver's experimental features
//! keys come a moment after their events as a rule. When the time is up it goes to the *ledger*, where it
//! waits for its key alone, and the room goes on.

use std::{collections::HashMap, time::Duration};

use ruma::OwnedEventId;

use super::event::{Flaw, WireEvent};
use crate::{
    clock::Timestamp,
    crypto::{Clear, Decrypted},
    model::ledger::{Malformed, Reason},
};

/// How long an event may hold up its room.
pub(super) const GRACE: Duration = Duration::from_secs(10);

/// What is to be done with an event.
#[derive(Debug)]
pub(super) enum Fate {
    /// Relay it: never encrypted (`None`), or decrypted.
    Relay(Option<Box<Clear>>),
    /// It keeps its place in the room's order, for this reason.
    Queue(Reason),
    /// It waits for its key alone, for this reason.
    Ledger(Reason),
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
            return Fate::Queue(Reason::Order);
        }
        if !event.is_encrypted() {
            return Fate::Relay(None);
        }
        let fate = fate(decrypted.remove(&event.event_id));
        let Fate::Queue(why) = fate else { return fate };
        let why = if event.before_join { Reason::BeforeJoin } else { why };
        // What was overtaken has no place to keep.
        if event.is_late() || self.now >= deadline(event.received_at, self.since) {
            return Fate::Ledger(why);
        }
        self.blocked = true;
        Fate::Queue(why)
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
        Some(Decrypted::AwaitingKey) => Fate::Queue(Reason::NoKey),
        Some(Decrypted::UnknownIndex) => Fate::Ledger(Reason::UnknownIndex),
        Some(Decrypted::Withheld(code)) => Fate::Ledger(Reason::Withheld(code)),
        Some(Decrypted::OtherRoom) => Fate::Ledger(Reason::Replay),
        Some(Decrypted::UnsupportedAlgorithm) => Fate::Ledger(Reason::UnsupportedAlgorithm),
        Some(Decrypted::BadCiphertext) => Fate::Ledger(Reason::BadCiphertext),
        Some(Decrypted::Malformed(lack)) => Fate::Ledger(Reason::Malformed(lack)),
        // An encrypted event without a session that can be named was never given to a machine.
        None => Fate::Ledger(Reason::Malformed(Malformed::NoSession)),
    }
}

impl From<Flaw> for Decrypted {
    fn from(flaw: Flaw) -> Self {
        match flaw {
            Flaw::Malformed(lack) => Self::Malformed(lack),
            Flaw::UnsupportedAlgorithm => Self::UnsupportedAlgorithm,
        }
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
            Fate::Queue(Reason::NoKey)
        ));
        assert!(matches!(
            walk.next(&event("$b", "m.reaction", 2), &mut decrypted),
            Fate::Queue(Reason::Order)
        ));

        let mut decrypted = awaiting(&["$a"]);
        let mut walk = Walk::new(Timestamp(10_001), Timestamp(0));
        let fate = walk.next(&event("$a", "m.room.encrypted", 1), &mut decrypted);
        assert!(matches!(fate, Fate::Ledger(Reason::NoKey)));
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
            (id("$d"), Decrypted::OtherRoom),
            (id("$e"), Decrypted::Malformed(Malformed::NotJson)),
        ]);
        let mut walk = Walk::new(Timestamp(1), Timestamp(0));
        for (at, expected) in [
            ("$a", "bad_ciphertext"),
            ("$b", "withheld:m.unverified"),
            ("$c", "unknown_index"),
            ("$d", "replay"),
            ("$e", "malformed:not_json"),
            ("$f", "malformed:no_session"),
        ] {
            let fate = walk.next(&event(at, "m.room.encrypted", 1), &mut decrypted);
            assert!(matches!(fate, Fate::Ledger(reason) if reason.to_string() == expected));
        }
    }

    #[test]
    fn what_was_said_before_we_joined_waits_as_that() {
        let mut earlier = event("$a", "m.room.encrypted", 1);
        earlier.before_join = true;
        let mut walk = Walk::new(Timestamp(2), Timestamp(0));
        assert!(matches!(walk.next(&earlier, &mut awaiting(&["$a"])), Fate::Queue(Reason::BeforeJoin)));
        let mut walk = Walk::new(Timestamp(20_000), Timestamp(0));
        assert!(matches!(walk.next(&earlier, &mut awaiting(&["$a"])), Fate::Ledger(Reason::BeforeJoin)));
    }
}
