//! Sending the deliveries of one claimed queue, one after the other.
//!
//! A run that is dropped half-way has recorded nothing: its queue is claimed again when its lease ends.

use std::{error::Error, sync::Arc, time::Duration};

use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Body, Config, Outcome, SendError, Sink, WebhookRequest, batch, claims::Hold};
use crate::{
    clock::{SharedClock, Timestamp},
    store::{
        StoreError,
        outbox::{Attempted, Claimed, Fate, Loaded},
    },
};

/// One claimed queue, and what is needed to send its first deliveries.
pub(super) struct Run {
    pub(super) claimed: Claimed,
    pub(super) deliveries: Vec<Loaded>,
    pub(super) hold: Hold,
    pub(super) sink: Arc<dyn Sink>,
    pub(super) clock: SharedClock,
    pub(super) stop: CancellationToken,
    pub(super) config: Config,
    /// Whether all of it goes in one request.
    pub(super) together: bool,
    /// The longest that one attempt may take.
    pub(super) attempt_limit: Duration,
    pub(super) permit: OwnedSemaphorePermit,
}

/// What came of a run.
pub(super) struct Report {
    pub(super) claimed: Claimed,
    pub(super) attempts: Vec<Attempted>,
    pub(super) found_empty: bool,
    pub(super) failure: Option<Failure>,
    /// Held until the report is recorded, which bounds what waits for a database that is away.
    pub(super) permit: OwnedSemaphorePermit,
}

impl Report {
    /// A claim under which nothing was tried.
    pub(super) fn untouched(claimed: Claimed, permit: OwnedSemaphorePermit) -> Self {
        Self { claimed, attempts: Vec::new(), found_empty: false, failure: None, permit }
    }
}

/// The delivery that stopped the run failed.
pub(super) struct Failure {
    /// How long the receiver asked to wait.
    pub(super) asked: Option<Duration>,
    /// What it means.
    pub(super) tells: Tells,
}

/// What a failure tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tells {
    /// The webhook did not take it.
    Refused,
    /// The webhook, or what stands before it, asks for less of everything.
    Throttled,
    /// The webhook wants no more.
    Gone,
    /// The message could not be sent; nothing of the webhook.
    Unsendable,
    /// The message is no longer there; trying again is of no use.
    Missing,
}

impl Run {
    /// Sends the deliveries one after the other, until one fails, coucou stops, time is up (what was sent is to
    /// be recorded now and then), or the queue may be another dispatcher's.
    pub(super) async fn go(self) -> Report {
        if self.together {
            return self.go_together().await;
        }
        let started = Instant::now();
        let mut report = Report::untouched(self.claimed, self.permit);
        report.found_empty = self.deliveries.is_empty();
        report.attempts.reserve(self.deliveries.len());
        for delivery in self.deliveries {
            if self.stop.is_cancelled() || self.hold.is_lost() || started.elapsed() >= self.config.run_limit {
                break;
            }
            let attempt = Attempt {
                queue: &report.claimed,
                delivery: &delivery,
                sink: &*self.sink,
                clock: &self.clock,
                limit: self.attempt_limit,
            };
            let (attempted, failure) = tokio::select! {
                made = attempt.make() => made,
                // Whoever has the queue now makes this delivery again.
                () = self.hold.lost() => break,
            };
            report.attempts.push(attempted);
            report.failure = failure;
            if report.failure.is_some() {
                break;
            }
        }
        report
    }

    /// Sends the deliveries in one request, without those whose messages are no longer there.
    async fn go_together(self) -> Report {
        let mut report = Report::untouched(self.claimed, self.permit);
        report.found_empty = self.deliveries.is_empty();
        if report.found_empty || self.stop.is_cancelled() || self.hold.is_lost() {
            return report;
        }
        let attempt = Together {
            queue: &report.claimed,
            deliveries: &self.deliveries,
            sink: &*self.sink,
            clock: &self.clock,
            limit: self.attempt_limit,
        };
        let made = tokio::select! {
            made = attempt.make() => Some(made),
            // Whoever has the queue now makes these deliveries again.
            () = self.hold.lost() => None,
        };
        if let Some((attempts, failure)) = made {
            (report.attempts, report.failure) = (attempts, failure);
        }
        report
    }
}

/// One attempt at a batch.
struct Together<'a> {
    queue: &'a Claimed,
    deliveries: &'a [Loaded],
    sink: &'a dyn Sink,
    clock: &'a SharedClock,
    limit: Duration,
}

