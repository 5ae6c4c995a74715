//! Events of relayed rooms that are no messages: a comparison of timelines does not miss them.

use std::collections::HashSet;

use super::{Db, StoreError, Tx, db::values};
use crate::clock::Timestamp;

/// The most rows that one [`prune`] deletes, so that it holds no lock for long.
pub const PRUNE_BATCH: u64 = 500;

/// Remembers events (event id, room id) that were passed over, in the transaction of the step that did so.
///
/// # Errors
/// When the database fails.
pub async fn put(tx: &mut Tx, events: &[(String, String)], now: Timestamp) -> Result<(), StoreError> {
    tx.execute_many(
        "INSERT INTO dismissed_events (event_id, room_id, dismissed_at) VALUES {rows} ON CONFLICT DO NOTHING",
        vec![],
        events.iter().map(|(event, room)| values![event.as_str(), room.as_str(), now]).collect(),
    )
    .await?;
    Ok(())
}

/// Returns those of these events that were passed over.
///
/// # Errors
/// When the database fails.
pub async fn find(db: &Db, event_ids: &[&str]) -> Result<HashSet<String>, StoreError> {
    let rows: Vec<(String,)> = db
        .fetch_many(
            "SELECT event_id FROM dismissed_events WHERE event_id IN (VALUES {rows})",
            vec![],
            event_ids.iter().map(|id| values![*id]).collect(),
        )
        .await?;
    Ok(rows.into_iter().map(|(id,)| id).collect())
}

/// Forgets events that were passed over before a time, [`PRUNE_BATCH`] at most, and returns how many.
///
/// # Errors
/// When the database fails.
pub async fn prune(tx: &mut Tx, before: Timestamp) -> Result<u64, StoreError> {
    tx.execute(
        "DELETE FROM dismissed_events WHERE event_id IN (SELECT event_id FROM dismissed_events \
         WHERE dismissed_at < $1 ORDER BY dismissed_at LIMIT $2)",
        values![before, i64::try_from(PRUNE_BATCH).unwrap_or(i64::MAX)],
    )
    .await
}
