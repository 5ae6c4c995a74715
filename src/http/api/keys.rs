//! `GET /api/v1/keys`: which room keys are there. What they open is in no answer.

use std::collections::HashMap;

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    super::{HttpState, error::Problem},
    openapi::{Page, Refusals},
    query::{List, Query},
};
use crate::{
    clock::Timestamp,
    store::{
        accounts,
        crypto::listed::{self, Listed, Place},
        stats,
    },
};

/// A page of room keys.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RoomKeys {
    /// How many keys this page has.
    count: usize,
    /// How many there are.
    total: Total,
    /// The keys, by account, room and session.
    keys: Vec<RoomKey>,
    /// The `cursor` of the next page; null when this is the last.
    next: Option<String>,
}

/// How many room keys there are.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RoomKeyTotal)]
struct Total {
    /// Inbound Megolm sessions.
    inbound_sessions: u64,
    /// The rooms that they are for.
    rooms: u64,
    /// When the newest came, RFC 3339 in UTC.
    newest_at: Option<String>,
}

/// A room key, without the key.
#[derive(Debug, Serialize, ToSchema)]
struct RoomKey {
    /// Whose it is: a user of coucou's; null for one that is no longer used.
    user_id: Option<String>,
    /// The room.
    room_id: String,
    /// The Megolm session.
    session_id: String,
    /// The Curve25519 key of the device that made the session, base64.
    sender_key: String,
    /// Whether the key backup on the homeserver has it.
    backed_up: bool,
    /// When it first came, RFC 3339 in UTC.
    created_at: String,
}

/// Which room keys are there
#[utoipa::path(
    get, path = "/api/v1/keys", tag = "rooms",
    params(
        Page,
        ("room" = Option<String>, Query, description = "Of this room alone."),
    ),
    responses((status = 200, description = "A page of room keys.", body = RoomKeys), Refusals),
)]
pub(super) async fn list(
    State(state): State<HttpState>,
    mut query: Query,
) -> Result<Json<RoomKeys>, Problem> {
    let limit = query.limit()?;
    let after = query.take("cursor").map(|cursor| place(&cursor)).transpose()?.unwrap_or_default();
    let room_id = query.room()?;
    query.finish()?;
    let db = state.api.store.db();
    let mut found = listed::page(db, room_id.as_deref(), &after, limit + 1).await?;
    let more = found.len() > usize::from(limit);
    found.truncate(limit.into());
    let next = found.last().filter(|_| more).map(cursor);
    let total = stats::keys(db).await?;
    let users: HashMap<_, _> =
        accounts::all(db).await?.into_iter().map(|account| (account.id.0, account.user_id)).collect();
    let shown = found.into_iter().map(|key| RoomKey {
        user_id: users.get(&key.account_id).map(ToString::to_string),
        room_id: key.room_id,
        session_id: key.session_id,
        sender_key: key.sender_key,
        backed_up: key.backed_up,
        created_at: key.created_at.rfc3339(),
    });
    let keys: Vec<_> = shown.collect();
    let total = Total {
        inbound_sessions: total.count,
        rooms: total.room_count,
        newest_at: total.newest_at.map(Timestamp::rfc3339),
    };
    Ok(Json(RoomKeys { count: keys.len(), total, keys, next }))
}

/// The cursor behind a key. Ids may hold anything, so they are written as JSON.
fn cursor(last: &Listed) -> String {
    let place = (last.account_id, &last.room_id, &last.session_id);
    List::Keys.cursor(serde_json::to_string(&place).unwrap_or_default())
}

fn place(cursor: &str) -> Result<Place, Problem> {
    serde_json::from_str(&List::Keys.place(cursor)?).map_err(|_| Problem::bad_cursor())
}
