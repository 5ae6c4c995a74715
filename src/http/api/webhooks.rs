//! `GET /api/v1/webhooks`, `POST /api/v1/webhooks/{name}/…`: the destinations, and what can be done about them.

use std::collections::BTreeMap;

use axum::{Json, body::Body, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    super::{HttpState, error::Problem},
    openapi::{BodyRefusals, Refusals},
    query::{self, List, Query, Segment},
};
use crate::{
    clock::Timestamp,
    inbox::trial,
    model::WebhookId,
    store::{
        outbox::{
            self,
            admin::{self, Filter},
        },
        webhooks,
    },
};

/// Deliveries made pending in one transaction, and by one request.
const BATCH: u16 = 500;
const MOST: u64 = 10_000;

/// Why a webhook is disabled that somebody has paused.
const PAUSED: &str = "paused";

/// Messages named in one request.
const MOST_IDS: usize = 500;

/// The webhooks.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Webhooks {
    /// How many there are.
    count: usize,
    /// The webhooks, by name: those of the settings, and those that were once and have something left.
    webhooks: Vec<Webhook>,
}

/// A webhook.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Webhook {
    /// Its name in the settings.
    name: String,
    /// Where it is, without what may be secret in the address; null when the settings no longer have it.
    url: Option<String>,
    /// Whether it is sent anything: false while it is paused, and after it has answered 410.
    enabled: bool,
    /// Why it is not: `paused` or `gone`.
    disabled_reason: Option<String>,
    /// Since when it is not.
    disabled_at: Option<String>,
    /// Deliveries that are still to be made.
    pending: u64,
    /// Rooms that have such; with `ordering: none`, requests that failed, and one for all that was not tried yet.
    pending_rooms: u64,
    /// When the oldest of them was queued, RFC 3339 in UTC.
    oldest_pending_at: Option<String>,
    /// Deliveries that were given up.
    dead: u64,
    /// When the oldest of them was queued.
    oldest_dead_at: Option<String>,
}

/// The webhooks, with what waits for each.
pub(super) async fn all(state: &HttpState) -> Result<Vec<Webhook>, Problem> {
    let db = state.api.store.db();
    let backlogs = outbox::backlogs(db).await?;
    let backlogs: BTreeMap<WebhookId, _> = backlogs.into_iter().map(|one| (one.webhook_id, one)).collect();
    let dead = admin::given_up(db).await?;
    let disabled = webhooks::disabled(db).await?;
    let mut shown = Vec::new();
    for (id, name) in webhooks::all(db).await? {
        let url = state.api.webhooks.get(&name).cloned();
        let (backlog, dead) = (backlogs.get(&id), dead.get(&id));
        if url.is_none() && backlog.is_none() && dead.is_none() {
            continue;
        }
        let disabled = disabled.iter().find(|disabled| disabled.webhook_id == id);
        let oldest = backlog.and_then(|backlog| backlog.oldest_at);
        shown.push(Webhook {
            name,
            url,
            enabled: disabled.is_none(),
            disabled_reason: disabled.map(|disabled| disabled.reason.clone()),
            disabled_at: disabled.map(|disabled| disabled.at.rfc3339()),
            pending: backlog.map_or(0, |backlog| backlog.pending_count),
            pending_rooms: backlog.map_or(0, |backlog| backlog.room_count),
            oldest_pending_at: oldest.map(Timestamp::rfc3339),
            dead: dead.map_or(0, |(count, _)| *count),
            oldest_dead_at: dead.map(|(_, oldest)| oldest.rfc3339()),
        });
    }
    Ok(shown)
}

/// Webhooks
#[utoipa::path(
    get, path = "/api/v1/webhooks", tag = "webhooks",
    responses((status = 200, description = "The webhooks.", body = Webhooks), Refusals),
)]
pub(super) async fn list(State(state): State<HttpState>, query: Query) -> Result<Json<Webhooks>, Problem> {
    query.finish()?;
    let webhooks = all(&state).await?;
    Ok(Json(Webhooks { count: webhooks.len(), webhooks }))
}

/// What is to be sent again: `ids`, or all since a time; [`ResendBody`] describes it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Resend {
    #[serde(default)]
    ids: Option<Vec<String>>,
    #[serde(default)]
    since: Option<String>,
    #[serde(default)]
    until: Option<String>,
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    room: Option<String>,
    #[serde(default)]
    cursor: Option<String>,
}

/// What is to be sent again: certain messages, or all since a time.
#[derive(ToSchema)]
#[schema(as = Resend)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes what Resend reads")]
pub(super) enum ResendBody {
    /// Certain messages.
    Messages(ResendMessages),
    /// All since a time.
    Range(ResendRange),
}

/// Certain messages.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes what Resend reads")]
pub(super) struct ResendMessages {
    /// The ids of the messages.
    #[schema(min_items = 1, max_items = 500, pattern = "^msg_[0-9a-f]{40}$")]
    ids: Vec<String>,
}

