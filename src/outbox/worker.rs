//! The dispatcher: claims, starts runs, and records what came of them.
//!
//! It holds nothing that is not in the store but outcomes that are yet to be recorded; when the process
//! dies, those deliveries are made once more.

use std::{collections::BTreeMap, error::Error, fmt, mem, sync::Arc, time::Duration};

use rand::rngs::StdRng;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    task::{self, JoinError, JoinSet},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Sink,
    claims::Claims,
    retry,
    run::{Report, Run},
};
use crate::{
    clock::{SharedClock, Timestamp},
    model::WebhookId,
    store::{
        Store, StoreError,
        outbox::{self, Claimed, Finished, Loaded},
        retention,
    },
};

/// The longest pause while the store is away.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// How often an outcome is tried to be recorded when coucou stops.
const LAST_TRIES: u32 = 5;

/// Queues that are loaded by one statement.
const LOAD_TOGETHER: usize = 16;

/// The limits of a dispatcher.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Rooms that are sent to one webhook at once.
    pub max_in_flight: usize,
    /// Deliveries of a room that are sent under one claim.
    pub per_run: usize,
    /// How long a claim lasts; it is renewed while its queue is worked on. So long wait the rooms of a dispatcher
    /// that was killed.
    pub lease: Duration,
    /// After this time a run begins no further delivery.
    pub run_limit: Duration,
    /// The longest that one attempt may take, whatever its sink says.
    pub attempt_limit: Duration,
    /// How long to wait for more outcomes to record along with the first.
    pub batch_window: Duration,
    /// How often to look without being woken: other instances store messages, too.
    pub poll: Duration,
    /// Whether the content of a message stays once nobody is to be told of it any more.
    pub keep_delivered: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_in_flight: 64,
            per_run: 32,
            lease: Duration::from_secs(12),
            run_limit: Duration::from_secs(10),
            attempt_limit: Duration::from_secs(20),
            batch_window: Duration::from_millis(5),
            poll: Duration::from_secs(1),
            keep_delivered: true,
        }
    }
}

/// Whether a step found something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Something is sent, was sent or was recorded.
    Worked,
    /// Nothing is due.
    Idle,
}

struct Destination {
    sink: Arc<dyn Sink>,
    /// One for each room that may be in flight: so a webhook that hangs takes nothing from another.
    slots: Arc<Semaphore>,
}

/// Sends what is due to the webhooks.
///
/// Dropping it at any point is safe: what was not recorded is sent again after the lease.
pub struct Dispatcher {
    store: Store,
    clock: SharedClock,
    destinations: BTreeMap<WebhookId, Destination>,
    rng: StdRng,
    wake: Arc<Notify>,
    config: Config,
    stop: CancellationToken,
    runs: JoinSet<Report>,
    claims: Claims,
    /// What is to be recorded; kept until the database has it.
    finished: Vec<(Finished, OwnedSemaphorePermit)>,
    next_due: Option<Timestamp>,
}

impl fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatcher")
            .field("runs", &self.runs.len())
            .field("finished", &self.finished.len())
            .finish_non_exhaustive()
    }
}

impl Dispatcher {
    /// A dispatcher for these webhooks; deliveries of others are left alone. `wake` is notified when new
    /// deliveries have been committed.
    #[must_use]
    pub fn new(
        store: Store,
        clock: SharedClock,
        sinks: BTreeMap<WebhookId, Arc<dyn Sink>>,
        rng: StdRng,
        wake: Arc<Notify>,
        config: Config,
    ) -> Self {
        let destination = |sink| Destination { sink, slots: Arc::new(Semaphore::new(config.max_in_flight)) };
        Self {
            store,
            clock,
            destinations: sinks.into_iter().map(|(id, sink)| (id, destination(sink))).collect(),
            rng,
            wake,
            config,
            stop: CancellationToken::new(),
            runs: JoinSet::new(),
            claims: Claims::new(config.lease),
            finished: Vec::new(),
            next_due: None,
        }
    }

