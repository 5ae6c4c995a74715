//! How coucou is, from what is already known: no answer here waits for the database.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tokio::sync::watch;
use utoipa::ToSchema;

use super::HttpState;
use crate::model::HomeserverState;

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

/// How coucou is.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Health)]
pub(super) struct Answer {
    /// `ok`, or `degraded` while the store is away.
    status: &'static str,
    /// The store.
    store: StoreHealth,
    /// The homeserver.
    homeserver: HomeserverHealth,
    /// The version of coucou.
    version: &'static str,
}

/// The homeserver, as the last request to it has shown.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = HealthHomeserver)]
pub(super) struct HomeserverHealth {
    /// `ok`, `away`, `refuses`, or `unasked`, as by a process that stands by. It changes no status.
    state: &'static str,
    /// Why it refuses; absent when it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

/// The store, as far as everybody may know.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = HealthStore)]
pub(super) struct StoreHealth {
    /// `postgres` or `sqlite`.
    backend: &'static str,
    /// `starting`, `ready` or `unavailable`.
    state: &'static str,
    /// Whether it stands in for PostgreSQL (`store.fallback`).
    fallback: bool,
    /// Why it is not there; absent while it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// What the health endpoints show; clones share it.
#[derive(Clone, Debug)]
pub struct Health {
    /// `postgres` or `sqlite`.
    backend: &'static str,
    store: watch::Receiver<StoreState>,
    /// Why this store stands in for the one of the settings.
    stands_in: Option<String>,
    homeserver: watch::Receiver<HomeserverState>,
}

impl Health {
    /// Health of a store of that kind, and the handle by which its state is told.
    #[must_use]
    pub fn new(backend: &'static str) -> (watch::Sender<StoreState>, Self) {
        let (sender, store) = watch::channel(StoreState::default());
        let (_, homeserver) = watch::channel(HomeserverState::default());
        (sender, Self { backend, store, stands_in: None, homeserver })
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

    /// Follows how the homeserver is.
    #[must_use]
    pub fn with_homeserver(self, homeserver: watch::Receiver<HomeserverState>) -> Self {
        Self { homeserver, ..self }
    }

    /// How the homeserver is.
    #[must_use]
    pub fn homeserver(&self) -> HomeserverState {
        self.homeserver.borrow().clone()
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
        let homeserver = self.homeserver();
        let body = Answer {
            status: if ready { "ok" } else { "degraded" },
            store: StoreHealth { backend: self.backend, state, fallback: self.stands_in.is_some(), reason },
            homeserver: HomeserverHealth { state: homeserver.as_str(), reason: homeserver.why() },
            version: env!("CARGO_PKG_VERSION"),
        };
        (if ready { StatusCode::OK } else { away }, Json(body)).into_response()
    }
}

/// Whether the process serves
///
/// 200 as long as it does: a store that is away is no reason to restart it, and the body says so.
#[utoipa::path(
    get, path = "/api/v1/health", tag = "health", security(()),
    responses((status = 200, description = "It serves.", body = Answer)),
)]
pub(super) async fn health(State(state): State<HttpState>) -> Response {
    state.health.answer(StatusCode::OK)
}

/// Whether the store is there
///
/// Transactions are taken while it is.
#[utoipa::path(
    get, path = "/api/v1/ready", tag = "health", security(()),
    responses(
        (status = 200, description = "It is.", body = Answer),
        (status = 503, description = "It is not, and the body says why.", body = Answer),
    ),
)]
pub(super) async fn ready(State(state): State<HttpState>) -> Response {
    state.health.answer(StatusCode::SERVICE_UNAVAILABLE)
}