impl Together<'_> {
    #[tracing::instrument(
        name = "outbox.attempt",
        skip_all,
        fields(
            webhook.id = self.queue.webhook_id.0,
            room.id = %self.queue.room_id,
            batch.count = self.deliveries.len(),
            batch.id,
        )
    )]
    async fn make(&self) -> (Vec<Attempted>, Option<Failure>) {
        let (mut bodies, mut ids, mut attempts) = (Vec::new(), Vec::new(), Vec::new());
        for delivery in self.deliveries {
            match &delivery.payload {
                Ok(body) => {
                    bodies.push(body.as_slice());
                    ids.push(delivery.message_id.as_str());
                }
                Err(error) => {
                    let (mut attempted, failure) = unreadable(delivery, error, self.clock.now());
                    if failure.tells != Tells::Missing {
                        return (vec![attempted], Some(failure));
                    }
                    attempted.fate = Fate::Dead;
                    attempts.push(attempted);
                }
            }
        }
        if bodies.is_empty() {
            return (attempts, None);
        }
        let id = batch::id(ids.iter().copied());
        tracing::Span::current().record("batch.id", &id);
        let began = Instant::now();
        let request = WebhookRequest { id: &id, timestamp: self.clock.now(), body: Body::Batch(&bodies) };
        let (result, failure) = send(self.sink, request, self.limit, began).await;
        let sent = self.deliveries.iter().filter(|delivery| delivery.payload.is_ok());
        attempts.extend(sent.map(|delivery| result.of(delivery, self.clock.now())));
        (attempts, failure)
    }
}

/// What an answer means for the deliveries that were sent.
struct Sent {
    fate: Fate,
    status: Option<u16>,
    error: Option<&'static str>,
    duration_ms: u64,
}

impl Sent {
    fn of(&self, delivery: &Loaded, at: Timestamp) -> Attempted {
        Attempted {
            delivery_id: delivery.delivery_id,
            fate: self.fate,
            sent: true,
            status: self.status,
            error: self.error,
            duration_ms: self.duration_ms,
            at,
        }
    }
}

/// Makes one request and says what came of it.
async fn send(
    sink: &dyn Sink,
    request: WebhookRequest<'_>,
    limit: Duration,
    began: Instant,
) -> (Sent, Option<Failure>) {
    let outcome = timeout(limit, sink.deliver(request))
        .await
        .unwrap_or(Outcome::Retry { after: None, why: SendError::Timeout });
    let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    match outcome {
        Outcome::Delivered { status } => {
            tracing::info!(elapsed_ms = duration_ms, status, "delivered");
            (Sent { fate: Fate::Delivered, status, error: None, duration_ms }, None)
        }
        Outcome::Retry { after, why } => {
            tracing::warn!(
                elapsed_ms = duration_ms,
                error = &why as &dyn Error,
                "not delivered; will be tried again"
            );
            let tells = match &why {
                SendError::Gone => Tells::Gone,
                SendError::Unsendable => Tells::Unsendable,
                why if why.slows_all(after.is_some()) => Tells::Throttled,
                _ => Tells::Refused,
            };
            let sent =
                Sent { fate: Fate::Pending, status: why.status(), error: Some(why.word()), duration_ms };
            (sent, Some(Failure { asked: after, tells }))
        }
    }
}

/// A delivery whose message cannot be had.
fn unreadable(delivery: &Loaded, error: &StoreError, at: Timestamp) -> (Attempted, Failure) {
    tracing::error!(
        delivery.id = delivery.delivery_id.0,
        error = error as &dyn Error,
        "a message to deliver cannot be read"
    );
    let missing = matches!(error, StoreError::Corrupt(_));
    let tells = if missing { Tells::Missing } else { Tells::Unsendable };
    let attempted = Attempted {
        delivery_id: delivery.delivery_id,
        fate: Fate::Pending,
        sent: false,
        status: None,
        error: Some(if missing { "missing" } else { "unreadable" }),
        duration_ms: 0,
        at,
    };
    (attempted, Failure { asked: None, tells })
}

/// One attempt at one delivery.
struct Attempt<'a> {
    queue: &'a Claimed,
    delivery: &'a Loaded,
    sink: &'a dyn Sink,
    clock: &'a SharedClock,
    limit: Duration,
}

impl Attempt<'_> {
    #[tracing::instrument(
        name = "outbox.attempt",
        skip_all,
        fields(
            webhook.id = self.queue.webhook_id.0,
            room.id = %self.queue.room_id,
            delivery.id = self.delivery.delivery_id.0,
            message.id = %self.delivery.message_id,
            attempt = self.delivery.attempts.saturating_add(1),
        )
    )]
    async fn make(&self) -> (Attempted, Option<Failure>) {
        let body = match &self.delivery.payload {
            Ok(body) => body,
            Err(error) => {
                let (attempted, failure) = unreadable(self.delivery, error, self.clock.now());
                return (attempted, Some(failure));
            }
        };
        let began = Instant::now();
        let request = WebhookRequest {
            id: &self.delivery.message_id,
            timestamp: self.clock.now(),
            body: Body::One(body),
        };
        let (sent, failure) = send(self.sink, request, self.limit, began).await;
        (sent.of(self.delivery, self.clock.now()), failure)
    }
}
