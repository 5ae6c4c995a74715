//! Redactions: what was said is taken back, from the store too.
//!
//! The homeserver has checked that a redaction may name its event; that it names one of its own room is
//! checked here. Content that is stored goes in the transaction that stores the redaction's own message, so
//! what was not delivered until then never is, and its place in the room is kept by a payload without it.

use std::collections::HashSet;

use ruma::OwnedEventId;
use serde_json::Value;

use super::{commit::Outcome, event::WireEvent};
use crate::{
    clock::Timestamp,
    messages::{self, Draft},
    model::{MessageType, text::read_event_id},
    store::{
        Db, Seal, StoreError, Tx,
        redactions::{self, Target},
    },
};

/// The event that a redaction takes back. Only of one that the homeserver saw as such: of one that was
/// encrypted it has checked nothing.
pub(super) fn target(event: &WireEvent) -> Option<OwnedEventId> {
    if event.event_type != "m.room.redaction" {
        return None;
    }
    // Since room version 11 the content says so.
    let inside = || read_event_id(event.content().get("redacts").and_then(Value::as_str)?).ok();
    event.redacts.clone().or_else(inside)
}

/// Reactions that redactions of a step may take back.
#[derive(Debug, Default)]
pub(super) struct Reactions(HashSet<String>);

impl Reactions {
    /// Those among the targets of these events that were relayed before.
    pub(super) async fn find(db: &Db, events: &[&WireEvent]) -> Result<Self, StoreError> {
        let targets: Vec<Target> = events
            .iter()
            .filter_map(|event| Some((event.room_id.to_string(), target(event)?.to_string())))
            .collect();
        Ok(Self(if targets.is_empty() {
            HashSet::new()
        } else {
            redactions::reactions(db, &targets).await?
        }))
    }

    /// Notes what a draft tells: a reaction, or one that is taken back, which it then says.
    pub(super) fn name(&mut self, draft: Draft) -> Draft {
        if draft.message_type() == MessageType::ReactionCreated {
            self.0.insert(draft.event_id().to_string());
        }
        match draft.redacts() {
            Some(redacts) if self.0.contains(redacts.as_str()) => draft.of_reaction(),
            _ => draft,
        }
    }
}

impl Outcome {
    /// Notes what an event takes back.
    pub(super) fn note_redaction(&mut self, event: &WireEvent) {
        if let Some(target) = target(event) {
            self.redacted.push((event.room_id.to_string(), target.to_string()));
        }
    }

    /// Takes the content of all that was taken back out of the store; the messages of the step are in it.
    pub(super) async fn apply_redactions(
        &self,
        tx: &mut Tx,
        seal: &Seal,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let edits = self.messages.iter().filter(|message| message.replaces.is_some());
        let edits: Vec<_> = edits.map(|message| message.message_id.as_str()).collect();
        if !edits.is_empty() {
            redactions::apply_to_edits(tx, seal, &edits, messages::redacted, now).await?;
        }
        if !self.redacted.is_empty() {
            let count = redactions::apply(tx, seal, &self.redacted, messages::redacted, now).await?;
            tracing::info!(redactions = self.redacted.len(), messages = count, "content taken back");
        }
        Ok(())
    }
}
