//! From a batch's events to messages: per room in order, each event once.

use std::collections::{BTreeMap, HashMap, HashSet};

use ruma::{EventId, OwnedRoomId, RoomId};

use super::{
    batch::Batch,
    commit::Outcome,
    decrypt::Sealed,
    event::WireEvent,
    flow::{self, Fate, Walk},
    known::Known,
    ledger::{new_pending, redaction_target, refuse, wire},
    pins,
    redact::Reactions,
    worker::Worker,
};
use crate::{
    clock::Timestamp,
    crypto::{Clear, CryptoError, RoomKey},
    messages::{
        self, PayloadClass,
        control::{self, Control},
    },
    model::{ClearEvent, Encryption, MessageId, Relay, json::EventBody, ledger::Reason},
    store::{
        StoreError, dismissed,
        messages::MegolmIndex,
        pending::{self, Waits},
        redacted,
    },
};

/// Events of one room's queue looked at in one step.
const MOST_QUEUED: i64 = 500;

impl Worker {
    /// Decides the fate of every event: of the queues that can move, of the ledger's events whose key came,
    /// and of the batch's own.
    pub(super) async fn relay(
        &mut self,
        batch: Batch,
        keys: &[RoomKey],
        due: HashSet<OwnedRoomId>,
        now: Timestamp,
        outcome: &mut Outcome,
    ) -> Result<(), CryptoError> {
        self.suspend_rooms(&batch, outcome);
        let queues = self.load_queues(due).await?;
        let late = self.load_ledger(keys, outcome).await?;
        let overheard = self.load_overheard(keys).await?;
        let waiting: Vec<_> =
            queues.values().flat_map(|queue| &queue.events).chain(&late).chain(&overheard).collect();
        let missed: Vec<_> = batch.missed().map(|event| event.event_id.as_str()).collect();
        let mut known = self.look_up(waiting, &batch.events, &missed).await?;
        let queued = pending::queued(self.parts.store.db(), &missed).await?;
        known.overtaken =
            batch.overtaken(|event| known.has(event), |event| queued.contains(event.event_id.as_str()));
        for event in overheard {
            self.overhear(&event, &mut known, outcome);
        }
        for event in late {
            self.release_late(&event, &mut known, outcome)?;
        }
        for (room_id, queue) in queues {
            self.walk_queue(&room_id, &queue, now, &mut known, outcome)?;
        }
        let mut walks = HashMap::new();
        for event in &batch.events {
            self.take_event(event, now, &mut walks, &mut known, outcome)?;
        }
        Self::end_readings(&batch, outcome);
        let redacting = std::mem::take(&mut known.redacting).into_iter();
        outcome.taken_back.extend(redacting.filter(|target| !known.has_target(target)));
        Ok(())
    }

    async fn load_queues(
        &mut self,
        due: HashSet<OwnedRoomId>,
    ) -> Result<BTreeMap<OwnedRoomId, Queue>, CryptoError> {
        let store = self.parts.store.clone();
        let mut queues = BTreeMap::new();
        for room_id in due {
            if self.relays(&room_id) != Relay::Yes {
                // Its state is not known, or no longer: until it is, nothing of it is due.
                self.queues.entry(room_id).and_modify(|deadline| *deadline = None);
                continue;
            }
            if !self.queues.contains_key(&room_id) || self.being_read.contains(&room_id) {
                continue;
            }
            let found = pending::queue(store.db(), store.seal()?, &room_id, MOST_QUEUED).await?;
            let is_whole = i64::try_from(found.len()).is_ok_and(|count| count < MOST_QUEUED);
            let events = found.into_iter().filter_map(wire).collect();
            queues.insert(room_id, Queue { events, is_whole });
        }
        Ok(queues)
    }

