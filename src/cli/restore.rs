//! `coucou restore`: brings a lost database back, on an empty store.

use std::{
    fs,
    io::{self, IsTerminal, Read, Write},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    app::{self, History, RestoreOptions},
    config::Config,
    model::RecoveryKey,
};

/// Keys between two lines of progress.
const KEYS_A_LINE: u64 = 1_000;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The bot's recovery key or passphrase; - reads it from standard input [default: `COUCOU_RECOVERY_KEY`].
    #[arg(long, value_name = "KEY", conflicts_with = "recovery_key_file")]
    recovery_key: Option<String>,
    /// A file that holds it: unlike an argument, nobody else on this machine sees it.
    #[arg(long, value_name = "FILE")]
    recovery_key_file: Option<PathBuf>,
    /// Restores the identity even when there is no key backup.
    #[arg(long)]
    identity_only: bool,
    /// Reads rooms back and relays again what was said in them: `all`, or a time such as 12h or 30d.
    #[arg(long, value_name = "TIME", value_parser = history)]
    history: Option<History>,
    /// Restores nothing: gives the bot a new identity, for when the recovery key is lost for good.
    #[arg(long, conflicts_with_all = ["recovery_key", "recovery_key_file", "identity_only", "history"])]
    start_over: bool,
}

/// Restores, with progress, and says what is there now.
pub(super) async fn run(args: Args, config: Config) -> Result<()> {
    let Args { identity_only, start_over, history, .. } = args;
    let options = RestoreOptions { identity_only, history, start_over };
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
    let restored =
        Box::pin(app::restore(config, key, options, progress)).await.context("nothing was restored")?;
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

/// `all`, or a number with m, h or d.
fn history(text: &str) -> Result<History, String> {
    const MUST: &str = "must be all, or a number with m, h or d for minutes, hours or days";
    if text == "all" {
        return Ok(History::All);
    }
    let seconds = match text.as_bytes().last() {
        Some(b'm') => 60,
        Some(b'h') => 60 * 60,
        Some(b'd') => 24 * 60 * 60,
        _ => return Err(MUST.to_owned()),
    };
    let number: Option<u64> = text.get(..text.len() - 1).and_then(|number| number.parse().ok());
    let seconds = number.and_then(|number| number.checked_mul(seconds)).filter(|seconds| *seconds > 0);
    // A century is as good as all.
    let most = 100 * 365 * 24 * 60 * 60;
    seconds
        .map(|seconds| History::Last(Duration::from_secs(seconds.min(most))))
        .ok_or_else(|| MUST.to_owned())
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
