//! The ledger of undecryptable events: what is put on it, what a key releases from it, whom it tells.
//!
//! An event on the ledger is tried again when a key of its session is stored, by whichever way that came
//! ([`key_news`](crate::store::key_news)), and at no other time. What was taken back meanwhile is never
//! relayed. The webhooks are told of an event once, in the transaction that remembers it.

use std::{collections::HashSet, time::Duration};

use serde_json::value::RawValue;

use super::{
    commit::Outcome,
    event::{Place, WireEvent},
    flow::{self, Fate},
    known::Known,
    redact,
    worker::Worker,
};
use crate::{
    clock::Timestamp,
    crypto::{CryptoError, RoomKey},
    messages::{self, PayloadClass},
    model::{ClearEvent, Encryption, MessageId, Relay, json::EventBody, ledger::Reason},
    store::{
        StoreError,
        key_news::{self, News},
        messages as stored,
        pending::{self, NewPending, Pending, Waits},
        redacted::Target,
    },
};

/// News of keys acted upon in one step.
const MOST_NEWS: usize = 256;

/// Events that the webhooks are told of in one step at most.
const MOST_TOLD: u32 = 100;

/// How often the ledger is looked at for events that the webhooks are to be told of.
const LOOK: Duration = Duration::from_secs(1);

impl Worker {
    /// Keys that were stored since the last step, by whomever, and the numbers of their news.
    pub(super) async fn read_news(&self) -> Result<(Vec<RoomKey>, Vec<i64>), CryptoError> {
        let news = key_news::waiting(self.parts.store.db(), MOST_NEWS).await?;
        let ids = news.iter().map(|(id, ..)| *id).collect();
        let key =
            |(_, room_id, session_id): News| Some(RoomKey { room_id: room_id.try_into().ok()?, session_id });
        Ok((news.into_iter().filter_map(key).collect(), ids))
    }

    /// The events of the ledger that wait for one of these keys. Those that name the session of such a key,
    /// but in another room than the key's, are recognised as replays.
    pub(super) async fn load_ledger(
        &self,
        keys: &[RoomKey],
        outcome: &mut Outcome,
    ) -> Result<Vec<WireEvent>, CryptoError> {
        let is_released =
            |key: &&RoomKey| self.rooms.releases(&key.room_id) || self.rooms.is_managed(&key.room_id);
        let relayed = keys.iter().filter(is_released);
        let sessions: HashSet<_> =
            relayed.map(|key| (key.room_id.to_string(), key.session_id.clone())).collect();
        let sessions: Vec<_> = sessions.into_iter().collect();
        let store = &self.parts.store;
        let misplaced = pending::keyless_elsewhere(store.db(), &sessions).await?;
        for event_id in &misplaced {
            tracing::warn!(event.id = event_id, why = %Reason::Replay, "refused: its session is another room's");
        }
        outcome.misplaced.extend(misplaced);
        let found = pending::ledger(store.db(), store.seal()?, &sessions).await?;
        Ok(found.into_iter().filter_map(wire).collect())
    }

    /// An event of the ledger whose key came: relayed now, behind newer ones, or left where it is.
    pub(super) fn release_late(
        &mut self,
        event: &WireEvent,
        known: &mut Known,
        outcome: &mut Outcome,
    ) -> Result<(), CryptoError> {
        let is_taken_back =
            known.is_taken_back(event) || self.rooms.takes_back(&event.room_id, &event.sender);
        if known.has(event) || is_taken_back {
            outcome.released.push(event.event_id.to_string());
            return Ok(());
        }
        if self.rooms.is_managed(&event.room_id) {
            if self.overhear(event, known, outcome) {
                outcome.released.push(event.event_id.to_string());
            }
            return Ok(());
        }
        match flow::fate(known.decrypted.remove(&event.event_id)) {
            Fate::Relay(clear) => {
                if self.emit(event, clear, true, known, outcome)? {
                    outcome.released.push(event.event_id.to_string());
                }
            }
            Fate::Ledger(why) => outcome.to_ledger.push((event.event_id.to_string(), why)),
            // The key went again, as when its room was left.
            Fate::Queue(_) => {}
        }
        Ok(())
    }

    /// Events that the webhooks are to be told of now, and have not been.
    pub(super) async fn read_untold(&mut self, now: Timestamp) -> Result<Vec<Pending>, CryptoError> {
        let Some(after) = self.parts.notify_after.filter(|_| now >= self.look_at) else {
            return Ok(Vec::new());
        };
        let (store, most) = (&self.parts.store, i64::from(MOST_TOLD));
        let untold = pending::untold(store.db(), store.seal()?, now.minus(after), most).await?;
        if untold.len() < MOST_TOLD as usize {
            self.look_at = now.plus(LOOK);
        }
        Ok(untold)
    }

