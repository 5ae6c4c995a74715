//! What the short commands do with the store: plain data in and out, so that they can just print it.

use rand::{SeedableRng, rngs::StdRng};
use secrecy::SecretString;
use url::Url;

use crate::{
    clock::{Clock, SystemClock, Timestamp},
    config::Config,
    store::{Store, StoreError, webhooks as table},
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
    /// The secret, when asked for.
    pub secret: Option<SecretString>,
}

/// The configured webhooks. With `show_secrets` the store is opened for those that coucou makes, and one that
/// was not made before is made now.
///
/// # Errors
/// When the store is needed and cannot be used.
pub async fn webhooks(config: &Config, show_secrets: bool) -> Result<Vec<ListedWebhook>, StoreError> {
    let needs_store = show_secrets && config.webhooks.iter().any(|webhook| webhook.secret.is_none());
    let store = if needs_store {
        Some(Store::open(&config.store.location, config.store.pickle_key.clone())?)
    } else {
        None
    };
    let listed = list(config, show_secrets, store.as_ref()).await;
    if let Some(store) = &store {
        store.close().await;
    }
    listed
}

async fn list(
    config: &Config,
    show_secrets: bool,
    store: Option<&Store>,
) -> Result<Vec<ListedWebhook>, StoreError> {
    let now = SystemClock.now();
    if let Some(store) = store {
        store.prepare(now).await?;
    }
    let mut listed = Vec::new();
    for webhook in &config.webhooks {
        let secret = match (&webhook.secret, store) {
            (Some(secret), _) if show_secrets => Some(secret.clone()),
            (None, Some(store)) => Some(generated(store, &webhook.name, now).await?),
            _ => None,
        };
        let is_generated = webhook.secret.is_none();
        listed.push(ListedWebhook {
            name: webhook.name.clone(),
            url: webhook.url.clone(),
            is_generated,
            secret,
        });
    }
    Ok(listed)
}

/// The secret that coucou made for a webhook, or makes now.
async fn generated(store: &Store, name: &str, now: Timestamp) -> Result<SecretString, StoreError> {
    // Not the thread's own generator: this may wait, and then go on in another thread.
    let mut rng = StdRng::from_os_rng();
    let mut tx = store.begin().await?;
    let id = table::ensure(&mut tx, name, now).await?;
    let secret = table::generated_secret(&mut tx, store.seal()?, id, &mut rng).await?;
    tx.commit().await?;
    Ok(secret)
}