    /// All that the store and the machines know of these events, in a handful of statements.
    async fn look_up(
        &self,
        waiting: Vec<&WireEvent>,
        batch: &[WireEvent],
        missed: &[&str],
    ) -> Result<Known, CryptoError> {
        let db = self.parts.store.db();
        let all: Vec<&WireEvent> = waiting.into_iter().chain(batch).collect();
        let relayed = all.iter().filter(|event| self.relays(&event.room_id) == Relay::Yes);
        let heights = self.heights.find(db, relayed.copied()).await?;
        let reactions = Reactions::find(db, &all).await?;
        let (mut ids, mut places, mut sealed) = (Vec::new(), Vec::new(), Vec::new());
        let (mut events, mut redacting, mut flawed) = (Vec::new(), HashSet::new(), Vec::new());
        for &event in &all {
            ids.extend(self.membership_id(event));
            let relay = self.relays(&event.room_id);
            let is_listened_to = event.state_key.is_none() && self.listens_to(event);
            if event.state_key.is_some() || (relay == Relay::No && !is_listened_to) {
                continue;
            }
            if let Some(target) = redaction_target(event) {
                let target_id = EventId::parse(&target.1).ok();
                ids.extend(target_id.map(|id| messages::message_id(PayloadClass::Event, &id)));
                redacting.insert(target);
            }
            if relay != Relay::Yes && !is_listened_to && !self.rooms.releases(&event.room_id) {
                continue;
            }
            events.push((event.room_id.as_str(), event.event_id.as_str()));
            if !heights.is_beyond(event) {
                ids.push(messages::message_id(PayloadClass::Event, &event.event_id));
                places.extend(megolm_index(event));
            }
            if let Some(flaw) = event.flaw {
                flawed.push((event.event_id.clone(), flaw.into()));
                continue;
            }
            // What is read waits for its turn first.
            let Some(place) = event.session.as_ref().filter(|_| !event.is_read()) else { continue };
            sealed.push(Sealed {
                event_id: event.event_id.clone(),
                sender: event.sender.clone(),
                key: place.key.clone(),
                raw: event.raw.clone(),
            });
        }
        let ids: Vec<_> = ids.iter().map(MessageId::as_str).collect();
        let messages = crate::store::messages::known(db, &ids).await?;
        let indexes = crate::store::messages::used_indexes(db, &places).await?;
        let redacted = redacted::find(db, &events).await?;
        let encrypted = batch.iter().filter(|event| event.is_encrypted());
        let encrypted: Vec<_> = encrypted.map(|event| event.event_id.as_str()).collect();
        let on_ledger = pending::on_ledger(db, &encrypted).await?;
        let read = batch.iter().filter(|event| event.is_read()).map(|event| event.event_id.as_str());
        let targets = redacting.iter().map(|(_, event_id)| event_id.as_str());
        let dismissable: Vec<_> = read.chain(missed.iter().copied()).chain(targets).collect();
        let dismissed = dismissed::find(db, &dismissable).await?;
        sealed.retain(|sealed| {
            let id = messages::message_id(PayloadClass::Event, &sealed.event_id);
            !messages.contains(id.as_str())
        });
        let mut decrypted = self.decrypter.decrypt(sealed).await?;
        decrypted.extend(flawed);
        self.add_claims(&all, &mut decrypted).await?;
        let (overtaken, index_claims) = Default::default();
        let mut known = Known {
            decrypted,
            messages,
            indexes,
            index_claims,
            overtaken,
            reactions,
            on_ledger,
            redacted,
            dismissed,
            redacting,
        };
        let places = all.iter().filter_map(|event| Some((megolm_index(event)?, event.event_id.as_str())));
        known.load_index_claims(db, places).await?;
        Ok(known)
    }

    /// Moves a room's queue as far as it goes.
    fn walk_queue(
        &mut self,
        room_id: &RoomId,
        queue: &Queue,
        now: Timestamp,
        known: &mut Known,
        outcome: &mut Outcome,
    ) -> Result<(), CryptoError> {
        let mut walk = Walk::new(now, self.since);
        for event in &queue.events {
            let is_redacted_members = self.is_redacted_members(event);
            if is_redacted_members {
                dismiss(event, known, outcome);
            }
            if is_redacted_members || known.has(event) || known.is_taken_back(event) {
                outcome.released.push(event.event_id.to_string());
                continue;
            }
            match walk.next(event, &mut known.decrypted) {
                Fate::Relay(clear) => {
                    if self.emit(event, clear, event.is_late(), known, outcome)? {
                        outcome.released.push(event.event_id.to_string());
                    }
                }
                Fate::Ledger(why) => {
                    tracing::warn!(event.id = %event.event_id, room.id = %room_id, %why, "undecryptable");
                    outcome.to_ledger.push((event.event_id.to_string(), why));
                }
                Fate::Queue(_) => {
                    let deadline = flow::deadline(event.received_at, self.since);
                    self.queues.insert(room_id.to_owned(), Some(deadline));
                    return Ok(());
                }
            }
        }
        if queue.is_whole {
            self.queues.remove(room_id);
        } else {
            self.queues.insert(room_id.to_owned(), Some(now));
        }
        Ok(())
    }

