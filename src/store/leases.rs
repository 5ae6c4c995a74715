//! Leases: which process may do what only one may do.
//!
//! A lease is a row with an expiry and a **fence**, a number that grows whenever the lease changes hands.
//! Every write done under a lease checks the fence in its own transaction, so that a process which lost the
//! lease without noticing (paused, cut off, clock wrong) cannot write any more.

use std::time::Duration;

use super::{StoreError, Tx, db::values};
use crate::clock::Timestamp;

/// A lease that was held when it was claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    name: &'static str,
    fence: i64,
}

impl Lease {
    /// What the lease is for.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The fence: grows with every change of hands.
    #[must_use]
    pub fn fence(&self) -> i64 {
        self.fence
    }
}

/// Takes the lease `name` for `holder`, whose name no other process shares, when it is free, has expired or is its own
/// from before, as after a crash of the database. `None` while another holds it.
///
/// A lease that ends later than any that is claimed now was claimed by a clock that was ahead, and is cut down to
/// `lasts`: its holder renews it in time if it still runs.
///
/// # Errors
/// When the database fails.
pub async fn claim(
    tx: &mut Tx,
    name: &'static str,
    holder: &str,
    now: Timestamp,
    lasts: Duration,
) -> Result<Option<Lease>, StoreError> {
    let claimed: Option<(i64,)> = tx
        .fetch_optional(
            "INSERT INTO leases (name, holder, fence, lease_until) VALUES ($1, $2, 1, $4) \
             ON CONFLICT (name) DO UPDATE SET holder = $2, fence = leases.fence + 1, lease_until = $4 \
             WHERE leases.lease_until < $3 OR leases.holder = $2 RETURNING fence",
            values![name, holder, now, now.plus(lasts)],
        )
        .await?;
    if claimed.is_none() {
        tx.execute(
            "UPDATE leases SET lease_until = $2 WHERE name = $1 AND lease_until > $2",
            values![name, now.plus(lasts)],
        )
        .await?;
    }
    Ok(claimed.map(|(fence,)| Lease { name, fence }))
}

/// Prolongs a lease.
///
/// # Errors
/// [`StoreError::LeaseLost`] when another process holds it now.
pub async fn renew(tx: &mut Tx, lease: &Lease, now: Timestamp, lasts: Duration) -> Result<(), StoreError> {
    let touched = tx
        .execute(
            "UPDATE leases SET lease_until = $3 WHERE name = $1 AND fence = $2",
            values![lease.name, lease.fence, now.plus(lasts)],
        )
        .await?;
    if touched == 1 { Ok(()) } else { Err(StoreError::LeaseLost) }
}

/// Gives a lease back, so that another process need not wait for it to expire.
///
/// # Errors
/// When the database fails. A lease that was lost already is no error.
pub async fn release(tx: &mut Tx, lease: &Lease) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE leases SET lease_until = 0 WHERE name = $1 AND fence = $2",
        values![lease.name, lease.fence],
    )
    .await?;
    Ok(())
}

/// Makes `tx` fail unless the lease is still held, and keeps others from claiming it until `tx` ends.
///
/// # Errors
/// [`StoreError::LeaseLost`].
pub async fn check(tx: &mut Tx, lease: &Lease) -> Result<(), StoreError> {
    // An update that changes nothing locks the row on both databases; SELECT … FOR UPDATE does on one.
    let touched = tx
        .execute(
            "UPDATE leases SET fence = fence WHERE name = $1 AND fence = $2",
            values![lease.name, lease.fence],
        )
        .await?;
    if touched == 1 { Ok(()) } else { Err(StoreError::LeaseLost) }
}
