//! One account's [`OlmMachine`]: what it takes in, what it decrypts.
//!
//! An engine is made by whoever holds the crypto lease and dropped with it. After an error of the store the
//! machine in memory is ahead of what is stored and would lose keys: its owner drops it and loads a new one.
//! Everything it does can be done twice: the same room key again changes nothing, and decrypting has no
//! effect but an advanced ratchet in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use matrix_sdk_common::deserialized_responses::{
    AlgorithmInfo, DeviceLinkProblem, EncryptionInfo, VerificationLevel, VerificationState, WithheldCode,
};
use matrix_sdk_crypto::{
    CryptoStoreError, DecryptionSettings, EncryptionSyncChanges, OlmError, OlmMachine, TrustRequirement,
    olm::SenderData, store::CryptoStore as _, vodozemac::Curve25519PublicKey,
};
use ruma::{
    OneTimeKeyAlgorithm, OwnedRoomId, OwnedUserId, RoomId, api::client::sync::sync_events::DeviceLists,
    events::AnyToDeviceEvent, serde::Raw,
};
use serde_json::value::RawValue;

use super::claims::Claim;
use super::encrypted::Encrypted;
use super::one_time_keys::{KeyStock, for_the_sdk};
use super::store::{AccountStore, Hidden, hold_back, observe, passes, store_error, watch};
use super::unwedge::Wedged;
use crate::{
    clock::SharedClock,
    homeserver::{Homeserver, Identity},
    model::{Account, Trust, json::EventBody, ledger::Malformed},
    store::{Lease, Store, StoreError},
};

/// What can go wrong with an engine.
#[derive(Debug, thiserror::Error)]
pub enum CryptoError {
    /// The crypto store failed: drop the engine and load a new one.
    #[error("the crypto store failed")]
    Store(#[source] CryptoStoreError),
    /// It failed without the machine's saying so, with the same consequence.
    #[error("the crypto store failed within the crypto machine: {}", .0.error)]
    Hidden(Hidden),
    /// Our own store failed, with the same consequence.
    #[error("the store failed")]
    Database(#[from] StoreError),
    /// The machine refused what it was given.
    #[error("the crypto machine failed")]
    Machine(#[source] OlmError),
    /// The homeserver could not be reached or refused.
    #[error("the homeserver failed")]
    Homeserver(#[from] crate::homeserver::HomeserverError),
    /// A task of this process panicked or was cut off.
    #[error("a task ended early")]
    Task(#[from] tokio::task::JoinError),
    /// The start is refused until a person has acted; the text says how.
    #[error("{0}")]
    Refused(String),
}

impl From<CryptoStoreError> for CryptoError {
    fn from(error: CryptoStoreError) -> Self {
        Self::Store(error)
    }
}

impl From<OlmError> for CryptoError {
    fn from(error: OlmError) -> Self {
        match error {
            OlmError::Store(error) => Self::Store(error),
            other => Self::Machine(other),
        }
    }
}

impl CryptoError {
    /// Whether the same can succeed later without anybody's doing: the database or the homeserver was away,
    /// or another process has taken over.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Store(error) => store_error(error).is_some_and(passes),
            Self::Hidden(hidden) => hidden.is_transient,
            Self::Database(error) => passes(error),
            Self::Homeserver(_) => true,
            Self::Machine(_) | Self::Task(_) | Self::Refused(_) => false,
        }
    }

    /// Whether the machine may be ahead of the store, so that it must be dropped.
    #[must_use]
    pub fn is_of_the_store(&self) -> bool {
        matches!(self, Self::Store(_) | Self::Hidden(_) | Self::Database(_))
    }
}

impl CryptoError {
    /// Whether there is nothing to wait for: the machine must be dropped, or a person must act.
    #[must_use]
    pub fn ends_the_term(&self) -> bool {
        self.is_of_the_store() || matches!(self, Self::Refused(_))
    }
}

/// What a push or a page of the key lane tells one device.
#[derive(Debug, Default)]
pub struct Changes {
    /// To-device messages for this device, in order.
    pub to_device: Vec<Box<RawValue>>,
    /// Users whose device lists changed.
    pub changed: Vec<OwnedUserId>,
    /// One-time keys left on the homeserver; empty when it did not say.
    pub one_time_key_counts: BTreeMap<String, u64>,
    /// Algorithms that have an unused fallback key; `None` when the homeserver did not say.
    pub unused_fallback_keys: Option<Vec<String>>,
}

impl Changes {
    /// Whether there is nothing to take in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.to_device.is_empty()
            && self.changed.is_empty()
            && self.one_time_key_counts.is_empty()
            && self.unused_fallback_keys.is_none()
    }
}

/// A room key that was taken in.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoomKey {
    /// The room it is for.
    pub room_id: OwnedRoomId,
    /// Its Megolm session.
    pub session_id: String,
}

/// An event that was decrypted.
#[derive(Debug)]
pub struct Clear {
    /// What it says.
    pub body: EventBody,
    /// The algorithm it was encrypted with.
    pub algorithm: &'static str,
    /// What the SDK says of its sender; the bridge rule comes after ([`super::trust`]).
    pub trust: Trust,
    /// Who owns the device that made the session, when that is known.
    pub session_owner: Option<OwnedUserId>,
    /// That device, when it is known.
    pub device: Option<SessionDevice>,
    /// All claims to the session, where that owner alone does not explain the sender.
    pub claims: Vec<Claim>,
}

/// The device that made a Megolm session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionDevice {
    /// Its id.
    pub device_id: String,
    /// Its Curve25519 key, base64.
    pub identity_key: String,
    /// The master key of the identity that signed it, base64.
    pub master_key: Option<String>,
}

