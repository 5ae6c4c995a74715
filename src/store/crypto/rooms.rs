//! What belongs to a room: the outbound session, withheld keys, settings, key bundles.

use std::collections::BTreeSet;

use super::{Key, Plain, Rows, Scope, find, find_under, keys, put};
use crate::store::{Db, StoreError, Tx, db::values};

const OUTBOUND: &str = "megolm_outbound_sessions";
const WITHHELD: &str = "megolm_withheld";
const SETTINGS: &str = "crypto_room_settings";
const BUNDLES: &str = "crypto_key_bundles";
const PENDING: &str = "crypto_pending_key_bundles";

pub(super) const FIND_WITHHELD: &str =
    "SELECT data FROM megolm_withheld WHERE account_id = $1 AND room_id = $2 AND session_id = $3";

/// The session that we encrypt with in a room.
///
/// # Errors
/// When the database fails or the pickle does not open.
pub async fn find_outbound(db: &Db, scope: &Scope<'_>, room_id: &str) -> Result<Option<Plain>, StoreError> {
    let sql = "SELECT pickle FROM megolm_outbound_sessions WHERE account_id = $1 AND room_id = $2";
    find(db, scope, OUTBOUND, sql, Key::of([room_id])).await
}

/// Saves outbound sessions, keyed by room id.
///
/// # Errors
/// When the database fails.
pub async fn save_outbound(tx: &mut Tx, scope: &Scope<'_>, rows: Rows<1>) -> Result<(), StoreError> {
    let sql = "INSERT INTO megolm_outbound_sessions (account_id, room_id, pickle) VALUES {rows} \
               ON CONFLICT (account_id, room_id) DO UPDATE SET pickle = excluded.pickle";
    put(tx, scope, OUTBOUND, sql, rows).await
}

/// Why a session, named by (room id, session id), is withheld from us.
///
/// # Errors
/// When the database fails or the row does not open.
pub async fn find_withheld(db: &Db, scope: &Scope<'_>, session: Key<2>) -> Result<Option<Plain>, StoreError> {
    find(db, scope, WITHHELD, FIND_WITHHELD, session).await
}

/// Every withheld session of a room.
///
/// # Errors
/// When the database fails or a row does not open.
pub async fn withheld_of_room(db: &Db, scope: &Scope<'_>, room_id: &str) -> Result<Vec<Plain>, StoreError> {
    let sql = "SELECT session_id, data FROM megolm_withheld WHERE account_id = $1 AND room_id = $2";
    find_under(db, scope, WITHHELD, sql, room_id).await
}

/// Saves withheld sessions, keyed by (room id, session id).
///
/// # Errors
/// When the database fails.
pub async fn save_withheld(tx: &mut Tx, scope: &Scope<'_>, rows: Rows<2>) -> Result<(), StoreError> {
    let sql = "INSERT INTO megolm_withheld (account_id, room_id, session_id, data) VALUES {rows} \
               ON CONFLICT (account_id, room_id, session_id) DO UPDATE SET data = excluded.data";
    put(tx, scope, WITHHELD, sql, rows).await
}

/// A room's encryption settings.
///
/// # Errors
/// When the database fails or the row does not open.
pub async fn find_settings(db: &Db, scope: &Scope<'_>, room_id: &str) -> Result<Option<Plain>, StoreError> {
    let sql = "SELECT data FROM crypto_room_settings WHERE account_id = $1 AND room_id = $2";
    find(db, scope, SETTINGS, sql, Key::of([room_id])).await
}

/// Saves encryption settings, keyed by room id.
///
/// # Errors
/// When the database fails.
pub async fn save_settings(tx: &mut Tx, scope: &Scope<'_>, rows: Rows<1>) -> Result<(), StoreError> {
    let sql = "INSERT INTO crypto_room_settings (account_id, room_id, data) VALUES {rows} \
               ON CONFLICT (account_id, room_id) DO UPDATE SET data = excluded.data";
    put(tx, scope, SETTINGS, sql, rows).await
}

