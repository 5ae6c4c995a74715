//! Faults and timing, on the fake homeserver: the real binary between it and a webhook.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    coucou::Coucou,
    fake_homeserver::{FakeBridge, FakeHomeserver, event},
    http,
    receiver::{Answer, Attempt, Receiver},
    until,
};

const BOT: &str = "@coucou:localhost";
const SOON: Duration = Duration::from_mins(1);

/// Everything in place: coucou has joined a portal, and the room's key is not shared yet.
struct Scene {
    coucou: Coucou,
    homeserver: FakeHomeserver,
    bridge: FakeBridge,
    receiver: Receiver,
    device_id: String,
    room_id: String,
}

impl Scene {
    async fn set() -> Self {
        let coucou = Coucou::new().await;
        let homeserver = FakeHomeserver::start(&coucou).await;
        let receiver = Receiver::start().await;
        let mut coucou = coucou.homeserver(&homeserver.url()).webhook(&receiver);
        coucou.start().await;
        let device_id = homeserver.wait_for_device(BOT, SOON).await;
        let bridge = FakeBridge::new(&homeserver, "instagram");
        let room_id = bridge.create_portal(&homeserver, "1", "Alice");
        homeserver.invite(&room_id, &bridge.bot(), BOT).await;
        homeserver.wait_for_join(&room_id, BOT, SOON).await;
        Self { coucou, homeserver, bridge, receiver, device_id, room_id }
    }

    fn share_key(&mut self) -> Vec<Value> {
        self.bridge.share_key(&self.homeserver, &self.room_id, BOT, &self.device_id)
    }

    fn say(&mut self, text: &str) -> Value {
        self.bridge.say(&self.room_id, "1", text)
    }

    async fn texts(&self, count: usize) -> Vec<String> {
        texts(&self.receiver.wait_for(count, SOON).await)
    }
}

