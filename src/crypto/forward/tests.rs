//! A bridge bot and its enemies, played with vodozemac, against a real engine on both databases.

mod better;
mod failures;

use std::{collections::BTreeMap, sync::Arc};

use matrix_sdk_crypto::{
    types::requests::AnyOutgoingRequest,
    vodozemac::{
        megolm::{GroupSession, InboundGroupSession, SessionConfig as MegolmConfig},
        olm::Account,
    },
};
use ruma::{
    DeviceId, OneTimeKeyAlgorithm, OwnedDeviceId, TransactionId, UInt,
    api::client::keys::{get_keys, upload_keys},
    event_id, room_id,
    serde::Raw,
    user_id,
};
use secrecy::SecretString;
use serde_json::{Value, json, value::to_raw_value};

use super::*;
use crate::{
    clock::SystemClock,
    crypto::{
        Encrypted,
        engine::{Changes as Received, Decrypted},
    },
    homeserver::Homeserver,
    model::{Account as OurAccount, Role, Trust},
    store::accounts,
    testing::{self, START, TestStore},
};

const MEGOLM: &str = "m.megolm.v1.aes-sha2";
const OLM: &str = "m.olm.v1.curve25519-aes-sha2";

fn us() -> (&'static UserId, &'static DeviceId) {
    (user_id!("@coucou:example.org"), "COUCOU".into())
}

pub(crate) fn bot() -> &'static UserId {
    user_id!("@instagrambot:example.org")
}

/// A device of anybody's, with the Olm session that it uses with us.
pub(crate) struct Peer {
    pub(crate) user_id: OwnedUserId,
    pub(crate) device_id: OwnedDeviceId,
    pub(crate) account: Account,
    pub(crate) olm: Option<olm::Session>,
}

impl Peer {
    pub(crate) fn new(user_id: &UserId, device_id: &str) -> Self {
        let (user_id, device_id) = (user_id.to_owned(), device_id.into());
        Self { user_id, device_id, account: Account::new(), olm: None }
    }

    pub(crate) fn curve25519(&self) -> String {
        self.account.curve25519_key().to_base64()
    }

    fn ed25519(&self) -> String {
        self.account.ed25519_key().to_base64()
    }

    fn device_keys(&self) -> Value {
        let (user_id, device_id) = (&self.user_id, &self.device_id);
        let mut keys = json!({
            "user_id": user_id, "device_id": device_id, "algorithms": [OLM, MEGOLM],
            "keys": {
                format!("curve25519:{device_id}"): self.curve25519(),
                format!("ed25519:{device_id}"): self.ed25519(),
            },
        });
        // serde_json sorts keys: that is canonical JSON.
        let signature = self.account.sign(keys.to_string()).to_base64();
        keys["signatures"] = json!({user_id.as_str(): {format!("ed25519:{device_id}"): signature}});
        keys
    }

    /// What goes inside an Olm message to us.
    fn inside(&self, scene: &Scene, event_type: &str, content: &Value) -> Value {
        json!({
            "type": event_type, "content": content,
            "sender": self.user_id, "sender_device": self.device_id,
            "keys": {"ed25519": self.ed25519()},
            "recipient": us().0, "recipient_keys": {"ed25519": scene.ed25519.clone()},
        })
    }

    /// Encrypts for us, over a session begun with a one-time key of ours.
    fn encrypt(&mut self, scene: &mut Scene, plain: &Value) -> Box<RawValue> {
        let account = &self.account;
        let olm = self.olm.get_or_insert_with(|| {
            let one_time = scene.one_time_keys.pop().expect("a one-time key is left");
            let ours = Curve25519PublicKey::from_base64(&scene.curve25519).unwrap();
            account.create_outbound_session(SessionConfig::version_1(), ours, one_time).unwrap()
        });
        let message = olm.encrypt(plain.to_string()).unwrap();
        let event = json!({
            "type": "m.room.encrypted", "sender": self.user_id,
            "content": {
                "algorithm": OLM, "sender_key": self.curve25519(),
                "ciphertext": {&scene.curve25519: message},
            },
        });
        to_raw_value(&event).unwrap()
    }

