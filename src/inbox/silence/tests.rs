//! What the worker notices, with a hand-held clock, on both databases.

use std::{sync::Arc, time::Duration};

use ruma::{TransactionId, user_id};
use serde_json::{Value, json};

use super::*;
use crate::{
    clock::{Clock, ManualClock},
    inbox::{
        tests::{parts, payloads},
        worker::Progress,
    },
    model::{Account, RelayPolicy, Role},
    store::{accounts, inbox},
    testing::{self, START, TestStore},
};

const ROOM: &str = "!portal";
const MANAGEMENT: &str = "!management";
const BOT: &str = "@instagrambot:example.org";
const GHOST: &str = "@instagram_1:example.org";
const US: &str = "@coucou:example.org";

struct Scene {
    test: TestStore,
    clock: Arc<ManualClock>,
    account: Account,
    worker: Worker,
    events: u32,
}

fn member(user: &str, membership: &str) -> Value {
    json!({"type": "m.room.member", "state_key": user, "sender": user, "content": {"membership": membership}})
}

/// A portal's state.
fn portal() -> Vec<Value> {
    let claim = json!({"bridgebot": BOT, "protocol": {"id": "instagramgo"},
        "channel": {"id": "1", "displayname": "Alice", "fi.mau.receiver": "1784"}});
    let bridge =
        json!({"type": "m.bridge", "state_key": "example.org/instagram", "sender": BOT, "content": claim});
    vec![member(BOT, "join"), member(GHOST, "join"), member(US, "join"), bridge]
}

impl Scene {
    async fn all() -> Vec<Self> {
        let mut scenes = Vec::new();
        for test in testing::both().await {
            let mut tx = test.store.begin().await.unwrap();
            let device = "COUCOU1".into();
            accounts::insert(&mut tx, user_id!("@coucou:example.org"), &device, Role::Bot, START)
                .await
                .unwrap();
            tx.commit().await.unwrap();
            let account = accounts::all(test.store.db()).await.unwrap().remove(0);
            let clock = ManualClock::at(START);
            let worker = load(&test, &account, &clock, true).await;
            let mut scene = Self { test, clock, account, worker, events: 0 };
            scene.read(ROOM, &portal()).await;
            scene.join(ROOM).await;
            scenes.push(scene);
        }
        scenes
    }

    /// Another process takes over.
    async fn hand_over(&mut self) {
        self.worker = load(&self.test, &self.account, &self.clock, true).await;
    }

    async fn work(&mut self) {
        while self.worker.step().await.unwrap() == Progress::Worked {}
    }

    /// The state of a room comes.
    async fn read(&mut self, room: &str, state: &[Value]) {
        let state: Vec<Value> = state
            .iter()
            .cloned()
            .map(|mut event| {
                self.events += 1;
                event["event_id"] = json!(format!("$state{}", self.events));
                event["room_id"] = json!(room);
                event["origin_server_ts"] = json!(self.clock.now().0);
                event
            })
            .collect();
        let body = json!({"room_id": room, "state": state}).to_string();
        let body = inbox::seal_body(self.test.store.seal().unwrap(), body.as_bytes()).unwrap();
        let mut tx = self.test.store.begin().await.unwrap();
        inbox::accept_state(&mut tx, body, self.clock.now()).await.unwrap();
        tx.commit().await.unwrap();
        self.work().await;
    }

    /// Notes that our account is in a room.
    async fn join(&mut self, room: &str) {
        let event = member(US, "join");
        self.push(room, &event).await;
    }

    /// An event is pushed, and worked through. Answers it, to be pushed again.
    async fn push(&mut self, room: &str, event: &Value) -> Value {
        self.events += 1;
        let mut event = event.clone();
        event["event_id"] = json!(format!("$event{}", self.events));
        event["room_id"] = json!(room);
        if event.get("origin_server_ts").is_none() {
            event["origin_server_ts"] = json!(self.clock.now().0);
        }
        self.push_again(&event).await;
        event
    }

    async fn push_again(&mut self, event: &Value) {
        self.events += 1;
        let body = json!({"events": [event], "nonce": self.events}).to_string();
        let body = inbox::seal_body(self.test.store.seal().unwrap(), body.as_bytes()).unwrap();
        let txn_id = self.events.to_string();
        let mut tx = self.test.store.begin().await.unwrap();
        inbox::accept(&mut tx, <&TransactionId>::from(&*txn_id), body, self.clock.now()).await.unwrap();
        tx.commit().await.unwrap();
        self.work().await;
    }

