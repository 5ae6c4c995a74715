//! Members who were banned or removed so that all they have said is taken back
//! ([MSC4293](https://github.com/matrix-org/matrix-spec-proposals/pull/4293)).
//!
//! The homeserver sends no redactions then. One is told for each message and reaction that was told, in parts, as there may
//! be many: which members are still gone through is in the store, and a process that dies goes on with the next part. What
//! waits of such a member is deleted, and what comes of it while it is neither back nor pardoned was said before, and is
//! not relayed.

use std::collections::{HashSet, VecDeque};

use ruma::EventId;
use serde_json::value::RawValue;

use super::{commit::Outcome, event::WireEvent, presence, rooms::Takeback, worker::Worker};
use crate::{
    clock::Timestamp,
    crypto::CryptoError,
    messages,
    model::MessageType,
    store::{
        StoreError,
        member_redactions::{self, MemberRedaction, Said},
    },
};

/// Messages gone through in one step.
const MAX_MESSAGES: i64 = 200;

/// The members whose messages are gone through.
#[derive(Debug, Default)]
pub(super) struct Takebacks(VecDeque<MemberRedaction>);

impl Takebacks {
    /// Those that an earlier term has not finished.
    pub(super) fn of(members: Vec<MemberRedaction>) -> Self {
        Self(members.into())
    }

    /// The member whose messages are gone through next.
    pub(super) fn first(&self) -> Option<&MemberRedaction> {
        self.0.front()
    }
}

impl Worker {
    /// Begins to go through the messages of members who were banned or removed so in this step.
    pub(super) fn note_takebacks(&mut self, now: Timestamp, outcome: &mut Outcome) {
        for Takeback { room_id, user_id, event } in self.rooms.take_takebacks() {
            tracing::info!(room.id = %room_id, member = %user_id, "all that a member has said is taken back");
            // What waits and was to be written in this step does not wait any more.
            outcome.waiting.retain(|row| row.room_id != room_id.as_str() || row.sender != user_id.as_str());
            let event = event.into_bytes();
            let member = MemberRedaction { room_id, user_id, event, received_at: now, position: 0 };
            self.takebacks.0.retain(|of| (&of.room_id, &of.user_id) != (&member.room_id, &member.user_id));
            self.takebacks.0.push_back(member.clone());
            outcome.takebacks.push(member);
        }
    }

    /// Takes back the next part of what such a member has said.
    pub(super) async fn take_back(
        &mut self,
        member: Option<MemberRedaction>,
        outcome: &mut Outcome,
    ) -> Result<(), CryptoError> {
        let Some(member) = member else { return Ok(()) };
        let said = member_redactions::said(self.parts.store.db(), &member, MAX_MESSAGES).await?;
        let is_last = i64::try_from(said.len()).is_ok_and(|count| count < MAX_MESSAGES);
        self.tell_taken_back(&member, &said, outcome).await?;
        let position = said.last().map(|last| last.position).filter(|_| !is_last);
        let key = (member.room_id.to_string(), member.user_id.to_string());
        outcome.taken_back_to.push((key.0, key.1, position));
        self.takebacks.0.pop_front();
        if let Some(position) = position {
            self.takebacks.0.push_front(MemberRedaction { position, ..member });
        }
        Ok(())
    }

    async fn tell_taken_back(
        &mut self,
        member: &MemberRedaction,
        said: &[Said],
        outcome: &mut Outcome,
    ) -> Result<(), CryptoError> {
        let raw = String::from_utf8(member.event.clone()).ok();
        let event = raw.and_then(|raw| RawValue::from_string(raw).ok());
        let event = event.and_then(|raw| WireEvent::parse(raw, member.received_at).ok());
        let room_id = member.room_id.as_str();
        outcome.redacted.extend(said.iter().map(|of| (room_id.to_owned(), of.event_id.clone())));
        let Some(event) = event else { return Ok(()) };
        let taken: HashSet<&str> = said.iter().map(|of| &*of.event_id).collect();
        // An edit goes with what it replaces.
        let is_told = |of: &&Said| of.replaces.as_deref().is_none_or(|replaced| !taken.contains(replaced));
        let mut drafts = Vec::new();
        for of in said.iter().filter(is_told) {
            let (Ok(target), Some(room)) = (EventId::parse(&of.event_id), self.rooms.get(&member.room_id))
            else {
                continue;
            };
            let profile = room.state.profile(&event.sender);
            let clear = presence::clear(&event);
            let draft = messages::taken_back(clear, target, &room.context, profile, member.received_at);
            let is_reaction = of.message_type == MessageType::ReactionCreated.as_str();
            drafts.push(if is_reaction { draft.of_reaction() } else { draft });
        }
        let ids: Vec<_> = drafts.iter().map(|draft| draft.message_id().as_str().to_owned()).collect();
        let ids: Vec<_> = ids.iter().map(String::as_str).collect();
        // A message may have been told twice: that it cannot be decrypted, and then what it says.
        let mut known = crate::store::messages::known(self.parts.store.db(), &ids).await?;
        for draft in drafts {
            if known.insert(draft.message_id().as_str().to_owned()) {
                let sequence = self.rooms.next_sequence(&member.room_id);
                outcome
                    .messages
                    .push(draft.into_message(sequence).map_err(|_| StoreError::Corrupt("messages"))?);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