    /// A forward of a session of ours, honest unless `change` is not.
    fn forward(
        &mut self,
        scene: &mut Scene,
        session: &GroupSession,
        index: u32,
        change: impl FnOnce(&mut Value),
    ) -> Box<RawValue> {
        let mut key = InboundGroupSession::new(&session.session_key(), MegolmConfig::version_1());
        let from = key.first_known_index();
        let content = json!({
            "algorithm": MEGOLM, "room_id": room(), "session_id": session.session_id(),
            "session_key": key.export_at(index.max(from)).unwrap().to_base64(),
            "sender_key": self.curve25519(), "sender_claimed_ed25519_key": self.ed25519(),
            "forwarding_curve25519_key_chain": [],
        });
        let mut plain = self.inside(scene, FORWARDED, &content);
        change(&mut plain);
        self.encrypt(scene, &plain)
    }
}

pub(crate) fn room() -> &'static ruma::RoomId {
    room_id!("!portal:example.org")
}

/// An engine, and what others can know of its device.
pub(crate) struct Scene {
    pub(crate) engine: Engine,
    pub(crate) curve25519: String,
    ed25519: String,
    one_time_keys: Vec<Curve25519PublicKey>,
}

impl Scene {
    pub(crate) async fn set(test: &TestStore, peers: &[&Peer]) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let store = test.store.clone();
        let (user_id, device_id) = us();
        let mut tx = store.begin().await.unwrap();
        let id = accounts::insert(&mut tx, user_id, &device_id.to_owned(), Role::Bot, START).await.unwrap();
        let lasts = std::time::Duration::from_hours(1);
        let lease = leases::claim(&mut tx, "crypto", "test", START, lasts).await.unwrap().unwrap();
        tx.commit().await.unwrap();
        let account = OurAccount {
            id,
            user_id: user_id.to_owned(),
            device_id: device_id.to_owned(),
            role: Role::Bot,
            sync_token: None,
        };
        let url = "http://127.0.0.1:9".parse().unwrap();
        let homeserver = Homeserver::new(&url, SecretString::from("token")).unwrap();
        let engine = Engine::load(account, store, lease, homeserver, Arc::new(SystemClock)).await.unwrap();
        let own = engine.machine.identity_keys();
        let one_time_keys = upload(&engine).await;
        let scene = Self {
            engine,
            curve25519: own.curve25519.to_base64(),
            ed25519: own.ed25519.to_base64(),
            one_time_keys,
        };
        scene.meet(peers).await;
        scene
    }

    /// A new machine over what is stored, as after a restart.
    pub(crate) async fn reload(&mut self) {
        let Engine { whole, lease, homeserver, clock, .. } = self.engine.clone();
        let account = self.engine.account().clone();
        self.engine = Engine::load(account, whole, lease, homeserver, clock).await.unwrap();
    }

    /// The engine learns of the devices of others.
    pub(crate) async fn meet(&self, peers: &[&Peer]) {
        let machine = &self.engine.machine;
        machine.update_tracked_users(peers.iter().map(|peer| &*peer.user_id)).await.unwrap();
        let mut response = get_keys::v3::Response::new();
        for peer in peers {
            let keys = Raw::from_json(to_raw_value(&peer.device_keys()).unwrap());
            response
                .device_keys
                .entry(peer.user_id.clone())
                .or_default()
                .insert(peer.device_id.clone(), keys);
        }
        machine.mark_request_as_sent(&TransactionId::new(), &response).await.unwrap();
    }

    /// Notes that the session was asked of that device.
    async fn ask(&self, peer: &Peer, session_id: &str) {
        let request = KeyRequest {
            account_id: self.engine.account().id,
            room_id: room().to_string(),
            session_id: session_id.to_owned(),
            user_id: peer.user_id.to_string(),
            device_id: peer.device_id.to_string(),
            sender_key: peer.curve25519(),
            request_id: "request".to_owned(),
            tries: 0,
        };
        let mut tx = self.engine.whole.begin().await.unwrap();
        key_requests::plan(&mut tx, std::slice::from_ref(&request), START, START).await.unwrap();
        key_requests::reschedule(&mut tx, &request, START).await.unwrap();
        tx.commit().await.unwrap();
    }

    pub(crate) async fn receive(&self, message: Box<RawValue>) -> Vec<RoomKey> {
        let received = Received { to_device: vec![message], ..Received::default() };
        self.engine.receive(received).await.unwrap()
    }

    async fn counts(&self) -> BTreeMap<String, i64> {
        let account = self.engine.account().id;
        key_requests::forwards(self.engine.whole.db(), account).await.unwrap().into_iter().collect()
    }

    /// The first message that the engine can decrypt with a session, if it has the session.
    async fn first_known(&self, session_id: &str) -> Option<u32> {
        let store = self.engine.machine.store();
        let session = store.get_inbound_group_session(room(), session_id).await.unwrap();
        session.map(|session| session.first_known_index())
    }
}

