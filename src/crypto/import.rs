//! Room keys that come from elsewhere than from their maker: an export file, or a forward that was accepted.
//!
//! A key never replaces a better one, which is one that begins earlier or whose maker is known; a key whose
//! ratchet does not connect with the one that is there is refused. Importing twice changes nothing.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use matrix_sdk_crypto::{
    olm::{ExportedRoomKey, InboundGroupSession},
    types::EventEncryptionAlgorithm,
    vodozemac::megolm::{self, SessionConfig, SessionOrdering},
};

use super::engine::{CryptoError, Engine, RoomKey};
use crate::{
    clock::SharedClock,
    model::AccountId,
    store::{
        Lease, Store, holders,
        key_imports::{self, Counts},
        leases, rooms,
    },
};

/// How long the figures of an import are kept for a command that does not come back for them.
const KEEP: Duration = Duration::from_hours(24);

/// What came of an import.
#[derive(Debug, Default)]
pub struct Imported {
    /// Sessions that were not known.
    pub new: Vec<RoomKey>,
    /// Known sessions of which an earlier part is here now.
    pub better: Vec<RoomKey>,
    /// Known sessions of which nothing more came.
    pub known: Vec<RoomKey>,
    /// Keys that contradict themselves or what is known.
    pub bad_count: u64,
}

/// The index of a key's first message, when the key is of the session that it names.
#[must_use]
pub fn first_index(key: &ExportedRoomKey) -> Option<u32> {
    if key.algorithm != EventEncryptionAlgorithm::MegolmV1AesSha2 {
        return None;
    }
    let session = megolm::InboundGroupSession::import(&key.session_key, SessionConfig::version_1());
    (session.session_id() == key.session_id).then(|| session.first_known_index())
}

impl Engine {
    /// Takes in room keys.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn import(&self, keys: Vec<ExportedRoomKey>) -> Result<Imported, CryptoError> {
        let mut imported = Imported::default();
        // Of two keys for one session in one call the SDK would keep the last one.
        let mut best = BTreeMap::<RoomKey, (u32, ExportedRoomKey)>::new();
        for key in keys {
            let Some(index) = first_index(&key) else {
                imported.bad_count += 1;
                continue;
            };
            let name = RoomKey { room_id: key.room_id.clone(), session_id: key.session_id.clone() };
            match best.entry(name) {
                std::collections::btree_map::Entry::Occupied(mut known) if index < known.get().0 => {
                    imported.known.push(known.key().clone());
                    known.insert((index, key));
                }
                std::collections::btree_map::Entry::Occupied(known) => {
                    imported.known.push(known.key().clone());
                }
                std::collections::btree_map::Entry::Vacant(free) => {
                    free.insert((index, key));
                }
            }
        }
        let mut wanted = Vec::with_capacity(best.len());
        for (name, (_, key)) in best {
            let known =
                self.machine.store().get_inbound_group_session(&name.room_id, &name.session_id).await?;
            let Some(known) = known else {
                imported.new.push(name);
                wanted.push(key);
                continue;
            };
            let Ok(session) = InboundGroupSession::from_export(&key) else {
                imported.bad_count += 1;
                continue;
            };
            match session.compare_ratchet(&known).await {
                SessionOrdering::Better => {
                    imported.better.push(name);
                    wanted.push(key);
                }
                SessionOrdering::Equal | SessionOrdering::Worse => imported.known.push(name),
                SessionOrdering::Unconnected => imported.bad_count += 1,
            }
        }
        if !wanted.is_empty() {
            self.machine.store().import_exported_room_keys(wanted, |_, _| ()).await?;
        }
        Ok(imported)
    }
}

