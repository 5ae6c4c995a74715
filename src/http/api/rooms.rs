//! `GET /api/v1/rooms`, `/rooms/{id}`: what coucou knows of the rooms that its accounts have met.

use std::{collections::BTreeSet, sync::Arc};

use axum::{Json, extract::State};
use ruma::OwnedUserId;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    super::{HttpState, error::Problem},
    openapi::{Page, Refusals},
    query::{self, List, Query, Segment},
};
use crate::{
    inbox::describe::describe,
    model::{Relay, RoomKind},
    store::{
        StoreError, accounts,
        rooms::read::{self, Listed},
    },
};

/// A page of rooms.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RoomPage)]
#[expect(clippy::struct_field_names, reason = "the list has the name that programs read it by")]
pub(super) struct Rooms {
    /// How many rooms this page has.
    count: usize,
    /// The rooms, in the order of their ids.
    rooms: Vec<Room>,
    /// The `cursor` of the next page; null when this is the last.
    next: Option<String>,
}

/// A room.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Room {
    /// The Matrix room.
    id: String,
    /// Its name: the room's, else the channel's on the network, else the other person's.
    name: Option<String>,
    /// `dm` or `group`; null while nothing is known.
    r#type: Option<&'static str>,
    /// The network; null when the room has no believable bridge.
    network: Option<String>,
    /// The conversation's id on the network.
    channel_id: Option<String>,
    /// The bridge bot that is believed.
    bridge_bot: Option<String>,
    /// Whether its messages are relayed: `yes`, `no`, or `unknown` until its state was read.
    relayed: String,
    /// Whether it is end-to-end encrypted; null while nothing is known.
    encrypted: Option<bool>,
    /// The room that replaced it.
    replacement: Option<String>,
    /// How many messages it has had: the `sequence` of the newest.
    message_count: i64,
    /// Which of coucou's accounts is what to it.
    accounts: Vec<Account>,
    /// When coucou first met it, RFC 3339 in UTC.
    created_at: String,
}

/// An account of coucou's and a room.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RoomAccount)]
pub(super) struct Account {
    /// The Matrix user.
    user_id: String,
    /// `join`, `invite`, `leave`, or `wanted` when it is about to be invited.
    membership: String,
}

/// Rooms
#[utoipa::path(
    get, path = "/api/v1/rooms", tag = "rooms",
    params(
        Page,
        ("network" = Option<String>, Query, description = "Of this network alone; `facebook` means `messenger`."),
        ("relayed" = Option<String>, Query, description = "`yes`, `no` or `unknown`."),
    ),
    responses((status = 200, description = "A page of rooms.", body = Rooms), Refusals),
)]
pub(super) async fn list(State(state): State<HttpState>, mut query: Query) -> Result<Json<Rooms>, Problem> {
    let limit = query.limit()?;
    let after = query.take("cursor").map(|cursor| List::Rooms.place(&cursor)).transpose()?;
    let network = query.network()?.map(|network| state.api.network(network));
    let relay = query.parsed("relayed", "yes, no or unknown", Relay::parse)?;
    query.finish()?;
    let store = &state.api.store;
    let after = after.unwrap_or_default();
    let mut found =
        read::page(store.db(), store.seal()?, network.as_deref(), relay, &after, limit + 1).await?;
    let more = found.len() > usize::from(limit);
    found.truncate(limit.into());
    let next = found.last().filter(|_| more).map(|last| List::Rooms.cursor(&last.room_id));
    let rooms = show(&state, found).await?;
    Ok(Json(Rooms { count: rooms.len(), rooms, next }))
}

/// A room
#[utoipa::path(
    get, path = "/api/v1/rooms/{room_id}", tag = "rooms",
    params(("room_id" = String, Path, description = "The room's id, percent-encoded.")),
    responses(
        (status = 200, description = "The room.", body = Room),
        (status = 404, description = "There is no such room.", body = super::openapi::Problem,
            content_type = "application/problem+json"),
        Refusals,
    ),
)]
pub(super) async fn one(
    State(state): State<HttpState>,
    Segment(room_id): Segment,
    query: Query,
) -> Result<Json<Room>, Problem> {
    query.finish()?;
    let bad = || Problem::bad_parameter("the path must end with a room id, which begins with !");
    let room_id = query::room_id(&room_id).ok_or_else(bad)?;
    let store = &state.api.store;
    let found = read::find(store.db(), store.seal()?, room_id).await?;
    let mut rooms = show(&state, found.into_iter().collect()).await?;
    rooms.pop().map(Json).ok_or_else(|| Problem::not_there("room"))
}

/// Who counts as us.
async fn our_users(state: &HttpState) -> Result<Arc<BTreeSet<OwnedUserId>>, StoreError> {
    let accounts = accounts::all(state.api.store.db()).await?;
    let users = accounts.into_iter().map(|account| account.user_id);
    Ok(Arc::new(users.chain(state.api.owner.clone()).collect()))
}

async fn show(state: &HttpState, found: Vec<Listed>) -> Result<Vec<Room>, Problem> {
    let our_users = our_users(state).await?;
    let ids: Vec<&str> = found.iter().map(|room| room.room_id.as_str()).collect();
    let members = read::members(state.api.store.db(), &ids).await?;
    let show = |room: Listed| {
        let known = room.state.as_deref().and_then(|text| describe(text, &our_users, &state.api.networks));
        let is_known = known.is_some();
        let known = known.unwrap_or_default();
        let kind = match known.context.kind {
            RoomKind::Dm => "dm",
            RoomKind::Group => "group",
        };
        let accounts = members.iter().filter(|member| member.room_id == room.room_id);
        let account = |member: &read::Member| Account {
            user_id: member.user_id.clone(),
            membership: member.membership.clone(),
        };
        Room {
            name: known.context.name,
            r#type: is_known.then_some(kind),
            network: room.network,
            channel_id: known.context.channel_id,
            bridge_bot: room.bridge_bot,
            relayed: room.relay,
            encrypted: is_known.then_some(known.encrypted),
            replacement: known.replacement,
            message_count: room.last_sequence,
            accounts: accounts.map(account).collect(),
            created_at: room.created_at.rfc3339(),
            id: room.room_id,
        }
    };
    Ok(found.into_iter().map(show).collect())
}
