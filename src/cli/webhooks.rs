//! `coucou webhooks`: which webhooks there are, and, when asked, the secrets that their receivers need.

use std::io::{self, Write};

use anyhow::{Context, Result};
use secrecy::ExposeSecret;
use url::Url;

use crate::{app, config::Config};

/// Arguments of `coucou webhooks`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print secrets and whole URLs. A secret that is not in the settings is made now, if it was not before.
    #[arg(long)]
    show_secrets: bool,
}

/// Lists the webhooks.
pub(super) async fn run(args: Args, config: Config) -> Result<()> {
    let mut out = io::stdout();
    if config.webhooks.is_empty() {
        writeln!(out, "no webhook is set: messages are kept for the REST API (COUCOU_WEBHOOK_URL sets one)")?;
        return Ok(());
    }
    let webhooks = app::webhooks(&config, args.show_secrets).await.context("the store cannot be read")?;
    for webhook in webhooks {
        let url = if args.show_secrets { webhook.url.to_string() } else { without_token(&webhook.url) };
        writeln!(out, "{}: {url}", webhook.name)?;
        let kept =
            if webhook.is_generated { "made by coucou, kept in the store" } else { "from the settings" };
        match &webhook.secret {
            Some(secret) => writeln!(out, "  secret: {} ({kept})", secret.expose_secret())?,
            None => writeln!(out, "  secret: {kept} (--show-secrets prints it)")?,
        }
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
