//! The only place where errors become statuses: Matrix errors for the homeserver, problem JSON ([RFC 9457])
//! for everybody else. A 5xx does not show its cause, which is logged here, once.
//!
//! [RFC 9457]: https://www.rfc-editor.org/rfc/rfc9457

use std::{borrow::Cow, error::Error, time::Duration};

use axum::{
    Extension, Json,
    extract::Request,
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_RANGE, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::json;

use crate::{
    inbox::{AcceptError, EnvelopeError},
    media::{Failure, MediaError},
    store::StoreError,
};

/// A [standard error response](https://spec.matrix.org/latest/client-server-api/#standard-error-response).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MatrixError {
    status: StatusCode,
    errcode: &'static str,
    error: &'static str,
}

impl MatrixError {
    pub(super) const fn new(status: StatusCode, errcode: &'static str, error: &'static str) -> Self {
        Self { status, errcode, error }
    }
}

impl IntoResponse for MatrixError {
    fn into_response(self) -> Response {
        let body = Json(json!({ "errcode": self.errcode, "error": self.error }));
        (self.status, Extension(Refusal(self.error)), body).into_response()
    }
}

/// Why a request got an error, for the log.
#[derive(Clone, Copy, Debug)]
struct Refusal(&'static str);

/// Logs requests that are refused, once and in one place. What failed on our side was logged with its cause.
pub(super) async fn log_refusal(request: Request, next: Next) -> Response {
    /// Paths hold ids, which are as long as whoever asks likes.
    const MOST: usize = 200;
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let response = next.run(request).await;
    let status = response.status();
    if status.is_client_error() {
        let why = response.extensions().get().map_or("", |Refusal(why)| *why);
        // The query may hold a token.
        let path: String = uri.path().chars().take(MOST).collect();
        let status = status.as_u16();
        if status == 404 {
            // The internet tries all kinds of paths.
            tracing::info!(%method, path, status, why, "request refused");
        } else {
            tracing::warn!(%method, path, status, why, "request refused");
        }
    }
    response
}

impl From<AcceptError> for MatrixError {
    fn from(error: AcceptError) -> Self {
        const BAD: StatusCode = StatusCode::BAD_REQUEST;
        match &error {
            AcceptError::TxnId => Self::new(
                BAD,
                "M_INVALID_PARAM",
                "the transaction id is longer than 255 bytes or holds control characters",
            ),
            AcceptError::Envelope(EnvelopeError::NotJson) => {
                Self::new(BAD, "M_NOT_JSON", "the body is not a JSON object")
            }
            AcceptError::Envelope(EnvelopeError::Events) => {
                Self::new(BAD, "M_BAD_JSON", "events is not an array")
            }
            AcceptError::TimedOut | AcceptError::Stopping | AcceptError::Store(_) => {
                tracing::error!(error = &error as &dyn Error, "a transaction was not taken");
                if matches!(&error, AcceptError::Store(store) if !store.is_transient()) {
                    return Self::new(
                        StatusCode::INTERNAL_SERVER_ERROR,
                        "M_UNKNOWN",
                        "the transaction could not be stored",
                    );
                }
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN", "the store is unavailable")
            }
        }
    }
}

/// A problem ([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457)) on coucou's own API.
///
/// `code` is what programs go by: it stays while the words change. The id of the request is filled in on the
/// way out, by [`with_request_id`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: Cow<'static, str>,
    /// `WWW-Authenticate`.
    challenge: Option<&'static str>,
    /// `Retry-After`, in seconds.
    retry_after: Option<u64>,
    /// The size that `Content-Range` tells.
    size: Option<u64>,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code, detail: detail.into(), challenge: None, retry_after: None, size: None }
    }

    /// There is no such path.
    pub(super) fn no_such_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
    }

    /// The path exists, for other methods.
    pub(super) fn wrong_method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path takes another method")
    }

    /// Nobody may use the API, as the settings name no token.
    pub(super) fn api_disabled() -> Self {
        let detail =
            "no token is set up for the REST API: set api.tokens in coucou.yaml, or COUCOU_API_TOKEN";
        Self::new(StatusCode::FORBIDDEN, "api_disabled", detail)
    }

    /// There is no token in the request.
    pub(super) fn token_missing() -> Self {
        let detail = "the header Authorization: Bearer <token> is missing";
        let problem = Self::new(StatusCode::UNAUTHORIZED, "token_missing", detail);
        Self { challenge: Some("Bearer realm=\"coucou\""), ..problem }
    }

    /// The token is none of ours.
    pub(super) fn token_wrong() -> Self {
        let problem =
            Self::new(StatusCode::UNAUTHORIZED, "token_wrong", "the token is not one of api.tokens");
        Self { challenge: Some("Bearer realm=\"coucou\", error=\"invalid_token\""), ..problem }
    }

    /// The token may only look.
    pub(super) fn scope_insufficient() -> Self {
        let detail = "this token has the scope read; the request needs one with the scope admin";
        Self::new(StatusCode::FORBIDDEN, "scope_insufficient", detail)
    }

    /// Too many requests.
    pub(super) fn too_many_requests(wait: Duration) -> Self {
        let detail = "too many requests: wait as long as Retry-After says";
        let problem = Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", detail);
        Self { retry_after: Some(wait.as_secs().saturating_add(1)), ..problem }
    }

    /// A parameter that the endpoint does not have.
    pub(super) fn unknown_parameter(detail: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "unknown_parameter", detail)
    }

    /// A parameter, or a part of the path, that cannot be understood.
    pub(super) fn bad_parameter(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_parameter", detail)
    }

    /// A cursor that this endpoint never gave out.
    pub(super) fn bad_cursor() -> Self {
        let detail = "the cursor is not one that this endpoint gave out";
        Self::new(StatusCode::BAD_REQUEST, "bad_cursor", detail)
    }

    /// A cursor that lies ahead of all there is: of another store, or of one from before a restore.
    pub(super) fn cursor_ahead() -> Self {
        let detail = "the cursor lies ahead of everything in this store, which is another one or was restored: \
                      start again without a cursor, or at after=latest";
        Self::new(StatusCode::CONFLICT, "cursor_ahead", detail)
    }

    /// A body that cannot be understood.
    pub(super) fn bad_body(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_body", detail)
    }

    /// A body that is too large.
    pub(super) fn body_too_large() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "the body is larger than 64 KiB")
    }

    /// What the path names is not there.
    pub(super) fn not_there(what: &'static str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no such {what}"))
    }

    /// A message whose content was deleted cannot be sent again.
    pub(super) fn content_gone() -> Self {
        let detail = "the message's content was deleted for its age, so that it cannot be sent again";
        Self::new(StatusCode::CONFLICT, "content_gone", detail)
    }

    /// The address of a file is not one of ours, or was altered.
    pub(super) fn url_invalid() -> Self {
        let detail = "the address is not one that coucou made: take it as it is from content.media.url";
        Self::new(StatusCode::FORBIDDEN, "url_invalid", detail)
    }

    /// The address of a file has had its time.
    pub(super) fn url_expired() -> Self {
        let detail =
            "the address has expired: GET /api/v1/messages/{id} answers the message with a fresh one";
        Self::new(StatusCode::GONE, "url_expired", detail)
    }

    /// A part of a file that it does not have.
    pub(super) fn range_unsatisfiable(size: u64) -> Self {
        let detail = format!("the file has {size} bytes, and none in this range");
        let problem = Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "range_unsatisfiable", detail);
        Self { size: Some(size), ..problem }
    }

    /// Something of ours cannot be made into an answer; what, is logged here.
    pub(super) fn unreadable(error: &(dyn Error + 'static)) -> Self {
        tracing::error!(error, "a request of the REST API failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "coucou failed; its log says why")
    }

    fn render(&self, request_id: Option<&str>) -> Response {
        let title = self.status.canonical_reason().unwrap_or_default();
        let mut body = json!({
            "type": "about:blank", "title": title, "status": self.status.as_u16(), "code": self.code,
            "detail": self.detail,
        });
        if let Some(request_id) = request_id {
            body["request_id"] = request_id.into();
        }
        let json = HeaderValue::from_static("application/problem+json");
        let mut response = (self.status, [(CONTENT_TYPE, json)], body.to_string()).into_response();
        if let Some(challenge) = self.challenge {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(size) = self.size
            && let Ok(range) = HeaderValue::from_str(&format!("bytes */{size}"))
        {
            response.headers_mut().insert(CONTENT_RANGE, range);
        }
        response.extensions_mut().insert(Refusal(self.code));
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.render(None);
        response.extensions_mut().insert(self);
        response
    }
}

/// What was taken, to be done soon.
#[derive(Debug)]
pub(super) struct Accepted<T>(pub(super) T);

impl<T: Serialize> IntoResponse for Accepted<T> {
    fn into_response(self) -> Response {
        (StatusCode::ACCEPTED, Json(self.0)).into_response()
    }
}

/// Writes the request's id into a problem, where a response is one.
pub(super) fn with_request_id(response: Response, request_id: &str) -> Response {
    match response.extensions().get::<Problem>() {
        Some(problem) => problem.render(Some(request_id)),
        None => response,
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        if !error.is_transient() {
            return Self::unreadable(&error);
        }
        tracing::error!(error = &error as &dyn Error, "a request of the REST API was not served");
        let detail = "the store is unavailable; try again later";
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", detail);
        Self { retry_after: Some(5), ..problem }
    }
}

impl From<MediaError> for Problem {
    fn from(error: MediaError) -> Self {
        let later = |code, detail: &'static str, seconds| {
            let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail);
            Self { retry_after: Some(seconds), ..problem }
        };
        match error {
            MediaError::NotFound => {
                let detail = "there is no such file: its message was taken back, deleted for its age, or never had one";
                Self::new(StatusCode::NOT_FOUND, "not_found", detail)
            }
            MediaError::Pending => later("media_pending", "the file is still being fetched; ask again", 5),
            MediaError::Stopping => later("stopping", "coucou is being restarted; ask again", 5),
            MediaError::Store(error) => error.into(),
            MediaError::Failed(failure) => failure.into(),
        }
    }
}

