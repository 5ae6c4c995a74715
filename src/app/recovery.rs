//! Recovery within a term: a lost store's account is brought back or refused, the bot is kept recoverable, its
//! backup is filled, and keys that are missing are asked of the backups that coucou may read.
//!
//! All of it runs beside the work, under the crypto lease, and waits for nobody: a homeserver that is away or
//! that knows no backups costs nothing but log lines. What is asked for and how often is in the store, so a
//! restart does not begin anew.

use std::{collections::HashMap, error::Error, sync::Arc, time::Duration};

use ruma::{OwnedRoomId, UserId};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::{
    crypto::{
        CryptoError, Engine, KeyBackup, RecoveryError, RoomKey, SecretStorage,
        backup::{BATCH, Fetched},
        keylane::backoff,
        recovery::{self, Found},
    },
    homeserver::HomeserverError,
    model::Role,
    store::{Lease, accounts, backups, leases},
};

/// How often the backup is looked after when nobody announces new keys.
const IDLE: Duration = Duration::from_secs(10);

/// How long new keys are collected before they are put into the backup.
const GATHER: Duration = Duration::from_secs(2);

/// Batches after which progress is logged.
const BATCHES_A_LINE: u64 = 10;

/// Sessions looked up in the backups in one round.
const MOST_LOOKUPS: i64 = 50;

/// The first and the longest time between two look-ups of one session. The owner's other devices back a key up
/// within seconds.
const FIRST_LOOKUP: Duration = Duration::from_secs(10);
const LONGEST_LOOKUP: Duration = Duration::from_hours(6);

/// Refuses to make a second identity of the bot beside the one that its secret storage keeps, before anything
/// is made. With a recovery key in the settings it is brought back instead.
///
/// # Errors
/// [`CryptoError::Refused`] with the way out; when the homeserver or the store fails.
pub(super) async fn refuse_second_identity(shared: &Shared, bot: &UserId) -> Result<(), CryptoError> {
    let Shared { store, homeserver, config, .. } = shared;
    if accounts::find(store.db(), bot).await?.is_some() || !SecretStorage::is_there(homeserver, bot).await? {
        return Ok(());
    }
    match &config.recovery_key {
        None => Err(refused(bot)),
        Some(key) => Found::look(homeserver, bot, key, true).await.map(drop).map_err(as_crypto),
    }
}

fn refused(bot: &UserId) -> CryptoError {
    CryptoError::Refused(format!(
        "this store is empty, but {bot} has an identity and room keys on the homeserver: bring them back with \
         `coucou restore` or by setting recovery.key (COUCOU_RECOVERY_KEY) to the bot's recovery key, or point \
         store.url (COUCOU_STORE_URL) at the store that has them; if the key is lost for good, `coucou restore \
         --start-over` begins anew"
    ))
}

/// Refuses to publish a new identity while the old one could be brought back.
///
/// # Errors
/// As [`refuse_second_identity`].
pub(super) async fn refuse_unrestored(engine: &Engine) -> Result<(), CryptoError> {
    if engine.wants_restore().await? { Err(refused(&engine.account().user_id)) } else { Ok(()) }
}

/// Brings the bot back when its store was lost and the settings have its recovery key.
///
/// # Errors
/// When the key does not fit or the store fails; a homeserver that is away is waited for later.
pub(super) async fn bring_back(shared: &Shared, engines: &[Engine]) -> Result<(), CryptoError> {
    let (Some(bot), Some(key)) = (bot(engines), &shared.config.recovery_key) else { return Ok(()) };
    let restore = async {
        if !bot.wants_restore().await? {
            return Ok(());
        }
        let user_id = &bot.account().user_id;
        let found = Found::look(&shared.homeserver, user_id, key, true).await?;
        tracing::warn!(account.user_id = %user_id, keys = found.count(),
            "the store is empty: bringing back the bot's identity and its room keys");
        let mut line = 0;
        let progress = |progress: recovery::Progress| {
            if progress.keys / 2_000 > line {
                line = progress.keys / 2_000;
                tracing::info!(keys = progress.keys, of = progress.of, "restoring room keys");
            }
        };
        let restored = found.restore(bot, progress).await?;
        tracing::info!(account.user_id = %user_id, account.device_id = %bot.account().device_id,
            keys = restored.keys, unreadable = restored.unreadable, "restored");
        Ok::<_, RecoveryError>(())
    };
    match restore.await {
        Err(RecoveryError::Crypto(CryptoError::Homeserver(error))) => {
            tracing::warn!(error = &error as &dyn Error, "could not look for a lost store's account");
            Ok(())
        }
        other => other.map_err(as_crypto),
    }
}

fn bot(engines: &[Engine]) -> Option<&Engine> {
    engines.iter().find(|engine| engine.account().role == Role::Bot)
}

/// What the homeserver or the store did stays that; the rest wants a person.
fn as_crypto(error: RecoveryError) -> CryptoError {
    match error {
        RecoveryError::Crypto(error) => error,
        error => CryptoError::Refused(format!(
            "the bot cannot be brought back: {error} (`coucou restore --help` shows other ways)"
        )),
    }
}

