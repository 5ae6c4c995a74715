//! What is relayed, under ids that stay the same however often an event is worked through.

pub mod counts;
pub mod read;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use ruma::RoomId;

use super::{Db, Seal, StoreError, Tx, db::values};
use crate::{clock::Timestamp, model::Message};

/// The table, as the seal knows it; the row is the message id.
pub const TABLE: &str = "messages";

/// Which of these messages are stored already.
///
/// # Errors
/// When the database fails.
pub async fn known(db: &Db, message_ids: &[&str]) -> Result<HashSet<String>, StoreError> {
    let rows: Vec<(String,)> = db
        .fetch_many(
            "SELECT message_id FROM messages WHERE message_id IN (VALUES {rows})",
            vec![],
            message_ids.iter().map(|id| values![*id]).collect(),
        )
        .await?;
    Ok(rows.into_iter().map(|(id,)| id).collect())
}

/// Which of these events are messages, or wait to become one.
///
/// # Errors
/// When the database fails.
pub async fn known_events(db: &Db, event_ids: &[&str]) -> Result<HashSet<String>, StoreError> {
    let mut known = HashSet::new();
    for statement in [
        "SELECT event_id FROM messages WHERE event_id IN (VALUES {rows})",
        "SELECT event_id FROM pending_events WHERE event_id IN (VALUES {rows})",
    ] {
        let rows: Vec<(String,)> =
            db.fetch_many(statement, vec![], event_ids.iter().map(|id| values![*id]).collect()).await?;
        known.extend(rows.into_iter().map(|(id,)| id));
    }
    Ok(known)
}

/// Returns when the first message of a room was stored, of those that are kept.
///
/// # Errors
/// When the database fails.
pub async fn first_at(db: &Db, room_id: &RoomId) -> Result<Option<Timestamp>, StoreError> {
    const FIRST: &str = "SELECT created_at FROM messages WHERE room_id = $1 ORDER BY sequence LIMIT 1";
    let first: Option<(i64,)> = db.fetch_optional(FIRST, values![room_id.as_str()]).await?;
    Ok(first.map(|(at,)| Timestamp(at)))
}

/// The number after the last of a room whose messages nobody else numbers meanwhile.
///
/// # Errors
/// When the database fails.
pub async fn next_sequence(tx: &mut Tx, room_id: &RoomId) -> Result<i64, StoreError> {
    const LAST: &str = "SELECT MAX(sequence) FROM messages WHERE room_id = $1";
    let last: Option<(Option<i64>,)> = tx.fetch_optional(LAST, values![room_id.as_str()]).await?;
    Ok(last.and_then(|(last,)| last).unwrap_or(0) + 1)
}

/// Draws this many positions and answers the one before them, with the time that belongs to them: `now`, unless an
/// earlier one was drawn later by somebody's clock. Whoever else wants some waits until `tx` ends, so that positions
/// become visible in their order.
async fn draw(tx: &mut Tx, count: usize, now: Timestamp) -> Result<(i64, Timestamp), StoreError> {
    let count = i64::try_from(count).map_err(|_| StoreError::Corrupt("positions"))?;
    let drawn: Option<(i64, i64)> = tx
        .fetch_optional(
            "UPDATE positions SET last = last + $1, last_at = CASE WHEN last_at > $2 THEN last_at ELSE $2 END \
             WHERE name = 'messages' RETURNING last - $1, last_at",
            values![count, now],
        )
        .await?;
    let (before, at) = drawn.ok_or(StoreError::Corrupt("positions"))?;
    Ok((before, Timestamp(at)))
}

