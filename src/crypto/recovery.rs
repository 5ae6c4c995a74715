//! What outlasts the store: the bot's identity and room keys, brought back with one recovery key.
//!
//! The bot's account is coucou's own. Its secret storage holds the private cross-signing keys and the key of
//! its backup; the backup holds the room keys of all accounts, the owner's device included, so that one key
//! brings everything back. The owner's account is the owner's: from its secret storage coucou only reads, and
//! what it sends there is one signature on its own device.

use matrix_sdk_crypto::{
    CrossSigningKeyExport, OlmMachine, SecretImportError, store::types::BackupDecryptionKey,
};
use ruma::{
    OwnedDeviceId, UserId, api::client::keys::get_keys, events::secret::request::SecretName, serde::Raw,
};
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::{
    backup::{self, BATCH, KeyBackup},
    engine::{CryptoError, Engine},
    secrets::{CROSS_SIGNING, RecoveryError, SecretStorage},
};
use crate::{
    homeserver::{BackupVersion, Homeserver, Identity},
    model::RecoveryKey,
    store::crypto::recovery_key::{self, KEPT_KEY, MADE_HERE, RecoveryKeyHolder},
};

/// How a restore goes on: keys taken in so far, of how many if that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Keys that were read.
    pub keys: u64,
    /// Keys that the backup holds.
    pub of: u64,
}

/// What a restore came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Keys that are in the store now.
    pub keys: usize,
    /// Keys that could not be read.
    pub unreadable: usize,
}

/// A lost store's account, found on the homeserver with all that is needed to go on with it.
///
/// Finding it changes nothing, neither on the homeserver nor in the store.
#[derive(Debug)]
pub struct Found {
    key: RecoveryKey,
    identity: CrossSigningKeyExport,
    backup: Option<KeyBackup>,
}

impl Found {
    /// Looks for what a recovery key opens. Without `needs_backup` the identity alone will do.
    ///
    /// # Errors
    /// What is missing or does not fit, each as one line.
    pub async fn look(
        homeserver: &Homeserver,
        user_id: &UserId,
        key: &RecoveryKey,
        needs_backup: bool,
    ) -> Result<Self, RecoveryError> {
        let storage = SecretStorage::open(homeserver, user_id, key).await?;
        let identity = private_identity(&storage, &CROSS_SIGNING).await?;
        checked_machine(homeserver, user_id, private_identity(&storage, &CROSS_SIGNING).await?).await?;
        let backup = match storage.get(&SecretName::RecoveryKey).await? {
            Some(text) => KeyBackup::find(homeserver, user_id, backup::backup_key(&text)?).await?,
            None => None,
        };
        if backup.is_none() && needs_backup {
            return Err(RecoveryError::NoBackup(user_id.to_owned()));
        }
        Ok(Self { key: key.clone(), identity, backup })
    }

    /// How many keys the backup holds.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.backup.as_ref().map_or(0, KeyBackup::count)
    }

    /// Gives a new device the identity and the keys. Can be done again after it was cut off.
    ///
    /// # Errors
    /// When the homeserver or the store fails.
    pub async fn restore(
        self,
        engine: &Engine,
        mut progress: impl FnMut(Progress) + Send,
    ) -> Result<Restored, RecoveryError> {
        engine.drain_outgoing().await?;
        engine.query_own_keys().await?;
        let status = engine.machine.import_cross_signing_keys(copy(&self.identity)).await;
        if !status.map_err(|error| import_failed(engine.account().user_id.as_ref(), &error))?.is_complete() {
            return Err(RecoveryError::Unusable("the identity could not be taken in".to_owned()));
        }
        let restored = match &self.backup {
            Some(backup) => restore_keys(engine, backup, &mut progress).await?,
            None => Restored::default(),
        };
        engine.sign_with_identity().await?;
        engine.keep_recovery_key(&self.key, false).await?;
        engine.identity_is_published().await?;
        Ok(restored)
    }
}

