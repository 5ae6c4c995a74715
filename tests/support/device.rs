//! A user's device on a real Synapse, played by the test itself: it can share any room key, and encrypt anything.

use std::time::Duration;

use serde_json::{Value, json};
use vodozemac::{
    Curve25519PublicKey, Ed25519SecretKey, Ed25519Signature,
    megolm::{self, GroupSession, InboundGroupSession},
    olm::{Account, Session, SessionConfig},
};

use super::{synapse::User, until};

/// How long the keys of a device may take to be there.
const SOON: Duration = Duration::from_mins(1);

const OLM: &str = "m.olm.v1.curve25519-aes-sha2";
const MEGOLM: &str = "m.megolm.v1.aes-sha2";

/// Another's device, as the homeserver tells of it.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    mxid: String,
    device_id: String,
    curve25519: String,
    ed25519: String,
}

impl Peer {
    /// The device of a user that has one with keys, once it has.
    pub(crate) async fn of(mxid: &str, asked_by: &User) -> Self {
        let device = until("the keys of a device", SOON, async || {
            asked_by.query_keys(mxid).await["device_keys"][mxid].as_object()?.values().next().cloned()
        })
        .await;
        let device_id = device["device_id"].as_str().unwrap().to_owned();
        let key = |kind: &str| device["keys"][format!("{kind}:{device_id}")].as_str().unwrap().to_owned();
        let (curve25519, ed25519) = (key("curve25519"), key("ed25519"));
        Self { mxid: mxid.to_owned(), device_id, curve25519, ed25519 }
    }
}

/// A device of the test's own.
pub(crate) struct Device {
    /// Who is logged in with it.
    pub(crate) user: User,
    account: Account,
    identity: Option<Identity>,
    tells_keys: bool,
    olm: Option<Session>,
    sent: usize,
}

/// A cross-signing identity, as far as it signs devices.
struct Identity {
    master: Ed25519SecretKey,
    self_signing: Ed25519SecretKey,
}

/// Adds a signature; without `preserve_order`, `serde_json` sorts keys: that is canonical JSON.
fn sign(value: &mut Value, mxid: &str, key_id: &str, sign: impl FnOnce(&[u8]) -> Ed25519Signature) {
    let signatures = value.as_object_mut().unwrap().remove("signatures");
    let signature = sign(value.to_string().as_bytes()).to_base64();
    value["signatures"] = signatures.unwrap_or_else(|| json!({mxid: {}}));
    value["signatures"][mxid][format!("ed25519:{key_id}")] = json!(signature);
}

impl Device {
    /// The device of a login; nobody knows its keys before they are [published](Self::publish).
    pub(crate) fn new(user: User) -> Self {
        Self { user, account: Account::new(), identity: None, tells_keys: false, olm: None, sent: 0 }
    }

    fn ed25519(&self) -> String {
        self.account.ed25519_key().to_base64()
    }

    fn curve25519(&self) -> String {
        self.account.curve25519_key().to_base64()
    }

    /// Gives its user a cross-signing identity, the first, which signs it from now on.
    pub(crate) async fn cross_sign(&mut self) {
        let mxid = &self.user.mxid;
        let identity = Identity { master: Ed25519SecretKey::new(), self_signing: Ed25519SecretKey::new() };
        let public = |key: &Ed25519SecretKey| key.public_key().to_base64();
        let key = |usage: &str, key: &Ed25519SecretKey| {
            let public = public(key);
            json!({"user_id": mxid, "usage": [usage], "keys": {format!("ed25519:{public}"): public}})
        };
        let master = key("master", &identity.master);
        let mut self_signing = key("self_signing", &identity.self_signing);
        sign(&mut self_signing, mxid, &public(&identity.master), |text| identity.master.sign(text));
        let body = json!({"master_key": master, "self_signing_key": self_signing});
        self.user.request("POST", "v3/keys/device_signing/upload", Some(&body)).await;
        self.identity = Some(identity);
        self.tell_keys();
    }

    /// Tells its keys along with every Olm message from now on (MSC4147).
    pub(crate) fn tell_keys(&mut self) {
        self.tells_keys = true;
    }

    fn device_keys(&self) -> Value {
        let (mxid, device_id) = (&self.user.mxid, &self.user.device_id);
        let mut keys = json!({
            "user_id": mxid, "device_id": device_id, "algorithms": [OLM, MEGOLM],
            "keys": {
                format!("curve25519:{device_id}"): self.curve25519(),
                format!("ed25519:{device_id}"): self.ed25519(),
            },
        });
        sign(&mut keys, mxid, device_id, |text| self.account.sign(text));
        if let Some(Identity { self_signing, .. }) = &self.identity {
            let key_id = self_signing.public_key().to_base64();
            sign(&mut keys, mxid, &key_id, |text| self_signing.sign(text));
        }
        keys
    }

