//! A bridge on the fake homeserver: one device encrypts, ghosts speak.

use std::collections::HashMap;

use serde_json::{Value, json};
use vodozemac::{
    Curve25519PublicKey,
    megolm::{GroupSession, SessionConfig},
    olm::{Account, Session, SessionConfig as OlmConfig},
};

use super::{FakeHomeserver, SERVER_NAME, base64, random_id};

const ALGORITHMS: [&str; 2] = ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"];

/// The bridge bot's device, and the Megolm sessions of its portals.
pub(crate) struct FakeBridge {
    network: String,
    device_id: String,
    account: Account,
    device_keys: Value,
    /// Whether it tells its device keys along with room keys (MSC4147), as older bridges do not.
    tells_keys: bool,
    /// By user and device.
    olm: HashMap<(String, String), Session>,
    /// By room.
    megolm: HashMap<String, GroupSession>,
}

impl FakeBridge {
    /// Makes one for `instagram` or `facebook`; the homeserver knows its device at once.
    pub(crate) fn new(homeserver: &FakeHomeserver, network: &str) -> Self {
        let account = Account::new();
        let device_id = random_id()[..10].to_uppercase();
        let bot = format!("@{network}bot:{SERVER_NAME}");
        let device_keys = signed_keys(&account, &bot, &device_id);
        let mut world = homeserver.world();
        let device = world.devices.entry((bot.clone(), device_id.clone())).or_default();
        device.keys = Some(device_keys.clone());
        world.changed_users.insert(bot);
        drop(world);
        let (olm, megolm) = (HashMap::new(), HashMap::new());
        let (network, tells_keys) = (network.to_owned(), true);
        Self { network, device_id, account, device_keys, tells_keys, olm, megolm }
    }

    /// Takes the bridge's device from what the homeserver tells; the bridge does not tell of it either.
    pub(crate) fn hide_device(&mut self, homeserver: &FakeHomeserver) {
        self.tells_keys = false;
        homeserver.world().devices.remove(&(self.bot(), self.device_id.clone()));
    }

    /// Lets the homeserver tell of the bridge's device; the next transaction says so.
    pub(crate) fn show_device(&self, homeserver: &FakeHomeserver) {
        let mut world = homeserver.world();
        let device = world.devices.entry((self.bot(), self.device_id.clone())).or_default();
        device.keys = Some(self.device_keys.clone());
        world.changed_users.insert(self.bot());
    }

    /// Publishes one more device of the bot's, which nobody uses; the next transaction says so.
    pub(crate) fn publish_device(&self, homeserver: &FakeHomeserver, device_id: &str) {
        let bot = self.bot();
        let keys = signed_keys(&Account::new(), &bot, device_id);
        let mut world = homeserver.world();
        world.devices.entry((bot.clone(), device_id.to_owned())).or_default().keys = Some(keys);
        world.changed_users.insert(bot);
    }

    /// The bridge bot's user id.
    pub(crate) fn bot(&self) -> String {
        format!("@{}bot:{SERVER_NAME}", self.network)
    }

    /// The user id of somebody on the network.
    pub(crate) fn ghost(&self, id: &str) -> String {
        format!("@{}_{id}:{SERVER_NAME}", self.network)
    }

    /// Makes an encrypted portal for a conversation with a ghost.
    pub(crate) fn create_portal(&self, homeserver: &FakeHomeserver, ghost: &str, name: &str) -> String {
        self.create_room(homeserver, ghost, name, true)
    }

    /// Makes a portal for a conversation with a ghost.
    pub(crate) fn create_room(
        &self,
        homeserver: &FakeHomeserver,
        ghost: &str,
        name: &str,
        encrypted: bool,
    ) -> String {
        let protocol = json!({"id": format!("{}go", self.network), "displayname": self.network});
        let info = json!({
            "bridgebot": self.bot(), "creator": self.bot(), "protocol": protocol,
            "channel": {"id": random_id(), "displayname": name},
            "com.beeper.room_type": "dm",
        });
        let key = format!("{SERVER_NAME}/{}", self.network);
        let mut state = vec![
            ("uk.half-shot.bridge", &*key, info.clone()),
            ("m.bridge", &*key, info),
            ("m.room.name", "", json!({"name": name})),
        ];
        if encrypted {
            state.push(("m.room.encryption", "", json!({"algorithm": ALGORITHMS[1]})));
        }
        let room_id = homeserver.create_room(&self.bot(), &state);
        homeserver.add_member(&room_id, &self.ghost(ghost), Some(name));
        room_id
    }

    /// Begins a new Megolm session in a room.
    pub(crate) fn rotate(&mut self, room_id: &str) {
        self.megolm.insert(room_id.to_owned(), GroupSession::new(SessionConfig::version_1()));
    }

    /// The room's Megolm session.
    pub(crate) fn session_id(&mut self, room_id: &str) -> String {
        self.session(room_id).session_id()
    }

    /// Sends the room's key, as it is now, to a device; it lies in the device's inbox, and what is pushed of
    /// it is answered.
    pub(crate) fn share_key(
        &mut self,
        homeserver: &FakeHomeserver,
        room_id: &str,
        mxid: &str,
        device_id: &str,
    ) -> Vec<Value> {
        let key = self.room_key(room_id);
        self.send_key(homeserver, &key, mxid, device_id)
    }

