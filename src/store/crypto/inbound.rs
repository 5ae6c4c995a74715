//! Room keys: inbound Megolm sessions.
//!
//! `backed_up` overrides what the pickle says of itself, so that marking needs no pickle. `created_at` is
//! when the session was first received and never changes; operators watch it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Key, Plain, Scope, claims, keys};
use crate::{
    clock::Timestamp,
    model::AccountId,
    store::{
        Db, StoreError, Tx,
        db::{Value, values},
    },
};

const TABLE: &str = "megolm_inbound_sessions";

/// A session to save, under (room id, session id).
#[derive(Debug)]
pub struct Row {
    /// The Curve25519 key of the device that made the session.
    pub sender_key: String,
    /// What is known of the session's owner, as a number.
    pub sender_data_type: i64,
    /// Whether the key backup has it.
    pub backed_up: bool,
    /// The session itself.
    pub pickle: Plain,
}

/// A session that was read.
#[derive(Debug)]
pub struct Found {
    /// Whether the key backup has it; overrides the pickle.
    pub backed_up: bool,
    /// The session itself.
    pub pickle: Plain,
}

type Stored = (String, String, Vec<u8>, i64);

fn open(scope: &Scope<'_>, (room_id, session_id, pickle, backed_up): Stored) -> Result<Found, StoreError> {
    let pickle = scope.open(TABLE, &Key::stored([room_id, session_id]), &pickle)?;
    Ok(Found { backed_up: backed_up != 0, pickle })
}

fn open_all(scope: &Scope<'_>, rows: Vec<Stored>) -> Result<Vec<Found>, StoreError> {
    rows.into_iter().map(|row| open(scope, row)).collect()
}

pub(super) const FIND: &str = "SELECT room_id, session_id, pickle, backed_up FROM megolm_inbound_sessions \
                               WHERE account_id = $1 AND room_id = $2 AND session_id = $3";
pub(super) const FIND_MANY: &str = "SELECT s.room_id, s.session_id, s.pickle, s.backed_up FROM (VALUES {rows}) AS v \
                                    JOIN megolm_inbound_sessions AS s ON s.account_id = v.column1 \
                                    AND s.room_id = v.column2 AND s.session_id = v.column3";
pub(super) const OF_ROOM: &str = "SELECT room_id, session_id, pickle, backed_up FROM \
                                  megolm_inbound_sessions WHERE account_id = $1 AND room_id = $2";
pub(super) const OF_DEVICE: &str = "SELECT room_id, session_id, pickle, backed_up FROM \
                                    megolm_inbound_sessions WHERE account_id = $1 AND sender_key = $2 \
                                    AND sender_data_type = $3 AND session_id > $4 \
                                    ORDER BY session_id LIMIT $5";
pub(super) const PAGE: &str = "SELECT room_id, session_id, pickle, backed_up FROM megolm_inbound_sessions \
                               WHERE account_id = $1 AND (room_id, session_id) > ($2, $3) \
                               ORDER BY room_id, session_id LIMIT $4";
pub(super) const PAGE_OF_ROOM: &str = "SELECT room_id, session_id, pickle, backed_up FROM \
                                       megolm_inbound_sessions WHERE account_id = $1 AND room_id = $2 \
                                       AND session_id > $3 ORDER BY session_id LIMIT $4";
pub(super) const TO_BACK_UP: &str = "SELECT room_id, session_id, pickle, backed_up FROM \
                                     megolm_inbound_sessions WHERE account_id = $1 AND backed_up = 0 LIMIT $2";
pub(super) const MARK: &str = "UPDATE megolm_inbound_sessions SET backed_up = 1 \
                               WHERE (account_id, room_id, session_id) IN (VALUES {rows})";
pub(super) const DELETE: &str =
    "DELETE FROM megolm_inbound_sessions WHERE (account_id, room_id, session_id) IN (VALUES {rows})";
pub(super) const DELETE_OF_ROOM: &str =
    "DELETE FROM megolm_inbound_sessions WHERE account_id = $1 AND room_id = $2";

/// One session, named by (room id, session id).
///
/// # Errors
/// When the database fails or the pickle does not open.
pub async fn find(db: &Db, scope: &Scope<'_>, key: &Key<2>) -> Result<Option<Found>, StoreError> {
    db.fetch_optional(FIND, scope.values(key)).await?.map(|row| open(scope, row)).transpose()
}

/// Those of some sessions that are there, named by (room id, session id), each of them once.
///
/// # Errors
/// When the database fails or a pickle does not open.
pub async fn find_many(
    db: &Db,
    scope: &Scope<'_>,
    wanted: BTreeSet<Key<2>>,
) -> Result<Vec<Found>, StoreError> {
    open_all(scope, db.fetch_many(FIND_MANY, vec![], keys(scope, wanted)).await?)
}

