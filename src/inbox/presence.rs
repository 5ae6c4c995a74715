//! Our own coming and going: `room.joined` and `room.left`, and rooms that replace others.
//!
//! A room is read while at least one account is in it. When the last one has left, what is known of the room
//! stays, for events that still wait for their key and for a return; when one comes back, the room's state is
//! read anew before anything else of it is relayed.

use ruma::{OwnedRoomId, UserId};
use serde_json::value::{RawValue, to_raw_value};

use super::{batch::RoomSnapshot, commit::Outcome, event::WireEvent, worker::Worker};
use crate::{
    crypto::{CryptoError, Engine, RoomKey},
    messages::{self, Draft, PayloadClass},
    model::{Account, ClearEvent, Encryption, MessageId, SenderProfile},
    store::{self, StoreError, memberships::Successor, pending},
};

/// What was so before an event of ours was taken in.
#[derive(Debug)]
pub(super) struct Presence {
    /// Whether an account was in the room.
    is_in: bool,
    /// How the event's sender presented itself: who leaves has no profile afterwards.
    sender: SenderProfile,
}

impl Worker {
    fn accounts(&self) -> impl Iterator<Item = &Account> {
        self.decrypter.engines().iter().map(Engine::account)
    }

    fn is_in(&self, room_id: &ruma::RoomId) -> bool {
        self.rooms.has_joined(room_id, self.accounts().map(|account| &*account.user_id))
    }

