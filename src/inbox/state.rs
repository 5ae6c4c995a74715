//! State events of a batch: our own memberships, and what is known of rooms.

use super::{commit::Outcome, event::WireEvent, known::Known, worker::Worker};
use crate::{
    crypto::CryptoError,
    messages::room::Change,
    model::{Membership, Relay},
    store::memberships::MembershipChange,
};

impl Worker {
    /// A state event: our memberships, and what is known of a relayed room.
    pub(super) fn take_state(
        &mut self,
        event: &WireEvent,
        known: &mut Known,
        outcome: &mut Outcome,
    ) -> Result<(), CryptoError> {
        let state_key = event.state_key.as_deref().unwrap_or_default();
        let account = state_key.try_into().ok().and_then(|user: &ruma::UserId| self.account(user));
        if let Some(account) = account.filter(|_| event.event_type == "m.room.member") {
            // Of others only the name is at stake, and bridges date their members back.
            if self.rooms.is_outdated(event) {
                return Ok(());
            }
            let content = event.content();
            let membership = content.get("membership").and_then(serde_json::Value::as_str);
            let membership = Membership::parse(membership.unwrap_or_default());
            outcome.memberships.push(MembershipChange {
                room_id: event.room_id.clone(),
                account_id: account.id,
                membership,
                inviter: (membership == Membership::Invite).then(|| event.sender.clone()),
            });
            let unread = self.relays(&event.room_id) != Relay::Yes;
            if membership == Membership::Join && unread {
                self.rooms.forget(&event.room_id);
                outcome.unread.insert(event.room_id.clone());
            }
        }
        match self.relays(&event.room_id) {
            // The account came or went so, was told of, and may be elsewhere by now.
            Relay::Yes
                if self.membership_id(event).is_some_and(|id| known.messages.contains(id.as_str())) => {}
            Relay::Yes => {
                let before = self.presence(event);
                let now = self.parts.clock.now();
                match self.rooms.apply(&event.room_id, &event.raw, now) {
                    change @ (Change::Bridge | Change::Member(_)) => {
                        if change == Change::Bridge {
                            self.doubts.at_once(&event.room_id, now);
                        }
                        outcome.track.extend(self.rooms.users_to_track(&event.room_id));
                    }
                    Change::Room => self.follow(event, outcome),
                    Change::None => {}
                }
                if self.rooms.is_held(&event.room_id) {
                    // Its bridge has let go of it: what comes now waits.
                    self.queues.insert(event.room_id.clone(), None);
                }
                if let Some(id) = self.note_presence(event, before, outcome)? {
                    known.messages.insert(id);
                }
            }
            // The state of a room that is not relayed is not kept, so all of it is read anew; once more when that is under
            // way, as the reading may be older.
            Relay::No | Relay::Unknown => {
                let now = self.parts.clock.now();
                if self.rooms.apply(&event.room_id, &event.raw, now) == Change::Room {
                    self.follow(event, outcome);
                }
                if self.may_bridge(event) {
                    self.rooms.forget(&event.room_id);
                    outcome.unread.insert(event.room_id.clone());
                }
            }
        }
        Ok(())
    }
}
