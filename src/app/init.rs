//! `coucou init`: what `serve` does before its work, ahead of it: schema, user, device, keys, identity, recovery key.
//!
//! Every step can be made twice, so it can be run again at any time; while coucou runs there is nothing left to do.

use std::sync::{Arc, OnceLock};

use rand::Rng;

use super::{AppError, Shared, leader, term::Term};
use crate::{
    clock::{Clock, SystemClock},
    config::Config,
    crypto::{CryptoError, RecoveryError, store::own_keys},
    homeserver::{Homeserver, HomeserverError, PublishedDevice},
    inbox::worker::Wakes,
    model::{Account, Role},
    store::{Lease, Store, StoreError, accounts},
};

/// Why coucou could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The store cannot be used.
    #[error("the store cannot be used")]
    Store(#[from] StoreError),
    /// The settings cannot be used.
    #[error(transparent)]
    App(#[from] AppError),
    /// The homeserver cannot be used.
    #[error("the homeserver failed")]
    Homeserver(#[from] HomeserverError),
    /// The homeserver or the store failed, or a person must act first.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    /// The recovery key or the key backup cannot be set up.
    #[error("the key backup cannot be set up")]
    Recovery(#[from] RecoveryError),
}

/// A device of coucou's, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitDevice {
    /// Whose it is.
    pub account: Account,
    /// Whether it was made just now.
    pub is_new: bool,
    /// Its fingerprint: the Ed25519 key, base64.
    pub fingerprint: Option<String>,
    /// Whether the homeserver shows its keys.
    pub is_published: bool,
    /// Whether it is signed by its user's identity.
    pub is_signed: bool,
}

/// What was done, and what there is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Initialized {
    /// The migrations that were applied.
    pub migrations: Vec<&'static str>,
    /// The process that works on this store already, so that only was looked.
    pub busy: Option<String>,
    /// The devices.
    pub devices: Vec<InitDevice>,
    /// Whether coucou made the recovery key and no one has printed it, so that somebody has to write it down.
    pub must_write_down_recovery_key: bool,
}

/// Sets coucou up.
///
/// # Errors
/// When the store or the homeserver cannot be used, or a person must act first.
pub async fn init(config: Config) -> Result<Initialized, InitError> {
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
    let done = set_up(&shared).await;
    store.close().await;
    done
}

async fn set_up(shared: &Shared) -> Result<Initialized, InitError> {
    let mut done = Initialized { migrations: shared.store.db().migrate().await?, ..Initialized::default() };
    shared.store.prepare(SystemClock.now()).await?;
    let before = accounts::all(shared.store.db()).await?;
    let holder = format!("init-{:08x}", rand::rng().random::<u32>());
    if let Some(lease) = leader::claim(shared, &holder).await? {
        let established = tokio::select! {
            established = establish(shared, &lease) => established,
            lost = leader::renew(shared, &lease) => Err(lost.into()),
        };
        leader::give_back(shared, &lease).await;
        done.must_write_down_recovery_key = established?;
    } else {
        let holder = crate::store::stats::holder(shared.store.db()).await?;
        done.busy = holder.map(|holder| holder.holder);
    }
    for account in accounts::all(shared.store.db()).await? {
        let is_new = before.iter().all(|known| known.id != account.id);
        done.devices.push(device(shared, account, is_new).await?);
    }
    Ok(done)
}

/// Does what is to be done under the lease; answers whether the recovery key is to be written down.
async fn establish(shared: &Shared, lease: &Lease) -> Result<bool, InitError> {
    let engines = Term::new(shared.clone(), Vec::new(), lease.clone(), false).establish().await?;
    let bot = engines.iter().find(|engine| engine.account().role == Role::Bot);
    Ok(match bot {
        Some(bot) => bot.must_write_down_recovery_key().await?,
        None => false,
    })
}

async fn device(shared: &Shared, account: Account, is_new: bool) -> Result<InitDevice, InitError> {
    let mut shown = shared.homeserver.published_keys(&account.user_id).await?;
    let own = own_keys(&shared.store, account.id, Arc::clone(&shared.clock)).await;
    let fingerprint = own.map_err(|error| CryptoError::Store(error.into()))?.map(|keys| keys.ed25519);
    let shown: Option<PublishedDevice> = shown.devices.remove(&account.device_id);
    Ok(InitDevice {
        is_new,
        is_published: shown.is_some(),
        is_signed: shown.is_some_and(|device| device.is_signed),
        fingerprint,
        account,
    })
}
