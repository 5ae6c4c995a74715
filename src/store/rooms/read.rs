//! Rooms for people: page by page in the order of their ids, with which of our accounts is in them.

use super::{
    super::{Db, Seal, StoreError, db::values},
    TABLE,
};
use crate::{clock::Timestamp, model::Relay};

/// A room as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The room.
    pub room_id: String,
    /// Whether its messages are relayed: `unknown`, `yes` or `no`.
    pub relay: String,
    /// The network it is bridged to.
    pub network: Option<String>,
    /// The bridge bot that is believed.
    pub bridge_bot: Option<String>,
    /// The serialised state, as its owner wrote it.
    pub state: Option<Vec<u8>>,
    /// The sequence of its newest message; 0 before the first.
    pub last_sequence: i64,
    /// When it was first met.
    pub created_at: Timestamp,
}

/// Which of our accounts is what to a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The room.
    pub room_id: String,
    /// The account's user.
    pub user_id: String,
    /// `join`, `invite`, `leave` or `wanted`.
    pub membership: String,
}

type Row = (String, String, Option<String>, Option<String>, Option<Vec<u8>>, i64, i64);

fn listed(seal: &Seal, row: Row) -> Result<Listed, StoreError> {
    let (room_id, relay, network, bridge_bot, state, last_sequence, created_at) = row;
    let state = state.map(|state| seal.open(TABLE, &room_id, &state)).transpose()?;
    let created_at = Timestamp(created_at);
    Ok(Listed { room_id, relay, network, bridge_bot, state, last_sequence, created_at })
}

pub(in crate::store) const PAGE: &str = "SELECT room_id, relay, network, bridge_bot, state, last_sequence, created_at FROM rooms \
     WHERE room_id > $1 AND (network = $2 OR $2 IS NULL) AND (relay = $3 OR $3 IS NULL) \
     ORDER BY room_id LIMIT $4";

/// The rooms after a room id.
///
/// # Errors
/// When the database fails or a state does not open.
pub async fn page(
    db: &Db,
    seal: &Seal,
    network: Option<&str>,
    relay: Option<Relay>,
    after: &str,
    limit: u16,
) -> Result<Vec<Listed>, StoreError> {
    let values = values![after, network, relay.map(Relay::as_str), i64::from(limit)];
    let rows: Vec<Row> = db.fetch_all(PAGE, values).await?;
    rows.into_iter().map(|row| listed(seal, row)).collect()
}

/// A room by its id.
///
/// # Errors
/// When the database fails or the state does not open.
pub async fn find(db: &Db, seal: &Seal, room_id: &str) -> Result<Option<Listed>, StoreError> {
    let row: Option<Row> = db
        .fetch_optional(
            "SELECT room_id, relay, network, bridge_bot, state, last_sequence, created_at FROM rooms \
             WHERE room_id = $1",
            values![room_id],
        )
        .await?;
    row.map(|row| listed(seal, row)).transpose()
}

/// Which of our accounts is what to these rooms, by room and user.
///
/// # Errors
/// When the database fails.
pub async fn members(db: &Db, room_ids: &[&str]) -> Result<Vec<Member>, StoreError> {
    let mut rows: Vec<(String, String, String)> = db
        .fetch_many(
            "SELECT r.room_id, a.user_id, r.membership FROM room_accounts AS r \
             JOIN accounts AS a ON a.account_id = r.account_id \
             WHERE a.retired_at IS NULL AND r.room_id IN (VALUES {rows})",
            vec![],
            room_ids.iter().map(|room_id| values![*room_id]).collect(),
        )
        .await?;
    rows.sort();
    Ok(rows
        .into_iter()
        .map(|(room_id, user_id, membership)| Member { room_id, user_id, membership })
        .collect())
}