async fn restore_keys(
    engine: &Engine,
    backup: &KeyBackup,
    progress: &mut (impl FnMut(Progress) + Send),
) -> Result<Restored, RecoveryError> {
    engine.back_up_to(backup.version()).await?;
    let machine = engine.machine.backup_machine();
    machine.save_decryption_key(Some(backup.key().clone()), Some(backup.version().to_owned())).await?;
    let mut restored = Restored::default();
    let mut take = async |fetched: backup::Fetched, restored: &mut Restored| {
        restored.unreadable += fetched.unreadable;
        let mut keys = fetched.keys;
        while !keys.is_empty() {
            let rest = keys.split_off(keys.len().min(BATCH));
            restored.keys += keys.len();
            engine.import_from_backup(keys, backup.version()).await?;
            progress(Progress { keys: restored.keys as u64, of: backup.count() });
            keys = rest;
        }
        Ok::<_, CryptoError>(())
    };
    if let Some(fetched) = backup.all().await? {
        take(fetched, &mut restored).await?;
        return Ok(restored);
    }
    // More than an answer can hold, and a backup does not tell its rooms: those that the account is in.
    for room_id in engine.homeserver.joined_rooms(backup.user_id()).await? {
        take(backup.of_room(&room_id).await?, &mut restored).await?;
    }
    Ok(restored)
}

/// Makes a secret storage for an identity that was just made, in place of one whose key is lost.
///
/// # Errors
/// When the homeserver or the store fails.
pub async fn start_over(engine: &Engine, configured: Option<&RecoveryKey>) -> Result<(), RecoveryError> {
    let key = match configured {
        Some(key) => key.clone(),
        None => engine.make_recovery_key().await?,
    };
    engine.keep_recovery_key(&key, configured.is_none()).await?;
    let secrets = engine.secrets().await?;
    SecretStorage::create(&engine.homeserver, &engine.account().user_id, &key, &secrets).await?;
    Ok(())
}

/// Makes sure that the bot can be brought back: a recovery key, secret storage, and a backup whose key is in
/// it. Answers the backup.
///
/// # Errors
/// When the homeserver or the store fails. A secret storage that no known key opens is no error: it is told,
/// and the backup goes on without.
pub async fn ensure(engine: &Engine, configured: Option<&RecoveryKey>) -> Result<KeyBackup, RecoveryError> {
    let storage = ensure_storage(engine, configured).await?;
    let (homeserver, user_id) = (&engine.homeserver, &engine.account().user_id);
    let stored = engine.machine.backup_machine().get_backup_keys().await?;
    let mut key = stored.decryption_key;
    if let (None, Some(storage)) = (&key, &storage)
        && let Some(text) = storage.get(&SecretName::RecoveryKey).await?
    {
        key = Some(backup::backup_key(&text)?);
    }
    let key = key.unwrap_or_else(BackupDecryptionKey::new);
    // First where it lasts, then in use: what was backed up with a lost key is lost.
    engine.machine.backup_machine().save_decryption_key(Some(key.clone()), None).await?;
    if let Some(storage) = &storage {
        storage.put(&SecretName::RecoveryKey, &key.to_base64()).await?;
    }
    let current = homeserver.backup_version(user_id).await?;
    let (version, count) = match current {
        Some(current) if backup::fits(&key, &current) => (current.version, current.count),
        current => (create_backup(engine, &key, current.as_ref()).await?, 0),
    };
    engine.back_up_to(&version).await?;
    engine.machine.backup_machine().save_decryption_key(None, Some(version.clone())).await?;
    Ok(KeyBackup::at(homeserver, user_id, version, count, key))
}

