//! From a batch's events to messages: per room in order, each event once.

use std::collections::{BTreeMap, HashMap, HashSet};

use ruma::{OwnedEventId, OwnedRoomId, RoomId};
use serde_json::value::RawValue;

use super::{
    batch::Batch,
    commit::Outcome,
    decrypt::Sealed,
    event::{self, WireEvent},
    flow::{self, Fate, Walk, reason},
    worker::Worker,
};
use crate::{
    clock::Timestamp,
    crypto::{Clear, CryptoError, Decrypted, RoomKey, trust},
    messages::{self, PayloadClass, room::Change},
    model::{ClearEvent, Encryption, Membership, MessageId, Relay, Trust},
    store::{
        StoreError,
        messages::MegolmIndex,
        pending::{self, NewPending, Pending, Waits},
        rooms::MembershipChange,
    },
};

/// Events of one room's queue looked at in one step.
const MOST_QUEUED: i64 = 500;

/// What a step works on besides the batch.
#[derive(Debug, Default)]
struct Known {
    decrypted: HashMap<OwnedEventId, Decrypted>,
    /// Messages that are stored already.
    messages: HashSet<String>,
    /// Which event used which place of a Megolm session.
    indexes: HashMap<MegolmIndex, String>,
    /// Events of the batch that later ones have overtaken.
    overtaken: HashSet<OwnedEventId>,
}

impl Known {
    /// Whether an event is a message already: it came before, by whichever way.
    fn has(&self, event: &WireEvent) -> bool {
        self.messages.contains(messages::message_id(PayloadClass::Event, &event.event_id).as_str())
    }
}

impl Worker {
    /// Decides the fate of every event: of the queues that can move, of the ledger's events whose key came,
    /// and of the batch's own.
    pub(super) async fn relay(
        &mut self,
        mut batch: Batch,
        keys: &[RoomKey],
        due: HashSet<OwnedRoomId>,
        now: Timestamp,
        outcome: &mut Outcome,
    ) -> Result<(), CryptoError> {
        let mut queues = self.load_queues(due).await?;
        self.put_first(&mut batch, &mut queues);
        let late = self.load_ledger(keys).await?;
        let waiting = queues.values().flat_map(|queue| &queue.events).chain(&late);
        let mut known = self.look_up(waiting.chain(&batch.events).collect()).await?;
        known.overtaken = batch.overtaken(|event| known.has(event));
        for event in late {
            self.release_late(&event, &mut known, outcome)?;
        }
        for (room_id, queue) in queues {
            self.walk_queue(&room_id, &queue, now, &mut known, outcome)?;
        }
        let mut walks = HashMap::new();
        for event in batch.events {
            self.take_event(event, now, &mut walks, &mut known, outcome)?;
        }
        Ok(())
    }

    async fn load_queues(
        &self,
        due: HashSet<OwnedRoomId>,
    ) -> Result<BTreeMap<OwnedRoomId, Queue>, CryptoError> {
        let store = &self.parts.store;
        let mut queues = BTreeMap::new();
        for room_id in due {
            if self.relays(&room_id) != Relay::Yes || !self.queues.contains_key(&room_id) {
                continue;
            }
            let found = pending::queue(store.db(), store.seal()?, &room_id, MOST_QUEUED).await?;
            let is_whole = i64::try_from(found.len()).is_ok_and(|count| count < MOST_QUEUED);
            let events = found.into_iter().filter_map(wire).collect();
            queues.insert(room_id, Queue { events, is_whole, new_count: 0 });
        }
        Ok(queues)
    }

    /// Puts what was said before we joined a room before what came since.
    fn put_first(&self, batch: &mut Batch, queues: &mut BTreeMap<OwnedRoomId, Queue>) {
        for snapshot in &mut batch.snapshots {
            let mut events = snapshot.take_earlier();
            if events.is_empty() || self.relays(&snapshot.room_id) != Relay::Yes {
                continue;
            }
            let queue = queues.entry(snapshot.room_id.clone()).or_default();
            queue.new_count += events.len();
            events.append(&mut queue.events);
            queue.events = events;
        }
    }

