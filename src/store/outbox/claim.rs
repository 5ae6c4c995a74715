//! Claiming queues and loading what is to be sent.
//!
//! A claim whose process dies is due again when its lease ends.

use std::{collections::BTreeMap, time::Duration};

use super::super::{
    Db, Seal, StoreError, Tx,
    db::{Locking, locking, values},
};
use crate::{
    clock::Timestamp,
    model::{DeliveryId, WebhookId},
};

/// A queue that is this dispatcher's until its lease ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// Where its deliveries go.
    pub webhook_id: WebhookId,
    /// The room; with [no order](crate::model::Ordering::None) the queue, whose name begins with no `!`.
    pub room_id: String,
    /// Failed attempts of the schedule since the last success.
    pub failures: u32,
    /// When the next attempt counts as one of the schedule's.
    pub scheduled_at: Timestamp,
    /// Until when the receiver asked to be left alone with this room.
    pub hold_until: Timestamp,
    /// The last of the messages, by number, that go together in the batch that was begun.
    pub batch_until: Option<i64>,
    /// Proves the claim when its outcome is recorded.
    pub(super) token: i64,
}

/// A delivery that is to be sent.
#[derive(Debug)]
pub struct Loaded {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// The message's id, the same for every attempt.
    pub message_id: String,
    /// Its number in its room.
    pub sequence: i64,
    /// Attempts made so far.
    pub attempts: u32,
    /// The JSON body, or why it cannot be had: that must stop its own queue, not all of them.
    pub payload: Result<Vec<u8>, StoreError>,
}

pub(super) const NEXT_DUE: &str = "SELECT v.column1, \
         (SELECT MIN(q.due_at) FROM room_queues AS q WHERE q.webhook_id = v.column1 AND q.pending_count > 0) \
     FROM (VALUES {rows}) AS v \
     JOIN webhooks AS w ON w.webhook_id = v.column1 AND w.disabled_at IS NULL";

/// The webhooks among these that have something pending, each with the time at which it is next due; those that are
/// disabled left out.
///
/// A cheap look before a claim, which is a write.
///
/// # Errors
/// When the database fails.
pub async fn next_due(
    db: &Db,
    webhooks: impl IntoIterator<Item = WebhookId>,
) -> Result<Vec<(WebhookId, Timestamp)>, StoreError> {
    let rows = webhooks.into_iter().map(|id| values![id.0]).collect();
    let found: Vec<(i64, Option<i64>)> = db.fetch_many(NEXT_DUE, vec![], rows).await?;
    Ok(found.into_iter().filter_map(|(id, due_at)| Some((WebhookId(id), Timestamp(due_at?)))).collect())
}

pub(super) const CLAIM: Locking = locking!(
    // MATERIALIZED: PostgreSQL must not run the inner SELECT twice, which would lock more than the limit.
    "WITH due AS MATERIALIZED ( \
         SELECT webhook_id, room_id FROM room_queues \
         WHERE webhook_id = $1 AND pending_count > 0 AND due_at <= $2 ORDER BY due_at LIMIT $4",
    "FOR UPDATE SKIP LOCKED",
    ") UPDATE room_queues SET due_at = $3, lease_until = $3, lease_token = room_queues.lease_token + 1 \
     FROM due WHERE room_queues.webhook_id = due.webhook_id AND room_queues.room_id = due.room_id \
     RETURNING room_queues.room_id, room_queues.failures, room_queues.scheduled_at, \
         room_queues.hold_until, room_queues.batch_until, room_queues.lease_token"
);

/// Room, failures, `scheduled_at`, `hold_until`, `batch_until`, token.
pub(super) type ClaimRow = (String, i64, i64, i64, Option<i64>, i64);

pub(super) fn claimed(webhook_id: WebhookId, row: ClaimRow) -> Claimed {
    let (room_id, failures, scheduled_at, hold_until, batch_until, token) = row;
    Claimed {
        webhook_id,
        room_id,
        failures: u32::try_from(failures).unwrap_or(u32::MAX),
        scheduled_at: Timestamp(scheduled_at),
        hold_until: Timestamp(hold_until),
        batch_until,
        token,
    }
}

/// Claims up to `most` queues of a webhook that are due, the longest due first, until `now` plus `lease`.
///
/// A queue whose lease has ended is due again. Commit before sending anything.
///
/// # Errors
/// When the database fails.
pub async fn claim_due(
    tx: &mut Tx,
    webhook_id: WebhookId,
    now: Timestamp,
    lease: Duration,
    most: usize,
) -> Result<Vec<Claimed>, StoreError> {
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let sql = tx.text(CLAIM);
    let rows: Vec<ClaimRow> = tx.fetch_all(sql, values![webhook_id.0, now, now.plus(lease), most]).await?;
    Ok(rows.into_iter().map(|row| claimed(webhook_id, row)).collect())
}

