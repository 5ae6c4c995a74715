//! The only place where errors become statuses: Matrix errors for the homeserver, problem JSON ([RFC 9457])
//! for everybody else. A 5xx does not show its cause, which is logged here, once.
//!
//! [RFC 9457]: https://www.rfc-editor.org/rfc/rfc9457

use std::error::Error;

use axum::{
    Extension, Json,
    extract::Request,
    http::{HeaderValue, StatusCode, header::CONTENT_TYPE},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::inbox::{AcceptError, EnvelopeError};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    status: StatusCode,
    detail: &'static str,
}

impl Problem {
    pub(super) const fn new(status: StatusCode, detail: &'static str) -> Self {
        Self { status, detail }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or_default();
        let body = json!({
            "type": "about:blank", "title": title, "status": self.status.as_u16(), "detail": self.detail
        });
        let json = HeaderValue::from_static("application/problem+json");
        let refusal = Extension(Refusal(self.detail));
        (self.status, refusal, [(CONTENT_TYPE, json)], body.to_string()).into_response()
    }
}
