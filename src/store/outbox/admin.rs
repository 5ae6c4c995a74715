//! Deliveries for people: looking at them, and sending them again.
//!
//! A delivery that is sent again is the same row, pending once more: it goes out under the same `webhook-id`, in its
//! room's order, before whatever of the room has not been sent yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    super::{
        Db, StoreError, Tx,
        db::{Locking, Values, locking, values},
    },
    enqueue::lengthen,
};
use crate::{
    clock::Timestamp,
    model::{DeliveryId, WebhookId},
};

/// A delivery as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// Where it goes.
    pub webhook_id: WebhookId,
    /// The message, the `webhook-id`.
    pub message_id: String,
    /// The message's place in the order of storing; the cursor of lists by time.
    pub position: i64,
    /// What the message tells.
    pub message_type: String,
    /// The room.
    pub room_id: String,
    /// The message's number in the room.
    pub sequence: i64,
    /// `pending`, `delivered` or `dead`.
    pub state: String,
    /// Attempts made so far.
    pub attempts: i64,
    /// The HTTP status of the last attempt, when there was an answer.
    pub last_status: Option<i64>,
    /// Why the last attempt failed, one word.
    pub last_error: Option<String>,
    /// How long the last attempt took, milliseconds.
    pub last_duration_ms: Option<i64>,
    /// When it was queued first.
    pub created_at: Timestamp,
    /// When it was delivered or given up.
    pub finished_at: Option<Timestamp>,
}

/// In which state deliveries can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Still to be sent.
    Pending,
    /// Taken by the webhook.
    Delivered,
    /// Given up.
    Dead,
}

impl State {
    /// The name in tables and answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
        }
    }

    /// The state of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Pending, Self::Delivered, Self::Dead].into_iter().find(|known| known.as_str() == name)
    }

    /// Whether deliveries in it are few among all, and have an index of their own.
    #[must_use]
    pub fn is_open(self) -> bool {
        self != Self::Delivered
    }
}

/// Which deliveries of a webhook.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// In this state alone.
    pub state: Option<State>,
    /// Of this room alone.
    pub room_id: Option<String>,
    /// Of messages stored at that time or later.
    pub since: Option<Timestamp>,
    /// Of messages stored before that time.
    pub until: Option<Timestamp>,
}

/// Delivery, webhook, message, position, type, room, sequence; state, attempts, status, error, duration; queued,
/// finished.
type Row = (
    i64,
    i64,
    String,
    i64,
    String,
    String,
    i64,
    String,
    i64,
    Option<i64>,
    Option<String>,
    Option<i64>,
    i64,
    Option<i64>,
);

fn listed(row: Row) -> Listed {
    Listed {
        delivery_id: DeliveryId(row.0),
        webhook_id: WebhookId(row.1),
        message_id: row.2,
        position: row.3,
        message_type: row.4,
        room_id: row.5,
        sequence: row.6,
        state: row.7,
        attempts: row.8,
        last_status: row.9,
        last_error: row.10,
        last_duration_ms: row.11,
        created_at: Timestamp(row.12),
        finished_at: row.13.map(Timestamp),
    }
}

/// The columns of [`Row`], then the rest of a statement.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT d.delivery_id, d.webhook_id, d.message_id, m.position, m.type, d.room_id, d.sequence, d.state, \
             d.attempts, d.last_status, d.last_error, d.last_duration_ms, d.created_at, d.finished_at ",
            $rest
        )
    };
}

// SQLite takes CROSS JOIN for the order in which to go through the tables; PostgreSQL needs no telling.

/// Along the messages, newest first.
pub(super) const BY_TIME: &str = select!(
    "FROM messages AS m CROSS JOIN deliveries AS d \
     WHERE d.message_id = m.message_id AND d.webhook_id = $1 AND m.position < $2 AND (d.state = $3 OR $3 IS NULL) \
     AND (m.created_at >= $4 OR $4 IS NULL) AND (m.created_at < $5 OR $5 IS NULL) AND ($6 IS NULL OR m.room_id = $6) \
     ORDER BY m.position DESC LIMIT $7"
);

