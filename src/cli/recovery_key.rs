//! `coucou recovery-key`: prints the bot's recovery key, to be written down. coucou reminds of it until then.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result};
use secrecy::{ExposeSecret, SecretString};

use crate::{app, config::Config};

/// Prints the key alone to standard output, and to a person what it is for.
pub(super) async fn run(config: Config) -> Result<()> {
    let print = |key: &SecretString| {
        let mut out = io::stdout();
        writeln!(out, "{}", key.expose_secret())?;
        out.flush()
    };
    let not_noted = app::print_recovery_key(&config, print).await.context("there is no key to print")?;
    if io::stdout().is_terminal() {
        writeln!(io::stderr(), "Keep it where the database is not: `coucou restore` asks for it.")?;
    }
    if let Some(error) = not_noted {
        writeln!(io::stderr(), "coucou: it could not be noted that the key was printed: {error}")?;
    }
    Ok(())
}
