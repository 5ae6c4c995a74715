//! Deleting what has been kept long enough, in batches.
//!
//! Each function takes the oldest [`BATCH`] rows through an index and answers how many there were: as many as
//! that, and there may be more. What a batch does twice it does once, so a process that dies, or another
//! instance at the same work, costs nothing but time.
//!
//! What expires and when is the caller's to say; that nothing is deleted which is still to be delivered is
//! seen to here.

use std::collections::{BTreeMap, HashMap};

use super::{Db, StoreError, Tx, db::values};
use crate::{
    clock::Timestamp,
    model::{DeliveryId, WebhookId},
};

/// The most rows that one batch takes, so that it holds no lock for long.
pub const BATCH: i64 = 500;

/// How far a walk over messages has come: nothing before it need be looked at again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    created_at: i64,
    message_id: String,
}

impl Default for Place {
    fn default() -> Self {
        Self { created_at: i64::MIN, message_id: String::new() }
    }
}

/// What a batch of [`purge_content`] came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purged {
    /// Messages whose content is gone now.
    pub count: u64,
    /// Messages whose content stays, because it is still to be delivered.
    pub undelivered: u64,
    /// Where to go on; `None` at the end.
    pub next: Option<Place>,
}

pub(super) const EXPIRED: &str = "SELECT m.message_id, m.created_at, CAST(CASE WHEN EXISTS ( \
         SELECT 1 FROM deliveries AS d WHERE d.message_id = m.message_id AND d.state = 'pending') \
         THEN 1 ELSE 0 END AS BIGINT) \
     FROM messages AS m WHERE m.purged_at IS NULL AND m.created_at < $1 \
         AND (m.created_at, m.message_id) > ($2, $3) \
     ORDER BY m.created_at, m.message_id LIMIT $4";

pub(super) const PURGE: &str = "UPDATE messages SET payload = $1, sender = '', purged_at = $2 \
     WHERE LENGTH(payload) > 0 AND message_id IN (VALUES {rows}) AND NOT EXISTS ( \
         SELECT 1 FROM deliveries AS d WHERE d.message_id = messages.message_id AND d.state = 'pending')";

/// Deletes the content of messages that were stored before a time, and who sent them. Their ids, place, type
/// and times stay, so that a repeat is known. What is still to be delivered is left as it is.
///
/// # Errors
/// When the database fails.
pub async fn purge_content(
    tx: &mut Tx,
    before: Timestamp,
    from: &Place,
    now: Timestamp,
) -> Result<Purged, StoreError> {
    let values = values![before, from.created_at, from.message_id.as_str(), BATCH];
    let mut found: Vec<(String, i64, i64)> = tx.fetch_all(EXPIRED, values).await?;
    let is_last = i64::try_from(found.len()).is_ok_and(|count| count < BATCH);
    let ids = found.iter().filter(|(.., pending)| *pending == 0).map(|(id, ..)| values![id.as_str()]);
    let ids: Vec<_> = ids.collect();
    let undelivered = (found.len() - ids.len()) as u64;
    let count = tx.execute_many(PURGE, values![Vec::<u8>::new(), now], ids).await?;
    let last = found.pop().map(|(message_id, created_at, _)| Place { created_at, message_id });
    Ok(Purged { count, undelivered, next: last.filter(|_| !is_last) })
}

pub(super) const PURGE_DELIVERED: &str = "UPDATE messages SET payload = $1, sender = '', purged_at = $2 \
     WHERE LENGTH(payload) > 0 \
     AND message_id IN (SELECT message_id FROM deliveries WHERE delivery_id IN (VALUES {rows})) \
     AND NOT EXISTS (SELECT 1 FROM deliveries AS d \
         WHERE d.message_id = messages.message_id AND d.state = 'pending')";

/// As [`purge_content`], at once, for the messages of these deliveries: in the transaction that records their
/// outcomes. Of two webhooks that are done with a message at the same moment neither may see that the other
/// is; such a message is left to [`purge_content`].
///
/// # Errors
/// When the database fails.
pub async fn purge_delivered(
    tx: &mut Tx,
    deliveries: impl IntoIterator<Item = DeliveryId>,
    now: Timestamp,
) -> Result<u64, StoreError> {
    let rows = deliveries.into_iter().map(|id| values![id.0]).collect();
    tx.execute_many(PURGE_DELIVERED, values![Vec::<u8>::new(), now], rows).await
}

pub(super) const FORGOTTEN: &str = "SELECT message_id FROM messages \
     WHERE created_at < $1 AND purged_at IS NOT NULL ORDER BY created_at LIMIT $2";

/// Deletes messages, with their deliveries, that were stored before a time and whose content is gone. Should
/// one of their events come again, it makes a message again, under the same id.
///
/// # Errors
/// When the database fails.
pub async fn delete_messages(tx: &mut Tx, before: Timestamp) -> Result<u64, StoreError> {
    let found: Vec<(String,)> = tx.fetch_all(FORGOTTEN, values![before, BATCH]).await?;
    let ids = || found.iter().map(|(id,)| values![id.as_str()]).collect::<Vec<_>>();
    tx.execute_many("DELETE FROM deliveries WHERE message_id IN (VALUES {rows})", vec![], ids()).await?;
    tx.execute_many("DELETE FROM messages WHERE message_id IN (VALUES {rows})", vec![], ids()).await
}

pub(super) const OLD_INDEXES: &str = "SELECT room_id, session_id, message_index FROM megolm_indexes \
     WHERE used_at < $1 ORDER BY used_at LIMIT $2";

