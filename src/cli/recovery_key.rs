//! `coucou recovery-key`: prints the bot's recovery key, to be written down.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result};
use secrecy::ExposeSecret;

use crate::{app, config::Config};

/// Prints the key alone to standard output, and to a person what it is for.
pub(super) async fn run(config: Config) -> Result<()> {
    let key = app::recovery_key(&config).await.context("there is no key to print")?;
    let mut out = io::stdout();
    writeln!(out, "{}", key.expose_secret())?;
    if out.is_terminal() {
        writeln!(io::stderr(), "Keep it where the database is not: `coucou restore` asks for it.")?;
    }
    Ok(())
}
