//! The webhooks of the settings, as the dispatcher serves them, and what they are signed with.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rand::{SeedableRng, rngs::StdRng};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{AppError, Shared};
use crate::{
    clock::Timestamp,
    config,
    links::{self, Links, Signer},
    model::{Route, WebhookId},
    outbox::{self, Destination, Signers, WebhookSink},
    store::{
        Store, StoreError,
        webhooks::{
            self as table,
            secrets::{self, Signing},
        },
    },
};

/// How often it is looked whether another instance was asked for another secret.
const LOOK: Duration = Duration::from_secs(15);

pub(super) type Destinations = BTreeMap<WebhookId, Destination>;

/// The webhooks of the settings, once the store knows them.
pub(super) struct Ready {
    pub(super) destinations: Destinations,
    pub(super) routes: Vec<Route>,
    pub(super) signed: Arc<Vec<Signed>>,
}

/// A webhook's secrets, by the settings and as they sign.
pub(super) struct Signed {
    id: WebhookId,
    name: String,
    /// Those of the settings.
    given: Vec<SecretString>,
    /// The same, or what coucou made instead.
    settings: Vec<SecretString>,
    signers: Signers,
}

/// The webhooks of the settings, with their numbers; `None` when told to stop before the store was ready.
pub(super) async fn ready(shared: &Shared, stop: &CancellationToken) -> Result<Option<Ready>, AppError> {
    // Bad settings are told at once, not when the database is there.
    let client = outbox::client().map_err(AppError::Webhook)?;
    while !stop.is_cancelled() {
        if shared.store.is_ready() {
            match connect(shared, &client).await {
                Err(AppError::Store(error)) if error.is_transient() => {}
                Err(error) => return Err(error),
                Ok((destinations, routes, signed)) => {
                    return Ok(Some(Ready { destinations, routes, signed: Arc::new(signed) }));
                }
            }
        }
        tokio::select! { () = stop.cancelled() => {}, () = sleep(Duration::from_millis(100)) => {} }
    }
    Ok(None)
}

async fn connect(
    shared: &Shared,
    client: &outbox::Client,
) -> Result<(Destinations, Vec<Route>, Vec<Signed>), AppError> {
    let (mut destinations, mut routes, mut signed) = (Destinations::new(), Vec::new(), Vec::new());
    let signer = Signer::new(shared.store.seal()?.derive(links::LABEL));
    let media = &shared.config.media;
    let links = media.public_url.as_ref().map(|base| Links::new(signer, base, media.url_lifetime));
    for webhook in &shared.config.webhooks {
        let now = shared.clock.now();
        let mut tx = shared.store.begin().await?;
        let id = table::ensure(&mut tx, &webhook.name, now).await?;
        if table::at_address(&mut tx, id, webhook.url.as_str()).await? {
            tracing::info!(webhook.name = %webhook.name, "has another URL, and is enabled again");
        }
        if secrets::with_settings(&mut tx, shared.store.seal()?, id, &digest(&webhook.secrets)).await? {
            tracing::warn!(
                webhook.name = %webhook.name,
                "its secrets in the settings have changed: they sign alone, and what was rotated ends"
            );
        }
        tx.commit().await?;
        if webhook.secrets.is_empty() {
            tracing::info!(webhook.name = %webhook.name,
                "signed with the generated secret that `coucou webhooks --show-secrets` shows");
        }
        let settings = of_settings(&shared.store, id, webhook).await?;
        let signing = in_use(&shared.store, id, &webhook.secrets, &settings, now).await?;
        let signers = Signers::new(&webhook.name, &signing)?;
        let sink = WebhookSink::new(client.clone(), &webhook.name, &webhook.url, signers.clone())?
            .headers(&webhook.headers)
            .timeout(webhook.timeout)
            .telling(webhook.detail, webhook.format)
            .linking(links.clone());
        let destination = Destination {
            schedule: webhook.schedule.clone(),
            concurrency: Some(webhook.concurrency),
            timeout: Some(webhook.timeout),
            flow: webhook.flow,
            max_queue: webhook.max_queue,
            ..Destination::new(&webhook.name, Arc::new(sink))
        };
        destinations.insert(id, destination);
        routes.push(Route { webhook_id: id, filter: webhook.filter.clone(), flow: webhook.flow });
        let given = webhook.secrets.clone();
        signed.push(Signed { id, name: webhook.name.clone(), given, settings, signers });
    }
    if destinations.is_empty() {
        tracing::warn!("no webhook is configured (webhooks, COUCOU_WEBHOOK_URL): messages are only stored");
    }
    Ok((destinations, routes, signed))
}

/// Has what was rotated sign, at once when this process was asked, else within seconds.
pub(super) async fn keep_signers(shared: Shared, signed: Arc<Vec<Signed>>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.signers.notified() => {}
            () = sleep(LOOK) => {}
        }
        for webhook in signed.iter() {
            let now = shared.clock.now();
            match in_use(&shared.store, webhook.id, &webhook.given, &webhook.settings, now).await {
                Ok(signing) => {
                    if let Err(error) = webhook.signers.replace(&webhook.name, &signing) {
                        tracing::error!(
                            error = &error as &dyn std::error::Error,
                            "secrets stay as they were"
                        );
                    }
                }
                // The store's own state is told elsewhere; what signs goes on.
                Err(error) if error.is_transient() => {}
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "secrets cannot be read");
                }
            }
        }
    }
}

/// The secrets of the settings; when there is none, the one that coucou made, or makes now.
///
/// # Errors
/// When the store fails.
pub(super) async fn of_settings(
    store: &Store,
    id: WebhookId,
    webhook: &config::Webhook,
) -> Result<Vec<SecretString>, StoreError> {
    if !webhook.secrets.is_empty() {
        return Ok(webhook.secrets.clone());
    }
    // Not the thread's own generator: this may wait, and then go on in another thread.
    let mut rng = StdRng::from_os_rng();
    let mut tx = store.begin().await?;
    let secret = table::generated_secret(&mut tx, store.seal()?, id, &mut rng).await?;
    tx.commit().await?;
    Ok(vec![secret])
}

/// What signs for a webhook with these secrets `given` by the settings, or `settings` that stand for them; the newest
/// first.
///
/// # Errors
/// When the store fails.
pub(super) async fn in_use(
    store: &Store,
    id: WebhookId,
    given: &[SecretString],
    settings: &[SecretString],
    now: Timestamp,
) -> Result<Vec<Signing>, StoreError> {
    Ok(secrets::rotated(store.db(), store.seal()?, id, &digest(given)).await?.signing(settings, now))
}

/// What tells whether the settings have other secrets than before.
fn digest(secrets: &[SecretString]) -> Vec<u8> {
    let mut hash = Sha256::new();
    for secret in secrets {
        // Each by its own digest, so that two lists never read alike.
        hash.update(Sha256::digest(secret.expose_secret()));
    }
    hash.finalize().to_vec()
}