    /// An event of the batch.
    fn take_event(
        &mut self,
        event: &WireEvent,
        now: Timestamp,
        walks: &mut HashMap<OwnedRoomId, Walk>,
        known: &mut Known,
        outcome: &mut Outcome,
    ) -> Result<(), CryptoError> {
        if event.state_key.is_some() {
            return self.take_state(event, known, outcome);
        }
        match self.relays(&event.room_id) {
            Relay::No if !self.rooms.is_unsettled_by(&event.room_id, &event.sender) => {
                self.overhear_management(event, known, outcome);
                return Ok(());
            }
            relay if event.is_read() => {
                if relay != Relay::Yes {
                    self.overhear(event, known, outcome);
                }
                self.take_read(event, now, known, outcome);
                return Ok(());
            }
            Relay::No | Relay::Unknown => {
                self.overhear(event, known, outcome);
                if self.rooms.forget(&event.room_id) {
                    outcome.unread.insert(event.room_id.clone());
                }
                self.queues.insert(event.room_id.clone(), None);
                outcome.waiting.push(new_pending(event, Waits::Queued, Reason::RoomState));
                return Ok(());
            }
            Relay::Yes => {}
        }
        if known.is_settled(event) {
            return Ok(());
        }
        if self.is_redacted_members(event) {
            dismiss(event, known, outcome);
            return Ok(());
        }
        self.hear(event, outcome);
        let target = redaction_target(event);
        if known.overtaken.contains(&event.event_id) {
            known.redacted.extend(target);
            return self.take_overtaken(event, known, outcome);
        }
        if let Some(deadline) = self.queues.get_mut(&event.room_id) {
            if target.is_some() && deadline.is_some() {
                // What holds up the room may be what was taken back.
                *deadline = Some(now);
            }
            outcome.waiting.push(new_pending(event, Waits::Queued, Reason::Order));
            return Ok(());
        }
        known.redacted.extend(target);
        let walk = walks.entry(event.room_id.clone()).or_insert_with(|| Walk::new(now, self.since));
        match walk.next(event, &mut known.decrypted) {
            Fate::Relay(clear) => {
                self.emit(event, clear, false, known, outcome)?;
            }
            Fate::Queue(why) => {
                let deadline = flow::deadline(event.received_at, self.since);
                self.queues.insert(event.room_id.clone(), Some(deadline));
                outcome.waiting.push(new_pending(event, Waits::Queued, why));
            }
            Fate::Ledger(why) => {
                tracing::warn!(event.id = %event.event_id, room.id = %event.room_id, %why, "undecryptable");
                outcome.waiting.push(new_pending(event, Waits::Ledger, why));
            }
        }
        Ok(())
    }

    /// Whether an event is of a member of whom all is taken back. What such a member has taken back stays so.
    fn is_redacted_members(&self, event: &WireEvent) -> bool {
        event.event_type != "m.room.redaction" && self.rooms.takes_back(&event.room_id, &event.sender)
    }

    /// An event that has lost its place: it neither waits for its turn nor holds up the room.
    fn take_overtaken(
        &mut self,
        event: &WireEvent,
        known: &mut Known,
        outcome: &mut Outcome,
    ) -> Result<(), CryptoError> {
        let decrypted = event.is_encrypted().then(|| known.decrypted.remove(&event.event_id));
        match decrypted.map_or(Fate::Relay(None), flow::fate) {
            Fate::Relay(clear) => {
                self.emit(event, clear, true, known, outcome)?;
            }
            Fate::Queue(why) | Fate::Ledger(why) => {
                outcome.waiting.push(new_pending(event, Waits::Ledger, why));
            }
        }
        Ok(())
    }

