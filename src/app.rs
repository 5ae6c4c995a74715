//! Wiring: what is started, in which order, and how it stops.
//!
//! HTTP answers from the first moment, so that a deploy sees a live process whatever the database does. Once
//! the store is ready the dispatcher delivers and the process stands for the crypto lease. Nothing here ends
//! the process but a signal, a port that is taken, or what only a person can mend: a wrong pickle key, a
//! schema that does not fit, a device that belongs to another store.

pub mod check;
mod commands;
mod init;
pub mod keys;
mod leader;
mod metrics;
mod outage;
mod recovery;
mod restore;
mod retention;
mod term;

pub use crate::crypto::recovery::Progress as RestoreProgress;
pub use commands::{ListedWebhook, WebhookStatus, enable_webhook, migrate, webhook_status, webhooks};
pub use init::{InitDevice, InitError, Initialized, init};
pub use restore::{History, RestoreError, RestoreOptions, recovery_key, restore};

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::{SharedClock, SystemClock},
    config::{self, Config, NewBridges},
    crypto::{CryptoError, trust},
    homeserver::{Homeserver, HomeserverError},
    http::{self, Access, Api, Health, HsToken, HttpState, StoreState},
    inbox::{Inbox, verdict::TrustSettings, worker::Wakes},
    lifecycle::{Lifecycle, signalled},
    model::{RelayPolicy, Route, WebhookId},
    outbox::{BadWebhook, Destination, Dispatcher, WebhookSink},
    store::{self, Store, StoreError},
};

/// How long a stop waits for what is in hand.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often the store is looked after: soon while it is away, rarely while it is there.
const LOOK_SOON: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_secs(3);

