//! Writing deliveries, in the transaction that writes their messages: either both are there or neither.

use std::collections::BTreeMap;

use ruma::RoomId;

use super::super::{StoreError, Tx, db::values};
use crate::{clock::Timestamp, model::WebhookId};

/// A stored message that is to be delivered.
#[derive(Clone, Debug)]
pub struct Queued<'a> {
    /// The webhooks that are told of it.
    pub webhooks: Vec<WebhookId>,
    /// The message's id, which becomes the `webhook-id` of its deliveries.
    pub message_id: &'a str,
    /// The room whose order it keeps.
    pub room_id: &'a RoomId,
    /// Its number in the room; deliveries of a room are sent in this order.
    pub sequence: i64,
}

/// Adds a delivery of every message for each of its webhooks, in the transaction that stores the messages.
///
/// Call it once in a transaction and near its end: it locks the queues' rows, in the one order that keeps
/// it from deadlocking with [`finish`](super::finish()), and a dispatcher that wants to record an outcome for one of them
/// waits. After the commit, notify the dispatcher.
///
/// # Errors
/// When the database fails, or a message has a delivery for that webhook already.
pub async fn enqueue(tx: &mut Tx, messages: &[Queued<'_>], now: Timestamp) -> Result<(), StoreError> {
    let mut deliveries = Vec::with_capacity(messages.iter().map(|message| message.webhooks.len()).sum());
    // Sorted by its keys: every writer locks the rows of room_queues in this order.
    let mut counts = BTreeMap::<(i64, &str), i64>::new();
    for message in messages {
        let room_id = message.room_id.as_str();
        for webhook in &message.webhooks {
            deliveries.push(values![webhook.0, message.message_id, room_id, message.sequence]);
            *counts.entry((webhook.0, room_id)).or_default() += 1;
        }
    }
    tx.execute_many(
        "INSERT INTO deliveries (webhook_id, message_id, room_id, sequence, state, attempts, created_at) \
         SELECT v.column1, v.column2, v.column3, v.column4, 'pending', 0, $1 FROM (VALUES {rows}) AS v",
        values![now],
        deliveries,
    )
    .await?;
    lengthen(tx, counts, now).await
}

/// Adds to what queues have pending, by webhook and room; sorted as they are, every writer locks them in this order.
///
/// # Errors
/// When the database fails.
pub(super) async fn lengthen(
    tx: &mut Tx,
    counts: BTreeMap<(i64, &str), i64>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let queues = counts.into_iter().map(|((webhook, room), count)| values![webhook, room, count]).collect();
    tx.execute_many(
        // A queue that has something pending already is due, backing off or claimed: its time stands.
        // (SQLite needs the WHERE to tell the upsert's ON from a join's.)
        "INSERT INTO room_queues \
             (webhook_id, room_id, pending_count, due_at, failures, lease_until, lease_token) \
         SELECT v.column1, v.column2, v.column3, $1, 0, 0, 0 FROM (VALUES {rows}) AS v WHERE true \
         ON CONFLICT (webhook_id, room_id) DO UPDATE SET \
             pending_count = room_queues.pending_count + excluded.pending_count, \
             due_at = CASE WHEN room_queues.pending_count = 0 THEN excluded.due_at \
                           ELSE room_queues.due_at END",
        values![now],
        queues,
    )
    .await?;
    Ok(())
}
