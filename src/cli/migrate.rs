//! `coucou migrate`: brings the store's schema up to date, as `serve` does by itself.

use std::io::{self, Write};

use anyhow::{Context, Result};

use crate::{
    clock::{Clock, SystemClock},
    config::Config,
    store::Store,
};

/// Migrates, unlocks and says what was done.
pub(super) async fn run(config: Config) -> Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{}", config.store.chosen_because)?;
    let store = Store::open(&config.store.location, config.store.pickle_key)?;
    let applied = store.db().migrate().await.context("the store cannot be migrated")?;
    // Opening the data key as well shows a wrong pickle key now and not at the next start.
    store.prepare(SystemClock.now()).await.context("the store cannot be opened")?;
    store.close().await;
    for name in &applied {
        writeln!(out, "applied {name}")?;
    }
    let nothing = if applied.is_empty() { ": there was nothing to do" } else { "" };
    writeln!(out, "the schema is up to date{nothing}; the pickle key fits")?;
    Ok(())
}
