//! `GET /api/v1/deliveries`, `POST /api/v1/deliveries/{id}/resend`: what went out, what did not, and again.

use std::collections::BTreeMap;

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    super::{HttpState, error::Problem},
    openapi::{Page, Refusals, Times},
    query::{List, Query, Segment},
};
use crate::{
    model::{DeliveryId, WebhookId},
    store::{
        outbox::admin::{self, Filter, Listed},
        webhooks,
    },
};

/// A page of deliveries.
#[derive(Debug, Serialize, ToSchema)]
#[expect(clippy::struct_field_names, reason = "the list has the name that programs read it by")]
pub(super) struct Deliveries {
    /// How many deliveries this page has.
    count: usize,
    /// The deliveries, the newest first.
    deliveries: Vec<Delivery>,
    /// The `cursor` of the next page; null when this is the last.
    next: Option<String>,
}

/// One message for one webhook.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Delivery {
    /// Its number.
    id: i64,
    /// The webhook's name.
    webhook: String,
    /// The message, the `webhook-id` of every attempt.
    message_id: String,
    /// What the message tells, e.g. `message.created`.
    r#type: String,
    /// The Matrix room.
    room_id: String,
    /// The message's number in its room.
    sequence: i64,
    /// `pending`: still to be made. `delivered`: the webhook took it. `dead`: given up.
    status: String,
    /// Attempts made so far; from 0 again after a resend.
    attempts: i64,
    /// The HTTP status that the last attempt was answered with; null when there was no answer.
    last_status: Option<i64>,
    /// Why the last attempt failed, one word; null when it did not.
    last_error: Option<String>,
    /// How long the last attempt took, milliseconds.
    last_duration_ms: Option<i64>,
    /// When it was queued first, RFC 3339 in UTC.
    created_at: String,
    /// When it was delivered or given up.
    finished_at: Option<String>,
}

impl Delivery {
    fn of(listed: Listed, names: &BTreeMap<WebhookId, String>) -> Self {
        Self {
            id: listed.delivery_id.0,
            webhook: names.get(&listed.webhook_id).cloned().unwrap_or_default(),
            message_id: listed.message_id,
            r#type: listed.message_type,
            room_id: listed.room_id,
            sequence: listed.sequence,
            status: listed.state,
            attempts: listed.attempts,
            last_status: listed.last_status,
            last_error: listed.last_error,
            last_duration_ms: listed.last_duration_ms,
            created_at: listed.created_at.rfc3339(),
            finished_at: listed.finished_at.map(crate::clock::Timestamp::rfc3339),
        }
    }
}

/// The names of all webhooks there ever were, by their numbers.
async fn names(state: &HttpState) -> Result<BTreeMap<WebhookId, String>, Problem> {
    Ok(webhooks::all(state.api.store.db()).await?.into_iter().collect())
}

/// Deliveries, newest first
#[utoipa::path(
    get, path = "/api/v1/deliveries", tag = "deliveries",
    params(
        Page, Times,
        ("webhook" = Option<String>, Query, description = "To this webhook alone."),
        ("status" = Option<String>, Query, description = "`pending`, `delivered` or `dead`."),
        ("room" = Option<String>, Query, description = "Of this room alone."),
    ),
    responses((status = 200, description = "A page of deliveries.", body = Deliveries), Refusals),
)]
pub(super) async fn list(
    State(state): State<HttpState>,
    mut query: Query,
) -> Result<Json<Deliveries>, Problem> {
    let limit = query.limit()?;
    let webhook = query.take("webhook");
    let status = query.parsed("status", "pending, delivered or dead", admin::State::parse)?;
    let room_id = query.room()?;
    let (since, until) = query.times()?;
    // They are read along another order, so that cursors of one are none of the other.
    let is_open = status.is_some_and(admin::State::is_open);
    let list = if is_open { List::OpenDeliveries } else { List::Deliveries };
    let before = query.number("cursor", list)?.unwrap_or(i64::MAX);
    query.finish()?;
    let names = names(&state).await?;
    if let Some(name) = webhook.as_ref().filter(|name| !names.values().any(|known| known == *name)) {
        return Err(Problem::bad_parameter(format!("there is no webhook {name:?}")));
    }
    let filter = Filter { state: status, room_id, since, until };
    let mut found = Vec::new();
    for (id, _) in names.iter().filter(|(_, name)| webhook.as_ref().is_none_or(|asked| asked == *name)) {
        found.extend(admin::page(state.api.store.db(), *id, &filter, before, limit + 1).await?);
    }
    let place = |delivery: &Listed| if is_open { delivery.delivery_id.0 } else { delivery.position };
    found.sort_by_key(|delivery| (-place(delivery), delivery.webhook_id));
    let page = whole_page(&found, limit.into(), place);
    let more = found.len() > page;
    found.truncate(page);
    let next = found.last().filter(|_| more).map(|last| list.cursor(place(last)));
    let deliveries: Vec<_> = found.into_iter().map(|listed| Delivery::of(listed, &names)).collect();
    Ok(Json(Deliveries { count: deliveries.len(), deliveries, next }))
}

