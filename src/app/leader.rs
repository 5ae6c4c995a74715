//! Standing for the crypto lease, and holding it.
//!
//! All devices are worked under one lease: an event is tried with every account's keys, so splitting the
//! accounts over processes would gain nothing. A term ends with an error of the store, with the loss of the
//! lease, or with a stop; machines, caches and tasks go with it, and the next term starts from what is stored.

use std::{error::Error, process, time::Duration};

use rand::Rng;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Shared, keys::CRYPTO, term::Term};
use crate::{
    crypto::CryptoError,
    inbox::worker::log_end,
    metrics::metrics,
    model::Route,
    store::{Lease, StoreError, leases},
};

/// How long the lease lasts without renewal. With the time between two claims this bounds how long nobody
/// works after a SIGKILL: under 15 s.
const LASTS: Duration = Duration::from_secs(10);

/// How often it is renewed, and claimed.
const RENEW: Duration = Duration::from_secs(3);
const CLAIM: Duration = Duration::from_secs(1);

/// Claims the lease again and again, and works while it is held.
///
/// # Errors
/// [`CryptoError::Refused`] alone.
pub(super) async fn lead(
    shared: Shared,
    webhooks: Vec<Route>,
    stop: CancellationToken,
) -> Result<(), CryptoError> {
    let holder = format!("{}-{:08x}", process::id(), rand::rng().random::<u32>());
    let mut standing_by = false;
    let mut cautious = false;
    let mut warned = false;
    metrics().leader.set(&[], 0.0);
    while !stop.is_cancelled() {
        match claim(&shared, &holder).await {
            Ok(Some(lease)) => {
                (standing_by, warned) = (false, false);
                tracing::info!(lease.fence = lease.fence(), holder, "this process works the crypto");
                metrics().leader.set(&[], 1.0);
                let ended = Box::pin(hold(&shared, &webhooks, &lease, cautious, &stop)).await;
                metrics().leader.set(&[], 0.0);
                // Whoever comes next is told the number; this one would tell an old one for ever.
                metrics().one_time_keys.clear();
                give_back(&shared, &lease).await;
                match ended {
                    Err(error @ CryptoError::Refused(_)) => return Err(error),
                    Err(error) => {
                        cautious = !error.is_transient();
                        log_end(&error);
                    }
                    Ok(()) => continue,
                }
            }
            Ok(None) if !standing_by => {
                standing_by = true;
                tracing::info!("another process works the crypto; this one stands by");
            }
            Ok(None) => {}
            // The store's state is told elsewhere while it is away. What does not pass by itself is told here,
            // once.
            Err(error) if !error.is_transient() && !warned => {
                warned = true;
                tracing::warn!(
                    error = &error as &dyn Error,
                    "could not claim the crypto lease; nothing is decrypted until that works"
                );
            }
            Err(error) => {
                tracing::debug!(error = &error as &dyn Error, "could not claim the crypto lease");
            }
        }
        let wait = CLAIM.mul_f64(rand::rng().random_range(0.5..1.0));
        tokio::select! { () = stop.cancelled() => {}, () = sleep(wait) => {} }
    }
    Ok(())
}

pub(super) async fn claim(shared: &Shared, holder: &str) -> Result<Option<Lease>, StoreError> {
    let mut tx = shared.store.begin().await?;
    let lease = leases::claim(&mut tx, CRYPTO, holder, shared.clock.now(), LASTS).await?;
    tx.commit().await?;
    Ok(lease)
}

async fn hold(
    shared: &Shared,
    webhooks: &[Route],
    lease: &Lease,
    cautious: bool,
    stop: &CancellationToken,
) -> Result<(), CryptoError> {
    let term = Term::new(shared.clone(), webhooks.to_vec(), lease.clone(), cautious);
    tokio::select! {
        ended = term.run(stop.child_token()) => ended,
        lost = renew(shared, lease) => Err(lost.into()),
    }
}

/// Renews the lease until that fails for longer than it lasts.
pub(super) async fn renew(shared: &Shared, lease: &Lease) -> StoreError {
    let mut renewed_at = shared.clock.now();
    loop {
        sleep(RENEW).await;
        let now = shared.clock.now();
        let renewal = async {
            let mut tx = shared.store.begin().await?;
            leases::renew(&mut tx, lease, now, LASTS).await?;
            tx.commit().await
        };
        match renewal.await {
            Ok(()) => renewed_at = now,
            Err(error @ StoreError::LeaseLost) => return error,
            Err(error) if shared.clock.now() >= renewed_at.plus(LASTS) => return error,
            Err(error) => {
                tracing::warn!(error = &error as &dyn Error, "could not renew the crypto lease");
            }
        }
    }
}

/// Lets another process take over at once; when that fails the lease expires by itself.
pub(super) async fn give_back(shared: &Shared, lease: &Lease) {
    let release = async {
        let mut tx = shared.store.begin().await?;
        leases::release(&mut tx, lease).await?;
        tx.commit().await
    };
    let _ = tokio::time::timeout(Duration::from_secs(3), release).await;
}
