//! A webhook as the dispatcher sees it: where to send, how patiently, and what has become of it lately.

use std::{fmt, sync::Arc, time::Duration};

use prometheus_client::metrics::{counter::Counter, histogram::Histogram};
use rand::Rng;
use tokio::sync::Semaphore;

use super::{
    Config, Sink,
    breaker::{Breaker, Failed},
    retry,
    run::{Report, Tells},
};
use crate::{
    clock::Timestamp,
    metrics::metrics,
    model::{Flow, Schedule},
    store::outbox::{Attempted, Fate, Finished},
};

/// What an attempt may take beyond the time that its sink gives it, before it is broken off.
const GRACE: Duration = Duration::from_secs(5);

/// A webhook to send to.
#[derive(Clone)]
pub struct Destination {
    /// Its name in the settings.
    pub name: String,
    /// What makes the attempts.
    pub sink: Arc<dyn Sink>,
    /// The waits between them.
    pub schedule: Schedule,
    /// Rooms that are sent at once; the dispatcher's own limit when absent, and never more than that.
    pub concurrency: Option<usize>,
    /// How long its sink waits for an answer; the dispatcher's own limit when absent.
    pub timeout: Option<Duration>,
    /// In which order, and how many messages at once.
    pub flow: Flow,
    /// Deliveries that are kept pending while it is disabled; the oldest beyond are given up.
    pub max_queue: u64,
}

impl Destination {
    /// Deliveries that are kept for a disabled webhook unless told otherwise.
    pub const MAX_QUEUE: u64 = 100_000;

    /// One with the defaults.
    #[must_use]
    pub fn new(name: &str, sink: Arc<dyn Sink>) -> Self {
        Self {
            name: name.to_owned(),
            sink,
            schedule: Schedule::default(),
            concurrency: None,
            timeout: None,
            flow: Flow::default(),
            max_queue: Self::MAX_QUEUE,
        }
    }
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Destination").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A destination at work.
pub(super) struct Served {
    pub(super) settings: Destination,
    /// One for each room that may be in flight: so a webhook that hangs takes nothing from another.
    pub(super) slots: Arc<Semaphore>,
    most: usize,
    pub(super) attempt_limit: Duration,
    pub(super) breaker: Breaker,
    /// The room that was tried last, to see whether the webhook is back.
    pub(super) cursor: String,
    /// What counts deliveries that were made, and how long attempts took.
    counted: (Counter, Histogram),
}

/// What a report means for the webhook as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// It works again: rooms that wait for their next attempt are to be released.
    pub(super) recovered: bool,
    /// It wants no more.
    pub(super) gone: bool,
}

impl Served {
    pub(super) fn new(settings: Destination, config: &Config) -> Self {
        let most = settings.concurrency.unwrap_or(config.max_in_flight).clamp(1, config.max_in_flight);
        let patience = settings.schedule.wait(1).unwrap_or_default();
        Self {
            slots: Arc::new(Semaphore::new(most)),
            most,
            attempt_limit: settings.timeout.map_or(config.attempt_limit, |timeout| timeout + GRACE),
            breaker: Breaker::new(patience),
            cursor: String::new(),
            counted: (
                metrics().attempts.of(&[&settings.name, "delivered"]),
                metrics().attempt_seconds.of(&[&settings.name]),
            ),
            settings,
        }
    }

    /// Whether an attempt is under way, or waits to be recorded.
    pub(super) fn is_busy(&self) -> bool {
        self.slots.available_permits() < self.most
    }

    /// What is to be recorded of a run, and what it means for the webhook.
    pub(super) fn judge<R: Rng + ?Sized>(
        &mut self,
        report: &mut Report,
        now: Timestamp,
        rng: &mut R,
    ) -> (Finished, Verdict) {
        let mut verdict = Verdict::default();
        let progressed = report.attempts.iter().any(|attempt| attempt.fate == Fate::Delivered);
        if progressed {
            verdict.recovered = self.breaker.success(now);
        }
        let claimed = report.claimed.clone();
        let mut finished = Finished {
            failures: if progressed { 0 } else { claimed.failures },
            scheduled_at: if progressed { Timestamp::default() } else { claimed.scheduled_at },
            hold_until: if progressed { Timestamp::default() } else { claimed.hold_until },
            claimed,
            attempts: Vec::new(),
            found_empty: report.found_empty,
            due_at: now,
        };
        if let Some(failure) = report.failure.take() {
            if let Some(asked) = failure.asked {
                finished.hold_until = now.plus(asked);
            }
            self.note(&finished.claimed.room_id, failure.asked, failure.tells, now);
            verdict.gone = failure.tells == Tells::Gone;
            if !verdict.gone {
                self.reschedule(&mut finished, report, failure.tells, now, rng);
            }
        }
        finished.attempts = std::mem::take(&mut report.attempts);
        self.count(&finished.attempts);
        (finished, verdict)
    }

    fn count(&self, attempts: &[Attempted]) {
        let (delivered, took) = &self.counted;
        for attempt in attempts {
            let failed = |why| metrics().attempts.inc(&[&self.settings.name, why]);
            match attempt.fate {
                Fate::Delivered => _ = delivered.inc(),
                Fate::Dead => failed("dead"),
                Fate::Pending => failed(attempt.error.unwrap_or("status")),
            }
            if attempt.sent {
                took.observe(Duration::from_millis(attempt.duration_ms).as_secs_f64());
            }
        }
    }

    fn note(&mut self, room_id: &str, asked: Option<Duration>, tells: Tells, now: Timestamp) {
        let slows_all = match tells {
            Tells::Refused => false,
            Tells::Throttled => true,
            Tells::Gone | Tells::Unsendable | Tells::Missing => return,
        };
        if self.breaker.failure(Failed { room_id, slows_all, asked }, now) {
            tracing::warn!(
                webhook.name = self.settings.name,
                "nothing is taken: one room at a time is tried until something is"
            );
        }
    }

    /// Sets when the room is tried again; after the last attempt its first delivery is given up.
    fn reschedule<R: Rng + ?Sized>(
        &self,
        finished: &mut Finished,
        report: &mut Report,
        tells: Tells,
        now: Timestamp,
        rng: &mut R,
    ) {
        // An attempt beside the schedule does not use it up.
        if now >= finished.scheduled_at || tells == Tells::Missing {
            finished.failures = finished.failures.saturating_add(1);
            let wait = retry::delay(&self.settings.schedule, finished.failures, rng);
            let Some(wait) = wait.filter(|_| tells != Tells::Missing) else {
                // One, or all of a batch.
                for last in report.attempts.iter_mut().filter(|attempt| attempt.fate == Fate::Pending) {
                    last.fate = Fate::Dead;
                    tracing::error!(
                        webhook.name = self.settings.name,
                        delivery.id = last.delivery_id.0,
                        room.id = finished.claimed.room_id,
                        reason = last.error,
                        status = last.status,
                        "a delivery is given up; it is kept as dead, and its room goes on"
                    );
                }
                finished.failures = 0;
                finished.scheduled_at = Timestamp::default();
                finished.due_at = now.max(finished.hold_until);
                return;
            };
            finished.scheduled_at = now.plus(wait);
        }
        finished.due_at = finished.scheduled_at.max(finished.hold_until);
    }
}
