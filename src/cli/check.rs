//! `coucou check`: is everything as coucou needs it, and if not, what to do.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::{
    app::check::{self as app, Report, Status},
    config::{Config, ConfigError},
};

/// Arguments of `coucou check`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    /// Compare the timelines of all relayed rooms with what coucou knows, instead of everything else.
    #[arg(long)]
    rooms: bool,
    /// With --rooms: have what is missing read and relayed.
    #[arg(long, requires = "rooms")]
    mend: bool,
}

/// Checks, prints, and fails when something does.
pub(super) async fn run(args: Args, config: Result<Config, ConfigError>) -> Result<()> {
    let report = match config {
        Ok(config) if args.rooms => app::compare_rooms(&config, args.mend, tell).await,
        Ok(config) => app::check(&config).await,
        Err(error) => Report::of_bad_settings(&error),
    };
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{:#}", document(&report))?;
    } else {
        print(&mut out, &report)?;
    }
    match report.count(Status::Fail) {
        0 => Ok(()),
        1 => bail!("one check failed"),
        count => bail!("{count} checks failed"),
    }
}

/// Tells how many rooms are compared, of how many, now and then.
fn tell(done: usize, count: usize) {
    if done > 0 && (done.is_multiple_of(25) || done == count) {
        let _ = writeln!(io::stderr(), "{done} of {count} rooms compared");
    }
}

fn print(out: &mut impl Write, report: &Report) -> io::Result<()> {
    for finding in &report.findings {
        writeln!(out, "{:<4}  {:<13}  {}", finding.status.as_str(), finding.check, finding.says)?;
        if let Some(remedy) = &finding.remedy {
            writeln!(out, "                     → {remedy}")?;
        }
    }
    for webhook in &report.webhooks {
        writeln!(out, "webhook {} receives: {}", webhook.name, webhook.receives)?;
    }
    let (warnings, failures) = (report.count(Status::Warn), report.count(Status::Fail));
    writeln!(out, "{} ok, {warnings} warnings, {failures} failures", report.count(Status::Ok))?;
    let bad = report.findings.iter().filter(|finding| finding.status != Status::Ok);
    let entries: BTreeSet<String> = bad.map(|finding| format!("docs/runbook.md#{}", finding.check)).collect();
    if entries.is_empty() {
        return Ok(());
    }
    writeln!(out, "more about them: {}", entries.into_iter().collect::<Vec<_>>().join(", "))
}

fn document(report: &Report) -> Value {
    let checks = report.findings.iter().map(|finding| {
        json!({
            "check": finding.check, "status": finding.status.as_str(), "says": finding.says,
            "remedy": finding.remedy,
        })
    });
    let webhooks =
        report.webhooks.iter().map(|webhook| json!({"name": webhook.name, "receives": webhook.receives}));
    json!({
        "status": report.worst().as_str(),
        "checks": checks.collect::<Vec<_>>(),
        "webhooks": webhooks.collect::<Vec<_>>(),
    })
}
