//! Answers the homeserver in coucou's place while coucou does not run, for `coucou check`: it can be pinged, and it
//! sees what would be pushed.
//!
//! It takes nothing over. A transaction with room events is refused, so that the homeserver keeps it for coucou; one
//! without is let go, as its to-device messages stay in their device's inbox, where the key lane finds them.

use axum::{
    Json, Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, StatusCode},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{post, put},
};
use serde_json::json;
use tokio::sync::mpsc::UnboundedSender;

use super::{auth, error::MatrixError, matrix};
use crate::inbox::{Envelope, batch::probe_nonce};

pub use super::auth::HsToken;

/// What the homeserver did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It came with another `hs_token` than ours, or with none.
    WrongToken,
    /// It pinged.
    Ping,
    /// It pushed a transaction.
    Pushed {
        /// The nonces of the probes in it.
        nonces: Vec<String>,
        /// Whether it told how many one-time keys are left.
        has_counts: bool,
    },
}

#[derive(Clone)]
struct Ear {
    hs_token: HsToken,
    heard: UnboundedSender<Heard>,
}

/// The routes; what is heard goes to `heard`.
pub fn router(hs_token: HsToken, heard: UnboundedSender<Heard>) -> Router {
    let ear = Ear { hs_token, heard };
    let ear_for_routes = ear.clone();
    Router::new()
        .route("/_matrix/app/v1/ping", post(ping))
        .route("/_matrix/app/v1/transactions/{txn_id}", put(transaction))
        .route("/transactions/{txn_id}", put(transaction))
        .route_layer(from_fn_with_state(ear_for_routes, check))
        .with_state(ear)
}

async fn check(State(ear): State<Ear>, request: Request, next: Next) -> Response {
    if let Err(error) = auth::check(&ear.hs_token, &request) {
        let _ = ear.heard.send(Heard::WrongToken);
        return error.into_response();
    }
    next.run(request).await
}

async fn ping(State(ear): State<Ear>) -> Response {
    let _ = ear.heard.send(Heard::Ping);
    Json(json!({})).into_response()
}

async fn transaction(
    State(ear): State<Ear>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, MatrixError> {
    const ABSENT: MatrixError =
        MatrixError::new(StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN", "coucou does not run at the moment");
    let body = matrix::read(&headers, body, matrix::BODY_TIMEOUT).await?;
    let envelope = Envelope::parse(&body).map_err(|_| ABSENT)?;
    let nonces = envelope.to_device.iter().filter_map(|message| Some(probe_nonce(message)?.1)).collect();
    let has_counts = !envelope.one_time_key_counts.is_empty();
    let _ = ear.heard.send(Heard::Pushed { nonces, has_counts });
    if envelope.events.is_empty() { Ok(Json(json!({})).into_response()) } else { Err(ABSENT) }
}
