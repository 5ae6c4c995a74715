//! The claims that a dispatcher holds, renewed together while their queues are worked on.
//!
//! A claim is short, so that a room whose dispatcher was killed moves on soon. A run must not outlive its
//! claim, for then another dispatcher may send the same delivery at the same time: it is given a [`Hold`] that
//! says when to break off, by the machine's own steady clock.

use std::{collections::BTreeMap, time::Duration};

use tokio::{
    sync::watch,
    task,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Timestamp,
    model::WebhookId,
    store::{
        Store, StoreError,
        outbox::{self, Claimed},
    },
};

/// A run breaks off this long before its claim ends: what is under way needs a moment to get back.
const MARGIN: Duration = Duration::from_secs(2);

/// What the dispatcher holds.
#[derive(Debug)]
pub(super) struct Claims {
    lease: Duration,
    held: BTreeMap<(WebhookId, String), Held>,
    /// When the last renewal began, by the machine and by the clock.
    renewed: watch::Sender<Instant>,
    renewed_at: Option<Timestamp>,
}

#[derive(Debug)]
struct Held {
    claimed: Claimed,
    task: Option<task::Id>,
    lost: CancellationToken,
}

/// Tells a run whether its queue is still its own.
#[derive(Debug)]
pub(super) struct Hold {
    lost: CancellationToken,
    claimed: Instant,
    renewed: watch::Receiver<Instant>,
    lasts: Duration,
}

impl Hold {
    /// Ends when the queue may be somebody else's.
    pub(super) async fn lost(&self) {
        loop {
            let until = self.claimed.max(*self.renewed.borrow()) + self.lasts;
            if Instant::now() >= until {
                return;
            }
            tokio::select! {
                () = self.lost.cancelled() => return,
                () = sleep_until(until) => {}
            }
        }
    }

    /// Whether the queue may be somebody else's.
    pub(super) fn is_lost(&self) -> bool {
        let until = self.claimed.max(*self.renewed.borrow()) + self.lasts;
        self.lost.is_cancelled() || Instant::now() >= until
    }
}

impl Claims {
    pub(super) fn new(lease: Duration) -> Self {
        let (renewed, _) = watch::channel(Instant::now());
        Self { lease, held: BTreeMap::new(), renewed, renewed_at: None }
    }

    /// How often to renew.
    pub(super) fn interval(&self) -> Duration {
        self.lease / 3
    }

    /// Notes a claim that was made when `claimed` was now.
    pub(super) fn add(&mut self, claim: &Claimed, claimed: Instant) -> Hold {
        let lost = CancellationToken::new();
        let held = Held { claimed: claim.clone(), task: None, lost: lost.clone() };
        self.held.insert((claim.webhook_id, claim.room_id.clone()), held);
        let lasts = self.lease.saturating_sub(MARGIN.min(self.lease / 4));
        Hold { lost, claimed, renewed: self.renewed.subscribe(), lasts }
    }

    /// Notes which task works on a claim.
    pub(super) fn given_to(&mut self, webhook_id: WebhookId, room_id: &str, task: task::Id) {
        if let Some(held) = self.held.get_mut(&(webhook_id, room_id.to_owned())) {
            held.task = Some(task);
        }
    }

    /// Forgets claims whose outcomes are recorded.
    pub(super) fn settle<'a>(&mut self, claims: impl Iterator<Item = &'a Claimed>) {
        for claim in claims {
            self.held.remove(&(claim.webhook_id, claim.room_id.clone()));
        }
    }

    /// Forgets the claim of a task that broke off, so that it ends by itself.
    pub(super) fn abandon(&mut self, task: task::Id) {
        self.held.retain(|_, held| held.task != Some(task));
    }

    /// Renews all claims when it is time; a run whose claim is no longer held breaks off.
    ///
    /// # Errors
    /// When the database fails; the claims then last as long as before.
    pub(super) async fn renew(&mut self, store: &Store, now: Timestamp) -> Result<(), StoreError> {
        let is_due = self.renewed_at.is_none_or(|at| now.since(at) >= self.interval() || now < at);
        if !is_due || self.held.is_empty() {
            return Ok(());
        }
        let began = Instant::now();
        let claims: Vec<&Claimed> = self.held.values().map(|held| &held.claimed).collect();
        let mut tx = store.begin().await?;
        let kept = outbox::renew(&mut tx, &claims, now, self.lease).await?;
        tx.commit().await?;
        if kept.len() < self.held.len() {
            for (queue, held) in &self.held {
                if !kept.contains(queue) {
                    tracing::warn!(
                        webhook.id = queue.0.0,
                        room.id = queue.1,
                        "a claim was lost to another instance"
                    );
                    held.lost.cancel();
                }
            }
        }
        self.renewed_at = Some(now);
        self.renewed.send_replace(began);
        Ok(())
    }
}
