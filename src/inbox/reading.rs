//! Rooms that are read on: suspended alone, so that what is read keeps the homeserver's order.
//!
//! What is read is queued before what is pushed meanwhile, and nothing of the room is relayed until all is read. That the
//! room is suspended, what was read and that it goes on are written in the transaction of the step, so a process that dies
//! finds the room as it was.

use std::collections::HashSet;

use ruma::{OwnedRoomId, RoomId};

use super::{
    batch::{Batch, RoomSnapshot},
    commit::Outcome,
    event::WireEvent,
    known::Known,
    ledger::new_pending,
    worker::Worker,
};
use crate::{
    clock::Timestamp,
    model::{AccountId, Relay, ledger::Reason},
    store::{
        Seal, StoreError, Tx,
        pending::{self, NewPending, Waits},
        readings::{self, Cause, Reading},
    },
};

/// What a step does to rooms that are read on.
#[derive(Debug, Default)]
pub(super) struct Readings {
    /// Readings of rooms that were joined.
    pub(super) begun: Vec<Reading>,
    /// Rooms that are suspended from now on, whose queues keep their place before what will be read.
    suspended: Vec<OwnedRoomId>,
    /// Rooms of which all that was read so far was overtaken.
    overtaken: HashSet<OwnedRoomId>,
    /// What was read, each with whether it was overtaken.
    events: Vec<(NewPending, bool)>,
    /// Rooms of which all is read.
    ended: Vec<OwnedRoomId>,
    /// Rooms that are not relayed, and need not be read.
    unwanted: Vec<OwnedRoomId>,
}

impl Readings {
    /// Writes it, before what waits since, and returns the rooms that go on.
    pub(super) async fn write(
        &self,
        tx: &mut Tx,
        seal: &Seal,
        now: Timestamp,
    ) -> Result<Vec<OwnedRoomId>, StoreError> {
        for reading in &self.begun {
            readings::put(tx, reading, now).await?;
        }
        pending::demote(tx, &refs(self.begun.iter().map(|reading| &reading.room_id))).await?;
        pending::promote(tx, &refs(&self.suspended)).await?;
        pending::mark_overtaken(tx, &refs(&self.overtaken)).await?;
        pending::insert_read(tx, seal, &self.events).await?;
        readings::delete(tx, &refs(&self.unwanted)).await?;
        let ended = readings::delete_ended(tx, &refs(&self.ended)).await?;
        Ok(self.ended.iter().filter(|room_id| ended.contains(room_id.as_str())).cloned().collect())
    }
}

fn refs<'a>(rooms: impl IntoIterator<Item = &'a OwnedRoomId>) -> Vec<&'a RoomId> {
    rooms.into_iter().map(|room_id| &**room_id).collect()
}

impl Worker {
    /// Suspends a room that an account has joined until it was read from where the account came in.
    pub(super) fn begin_reading(&mut self, snapshot: &RoomSnapshot, outcome: &mut Outcome) {
        let Some(begin) = &snapshot.reading else { return };
        let (room_id, account_id) = (&snapshot.room_id, AccountId(begin.account_id));
        let reading = Reading::new(room_id, account_id, Cause::Join, begin.from.clone());
        outcome.readings.begun.push(Reading { join_id: begin.join_id.clone(), ..reading });
        self.hold(room_id);
    }

    fn hold(&mut self, room_id: &RoomId) {
        self.being_read.insert(room_id.to_owned());
        self.queues.insert(room_id.to_owned(), None);
    }

    /// Suspends the rooms of which the batch says that they are to be read on.
    pub(super) fn suspend_rooms(&mut self, batch: &Batch, outcome: &mut Outcome) {
        for part in batch.parts.iter().filter(|part| part.begins) {
            if self.relays(&part.room_id) == Relay::No {
                outcome.readings.unwanted.push(part.room_id.clone());
                continue;
            }
            outcome.readings.suspended.push(part.room_id.clone());
            self.hold(&part.room_id);
        }
    }

    /// Queues an event that was read, in its place.
    pub(super) fn take_read(
        &mut self,
        event: &WireEvent,
        now: Timestamp,
        known: &Known,
        outcome: &mut Outcome,
    ) {
        if known.has(event) {
            outcome.readings.overtaken.insert(event.room_id.clone());
        }
        if known.is_settled(event) {
            return;
        }
        self.hear(event, outcome);
        let why = if event.before_join { Reason::BeforeJoin } else { Reason::Order };
        let is_overtaken = known.overtaken.contains(&event.event_id);
        outcome.readings.events.push((new_pending(event, Waits::Queued, why), is_overtaken));
        let deadline = (self.relays(&event.room_id) == Relay::Yes).then_some(now);
        self.queues.entry(event.room_id.clone()).or_insert(deadline);
    }

    /// Notes the rooms of which all is read.
    pub(super) fn end_readings(batch: &Batch, outcome: &mut Outcome) {
        let ended = batch.parts.iter().filter(|part| part.ends).map(|part| part.room_id.clone());
        outcome.readings.ended.extend(ended);
    }

    /// Lets rooms go on, with the next step: what was read of them is stored now.
    pub(super) fn release_rooms(&mut self, room_ids: Vec<OwnedRoomId>, now: Timestamp) {
        for room_id in room_ids {
            self.being_read.remove(&room_id);
            let deadline = (self.relays(&room_id) == Relay::Yes).then_some(now);
            self.queues.insert(room_id, deadline);
        }
    }
}