/// What failed was logged where the file was fetched.
impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let bad = |code, detail: Cow<'static, str>| Self::new(StatusCode::BAD_GATEWAY, code, detail);
        let later = |code, detail: &'static str, seconds| {
            let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail);
            Self { retry_after: Some(seconds), ..problem }
        };
        match failure {
            Failure::Missing => {
                let detail = "the homeserver does not have the file, or no longer";
                Self::new(StatusCode::NOT_FOUND, "media_missing", detail)
            }
            Failure::Unavailable(_, wait) => {
                let seconds = wait.map_or(10, |wait| wait.as_secs().max(1));
                later(
                    "homeserver_unavailable",
                    "the homeserver does not give the file now; ask again",
                    seconds,
                )
            }
            Failure::Refused(_) => bad(
                "homeserver_refused",
                "the homeserver refuses to give the file; coucou's log says why".into(),
            ),
            Failure::TooLarge(most) => bad(
                "media_too_large",
                format!("the file is larger than {most} bytes (media.max_size)").into(),
            ),
            Failure::HashMismatch => {
                bad("media_corrupt", "the homeserver's file is not the one that was sent".into())
            }
            Failure::BadKey => {
                bad("media_unreadable", "the file is encrypted in a way that is not known".into())
            }
            Failure::Busy => {
                later("media_busy", "too many files are asked for at the same time; ask again", 5)
            }
            Failure::Cache(error) => Self::unreadable(&*error),
        }
    }
}
