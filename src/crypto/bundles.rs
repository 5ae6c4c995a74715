//! Room keys that come with an invite ([MSC4268](https://github.com/matrix-org/matrix-spec-proposals/pull/4268)).
//!
//! Whoever invites us may upload the keys of what was said before, encrypted, and send where they are over Olm. The SDK
//! stores that; here the file is fetched, decrypted and imported, once we are in the room by that very user's invite and
//! the sender's device is signed by its owner: that is the SDK's rule. The SDK takes a key at its word which session it is
//! of, so each is looked at first: one of another room, or of another session than it names, is left out. What is imported
//! proves nothing of who made it, and has the trust `imported`.
//!
//! What is to be fetched is a row. A process that dies half-way fetches it again, and importing twice changes nothing.

use std::{error::Error, io::Read, time::Duration};

use matrix_sdk_crypto::{
    AttachmentDecryptor, CryptoStoreError,
    olm::SenderData,
    store::types::StoredRoomKeyBundleData,
    types::{
        EventEncryptionAlgorithm,
        room_history::{HistoricRoomKey, RoomKeyBundle},
    },
    vodozemac::megolm::{self, SessionConfig},
};
use ruma::RoomId;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::{
    engine::{CryptoError, Engine},
    keylane::backoff,
};
use crate::{
    clock::{SharedClock, Timestamp},
    homeserver::HomeserverError,
    model::{Membership, Relay},
    store::{
        Lease, Store,
        crypto::{
            Scope,
            bundles::{self, Fetch},
            rooms as stored,
        },
        leases,
        memberships::{self, MembershipOf},
    },
};

/// The most bytes of a bundle: some 20,000 keys.
const MAX_BUNDLE_SIZE: usize = 16 << 20;

/// How long fetching one may take.
const FETCH_TIMEOUT: Duration = Duration::from_mins(2);

/// How often it is looked for what is due.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Bundles fetched in one look.
const MAX_FETCHES: i64 = 10;

/// How often a bundle is tried: with the pauses, for about a day.
const MAX_TRIES: i64 = 16;

/// The pause after the first try; each next one is twice as long, up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const MAX_PAUSE: Duration = Duration::from_hours(6);

/// What is done with a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It may be fetched.
    Fetch,
    /// It may come to that.
    Wait(&'static str),
    /// It is none of ours.
    Drop(&'static str),
}

/// A bundle, as far as its parts can be read.
#[derive(Default, Deserialize)]
struct Contents<'a> {
    #[serde(borrow, default)]
    room_keys: Vec<&'a RawValue>,
}

/// The keys of a bundle that may be imported, and how many may not.
#[derive(Default)]
struct Sifted {
    keys: Vec<HistoricRoomKey>,
    bad_count: usize,
}

/// Leaves out of a bundle what is not a key of a session in that room, under the session's own id.
fn sift(plain: &[u8], room_id: &RoomId) -> Option<Sifted> {
    let contents: Contents<'_> = serde_json::from_slice(plain).ok()?;
    let mut sifted = Sifted::default();
    for raw in contents.room_keys {
        let key = serde_json::from_str::<HistoricRoomKey>(raw.get()).ok().filter(|key| {
            let session = megolm::InboundGroupSession::import(&key.session_key, SessionConfig::version_1());
            key.room_id == room_id
                && key.algorithm == EventEncryptionAlgorithm::MegolmV1AesSha2
                && session.session_id() == key.session_id
        });
        match key {
            Some(key) => sifted.keys.push(key),
            None => sifted.bad_count += 1,
        }
    }
    Some(sifted)
}

/// Fetches bundles, for all accounts.
#[derive(Debug)]
pub struct KeyBundles {
    store: Store,
    lease: Lease,
    engines: Vec<Engine>,
    clock: SharedClock,
}

impl KeyBundles {
    /// One over the engines of a term.
    #[must_use]
    pub fn new(store: Store, lease: Lease, engines: Vec<Engine>, clock: SharedClock) -> Self {
        Self { store, lease, engines, clock }
    }

    /// Fetches until told to stop, or until the store fails.
    ///
    /// # Errors
    /// When the store fails or the lease is lost.
    pub async fn run(self, stop: CancellationToken) -> Result<(), CryptoError> {
        let mut failures = 0;
        while !stop.is_cancelled() {
            let wait = match Box::pin(self.step()).await {
                Ok(()) => {
                    failures = 0;
                    LOOK_INTERVAL
                }
                Err(error) if error.is_of_the_store() => return Err(error),
                Err(error) => {
                    failures += 1;
                    tracing::warn!(error = &error as &dyn Error, failures, "could not fetch key bundles");
                    backoff(failures)
                }
            };
            tokio::select! { () = stop.cancelled() => {}, () = sleep(wait) => {} }
        }
        Ok(())
    }