/// What came of an attempt to decrypt.
#[derive(Debug)]
pub enum Decrypted {
    /// It worked.
    Clear(Box<Clear>),
    /// The key has not come yet.
    AwaitingKey,
    /// The key does not reach back to this message.
    UnknownIndex,
    /// The sender told that it withholds the key; the code of `m.room_key.withheld`.
    Withheld(String),
    /// There is no key for this room, but its session is known: it belongs to another room.
    OtherRoom,
    /// The algorithm is not one that this version can decrypt.
    UnsupportedAlgorithm,
    /// The ciphertext is damaged or was not made with this session.
    BadCiphertext,
    /// The event is not what an encrypted one must be, or what came out is no event of this room.
    Malformed(Malformed),
}

/// One account's crypto.
#[derive(Clone)]
pub struct Engine {
    account: Account,
    pub(super) machine: OlmMachine,
    pub(super) store: Arc<AccountStore>,
    pub(super) homeserver: Homeserver,
    pub(super) identity: Identity,
    /// The whole store, for what is ours beside the machine's.
    pub(super) whole: Store,
    pub(super) lease: Lease,
    pub(super) clock: SharedClock,
    /// Devices whose Olm sessions with us do not open any more.
    pub(super) wedged: Wedged,
    /// The one-time keys that the homeserver holds.
    pub(super) key_stock: KeyStock,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("account", &self.account).finish_non_exhaustive()
    }
}

