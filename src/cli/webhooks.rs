//! `coucou webhooks`: which webhooks there are, and, when asked, the secrets that their receivers need.

use std::io::{self, Write};

use anyhow::{Context, Result};
use rand::{SeedableRng, rngs::StdRng};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::{
    clock::{Clock, SystemClock},
    config::{Config, Webhook},
    store::{self, Store, StoreError},
};

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
    let mut store = None;
    for webhook in &config.webhooks {
        let url = if args.show_secrets { webhook.url.to_string() } else { without_token(&webhook.url) };
        writeln!(out, "{}: {url}", webhook.name)?;
        let kept = match &webhook.secret {
            Some(_) => "from the settings",
            None => "made by coucou, kept in the store",
        };
        if !args.show_secrets {
            writeln!(out, "  secret: {kept} (--show-secrets prints it)")?;
            continue;
        }
        let secret = match &webhook.secret {
            Some(secret) => secret.clone(),
            None => generated(webhook, &config, &mut store).await.context("the store cannot be read")?,
        };
        writeln!(out, "  secret: {} ({kept})", secret.expose_secret())?;
    }
    Ok(())
}

/// The secret that coucou made for a webhook; the store is opened for the first one.
async fn generated(
    webhook: &Webhook,
    config: &Config,
    opened: &mut Option<Store>,
) -> Result<SecretString, StoreError> {
    let now = SystemClock.now();
    if opened.is_none() {
        let store = Store::open(&config.store.location, config.store.pickle_key.clone())?;
        store.prepare(now).await?;
        *opened = Some(store);
    }
    let store = opened.as_ref().ok_or(StoreError::NotReady)?;
    // Not the thread's own generator: this may wait, and then go on in another thread.
    let mut rng = StdRng::from_os_rng();
    let mut tx = store.begin().await?;
    let id = store::webhooks::ensure(&mut tx, &webhook.name, now).await?;
    let secret = store::webhooks::generated_secret(&mut tx, store.seal()?, id, &mut rng).await?;
    tx.commit().await?;
    Ok(secret)
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