    /// Fetches what is due; one that fails is tried again later, and keeps no other from its turn.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn step(&self) -> Result<(), CryptoError> {
        for fetch in bundles::due(self.store.db(), self.clock.now(), MAX_FETCHES).await? {
            let engine = self.engines.iter().find(|engine| engine.account().id == fetch.account_id);
            let scope = Scope::new(self.store.seal()?, fetch.account_id);
            let found = stored::find_bundle(self.store.db(), &scope, fetch.bundle.clone()).await?;
            let read = found.and_then(|data| serde_json::from_slice::<StoredRoomKeyBundleData>(&data).ok());
            let (Some(engine), Some(bundle)) = (engine, read) else {
                self.forget(&fetch).await?;
                continue;
            };
            self.take(&fetch, engine, bundle).await?;
        }
        Ok(())
    }

    async fn take(
        &self,
        fetch: &Fetch,
        engine: &Engine,
        mut bundle: StoredRoomKeyBundleData,
    ) -> Result<(), CryptoError> {
        let room_id = bundle.bundle_data.room_id.clone();
        let fate = self.fate(engine, &mut bundle).await?;
        let why = match fate {
            Fate::Fetch => match engine.fetch_bundle(&bundle).await {
                Ok(sifted) => {
                    let (taken, bad) = (sifted.keys.len(), sifted.bad_count);
                    engine.import_bundle(&bundle, sifted.keys).await?;
                    tracing::info!(room.id = %room_id, sender = %bundle.sender_user, keys = taken, left_out = bad,
                        "took in the room keys that came with an invite");
                    return self.forget(fetch).await;
                }
                Err(error) => error,
            },
            Fate::Wait(why) => why,
            Fate::Drop(why) => {
                tracing::info!(room.id = %room_id, sender = %bundle.sender_user, why, "a key bundle is not taken");
                return self.forget(fetch).await;
            }
        };
        if fetch.tries + 1 >= MAX_TRIES {
            tracing::warn!(room.id = %room_id, sender = %bundle.sender_user, why, "a key bundle is given up");
            return self.forget(fetch).await;
        }
        tracing::debug!(room.id = %room_id, sender = %bundle.sender_user, why, "a key bundle waits");
        let mut tx = self.store.begin().await?;
        leases::check(&mut tx, &self.lease).await?;
        bundles::postpone(&mut tx, fetch, next_at(self.clock.now(), fetch.tries)).await?;
        Ok(tx.commit().await?)
    }

    /// Whether a bundle may be fetched now, by our membership of its room and by what is known of its sender's device,
    /// which is brought up to date in it.
    async fn fate(&self, engine: &Engine, bundle: &mut StoredRoomKeyBundleData) -> Result<Fate, CryptoError> {
        let (db, room_id) = (self.store.db(), &bundle.bundle_data.room_id);
        let found = memberships::find(db, room_id, engine.account().id).await?;
        let Some(MembershipOf { membership, inviter, relay }) = found else {
            return Ok(Fate::Wait("we have nothing to do with the room yet"));
        };
        match membership {
            Membership::Join if inviter.as_ref() == Some(&bundle.sender_user) => {}
            Membership::Join => return Ok(Fate::Drop("its sender did not invite us")),
            Membership::Invite | Membership::Wanted => return Ok(Fate::Wait("we have not joined the room")),
            Membership::Leave => return Ok(Fate::Drop("we are not in the room")),
        }
        match relay {
            Relay::Yes => {}
            Relay::Unknown => return Ok(Fate::Wait("the room's state is not known")),
            Relay::No => return Ok(Fate::Drop("the room is not relayed")),
        }
        if bundle.sender_data.should_recalculate() {
            let devices = engine.machine.get_user_devices(&bundle.sender_user, None).await?;
            let its = devices.devices().find(|device| device.curve25519_key() == Some(bundle.sender_key));
            if let Some(device) = its {
                bundle.sender_data = SenderData::from_device(&device);
            }
        }
        Ok(match bundle.sender_data {
            SenderData::SenderUnverified(_) | SenderData::SenderVerified(_) => Fate::Fetch,
            SenderData::VerificationViolation(_) => Fate::Drop("its sender's identity has changed"),
            SenderData::UnknownDevice { .. } | SenderData::DeviceInfo { .. } => {
                Fate::Wait("its sender's device is not signed by its owner")
            }
        })
    }

    async fn forget(&self, fetch: &Fetch) -> Result<(), CryptoError> {
        let scope = Scope::new(self.store.seal()?, fetch.account_id);
        let mut tx = self.store.begin().await?;
        leases::check(&mut tx, &self.lease).await?;
        bundles::delete(&mut tx, &scope, fetch.bundle.clone()).await?;
        Ok(tx.commit().await?)
    }
}

/// When a bundle is tried again that was tried so often.
fn next_at(now: Timestamp, tries: i64) -> Timestamp {
    let doublings = u32::try_from(tries).unwrap_or(0).min(16);
    now.plus((FIRST_PAUSE * 2_u32.pow(doublings)).min(MAX_PAUSE))
}

