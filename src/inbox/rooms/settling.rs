//! Rooms that are not relayed, and when that is settled.
//!
//! What a room's state says in one moment decides nothing for good: a bridge that follows a tombstone speaks first and
//! states the room to be its own a moment later, changes its claim, or takes it back and makes it again. So a room that
//! could be relayed, and is not for what its state says, is *held*: its room keys stay, and its events wait, sealed, as
//! those of a room whose state was not read yet. It is settled that it is not relayed when a second reading says so at
//! least `rooms.settle_after` after the first, and nobody of a known bridge is in it or has made it, or the room that it
//! replaces. Only then what came of it is deleted. A process that dies in between finds `unrelayed_since` in the store.
//!
//! The room in which a bridge's bot talks with its user, the *management room*, has nobody else in it. Nothing of it is
//! relayed, but what the bot says of its logins is read there, so its keys stay.

use std::{collections::BTreeSet, time::Duration};

use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde_json::Value;

use super::{Policy, Room, Rooms};
use crate::{clock::Timestamp, inbox::pins::Pins, messages::room::RoomState, model::Relay};

/// What a reading of a room's state came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The room is relayed.
    Relayed,
    /// It is not, for now: its state is to be read again at that time.
    Held(Timestamp),
    /// It is not, and what came of it goes.
    Unrelayed,
}

impl Settled {
    /// Returns the word for logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Relayed => "yes",
            Self::Held(_) => "no, for now",
            Self::Unrelayed => "no",
        }
    }
}

impl Policy {
    /// Returns whether a room of that state is relayed.
    pub(super) fn relays(&self, room_id: &RoomId, state: &RoomState) -> bool {
        let is_bridged = state.bridge.is_some() && state.is_conversation();
        self.relay.relays(room_id, is_bridged, state.is_space())
    }

    /// Returns whether a room that is not relayed may become one that is: not when the settings say which rooms are, and
    /// not when it was made as a space, which never changes.
    fn may_become_relayed(&self, room_id: &RoomId, state: &RoomState) -> bool {
        self.relay.may_relay(room_id) && !state.is_space()
    }
}

impl Room {
    /// Returns whether the room is not relayed, without that being settled.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.relay == Relay::Unknown && self.unrelayed_since.is_some()
    }

    /// Returns whether events of the room may still be on the ledger from when it was relayed.
    #[must_use]
    pub fn was_relayed(&self) -> bool {
        self.is_held() && self.state != RoomState::default()
    }
}

/// The bot whose management room it is: one of a known bridge, alone with our own users.
fn manager(state: &RoomState, pins: &Pins, our_users: &BTreeSet<OwnedUserId>) -> Option<OwnedUserId> {
    let mut others = state.members.keys().filter(|user| !our_users.contains(*user));
    let bot = others.next().filter(|user| pins.is_bot(user))?;
    let is_theirs = |user: &OwnedUserId| user == bot || our_users.contains(user);
    let is_alone = others.next().is_none() && state.creator.as_ref().is_none_or(is_theirs);
    let has_us = state.members.keys().any(|user| our_users.contains(user));
    (is_alone && has_us && state.predecessor.is_none()).then(|| bot.clone())
}

/// Returns whether somebody of a known bridge is in a room or has made it.
fn has_bridge(state: &RoomState, pins: &Pins) -> bool {
    state.members.keys().chain(&state.creator).any(|user| pins.is_of_bridge(user))
}

impl Rooms {
    /// The room that a room of this state replaces, which must be loaded before [`Self::settle`].
    #[must_use]
    pub fn predecessor(state: &[Value]) -> Option<OwnedRoomId> {
        let create =
            state.iter().find(|event| event.get("type").is_some_and(|kind| kind == "m.room.create"))?;
        RoomId::parse(create.pointer("/content/predecessor/room_id")?.as_str()?).ok()
    }

    /// Returns whether a room is held: not relayed, without that being settled.
    #[must_use]
    pub fn is_held(&self, room_id: &RoomId) -> bool {
        self.get(room_id).is_some_and(Room::is_held)
    }

    /// Returns whether events on the ledger are released by their key: those of relayed rooms, and those that came while a
    /// room was relayed whose bridge has let go of it.
    #[must_use]
    pub fn releases(&self, room_id: &RoomId) -> bool {
        self.get(room_id).is_some_and(|room| room.relay == Relay::Yes || room.was_relayed())
    }

    /// Returns whether a room is one in which a bridge's bot talks with its user.
    #[must_use]
    pub fn is_managed(&self, room_id: &RoomId) -> bool {
        self.get(room_id).is_some_and(|room| room.relay == Relay::No && room.managed_by.is_some())
    }

    /// Returns whether an event's sender, or its new member, shows that a room which is settled not to be relayed should be
    /// looked at again: somebody of a known bridge is there.
    #[must_use]
    pub fn is_unsettled_by(&self, room_id: &RoomId, user: &UserId) -> bool {
        let Some(room) = self.get(room_id).filter(|room| room.relay == Relay::No) else { return false };
        room.managed_by.as_deref() != Some(user)
            && self.policy.relay.is_by_bridge()
            && self.policy.relay.may_relay(room_id)
            && !room.is_space
            && self.pins.is_of_bridge(user)
    }

    /// Returns whether all that a user has said in a room is taken back.
    #[must_use]
    pub fn takes_back(&self, room_id: &RoomId, user: &UserId) -> bool {
        self.get(room_id).is_some_and(|room| room.state.redacted_members.contains(user))
    }

    /// Holds a room that was relayed and is so no longer, until its state is read.
    pub(super) fn hold(&mut self, room_id: &RoomId, now: Timestamp) {
        let Some(room) = self.known.get_mut(room_id) else { return };
        if self.policy.may_become_relayed(room_id, &room.state) {
            room.relay = Relay::Unknown;
            room.unrelayed_since.get_or_insert(now);
        } else {
            room.relay = Relay::No;
        }
        self.changed.insert(room_id.to_owned());
        self.unread.insert(room_id.to_owned());
    }

    /// What is to be done with a room that is not relayed for its state, which is none when no account may read it.
    pub(super) fn outlook(
        &self,
        room_id: &RoomId,
        state: &RoomState,
        since: Option<Timestamp>,
        now: Timestamp,
    ) -> (Settled, Timestamp, Option<OwnedUserId>) {
        let since = since.unwrap_or(now);
        if !self.policy.may_become_relayed(room_id, state) {
            return (Settled::Unrelayed, since, None);
        }
        let after: Duration = self.policy.settle_after;
        if now < since.plus(after) {
            return (Settled::Held(since.plus(after)), since, None);
        }
        if let Some(bot) = manager(state, &self.pins, &self.policy.our_users) {
            return (Settled::Unrelayed, since, Some(bot));
        }
        if has_bridge(state, &self.pins) || self.replaces_portal(state) {
            return (Settled::Held(now.plus(after)), since, None);
        }
        (Settled::Unrelayed, since, None)
    }

    /// Returns whether a room replaces one that was a bridge's.
    fn replaces_portal(&self, state: &RoomState) -> bool {
        let predecessor = state.predecessor.as_deref().and_then(|id| <&RoomId>::try_from(id).ok());
        let before = predecessor.and_then(|room_id| self.get(room_id));
        before.is_some_and(|room| room.state.tombstoned && room.state.bots().next().is_some())
    }

    /// Rooms whose state is to be read, once, because it turned out that they are not relayed any more.
    pub fn take_unread(&mut self) -> BTreeSet<OwnedRoomId> {
        std::mem::take(&mut self.unread)
    }
}

#[cfg(test)]
mod tests;
