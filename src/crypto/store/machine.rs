//! A real `OlmMachine` over the store: a bridge shares a room key with it and it decrypts, also after a
//! restart.

use std::{collections::BTreeMap, sync::Arc};

use matrix_sdk_crypto::{
    DecryptionSettings, EncryptionSettings, EncryptionSyncChanges, OlmMachine, TrustRequirement,
    types::requests::AnyOutgoingRequest,
};
use ruma::{
    DeviceId, OneTimeKeyAlgorithm, RoomId, TransactionId, UInt, UserId,
    api::client::{
        keys::{claim_keys, get_keys, upload_keys},
        sync::sync_events::DeviceLists,
        to_device::send_event_to_device,
    },
    device_id, room_id,
    serde::Raw,
    user_id,
};
use serde_json::{json, value::to_raw_value};

use super::AccountStore;
use crate::{
    clock::SystemClock,
    model::{AccountId, Role},
    store::accounts,
    testing::{self, START, TestStore},
};

const SETTINGS: DecryptionSettings =
    DecryptionSettings { sender_device_trust_requirement: TrustRequirement::Untrusted };

fn coucou() -> (&'static UserId, &'static DeviceId) {
    (user_id!("@coucou:example.org"), device_id!("COUCOU"))
}

fn bridge() -> (&'static UserId, &'static DeviceId) {
    (user_id!("@instagrambot:example.org"), device_id!("BRIDGE"))
}

fn room() -> &'static RoomId {
    room_id!("!portal:example.org")
}

/// Loads coucou's machine as a new process would; the store is the machine's own.
async fn load(test: &TestStore, account: AccountId) -> (OlmMachine, crate::store::Store) {
    let store = testing::open(&test.location, "test pickle key");
    store.prepare(START).await.unwrap();
    let crypto = Arc::new(AccountStore::new(store.clone(), account, None, Arc::new(SystemClock)));
    let (user, device) = coucou();
    (OlmMachine::with_store(user, device, crypto, None).await.unwrap(), store)
}

/// Takes the keys that a machine wants uploaded, as its homeserver would.
async fn upload(machine: &OlmMachine) -> upload_keys::v3::Request {
    for request in machine.outgoing_requests().await.unwrap() {
        if let AnyOutgoingRequest::KeysUpload(upload) = request.request() {
            let count = UInt::try_from(upload.one_time_keys.len()).unwrap();
            let counts = BTreeMap::from([(OneTimeKeyAlgorithm::SignedCurve25519, count)]);
            let response = upload_keys::v3::Response::new(counts);
            machine.mark_request_as_sent(request.request_id(), &response).await.unwrap();
            return upload.clone();
        }
    }
    panic!("a new machine uploads its keys");
}

fn query_response(keys: &[((&UserId, &DeviceId), &upload_keys::v3::Request)]) -> get_keys::v3::Response {
    let mut response = get_keys::v3::Response::new();
    for ((user, device), upload) in keys {
        let devices = BTreeMap::from([((*device).to_owned(), upload.device_keys.clone().unwrap())]);
        response.device_keys.insert((*user).to_owned(), devices);
    }
    response
}

/// The bridge finds coucou's device, and shares its room key with it.
async fn share(
    from: &OlmMachine,
    keys: &upload_keys::v3::Request,
) -> Vec<Raw<ruma::events::AnyToDeviceEvent>> {
    let (user, device) = coucou();
    from.update_tracked_users([user]).await.unwrap();
    let response = query_response(&[(coucou(), keys)]);
    from.mark_request_as_sent(&TransactionId::new(), &response).await.unwrap();
    let (id, _) = from.get_missing_sessions([user].into_iter()).await.unwrap().unwrap();
    let (name, key) = keys.one_time_keys.first_key_value().unwrap();
    let claimed = BTreeMap::from([(name.clone(), key.clone())]);
    let claimed = BTreeMap::from([(user.to_owned(), BTreeMap::from([(device.to_owned(), claimed)]))]);
    from.mark_request_as_sent(&id, &claim_keys::v3::Response::new(claimed)).await.unwrap();

    let settings = EncryptionSettings::default();
    let mut events = Vec::new();
    for request in from.share_room_key(room(), [user].into_iter(), settings).await.unwrap() {
        for content in request.messages.values().flat_map(BTreeMap::values) {
            let event = json!({"type": request.event_type, "sender": bridge().0, "content": content});
            events.push(Raw::from_json(to_raw_value(&event).unwrap()));
        }
        let response = send_event_to_device::v3::Response::new();
        from.mark_request_as_sent(&request.txn_id, &response).await.unwrap();
    }
    events
}

/// What a ghost says, encrypted by the bridge.
async fn say<T>(from: &OlmMachine, body: &str) -> Raw<T> {
    let content = Raw::from_json(to_raw_value(&json!({"msgtype": "m.text", "body": body})).unwrap());
    let content = from.encrypt_room_event_raw(room(), "m.room.message", &content).await.unwrap().content;
    let event = json!({
        "type": "m.room.encrypted", "event_id": format!("${body}"), "origin_server_ts": 1_760_000_000_000_i64,
        "sender": "@instagram_1:example.org", "content": content, "room_id": room(),
    });
    Raw::from_json(to_raw_value(&event).unwrap())
}

async fn receive(machine: &OlmMachine, to_device_events: Vec<Raw<ruma::events::AnyToDeviceEvent>>) -> usize {
    let changes = EncryptionSyncChanges {
        to_device_events,
        changed_devices: &DeviceLists::new(),
        one_time_keys_counts: &BTreeMap::new(),
        unused_fallback_keys: None,
        next_batch_token: None,
    };
    machine.receive_sync_changes(changes, &SETTINGS).await.unwrap().1.len()
}

async fn body(machine: &OlmMachine, from: &OlmMachine, text: &str) -> String {
    let event = say(from, text).await;
    let decrypted = machine.decrypt_room_event(&event, room(), &SETTINGS).await.unwrap();
    decrypted.event.get_field::<serde_json::Value>("content").unwrap().unwrap()["body"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn a_machine_decrypts_after_a_restart_and_reads_a_known_session_only_once() {
    for test in testing::both().await {
        let mut tx = test.store.begin().await.unwrap();
        let (user, device) = coucou();
        let account = accounts::insert(&mut tx, user, &device.to_owned(), Role::Bot, START).await.unwrap();
        tx.commit().await.unwrap();
        let (machine, store) = load(&test, account).await;
        let identity = machine.identity_keys();
        let keys = upload(&machine).await;
        let from = OlmMachine::new(bridge().0, bridge().1).await;
        let bridge_keys = upload(&from).await;
        machine.update_tracked_users([bridge().0]).await.unwrap();
        let response = query_response(&[(bridge(), &bridge_keys)]);
        machine.mark_request_as_sent(&TransactionId::new(), &response).await.unwrap();
        let room_keys = share(&from, &keys).await;
        assert_eq!(receive(&machine, room_keys.clone()).await, 1);
        assert_eq!(body(&machine, &from, "one").await, "one");
        store.close().await;

        // A new process on the same database; the repeat of the key is recognised.
        let (machine, store) = load(&test, account).await;
        assert_eq!(receive(&machine, room_keys).await, 0);
        assert_eq!(machine.identity_keys(), identity);
        assert_eq!(body(&machine, &from, "two").await, "two");
        // Everything the next event needs is cached now: it costs no query.
        store.close().await;
        assert_eq!(body(&machine, &from, "three").await, "three");
    }
}
