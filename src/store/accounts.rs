//! The Matrix users that coucou reads as, and the device of each.

use ruma::{OwnedDeviceId, OwnedUserId, UserId};

use super::{Db, StoreError, Tx, db::values};
use crate::{
    clock::Timestamp,
    model::{Account, AccountId, Role, text::Text},
};

type AccountRow = (i64, String, String, String, Option<String>);

fn account((id, user_id, device_id, role, sync_token): AccountRow) -> Result<Account, StoreError> {
    const CORRUPT: StoreError = StoreError::Corrupt("accounts");
    Ok(Account {
        id: AccountId(id),
        user_id: OwnedUserId::try_from(user_id).map_err(|_| CORRUPT)?,
        device_id: OwnedDeviceId::from(device_id),
        role: Role::parse(&role).ok_or(CORRUPT)?,
        sync_token,
    })
}

/// The account that is in use for a user, if there is one.
///
/// # Errors
/// When the database fails.
pub async fn find(db: &Db, user_id: &UserId) -> Result<Option<Account>, StoreError> {
    db.fetch_optional::<AccountRow>(
        "SELECT account_id, user_id, device_id, role, sync_token FROM accounts \
         WHERE user_id = $1 AND retired_at IS NULL",
        values![user_id.as_str()],
    )
    .await?
    .map(account)
    .transpose()
}

/// When an account was made.
///
/// # Errors
/// When the database fails or there is no such account.
pub async fn created_at(db: &Db, id: AccountId) -> Result<Timestamp, StoreError> {
    let row: Option<(i64,)> =
        db.fetch_optional("SELECT created_at FROM accounts WHERE account_id = $1", values![id.0]).await?;
    row.map(|(created_at,)| Timestamp(created_at)).ok_or(StoreError::Corrupt("accounts"))
}

/// All accounts in use, the bot first.
///
/// # Errors
/// When the database fails.
pub async fn all(db: &Db) -> Result<Vec<Account>, StoreError> {
    db.fetch_all::<AccountRow>(
        "SELECT account_id, user_id, device_id, role, sync_token FROM accounts \
         WHERE retired_at IS NULL ORDER BY role, account_id",
        vec![],
    )
    .await?
    .into_iter()
    .map(account)
    .collect()
}

/// Adds an account; the device id is settled here, before the homeserver hears of it, so that a process
/// that dies in between goes on with the same device.
///
/// # Errors
/// When the database fails or the user has an account already.
pub async fn insert(
    tx: &mut Tx,
    user_id: &UserId,
    device_id: &OwnedDeviceId,
    role: Role,
    now: Timestamp,
) -> Result<AccountId, StoreError> {
    let row: Option<(i64,)> = tx
        .fetch_optional(
            "INSERT INTO accounts (user_id, device_id, role, created_at) VALUES ($1, $2, $3, $4) \
             RETURNING account_id",
            values![user_id.as_str(), device_id.as_str(), role.as_str(), now],
        )
        .await?;
    row.map(|(id,)| AccountId(id)).ok_or(StoreError::Corrupt("accounts"))
}

/// Keeps the position of the key lane, in the transaction that stores what came with it.
///
/// # Errors
/// When the database fails.
pub async fn set_sync_token(tx: &mut Tx, id: AccountId, token: &str) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE accounts SET sync_token = $2 WHERE account_id = $1",
        values![id.0, Text::of_token(token)],
    )
    .await?;
    Ok(())
}

/// Forgets the position of the key lane, because the homeserver does not know it any more.
///
/// # Errors
/// When the database fails.
pub async fn forget_sync_token(tx: &mut Tx, id: AccountId) -> Result<(), StoreError> {
    tx.execute("UPDATE accounts SET sync_token = NULL WHERE account_id = $1", values![id.0]).await?;
    Ok(())
}

/// Up to where the timelines of the account's rooms were compared with what was pushed; before the first
/// comparison, where the key lane stands. `None` before either has begun.
///
/// # Errors
/// When the database fails.
pub async fn events_token(db: &Db, id: AccountId) -> Result<Option<String>, StoreError> {
    let row: Option<(Option<String>,)> = db
        .fetch_optional(
            "SELECT COALESCE(events_token, sync_token) FROM accounts WHERE account_id = $1",
            values![id.0],
        )
        .await?;
    Ok(row.and_then(|(token,)| token))
}

/// Keeps how far timelines were compared, in the transaction that stores what was missing; `None` begins anew
/// where the key lane stands.
///
/// # Errors
/// When the database fails.
pub async fn set_events_token(tx: &mut Tx, id: AccountId, token: Option<&str>) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE accounts SET events_token = $2 WHERE account_id = $1",
        values![id.0, token.map(Text::of_token)],
    )
    .await?;
    Ok(())
}

#[cfg(test)]
#[path = "conformance/missed.rs"]
mod conformance;
