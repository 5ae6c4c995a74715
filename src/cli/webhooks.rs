//! `coucou webhooks`: which webhooks there are, and, when asked, the secrets that their receivers need.

use std::io::{self, Write};

use anyhow::{Context, Result, bail};
use secrecy::ExposeSecret;
use url::Url;

use crate::{app, config::Config};

/// Arguments of `coucou webhooks`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print secrets and whole URLs. A secret that is not in the settings is made now, if it was not before.
    #[arg(long)]
    show_secrets: bool,
    /// Tell how the deliveries of each webhook stand.
    #[arg(long)]
    status: bool,
    /// Send a webhook that is disabled, because it answered 410, its queue and what comes.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["show_secrets", "status"])]
    enable: Option<String>,
}

/// Lists the webhooks, or enables one.
pub(super) async fn run(args: Args, config: Config) -> Result<()> {
    let mut out = io::stdout();
    if let Some(name) = &args.enable {
        return enable(&mut out, &config, name).await;
    }
    if args.status {
        return status(&mut out, &config).await;
    }
    if config.webhooks.is_empty() {
        writeln!(out, "no webhook is set: messages are kept for the REST API (COUCOU_WEBHOOK_URL sets one)")?;
        return Ok(());
    }
    let webhooks =
        app::list_webhooks(&config, args.show_secrets).await.context("the store cannot be read")?;
    for webhook in webhooks {
        let url = if args.show_secrets { webhook.url.to_string() } else { without_token(&webhook.url) };
        writeln!(out, "{}: {url}", webhook.name)?;
        let kept =
            if webhook.is_generated { "made by coucou, kept in the store" } else { "from the settings" };
        if !args.show_secrets {
            writeln!(out, "  secret: {kept} (--show-secrets prints it)")?;
        }
        for signing in &webhook.secrets {
            write!(out, "  secret: {}", signing.secret.expose_secret())?;
            match (signing.is_rotated, signing.until) {
                (true, None) => writeln!(out, " (made by a rotation)")?,
                (true, Some(until)) => writeln!(out, " (made by a rotation; signs until {until})")?,
                (false, None) => writeln!(out, " ({kept})")?,
                (false, Some(until)) => writeln!(out, " ({kept}; signs until {until})")?,
            }
        }
    }
    Ok(())
}

async fn enable(out: &mut io::Stdout, config: &Config, name: &str) -> Result<()> {
    match app::enable_webhook(config, name).await.context("the store cannot be changed")? {
        Some(true) => writeln!(out, "{name}: enabled; its queue is sent within seconds while coucou runs")?,
        Some(false) => writeln!(out, "{name}: was not disabled")?,
        None => bail!("there is no webhook {name}: `coucou webhooks --status` lists them"),
    }
    Ok(())
}

async fn status(out: &mut io::Stdout, config: &Config) -> Result<()> {
    for webhook in app::webhook_status(config).await.context("the store cannot be read")? {
        write!(out, "{}: {} pending", webhook.name, webhook.pending_count)?;
        if let Some(oldest_at) = webhook.oldest_at {
            write!(out, ", the oldest since {oldest_at}")?;
        }
        write!(out, "; {} dead", webhook.dead_count)?;
        if let Some((at, reason)) = webhook.disabled {
            write!(out, "; disabled since {at} ({reason}): --enable {} changes that", webhook.name)?;
        }
        if config.webhooks.iter().all(|configured| configured.name != webhook.name) {
            write!(out, "; not in the settings")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// A URL without what receivers use as a token: user, path and query.
fn without_token(url: &Url) -> String {
    let rest = if url.path() == "/" && url.query().is_none() { "/" } else { "/…" };
    format!("{}{rest}", url.origin().ascii_serialization())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_listed_without_its_token() {
        let shown = |url: &str| without_token(&url.parse().unwrap());
        assert_eq!(shown("https://user:hush@example.org:8443/hush?token=hush"), "https://example.org:8443/…");
        assert_eq!(shown("http://127.0.0.1:9000"), "http://127.0.0.1:9000/");
        assert_eq!(shown("http://example.org?hush"), "http://example.org/…");
    }
}
