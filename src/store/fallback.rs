//! What goes from a store that stood in for this one into it: messages with their deliveries, events that wait,
//! transactions that were not worked through, and what tells a replay.
//!
//! All of it is read page by page and written so that writing it again changes nothing. Room keys go through the
//! crypto store.

use std::collections::{BTreeMap, HashMap};

use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, TransactionId, user_id};

use super::{
    Db, Seal, StoreError, Tx,
    db::{Values, values},
    inbox,
    messages::{self, MegolmIndex, TABLE},
    outbox::{self, Queued, SHARED},
    redacted, rooms,
};
use crate::{
    clock::Timestamp,
    model::{Direction, Flow, Message, MessageId, MessageType, WebhookId},
};

/// A message of the other store.
#[derive(Clone, Debug)]
pub struct Carried {
    /// The message; its payload is empty once it was deleted for its age.
    pub message: Message,
    /// Its place in the other store.
    pub position: i64,
    /// When its content was deleted for its age.
    pub purged_at: Option<Timestamp>,
    /// When its event was taken back.
    pub redacted_at: Option<Timestamp>,
    /// Its deliveries.
    pub deliveries: Vec<Delivery>,
}

impl Carried {
    /// Whether a webhook may have seen it.
    #[must_use]
    pub fn was_sent(&self) -> bool {
        self.deliveries.iter().any(|delivery| delivery.attempts > 0 || delivery.state != "pending")
    }
}

/// A delivery of the other store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The webhook's name in the settings.
    pub webhook: String,
    /// `pending`, `delivered` or `dead`.
    pub state: String,
    attempts: i64,
    last_status: Option<i64>,
    last_error: Option<String>,
    last_duration_ms: Option<i64>,
    last_attempt_at: Option<i64>,
    created_at: i64,
    finished_at: Option<i64>,
    /// Whether it keeps its room's order.
    is_ordered: bool,
}

/// Id, event, room, sequence, type, network, direction, sender, time, payload, replaced event; position; purged,
/// redacted.
type MessageRow = (
    String,
    String,
    String,
    i64,
    String,
    Option<String>,
    String,
    String,
    i64,
    Vec<u8>,
    Option<String>,
    i64,
    Option<i64>,
    Option<i64>,
);

const MESSAGES: &str = "SELECT message_id, event_id, room_id, sequence, type, network, direction, sender, \
         origin_server_ts, payload, replaces, position, purged_at, redacted_at \
     FROM messages WHERE position > $1 AND type <> 'webhook.test' ORDER BY position LIMIT $2";

fn carried(seal: &Seal, row: MessageRow) -> Result<Carried, StoreError> {
    const CORRUPT: StoreError = StoreError::Corrupt(TABLE);
    let payload = if row.9.is_empty() { Vec::new() } else { seal.open(TABLE, &row.0, &row.9)? };
    let read: serde_json::Value = serde_json::from_slice(&payload).unwrap_or_default();
    let encrypted = read.pointer("/data/encryption/encrypted").and_then(serde_json::Value::as_bool);
    let event_id = |id: String| OwnedEventId::try_from(id).map_err(|_| CORRUPT);
    let message = Message {
        message_id: MessageId(row.0),
        event_id: event_id(row.1)?,
        room_id: OwnedRoomId::try_from(row.2).map_err(|_| CORRUPT)?,
        sequence: u64::try_from(row.3).map_err(|_| CORRUPT)?,
        message_type: MessageType::parse(&row.4).ok_or(CORRUPT)?,
        network: row.5,
        direction: Direction::parse(&row.6).ok_or(CORRUPT)?,
        sender: sender(row.7, row.12.is_some())?,
        origin_server_ts: Timestamp(row.8),
        replaces: row.10.map(event_id).transpose()?,
        kind: None,
        encrypted: encrypted.unwrap_or(false),
        trust: None,
        payload,
    };
    let (purged_at, redacted_at) = (row.12.map(Timestamp), row.13.map(Timestamp));
    Ok(Carried { message, position: row.11, purged_at, redacted_at, deliveries: Vec::new() })
}

/// The sender of a message; of one whose content was deleted, which has none any more, a user that there cannot be.
fn sender(sender: String, is_purged: bool) -> Result<OwnedUserId, StoreError> {
    if is_purged && sender.is_empty() {
        return Ok(user_id!("@:purged.invalid").to_owned());
    }
    OwnedUserId::try_from(sender).map_err(|_| StoreError::Corrupt(TABLE))
}