impl Engine {
    /// Loads an account's machine, making its keys when there are none yet.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn load(
        account: Account,
        store: Store,
        lease: Lease,
        homeserver: Homeserver,
        clock: SharedClock,
    ) -> Result<Self, CryptoError> {
        let whole = store.clone();
        let store =
            Arc::new(AccountStore::new(store, account.id, Some(lease.clone()), SharedClock::clone(&clock)));
        let (user_id, device_id) = (&account.user_id, &account.device_id);
        let machine = OlmMachine::with_store(user_id, device_id, Arc::clone(&store), None).await?;
        let identity = Identity { user_id: user_id.clone(), device_id: Some(device_id.clone()) };
        Ok(Self {
            account,
            machine,
            store,
            homeserver,
            identity,
            whole,
            lease,
            clock,
            wedged: Wedged::default(),
            key_stock: KeyStock::default(),
        })
    }

    /// The account.
    #[must_use]
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// Takes in what the homeserver told the device: messages first, then device lists and key counts.
    /// Answers the room keys that are new or better now.
    ///
    /// # Errors
    /// When the store fails: nothing of the changes is then certain, and they must come again.
    pub async fn receive(&self, changes: Changes) -> Result<Vec<RoomKey>, CryptoError> {
        // Before the machine: it advances what the copies are made of, and wipes keys that it does not take.
        let forwards = self.take_forwards(&changes.to_device).await?;
        self.note_new_sessions(&changes.to_device);
        let to_device = changes.to_device.into_iter().map(Raw::<AnyToDeviceEvent>::from_json).collect();
        let mut lists = DeviceLists::new();
        lists.changed = changes.changed;
        let counts = for_the_sdk(&changes.one_time_key_counts);
        let fallback: Option<Vec<OneTimeKeyAlgorithm>> =
            changes.unused_fallback_keys.map(|names| names.into_iter().map(Into::into).collect());
        let changes = EncryptionSyncChanges {
            to_device_events: to_device,
            changed_devices: &lists,
            one_time_keys_counts: &counts,
            unused_fallback_keys: fallback.as_deref(),
            next_batch_token: None,
        };
        let settings = settings();
        let work = Box::pin(watched(self.machine.receive_sync_changes(changes, &settings)));
        let ((received, before), early) = hold_back(observe(work)).await;
        let (processed, keys) = received?;
        self.store.save_changes(early).await.map_err(CryptoStoreError::from)?;
        let mut keys: Vec<_> = keys
            .into_iter()
            .map(|key| RoomKey { room_id: key.room_id, session_id: key.session_id })
            .collect();
        self.count_forwards(&forwards, &processed, &keys).await?;
        self.note_wedged(&processed).await?;
        keys.extend(self.note_claims(&before, &processed).await?);
        keys.extend(forwards.taken);
        keys.sort();
        keys.dedup();
        Ok(keys)
    }

    /// Has the sessions at hand that are needed next, as far as they are stored.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn expect(&self, sessions: &[&RoomKey]) -> Result<(), CryptoError> {
        let sessions: Vec<_> = sessions.iter().map(|key| (&*key.room_id, &*key.session_id)).collect();
        Ok(self.store.load_inbound_group_sessions(&sessions).await.map_err(CryptoStoreError::from)?)
    }

    /// Decrypts an `m.room.encrypted` event, which names this session.
    ///
    /// # Errors
    /// When the store fails. Everything that is wrong with the event is an outcome.
    pub async fn decrypt(&self, key: &RoomKey, event: &Encrypted) -> Result<Decrypted, CryptoError> {
        match self.try_decrypt(&key.room_id, event).await? {
            // Another process may have stored a better key than the one in the cache.
            Decrypted::UnknownIndex => {
                self.store.reload_session(&key.room_id, &key.session_id);
                self.try_decrypt(&key.room_id, event).await
            }
            decrypted => Ok(decrypted),
        }
    }

    /// Judges who said what was decrypted.
    pub(super) async fn clear(
        &self,
        room_id: &RoomId,
        info: &EncryptionInfo,
        body: EventBody,
    ) -> Result<Clear, CryptoError> {
        let algorithm = match info.algorithm_info {
            AlgorithmInfo::MegolmV1AesSha2 { .. } => "m.megolm.v1.aes-sha2",
            AlgorithmInfo::OlmV1Curve25519AesSha2 { .. } => "m.olm.v1.curve25519-aes-sha2",
        };
        // Comes from the cache that the decryption has just filled.
        let session = match info.session_id() {
            Some(session_id) => self
                .store
                .shared_inbound_group_session(room_id, session_id)
                .await
                .map_err(CryptoStoreError::from)?,
            None => None,
        };
        let trust = match &info.verification_state {
            VerificationState::Verified => Trust::Verified,
            VerificationState::Unverified(VerificationLevel::UnverifiedIdentity) => Trust::CrossSigned,
            VerificationState::Unverified(VerificationLevel::MismatchedSender) => Trust::MismatchedSender,
            VerificationState::Unverified(VerificationLevel::None(DeviceLinkProblem::InsecureSource)) => {
                Trust::Imported
            }
            VerificationState::Unverified(VerificationLevel::None(_)) => Trust::UnknownDevice,
            VerificationState::Unverified(
                VerificationLevel::UnsignedDevice | VerificationLevel::VerificationViolation,
            ) => Trust::Unverified,
        };
        let claims = Vec::new();
        let mut clear = Clear { body, algorithm, trust, session_owner: None, device: None, claims };
        match session {
            // The SDK finds the sender's device for the keys that an import claims, which proves nothing. Another
            // maker than the sender was noted when the maker itself forwarded the key.
            Some(session) if session.has_been_imported() => {
                clear.session_owner = owner(&session.sender_data).filter(|owner| *owner != info.sender);
                if clear.session_owner.is_none() {
                    clear.trust = Trust::Imported;
                }
            }
            Some(session) => {
                if is_disowned(&session.sender_data) {
                    clear.trust = Trust::MismatchedSender;
                }
                clear.session_owner = owner(&session.sender_data);
                clear.device = session_device(&session.sender_data, session.sender_key());
            }
            None => {}
        }
        Ok(clear)
    }

    /// Why a key is not there, when the sender has said so: the code of `m.room_key.withheld`.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn withheld(&self, room_id: &RoomId, session_id: &str) -> Result<Option<String>, CryptoError> {
        let entry = self.machine.store().get_withheld_info(room_id, session_id).await?;
        Ok(entry.map(|entry| code_name(&entry.content.withheld_code())))
    }

    /// Follows the devices of users from now on.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn track(&self, users: &BTreeSet<OwnedUserId>) -> Result<(), CryptoError> {
        let users: Vec<&ruma::UserId> = users.iter().map(|user| &**user).collect();
        self.machine.update_tracked_users(users).await?;
        Ok(())
    }

    /// Asks for the devices of all followed users anew, with the next outgoing requests.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn refresh_devices(&self) -> Result<(), CryptoError> {
        Ok(self.machine.mark_all_tracked_users_as_dirty().await?)
    }

    /// Forgets room keys of rooms that are not relayed.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn forget_keys(&self, keys: &[RoomKey]) -> Result<(), CryptoError> {
        let keys: Vec<_> = keys.iter().map(|key| (key.room_id.clone(), key.session_id.clone())).collect();
        self.store.delete_inbound_group_sessions(&keys).await.map_err(CryptoStoreError::from)?;
        Ok(())
    }

    /// Forgets all room keys of a room that is not relayed.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn forget_room(&self, room_id: &RoomId) -> Result<u64, CryptoError> {
        Ok(self.store.delete_inbound_group_sessions_of_room(room_id).await.map_err(CryptoStoreError::from)?)
    }
}

