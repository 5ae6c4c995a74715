//! Works through the inbox: the one place where what came in becomes messages.
//!
//! A step takes the next rows, gives the crypto machines their part, decides the fate of every event, and
//! writes all that follows in one transaction under the crypto lease: messages, deliveries, what waits, what
//! is known of rooms, and that the rows are worked through. A process that dies before the commit leaves the
//! rows as they were; the machines recognise what they have seen, and ids of messages are the same again.
//! After any error the worker is dropped with its caches and engines, and a new one starts from the store.

use std::{
    collections::{HashMap, HashSet},
    error::Error,
    sync::Arc,
    time::Duration,
};

use ruma::{OwnedRoomId, RoomId, UserId};
use tokio::{
    sync::{Mutex, Notify},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    batch::{Batch, Readers},
    commit::Outcome,
    decrypt::Decrypter,
    flow,
    heights::Heights,
    imports::Imports,
    rooms::{Policy, Rooms, Settled},
    seen::Seen,
    silence::{Changes, Silence},
    takebacks::Takebacks,
    verdict::Doubts,
};
use crate::{
    clock::{SharedClock, Timestamp},
    crypto::{CryptoError, Engine, RoomKey},
    metrics::metrics,
    model::{Account, AccountId, Relay, Role, Route, SilenceSettings},
    store::{Lease, Store, StoreError, inbox, leases, member_redactions, messages, pending, readings},
};

/// Rows taken in one step at most.
const MOST_ROWS: u32 = 64;

/// Bytes of rows taken in one step, but always one row.
const MOST_BYTES: u64 = 1 << 20;

/// Keys whose events are released in one step, of those that an earlier term left.
const MOST_UNRELEASED: usize = 256;

/// Tries at a row on its own before it is set aside.
const MOST_TRIES: i64 = 3;

/// How long the worker sleeps when nobody wakes it.
const IDLE: Duration = Duration::from_secs(1);

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There was work, and there may be more.
    Worked,
    /// There was nothing to do.
    Idle,
}

/// Whom the worker wakes when it has made work for them.
#[derive(Clone, Debug, Default)]
pub struct Wakes {
    /// The worker itself: a row came in.
    pub inbox: Arc<Notify>,
    /// The outgoing requests of the machines.
    pub outgoing: Arc<Notify>,
    /// Who answers invites and reads rooms' state.
    pub rooms: Arc<Notify>,
    /// Who asks for keys that events on the ledger wait for.
    pub ledger: Arc<Notify>,
    /// The dispatchers.
    pub outbox: Arc<Notify>,
    /// Who makes up for an outage: one is over.
    pub outage: Arc<Notify>,
    /// Who waits for the homeserver: it has made a request.
    pub alive: Arc<Notify>,
    /// The key backup: room keys came in.
    pub backup: Arc<Notify>,
}

/// What a worker is made of.
#[derive(Debug)]
pub struct WorkerParts {
    /// The store.
    pub store: Store,
    /// The lease under which everything is written.
    pub lease: Lease,
    /// The time.
    pub clock: SharedClock,
    /// One for each account, the bot's first.
    pub engines: Vec<Engine>,
    /// What is relayed, and how it is named.
    pub policy: Policy,
    /// Whether the bot is to be invited to bridged rooms of the owner.
    pub invite_bot: bool,
    /// Every webhook gets every message.
    pub webhooks: Vec<Route>,
    /// Whether to take rows one by one at first, because the last worker failed over one, and to set aside
    /// the one that fails again and again.
    pub cautious: bool,
    /// How long after it came a webhook is told of an event that cannot be decrypted; `None`: never.
    pub notify_after: Option<Duration>,
    /// When a silence is worth telling; `None`: never.
    pub silence: Option<SilenceSettings>,
    /// Whom to wake.
    pub wakes: Wakes,
    /// Held during a step. Who holds it otherwise sees no room go on meanwhile.
    pub turn: Arc<Mutex<()>>,
}