    async fn say(&mut self, room: &str, sender: &str, content: Value) -> Value {
        self.push(room, &json!({"type": "m.room.message", "sender": sender, "content": content})).await
    }

    async fn notice(&mut self, room: &str, sender: &str, state: &str) -> Value {
        let msgtype = if state == "CONNECTED" { "m.notice" } else { "m.text" };
        let state = json!({"state_event": state, "remote_id": "1784", "remote_name": "alice"});
        self.say(room, sender, json!({"msgtype": msgtype, "body": "b", "fi.mau.bridge_state": state})).await
    }

    /// Time passes, an hour at a time at most.
    async fn pass(&mut self, duration: Duration) {
        let mut left = duration;
        while !left.is_zero() {
            let step = left.min(Duration::from_hours(1));
            self.clock.advance(step);
            self.work().await;
            left -= step;
        }
    }

    /// What was told of bridges, in order: type, reason and number.
    async fn told(&self) -> Vec<Value> {
        let mut told = payloads(&self.test.store).await;
        told.retain(|payload| payload["type"].as_str().unwrap().starts_with("bridge."));
        told.sort_by_key(|payload| (payload["timestamp"].to_string(), payload["data"]["sequence"].as_u64()));
        let deliveries = self.test.store.db();
        for payload in &told {
            let id = payload["data"]["id"].as_str().unwrap().to_owned();
            let sql = "SELECT COUNT(*) FROM deliveries WHERE message_id = $1";
            let count: Option<(i64,)> =
                deliveries.fetch_optional(sql, crate::store::db::values![id]).await.unwrap();
            assert_eq!(count, Some((1,)), "each goes to the webhook");
        }
        told
    }

    async fn types(&self) -> Vec<String> {
        let told = self.told().await.into_iter();
        told.map(|payload| {
            format!("{} {}", payload["type"].as_str().unwrap(), payload["data"]["reason"].as_str().unwrap())
        })
        .collect()
    }

    async fn active(&self) -> usize {
        silence::active(self.test.store.db(), 100).await.unwrap().len()
    }
}

async fn load(test: &TestStore, account: &Account, clock: &Arc<ManualClock>, enabled: bool) -> Worker {
    let store = &test.store;
    let mut tx = store.begin().await.unwrap();
    tx.execute("UPDATE leases SET lease_until = 0", vec![]).await.unwrap();
    let hour = Duration::from_hours(1);
    let lease = leases::claim(&mut tx, "crypto", "test", clock.now(), hour).await.unwrap().unwrap();
    tx.commit().await.unwrap();
    let engine = testing::engine(account, store, &lease, clock.clone()).await;
    let mut parts = parts(store, lease, RelayPolicy::Bridged, clock).await;
    parts.engines = vec![engine];
    parts.policy.our_users = Arc::new([account.user_id.clone()].into());
    if !enabled {
        parts.silence = None;
    }
    Worker::load(parts).await.unwrap()
}

