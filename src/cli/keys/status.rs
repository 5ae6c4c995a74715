//! `coucou keys status`: how many room keys there are, what events wait for, and what would fix it.

use std::io::{self, Write};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    app::keys::{self as app, Status, StuckStatus},
    clock::Timestamp,
    config::Config,
};

/// Sessions listed unless all are asked for.
const MOST: usize = 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// List everything that is stuck, and not only the newest.
    #[arg(long)]
    all: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// Prints it.
pub(super) async fn run(args: Args, config: &Config) -> Result<()> {
    let most = (!args.all).then_some(MOST);
    let status = app::status(config, most).await.context("the state of the room keys cannot be read")?;
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{:#}", document(&status))?;
        return Ok(());
    }
    print(&mut out, &status)?;
    Ok(())
}

fn time(at: Option<Timestamp>) -> String {
    at.map_or_else(|| "never".to_owned(), Timestamp::rfc3339)
}

fn print(out: &mut impl Write, status: &Status) -> io::Result<()> {
    for entry in &status.accounts {
        let (account, keys) = (&entry.account, &entry.overview);
        writeln!(out, "{} ({}, device {})", account.user_id, account.role.as_str(), account.device_id)?;
        let (sessions, rooms, backed_up) = (keys.session_count, keys.room_count, keys.backed_up_count);
        writeln!(out, "  {sessions} room keys for {rooms} rooms, {backed_up} of them backed up")?;
        writeln!(out, "  first {}, last {}", time(keys.first_at), time(keys.last_at))?;
        if !entry.forwards.is_empty() {
            let counts: Vec<_> =
                entry.forwards.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
            writeln!(out, "  forwarded keys: {}", counts.join(", "))?;
        }
    }
    if status.stuck.is_empty() {
        writeln!(out, "nothing is stuck")?;
        return Ok(());
    }
    writeln!(out, "stuck:")?;
    for entry in &status.stuck {
        let stuck = &entry.stuck;
        let session = stuck.session_id.as_deref().unwrap_or("none");
        writeln!(out, "  {} session {session}", stuck.room_id)?;
        writeln!(
            out,
            "    {} events since {}: {}, asked for {} times{}",
            stuck.event_count,
            stuck.since.rfc3339(),
            stuck.reason,
            entry.tries,
            entry.next_at.map(|at| format!(", next {}", at.rfc3339())).unwrap_or_default(),
        )?;
        writeln!(out, "    {}", entry.fix)?;
    }
    if status.is_cut {
        writeln!(out, "  … and more: --all lists everything")?;
    }
    Ok(())
}

fn document(status: &Status) -> Value {
    let accounts = status.accounts.iter().map(|entry| {
        let (account, keys) = (&entry.account, &entry.overview);
        let forwards: serde_json::Map<_, _> =
            entry.forwards.iter().map(|(outcome, count)| (outcome.clone(), json!(count))).collect();
        json!({
            "user_id": account.user_id, "device_id": account.device_id, "role": account.role.as_str(),
            "session_count": keys.session_count, "room_count": keys.room_count,
            "backed_up_count": keys.backed_up_count, "first_at": keys.first_at.map(Timestamp::rfc3339),
            "last_at": keys.last_at.map(Timestamp::rfc3339), "forwards": forwards,
        })
    });
    let stuck = status.stuck.iter().map(|entry: &StuckStatus| {
        let stuck = &entry.stuck;
        json!({
            "room_id": stuck.room_id, "session_id": stuck.session_id, "reason": stuck.reason,
            "event_count": stuck.event_count, "event_id": stuck.event_id, "since": stuck.since.rfc3339(),
            "tries": entry.tries, "next_at": entry.next_at.map(Timestamp::rfc3339), "fix": entry.fix,
        })
    });
    let accounts: Vec<_> = accounts.collect();
    let stuck: Vec<_> = stuck.collect();
    json!({"accounts": accounts, "stuck": stuck, "is_cut": status.is_cut})
}