async fn create_backup(
    engine: &Engine,
    key: &BackupDecryptionKey,
    current: Option<&BackupVersion>,
) -> Result<String, RecoveryError> {
    let user_id = &engine.account().user_id;
    let mut info = key.to_backup_info();
    let signed = engine.machine.backup_machine().sign_backup(&mut info).await;
    signed.map_err(|_| RecoveryError::Unusable("the key backup cannot be signed".to_owned()))?;
    let info = serde_json::to_value(info).map_err(matrix_sdk_crypto::OlmError::from);
    let version = engine.homeserver.create_backup(user_id, info.map_err(CryptoError::from)?).await?;
    match current {
        None => tracing::info!(account.user_id = %user_id, backup.version = version, "new key backup"),
        Some(current) => tracing::warn!(account.user_id = %user_id, backup.version = version,
            replaced = current.version, "the account's key backup was not coucou's: made a new one"),
    }
    Ok(version)
}

/// The bot's secret storage, made when there is none, and holding the identity.
async fn ensure_storage(
    engine: &Engine,
    configured: Option<&RecoveryKey>,
) -> Result<Option<SecretStorage>, RecoveryError> {
    let (homeserver, user_id) = (&engine.homeserver, &engine.account().user_id);
    let kept = engine.kept_recovery_key().await?;
    let secrets = engine.secrets().await?;
    if !SecretStorage::is_there(homeserver, user_id).await? {
        let key = match configured.or(kept.as_ref()) {
            Some(key) => key.clone(),
            None => engine.make_recovery_key().await?,
        };
        engine.keep_recovery_key(&key, configured.is_none()).await?;
        let storage = SecretStorage::create(homeserver, user_id, &key, &secrets).await?;
        tracing::info!(account.user_id = %user_id, "made a secret storage for the bot's identity and backup");
        return Ok(Some(storage));
    }
    let mut wrong = None;
    for key in configured.into_iter().chain(kept.as_ref()) {
        match SecretStorage::open(homeserver, user_id, key).await {
            Ok(storage) => return keep_up(engine, storage, configured, key, &secrets).await.map(Some),
            Err(error @ RecoveryError::Crypto(_)) => return Err(error),
            Err(error) => wrong = Some(error),
        }
    }
    tracing::error!(account.user_id = %user_id,
        error = wrong.as_ref().map(|error| error as &dyn std::error::Error),
        "the bot's secret storage was made with another recovery key: as things are, a lost database cannot \
         be brought back; set recovery.key (COUCOU_RECOVERY_KEY) to the key that it was made with");
    Ok(None)
}

/// Brings a secret storage that `key` opened up to date, or in the place of it makes one that the configured
/// key opens.
async fn keep_up(
    engine: &Engine,
    storage: SecretStorage,
    configured: Option<&RecoveryKey>,
    key: &RecoveryKey,
    secrets: &[(SecretName, Zeroizing<String>)],
) -> Result<SecretStorage, RecoveryError> {
    let (homeserver, user_id) = (&engine.homeserver, &engine.account().user_id);
    if let Some(wanted) = configured.filter(|wanted| wanted.text() != key.text()) {
        let mut secrets: Vec<_> = secrets.iter().map(|(name, text)| (name.clone(), text.clone())).collect();
        if let Some(backup) = storage.get(&SecretName::RecoveryKey).await? {
            secrets.retain(|(name, _)| *name != SecretName::RecoveryKey);
            secrets.push((SecretName::RecoveryKey, backup));
        }
        let storage = SecretStorage::create(homeserver, user_id, wanted, &secrets).await?;
        engine.keep_recovery_key(wanted, false).await?;
        tracing::warn!(account.user_id = %user_id,
            "the recovery key was changed to the one of recovery.key; the one before opens nothing any more");
        return Ok(storage);
    }
    for (name, secret) in secrets {
        storage.put(name, secret).await?;
    }
    engine.keep_recovery_key(key, configured.is_none()).await?;
    Ok(storage)
}