    /// The account whose membership an event is.
    fn member<'a>(&'a self, event: &WireEvent) -> Option<&'a Account> {
        let state_key = event.state_key.as_deref().filter(|_| event.event_type == "m.room.member")?;
        self.account(<&UserId>::try_from(state_key).ok()?)
    }

    /// The id of the message that tells that an account came or went by this event.
    pub(super) fn membership_id(&self, event: &WireEvent) -> Option<MessageId> {
        self.member(event).map(|_| messages::message_id(PayloadClass::Room, &event.event_id))
    }

    /// Remembers how it is before a membership of ours is taken in.
    pub(super) fn presence(&self, event: &WireEvent) -> Option<Presence> {
        self.member(event)?;
        let sender = self.rooms.get(&event.room_id)?.state.profile(&event.sender);
        Some(Presence { is_in: self.is_in(&event.room_id), sender })
    }

    /// Tells that the last account has left a relayed room, or has its state read when the first is back;
    /// answers the id of the message that there is now.
    pub(super) fn note_presence(
        &mut self,
        event: &WireEvent,
        before: Option<Presence>,
        outcome: &mut Outcome,
    ) -> Result<Option<String>, CryptoError> {
        let (Some(before), Some(account)) = (before, self.member(event)) else { return Ok(None) };
        match (before.is_in, self.is_in(&event.room_id)) {
            (true, false) => {
                let user_id = account.user_id.clone();
                tracing::info!(room.id = %event.room_id, account.user_id = %user_id, "left a room");
                self.stop_watching(&event.room_id, outcome);
                let Some(room) = self.rooms.get(&event.room_id) else { return Ok(None) };
                let draft = messages::room_change(
                    clear(event),
                    user_id,
                    &room.context,
                    before.sender,
                    event.received_at,
                );
                self.tell_room(draft, outcome).map(Some)
            }
            (false, true) => {
                self.rooms.suspend(&event.room_id);
                outcome.unread.insert(event.room_id.clone());
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// Tells that a room is read from now on: its state has just been, and it is to be relayed.
    pub(super) async fn enter(
        &mut self,
        snapshot: &RoomSnapshot,
        outcome: &mut Outcome,
    ) -> Result<(), CryptoError> {
        let store = self.parts.store.clone();
        let room_id = &snapshot.room_id;
        if self.rooms.get(room_id).is_some_and(|room| room.last_sequence > 0) {
            // Keys that came while the room was not known to be relayed.
            let releasable = pending::releasable(store.db()).await?.into_iter();
            self.unreleased.extend(
                releasable
                    .filter(|(room, _)| room == room_id.as_str())
                    .map(|(_, session_id)| RoomKey { room_id: room_id.clone(), session_id }),
            );
        }
        let Some((event, user_id)) = self.own_join(snapshot) else { return Ok(()) };
        let Some(room) = self.rooms.get(room_id) else { return Ok(()) };
        let profile = room.state.profile(&event.sender);
        let predecessor = room.state.predecessor.clone();
        let draft =
            messages::room_change(clear(&event), user_id, &room.context, profile, snapshot.received_at)
                .of_successor(predecessor);
        let id = draft.message_id().as_str().to_owned();
        let known = store::messages::known(store.db(), &[&id]).await?;
        if known.is_empty() && outcome.messages.iter().all(|message| message.message_id.as_str() != id) {
            self.tell_room(draft, outcome)?;
        }
        Ok(())
    }

    /// The join of the first account that is in a room.
    fn own_join(&self, snapshot: &RoomSnapshot) -> Option<(WireEvent, ruma::OwnedUserId)> {
        let state = snapshot.state.as_ref()?;
        let members = state.iter().filter(|event| {
            event.get("type").is_some_and(|kind| kind == "m.room.member")
                && event.pointer("/content/membership").is_some_and(|is| is == "join")
        });
        let members: Vec<_> = members.collect();
        self.accounts().find_map(|account| {
            let of = |event: &&&serde_json::Value| {
                event.get("state_key").is_some_and(|key| key == account.user_id.as_str())
            };
            let raw: Box<RawValue> = to_raw_value(members.iter().find(of)?).ok()?;
            let event = WireEvent::parse(raw, snapshot.received_at).ok()?;
            (event.room_id == snapshot.room_id).then(|| (event, account.user_id.clone()))
        })
    }

    fn tell_room(&mut self, draft: Draft, outcome: &mut Outcome) -> Result<String, CryptoError> {
        let sequence = self.rooms.next_sequence(draft.room_id());
        let message = draft.into_message(sequence).map_err(|_| StoreError::Corrupt("messages"))?;
        let id = message.message_id.as_str().to_owned();
        outcome.messages.push(message);
        Ok(id)
    }

    /// Returns whether a state event may make a room that is not relayed a bridge's: a claim, the join of a bot whose claim
    /// was not believed, or that of somebody of a known bridge.
    pub(super) fn may_bridge(&self, event: &WireEvent) -> bool {
        match event.event_type.as_str() {
            "m.bridge" | "uk.half-shot.bridge" => true,
            "m.room.member" => {
                let user = event.state_key.as_deref().and_then(|user| <&UserId>::try_from(user).ok());
                let is_join = || event.content().get("membership").is_some_and(|it| it == "join");
                let is_bridges = |user: &UserId| {
                    self.rooms.pins.is_reported(&event.room_id, user)
                        || self.rooms.is_unsettled_by(&event.room_id, user)
                };
                user.is_some_and(is_bridges) && is_join()
            }
            _ => false,
        }
    }

    /// Follows a tombstone: the room that it names counts as one that its sender has invited the accounts to
    /// which are in the old room. Whether they go there is decided as for any invite, so that a tombstone
    /// leads nowhere that its sender could not have invited to.
    pub(super) fn follow(&self, event: &WireEvent, outcome: &mut Outcome) {
        if event.event_type != "m.room.tombstone" {
            return;
        }
        let replacement = self.rooms.get(&event.room_id).and_then(|room| room.state.replacement.clone());
        let Some(Ok(room_id)) = replacement.map(OwnedRoomId::try_from) else { return };
        tracing::info!(room.id = %event.room_id, successor = %room_id, "a room was replaced");
        for account in self.accounts() {
            if self.rooms.has_joined(&event.room_id, [&*account.user_id]) {
                outcome.successors.push(Successor {
                    room_id: room_id.clone(),
                    account_id: account.id,
                    replaced_by: event.sender.clone(),
                });
            }
        }
    }
}

/// A state event, to be told of.
pub(super) fn clear(event: &WireEvent) -> ClearEvent {
    ClearEvent {
        event_id: event.event_id.clone(),
        room_id: event.room_id.clone(),
        sender: event.sender.clone(),
        origin_server_ts: event.origin_server_ts,
        event_type: event.event_type.clone(),
        content: event.content(),
        repairs: event.repairs.clone(),
        redacts: None,
        encryption: Encryption::default(),
        late: false,
        is_owners: false,
    }
}