/// Forgets which event used which place of a Megolm session, of places used before a time. What is left of a
/// session is one number: at or below it everything counts as used.
///
/// # Errors
/// When the database fails.
pub async fn forget_indexes(tx: &mut Tx, before: Timestamp) -> Result<u64, StoreError> {
    let found: Vec<(String, String, i64)> = tx.fetch_all(OLD_INDEXES, values![before, BATCH]).await?;
    let mut floors = BTreeMap::<(&str, &str), i64>::new();
    for (room, session, index) in &found {
        let floor = floors.entry((room, session)).or_insert(*index);
        *floor = (*floor).max(*index);
    }
    tx.execute_many(
        "INSERT INTO megolm_floors (room_id, session_id, message_index) VALUES {rows} \
         ON CONFLICT (room_id, session_id) DO UPDATE SET message_index = excluded.message_index \
         WHERE excluded.message_index > megolm_floors.message_index",
        vec![],
        floors.into_iter().map(|((room, session), index)| values![room, session, index]).collect(),
    )
    .await?;
    tx.execute_many(
        "DELETE FROM megolm_index_claims WHERE (room_id, session_id, message_index) IN (VALUES {rows})",
        vec![],
        found.iter().map(|(room, session, index)| values![room.as_str(), session.as_str(), *index]).collect(),
    )
    .await?;
    tx.execute_many(
        "DELETE FROM megolm_indexes WHERE (room_id, session_id, message_index) IN (VALUES {rows})",
        vec![],
        found.iter().map(|(room, session, index)| values![room.as_str(), session.as_str(), *index]).collect(),
    )
    .await
}

pub(super) const DELETE_HASHES: &str = "DELETE FROM olm_hashes WHERE (account_id, sender_key, hash) IN ( \
         SELECT account_id, sender_key, hash FROM olm_hashes WHERE created_at < $1 \
         ORDER BY created_at LIMIT $2)";

/// Forgets Olm messages that were decrypted before a time.
///
/// # Errors
/// When the database fails.
pub async fn delete_hashes(tx: &mut Tx, before: Timestamp) -> Result<u64, StoreError> {
    tx.execute(DELETE_HASHES, values![before, BATCH]).await
}

pub(super) const DELETE_LEDGER: &str = "DELETE FROM pending_events WHERE position IN ( \
         SELECT position FROM pending_events WHERE state = 'ledger' AND received_at < $1 \
         ORDER BY received_at LIMIT $2)";

/// Deletes events from the ledger that came before a time: nobody will read them any more.
///
/// # Errors
/// When the database fails.
pub async fn delete_ledger(tx: &mut Tx, before: Timestamp) -> Result<u64, StoreError> {
    tx.execute(DELETE_LEDGER, values![before, BATCH]).await
}

pub(super) const DELETE_HELD: &str = "DELETE FROM pending_events WHERE position IN ( \
         SELECT p.position FROM rooms r JOIN pending_events p ON p.room_id = r.room_id \
         WHERE r.relay = 'no' AND p.state = 'queued' AND p.received_at < $1 LIMIT $2)";

/// Deletes events that came before a time and wait for their room to be relayed, which it is not so far.
///
/// # Errors
/// When the database fails.
pub async fn delete_held(tx: &mut Tx, before: Timestamp) -> Result<u64, StoreError> {
    tx.execute(DELETE_HELD, values![before, BATCH]).await
}

pub(super) const DELETE_SET_ASIDE: &str = "DELETE FROM inbox WHERE inbox_id IN ( \
         SELECT inbox_id FROM inbox WHERE processed_at IS NOT NULL AND processed_at < $1 \
         AND body IS NOT NULL ORDER BY processed_at LIMIT $2)";

/// Deletes rows of the inbox that were set aside before a time, with their bodies.
///
/// # Errors
/// When the database fails.
pub async fn delete_set_aside(tx: &mut Tx, before: Timestamp) -> Result<u64, StoreError> {
    tx.execute(DELETE_SET_ASIDE, values![before, BATCH]).await
}

/// The webhooks that have something pending and are not among `in_use`: nobody sends it.
///
/// # Errors
/// When the database fails.
pub async fn abandoned(db: &Db, in_use: &[WebhookId]) -> Result<Vec<WebhookId>, StoreError> {
    let rows: Vec<(i64,)> =
        db.fetch_all("SELECT DISTINCT webhook_id FROM room_queues WHERE pending_count > 0", vec![]).await?;
    Ok(rows.into_iter().map(|(id,)| WebhookId(id)).filter(|id| !in_use.contains(id)).collect())
}

pub(super) const GIVE_UP: &str = "DELETE FROM deliveries WHERE delivery_id IN ( \
         SELECT delivery_id FROM deliveries WHERE webhook_id = $1 AND state = 'pending' \
         AND created_at < $2 ORDER BY COALESCE(queue, room_id), sequence LIMIT $3) \
     RETURNING COALESCE(queue, room_id)";

/// Gives up what has been pending for a webhook since before a time: for one that is in the settings no more.
///
/// # Errors
/// When the database fails.
pub async fn give_up(tx: &mut Tx, webhook: WebhookId, before: Timestamp) -> Result<u64, StoreError> {
    let rows: Vec<(String,)> = tx.fetch_all(GIVE_UP, values![webhook.0, before, BATCH]).await?;
    let mut counts = HashMap::<&str, i64>::new();
    for (room,) in &rows {
        *counts.entry(room).or_default() += 1;
    }
    tx.execute_many(
        "UPDATE room_queues SET pending_count = \
             CASE WHEN pending_count > v.column3 THEN pending_count - v.column3 ELSE 0 END \
         FROM (VALUES {rows}) AS v WHERE webhook_id = v.column1 AND room_id = v.column2",
        vec![],
        counts.into_iter().map(|(room, count)| values![webhook.0, room, count]).collect(),
    )
    .await?;
    Ok(rows.len() as u64)
}

#[cfg(test)]
#[path = "conformance/retention.rs"]
mod conformance;