/// The secrets of a storage as the SDK takes them.
async fn private_identity(
    storage: &SecretStorage,
    names: &[SecretName],
) -> Result<CrossSigningKeyExport, RecoveryError> {
    let mut export = CrossSigningKeyExport::default();
    for name in names {
        let secret = Some(storage.need(name).await?.to_string());
        match name {
            SecretName::CrossSigningMasterKey => export.master_key = secret,
            SecretName::CrossSigningSelfSigningKey => export.self_signing_key = secret,
            _ => export.user_signing_key = secret,
        }
    }
    Ok(export)
}

fn copy(export: &CrossSigningKeyExport) -> CrossSigningKeyExport {
    let mut copy = CrossSigningKeyExport::default();
    copy.master_key.clone_from(&export.master_key);
    copy.self_signing_key.clone_from(&export.self_signing_key);
    copy.user_signing_key.clone_from(&export.user_signing_key);
    copy
}

fn import_failed(user_id: &UserId, error: &SecretImportError) -> RecoveryError {
    RecoveryError::Unusable(match error {
        SecretImportError::MismatchedPublicKeys { .. } => format!(
            "the keys in the secret storage of {user_id} are not those of its cross-signing identity, which \
             was replaced since"
        ),
        _ => format!("the cross-signing keys in the secret storage of {user_id} cannot be used"),
    })
}

/// A machine in memory that knows a user's public identity and these private keys of it, which must fit. It
/// has a device of its own that nobody hears of.
async fn checked_machine(
    homeserver: &Homeserver,
    user_id: &UserId,
    export: CrossSigningKeyExport,
) -> Result<OlmMachine, RecoveryError> {
    let device_id: OwnedDeviceId = "NOBODY".into();
    let machine = OlmMachine::new(user_id, &device_id).await;
    let (id, request) = machine.query_keys_for_users([user_id]);
    let mut query = get_keys::v3::Request::new();
    query.device_keys = request.device_keys;
    let mut response = homeserver.send(&Identity::user(user_id), query).await?;
    // The homeserver cannot know the machine's own device, and the machine would warn that it was deleted.
    if let Some(own) = machine.get_device(user_id, &device_id, None).await? {
        let keys = Raw::new(own.as_device_keys()).map_err(matrix_sdk_crypto::OlmError::from);
        let keys = keys.map_err(CryptoError::from)?.cast_unchecked();
        response.device_keys.entry(user_id.to_owned()).or_default().insert(device_id, keys);
    }
    machine.mark_request_as_sent(&id, &response).await.map_err(CryptoError::from)?;
    if machine.get_identity(user_id, None).await?.is_none() {
        return Err(RecoveryError::Unusable(format!("{user_id} has no cross-signing identity any more")));
    }
    let imported = machine.import_cross_signing_keys(export).await;
    imported.map_err(|error| import_failed(user_id, &error))?;
    Ok(machine)
}

/// Signs coucou's device on the owner's account with the owner's self-signing key, unless it is signed;
/// answers whether it was now. The key is not kept.
///
/// # Errors
/// When the secret storage does not hold the key, or the homeserver fails or refuses the signature.
pub async fn sign_owners_device(engine: &Engine, storage: &SecretStorage) -> Result<bool, RecoveryError> {
    let account = engine.account();
    engine.query_own_keys().await?;
    let known = engine.machine.get_device(&account.user_id, &account.device_id, None).await?;
    if known.is_some_and(|device| device.is_cross_signed_by_owner()) {
        return Ok(false);
    }
    let names = [SecretName::CrossSigningSelfSigningKey];
    let export = private_identity(storage, &names).await?;
    let machine = checked_machine(&engine.homeserver, &account.user_id, export).await?;
    let device = machine.get_device(&account.user_id, &account.device_id, None).await?;
    let ours = engine.machine.identity_keys();
    let device = device.filter(|device| {
        device.ed25519_key() == Some(ours.ed25519) && device.curve25519_key() == Some(ours.curve25519)
    });
    let Some(device) = device else {
        return Err(RecoveryError::Unusable(format!(
            "the homeserver does not show coucou's device on {} as it is",
            account.user_id
        )));
    };
    if device.is_cross_signed_by_owner() {
        return Ok(false);
    }
    let signed = device.verify().await;
    let request = signed.map_err(|_| RecoveryError::Unusable("the device cannot be signed".to_owned()))?;
    let answer = engine.homeserver.send(&Identity::user(&account.user_id), request).await?;
    if !answer.failures.is_empty() {
        return Err(RecoveryError::Unusable("the homeserver refuses the device's signature".to_owned()));
    }
    engine.query_own_keys().await?;
    Ok(true)
}