    /// The room's key as it is now: it opens what is said from here on. To be [sent](Self::send_key) later.
    pub(crate) fn room_key(&mut self, room_id: &str) -> Value {
        let session = self.session(room_id);
        json!({
            "algorithm": ALGORITHMS[1], "room_id": room_id,
            "session_id": session.session_id(), "session_key": session.session_key().to_base64(),
        })
    }

    /// As [`Self::share_key`], with a key that was kept.
    pub(crate) fn send_key(
        &mut self,
        homeserver: &FakeHomeserver,
        key: &Value,
        mxid: &str,
        device_id: &str,
    ) -> Vec<Value> {
        let content = self.encrypt_olm(homeserver, (mxid, device_id), "m.room_key", key);
        homeserver.send_to_device(&self.bot(), "m.room.encrypted", (mxid, device_id), &content)
    }

    /// Encrypts an event of a ghost's with the room's Megolm session, as it is pushed.
    pub(crate) fn encrypt(&mut self, room_id: &str, ghost: &str, event_type: &str, content: &Value) -> Value {
        let (sender, device_id) = (self.ghost(ghost), self.device_id.clone());
        let sender_key = self.account.curve25519_key().to_base64();
        let plaintext = json!({"type": event_type, "room_id": room_id, "content": content});
        let session = self.session(room_id);
        let ciphertext = session.encrypt(plaintext.to_string()).to_base64();
        let mut encrypted = json!({
            "algorithm": ALGORITHMS[1], "ciphertext": ciphertext, "session_id": session.session_id(),
            "sender_key": sender_key, "device_id": device_id,
        });
        if let Some(relation) = content.get("m.relates_to") {
            encrypted["m.relates_to"] = relation.clone();
        }
        super::event(room_id, &sender, "m.room.encrypted", &encrypted)
    }

    /// Encrypts a text of a ghost's.
    pub(crate) fn say(&mut self, room_id: &str, ghost: &str, text: &str) -> Value {
        self.encrypt(room_id, ghost, "m.room.message", &json!({"msgtype": "m.text", "body": text}))
    }

    /// The room's session, begun if there is none.
    fn session(&mut self, room_id: &str) -> &mut GroupSession {
        self.megolm.entry(room_id.to_owned()).or_insert_with(|| GroupSession::new(SessionConfig::version_1()))
    }

    /// Encrypts for a device, over a session begun with one of its one-time keys.
    fn encrypt_olm(
        &mut self,
        homeserver: &FakeHomeserver,
        (mxid, device_id): (&str, &str),
        event_type: &str,
        content: &Value,
    ) -> Value {
        let address = (mxid.to_owned(), device_id.to_owned());
        let mut world = homeserver.world();
        let keys = world.devices[&address].keys.clone().expect("the device has keys");
        let key = |name: &str| keys["keys"][format!("{name}:{device_id}")].as_str().unwrap().to_owned();
        let (curve25519, ed25519) = (key("curve25519"), key("ed25519"));
        let account = &self.account;
        let session = self.olm.entry(address).or_insert_with(|| {
            let claimed = world.claim(mxid, device_id).expect("the device has a key to claim");
            let one_time = claimed.as_object().unwrap().values().next().unwrap()["key"].as_str().unwrap();
            let public = |key: &str| Curve25519PublicKey::from_base64(key).unwrap();
            account
                .create_outbound_session(OlmConfig::version_1(), public(&curve25519), public(one_time))
                .unwrap()
        });
        let mut plaintext = json!({
            "type": event_type, "content": content,
            "sender": format!("@{}bot:{SERVER_NAME}", self.network), "sender_device": self.device_id,
            "keys": {"ed25519": account.ed25519_key().to_base64()},
            "recipient": mxid, "recipient_keys": {"ed25519": ed25519},
        });
        if self.tells_keys {
            plaintext["sender_device_keys"] = self.device_keys.clone();
        }
        let (kind, ciphertext) = session.encrypt(plaintext.to_string()).unwrap().to_parts();
        json!({
            "algorithm": ALGORITHMS[0],
            "sender_key": account.curve25519_key().to_base64(),
            "ciphertext": {curve25519: {"type": kind, "body": base64(&ciphertext)}},
        })
    }
}

/// The keys of a device, signed by itself.
fn signed_keys(account: &Account, user_id: &str, device_id: &str) -> Value {
    let keys = account.identity_keys();
    let mut device_keys = json!({
        "user_id": user_id, "device_id": device_id, "algorithms": ALGORITHMS,
        "keys": {
            format!("curve25519:{device_id}"): keys.curve25519.to_base64(),
            format!("ed25519:{device_id}"): keys.ed25519.to_base64(),
        },
    });
    // Without `preserve_order`, serde_json sorts keys: that is canonical JSON.
    let signature = account.sign(device_keys.to_string()).to_base64();
    device_keys["signatures"] = json!({user_id: {format!("ed25519:{device_id}"): signature}});
    device_keys
}
