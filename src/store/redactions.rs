//! Messages whose events are taken back: their content goes, their place in the room stays.

use std::collections::HashSet;

use super::{Db, Seal, StoreError, Tx, db::values, messages::TABLE};
use crate::clock::Timestamp;

/// An event that was taken back: its room and its id. Of both, so that a redaction reaches no other room.
pub type Target = (String, String);

pub(super) const REACTIONS: &str = "SELECT m.event_id FROM (VALUES {rows}) AS v \
     JOIN messages AS m ON m.event_id = v.column2 AND m.room_id = v.column1 \
     WHERE m.type = 'reaction.created'";

/// Which of these events are reactions that were relayed.
///
/// # Errors
/// When the database fails.
pub async fn reactions(db: &Db, targets: &[Target]) -> Result<HashSet<String>, StoreError> {
    let rows = targets.iter().map(|(room, event)| values![room.as_str(), event.as_str()]).collect();
    let found: Vec<(String,)> = db.fetch_many(REACTIONS, vec![], rows).await?;
    Ok(found.into_iter().map(|(event_id,)| event_id).collect())
}

// Length, not purged_at: nothing here may be looked up by the index of what has content, which is nearly all.
pub(super) const OF_EVENTS: &str = "SELECT m.message_id, m.payload FROM (VALUES {rows}) AS v \
     JOIN messages AS m ON m.event_id = v.column2 AND m.room_id = v.column1 \
     WHERE m.redacted_at IS NULL AND LENGTH(m.payload) > 0";

pub(super) const OF_EDITS: &str = "SELECT m.message_id, m.payload FROM (VALUES {rows}) AS v \
     JOIN messages AS m ON m.replaces = v.column2 AND m.room_id = v.column1 \
     WHERE m.redacted_at IS NULL AND LENGTH(m.payload) > 0";

pub(super) const LATE_EDITS: &str = "SELECT m.message_id, m.payload FROM (VALUES {rows}) AS v \
     JOIN messages AS m ON m.message_id = v.column1 \
     JOIN messages AS original ON original.event_id = m.replaces AND original.room_id = m.room_id \
     WHERE original.redacted_at IS NOT NULL AND m.redacted_at IS NULL AND LENGTH(m.payload) > 0";

/// Takes the content out of the messages of these events and of their edits: `without` makes the payload that
/// is left. What is still to be delivered goes out so. Answers how many messages there were.
///
/// # Errors
/// When the database fails or a payload does not open.
pub async fn apply(
    tx: &mut Tx,
    seal: &Seal,
    targets: &[Target],
    without: impl Fn(&[u8]) -> Option<Vec<u8>> + Send,
    now: Timestamp,
) -> Result<u64, StoreError> {
    let rows = || targets.iter().map(|(room, event)| values![room.as_str(), event.as_str()]).collect();
    let mut found: Vec<(String, Vec<u8>)> = tx.fetch_many(OF_EVENTS, vec![], rows()).await?;
    found.extend(tx.fetch_many(OF_EDITS, vec![], rows()).await?);
    rewrite(tx, seal, found, without, now).await
}

/// As [`apply`], for those of these messages that are edits of an event which was taken back before they came.
///
/// # Errors
/// When the database fails or a payload does not open.
pub async fn apply_to_edits(
    tx: &mut Tx,
    seal: &Seal,
    message_ids: &[&str],
    without: impl Fn(&[u8]) -> Option<Vec<u8>> + Send,
    now: Timestamp,
) -> Result<u64, StoreError> {
    let rows = message_ids.iter().map(|id| values![*id]).collect();
    let found = tx.fetch_many(LATE_EDITS, vec![], rows).await?;
    rewrite(tx, seal, found, without, now).await
}

async fn rewrite(
    tx: &mut Tx,
    seal: &Seal,
    mut found: Vec<(String, Vec<u8>)>,
    without: impl Fn(&[u8]) -> Option<Vec<u8>>,
    now: Timestamp,
) -> Result<u64, StoreError> {
    // An event can be named by several redactions.
    found.sort_unstable();
    found.dedup();
    let mut rows = Vec::with_capacity(found.len());
    for (id, payload) in found {
        let left = without(&seal.open(TABLE, &id, &payload)?).ok_or(StoreError::Corrupt(TABLE))?;
        rows.push(values![id.as_str(), seal.seal(TABLE, &id, &left)?]);
    }
    tx.execute_many(
        "UPDATE messages SET payload = v.column2, redacted_at = $1 FROM (VALUES {rows}) AS v \
         WHERE message_id = v.column1",
        values![now],
        rows,
    )
    .await
}

#[cfg(test)]
#[path = "conformance/redactions.rs"]
mod conformance;
