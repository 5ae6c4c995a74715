//! Making up for outages: ours, the store's, the homeserver's.
//!
//! The homeserver waits up to 512 s between two attempts at a transaction that failed. So after every outage
//! coucou asks it for a ping, whose answer ends that wait; and as a ping does not help when the homeserver
//! itself was restarted, and events that waited for their turn are then lost to pushing altogether, rooms
//! are compared with what is known ([`Missed`]). The same is done soon after and then every minute, for outages
//! that nobody noticed, and because Synapse forgets a transaction that it makes in the very moment in which
//! it finds that we are back: it is sent when we have been away the next time.
//!
//! What an outage is: a start of coucou or of a term under the lease (the store or another process was away),
//! a key lane that could not reach the homeserver and can again, a transaction that was not taken.

use std::{error::Error, sync::Arc, time::Duration};

use rand::Rng;
use ruma::TransactionId;
use tokio::{sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    crypto::{CryptoError, keylane::backoff},
    homeserver::{Homeserver, HomeserverError},
    model::Account,
    rooms::{
        Errands, RoomsError,
        missed::{Found, Missed, Occasion},
    },
    store::Store,
};

/// How often rooms are compared when nothing is known to have happened.
const NOW_AND_THEN: Duration = Duration::from_mins(1);

/// When rooms are compared again after an outage, each time since the last.
const SOON_AFTER: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(15)];

/// How long after an outage nothing is done about the next one, so that a homeserver which comes and goes is
/// not made busy by us.
const PAUSE: Duration = Duration::from_secs(3);

/// The longest wait between two attempts at a comparison: nobody announces that it may succeed now.
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// Pings asked for after one outage: the homeserver may reach us later than we it, for a minute or so.
const MOST_PINGS: u32 = 6;

/// Who makes up for outages, for a term under the crypto lease.
pub(super) struct Outages {
    pub(super) store: Store,
    pub(super) homeserver: Homeserver,
    /// The registration's id, when it is known.
    pub(super) appservice_id: Option<String>,
    pub(super) accounts: Vec<Account>,
    pub(super) errands: Errands,
    pub(super) missed: Missed,
    /// An outage is over.
    pub(super) wake: Arc<Notify>,
}

impl Outages {
    /// Runs until told to stop. The start is the end of an outage.
    ///
    /// # Errors
    /// When the store fails or the lease is lost; the homeserver's failures are waited out.
    pub(super) async fn run(self, stop: CancellationToken) -> Result<(), CryptoError> {
        tokio::select! { () = stop.cancelled() => Ok(()), ended = self.watch() => ended }
    }

    async fn watch(self) -> Result<(), CryptoError> {
        // The start itself has compared memberships.
        self.recover(false).await?;
        let mut soon_after = SOON_AFTER.into_iter();
        loop {
            let soon = soon_after.next();
            let occasion = if soon.is_some() { Occasion::SoonAfter } else { Occasion::Routine };
            let wait = soon.unwrap_or(NOW_AND_THEN).mul_f64(rand::rng().random_range(0.8..1.2));
            tokio::select! {
                () = self.wake.notified() => {
                    tracing::info!("an outage is over; making up for it");
                    self.recover(true).await?;
                    soon_after = SOON_AFTER.into_iter();
                }
                () = sleep(wait) => self.compare(occasion).await?,
            }
        }
    }

    /// Compares rooms once.
    ///
    /// # Errors
    /// When the homeserver or the store fails, or the lease is lost.
    pub(super) async fn look(&self) -> Result<(), CryptoError> {
        for account in &self.accounts {
            report(account, self.missed.look(account, Occasion::Outage).await?);
        }
        Ok(())
    }

    async fn recover(&self, memberships: bool) -> Result<(), CryptoError> {
        // A transaction may have been refused for want of the store: it must be able to take the next.
        self.store.ping().await?;
        let (compared, ()) = tokio::join!(
            async {
                if memberships {
                    self.reconcile().await?;
                }
                self.compare(Occasion::Outage).await
            },
            self.ping(),
        );
        compared?;
        sleep(PAUSE).await;
        Ok(())
    }

    async fn reconcile(&self) -> Result<(), CryptoError> {
        let mut failures = 0;
        while let Err(error) = self.errands.reconcile().await {
            failures = wait_out(error, failures).await?;
        }
        Ok(())
    }

