//! The key lane: the device's own inbox on the homeserver, drained through `/sync`.
//!
//! Pushing loses room keys (a transaction that is sent again carries none); the device's inbox does not
//! forget. A page and the token after it are stored in one transaction, so a process that dies anywhere
//! asks for the same page again, and what came by push too is recognised and harmless. Asking for the next
//! page is what acknowledges the last one, so the homeserver's table does not grow.

use std::{error::Error, sync::Arc, time::Duration};

use rand::Rng;
use tokio::{sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;

use super::engine::CryptoError;
use crate::{
    clock::SharedClock,
    homeserver::{Homeserver, Identity},
    model::Account,
    store::{Lease, Store, accounts, inbox, leases},
};

/// How long the homeserver holds an idle poll.
const POLL: Duration = Duration::from_secs(30);

/// The longest wait between attempts while the homeserver does not answer.
const LONGEST_BACKOFF: Duration = Duration::from_mins(1);

/// What a step of the lane came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// Messages or device lists came; there may be more.
    News,
    /// There was nothing but key counts.
    Idle,
}

/// The key lane of one account.
#[derive(Debug)]
pub struct KeyLane {
    store: Store,
    homeserver: Homeserver,
    lease: Lease,
    account: Account,
    clock: SharedClock,
    /// Wakes the inbox worker.
    news: Arc<Notify>,
    /// Key counts as they were last stored: the same again are not stored again.
    last_counts: Option<String>,
}

impl KeyLane {
    /// The lane of an account, from where it stood.
    #[must_use]
    pub fn new(
        store: Store,
        homeserver: Homeserver,
        lease: Lease,
        account: Account,
        clock: SharedClock,
        news: Arc<Notify>,
    ) -> Self {
        Self { store, homeserver, lease, account, clock, news, last_counts: None }
    }

    /// Asks for one page and stores it with the token that follows it.
    ///
    /// # Errors
    /// When the homeserver or the store fails; the next step asks for the same page.
    pub async fn step(&mut self, timeout: Duration) -> Result<Page, CryptoError> {
        let identity = Identity {
            user_id: self.account.user_id.clone(),
            device_id: Some(self.account.device_id.clone()),
        };
        let since = self.account.sync_token.as_deref();
        let page = self.homeserver.sync(&identity, since, timeout).await?;
        let counts = format!("{:?} {:?}", page.one_time_key_counts, page.unused_fallback_key_types);
        let has_counts = page.one_time_key_counts.is_some() || page.unused_fallback_key_types.is_some();
        let new_counts = has_counts && self.last_counts.as_ref() != Some(&counts);
        let messages = page.to_device.len();
        let news = messages > 0 || !page.is_empty();
        if !news && !new_counts && since == Some(page.next_batch.as_str()) {
            return Ok(Page::Idle);
        }
        let body = if news || new_counts {
            let body = serde_json::to_vec(&page).map_err(matrix_sdk_crypto::OlmError::from)?;
            Some(inbox::seal_body(self.store.seal()?, &body)?)
        } else {
            None
        };
        let mut tx = self.store.begin().await?;
        leases::check(&mut tx, &self.lease).await?;
        if let Some(body) = body {
            inbox::accept_lane(&mut tx, self.account.id, body, self.clock.now()).await?;
        }
        accounts::set_sync_token(&mut tx, self.account.id, &page.next_batch).await?;
        tx.commit().await?;
        self.account.sync_token = Some(page.next_batch);
        if new_counts {
            self.last_counts = Some(counts);
        }
        if news || new_counts {
            self.news.notify_one();
        }
        if messages > 0 {
            tracing::debug!(account.user_id = %self.account.user_id, to_device = messages, "key lane page");
        }
        Ok(if news { Page::News } else { Page::Idle })
    }

    /// Drains what is there now: at the start, before events are worked through, so that keys which came
    /// while nobody listened are in before the events that need them.
    ///
    /// # Errors
    /// When the homeserver or the store fails.
    pub async fn drain(&mut self) -> Result<(), CryptoError> {
        let mut pages: u64 = 0;
        while self.step(Duration::ZERO).await? == Page::News {
            pages += 1;
            if pages.is_multiple_of(10) {
                tracing::info!(account.user_id = %self.account.user_id, pages, "draining the key lane");
            }
        }
        Ok(())
    }

    /// Polls until told to stop, or until the store fails.
    ///
    /// # Errors
    /// When the store fails or the lease is lost; the homeserver's failures are waited out here.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), CryptoError> {
        let mut failures: u32 = 0;
        while !stop.is_cancelled() {
            let step = tokio::select! {
                () = stop.cancelled() => break,
                step = self.step(POLL) => step,
            };
            match step {
                Ok(_) => failures = 0,
                Err(error) if error.is_of_the_store() => return Err(error),
                Err(error) => {
                    failures += 1;
                    // The first failure is often a restart of the homeserver, and not worth a warning.
                    if failures > 1 {
                        tracing::warn!(account.user_id = %self.account.user_id, error = &error as &dyn Error, failures, "key lane failed");
                    }
                    let wait = backoff(failures);
                    tokio::select! { () = stop.cancelled() => {}, () = sleep(wait) => {} }
                }
            }
        }
        Ok(())
    }
}

/// One second, doubled with each failure up to a minute, give or take a quarter so that instances spread.
pub(crate) fn backoff(failures: u32) -> Duration {
    let doubled = Duration::from_secs(1 << failures.saturating_sub(1).min(6)).min(LONGEST_BACKOFF);
    doubled.mul_f64(rand::rng().random_range(0.75..1.25))
}
