//! To-device messages that `coucou check` sends to our own device, as they come in.
//!
//! Whoever works the crypto notes each way by which one came, so that the command sees, from another process and with
//! several instances, whether keys would have come by push, by the key lane, or both. Rows are kept for an hour.

use super::{Db, StoreError, Tx, db::values};
use crate::clock::Timestamp;

/// Notes messages that have come: nonce and way. One that is noted already stays as it is.
///
/// # Errors
/// When the database fails.
pub async fn put(tx: &mut Tx, seen: &[(String, &'static str)], now: Timestamp) -> Result<(), StoreError> {
    let rows = seen.iter().map(|(nonce, source)| values![nonce.as_str(), *source, now]).collect();
    tx.execute_many(
        "INSERT INTO probes (nonce, source, seen_at) VALUES {rows} ON CONFLICT (nonce, source) DO NOTHING",
        vec![],
        rows,
    )
    .await?;
    Ok(())
}

/// The ways by which one has come.
///
/// # Errors
/// When the database fails.
pub async fn find(db: &Db, nonce: &str) -> Result<Vec<String>, StoreError> {
    let rows: Vec<(String,)> =
        db.fetch_all("SELECT source FROM probes WHERE nonce = $1 ORDER BY source", values![nonce]).await?;
    Ok(rows.into_iter().map(|(source,)| source).collect())
}

/// Forgets those that came before a time.
///
/// # Errors
/// When the database fails.
pub async fn prune(tx: &mut Tx, before: Timestamp) -> Result<u64, StoreError> {
    tx.execute("DELETE FROM probes WHERE seen_at < $1", values![before]).await
}

#[cfg(test)]
#[path = "conformance/probes.rs"]
mod conformance;
