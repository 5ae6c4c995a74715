//! What a bridge's bot says of its logins in rooms that are not relayed: the management room above all.
//!
//! With `encryption.default: true` the bridge encrypts it. coucou reads the bot's events there for that one thing, and
//! keeps nothing of them; one whose key has not come waits on the ledger for it, and is gone once it was read.

use std::collections::HashSet;

use super::{Outcome, Worker};
use crate::{
    crypto::{CryptoError, Decrypted, RoomKey},
    inbox::{
        event::WireEvent,
        known::Known,
        ledger::{new_pending, wire},
    },
    model::{Relay, ledger::Reason},
    store::pending::{self, Waits},
};

/// Events of one room's queue looked at when a key of the room comes.
const MAX_QUEUED: i64 = 500;

impl Worker {
    /// Returns whether an event of a room that is not relayed is decrypted for what a bridge's bot says in it.
    pub(in crate::inbox) fn listens_to(&self, event: &WireEvent) -> bool {
        self.silence.settings.is_some()
            && event.session.is_some()
            && self.rooms.relay(&event.room_id) != Relay::Yes
            && self.rooms.pins.is_bot(&event.sender)
    }

    /// Looks at an event of a room that is not relayed, and returns whether it is done with: one of a bot's that has no key
    /// so far is not.
    pub(in crate::inbox) fn overhear(
        &mut self,
        event: &WireEvent,
        known: &mut Known,
        outcome: &mut Outcome,
    ) -> bool {
        if self.silence.settings.is_none() || !self.rooms.pins.is_bot(&event.sender) {
            return true;
        }
        if !event.is_encrypted() {
            self.read_notice(event, &event.content(), outcome);
            return true;
        }
        outcome.track.insert(event.sender.clone());
        match known.decrypted.remove(&event.event_id) {
            Some(Decrypted::Clear(clear)) => {
                let content = &clear.body.content;
                let admitted = self.rooms.pins.admit(event, &clear, content, &[&event.sender], true);
                if admitted.is_ok_and(|admitted| !admitted.encryption.flagged) {
                    self.read_notice(event, content, outcome);
                }
                true
            }
            Some(Decrypted::AwaitingKey) => false,
            _ => true,
        }
    }

    /// Looks at an event of a bridge's management room. What has no key waits for it on the ledger.
    pub(in crate::inbox) fn overhear_management(
        &mut self,
        event: &WireEvent,
        known: &mut Known,
        outcome: &mut Outcome,
    ) {
        let is_managed = self.rooms.is_managed(&event.room_id);
        if !self.overhear(event, known, outcome) && is_managed && !known.is_settled(event) {
            outcome.waiting.push(new_pending(event, Waits::Ledger, Reason::NoKey));
        }
    }

    /// The events of bridges' bots that wait in the queues of held rooms, and for which one of these keys is.
    pub(in crate::inbox) async fn load_overheard(
        &self,
        keys: &[RoomKey],
    ) -> Result<Vec<WireEvent>, CryptoError> {
        let of_room =
            |key: &&RoomKey| self.queues.contains_key(&key.room_id) && self.rooms.is_held(&key.room_id);
        let keys: HashSet<&RoomKey> = keys.iter().filter(of_room).collect();
        let rooms: HashSet<_> = keys.iter().map(|key| &key.room_id).collect();
        let store = &self.parts.store;
        let mut events = Vec::new();
        for room_id in rooms {
            let queue = pending::queue(store.db(), store.seal()?, room_id, MAX_QUEUED).await?;
            let has_key =
                |event: &WireEvent| event.session.as_ref().is_some_and(|place| keys.contains(&place.key));
            events.extend(queue.into_iter().filter_map(wire).filter(has_key));
        }
        events.retain(|event| self.listens_to(event));
        Ok(events)
    }
}
