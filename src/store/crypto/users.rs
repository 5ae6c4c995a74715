//! Other users: their devices, their identities, and whose of them are kept up to date.

use std::collections::{BTreeMap, BTreeSet};

use super::{Key, Plain, Rows, Scope, column, find, find_under, keys, put};
use crate::store::{
    Db, StoreError, Tx,
    db::{Value, values},
};

const DEVICES: &str = "crypto_devices";
const IDENTITIES: &str = "crypto_identities";

pub(super) const OF_USER: &str =
    "SELECT device_id, data FROM crypto_devices WHERE account_id = $1 AND user_id = $2";
pub(super) const DELETE_DEVICES: &str =
    "DELETE FROM crypto_devices WHERE (account_id, user_id, device_id) IN (VALUES {rows})";
pub(super) const IDENTITY: &str = "SELECT data FROM crypto_identities WHERE account_id = $1 AND user_id = $2";

/// All devices of a user.
///
/// # Errors
/// When the database fails or a device does not open.
pub async fn find_devices(db: &Db, scope: &Scope<'_>, user_id: &str) -> Result<Vec<Plain>, StoreError> {
    find_under(db, scope, DEVICES, OF_USER, user_id).await
}

/// Saves devices, keyed by (user id, device id).
///
/// # Errors
/// When the database fails.
pub async fn save_devices(tx: &mut Tx, scope: &Scope<'_>, rows: Rows<2>) -> Result<(), StoreError> {
    let sql = "INSERT INTO crypto_devices (account_id, user_id, device_id, data) VALUES {rows} \
               ON CONFLICT (account_id, user_id, device_id) DO UPDATE SET data = excluded.data";
    put(tx, scope, DEVICES, sql, rows).await
}

/// Deletes devices, named by (user id, device id).
///
/// # Errors
/// When the database fails.
pub async fn delete_devices(
    tx: &mut Tx,
    scope: &Scope<'_>,
    devices: BTreeSet<Key<2>>,
) -> Result<(), StoreError> {
    tx.execute_many(DELETE_DEVICES, vec![], keys(scope, devices)).await?;
    Ok(())
}

/// The identity of a user.
///
/// # Errors
/// When the database fails or the identity does not open.
pub async fn find_identity(db: &Db, scope: &Scope<'_>, user_id: &str) -> Result<Option<Plain>, StoreError> {
    find(db, scope, IDENTITIES, IDENTITY, Key::of([user_id])).await
}

/// Saves identities, keyed by user id.
///
/// # Errors
/// When the database fails.
pub async fn save_identities(tx: &mut Tx, scope: &Scope<'_>, rows: Rows<1>) -> Result<(), StoreError> {
    let sql = "INSERT INTO crypto_identities (account_id, user_id, data) VALUES {rows} \
               ON CONFLICT (account_id, user_id) DO UPDATE SET data = excluded.data";
    put(tx, scope, IDENTITIES, sql, rows).await
}

/// The tracked users, each with whether the homeserver has to be asked again.
///
/// # Errors
/// When the database fails.
pub async fn tracked(db: &Db, scope: &Scope<'_>) -> Result<Vec<(String, bool)>, StoreError> {
    let sql = "SELECT user_id, dirty FROM crypto_tracked_users WHERE account_id = $1";
    let rows: Vec<(String, i64)> = db.fetch_all(sql, values![scope.account.0]).await?;
    Ok(rows.into_iter().map(|(user_id, dirty)| (user_id, dirty != 0)).collect())
}

/// Tracks users, each with whether the homeserver has to be asked again.
///
/// An id that a column cannot hold is none that a homeserver hands out; such a user is left out, since its
/// id could not be read back.
///
/// # Errors
/// When the database fails.
pub async fn track(tx: &mut Tx, scope: &Scope<'_>, users: BTreeMap<&str, bool>) -> Result<(), StoreError> {
    let users = users.into_iter().filter(|(user_id, _)| column(user_id) == *user_id);
    let rows = users
        .map(|(user_id, dirty)| vec![Value::from(scope.account.0), Value::from(user_id), Value::from(dirty)]);
    let sql = "INSERT INTO crypto_tracked_users (account_id, user_id, dirty) VALUES {rows} \
               ON CONFLICT (account_id, user_id) DO UPDATE SET dirty = excluded.dirty";
    tx.execute_many(sql, vec![], rows.collect()).await?;
    Ok(())
}
