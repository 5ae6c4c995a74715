//! Mending Olm sessions that a bridge bot's device uses and we cannot open any more, as after a bridge was
//! restored from a copy of its database
//! ([spec](https://spec.matrix.org/latest/client-server-api/#recovering-from-undecryptable-messages)).
//!
//! A one-time key of the device is claimed for a new session, once an hour at most, and the device learns of
//! that session by the first message in it. The SDK does not get so far in version 0.18: of a session in which
//! the other side alone has spoken, as bridges do, it takes the broken device for one of our own; and the
//! `m.dummy` that it prepares is handed out nowhere. So the claim is made here, the SDK makes the session of
//! its answer, and a room key of ours is the first message, in a room that the bot shares with us. Nothing is
//! ever encrypted with it before it is shared anew.
//!
//! What is noticed is kept in memory alone: after a crash the next message that does not open tells it again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD_NO_PAD};
use matrix_sdk_common::deserialized_responses::ProcessedToDeviceEvent;
use matrix_sdk_crypto::{
    CryptoStoreError, EncryptionSettings,
    olm::OlmMessageHash,
    store::CryptoStore as _,
    types::requests::ToDeviceRequest,
    vodozemac::{Curve25519PublicKey, olm::OlmMessage},
};
use ruma::{
    OneTimeKeyAlgorithm, OwnedDeviceId, OwnedUserId, SecondsSinceUnixEpoch, TransactionId, UserId,
    api::client::keys::claim_keys,
};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::engine::{CryptoError, Engine};
use crate::store::memberships;

/// How old the newest session with a device is at least before another is begun.
const INTERVAL: Duration = Duration::from_hours(1);

type Devices = BTreeSet<(OwnedUserId, OwnedDeviceId)>;

/// Devices with which a new session is to be begun.
#[derive(Clone, Debug, Default)]
pub(super) struct Wedged(Arc<Mutex<Devices>>);

