//! The [application service API][spec]: what the homeserver asks of us.
//!
//! [spec]: https://spec.matrix.org/latest/application-service-api/#homeserver---application-service-api

use std::time::{Duration, Instant};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, StatusCode, header::CONTENT_LENGTH},
    middleware::from_fn_with_state,
    routing::{get, post, put},
};
use futures_util::StreamExt;
use ruma::TransactionId;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{HttpState, auth, error::MatrixError};
use crate::inbox::accept::Accepted;

/// The most bytes of a transaction: 100 events of 64 KiB, their to-device messages, and room to spare.
pub(super) const BODY_LIMIT: usize = 32 << 20;

/// How long a body may take to come.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Every answer: an empty object, or an error.
type Answer = Result<Json<Value>, MatrixError>;

/// The routes of the specification, and those from before it had versions
/// ([legacy routes](https://spec.matrix.org/latest/application-service-api/#legacy-routes)).
pub(super) fn routes(state: &HttpState) -> Router<HttpState> {
    let mut routes = Router::new().route("/_matrix/app/v1/ping", post(ping));
    for root in ["/_matrix/app/v1", ""] {
        routes = routes
            .route(&format!("{root}/transactions/{{txn_id}}"), put(transaction))
            .route(&format!("{root}/users/{{user_id}}"), get(user))
            .route(&format!("{root}/rooms/{{room_alias}}"), get(nothing));
    }
    for root in ["/_matrix/app/v1", "/_matrix/app/unstable"] {
        for kind in ["protocol/{protocol}", "user", "user/{user}", "location", "location/{location}"] {
            routes = routes.route(&format!("{root}/thirdparty/{kind}"), get(nothing));
        }
    }
    routes.route_layer(from_fn_with_state(state.clone(), auth::homeserver))
}

/// A transaction: 200 only once it is durable.
async fn transaction(
    State(state): State<HttpState>,
    txn_id: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let started = Instant::now();
    let Path(txn_id) = txn_id.map_err(|_| {
        MatrixError::new(StatusCode::BAD_REQUEST, "M_INVALID_PARAM", "the transaction id is not UTF-8")
    })?;
    let body = read(&headers, body, BODY_TIMEOUT).await?;
    let bytes = body.len();
    let accepted = state.inbox.accept(<&TransactionId>::from(&*txn_id), body).await?;
    tracing::info!(
        txn.id = txn_id,
        bytes,
        repeat = accepted == Accepted::Repeat,
        elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        "transaction taken"
    );
    Ok(Json(json!({})))
}

/// The bot exists, and nobody else does.
async fn user(State(state): State<HttpState>, user_id: Result<Path<String>, PathRejection>) -> Answer {
    match (user_id, state.bot.get()) {
        (Ok(Path(user_id)), Some(bot)) if user_id == bot.as_str() => Ok(Json(json!({}))),
        _ => Err(MatrixError::new(StatusCode::NOT_FOUND, "M_NOT_FOUND", "no such user")),
    }
}

/// Room aliases and third-party networks, of which there are none.
async fn nothing() -> Answer {
    Err(MatrixError::new(StatusCode::NOT_FOUND, "M_NOT_FOUND", "there is none of that name"))
}

/// The homeserver found us, and with the right token: that is all a ping is for.
async fn ping(State(state): State<HttpState>) -> Answer {
    state.inbox.homeserver_is_alive();
    Ok(Json(json!({})))
}

/// Reads a body into one piece, in bounded time and space.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Body,
    patience: Duration,
) -> Result<Vec<u8>, MatrixError> {
    const SLOW: MatrixError =
        MatrixError::new(StatusCode::REQUEST_TIMEOUT, "M_UNKNOWN", "the body did not come in time");
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    timeout(patience, collect(announced.unwrap_or(0), body)).await.unwrap_or(Err(SLOW))
}

async fn collect(announced: usize, body: Body) -> Result<Vec<u8>, MatrixError> {
    const LARGE: MatrixError =
        MatrixError::new(StatusCode::PAYLOAD_TOO_LARGE, "M_TOO_LARGE", "the body is larger than 32 MiB");
    const BROKEN: MatrixError =
        MatrixError::new(StatusCode::BAD_REQUEST, "M_UNKNOWN", "the body broke off before its end");
    let mut stream = body.into_data_stream();
    let fits = announced <= BODY_LIMIT;
    let mut body = Vec::with_capacity(if fits { announced } else { 0 });
    let mut read = 0;
    while let Some(part) = stream.next().await {
        let part = part.map_err(|_| BROKEN)?;
        read += part.len();
        if fits && read <= BODY_LIMIT {
            body.extend_from_slice(&part);
        } else if read > 2 * BODY_LIMIT {
            break;
        } else {
            // The rest is read and thrown away: a sender that is still writing would not see the answer.
            body = Vec::new();
        }
    }
    if fits && read <= BODY_LIMIT { Ok(body) } else { Err(LARGE) }
}
