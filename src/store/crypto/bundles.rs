//! Key bundles that are to be fetched ([MSC4268](https://github.com/matrix-org/matrix-spec-proposals/pull/4268)), and when.

use std::collections::BTreeSet;

use super::{Key, Scope, keys};
use crate::{
    clock::Timestamp,
    model::AccountId,
    store::{
        Db, StoreError, Tx,
        db::{Value, values},
    },
};

/// A bundle to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// The account that it was sent to.
    pub account_id: AccountId,
    /// The room and the sender, as they name the bundle.
    pub bundle: Key<2>,
    /// How often it was tried.
    pub tries: i64,
}

pub(in crate::store) const DUE: &str = "SELECT account_id, room_id, sender, tries FROM key_bundle_fetches \
     WHERE due_at <= $1 ORDER BY due_at LIMIT $2";

/// Has bundles fetched, keyed by (room id, user id): they are new, or others than before.
///
/// # Errors
/// When the database fails.
pub async fn want(
    tx: &mut Tx,
    scope: &Scope<'_>,
    bundles: BTreeSet<Key<2>>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let rows = bundles.iter().map(|bundle| {
        let mut values = scope.values(bundle);
        values.extend([Value::from(now), Value::from(0_i64)]);
        values
    });
    tx.execute_many(
        "INSERT INTO key_bundle_fetches (account_id, room_id, sender, due_at, tries) VALUES {rows} \
         ON CONFLICT (account_id, room_id, sender) DO UPDATE SET due_at = excluded.due_at, tries = 0",
        vec![],
        rows.collect(),
    )
    .await?;
    Ok(())
}

/// Finds the bundles whose time has come, of all accounts.
///
/// # Errors
/// When the database fails.
pub async fn due(db: &Db, now: Timestamp, most: i64) -> Result<Vec<Fetch>, StoreError> {
    let rows: Vec<(i64, String, String, i64)> = db.fetch_all(DUE, values![now, most]).await?;
    let fetch = |(account, room_id, sender, tries)| Fetch {
        account_id: AccountId(account),
        bundle: Key::stored([room_id, sender]),
        tries,
    };
    Ok(rows.into_iter().map(fetch).collect())
}

/// Tries a bundle again later.
///
/// # Errors
/// When the database fails.
pub async fn postpone(tx: &mut Tx, fetch: &Fetch, due_at: Timestamp) -> Result<(), StoreError> {
    let [room_id, sender] = fetch.bundle.parts();
    tx.execute(
        "UPDATE key_bundle_fetches SET due_at = $1, tries = tries + 1 \
         WHERE account_id = $2 AND room_id = $3 AND sender = $4",
        values![due_at, fetch.account_id.0, room_id.as_str(), sender.as_str()],
    )
    .await?;
    Ok(())
}

/// Fetches a bundle no more, and forgets it.
///
/// # Errors
/// When the database fails.
pub async fn delete(tx: &mut Tx, scope: &Scope<'_>, bundle: Key<2>) -> Result<(), StoreError> {
    for table in [
        "DELETE FROM key_bundle_fetches WHERE (account_id, room_id, sender) IN (VALUES {rows})",
        "DELETE FROM crypto_key_bundles WHERE (account_id, room_id, sender) IN (VALUES {rows})",
    ] {
        tx.execute_many(table, vec![], keys(scope, BTreeSet::from([bundle.clone()]))).await?;
    }
    Ok(())
}