/// Stores messages that are not known yet, each at the next position.
///
/// # Errors
/// When the database fails, or one is known: the caller asked [`known`] in the same transaction.
pub async fn insert(
    tx: &mut Tx,
    seal: &Seal,
    messages: &[Message],
    now: Timestamp,
) -> Result<(), StoreError> {
    if messages.is_empty() {
        return Ok(());
    }
    let mut rows = Vec::with_capacity(messages.len());
    let (mut position, now) = draw(tx, messages.len(), now).await?;
    for message in messages {
        position += 1;
        rows.push(values![
            message.message_id.as_str(),
            message.event_id.as_str(),
            message.room_id.as_str(),
            i64::try_from(message.sequence).map_err(|_| StoreError::Corrupt(TABLE))?,
            message.message_type.as_str(),
            message.network.as_deref(),
            message.direction.as_str(),
            message.sender.as_str(),
            message.origin_server_ts,
            now,
            position,
            seal.seal(TABLE, message.message_id.as_str(), &message.payload)?,
            message.replaces.as_ref().map(|event_id| event_id.as_str()),
        ]);
    }
    tx.execute_many(
        "INSERT INTO messages (message_id, event_id, room_id, sequence, type, network, direction, sender, \
         origin_server_ts, created_at, position, payload, replaces) VALUES {rows}",
        vec![],
        rows,
    )
    .await?;
    counts::add(tx, messages, now).await
}

const UNNUMBERED: &str = "SELECT message_id FROM messages WHERE position IS NULL \
     ORDER BY created_at, room_id, sequence LIMIT $1";

/// Gives positions to messages that a version without positions stored, `most` at most; answers how many those
/// were. As the first thing of whoever writes messages from now on.
///
/// # Errors
/// When the database fails.
pub async fn number(tx: &mut Tx, most: i64, now: Timestamp) -> Result<usize, StoreError> {
    let found: Vec<(String,)> = tx.fetch_all(UNNUMBERED, values![most]).await?;
    if found.is_empty() {
        return Ok(0);
    }
    let (before, at) = draw(tx, found.len(), now).await?;
    let rows = (before + 1..).zip(&found).map(|(position, (id,))| values![id.as_str(), position]).collect();
    tx.execute_many(
        "UPDATE messages SET position = v.column2, created_at = $1 FROM (VALUES {rows}) AS v \
         WHERE message_id = v.column1",
        values![at],
        rows,
    )
    .await?;
    Ok(found.len())
}

/// The payloads of the newest messages that have one still, newest first.
///
/// # Errors
/// When the database fails or a payload does not open.
pub async fn newest(db: &Db, seal: &Seal, most: i64) -> Result<Vec<Vec<u8>>, StoreError> {
    let rows: Vec<(String, Vec<u8>)> = db
        .fetch_all(
            "SELECT message_id, payload FROM messages WHERE purged_at IS NULL ORDER BY created_at DESC, sequence DESC LIMIT $1",
            values![most],
        )
        .await?;
    rows.into_iter().map(|(id, payload)| seal.open(TABLE, &id, &payload)).collect()
}

/// A place in a Megolm session: room, session and message index.
pub type MegolmIndex = (String, String, i64);

pub(super) const USED: &str = "SELECT v.column1, v.column2, v.column3, COALESCE(m.event_id, '') \
     FROM (VALUES {rows}) AS v \
     LEFT JOIN megolm_indexes AS m ON m.room_id = v.column1 AND m.session_id = v.column2 \
         AND m.message_index = v.column3 \
     LEFT JOIN megolm_floors AS f ON f.room_id = v.column1 AND f.session_id = v.column2 \
         AND f.message_index >= v.column3 \
     WHERE m.event_id IS NOT NULL OR f.room_id IS NOT NULL";

/// Which events have used these places already. A place that was used so long ago that the event is
/// forgotten has the empty text: no event at all may use it.
///
/// # Errors
/// When the database fails.
pub async fn used_indexes(
    db: &Db,
    indexes: &[MegolmIndex],
) -> Result<HashMap<MegolmIndex, String>, StoreError> {
    let rows: Vec<(String, String, i64, String)> = db
        .fetch_many(
            USED,
            vec![],
            indexes
                .iter()
                .map(|(room, session, index)| values![room.as_str(), session.as_str(), *index])
                .collect(),
        )
        .await?;
    Ok(rows.into_iter().map(|(room, session, index, event)| ((room, session, index), event)).collect())
}