/// Message, webhook, state; attempts, status, error, duration, time of the last; queued, finished; queue.
type DeliveryRow = (
    String,
    String,
    String,
    i64,
    Option<i64>,
    Option<String>,
    Option<i64>,
    Option<i64>,
    i64,
    Option<i64>,
    Option<String>,
);

const DELIVERIES: &str = "SELECT d.message_id, w.name, d.state, d.attempts, d.last_status, d.last_error, \
         d.last_duration_ms, d.last_attempt_at, d.created_at, d.finished_at, d.queue \
     FROM (VALUES {rows}) AS v JOIN deliveries AS d ON d.message_id = v.column1 \
     JOIN webhooks AS w ON w.webhook_id = d.webhook_id";

/// Messages of the other store after a position in it, in their order, with their deliveries.
///
/// # Errors
/// When the database fails or a payload does not open.
pub async fn messages(db: &Db, seal: &Seal, after: i64, most: i64) -> Result<Vec<Carried>, StoreError> {
    let rows: Vec<MessageRow> = db.fetch_all(MESSAGES, values![after, most]).await?;
    let mut found = rows.into_iter().map(|row| carried(seal, row)).collect::<Result<Vec<_>, _>>()?;
    let ids = found.iter().map(|carried| values![carried.message.message_id.as_str()]).collect();
    let rows: Vec<DeliveryRow> = db.fetch_many(DELIVERIES, vec![], ids).await?;
    let mut deliveries = HashMap::<String, Vec<Delivery>>::new();
    for row in rows {
        deliveries.entry(row.0).or_default().push(Delivery {
            webhook: row.1,
            state: row.2,
            attempts: row.3,
            last_status: row.4,
            last_error: row.5,
            last_duration_ms: row.6,
            last_attempt_at: row.7,
            created_at: row.8,
            finished_at: row.9,
            is_ordered: row.10.is_none(),
        });
    }
    for carried in &mut found {
        carried.deliveries = deliveries.remove(carried.message.message_id.as_str()).unwrap_or_default();
    }
    Ok(found)
}

/// Gives messages the numbers after the last of their rooms, in their order, and notes those as the rooms' last; rooms
/// that are not known are made, with their state to be read. For whoever numbers messages, who holds the crypto lease.
///
/// # Errors
/// When the database fails.
pub async fn number(tx: &mut Tx, messages: &mut [Carried], now: Timestamp) -> Result<(), StoreError> {
    let ids: Vec<OwnedRoomId> = messages.iter().map(|carried| carried.message.room_id.clone()).collect();
    let mut ids: Vec<&RoomId> = ids.iter().map(|id| &**id).collect();
    ids.sort_unstable();
    ids.dedup();
    rooms::ensure(tx, &ids, now).await?;
    let found: Vec<(String, i64)> = tx
        .fetch_many(
            "SELECT r.room_id, r.last_sequence FROM (VALUES {rows}) AS v JOIN rooms AS r ON r.room_id = v.column1",
            vec![],
            ids.iter().map(|id| values![id.as_str()]).collect(),
        )
        .await?;
    let mut last: BTreeMap<String, i64> = found.into_iter().collect();
    for id in &ids {
        let stored = messages::next_sequence(tx, id).await? - 1;
        let known = last.entry(id.to_string()).or_default();
        *known = stored.max(*known);
    }
    for carried in messages {
        let number = last.entry(carried.message.room_id.to_string()).or_default();
        *number += 1;
        carried.message.sequence = u64::try_from(*number).map_err(|_| StoreError::Corrupt("rooms"))?;
    }
    let last: Vec<_> =
        ids.iter().filter_map(|id| Some(((*id).to_owned(), last.get(id.as_str()).copied()?))).collect();
    rooms::put_sequences(tx, &last).await
}

/// The number of each webhook by its name in the settings, and how it is sent to.
pub type Webhooks = BTreeMap<String, (WebhookId, Flow)>;

