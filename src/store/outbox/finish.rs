//! Recording outcomes, all of a batch or none.
//!
//! When the process dies before, the deliveries are made once more; recording twice counts once.

use std::collections::BTreeMap;

use super::{
    super::{
        StoreError, Tx,
        db::{Locking, Values, locking, values},
    },
    Claimed, shared,
};
use crate::{clock::Timestamp, model::DeliveryId};

/// What an attempt leaves a delivery as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The webhook took it.
    Delivered,
    /// It is to be tried again.
    Pending,
    /// It is given up, kept for a person to look at or send again.
    Dead,
}

impl Fate {
    /// The name in the table.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Pending => "pending",
            Self::Dead => "dead",
        }
    }
}

/// An attempt that was made, or could not even be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempted {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// What becomes of it.
    pub fate: Fate,
    /// Whether something was sent.
    pub sent: bool,
    /// The HTTP status, when there was an answer.
    pub status: Option<u16>,
    /// Why it failed, one word.
    pub error: Option<&'static str>,
    /// How long it took, milliseconds.
    pub duration_ms: u64,
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
    /// Failed attempts of the schedule since the last success.
    pub failures: u32,
    /// When the next attempt counts as one of the schedule's.
    pub scheduled_at: Timestamp,
    /// Until when the receiver asked to be left alone with this room.
    pub hold_until: Timestamp,
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
     SET state = v.column2, attempts = attempts + v.column3, last_status = v.column4, \
         last_error = v.column5, last_duration_ms = v.column6, last_attempt_at = v.column7, \
         finished_at = v.column8 \
     FROM (VALUES {rows}) AS v WHERE delivery_id = v.column1 AND state = 'pending'";

pub(super) const SETTLE: &str = "UPDATE room_queues \
     SET pending_count = CASE WHEN pending_count > v.column3 THEN pending_count - v.column3 ELSE 0 END, \
         due_at = v.column4, failures = v.column5, scheduled_at = v.column6, hold_until = v.column7, \
         batch_until = CASE WHEN v.column3 > 0 THEN NULL ELSE batch_until END, \
         lease_until = 0, lease_token = lease_token + 1 \
     FROM (VALUES {rows}) AS v WHERE webhook_id = v.column1 AND room_id = v.column2";

pub(super) const RECOUNT: &str = "UPDATE room_queues SET pending_count = ( \
         SELECT COUNT(*) FROM deliveries AS d WHERE d.webhook_id = v.column1 \
             AND COALESCE(d.queue, d.room_id) = v.column2 AND d.state = 'pending'), \
         batch_until = CASE WHEN v.column3 > 0 THEN NULL ELSE batch_until END, \
         due_at = v.column4, failures = v.column5, scheduled_at = v.column6, hold_until = v.column7, \
         lease_until = 0, lease_token = lease_token + 1 \
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
    tx.execute_many(SETTLE, vec![], sound.iter().map(|outcome| queue_row(outcome)).collect()).await?;
    tx.execute_many(RECOUNT, vec![], odd.iter().map(|outcome| queue_row(outcome)).collect()).await?;
    let passing = held.iter().filter(|outcome| shared::is_passing(&outcome.claimed.room_id));
    let passing =
        passing.map(|outcome| values![outcome.claimed.webhook_id.0, outcome.claimed.room_id.as_str()]);
    tx.execute_many(shared::REMOVE, vec![], passing.collect()).await?;
    Ok(finished.len() - held.len())
}

fn attempt_row(attempt: &Attempted) -> Values {
    let finished_at = (attempt.fate != Fate::Pending).then_some(attempt.at);
    values![
        attempt.delivery_id.0,
        attempt.fate.as_str(),
        i64::from(attempt.sent),
        attempt.status.map(i64::from),
        attempt.error,
        i64::try_from(attempt.duration_ms).unwrap_or(i64::MAX),
        attempt.at,
        finished_at,
    ]
}

fn queue_row(outcome: &Finished) -> Values {
    let done = outcome.attempts.iter().filter(|attempt| attempt.fate != Fate::Pending).count();
    values![
        outcome.claimed.webhook_id.0,
        outcome.claimed.room_id.as_str(),
        i64::try_from(done).unwrap_or(i64::MAX),
        outcome.due_at,
        i64::from(outcome.failures),
        outcome.scheduled_at,
        outcome.hold_until,
    ]
}