impl Wedged {
    fn add(&self, devices: Devices) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(devices);
    }

    fn take(&self) -> Devices {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Who sent an Olm message.
#[derive(Deserialize)]
struct Envelope {
    sender: OwnedUserId,
    content: EnvelopeContent,
}

#[derive(Deserialize)]
struct EnvelopeContent {
    sender_key: String,
    ciphertext: BTreeMap<String, OlmMessage>,
}

/// A message's name among those that were decrypted, as the SDK makes it; its own way there is private.
fn hash(sender_key: &str, message: &OlmMessage) -> OlmMessageHash {
    let (kind, ciphertext) = message.to_parts();
    let mut hash = Sha256::new();
    hash.update(sender_key.as_bytes());
    hash.update([u8::try_from(kind).unwrap_or(u8::MAX)]);
    hash.update(ciphertext);
    let hash = BASE64_STANDARD_NO_PAD.encode(hash.finalize());
    OlmMessageHash { sender_key: sender_key.to_owned(), hash }
}

impl Engine {
    /// Notes the bridge bots' devices whose messages did not open.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) async fn note_wedged(&self, processed: &[ProcessedToDeviceEvent]) -> Result<(), CryptoError> {
        for event in processed {
            let ProcessedToDeviceEvent::UnableToDecrypt { encrypted_event, .. } = event else { continue };
            let Ok(envelope) = serde_json::from_str::<Envelope>(encrypted_event.json().get()) else {
                continue;
            };
            let Ok(key) = Curve25519PublicKey::from_base64(&envelope.content.sender_key) else { continue };
            let failed = CryptoStoreError::from;
            let own = self.machine.identity_keys().curve25519.to_base64();
            let mut ciphertext = envelope.content.ciphertext;
            // What is not for us says nothing, and a repeat does not open either.
            let Some(message) = ciphertext.remove(&own) else { continue };
            let hash = hash(&envelope.content.sender_key, &message);
            if self.store.is_message_known(&hash).await.map_err(failed)? {
                continue;
            }
            let devices = self.machine.get_user_devices(&envelope.sender, None).await?;
            let Some(device) = devices.devices().find(|device| device.curve25519_key() == Some(key)) else {
                continue;
            };
            let sessions = self.store.get_sessions(&key.to_base64()).await.map_err(failed)?;
            let newest = sessions.into_iter().flatten().map(|session| session.creation_time).max();
            // The SDK writes these times by the system's clock, so they are compared with that.
            let now = u64::from(SecondsSinceUnixEpoch::now().get());
            let is_old = |at: SecondsSinceUnixEpoch| now.saturating_sub(at.get().into()) > INTERVAL.as_secs();
            if newest.is_none_or(is_old) && self.room_of(&envelope.sender).await?.is_some() {
                self.wedged.add(Devices::from([(envelope.sender, device.device_id().to_owned())]));
            }
        }
        Ok(())
    }

    async fn room_of(&self, bot: &UserId) -> Result<Option<ruma::OwnedRoomId>, CryptoError> {
        Ok(memberships::shared_with_bot(self.whole.db(), self.account().id, bot).await?)
    }

    /// Begins new sessions with the devices that were noted, and tells them.
    ///
    /// # Errors
    /// When the homeserver or the store fails; the devices stay noted.
    pub(super) async fn unwedge(&self) -> Result<(), CryptoError> {
        let devices = self.wedged.take();
        if devices.is_empty() {
            return Ok(());
        }
        let begun = self.begin_sessions(&devices).await;
        if begun.is_err() {
            self.wedged.add(devices);
        }
        begun
    }

    async fn begin_sessions(&self, devices: &Devices) -> Result<(), CryptoError> {
        let mut wanted = BTreeMap::<_, BTreeMap<_, _>>::new();
        for (user_id, device_id) in devices {
            let of_user = wanted.entry(user_id.clone()).or_default();
            of_user.insert(device_id.clone(), OneTimeKeyAlgorithm::SignedCurve25519);
        }
        let response = self.homeserver.send(&self.identity, claim_keys::v3::Request::new(wanted)).await?;
        for user_id in self.take_claimed(response).await? {
            for request in self.first_messages(&user_id).await? {
                tracing::info!(account.user_id = %self.account().user_id, bot = %user_id,
                    "began a new Olm session, because messages in the old one do not open");
                self.send_to_device(&request.txn_id, &request).await?;
            }
        }
        Ok(())
    }

    /// Has the SDK make sessions of claimed keys; answers whose they are.
    async fn take_claimed(
        &self,
        response: claim_keys::v3::Response,
    ) -> Result<Vec<OwnedUserId>, CryptoError> {
        self.mark_as_sent(&TransactionId::new(), &response).await?;
        Ok(response.one_time_keys.into_keys().collect())
    }

    /// A message in the newest session with each device of a bridge bot.
    async fn first_messages(&self, user_id: &UserId) -> Result<Vec<ToDeviceRequest>, CryptoError> {
        let Some(room_id) = self.room_of(user_id).await? else { return Ok(Vec::new()) };
        self.machine.discard_room_key(&room_id).await?;
        let users = [user_id].into_iter();
        let requests = self.machine.share_room_key(&room_id, users, EncryptionSettings::default()).await?;
        Ok(requests.into_iter().map(|request| (*request).clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use matrix_sdk_crypto::{
        store::types::Changes,
        vodozemac::{
            Curve25519PublicKey,
            megolm::{GroupSession, SessionConfig},
            olm::{OlmMessage, Session, SessionConfig as OlmConfig},
        },
    };
    use ruma::{UInt, room_id, serde::Raw};
    use serde_json::{Value, json, value::to_raw_value};

    use super::*;
    use crate::{
        crypto::forward::tests::{Peer, Scene, bot, room_key},
        model::{Membership, Relay},
        store::{
            memberships::MembershipChange,
            rooms::{self, RoomRow},
        },
        testing::{self, START},
    };

    /// Claims a key of the devices that were noted, answered by the peer; whether there was one.
    async fn claim(scene: &Scene, peer: &mut Peer) -> bool {
        if scene.engine.wedged.take() != Devices::from([(peer.user_id.clone(), peer.device_id.clone())]) {
            return false;
        }
        let one_time = peer.account.generate_one_time_keys(1).created[0];
        let mut key = json!({"key": one_time.to_base64()});
        let signature = peer.account.sign(key.to_string()).to_base64();
        let signer = format!("ed25519:{}", peer.device_id);
        key["signatures"] = json!({peer.user_id.as_str(): {signer: signature}});
        let key = Raw::from_json(to_raw_value(&key).unwrap());
        let keys = BTreeMap::from([("signed_curve25519:AAAA".try_into().unwrap(), key)]);
        let keys = BTreeMap::from([(peer.device_id.clone(), keys)]);
        let response = claim_keys::v3::Response::new(BTreeMap::from([(peer.user_id.clone(), keys)]));
        assert_eq!(scene.engine.take_claimed(response).await.unwrap(), [bot()]);
        true
    }

    /// Makes the sessions with a peer two hours older, as if the process had been restarted since.
    async fn age(scene: &mut Scene, peer: &Peer) {
        let store = &scene.engine.store;
        let sessions = store.get_sessions(&peer.curve25519()).await.unwrap().unwrap();
        let long_ago = SecondsSinceUnixEpoch::now().get() - UInt::from(7_200_u32);
        let aged = sessions.into_iter().map(|mut session| {
            session.creation_time = SecondsSinceUnixEpoch(long_ago);
            session
        });
        let changes = Changes { sessions: aged.collect(), ..Changes::default() };
        store.save_changes(changes).await.unwrap();
        scene.reload().await;
    }

    /// Keys of somebody whose messages we cannot open.
    fn vodozemac_account() -> (Curve25519PublicKey, Curve25519PublicKey) {
        let mut account = matrix_sdk_crypto::vodozemac::olm::Account::new();
        let one_time = account.generate_one_time_keys(1).created[0];
        (account.curve25519_key(), one_time)
    }

    async fn share_a_room(scene: &Scene) {
        let room = RoomRow { bridge_bot: Some(bot().to_owned()), ..RoomRow::bare(Relay::Yes) };
        let room_id = room_id!("!portal:example.org").to_owned();
        let store = &scene.engine.whole;
        let mut tx = store.begin().await.unwrap();
        rooms::put_many(&mut tx, store.seal().unwrap(), &[(room_id.clone(), room)], START).await.unwrap();
        let membership = MembershipChange {
            room_id,
            account_id: scene.engine.account().id,
            membership: Membership::Join,
            inviter: None,
        };
        memberships::put(&mut tx, &[membership], START).await.unwrap();
        tx.commit().await.unwrap();
    }

    #[tokio::test]
    async fn after_a_broken_olm_session_the_next_key_arrives() {
        for test in testing::both().await {
            let mut bridge = Peer::new(bot(), "BRIDGE");
            let mut scene = Scene::set(&test, &[&bridge]).await;
            share_a_room(&scene).await;
            let key = || GroupSession::new(SessionConfig::version_1());
            let first = room_key(&mut bridge, &mut scene, &key());
            let copy = bridge.olm.as_ref().unwrap().pickle();
            assert_eq!(scene.receive(first).await.len(), 1);
            let second = room_key(&mut bridge, &mut scene, &key());
            let repeated = second.clone();
            assert_eq!(scene.receive(second).await.len(), 1);
            age(&mut scene, &bridge).await;
            scene.receive(repeated).await;
            assert!(!claim(&scene, &mut bridge).await, "a repeat is no broken session");

            // The bridge is restored from a copy, and uses keys of its Olm session a second time.
            bridge.olm = Some(Session::from_pickle(copy));
            let lost = room_key(&mut bridge, &mut scene, &key());
            assert_eq!(scene.receive(lost).await.len(), 0);
            assert!(claim(&scene, &mut bridge).await, "a new session is begun");
            let messages = scene.engine.first_messages(bot()).await.unwrap();
            assert_eq!(messages.len(), 1);
            let content = messages[0].messages[bot()].values().next().unwrap();
            let content: Value = serde_json::from_str(content.json().get()).unwrap();
            let message = content["ciphertext"][bridge.curve25519()].clone();
            let Ok(OlmMessage::PreKey(message)) = serde_json::from_value(message) else {
                panic!("the first message of a session")
            };
            let ours = Curve25519PublicKey::from_base64(&scene.curve25519).unwrap();
            let begun =
                bridge.account.create_inbound_session(OlmConfig::version_1(), ours, &message).unwrap();
            bridge.olm = Some(begun.session);
            let next = room_key(&mut bridge, &mut scene, &key());
            assert_eq!(scene.receive(next).await.len(), 1, "in the new session keys arrive again");
            let replayed = room_key(&mut bridge, &mut scene, &key());
            scene.receive(replayed.clone()).await;
            scene.receive(replayed).await;
            assert!(!claim(&scene, &mut bridge).await, "not twice within an hour");
        }
    }

    #[tokio::test]
    async fn nobody_is_told_of_a_session_who_is_no_bridge_bot_of_ours() {
        for test in testing::both().await {
            let bridge = Peer::new(bot(), "BRIDGE");
            let scene = Scene::set(&test, &[&bridge]).await;
            let mut bridge = bridge;
            bridge.olm = Some({
                let (account, nobody) = (&bridge.account, vodozemac_account());
                account.create_outbound_session(OlmConfig::version_1(), nobody.0, nobody.1).unwrap()
            });
            let mut scene = scene;
            let key = GroupSession::new(SessionConfig::version_1());
            let broken = room_key(&mut bridge, &mut scene, &key);
            assert!(scene.receive(broken.clone()).await.is_empty());
            assert!(!claim(&scene, &mut bridge).await);
            share_a_room(&scene).await;
            scene.receive(broken).await;
            assert!(claim(&scene, &mut bridge).await, "a bot that shares a room is");
        }
    }
}