fn texts(messages: &[Attempt]) -> Vec<String> {
    let text = |message: &Attempt| message.data()["content"]["text"].as_str().unwrap_or_default().to_owned();
    messages.iter().map(text).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn homeserver_resends_a_transaction() {
    let mut scene = Scene::set().await;
    let (key, said) = (scene.share_key(), [scene.say("one"), scene.say("two")]);
    let transaction = scene.homeserver.transaction(&said, &key);
    assert_eq!(scene.homeserver.put(&transaction).await, 200);
    assert_eq!(scene.homeserver.put(&transaction).await, 200, "a repeat is a success");
    assert_eq!(scene.homeserver.put(&transaction.retried()).await, 200, "and so is one without its keys");
    // Ids begin again at 1 after some restarts of a homeserver: other content is another transaction.
    let mut restarted = scene.homeserver.transaction(&[scene.bridge.say(&scene.room_id, "1", "three")], &[]);
    restarted.txn_id.clone_from(&transaction.txn_id);
    assert_eq!(scene.homeserver.put(&restarted).await, 200);
    // The same event in yet another transaction is the same event.
    assert_eq!(scene.homeserver.push(&said, &[]).await, 200);
    let last = scene.say("four");
    assert_eq!(scene.homeserver.push(&[last], &[]).await, 200);
    assert_eq!(scene.texts(4).await, ["one", "two", "three", "four"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_never_pushed_comes_by_sync() {
    let mut scene = Scene::set().await;
    scene.share_key();
    let said = [scene.say("one"), scene.say("two")];
    assert_eq!(scene.homeserver.push(&said, &[]).await, 200);
    assert_eq!(scene.texts(2).await, ["one", "two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_lane_that_often_failed_is_soon_back_while_the_homeserver_pushes() {
    let mut scene = Scene::set().await;
    scene.homeserver.fail("/sync", 502, usize::MAX);
    for _ in 0..7 {
        let before = scene.homeserver.requests("/sync").len();
        until("the lane to fail again", SOON, async || {
            assert_eq!(scene.homeserver.push(&[], &[]).await, 200);
            (scene.homeserver.requests("/sync").len() > before).then_some(())
        })
        .await;
    }
    scene.share_key();
    let said = scene.say("one");
    assert_eq!(scene.homeserver.push(&[said], &[]).await, 200);
    scene.homeserver.mend();
    // A lane that doubled its wait with each failure would be back in a minute.
    assert_eq!(texts(&scene.receiver.wait_for(1, Duration::from_secs(20)).await), ["one"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn key_arrives_late() {
    let mut scene = Scene::set().await;
    let room_id = scene.room_id.clone();
    let key = scene.bridge.room_key(&room_id);
    let said = [scene.say("one"), scene.say("two")];
    assert_eq!(scene.homeserver.push(&said, &[]).await, 200);
    // Another session's messages pass those that wait, and show that these have been looked at.
    scene.bridge.rotate(&room_id);
    let (next_key, next) = (scene.share_key(), scene.say("three"));
    assert_eq!(scene.homeserver.push(&[next], &next_key).await, 200);
    assert_eq!(scene.texts(1).await, ["three"]);
    scene.coucou.restart().await;
    let pushed = scene.bridge.send_key(&scene.homeserver, &key, BOT, &scene.device_id);
    scene.homeserver.push_until_taken(&[], &pushed).await;
    let messages = scene.receiver.wait_for(3, SOON).await;
    assert_eq!(texts(&messages), ["three", "one", "two"]);
    let numbers: Vec<_> = messages.iter().map(|message| message.data()["sequence"].clone()).collect();
    assert_eq!(numbers, [2, 3, 4], "the first one tells that the room is read");
}

#[tokio::test(flavor = "multi_thread")]
async fn webhook_down() {
    let mut scene = Scene::set().await;
    scene.receiver.answer_always(Some(Answer::Status(503)));
    let (key, said) = (scene.share_key(), [scene.say("one"), scene.say("two"), scene.say("three")]);
    assert_eq!(scene.homeserver.push(&said, &key).await, 200);
    scene.receiver.wait_for_attempts(1, SOON).await;
    scene.coucou.restart().await;
    scene.receiver.answer_next([Answer::Close]);
    scene.receiver.answer_always(None);
    assert_eq!(scene.texts(3).await, ["one", "two", "three"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_between_key_and_message() {
    let mut scene = Scene::set().await;
    let key = scene.share_key();
    assert_eq!(scene.homeserver.push(&[], &key).await, 200);
    scene.coucou.restart().await;
    let said = scene.say("one");
    scene.homeserver.push_until_taken(&[said], &[]).await;
    assert_eq!(scene.texts(1).await, ["one"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_transactions_are_refused_or_passed_over() {
    let mut scene = Scene::set().await;
    let (key, said) = (scene.share_key(), scene.say("genuine"));
    let put = async |path: &str, token: &str, body: Vec<u8>| {
        let url = format!("{}/{path}", scene.coucou.url());
        let answer = http().put(url).bearer_auth(token).body(body).send().await.unwrap();
        let status = answer.status().as_u16();
        let body: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default();
        (status, body["errcode"].as_str().unwrap_or_default().to_owned())
    };
    let own = scene.coucou.registered("hs_token");
    let transactions = "_matrix/app/v1/transactions";
    let empty = || br#"{"events":[]}"#.to_vec();
    let path = format!("{transactions}/bad1");
    assert_eq!(put(&path, "wrong", empty()).await, (403, "M_FORBIDDEN".to_owned()));
    let url = format!("{}/{path}", scene.coucou.url());
    let anonymous = http().put(url).body(empty()).send().await.unwrap();
    assert!(matches!(anonymous.status().as_u16(), 401 | 403), "{anonymous:?}");
    assert_eq!(put(&path, &own, b"{\"events\": [".to_vec()).await, (400, "M_NOT_JSON".to_owned()));
    assert_eq!(put(&path, &own, vec![b' '; 33 << 20]).await, (413, "M_TOO_LARGE".to_owned()));
    assert_eq!(put("_matrix/app/v1/nothing", &own, empty()).await, (404, "M_UNRECOGNIZED".to_owned()));
    let (room_id, ghost) = (scene.room_id.clone(), scene.bridge.ghost("1"));
    let mut homeless =
        event(&room_id, &ghost, "m.room.message", &json!({"msgtype": "m.text", "body": "homeless"}));
    homeless.as_object_mut().unwrap().remove("room_id");
    let mut odd = homeless.clone();
    (odd["event_id"], odd["room_id"]) = (json!(7), json!(["!room"]));
    let garbage = json!({"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "AwgA?", "session_id": "x", "sender_key": 1});
    let garbage = event(&room_id, &ghost, "m.room.encrypted", &garbage);
    let unknown =
        event(&room_id, &ghost, "m.room.encrypted", &json!({"algorithm": "m.rot13", "ciphertext": "uryyb"}));
    let events = [homeless, odd, json!("text"), Value::Null, garbage, unknown, said];
    assert_eq!(scene.homeserver.push(&events, &key).await, 200);
    let last = scene.say("last");
    assert_eq!(scene.homeserver.push(&[last], &[]).await, 200);
    assert_eq!(scene.texts(2).await, ["genuine", "last"], "what is good passes");
    scene.coucou.process().assert_alive();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_was_said_and_no_key_is_in_the_log_at_any_level() {
    let mut scene = Scene::set().await;
    assert!(scene.coucou.terminate().await.success());
    scene.coucou = scene.coucou.set("COUCOU_LOG_FILTER", "trace");
    scene.coucou.start().await;
    let key = scene.bridge.room_key(&scene.room_id);
    let pushed = scene.bridge.send_key(&scene.homeserver, &key, BOT, &scene.device_id);
    let said = [scene.say("told to nobody else"), scene.say("nor is this")];
    scene.homeserver.push_until_taken(&said, &pushed).await;
    assert_eq!(scene.texts(2).await, ["told to nobody else", "nor is this"]);
    let key_of_room = key["session_key"].as_str().unwrap();
    assert!(scene.coucou.terminate().await.success());
    let log = scene.coucou.log();
    assert!(log.contains("TRACE"), "everything is logged");
    for secret in ["told to nobody", "nor is this", &key_of_room[..40], scene.receiver.secret()] {
        assert!(!log.contains(secret), "{secret:?} is in the log");
    }
}