/// Looks after backups for one term.
#[derive(Debug)]
pub(super) struct Recovery {
    shared: Shared,
    lease: Lease,
    engines: Vec<Engine>,
    /// The bot's own, once it is known to be in use.
    own: Option<KeyBackup>,
    owners: Owners,
}

/// The owner's backup, which is only read.
#[derive(Debug)]
enum Owners {
    /// Not looked for yet.
    Unknown,
    /// There is none, or no key for it.
    None,
    /// Open.
    Open(Box<KeyBackup>),
}

impl Recovery {
    pub(super) fn new(shared: Shared, lease: Lease, engines: Vec<Engine>) -> Self {
        Self { shared, lease, engines, own: None, owners: Owners::Unknown }
    }

    /// Runs until told to stop.
    ///
    /// # Errors
    /// When the store fails; the homeserver's failures are waited out.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<(), CryptoError> {
        let wake = Arc::clone(&self.shared.wakes.backup);
        let mut failures = 0;
        while !stop.is_cancelled() {
            let step = tokio::select! { () = stop.cancelled() => return Ok(()), step = self.step() => step };
            let wait = match step {
                Ok(()) => {
                    failures = 0;
                    None
                }
                Err(RecoveryError::Crypto(error)) if error.is_of_the_store() => return Err(error),
                Err(error) => {
                    failures += 1;
                    Some(self.after_failure(&error, failures))
                }
            };
            if let Some(wait) = wait {
                tokio::select! { () = stop.cancelled() => {}, () = sleep(wait) => {} }
                continue;
            }
            tokio::select! {
                () = stop.cancelled() => {},
                () = sleep(IDLE) => {}
                () = wake.notified() => {
                    tokio::select! { () = stop.cancelled() => {}, () = sleep(GATHER) => {} }
                }
            }
        }
        Ok(())
    }

    /// Notes a failure and answers how long to wait.
    fn after_failure(&mut self, error: &RecoveryError, failures: u32) -> Duration {
        let mut wait = backoff(failures);
        if let RecoveryError::Crypto(CryptoError::Homeserver(error)) = error {
            wait = wait.max(error.retry_after().unwrap_or_default());
            if matches!(error, HomeserverError::Status { status: 403 | 404, .. }) {
                // The backup was deleted or replaced: look again for the one in use, and make one if need be.
                self.own = None;
                if matches!(self.owners, Owners::Open(_)) {
                    self.owners = Owners::Unknown;
                }
            }
        }
        if failures > 1 {
            tracing::warn!(error = error as &dyn Error, failures, "the key backup does not get on");
        }
        wait
    }

    async fn step(&mut self) -> Result<(), RecoveryError> {
        if self.own.is_none() {
            self.own = self.ensure().await?;
        }
        if matches!(self.owners, Owners::Unknown) {
            self.owners = self.open_owners().await?;
        }
        if let Some(own) = &self.own {
            self.put(own).await?;
        }
        if let (Owners::Open(backup), Some(engine)) = (&self.owners, self.owner()) {
            self.read_rooms(backup, engine).await?;
        }
        self.look_up().await
    }

    fn owner(&self) -> Option<&Engine> {
        self.engines.iter().find(|engine| engine.account().role == Role::Owner)
    }

    /// The bot's backup, made if need be.
    pub(super) async fn ensure(&self) -> Result<Option<KeyBackup>, RecoveryError> {
        let Some(bot) = bot(&self.engines) else { return Ok(None) };
        if !bot.is_set_up().await? {
            // Its identity is published, or brought back, first.
            return Ok(None);
        }
        let backup = recovery::ensure(bot, self.shared.config.recovery_key.as_ref()).await?;
        for engine in &self.engines {
            engine.back_up_to(backup.version()).await?;
        }
        if bot.must_write_down_recovery_key().await? {
            tracing::warn!(account.user_id = %bot.account().user_id,
                "write down the recovery key that `coucou recovery-key` prints: if this database is lost, \
                 nothing else brings back the bot's identity and its room keys");
        }
        tracing::info!(backup.version = backup.version(), keys = backup.count(), "the key backup is in use");
        Ok(Some(backup))
    }

    /// Fills the backup with what it does not have.
    async fn put(&self, backup: &KeyBackup) -> Result<(), RecoveryError> {
        for engine in &self.engines {
            let (mut batches, mut put) = (0, 0);
            loop {
                let count = backup.put_next(engine).await?;
                put += count as u64;
                if count < BATCH {
                    break;
                }
                batches += 1;
                if batches % BATCHES_A_LINE == 0 {
                    let left = engine.not_backed_up().await?;
                    tracing::info!(account.user_id = %engine.account().user_id, put, left, "backing up room keys");
                }
            }
            if put > 0 {
                tracing::debug!(account.user_id = %engine.account().user_id, put, "backed up room keys");
            }
        }
        Ok(())
    }

    /// Signs coucou's device on the owner's account and opens the owner's backup, when the settings have the
    /// owner's recovery key. What a person must mend is told once.
    async fn open_owners(&self) -> Result<Owners, RecoveryError> {
        let (Some(engine), Some(key)) = (self.owner(), &self.shared.config.owner_recovery_key) else {
            return Ok(Owners::None);
        };
        let user_id = &engine.account().user_id;
        let opened = async {
            let storage = SecretStorage::open(&self.shared.homeserver, user_id, key).await?;
            if recovery::sign_owners_device(engine, &storage).await? {
                tracing::info!(account.user_id = %user_id, account.device_id = %engine.account().device_id,
                    "signed the device with the owner's identity");
            }
            recovery::backup_of(engine, &storage).await
        };
        match opened.await {
            Ok(Some(backup)) => {
                tracing::info!(account.user_id = %user_id, backup.version = backup.version(),
                    keys = backup.count(), "the owner's key backup can be read");
                Ok(Owners::Open(Box::new(backup)))
            }
            Ok(None) => {
                tracing::info!(account.user_id = %user_id, "the owner has no key backup that can be read");
                Ok(Owners::None)
            }
            Err(error @ RecoveryError::Crypto(_)) => Err(error),
            Err(error) => {
                tracing::error!(account.user_id = %user_id, error = &error as &dyn Error,
                    "owner_recovery_key (COUCOU_OWNER_RECOVERY_KEY) cannot be used: coucou goes on without");
                Ok(Owners::None)
            }
        }
    }

    /// Reads from the owner's backup the keys of relayed rooms, each room once.
    async fn read_rooms(&self, backup: &KeyBackup, engine: &Engine) -> Result<(), RecoveryError> {
        let store = &self.shared.store;
        let account_id = engine.account().id;
        loop {
            let rooms = backups::unread_rooms(store.db(), account_id, backup.version(), MOST_LOOKUPS).await?;
            if rooms.is_empty() {
                return Ok(());
            }
            for room_id in rooms {
                let fetched = backup.of_room(&room_id).await?;
                let count = fetched.keys.len();
                self.import(engine, backup, fetched).await?;
                let mut tx = store.begin().await?;
                leases::check(&mut tx, &self.lease).await?;
                let now = self.shared.clock.now();
                backups::room_was_read(&mut tx, account_id, &room_id, backup.version(), now).await?;
                tx.commit().await?;
                tracing::info!(room.id = %room_id, keys = count, "read the owner's key backup");
            }
        }
    }

    async fn import(
        &self,
        engine: &Engine,
        backup: &KeyBackup,
        fetched: Fetched,
    ) -> Result<Vec<RoomKey>, RecoveryError> {
        if fetched.unreadable > 0 {
            tracing::warn!(unreadable = fetched.unreadable, "keys in the backup cannot be read");
        }
        let mut imported = Vec::new();
        let mut keys = fetched.keys;
        while !keys.is_empty() {
            let rest = keys.split_off(keys.len().min(BATCH));
            imported.extend(engine.import_from_backup(keys, backup.version()).await?);
            keys = rest;
        }
        if !imported.is_empty() {
            self.shared.wakes.inbox.notify_one();
        }
        Ok(imported)
    }

    /// Asks the backups for the keys that events on the ledger wait for, each less and less often.
    async fn look_up(&self) -> Result<(), RecoveryError> {
        let mut sources: Vec<(&KeyBackup, &Engine)> = Vec::new();
        if let (Owners::Open(backup), Some(engine)) = (&self.owners, self.owner()) {
            sources.push((backup, engine));
        }
        if let (Some(backup), Some(engine)) = (&self.own, bot(&self.engines)) {
            sources.push((backup, engine));
        }
        if sources.is_empty() {
            return Ok(());
        }
        let (store, now) = (&self.shared.store, self.shared.clock.now());
        let wanted = backups::due_lookups(store.db(), now, MOST_LOOKUPS).await?;
        let mut answered: HashMap<(OwnedRoomId, String), crate::clock::Timestamp> = HashMap::new();
        for lookup in wanted {
            let key = RoomKey { room_id: lookup.room_id.clone(), session_id: lookup.session_id.clone() };
            // What the bot's own backup holds came from this store, so asking once is enough.
            let sources = sources
                .iter()
                .filter(|(_, engine)| lookup.tries == 0 || engine.account().role == Role::Owner);
            for (backup, engine) in sources {
                let fetched = backup.of_session(&key).await?;
                if !self.import(engine, backup, fetched).await?.is_empty() {
                    tracing::info!(room.id = %key.room_id, account.user_id = %backup.user_id(),
                        "a missing key was in the backup");
                    break;
                }
            }
            let doublings = u32::try_from(lookup.tries.clamp(0, 12)).unwrap_or(12);
            let next = (FIRST_LOOKUP * (1 << doublings)).min(LONGEST_LOOKUP);
            answered.insert((lookup.room_id, lookup.session_id), now.plus(next));
        }
        if answered.is_empty() {
            return Ok(());
        }
        let mut tx = store.begin().await?;
        leases::check(&mut tx, &self.lease).await?;
        backups::were_looked_up(&mut tx, &answered.into_iter().collect::<Vec<_>>()).await?;
        tx.commit().await?;
        Ok(())
    }
}