/// Every session of the account.
///
/// # Errors
/// When the database fails or a pickle does not open.
pub async fn all(db: &Db, scope: &Scope<'_>) -> Result<Vec<Found>, StoreError> {
    let sql = "SELECT room_id, session_id, pickle, backed_up FROM megolm_inbound_sessions \
               WHERE account_id = $1";
    open_all(scope, db.fetch_all(sql, values![scope.account.0]).await?)
}

/// Every session of a room.
///
/// # Errors
/// When the database fails or a pickle does not open.
pub async fn of_room(db: &Db, scope: &Scope<'_>, room_id: &str) -> Result<Vec<Found>, StoreError> {
    open_all(scope, db.fetch_all(OF_ROOM, scope.values(&Key::of([room_id]))).await?)
}

/// Some sessions of one device with one kind of sender data, by session id, those after `after`.
///
/// # Errors
/// When the database fails or a pickle does not open.
pub async fn of_device(
    db: &Db,
    scope: &Scope<'_>,
    sender_key: &str,
    sender_data_type: i64,
    after: Option<&str>,
    limit: usize,
) -> Result<Vec<Found>, StoreError> {
    let Key([sender_key, after]) = Key::of([sender_key, after.unwrap_or_default()]);
    let values = values![scope.account.0, sender_key, sender_data_type, after, bounded(limit)];
    open_all(scope, db.fetch_all(OF_DEVICE, values).await?)
}

/// Some sessions by (room id, session id), those after `after`; given a room, those of it alone.
///
/// # Errors
/// When the database fails or a pickle does not open.
pub async fn page(
    db: &Db,
    scope: &Scope<'_>,
    room_id: Option<&str>,
    after: Option<(&str, &str)>,
    limit: usize,
) -> Result<Vec<Found>, StoreError> {
    let (after_room, after_session) = after.unwrap_or_default();
    let Key([room, session]) = Key::of([room_id.unwrap_or(after_room), after_session]);
    let sql = if room_id.is_some() { PAGE_OF_ROOM } else { PAGE };
    open_all(scope, db.fetch_all(sql, values![scope.account.0, room, session, bounded(limit)]).await?)
}

/// What is known of an account's sessions without opening one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overview {
    /// The sessions.
    pub session_count: u64,
    /// The rooms that they are for.
    pub room_count: u64,
    /// Those that the key backup has.
    pub backed_up_count: u64,
    /// When the first came.
    pub first_at: Option<Timestamp>,
    /// When the last came.
    pub last_at: Option<Timestamp>,
}

/// Sessions, rooms, backed up, first, last.
type OverviewRow = (i64, i64, i64, Option<i64>, Option<i64>);

/// An account's sessions in figures.
///
/// # Errors
/// When the database fails.
pub async fn overview(db: &Db, account: AccountId) -> Result<Overview, StoreError> {
    let sql = "SELECT COUNT(*), COUNT(DISTINCT room_id), COUNT(CASE WHEN backed_up = 1 THEN 1 END), \
               MIN(created_at), MAX(created_at) FROM megolm_inbound_sessions WHERE account_id = $1";
    let row: Option<OverviewRow> = db.fetch_optional(sql, values![account.0]).await?;
    let (sessions, rooms, backed_up, first, last) = row.unwrap_or_default();
    let number = |number: i64| u64::try_from(number).unwrap_or(0);
    Ok(Overview {
        session_count: number(sessions),
        room_count: number(rooms),
        backed_up_count: number(backed_up),
        first_at: first.map(Timestamp),
        last_at: last.map(Timestamp),
    })
}

/// Some sessions that the key backup does not have.
///
/// # Errors
/// When the database fails or a pickle does not open.
pub async fn to_back_up(db: &Db, scope: &Scope<'_>, limit: usize) -> Result<Vec<Found>, StoreError> {
    open_all(scope, db.fetch_all(TO_BACK_UP, values![scope.account.0, bounded(limit)]).await?)
}

pub(super) const RELAYED_TO_BACK_UP: &str = "SELECT s.room_id, s.session_id, s.pickle, s.backed_up FROM megolm_inbound_sessions s \
     JOIN rooms r ON r.room_id = s.room_id \
     WHERE s.account_id = $1 AND s.backed_up = 0 AND r.relay = 'yes' LIMIT $2";

