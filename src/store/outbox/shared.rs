//! Deliveries without an order, and messages that go together.
//!
//! Deliveries of a webhook without an order wait in one queue, [`SHARED`], whatever their room. Whoever claims it
//! shares it out ([`share_out`]): each request's deliveries get a queue of their own, which is tried again by itself
//! and removed when it is empty. So what fails delays nothing else, and a request that is repeated is the same.
//!
//! In a room's queue a batch has a mark where it ends ([`begin_batches`]), set before it is sent for the first time.

use std::time::Duration;

use super::{
    super::{StoreError, Tx, db::values},
    Claimed,
};
use crate::{clock::Timestamp, model::WebhookId};

/// The queue of deliveries without an order; no room's id.
pub const SHARED: &str = "*";

/// How the names of queues begin that are removed once they are empty.
const PASSING: char = '~';

/// Whether a queue is removed once it is empty.
pub(super) fn is_passing(queue: &str) -> bool {
    queue.starts_with(PASSING)
}

pub(super) const REMOVE: &str = "DELETE FROM room_queues WHERE pending_count = 0 \
     AND (webhook_id, room_id) IN (VALUES {rows})";

pub(super) const OLDEST: &str = "SELECT delivery_id FROM deliveries \
     WHERE webhook_id = $1 AND state = 'pending' AND queue = '*' ORDER BY delivery_id LIMIT $2";

pub(super) const MOVE: &str = "UPDATE deliveries SET queue = v.column2 FROM (VALUES {rows}) AS v \
     WHERE delivery_id = v.column1 AND state = 'pending'";

pub(super) const TAKEN: &str = "UPDATE room_queues SET pending_count = ( \
         SELECT COUNT(*) FROM deliveries AS d WHERE d.webhook_id = $1 AND d.queue = '*' AND d.state = 'pending'), \
         due_at = $2, lease_until = 0, batch_until = NULL \
     WHERE webhook_id = $1 AND room_id = '*'";

pub(super) const LESS: &str = "UPDATE room_queues SET \
         pending_count = CASE WHEN pending_count > $3 THEN pending_count - $3 ELSE 0 END, \
         due_at = $2, lease_until = 0, batch_until = NULL \
     WHERE webhook_id = $1 AND room_id = '*'";

/// Shares the oldest deliveries of the [`SHARED`] queue out to queues of at most `size` each, and `most` of them,
/// which are claimed hereby. `claimed` is the claim on it, made in the same transaction; it ends hereby.
///
/// # Errors
/// When the database fails.
pub async fn share_out(
    tx: &mut Tx,
    claimed: &Claimed,
    now: Timestamp,
    lease: Duration,
    (size, most): (usize, usize),
) -> Result<Vec<Claimed>, StoreError> {
    let webhook_id = claimed.webhook_id;
    let limit = i64::try_from(size.saturating_mul(most)).unwrap_or(i64::MAX);
    let oldest: Vec<(i64,)> = tx.fetch_all(OLDEST, values![webhook_id.0, limit]).await?;
    let (mut moved, mut queues, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for (at, share) in oldest.chunks(size.max(1)).enumerate() {
        // The token has never been the same, so neither is the name.
        let name = format!("{PASSING}{}-{at}", claimed.token);
        moved.extend(share.iter().map(|(id,)| values![*id, name.as_str()]));
        let count = i64::try_from(share.len()).unwrap_or(i64::MAX);
        queues.push(values![webhook_id.0, name.as_str(), count]);
        shares.push(of_own(webhook_id, name));
    }
    let count = i64::try_from(moved.len()).unwrap_or(i64::MAX);
    tx.execute_many(MOVE, vec![], moved).await?;
    tx.execute_many(
        "INSERT INTO room_queues (webhook_id, room_id, pending_count, due_at, failures, lease_until, lease_token) \
         SELECT v.column1, v.column2, v.column3, $1, 0, $1, 1 FROM (VALUES {rows}) AS v",
        values![now.plus(lease)],
        queues,
    )
    .await?;
    if count < limit {
        // That was all. Counted again, which is safe while its row is locked, should the count have been wrong.
        tx.execute(TAKEN, values![webhook_id.0, now]).await?;
    } else {
        tx.execute(LESS, values![webhook_id.0, now, count]).await?;
    }
    Ok(shares)
}

fn of_own(webhook_id: WebhookId, room_id: String) -> Claimed {
    Claimed {
        webhook_id,
        room_id,
        failures: 0,
        scheduled_at: Timestamp::default(),
        hold_until: Timestamp::default(),
        batch_until: None,
        token: 1,
    }
}

pub(super) const BEGIN: &str = "UPDATE room_queues SET batch_until = v.column4 FROM (VALUES {rows}) AS v \
     WHERE webhook_id = v.column1 AND room_id = v.column2 AND lease_token = v.column3";

/// Notes where the batches of claimed queues end, by the number of the last message. Commit before sending them: a
/// batch that is sent again is then the same, whatever has come meanwhile.
///
/// # Errors
/// When the database fails.
pub async fn begin_batches(tx: &mut Tx, batches: &[(&Claimed, i64)]) -> Result<(), StoreError> {
    let mut batches = batches.to_vec();
    // As all others lock them.
    batches.sort_by(|(a, _), (b, _)| (a.webhook_id, &a.room_id).cmp(&(b.webhook_id, &b.room_id)));
    let rows = batches
        .iter()
        .map(|(claim, until)| values![claim.webhook_id.0, claim.room_id.as_str(), claim.token, *until]);
    tx.execute_many(BEGIN, vec![], rows.collect()).await?;
    Ok(())
}