/// Stores messages that are not known yet, with their deliveries: what is pending is to be sent, the rest is kept as
/// it was.
///
/// # Errors
/// When the database fails, or a message is known.
pub async fn put_messages(
    tx: &mut Tx,
    seal: &Seal,
    carried: &[Carried],
    webhooks: &Webhooks,
    now: Timestamp,
) -> Result<(), StoreError> {
    let stored: Vec<Message> = carried.iter().map(|carried| carried.message.clone()).collect();
    messages::insert(tx, seal, &stored, now).await?;
    let marked = |at: fn(&Carried) -> Option<Timestamp>| -> Vec<Values> {
        let marked = carried.iter().filter_map(|one| Some((one.message.message_id.as_str(), at(one)?)));
        marked.map(|(id, at)| values![id, at]).collect()
    };
    tx.execute_many(
        "UPDATE messages SET redacted_at = v.column2 FROM (VALUES {rows}) AS v WHERE message_id = v.column1",
        vec![],
        marked(|carried| carried.redacted_at),
    )
    .await?;
    tx.execute_many(
        "UPDATE messages SET purged_at = v.column2, payload = $1, sender = '' FROM (VALUES {rows}) AS v \
         WHERE message_id = v.column1",
        values![Vec::<u8>::new()],
        marked(|carried| carried.purged_at),
    )
    .await?;
    let mut queued = Vec::new();
    let mut finished = Vec::new();
    for Carried { message, deliveries, .. } in carried {
        let sequence = i64::try_from(message.sequence).map_err(|_| StoreError::Corrupt(TABLE))?;
        let mut pending = Vec::new();
        for delivery in deliveries {
            let Some((id, flow)) = webhooks.get(&delivery.webhook) else { continue };
            if delivery.state == "pending" {
                pending.push((*id, *flow));
            } else {
                finished.push((id.0, message, sequence, delivery));
            }
        }
        if !pending.is_empty() {
            let (message_id, room_id) = (message.message_id.as_str(), &*message.room_id);
            queued.push(Queued { webhooks: pending, message_id, room_id, sequence });
        }
    }
    for (webhook, message, sequence, delivery) in finished {
        put_finished(tx, webhook, message, sequence, delivery).await?;
    }
    outbox::enqueue(tx, &queued, now).await
}

// One by one: columns that may all be NULL have no type in a list of values.
async fn put_finished(
    tx: &mut Tx,
    webhook: i64,
    message: &Message,
    sequence: i64,
    delivery: &Delivery,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO deliveries (webhook_id, message_id, room_id, sequence, queue, state, attempts, last_status, \
         last_error, last_duration_ms, last_attempt_at, created_at, finished_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) \
         ON CONFLICT (message_id, webhook_id) DO NOTHING",
        values![
            webhook,
            message.message_id.as_str(),
            message.room_id.as_str(),
            sequence,
            (!delivery.is_ordered).then_some(SHARED),
            delivery.state.as_str(),
            delivery.attempts,
            delivery.last_status,
            delivery.last_error.as_deref(),
            delivery.last_duration_ms,
            delivery.last_attempt_at,
            delivery.created_at,
            delivery.finished_at,
        ],
    )
    .await?;
    Ok(())
}

/// An event of the other store that waits. What it is, is sealed there and here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its place in the other store.
    pub position: i64,
    /// The event.
    pub event_id: String,
    room_id: String,
    session_id: Option<String>,
    sender: String,
    state: String,
    reason: String,
    event: Vec<u8>,
    origin_server_ts: i64,
    received_at: i64,
    tries: i64,
    tried_at: Option<i64>,
    notified_at: Option<i64>,
    rank: i64,
}

const WAITING: &str = "pending_events";

/// Position, event id, room, session, sender, state, reason, event, time; received, tries, tried, told, rank.
type WaitingRow = (
    i64,
    String,
    String,
    Option<String>,
    String,
    String,
    String,
    Vec<u8>,
    i64,
    i64,
    i64,
    Option<i64>,
    Option<i64>,
    i64,
);

/// Events that wait in the other store, after a position in it and in their order.
///
/// # Errors
/// When the database fails or an event does not open.
pub async fn waiting(db: &Db, seal: &Seal, after: i64, most: i64) -> Result<Vec<Waiting>, StoreError> {
    let rows: Vec<WaitingRow> = db
        .fetch_all(
            "SELECT position, event_id, room_id, session_id, sender, state, reason, event, origin_server_ts, \
             received_at, tries, tried_at, notified_at, rank FROM pending_events \
             WHERE position > $1 ORDER BY position LIMIT $2",
            values![after, most],
        )
        .await?;
    let open = |row: WaitingRow| {
        let event = seal.open(WAITING, &row.1, &row.7)?;
        Ok(Waiting {
            position: row.0,
            event_id: row.1,
            room_id: row.2,
            session_id: row.3,
            sender: row.4,
            state: row.5,
            reason: row.6,
            event,
            origin_server_ts: row.8,
            received_at: row.9,
            tries: row.10,
            tried_at: row.11,
            notified_at: row.12,
            rank: row.13,
        })
    };
    rows.into_iter().map(open).collect()
}

