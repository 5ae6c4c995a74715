//! Reading messages page by page, along their positions: newest first for people, in the order of storing for
//! consumers that catch up. Each filter that may be rare has an index with the position at its end, so that no page
//! costs more because there are more messages.

use super::{
    super::{Db, Seal, StoreError, db::Values, db::values},
    TABLE,
};
use crate::{
    clock::Timestamp,
    model::{Direction, MessageType},
};

/// A message as it is stored, its payload in the clear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its place in the order of storing.
    pub position: i64,
    /// Its id.
    pub message_id: String,
    /// The event it was made of.
    pub event_id: String,
    /// Its room.
    pub room_id: String,
    /// Its number in the room.
    pub sequence: i64,
    /// What it tells.
    pub message_type: String,
    /// The network.
    pub network: Option<String>,
    /// `in` or `out`.
    pub direction: String,
    /// Who sent the event.
    pub sender: String,
    /// When the event says it was sent.
    pub origin_server_ts: Timestamp,
    /// When it was stored.
    pub created_at: Timestamp,
    /// The body of the webhook call, JSON; `None` once it was deleted for its age.
    pub payload: Option<Vec<u8>>,
}

/// Which messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this room alone.
    pub room_id: Option<String>,
    /// Of this network alone.
    pub network: Option<String>,
    /// Of this direction alone.
    pub direction: Option<Direction>,
    /// Of this type alone.
    pub message_type: Option<MessageType>,
    /// Stored at that time or later.
    pub since: Option<Timestamp>,
    /// Stored before that time.
    pub until: Option<Timestamp>,
}

type Row = (i64, String, String, String, i64, String, Option<String>, String, String, i64, i64, Vec<u8>);

fn stored(seal: &Seal, row: Row) -> Result<Stored, StoreError> {
    let payload = if row.11.is_empty() { None } else { Some(seal.open(TABLE, &row.1, &row.11)?) };
    Ok(Stored {
        position: row.0,
        message_id: row.1,
        event_id: row.2,
        room_id: row.3,
        sequence: row.4,
        message_type: row.5,
        network: row.6,
        direction: row.7,
        sender: row.8,
        origin_server_ts: Timestamp(row.9),
        created_at: Timestamp(row.10),
        payload,
    })
}

/// The columns of [`Row`], then the rest of a statement.
macro_rules! select {
    ($($rest:literal),+) => {
        concat!(
            "SELECT position, message_id, event_id, room_id, sequence, type, network, direction, sender, \
             origin_server_ts, created_at, payload FROM messages WHERE ", $($rest),+
        )
    };
}

/// The end of every list: those before a position, and not older than another, newest first.
macro_rules! newest_first {
    ($($by:literal)?) => {
        select!(
            $($by, " AND ",)?
            "position < $1 AND position >= $2 AND type <> 'webhook.test' \
             AND (room_id = $3 OR $3 IS NULL) AND (network = $4 OR $4 IS NULL) \
             AND (direction = $5 OR $5 IS NULL) AND (type = $6 OR $6 IS NULL) \
             ORDER BY position DESC LIMIT $7"
        )
    };
}

// One text for each index that a list can run along: a planner must not have to guess what is NULL.
pub(super) const ALL: &str = newest_first!();
pub(super) const BY_ROOM: &str = newest_first!("room_id = $3");
pub(super) const BY_NETWORK: &str = newest_first!("network = $4");
pub(super) const BY_TYPE: &str =
    newest_first!("type = $6 AND type <> 'message.created' AND type <> 'reaction.created'");

pub(super) const FIRST_SINCE: &str = "SELECT MIN(position) FROM messages WHERE created_at = (SELECT MIN(created_at) FROM messages WHERE created_at >= $1)";

/// The position of the first message that was stored at `at` or later, or the one after all there are.
async fn first_since(db: &Db, at: Timestamp) -> Result<i64, StoreError> {
    let found: Option<(Option<i64>,)> = db.fetch_optional(FIRST_SINCE, values![at]).await?;
    Ok(found.and_then(|(position,)| position).unwrap_or(i64::MAX))
}

/// The newest messages before a position, newest first.
///
/// # Errors
/// When the database fails or a payload does not open.
pub async fn page(
    db: &Db,
    seal: &Seal,
    filter: &Filter,
    before: Option<i64>,
    limit: u16,
) -> Result<Vec<Stored>, StoreError> {
    let since = match filter.since {
        Some(since) => first_since(db, since).await?,
        None => 0,
    };
    let until = match filter.until {
        Some(until) => first_since(db, until).await?,
        None => i64::MAX,
    };
    let is_often = |kind| matches!(kind, MessageType::MessageCreated | MessageType::ReactionCreated);
    let is_rare = filter.message_type.is_some_and(|kind| !is_often(kind));
    let sql = match filter {
        Filter { room_id: Some(_), .. } => BY_ROOM,
        _ if is_rare => BY_TYPE,
        Filter { network: Some(_), .. } => BY_NETWORK,
        _ => ALL,
    };
    let values = listed(filter, before.unwrap_or(i64::MAX).min(until), since, limit);
    let rows: Vec<Row> = db.fetch_all(sql, values).await?;
    rows.into_iter().map(|row| stored(seal, row)).collect()
}

/// The values of a list's statement.
pub(super) fn listed(filter: &Filter, before: i64, since: i64, limit: u16) -> Values {
    values![
        before,
        since,
        filter.room_id.as_deref(),
        filter.network.as_deref(),
        filter.direction.map(Direction::as_str),
        filter.message_type.map(MessageType::as_str),
        i64::from(limit),
    ]
}

const FIND: &str = select!("message_id = $1 AND position IS NOT NULL");

/// A message by its id.
///
/// # Errors
/// When the database fails or the payload does not open.
pub async fn find(db: &Db, seal: &Seal, message_id: &str) -> Result<Option<Stored>, StoreError> {
    let row: Option<Row> = db.fetch_optional(FIND, values![message_id]).await?;
    row.map(|row| stored(seal, row)).transpose()
}

pub(super) const AFTER: &str = select!("position > $1 AND type <> 'webhook.test' ORDER BY position LIMIT $2");

/// The messages after a position, in the order in which they were stored. What was not visible when a reader asked
/// has a higher position than all it was given, so nobody who goes on from the last one misses any.
///
/// # Errors
/// When the database fails or a payload does not open.
pub async fn after(db: &Db, seal: &Seal, position: i64, limit: u16) -> Result<Vec<Stored>, StoreError> {
    let rows: Vec<Row> = db.fetch_all(AFTER, values![position, i64::from(limit)]).await?;
    rows.into_iter().map(|row| stored(seal, row)).collect()
}

/// The position of the last message that was stored, be it deleted since; 0 before the first.
///
/// # Errors
/// When the database fails.
pub async fn last(db: &Db) -> Result<i64, StoreError> {
    let row: Option<(i64,)> =
        db.fetch_optional("SELECT last FROM positions WHERE name = 'messages'", vec![]).await?;
    row.map(|(last,)| last).ok_or(StoreError::Corrupt("positions"))
}
