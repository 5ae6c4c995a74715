//! The order of a room's queue when a part of it was read: by rank, then by position.
//!
//! | rank | events |
//! |---|---|
//! | 0 | that waited when the reading began |
//! | 1 | that were read, and overtaken by what was relayed already |
//! | 2 | that were read |
//! | 3 | that were pushed, as all others |

use ruma::RoomId;

use super::{NewPending, OVERTAKEN, TABLE};
use crate::store::{Seal, StoreError, Tx, db::values};

/// The rank of events that were read.
const READ: i64 = 2;

/// Gives what waits in the queues of these rooms a place before what will be read of them.
///
/// # Errors
/// When the database fails.
pub async fn promote(tx: &mut Tx, room_ids: &[&RoomId]) -> Result<(), StoreError> {
    tx.execute_many(
        "UPDATE pending_events SET rank = 0 WHERE state = 'queued' AND rank = 3 AND room_id IN (VALUES {rows})",
        vec![],
        room_ids.iter().map(|room_id| values![room_id.as_str()]).collect(),
    )
    .await?;
    Ok(())
}

/// Takes the place away that events of these rooms have by an earlier reading: they are read again, from further back.
///
/// # Errors
/// When the database fails.
pub async fn demote(tx: &mut Tx, room_ids: &[&RoomId]) -> Result<(), StoreError> {
    tx.execute_many(
        "UPDATE pending_events SET rank = 3 WHERE state = 'queued' AND rank = 2 AND room_id IN (VALUES {rows})",
        vec![],
        room_ids.iter().map(|room_id| values![room_id.as_str()]).collect(),
    )
    .await?;
    Ok(())
}

/// Notes that what was read of these rooms so far was overtaken.
///
/// # Errors
/// When the database fails.
pub async fn mark_overtaken(tx: &mut Tx, room_ids: &[&RoomId]) -> Result<(), StoreError> {
    tx.execute_many(
        "UPDATE pending_events SET rank = 1 WHERE state = 'queued' AND rank = 2 AND room_id IN (VALUES {rows})",
        vec![],
        room_ids.iter().map(|room_id| values![room_id.as_str()]).collect(),
    )
    .await?;
    Ok(())
}

/// Queues events that were read, each with whether it was overtaken, behind what was read before and before what was
/// pushed. One that was pushed as well takes the place in which it was read; one that was read before, or is on the ledger,
/// keeps its place.
///
/// # Errors
/// When the database fails.
pub async fn insert_read(tx: &mut Tx, seal: &Seal, events: &[(NewPending, bool)]) -> Result<(), StoreError> {
    tx.execute_many(
        "DELETE FROM pending_events WHERE state = 'queued' AND rank IN (0, 3) AND event_id IN (VALUES {rows})",
        vec![],
        events.iter().map(|(event, _)| values![event.event_id.as_str()]).collect(),
    )
    .await?;
    let mut rows = Vec::with_capacity(events.len());
    for (event, is_overtaken) in events {
        rows.push(values![
            event.event_id.as_str(),
            event.room_id.as_str(),
            event.session_id.as_deref(),
            event.sender.as_str(),
            event.waits.as_str(),
            event.reason.to_string(),
            seal.seal(TABLE, &event.event_id, &event.event)?,
            event.origin_server_ts,
            event.received_at,
            if *is_overtaken { OVERTAKEN } else { READ },
        ]);
    }
    tx.execute_many(
        "INSERT INTO pending_events (event_id, room_id, session_id, sender, state, reason, event, \
         origin_server_ts, received_at, rank) VALUES {rows} ON CONFLICT (event_id) DO NOTHING",
        vec![],
        rows,
    )
    .await?;
    Ok(())
}