/// Keeps events that wait; one that waits here already keeps its place.
///
/// # Errors
/// When the database fails.
pub async fn put_waiting(tx: &mut Tx, seal: &Seal, events: &[Waiting]) -> Result<(), StoreError> {
    for event in events {
        tx.execute(
            "INSERT INTO pending_events (event_id, room_id, session_id, sender, state, reason, event, \
             origin_server_ts, received_at, tries, tried_at, notified_at, rank) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) ON CONFLICT (event_id) DO NOTHING",
            values![
                event.event_id.as_str(),
                event.room_id.as_str(),
                event.session_id.as_deref(),
                event.sender.as_str(),
                event.state.as_str(),
                event.reason.as_str(),
                seal.seal(WAITING, &event.event_id, &event.event)?,
                event.origin_server_ts,
                event.received_at,
                event.tries,
                event.tried_at,
                event.notified_at,
                event.rank,
            ],
        )
        .await?;
    }
    Ok(())
}

/// Places of Megolm sessions that were used in the other store, with their events, after one of them and in order.
///
/// # Errors
/// When the database fails.
pub async fn used_indexes(
    db: &Db,
    (room, session, index): &MegolmIndex,
    most: i64,
) -> Result<Vec<(MegolmIndex, String)>, StoreError> {
    let rows: Vec<(String, String, i64, String)> = db
        .fetch_all(
            "SELECT room_id, session_id, message_index, event_id FROM megolm_indexes \
             WHERE (room_id, session_id, message_index) > ($1, $2, $3) \
             ORDER BY room_id, session_id, message_index LIMIT $4",
            values![room.as_str(), session.as_str(), *index, most],
        )
        .await?;
    Ok(rows.into_iter().map(|(room, session, index, event)| ((room, session, index), event)).collect())
}

/// Events that were taken back in the other store before they were relayed, after one of them and in order.
///
/// # Errors
/// When the database fails.
pub async fn taken_back(
    db: &Db,
    (room, event): &redacted::Target,
    most: i64,
) -> Result<Vec<redacted::Target>, StoreError> {
    db.fetch_all(
        "SELECT room_id, event_id FROM redacted_events WHERE (room_id, event_id) > ($1, $2) \
         ORDER BY room_id, event_id LIMIT $3",
        values![room.as_str(), event.as_str(), most],
    )
    .await
}

/// A transaction of the homeserver that was not worked through in the other store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Its number there.
    pub inbox_id: i64,
    txn_id: String,
    body: Vec<u8>,
    received_at: Timestamp,
}

/// Number, id, hash, body, time.
type TransactionRow = (i64, String, Vec<u8>, Vec<u8>, i64);

/// Transactions that were not worked through in the other store, after a number and in their order.
///
/// # Errors
/// When the database fails or a body does not open.
pub async fn transactions(
    db: &Db,
    seal: &Seal,
    after: i64,
    most: i64,
) -> Result<Vec<Transaction>, StoreError> {
    let rows: Vec<TransactionRow> = db
        .fetch_all(
            "SELECT inbox_id, txn_id, content_hash, body, received_at FROM inbox \
             WHERE processed_at IS NULL AND source = 'push' AND txn_id IS NOT NULL AND body IS NOT NULL \
             AND inbox_id > $1 ORDER BY inbox_id LIMIT $2",
            values![after, most],
        )
        .await?;
    rows.into_iter()
        .map(|(inbox_id, txn_id, hash, body, received_at)| {
            let body = inbox::open_body(seal, &hash, &body)?;
            Ok(Transaction { inbox_id, txn_id, body, received_at: Timestamp(received_at) })
        })
        .collect()
}

/// Stores transactions; those that are known change nothing.
///
/// # Errors
/// When the database fails.
pub async fn put_transactions(
    tx: &mut Tx,
    seal: &Seal,
    transactions: &[Transaction],
) -> Result<(), StoreError> {
    for transaction in transactions {
        let body = inbox::seal_body(seal, &transaction.body)?;
        let txn_id: &TransactionId = transaction.txn_id.as_str().into();
        inbox::accept(tx, txn_id, body, transaction.received_at).await?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "conformance/fallback.rs"]
mod conformance;
