//! What follows from a step, written in one transaction.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use ruma::{OwnedRoomId, OwnedUserId};

use super::{reading::Readings, silence::Changes, worker::Worker};
use crate::{
    clock::Timestamp,
    crypto::CryptoError,
    messages::{control::Control, filter},
    metrics::metrics,
    model::{Flow, Message, Relay, WebhookId, ledger::Reason},
    store::{
        StoreError, Tx, bridges, dismissed,
        inbox::{self, InboxId},
        key_news, leases,
        member_redactions::{self, MemberRedaction},
        memberships::{self, MembershipChange, Successor},
        messages::{self, IndexClaim, MegolmIndex},
        outbox::{self, Queued},
        pending::{self, NewPending, Waits},
        probes, readings, redacted, redactions, rooms,
    },
};

/// Events kept of one room that is not relayed, until that is settled.
const MAX_HELD_IN_ROOM: i64 = 500;

/// Events kept of all such rooms.
const MAX_HELD: i64 = 50_000;

/// So many events are added between two counts of all.
const HELD_COUNT_INTERVAL: u32 = 1_000;

/// All that a step wants written, and done once it is.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Rows of the inbox that are worked through.
    pub rows: Vec<InboxId>,
    /// Rows that nobody can read; kept for a person to look at.
    pub set_aside: Vec<InboxId>,
    /// Messages, in order.
    pub messages: Vec<Message>,
    /// Places of Megolm sessions that they used.
    pub used: Vec<(MegolmIndex, String)>,
    /// In whose names they were used, where that is to be known.
    pub index_claims: Vec<IndexClaim>,
    /// Events that wait from now on.
    pub waiting: Vec<NewPending>,
    /// Events that were tried in vain: event id and reason. They leave their room's order.
    pub to_ledger: Vec<(String, Reason)>,
    /// Events on the ledger whose session turned out to be another room's.
    pub misplaced: Vec<String>,
    /// Events on the ledger that the messages tell the webhooks of.
    pub told: Vec<String>,
    /// Events that were taken back before they were relayed.
    pub taken_back: Vec<redacted::Target>,
    /// News of room keys that were acted upon.
    pub news: Vec<i64>,
    /// Events that wait no more.
    pub released: Vec<String>,
    /// What became of our accounts' memberships.
    pub memberships: Vec<MembershipChange>,
    /// Rooms whose state is to be read.
    pub unread: BTreeSet<OwnedRoomId>,
    /// Rooms that turned out to be relayed.
    pub settled: HashSet<OwnedRoomId>,
    /// Rooms that turned out not to be.
    pub purged: HashSet<OwnedRoomId>,
    /// Rooms that are not relayed for now, and when their state is to be read again.
    pub held: Vec<(OwnedRoomId, Timestamp)>,
    /// Rooms that replace others.
    pub successors: Vec<Successor>,
    /// Members of whom all is taken back from now on.
    pub takebacks: Vec<MemberRedaction>,
    /// How far the messages of such members were gone through, by room and user.
    pub taken_back_to: Vec<(String, String, Option<i64>)>,
    /// Events that were taken back, with their rooms.
    pub redacted: Vec<redactions::Target>,
    /// Events that are no messages.
    pub controls: Vec<Control>,
    /// The same, event id and room id.
    pub dismissed: Vec<(String, String)>,
    /// What became of rooms that are read on.
    pub readings: Readings,
    /// How long the encrypted ones of the messages waited since they came.
    pub waited: Vec<Duration>,
    /// Probes of `coucou check` that came in, and how.
    pub probes: Vec<(String, &'static str)>,
    /// What the silence detector noticed.
    pub silence: Changes,
    /// Users whose devices are to be followed.
    pub track: BTreeSet<OwnedUserId>,
}

