//! What there is one of for each account, custom values, and named locks.

use std::time::Duration;

use super::{Key, Plain, Rows, Scope, find, put};
use crate::{
    clock::Timestamp,
    store::{Db, StoreError, Tx, db::values},
};

const TABLE: &str = "crypto_values";
const CUSTOM: &str = "crypto_custom_values";

/// The names of the values there are one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// The Olm account: the device's private keys and one-time keys.
    Account,
    /// The private cross-signing keys.
    PrivateIdentity,
    /// Where the next `/sync` of the SDK begins.
    NextBatchToken,
    /// The key that opens the key backup.
    BackupDecryptionKey,
    /// The version of the key backup in use.
    BackupVersion,
    /// What opens our dehydrated device.
    DehydratedDeviceKey,
}

impl Name {
    /// The key of the value's row.
    #[must_use]
    pub fn key(self) -> Key<1> {
        Key::of([match self {
            Self::Account => "account",
            Self::PrivateIdentity => "private_identity",
            Self::NextBatchToken => "next_batch_token",
            Self::BackupDecryptionKey => "backup_decryption_key",
            Self::BackupVersion => "backup_version",
            Self::DehydratedDeviceKey => "dehydrated_device_key",
        }])
    }
}

/// A value, if it was ever set.
///
/// # Errors
/// When the database fails or the value does not open.
pub async fn find_value(db: &Db, scope: &Scope<'_>, name: Name) -> Result<Option<Plain>, StoreError> {
    let sql = "SELECT value FROM crypto_values WHERE account_id = $1 AND name = $2";
    find(db, scope, TABLE, sql, name.key()).await
}

/// Sets values.
///
/// # Errors
/// When the database fails.
pub async fn set_values(tx: &mut Tx, scope: &Scope<'_>, rows: Rows<1>) -> Result<(), StoreError> {
    let sql = "INSERT INTO crypto_values (account_id, name, value) VALUES {rows} \
               ON CONFLICT (account_id, name) DO UPDATE SET value = excluded.value";
    put(tx, scope, TABLE, sql, rows).await
}

/// Deletes a value.
///
/// # Errors
/// When the database fails.
pub async fn delete_value(tx: &mut Tx, scope: &Scope<'_>, name: Name) -> Result<(), StoreError> {
    let sql = "DELETE FROM crypto_values WHERE account_id = $1 AND name = $2";
    tx.execute(sql, scope.values(&name.key())).await?;
    Ok(())
}

/// A custom value, if it is set.
///
/// # Errors
/// When the database fails or the value does not open.
pub async fn find_custom(db: &Db, scope: &Scope<'_>, name: &str) -> Result<Option<Plain>, StoreError> {
    let sql = "SELECT value FROM crypto_custom_values WHERE account_id = $1 AND name = $2";
    find(db, scope, CUSTOM, sql, Key::of([name])).await
}

/// Sets a custom value.
///
/// # Errors
/// When the database fails.
pub async fn set_custom(tx: &mut Tx, scope: &Scope<'_>, name: &str, value: Plain) -> Result<(), StoreError> {
    let sql = "INSERT INTO crypto_custom_values (account_id, name, value) VALUES {rows} \
               ON CONFLICT (account_id, name) DO UPDATE SET value = excluded.value";
    put(tx, scope, CUSTOM, sql, Rows::from([(Key::of([name]), value)])).await
}

/// Deletes a custom value.
///
/// # Errors
/// When the database fails.
pub async fn delete_custom(tx: &mut Tx, scope: &Scope<'_>, name: &str) -> Result<(), StoreError> {
    let sql = "DELETE FROM crypto_custom_values WHERE account_id = $1 AND name = $2";
    tx.execute(sql, scope.values(&Key::of([name]))).await?;
    Ok(())
}

/// Takes or prolongs the lock `name` for `holder`; `None` while another holds it.
///
/// Answers the lock's generation: 1 at first, one more with every change of hands.
///
/// # Errors
/// When the database fails.
pub async fn take_lock(
    tx: &mut Tx,
    scope: &Scope<'_>,
    name: &str,
    holder: &str,
    now: Timestamp,
    lasts: Duration,
) -> Result<Option<u64>, StoreError> {
    let Key([name]) = Key::of([name]);
    let taken: Option<(i64,)> = tx
        .fetch_optional(
            "INSERT INTO crypto_locks (account_id, name, holder, generation, expires_at) \
             VALUES ($1, $2, $3, 1, $4) \
             ON CONFLICT (account_id, name) DO UPDATE SET \
                 holder = excluded.holder, expires_at = excluded.expires_at, \
                 generation = crypto_locks.generation \
                     + CASE WHEN crypto_locks.holder = excluded.holder THEN 0 ELSE 1 END \
             WHERE crypto_locks.holder = excluded.holder OR crypto_locks.expires_at <= $5 \
             RETURNING generation",
            values![scope.account.0, name, holder, now.plus(lasts), now],
        )
        .await?;
    taken
        .map(|(generation,)| u64::try_from(generation).map_err(|_| StoreError::Corrupt("crypto_locks")))
        .transpose()
}
