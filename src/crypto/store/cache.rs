//! What decryption asks for with every event, kept in memory.
//!
//! Without it every event costs reads of the session, the sender's devices and two identities, and the
//! session's unpickling. A cached session shares its ratchet with its clones, so that it only ever moves on.
//!
//! **Never stale.** One process writes at a time (the lease), through this store. A write changes the cache
//! after its commit, under the same lock as a counter; what a reader found in the database is kept only if no
//! write ended since the reader began. So a reader that was overtaken keeps nothing. A write that fails, or
//! is dropped half-way, empties the cache, and it stays empty until a write succeeds: whether that commit
//! arrived is unknown until the next one had to wait for it. Room keys alone may be written by another process
//! too, an import for instance, and only ever for better ones: a session that does not reach back far enough is
//! read anew once.

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use matrix_sdk_crypto::{DeviceData, UserIdentityData, olm::InboundGroupSession};
use quick_cache::{Equivalent, sync};
use ruma::{OwnedDeviceId, OwnedRoomId, OwnedUserId, RoomId, UserId};

use crate::metrics::{Lookups, metrics};

/// Sessions kept: about 6 kB each, so 12 MB at most. A bridge uses one per room at a time, and what is missing is loaded
/// for many events at once.
pub(super) const SESSIONS: usize = 2_000;

/// Users whose devices and identity are kept: a few kB each. Ghosts have neither, and cost next to nothing.
const USERS: usize = 5_000;

/// The devices of a user.
pub(super) type Devices = HashMap<OwnedDeviceId, DeviceData>;

#[derive(Clone, Debug, PartialEq, Eq)]
struct SessionKey {
    room_id: OwnedRoomId,
    session_id: String,
}

impl Hash for SessionKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        SessionName(&self.room_id, &self.session_id).hash(state);
    }
}

/// A [`SessionKey`] to look up with.
#[derive(Hash)]
struct SessionName<'a>(&'a RoomId, &'a str);

impl Equivalent<SessionKey> for SessionName<'_> {
    fn equivalent(&self, key: &SessionKey) -> bool {
        self.0 == key.room_id && self.1 == key.session_id
    }
}

/// An identity as it was read. Its flags are shared with every clone, and the SDK sets them before it saves
/// them and asks us what they were before: an entry that was changed under us no longer counts.
#[derive(Clone)]
pub(super) struct Identity {
    /// `None`: the user is known to have none.
    pub(super) identity: Option<UserIdentityData>,
    flags: (bool, bool),
}

fn flags(identity: Option<&UserIdentityData>) -> (bool, bool) {
    match identity {
        Some(UserIdentityData::Own(own)) => (own.is_verified(), own.was_previously_verified()),
        Some(UserIdentityData::Other(other)) => (false, other.was_previously_verified()),
        None => (false, false),
    }
}

/// Whether and since when the cache may be filled.
struct State {
    writes: u64,
    on: bool,
}

/// When a reader began.
#[derive(Clone, Copy)]
pub(super) struct Ticket(u64);

pub(super) struct Cache {
    sessions: sync::Cache<SessionKey, Arc<InboundGroupSession>>,
    devices: sync::Cache<OwnedUserId, Arc<Devices>>,
    identities: sync::Cache<OwnedUserId, Identity>,
    lookups: [Lookups; 3],
    state: Mutex<State>,
}

