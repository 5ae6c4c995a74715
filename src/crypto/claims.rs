//! Claims to Megolm sessions: who has said, over Olm, that a session is theirs.
//!
//! Whoever was given a session's key can send it on as an `m.room_key` of their own, and nothing in the key tells who
//! made it. The SDK knows one maker for each session, and a later key may replace it. So whenever a key is given by
//! another device than the session is known by, or by one that is not known yet, all of them are kept as claims, and a
//! message counts as said by whichever of them [fits](super::trust::judge). Claims add up: none takes another away.
//!
//! A claim counts only if its giver had the key: the SDK looks for the session under the id that is in the key itself.
//! A process that dies between the key and its claim has lost the claim, until the key comes again.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use matrix_sdk_common::deserialized_responses::{AlgorithmInfo, ProcessedToDeviceEvent};
use matrix_sdk_crypto::{
    CryptoStoreError,
    olm::{InboundGroupSession, SenderData},
    vodozemac::Curve25519PublicKey,
};
use ruma::{OwnedRoomId, OwnedUserId};
use serde::{Deserialize, Serialize};

use super::{
    engine::{CryptoError, Engine, RoomKey, SessionDevice, owner, session_device},
    store::Before,
};
use crate::{
    model::{AccountId, Trust},
    store::{
        Store,
        crypto::{Key, Plain, Rows, Scope, claims},
        key_news, leases,
    },
};

/// A claim to a session, as far as its device is known now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Whose device gave the key as its own.
    pub user_id: OwnedUserId,
    /// The device; `None` while it is not known.
    pub device: Option<SessionDevice>,
    /// How much is known of a message of that user's in the session.
    pub trust: Trust,
}

/// A claim as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Stored {
    user_id: OwnedUserId,
    /// The device's Curve25519 key, base64, which the Olm message proves.
    sender_key: String,
    /// The signing key that the message named.
    ed25519: Option<String>,
    /// The first message that the session could decrypt when the claim came; for a person to look at.
    first_index: Option<u32>,
    /// What was known of the device then.
    sender_data: SenderData,
}

/// A room key that was given, as the machine shows it: without the key.
#[derive(Deserialize)]
struct Given {
    sender: OwnedUserId,
    #[serde(rename = "type")]
    event_type: String,
    content: GivenContent,
    #[serde(default)]
    keys: GivenKeys,
}

#[derive(Deserialize)]
struct GivenContent {
    room_id: OwnedRoomId,
    session_id: String,
}

#[derive(Default, Deserialize)]
struct GivenKeys {
    ed25519: Option<String>,
}

/// Returns the trust in a user's own message, by what is known of the device that made its session.
fn trust_in(sender: &SenderData) -> Trust {
    match sender {
        SenderData::UnknownDevice { .. } => Trust::UnknownDevice,
        SenderData::DeviceInfo { .. } | SenderData::VerificationViolation(_) => Trust::Unverified,
        SenderData::SenderUnverified(_) => Trust::CrossSigned,
        SenderData::SenderVerified(_) => Trust::Verified,
    }
}

