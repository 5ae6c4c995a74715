//! The server-side key backup: room keys on the homeserver, encrypted to a key that it does not have
//! ([spec](https://spec.matrix.org/latest/client-server-api/#server-side-key-backups)).
//!
//! Anybody who knows the public key can put keys into a backup, the homeserver above all, so what comes out of
//! one is taken as imported: it decrypts, but proves nothing of who sent. Keys are put with the sessions
//! marked afterwards: a process that dies in between puts them again, which changes nothing.

use std::collections::BTreeMap;

use matrix_sdk_crypto::{
    backups::MegolmV1BackupKey,
    olm::{BackedUpRoomKey, ExportedRoomKey},
    store::types::BackupDecryptionKey,
    types::RoomKeyBackupInfo,
    vodozemac::megolm::{InboundGroupSession, SessionConfig},
};
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId, api::client::backup::KeyBackupData};
use serde_json::{Value as Json, json};

use super::{
    engine::{CryptoError, Engine, RoomKey},
    secrets::RecoveryError,
};
use crate::homeserver::{BackupVersion, Homeserver, RoomKeys};

/// Keys put in one request.
pub const BATCH: usize = 200;

/// Keys that are fetched in one answer at most; a backup of more is read room by room.
const MOST_AT_ONCE: u64 = 20_000;

/// A backup whose key is known.
#[derive(Debug)]
pub struct KeyBackup {
    homeserver: Homeserver,
    user_id: OwnedUserId,
    version: String,
    count: u64,
    key: BackupDecryptionKey,
    public: MegolmV1BackupKey,
}

/// The keys of a backup, or of a part of one.
#[derive(Default)]
pub struct Fetched {
    /// Those that could be opened.
    pub keys: Vec<ExportedRoomKey>,
    /// How many could not: damaged, or put there by somebody who does not know how.
    pub unreadable: usize,
}

impl std::fmt::Debug for Fetched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (keys, unreadable) = (self.keys.len(), self.unreadable);
        f.debug_struct("Fetched").field("keys", &keys).field("unreadable", &unreadable).finish()
    }
}

impl KeyBackup {
    /// The backup that a user has in use, when `key` is its key.
    ///
    /// # Errors
    /// When the homeserver fails.
    pub async fn find(
        homeserver: &Homeserver,
        user_id: &UserId,
        key: BackupDecryptionKey,
    ) -> Result<Option<Self>, CryptoError> {
        let version = homeserver.backup_version(user_id).await?;
        Ok(version.and_then(|version| Self::open(homeserver, user_id, version, key)))
    }

    /// Opens a backup; `None` when `key` is not its key.
    pub(super) fn open(
        homeserver: &Homeserver,
        user_id: &UserId,
        version: BackupVersion,
        key: BackupDecryptionKey,
    ) -> Option<Self> {
        if !fits(&key, &version) {
            return None;
        }
        let BackupVersion { version, count, .. } = version;
        Some(Self::at(homeserver, user_id, version, count, key))
    }

    pub(super) fn at(
        homeserver: &Homeserver,
        user_id: &UserId,
        version: String,
        count: u64,
        key: BackupDecryptionKey,
    ) -> Self {
        let public = key.megolm_v1_public_key();
        public.set_version(version.clone());
        let (homeserver, user_id) = (homeserver.clone(), user_id.to_owned());
        Self { homeserver, user_id, version, count, key, public }
    }

    /// Which of the user's backups it is.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whose it is.
    #[must_use]
    pub fn user_id(&self) -> &UserId {
        &self.user_id
    }

