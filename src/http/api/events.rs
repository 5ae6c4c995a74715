//! `GET /api/v1/events`: everything that was or would be delivered, in the order in which it was stored.
//!
//! A consumer that was away asks for what is after the last cursor it has dealt with, until there is no more. What
//! a cursor stands for never changes, and nothing ever appears before it.

use axum::{Json, extract::State};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    super::{HttpState, error::Problem},
    messages::{located, raw},
    openapi::Refusals,
    query::{List, Query},
};
use crate::store::messages::read;

/// What `after` says to begin after all there is.
const LATEST: &str = "latest";

/// A page of events.
#[derive(Debug, Serialize, ToSchema)]
#[expect(clippy::struct_field_names, reason = "the list has the name that programs read it by")]
pub(super) struct Events {
    /// How many events this page has.
    count: usize,
    /// The events, the first stored first.
    events: Vec<Event>,
    /// Where to go on: the next `after`, also when there was nothing.
    next: String,
    /// Whether there are more right now.
    has_more: bool,
}

/// Something a webhook is told.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Event {
    /// The cursor of this event: everything after it is what comes later.
    cursor: String,
    /// The id of the message, the `webhook-id` of its deliveries.
    id: String,
    /// The body of the webhook call, see `docs/webhook.md`; null once it was deleted for its age.
    #[schema(value_type = Option<Object>)]
    payload: Option<Box<RawValue>>,
}

/// Everything that was or would be delivered, in order
///
/// Without `after` it begins with the oldest that is kept, with `after=latest` after the newest. Go on with `next`,
/// at once while `has_more` is true. Events come in the order in which they were stored, each room's in the order
/// of its `sequence`, and none is ever inserted before a cursor that was given out. Trials (`webhook.test`) are
/// left out.
#[utoipa::path(
    get, path = "/api/v1/events", tag = "events",
    params(
        ("after" = Option<String>, Query, description = "The cursor to go on after, or `latest`."),
        ("limit" = Option<u16>, Query, description = "Events of a page at most.", minimum = 1, maximum = 500),
    ),
    responses(
        (status = 200, description = "A page of events.", body = Events),
        (status = 409, description = "`cursor_ahead`: the cursor is of another store, or of one before it was \
            restored.", body = super::openapi::Problem, content_type = "application/problem+json"),
        Refusals,
    ),
)]
pub(super) async fn list(State(state): State<HttpState>, mut query: Query) -> Result<Json<Events>, Problem> {
    let limit = query.limit()?;
    let after = query.take("after");
    query.finish()?;
    let store = &state.api.store;
    let last = read::last(store.db()).await?;
    let after = match after.as_deref() {
        None => 0,
        Some(LATEST) => last,
        Some(cursor) => List::Events.number(cursor)?,
    };
    if after > last {
        return Err(Problem::cursor_ahead());
    }
    let mut found = read::after(store.db(), store.seal()?, after, limit + 1).await?;
    let has_more = found.len() > usize::from(limit);
    found.truncate(limit.into());
    let next = List::Events.cursor(found.last().map_or(after, |event| event.position));
    let (links, now) = (state.api.links()?, state.api.clock.now());
    let event = |stored: read::Stored| {
        let cursor = List::Events.cursor(stored.position);
        let payload = stored.payload.map(|payload| raw(located(links.as_ref(), payload, now)));
        Ok(Event { cursor, id: stored.message_id, payload: payload.transpose()? })
    };
    let events: Vec<_> = found.into_iter().map(event).collect::<Result<_, Problem>>()?;
    Ok(Json(Events { count: events.len(), events, next, has_more }))
}