impl Outcome {
    /// Counts what was written.
    fn count(&self) {
        let metrics = metrics();
        let mut counts = HashMap::<[&str; 3], u64>::new();
        for message in &self.messages {
            let encrypted = if message.encrypted { "yes" } else { "no" };
            let labels = [message.message_type.as_str(), message.direction.as_str(), encrypted];
            *counts.entry(labels).or_default() += 1;
        }
        for (labels, count) in counts {
            metrics.messages.add(&labels, count);
        }
        let on_ledger = self.waiting.iter().filter(|pending| pending.waits == Waits::Ledger);
        for reason in
            on_ledger.map(|pending| &pending.reason).chain(self.to_ledger.iter().map(|(_, why)| why))
        {
            metrics.undecryptable.inc(&[reason.class()]);
        }
        for control in &self.controls {
            metrics.control_events.inc(&[control.as_str()]);
        }
        let waits = metrics.key_wait.of(&[]);
        for waited in &self.waited {
            waits.observe(waited.as_secs_f64());
        }
    }
}

impl Worker {
    /// Writes an outcome under the lease, then wakes whom it gives work.
    pub(super) async fn commit(&mut self, mut outcome: Outcome, now: Timestamp) -> Result<(), CryptoError> {
        let store = self.parts.store.clone();
        let seal = store.seal()?;
        self.number_tidings(&mut outcome);
        let changes = self.rooms.take_changes()?;
        let bridges = self.rooms.pins.take_changes();
        let mut tx = store.begin().await?;
        leases::check(&mut tx, &self.parts.lease).await?;
        bridges::put(&mut tx, &bridges, now).await?;
        rooms::put_many(&mut tx, seal, &changes.whole, now).await?;
        rooms::put_sequences(&mut tx, &changes.sequences).await?;
        let unread: Vec<_> = outcome.unread.iter().map(|id| &**id).collect();
        rooms::set_due(&mut tx, &unread, now).await?;
        rooms::set_second_reading(&mut tx, &outcome.held).await?;
        memberships::put(&mut tx, &outcome.memberships, now).await?;
        memberships::follow(&mut tx, &outcome.successors, now).await?;
        if let Some(bot) = self.bot_to_invite() {
            let settled: Vec<_> = outcome.settled.iter().map(|id| &**id).collect();
            memberships::want(&mut tx, &settled, bot, now).await?;
        }
        if !outcome.settled.is_empty() {
            // A bridge may be known now whose invites were left unanswered.
            memberships::retry_invites(&mut tx, now).await?;
        }
        let read = outcome.readings.write(&mut tx, seal, now).await?;
        for room_id in &outcome.purged {
            readings::delete(&mut tx, &[room_id]).await?;
            pending::delete_room(&mut tx, room_id).await?;
            redacted::delete_room(&mut tx, room_id).await?;
        }
        self.write_waiting(&mut tx, &outcome, now).await?;
        let dropped = self.bound_held(&mut tx, &outcome).await?;
        messages::use_indexes(&mut tx, &outcome.used, now).await?;
        messages::claim_indexes(&mut tx, &outcome.index_claims).await?;
        self.write_silence(&mut tx, &mut outcome, now).await?;
        messages::insert(&mut tx, seal, &outcome.messages, now).await?;
        outcome.apply_redactions(&mut tx, seal, now).await?;
        dismissed::put(&mut tx, &outcome.dismissed, now).await?;
        probes::put(&mut tx, &outcome.probes, now).await?;
        inbox::set_aside(&mut tx, &outcome.set_aside, now).await?;
        inbox::mark_processed(&mut tx, &outcome.rows, now).await?;
        let queued: Vec<_> = outcome
            .messages
            .iter()
            .map(|message| Queued {
                webhooks: self.webhooks_for(message),
                message_id: message.message_id.as_str(),
                room_id: &message.room_id,
                sequence: i64::try_from(message.sequence).unwrap_or(i64::MAX),
            })
            .collect();
        outbox::enqueue(&mut tx, &queued, now).await?;
        tx.commit().await?;
        self.release_rooms(read, now);
        metrics().held_dropped.add(&[], dropped);
        outcome.count();
        self.after_commit(&outcome).await
    }

    /// The webhooks that are told of a message.
    fn webhooks_for(&self, message: &Message) -> Vec<(WebhookId, Flow)> {
        let routes = self.parts.webhooks.iter().filter(|route| filter::admits(&route.filter, message));
        routes.map(|route| (route.webhook_id, route.flow)).collect()
    }