    /// Makes a message of an event, unless there is one; answers whether the event is done with. A replay or
    /// a forgery is not: it goes to the ledger.
    pub(super) fn emit(
        &mut self,
        event: &WireEvent,
        clear: Option<Box<Clear>>,
        late: bool,
        known: &mut Known,
        outcome: &mut Outcome,
    ) -> Result<bool, CryptoError> {
        let now = self.parts.clock.now();
        let Some(room) = self.rooms.get(&event.room_id) else { return Ok(false) };
        let mut encryption = Encryption::default();
        let mut bridge_device = None;
        let (mut event_type, mut said) = (event.event_type.clone(), None);
        if let Some(mut clear) = clear {
            let body = std::mem::take(&mut clear.body);
            let bots = pins::bots(&room.state);
            let claimant = match self.rooms.pins.admit(event, &clear, &body.content, &bots, late) {
                Ok(admitted) => {
                    encryption = admitted.encryption;
                    bridge_device = admitted.bridge_device;
                    admitted.claimant
                }
                Err(held) => {
                    if held.is_open {
                        self.doubts.soon(&event.room_id, now);
                    }
                    self.note_unknown(event, held.for_unknown, outcome);
                    refuse(event, Reason::UntrustedSender, outcome);
                    return Ok(false);
                }
            };
            // Only a genuine event takes a place: a forger's copy that comes first must not keep it.
            if let Some(index) = megolm_index(event)
                && !outcome.use_index(index, event, &claimant, known)
            {
                refuse(event, Reason::Replay, outcome);
                return Ok(false);
            }
            outcome.waited.push(now.since(event.received_at));
            event_type = body.event_type.clone().unwrap_or(event_type);
            said = Some(body);
        }
        let EventBody { content, repairs, .. } = said.unwrap_or_else(|| event.body());
        let repairs = event.repairs.iter().cloned().chain(repairs).collect();
        if !encryption.flagged {
            self.read_notice(event, &content, outcome);
        }
        if let Some(control) = control::read(&event_type, &content, self.rooms.pins.is_bot(&event.sender)) {
            tracing::debug!(event.id = %event.event_id, kind = control.as_str(), "passed over what is no message");
            outcome.controls.push(control);
            dismiss(event, known, outcome);
            return Ok(true);
        }
        // What was passed over is passed over when it is taken back, too.
        if redaction_target(event).is_some_and(|(_, target)| known.dismissed.contains(&target)) {
            outcome.controls.push(Control::ErrorNotice);
            dismiss(event, known, outcome);
            return Ok(true);
        }
        let Some(room) = self.rooms.get(&event.room_id) else { return Ok(false) };
        let profile = room.state.profile(&event.sender);
        let speaker = self.rooms.speaker(event, &content, &encryption);
        let draft = messages::draft(
            ClearEvent {
                event_id: event.event_id.clone(),
                room_id: event.room_id.clone(),
                sender: event.sender.clone(),
                origin_server_ts: event.origin_server_ts,
                event_type,
                content,
                repairs,
                redacts: event.redacts.clone(),
                encryption,
                late,
                is_owners: speaker.is_some_and(|speaker| speaker.is_owners),
            },
            speaker.map_or(&room.context, |speaker| speaker.context),
            profile,
            event.received_at,
        );
        if let Some((bot, device)) = bridge_device {
            self.rooms.pins.observe(&bot, &device);
        }
        outcome.note_redaction(event);
        let draft = known.reactions.name(draft);
        let draft = if event.told { draft.after_undecryptable() } else { draft };
        let sequence = self.rooms.next_sequence(&event.room_id);
        let message = draft.into_message(sequence).map_err(|_| StoreError::Corrupt("messages"))?;
        known.messages.insert(message.message_id.as_str().to_owned());
        outcome.messages.push(message);
        Ok(true)
    }
}

/// Remembers that an event of a relayed room is passed over, so that no comparison misses it.
fn dismiss(event: &WireEvent, known: &mut Known, outcome: &mut Outcome) {
    known.dismissed.insert(event.event_id.to_string());
    outcome.dismissed.push((event.event_id.to_string(), event.room_id.to_string()));
}

/// A room's queue, as far as it was loaded.
#[derive(Debug)]
struct Queue {
    events: Vec<WireEvent>,
    is_whole: bool,
}

fn megolm_index(event: &WireEvent) -> Option<MegolmIndex> {
    let place = event.session.as_ref()?;
    Some((place.key.room_id.to_string(), place.key.session_id.clone(), place.index?))
}