/// Four weeks in which something came every hour.
async fn usual(test: &TestStore) {
    let last = hour_of(START);
    let hours: Vec<Hour> = (last - 4 * 168..=last)
        .flat_map(|hour| {
            let last_at = Timestamp(START.0 - (last - hour) * 3_600_000);
            ["instagram", WATCHED].map(|network| Hour {
                network: network.to_owned(),
                hour,
                count: 1,
                last_at,
            })
        })
        .collect();
    let mut tx = test.store.begin().await.unwrap();
    silence::add_hours(&mut tx, &hours).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn a_silence_is_told_once_whoever_notices_it_and_so_is_its_end() {
    for mut scene in Scene::all().await {
        usual(&scene.test).await;
        scene.hand_over().await;
        scene.pass(Duration::from_hours(5)).await;
        assert_eq!(scene.types().await, [""; 0], "not yet");
        scene.hand_over().await;
        scene.pass(Duration::from_hours(3)).await;
        let told = scene.told().await;
        assert_eq!(scene.types().await, ["bridge.silent no_messages"]);
        assert_eq!(told[0]["data"]["network"], "instagram");
        assert_eq!(told[0]["data"]["since"], START.rfc3339());
        assert_eq!(told[0]["data"]["resumes"], Value::Null);
        scene.pass(Duration::from_hours(3)).await;
        scene.hand_over().await;
        scene.pass(Duration::from_hours(30)).await;
        assert_eq!((scene.types().await.len(), scene.active().await), (1, 1), "and not again");

        // What we say ourselves, and what the bot says, is no sign of life.
        scene.say(ROOM, US, json!({"msgtype": "m.text", "body": "hello?"})).await;
        scene.say(ROOM, BOT, json!({"msgtype": "m.notice", "body": "not delivered"})).await;
        assert_eq!(scene.active().await, 1);
        scene.say(ROOM, GHOST, json!({"msgtype": "m.text", "body": "here"})).await;
        let over = scene.told().await;
        assert_eq!(scene.types().await, ["bridge.silent no_messages", "bridge.resumed no_messages"]);
        assert_eq!(over[1]["data"]["resumes"], told[0]["data"]["id"]);
        assert_eq!((&over[1]["data"]["sequence"], scene.active().await), (&json!(2), 0));
        scene.hand_over().await;
        scene.pass(Duration::from_hours(8)).await;
        assert_eq!(scene.types().await.len(), 3, "the next is told again");
    }
}

#[tokio::test]
async fn an_encrypted_message_that_nobody_can_read_is_a_sign_of_life() {
    for mut scene in Scene::all().await {
        usual(&scene.test).await;
        scene.hand_over().await;
        scene.pass(Duration::from_hours(8)).await;
        assert_eq!(scene.active().await, 1);
        let content = json!({"algorithm": "m.megolm.v1.aes-sha2", "session_id": "s", "ciphertext": "AwgA"});
        scene.push(ROOM, &json!({"type": "m.room.encrypted", "sender": GHOST, "content": content})).await;
        assert_eq!(scene.active().await, 0);
    }
}

#[tokio::test]
async fn a_network_whose_last_room_was_left_is_not_missed() {
    for mut scene in Scene::all().await {
        usual(&scene.test).await;
        scene.hand_over().await;
        scene.pass(Duration::from_hours(8)).await;
        assert_eq!(scene.active().await, 1);
        scene.push(ROOM, &member(US, "leave")).await;
        scene.pass(Duration::from_hours(1)).await;
        assert_eq!(scene.active().await, 0);
        scene.hand_over().await;
        scene.pass(Duration::from_hours(24)).await;
        assert_eq!(scene.types().await, ["bridge.silent no_messages"], "without another word");
    }
}

#[tokio::test]
async fn what_came_while_nobody_listened_is_no_silence() {
    for mut scene in Scene::all().await {
        usual(&scene.test).await;
        scene.hand_over().await;
        scene.pass(Duration::from_hours(2)).await;
        scene.clock.advance(Duration::from_hours(48));
        scene.hand_over().await;
        scene.pass(Duration::from_hours(3)).await;
        assert_eq!(scene.types().await, [""; 0], "coucou was away for two days");
        scene.clock.advance(Duration::from_hours(48));
        scene.pass(Duration::from_mins(30)).await;
        assert_eq!(scene.types().await, [""; 0], "or slept with the machine");
        scene.pass(Duration::from_hours(4)).await;
        assert_eq!(scene.types().await, ["bridge.silent no_messages"]);
    }
}

#[tokio::test]
async fn a_bot_that_leaves_is_told_in_its_rooms_order_and_so_is_its_return() {
    for mut scene in Scene::all().await {
        scene.say(ROOM, GHOST, json!({"msgtype": "m.text", "body": "one"})).await;
        let before = payloads(&scene.test.store).await.len();
        let gone = scene.push(ROOM, &member(BOT, "leave")).await;
        scene.push_again(&gone).await;
        scene.hand_over().await;
        scene.push_again(&gone).await;
        let told = scene.told().await;
        assert_eq!(scene.types().await, ["bridge.disconnected bot_left"]);
        let data = &told[0]["data"];
        assert_eq!(
            (&data["bot"], &data["room_id"], &data["room"]["name"]),
            (&json!(BOT), &json!(ROOM), &json!("Alice"))
        );
        assert_eq!((&data["network"], &data["sequence"]), (&json!("instagram"), &json!(before + 1)));
        scene.push(ROOM, &member(BOT, "join")).await;
        scene.push(ROOM, &member(BOT, "join")).await;
        assert_eq!(scene.types().await, ["bridge.disconnected bot_left", "bridge.resumed bot_left"]);
        assert_eq!(scene.told().await[1]["data"]["resumes"], data["id"]);

        // Seen when the room is read anew, too.
        let without: Vec<Value> = portal().into_iter().filter(|event| event["state_key"] != BOT).collect();
        scene.read(ROOM, &without).await;
        assert_eq!((scene.types().await.len(), scene.active().await), (3, 1));
        scene.push(ROOM, &member(US, "leave")).await;
        assert_eq!((scene.types().await.len(), scene.active().await), (3, 0), "then nobody sees");
    }
}

#[tokio::test]
async fn a_bot_that_leaves_a_room_which_was_replaced_is_not_disconnected() {
    for mut scene in Scene::all().await {
        let tombstone = json!({"type": "m.room.tombstone", "state_key": "", "sender": US,
            "content": {"body": "moved", "replacement_room": "!new"}});
        scene.push(ROOM, &tombstone).await;
        scene.push(ROOM, &member(BOT, "leave")).await;
        assert_eq!(scene.types().await, [""; 0]);
        // Nor when all of it was missed, and is seen in the room's state.
        scene.read("!other", &portal()).await;
        let mut state = portal();
        state.retain(|event| event["state_key"] != BOT);
        state.push(tombstone.clone());
        scene.read("!other", &state).await;
        assert_eq!(scene.types().await, [""; 0]);
        // When the bot has left before, that is over with the tombstone, whoever sees it.
        scene.read("!third", &portal()).await;
        scene.push("!third", &member(BOT, "leave")).await;
        assert_eq!(
            (scene.types().await, scene.active().await),
            (vec!["bridge.disconnected bot_left".to_owned()], 1)
        );
        scene.push("!third", &tombstone).await;
        assert_eq!((scene.types().await.len(), scene.active().await), (2, 0));
    }
}

#[tokio::test]
async fn an_alarm_about_a_replaced_room_ends_with_the_next_look() {
    for mut scene in Scene::all().await {
        scene.push(ROOM, &member(BOT, "leave")).await;
        assert_eq!(scene.active().await, 1);
        // As an earlier version left it, which knew no difference.
        let tombstone = json!({"type": "m.room.tombstone", "state_key": "", "sender": US,
            "content": {"body": "moved", "replacement_room": "!new"}});
        scene.push(ROOM, &tombstone).await;
        let mut tx = scene.test.store.begin().await.unwrap();
        tx.execute("UPDATE bridge_alarms SET ended_at = NULL", vec![]).await.unwrap();
        tx.commit().await.unwrap();
        scene.hand_over().await;
        scene.pass(Duration::from_mins(2)).await;
        assert_eq!(scene.active().await, 0);
    }
}

#[tokio::test]
async fn a_room_that_never_had_its_bot_is_not_news() {
    for mut scene in Scene::all().await {
        let without: Vec<Value> = portal().into_iter().filter(|event| event["state_key"] != BOT).collect();
        scene.read("!old", &without).await;
        scene.join("!old").await;
        scene.push("!old", &member(GHOST, "leave")).await;
        assert_eq!(scene.types().await, [""; 0]);
    }
}

#[tokio::test]
async fn a_lost_login_is_told_until_the_bridge_or_a_message_says_otherwise() {
    for mut scene in Scene::all().await {
        scene.read(MANAGEMENT, &[member(BOT, "join"), member(US, "join")]).await;
        scene.notice(MANAGEMENT, "@friend:example.org", "BAD_CREDENTIALS").await;
        scene.notice(MANAGEMENT, BOT, "CONNECTED").await;
        assert_eq!(scene.types().await, [""; 0], "not of anybody, and no end without a beginning");
        let lost = scene.notice(MANAGEMENT, BOT, "BAD_CREDENTIALS").await;
        scene.push_again(&lost).await;
        scene.pass(Duration::from_mins(1)).await;
        scene.notice(MANAGEMENT, BOT, "BAD_CREDENTIALS").await;
        scene.hand_over().await;
        let told = scene.told().await;
        assert_eq!(scene.types().await, ["bridge.disconnected login_lost"]);
        let login = json!({"id": "1784", "name": "alice", "status": "BAD_CREDENTIALS", "error": null});
        assert_eq!((&told[0]["data"]["login"], &told[0]["data"]["network"]), (&login, &json!("instagram")));
        assert_eq!(payloads(&scene.test.store).await.len(), 2, "and nothing else of that room is kept");

        scene.pass(Duration::from_mins(1)).await;
        scene.notice(MANAGEMENT, BOT, "CONNECTED").await;
        scene.push_again(&lost).await;
        assert_eq!(scene.types().await.len(), 2, "an old notice is known for old");
        assert_eq!(
            (scene.told().await[1]["type"].as_str(), scene.active().await),
            (Some("bridge.resumed"), 0)
        );

        scene.pass(Duration::from_mins(1)).await;
        scene.notice(MANAGEMENT, BOT, "UNKNOWN_ERROR").await;
        scene.pass(Duration::from_mins(1)).await;
        scene.notice(MANAGEMENT, BOT, "LOGGED_OUT").await;
        assert_eq!((scene.types().await.len(), scene.active().await), (4, 1), "another state is told, too");
        let old = scene.clock.now().minus(Duration::from_hours(9)).0;
        let message =
            json!({"type": "m.room.message", "sender": GHOST, "content": {"msgtype": "m.text", "body": "x"}});
        let mut history = message.clone();
        history["origin_server_ts"] = json!(old);
        scene.push(ROOM, &history).await;
        assert_eq!(scene.active().await, 1, "history says nothing");
        scene.pass(Duration::from_mins(1)).await;
        scene.push(ROOM, &message).await;
        assert_eq!((scene.types().await.len(), scene.active().await), (5, 0), "news do");
    }
}

#[tokio::test]
async fn pushes_that_stop_while_the_lane_moves_are_told() {
    for mut scene in Scene::all().await {
        let account_id = scene.account.id;
        let page = async |scene: &mut Scene, to_device: Value| {
            let body = json!({
                "next_batch": "s1", "to_device": to_device,
                "device_lists_changed": [GHOST], "device_lists_left": [], "one_time_key_counts": {},
            });
            let body = body.to_string();
            let body = inbox::seal_body(scene.test.store.seal().unwrap(), body.as_bytes()).unwrap();
            let mut tx = scene.test.store.begin().await.unwrap();
            inbox::accept_lane(&mut tx, account_id, body, scene.clock.now()).await.unwrap();
            tx.commit().await.unwrap();
            scene.work().await;
        };
        let lane = async |scene: &mut Scene| {
            let sent = json!({"type": "m.room.encrypted", "sender": BOT, "content": {}});
            page(scene, json!([sent])).await;
        };
        scene.pass(Duration::from_hours(10)).await;
        // A night in which devices come and go, and keys are counted.
        for _ in 0..3 {
            page(&mut scene, json!([])).await;
            let request = json!({"type": "m.room_key_request", "sender": BOT, "content": {}});
            page(&mut scene, json!([request])).await;
            scene.pass(Duration::from_mins(20)).await;
        }
        assert_eq!(scene.types().await, [""; 0], "nothing of that is pushed by itself");
        lane(&mut scene).await;
        scene.pass(Duration::from_mins(20)).await;
        assert_eq!(scene.types().await, [""; 0], "one is not enough, however long nothing was pushed");
        scene.say(ROOM, GHOST, json!({"msgtype": "m.text", "body": "one"})).await;
        let pushed_at = scene.clock.now();
        for _ in 0..3 {
            scene.pass(Duration::from_mins(5)).await;
            lane(&mut scene).await;
        }
        assert_eq!(scene.types().await, [""; 0], "not yet");
        scene.pass(Duration::from_mins(5)).await;
        lane(&mut scene).await;
        scene.pass(Duration::from_mins(1)).await;
        scene.hand_over().await;
        scene.pass(Duration::from_hours(2)).await;
        assert_eq!(scene.types().await, ["bridge.silent no_transactions"]);
        let told = scene.told().await;
        assert_eq!(
            (&told[0]["data"]["since"], &told[0]["data"]["network"]),
            (&json!(pushed_at.rfc3339()), &Value::Null)
        );
        scene.say(ROOM, GHOST, json!({"msgtype": "m.text", "body": "two"})).await;
        scene.pass(Duration::from_mins(1)).await;
        assert_eq!(scene.types().await, ["bridge.silent no_transactions", "bridge.resumed no_transactions"]);
        assert_eq!(scene.told().await[1]["data"]["sequence"], 2);
    }
}

#[tokio::test]
async fn nothing_is_told_when_it_is_turned_off() {
    for mut scene in Scene::all().await {
        scene.push(ROOM, &member(BOT, "leave")).await;
        assert_eq!(scene.active().await, 1);
        scene.worker = load(&scene.test, &scene.account, &scene.clock, false).await;
        assert_eq!(scene.active().await, 0, "nobody looks any more");
        scene.push(ROOM, &member(BOT, "join")).await;
        scene.push(ROOM, &member(BOT, "leave")).await;
        scene.notice(ROOM, BOT, "BAD_CREDENTIALS").await;
        scene.pass(Duration::from_hours(30)).await;
        assert_eq!((scene.types().await.len(), scene.active().await), (1, 0));
        assert!(silence::heard(scene.test.store.db()).await.unwrap().is_empty());
    }
}