/// All since a time.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "describes what Resend reads")]
pub(super) struct ResendRange {
    /// Messages stored at this time or later, RFC 3339.
    #[schema(format = DateTime)]
    since: String,
    /// Messages stored before this time.
    #[schema(format = DateTime)]
    until: Option<String>,
    /// Deliveries in this state alone; both when absent.
    #[schema(pattern = "^(delivered|dead)$")]
    status: Option<String>,
    /// Of this room alone.
    #[schema(pattern = "^![^\\u0000-\\u001f\\u007f-\\u009f]{1,254}$")]
    room: Option<String>,
    /// `next` of the answer before, to go on.
    #[schema(pattern = "^[A-Za-z0-9_-]+$")]
    cursor: Option<String>,
}

/// What came of it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Resent {
    /// Deliveries that are pending again.
    resent: u64,
    /// There may be more: ask once more with this `cursor`. Null when that was all.
    next: Option<String>,
}

async fn find(state: &HttpState, name: &str) -> Result<WebhookId, Problem> {
    let known = webhooks::all(state.api.store.db()).await?;
    let found = known.into_iter().find(|(_, known)| known == name);
    found.map(|(id, _)| id).ok_or_else(|| Problem::not_there("webhook"))
}

/// Send deliveries of a webhook again
///
/// Those of the messages in `ids`, or all of a range of time, from `since` on. Each goes out under the same
/// `webhook-id` as before, each room's in order. Deliveries that are pending already stay so, and messages whose
/// content was deleted for its age are left out. A request takes 10,000 at most: go on with `next`.
#[utoipa::path(
    post, path = "/api/v1/webhooks/{name}/resend", tag = "webhooks",
    params(("name" = String, Path, description = "The webhook's name.")),
    request_body = ResendBody,
    responses(
        (status = 200, description = "What came of it.", body = Resent),
        BodyRefusals,
        (status = 404, description = "There is no such webhook.", body = super::openapi::Problem,
            content_type = "application/problem+json"),
        Refusals,
    ),
)]
pub(super) async fn resend(
    State(state): State<HttpState>,
    Segment(name): Segment,
    query: Query,
    body: Body,
) -> Result<Json<Resent>, Problem> {
    query.finish()?;
    let asked: Resend = query::body(body).await?;
    let webhook_id = find(&state, &name).await?;
    let answer = match &asked.ids {
        Some(ids) => resend_messages(&state, webhook_id, ids, &asked).await?,
        None => resend_range(&state, webhook_id, &asked).await?,
    };
    state.api.wake_outbox.notify_one();
    Ok(Json(answer))
}

async fn resend_messages(
    state: &HttpState,
    webhook_id: WebhookId,
    ids: &[String],
    asked: &Resend,
) -> Result<Resent, Problem> {
    let Resend { since, until, status, room, cursor, .. } = asked;
    if [since, until, status, room, cursor].into_iter().any(Option::is_some) {
        return Err(Problem::bad_body("ids go alone, without since, until, status, room and cursor"));
    }
    if ids.is_empty() || ids.len() > MOST_IDS || !ids.iter().all(|id| super::messages::is_id(id)) {
        return Err(Problem::bad_body(
            "ids must be 1 to 500 ids of messages: msg_ and 40 hexadecimal digits",
        ));
    }
    let store = &state.api.store;
    let deliveries = admin::of_messages(store.db(), webhook_id, ids).await?;
    let mut tx = store.begin().await?;
    let resent = admin::resend(&mut tx, &deliveries, state.api.clock.now()).await?;
    tx.commit().await?;
    Ok(Resent { resent, next: None })
}

async fn resend_range(state: &HttpState, webhook_id: WebhookId, asked: &Resend) -> Result<Resent, Problem> {
    let (filter, mut after) = range(asked)?;
    let store = &state.api.store;
    let mut resent = 0;
    while resent < MOST {
        let found = admin::finished(store.db(), webhook_id, &filter, after, BATCH).await?;
        let Some((_, last)) = found.last().copied() else { return Ok(Resent { resent, next: None }) };
        let ids: Vec<_> = found.iter().map(|(id, _)| *id).collect();
        let mut tx = store.begin().await?;
        resent += admin::resend(&mut tx, &ids, state.api.clock.now()).await?;
        tx.commit().await?;
        after = last;
        if found.len() < usize::from(BATCH) {
            return Ok(Resent { resent, next: None });
        }
    }
    Ok(Resent { resent, next: Some(List::Resend.cursor(after)) })
}

