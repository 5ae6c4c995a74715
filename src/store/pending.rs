//! Events that could not be relayed yet, as they came.
//!
//! *Queued* events wait in their room's order: the first for its key or for the room's state, the others
//! behind it. Those on the *ledger* gave up their place in the order and wait for their key alone.

use ruma::{OwnedRoomId, RoomId};

use super::{Db, Seal, StoreError, Tx, db::values};
use crate::clock::Timestamp;

const TABLE: &str = "pending_events";

/// Where an event waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// In the room's order.
    Queued,
    /// For its key alone.
    Ledger,
}

impl Waits {
    fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Ledger => "ledger",
        }
    }
}

/// An event to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPending {
    /// The event.
    pub event_id: String,
    /// Its room.
    pub room_id: String,
    /// Its Megolm session, when it is encrypted.
    pub session_id: Option<String>,
    /// Who sent it.
    pub sender: String,
    /// Where it waits.
    pub waits: Waits,
    /// Why: `no_key`, `room_state`, `order`, `withheld:<code>`, ….
    pub reason: String,
    /// The event as it came.
    pub event: Vec<u8>,
    /// When it was sent.
    pub origin_server_ts: Timestamp,
    /// When it came.
    pub received_at: Timestamp,
}

/// An event that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// The event.
    pub event_id: String,
    /// The event as it came.
    pub event: Vec<u8>,
    /// When it came.
    pub received_at: Timestamp,
}

/// Keeps events; one that waits already keeps its place.
///
/// # Errors
/// When the database fails.
pub async fn insert(tx: &mut Tx, seal: &Seal, events: &[NewPending]) -> Result<(), StoreError> {
    let mut rows = Vec::with_capacity(events.len());
    for event in events {
        rows.push(values![
            event.event_id.as_str(),
            event.room_id.as_str(),
            event.session_id.as_deref(),
            event.sender.as_str(),
            event.waits.as_str(),
            event.reason.as_str(),
            seal.seal(TABLE, &event.event_id, &event.event)?,
            event.origin_server_ts,
            event.received_at,
        ]);
    }
    tx.execute_many(
        "INSERT INTO pending_events (event_id, room_id, session_id, sender, state, reason, event, \
         origin_server_ts, received_at) VALUES {rows} ON CONFLICT (event_id) DO NOTHING",
        vec![],
        rows,
    )
    .await?;
    Ok(())
}

/// Takes events out of their room's order: from now on they wait for their key alone.
///
/// # Errors
/// When the database fails.
pub async fn to_ledger(tx: &mut Tx, events: &[(String, String)]) -> Result<(), StoreError> {
    tx.execute_many(
        "UPDATE pending_events SET state = 'ledger', reason = v.column2 FROM (VALUES {rows}) AS v \
         WHERE event_id = v.column1",
        vec![],
        events.iter().map(|(event_id, reason)| values![event_id.as_str(), reason.as_str()]).collect(),
    )
    .await?;
    Ok(())
}

/// Forgets events that were relayed.
///
/// # Errors
/// When the database fails.
pub async fn delete(tx: &mut Tx, event_ids: &[&str]) -> Result<(), StoreError> {
    tx.execute_many(
        "DELETE FROM pending_events WHERE event_id IN (VALUES {rows})",
        vec![],
        event_ids.iter().map(|id| values![*id]).collect(),
    )
    .await?;
    Ok(())
}

/// Forgets all that waits in a room.
///
/// # Errors
/// When the database fails.
pub async fn delete_room(tx: &mut Tx, room_id: &RoomId) -> Result<u64, StoreError> {
    tx.execute("DELETE FROM pending_events WHERE room_id = $1", values![room_id.as_str()]).await
}

type PendingRow = (String, Vec<u8>, i64);

fn pending(seal: &Seal, (event_id, event, received_at): PendingRow) -> Result<Pending, StoreError> {
    let event = seal.open(TABLE, &event_id, &event)?;
    Ok(Pending { event_id, event, received_at: Timestamp(received_at) })
}

/// The first events of a room's queue, in order.
///
/// # Errors
/// When the database fails or a row does not open.
pub async fn queue(db: &Db, seal: &Seal, room_id: &RoomId, most: i64) -> Result<Vec<Pending>, StoreError> {
    let rows: Vec<PendingRow> = db
        .fetch_all(
            "SELECT event_id, event, received_at FROM pending_events \
             WHERE room_id = $1 AND state = 'queued' ORDER BY position LIMIT $2",
            values![room_id.as_str(), most],
        )
        .await?;
    rows.into_iter().map(|row| pending(seal, row)).collect()
}

