//! `GET /api/v1/openapi.json`: the description of the API, made from the handlers themselves.

use axum::Json;
use utoipa::{
    IntoParams, IntoResponses, Modify, OpenApi, ToSchema,
    openapi::{
        SecurityRequirement,
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};

mod values;

use values::Values;

use super::{
    super::health, deliveries, events, keys, media, messages, rooms, rotation, stats, undecryptable, webhooks,
};

/// A problem (RFC 9457).
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what error.rs writes")]
pub(super) struct Problem {
    /// Always `about:blank`.
    r#type: String,
    /// The status in words.
    title: String,
    /// The HTTP status.
    status: u16,
    /// What programs go by; it stays while the words change.
    #[schema(example = "bad_parameter")]
    code: String,
    /// What is wrong, and what to do.
    detail: String,
    /// The id of the request, also in `x-request-id`; the log has it.
    request_id: String,
}

/// What every endpoint may answer.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes what error.rs writes")]
pub(super) enum Refusals {
    /// `unknown_parameter`, `bad_parameter`, `bad_cursor`, `bad_body`: the request cannot be understood.
    #[response(status = 400, content_type = "application/problem+json")]
    Bad(#[to_schema] Problem),
    /// `token_missing`, `token_wrong`.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthorized(#[to_schema] Problem),
    /// `api_disabled`: no token is set up. `scope_insufficient`: the token may only look.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(#[to_schema] Problem),
    /// `too_many_requests`: wait as long as `Retry-After` says.
    #[response(status = 429, content_type = "application/problem+json")]
    TooMany(#[to_schema] Problem),
    /// `store_unavailable`: the store is away; try again later.
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(#[to_schema] Problem),
}

/// What endpoints that take a body may answer beside those.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes what error.rs writes")]
pub(super) enum BodyRefusals {
    /// `body_too_large`: the body is larger than 64 KiB.
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(#[to_schema] Problem),
}

/// What the endpoints of files may answer instead.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes what error.rs writes")]
pub(super) enum MediaRefusals {
    /// The file is the one that the caller has, by `If-None-Match`.
    #[response(status = 304)]
    Same,
    /// `unknown_parameter`, `bad_parameter`: the request cannot be understood.
    #[response(status = 400, content_type = "application/problem+json")]
    Bad(#[to_schema] Problem),
    /// `url_invalid`: the address is not one that coucou made, or was altered.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(#[to_schema] Problem),
    /// `not_found`: the message has no such file, or no longer. `media_missing`: the homeserver has it no longer.
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(#[to_schema] Problem),
    /// `url_expired`: `GET /api/v1/messages/{id}` has a fresh one.
    #[response(status = 410, content_type = "application/problem+json")]
    Expired(#[to_schema] Problem),
    /// `range_unsatisfiable`.
    #[response(status = 416, content_type = "application/problem+json")]
    Range(#[to_schema] Problem),
    /// `media_corrupt`, `media_unreadable`, `media_too_large`, `homeserver_refused`: asking again is of no use.
    #[response(status = 502, content_type = "application/problem+json")]
    Unusable(#[to_schema] Problem),
    /// `homeserver_unavailable`, `media_pending`, `media_busy`, `stopping`, `store_unavailable`: ask again after
    /// `Retry-After`.
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(#[to_schema] Problem),
}

/// Parameters of every list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what query.rs reads")]
pub(super) struct Page {
    /// Entries of a page at most; 50 when absent.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u16>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// Parameters of lists in time.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what query.rs reads")]
pub(super) struct Times {
    /// From this time on, RFC 3339.
    #[param(example = "2026-11-22T03:14:22Z")]
    since: Option<String>,
    /// Before this time, RFC 3339.
    until: Option<String>,
}

struct Tokens;

impl Modify for Tokens {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        openapi.components.get_or_insert_default().add_security_scheme("token", scheme);
        openapi.security = Some(vec![SecurityRequirement::new::<_, [&str; 0], &str>("token", [])]);
    }
}

/// The whole description.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "coucou",
        description = "What coucou holds and does. Looking needs a token of the scope `read`, changing something \
            one of the scope `admin`.",
    ),
    paths(
        messages::list,
        messages::of,
        events::list,
        media::file,
        media::thumbnail,
        media::part,
        undecryptable::list,
        rooms::list,
        rooms::one,
        keys::list,
        deliveries::list,
        deliveries::one,
        deliveries::resend,
        webhooks::list,
        webhooks::resend,
        webhooks::test,
        webhooks::pause,
        webhooks::resume,
        rotation::rotate,
        stats::get,
        health::health,
        health::ready,
        serve,
    ),
    modifiers(&Tokens, &Values),
)]
struct Description;

/// The description, as it is served.
pub(in crate::http) fn description() -> utoipa::openapi::OpenApi {
    Description::openapi()
}

/// This description
///
/// Anybody may read it: it says nothing about this coucou.
#[utoipa::path(
    get, path = "/api/v1/openapi.json", tag = "health", security(()),
    responses((status = 200, description = "The description.", body = Object)),
)]
pub(super) async fn serve() -> Json<utoipa::openapi::OpenApi> {
    Json(description())
}
