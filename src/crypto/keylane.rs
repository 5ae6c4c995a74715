//! The key lane: the device's own inbox on the homeserver, drained through `/sync`.
//!
//! Pushing loses room keys (a transaction that is sent again carries none); the device's inbox does not
//! forget. A page and the token after it are stored in one transaction, so a process that dies anywhere
//! asks for the same page again, and what came by push too is recognised and harmless. Asking for the next
//! page is what acknowledges the last one, so the homeserver's table does not grow.
//!
//! # Why no key is missed for long
//!
//! The lane needs no sign that a push failed, because it never rests: whoever holds the crypto lease has a
//! poll open at the homeserver, which answers the moment a message for the device comes. That poll is opened
//!
//! - at every start of coucou and every hand-over of the lease, as each term begins with a drain;
//! - after the store was away, which ends the term, as soon as it is back (the lease is claimed every second);
//! - after the homeserver was away, as soon as it pushes anything, which it does for every message of ours; and
//!   at most `LONGEST_BACKOFF` later without that;
//! - after a network swallowed the poll's answer, when the poll times out: a minute after it was opened.
//!
//! And it always asks from the last token that is stored, so what happened to pushes meanwhile does not
//! matter. A token that the homeserver does not know any more (a store or a homeserver restored from a
//! backup) is given up: without one the homeserver tells all that its inbox holds.

use std::{error::Error, sync::Arc, time::Duration};

use rand::Rng;
use tokio::{sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{engine::CryptoError, one_time_keys::ENOUGH_KEYS};
use crate::{
    clock::SharedClock,
    homeserver::{Homeserver, HomeserverError, Identity},
    metrics::metrics,
    model::Account,
    store::{Lease, Store, accounts, inbox, leases},
};

/// How long the homeserver holds an idle poll.
const POLL: Duration = Duration::from_secs(30);

/// The longest wait between attempts while the homeserver does not answer.
const LONGEST_BACKOFF: Duration = Duration::from_mins(1);

/// The shortest wait between attempts, whatever the homeserver shows of itself meanwhile.
const SHORTEST_BACKOFF: Duration = Duration::from_millis(500);

/// What a step of the lane came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// Messages or device lists came; there may be more.
    News,
    /// The homeserver did not know the position; the next page begins anew.
    Restarted,
    /// There was nothing but key counts.
    Idle,
}

/// Messages of a page that others follow: Synapse puts no more into one.
const FULL_PAGE: usize = 100;

/// How often, in full pages, progress is logged while a backlog is fetched.
const REPORT: u64 = 5;

/// What was fetched in one go.
#[derive(Debug, Default)]
struct Backlog {
    pages: u64,
    messages: usize,
}

impl Backlog {
    /// Counts a page, and tells how far it is. The first page that is not full ends a backlog.
    fn count(&mut self, account: &Account, messages: usize) {
        self.messages += messages;
        if messages >= FULL_PAGE {
            self.pages += 1;
            if self.pages.is_multiple_of(REPORT) {
                tracing::info!(account.user_id = %account.user_id, pages = self.pages,
                    to_device = self.messages, "fetching the key lane's backlog");
            }
            return;
        }
        if self.pages >= REPORT {
            tracing::info!(account.user_id = %account.user_id, pages = self.pages,
                to_device = self.messages, "fetched the key lane's backlog");
        }
        *self = Self::default();
    }
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
    /// Told when the homeserver is back.
    outage: Arc<Notify>,
    /// Told when the homeserver makes a request of us, so that it is there.
    alive: Arc<Notify>,
    /// To-device messages since there was last nothing to fetch.
    backlog: Backlog,
    /// Key counts as they were last stored: the same again are not stored again while there are enough keys.
    last_counts: Option<String>,
}

impl KeyLane {
    /// The lane of an account, from where it stood. It wakes `news` when something came, and `outage` when
    /// the homeserver is back after it was away.
    #[must_use]
    pub fn new(
        store: Store,
        homeserver: Homeserver,
        lease: Lease,
        account: Account,
        clock: SharedClock,
        news: Arc<Notify>,
        outage: Arc<Notify>,
    ) -> Self {
        let backlog = Backlog::default();
        let alive = Arc::default();
        Self { store, homeserver, lease, account, clock, news, outage, alive, backlog, last_counts: None }
    }

    /// Heeds `alive`, whose waiters are told when the homeserver makes a request of us: a wait for it ends.
    #[must_use]
    pub fn heeding(self, alive: Arc<Notify>) -> Self {
        Self { alive, ..self }
    }