/// Along one room's messages, newest first.
pub(super) const BY_ROOM: &str = select!(
    "FROM messages AS m CROSS JOIN deliveries AS d \
     WHERE d.message_id = m.message_id AND d.webhook_id = $1 AND m.room_id = $6 AND m.position < $2 AND (d.state = $3 OR $3 IS NULL) \
     AND (m.created_at >= $4 OR $4 IS NULL) AND (m.created_at < $5 OR $5 IS NULL) \
     ORDER BY m.position DESC LIMIT $7"
);

/// Along the deliveries that are not done, newest first.
pub(super) const OPEN: &str = select!(
    "FROM deliveries AS d CROSS JOIN messages AS m \
     WHERE m.message_id = d.message_id AND d.webhook_id = $1 AND d.state = $3 AND d.state <> 'delivered' AND d.delivery_id < $2 \
     AND (m.created_at >= $4 OR $4 IS NULL) AND (m.created_at < $5 OR $5 IS NULL) \
     AND (d.room_id = $6 OR $6 IS NULL) AND m.position IS NOT NULL \
     ORDER BY d.delivery_id DESC LIMIT $7"
);

/// Deliveries of a webhook before a place, newest first. The place is a delivery's id where the filter names a
/// state that [is open](State::is_open), else a position.
///
/// # Errors
/// When the database fails.
pub async fn page(
    db: &Db,
    webhook_id: WebhookId,
    filter: &Filter,
    before: i64,
    limit: u16,
) -> Result<Vec<Listed>, StoreError> {
    let sql = match filter {
        Filter { state: Some(state), .. } if state.is_open() => OPEN,
        Filter { room_id: Some(_), .. } => BY_ROOM,
        _ => BY_TIME,
    };
    let values = values![
        webhook_id.0,
        before,
        filter.state.map(State::as_str),
        filter.since,
        filter.until,
        filter.room_id.as_deref(),
        i64::from(limit),
    ];
    let rows: Vec<Row> = db.fetch_all(sql, values).await?;
    Ok(rows.into_iter().map(listed).collect())
}

const FIND: &str = select!(
    "FROM deliveries AS d JOIN messages AS m ON m.message_id = d.message_id \
     WHERE d.delivery_id = $1 AND m.position IS NOT NULL"
);

/// A delivery by its id.
///
/// # Errors
/// When the database fails.
pub async fn find(db: &Db, id: DeliveryId) -> Result<Option<Listed>, StoreError> {
    let row: Option<Row> = db.fetch_optional(FIND, values![id.0]).await?;
    Ok(row.map(listed))
}

/// The deliveries to a webhook of these messages.
///
/// # Errors
/// When the database fails.
pub async fn of_messages(
    db: &Db,
    webhook_id: WebhookId,
    message_ids: &[String],
) -> Result<Vec<DeliveryId>, StoreError> {
    let rows: Vec<(i64,)> = db
        .fetch_many(
            "SELECT delivery_id FROM deliveries WHERE webhook_id = $1 AND message_id IN (VALUES {rows})",
            values![webhook_id.0],
            message_ids.iter().map(|id| values![id.as_str()]).collect(),
        )
        .await?;
    Ok(rows.into_iter().map(|(id,)| DeliveryId(id)).collect())
}

pub(super) const FINISHED: &str = "SELECT d.delivery_id, m.position \
     FROM messages AS m CROSS JOIN deliveries AS d \
     WHERE d.message_id = m.message_id AND d.webhook_id = $1 AND m.position > $2 AND m.created_at >= $3 AND (m.created_at < $4 OR $4 IS NULL) \
     AND d.state <> 'pending' AND (d.state = $5 OR $5 IS NULL) AND (d.room_id = $6 OR $6 IS NULL) \
     ORDER BY m.position LIMIT $7";

