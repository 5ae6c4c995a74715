//! Recording outcomes, all of a batch or none.
//!
//! When the process dies before, the deliveries are made once more; recording twice counts once.

use std::collections::BTreeMap;

use super::{
    super::{
        StoreError, Tx,
        db::{Locking, Values, locking, values},
    },
    Claimed,
};
use crate::{clock::Timestamp, model::DeliveryId};

/// An attempt that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempted {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// Whether the webhook took it.
    pub delivered: bool,
    /// The HTTP status, when there was an answer.
    pub status: Option<u16>,
    /// When the attempt ended.
    pub at: Timestamp,
}

/// What became of a claimed queue.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The claim.
    pub claimed: Claimed,
    /// The attempts that were made.
    pub attempts: Vec<Attempted>,
    /// Failed attempts since the last success.
    pub failures: u32,
    /// Whether nothing was found to send, although the queue's count says that there is something.
    pub found_empty: bool,
    /// When the rest of the queue, if there is one, is to be sent.
    pub due_at: Timestamp,
}

pub(super) const LOCK: Locking = locking!(
    "SELECT q.webhook_id, q.room_id FROM room_queues AS q JOIN (VALUES {rows}) AS v \
         ON q.webhook_id = v.column1 AND q.room_id = v.column2 AND q.lease_token = v.column3",
    // The order of bytes, in which `enqueue` locks them too; otherwise the two could deadlock.
    "ORDER BY q.webhook_id, q.room_id COLLATE \"C\" FOR UPDATE OF q",
    ""
);

pub(super) const ATTEMPTED: &str = "UPDATE deliveries \
     SET state = v.column2, attempts = attempts + 1, last_status = v.column3, finished_at = v.column4 \
     FROM (VALUES {rows}) AS v WHERE delivery_id = v.column1 AND state = 'pending'";

pub(super) const SETTLE: &str = "UPDATE room_queues \
     SET pending_count = CASE WHEN pending_count > v.column3 THEN pending_count - v.column3 ELSE 0 END, \
         due_at = v.column4, failures = v.column5, lease_until = 0, lease_token = lease_token + 1 \
     FROM (VALUES {rows}) AS v WHERE webhook_id = v.column1 AND room_id = v.column2";

pub(super) const RECOUNT: &str = "UPDATE room_queues SET pending_count = ( \
         SELECT COUNT(*) FROM deliveries AS d WHERE d.webhook_id = v.column1 AND d.room_id = v.column2 \
             AND d.state = 'pending'), \
         due_at = v.column3, failures = v.column4, lease_until = 0, lease_token = lease_token + 1 \
     FROM (VALUES {rows}) AS v WHERE webhook_id = v.column1 AND room_id = v.column2";

/// Records the outcomes of claimed queues and gives the queues back. Each queue may appear once.
///
/// An outcome whose claim is no longer the queue's last one, because its lease ended and another
/// dispatcher took it, or because it has been recorded already, changes nothing. Answers how many those were.
///
/// # Errors
/// When the database fails; recording the same outcomes again is then right.
pub async fn finish(tx: &mut Tx, finished: &[Finished]) -> Result<usize, StoreError> {
    let queues: BTreeMap<(i64, &str), &Finished> = finished
        .iter()
        .map(|outcome| ((outcome.claimed.webhook_id.0, outcome.claimed.room_id.as_str()), outcome))
        .collect();
    let sql = tx.text(LOCK);
    let rows =
        queues.iter().map(|((webhook, room), outcome)| values![*webhook, *room, outcome.claimed.token]);
    let held: Vec<(i64, String)> = tx.fetch_many(sql, vec![], rows.collect()).await?;
    let held: Vec<&Finished> =
        held.iter().filter_map(|(webhook, room)| queues.get(&(*webhook, room.as_str())).copied()).collect();

    let attempts: Vec<_> = held.iter().flat_map(|outcome| &outcome.attempts).map(attempt_row).collect();
    let attempted = attempts.len() as u64;
    let touched = tx.execute_many(ATTEMPTED, vec![], attempts).await?;
    // A claimed queue always has something pending, and nobody else finishes it. If it is not so, someone
    // changed the tables by hand: count again, which is safe while the queues' rows are locked.
    let (sound, odd): (Vec<&Finished>, Vec<&Finished>) =
        held.iter().partition(|outcome| touched == attempted && !outcome.found_empty);
    tx.execute_many(SETTLE, vec![], sound.iter().map(|outcome| settle_row(outcome)).collect()).await?;
    tx.execute_many(RECOUNT, vec![], odd.iter().map(|outcome| recount_row(outcome)).collect()).await?;
    Ok(finished.len() - held.len())
}

fn attempt_row(attempt: &Attempted) -> Values {
    let state = if attempt.delivered { "delivered" } else { "pending" };
    let finished_at = attempt.delivered.then_some(attempt.at);
    values![attempt.delivery_id.0, state, attempt.status.map(i64::from), finished_at]
}

fn settle_row(outcome: &Finished) -> Values {
    let delivered = outcome.attempts.iter().filter(|attempt| attempt.delivered).count();
    values![
        outcome.claimed.webhook_id.0,
        outcome.claimed.room_id.as_str(),
        i64::try_from(delivered).unwrap_or(i64::MAX),
        outcome.due_at,
        i64::from(outcome.failures),
    ]
}

fn recount_row(outcome: &Finished) -> Values {
    values![
        outcome.claimed.webhook_id.0,
        outcome.claimed.room_id.as_str(),
        outcome.due_at,
        i64::from(outcome.failures),
    ]
}
