//! `coucou migrate`: brings the store's schema up to date, as `serve` does by itself.

use std::io::{self, Write};

use anyhow::{Context, Result};

use crate::{app, config::Config};

/// Migrates, unlocks and says what was done.
pub(super) async fn run(config: Config) -> Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{}", config.store.chosen_because)?;
    let applied = app::migrate(&config).await.context("the store cannot be migrated")?;
    for name in &applied {
        writeln!(out, "applied {name}")?;
    }
    let nothing = if applied.is_empty() { ": there was nothing to do" } else { "" };
    writeln!(out, "the schema is up to date{nothing}; the pickle key fits")?;
    Ok(())
}