impl Engine {
    /// Keeps the claims of the room keys that the machine was given, where the session alone does not tell them.
    /// Returns the sessions that have new ones.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) async fn note_claims(
        &self,
        before: &Before,
        processed: &[ProcessedToDeviceEvent],
    ) -> Result<Vec<RoomKey>, CryptoError> {
        let (mut claims, mut keys) =
            (BTreeMap::<(RoomKey, OwnedUserId, String), Stored>::new(), BTreeSet::new());
        for event in processed {
            let Some((given, sender_key)) = given(event) else { continue };
            let place = (given.content.room_id, given.content.session_id);
            // Whoever names a session in a key of another one has not shown that they have it.
            let Some(known) = before.get(&place) else { continue };
            let key = RoomKey { room_id: place.0, session_id: place.1 };
            let now = self.session(&key).await?;
            let Some(now) = now else { continue };
            let is_same = |session: &InboundGroupSession| {
                session.sender_key().to_base64() == sender_key
                    && owner(&session.sender_data).is_some_and(|owner| owner == given.sender)
            };
            if is_same(&now) && known.as_ref().is_none_or(is_same) {
                continue;
            }
            if let Some(known) = known
                && let Some(user_id) = owner(&known.sender_data)
            {
                let claim = Stored {
                    user_id,
                    sender_key: known.sender_key().to_base64(),
                    ed25519: None,
                    first_index: Some(known.first_known_index()),
                    sender_data: known.sender_data.clone(),
                };
                claims.insert((key.clone(), claim.user_id.clone(), claim.sender_key.clone()), claim);
            }
            let claim = Stored {
                user_id: given.sender,
                ed25519: given.keys.ed25519,
                first_index: Some(now.first_known_index()),
                sender_data: SenderData::unknown(),
                sender_key,
            };
            let claim = self.with_device(claim).await?;
            claims.entry((key.clone(), claim.user_id.clone(), claim.sender_key.clone())).or_insert(claim);
            keys.insert(key);
        }
        if !claims.is_empty() {
            self.store_claims(claims, &keys).await?;
        }
        Ok(keys.into_iter().collect())
    }

    async fn store_claims(
        &self,
        claims: BTreeMap<(RoomKey, OwnedUserId, String), Stored>,
        keys: &BTreeSet<RoomKey>,
    ) -> Result<(), CryptoError> {
        let mut rows = Rows::<4>::new();
        for ((key, user_id, sender_key), claim) in claims {
            let data = serde_json::to_vec(&claim).map_err(matrix_sdk_crypto::OlmError::from)?;
            let name = Key::of([key.room_id.as_str(), &key.session_id, user_id.as_str(), &sender_key]);
            rows.insert(name, Plain::new(data));
        }
        let news = keys.iter().map(|key| Key::of([key.room_id.as_str(), &key.session_id])).collect();
        let mut tx = self.whole.begin().await?;
        leases::check(&mut tx, &self.lease).await?;
        let scope = Scope::new(self.whole.seal()?, self.account().id);
        claims::add(&mut tx, &scope, rows, self.clock.now()).await?;
        key_news::tell(&mut tx, news).await?;
        Ok(tx.commit().await?)
    }

    /// Adds what is known of a claim's device by now, if that is more.
    async fn with_device(&self, mut claim: Stored) -> Result<Stored, CryptoError> {
        if !claim.sender_data.should_recalculate() {
            return Ok(claim);
        }
        let devices = self.machine.get_user_devices(&claim.user_id, None).await?;
        let is_its = |device: &matrix_sdk_crypto::Device| {
            let ed25519 = device.ed25519_key().map(|key| key.to_base64());
            device.curve25519_key().is_some_and(|key| key.to_base64() == claim.sender_key)
                && (claim.ed25519.is_none() || claim.ed25519 == ed25519)
        };
        if let Some(device) = devices.devices().find(is_its) {
            claim.sender_data = SenderData::from_device(&device);
        }
        Ok(claim)
    }

    async fn claim(&self, stored: Stored) -> Result<Claim, CryptoError> {
        let Stored { user_id, sender_key, sender_data, .. } = self.with_device(stored).await?;
        let device = Curve25519PublicKey::from_base64(&sender_key)
            .ok()
            .and_then(|sender_key| session_device(&sender_data, sender_key));
        Ok(Claim { user_id, device, trust: trust_in(&sender_data) })
    }

    async fn session(
        &self,
        key: &RoomKey,
    ) -> Result<Option<std::sync::Arc<InboundGroupSession>>, CryptoError> {
        let found = self.store.shared_inbound_group_session(&key.room_id, &key.session_id).await;
        Ok(found.map_err(CryptoStoreError::from)?)
    }
}

/// The room key that a message held, and the Curve25519 key of the device that sent it.
fn given(event: &ProcessedToDeviceEvent) -> Option<(Given, String)> {
    let ProcessedToDeviceEvent::Decrypted { raw, encryption_info } = event else { return None };
    let AlgorithmInfo::OlmV1Curve25519AesSha2 { curve25519_public_key_base64: sender_key } =
        &encryption_info.algorithm_info
    else {
        return None;
    };
    let given: Given = serde_json::from_str(raw.json().get()).ok()?;
    (given.event_type == "m.room_key").then(|| (given, sender_key.clone()))
}