/// Why the process ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The address is taken or not ours.
    #[error("cannot listen on {0} (http.host, http.port: COUCOU_HTTP_HOST, COUCOU_HTTP_PORT)")]
    Listen(SocketAddr, #[source] io::Error),
    /// The address of the metrics is taken.
    #[error("cannot listen on {0} for metrics (metrics.port: COUCOU_METRICS_PORT)")]
    ListenForMetrics(SocketAddr, #[source] io::Error),
    /// Signals cannot be waited for.
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
    /// The store wants a person.
    #[error("the store cannot be used")]
    Store(#[from] StoreError),
    /// The settings of the homeserver cannot be used.
    #[error("the homeserver's settings cannot be used")]
    Homeserver(#[from] HomeserverError),
    /// A webhook cannot be used.
    #[error(transparent)]
    Webhook(#[from] BadWebhook),
    /// The crypto wants a person.
    #[error(transparent)]
    Crypto(CryptoError),
    /// The HTTP server failed.
    #[error("the HTTP server failed")]
    Http(#[source] io::Error),
}

/// What the parts share.
#[derive(Clone, Debug)]
struct Shared {
    config: Arc<Config>,
    store: Store,
    homeserver: Homeserver,
    clock: SharedClock,
    wakes: Wakes,
    bot: Arc<OnceLock<ruma::OwnedUserId>>,
}

/// Runs coucou until a signal: the first one stops it gently, the second at once.
///
/// # Errors
/// What only a person can mend; one line that says how.
pub async fn run(config: Config) -> Result<(), AppError> {
    let stop = CancellationToken::new();
    let signals = async {
        signalled().await.map_err(AppError::Signals)?;
        stop.cancel();
        signalled().await.map_err(AppError::Signals)?;
        tracing::warn!("second signal: stopping at once");
        Ok(())
    };
    let service = Box::pin(run_with(config, Arc::new(SystemClock), stop.clone()));
    tokio::select! { ended = service => ended, signalled = signals => signalled }
}

/// Runs coucou by a clock until it is told to stop: as a part of another program, such as a test that moves
/// the time by hand. Waits between attempts to reach others still pass in real time.
///
/// # Errors
/// What only a person can mend; one line that says how.
pub async fn run_with(config: Config, clock: SharedClock, stop: CancellationToken) -> Result<(), AppError> {
    let lifecycle = Lifecycle::default();
    let address = SocketAddr::new(config.http.host, config.http.port);
    let listener = TcpListener::bind(address).await.map_err(|error| AppError::Listen(address, error))?;
    let store = Store::open(&config.store.location, config.store.pickle_key.clone())?;
    let homeserver = Homeserver::new(&config.homeserver.url, config.appservice.as_token.clone())?;
    let bot = Arc::new(OnceLock::new());
    if let Some(user_id) = config.appservice.bot_user_id(config.known_server_name().as_deref()) {
        let _ = bot.set(user_id);
    }
    let hs_token = HsToken::new(&config.appservice.hs_token);
    let shared = Shared { config: Arc::new(config), store, homeserver, clock, wakes: Wakes::default(), bot };
    let (fatal, mut failed) = mpsc::channel(1);
    let health = watch_store(&lifecycle, &shared, &fatal);
    let on_main = metrics::serve(&lifecycle, &shared, &health, &fatal).await?;
    serve_http(&lifecycle, &shared, listener, hs_token, (health, on_main), &fatal);
    tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "coucou listens");
    spawn_work(&lifecycle, &shared, &fatal);

    let outcome = tokio::select! {
        () = stop.cancelled() => Ok(()),
        error = failed.recv() => error.map_or(Ok(()), Err),
    };
    tracing::info!("stopping: finishing what is in hand");
    lifecycle.stop();
    if !lifecycle.stopped(PATIENCE).await {
        tracing::warn!("some work did not end in time; it will be taken up again at the next start");
    }
    let _ = tokio::time::timeout(Duration::from_secs(2), shared.store.close()).await;
    outcome
}

/// Prepares the store as soon as its database answers, and tells the health endpoint how it is.
fn watch_store(lifecycle: &Lifecycle, shared: &Shared, fatal: &mpsc::Sender<AppError>) -> Health {
    let (state, health) = Health::new(shared.store.backend());
    let (shared, fatal, stop) = (shared.clone(), fatal.clone(), lifecycle.stop_token());
    lifecycle.spawn(async move {
        while !stop.is_cancelled() {
            let look = async {
                shared.store.prepare(shared.clock.now()).await?;
                shared.store.ping().await
            };
            let looked = tokio::select! { () = stop.cancelled() => return, looked = look => looked };
            let wait = match looked {
                Ok(()) => {
                    tell(&state, StoreState::Ready);
                    LOOK
                }
                Err(error) if is_for_a_person(&error) => {
                    let _ = fatal.send(error.into()).await;
                    return;
                }
                Err(error) => {
                    tell(&state, StoreState::Unavailable { reason: error.public_reason() });
                    LOOK_SOON
                }
            };
            tokio::select! { () = stop.cancelled() => {}, () = sleep(wait) => {} }
        }
    });
    health
}

/// Tells a new state, and logs it once.
fn tell(sender: &watch::Sender<StoreState>, state: StoreState) {
    sender.send_if_modified(|current| {
        if *current == state {
            return false;
        }
        match (&*current, &state) {
            (StoreState::Unavailable { .. }, StoreState::Unavailable { .. }) => {}
            (_, StoreState::Unavailable { reason }) => tracing::error!(reason, "the store is unavailable"),
            (_, StoreState::Ready) => tracing::info!("the store is connected"),
            _ => {}
        }
        *current = state;
        true
    });
}

fn is_for_a_person(error: &StoreError) -> bool {
    matches!(error, StoreError::WrongPickleKey | StoreError::Migration(_) | StoreError::Corrupt(_))
}

fn serve_http(
    lifecycle: &Lifecycle,
    shared: &Shared,
    listener: TcpListener,
    hs_token: HsToken,
    (health, metrics): (Health, axum::Router),
    fatal: &mpsc::Sender<AppError>,
) {
    let inbox = Inbox::new(shared.store.clone(), Arc::clone(&shared.clock), Arc::clone(&shared.wakes.inbox))
        .telling(Arc::clone(&shared.wakes.outage))
        .announcing(Arc::clone(&shared.wakes.alive));
    let api = Arc::new(rest(shared));
    let state = HttpState { inbox, hs_token, bot: Arc::clone(&shared.bot), health, api };
    let router = http::router(state, metrics);
    let (fatal, stop) = (fatal.clone(), lifecycle.stop_token());
    lifecycle.spawn(async move {
        if let Err(error) = http::serve(listener, router, stop).await {
            let _ = fatal.send(AppError::Http(error)).await;
        }
    });
}

/// What the REST API answers from.
fn rest(shared: &Shared) -> Api {
    let tokens = shared.config.api.tokens.iter().map(|entry| (entry.token.clone(), entry.scope));
    let shown = |webhook: &config::Webhook| (webhook.name.clone(), http::api::shown_url(&webhook.url));
    Api {
        access: Access::new(tokens),
        store: shared.store.clone(),
        clock: Arc::clone(&shared.clock),
        started: Instant::now(),
        networks: shared.config.networks.clone(),
        owner: shared.config.owner.as_ref().map(|owner| owner.user_id.clone()),
        webhooks: shared.config.webhooks.iter().map(shown).collect(),
        wake_outbox: Arc::clone(&shared.wakes.outbox),
    }
}

/// Starts what needs the store, once it is ready.
fn spawn_work(lifecycle: &Lifecycle, shared: &Shared, fatal: &mpsc::Sender<AppError>) {
    let (tasks, shared, fatal) = (lifecycle.clone(), shared.clone(), fatal.clone());
    let stop = lifecycle.stop_token();
    lifecycle.spawn(async move {
        let (webhooks, routes) = match ready_webhooks(&shared, &stop).await {
            Ok(Some(webhooks)) => webhooks,
            Ok(None) => return,
            Err(error) => {
                let _ = fatal.send(error).await;
                return;
            }
        };
        let dispatcher = Dispatcher::new(
            shared.store.clone(),
            Arc::clone(&shared.clock),
            webhooks,
            StdRng::from_os_rng(),
            Arc::clone(&shared.wakes.outbox),
            crate::outbox::Config {
                keep_delivered: !shared.config.messages.retention.is_zero(),
                ..crate::outbox::Config::default()
            },
        );
        tasks.spawn(dispatcher.run(stop.clone()));
        let ids: Vec<WebhookId> = routes.iter().map(|route| route.webhook_id).collect();
        tasks.spawn(retention::run(shared.clone(), ids, stop.clone()));
        if let Err(error) = Box::pin(leader::lead(shared, routes, stop)).await {
            let _ = fatal.send(AppError::Crypto(error)).await;
        }
    });
}

type Destinations = BTreeMap<WebhookId, Destination>;

/// The webhooks of the settings, with their numbers; `None` when told to stop before the store was ready.
async fn ready_webhooks(
    shared: &Shared,
    stop: &CancellationToken,
) -> Result<Option<(Destinations, Vec<Route>)>, AppError> {
    // Bad settings are told at once, not when the database is there.
    let client = crate::outbox::client().map_err(AppError::Webhook)?;
    while !stop.is_cancelled() {
        if shared.store.is_ready() {
            match connect_webhooks(shared, &client).await {
                Err(AppError::Store(error)) if error.is_transient() => {}
                other => return other.map(Some),
            }
        }
        tokio::select! { () = stop.cancelled() => {}, () = sleep(Duration::from_millis(100)) => {} }
    }
    Ok(None)
}

async fn connect_webhooks(
    shared: &Shared,
    client: &reqwest::Client,
) -> Result<(Destinations, Vec<Route>), AppError> {
    let (mut destinations, mut routes) = (Destinations::new(), Vec::new());
    for webhook in &shared.config.webhooks {
        let mut tx = shared.store.begin().await?;
        let id = store::webhooks::ensure(&mut tx, &webhook.name, shared.clock.now()).await?;
        if store::webhooks::at_address(&mut tx, id, webhook.url.as_str()).await? {
            tracing::info!(webhook.name = %webhook.name, "has another URL, and is enabled again");
        }
        let mut secrets = webhook.secrets.clone();
        if secrets.is_empty() {
            tracing::info!(webhook.name = %webhook.name,
                "signed with the generated secret that `coucou webhooks --show-secrets` shows");
            let (seal, mut rng) = (shared.store.seal()?, StdRng::from_os_rng());
            secrets.push(store::webhooks::generated_secret(&mut tx, seal, id, &mut rng).await?);
        }
        tx.commit().await?;
        let sink = WebhookSink::new(client.clone(), &webhook.name, &webhook.url, &secrets)?
            .headers(&webhook.headers)
            .timeout(webhook.timeout)
            .telling(webhook.detail, webhook.format);
        let destination = Destination {
            schedule: webhook.schedule.clone(),
            concurrency: Some(webhook.concurrency),
            timeout: Some(webhook.timeout),
            max_queue: webhook.max_queue,
            ..Destination::new(&webhook.name, Arc::new(sink))
        };
        destinations.insert(id, destination);
        routes.push(Route { webhook_id: id, filter: webhook.filter.clone() });
    }
    if destinations.is_empty() {
        tracing::warn!("no webhook is configured (webhooks, COUCOU_WEBHOOK_URL): messages are only stored");
    }
    Ok((destinations, routes))
}

impl Shared {
    /// Which rooms are relayed, and how they are named.
    fn policy(&self, our_users: BTreeSet<ruma::OwnedUserId>) -> crate::inbox::rooms::Policy {
        let relay = match &self.config.rooms.relay {
            config::Relay::Bridged => RelayPolicy::Bridged,
            config::Relay::All => RelayPolicy::All,
            config::Relay::Only(rooms) => RelayPolicy::Only(rooms.clone()),
        };
        let networks = self.config.networks.clone();
        let trust = self.trust();
        crate::inbox::rooms::Policy { relay, our_users: Arc::new(our_users), networks, trust }
    }

    /// Whom to believe.
    fn trust(&self) -> TrustSettings {
        let config = &self.config;
        let bridge = |bridge: &config::Bridge| trust::Bridge {
            bot: bridge.bot.clone(),
            ghosts: Some(bridge.ghosts.clone()),
            puppets: bridge.puppets.clone(),
            is_configured: true,
        };
        TrustSettings {
            actions: config.trust.actions,
            bridges: config.bridges.iter().map(bridge).collect(),
            owner: config.owner.as_ref().map(|owner| owner.user_id.clone()),
            only_configured: config.trust.new_bridges == NewBridges::Refuse,
        }
    }
}