    /// Asks for one page and stores it with the token that follows it.
    ///
    /// # Errors
    /// When the homeserver or the store fails; the next step asks for the same page.
    pub async fn step(&mut self, timeout: Duration) -> Result<Page, CryptoError> {
        let page = self.fetch(timeout).await;
        let outcome = match &page {
            Ok(Page::News) => "news",
            Ok(Page::Restarted) => "restarted",
            Ok(Page::Idle) => "idle",
            Err(_) => "failed",
        };
        metrics().lane_syncs.inc(&[outcome]);
        if page.is_ok() {
            metrics().lane_synced_at.set(&[], self.clock.now().unix_seconds());
        }
        page
    }

    async fn fetch(&mut self, timeout: Duration) -> Result<Page, CryptoError> {
        let identity = Identity {
            user_id: self.account.user_id.clone(),
            device_id: Some(self.account.device_id.clone()),
        };
        let since = self.account.sync_token.as_deref();
        let page = match self.homeserver.sync(&identity, since, timeout).await {
            Err(error @ HomeserverError::Status { status: 400, .. }) if since.is_some() => {
                return self.begin_anew(&error).await;
            }
            answered => answered?,
        };
        let counts = format!("{:?} {:?}", page.one_time_key_counts, page.unused_fallback_key_types);
        let has_counts = page.one_time_key_counts.is_some() || page.unused_fallback_key_types.is_some();
        // A push that was made earlier and came later may have said that there are enough.
        let signed = page.one_time_key_counts.as_ref().and_then(|counts| counts.get("signed_curve25519"));
        let is_short = signed.is_some_and(|left| *left < ENOUGH_KEYS);
        let new_counts = has_counts && (is_short || self.last_counts.as_ref() != Some(&counts));
        let messages = page.to_device.len();
        metrics().lane_messages.add(&[], u64::try_from(messages).unwrap_or(u64::MAX));
        if let Some(counts) = &page.one_time_key_counts {
            let left = counts.get("signed_curve25519").copied().unwrap_or(0);
            metrics().one_time_keys.count(&[self.account.role.as_str()], left);
        }
        let news = messages > 0 || !page.is_empty();
        if !news && !new_counts && since == Some(page.next_batch.as_str()) {
            self.backlog.count(&self.account, 0);
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
        self.backlog.count(&self.account, messages);
        Ok(if news { Page::News } else { Page::Idle })
    }

    /// Gives up a position that the homeserver does not know. What it holds comes again, which is harmless.
    async fn begin_anew(&mut self, error: &HomeserverError) -> Result<Page, CryptoError> {
        tracing::warn!(account.user_id = %self.account.user_id, error = error as &dyn Error,
            "the homeserver does not know the key lane's position; beginning anew");
        let mut tx = self.store.begin().await?;
        leases::check(&mut tx, &self.lease).await?;
        accounts::forget_sync_token(&mut tx, self.account.id).await?;
        tx.commit().await?;
        self.account.sync_token = None;
        Ok(Page::Restarted)
    }

    /// Drains what is there now: at the start, before events are worked through, so that keys which came
    /// while nobody listened are in before the events that need them.
    ///
    /// # Errors
    /// When the homeserver or the store fails.
    pub async fn drain(&mut self) -> Result<(), CryptoError> {
        while self.step(Duration::ZERO).await? != Page::Idle {}
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
                Ok(_) => {
                    if failures > 0 {
                        self.outage.notify_one();
                    }
                    failures = 0;
                }
                Err(error) if error.is_of_the_store() => return Err(error),
                Err(error) => {
                    failures += 1;
                    // The first failure is often a restart of the homeserver, and not worth a warning.
                    // Nor is a token that the homeserver does not know: of that it is told once, as an error.
                    let is_told =
                        matches!(&error, CryptoError::Homeserver(error) if error.is_unknown_token());
                    if failures > 1 && !is_told {
                        tracing::warn!(account.user_id = %self.account.user_id, error = &error as &dyn Error, failures, "key lane failed");
                    }
                    let asked =
                        if let CryptoError::Homeserver(error) = &error { error.retry_after() } else { None };
                    let wait = backoff(failures).max(asked.unwrap_or_default());
                    let seen = async {
                        sleep(asked.unwrap_or(SHORTEST_BACKOFF)).await;
                        self.alive.notified().await;
                    };
                    tokio::select! {
                        () = stop.cancelled() => {}
                        // A homeserver that is there is not waited for ever longer, however often this fails.
                        () = seen => failures = 1,
                        () = sleep(wait) => {}
                    }
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