    async fn load_ledger(&self, keys: &[RoomKey]) -> Result<Vec<WireEvent>, CryptoError> {
        let relayed = keys.iter().filter(|key| self.relays(&key.room_id) == Relay::Yes);
        let sessions: Vec<_> = relayed.map(|key| (key.room_id.to_string(), key.session_id.clone())).collect();
        let store = &self.parts.store;
        let found = pending::ledger(store.db(), store.seal()?, &sessions).await?;
        Ok(found.into_iter().filter_map(wire).collect())
    }

    /// All that the store and the machines know of these events, in a handful of statements.
    async fn look_up(&self, events: Vec<&WireEvent>) -> Result<Known, CryptoError> {
        let (mut ids, mut places, mut sealed) = (Vec::new(), Vec::new(), Vec::new());
        for event in events {
            if event.state_key.is_some() || self.relays(&event.room_id) != Relay::Yes {
                continue;
            }
            ids.push(messages::message_id(PayloadClass::Event, &event.event_id));
            let Some(place) = &event.session else { continue };
            places.extend(megolm_index(event));
            sealed.push(Sealed {
                event_id: event.event_id.clone(),
                key: place.key.clone(),
                raw: event.raw.clone(),
            });
        }
        let db = self.parts.store.db();
        let ids: Vec<_> = ids.iter().map(MessageId::as_str).collect();
        let messages = crate::store::messages::known(db, &ids).await?;
        let indexes = crate::store::messages::used_indexes(db, &places).await?;
        sealed.retain(|sealed| {
            let id = messages::message_id(PayloadClass::Event, &sealed.event_id);
            !messages.contains(id.as_str())
        });
        let decrypted = self.decrypter.decrypt(sealed).await?;
        Ok(Known { decrypted, messages, indexes, overtaken: HashSet::new() })
    }