/// The worker.
#[derive(Debug)]
pub struct Worker {
    pub(super) parts: WorkerParts,
    pub(super) decrypter: Decrypter,
    pub(super) rooms: Rooms,
    /// Rooms with a queue, and when their first event stops holding them up; `None` while the room's state is
    /// not known, which holds them up without limit.
    pub(super) queues: HashMap<OwnedRoomId, Option<Timestamp>>,
    /// Rooms that are being read on: their queues wait for that, and are in `queues` without a time.
    pub(super) being_read: HashSet<OwnedRoomId>,
    pub(super) since: Timestamp,
    /// Rooms in which something is held that may be believed by now.
    pub(super) doubts: Doubts,
    /// What the machines were given lately.
    seen: Seen,
    pub(super) heights: Heights,
    /// Keys that are there while events still wait for them, from a term that ended between the two.
    pub(super) unreleased: Vec<RoomKey>,
    /// Rows still to be taken one by one.
    careful_rows: u32,
    /// Keys that another process hands over.
    pub(super) imports: Imports,
    /// When to look again for events that the webhooks are to be told of.
    pub(super) look_at: Timestamp,
    /// What is known of silences.
    pub(super) silence: Silence,
    /// Members of whom all is taken back, one part in each step.
    pub(super) takebacks: Takebacks,
    /// Events of held rooms that were kept since all of them were counted.
    pub(super) held_count: u32,
}

