//! Rooms that are read on page by page.
//!
//! A room of which more happened than one comparison holds, or that an account has just joined, is read in the
//! homeserver's order from a token that is kept here, so that a process which dies goes on where the last one was. While
//! its row is here the room is suspended alone: what is pushed of it waits behind what is read.

use std::collections::HashSet;

use ruma::{OwnedRoomId, RoomId};

use super::{Db, StoreError, Tx, db::values, dismissed, messages, redacted};
use crate::{
    clock::Timestamp,
    model::{AccountId, text::Text},
};

const CORRUPT: StoreError = StoreError::Corrupt("room_readings");

/// The reason for a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An account has joined: nothing that was said before or beside its join was pushed.
    Join,
    /// A comparison found that more is missing than it holds.
    Gap,
    /// Somebody asked for it.
    Check,
}

impl Cause {
    /// Returns its name in the table and in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Gap => "gap",
            Self::Check => "check",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Join, Self::Gap, Self::Check].into_iter().find(|cause| cause.as_str() == text)
    }
}

/// A room that is being read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The account that reads.
    pub account_id: AccountId,
    /// The reason.
    pub cause: Cause,
    /// Where the next page begins; `None` where the room does.
    pub from_token: Option<String>,
    /// The account's join, until it was read.
    pub join_id: Option<String>,
    /// The event with which the reading ends; `None` until it is known, empty when there is none.
    pub until_id: Option<String>,
    /// The events that were read.
    pub read_count: i64,
    /// Those of them that nothing was known of.
    pub missing_count: i64,
    /// How often the next page was asked for in vain.
    pub tries: i64,
}

impl Reading {
    /// Returns a reading that has not begun.
    #[must_use]
    pub fn new(room_id: &RoomId, account_id: AccountId, cause: Cause, from_token: Option<String>) -> Self {
        Self {
            room_id: room_id.to_owned(),
            account_id,
            cause,
            from_token,
            join_id: None,
            until_id: None,
            read_count: 0,
            missing_count: 0,
            tries: 0,
        }
    }
}

/// Begins to read a room. One that is being read is read on to what is the newest now, from where it is.
///
/// # Errors
/// When the database fails.
pub async fn put(tx: &mut Tx, reading: &Reading, now: Timestamp) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO room_readings (room_id, account_id, cause, from_token, join_id, read_count, missing_count, \
         due_at, tries, created_at) VALUES ($1, $2, $3, $4, $5, 0, 0, $6, 0, $6) \
         ON CONFLICT (room_id) DO UPDATE SET join_id = excluded.join_id, until_id = NULL, due_at = excluded.due_at",
        values![
            reading.room_id.as_str(),
            reading.account_id.0,
            reading.cause.as_str(),
            reading.from_token.as_deref().map(Text::of_token),
            reading.join_id.as_deref(),
            now,
        ],
    )
    .await?;
    Ok(())
}

/// Returns all rooms that are suspended.
///
/// # Errors
/// When the database fails.
pub async fn rooms(db: &Db) -> Result<HashSet<OwnedRoomId>, StoreError> {
    let rows: Vec<(String,)> = db.fetch_all("SELECT room_id FROM room_readings", vec![]).await?;
    rows.into_iter().map(|(room_id,)| OwnedRoomId::try_from(room_id).map_err(|_| CORRUPT)).collect()
}

const DUE: &str = "SELECT room_id, account_id, cause, from_token, join_id, until_id, read_count, missing_count, tries \
                   FROM room_readings WHERE due_at <= $1 ORDER BY due_at LIMIT $2";

/// Returns rooms of which the next page is due, longest due first.
///
/// # Errors
/// When the database fails.
pub async fn due(db: &Db, now: Timestamp, max: i64) -> Result<Vec<Reading>, StoreError> {
    type Row = (String, i64, String, Option<String>, Option<String>, Option<String>, i64, i64, i64);
    let rows: Vec<Row> = db.fetch_all(DUE, values![now, max]).await?;
    rows.into_iter()
        .map(|row| {
            Ok(Reading {
                room_id: OwnedRoomId::try_from(row.0).map_err(|_| CORRUPT)?,
                account_id: AccountId(row.1),
                cause: Cause::parse(&row.2).ok_or(CORRUPT)?,
                from_token: row.3,
                join_id: row.4,
                until_id: row.5,
                read_count: row.6,
                missing_count: row.7,
                tries: row.8,
            })
        })
        .collect()
}

/// Keeps with which event a reading ends.
///
/// # Errors
/// When the database fails.
pub async fn set_until(tx: &mut Tx, room_id: &RoomId, until_id: &str) -> Result<(), StoreError> {
    let sql = "UPDATE room_readings SET until_id = $2 WHERE room_id = $1";
    tx.execute(sql, values![room_id.as_str(), until_id]).await?;
    Ok(())
}

