//! What the fake homeserver and its bridge say is what the SDK understands.

use std::time::Duration;

use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::put};
use matrix_sdk_crypto::{
    DecryptionSettings, EncryptionSyncChanges, OlmMachine, TrustRequirement,
    types::{events::room::encrypted::EncryptedEvent, requests::AnyOutgoingRequest},
};
use ruma::{
    RoomId, UInt,
    api::client::{keys::upload_keys, sync::sync_events::DeviceLists},
    device_id,
    serde::Raw,
    user_id,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc};

use crate::support::{
    fake_homeserver::{FakeBridge, FakeHomeserver, Service},
    free_port, http,
};

const COUCOU: &str = "@coucou:localhost";
const SETTINGS: DecryptionSettings =
    DecryptionSettings { sender_device_trust_requirement: TrustRequirement::Untrusted };

/// An application service that writes down what it gets, and the homeserver it belongs to.
struct Scene {
    homeserver: FakeHomeserver,
    received: mpsc::UnboundedReceiver<Value>,
}

impl Scene {
    async fn set() -> Self {
        let port = free_port();
        let (sender, received) = mpsc::unbounded_channel();
        let take = async |State(sender): State<mpsc::UnboundedSender<Value>>, body: Bytes| {
            sender.send(serde_json::from_slice(&body).unwrap()).unwrap();
            (StatusCode::OK, "{}")
        };
        let router = Router::new().route("/_matrix/app/v1/transactions/{id}", put(take)).with_state(sender);
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let service = Service {
            url: format!("http://127.0.0.1:{port}"),
            as_token: "as".to_owned(),
            hs_token: "hs".to_owned(),
            sender_localpart: "_coucou_as".to_owned(),
        };
        Self { homeserver: FakeHomeserver::serve(service).await, received }
    }

