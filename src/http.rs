//! What coucou answers over HTTP: the application service API to the homeserver, health to everybody, the REST
//! API to whoever has a token.
//!
//! Nothing is answered with a success that is not durable. A request that cannot be served gets its error and
//! costs nothing: tokens are checked before a body is read, bodies, times and connections are bounded.

pub mod api;
mod auth;
mod connections;
mod error;
pub mod health;
mod matrix;
pub mod metrics;
pub mod stand_in;
#[cfg(test)]
mod tests;

use std::{
    io,
    sync::{Arc, OnceLock},
};

use axum::{
    Router,
    http::{StatusCode, Uri},
    middleware::from_fn,
    response::{IntoResponse, Response},
    routing::get,
};
use ruma::OwnedUserId;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use api::{Api, access::Access};
pub use auth::HsToken;
pub use health::{Health, StoreState};

use crate::inbox::Inbox;
use connections::{Connections, Peer};
use error::{MatrixError, Problem};

/// What the handlers share; clones share it too.
#[derive(Clone, Debug)]
pub struct HttpState {
    /// Where transactions go.
    pub inbox: Inbox,
    /// What the homeserver proves itself with.
    pub hs_token: HsToken,
    /// The bot, the one user that exists here; set once it is known, as its server's name may have to be asked.
    pub bot: Arc<OnceLock<OwnedUserId>>,
    /// How coucou is.
    pub health: Health,
    /// What the REST API answers from.
    pub api: Arc<Api>,
}

/// Every route; those of `metrics` too, when they have no port of their own.
pub fn router(state: HttpState, metrics: Router) -> Router {
    Router::new()
        .merge(matrix::routes(&state))
        .merge(api::routes(&state))
        .route("/api/v1/health", get(health::health))
        .route("/api/v1/ready", get(health::ready))
        .method_not_allowed_fallback(wrong_method)
        .fallback(not_found)
        .layer(from_fn(api::dress))
        .layer(from_fn(error::log_refusal))
        .with_state(state)
        .merge(metrics)
}

/// Serves until `stop`, then finishes the requests in hand.
///
/// # Errors
/// Only when the listener itself fails for good.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) -> io::Result<()> {
    let app = router.into_make_service_with_connect_info::<Peer>();
    axum::serve(Connections::of(listener), app).with_graceful_shutdown(stop.cancelled_owned()).await
}

/// Whether a path is of coucou's own API, whose errors are problem JSON; all else is Matrix.
fn is_api(uri: &Uri) -> bool {
    uri.path() == "/api" || uri.path().starts_with("/api/")
}

async fn not_found(uri: Uri) -> Response {
    if is_api(&uri) {
        return Problem::no_such_path().into_response();
    }
    MatrixError::new(StatusCode::NOT_FOUND, "M_UNRECOGNIZED", "unknown endpoint").into_response()
}

async fn wrong_method(uri: Uri) -> Response {
    if is_api(&uri) {
        return Problem::wrong_method().into_response();
    }
    MatrixError::new(StatusCode::METHOD_NOT_ALLOWED, "M_UNRECOGNIZED", "the endpoint takes another method")
        .into_response()
}
