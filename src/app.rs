//! Wiring: what is started, in which order, and how it stops.
//!
//! HTTP answers from the first moment, so that a deploy sees a live process whatever the database does. Once
//! the store is ready the dispatcher delivers and the process stands for the crypto lease. Nothing here ends
//! the process but a signal, a port that is taken, or what only a person can mend: a wrong pickle key, a
//! schema that does not fit, a device that belongs to another store.

pub mod check;
mod commands;
mod fallback;
mod init;
pub mod keys;
mod leader;
mod metrics;
mod outage;
mod recovery;
mod restore;
mod retention;
mod term;
mod webhooks;

pub use crate::crypto::recovery::Progress as RestoreProgress;
pub use commands::{ListedWebhook, WebhookStatus, enable_webhook, list_webhooks, migrate, webhook_status};
pub use init::{InitDevice, InitError, Initialized, init};
pub use restore::{History, RestoreError, RestoreOptions, print_recovery_key, restore};

use std::{
    collections::BTreeSet,
    future::Future,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use self::fallback::StandIn;
use crate::{
    clock::{SharedClock, SystemClock},
    config::{self, Config, NewBridges},
    crypto::{CryptoError, trust},
    homeserver::{Homeserver, HomeserverError},
    http::{self, Access, Api, Health, HsToken, HttpState, StoreState},
    inbox::{Inbox, pins::TrustSettings, worker::Wakes},
    lifecycle::{CoreTask, Lifecycle, give_memory_back, signalled},
    media::{self, Media},
    model::{
        RelayPolicy, Route, WebhookId,
        naming::{Ghosts, Strength},
    },
    outbox::{BadWebhook, Dispatcher},
    store::{Store, StoreError},
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
    /// The store that stands in for PostgreSQL wants a person.
    #[error(
        "PostgreSQL cannot be reached, and the fallback's file {0} cannot be used: move it away, or correct \
         store.fallback_file (COUCOU_STORE_FALLBACK_FILE) and store.pickle_key"
    )]
    Fallback(PathBuf, #[source] StoreError),
    /// The fallback's file cannot be locked.
    #[error(
        "cannot lock the fallback's file: make {0} writable (store.fallback_file, COUCOU_STORE_FALLBACK_FILE)"
    )]
    FallbackLock(PathBuf, #[source] io::Error),
    /// Files cannot be kept.
    #[error("cannot keep files in {0} (media.folder, COUCOU_MEDIA_FOLDER)")]
    Media(PathBuf, #[source] io::Error),
    /// The settings of the homeserver cannot be used.
    #[error("the homeserver's settings cannot be used")]
    Homeserver(#[from] HomeserverError),
    /// A webhook cannot be used.
    #[error(transparent)]
    Webhook(#[from] BadWebhook),
    /// The crypto wants a person.
    #[error(transparent)]
    Crypto(CryptoError),
    /// A part of coucou ends again and again.
    #[error("a part of coucou ({0}) fails again and again: please report this with the log")]
    Task(&'static str),
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
    /// Notified when a webhook has another secret.
    signers: Arc<Notify>,
    /// Set when the store stands in for PostgreSQL.
    stand_in: Option<Arc<StandIn>>,
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
    let chosen = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        chosen = fallback::choose(&config.store) => chosen,
    };
    let (location, stand_in) = chosen?;
    let store = Store::open(&location, config.store.pickle_key.clone())?;
    let homeserver = Homeserver::new(&config.homeserver.url, config.appservice.as_token.clone())?;
    let bot = Arc::new(OnceLock::new());
    if let Some(user_id) = config.appservice.bot_user_id(config.known_server_name().as_deref()) {
        let _ = bot.set(user_id);
    }
    let hs_token = HsToken::new(&config.appservice.hs_token);
    let media = media(&config, &homeserver, &store, &lifecycle)?;
    let shared = Shared {
        config: Arc::new(config),
        store,
        homeserver,
        clock,
        wakes: Wakes::default(),
        bot,
        signers: Arc::default(),
        stand_in,
    };
    let (fatal, mut failed) = mpsc::channel(1);
    let health = watch_store(&lifecycle, &shared, &fatal);
    let on_main = metrics::serve(&lifecycle, &shared, &health, &fatal).await?;
    let state = http_state(&shared, hs_token, health, media);
    serve_http(&lifecycle, listener, http::router(state, on_main), &fatal);
    tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "coucou listens");
    spawn_work(&lifecycle, &shared, &fatal);
    if shared.stand_in.is_some() {
        let (shared, stop) = (shared.clone(), lifecycle.stop_token());
        let watch = move || fallback::watch_for_postgres(shared.clone(), stop.clone());
        keep_running(&lifecycle, CoreTask::Fallback, &fatal, watch);
    }

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

/// Runs a core task until the stop; ends the process when it ends again and again.
fn keep_running<F>(
    lifecycle: &Lifecycle,
    task: CoreTask,
    fatal: &mpsc::Sender<AppError>,
    begin: impl Fn() -> F + Send + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let fatal = fatal.clone();
    lifecycle.keep_running(task, begin, move || {
        // A channel that is full has what ends the process already.
        let _ = fatal.try_send(AppError::Task(task.as_str()));
    });
}

/// Prepares the store as soon as its database answers, and tells the health endpoint how it is.
fn watch_store(lifecycle: &Lifecycle, shared: &Shared, fatal: &mpsc::Sender<AppError>) -> Health {
    let (state, health) = Health::new(shared.store.backend());
    let health = health.standing_in(shared.stand_in.as_ref().map(|stand_in| stand_in.reason.clone()));
    let (shared, reporter, stop) = (shared.clone(), fatal.clone(), lifecycle.stop_token());
    let state = Arc::new(state);
    let watch = move || watch(shared.clone(), Arc::clone(&state), reporter.clone(), stop.clone());
    keep_running(lifecycle, CoreTask::Store, fatal, watch);
    health
}

async fn watch(
    shared: Shared,
    state: Arc<watch::Sender<StoreState>>,
    fatal: mpsc::Sender<AppError>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        let look = async {
            shared.store.prepare(shared.clock.now()).await?;
            shared.store.probe(shared.clock.now()).await
        };
        let looked = tokio::select! { () = stop.cancelled() => return, looked = look => looked };
        let wait = match looked {
            Ok(()) => {
                tell(&state, StoreState::Ready);
                give_memory_back();
                shared.store.db().grow().await;
                LOOK
            }
            Err(error) if is_for_a_person(&error) => {
                let _ = fatal.send(of_store(&shared, error)).await;
                stop.cancelled().await;
                return;
            }
            Err(error) => {
                tell(&state, StoreState::Unavailable { reason: error.public_reason() });
                LOOK_SOON
            }
        };
        tokio::select! { () = stop.cancelled() => {}, () = sleep(wait) => {} }
    }
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

/// Tells which of two stores it is that cannot be used.
fn of_store(shared: &Shared, error: StoreError) -> AppError {
    match &shared.stand_in {
        Some(stand_in) => AppError::Fallback(stand_in.file.clone(), error),
        None => AppError::Store(error),
    }
}

/// What HTTP is answered from.
fn http_state(shared: &Shared, hs_token: HsToken, health: Health, media: Media) -> HttpState {
    let inbox = Inbox::new(shared.store.clone(), Arc::clone(&shared.clock), Arc::clone(&shared.wakes.inbox))
        .telling(Arc::clone(&shared.wakes.outage))
        .announcing(Arc::clone(&shared.wakes.alive));
    let api = Arc::new(rest(shared, media));
    HttpState { inbox, hs_token, bot: Arc::clone(&shared.bot), health, api }
}

fn serve_http(
    lifecycle: &Lifecycle,
    listener: TcpListener,
    router: axum::Router,
    fatal: &mpsc::Sender<AppError>,
) {
    let (fatal, stop) = (fatal.clone(), lifecycle.stop_token());
    lifecycle.spawn(async move {
        if let Err(error) = http::serve(listener, router, stop).await {
            let _ = fatal.send(AppError::Http(error)).await;
        }
    });
}

/// What fetches files of messages.
fn media(
    config: &Config,
    homeserver: &Homeserver,
    store: &Store,
    lifecycle: &Lifecycle,
) -> Result<Media, AppError> {
    if let Some(url) = &config.media.public_url {
        tracing::info!(%url, "addresses of files begin with this (http.public_url)");
    } else {
        tracing::warn!(
            "files of messages have no address, as coucou's own is not known: set http.public_url \
             (COUCOU_HTTP_PUBLIC_URL) to the URL under which consumers reach it"
        );
    }
    let settings = media::Settings {
        folder: config.media.folder.clone(),
        cache_size: config.media.cache_size,
        max_size: config.media.max_size,
        timeout: config.media.timeout,
        concurrency: config.media.concurrency,
    };
    Media::open(homeserver.clone(), store.clone(), lifecycle.clone(), settings)
        .map_err(|error| AppError::Media(config.media.folder.clone(), error))
}

/// What the REST API answers from.
fn rest(shared: &Shared, media: Media) -> Api {
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
        wake_signers: Arc::clone(&shared.signers),
        media,
        public: shared.config.media.public_url.clone().map(|url| (url, shared.config.media.url_lifetime)),
    }
}

/// Starts what needs the store, once it is ready.
fn spawn_work(lifecycle: &Lifecycle, shared: &Shared, fatal: &mpsc::Sender<AppError>) {
    let (tasks, shared, fatal) = (lifecycle.clone(), shared.clone(), fatal.clone());
    let stop = lifecycle.stop_token();
    lifecycle.spawn(async move {
        let webhooks::Ready { destinations, routes, signed } = match webhooks::ready(&shared, &stop).await {
            Ok(Some(webhooks)) => webhooks,
            Ok(None) => return,
            Err(error) => {
                let _ = fatal.send(error).await;
                return;
            }
        };
        let ids: Vec<WebhookId> = routes.iter().map(|route| route.webhook_id).collect();
        let of = shared.clone();
        let until = stop.clone();
        let follow = move || webhooks::keep_signers(of.clone(), Arc::clone(&signed), until.clone());
        keep_running(&tasks, CoreTask::Secrets, &fatal, follow);
        let (of, until) = (shared.clone(), stop.clone());
        let dispatch = move || dispatcher(&of, destinations.clone()).run(until.clone());
        keep_running(&tasks, CoreTask::Outbox, &fatal, dispatch);
        let (of, until) = (shared.clone(), stop.clone());
        let retain = move || retention::run(of.clone(), ids.clone(), until.clone());
        keep_running(&tasks, CoreTask::Retention, &fatal, retain);
        let reporter = fatal.clone();
        let lead = move || lead(shared.clone(), routes.clone(), reporter.clone(), stop.clone());
        keep_running(&tasks, CoreTask::Crypto, &fatal, lead);
    });
}

fn dispatcher(shared: &Shared, webhooks: webhooks::Destinations) -> Dispatcher {
    Dispatcher::new(
        shared.store.clone(),
        Arc::clone(&shared.clock),
        webhooks,
        StdRng::from_os_rng(),
        Arc::clone(&shared.wakes.outbox),
        crate::outbox::Config {
            keep_delivered: !shared.config.messages.retention.is_zero(),
            ..crate::outbox::Config::default()
        },
    )
}

async fn lead(shared: Shared, routes: Vec<Route>, fatal: mpsc::Sender<AppError>, stop: CancellationToken) {
    if let Err(error) = Box::pin(leader::lead(shared, routes, stop.clone())).await {
        let _ = fatal.send(AppError::Crypto(error)).await;
        stop.cancelled().await;
    }
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
        let configured = |pattern| Ghosts { pattern, strength: Strength::Configured };
        let bridge = |bridge: &config::Bridge| trust::Bridge {
            bot: bridge.bot.clone(),
            ghosts: bridge.ghosts.iter().cloned().map(configured).collect(),
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
