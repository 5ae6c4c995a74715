//! The [`CryptoStore`](matrix_sdk_crypto::store::CryptoStore) of one account: matrix-sdk-crypto's state in our database.
//!
//! Every save is one transaction: after a crash all of it is there or none. Given a [`Lease`], each
//! transaction first makes sure that the lease is still held, so a process that was superseded cannot write.
//!
//! A bounded cache answers what decryption asks for every event; see `cache.rs` for why it is never stale.
//!
//! After a failed save the SDK's state in memory is ahead of the database: whoever sees the error drops the
//! `OlmMachine` and loads a new one. Calls into the machine must not happen inside an open transaction on the
//! same store: the machine's own transaction would wait for it, and it for the machine.

mod before;
mod cache;
mod codec;
mod early;
mod error;
#[cfg(test)]
mod machine;
mod methods;
mod save;
#[cfg(test)]
mod suite;
#[cfg(test)]
mod tests;
mod twice;

use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use matrix_sdk_crypto::{
    DeviceData,
    olm::{InboundGroupSession, StaticAccountData},
    store::CryptoStore as _,
};
use ruma::{OwnedRoomId, RoomId, UserId};
use tokio::sync::{Mutex, MutexGuard};

pub use before::{Before, observe};
pub use early::hold_back;
pub use error::{AccountStoreError, Hidden, passes, store_error, watch};

use self::{
    cache::{Cache, Devices, PendingWrite},
    save::Batch,
};
use crate::{
    clock::SharedClock,
    model::AccountId,
    store::{
        Db, Lease, Store, Tx,
        crypto::{Key, Scope, inbound, users},
        leases,
    },
};

/// The identity keys of an account's device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnKeys {
    /// The Curve25519 key, base64.
    pub curve25519: String,
    /// The Ed25519 key, base64.
    pub ed25519: String,
}

/// Reads the identity keys that a store has for an account's device; `None` before they were made.
///
/// # Errors
/// When the store fails.
pub async fn own_keys(store: &Store, account: AccountId, clock: SharedClock) -> Result<Option<OwnKeys>> {
    let account = AccountStore::new(store.clone(), account, None, clock).load_account().await?;
    Ok(account.map(|account| {
        let keys = account.static_data().identity_keys();
        OwnKeys { curve25519: keys.curve25519.to_base64(), ed25519: keys.ed25519.to_base64() }
    }))
}

type Result<T, E = AccountStoreError> = std::result::Result<T, E>;

/// The crypto store of one account.
pub struct AccountStore {
    store: Store,
    account: AccountId,
    lease: Option<Lease>,
    clock: SharedClock,
    /// What never changes of the Olm account, once it is known.
    own: RwLock<Option<StaticAccountData>>,
    /// Saves happen one after the other: objects are pickled in the order in which they are written.
    writes: Mutex<()>,
    cache: Cache,
    closed: AtomicBool,
}

impl fmt::Debug for AccountStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccountStore").field("account", &self.account).finish_non_exhaustive()
    }
}

/// A transaction of one account, in its turn.
struct Write<'a> {
    tx: Tx,
    pending: PendingWrite<'a>,
    _turn: MutexGuard<'a, ()>,
}

impl Write<'_> {
    /// Commits, then brings the cache up to date.
    async fn commit(self, update: impl FnOnce(&Cache)) -> Result<()> {
        self.tx.commit().await?;
        self.pending.committed(update);
        Ok(())
    }
}

impl AccountStore {
    /// The crypto store of `account`, which must be in the accounts table. Given a lease, it writes only as
    /// long as that is held; without one, nothing else may write for this account.
    #[must_use]
    pub fn new(store: Store, account: AccountId, lease: Option<Lease>, clock: SharedClock) -> Self {
        Self {
            store,
            account,
            lease,
            clock,
            own: RwLock::default(),
            writes: Mutex::default(),
            cache: Cache::new(),
            closed: AtomicBool::new(false),
        }
    }

    /// What never changes of the Olm account; `None` before it was saved or loaded.
    #[must_use]
    pub fn get_static_account(&self) -> Option<StaticAccountData> {
        self.own.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_static_account(&self, account: StaticAccountData) {
        *self.own.write().unwrap_or_else(PoisonError::into_inner) = Some(account);
    }

    async fn static_account(&self) -> Result<StaticAccountData> {
        if let Some(account) = self.get_static_account() {
            return Ok(account);
        }
        let account = self.load_account().await?.ok_or(AccountStoreError::AccountUnset)?;
        Ok(account.static_data().clone())
    }

    fn open(&self) -> Result<()> {
        if self.closed.load(Ordering::SeqCst) { Err(AccountStoreError::Closed) } else { Ok(()) }
    }

    fn read(&self) -> Result<(&Db, Scope<'_>)> {
        self.open()?;
        Ok((self.store.db(), self.scope()?))
    }

    fn scope(&self) -> Result<Scope<'_>> {
        Ok(Scope::new(self.store.seal()?, self.account))
    }