/// Rooms that have a queue, and when its first event came.
///
/// # Errors
/// When the database fails.
pub async fn queued_rooms(db: &Db) -> Result<Vec<(OwnedRoomId, Timestamp)>, StoreError> {
    let rows: Vec<(String, i64)> = db
        .fetch_all(
            "SELECT room_id, MIN(received_at) FROM pending_events WHERE state = 'queued' GROUP BY room_id",
            vec![],
        )
        .await?;
    rows.into_iter()
        .map(|(room_id, at)| {
            let room_id = OwnedRoomId::try_from(room_id).map_err(|_| StoreError::Corrupt(TABLE))?;
            Ok((room_id, Timestamp(at)))
        })
        .collect()
}

/// The events on the ledger that wait for one of these sessions (room and session id), in order.
///
/// # Errors
/// When the database fails or a row does not open.
pub async fn ledger(db: &Db, seal: &Seal, sessions: &[(String, String)]) -> Result<Vec<Pending>, StoreError> {
    let rows: Vec<(String, Vec<u8>, i64, i64)> = db
        .fetch_many(
            "SELECT p.event_id, p.event, p.received_at, p.position FROM (VALUES {rows}) AS v \
             JOIN pending_events p ON p.room_id = v.column1 AND p.session_id = v.column2 \
             WHERE p.state = 'ledger'",
            vec![],
            sessions.iter().map(|(room, session)| values![room.as_str(), session.as_str()]).collect(),
        )
        .await?;
    let mut rows = rows;
    rows.sort_by_key(|row| row.3);
    rows.into_iter().map(|(id, event, at, _)| pending(seal, (id, event, at))).collect()
}

/// Sessions (room and session id) that events on the ledger wait for though their key is there: a process took
/// the key in and died before it could release them.
///
/// # Errors
/// When the database fails.
pub async fn releasable(db: &Db) -> Result<Vec<(String, String)>, StoreError> {
    db.fetch_all(
        "SELECT DISTINCT p.room_id, p.session_id FROM pending_events p \
         JOIN megolm_inbound_sessions s ON s.room_id = p.room_id AND s.session_id = p.session_id \
         WHERE p.state = 'ledger' AND (p.reason = 'no_key' OR p.reason LIKE 'withheld:%')",
        vec![],
    )
    .await
}

/// Has events of these sessions (room and session id) tried again at the next start, if not before: a key that
/// begins earlier has come.
///
/// # Errors
/// When the database fails.
pub async fn look_again(tx: &mut Tx, sessions: &[(&str, &str)]) -> Result<(), StoreError> {
    tx.execute_many(
        "UPDATE pending_events SET reason = 'no_key' WHERE state = 'ledger' \
         AND reason IN ('unknown_index', 'before_join') AND (room_id, session_id) IN (VALUES {rows})",
        vec![],
        sessions.iter().map(|(room_id, session_id)| values![*room_id, *session_id]).collect(),
    )
    .await?;
    Ok(())
}

/// A session that events wait for, in figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// The room.
    pub room_id: String,
    /// The Megolm session, when the events name one.
    pub session_id: Option<String>,
    /// Why they wait.
    pub reason: String,
    /// How many wait.
    pub event_count: u64,
    /// One of them.
    pub event_id: String,
    /// When the first of them came.
    pub since: Timestamp,
}

/// What the ledger holds, by session and reason, the newest first.
///
/// # Errors
/// When the database fails.
pub async fn stuck(db: &Db, most: i64) -> Result<Vec<Stuck>, StoreError> {
    let rows: Vec<(String, Option<String>, String, i64, String, i64, i64)> = db
        .fetch_all(
            "SELECT room_id, session_id, reason, COUNT(*), MIN(event_id), MIN(received_at), MAX(position) \
             FROM pending_events WHERE state = 'ledger' GROUP BY room_id, session_id, reason \
             ORDER BY MAX(position) DESC LIMIT $1",
            values![most],
        )
        .await?;
    Ok(rows
        .into_iter()
        .map(|(room_id, session_id, reason, count, event_id, since, _)| Stuck {
            room_id,
            session_id,
            reason,
            event_count: u64::try_from(count).unwrap_or(0),
            event_id,
            since: Timestamp(since),
        })
        .collect())
}

/// How many events wait, by reason.
///
/// # Errors
/// When the database fails.
pub async fn counts(db: &Db) -> Result<Vec<(String, i64)>, StoreError> {
    db.fetch_all("SELECT reason, COUNT(*) FROM pending_events GROUP BY reason ORDER BY reason", vec![]).await
}