impl Worker {
    /// A worker that goes on where the last one stopped.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn load(parts: WorkerParts) -> Result<Self, CryptoError> {
        let since = parts.clock.now();
        number_messages(&parts, since).await?;
        let queued = pending::queued_rooms(parts.store.db()).await?;
        let decrypter = Decrypter::new(parts.store.clone(), parts.engines.clone());
        let mut rooms = Rooms::new(parts.policy.clone());
        rooms.pins.load(parts.store.db()).await?;
        let ids = queued.iter().map(|(room_id, _)| &**room_id).collect();
        rooms.load(parts.store.db(), parts.store.seal()?, ids, since).await?;
        rooms.look_for_logins(parts.store.db(), parts.store.seal()?, since).await?;
        let being_read = readings::rooms(parts.store.db()).await?;
        let mut queues: HashMap<_, _> = queued
            .into_iter()
            .map(|(room_id, first)| {
                let known = rooms.relay(&room_id) == Relay::Yes;
                let deadline = known.then(|| flow::deadline(first, since));
                (room_id, deadline)
            })
            .collect();
        queues.extend(being_read.iter().map(|room_id| (room_id.clone(), None)));
        let mut unreleased = room_keys(pending::releasable(parts.store.db()).await?);
        // The settings may say now that these are believed.
        unreleased.extend(room_keys(pending::held(parts.store.db()).await?));
        let careful_rows = if parts.cautious { MOST_ROWS } else { 0 };
        let (seen, heights) = (Seen::default(), Heights::default());
        let silence = Silence::load(&parts, since).await?;
        let takebacks = member_redactions::all(parts.store.db(), parts.store.seal()?).await?;
        let takebacks = Takebacks::of(takebacks);
        let (doubts, imports) = (Doubts::default(), Imports::default());
        Ok(Self {
            parts,
            decrypter,
            rooms,
            queues,
            being_read,
            since,
            doubts,
            seen,
            heights,
            unreleased,
            careful_rows,
            imports,
            look_at: since,
            silence,
            takebacks,
            held_count: 0,
        })
    }

    /// Runs until told to stop.
    ///
    /// # Errors
    /// When a step fails: the worker must then be dropped.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), CryptoError> {
        let wake = Arc::clone(&self.parts.wakes.inbox);
        while !stop.is_cancelled() {
            if self.step().await? == Progress::Worked {
                continue;
            }
            tokio::select! { () = stop.cancelled() => {}, () = wake.notified() => {}, () = sleep(IDLE) => {} }
        }
        Ok(())
    }

    /// Works through the next rows, and through rooms whose waiting is over.
    ///
    /// # Errors
    /// When the store fails, the lease is lost, or a machine fails. Nothing of the step is then written.
    pub async fn step(&mut self) -> Result<Progress, CryptoError> {
        let turn = Arc::clone(&self.parts.turn);
        let _turn = turn.lock().await;
        let now = self.parts.clock.now();
        let store = self.parts.store.clone();
        let (db, seal) = (store.db(), store.seal()?);
        let most_rows = if self.careful_rows > 0 { 1 } else { MOST_ROWS };
        let mut rows = inbox::waiting(db, seal, most_rows, MOST_BYTES).await?;
        if self.careful_rows > 0 && !rows.is_empty() {
            self.careful_rows -= 1;
            self.refuse_hopeless(&mut rows, now).await?;
        }
        let mut due: HashSet<OwnedRoomId> = self
            .queues
            .iter()
            .filter(|(_, deadline)| deadline.is_some_and(|deadline| deadline <= now))
            .map(|(room_id, _)| room_id.clone())
            .collect();
        let had_rows = !rows.is_empty();
        let imported = self.take_import(now).await?;
        let mut batch = Batch::read(rows, &self.readers());
        self.note_arrivals(&batch.arrivals);
        let mut keys = Box::pin(self.take_in(&batch)).await?;
        self.look_at_doubts(now).await?;
        keys.extend(self.unreleased.split_off(self.unreleased.len().saturating_sub(MOST_UNRELEASED)));
        let (more, news) = self.read_news().await?;
        keys.extend(more);
        let untold = self.read_untold(now).await?;
        let silence =
            if had_rows { Changes::default() } else { Box::pin(self.look_for_silence(now)).await? };
        if !(had_rows || imported)
            && silence.is_empty()
            && due.is_empty()
            && keys.is_empty()
            && news.is_empty()
            && untold.is_empty()
            && self.takebacks.first().is_none()
        {
            return Ok(Progress::Idle);
        }
        keys.sort();
        keys.dedup();
        due.extend(self.queued_rooms_of(&keys));
        let (rows, set_aside) = (batch.ids.clone(), batch.set_aside.clone());
        let probes = std::mem::take(&mut batch.probes);
        let mut outcome = Outcome { rows, set_aside, news, probes, silence, ..Outcome::default() };
        let told_of: Vec<_> = untold.iter().filter_map(|event| RoomId::parse(&event.room_id).ok()).collect();
        let mut touched: HashSet<_> = batch.rooms().collect();
        touched.extend(keys.iter().map(|key| &*key.room_id).chain(due.iter().map(|id| &**id)));
        touched.extend(told_of.iter().map(|id| &**id));
        let takeback = self.takebacks.first().cloned();
        touched.extend(takeback.iter().map(|member| &*member.room_id));
        let states = batch.snapshots.iter().filter_map(|snapshot| snapshot.state.as_deref());
        let predecessors: Vec<_> = states.filter_map(Rooms::predecessor).collect();
        touched.extend(predecessors.iter().map(|id| &**id));
        self.rooms.load(db, seal, touched, now).await?;
        self.rooms.foresee(&batch.events);
        self.drop_unwanted_keys(&keys).await?;
        let released = Box::pin(self.settle_rooms(&batch, &mut outcome)).await?;
        due.extend(released);
        Box::pin(self.relay(batch, &keys, due, now, &mut outcome)).await?;
        self.tell(untold, &mut outcome).await?;
        self.take_back(takeback, &mut outcome).await?;
        self.note_takebacks(now, &mut outcome);
        self.note_bots(&mut outcome);
        outcome.unread.extend(self.rooms.take_unread());
        outcome.unread.extend(self.rooms.pins.take_unread());
        Box::pin(self.commit(outcome, now)).await?;
        Ok(Progress::Worked)
    }

    /// Counts a try at each row, in a transaction of its own that outlives a failure of the step, and sets
    /// aside a row that has failed too often: one bad row must not keep all others waiting for ever.
    async fn refuse_hopeless(
        &self,
        rows: &mut Vec<inbox::InboxRow>,
        now: Timestamp,
    ) -> Result<(), CryptoError> {
        let ids: Vec<_> = rows.iter().map(|row| row.inbox_id).collect();
        let mut tx = self.parts.store.begin().await?;
        leases::check(&mut tx, &self.parts.lease).await?;
        let hopeless = inbox::count_tries(&mut tx, &ids, MOST_TRIES).await?;
        inbox::set_aside(&mut tx, &hopeless, now).await?;
        tx.commit().await?;
        for id in &hopeless {
            tracing::error!(inbox.id = id.0, "a row failed {MOST_TRIES} times and is set aside");
        }
        rows.retain(|row| !hopeless.contains(&row.inbox_id));
        Ok(())
    }

    fn readers(&self) -> Readers<'_> {
        Readers { accounts: self.decrypter.engines().iter().map(Engine::account).collect() }
    }

    /// Gives every machine its part of the batch; answers the room keys that came.
    async fn take_in(&mut self, batch: &Batch) -> Result<Vec<RoomKey>, CryptoError> {
        let mut keys = Vec::new();
        for engine in self.decrypter.engines() {
            let mut changes = batch.changes(engine.account());
            let account_id = engine.account().id;
            changes.to_device.retain(|message| self.seen.is_news(account_id, message));
            if changes.is_empty() || self.seen.is_nothing(account_id, &changes) {
                continue;
            }
            let came = engine.receive(changes).await?;
            metrics().room_keys.add(&[], u64::try_from(came.len()).unwrap_or(u64::MAX));
            keys.extend(came);
            self.parts.wakes.backup.notify_one();
            self.parts.wakes.outgoing.notify_one();
        }
        Ok(keys)
    }

    /// The rooms of these keys in which something waits for its turn.
    fn queued_rooms_of(&self, keys: &[RoomKey]) -> Vec<OwnedRoomId> {
        let queued = keys.iter().filter(|key| self.queues.contains_key(&key.room_id));
        queued.map(|key| key.room_id.clone()).collect()
    }

    /// Keys of rooms that are settled not to be relayed are not kept, but for bridges' management rooms.
    async fn drop_unwanted_keys(&self, keys: &[RoomKey]) -> Result<(), CryptoError> {
        let is_unwanted = |key: &&RoomKey| {
            self.rooms.relay(&key.room_id) == Relay::No && !self.rooms.is_managed(&key.room_id)
        };
        let unwanted: Vec<_> = keys.iter().filter(is_unwanted).cloned().collect();
        if unwanted.is_empty() {
            return Ok(());
        }
        for engine in self.decrypter.engines() {
            engine.forget_keys(&unwanted).await?;
        }
        Ok(())
    }

    /// Takes in the states of rooms that were read; answers the rooms whose queue can now move.
    async fn settle_rooms(
        &mut self,
        batch: &Batch,
        outcome: &mut Outcome,
    ) -> Result<Vec<OwnedRoomId>, CryptoError> {
        let mut released = Vec::new();
        for snapshot in &batch.snapshots {
            let is_new = self.rooms.relay(&snapshot.room_id) != Relay::Yes;
            let room_id = &snapshot.room_id;
            let now = self.parts.clock.now();
            let settled = self.rooms.settle(room_id, snapshot.state.as_deref(), now);
            tracing::info!(room.id = %room_id, relay = settled.as_str(), "room");
            if let Settled::Held(until) = settled {
                outcome.held.push((room_id.clone(), until));
                continue;
            }
            if settled == Settled::Relayed {
                self.doubts.at_once(room_id, now);
                outcome.settled.insert(room_id.clone());
                outcome.track.extend(self.rooms.users_to_track(room_id));
                released.push(room_id.clone());
                if is_new {
                    self.enter(snapshot, outcome).await?;
                    self.begin_reading(snapshot, outcome);
                }
                continue;
            }
            self.stop_watching(room_id, outcome);
            outcome.purged.insert(room_id.clone());
            self.queues.remove(room_id);
            self.being_read.remove(room_id);
            if self.rooms.is_managed(room_id) {
                continue;
            }
            for engine in self.decrypter.engines() {
                engine.forget_room(room_id).await?;
            }
            self.decrypter.forget_all();
        }
        Ok(released)
    }

    /// The accounts that are in use.
    pub(super) fn account(&self, user_id: &UserId) -> Option<&Account> {
        self.decrypter.engines().iter().map(Engine::account).find(|account| account.user_id == user_id)
    }

    /// The bot's account, when bridged rooms of the owner are to be shown to it.
    pub(super) fn bot_to_invite(&self) -> Option<AccountId> {
        let accounts = || self.decrypter.engines().iter().map(Engine::account);
        let bot = accounts().find(|account| account.role == Role::Bot)?;
        self.parts.invite_bot.then_some(bot.id)
    }
}

pub(super) fn room_keys(sessions: Vec<(String, String)>) -> Vec<RoomKey> {
    let key = |(room_id, session_id): (String, String)| {
        Some(RoomKey { room_id: room_id.try_into().ok()?, session_id })
    };
    sessions.into_iter().filter_map(key).collect()
}

/// Gives positions to what an earlier version of coucou stored without them, before anything new gets one.
async fn number_messages(parts: &WorkerParts, now: Timestamp) -> Result<(), CryptoError> {
    const MOST: i64 = 1000;
    loop {
        let mut tx = parts.store.begin().await?;
        leases::check(&mut tx, &parts.lease).await?;
        let numbered = messages::number(&mut tx, MOST, now).await?;
        tx.commit().await?;
        if numbered == 0 {
            return Ok(());
        }
    }
}

/// Logs what ended a worker, once.
pub fn log_end(error: &CryptoError) {
    match error {
        CryptoError::Database(StoreError::LeaseLost) => {
            tracing::warn!("the crypto lease went to another process");
        }
        error => tracing::warn!(error = error as &dyn Error, "the crypto stopped and will start anew"),
    }
}
