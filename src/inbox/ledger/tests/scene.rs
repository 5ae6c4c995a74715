//! A worker, another process's hand on its store, and sessions to speak in.

use std::{sync::Arc, time::Duration};

use matrix_sdk_crypto::{
    olm::{ExportedRoomKey, InboundGroupSession},
    store::{CryptoStore as _, types::Changes},
    vodozemac::{
        Curve25519PublicKey,
        megolm::{self, GroupSession, SessionConfig},
    },
};
use ruma::{RoomId, device_id, user_id};
use serde_json::{Value, json};

use crate::{
    clock::ManualClock,
    crypto::store::AccountStore,
    inbox::{
        flow::GRACE,
        tests::{NOTIFY_AFTER, parts, payloads, push, settle, work},
        worker::Worker,
    },
    model::{Account, RelayPolicy, Role},
    store::{
        Store, accounts, inbox, leases,
        pending::{self, Filter, Order},
        readings::{self, Cause, Reading},
    },
    testing::{self, START, TestStore},
};

pub(super) const ROOM: &str = "!room";
pub(super) const OTHER_ROOM: &str = "!other";
pub(super) const SENDER: &str = "@a:example.org";

/// A worker with one account, and another process's hand on its store.
pub(super) struct Scene {
    pub(super) test: TestStore,
    pub(super) clock: Arc<ManualClock>,
    pub(super) account: Account,
    pub(super) worker: Worker,
    /// Of another process: it has a cache of its own, and wakes nobody.
    pub(super) other: AccountStore,
    pub(super) notify_after: Option<Duration>,
}

impl Scene {
    pub(super) async fn set(test: TestStore) -> Self {
        let mut tx = test.store.begin().await.unwrap();
        let (user, device) = (user_id!("@coucou:example.org"), device_id!("COUCOU"));
        accounts::insert(&mut tx, user, &device.to_owned(), Role::Bot, START).await.unwrap();
        tx.commit().await.unwrap();
        let account = accounts::find(test.store.db(), user).await.unwrap().unwrap();
        let clock = ManualClock::at(START);
        let notify_after = Some(NOTIFY_AFTER);
        let worker = worker(&test.store, &account, &clock, notify_after).await;
        let other = AccountStore::new(test.store.clone(), account.id, None, clock.clone());
        settle(&test.store, ROOM, json!([])).await;
        settle(&test.store, OTHER_ROOM, json!([])).await;
        let mut scene = Self { test, clock, account, worker, other, notify_after };
        scene.work().await;
        scene
    }

    pub(super) async fn both() -> [Self; 2] {
        let [one, two] = testing::both().await;
        [Self::set(one).await, Self::set(two).await]
    }

    pub(super) async fn work(&mut self) {
        work(&mut self.worker).await;
    }

    /// Pushes events, and works them through.
    pub(super) async fn push(&mut self, events: &[Value]) {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let txn_id = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string();
        push(&self.test.store, &txn_id, events).await;
        self.work().await;
    }

    /// Stores a part of a room's timeline, and works it through.
    pub(super) async fn miss(&mut self, events: &[Value]) {
        let store = &self.test.store;
        let body = json!({ "events": events }).to_string();
        let body = inbox::seal_body(store.seal().unwrap(), body.as_bytes()).unwrap();
        let mut tx = store.begin().await.unwrap();
        inbox::accept_missed(&mut tx, body, START).await.unwrap();
        tx.commit().await.unwrap();
        self.work().await;
    }

    /// Stores a part of a room that is read on, and works it through.
    pub(super) async fn read(&mut self, part: Value, events: &[Value]) {
        let store = &self.test.store;
        let mut reading = part;
        reading["room_id"] = ROOM.into();
        let room_id = <&RoomId>::try_from(ROOM).unwrap();
        let mut tx = store.begin().await.unwrap();
        if reading["begins"] == true {
            let reading = Reading::new(room_id, self.account.id, Cause::Gap, None);
            readings::put(&mut tx, &reading, START).await.unwrap();
        }
        if reading["ends"] == true {
            readings::finish(&mut tx, room_id, None).await.unwrap();
        }
        let body = json!({ "events": events, "reading": reading }).to_string();
        let body = inbox::seal_body(store.seal().unwrap(), body.as_bytes()).unwrap();
        inbox::accept_missed(&mut tx, body, START).await.unwrap();
        tx.commit().await.unwrap();
        self.work().await;
    }

    pub(super) async fn pass(&mut self, duration: Duration) {
        self.clock.advance(duration);
        self.work().await;
    }

    /// Lets the time pass in which an event holds up its room.
    pub(super) async fn give_up(&mut self) {
        self.pass(GRACE + Duration::from_millis(1)).await;
    }

    /// Stores a key as another process does, and works on.
    pub(super) async fn import(&mut self, key: InboundGroupSession) {
        let changes = Changes { inbound_group_sessions: vec![key], ..Changes::default() };
        self.other.save_changes(changes).await.unwrap();
        self.work().await;
    }