    /// Works until `stop`, then lets the attempts in flight end and records them.
    pub async fn run(mut self, stop: CancellationToken) {
        self.stop = stop.clone();
        let mut troubles = 0_u32;
        while !stop.is_cancelled() {
            let pause = match self.step().await {
                Ok(progress) => {
                    if troubles > 0 {
                        tracing::info!("the outbox reaches the store again");
                        troubles = 0;
                    }
                    if progress == Progress::Worked {
                        continue;
                    }
                    self.idle()
                }
                Err(error) => {
                    report_trouble(&error, troubles);
                    troubles = troubles.saturating_add(1);
                    MAX_PAUSE.min(Duration::from_millis(100 << troubles.min(8)))
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.wake.notified(), if troubles == 0 => {}
                () = sleep(pause) => {}
            }
        }
        self.drain().await;
    }

    /// Records what has ended, claims and starts what is due, and waits for something to end.
    ///
    /// It does not wait for all that it started: a call that hangs holds nothing up but its own room.
    ///
    /// # Errors
    /// When the database fails. What could not be recorded is kept, and nothing is claimed before it is.
    pub async fn step(&mut self) -> Result<Progress, StoreError> {
        self.record().await?;
        self.claims.renew(&self.store, self.clock.now()).await?;
        self.start().await?;
        if self.runs.is_empty() {
            return Ok(Progress::Idle);
        }
        self.gather().await;
        self.record().await?;
        Ok(Progress::Worked)
    }

    /// How long nothing is due.
    fn idle(&self) -> Duration {
        let due_in = self.next_due.map(|due_at| due_at.since(self.clock.now()));
        due_in.map_or(self.config.poll, |due_in| due_in.min(self.config.poll))
    }

    /// Claims what is due, as far as there are free slots, and starts sending it.
    async fn start(&mut self) -> Result<(), StoreError> {
        let now = self.clock.now();
        let free: BTreeMap<WebhookId, usize> = self
            .destinations
            .iter()
            .map(|(id, destination)| (*id, destination.slots.available_permits()))
            .filter(|(_, slots)| *slots > 0)
            .collect();
        let due = outbox::next_due(self.store.db(), free.keys().copied()).await?;
        self.next_due = due.iter().map(|(_, due_at)| *due_at).min();
        if self.next_due.is_none_or(|due_at| due_at > now) {
            return Ok(());
        }
        let mut claimed = Vec::new();
        let claimed_at = Instant::now();
        let mut tx = self.store.begin().await?;
        for (id, _) in due.iter().filter(|(_, due_at)| *due_at <= now) {
            let most = free.get(id).copied().unwrap_or_default();
            claimed.extend(outbox::claim_due(&mut tx, *id, now, self.config.lease, most).await?);
        }
        tx.commit().await?;
        self.load_and_spawn(claimed, claimed_at).await
    }

    /// Loads and starts claimed queues, some at a time, so that the first calls do not wait for the last
    /// queue to be loaded.
    async fn load_and_spawn(&mut self, claimed: Vec<Claimed>, claimed_at: Instant) -> Result<(), StoreError> {
        let mut outcome = Ok(());
        for queues in claimed.chunks(LOAD_TOGETHER) {
            let loaded = if outcome.is_ok() { self.load(queues).await } else { Ok(None) };
            let mut loaded = loaded.unwrap_or_else(|error| {
                outcome = Err(error);
                None
            });
            for (at, queue) in queues.iter().enumerate() {
                // Both are there: only webhooks with free slots were asked for, and only so many queues.
                let Some(destination) = self.destinations.get(&queue.webhook_id) else { continue };
                let Ok(permit) = Arc::clone(&destination.slots).try_acquire_owned() else { continue };
                let claimed = queue.clone();
                let hold = self.claims.add(queue, claimed_at);
                let Some(deliveries) = loaded.as_mut().and_then(|loaded| loaded.get_mut(at)) else {
                    // Give it back rather than let it lie until the lease ends.
                    self.keep(Report::untouched(claimed, permit));
                    continue;
                };
                let run = Run {
                    claimed,
                    deliveries: mem::take(deliveries),
                    hold,
                    sink: Arc::clone(&destination.sink),
                    clock: Arc::clone(&self.clock),
                    stop: self.stop.clone(),
                    config: self.config,
                    permit,
                };
                let task = self.runs.spawn(run.go()).id();
                self.claims.given_to(queue.webhook_id, &queue.room_id, task);
            }
        }
        outcome
    }

    async fn load(&self, queues: &[Claimed]) -> Result<Option<Vec<Vec<Loaded>>>, StoreError> {
        outbox::load(self.store.db(), self.store.seal()?, queues, self.config.per_run).await.map(Some)
    }

    /// Waits until a run ends, there may be new work for free slots, or it is time to look; then takes the
    /// runs that end at about the same time along.
    async fn gather(&mut self) {
        let room = self.destinations.values().any(|destination| destination.slots.available_permits() > 0);
        let pause = if room { self.idle().max(self.config.batch_window) } else { self.config.poll };
        let first = tokio::select! {
            first = self.runs.join_next_with_id() => first,
            () = self.wake.notified(), if room => return,
            () = sleep(pause) => return,
        };
        let Some(first) = first else { return };
        self.ended(first);
        let window = sleep(self.config.batch_window);
        tokio::pin!(window);
        loop {
            let next = tokio::select! {
                next = self.runs.join_next_with_id() => next,
                () = &mut window => None,
            };
            let Some(next) = next else { return };
            self.ended(next);
        }
    }

    /// Takes what came of a run.
    fn ended(&mut self, ended: Result<(task::Id, Report), JoinError>) {
        match ended {
            Ok((_, report)) => self.keep(report),
            Err(error) => {
                self.claims.abandon(error.id());
                tracing::error!(
                    error = &error as &dyn Error,
                    "a run of the outbox broke off; its lease will end"
                );
            }
        }
    }

    /// Turns what came of a run into what is to be recorded.
    fn keep(&mut self, report: Report) {
        let progressed = report.attempts.iter().any(|attempt| attempt.delivered);
        let before = if progressed { 0 } else { report.claimed.failures };
        let now = self.clock.now();
        let (failures, due_at) = match report.failure {
            Some(failure) => {
                let failures = before.saturating_add(1);
                (failures, now.plus(retry::delay(failures, failure.asked, &mut self.rng)))
            }
            None => (before, now),
        };
        let Report { claimed, attempts, found_empty, permit, .. } = report;
        if found_empty {
            tracing::warn!(webhook.id = claimed.webhook_id.0, room.id = claimed.room_id, "nothing to send");
        }
        self.finished.push((Finished { claimed, attempts, failures, found_empty, due_at }, permit));
    }

    /// Records all outcomes at hand in one transaction.
    async fn record(&mut self) -> Result<(), StoreError> {
        if self.finished.is_empty() {
            return Ok(());
        }
        let finished: Vec<Finished> = self.finished.iter().map(|(finished, _)| finished.clone()).collect();
        let mut tx = self.store.begin().await?;
        let lost = outbox::finish(&mut tx, &finished).await?;
        if !self.config.keep_delivered {
            let done = finished.iter().flat_map(|outcome| &outcome.attempts);
            let done = done.filter(|attempt| attempt.delivered).map(|attempt| attempt.delivery_id);
            retention::purge_delivered(&mut tx, done, self.clock.now()).await?;
        }
        tx.commit().await?;
        self.claims.settle(self.finished.iter().map(|(finished, _)| &finished.claimed));
        self.finished.clear();
        if lost > 0 {
            tracing::warn!(lost, "outcomes came after their lease; their deliveries are made once more");
        }
        Ok(())
    }

    /// Lets what is in flight end, each run after its present attempt, and records it.
    async fn drain(&mut self) {
        loop {
            let ended = tokio::select! {
                ended = self.runs.join_next_with_id() => ended,
                () = sleep(self.claims.interval() / 2) => {
                    // A run whose claim cannot be renewed breaks off by itself.
                    let _ = timeout(MAX_PAUSE, self.claims.renew(&self.store, self.clock.now())).await;
                    continue;
                }
            };
            let Some(ended) = ended else { break };
            self.ended(ended);
        }
        for tried in 0..LAST_TRIES {
            // Bounded, because a database that hangs must not keep the process from ending.
            match timeout(MAX_PAUSE, self.record()).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => report_trouble(&error, tried),
                Err(_) => {}
            }
            sleep(Duration::from_millis(200)).await;
        }
        tracing::warn!(
            queues = self.finished.len(),
            "outcomes are not recorded; deliveries will be repeated"
        );
    }
}

/// Logs a failure of the store: the first of a row only, unless it wants a person.
fn report_trouble(error: &StoreError, before: u32) {
    let error_chain = error as &dyn Error;
    if !error.is_transient() {
        tracing::error!(error = error_chain, "outbox step failed");
    } else if before == 0 {
        tracing::warn!(error = error_chain, "the outbox waits for the store");
    }
}
