//! Room keys as a list for people: which there are, and nothing of what they open.

use crate::{
    clock::Timestamp,
    store::{Db, StoreError, db::values},
};

/// A room key, without the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Whose it is.
    pub account_id: i64,
    /// The room.
    pub room_id: String,
    /// The Megolm session.
    pub session_id: String,
    /// The Curve25519 key of the device that made the session, base64.
    pub sender_key: String,
    /// Whether the key backup has it.
    pub backed_up: bool,
    /// When it first came.
    pub created_at: Timestamp,
}

/// A place in the list: account, room and session id.
pub type Place = (i64, String, String);

type Row = (i64, String, String, String, i64, i64);

pub(super) const PAGE: &str = "SELECT account_id, room_id, session_id, sender_key, backed_up, created_at \
    FROM megolm_inbound_sessions WHERE (account_id, room_id, session_id) > ($1, $2, $3) \
    ORDER BY account_id, room_id, session_id LIMIT $4";

pub(super) const PAGE_OF_ROOM: &str = "SELECT account_id, room_id, session_id, sender_key, backed_up, created_at \
    FROM megolm_inbound_sessions WHERE room_id = $1 AND (account_id, session_id) > ($2, $3) \
    ORDER BY account_id, session_id LIMIT $4";

/// Keys after a place, by account, room and session; given a room, those of it alone.
///
/// # Errors
/// When the database fails.
pub async fn page(
    db: &Db,
    room_id: Option<&str>,
    (account, room, session): &Place,
    limit: u16,
) -> Result<Vec<Listed>, StoreError> {
    let limit = i64::from(limit);
    let rows: Vec<Row> = match room_id {
        Some(room_id) => {
            db.fetch_all(PAGE_OF_ROOM, values![room_id, *account, session.as_str(), limit]).await?
        }
        None => db.fetch_all(PAGE, values![*account, room.as_str(), session.as_str(), limit]).await?,
    };
    let listed = |(account_id, room_id, session_id, sender_key, backed_up, created_at): Row| Listed {
        account_id,
        room_id,
        session_id,
        sender_key,
        backed_up: backed_up != 0,
        created_at: Timestamp(created_at),
    };
    Ok(rows.into_iter().map(listed).collect())
}