    async fn request(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let url = format!("{}/_matrix/client/v3/{path}", self.homeserver.url());
        let request = http().request(method.parse().unwrap(), url).bearer_auth("as").body(body.to_string());
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap())
    }

    async fn pushed(&mut self) -> Value {
        self.received.recv().await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sdk_decrypts_what_the_bridge_encrypts() {
    let mut scene = Scene::set().await;
    let machine = OlmMachine::new(user_id!("@coucou:localhost"), device_id!("COUCOU")).await;
    upload_keys(&scene, &machine).await;
    assert_eq!(scene.homeserver.devices(COUCOU), ["COUCOU"]);
    let mut bridge = FakeBridge::new(&scene.homeserver, "instagram");
    let room_id = bridge.create_portal(&scene.homeserver, "1", "Alice");
    let before = scene.homeserver.one_time_keys(COUCOU, "COUCOU");
    let key = bridge.share_key(&scene.homeserver, &room_id, COUCOU, "COUCOU");
    assert_eq!(scene.homeserver.one_time_keys(COUCOU, "COUCOU"), before - 1);
    let said = bridge.say(&room_id, "1", "COUCOU");
    assert_eq!(scene.homeserver.push(&[said], &key).await, 200);
    let pushed = scene.pushed().await;
    assert_eq!(pushed["org.matrix.msc3202.device_lists"]["changed"], json!([COUCOU, bridge.bot()]));
    // The key is pushed, and in the inbox, until a sync has told it and another has acknowledged it.
    let path = format!("sync?user_id={COUCOU}&device_id=COUCOU");
    let (_, synced) = scene.request("GET", &path, &Value::Null).await;
    let event = &synced["to_device"]["events"][0];
    assert_eq!(event["content"], pushed["de.sorunome.msc2409.to_device"][0]["content"]);
    receive(&machine, event).await;
    let (_, synced) = scene
        .request("GET", &format!("{path}&since={}", synced["next_batch"].as_str().unwrap()), &Value::Null)
        .await;
    assert_eq!(synced["to_device"]["events"], json!([]));
    assert_eq!(scene.homeserver.inbox(COUCOU, "COUCOU"), 0);
    let event: Raw<EncryptedEvent> = serde_json::from_value(pushed["events"][0].clone()).unwrap();
    let room_id: &RoomId = room_id.as_str().try_into().unwrap();
    let clear = machine.decrypt_room_event(&event, room_id, &SETTINGS).await.unwrap();
    let clear: Value = serde_json::from_str(clear.event.json().get()).unwrap();
    assert_eq!(clear["content"]["body"], "COUCOU");
    assert_eq!(clear["sender"], bridge.ghost("1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_follows_an_invite_and_is_pushed() {
    let mut scene = Scene::set().await;
    let bridge = FakeBridge::new(&scene.homeserver, "facebook");
    let room_id = bridge.create_portal(&scene.homeserver, "1", "Alice");
    let join = format!("rooms/{room_id}/join?user_id={COUCOU}");
    assert_eq!(scene.request("POST", &join, &json!({})).await.0, 403);
    scene.homeserver.invite(&room_id, &bridge.bot(), COUCOU).await;
    let invite = scene.pushed().await;
    let stripped = &invite["events"][0]["invite_room_state"];
    assert!(stripped.as_array().unwrap().iter().all(|event| event["type"] != "m.bridge"), "{stripped}");
    let (_, synced) = scene.request("GET", &format!("sync?user_id={COUCOU}"), &Value::Null).await;
    assert!(synced["rooms"]["invite"][&room_id]["invite_state"]["events"].is_array());
    assert_eq!(scene.request("POST", &join, &json!({})).await.0, 200);
    scene.homeserver.wait_for_join(&room_id, COUCOU, Duration::from_secs(20)).await;
    let join = scene.pushed().await;
    assert_eq!(join["events"][0]["content"]["membership"], "join");
    let (_, state) =
        scene.request("GET", &format!("rooms/{room_id}/state?user_id={COUCOU}"), &Value::Null).await;
    let bridged = state.as_array().unwrap().iter().find(|event| event["type"] == "m.bridge").unwrap();
    assert_eq!(bridged["content"]["protocol"]["id"], "facebookgo");
    let (_, rooms) = scene.request("GET", &format!("joined_rooms?user_id={COUCOU}"), &Value::Null).await;
    assert_eq!(rooms["joined_rooms"], json!([room_id]));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_fails_on_demand_and_a_long_poll_ends_with_news() {
    let scene = Scene::set().await;
    scene.homeserver.fail("whoami", 503, 1);
    assert_eq!(scene.request("GET", "account/whoami", &Value::Null).await.0, 503);
    assert_eq!(
        scene.request("GET", "account/whoami", &Value::Null).await.1["user_id"],
        "@_coucou_as:localhost"
    );
    assert_eq!(scene.homeserver.requests("whoami").len(), 2);
    let device = format!("devices/COUCOU?user_id={COUCOU}");
    assert_eq!(scene.request("PUT", &device, &json!({"display_name": "coucou"})).await.0, 200);
    let poll = format!("sync?user_id={COUCOU}&device_id=COUCOU&since=s0&timeout=20000");
    let news = async {
        // The poll is under way, as a rule; when it is not yet, it finds the news at once.
        tokio::time::sleep(Duration::from_millis(100)).await;
        scene.homeserver.send_to_device("@a:localhost", "m.dummy", (COUCOU, "*"), &json!({}))
    };
    let none = Value::Null;
    let ((_, synced), pushed) = tokio::join!(scene.request("GET", &poll, &none), news);
    assert_eq!(synced["to_device"]["events"][0]["type"], "m.dummy");
    assert_eq!(pushed[0]["to_device_id"], "COUCOU");
}

async fn upload_keys(scene: &Scene, machine: &OlmMachine) {
    let path = format!("devices/COUCOU?user_id={COUCOU}");
    scene.request("PUT", &path, &json!({})).await;
    for outgoing in machine.outgoing_requests().await.unwrap() {
        if let AnyOutgoingRequest::KeysUpload(keys) = outgoing.request() {
            let body = json!({"device_keys": keys.device_keys, "one_time_keys": keys.one_time_keys});
            let path = format!("keys/upload?user_id={COUCOU}&device_id=COUCOU");
            let (status, answer) = scene.request("POST", &path, &body).await;
            assert_eq!(status, 200);
            let count = answer["one_time_key_counts"]["signed_curve25519"].as_u64().unwrap();
            let counts = [("signed_curve25519".into(), UInt::try_from(count).unwrap())].into();
            let answer = upload_keys::v3::Response::new(counts);
            machine.mark_request_as_sent(outgoing.request_id(), &answer).await.unwrap();
        }
    }
}

async fn receive(machine: &OlmMachine, event: &Value) {
    let event = serde_json::from_value(event.clone()).unwrap();
    let changes = EncryptionSyncChanges {
        to_device_events: vec![event],
        changed_devices: &DeviceLists::new(),
        one_time_keys_counts: &[].into(),
        unused_fallback_keys: None,
        next_batch_token: None,
    };
    let (_, keys) = machine.receive_sync_changes(changes, &SETTINGS).await.unwrap();
    assert_eq!(keys.len(), 1, "the room key is taken");
}