impl Cache {
    pub(super) fn new() -> Self {
        Self {
            sessions: sync::Cache::new(SESSIONS),
            devices: sync::Cache::new(USERS),
            identities: sync::Cache::new(USERS),
            lookups: ["sessions", "devices", "identities"].map(|cache| metrics().lookups(cache)),
            state: Mutex::new(State { writes: 0, on: true }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Take one before reading what is going to be filled in.
    pub(super) fn ticket(&self) -> Ticket {
        Ticket(self.state().writes)
    }

    fn fill(&self, ticket: Ticket, insert: impl FnOnce()) {
        let state = self.state();
        if state.on && state.writes == ticket.0 {
            insert();
        }
    }

    pub(super) fn session(&self, room_id: &RoomId, session_id: &str) -> Option<InboundGroupSession> {
        let [lookups, ..] = &self.lookups;
        let found = lookups.count(self.shared_session(room_id, session_id));
        found.map(|session| InboundGroupSession::clone(&session))
    }

    /// A session to look at, which counts as no look-up: a copy would copy the keys of its maker's device.
    pub(super) fn shared_session(
        &self,
        room_id: &RoomId,
        session_id: &str,
    ) -> Option<Arc<InboundGroupSession>> {
        self.sessions.get(&SessionName(room_id, session_id))
    }

    /// Whether a session is here, which counts as no look-up.
    pub(super) fn has_session(&self, room_id: &RoomId, session_id: &str) -> bool {
        self.sessions.contains_key(&SessionName(room_id, session_id))
    }

    pub(super) fn fill_session(&self, ticket: Ticket, session: &InboundGroupSession) {
        self.fill(ticket, || self.insert_session(session.clone()));
    }

    pub(super) fn devices(&self, user_id: &UserId) -> Option<Arc<Devices>> {
        let [_, lookups, _] = &self.lookups;
        lookups.count(self.devices.get(user_id))
    }

    pub(super) fn fill_devices(&self, ticket: Ticket, user_id: &UserId, devices: Arc<Devices>) {
        self.fill(ticket, || self.devices.insert(user_id.to_owned(), devices));
    }

    pub(super) fn identity(&self, user_id: &UserId) -> Option<Identity> {
        let fresh = |entry: &Identity| flags(entry.identity.as_ref()) == entry.flags;
        let [.., lookups] = &self.lookups;
        lookups.count(self.identities.get(user_id).filter(fresh))
    }

    pub(super) fn fill_identity(&self, ticket: Ticket, user_id: &UserId, identity: Option<UserIdentityData>) {
        let flags = flags(identity.as_ref());
        self.fill(ticket, || self.identities.insert(user_id.to_owned(), Identity { identity, flags }));
    }

    /// Only in [`PendingWrite::committed`], as all below.
    pub(super) fn insert_session(&self, session: InboundGroupSession) {
        let (room_id, session_id) = (session.room_id().to_owned(), session.session_id().to_owned());
        self.sessions.insert(SessionKey { room_id, session_id }, Arc::new(session));
    }

    pub(super) fn remove_session(&self, room_id: &RoomId, session_id: &str) {
        self.sessions.remove(&SessionName(room_id, session_id));
    }

    pub(super) fn remove_sessions_of_room(&self, room_id: &RoomId) {
        self.sessions.retain(|key, _| key.room_id != room_id);
    }

    pub(super) fn clear_sessions(&self) {
        self.sessions.clear();
    }

    pub(super) fn remove_devices(&self, user_id: &UserId) {
        self.devices.remove(user_id);
    }

    pub(super) fn remove_identity(&self, user_id: &UserId) {
        self.identities.remove(user_id);
    }

    /// Call before a transaction begins.
    pub(super) fn begin_write(&self) -> PendingWrite<'_> {
        PendingWrite { cache: self, committed: false }
    }
}

/// A write whose end the cache has to hear of.
pub(super) struct PendingWrite<'a> {
    cache: &'a Cache,
    committed: bool,
}

impl PendingWrite<'_> {
    /// The write is in the database: `update` makes the cache agree.
    pub(super) fn committed(mut self, update: impl FnOnce(&Cache)) {
        self.committed = true;
        let mut state = self.cache.state();
        state.writes += 1;
        state.on = true;
        update(self.cache);
    }
}

impl Drop for PendingWrite<'_> {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        let mut state = self.cache.state();
        state.writes += 1;
        state.on = false;
        self.cache.sessions.clear();
        self.cache.devices.clear();
        self.cache.identities.clear();
    }
}
