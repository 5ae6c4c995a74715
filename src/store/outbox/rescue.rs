//! What a webhook as a whole needs: probes while it fails, release when it is back, a bound while it is disabled.
//!
//! Each of these can run twice, or not at all: the queues' own schedules go on in any case.

use std::{collections::BTreeSet, time::Duration};

use super::{
    super::{
        Db, StoreError, Tx,
        db::{Locking, locking, values},
    },
    Claimed,
    claim::{ClaimRow, claimed},
};
use crate::{clock::Timestamp, model::WebhookId};

/// The longest time for which a receiver can ask that a room is left alone.
pub const MAX_HOLD: Duration = Duration::from_hours(24);

pub(super) const CLAIM_ANY: Locking = locking!(
    "WITH next AS MATERIALIZED ( \
         SELECT webhook_id, room_id FROM room_queues \
         WHERE webhook_id = $1 AND room_id > $4 AND pending_count > 0 AND lease_until <= $2 \
             AND hold_until <= $2 ORDER BY room_id LIMIT 1",
    "FOR UPDATE SKIP LOCKED",
    ") UPDATE room_queues SET due_at = $3, lease_until = $3, lease_token = room_queues.lease_token + 1 \
     FROM next WHERE room_queues.webhook_id = next.webhook_id AND room_queues.room_id = next.room_id \
     RETURNING room_queues.room_id, room_queues.failures, room_queues.scheduled_at, \
         room_queues.hold_until, room_queues.batch_until, room_queues.lease_token"
);

/// Claims the next queue after the room `after`, and then from the first, whether it is due or not: to see
/// whether the webhook takes anything. One that the receiver asked to be left alone with is left alone.
///
/// # Errors
/// When the database fails.
pub async fn claim_any(
    tx: &mut Tx,
    webhook_id: WebhookId,
    after: &str,
    now: Timestamp,
    lease: Duration,
) -> Result<Option<Claimed>, StoreError> {
    let sql = tx.text(CLAIM_ANY);
    for after in [after, ""] {
        let row: Option<ClaimRow> =
            tx.fetch_optional(sql, values![webhook_id.0, now, now.plus(lease), after]).await?;
        if let Some(row) = row {
            return Ok(Some(claimed(webhook_id, row)));
        }
    }
    Ok(None)
}

pub(super) const RELEASE: Locking = locking!(
    "WITH late AS MATERIALIZED ( \
         SELECT webhook_id, room_id FROM room_queues \
         WHERE webhook_id = $1 AND pending_count > 0 AND due_at > $2 AND lease_until <= $2",
    // The order in which all others lock them.
    "ORDER BY room_id COLLATE \"C\" FOR UPDATE",
    ") UPDATE room_queues SET due_at = CASE WHEN hold_until > $2 THEN hold_until ELSE $2 END \
     FROM late WHERE room_queues.webhook_id = late.webhook_id AND room_queues.room_id = late.room_id"
);

/// Makes the queues of a webhook due that wait for their next attempt; their schedules stay. Answers how many.
///
/// # Errors
/// When the database fails.
pub async fn release(tx: &mut Tx, webhook_id: WebhookId, now: Timestamp) -> Result<u64, StoreError> {
    let sql = tx.text(RELEASE);
    tx.execute(sql, values![webhook_id.0, now]).await
}

pub(super) const CUT_DEADLINES: Locking = locking!(
    "WITH late AS MATERIALIZED ( \
         SELECT q.webhook_id, q.room_id, v.column2 AS until FROM (VALUES {rows}) AS v \
         JOIN room_queues AS q ON q.webhook_id = $1 AND q.failures = v.column1 \
         WHERE q.pending_count > 0 AND q.due_at > v.column2 \
             AND (q.hold_until < q.due_at OR q.hold_until > $2)",
    // The order in which all others lock them.
    "ORDER BY q.room_id COLLATE \"C\" FOR UPDATE OF q",
    ") UPDATE room_queues SET due_at = late.until, \
         lease_until = CASE WHEN lease_until > late.until THEN late.until ELSE lease_until END, \
         scheduled_at = CASE WHEN scheduled_at > late.until THEN late.until ELSE scheduled_at END, \
         hold_until = CASE WHEN hold_until > $2 THEN late.until ELSE hold_until END \
     FROM late WHERE room_queues.webhook_id = late.webhook_id AND room_queues.room_id = late.room_id"
);

/// Cuts down what the queues of a webhook wait for where it is longer than coucou itself makes them wait, as after a
/// clock that was ahead. `waits` has the longest wait for each number of failed attempts. A hold that the receiver asked
/// for stays, for [`MAX_HOLD`] at most. Returns how many queues it changed.
///
/// # Errors
/// When the database fails.
pub async fn cut_deadlines(
    tx: &mut Tx,
    webhook_id: WebhookId,
    waits: impl IntoIterator<Item = (u32, Duration)>,
    now: Timestamp,
) -> Result<u64, StoreError> {
    let rows = waits.into_iter().map(|(failures, wait)| values![i64::from(failures), now.plus(wait)]);
    let sql = tx.text(CUT_DEADLINES);
    tx.execute_many(sql, values![webhook_id.0, now.plus(MAX_HOLD)], rows.collect()).await
}

pub(super) const FAILING: &str = "SELECT v.column1 FROM (VALUES {rows}) AS v WHERE EXISTS ( \
         SELECT 1 FROM room_queues AS q \
         WHERE q.webhook_id = v.column1 AND q.pending_count > 0 AND q.failures > 0)";