    /// Takes the turn to write. Objects that are going to be saved are pickled after this.
    async fn turn(&self) -> MutexGuard<'_, ()> {
        self.writes.lock().await
    }

    async fn begin<'a>(&'a self, turn: MutexGuard<'a, ()>) -> Result<Write<'a>> {
        self.open()?;
        error::refuse_after_failure()?;
        let pending = self.cache.begin_write();
        let mut tx = self.store.begin().await?;
        if let Some(lease) = &self.lease {
            leases::check(&mut tx, lease).await?;
        }
        Ok(Write { tx, pending, _turn: turn })
    }

    /// Deletes every room key of a room and answers how many there were.
    ///
    /// # Errors
    /// When the database fails or the lease is lost.
    pub async fn delete_inbound_group_sessions_of_room(&self, room_id: &RoomId) -> Result<u64> {
        let mut write = self.begin(self.turn().await).await?;
        let deleted = inbound::delete_of_room(&mut write.tx, &self.scope()?, room_id.as_str()).await?;
        write.commit(|cache| cache.remove_sessions_of_room(room_id)).await?;
        Ok(deleted)
    }

    /// Deletes room keys, named by (room id, session id), and answers how many there were.
    ///
    /// # Errors
    /// When the database fails or the lease is lost.
    pub async fn delete_inbound_group_sessions(&self, sessions: &[(OwnedRoomId, String)]) -> Result<u64> {
        if sessions.is_empty() {
            return Ok(0);
        }
        let mut write = self.begin(self.turn().await).await?;
        let keys = sessions.iter().map(|(room_id, id)| Key::of([room_id.as_str(), id])).collect();
        let deleted = inbound::delete(&mut write.tx, &self.scope()?, keys).await?;
        let update = |cache: &Cache| sessions.iter().for_each(|(room, id)| cache.remove_session(room, id));
        write.commit(update).await?;
        Ok(deleted)
    }

    /// A room key to look at, from the cache if it is there.
    ///
    /// # Errors
    /// When the database fails or the key does not open.
    pub async fn shared_inbound_group_session(
        &self,
        room_id: &RoomId,
        session_id: &str,
    ) -> Result<Option<Arc<InboundGroupSession>>> {
        if let Some(session) = self.cache.shared_session(room_id, session_id) {
            return Ok(Some(session));
        }
        Ok(self.get_inbound_group_session(room_id, session_id).await?.map(Arc::new))
    }

    /// Loads room keys that are going to be used and are not in the cache, as far as it can hold them, in one statement.
    ///
    /// # Errors
    /// When the database fails or a key does not open.
    pub async fn load_inbound_group_sessions(&self, wanted: &[(&RoomId, &str)]) -> Result<()> {
        let (db, scope) = self.read()?;
        let ticket = self.cache.ticket();
        let missing = wanted.iter().filter(|(room_id, id)| !self.cache.has_session(room_id, id));
        let missing: BTreeSet<_> =
            missing.map(|(room_id, id)| Key::of([room_id.as_str(), id])).take(cache::SESSIONS / 2).collect();
        // One alone is found as fast when it is needed.
        if missing.len() < 2 {
            return Ok(());
        }
        for found in inbound::find_many(db, &scope, missing).await? {
            self.cache.fill_session(ticket, &codec::inbound_session(&found)?);
        }
        Ok(())
    }

    /// Some room keys by (room id, session id), those after `after`; given a room, those of it alone. Opens a
    /// page at a time, because all of them do not fit into memory.
    ///
    /// # Errors
    /// When the database fails or a key does not open.
    pub async fn page_of_inbound_group_sessions(
        &self,
        room_id: Option<&RoomId>,
        after: Option<&InboundGroupSession>,
        limit: usize,
    ) -> Result<Vec<InboundGroupSession>> {
        let (db, scope) = self.read()?;
        let after = after.map(|session| (session.room_id().as_str(), session.session_id()));
        let found = inbound::page(db, &scope, room_id.map(RoomId::as_str), after, limit).await?;
        found.iter().map(codec::inbound_session).collect()
    }

    /// Some sessions of relayed rooms that the key backup does not have.
    pub(super) async fn relayed_sessions_to_back_up(&self, limit: usize) -> Result<Vec<InboundGroupSession>> {
        let (db, scope) = self.read()?;
        inbound::relayed_to_back_up(db, &scope, limit).await?.iter().map(codec::inbound_session).collect()
    }

    /// How many there are of them.
    pub(super) async fn relayed_sessions_not_backed_up(&self) -> Result<u64> {
        let (db, scope) = self.read()?;
        Ok(inbound::relayed_not_backed_up(db, &scope).await?)
    }

    /// Forgets what the cache has of a session, so that it is read anew: another process may have stored a
    /// better key.
    pub fn reload_session(&self, room_id: &RoomId, session_id: &str) {
        self.cache.remove_session(room_id, session_id);
    }

    /// The devices of a user, from the cache if they are there.
    async fn devices(&self, user_id: &UserId) -> Result<Arc<Devices>> {
        self.open()?;
        if let Some(devices) = self.cache.devices(user_id) {
            return Ok(devices);
        }
        let ticket = self.cache.ticket();
        let (db, scope) = self.read()?;
        let mut devices = Devices::new();
        for plain in users::find_devices(db, &scope, user_id.as_str()).await? {
            let device: DeviceData = codec::from_json("crypto_devices", &plain)?;
            devices.insert(device.device_id().to_owned(), device);
        }
        let devices = Arc::new(devices);
        self.cache.fill_devices(ticket, user_id, devices.clone());
        Ok(devices)
    }

    async fn save(&self, batch: Batch, turn: MutexGuard<'_, ()>) -> Result<()> {
        let mut write = self.begin(turn).await?;
        let touched = batch.write(&mut write.tx, &self.scope()?, self.clock.now()).await?;
        write.commit(|cache| touched.apply(cache)).await
    }
}
