//! Decrypting a batch of events: off the async threads, on all cores, in any order.
//!
//! An event is tried with an account that holds its session; which one that is, one statement tells for the
//! whole batch. Decrypting changes nothing that is stored, so doing it twice is harmless.

use std::{
    collections::{HashMap, HashSet},
    num::NonZero,
    sync::Arc,
    thread::available_parallelism,
};

use quick_cache::sync::Cache;
use ruma::{OwnedEventId, OwnedUserId};
use serde_json::value::RawValue;
use tokio::{runtime::Handle, task::spawn_blocking};

use crate::{
    crypto::{CryptoError, Decrypted, Encrypted, Engine, RoomKey},
    metrics::{Lookups, metrics},
    model::AccountId,
    store::{Store, holders},
};

/// Sessions of which the holder is remembered.
const MOST_HOLDERS: usize = 10_000;

/// Below this many events, handing them to other threads costs more than it saves.
const WORTH_SPREADING: usize = 4;

/// An event to be decrypted.
#[derive(Debug)]
pub(super) struct Sealed {
    /// The event.
    pub event_id: OwnedEventId,
    /// Who sent it.
    pub sender: OwnedUserId,
    /// The session it needs.
    pub key: RoomKey,
    /// The event as it came.
    pub raw: Box<RawValue>,
}

/// Decrypts with whichever account holds the key.
#[derive(Debug)]
pub(super) struct Decrypter {
    store: Store,
    engines: Arc<[Engine]>,
    /// Only what is so: a session that nobody holds may come at any time.
    holders: Cache<RoomKey, AccountId>,
    lookups: Lookups,
}

impl Decrypter {
    /// A decrypter over these accounts, the first that has a key being used.
    #[must_use]
    pub(super) fn new(store: Store, engines: Vec<Engine>) -> Self {
        Self {
            store,
            engines: engines.into(),
            holders: Cache::new(MOST_HOLDERS),
            lookups: metrics().lookups("holders"),
        }
    }

    /// The accounts.
    #[must_use]
    pub(super) fn engines(&self) -> &[Engine] {
        &self.engines
    }

    /// Forgets who holds which key, because some are gone.
    pub(super) fn forget_all(&self) {
        self.holders.clear();
    }