/// Those of these webhooks with rooms whose last attempt failed.
///
/// # Errors
/// When the database fails.
pub async fn failing(
    db: &Db,
    webhooks: impl IntoIterator<Item = WebhookId>,
) -> Result<Vec<WebhookId>, StoreError> {
    let rows = webhooks.into_iter().map(|id| values![id.0]).collect();
    let found: Vec<(i64,)> = db.fetch_many(FAILING, vec![], rows).await?;
    Ok(found.into_iter().map(|(id,)| WebhookId(id)).collect())
}

/// The most deliveries that one call of [`trim`] gives up.
const TRIM_TOGETHER: i64 = 1000;

const LOCK_ROOMS: Locking = locking!(
    "SELECT q.room_id FROM room_queues AS q JOIN (VALUES {rows}) AS v \
         ON q.webhook_id = $1 AND q.room_id = v.column1",
    "ORDER BY q.room_id COLLATE \"C\" FOR UPDATE OF q",
    ""
);

/// Gives up the oldest deliveries of a disabled webhook beyond `most`: they are dead from then on, for
/// `queue_full`, not gone. Answers how many.
///
/// # Errors
/// When the database fails.
pub async fn trim(tx: &mut Tx, webhook_id: WebhookId, most: u64, now: Timestamp) -> Result<u64, StoreError> {
    let pending: Option<(i64,)> = tx
        .fetch_optional(
            "SELECT CAST(COALESCE(SUM(pending_count), 0) AS BIGINT) FROM room_queues \
             WHERE webhook_id = $1 AND pending_count > 0",
            values![webhook_id.0],
        )
        .await?;
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let excess = pending.map_or(0, |(count,)| count).saturating_sub(most).min(TRIM_TOGETHER);
    if excess <= 0 {
        return Ok(0);
    }
    let oldest: Vec<(i64, String)> = tx
        .fetch_all(
            "SELECT delivery_id, COALESCE(queue, room_id) FROM deliveries WHERE webhook_id = $1 AND state = 'pending' \
             ORDER BY delivery_id LIMIT $2",
            values![webhook_id.0, excess],
        )
        .await?;
    let rooms: BTreeSet<&str> = oldest.iter().map(|(_, room)| room.as_str()).collect();
    let rooms =
        |columns: &dyn Fn(&str) -> super::super::db::Values| rooms.iter().map(|room| columns(room)).collect();
    let sql = tx.text(LOCK_ROOMS);
    let _: Vec<(String,)> = tx.fetch_many(sql, values![webhook_id.0], rooms(&|room| values![room])).await?;
    let given_up = tx
        .execute_many(
            "UPDATE deliveries SET state = 'dead', last_error = 'queue_full', finished_at = $1 \
             FROM (VALUES {rows}) AS v WHERE delivery_id = v.column1 AND state = 'pending'",
            values![now],
            oldest.iter().map(|(id, _)| values![*id]).collect(),
        )
        .await?;
    tx.execute_many(
        "UPDATE room_queues SET pending_count = ( \
             SELECT COUNT(*) FROM deliveries AS d WHERE d.webhook_id = room_queues.webhook_id \
                 AND COALESCE(d.queue, d.room_id) = room_queues.room_id AND d.state = 'pending') \
         FROM (VALUES {rows}) AS v WHERE webhook_id = $1 AND room_id = v.column1",
        values![webhook_id.0],
        rooms(&|room| values![room]),
    )
    .await?;
    Ok(given_up)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        store::outbox::tests::{put, webhook},
        testing::{self, START},
    };

    #[tokio::test]
    async fn queues_of_a_clock_that_was_ahead_wait_no_longer_than_their_schedule_says() {
        let after = |minutes| START.plus(Duration::from_mins(minutes));
        let never = Timestamp(0);
        // Failures, due, hold, and what they become.
        let queues = [
            ("!leased:x", 0, after(120), never, after(5), never),
            ("!fine:x", 1, after(9), never, after(9), never),
            ("!failed:x", 1, after(130), never, after(10), never),
            ("!long:x", 2, after(130), never, after(130), never),
            ("!held:x", 1, after(600), after(600), after(600), after(600)),
            ("!forever:x", 1, after(9000), after(9000), after(10), after(10)),
        ];
        let waits =
            || [(0, 5), (1, 10), (2, 180)].map(|(failures, wait)| (failures, Duration::from_mins(wait)));
        for test in testing::both().await {
            let store = &test.store;
            let (main, other) = (webhook(store, "main").await, webhook(store, "other").await);
            for (room, ..) in queues {
                put(store, &[main, other], &[(room, 1)], START).await;
            }
            let mut tx = store.begin().await.unwrap();
            for (room, failures, due, hold, ..) in queues {
                let sql = "UPDATE room_queues SET failures = $2, due_at = $3, lease_until = $4, hold_until = $5, \
                           scheduled_at = $3 WHERE room_id = $1";
                let lease = if failures == 0 { due } else { never };
                tx.execute(sql, values![room, i64::from(failures), due, lease, hold]).await.unwrap();
            }
            assert_eq!(cut_deadlines(&mut tx, main, waits(), START).await.unwrap(), 3);
            assert_eq!(cut_deadlines(&mut tx, main, waits(), START).await.unwrap(), 0);
            for (room, _, due, _, cut, hold) in queues {
                let sql = "SELECT due_at, hold_until FROM room_queues WHERE room_id = $1 AND webhook_id = $2";
                let row: Option<(i64, i64)> = tx.fetch_optional(sql, values![room, main.0]).await.unwrap();
                assert_eq!(row, Some((cut.0, hold.0)), "{room}");
                let row: Option<(i64, i64)> = tx.fetch_optional(sql, values![room, other.0]).await.unwrap();
                assert_eq!(row.map(|(due, _)| due), Some(due.0), "{room} of another webhook");
            }
        }
    }
}
