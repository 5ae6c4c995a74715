//! What was asked of key backups, so that nothing is asked too often.

use ruma::{OwnedRoomId, RoomId};

use super::{Db, StoreError, Tx, db::values};
use crate::{clock::Timestamp, model::AccountId};

const TABLE: &str = "backup_lookups";

/// Relayed rooms whose keys were not yet read from this version of an account's backup.
///
/// # Errors
/// When the database fails.
pub async fn unread_rooms(
    db: &Db,
    account_id: AccountId,
    version: &str,
    most: i64,
) -> Result<Vec<OwnedRoomId>, StoreError> {
    let rows: Vec<(String,)> = db
        .fetch_all(
            "SELECT r.room_id FROM rooms r LEFT JOIN backup_rooms b \
             ON b.room_id = r.room_id AND b.account_id = $1 AND b.version = $2 \
             WHERE r.relay = 'yes' AND b.room_id IS NULL ORDER BY r.room_id LIMIT $3",
            values![account_id.0, version, most],
        )
        .await?;
    let room = |(room_id,)| OwnedRoomId::try_from(room_id).map_err(|_| StoreError::Corrupt("rooms"));
    rows.into_iter().map(room).collect()
}

/// Notes that a room's keys were read.
///
/// # Errors
/// When the database fails.
pub async fn room_was_read(
    tx: &mut Tx,
    account_id: AccountId,
    room_id: &RoomId,
    version: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO backup_rooms (account_id, room_id, version, read_at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (account_id, room_id) DO UPDATE SET version = excluded.version, read_at = excluded.read_at",
        values![account_id.0, room_id.as_str(), version, now],
    )
    .await?;
    Ok(())
}

/// A session to ask the backups for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueLookup {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The session.
    pub session_id: String,
    /// How often it was asked for.
    pub tries: i64,
}

/// Sessions that events on the ledger wait for and no account holds, and that are due to be asked for.
///
/// # Errors
/// When the database fails.
pub async fn due_lookups(db: &Db, now: Timestamp, most: i64) -> Result<Vec<DueLookup>, StoreError> {
    let rows: Vec<(String, String, i64)> = db
        .fetch_all(
            "SELECT DISTINCT p.room_id, p.session_id, COALESCE(l.tries, 0) FROM pending_events p \
             LEFT JOIN backup_lookups l ON l.room_id = p.room_id AND l.session_id = p.session_id \
             WHERE p.session_id IS NOT NULL AND (l.due_at IS NULL OR l.due_at <= $1) \
             AND (p.reason = 'no_key' OR p.reason LIKE 'withheld:%') \
             AND NOT EXISTS (SELECT 1 FROM megolm_inbound_sessions s \
                 WHERE s.room_id = p.room_id AND s.session_id = p.session_id) LIMIT $2",
            values![now, most],
        )
        .await?;
    rows.into_iter()
        .map(|(room_id, session_id, tries)| {
            let room_id = OwnedRoomId::try_from(room_id).map_err(|_| StoreError::Corrupt(TABLE))?;
            Ok(DueLookup { room_id, session_id, tries })
        })
        .collect()
}

/// A session that was asked for, and when it is due again.
pub type Answered = ((OwnedRoomId, String), Timestamp);

/// Notes that sessions were asked for.
///
/// # Errors
/// When the database fails.
pub async fn were_looked_up(tx: &mut Tx, sessions: &[Answered]) -> Result<(), StoreError> {
    tx.execute_many(
        "INSERT INTO backup_lookups (room_id, session_id, tries, due_at) VALUES {rows} \
         ON CONFLICT (room_id, session_id) DO UPDATE SET tries = backup_lookups.tries + 1, \
         due_at = excluded.due_at",
        vec![],
        sessions
            .iter()
            .map(|((room_id, session_id), due_at)| {
                values![room_id.as_str(), session_id.as_str(), 1_i64, *due_at]
            })
            .collect(),
    )
    .await?;
    Ok(())
}
