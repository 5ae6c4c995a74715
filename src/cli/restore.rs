//! `coucou restore`: brings a lost database back, on an empty store.

use std::{
    fs,
    io::{self, IsTerminal, Read, Write},
    path::PathBuf,
};

use anyhow::{Context, Result};

use crate::{
    app::{self, RestoreOptions},
    config::Config,
    model::RecoveryKey,
};

/// Keys between two lines of progress.
const KEYS_A_LINE: u64 = 1_000;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The bot's recovery key or passphrase; - reads it from standard input [default: COUCOU_RECOVERY_KEY].
    #[arg(long, value_name = "KEY", conflicts_with = "recovery_key_file")]
    recovery_key: Option<String>,
    /// A file that holds it: unlike an argument, nobody else on this machine sees it.
    #[arg(long, value_name = "FILE")]
    recovery_key_file: Option<PathBuf>,
    /// Restores the identity even when there is no key backup.
    #[arg(long)]
    identity_only: bool,
    /// Restores nothing: gives the bot a new identity, for when the recovery key is lost for good.
    #[arg(long, conflicts_with_all = ["recovery_key", "recovery_key_file", "identity_only"])]
    start_over: bool,
}

/// Restores, with progress, and says what is there now.
pub(super) async fn run(args: Args, config: Config) -> Result<()> {
    let options = RestoreOptions { identity_only: args.identity_only, start_over: args.start_over };
    let key = if args.start_over { None } else { key(&args, &config)? };
    let mut out = io::stdout();
    writeln!(out, "{}", config.store.chosen_because)?;
    let mut lines = 0;
    let progress = |progress: crate::app::RestoreProgress| {
        if progress.keys / KEYS_A_LINE > lines || progress.keys >= progress.of {
            lines = progress.keys / KEYS_A_LINE;
            // Nobody need read it.
            let _ = writeln!(io::stdout(), "{} of {} room keys", progress.keys, progress.of);
        }
    };
    let restored = app::restore(config, key, options, progress).await.context("nothing was restored")?;
    if args.start_over {
        writeln!(out, "the bot has a new device and a new identity; what came before cannot be read")?;
    } else {
        let (keys, unreadable) = (restored.keys, restored.unreadable);
        writeln!(out, "the bot has a new device with its old identity, and {keys} room keys")?;
        if unreadable > 0 {
            writeln!(out, "{unreadable} keys of the backup cannot be read")?;
        }
    }
    writeln!(out, "`coucou serve` goes on from here")?;
    Ok(())
}

fn key(args: &Args, config: &Config) -> Result<Option<RecoveryKey>> {
    let from_stdin = || {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).context("standard input cannot be read").map(|_| text)
    };
    let text = match (&args.recovery_key, &args.recovery_key_file) {
        (Some(dash), _) if dash == "-" => from_stdin()?,
        (Some(text), _) => text.clone(),
        (None, Some(path)) => {
            fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?
        }
        (None, None) if config.recovery_key.is_some() => return Ok(config.recovery_key.clone()),
        (None, None) if !io::stdin().is_terminal() => from_stdin()?,
        (None, None) => return Ok(None),
    };
    if text.trim().is_empty() && args.recovery_key.is_none() && args.recovery_key_file.is_none() {
        return Ok(None);
    }
    Ok(Some(RecoveryKey::parse(&text)?))
}
