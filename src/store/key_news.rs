//! News of room keys, for the events that wait for them.
//!
//! A key is stored by many hands: the machine that receives it, a backup's restore, an import by another
//! process. Whoever stores it leaves a row here in the same transaction, so no key is there without somebody
//! looking at the events that wait for it, whoever dies when. A repeat costs an attempt and changes nothing.

use std::collections::BTreeSet;

use super::{
    Db, StoreError, Tx,
    crypto::Key,
    db::{Values, values},
};

/// A row: its number, the room, the session.
pub type News = (i64, String, String);

/// Tells of room keys, or of their owner's word that they are withheld.
///
/// # Errors
/// When the database fails.
pub async fn tell(tx: &mut Tx, keys: BTreeSet<Key<2>>) -> Result<(), StoreError> {
    let rows: Vec<Values> =
        keys.iter().map(Key::parts).map(|[room, session]| values![room.as_str(), session.as_str()]).collect();
    tx.execute_many("INSERT INTO key_news (room_id, session_id) VALUES {rows}", vec![], rows).await?;
    Ok(())
}

/// The first of the news.
///
/// # Errors
/// When the database fails.
pub async fn waiting(db: &Db, most: usize) -> Result<Vec<News>, StoreError> {
    db.fetch_all(
        "SELECT news_id, room_id, session_id FROM key_news ORDER BY news_id LIMIT $1",
        values![i64::try_from(most).unwrap_or(i64::MAX)],
    )
    .await
}

/// Forgets news that were acted upon. By number and not up to one: a number that was drawn earlier may be
/// committed later.
///
/// # Errors
/// When the database fails.
pub async fn forget(tx: &mut Tx, news_ids: &[i64]) -> Result<(), StoreError> {
    tx.execute_many(
        "DELETE FROM key_news WHERE news_id IN (VALUES {rows})",
        vec![],
        news_ids.iter().map(|id| values![*id]).collect(),
    )
    .await?;
    Ok(())
}