    async fn compare(&self, occasion: Occasion) -> Result<(), CryptoError> {
        for account in &self.accounts {
            let mut failures = 0;
            let found = loop {
                match self.missed.look(account, occasion).await {
                    Ok(found) => break found,
                    Err(error) => failures = wait_out(error, failures).await?,
                }
            };
            report(account, found);
        }
        Ok(())
    }

    /// Asks the homeserver for a ping, so that it retries at once. Failing changes nothing but the wait.
    async fn ping(&self) {
        let Some(id) = &self.appservice_id else { return };
        let mut failures = 0;
        while let Err(error) = self.homeserver.ping(id, TransactionId::new().as_str()).await {
            failures += 1;
            let gave_up = failures == MOST_PINGS || !is_worth_another(&error);
            if failures == 1 || gave_up {
                tracing::warn!(
                    error = &error as &dyn Error,
                    gave_up,
                    advice = advice(&error),
                    "the homeserver could not ping coucou; what it holds back comes when it tries again by itself"
                );
            }
            if gave_up {
                return;
            }
            sleep(backoff(failures)).await;
        }
        tracing::debug!("the homeserver pinged coucou");
    }
}

fn report(account: &Account, found: Found) {
    if found != Found::default() {
        tracing::info!(account.user_id = %account.user_id, events = found.events, rooms = found.rooms,
            "took events from rooms' timelines that had not come yet");
    }
}

/// Waits before the next attempt when the homeserver failed; a failure of the store ends the term.
async fn wait_out(error: RoomsError, failures: u32) -> Result<u32, CryptoError> {
    match error {
        RoomsError::Homeserver(error) => {
            tracing::debug!(error = &error as &dyn Error, failures, "could not make up for an outage yet");
            let wait = backoff(failures + 1).min(LONGEST_WAIT);
            sleep(wait.max(error.retry_after().unwrap_or_default())).await;
            Ok(failures + 1)
        }
        RoomsError::Store(error) => Err(error.into()),
    }
}

/// Whether the homeserver may be able to reach us in a moment: we or a proxy between may still be starting.
fn is_worth_another(error: &HomeserverError) -> bool {
    let reached = ["M_CONNECTION_FAILED", "M_CONNECTION_TIMEOUT", "M_BAD_STATUS"];
    error.is_transient() || error.errcode().is_some_and(|errcode| reached.contains(&errcode))
}

/// What a person can do about a ping that failed.
pub(super) fn advice(error: &HomeserverError) -> &'static str {
    match error.errcode() {
        Some("M_URL_NOT_SET") => "set url in the registration file that the homeserver reads, and restart it",
        Some("M_CONNECTION_FAILED" | "M_CONNECTION_TIMEOUT") => {
            "url in the registration must be an address of coucou that the homeserver can reach"
        }
        Some("M_BAD_STATUS") => {
            "another service answers at the url of the registration, or hs_token differs on the two sides"
        }
        Some("M_UNKNOWN_TOKEN" | "M_MISSING_TOKEN") => {
            "as_token differs between coucou's registration and the homeserver's"
        }
        Some("M_FORBIDDEN") => "id differs between coucou's registration and the homeserver's",
        Some("M_UNRECOGNIZED" | "M_NOT_FOUND") => {
            "this homeserver does not know pings; nothing is to be done"
        }
        _ => "none, unless it goes on",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(status: u16, errcode: &str) -> HomeserverError {
        let (errcode, message) = (errcode.to_owned(), String::new());
        HomeserverError::Status { status, errcode, message, retry_after: None }
    }

    #[test]
    fn only_what_time_can_mend_is_tried_again() {
        assert!(is_worth_another(&refusal(502, "M_CONNECTION_FAILED")));
        assert!(is_worth_another(&refusal(504, "M_CONNECTION_TIMEOUT")));
        assert!(is_worth_another(&refusal(502, "M_BAD_STATUS")));
        assert!(!is_worth_another(&refusal(400, "M_URL_NOT_SET")));
        assert!(!is_worth_another(&refusal(403, "M_FORBIDDEN")));
        assert!(!is_worth_another(&refusal(404, "M_UNRECOGNIZED")));
    }
}