/// The backup that a user's secret storage has the key of, if there is one.
///
/// # Errors
/// When the homeserver fails.
pub async fn backup_of(engine: &Engine, storage: &SecretStorage) -> Result<Option<KeyBackup>, RecoveryError> {
    let Some(text) = storage.get(&SecretName::RecoveryKey).await? else { return Ok(None) };
    let key = backup::backup_key(&text)?;
    Ok(KeyBackup::find(&engine.homeserver, &engine.account().user_id, key).await?)
}

impl Engine {
    /// The recovery key as the store keeps it.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn kept_recovery_key(&self) -> Result<Option<RecoveryKey>, CryptoError> {
        Ok(recovery_key::find(&self.whole, self.account().id).await?)
    }

    /// Keeps a note of the application's beside the keys, sealed like them.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn keep_note(&self, name: &str, text: &str) -> Result<(), CryptoError> {
        Ok(self.machine.store().set_custom_value(name, text.as_bytes().to_vec()).await?)
    }

    /// Whether coucou made the recovery key and no one has printed it, so that it is in this database alone.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn must_write_down_recovery_key(&self) -> Result<bool, CryptoError> {
        let holder = recovery_key::holder(&self.whole, self.account().id).await?;
        Ok(holder == Some(RecoveryKeyHolder::NobodyElse))
    }

    async fn made_recovery_key(&self) -> Result<bool, CryptoError> {
        Ok(self.machine.store().get_custom_value(MADE_HERE).await?.is_some())
    }

    async fn make_recovery_key(&self) -> Result<RecoveryKey, RecoveryError> {
        let made = SecretString::from(BackupDecryptionKey::new().to_base58());
        self.machine.store().set_custom_value(MADE_HERE, vec![1]).await?;
        Ok(RecoveryKey::parse(made.expose_secret())?)
    }

    async fn keep_recovery_key(&self, key: &RecoveryKey, is_own: bool) -> Result<(), CryptoError> {
        let store = self.machine.store();
        if self.kept_recovery_key().await?.is_none_or(|kept| kept.text() != key.text()) {
            store.set_custom_value(KEPT_KEY, key.text().as_bytes().to_vec()).await?;
        }
        if !is_own && self.made_recovery_key().await? {
            store.remove_custom_value(MADE_HERE).await?;
        }
        Ok(())
    }

    /// The identity's private keys, and the backup's if there is one.
    async fn secrets(&self) -> Result<Vec<(SecretName, Zeroizing<String>)>, RecoveryError> {
        let mut secrets = Vec::new();
        let names = CROSS_SIGNING.into_iter().chain([SecretName::RecoveryKey]);
        for name in names {
            if let Some(secret) = self.machine.store().export_secret(&name).await? {
                secrets.push((name, Zeroizing::new(secret)));
            }
        }
        Ok(secrets)
    }

    /// Whether the account's identity is published, so that it can be kept recoverable.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn is_set_up(&self) -> Result<bool, CryptoError> {
        self.has_published_identity().await
    }

    /// Whether this store has no identity of the account's, while the homeserver has one that a recovery key
    /// brings back.
    ///
    /// # Errors
    /// When the homeserver or the store fails.
    pub async fn wants_restore(&self) -> Result<bool, CryptoError> {
        if self.has_published_identity().await? || self.machine.cross_signing_status().await.has_master {
            return Ok(false);
        }
        Ok(SecretStorage::is_there(&self.homeserver, &self.account().user_id).await?)
    }
}