async fn upload(engine: &Engine) -> Vec<Curve25519PublicKey> {
    for request in engine.machine.outgoing_requests().await.unwrap() {
        let AnyOutgoingRequest::KeysUpload(keys) = request.request() else { continue };
        let count = UInt::try_from(keys.one_time_keys.len()).unwrap();
        let counts = BTreeMap::from([(OneTimeKeyAlgorithm::SignedCurve25519, count)]);
        let response = upload_keys::v3::Response::new(counts);
        engine.machine.mark_request_as_sent(request.request_id(), &response).await.unwrap();
        let key = |raw: &Raw<_>| {
            let key: Value = serde_json::from_str(raw.json().get()).unwrap();
            Curve25519PublicKey::from_base64(key["key"].as_str().unwrap()).unwrap()
        };
        return keys.one_time_keys.values().map(key).collect();
    }
    panic!("a new machine uploads its keys");
}

/// A ghost's message, as the bridge encrypts it.
fn say(bridge: &Peer, session: &mut GroupSession) -> Box<RawValue> {
    let plain = json!({"type": "m.room.message", "room_id": room(), "content": {"body": "hello"}});
    say_raw(bridge, session, plain.to_string().as_bytes())
}

/// What a ghost says, whatever it is.
pub(crate) fn say_raw(bridge: &Peer, session: &mut GroupSession, plain: &[u8]) -> Box<RawValue> {
    let event = json!({
        "type": "m.room.encrypted", "event_id": "$event", "room_id": room(), "origin_server_ts": 1,
        "sender": "@instagram_1:example.org",
        "content": {
            "algorithm": MEGOLM, "ciphertext": session.encrypt(plain).to_base64(),
            "session_id": session.session_id(), "sender_key": bridge.curve25519(),
            "device_id": bridge.device_id,
        },
    });
    to_raw_value(&event).unwrap()
}

/// The same, ready to be decrypted.
pub(crate) fn read(event: &RawValue) -> Encrypted {
    Encrypted::read(event_id!("$event"), user_id!("@instagram_1:example.org"), event).unwrap()
}

pub(crate) fn room_key(peer: &mut Peer, scene: &mut Scene, session: &GroupSession) -> Box<RawValue> {
    let content = json!({
        "algorithm": MEGOLM, "room_id": room(), "session_id": session.session_id(),
        "session_key": session.session_key().to_base64(),
    });
    let plain = peer.inside(scene, "m.room_key", &content);
    peer.encrypt(scene, &plain)
}

/// The key of one session under the name of another.
pub(crate) fn false_key(
    peer: &mut Peer,
    scene: &mut Scene,
    session: &GroupSession,
    named: &GroupSession,
) -> Box<RawValue> {
    let content = json!({
        "algorithm": MEGOLM, "room_id": room(), "session_id": named.session_id(),
        "session_key": session.session_key().to_base64(),
    });
    let plain = peer.inside(scene, "m.room_key", &content);
    peer.encrypt(scene, &plain)
}