    /// Tries to decrypt all of these events.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) async fn decrypt(
        &self,
        sealed: Vec<Sealed>,
    ) -> Result<HashMap<OwnedEventId, Decrypted>, CryptoError> {
        if sealed.is_empty() {
            return Ok(HashMap::new());
        }
        let holders = self.find_holders(&sealed).await?;
        for engine in &*self.engines {
            let id = engine.account().id;
            let held: Vec<_> = holders.iter().filter(|(_, of)| **of == id).map(|(key, _)| key).collect();
            engine.expect(&held).await?;
        }
        let mut outcomes = HashMap::with_capacity(sealed.len());
        let mut work = Vec::with_capacity(sealed.len());
        let mut keyless = Vec::new();
        for sealed in sealed {
            match holders.get(&sealed.key).and_then(|id| self.place_of(*id)) {
                Some(engine) => work.push((engine, sealed)),
                None => keyless.push((sealed.event_id, sealed.key)),
            }
        }
        self.explain(keyless, &mut outcomes).await?;
        outcomes.extend(spread(work, &self.engines).await?);
        Ok(outcomes)
    }

    /// Why there is no key.
    async fn explain(
        &self,
        keyless: Vec<(OwnedEventId, RoomKey)>,
        outcomes: &mut HashMap<OwnedEventId, Decrypted>,
    ) -> Result<(), CryptoError> {
        let sessions: HashSet<_> =
            keyless.iter().map(|(_, key)| (key.room_id.as_str(), key.session_id.as_str())).collect();
        let sessions: Vec<_> = sessions.into_iter().collect();
        let elsewhere = holders::elsewhere(self.store.db(), &sessions).await?;
        let mut known = HashMap::<RoomKey, Option<String>>::new();
        for (event_id, key) in keyless {
            if elsewhere.contains(&(key.room_id.to_string(), key.session_id.clone())) {
                outcomes.insert(event_id, Decrypted::OtherRoom);
                continue;
            }
            let withheld = if let Some(known) = known.get(&key) {
                known.clone()
            } else {
                let withheld = self.withheld(&key).await?;
                known.insert(key, withheld.clone());
                withheld
            };
            outcomes.insert(event_id, withheld.map_or(Decrypted::AwaitingKey, Decrypted::Withheld));
        }
        Ok(())
    }

    fn place_of(&self, id: AccountId) -> Option<usize> {
        self.engines.iter().position(|engine| engine.account().id == id)
    }

    async fn withheld(&self, key: &RoomKey) -> Result<Option<String>, CryptoError> {
        for engine in &*self.engines {
            if let Some(code) = engine.withheld(&key.room_id, &key.session_id).await? {
                return Ok(Some(code));
            }
        }
        Ok(None)
    }

    async fn find_holders(&self, sealed: &[Sealed]) -> Result<HashMap<RoomKey, AccountId>, CryptoError> {
        let keys: HashSet<&RoomKey> = sealed.iter().map(|sealed| &sealed.key).collect();
        let mut holders = HashMap::with_capacity(keys.len());
        let mut unknown = Vec::new();
        for key in keys {
            match self.lookups.count(self.holders.get(key)) {
                Some(account_id) => {
                    holders.insert(key.clone(), account_id);
                }
                None => unknown.push(key),
            }
        }
        let wanted: Vec<_> = self
            .engines
            .iter()
            .flat_map(|engine| unknown.iter().map(move |key| (engine.account().id, *key)))
            .map(|(account_id, key)| (account_id, key.room_id.as_str(), key.session_id.as_str()))
            .collect();
        let mut found = holders::find(self.store.db(), &wanted).await?;
        // The first account comes first whatever order the database answers in.
        found.sort();
        for (account_id, room_id, session_id) in found {
            let Ok(room_id) = room_id.try_into() else { continue };
            let key = RoomKey { room_id, session_id };
            self.holders.insert(key.clone(), account_id);
            holders.entry(key).or_insert(account_id);
        }
        Ok(holders)
    }
}

/// Events, each with the place of the account whose turn it is.
type Work = Vec<(usize, Sealed)>;

type Outcomes = Vec<(OwnedEventId, Decrypted)>;

/// Decrypts on as many threads as there are cores. Events of one session stay together, as each advances the
/// session's ratchet for the next.
async fn spread(mut work: Work, engines: &Arc<[Engine]>) -> Result<Outcomes, CryptoError> {
    if work.len() < WORTH_SPREADING {
        return run(work, engines).await;
    }
    work.sort_by(|a, b| a.1.key.cmp(&b.1.key));
    let cores = available_parallelism().map_or(1, NonZero::get);
    let share = work.len().div_ceil(cores);
    let mut tasks = Vec::with_capacity(cores);
    while !work.is_empty() {
        let part = work.split_off(work.len().saturating_sub(share));
        let (handle, engines) = (Handle::current(), Arc::clone(engines));
        tasks.push(spawn_blocking(move || handle.block_on(run(part, &engines))));
    }
    let mut outcomes = Vec::new();
    for task in tasks {
        outcomes.extend(task.await??);
    }
    Ok(outcomes)
}

async fn run(work: Work, engines: &[Engine]) -> Result<Outcomes, CryptoError> {
    let mut outcomes = Vec::with_capacity(work.len());
    for (holder, sealed) in work {
        let Sealed { event_id, sender, key, raw } = sealed;
        let Some(engine) = engines.get(holder) else { continue };
        let event = match Encrypted::read(&event_id, &sender, &raw) {
            Ok(event) => event,
            Err(lack) => {
                outcomes.push((event_id, Decrypted::Malformed(lack)));
                continue;
            }
        };
        let mut decrypted = engine.decrypt(&key, &event).await?;
        if matches!(decrypted, Decrypted::UnknownIndex) {
            // Another account may have joined earlier, and have a key that reaches further back.
            for (_, other) in engines.iter().enumerate().filter(|(place, _)| *place != holder) {
                if let clear @ Decrypted::Clear(_) = other.decrypt(&key, &event).await? {
                    decrypted = clear;
                    break;
                }
            }
        }
        outcomes.push((event_id, decrypted));
    }
    Ok(outcomes)
}
