//! `coucou serve`: runs the service.

use anyhow::{Context, Result};

use crate::{app, config::Config, telemetry};

/// Runs the service until it is told to stop.
pub(super) fn run(config: Config) -> Result<()> {
    telemetry::init(&config.log)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), store = config.store.chosen_because, "starting");
    super::block_on(async { app::run(config).await.context("the service ended") })
}