#[tokio::test]
async fn a_key_that_was_asked_for_is_taken_and_known_to_be_its_makers() {
    for test in testing::both().await {
        let mut bridge = Peer::new(bot(), "BRIDGE");
        let mut scene = Scene::set(&test, &[&bridge]).await;
        let mut session = GroupSession::new(MegolmConfig::version_1());
        let key = RoomKey { room_id: room().to_owned(), session_id: session.session_id() };
        scene.ask(&bridge, &key.session_id).await;
        let forward = bridge.forward(&mut scene, &session, 0, |_| ());
        let event = say(&bridge, &mut session);
        assert_eq!(scene.receive(forward.clone()).await, std::slice::from_ref(&key));
        let Decrypted::Clear(clear) = scene.engine.decrypt(&key, &read(&event)).await.unwrap() else {
            panic!("it does not decrypt")
        };
        assert_eq!(clear.session_owner.as_deref(), Some(bot()));
        assert_eq!(
            clear.trust,
            Trust::MismatchedSender,
            "a ghost's message, of which the bridge rule decides"
        );
        assert_eq!(scene.receive(forward).await, [], "a repeat is none");
        assert_eq!(scene.counts().await, BTreeMap::from([("accepted".to_owned(), 1)]));

        // The machine went through the same message: what follows on the same Olm session opens.
        let next = GroupSession::new(MegolmConfig::version_1());
        let next_key = room_key(&mut bridge, &mut scene, &next);
        assert_eq!(scene.receive(next_key).await.len(), 1);
    }
}

#[tokio::test]
async fn forwards_that_are_not_as_asked_are_refused() {
    type Change = fn(&mut Value);
    let lies: [(&str, Change); 11] = [
        ("not_for_us", |plain| plain["recipient"] = json!("@other:example.org")),
        ("not_for_us", |plain| {
            plain["recipient_keys"]["ed25519"] = json!(Account::new().ed25519_key().to_base64());
        }),
        ("wrong_sender", |plain| plain["sender"] = json!("@mallory:example.org")),
        ("unknown_device", |plain| {
            plain["keys"]["ed25519"] = json!(Account::new().ed25519_key().to_base64());
        }),
        ("unknown_device", |plain| {
            let other = Peer::new(bot(), "BRIDGE");
            plain["sender_device_keys"] = other.device_keys();
        }),
        ("not_asked", |plain| plain["content"]["room_id"] = json!("!other:example.org")),
        ("not_the_maker", |plain| {
            plain["content"]["sender_key"] = json!(Account::new().curve25519_key().to_base64());
        }),
        ("not_the_maker", |plain| {
            let other = Account::new().ed25519_key().to_base64();
            plain["content"]["sender_claimed_ed25519_key"] = json!(other);
        }),
        ("not_the_maker", |plain| {
            let other = Account::new().curve25519_key().to_base64();
            plain["content"]["forwarding_curve25519_key_chain"] = json!([other]);
        }),
        ("bad_key", |plain| {
            let other = GroupSession::new(MegolmConfig::version_1());
            let other = InboundGroupSession::new(&other.session_key(), MegolmConfig::version_1());
            plain["content"]["session_key"] = json!(other.export_at_first_known_index().to_base64());
        }),
        ("malformed", |plain| plain["content"]["session_key"] = json!("AAAA")),
    ];
    for test in testing::both().await {
        let mut bridge = Peer::new(bot(), "BRIDGE");
        let mut scene = Scene::set(&test, &[&bridge]).await;
        let session = GroupSession::new(MegolmConfig::version_1());
        scene.ask(&bridge, &session.session_id()).await;
        let mut expected = BTreeMap::new();
        for (why, change) in lies {
            let forward = bridge.forward(&mut scene, &session, 0, change);
            assert_eq!(scene.receive(forward).await, [], "{why}");
            *expected.entry(why.to_owned()).or_insert(0) += 1;
            assert_eq!(scene.counts().await, expected);
            assert_eq!(scene.first_known(&session.session_id()).await, None, "{why}");
        }
        // The same without a lie is taken.
        let forward = bridge.forward(&mut scene, &session, 0, |_| ());
        assert_eq!(scene.receive(forward).await.len(), 1);
    }
}

