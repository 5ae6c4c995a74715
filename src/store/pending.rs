//! Events that could not be relayed yet, as they came.
//!
//! *Queued* events wait in their room's order: the first for its key or for the room's state, the others
//! behind it. Those on the *ledger* gave up their place in the order and wait for their key alone; there each
//! attempt is counted, and it is remembered that the webhooks were told. Leafing through the ledger is in
//! [`page`].

mod page;
mod read;

use std::collections::HashSet;

use ruma::{OwnedRoomId, RoomId};

pub use page::{Entry, Filter, NextTry, Order, counts, page};
pub use read::{demote, insert_read, mark_overtaken, promote};

use super::{Db, Seal, StoreError, Tx, db::values};
use crate::{clock::Timestamp, model::ledger::Reason};

const TABLE: &str = "pending_events";

/// The rank of events that were overtaken by what was relayed before they were read.
const OVERTAKEN: i64 = 1;

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
    /// Why.
    pub reason: Reason,
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
    /// Its room.
    pub room_id: String,
    /// The event as it came.
    pub event: Vec<u8>,
    /// When it came.
    pub received_at: Timestamp,
    /// Why it waits, as of the last attempt.
    pub reason: Reason,
    /// Whether the webhooks were told that it cannot be decrypted.
    pub told: bool,
    /// Whether what follows it in its room was relayed before.
    pub late: bool,
}

/// Keeps events; one that waits already keeps its place. On the ledger an event comes after a first attempt.
///
/// # Errors
/// When the database fails.
pub async fn insert(
    tx: &mut Tx,
    seal: &Seal,
    events: &[NewPending],
    now: Timestamp,
) -> Result<(), StoreError> {
    let mut rows = Vec::with_capacity(events.len());
    for event in events {
        let tried = event.waits == Waits::Ledger;
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
            i64::from(tried),
            tried.then_some(now.0),
        ]);
    }
    tx.execute_many(
        "INSERT INTO pending_events (event_id, room_id, session_id, sender, state, reason, event, \
         origin_server_ts, received_at, tries, tried_at) VALUES {rows} ON CONFLICT (event_id) DO NOTHING",
        vec![],
        rows,
    )
    .await?;
    Ok(())
}

/// Notes that an attempt to decrypt failed, and why. An event that was in its room's order leaves it: from now
/// on it waits for its key alone.
///
/// # Errors
/// When the database fails.
pub async fn to_ledger(tx: &mut Tx, events: &[(String, Reason)], now: Timestamp) -> Result<(), StoreError> {
    tx.execute_many(
        "UPDATE pending_events SET state = 'ledger', reason = v.column2, tries = tries + 1, tried_at = $1 \
         FROM (VALUES {rows}) AS v WHERE event_id = v.column1",
        values![now],
        events.iter().map(|(event_id, reason)| values![event_id.as_str(), reason.to_string()]).collect(),
    )
    .await?;
    Ok(())
}

/// Gives events on the ledger another reason, without an attempt.
///
/// # Errors
/// When the database fails.
pub async fn set_reason(tx: &mut Tx, events: &[String], reason: &Reason) -> Result<(), StoreError> {
    tx.execute_many(
        "UPDATE pending_events SET reason = $1 WHERE state = 'ledger' AND event_id IN (VALUES {rows})",
        values![reason.to_string()],
        events.iter().map(|id| values![id.as_str()]).collect(),
    )
    .await?;
    Ok(())
}