    /// Ends the worker as a power cut would, and starts another.
    pub(super) async fn restart(&mut self) {
        let mut tx = self.test.store.begin().await.unwrap();
        tx.execute("UPDATE leases SET lease_until = 0", vec![]).await.unwrap();
        tx.commit().await.unwrap();
        self.worker = worker(&self.test.store, &self.account, &self.clock, self.notify_after).await;
        self.work().await;
    }

    /// Type, text or target, and whether it is late, of all messages in order of their rooms.
    pub(super) async fn told(&self) -> Vec<(String, String, bool)> {
        let told = payloads(&self.test.store).await.into_iter().map(|payload| {
            let (kind, data) = (payload["type"].as_str().unwrap().to_owned(), &payload["data"]);
            let what = [&data["content"]["text"], &data["redacts"], &data["undecryptable"]["reason"]];
            let what = what.iter().find_map(|what| what.as_str()).unwrap_or_default().to_owned();
            (kind, what, data["late"].as_bool().unwrap())
        });
        told.collect()
    }

    pub(super) async fn texts(&self) -> Vec<String> {
        self.told().await.into_iter().map(|(_, text, _)| text).collect()
    }

    /// Event, reason and tries of all that is on the ledger.
    pub(super) async fn ledger(&self) -> Vec<(String, String, u64)> {
        let page =
            pending::page(self.test.store.db(), Filter::default(), Order::OldestFirst, None, 100).await;
        page.unwrap()
            .into_iter()
            .map(|entry| (entry.event_id, entry.reason.to_string(), entry.tries))
            .collect()
    }

    pub(super) async fn reasons(&self) -> Vec<(String, String)> {
        self.ledger().await.into_iter().map(|(event, reason, _)| (event, reason)).collect()
    }
}

async fn worker(
    store: &Store,
    account: &Account,
    clock: &Arc<ManualClock>,
    notify_after: Option<Duration>,
) -> Worker {
    let mut tx = store.begin().await.unwrap();
    let hour = Duration::from_hours(1);
    let lease = leases::claim(&mut tx, "crypto", "test", START, hour).await.unwrap().unwrap();
    tx.commit().await.unwrap();
    let engine = testing::engine(account, store, &lease, clock.clone()).await;
    let mut parts = parts(store, lease, RelayPolicy::All, clock).await;
    (parts.engines, parts.notify_after) = (vec![engine], notify_after);
    Worker::load(parts).await.unwrap()
}

/// A Megolm session of somebody's.
pub(super) struct Session {
    pub(super) outbound: GroupSession,
    pub(super) inbound: megolm::InboundGroupSession,
}

impl Session {
    pub(super) fn begin() -> Self {
        let outbound = GroupSession::new(SessionConfig::version_1());
        let inbound = megolm::InboundGroupSession::new(&outbound.session_key(), SessionConfig::version_1());
        Self { outbound, inbound }
    }

    /// The next message, as it is pushed.
    pub(super) fn say(&mut self, event_id: &str, text: &str) -> Value {
        self.send(event_id, &json!({"msgtype": "m.text", "body": text}))
    }

    pub(super) fn send(&mut self, event_id: &str, content: &Value) -> Value {
        let plain = json!({"type": "m.room.message", "room_id": ROOM, "content": content});
        let mut encrypted = json!({"algorithm": "m.megolm.v1.aes-sha2", "session_id": self.outbound.session_id(),
            "ciphertext": self.outbound.encrypt(plain.to_string()).to_base64()});
        if let Some(relation) = content.get("m.relates_to") {
            encrypted["m.relates_to"] = relation.clone();
        }
        json!({"event_id": event_id, "room_id": ROOM, "sender": SENDER, "type": "m.room.encrypted",
            "origin_server_ts": START.0 - 1000, "content": encrypted})
    }

    /// Its key from a message on.
    pub(super) fn key(&mut self, from: u32) -> InboundGroupSession {
        let exported = json!({
            "algorithm": "m.megolm.v1.aes-sha2", "room_id": ROOM, "session_id": self.outbound.session_id(),
            "session_key": self.inbound.export_at(from).unwrap().to_base64(),
            "sender_key": Curve25519PublicKey::from([7; 32]).to_base64(),
            "sender_claimed_keys": {}, "forwarding_curve25519_key_chain": [],
        });
        let exported: ExportedRoomKey = serde_json::from_value(exported).unwrap();
        InboundGroupSession::from_export(&exported).unwrap()
    }
}

pub(super) fn copy(event: &Value, event_id: &str, sender: &str, room: &str) -> Value {
    let mut copy = event.clone();
    (copy["event_id"], copy["sender"], copy["room_id"]) = (json!(event_id), json!(sender), json!(room));
    copy
}

pub(super) fn redaction(event_id: &str, room: &str, target: &str) -> Value {
    json!({"event_id": event_id, "room_id": room, "sender": SENDER, "type": "m.room.redaction",
        "origin_server_ts": START.0, "redacts": target, "content": {}})
}

pub(super) fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}