/// How many of the first make a page: as many as `limit`, and those at the same place as the last of them, which a
/// cursor could not tell apart.
fn whole_page(found: &[Listed], limit: usize, place: impl Fn(&Listed) -> i64) -> usize {
    let Some(last) = limit.checked_sub(1).and_then(|at| found.get(at)) else { return found.len() };
    let same = found.iter().skip(limit).take_while(|delivery| place(delivery) == place(last));
    limit + same.count()
}

/// A delivery
#[utoipa::path(
    get, path = "/api/v1/deliveries/{delivery_id}", tag = "deliveries",
    params(("delivery_id" = i64, Path, description = "The delivery's number.")),
    responses(
        (status = 200, description = "The delivery.", body = Delivery),
        (status = 404, description = "There is no such delivery.", body = super::openapi::Problem,
            content_type = "application/problem+json"),
        Refusals,
    ),
)]
pub(super) async fn one(
    State(state): State<HttpState>,
    Segment(id): Segment,
    query: Query,
) -> Result<Json<Delivery>, Problem> {
    query.finish()?;
    find(&state, &id).await.map(Json)
}

async fn find(state: &HttpState, id: &str) -> Result<Delivery, Problem> {
    let id = parse(id)?;
    let found = admin::find(state.api.store.db(), id).await?;
    let found = found.ok_or_else(|| Problem::not_there("delivery"))?;
    Ok(Delivery::of(found, &names(state).await?))
}

fn parse(id: &str) -> Result<DeliveryId, Problem> {
    let id = id.parse().ok().filter(|id| *id > 0);
    id.map(DeliveryId).ok_or_else(|| Problem::bad_parameter("the delivery must be a number"))
}

/// Send a delivery again
///
/// It becomes pending once more and goes out under the same `webhook-id`, in its room's order. One that is pending
/// already stays as it is.
#[utoipa::path(
    post, path = "/api/v1/deliveries/{delivery_id}/resend", tag = "deliveries",
    params(("delivery_id" = i64, Path, description = "The delivery's number.")),
    responses(
        (status = 200, description = "The delivery, as it is now.", body = Delivery),
        (status = 404, description = "There is no such delivery.", body = super::openapi::Problem,
            content_type = "application/problem+json"),
        (status = 409, description = "`content_gone`: the message's content was deleted for its age.",
            body = super::openapi::Problem, content_type = "application/problem+json"),
        Refusals,
    ),
)]
pub(super) async fn resend(
    State(state): State<HttpState>,
    Segment(id): Segment,
    query: Query,
) -> Result<Json<Delivery>, Problem> {
    query.finish()?;
    let before = find(&state, &id).await?;
    let mut tx = state.api.store.begin().await?;
    let resent = admin::resend(&mut tx, &[parse(&id)?], state.api.clock.now()).await?;
    tx.commit().await?;
    state.api.wake_outbox.notify_one();
    if resent == 0 && before.status != admin::State::Pending.as_str() {
        let delivery = find(&state, &id).await?;
        // Somebody else may have been quicker.
        if delivery.status != admin::State::Pending.as_str() {
            return Err(Problem::content_gone());
        }
    }
    find(&state, &id).await.map(Json)
}
