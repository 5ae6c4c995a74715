//! Events that were taken back before they were relayed, or are not relayed because they are no messages.
//!
//! What waits for its key is deleted when it is taken back; here is that it was, should it come again, or
//! come later than its redaction.

use std::collections::HashSet;

use super::{Db, StoreError, Tx, db::values};
use crate::clock::Timestamp;

/// The most rows that one [`prune`] deletes, so that it holds no lock for long.
pub const PRUNE_BATCH: u64 = 500;

/// An event in its room: room id, event id. A redaction counts in its own room alone.
pub type Target = (String, String);

/// Which of these events were taken back.
///
/// # Errors
/// When the database fails.
pub async fn find(db: &Db, events: &[(&str, &str)]) -> Result<HashSet<Target>, StoreError> {
    let rows: Vec<Target> = db
        .fetch_many(
            "SELECT room_id, event_id FROM redacted_events WHERE (room_id, event_id) IN (VALUES {rows})",
            vec![],
            events.iter().map(|(room, event)| values![*room, *event]).collect(),
        )
        .await?;
    Ok(rows.into_iter().collect())
}

/// Remembers that events were taken back, and deletes those that wait, ciphertext and all.
///
/// # Errors
/// When the database fails.
pub async fn put(tx: &mut Tx, targets: &[Target], now: Timestamp) -> Result<(), StoreError> {
    let rows = || targets.iter().map(|(room, event)| values![room.as_str(), event.as_str()]);
    tx.execute_many(
        "DELETE FROM pending_events WHERE (room_id, event_id) IN (VALUES {rows})",
        vec![],
        rows().collect(),
    )
    .await?;
    tx.execute_many(
        "INSERT INTO redacted_events (room_id, event_id, redacted_at) VALUES {rows} ON CONFLICT DO NOTHING",
        vec![],
        targets.iter().map(|(room, event)| values![room.as_str(), event.as_str(), now]).collect(),
    )
    .await?;
    Ok(())
}

/// Forgets what is known of a room that is not relayed.
///
/// # Errors
/// When the database fails.
pub async fn delete_room(tx: &mut Tx, room_id: &ruma::RoomId) -> Result<u64, StoreError> {
    tx.execute("DELETE FROM redacted_events WHERE room_id = $1", values![room_id.as_str()]).await
}

const PRUNE: &str = "DELETE FROM redacted_events WHERE (room_id, event_id) IN ( \
         SELECT room_id, event_id FROM redacted_events WHERE redacted_at < $1 ORDER BY redacted_at LIMIT $2)";

/// Forgets what was taken back before a time, [`PRUNE_BATCH`] at most, and answers how many; as many as that,
/// and there may be more.
///
/// # Errors
/// When the database fails.
pub async fn prune(tx: &mut Tx, before: Timestamp) -> Result<u64, StoreError> {
    tx.execute(PRUNE, values![before, i64::try_from(PRUNE_BATCH).unwrap_or(i64::MAX)]).await
}
