//! What the dispatcher does for a webhook as a whole, beside sending.

use std::time::Duration;

use super::{Dispatcher, destination::Served, retry};
use crate::{
    model::WebhookId,
    store::{StoreError, outbox, webhooks},
};

/// How often it is looked whether rooms are failing that nobody here knows of, and whether the queues of disabled
/// webhooks are too long.
const LOOK_AROUND: Duration = Duration::from_secs(30);

/// The longest wait of a queue that has not failed: a lease, or a batch that waits for more, by a clock that differs.
const MIN_DEADLINE: Duration = Duration::from_mins(5);

/// How often at most a queue is trimmed before other work goes on: each time by a thousand.
const MOST_TRIMS: usize = 50;

impl Dispatcher {
    /// Looks now and then at what nothing here announces.
    pub(super) async fn look_around(&mut self) -> Result<(), StoreError> {
        let now = self.clock.now();
        if self.looked_at.is_some_and(|at| now >= at && now.since(at) < LOOK_AROUND) {
            return Ok(());
        }
        let unsure = |(id, served): (&WebhookId, &Served)| served.breaker.is_unsure(now).then_some(*id);
        let unsure: Vec<WebhookId> = self.destinations.iter().filter_map(unsure).collect();
        for id in outbox::failing(self.store.db(), unsure).await? {
            if let Some(served) = self.destinations.get_mut(&id) {
                served.breaker.suspect(now);
            }
        }
        self.cut_deadlines().await?;
        for disabled in webhooks::disabled(self.store.db()).await? {
            let Some(served) = self.destinations.get(&disabled.webhook_id) else { continue };
            if self.looked_at.is_none() {
                tracing::warn!(
                    webhook.name = disabled.name,
                    reason = disabled.reason,
                    since = %disabled.at,
                    "a webhook is disabled and gets nothing; `coucou webhooks --enable NAME` changes that"
                );
            }
            let mut given_up = 0;
            for _ in 0..MOST_TRIMS {
                let mut tx = self.store.begin().await?;
                let most = served.settings.max_queue;
                let count = outbox::trim(&mut tx, disabled.webhook_id, most, now).await?;
                tx.commit().await?;
                given_up += count;
                if count == 0 {
                    break;
                }
            }
            if given_up > 0 {
                tracing::error!(
                    webhook.name = disabled.name,
                    given_up,
                    "the queue of a disabled webhook is full: its oldest deliveries are dead"
                );
            }
        }
        self.looked_at = Some(now);
        Ok(())
    }

    /// Cuts down what queues wait for where a clock that was ahead has set it.
    async fn cut_deadlines(&self) -> Result<(), StoreError> {
        let now = self.clock.now();
        for (id, served) in &self.destinations {
            let waits = retry::max_delays(&served.settings.schedule, MIN_DEADLINE);
            // A transaction of its own: it locks the queues' rows in an order of its own.
            let mut tx = self.store.begin().await?;
            let queues = outbox::cut_deadlines(&mut tx, *id, waits, now).await?;
            tx.commit().await?;
            if queues > 0 {
                let name = &served.settings.name;
                tracing::warn!(
                    webhook.name = name,
                    queues,
                    "queues were to wait longer than they can: a clock was ahead; their waits are cut down"
                );
            }
        }
        Ok(())
    }

    /// Lets the rooms of webhooks that work again go at once, each of which waits for its own next attempt.
    pub(super) async fn release(&mut self) -> Result<(), StoreError> {
        while let Some(id) = self.recovered.first().copied() {
            // A transaction of its own: it locks the queues' rows in an order of its own.
            let mut tx = self.store.begin().await?;
            let rooms = outbox::release(&mut tx, id, self.clock.now()).await?;
            tx.commit().await?;
            self.recovered.remove(&id);
            let name = self.destinations.get(&id).map(|served| served.settings.name.as_str());
            tracing::info!(webhook.name = name, rooms, "the webhook takes deliveries again");
        }
        Ok(())
    }
}