    /// What waits, no longer waits, and must never be relayed.
    async fn write_waiting(&self, tx: &mut Tx, outcome: &Outcome, now: Timestamp) -> Result<(), StoreError> {
        pending::to_ledger(tx, &outcome.to_ledger, now).await?;
        pending::set_reason(tx, &outcome.misplaced, &Reason::Replay).await?;
        pending::set_told(tx, &outcome.told, now).await?;
        let released: Vec<_> = outcome.released.iter().map(String::as_str).collect();
        pending::delete(tx, &released).await?;
        pending::insert(tx, self.parts.store.seal()?, &outcome.waiting, now).await?;
        // After all that waits is there: of what was taken back, nothing stays.
        redacted::put(tx, &outcome.taken_back, now).await?;
        member_redactions::put(tx, self.parts.store.seal()?, &outcome.takebacks).await?;
        for (room_id, user_id, position) in &outcome.taken_back_to {
            member_redactions::advance(tx, room_id, user_id, *position).await?;
        }
        key_news::forget(tx, &outcome.news).await
    }

    /// Drops what is too much of the events that are kept of rooms which may never be relayed, the oldest first, and returns
    /// how many.
    async fn bound_held(&mut self, tx: &mut Tx, outcome: &Outcome) -> Result<u64, StoreError> {
        let queued = outcome.waiting.iter().filter(|pending| pending.waits == Waits::Queued);
        let mut rooms = BTreeSet::new();
        for room_id in queued.filter_map(|pending| OwnedRoomId::try_from(&*pending.room_id).ok()) {
            if self.rooms.is_held(&room_id) {
                self.held_count += 1;
                rooms.insert(room_id);
            }
        }
        let mut dropped = 0;
        for room_id in &rooms {
            let count = pending::trim_queue(tx, room_id, MAX_HELD_IN_ROOM).await?;
            if count > 0 {
                tracing::warn!(room.id = %room_id, count, "dropped the oldest events of a room that is not relayed so far");
            }
            dropped += count;
        }
        if self.held_count >= HELD_COUNT_INTERVAL {
            self.held_count = 0;
            let count = pending::trim_held(tx, MAX_HELD).await?;
            if count > 0 {
                tracing::warn!(count, "dropped the oldest events of rooms that are not relayed so far");
            }
            dropped += count;
        }
        Ok(dropped)
    }

    async fn after_commit(&self, outcome: &Outcome) -> Result<(), CryptoError> {
        self.heights.raise(&outcome.used);
        let wakes = &self.parts.wakes;
        if !outcome.messages.is_empty() {
            wakes.outbox.notify_one();
            tracing::info!(
                rows = outcome.rows.len(),
                messages = outcome.messages.len(),
                waiting = outcome.waiting.len(),
                "inbox"
            );
        }
        if !(outcome.waiting.is_empty() && outcome.to_ledger.is_empty() && outcome.released.is_empty()) {
            wakes.ledger.notify_one();
        }
        if !outcome.waiting.is_empty() {
            // A backup may have the key.
            wakes.backup.notify_one();
        }
        let errands = !(outcome.unread.is_empty() && outcome.memberships.is_empty());
        let errands = errands || !outcome.readings.begun.is_empty();
        if errands || !(outcome.settled.is_empty() && outcome.successors.is_empty()) {
            wakes.rooms.notify_one();
        }
        // Following is not part of the transaction: what is lost by a crash here is made up for when the
        // room's state changes or is read again, and by the devices that come with the keys themselves.
        if !outcome.track.is_empty() {
            for engine in self.decrypter.engines() {
                engine.track(&outcome.track).await?;
            }
            wakes.outgoing.notify_one();
        }
        Ok(())
    }

    /// Whether a room's messages are relayed, as far as this step knows.
    pub(super) fn relays(&self, room_id: &ruma::RoomId) -> Relay {
        self.rooms.relay(room_id)
    }
}
