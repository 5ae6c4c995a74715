//! What the short commands do with the store: plain data in and out, so that they can just print it.

use url::Url;

use super::webhooks;
use crate::{
    clock::{Clock, SystemClock, Timestamp},
    config::{self, Config},
    store::{
        Store, StoreError, outbox,
        webhooks::{self as table, secrets::Signing},
    },
};

/// Brings the schema up to date and opens the data key, so that a wrong pickle key shows now and not at the
/// next start; answers the names of the migrations that were applied.
///
/// # Errors
/// When the store is away, is newer than this program, or was made with another pickle key.
pub async fn migrate(config: &Config) -> Result<Vec<&'static str>, StoreError> {
    let store = Store::open(&config.store.location, config.store.pickle_key.clone())?;
    let migrated = async {
        let applied = store.db().migrate().await?;
        store.prepare(SystemClock.now()).await?;
        Ok(applied)
    };
    let applied = migrated.await;
    store.close().await;
    applied
}

/// A configured webhook, as `coucou webhooks` lists it.
#[derive(Debug)]
pub struct ListedWebhook {
    /// Its name in the settings.
    pub name: String,
    /// Where deliveries go.
    pub url: Url,
    /// Whether coucou made its secret; else it is in the settings.
    pub is_generated: bool,
    /// The secrets that sign now, when asked for, each with its end if it has one; the first one signs first.
    pub secrets: Vec<Signing>,
}

/// The configured webhooks. With `show_secrets` the store is opened for the secrets that coucou made, and one that
/// was not made before is made now.
///
/// # Errors
/// When the store is needed and cannot be used.
pub async fn list_webhooks(config: &Config, show_secrets: bool) -> Result<Vec<ListedWebhook>, StoreError> {
    let store = if show_secrets && !config.webhooks.is_empty() {
        Some(Store::open(&config.store.location, config.store.pickle_key.clone())?)
    } else {
        None
    };
    let listed = list(config, store.as_ref()).await;
    if let Some(store) = &store {
        store.close().await;
    }
    listed
}

async fn list(config: &Config, store: Option<&Store>) -> Result<Vec<ListedWebhook>, StoreError> {
    let now = SystemClock.now();
    if let Some(store) = store {
        store.prepare(now).await?;
    }
    let mut listed = Vec::new();
    for webhook in &config.webhooks {
        let is_generated = webhook.secrets.is_empty();
        let secrets = match store {
            Some(store) => signing(store, webhook, now).await?,
            None => Vec::new(),
        };
        listed.push(ListedWebhook {
            name: webhook.name.clone(),
            url: webhook.url.clone(),
            is_generated,
            secrets,
        });
    }
    Ok(listed)
}

/// What signs for a webhook now.
async fn signing(
    store: &Store,
    webhook: &config::Webhook,
    now: Timestamp,
) -> Result<Vec<Signing>, StoreError> {
    let mut tx = store.begin().await?;
    let id = table::ensure(&mut tx, &webhook.name, now).await?;
    tx.commit().await?;
    let settings = webhooks::of_settings(store, id, webhook).await?;
    webhooks::in_use(store, id, &webhook.secrets, &settings, now).await
}

/// How a webhook's deliveries stand.
#[derive(Debug)]
pub struct WebhookStatus {
    /// Its name in the settings.
    pub name: String,
    /// Deliveries that are pending.
    pub pending_count: u64,
    /// When the oldest of them was stored.
    pub oldest_at: Option<Timestamp>,
    /// Deliveries that are given up.
    pub dead_count: u64,
    /// Since when it gets nothing, and why.
    pub disabled: Option<(Timestamp, String)>,
}

/// How the deliveries of every webhook stand that is in the settings, or ever was.
///
/// # Errors
/// When the store cannot be used.
pub async fn webhook_status(config: &Config) -> Result<Vec<WebhookStatus>, StoreError> {
    let store = Store::open(&config.store.location, config.store.pickle_key.clone())?;
    let read = async {
        store.prepare(SystemClock.now()).await?;
        let db = store.db();
        let (backlogs, dead) = (outbox::backlogs(db).await?, outbox::dead(db).await?);
        let disabled = table::disabled(db).await?;
        let status = |(id, name)| {
            let backlog = backlogs.iter().find(|backlog| backlog.webhook_id == id);
            let disabled = disabled.iter().find(|disabled| disabled.webhook_id == id);
            WebhookStatus {
                name,
                pending_count: backlog.map_or(0, |backlog| backlog.pending_count),
                oldest_at: backlog.and_then(|backlog| backlog.oldest_at),
                dead_count: dead.iter().find(|dead| dead.0 == id).map_or(0, |dead| dead.1),
                disabled: disabled.map(|disabled| (disabled.at, disabled.reason.clone())),
            }
        };
        Ok(table::all(db).await?.into_iter().map(status).collect())
    };
    let read = read.await;
    store.close().await;
    read
}

/// Sends a webhook that is disabled what is queued, and what comes, again. `None` when there is no webhook of that
/// name, else whether it was disabled.
///
/// # Errors
/// When the store cannot be used.
pub async fn enable_webhook(config: &Config, name: &str) -> Result<Option<bool>, StoreError> {
    let store = Store::open(&config.store.location, config.store.pickle_key.clone())?;
    let change = async {
        let now = SystemClock.now();
        store.prepare(now).await?;
        let known = table::all(store.db()).await?;
        let Some((id, _)) = known.into_iter().find(|(_, known)| known == name) else { return Ok(None) };
        let mut tx = store.begin().await?;
        let was_disabled = table::enable(&mut tx, id).await?;
        outbox::release(&mut tx, id, now).await?;
        tx.commit().await?;
        Ok(Some(was_disabled))
    };
    let changed = change.await;
    store.close().await;
    changed
}