/// Takes in the next part of an import, and answers whether one waited. For the holder of the lease alone.
///
/// A key goes to the accounts that hold its session, so that what they know of its maker stays; one that
/// nobody holds goes to the account that the part names.
///
/// # Errors
/// When the store fails; the part then waits on.
pub async fn take_part(
    store: &Store,
    engines: &[Engine],
    lease: &Lease,
    clock: &SharedClock,
) -> Result<bool, CryptoError> {
    let Some(part) = key_imports::next(store.db(), store.seal()?).await? else { return Ok(false) };
    let mut counts = Counts::default();
    let keys = part.keys.as_deref().map(serde_json::from_slice::<Vec<ExportedRoomKey>>);
    if let Some(Ok(keys)) = keys {
        let keys = wanted(store, keys, &mut counts).await?;
        for (account_id, keys) in by_account(store, engines, part.account_id, keys).await? {
            let Some(engine) = engines.iter().find(|engine| engine.account().id == account_id) else {
                counts.bad += keys.len() as u64;
                continue;
            };
            let imported = engine.import(keys).await?;
            counts.new += imported.new.len() as u64;
            counts.better += imported.better.len() as u64;
            counts.known += imported.known.len() as u64;
            counts.bad += imported.bad_count;
        }
    } else {
        // Written by a newer version, or damaged: it would be no better the next time.
        tracing::error!(import.part = part.part_id, "a part of an import does not open and is passed over");
    }
    let now = clock.now();
    let mut tx = store.begin().await?;
    leases::check(&mut tx, lease).await?;
    key_imports::take(&mut tx, part.part_id, &counts, now).await?;
    key_imports::prune(&mut tx, now.minus(KEEP)).await?;
    tx.commit().await?;
    tracing::info!(new = counts.new, better = counts.better, known = counts.known, "imported room keys");
    Ok(true)
}

/// Leaves out the keys of rooms that are known not to be relayed.
async fn wanted(
    store: &Store,
    mut keys: Vec<ExportedRoomKey>,
    counts: &mut Counts,
) -> Result<Vec<ExportedRoomKey>, CryptoError> {
    let ids: HashSet<&str> = keys.iter().map(|key| key.room_id.as_str()).collect();
    let ids: Vec<_> = ids.into_iter().collect();
    let unwanted = rooms::not_relayed(store.db(), &ids).await?;
    let count = keys.len();
    keys.retain(|key| !unwanted.contains(key.room_id.as_str()));
    counts.unwanted += (count - keys.len()) as u64;
    Ok(keys)
}

type Shares = BTreeMap<AccountId, Vec<ExportedRoomKey>>;

async fn by_account(
    store: &Store,
    engines: &[Engine],
    otherwise: AccountId,
    keys: Vec<ExportedRoomKey>,
) -> Result<Shares, CryptoError> {
    let places: HashSet<_> = keys.iter().map(|key| (key.room_id.as_str(), &*key.session_id)).collect();
    let accounts = engines.iter().map(|engine| engine.account().id);
    let asked: Vec<_> = accounts
        .flat_map(|account_id| places.iter().map(move |(room, session)| (account_id, *room, *session)))
        .collect();
    let mut held = HashMap::<(String, String), Vec<AccountId>>::new();
    for (account_id, room_id, session_id) in holders::find(store.db(), &asked).await? {
        held.entry((room_id, session_id)).or_default().push(account_id);
    }
    let mut shares = Shares::new();
    for key in keys {
        match held.get(&(key.room_id.to_string(), key.session_id.clone())) {
            Some(holders) => {
                for holder in holders {
                    shares.entry(*holder).or_default().push(copy(&key));
                }
            }
            None => shares.entry(otherwise).or_default().push(key),
        }
    }
    Ok(shares)
}

/// The SDK's key is no `Clone`.
fn copy(key: &ExportedRoomKey) -> ExportedRoomKey {
    ExportedRoomKey {
        algorithm: key.algorithm.clone(),
        room_id: key.room_id.clone(),
        sender_key: key.sender_key,
        session_id: key.session_id.clone(),
        session_key: megolm::InboundGroupSession::import(&key.session_key, SessionConfig::version_1())
            .export_at_first_known_index(),
        sender_claimed_keys: key.sender_claimed_keys.clone(),
        forwarding_curve25519_key_chain: key.forwarding_curve25519_key_chain.clone(),
        shared_history: key.shared_history,
    }
}