/// What the machine does, failed when its store failed in it, whatever the machine makes of that.
pub(super) async fn watched<T>(work: impl Future<Output = Result<T, OlmError>>) -> Result<T, CryptoError> {
    match watch(work).await {
        (Ok(_), Some(hidden)) => Err(CryptoError::Hidden(hidden)),
        (result, _) => Ok(result?),
    }
}

/// An error of our own store, as the SDK would report it.
pub(super) fn of_store(error: super::store::AccountStoreError) -> CryptoError {
    CryptoStoreError::from(error).into()
}

/// The code of an `m.room_key.withheld`, which is any text that its sender likes.
pub(super) fn code_name(code: &WithheldCode) -> String {
    code.as_str().chars().filter(char::is_ascii_graphic).take(64).collect()
}

/// Whose device made a session, when that is proven.
pub(super) fn owner(sender: &SenderData) -> Option<OwnedUserId> {
    match sender {
        SenderData::UnknownDevice { .. } => None,
        SenderData::DeviceInfo { device_keys, .. } => Some(device_keys.user_id.clone()),
        SenderData::VerificationViolation(known)
        | SenderData::SenderUnverified(known)
        | SenderData::SenderVerified(known) => Some(known.user_id.clone()),
    }
}

/// Whether the device that gave the key is known and did not make the session.
fn is_disowned(sender: &SenderData) -> bool {
    matches!(sender, SenderData::UnknownDevice { owner_check_failed: true, .. })
}

/// The device that made a session, when that is proven.
pub(super) fn session_device(sender: &SenderData, sender_key: Curve25519PublicKey) -> Option<SessionDevice> {
    let (device_id, master_key) = match sender {
        SenderData::UnknownDevice { .. } => return None,
        SenderData::DeviceInfo { device_keys, .. } => (device_keys.device_id.clone(), None),
        SenderData::VerificationViolation(known)
        | SenderData::SenderUnverified(known)
        | SenderData::SenderVerified(known) => (known.device_id.clone()?, Some(known.master_key.to_base64())),
    };
    // What a device calls itself is stored and logged: no more than a name.
    let device_id = device_id.as_str().chars().filter(char::is_ascii_graphic).take(64).collect();
    Some(SessionDevice { device_id, identity_key: sender_key.to_base64(), master_key })
}

/// Bridges encrypt for their ghosts, which every stricter requirement refuses; coucou judges afterwards.
pub(super) fn settings() -> DecryptionSettings {
    DecryptionSettings { sender_device_trust_requirement: TrustRequirement::Untrusted }
}