/// The key bundle that a user, named by (room id, user id), has sent.
///
/// # Errors
/// When the database fails or the row does not open.
pub async fn find_bundle(db: &Db, scope: &Scope<'_>, bundle: Key<2>) -> Result<Option<Plain>, StoreError> {
    let sql = "SELECT data FROM crypto_key_bundles WHERE account_id = $1 AND room_id = $2 AND sender = $3";
    find(db, scope, BUNDLES, sql, bundle).await
}

/// Saves key bundles, keyed by (room id, user id).
///
/// # Errors
/// When the database fails.
pub async fn save_bundles(tx: &mut Tx, scope: &Scope<'_>, rows: Rows<2>) -> Result<(), StoreError> {
    let sql = "INSERT INTO crypto_key_bundles (account_id, room_id, sender, data) VALUES {rows} \
               ON CONFLICT (account_id, room_id, sender) DO UPDATE SET data = excluded.data";
    put(tx, scope, BUNDLES, sql, rows).await
}

/// What is known of the key bundle awaited for a room.
///
/// # Errors
/// When the database fails or the row does not open.
pub async fn find_pending(db: &Db, scope: &Scope<'_>, room_id: &str) -> Result<Option<Plain>, StoreError> {
    let sql = "SELECT data FROM crypto_pending_key_bundles WHERE account_id = $1 AND room_id = $2";
    find(db, scope, PENDING, sql, Key::of([room_id])).await
}

/// All awaited key bundles.
///
/// # Errors
/// When the database fails or a row does not open.
pub async fn all_pending(db: &Db, scope: &Scope<'_>) -> Result<Vec<Plain>, StoreError> {
    let sql = "SELECT room_id, data FROM crypto_pending_key_bundles WHERE account_id = $1";
    let rows: Vec<(String, Vec<u8>)> = db.fetch_all(sql, values![scope.account.0]).await?;
    let open = |(room, sealed): (String, Vec<u8>)| scope.open(PENDING, &Key::stored([room]), &sealed);
    rows.into_iter().map(open).collect()
}

/// Awaits key bundles, keyed by room id.
///
/// # Errors
/// When the database fails.
pub async fn save_pending(tx: &mut Tx, scope: &Scope<'_>, rows: Rows<1>) -> Result<(), StoreError> {
    let sql = "INSERT INTO crypto_pending_key_bundles (account_id, room_id, data) VALUES {rows} \
               ON CONFLICT (account_id, room_id) DO UPDATE SET data = excluded.data";
    put(tx, scope, PENDING, sql, rows).await
}

/// Awaits the key bundles of these rooms no longer.
///
/// # Errors
/// When the database fails.
pub async fn delete_pending(
    tx: &mut Tx,
    scope: &Scope<'_>,
    rooms: BTreeSet<Key<1>>,
) -> Result<(), StoreError> {
    let sql = "DELETE FROM crypto_pending_key_bundles WHERE (account_id, room_id) IN (VALUES {rows})";
    tx.execute_many(sql, vec![], keys(scope, rooms)).await?;
    Ok(())
}

/// Whether all keys of a room were fetched from the key backup.
///
/// # Errors
/// When the database fails.
pub async fn is_downloaded(db: &Db, scope: &Scope<'_>, room_id: &str) -> Result<bool, StoreError> {
    let sql = "SELECT CAST(1 AS BIGINT) FROM crypto_downloaded_rooms WHERE account_id = $1 AND room_id = $2";
    Ok(db.fetch_optional::<(i64,)>(sql, scope.values(&Key::of([room_id]))).await?.is_some())
}

/// Remembers that all keys of these rooms were fetched from the key backup.
///
/// # Errors
/// When the database fails.
pub async fn save_downloaded(
    tx: &mut Tx,
    scope: &Scope<'_>,
    rooms: BTreeSet<Key<1>>,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO crypto_downloaded_rooms (account_id, room_id) VALUES {rows} \
               ON CONFLICT (account_id, room_id) DO NOTHING";
    tx.execute_many(sql, vec![], keys(scope, rooms)).await?;
    Ok(())
}