    /// An event of the ledger whose key came: relayed now, behind newer ones, or left where it is.
    fn release_late(
        &mut self,
        event: &WireEvent,
        known: &mut Known,
        outcome: &mut Outcome,
    ) -> Result<(), CryptoError> {
        if known.has(event) {
            outcome.released.push(event.event_id.to_string());
            return Ok(());
        }
        match flow::fate(known.decrypted.remove(&event.event_id)) {
            Fate::Relay(clear) => {
                if self.emit(event, clear, true, known, outcome)? {
                    outcome.released.push(event.event_id.to_string());
                }
            }
            Fate::Ledger(why) => outcome.to_ledger.push((event.event_id.to_string(), why)),
            Fate::Queue(_) => {}
        }
        Ok(())
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
        for (at, event) in queue.events.iter().enumerate() {
            if known.has(event) {
                outcome.released.push(event.event_id.to_string());
                continue;
            }
            match walk.next(event, &mut known.decrypted) {
                Fate::Relay(clear) => {
                    if self.emit(event, clear, false, known, outcome)? {
                        outcome.released.push(event.event_id.to_string());
                    }
                }
                Fate::Ledger(why) => {
                    tracing::warn!(event.id = %event.event_id, room.id = %room_id, why, "undecryptable");
                    if at < queue.new_count {
                        outcome.waiting.push(new_pending(event.clone(), Waits::Ledger, &why));
                    } else {
                        outcome.to_ledger.push((event.event_id.to_string(), why));
                    }
                }
                Fate::Queue(why) => {
                    if at < queue.new_count {
                        queue.store_from(at, why, outcome);
                    }
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
        event: WireEvent,
        now: Timestamp,
        walks: &mut HashMap<OwnedRoomId, Walk>,
        known: &mut Known,
        outcome: &mut Outcome,
    ) -> Result<(), CryptoError> {
        if event.state_key.is_some() {
            self.take_state(&event, outcome);
            return Ok(());
        }
        match self.relays(&event.room_id) {
            Relay::No => return Ok(()),
            Relay::Unknown => {
                if self.rooms.forget(&event.room_id) {
                    outcome.unread.insert(event.room_id.clone());
                }
                self.queues.insert(event.room_id.clone(), None);
                outcome.waiting.push(new_pending(event, Waits::Queued, reason::ROOM_STATE));
                return Ok(());
            }
            Relay::Yes => {}
        }
        if known.has(&event) {
            return Ok(());
        }
        if self.queues.contains_key(&event.room_id) {
            outcome.waiting.push(new_pending(event, Waits::Queued, reason::ORDER));
            return Ok(());
        }
        let walk = walks.entry(event.room_id.clone()).or_insert_with(|| Walk::new(now, self.since));
        match walk.next(&event, &mut known.decrypted) {
            Fate::Relay(clear) => {
                let late = known.overtaken.contains(&event.event_id);
                self.emit(&event, clear, late, known, outcome)?;
            }
            Fate::Queue(why) => {
                let deadline = flow::deadline(event.received_at, self.since);
                self.queues.insert(event.room_id.clone(), Some(deadline));
                outcome.waiting.push(new_pending(event, Waits::Queued, why));
            }
            Fate::Ledger(why) => {
                tracing::warn!(event.id = %event.event_id, room.id = %event.room_id, why, "undecryptable");
                outcome.waiting.push(new_pending(event, Waits::Ledger, &why));
            }
        }
        Ok(())
    }

    /// A state event: our memberships, and what is known of a relayed room.
    fn take_state(&mut self, event: &WireEvent, outcome: &mut Outcome) {
        let state_key = event.state_key.as_deref().unwrap_or_default();
        let account = state_key.try_into().ok().and_then(|user: &ruma::UserId| self.account(user));
        if let Some(account) = account.filter(|_| event.event_type == "m.room.member") {
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
            Relay::Yes => match self.rooms.apply(&event.room_id, &event.raw) {
                Change::Bridge | Change::Member(_) => {
                    outcome.track.extend(self.rooms.users_to_track(&event.room_id));
                }
                Change::Room | Change::None => {}
            },
            // The state of a room that is not relayed is not kept, so all of it is read anew.
            Relay::No if matches!(event.event_type.as_str(), "m.bridge" | "uk.half-shot.bridge") => {
                self.rooms.forget(&event.room_id);
                outcome.unread.insert(event.room_id.clone());
            }
            Relay::No | Relay::Unknown => {}
        }
    }

    /// Makes a message of an event, unless there is one; answers whether the event is done with. A replay or
    /// a forgery is not: it goes to the ledger.
    fn emit(
        &mut self,
        event: &WireEvent,
        clear: Option<Box<Clear>>,
        late: bool,
        known: &mut Known,
        outcome: &mut Outcome,
    ) -> Result<bool, CryptoError> {
        let Some(room) = self.rooms.get(&event.room_id) else { return Ok(false) };
        let mut encryption = Encryption::default();
        let (mut event_type, mut content) = (event.event_type.clone(), None);
        if let Some(clear) = clear {
            if let Some(index) = megolm_index(event) {
                let user = event.event_id.to_string();
                let first = known.indexes.entry(index.clone()).or_insert_with(|| user.clone());
                if *first != user {
                    refuse(event, reason::REPLAY, outcome);
                    return Ok(false);
                }
                outcome.used.push((index, user));
            }
            let bot = room.context.bridge_bot.as_deref();
            let verdict = trust::judge(clear.trust, clear.session_owner.as_deref(), &event.sender, bot);
            if !verdict.is_genuine() {
                refuse(event, reason::UNTRUSTED_SENDER, outcome);
                return Ok(false);
            }
            encryption = encrypted(event, &clear, verdict.trust);
            encryption.bridged_by = verdict.bridged_by;
            event_type = clear_type(&clear.event).unwrap_or(event_type);
            content = Some(event::content(&clear.event));
        }
        let profile = room.state.profile(&event.sender);
        let draft = messages::draft(
            ClearEvent {
                event_id: event.event_id.clone(),
                room_id: event.room_id.clone(),
                sender: event.sender.clone(),
                origin_server_ts: event.origin_server_ts,
                event_type,
                content: content.unwrap_or_else(|| event.content()),
                redacts: event.redacts.clone(),
                encryption,
                late,
            },
            &room.context,
            profile,
            event.received_at,
        );
        let sequence = self.rooms.next_sequence(&event.room_id);
        let message = draft.into_message(sequence).map_err(|_| StoreError::Corrupt("messages"))?;
        known.messages.insert(message.message_id.as_str().to_owned());
        outcome.messages.push(message);
        Ok(true)
    }
}

/// A room's queue, as far as it was loaded.
#[derive(Debug)]
struct Queue {
    events: Vec<WireEvent>,
    is_whole: bool,
    /// The first so many events are not stored yet.
    new_count: usize,
}

impl Default for Queue {
    fn default() -> Self {
        Self { events: Vec::new(), is_whole: true, new_count: 0 }
    }
}

impl Queue {
    /// Stores the events from that place on, the new ones first: those behind them are stored again.
    fn store_from(&self, at: usize, why: &str, outcome: &mut Outcome) {
        for (place, event) in self.events.iter().enumerate().skip(at) {
            let why = if place == at { why } else { reason::ORDER };
            outcome.released.push(event.event_id.to_string());
            outcome.waiting.push(new_pending(event.clone(), Waits::Queued, why));
        }
    }
}

fn wire(pending: Pending) -> Option<WireEvent> {
    let raw = String::from_utf8(pending.event).ok().and_then(|text| RawValue::from_string(text).ok())?;
    WireEvent::parse(raw, pending.received_at).ok()
}

fn megolm_index(event: &WireEvent) -> Option<MegolmIndex> {
    let place = event.session.as_ref()?;
    Some((place.key.room_id.to_string(), place.key.session_id.clone(), place.index?))
}

fn encrypted(event: &WireEvent, clear: &Clear, trust: Trust) -> Encryption {
    Encryption {
        encrypted: true,
        algorithm: Some(clear.algorithm.to_owned()),
        session_id: event.session.as_ref().map(|place| place.key.session_id.clone()),
        trust: Some(trust),
        bridged_by: None,
    }
}

fn clear_type(event: &RawValue) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Head {
        #[serde(rename = "type")]
        event_type: String,
    }
    serde_json::from_str::<Head>(event.get()).ok().map(|head| head.event_type)
}

/// Puts an event that must not be relayed on the ledger, wherever it was before.
fn refuse(event: &WireEvent, why: &str, outcome: &mut Outcome) {
    tracing::warn!(event.id = %event.event_id, room.id = %event.room_id, why, "refused");
    outcome.to_ledger.push((event.event_id.to_string(), why.to_owned()));
    outcome.waiting.push(NewPending {
        event_id: event.event_id.to_string(),
        room_id: event.room_id.to_string(),
        session_id: event.session.as_ref().map(|place| place.key.session_id.clone()),
        sender: event.sender.to_string(),
        waits: Waits::Ledger,
        reason: why.to_owned(),
        event: event.raw.get().as_bytes().to_vec(),
        origin_server_ts: event.origin_server_ts,
        received_at: event.received_at,
    });
}

fn new_pending(event: WireEvent, waits: Waits, why: &str) -> NewPending {
    NewPending {
        event_id: event.event_id.to_string(),
        room_id: event.room_id.to_string(),
        session_id: event.session.map(|place| place.key.session_id),
        sender: event.sender.to_string(),
        waits,
        reason: why.to_owned(),
        event: event.raw.get().as_bytes().to_vec(),
        origin_server_ts: event.origin_server_ts,
        received_at: event.received_at,
    }
}
