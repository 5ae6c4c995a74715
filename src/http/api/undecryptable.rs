//! `GET /api/v1/undecryptable`: the ledger of events that could not be relayed, and what would help.

use std::collections::BTreeMap;

use axum::{Json, extract::State};
use ruma::OwnedRoomId;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    super::{HttpState, error::Problem},
    openapi::{Page, Refusals},
    query::{List, Query},
};
use crate::{
    clock::Timestamp,
    model::ledger::{self, Facts, Reason},
    store::{
        pending::{self, Entry, Filter, NextTry, Order},
        rooms,
    },
};

/// The most bytes of a reason: a withheld code is the sender's to choose.
const REASON_LENGTH: usize = 255;

/// A page of the ledger.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Undecryptable {
    /// How many events this page has.
    count: usize,
    /// How many events the whole ledger has, by reason.
    by_reason: BTreeMap<String, u64>,
    /// The events, those first that came last.
    events: Vec<Event>,
    /// The `cursor` of the next page; null when this is the last.
    next: Option<String>,
}

/// An event that could not be relayed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = UndecryptableEvent)]
#[expect(clippy::struct_field_names, reason = "fields have the names that programs read them by")]
pub(super) struct Event {
    /// The Matrix event.
    event_id: String,
    /// Its room.
    room_id: String,
    /// Who sent it.
    sender: String,
    /// The Megolm session that it needs, when it names one.
    session_id: Option<String>,
    /// Why, one word: `no_key`, `withheld:<code>`, `replay` …
    reason: String,
    /// What would help, in plain words.
    next_step: String,
    /// Whether a key that comes makes coucou try again.
    waits_for_key: bool,
    /// When it was sent, RFC 3339 in UTC.
    timestamp: String,
    /// When it came.
    received_at: String,
    /// How often it was tried.
    tries: u64,
    /// When it was tried last.
    tried_at: Option<String>,
    /// When the webhooks were told of it.
    notified_at: Option<String>,
}

impl Event {
    fn of(entry: Entry, is_bridged: bool) -> Self {
        let facts = Facts { key_is_here: entry.key_is_here, is_bridged, ..Facts::default() };
        Self {
            next_step: ledger::next_step(&entry.reason, &facts),
            reason: entry.reason.to_string(),
            waits_for_key: entry.next_try == NextTry::WithKey,
            event_id: entry.event_id,
            room_id: entry.room_id,
            sender: entry.sender,
            session_id: entry.session_id,
            timestamp: entry.origin_server_ts.rfc3339(),
            received_at: entry.first_seen_at.rfc3339(),
            tries: entry.tries,
            tried_at: entry.tried_at.map(Timestamp::rfc3339),
            notified_at: entry.notified_at.map(Timestamp::rfc3339),
        }
    }
}

/// What could not be decrypted or believed, newest first
#[utoipa::path(
    get, path = "/api/v1/undecryptable", tag = "messages",
    params(
        Page,
        ("room" = Option<String>, Query, description = "Of this room alone."),
        ("reason" = Option<String>, Query, description = "With this reason alone, e.g. `no_key`."),
    ),
    responses((status = 200, description = "A page of the ledger.", body = Undecryptable), Refusals),
)]
pub(super) async fn list(
    State(state): State<HttpState>,
    mut query: Query,
) -> Result<Json<Undecryptable>, Problem> {
    let limit = query.limit()?;
    let before = query.number("cursor", List::Undecryptable)?;
    let room_id =
        query.parsed("room", "a room id, which begins with !", |text| OwnedRoomId::try_from(text).ok())?;
    let reason = query.parsed("reason", "a reason, such as no_key", |text| {
        let plain = (1..=REASON_LENGTH).contains(&text.len()) && !text.chars().any(char::is_control);
        plain.then(|| Reason::parse(text))
    })?;
    query.finish()?;
    let db = state.api.store.db();
    let filter = Filter { room_id: room_id.as_deref(), reason: reason.as_ref() };
    let mut found = pending::page(db, filter, Order::NewestFirst, before, u32::from(limit) + 1).await?;
    let more = found.len() > usize::from(limit);
    found.truncate(limit.into());
    let next = found.last().filter(|_| more).map(|last| List::Undecryptable.cursor(last.position));
    let counts = pending::counts(db).await?;
    let by_reason = counts.into_iter().map(|(reason, count)| (reason.to_string(), count)).collect();
    let bridged = rooms::bridged(db, found.iter().map(|entry| &*entry.room_id)).await?;
    let event = |entry: Entry| {
        let is_bridged = bridged.contains(&entry.room_id);
        Event::of(entry, is_bridged)
    };
    let events: Vec<_> = found.into_iter().map(event).collect();
    Ok(Json(Undecryptable { count: events.len(), by_reason, events, next }))
}