#[tokio::test]
async fn forwards_from_others_are_refused() {
    for test in testing::both().await {
        let mut bridge = Peer::new(bot(), "BRIDGE");
        let mut second = Peer::new(bot(), "SECOND");
        let mut stranger = Peer::new(user_id!("@mallory:example.org"), "MALLORY");
        let mut scene = Scene::set(&test, &[&bridge, &second, &stranger]).await;
        let session = GroupSession::new(MegolmConfig::version_1());
        let id = session.session_id();
        scene.ask(&bridge, &id).await;
        let mut refused = 0;
        for peer in [&mut second, &mut stranger] {
            let forward = peer.forward(&mut scene, &session, 0, |_| ());
            assert_eq!(scene.receive(forward).await, []);
            refused += 1;
            assert_eq!(scene.counts().await, BTreeMap::from([("not_asked".to_owned(), refused)]));
        }
        // Under the bridge's name and key, without the bridge's Olm session.
        let bridge_key = bridge.curve25519();
        let forward = stranger.forward(&mut scene, &session, 0, |_| ());
        let mut forged: Value = serde_json::from_str(forward.get()).unwrap();
        forged["sender"] = json!(bot());
        forged["content"]["sender_key"] = json!(bridge_key);
        assert_eq!(scene.receive(to_raw_value(&forged).unwrap()).await, []);
        // A session that was not asked for, of the device that was asked for another.
        let other = GroupSession::new(MegolmConfig::version_1());
        let forward = bridge.forward(&mut scene, &other, 0, |_| ());
        assert_eq!(scene.receive(forward).await, []);
        refused += 1;
        assert_eq!(scene.counts().await, BTreeMap::from([("not_asked".to_owned(), refused)]));
        for id in [&id, &other.session_id()] {
            assert_eq!(scene.first_known(id).await, None);
        }
        // The key in clear is no forward at all.
        let clear = json!({"type": FORWARDED, "sender": bot(), "content": {
            "algorithm": MEGOLM, "room_id": room(), "session_id": id, "session_key": "AAAA",
            "sender_key": bridge.curve25519(), "sender_claimed_ed25519_key": bridge.ed25519(),
            "forwarding_curve25519_key_chain": [],
        }});
        assert_eq!(scene.receive(to_raw_value(&clear).unwrap()).await, []);
        assert_eq!(scene.first_known(&id).await, None);
    }
}

#[tokio::test]
async fn an_own_verified_device_is_asked_and_believed() {
    for test in testing::both().await {
        let bridge = Peer::new(bot(), "BRIDGE");
        let mut phone = Peer::new(us().0, "PHONE");
        let mut scene = Scene::set(&test, &[&bridge, &phone]).await;
        let mut session = GroupSession::new(MegolmConfig::version_1());
        let id = session.session_id();
        let event = say(&bridge, &mut session);
        let wanted = key_requests::Wanted {
            room_id: room().to_string(),
            session_id: id.clone(),
            bridge_bot: Some(bot().to_string()),
            event: event.get().as_bytes().to_vec(),
        };
        let whom = async |scene: &Scene| -> Vec<String> {
            let requests = scene.engine.whom_to_ask(&wanted).await.unwrap();
            requests.into_iter().map(|request| request.device_id).collect()
        };
        assert_eq!(
            whom(&scene).await,
            ["BRIDGE"],
            "an unverified device would neither answer nor be believed"
        );
        let machine = scene.engine.machine.clone();
        let device = machine.get_device(us().0, &phone.device_id, None).await.unwrap().unwrap();
        device.set_local_trust(matrix_sdk_crypto::LocalTrust::Verified).await.unwrap();
        assert_eq!(whom(&scene).await, ["BRIDGE", "*"]);
        let maker = (bridge.curve25519(), bridge.ed25519());
        let forward = phone.forward(&mut scene, &session, 0, |plain| {
            plain["content"]["sender_key"] = json!(maker.0);
            plain["content"]["sender_claimed_ed25519_key"] = json!(maker.1);
        });
        assert_eq!(scene.receive(forward).await, [], "nobody asked");
        let request = scene.engine.whom_to_ask(&wanted).await.unwrap().remove(1);
        // The homeserver is not there; the request is kept to be sent.
        let asked = scene.engine.ask_own_devices(&request, wanted.event.clone()).await;
        assert!(matches!(asked, Err(CryptoError::Homeserver(_))), "{asked:?}");
        let forward = phone.forward(&mut scene, &session, 0, |plain| {
            plain["content"]["sender_key"] = json!(maker.0);
            plain["content"]["sender_claimed_ed25519_key"] = json!(maker.1);
        });
        assert_eq!(scene.receive(forward).await.len(), 1);
        assert_eq!(scene.first_known(&id).await, Some(1), "from the first key after the event on");
        let counts = [("accepted".to_owned(), 1), ("not_asked".to_owned(), 1)];
        assert_eq!(scene.counts().await, BTreeMap::from(counts));
    }
}
