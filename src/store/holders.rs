//! Which account holds which room key.

use std::collections::HashSet;

use super::{Db, StoreError, db::values};
use crate::model::AccountId;

/// Which of these sessions (account, room, session id) are stored.
///
/// # Errors
/// When the database fails.
pub async fn find(
    db: &Db,
    wanted: &[(AccountId, &str, &str)],
) -> Result<Vec<(AccountId, String, String)>, StoreError> {
    let rows: Vec<(i64, String, String)> = db
        .fetch_many(
            "SELECT s.account_id, s.room_id, s.session_id FROM (VALUES {rows}) AS v \
             JOIN megolm_inbound_sessions s ON s.account_id = v.column1 AND s.room_id = v.column2 \
             AND s.session_id = v.column3",
            vec![],
            wanted.iter().map(|(account, room, session)| values![account.0, *room, *session]).collect(),
        )
        .await?;
    Ok(rows.into_iter().map(|(account, room, session)| (AccountId(account), room, session)).collect())
}

pub(super) const ELSEWHERE: &str = "SELECT DISTINCT v.column1, v.column2 FROM (VALUES {rows}) AS v \
     JOIN megolm_inbound_sessions s ON s.session_id = v.column2 AND s.room_id <> v.column1";

/// Which of these sessions (room, session id) are stored for another room. A session belongs to one room
/// ([spec](https://spec.matrix.org/latest/client-server-api/#mmegolmv1aes-sha2)).
///
/// # Errors
/// When the database fails.
pub async fn elsewhere(db: &Db, sessions: &[(&str, &str)]) -> Result<HashSet<(String, String)>, StoreError> {
    let sessions = sessions.iter().map(|(room, session)| values![*room, *session]).collect();
    let rows: Vec<(String, String)> = db.fetch_many(ELSEWHERE, vec![], sessions).await?;
    Ok(rows.into_iter().collect())
}