/// The range that a request means, and the position to go on after.
fn range(asked: &Resend) -> Result<(Filter, i64), Problem> {
    let time = |name: &str, text: &str| {
        query::time(text).ok_or_else(|| Problem::bad_body(format!("{name} must be a time by RFC 3339")))
    };
    let since = asked.since.as_deref().map(|text| time("since", text)).transpose()?;
    let since = since.ok_or_else(|| Problem::bad_body("the body must have ids, or since"))?;
    let until = asked.until.as_deref().map(|text| time("until", text)).transpose()?;
    if until.is_some_and(|until| since > until) {
        return Err(Problem::bad_body("since lies after until"));
    }
    let parse = |text: &str| match admin::State::parse(text) {
        Some(state) if state != admin::State::Pending => Ok(state),
        _ => Err(Problem::bad_body("status must be delivered or dead")),
    };
    let state = asked.status.as_deref().map(parse).transpose()?;
    let room = |text: &str| match query::room_id(text) {
        Some(room_id) => Ok(room_id.to_owned()),
        None => Err(Problem::bad_body("room must be a room id, which begins with !")),
    };
    let room_id = asked.room.as_deref().map(room).transpose()?;
    let after = asked.cursor.as_deref().map_or(Ok(0), |cursor| List::Resend.number(cursor))?;
    Ok((Filter { state, room_id, since: Some(since), until }, after))
}

/// A trial that was queued.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Trial {
    /// The `webhook-id` that it goes out under.
    message_id: String,
}

/// Send a webhook a trial
///
/// A `webhook.test` that tells nothing, signed and sent as any other delivery; `/deliveries?webhook=…` shows what
/// came of it.
#[utoipa::path(
    post, path = "/api/v1/webhooks/{name}/test", tag = "webhooks",
    params(("name" = String, Path, description = "The webhook's name.")),
    responses(
        (status = 202, description = "It is queued.", body = Trial),
        (status = 404, description = "There is no such webhook.", body = super::openapi::Problem,
            content_type = "application/problem+json"),
        Refusals,
    ),
)]
pub(super) async fn test(
    State(state): State<HttpState>,
    Segment(name): Segment,
    query: Query,
) -> Result<super::super::error::Accepted<Trial>, Problem> {
    query.finish()?;
    let webhook_id = find_configured(&state, &name).await?;
    let message_id = trial::send(&state.api.store, webhook_id, state.api.clock.now()).await?;
    state.api.wake_outbox.notify_one();
    Ok(super::super::error::Accepted(Trial { message_id: message_id.0 }))
}

/// Send a webhook nothing more
///
/// What comes is queued for it, up to the webhook's bound, until it is resumed. An attempt that is under way may still
/// succeed. One that is paused already, or has answered 410, stays as it is.
#[utoipa::path(
    post, path = "/api/v1/webhooks/{name}/pause", tag = "webhooks",
    params(("name" = String, Path, description = "The webhook's name.")),
    responses(
        (status = 200, description = "The webhook, as it is now.", body = Webhook),
        (status = 404, description = "There is no such webhook.", body = super::openapi::Problem,
            content_type = "application/problem+json"),
        Refusals,
    ),
)]
pub(super) async fn pause(
    State(state): State<HttpState>,
    Segment(name): Segment,
    query: Query,
) -> Result<Json<Webhook>, Problem> {
    query.finish()?;
    let webhook_id = find_configured(&state, &name).await?;
    let mut tx = state.api.store.begin().await?;
    webhooks::disable(&mut tx, webhook_id, PAUSED, state.api.clock.now()).await?;
    tx.commit().await?;
    one(&state, &name).await
}

/// Send a webhook what is queued, and what comes
///
/// Also one that was disabled because it answered 410.
#[utoipa::path(
    post, path = "/api/v1/webhooks/{name}/resume", tag = "webhooks",
    params(("name" = String, Path, description = "The webhook's name.")),
    responses(
        (status = 200, description = "The webhook, as it is now.", body = Webhook),
        (status = 404, description = "There is no such webhook.", body = super::openapi::Problem,
            content_type = "application/problem+json"),
        Refusals,
    ),
)]
pub(super) async fn resume(
    State(state): State<HttpState>,
    Segment(name): Segment,
    query: Query,
) -> Result<Json<Webhook>, Problem> {
    query.finish()?;
    let webhook_id = find_configured(&state, &name).await?;
    let mut tx = state.api.store.begin().await?;
    webhooks::enable(&mut tx, webhook_id).await?;
    tx.commit().await?;
    state.api.wake_outbox.notify_one();
    one(&state, &name).await
}

pub(super) async fn find_configured(state: &HttpState, name: &str) -> Result<WebhookId, Problem> {
    if !state.api.webhooks.contains_key(name) {
        return Err(Problem::not_there("webhook"));
    }
    find(state, name).await
}

async fn one(state: &HttpState, name: &str) -> Result<Json<Webhook>, Problem> {
    let found = all(state).await?.into_iter().find(|webhook| webhook.name == name);
    found.map(Json).ok_or_else(|| Problem::not_there("webhook"))
}