/// The height of a session that nothing has used.
pub const UNUSED: i64 = -1;

pub(super) const HEIGHTS: &str = "SELECT v.column1, v.column2, \
         (SELECT MAX(m.message_index) FROM megolm_indexes AS m \
          WHERE m.room_id = v.column1 AND m.session_id = v.column2), \
         (SELECT MAX(f.message_index) FROM megolm_floors AS f \
          WHERE f.room_id = v.column1 AND f.session_id = v.column2) \
     FROM (VALUES {rows}) AS v";

/// The last place of each of these sessions, by room and session, that is known to be used, whether its event is
/// forgotten or not. Sessions of which none is used are left out.
///
/// # Errors
/// When the database fails.
pub async fn heights(
    db: &Db,
    sessions: &[(&str, &str)],
) -> Result<HashMap<(String, String), i64>, StoreError> {
    let rows = sessions.iter().map(|(room, session)| values![*room, *session]).collect();
    let rows: Vec<(String, String, Option<i64>, Option<i64>)> = db.fetch_many(HEIGHTS, vec![], rows).await?;
    let height = |(room, session, used, floor): (String, String, Option<i64>, Option<i64>)| {
        used.max(floor).map(|height| ((room, session), height))
    };
    Ok(rows.into_iter().filter_map(height).collect())
}

/// In whose name a place of a session was used, and by which event.
pub type IndexClaim = (MegolmIndex, String, String);

pub(super) const CLAIMED: &str = "SELECT c.room_id, c.session_id, c.message_index, c.claimant, c.event_id \
     FROM (VALUES {rows}) AS v JOIN megolm_index_claims AS c ON c.room_id = v.column1 \
     AND c.session_id = v.column2 AND c.message_index = v.column3";

/// Finds in whose names these places were used, as far as that was noted.
///
/// # Errors
/// When the database fails.
pub async fn index_claims(db: &Db, indexes: &[MegolmIndex]) -> Result<Vec<IndexClaim>, StoreError> {
    let rows = indexes.iter().map(|(room, session, index)| values![room.as_str(), session.as_str(), *index]);
    let rows: Vec<(String, String, i64, String, String)> =
        db.fetch_many(CLAIMED, vec![], rows.collect()).await?;
    let claim = |(room, session, index, claimant, event)| ((room, session, index), claimant, event);
    Ok(rows.into_iter().map(claim).collect())
}

/// Notes in whose names places were used; of one name the first event stays.
///
/// # Errors
/// When the database fails.
pub async fn claim_indexes(tx: &mut Tx, claims: &[IndexClaim]) -> Result<(), StoreError> {
    let rows = claims.iter().map(|((room, session, index), claimant, event)| {
        values![room.as_str(), session.as_str(), *index, claimant.as_str(), event.as_str()]
    });
    tx.execute_many(
        "INSERT INTO megolm_index_claims (room_id, session_id, message_index, claimant, event_id) \
         VALUES {rows} ON CONFLICT DO NOTHING",
        vec![],
        rows.collect(),
    )
    .await?;
    Ok(())
}

/// Remembers which event used which place; the first one stays.
///
/// # Errors
/// When the database fails.
pub async fn use_indexes(
    tx: &mut Tx,
    used: &[(MegolmIndex, String)],
    now: Timestamp,
) -> Result<(), StoreError> {
    let rows = used
        .iter()
        .map(|((room, session, index), event)| {
            values![room.as_str(), session.as_str(), *index, event.as_str(), now]
        })
        .collect();
    tx.execute_many(
        "INSERT INTO megolm_indexes (room_id, session_id, message_index, event_id, used_at) VALUES {rows} \
         ON CONFLICT DO NOTHING",
        vec![],
        rows,
    )
    .await?;
    Ok(())
}
