//! Claims to Megolm sessions: which devices have said that they made one.
//!
//! Whose they are is in clear, so that a claim is stored once; what is known of the device is sealed for its row, as
//! the trust in messages rests on it.

use std::collections::{BTreeSet, HashMap};

use super::{Key, Plain, Rows, Scope};
use crate::{
    clock::Timestamp,
    model::AccountId,
    store::{
        Db, Seal, StoreError, Tx,
        db::{Value, values},
    },
};

const TABLE: &str = "megolm_claims";

/// Claims of one user to one session that are kept at most: a user has few devices, and a flood of them must not grow
/// this table.
const MAX_CLAIMS: i64 = 10;

pub(in crate::store) const FIND: &str = "SELECT c.account_id, c.room_id, c.session_id, c.user_id, c.sender_key, c.data \
     FROM (VALUES {rows}) AS v JOIN megolm_claims AS c ON c.account_id = v.column1 AND c.room_id = v.column2 \
     AND c.session_id = v.column3";
pub(in crate::store) const DELETE: &str =
    "DELETE FROM megolm_claims WHERE (account_id, room_id, session_id) IN (VALUES {rows})";

/// Adds claims, keyed by (room id, session id, user id, sender key); one that is there stays as it is.
///
/// # Errors
/// When the database fails.
pub async fn add(tx: &mut Tx, scope: &Scope<'_>, rows: Rows<4>, now: Timestamp) -> Result<(), StoreError> {
    let rows = rows.into_iter().map(|(key, plain)| {
        let mut values = scope.values(&key);
        values.extend([Value::from(now), Value::from(scope.seal(TABLE, &key, &plain)?)]);
        Ok(values)
    });
    let rows = rows.collect::<Result<_, StoreError>>()?;
    tx.execute_many(
        "INSERT INTO megolm_claims (account_id, room_id, session_id, user_id, sender_key, claimed_at, data) \
         SELECT v.column1, v.column2, v.column3, v.column4, v.column5, v.column6, v.column7 \
         FROM (VALUES {rows}) AS v WHERE (SELECT COUNT(*) FROM megolm_claims AS c \
             WHERE c.account_id = v.column1 AND c.room_id = v.column2 AND c.session_id = v.column3 \
             AND c.user_id = v.column4) < $1 \
         ON CONFLICT DO NOTHING",
        values![MAX_CLAIMS],
        rows,
    )
    .await?;
    Ok(())
}

/// Claims by (room id, session id), each with the account that was told of it.
pub type Claims = HashMap<Key<2>, Vec<(AccountId, Plain)>>;

/// Finds the claims to sessions, named by account, room id and session id.
///
/// # Errors
/// When the database fails or a claim does not open.
pub async fn find(
    db: &Db,
    seal: &Seal,
    wanted: &BTreeSet<(AccountId, Key<2>)>,
) -> Result<Claims, StoreError> {
    type Row = (i64, String, String, String, String, Vec<u8>);
    let rows = wanted.iter().map(|(account, key)| Scope::new(seal, *account).values(key)).collect();
    let rows: Vec<Row> = db.fetch_many(FIND, vec![], rows).await?;
    let mut claims = Claims::new();
    for (account, room_id, session_id, user_id, sender_key, data) in rows {
        let (account, session) = (AccountId(account), Key::stored([room_id.clone(), session_id.clone()]));
        let key = Key::stored([room_id, session_id, user_id, sender_key]);
        let data = Scope::new(seal, account).open(TABLE, &key, &data)?;
        claims.entry(session).or_default().push((account, data));
    }
    Ok(claims)
}
