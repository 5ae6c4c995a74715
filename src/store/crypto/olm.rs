//! Olm sessions, and the messages that were decrypted with them.

use std::collections::BTreeSet;

use super::{Key, Plain, Rows, Scope, find_under, keys, put};
use crate::{
    clock::Timestamp,
    store::{
        Db, StoreError, Tx,
        db::{Value, Values},
    },
};

const SESSIONS: &str = "olm_sessions";

pub(super) const FIND_SESSIONS: &str =
    "SELECT session_id, pickle FROM olm_sessions WHERE account_id = $1 AND sender_key = $2";
pub(super) const IS_KNOWN: &str = "SELECT CAST(1 AS BIGINT) FROM olm_hashes \
                                   WHERE account_id = $1 AND sender_key = $2 AND hash = $3";

/// The pickles of all sessions with the device that has this key.
///
/// # Errors
/// When the database fails or a pickle does not open.
pub async fn find_sessions(db: &Db, scope: &Scope<'_>, sender_key: &str) -> Result<Vec<Plain>, StoreError> {
    find_under(db, scope, SESSIONS, FIND_SESSIONS, sender_key).await
}

/// Saves sessions, keyed by (sender key, session id).
///
/// # Errors
/// When the database fails.
pub async fn save_sessions(tx: &mut Tx, scope: &Scope<'_>, rows: Rows<2>) -> Result<(), StoreError> {
    let sql = "INSERT INTO olm_sessions (account_id, sender_key, session_id, pickle) VALUES {rows} \
               ON CONFLICT (account_id, sender_key, session_id) DO UPDATE SET pickle = excluded.pickle";
    put(tx, scope, SESSIONS, sql, rows).await
}

/// Whether a message, named by (sender key, hash), was decrypted before.
///
/// # Errors
/// When the database fails.
pub async fn is_known(db: &Db, scope: &Scope<'_>, message: &Key<2>) -> Result<bool, StoreError> {
    Ok(db.fetch_optional::<(i64,)>(IS_KNOWN, scope.values(message)).await?.is_some())
}

/// Remembers decrypted messages, named by (sender key, hash).
///
/// # Errors
/// When the database fails.
pub async fn save_hashes(
    tx: &mut Tx,
    scope: &Scope<'_>,
    messages: BTreeSet<Key<2>>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let mut rows: Vec<Values> = keys(scope, messages);
    for row in &mut rows {
        row.push(Value::from(now));
    }
    let sql = "INSERT INTO olm_hashes (account_id, sender_key, hash, created_at) VALUES {rows} \
               ON CONFLICT (account_id, sender_key, hash) DO NOTHING";
    tx.execute_many(sql, vec![], rows).await?;
    Ok(())
}