    /// How many keys it held when it was found.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn key(&self) -> &BackupDecryptionKey {
        &self.key
    }

    /// Everything, when that fits into one answer; else `None`, and it is to be read room by room.
    ///
    /// # Errors
    /// When the homeserver fails.
    pub async fn all(&self) -> Result<Option<Fetched>, CryptoError> {
        if self.count > MOST_AT_ONCE {
            return Ok(None);
        }
        let rooms = self.homeserver.all_room_keys(&self.user_id, &self.version).await?;
        let mut fetched = Fetched::default();
        for (room_id, keys) in rooms {
            match OwnedRoomId::try_from(room_id) {
                Ok(room_id) => self.decrypt(&room_id, keys, &mut fetched),
                Err(_) => fetched.unreadable += keys.len(),
            }
        }
        Ok(Some(fetched))
    }

    /// The keys of one room.
    ///
    /// # Errors
    /// When the homeserver fails.
    pub async fn of_room(&self, room_id: &RoomId) -> Result<Fetched, CryptoError> {
        let keys = self.homeserver.keys_of_room(&self.user_id, &self.version, room_id).await?;
        let mut fetched = Fetched::default();
        self.decrypt(room_id, keys, &mut fetched);
        Ok(fetched)
    }

    /// The key of one session.
    ///
    /// # Errors
    /// When the homeserver fails.
    pub async fn of_session(&self, key: &RoomKey) -> Result<Fetched, CryptoError> {
        let RoomKey { room_id, session_id } = key;
        let data = self.homeserver.key_of_session(&self.user_id, &self.version, room_id, session_id).await?;
        let mut fetched = Fetched::default();
        let keys = data.map(|data| (session_id.clone(), data)).into_iter().collect();
        self.decrypt(room_id, keys, &mut fetched);
        Ok(fetched)
    }

    fn decrypt(&self, room_id: &RoomId, keys: RoomKeys, fetched: &mut Fetched) {
        for (session_id, data) in keys {
            match self.decrypt_one(room_id, session_id, data) {
                Some(key) => fetched.keys.push(key),
                None => fetched.unreadable += 1,
            }
        }
    }

    fn decrypt_one(&self, room_id: &RoomId, session_id: String, data: Json) -> Option<ExportedRoomKey> {
        let data: KeyBackupData = serde_json::from_value(data).ok()?;
        let key: BackedUpRoomKey = self.key.decrypt_session_data(data.session_data).ok()?;
        // The SDK believes the id that the key is filed under.
        let session = InboundGroupSession::import(&key.session_key, SessionConfig::version_1());
        if session.session_id() != session_id {
            return None;
        }
        Some(ExportedRoomKey::from_backed_up_room_key(room_id.to_owned(), session_id, key))
    }

    /// Puts the next keys of relayed rooms that the backup does not have yet; answers how many.
    ///
    /// # Errors
    /// When the homeserver or the store fails; the same keys come again.
    pub async fn put_next(&self, engine: &Engine) -> Result<usize, CryptoError> {
        let sessions =
            engine.store.relayed_sessions_to_back_up(BATCH).await.map_err(super::engine::of_store)?;
        if sessions.is_empty() {
            return Ok(0);
        }
        let mut rooms: BTreeMap<OwnedRoomId, BTreeMap<String, Json>> = BTreeMap::new();
        let mut names = Vec::with_capacity(sessions.len());
        for session in sessions {
            let (room_id, session_id) = (session.room_id().to_owned(), session.session_id().to_owned());
            let data = match self.public.encrypt(session).await {
                Ok(data) => serde_json::to_value(data).map_err(matrix_sdk_crypto::OlmError::from)?,
                // Only a damaged public key fails, and ours was made here.
                Err(_) => continue,
            };
            rooms.entry(room_id.clone()).or_default().insert(session_id.clone(), data);
            names.push((room_id, session_id));
        }
        let rooms: BTreeMap<_, _> =
            rooms.into_iter().map(|(room_id, sessions)| (room_id, json!({ "sessions": sessions }))).collect();
        self.homeserver.put_room_keys(&self.user_id, &self.version, json!({ "rooms": rooms })).await?;
        let named: Vec<_> = names.iter().map(|(room_id, id)| (&**room_id, id.as_str())).collect();
        engine.mark_backed_up(&self.version, &named).await?;
        Ok(names.len())
    }
}

/// Whether a backup is encrypted to this key.
pub(super) fn fits(key: &BackupDecryptionKey, version: &BackupVersion) -> bool {
    let info: Option<RoomKeyBackupInfo> = serde_json::from_value(version.info.clone()).ok();
    info.is_some_and(|info| key.backup_key_matches(&info))
}

/// A backup key as secret storage holds it.
pub(super) fn backup_key(text: &str) -> Result<BackupDecryptionKey, RecoveryError> {
    BackupDecryptionKey::from_base64(text)
        .map_err(|_| RecoveryError::Unusable("the backup key in the secret storage is none".to_owned()))
}