/// Some sessions of relayed rooms that the key backup does not have.
///
/// # Errors
/// When the database fails or a pickle does not open.
pub async fn relayed_to_back_up(db: &Db, scope: &Scope<'_>, limit: usize) -> Result<Vec<Found>, StoreError> {
    open_all(scope, db.fetch_all(RELAYED_TO_BACK_UP, values![scope.account.0, bounded(limit)]).await?)
}

/// How many sessions of relayed rooms the key backup does not have.
///
/// # Errors
/// When the database fails.
pub async fn relayed_not_backed_up(db: &Db, scope: &Scope<'_>) -> Result<u64, StoreError> {
    let sql = "SELECT COUNT(*) FROM megolm_inbound_sessions s JOIN rooms r ON r.room_id = s.room_id \
               WHERE s.account_id = $1 AND s.backed_up = 0 AND r.relay = 'yes'";
    let row: Option<(i64,)> = db.fetch_optional(sql, values![scope.account.0]).await?;
    row.map_or(Ok(0), |(count,)| u64::try_from(count).map_err(|_| StoreError::Corrupt(TABLE)))
}

fn bounded(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// How many sessions there are, and how many of them the key backup has.
///
/// # Errors
/// When the database fails.
pub async fn count(db: &Db, scope: &Scope<'_>) -> Result<(usize, usize), StoreError> {
    let sql = "SELECT COUNT(*), COUNT(CASE WHEN backed_up = 1 THEN 1 END) FROM megolm_inbound_sessions \
               WHERE account_id = $1";
    let row: Option<(i64, i64)> = db.fetch_optional(sql, values![scope.account.0]).await?;
    let (total, backed_up) = row.unwrap_or_default();
    let count = |count| usize::try_from(count).map_err(|_| StoreError::Corrupt(TABLE));
    Ok((count(total)?, count(backed_up)?))
}

/// Saves sessions, keyed by (room id, session id), over what was there.
///
/// # Errors
/// When the database fails.
pub async fn save(
    tx: &mut Tx,
    scope: &Scope<'_>,
    rows: BTreeMap<Key<2>, Row>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let rows = rows.into_iter().map(|(key, row)| {
        let pickle = scope.seal(TABLE, &key, &row.pickle)?;
        let mut values = scope.values(&key);
        values.extend([
            Value::from(now),
            Value::from(row.sender_key),
            Value::from(row.sender_data_type),
            Value::from(row.backed_up),
            Value::from(pickle),
        ]);
        Ok(values)
    });
    let rows = rows.collect::<Result<_, StoreError>>()?;
    let sql = "INSERT INTO megolm_inbound_sessions (account_id, room_id, session_id, created_at, sender_key, \
               sender_data_type, backed_up, pickle) VALUES {rows} \
               ON CONFLICT (account_id, room_id, session_id) DO UPDATE SET \
               sender_key = excluded.sender_key, sender_data_type = excluded.sender_data_type, \
               backed_up = excluded.backed_up, pickle = excluded.pickle";
    tx.execute_many(sql, vec![], rows).await?;
    Ok(())
}

/// Marks sessions as backed up.
///
/// # Errors
/// When the database fails.
pub async fn mark_backed_up(
    tx: &mut Tx,
    scope: &Scope<'_>,
    sessions: BTreeSet<Key<2>>,
) -> Result<(), StoreError> {
    tx.execute_many(MARK, vec![], keys(scope, sessions)).await?;
    Ok(())
}

/// Marks every session as not backed up.
///
/// # Errors
/// When the database fails.
pub async fn reset_backup(tx: &mut Tx, scope: &Scope<'_>) -> Result<(), StoreError> {
    let sql = "UPDATE megolm_inbound_sessions SET backed_up = 0 WHERE account_id = $1 AND backed_up <> 0";
    tx.execute(sql, values![scope.account.0]).await?;
    Ok(())
}

/// Deletes sessions and answers how many there were.
///
/// # Errors
/// When the database fails.
pub async fn delete(tx: &mut Tx, scope: &Scope<'_>, sessions: BTreeSet<Key<2>>) -> Result<u64, StoreError> {
    tx.execute_many(claims::DELETE, vec![], keys(scope, sessions.clone())).await?;
    tx.execute_many(DELETE, vec![], keys(scope, sessions)).await
}

/// Deletes every session of a room and answers how many there were.
///
/// # Errors
/// When the database fails.
pub async fn delete_of_room(tx: &mut Tx, scope: &Scope<'_>, room_id: &str) -> Result<u64, StoreError> {
    tx.execute(
        "DELETE FROM megolm_claims WHERE account_id = $1 AND room_id = $2",
        scope.values(&Key::of([room_id])),
    )
    .await?;
    tx.execute(DELETE_OF_ROOM, scope.values(&Key::of([room_id]))).await
}