/// Remembers that the webhooks were told of these events.
///
/// # Errors
/// When the database fails.
pub async fn set_told(tx: &mut Tx, events: &[String], now: Timestamp) -> Result<(), StoreError> {
    tx.execute_many(
        "UPDATE pending_events SET notified_at = $1 WHERE notified_at IS NULL AND event_id IN (VALUES {rows})",
        values![now],
        events.iter().map(|id| values![id.as_str()]).collect(),
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

/// A waiting event: event id, room, sealed event, when it came, why it waits, when the webhooks were told, rank.
type PendingRow = (String, String, Vec<u8>, i64, String, Option<i64>, i64);

fn pending(
    seal: &Seal,
    (event_id, room_id, event, received_at, reason, notified_at, rank): PendingRow,
) -> Result<Pending, StoreError> {
    let event = seal.open(TABLE, &event_id, &event)?;
    let (received_at, told) = (Timestamp(received_at), notified_at.is_some());
    let (reason, late) = (Reason::parse(&reason), rank == OVERTAKEN);
    Ok(Pending { event_id, room_id, event, received_at, reason, told, late })
}

const QUEUE: &str = "SELECT event_id, room_id, event, received_at, reason, notified_at, rank FROM pending_events \
                     WHERE room_id = $1 AND state = 'queued' ORDER BY rank, position LIMIT $2";

/// The first events of a room's queue, in order.
///
/// # Errors
/// When the database fails or a row does not open.
pub async fn queue(db: &Db, seal: &Seal, room_id: &RoomId, most: i64) -> Result<Vec<Pending>, StoreError> {
    let rows: Vec<PendingRow> = db.fetch_all(QUEUE, values![room_id.as_str(), most]).await?;
    rows.into_iter().map(|row| pending(seal, row)).collect()
}

const TRIM_QUEUE: &str = "DELETE FROM pending_events WHERE room_id = $1 AND state = 'queued' AND position <= ( \
         SELECT position FROM pending_events WHERE room_id = $1 AND state = 'queued' \
         ORDER BY position DESC LIMIT 1 OFFSET $2)";

/// Deletes the oldest events of a room's queue beyond so many, and returns how many those were.
///
/// # Errors
/// When the database fails.
pub async fn trim_queue(tx: &mut Tx, room_id: &RoomId, most: i64) -> Result<u64, StoreError> {
    tx.execute(TRIM_QUEUE, values![room_id.as_str(), most]).await
}

const TRIM_HELD: &str = "DELETE FROM pending_events WHERE position IN ( \
         SELECT p.position FROM rooms r JOIN pending_events p ON p.room_id = r.room_id \
         WHERE r.relay = 'no' AND p.state = 'queued' ORDER BY p.position DESC LIMIT 1000000 OFFSET $1)";

/// Deletes the oldest events that are kept of rooms which are not relayed, beyond so many of all, and returns how many
/// those were.
///
/// # Errors
/// When the database fails.
pub async fn trim_held(tx: &mut Tx, most: i64) -> Result<u64, StoreError> {
    tx.execute(TRIM_HELD, values![most]).await
}

/// Which of these events are on the ledger.
///
/// # Errors
/// When the database fails.
pub async fn on_ledger(db: &Db, event_ids: &[&str]) -> Result<HashSet<String>, StoreError> {
    const ON_LEDGER: &str =
        "SELECT event_id FROM pending_events WHERE state = 'ledger' AND event_id IN (VALUES {rows})";
    among(db, ON_LEDGER, event_ids).await
}

/// Which of these events wait in their room's queue.
///
/// # Errors
/// When the database fails.
pub async fn queued(db: &Db, event_ids: &[&str]) -> Result<HashSet<String>, StoreError> {
    const QUEUED: &str =
        "SELECT event_id FROM pending_events WHERE state = 'queued' AND event_id IN (VALUES {rows})";
    among(db, QUEUED, event_ids).await
}

async fn among(db: &Db, sql: &'static str, event_ids: &[&str]) -> Result<HashSet<String>, StoreError> {
    let ids = event_ids.iter().map(|id| values![*id]).collect();
    let rows: Vec<(String,)> = db.fetch_many(sql, vec![], ids).await?;
    Ok(rows.into_iter().map(|(id,)| id).collect())
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

const LEDGER: &str = "SELECT p.event_id, p.room_id, p.event, p.received_at, p.reason, p.notified_at, p.rank, p.position FROM (VALUES {rows}) AS v \
     JOIN pending_events p ON p.room_id = v.column1 AND p.session_id = v.column2 WHERE p.state = 'ledger'";

/// The events on the ledger that wait for one of these sessions (room and session id, each once), in order.
///
/// # Errors
/// When the database fails or a row does not open.
pub async fn ledger(db: &Db, seal: &Seal, sessions: &[(String, String)]) -> Result<Vec<Pending>, StoreError> {
    type Positioned = (String, String, Vec<u8>, i64, String, Option<i64>, i64, i64);
    let sessions = sessions.iter().map(|(room, session)| values![room.as_str(), session.as_str()]).collect();
    let mut rows: Vec<Positioned> = db.fetch_many(LEDGER, vec![], sessions).await?;
    rows.sort_by_key(|row| row.7);
    rows.into_iter()
        .map(|(id, room, event, at, reason, told, rank, _)| {
            pending(seal, (id, room, event, at, reason, told, rank))
        })
        .collect()
}

// SQLite looks at the tables of a CROSS JOIN in this order, and only so by the session.
const KEYLESS_ELSEWHERE: &str = "SELECT p.event_id FROM (VALUES {rows}) AS v CROSS JOIN pending_events p \
     WHERE p.session_id = v.column2 AND p.state = 'ledger' AND p.reason = 'no_key' AND p.room_id <> v.column1";

/// Events on the ledger without a key that name one of these sessions (room and session id), but in another
/// room than the session's.
///
/// # Errors
/// When the database fails.
pub async fn keyless_elsewhere(db: &Db, sessions: &[(String, String)]) -> Result<Vec<String>, StoreError> {
    let sessions = sessions.iter().map(|(room, session)| values![room.as_str(), session.as_str()]).collect();
    let rows: Vec<(String,)> = db.fetch_many(KEYLESS_ELSEWHERE, vec![], sessions).await?;
    Ok(rows.into_iter().map(|(id,)| id).collect())
}

const UNTOLD: &str = "SELECT event_id, room_id, event, received_at, reason, notified_at, rank FROM pending_events \
                      WHERE state = 'ledger' AND notified_at IS NULL AND reason <> 'replay' \
                      AND reason <> 'untrusted_sender' AND received_at <= $1 ORDER BY received_at, position LIMIT $2";

/// Events on the ledger of which the webhooks were not told, though they came at `before` or earlier, those
/// that came first. Replays and forgeries are not among them.
///
/// # Errors
/// When the database fails or a row does not open.
pub async fn untold(db: &Db, seal: &Seal, before: Timestamp, most: i64) -> Result<Vec<Pending>, StoreError> {
    let rows: Vec<PendingRow> = db.fetch_all(UNTOLD, values![before, most]).await?;
    rows.into_iter().map(|row| pending(seal, row)).collect()
}

/// Sessions (room and session id) that events on the ledger wait for though their key is there, as a version
/// that left no [news](super::key_news) may have stored it.
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

/// Sessions (room and session id) of which events are held because their sender was not believed.
///
/// # Errors
/// When the database fails.
pub async fn held(db: &Db) -> Result<Vec<(String, String)>, StoreError> {
    db.fetch_all(
        "SELECT DISTINCT room_id, session_id FROM pending_events \
         WHERE state = 'ledger' AND reason = 'untrusted_sender' AND session_id IS NOT NULL",
        vec![],
    )
    .await
}

/// Returns the senders of events that are held because they were not believed, `most` at most.
///
/// # Errors
/// When the database fails.
pub async fn held_senders(db: &Db, most: i64) -> Result<Vec<String>, StoreError> {
    let rows: Vec<(String,)> = db
        .fetch_all(
            "SELECT DISTINCT sender FROM pending_events \
             WHERE state = 'ledger' AND reason = 'untrusted_sender' LIMIT $1",
            values![most],
        )
        .await?;
    Ok(rows.into_iter().map(|(sender,)| sender).collect())
}

/// As [`held`], in these rooms.
///
/// # Errors
/// When the database fails.
pub async fn held_in(db: &Db, room_ids: &[OwnedRoomId]) -> Result<Vec<(String, String)>, StoreError> {
    db.fetch_many(
        "SELECT DISTINCT p.room_id, p.session_id FROM (VALUES {rows}) AS v \
         JOIN pending_events p ON p.room_id = v.column1 \
         WHERE p.state = 'ledger' AND p.reason = 'untrusted_sender' AND p.session_id IS NOT NULL",
        vec![],
        room_ids.iter().map(|room_id| values![room_id.as_str()]).collect(),
    )
    .await
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

/// Room, session, reason, count, event id, first time, last position.
type StuckRow = (String, Option<String>, String, i64, String, i64, i64);

/// What the ledger holds, by session and reason, the newest first.
///
/// # Errors
/// When the database fails.
pub async fn stuck(db: &Db, most: i64) -> Result<Vec<Stuck>, StoreError> {
    let rows: Vec<StuckRow> = db
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

#[cfg(test)]
mod tests;