impl Engine {
    /// Fetches a bundle, and returns what of it may be imported.
    ///
    /// # Errors
    /// Why it cannot be had now, in words for the log.
    async fn fetch_bundle(&self, bundle: &StoredRoomKeyBundleData) -> Result<Sifted, &'static str> {
        let file = bundle.bundle_data.file.clone();
        let Ok((server_name, media_id)) = file.url.parts() else { return Err("its address is none") };
        let user_id = &self.account().user_id;
        let download = self.homeserver.download(user_id, server_name, media_id, FETCH_TIMEOUT).await;
        let read = async {
            let mut download = download?;
            let mut ciphertext = Vec::new();
            while let Some(chunk) = download.chunk().await? {
                if ciphertext.len() + chunk.as_ref().len() > MAX_BUNDLE_SIZE {
                    return Ok(None);
                }
                ciphertext.extend_from_slice(chunk.as_ref());
            }
            Ok::<_, HomeserverError>(Some(ciphertext))
        };
        let ciphertext = match read.await {
            Ok(Some(ciphertext)) => ciphertext,
            Ok(None) => return Err("it is too large"),
            Err(error) => {
                tracing::debug!(error = &error as &dyn Error, "a key bundle does not come");
                return Err("the homeserver does not give it");
            }
        };
        let mut plain = Zeroizing::new(Vec::with_capacity(ciphertext.len()));
        let mut ciphertext = ciphertext.as_slice();
        AttachmentDecryptor::new(&mut ciphertext, file.into())
            .map_err(|_| "its key is none")?
            .read_to_end(&mut plain)
            .map_err(|_| "it is not what was sent")?;
        sift(&plain, &bundle.bundle_data.room_id).ok_or("it is no key bundle")
    }

    /// Imports the keys of a bundle.
    ///
    /// # Errors
    /// When the store fails.
    async fn import_bundle(
        &self,
        bundle: &StoredRoomKeyBundleData,
        room_keys: Vec<HistoricRoomKey>,
    ) -> Result<(), CryptoError> {
        if room_keys.is_empty() {
            return Ok(());
        }
        // What the inviter says to be withheld is not taken: it is the maker's to say.
        let keys = RoomKeyBundle { room_keys, withheld: Vec::new() };
        let imported = self.machine.store().receive_room_key_bundle(bundle, keys, |_, _| ()).await;
        imported.map_err(|error: CryptoStoreError| error.into())
    }
}

#[cfg(test)]
mod tests {
    use matrix_sdk_crypto::vodozemac::megolm::GroupSession;
    use ruma::room_id;
    use serde_json::{Value, json};

    use super::*;

    fn key(session: &GroupSession, change: impl FnOnce(&mut Value)) -> Value {
        let inbound = megolm::InboundGroupSession::new(&session.session_key(), SessionConfig::version_1());
        let mut key = json!({
            "algorithm": "m.megolm.v1.aes-sha2", "room_id": "!room:a.org", "session_id": session.session_id(),
            "session_key": inbound.export_at_first_known_index().to_base64(),
            "sender_key": "WJ6Ce7U67a6jqkHYHd8o0+5H4bqdi9hInZdk0+swuXs",
            "sender_claimed_keys": {},
        });
        change(&mut key);
        key
    }

    #[test]
    fn keys_of_other_rooms_and_under_other_names_are_left_out() {
        let new = || GroupSession::new(SessionConfig::version_1());
        let (good, other) = (new(), new());
        let keys = json!([
            key(&other, |key| key["room_id"] = json!("!other:a.org")),
            key(&other, |key| key["session_id"] = json!(good.session_id())),
            key(&other, |key| key["session_key"] = json!("AAAA")),
            key(&other, |key| key["algorithm"] = json!("m.megolm.v2.aes-sha2")),
            key(&other, |key| key["sender_key"] = Value::Null),
            null,
            7,
            "text",
            [],
            key(&good, |_| ()),
        ]);
        let bundle = json!({"room_keys": keys, "withheld": [{"algorithm": 7}], "more": 1}).to_string();
        let sifted = sift(bundle.as_bytes(), room_id!("!room:a.org")).unwrap();
        let ids: Vec<_> = sifted.keys.iter().map(|key| key.session_id.clone()).collect();
        assert_eq!((ids, sifted.bad_count), (vec![good.session_id()], 9));
        assert!(sift(b"{}", room_id!("!room:a.org")).unwrap().keys.is_empty());
        for damaged in [&b"7"[..], b"{\"room_keys\": 7}", b"\xff", b""] {
            assert!(sift(damaged, room_id!("!room:a.org")).is_none());
        }
    }

    #[test]
    fn a_bundle_is_tried_for_about_a_day() {
        let mut at = Timestamp(0);
        for tries in 0..MAX_TRIES - 1 {
            at = next_at(at, tries);
        }
        let hours = at.since(Timestamp(0)).as_secs() / 3600;
        assert!((20..30).contains(&hours), "{hours}");
    }
}
