//! How coucou is, from what is already known: no answer here waits for the database.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::json;
use tokio::sync::watch;

use super::HttpState;

/// How the store is, as last seen by whoever watches it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StoreState {
    /// Not reached yet.
    #[default]
    Starting,
    /// It takes what comes.
    Ready,
    /// It is away; transactions get a 503.
    Unavailable {
        /// Why, in words for the operator; without addresses or secrets, as everybody may read them.
        reason: String,
    },
}

/// What the health endpoints show; clones share it.
#[derive(Clone, Debug)]
pub struct Health {
    /// `postgres` or `sqlite`.
    backend: &'static str,
    store: watch::Receiver<StoreState>,
    /// Why this store stands in for the one of the settings.
    stands_in: Option<String>,
}

impl Health {
    /// Health of a store of that kind, and the handle by which its state is told.
    #[must_use]
    pub fn new(backend: &'static str) -> (watch::Sender<StoreState>, Self) {
        let (sender, store) = watch::channel(StoreState::default());
        (sender, Self { backend, store, stands_in: None })
    }

    /// Says that the store stands in for the one of the settings, and why: in words that everybody may read.
    #[must_use]
    pub fn standing_in(self, why: Option<String>) -> Self {
        Self { stands_in: why, ..self }
    }

    /// Why the store stands in for the one of the settings, when it does.
    #[must_use]
    pub fn stands_in(&self) -> Option<&str> {
        self.stands_in.as_deref()
    }

    /// How the store is.
    #[must_use]
    pub fn store(&self) -> StoreState {
        self.store.borrow().clone()
    }

    /// The answer, under `away` unless the store is ready.
    fn answer(&self, away: StatusCode) -> Response {
        let (state, reason) = match self.store() {
            StoreState::Starting => ("starting", None),
            StoreState::Ready => ("ready", None),
            StoreState::Unavailable { reason } => ("unavailable", Some(reason)),
        };
        let ready = state == "ready";
        let fallback = self.stands_in.is_some();
        let mut store = json!({ "backend": self.backend, "state": state, "fallback": fallback });
        if let Some(reason) = reason {
            store["reason"] = reason.into();
        }
        let body = json!({
            "status": if ready { "ok" } else { "degraded" },
            "store": store,
            "version": env!("CARGO_PKG_VERSION"),
        });
        (if ready { StatusCode::OK } else { away }, Json(body)).into_response()
    }
}

/// `GET /api/v1/health`: 200 as long as the process serves; a store that is away is no reason to restart it.
pub(super) async fn health(State(state): State<HttpState>) -> Response {
    state.health.answer(StatusCode::OK)
}

/// `GET /api/v1/ready`: 503 while the store is away.
pub(super) async fn ready(State(state): State<HttpState>) -> Response {
    state.health.answer(StatusCode::SERVICE_UNAVAILABLE)
}