    /// Tells the webhooks of events that could not be decrypted for so long, but not of those that this very
    /// step has released, refused or tried again.
    pub(super) async fn tell(
        &mut self,
        untold: Vec<Pending>,
        outcome: &mut Outcome,
    ) -> Result<(), CryptoError> {
        if !outcome.to_ledger.is_empty() || outcome.waiting.iter().any(|row| row.waits == Waits::Ledger) {
            // What came long ago, while nobody worked, is due as soon as it is on the ledger.
            self.look_at = Timestamp::default();
        }
        if untold.is_empty() {
            return Ok(());
        }
        let id = |event: &WireEvent| messages::message_id(PayloadClass::Undecryptable, &event.event_id);
        let events: Vec<_> =
            untold.into_iter().filter_map(|row| Some((row.reason.clone(), wire(row)?))).collect();
        let ids: Vec<_> = events.iter().map(|(_, event)| id(event)).collect();
        let ids: Vec<_> = ids.iter().map(MessageId::as_str).collect();
        let told = stored::known(self.parts.store.db(), &ids).await?;
        let touched: HashSet<String> = outcome
            .released
            .iter()
            .chain(outcome.to_ledger.iter().map(|(id, _)| id))
            .chain(outcome.taken_back.iter().map(|(_, id)| id))
            .chain(&outcome.misplaced)
            .cloned()
            .collect();
        for (why, event) in events {
            let is_released = self.rooms.releases(&event.room_id);
            let is_open = self.relays(&event.room_id) == Relay::Unknown && !is_released;
            if touched.contains(event.event_id.as_str()) || is_open {
                continue;
            }
            outcome.told.push(event.event_id.to_string());
            if is_released && !told.contains(id(&event).as_str()) {
                self.tell_of(&event, &why, outcome)?;
            }
        }
        Ok(())
    }

    fn tell_of(&mut self, event: &WireEvent, why: &Reason, outcome: &mut Outcome) -> Result<(), CryptoError> {
        let Some(room) = self.rooms.get(&event.room_id) else { return Ok(()) };
        let EventBody { content, repairs, .. } = event.body();
        let repairs = event.repairs.iter().cloned().chain(repairs).collect();
        let algorithm = content.get("algorithm").and_then(serde_json::Value::as_str).map(str::to_owned);
        let session_id = event.session.as_ref().map(|place| place.key.session_id.clone());
        let encryption = Encryption { encrypted: true, algorithm, session_id, ..Encryption::default() };
        let speaker = self.rooms.speaker(event, &content, &encryption);
        let context = speaker.map_or(&room.context, |speaker| speaker.context);
        let clear = ClearEvent {
            event_id: event.event_id.clone(),
            room_id: event.room_id.clone(),
            sender: event.sender.clone(),
            origin_server_ts: event.origin_server_ts,
            event_type: event.event_type.clone(),
            content,
            repairs,
            redacts: None,
            encryption,
            late: false,
            is_owners: speaker.is_some_and(|speaker| speaker.is_owners),
        };
        let profile = room.state.profile(&event.sender);
        let draft = messages::undecryptable(clear, &why.to_string(), context, profile, event.received_at);
        let sequence = self.rooms.next_sequence(&event.room_id);
        outcome.messages.push(draft.into_message(sequence).map_err(|_| StoreError::Corrupt("messages"))?);
        Ok(())
    }
}

/// The event that a redaction takes back, in its room.
pub(super) fn redaction_target(event: &WireEvent) -> Option<Target> {
    let target = redact::target(event).filter(|_| event.state_key.is_none())?;
    Some((event.room_id.to_string(), target.to_string()))
}

/// Puts an event that must not be relayed on the ledger, wherever it was before.
pub(super) fn refuse(event: &WireEvent, why: Reason, outcome: &mut Outcome) {
    tracing::warn!(event.id = %event.event_id, room.id = %event.room_id, %why, "refused");
    outcome.to_ledger.push((event.event_id.to_string(), why.clone()));
    outcome.waiting.push(new_pending(event, Waits::Ledger, why));
}

/// The row of an event that waits.
pub(super) fn new_pending(event: &WireEvent, waits: Waits, reason: Reason) -> NewPending {
    NewPending {
        event_id: event.event_id.to_string(),
        room_id: event.room_id.to_string(),
        session_id: event.session.as_ref().map(|place| place.key.session_id.clone()),
        sender: event.sender.to_string(),
        waits,
        reason,
        event: event.raw.get().as_bytes().to_vec(),
        origin_server_ts: event.origin_server_ts,
        received_at: event.received_at,
    }
}

/// The event of a row that waits.
pub(super) fn wire(row: Pending) -> Option<WireEvent> {
    let raw = String::from_utf8(row.event).ok().and_then(|text| RawValue::from_string(text).ok())?;
    let event = WireEvent::parse(raw, row.received_at).ok()?;
    let before_join = row.reason == Reason::BeforeJoin;
    let place = if row.late { Place::Lost } else { Place::Arrival };
    Some(WireEvent { before_join, told: row.told, place, ..event })
}

#[cfg(test)]
mod tests;