/// Finds all claims to sessions, whichever account was told of them: those that were kept, and those of the sessions
/// themselves.
///
/// # Errors
/// When the store fails.
pub async fn find(
    store: &Store,
    engines: &[Engine],
    keys: &BTreeSet<RoomKey>,
) -> Result<HashMap<RoomKey, Vec<Claim>>, CryptoError> {
    let name = |key: &RoomKey| Key::of([key.room_id.as_str(), &key.session_id]);
    let accounts = || engines.iter().map(|engine| engine.account().id);
    let wanted: BTreeSet<(AccountId, Key<2>)> =
        accounts().flat_map(|account| keys.iter().map(move |key| (account, name(key)))).collect();
    let mut stored = claims::find(store.db(), store.seal()?, &wanted).await?;
    let mut found = HashMap::new();
    for key in keys {
        let mut claims = Vec::new();
        for (account, data) in stored.remove(&name(key)).unwrap_or_default() {
            let Some(engine) = engines.iter().find(|engine| engine.account().id == account) else { continue };
            // Written by a newer version: it counts as none.
            let Ok(claim) = serde_json::from_slice::<Stored>(&data) else { continue };
            claims.push(engine.claim(claim).await?);
        }
        for engine in engines {
            let Some(session) = engine.session(key).await? else { continue };
            let Some(user_id) = owner(&session.sender_data).filter(|_| !session.has_been_imported()) else {
                continue;
            };
            let device = session_device(&session.sender_data, session.sender_key());
            claims.push(Claim { user_id, device, trust: trust_in(&session.sender_data) });
        }
        found.insert(key.clone(), claims);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use matrix_sdk_crypto::vodozemac::megolm::{GroupSession, SessionConfig};
    use ruma::{UserId, user_id};
    use serde_json::value::RawValue;

    use super::*;
    use crate::{
        crypto::{
            engine::Changes,
            forward::tests::{Peer, Scene, bot, room_key},
        },
        testing::{self, TestStore},
    };

    fn mallory() -> &'static UserId {
        user_id!("@mallory:example.org")
    }

    /// A bridge and a member who gives the bridge's keys as her own.
    struct Play {
        scene: Scene,
        bridge: Peer,
        mallory: Peer,
        session: GroupSession,
    }

    impl Play {
        async fn set(test: &TestStore, knows_the_bridge: bool) -> Self {
            let (bridge, mallory) = (Peer::new(bot(), "BRIDGE"), Peer::new(mallory(), "MALLORY"));
            let known = if knows_the_bridge { vec![&bridge, &mallory] } else { vec![&mallory] };
            let scene = Scene::set(test, &known).await;
            let session = GroupSession::new(SessionConfig::version_1());
            Self { scene, bridge, mallory, session }
        }

        fn key_of(&mut self, user_id: &UserId) -> Box<RawValue> {
            let peer = if user_id == bot() { &mut self.bridge } else { &mut self.mallory };
            room_key(peer, &mut self.scene, &self.session)
        }

        async fn receive(&self, to_device: Vec<Box<RawValue>>) -> Vec<RoomKey> {
            self.scene.engine.receive(Changes { to_device, ..Changes::default() }).await.unwrap()
        }

        /// Who has claimed the session, with a known device or not.
        async fn claims(&self, store: &Store, key: &RoomKey) -> BTreeSet<(String, bool)> {
            let keys = BTreeSet::from([key.clone()]);
            let engines = [self.scene.engine.clone()];
            let found = find(store, &engines, &keys).await.unwrap().remove(key).unwrap();
            found.into_iter().map(|claim| (claim.user_id.to_string(), claim.device.is_some())).collect()
        }
    }

    #[tokio::test]
    async fn whoever_gives_a_key_and_whenever_all_claims_are_kept() {
        for test in testing::both().await {
            for knows_the_bridge in [true, false] {
                for steps in [
                    vec![vec![bot()], vec![mallory()]],
                    vec![vec![mallory()], vec![bot()]],
                    vec![vec![bot(), mallory()]],
                    vec![vec![mallory(), bot()]],
                ] {
                    // Each on a store of its own.
                    let is_postgres = test.store.backend() == "postgres";
                    let test = if is_postgres { testing::postgres().await } else { testing::sqlite().await };
                    let mut play = Play::set(&test, knows_the_bridge).await;
                    let mut came = BTreeSet::new();
                    for step in &steps {
                        let keys = step.iter().map(|user_id| play.key_of(user_id)).collect();
                        let news = play.receive(keys).await;
                        assert_eq!(news.len(), 1, "what waits is judged again: {steps:?}");
                        came.extend(news);
                    }
                    let key = came.pop_first().unwrap();
                    let both = |is_known| {
                        BTreeSet::from([(bot().to_string(), is_known), (mallory().to_string(), true)])
                    };
                    play.scene.reload().await;
                    let claims = play.claims(&test.store, &key).await;
                    assert_eq!(claims, both(knows_the_bridge), "{steps:?}");
                    play.scene.meet(&[&play.bridge, &play.mallory]).await;
                    // A claim of before is a claim of the device that is known now.
                    let claims = play.claims(&test.store, &key).await;
                    assert!(claims.is_superset(&both(true)), "{steps:?}: {claims:?}");
                }
            }
        }
    }

    #[tokio::test]
    async fn one_maker_whose_device_is_known_needs_no_row() {
        for test in testing::both().await {
            let mut play = Play::set(&test, true).await;
            let keys = vec![play.key_of(bot())];
            let key = play.receive(keys).await.remove(0);
            let keys = vec![play.key_of(bot())];
            assert_eq!(play.receive(keys).await, []);
            assert_eq!(play.claims(&test.store, &key).await, BTreeSet::from([(bot().to_string(), true)]));
            let name = Key::of([key.room_id.as_str(), &key.session_id]);
            let wanted = BTreeSet::from([(play.scene.engine.account().id, name)]);
            let (db, seal) = (test.store.db(), test.store.seal().unwrap());
            assert!(claims::find(db, seal, &wanted).await.unwrap().is_empty());
            // Whoever names the session in a key of another has not shown that she has it.
            let own = GroupSession::new(SessionConfig::version_1());
            let other = std::mem::replace(&mut play.session, own);
            let named = crate::crypto::forward::tests::false_key(
                &mut play.mallory,
                &mut play.scene,
                &play.session,
                &other,
            );
            play.receive(vec![named]).await;
            assert_eq!(play.claims(&test.store, &key).await.len(), 1);
        }
    }
}
