//! `coucou init`: sets coucou up ahead of its first start, or again.

use std::io::{self, Write};

use anyhow::{Context, Result};

use crate::{
    app::{self, InitDevice, Initialized},
    config::Config,
    model::Role,
};

/// Sets up, and says what was done and what comes next.
pub(super) async fn run(config: Config) -> Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{}", config.store.chosen_because)?;
    let done = Box::pin(app::init(config)).await.context("coucou could not be set up")?;
    print(&mut out, &done)?;
    Ok(())
}

fn print(out: &mut impl Write, done: &Initialized) -> io::Result<()> {
    match done.migrations.len() {
        0 => writeln!(out, "the schema was up to date")?,
        count => writeln!(out, "the schema is up to date: {count} migrations were applied")?,
    }
    if let Some(holder) = &done.busy {
        writeln!(out, "coucou runs already (process {holder}) and has done the rest; nothing was changed")?;
    }
    for device in &done.devices {
        print_device(out, device)?;
    }
    if done.must_write_down_recovery_key {
        writeln!(
            out,
            "write down the recovery key that `coucou recovery-key` prints, and keep it where the database is not: \
             if the database is lost, nothing else brings back the bot's identity and its room keys"
        )?;
    }
    let next = if done.busy.is_some() { "" } else { "`coucou serve`, then " };
    writeln!(out, "next: {next}`coucou check`, which says what is missing")
}

fn print_device(out: &mut impl Write, device: &InitDevice) -> io::Result<()> {
    let account = &device.account;
    let made = if device.is_new { "made" } else { "was there" };
    writeln!(out, "{} ({}): device {} {made}", account.user_id, account.role.as_str(), account.device_id)?;
    if let Some(fingerprint) = &device.fingerprint {
        let shown = if device.is_published { "are on the homeserver" } else { "are not on the homeserver" };
        writeln!(out, "  its keys {shown}; fingerprint {fingerprint}")?;
    }
    let signed = match (device.is_signed, account.role) {
        (true, _) => "it is signed by the identity of its user",
        (false, Role::Bot) => "it is not signed by an identity",
        (false, Role::Owner) => {
            "it is not signed by the owner: owner_recovery_key (COUCOU_OWNER_RECOVERY_KEY) does that, or another client \
             of the owner's that verifies the session `coucou`"
        }
    };
    writeln!(out, "  {signed}")
}