impl Engine {
    /// Takes keys into the store, marked as backed up; answers those that are new or better now.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn import_from_backup(
        &self,
        keys: Vec<ExportedRoomKey>,
        version: &str,
    ) -> Result<Vec<RoomKey>, CryptoError> {
        let imported = self.machine.store().import_room_keys(keys, Some(version), |_, _| {}).await?;
        let rooms = imported.keys.into_iter();
        let keys = rooms.flat_map(|(room_id, senders)| {
            senders
                .into_values()
                .flatten()
                .map(move |session_id| RoomKey { room_id: room_id.clone(), session_id })
        });
        Ok(keys.collect())
    }

    async fn mark_backed_up(&self, version: &str, sessions: &[(&RoomId, &str)]) -> Result<(), CryptoError> {
        use matrix_sdk_crypto::store::CryptoStore;
        let marked = self.store.mark_inbound_group_sessions_as_backed_up(version, sessions).await;
        marked.map_err(super::engine::of_store)
    }

    /// How many keys of relayed rooms the backup does not have yet.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn not_backed_up(&self) -> Result<u64, CryptoError> {
        self.store.relayed_sessions_not_backed_up().await.map_err(super::engine::of_store)
    }

    /// Makes sure that what is marked as backed up is in the backup of that version: another version has
    /// nothing yet.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn back_up_to(&self, version: &str) -> Result<(), CryptoError> {
        use matrix_sdk_crypto::store::CryptoStore;
        const BACKED_UP_TO: &str = "coucou.backed_up_to";
        let store = self.machine.store();
        if store.get_custom_value(BACKED_UP_TO).await?.as_deref() == Some(version.as_bytes()) {
            return Ok(());
        }
        self.store.reset_backup_state().await.map_err(super::engine::of_store)?;
        store.set_custom_value(BACKED_UP_TO, version.as_bytes().to_vec()).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use matrix_sdk_crypto::olm::InboundGroupSession as Session;
    use ruma::{room_id, user_id};
    use secrecy::SecretString;

    use super::*;

    fn backup(key: &BackupDecryptionKey) -> KeyBackup {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = "http://127.0.0.1:9".parse().unwrap();
        let homeserver = Homeserver::new(&url, SecretString::from("token")).unwrap();
        KeyBackup::at(&homeserver, user_id!("@coucou:example.org"), "1".to_owned(), 1, key.clone())
    }

    async fn encrypted(backup: &KeyBackup) -> (String, Json) {
        let group = vodozemac::megolm::GroupSession::new(SessionConfig::version_1());
        let session_key = InboundGroupSession::new(&group.session_key(), SessionConfig::version_1())
            .export_at_first_known_index();
        let exported: ExportedRoomKey = serde_json::from_value(json!({
            "algorithm": "m.megolm.v1.aes-sha2", "room_id": "!room", "session_id": group.session_id(),
            "session_key": session_key.to_base64(), "sender_claimed_keys": {},
            "sender_key": "DeHIg4gwhClxzFYcmNntPNF9YtsdZbmMy8+3kzCMXHA", "forwarding_curve25519_key_chain": [],
        }))
        .unwrap();
        let data = backup.public.encrypt(Session::try_from(&exported).unwrap()).await.unwrap();
        (group.session_id(), serde_json::to_value(data).unwrap())
    }

    #[tokio::test]
    async fn a_key_under_another_sessions_name_is_not_taken() {
        let key = BackupDecryptionKey::new();
        let backup = backup(&key);
        let (session_id, data) = encrypted(&backup).await;
        let keys = RoomKeys::from([
            (session_id.clone(), data.clone()),
            ("another".to_owned(), data),
            ("damaged".to_owned(), json!({"session_data": {}})),
            (encrypted(&self::backup(&BackupDecryptionKey::new())).await.0, encrypted(&backup).await.1),
        ]);
        let mut fetched = Fetched::default();
        backup.decrypt(room_id!("!room"), keys, &mut fetched);
        assert_eq!((fetched.keys.len(), fetched.unreadable), (1, 3));
        assert_eq!(fetched.keys[0].session_id, session_id);
    }

    #[test]
    fn a_backup_of_another_key_is_not_ours() {
        let (ours, other) = (BackupDecryptionKey::new(), BackupDecryptionKey::new());
        let info = serde_json::to_value(ours.to_backup_info()).unwrap();
        let version: BackupVersion = {
            let mut answer = info;
            answer["version"] = json!("1");
            answer["count"] = json!(3);
            serde_json::from_value(answer).unwrap()
        };
        assert_eq!(version.count, 3);
        assert!(fits(&ours, &version) && !fits(&other, &version));
    }
}
