//! Writing deliveries, in the transaction that writes their messages: either both are there or neither.

use std::{collections::BTreeMap, time::Duration};

use ruma::RoomId;

use super::{
    super::{StoreError, Tx, db::values},
    SHARED,
};
use crate::{
    clock::Timestamp,
    model::{Flow, Ordering, WebhookId},
};

/// A stored message that is to be delivered.
#[derive(Clone, Debug)]
pub struct Queued<'a> {
    /// The webhooks that are told of it, and how.
    pub webhooks: Vec<(WebhookId, Flow)>,
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
    let mut flows = BTreeMap::<i64, Flow>::new();
    for message in messages {
        let room_id = message.room_id.as_str();
        for (webhook, flow) in &message.webhooks {
            let queue = (flow.ordering == Ordering::None).then_some(SHARED);
            deliveries.push(values![webhook.0, message.message_id, room_id, message.sequence, queue]);
            *counts.entry((webhook.0, queue.unwrap_or(room_id))).or_default() += 1;
            flows.insert(webhook.0, *flow);
        }
    }
    tx.execute_many(
        "INSERT INTO deliveries (webhook_id, message_id, room_id, sequence, queue, state, attempts, created_at) \
         SELECT v.column1, v.column2, v.column3, v.column4, v.column5, 'pending', 0, $1 \
         FROM (VALUES {rows}) AS v",
        values![now],
        deliveries,
    )
    .await?;
    let full = counts.keys().filter_map(|(webhook, queue)| {
        let flow = flows.get(webhook).filter(|flow| !flow.wait().is_zero())?;
        Some(values![*webhook, *queue, i64::try_from(flow.most()).unwrap_or(i64::MAX)])
    });
    let full: Vec<_> = full.collect();
    let wait = |webhook: i64| flows.get(&webhook).map(Flow::wait).unwrap_or_default();
    lengthen(tx, counts, now, wait).await?;
    tx.execute_many(FULL, values![now], full).await?;
    Ok(())
}

/// A queue in which messages wait for others to go along with, and which has enough of them, waits no longer.
pub(super) const FULL: &str = "UPDATE room_queues SET due_at = $1 FROM (VALUES {rows}) AS v \
     WHERE webhook_id = v.column1 AND room_id = v.column2 AND pending_count >= v.column3 AND due_at > $1 \
         AND failures = 0 AND lease_until <= $1 AND hold_until <= $1";

/// Adds to what queues have pending, by webhook and queue; sorted as they are, every writer locks them in this order.
/// One that was empty is due after its webhook's `wait`.
///
/// # Errors
/// When the database fails.
pub(super) async fn lengthen(
    tx: &mut Tx,
    counts: BTreeMap<(i64, &str), i64>,
    now: Timestamp,
    wait: impl Fn(i64) -> Duration,
) -> Result<(), StoreError> {
    let queues = counts
        .into_iter()
        .map(|((webhook, queue), count)| values![webhook, queue, count, now.plus(wait(webhook))])
        .collect();
    tx.execute_many(
        // A queue that has something pending already is due, backing off or claimed: its time stands.
        // (SQLite needs the WHERE to tell the upsert's ON from a join's.)
        "INSERT INTO room_queues \
             (webhook_id, room_id, pending_count, due_at, failures, lease_until, lease_token) \
         SELECT v.column1, v.column2, v.column3, v.column4, 0, 0, 0 FROM (VALUES {rows}) AS v WHERE true \
         ON CONFLICT (webhook_id, room_id) DO UPDATE SET \
             pending_count = room_queues.pending_count + excluded.pending_count, \
             due_at = CASE WHEN room_queues.pending_count = 0 THEN excluded.due_at \
                           ELSE room_queues.due_at END",
        vec![],
        queues,
    )
    .await?;
    Ok(())
}
