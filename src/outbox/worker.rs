//! The dispatcher: claims, starts runs, and records what came of them.
//!
//! It holds nothing that is not in the store but outcomes that are yet to be recorded; when the process
//! dies, those deliveries are made once more.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fmt, mem,
    sync::Arc,
    time::Duration,
};

use rand::rngs::StdRng;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit},
    task::{self, JoinError, JoinSet},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Destination,
    breaker::Admission,
    claims::Claims,
    destination::Served,
    run::{Report, Run},
};
use crate::{
    clock::{SharedClock, Timestamp},
    model::WebhookId,
    store::{
        Store, StoreError,
        outbox::{self, Claimed, Fate, Finished},
        retention, webhooks,
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
    /// Rooms that are sent to one webhook at once, at most.
    pub max_in_flight: usize,
    /// Deliveries of a room that are sent under one claim.
    pub per_run: usize,
    /// How long a claim lasts; it is renewed while its queue is worked on. So long wait the rooms of a dispatcher
    /// that was killed.
    pub lease: Duration,
    /// After this time a run begins no further delivery.
    pub run_limit: Duration,
    /// The longest that one attempt may take when its destination says nothing.
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

/// Sends what is due to the webhooks.
///
/// Dropping it at any point is safe: what was not recorded is sent again after the lease.
pub struct Dispatcher {
    pub(super) store: Store,
    pub(super) clock: SharedClock,
    pub(super) destinations: BTreeMap<WebhookId, Served>,
    rng: StdRng,
    wake: Arc<Notify>,
    pub(super) config: Config,
    stop: CancellationToken,
    runs: JoinSet<Report>,
    claims: Claims,
    /// What is to be recorded; kept until the database has it.
    finished: Vec<(Finished, OwnedSemaphorePermit)>,
    /// Webhooks that answered that they want no more.
    gone: BTreeSet<WebhookId>,
    /// Webhooks that work again, whose rooms are to be released.
    pub(super) recovered: BTreeSet<WebhookId>,
    next_due: Option<Timestamp>,
    pub(super) looked_at: Option<Timestamp>,
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
        destinations: BTreeMap<WebhookId, Destination>,
        rng: StdRng,
        wake: Arc<Notify>,
        config: Config,
    ) -> Self {
        let served = |settings| Served::new(settings, &config);
        Self {
            store,
            clock,
            destinations: destinations.into_iter().map(|(id, settings)| (id, served(settings))).collect(),
            rng,
            wake,
            config,
            stop: CancellationToken::new(),
            runs: JoinSet::new(),
            claims: Claims::new(config.lease),
            finished: Vec::new(),
            gone: BTreeSet::new(),
            recovered: BTreeSet::new(),
            next_due: None,
            looked_at: None,
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
        self.look_around().await?;
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

    /// Claims what may be sent, as far as there are free slots, and starts sending it.
    async fn start(&mut self) -> Result<(), StoreError> {
        let now = self.clock.now();
        let free: BTreeMap<WebhookId, (usize, Admission)> = self
            .destinations
            .iter()
            .map(|(id, served)| {
                (*id, (served.slots.available_permits(), served.breaker.admits(now, served.is_busy())))
            })
            .filter(|(_, (slots, _))| *slots > 0)
            .collect();
        let due = outbox::next_due(self.store.db(), free.keys().copied()).await?;
        let due: Vec<_> =
            due.into_iter().map(|(id, due_at)| (id, self.next_for(id, &free, due_at, now))).collect();
        self.next_due = due.iter().map(|(_, due_at)| *due_at).min();
        if self.next_due.is_none_or(|due_at| due_at > now) {
            return Ok(());
        }
        let (mut claimed, mut probes) = (Vec::new(), Vec::new());
        let claimed_at = Instant::now();
        let mut tx = self.store.begin().await?;
        for (id, _) in due.iter().filter(|(_, due_at)| *due_at <= now) {
            let Some((most, admission)) = free.get(id).copied() else { continue };
            let Some(served) = self.destinations.get_mut(id) else { continue };
            let mut found = Vec::new();
            if matches!(admission, Admission::Due | Admission::DueOrProbe) {
                found = outbox::claim_due(&mut tx, *id, now, self.config.lease, most).await?;
            }
            if matches!(admission, Admission::Probe | Admission::DueOrProbe) {
                served.breaker.probed(now);
                if found.is_empty() {
                    let probe =
                        outbox::claim_any(&mut tx, *id, &served.cursor, now, self.config.lease).await?;
                    served.cursor = probe.as_ref().map(|claimed| claimed.room_id.clone()).unwrap_or_default();
                    probes.extend(probe);
                }
            }
            claimed.extend(found);
        }
        // Deliveries without an order are shared out to queues of their own; a probe is one of them.
        let probes = self.shared_out(&mut tx, probes, now, 1).await?;
        let claimed = self.shared_out(&mut tx, claimed, now, usize::MAX).await?;
        tx.commit().await?;
        // A probe is one request, so that its success is known at once.
        self.load_and_spawn(probes, claimed_at, 1).await?;
        self.load_and_spawn(claimed, claimed_at, self.config.per_run).await
    }

    /// When there may be something to send to a webhook whose first room is due at `due_at`.
    fn next_for(
        &self,
        id: WebhookId,
        free: &BTreeMap<WebhookId, (usize, Admission)>,
        due_at: Timestamp,
        now: Timestamp,
    ) -> Timestamp {
        let later = now.plus(self.config.poll);
        let next = self.destinations.get(&id).and_then(|served| served.breaker.next(now));
        match free.get(&id) {
            Some((_, Admission::Probe | Admission::DueOrProbe)) => now,
            Some((_, Admission::Due)) => due_at.min(next.unwrap_or(due_at)),
            Some((_, Admission::Nothing)) | None => next.unwrap_or(later),
        }
    }

    /// Loads and starts claimed queues, some at a time, so that the first calls do not wait for the last
    /// queue to be loaded.
    async fn load_and_spawn(
        &mut self,
        claimed: Vec<Claimed>,
        claimed_at: Instant,
        most: usize,
    ) -> Result<(), StoreError> {
        let mut outcome = Ok(());
        let of_one = claimed.chunk_by(|a, b| a.webhook_id == b.webhook_id);
        for queues in of_one.flat_map(|queues| queues.chunks(LOAD_TOGETHER)) {
            let loaded = if outcome.is_ok() { self.load(queues, most).await } else { Ok(None) };
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
                    sink: Arc::clone(&destination.settings.sink),
                    clock: Arc::clone(&self.clock),
                    stop: self.stop.clone(),
                    config: self.config,
                    together: destination.settings.flow.batch.is_some(),
                    attempt_limit: destination.attempt_limit,
                    permit,
                };
                let task = self.runs.spawn(run.go()).id();
                self.claims.given_to(queue.webhook_id, &queue.room_id, task);
            }
        }
        outcome
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
    fn keep(&mut self, mut report: Report) {
        let id = report.claimed.webhook_id;
        let Some(served) = self.destinations.get_mut(&id) else { return };
        if report.found_empty {
            tracing::warn!(webhook.id = id.0, room.id = report.claimed.room_id, "nothing to send");
        }
        let (finished, verdict) = served.judge(&mut report, self.clock.now(), &mut self.rng);
        if verdict.recovered {
            self.recovered.insert(id);
        }
        if verdict.gone {
            self.gone.insert(id);
        }
        self.finished.push((finished, report.permit));
    }

    /// Records all outcomes at hand in one transaction.
    async fn record(&mut self) -> Result<(), StoreError> {
        if self.finished.is_empty() {
            return Ok(());
        }
        let finished: Vec<Finished> = self.finished.iter().map(|(finished, _)| finished.clone()).collect();
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        let mut disabled = Vec::new();
        for id in &self.gone {
            if webhooks::disable(&mut tx, *id, "gone", now).await? {
                disabled.push(*id);
            }
        }
        let lost = outbox::finish(&mut tx, &finished).await?;
        if !self.config.keep_delivered {
            let done = finished.iter().flat_map(|outcome| &outcome.attempts);
            let done =
                done.filter(|attempt| attempt.fate == Fate::Delivered).map(|attempt| attempt.delivery_id);
            retention::purge_delivered(&mut tx, done, now).await?;
        }
        tx.commit().await?;
        self.gone.clear();
        for served in disabled.iter().filter_map(|id| self.destinations.get(id)) {
            tracing::error!(
                webhook.name = served.settings.name,
                "the webhook answered 410 and is disabled; its queue is kept. `coucou webhooks --enable NAME`, or \
                 another URL, enables it"
            );
        }
        self.claims.settle(self.finished.iter().map(|(finished, _)| &finished.claimed));
        self.finished.clear();
        if lost > 0 {
            tracing::warn!(lost, "outcomes came after their lease; their deliveries are made once more");
        }
        self.release().await
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
