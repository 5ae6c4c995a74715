//! The commands, one file each.
//!
//! What a command answers goes to stdout, the log and errors to stderr. A failure is one line that begins
//! with `coucou:`, and exit code 1; wrong usage is exit code 2.

mod check;
mod init;
mod keys;
mod listen;
mod migrate;
mod recovery_key;
mod registration;
mod restore;
mod serve;
mod webhooks;

use std::{future::Future, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, anyhow};
use clap::{Parser, Subcommand};

use crate::config::{Config, Sources};

/// Relays end-to-end encrypted bridge rooms of a Matrix homeserver to webhooks.
#[derive(Debug, Parser)]
#[command(name = "coucou", version, max_term_width = 100)]
struct Cli {
    /// The settings file [default: coucou.yaml, if present].
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the service.
    Serve,
    /// Writes a registration file, and prints what the homeserver's administrator needs to know.
    Registration(registration::Args),
    /// Looks at everything that coucou needs, and says what is wrong and what to do.
    Check(check::Args),
    /// Sets coucou up ahead of its first start: schema, user, device, keys, identity, recovery key.
    Init,
    /// Brings the store's schema up to date.
    Migrate,
    /// Room keys: to a file, from a file, and what events wait for.
    Keys(keys::Args),
    /// Brings a lost database back: the bot's identity and room keys, into an empty store.
    Restore(restore::Args),
    /// Prints the bot's recovery key, which `restore` asks for.
    RecoveryKey,
    /// Lists the webhooks and where their secrets come from.
    Webhooks(webhooks::Args),
    /// Receives deliveries for development: verifies signatures, prints them readably.
    Listen(listen::Args),
}

/// Runs the command that the arguments of this process name.
#[must_use]
pub fn run() -> ExitCode {
    // Answers --help and --version, and ends the process with 2 for wrong usage.
    let cli = Cli::parse();
    match execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("coucou: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn execute(cli: Cli) -> Result<()> {
    // Several parts of the program speak TLS; they all use this one implementation.
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow!("the TLS implementation was chosen before"))?;
    let sources = Sources::of_process(cli.config);
    match cli.command {
        Command::Serve => serve::run(load(&sources)?),
        Command::Registration(args) => registration::run(&args, &sources),
        Command::Check(args) => block_on(check::run(args, Config::load(&sources))),
        Command::Init => block_on(init::run(load(&sources)?)),
        Command::Migrate => block_on(migrate::run(load(&sources)?)),
        Command::Keys(args) => {
            let config = load(&sources)?;
            block_on(keys::run(args, config, sources.environment))
        }
        Command::Restore(args) => block_on(restore::run(args, load(&sources)?)),
        Command::RecoveryKey => block_on(recovery_key::run(load(&sources)?)),
        Command::Webhooks(args) => block_on(webhooks::run(args, load(&sources)?)),
        Command::Listen(args) => block_on(listen::run(args, sources.environment)),
    }
}

fn load(sources: &Sources) -> Result<Config> {
    Ok(Config::load(sources)?)
}

/// Runs a command's future on a runtime of its own.
fn block_on<F: Future<Output = Result<()>>>(future: F) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("no threads can be started")?
        .block_on(future)
}

/// An error and its causes, outermost first.
fn one_line(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        // Some libraries repeat the cause in their own text.
        if parts.last().is_none_or(|last| !last.ends_with(&text)) {
            parts.push(text);
        }
    }
    parts.join(": ")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_error_is_one_line_that_says_nothing_twice() {
        let error = anyhow!("connection\n  refused")
            .context("the database is unavailable: connection refused")
            .context("the store cannot be opened");
        let expected = "the store cannot be opened: the database is unavailable: connection refused";
        assert_eq!(one_line(&error), expected);
    }
}
