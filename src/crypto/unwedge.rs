//! Mending Olm sessions that a bridge bot's device uses and we cannot open any more, as after a bridge was
//! restored from a copy of its database
//! ([spec](https://spec.matrix.org/latest/client-server-api/#recovering-from-undecryptable-messages)).
//!
//! The SDK notices a message that does not open and, once an hour at most, claims a one-time key of the device
//! for a new session. The other side learns of that session with the first message in it. The SDK prepares one,
//! `m.dummy`, but version 0.18 hands it out nowhere; so a room key of ours is that message, in a room that the
//! bot shares with us. Nothing is ever encrypted with it before it is shared anew.

use matrix_sdk_crypto::{EncryptionSettings, types::requests::ToDeviceRequest};
use ruma::{OwnedUserId, UserId};

use super::engine::{CryptoError, Engine};
use crate::store::rooms;

impl Engine {
    /// Tells the devices of a bridge bot of the sessions that were begun with them.
    ///
    /// # Errors
    /// When the homeserver or the store fails.
    pub(super) async fn unwedge(&self, user_id: &OwnedUserId) -> Result<(), CryptoError> {
        for request in self.first_messages(user_id).await? {
            tracing::info!(account.user_id = %self.account().user_id, bot = %user_id,
                "began a new Olm session, because messages in the old one do not open");
            self.send_to_device(&request.txn_id, &request).await?;
        }
        Ok(())
    }

    /// A message in the newest session with each device of a bridge bot.
    async fn first_messages(&self, user_id: &UserId) -> Result<Vec<ToDeviceRequest>, CryptoError> {
        let room = rooms::shared_with_bot(self.whole.db(), self.account().id, user_id).await?;
        let Some(room_id) = room else { return Ok(Vec::new()) };
        self.machine.discard_room_key(&room_id).await?;
        let users = [user_id].into_iter();
        let requests = self.machine.share_room_key(&room_id, users, EncryptionSettings::default()).await?;
        Ok(requests.into_iter().map(|request| (*request).clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use matrix_sdk_crypto::{
        store::{CryptoStore as _, types::Changes},
        types::requests::AnyOutgoingRequest,
        vodozemac::{
            Curve25519PublicKey,
            megolm::{GroupSession, SessionConfig},
            olm::{OlmMessage, Session, SessionConfig as OlmConfig},
        },
    };
    use ruma::{
        SecondsSinceUnixEpoch, UInt, api::client::keys::claim_keys, room_id, serde::Raw,
    };
    use serde_json::{Value, json, value::to_raw_value};

    use super::*;
    use crate::{
        crypto::forward::tests::{Peer, Scene, bot, room_key},
        model::{Membership, Relay},
        store::rooms::{MembershipChange, RoomRow},
        testing::{self, START},
    };

    /// What the machine wants to claim of the peer, answered by the peer.
    async fn claim(scene: &Scene, peer: &mut Peer) -> bool {
        for request in scene.engine.machine.outgoing_requests().await.unwrap() {
            let AnyOutgoingRequest::KeysClaim(_) = request.request() else { continue };
            let one_time = peer.account.generate_one_time_keys(1).created[0];
            let mut key = json!({"key": one_time.to_base64()});
            let signature = peer.account.sign(key.to_string()).to_base64();
            let signer = format!("ed25519:{}", peer.device_id);
            key["signatures"] = json!({peer.user_id.as_str(): {signer: signature}});
            let key = Raw::from_json(to_raw_value(&key).unwrap());
            let keys = BTreeMap::from([("signed_curve25519:AAAA".try_into().unwrap(), key)]);
            let keys = BTreeMap::from([(peer.device_id.clone(), keys)]);
            let response = claim_keys::v3::Response::new(BTreeMap::from([(peer.user_id.clone(), keys)]));
            scene.engine.machine.mark_request_as_sent(request.request_id(), &response).await.unwrap();
            return true;
        }
        false
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

    async fn share_a_room(scene: &Scene) {
        let room = RoomRow {
            relay: Relay::Yes,
            network: None,
            bridge_bot: Some(bot().to_owned()),
            state: None,
            last_sequence: 0,
        };
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
        rooms::put_memberships(&mut tx, &[membership], START).await.unwrap();
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
            assert_eq!(scene.receive(second).await.len(), 1);
            age(&mut scene, &bridge).await;

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
            let begun = bridge.account.create_inbound_session(OlmConfig::version_1(), ours, &message).unwrap();
            bridge.olm = Some(begun.session);
            let next = room_key(&mut bridge, &mut scene, &key());
            assert_eq!(scene.receive(next).await.len(), 1, "in the new session keys arrive again");
            assert!(!claim(&scene, &mut bridge).await);
        }
    }

    #[tokio::test]
    async fn nobody_is_told_of_a_session_who_is_no_bridge_bot_of_ours() {
        for test in testing::both().await {
            let bridge = Peer::new(bot(), "BRIDGE");
            let scene = Scene::set(&test, &[&bridge]).await;
            assert!(scene.engine.first_messages(bot()).await.unwrap().is_empty());
        }
    }
}