/// Deliveries of a webhook that are done, of messages after a position, in their order: what can be sent again.
///
/// # Errors
/// When the database fails.
pub async fn finished(
    db: &Db,
    webhook_id: WebhookId,
    filter: &Filter,
    after: i64,
    limit: u16,
) -> Result<Vec<(DeliveryId, i64)>, StoreError> {
    let values: Values = values![
        webhook_id.0,
        after,
        filter.since.unwrap_or_default(),
        filter.until,
        filter.state.map(State::as_str),
        filter.room_id.as_deref(),
        i64::from(limit),
    ];
    let rows: Vec<(i64, i64)> = db.fetch_all(FINISHED, values).await?;
    Ok(rows.into_iter().map(|(id, position)| (DeliveryId(id), position)).collect())
}

pub(super) const QUEUES: &str = "SELECT webhook_id, CASE WHEN queue IS NULL THEN room_id ELSE '*' END FROM deliveries \
     WHERE state <> 'pending' AND delivery_id IN (VALUES {rows})";

pub(super) const LOCK: Locking = locking!(
    "SELECT q.webhook_id, q.room_id FROM room_queues AS q JOIN (VALUES {rows}) AS v \
         ON q.webhook_id = v.column1 AND q.room_id = v.column2",
    // As `finish` and `enqueue` lock them.
    "ORDER BY q.webhook_id, q.room_id COLLATE \"C\" FOR UPDATE OF q",
    ""
);

pub(super) const AGAIN: &str = "UPDATE deliveries SET state = 'pending', attempts = 0, finished_at = NULL, \
         queue = CASE WHEN queue IS NULL THEN NULL ELSE '*' END \
     WHERE state <> 'pending' AND delivery_id IN (VALUES {rows}) AND EXISTS ( \
         SELECT 1 FROM messages AS m WHERE m.message_id = deliveries.message_id AND LENGTH(m.payload) > 0) \
     RETURNING webhook_id, COALESCE(queue, room_id)";

/// Makes deliveries that are done pending again, and answers how many: those that are pending already stay so,
/// and those whose message's content was deleted cannot be sent. After the commit, notify the dispatcher.
///
/// # Errors
/// When the database fails.
pub async fn resend(tx: &mut Tx, ids: &[DeliveryId], now: Timestamp) -> Result<u64, StoreError> {
    let rows = || ids.iter().map(|id| values![id.0]).collect::<Vec<_>>();
    let queues: Vec<(i64, String)> = tx.fetch_many(QUEUES, vec![], rows()).await?;
    let queues: BTreeSet<(i64, String)> = queues.into_iter().collect();
    let locks = queues.iter().map(|(webhook, room)| values![*webhook, room.as_str()]).collect();
    let lock = tx.text(LOCK);
    let _: Vec<(i64, String)> = tx.fetch_many(lock, vec![], locks).await?;
    let again: Vec<(i64, String)> = tx.fetch_many(AGAIN, vec![], rows()).await?;
    let mut counts = BTreeMap::<(i64, &str), i64>::new();
    for (webhook, room) in &again {
        *counts.entry((*webhook, room.as_str())).or_default() += 1;
    }
    lengthen(tx, counts, now, |_| Duration::ZERO).await?;
    Ok(again.len() as u64)
}

pub(super) const DEAD: &str = "SELECT webhook_id, COUNT(*), MIN(created_at) FROM deliveries \
     WHERE state = 'dead' AND state <> 'delivered' GROUP BY webhook_id";

/// How many deliveries are given up, by webhook, and when the oldest was queued.
///
/// # Errors
/// When the database fails.
pub async fn given_up(db: &Db) -> Result<BTreeMap<WebhookId, (u64, Timestamp)>, StoreError> {
    let rows: Vec<(i64, i64, i64)> = db.fetch_all(DEAD, vec![]).await?;
    let entry = |(id, count, oldest): (i64, i64, i64)| {
        (WebhookId(id), (u64::try_from(count).unwrap_or(0), Timestamp(oldest)))
    };
    Ok(rows.into_iter().map(entry).collect())
}

#[cfg(test)]
mod tests;