/// Keeps how far a room was read, in the transaction that stores what was read; the next page is due at once.
///
/// # Errors
/// When the database fails; what was read must then not be stored either.
pub async fn advance(tx: &mut Tx, reading: &Reading, now: Timestamp) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE room_readings SET from_token = $2, join_id = $3, read_count = $4, missing_count = $5, \
         due_at = $6, tries = 0 WHERE room_id = $1",
        values![
            reading.room_id.as_str(),
            reading.from_token.as_deref().map(Text::of_token),
            reading.join_id.as_deref(),
            reading.read_count,
            reading.missing_count,
            now,
        ],
    )
    .await?;
    Ok(())
}

/// Notes that a room was read to the event `until_id`, and returns whether that still ends its reading: somebody may have
/// asked meanwhile for more.
///
/// # Errors
/// When the database fails.
pub async fn finish(tx: &mut Tx, room_id: &RoomId, until_id: Option<&str>) -> Result<bool, StoreError> {
    let sql = "UPDATE room_readings SET due_at = NULL \
               WHERE room_id = $1 AND due_at IS NOT NULL AND COALESCE(until_id, ' ') = COALESCE($2, ' ')";
    Ok(tx.execute(sql, values![room_id.as_str(), until_id]).await? > 0)
}

/// Puts the next page off, after so many tries in vain.
///
/// # Errors
/// When the database fails.
pub async fn postpone(tx: &mut Tx, room_id: &RoomId, next: Timestamp, tries: i64) -> Result<(), StoreError> {
    let sql = "UPDATE room_readings SET due_at = $2, tries = $3 WHERE room_id = $1 AND due_at IS NOT NULL";
    tx.execute(sql, values![room_id.as_str(), next, tries]).await?;
    Ok(())
}

/// Has those of these rooms that are being read, read on to what is the newest now; returns them.
///
/// # Errors
/// When the database fails.
pub async fn extend(tx: &mut Tx, room_ids: &[&RoomId]) -> Result<HashSet<String>, StoreError> {
    let rows: Vec<(String,)> = tx
        .fetch_many(
            "UPDATE room_readings SET until_id = NULL WHERE due_at IS NOT NULL AND room_id IN (VALUES {rows}) \
             RETURNING room_id",
            vec![],
            room_ids.iter().map(|room_id| values![room_id.as_str()]).collect(),
        )
        .await?;
    Ok(rows.into_iter().map(|(room_id,)| room_id).collect())
}

/// Lets rooms go on of which all is read, and returns them: of one, somebody may have asked meanwhile for more.
///
/// # Errors
/// When the database fails.
pub async fn delete_ended(tx: &mut Tx, room_ids: &[&RoomId]) -> Result<HashSet<String>, StoreError> {
    let rows: Vec<(String,)> = tx
        .fetch_many(
            "DELETE FROM room_readings WHERE due_at IS NULL AND room_id IN (VALUES {rows}) RETURNING room_id",
            vec![],
            room_ids.iter().map(|room_id| values![room_id.as_str()]).collect(),
        )
        .await?;
    Ok(rows.into_iter().map(|(room_id,)| room_id).collect())
}

/// Forgets that rooms are to be read.
///
/// # Errors
/// When the database fails.
pub async fn delete(tx: &mut Tx, room_ids: &[&RoomId]) -> Result<(), StoreError> {
    tx.execute_many(
        "DELETE FROM room_readings WHERE room_id IN (VALUES {rows})",
        vec![],
        room_ids.iter().map(|room_id| values![room_id.as_str()]).collect(),
    )
    .await?;
    Ok(())
}

/// Returns those of a room's events of which nothing is known: they are no messages, do not wait to become one, were not
/// taken back, and were not passed over as no message.
///
/// # Errors
/// When the database fails.
pub async fn unknown(db: &Db, room_id: &RoomId, event_ids: &[&str]) -> Result<HashSet<String>, StoreError> {
    let known = messages::known_events(db, event_ids).await?;
    let mut unknown: Vec<&str> = event_ids.iter().copied().filter(|id| !known.contains(*id)).collect();
    if unknown.is_empty() {
        return Ok(HashSet::new());
    }
    let dismissed = dismissed::find(db, &unknown).await?;
    let targets: Vec<_> = unknown.iter().map(|id| (room_id.as_str(), *id)).collect();
    let redacted: HashSet<String> =
        redacted::find(db, &targets).await?.into_iter().map(|(_, event_id)| event_id).collect();
    unknown.retain(|id| !dismissed.contains(*id) && !redacted.contains(*id));
    Ok(unknown.into_iter().map(str::to_owned).collect())
}

#[cfg(test)]
#[path = "conformance/readings.rs"]
mod conformance;