pub(super) const RENEW: Locking = locking!(
    "WITH held AS MATERIALIZED ( \
         SELECT q.webhook_id, q.room_id FROM room_queues AS q JOIN (VALUES {rows}) AS v \
         ON q.webhook_id = v.column1 AND q.room_id = v.column2 AND q.lease_token = v.column3",
    // The order in which `enqueue` and `finish` lock them; otherwise they could deadlock.
    "ORDER BY q.webhook_id, q.room_id COLLATE \"C\" FOR UPDATE OF q",
    ") UPDATE room_queues SET due_at = $1, lease_until = $1 FROM held \
     WHERE room_queues.webhook_id = held.webhook_id AND room_queues.room_id = held.room_id \
     RETURNING room_queues.webhook_id, room_queues.room_id"
);

/// Makes claims last until `now` plus `lease`, also such as have ended, as long as nobody else has claimed the
/// queue. Answers the queues that are still held, in no order.
///
/// # Errors
/// When the database fails; the claims then last as long as before.
pub async fn renew(
    tx: &mut Tx,
    claims: &[&Claimed],
    now: Timestamp,
    lease: Duration,
) -> Result<Vec<(WebhookId, String)>, StoreError> {
    let mut claims = claims.to_vec();
    claims.sort_by(|a, b| (a.webhook_id, &a.room_id).cmp(&(b.webhook_id, &b.room_id)));
    let rows = claims.iter().map(|claim| values![claim.webhook_id.0, claim.room_id.as_str(), claim.token]);
    let sql = tx.text(RENEW);
    let held: Vec<(i64, String)> = tx.fetch_many(sql, values![now.plus(lease)], rows.collect()).await?;
    Ok(held.into_iter().map(|(webhook, room)| (WebhookId(webhook), room)).collect())
}

/// Both look into the index once for each queue whatever their statistics say: after a calm night those say that next to
/// nothing is pending, and a plain join then reads all that is for each load, be it a million. PostgreSQL cannot do a
/// lateral join with a limit otherwise, and SQLite leaves a cross join in its order.
pub(super) const LOAD: Locking = Locking {
    postgres: "SELECT c.column1, c.column2, d.delivery_id, d.message_id, d.sequence, d.attempts, m.payload \
         FROM (VALUES {rows}) AS c \
         CROSS JOIN LATERAL ( \
             SELECT delivery_id, message_id, sequence, attempts FROM deliveries \
             WHERE webhook_id = c.column1 AND COALESCE(queue, room_id) = c.column2 AND state = 'pending' \
             ORDER BY sequence, delivery_id LIMIT $1) AS d \
         LEFT JOIN messages AS m ON m.message_id = d.message_id \
         ORDER BY c.column1, c.column2, d.sequence, d.delivery_id",
    sqlite: "WITH claimed AS MATERIALIZED ( \
             SELECT v.column1 AS webhook_id, v.column2 AS room_id, COALESCE( \
                 (SELECT last.sequence FROM deliveries AS last \
                  WHERE last.webhook_id = v.column1 AND COALESCE(last.queue, last.room_id) = v.column2 \
                      AND last.state = 'pending' \
                  ORDER BY last.sequence LIMIT 1 OFFSET $1 - 1), \
                 9223372036854775807) AS last_sequence \
             FROM (VALUES {rows}) AS v) \
         SELECT c.webhook_id, c.room_id, d.delivery_id, d.message_id, d.sequence, d.attempts, m.payload \
         FROM claimed AS c \
         CROSS JOIN deliveries AS d ON d.webhook_id = c.webhook_id AND COALESCE(d.queue, d.room_id) = c.room_id \
             AND d.state = 'pending' AND d.sequence <= c.last_sequence \
         LEFT JOIN messages AS m ON m.message_id = d.message_id \
         ORDER BY c.webhook_id, c.room_id, d.sequence, d.delivery_id",
};

/// The first deliveries of each claimed queue, `most` at most of each, in the order of their room.
///
/// Answers one list for each of `claimed`, in the same order; none of them empty in a store whose counts
/// are right.
///
/// # Errors
/// When the database fails. A payload that does not open is no error here.
pub async fn load(
    db: &Db,
    seal: &Seal,
    claimed: &[Claimed],
    most: usize,
) -> Result<Vec<Vec<Loaded>>, StoreError> {
    type Row = (i64, String, i64, String, i64, i64, Option<Vec<u8>>);
    let most = i64::try_from(most.max(1)).unwrap_or(i64::MAX);
    let queues = claimed.iter().map(|queue| values![queue.webhook_id.0, queue.room_id.as_str()]).collect();
    let rows: Vec<Row> = db.fetch_many(db.text(LOAD), values![most], queues).await?;
    let mut loaded = BTreeMap::<(i64, String), Vec<Loaded>>::new();
    for (webhook_id, room_id, delivery_id, message_id, sequence, attempts, sealed) in rows {
        let payload = match sealed {
            Some(sealed) => seal.open("messages", &message_id, &sealed),
            None => Err(StoreError::Corrupt("deliveries")),
        };
        loaded.entry((webhook_id, room_id)).or_default().push(Loaded {
            delivery_id: DeliveryId(delivery_id),
            message_id,
            sequence,
            attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
            payload,
        });
    }
    let mut of = |queue: &Claimed| loaded.remove(&(queue.webhook_id.0, queue.room_id.clone()));
    Ok(claimed.iter().map(|queue| of(queue).unwrap_or_default()).collect())
}
