//! `coucou restore` and `coucou recovery-key`: a lost database's account brought back, and the key for it.

use std::{
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use ruma::OwnedUserId;
use secrecy::SecretString;

use super::{AppError, Shared, leader};
use crate::{
    clock::{Clock, SystemClock},
    config::Config,
    crypto::{
        CryptoError, Engine, RecoveryError,
        recovery::{self, Found, Progress, Restored},
        setup,
    },
    homeserver::{Homeserver, HomeserverError},
    inbox::worker::Wakes,
    model::{RecoveryKey, Role},
    rooms::HISTORY_SINCE,
    store::{Lease, Store, StoreError, accounts, crypto::recovery_key},
};

/// What is to be restored.
#[derive(Clone, Copy, Debug, Default)]
pub struct RestoreOptions {
    /// The identity alone is enough, when there is no backup.
    pub identity_only: bool,
    /// How far back rooms are read and relayed again; none means not at all.
    pub history: Option<History>,
    /// Nothing is restored: the bot gets a new identity in place of the old one.
    pub start_over: bool,
}

/// How far back rooms are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    /// To where the account came into the room.
    All,
    /// For so long.
    Last(Duration),
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// No key was given.
    #[error(
        "no recovery key: give it with --recovery-key-file, on standard input, or as COUCOU_RECOVERY_KEY"
    )]
    NoKey,
    /// The store has an account that works.
    #[error("this store has the identity of {0} already: restore is for a store that is empty")]
    NotEmpty(OwnedUserId),
    /// Another process works on this store.
    #[error("another coucou works on this store: stop it first")]
    Busy,
    /// The store has no recovery key.
    #[error("this store has no recovery key yet: `coucou serve` makes one at its first start")]
    NoKeptKey,
    /// The bot cannot be named.
    #[error("appservice.bot (COUCOU_APPSERVICE_BOT) is no user of the homeserver")]
    Bot,
    /// What the key opens is not there, or does not fit.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// The homeserver failed.
    #[error("the homeserver failed")]
    Homeserver(#[from] HomeserverError),
    /// The crypto failed.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    /// The store failed.
    #[error("the store cannot be used")]
    Store(#[from] StoreError),
    /// The settings cannot be used.
    #[error(transparent)]
    App(#[from] AppError),
    /// The key could not be printed.
    #[error("the recovery key cannot be printed")]
    Print(#[from] io::Error),
}

/// Brings the bot's account back into an empty store: a new device with the old identity, and the room keys
/// of the backup. Nothing is changed, here or there, before all that is needed was found.
///
/// # Errors
/// What is missing or does not fit, in one line.
pub async fn restore(
    config: Config,
    key: Option<RecoveryKey>,
    options: RestoreOptions,
    progress: impl FnMut(Progress) + Send,
) -> Result<Restored, RestoreError> {
    let store = Store::open(&config.store.location, config.store.pickle_key.clone())?;
    let homeserver = Homeserver::new(&config.homeserver.url, config.appservice.as_token.clone())?;
    let shared = Shared {
        config: Arc::new(config),
        store: store.clone(),
        homeserver,
        clock: Arc::new(SystemClock),
        wakes: Wakes::default(),
        bot: Arc::new(OnceLock::new()),
        signers: Arc::default(),
        stand_in: None,
    };
    let restored = restore_under_lease(&shared, key, options, progress).await;
    store.close().await;
    restored
}

async fn restore_under_lease(
    shared: &Shared,
    key: Option<RecoveryKey>,
    options: RestoreOptions,
    progress: impl FnMut(Progress) + Send,
) -> Result<Restored, RestoreError> {
    shared.store.prepare(shared.clock.now()).await?;
    let bot = bot(shared).await?;
    let found = if options.start_over {
        None
    } else {
        let key = key.ok_or(RestoreError::NoKey)?;
        Some(Found::look(&shared.homeserver, &bot, &key, !options.identity_only).await?)
    };
    let holder = format!("restore-{:08x}", rand::random::<u32>());
    let Some(lease) = leader::claim(shared, &holder).await? else { return Err(RestoreError::Busy) };
    let restored = tokio::select! {
        restored = apply(shared, &lease, bot, found, options, progress) => restored,
        lost = leader::renew(shared, &lease) => Err(lost.into()),
    };
    leader::give_back(shared, &lease).await;
    restored
}

async fn bot(shared: &Shared) -> Result<OwnedUserId, RestoreError> {
    // Asked in any case: it is the first thing that tells a wrong token or URL.
    let whoami = shared.homeserver.whoami().await?;
    let server_name = shared.config.known_server_name().unwrap_or_else(|| whoami.server_name().to_owned());
    shared.config.appservice.bot_user_id(Some(&server_name)).ok_or(RestoreError::Bot)
}

async fn apply(
    shared: &Shared,
    lease: &Lease,
    bot: OwnedUserId,
    found: Option<Found>,
    options: RestoreOptions,
    progress: impl FnMut(Progress) + Send,
) -> Result<Restored, RestoreError> {
    let Shared { config, store, homeserver, clock, .. } = shared;
    let load = async |account| {
        let (store, homeserver) = (store.clone(), homeserver.clone());
        Engine::load(account, store, lease.clone(), homeserver, Arc::clone(clock)).await
    };
    if let Some(account) = accounts::find(store.db(), &bot).await?
        && load(account).await?.is_set_up().await?
    {
        return Err(RestoreError::NotEmpty(bot));
    }
    let device = config.appservice.device_id.as_deref();
    let now = clock.now();
    let account = setup::ensure_account(store, homeserver, lease, &bot, Role::Bot, device, now).await?;
    let engine = load(account).await?;
    if let Some(history) = options.history {
        let since = match history {
            History::All => 0,
            History::Last(time) => now.minus(time).0,
        };
        engine.keep_note(HISTORY_SINCE, &since.to_string()).await?;
    }
    if let Some(found) = found {
        return Ok(found.restore(&engine, progress).await?);
    }
    engine.drain_outgoing().await?;
    engine.publish_identity().await?;
    recovery::start_over(&engine, config.recovery_key.as_ref()).await?;
    Ok(Restored::default())
}

/// Prints the bot's recovery key as the store keeps it, in groups as people write it, and then notes that it was
/// printed: coucou reminds of it no more. Returns what kept it from noting that, if anything did.
///
/// # Errors
/// When the store cannot be used or has no key, or the key cannot be printed.
pub async fn print_recovery_key(
    config: &Config,
    print: impl FnOnce(&SecretString) -> io::Result<()>,
) -> Result<Option<StoreError>, RestoreError> {
    let store = Store::open(&config.store.location, config.store.pickle_key.clone())?;
    let printed = print_kept_key(&store, print).await;
    store.close().await;
    printed
}

async fn print_kept_key(
    store: &Store,
    print: impl FnOnce(&SecretString) -> io::Result<()>,
) -> Result<Option<StoreError>, RestoreError> {
    store.prepare(SystemClock.now()).await?;
    let accounts = accounts::all(store.db()).await?;
    let bot = accounts.iter().find(|account| account.role == Role::Bot).ok_or(RestoreError::NoKeptKey)?;
    let key = recovery_key::find(store, bot.id).await?.ok_or(RestoreError::NoKeptKey)?;
    print(&key.in_groups())?;
    Ok(recovery_key::note_printed(store, bot.id, &key, SystemClock.now()).await.err())
}
