//! Keys and secrets that we ask for, and the secrets that came.

use std::collections::BTreeMap;

use super::{Key, Plain, Scope, column};
use crate::{
    clock::Timestamp,
    store::{
        Db, StoreError, Tx,
        db::{Value, values},
    },
};

const REQUESTS: &str = "crypto_key_requests";
const SECRETS: &str = "crypto_secrets";

/// A request to save, under its id.
#[derive(Debug)]
pub struct Row {
    /// What is asked for.
    pub info: String,
    /// Whether it was sent.
    pub sent_out: bool,
    /// The request itself.
    pub data: Plain,
}

/// A request that was read.
#[derive(Debug)]
pub struct Found {
    /// Whether it was sent; overrides the data.
    pub sent_out: bool,
    /// The request itself.
    pub data: Plain,
}

type Stored = (String, Vec<u8>, i64);

fn open(scope: &Scope<'_>, (request_id, data, sent_out): Stored) -> Result<Found, StoreError> {
    let data = scope.open(REQUESTS, &Key::stored([request_id]), &data)?;
    Ok(Found { sent_out: sent_out != 0, data })
}

pub(super) const BY_INFO: &str = "SELECT request_id, data, sent_out FROM crypto_key_requests \
                                  WHERE account_id = $1 AND info = $2 \
                                  ORDER BY created_at DESC, request_id LIMIT 1";
pub(super) const UNSENT: &str = "SELECT request_id, data, sent_out FROM crypto_key_requests \
                                 WHERE account_id = $1 AND sent_out = 0";

/// The request of that id.
///
/// # Errors
/// When the database fails or the row does not open.
pub async fn find(db: &Db, scope: &Scope<'_>, request_id: &str) -> Result<Option<Found>, StoreError> {
    let sql = "SELECT request_id, data, sent_out FROM crypto_key_requests \
               WHERE account_id = $1 AND request_id = $2";
    let row = db.fetch_optional(sql, scope.values(&Key::of([request_id]))).await?;
    row.map(|row| open(scope, row)).transpose()
}

/// The newest request for that.
///
/// # Errors
/// When the database fails or the row does not open.
pub async fn find_by_info(db: &Db, scope: &Scope<'_>, info: &str) -> Result<Option<Found>, StoreError> {
    let row = db.fetch_optional(BY_INFO, scope.values(&Key::of([info]))).await?;
    row.map(|row| open(scope, row)).transpose()
}

/// The requests that were not sent yet.
///
/// # Errors
/// When the database fails or a row does not open.
pub async fn unsent(db: &Db, scope: &Scope<'_>) -> Result<Vec<Found>, StoreError> {
    let rows: Vec<Stored> = db.fetch_all(UNSENT, values![scope.account.0]).await?;
    rows.into_iter().map(|row| open(scope, row)).collect()
}

/// Saves requests, keyed by id.
///
/// # Errors
/// When the database fails.
pub async fn save(
    tx: &mut Tx,
    scope: &Scope<'_>,
    rows: BTreeMap<Key<1>, Row>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let rows = rows.into_iter().map(|(key, row)| {
        let data = scope.seal(REQUESTS, &key, &row.data)?;
        let mut values = scope.values(&key);
        values.extend([
            Value::from(&*column(&row.info)),
            Value::from(row.sent_out),
            Value::from(now),
            Value::from(data),
        ]);
        Ok(values)
    });
    let rows = rows.collect::<Result<_, StoreError>>()?;
    let sql = "INSERT INTO crypto_key_requests (account_id, request_id, info, sent_out, created_at, data) \
               VALUES {rows} ON CONFLICT (account_id, request_id) DO UPDATE SET \
               info = excluded.info, sent_out = excluded.sent_out, data = excluded.data";
    tx.execute_many(sql, vec![], rows).await?;
    Ok(())
}

/// Deletes a request.
///
/// # Errors
/// When the database fails.
pub async fn delete(tx: &mut Tx, scope: &Scope<'_>, request_id: &str) -> Result<(), StoreError> {
    let sql = "DELETE FROM crypto_key_requests WHERE account_id = $1 AND request_id = $2";
    tx.execute(sql, scope.values(&Key::of([request_id]))).await?;
    Ok(())
}

/// The secrets of a name that came and were not taken, in the order in which they came.
///
/// # Errors
/// When the database fails or a secret does not open.
pub async fn secrets(db: &Db, scope: &Scope<'_>, name: &str) -> Result<Vec<Plain>, StoreError> {
    let sql = "SELECT position, data FROM crypto_secrets WHERE account_id = $1 AND name = $2 \
               ORDER BY position";
    let rows: Vec<(i64, Vec<u8>)> = db.fetch_all(sql, scope.values(&Key::of([name]))).await?;
    let open = |(at, sealed): (i64, Vec<u8>)| scope.open(SECRETS, &secret(name, at), &sealed);
    rows.into_iter().map(open).collect()
}

/// Adds secrets, each with its name.
///
/// # Errors
/// When the database fails.
pub async fn add_secrets(
    tx: &mut Tx,
    scope: &Scope<'_>,
    secrets: Vec<(String, Plain)>,
) -> Result<(), StoreError> {
    if secrets.is_empty() {
        return Ok(());
    }
    let sql = "SELECT COALESCE(MAX(position), CAST(0 AS BIGINT)) FROM crypto_secrets WHERE account_id = $1";
    let last: Option<(i64,)> = tx.fetch_optional(sql, values![scope.account.0]).await?;
    let (last,) = last.unwrap_or_default();
    let rows = (last.saturating_add(1)..).zip(secrets).map(|(at, (name, plain))| {
        let sealed = scope.seal(SECRETS, &secret(&name, at), &plain)?;
        Ok(values![scope.account.0, &*column(&name), at, sealed])
    });
    let rows = rows.collect::<Result<_, StoreError>>()?;
    let sql = "INSERT INTO crypto_secrets (account_id, name, position, data) VALUES {rows}";
    tx.execute_many(sql, vec![], rows).await?;
    Ok(())
}

fn secret(name: &str, position: i64) -> Key<2> {
    Key::of([name, &position.to_string()])
}

/// Deletes the secrets of a name.
///
/// # Errors
/// When the database fails.
pub async fn delete_secrets(tx: &mut Tx, scope: &Scope<'_>, name: &str) -> Result<(), StoreError> {
    let sql = "DELETE FROM crypto_secrets WHERE account_id = $1 AND name = $2";
    tx.execute(sql, scope.values(&Key::of([name]))).await?;
    Ok(())
}