    /// Publishes its keys.
    pub(crate) async fn publish(&self) {
        let body = json!({"device_keys": self.device_keys()});
        self.user.request("POST", "v3/keys/upload", Some(&body)).await;
    }

    /// Takes a one-time key of a device; answers it as the homeserver gave it.
    pub(crate) async fn claim(&self, peer: &Peer) -> Value {
        let body = json!({"one_time_keys": {&peer.mxid: {&peer.device_id: "signed_curve25519"}}});
        let mut answer = self.user.request("POST", "v3/keys/claim", Some(&body)).await;
        let keys = answer["one_time_keys"][&peer.mxid][&peer.device_id].take();
        keys.as_object().and_then(|keys| keys.values().next()).expect("there is a fallback key").clone()
    }

    /// Begins an Olm session with a claimed key.
    pub(crate) fn begin(&mut self, peer: &Peer, claimed: &Value) {
        let public = |key: &str| Curve25519PublicKey::from_base64(key).unwrap();
        let (ours, one_time) = (public(&peer.curve25519), public(claimed["key"].as_str().unwrap()));
        let config = SessionConfig::version_1();
        self.olm = Some(self.account.create_outbound_session(config, ours, one_time).unwrap());
    }

    /// Sends something to a device over Olm.
    pub(crate) async fn send_olm(&mut self, peer: &Peer, event_type: &str, content: &Value) {
        if self.olm.is_none() {
            let claimed = self.claim(peer).await;
            self.begin(peer, &claimed);
        }
        let mut plain = json!({
            "type": event_type, "content": content, "sender": self.user.mxid, "sender_device": self.user.device_id,
            "keys": {"ed25519": self.ed25519()},
            "recipient": peer.mxid, "recipient_keys": {"ed25519": peer.ed25519},
        });
        if self.tells_keys {
            plain["sender_device_keys"] = self.device_keys();
        }
        let message = self.olm.as_mut().unwrap().encrypt(plain.to_string()).unwrap();
        let content = json!({
            "algorithm": OLM, "sender_key": self.curve25519(), "ciphertext": {&peer.curve25519: message},
        });
        let body = json!({"messages": {&peer.mxid: {&peer.device_id: content}}});
        self.sent += 1;
        let path = format!("v3/sendToDevice/m.room.encrypted/{}", self.sent);
        self.user.request("PUT", &path, Some(&body)).await;
    }

    /// Gives a device the key of a session, as if this device had made it.
    pub(crate) async fn share(&mut self, peer: &Peer, room_id: &str, session: &GroupSession) {
        let content = json!({
            "algorithm": MEGOLM, "room_id": room_id, "session_id": session.session_id(),
            "session_key": session.session_key().to_base64(),
        });
        self.send_olm(peer, "m.room_key", &content).await;
    }

    /// Encrypts a text in a session.
    pub(crate) fn encrypt(&self, room_id: &str, session: &mut GroupSession, text: &str) -> Value {
        let plain = json!({
            "type": "m.room.message", "room_id": room_id, "content": {"msgtype": "m.text", "body": text},
        });
        json!({
            "algorithm": MEGOLM, "ciphertext": session.encrypt(plain.to_string()).to_base64(),
            "session_id": session.session_id(), "sender_key": self.curve25519(), "device_id": self.user.device_id,
        })
    }
}

/// The key of a session as bundles and exports have it, by a device that says that it made it.
pub(crate) fn exported(device: &Device, room_id: &str, session: &GroupSession) -> Value {
    let inbound = InboundGroupSession::new(&session.session_key(), megolm::SessionConfig::version_1());
    json!({
        "algorithm": MEGOLM, "room_id": room_id, "session_id": session.session_id(),
        "session_key": inbound.export_at_first_known_index().to_base64(),
        "sender_key": device.curve25519(), "sender_claimed_keys": {"ed25519": device.ed25519()},
    })
}

/// Sends an encrypted content; answers the event's id.
pub(crate) async fn send_encrypted(user: &User, room_id: &str, content: &Value) -> String {
    let path = format!("v3/rooms/{room_id}/send/m.room.encrypted/{:032x}", rand::random::<u128>());
    user.request("PUT", &path, Some(content)).await["event_id"].as_str().unwrap().to_owned()
}
