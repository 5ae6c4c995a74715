//! Where Prometheus reads: on the main port, or on one of its own.

use std::{net::SocketAddr, sync::Arc};

use axum::Router;
use tokio::{net::TcpListener, sync::mpsc};

use super::{AppError, Shared};
use crate::{
    http::{
        self, Access, Health,
        metrics::{Exporter, Guard},
    },
    lifecycle::Lifecycle,
    model::Scope,
    store::Location,
};

/// Serves metrics on a port of their own; answers the routes that the main port has to serve.
///
/// # Errors
/// When that port is taken.
pub(super) async fn serve(
    lifecycle: &Lifecycle,
    shared: &Shared,
    health: &Health,
    fatal: &mpsc::Sender<AppError>,
) -> Result<Router, AppError> {
    let config = &shared.config;
    let settings = &config.metrics;
    let own = settings.token.iter().map(|token| (token.clone(), Scope::Read));
    let guard = match (settings.port, &settings.token) {
        (Some(_), None) => Guard::Open,
        (Some(_), Some(_)) => Guard::Tokens(Access::new(own)),
        (None, _) => {
            let all = config.api.tokens.iter().map(|entry| (entry.token.clone(), entry.scope));
            Guard::Tokens(Access::new(own.chain(all)))
        }
    };
    let most = match config.store.location {
        Location::Postgres { pool_size, .. } if shared.stand_in.is_none() => Some(pool_size),
        Location::Postgres { .. } | Location::Sqlite { .. } => None,
    };
    let exporter =
        Exporter::new(shared.store.clone(), Arc::clone(&shared.clock), health.clone(), guard, most);
    let router = http::metrics::router(&settings.path, exporter);
    let Some(port) = settings.port else { return Ok(router) };
    let address = SocketAddr::new(config.http.host, port);
    let listener =
        TcpListener::bind(address).await.map_err(|error| AppError::ListenForMetrics(address, error))?;
    tracing::info!(%address, path = settings.path, "metrics are served");
    let (fatal, stop) = (fatal.clone(), lifecycle.stop_token());
    lifecycle.spawn(async move {
        if let Err(error) = http::serve(listener, router, stop).await {
            let _ = fatal.send(AppError::Http(error)).await;
        }
    });
    Ok(Router::new())
}
