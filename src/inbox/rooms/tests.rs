//! Whose words are told as the owner's, and by which bridge, as the worker sees it.

use std::time::Duration;

use ruma::owned_user_id;
use serde_json::{Value, json};

use crate::{
    clock::ManualClock,
    inbox::{
        Worker,
        tests::{count, parts, payloads, push, settle, text, work, worker},
    },
    model::RelayPolicy,
    store::{Store, leases},
    testing::{self, START},
};

const BOT: &str = "@instagrambot:example.org";
const OWN: &str = "@instagram_178:example.org";
const OTHER: &str = "@instagram_1:example.org";

fn claim(sender: &str, bot: &str, receiver: Option<&str>) -> Value {
    let mut channel = json!({"id": "1"});
    if let Some(receiver) = receiver {
        channel["fi.mau.receiver"] = json!(receiver);
    }
    json!({"type": "m.bridge", "state_key": "example.org/instagram", "sender": sender,
        "content": {"bridgebot": bot, "protocol": {"id": "instagramgo"}, "channel": channel}})
}

/// As an event of a room's timeline.
fn pushed(id: &str, room: &str, state: &Value) -> Value {
    let mut event = state.clone();
    (event["event_id"], event["room_id"]) = (json!(id), json!(room));
    event["origin_server_ts"] = json!(START.0);
    event
}

fn says(id: &str, room: &str, sender: &str) -> Value {
    let mut event = text(id, room, id);
    event["sender"] = json!(sender);
    event
}

/// What was told: the event, its direction, and the login.
async fn told(store: &Store) -> Vec<(String, String, Value)> {
    let payloads = payloads(store).await.into_iter().map(|payload| {
        let data = &payload["data"];
        let text = |key: &str| data[key].as_str().unwrap().to_owned();
        (text("event_id"), text("direction"), data["room"]["login"].clone())
    });
    let mut told: Vec<_> = payloads.collect();
    told.sort_by(|one, other| one.0.cmp(&other.0));
    told
}

fn is(id: &str, direction: &str, login: &Value) -> (String, String, Value) {
    (id.to_owned(), direction.to_owned(), login.clone())
}

#[tokio::test]
async fn a_login_counts_for_all_that_comes_in_its_transaction() {
    let login = json!("178");
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut worker = worker(store, RelayPolicy::Bridged, &clock).await;
        settle(store, "!group", json!([claim(BOT, BOT, None)])).await;
        push(store, "1", &[says("$1", "!group", OWN)]).await;
        work(&mut worker).await;
        // The conversation that names the login is new, and its state is not read yet.
        let dm = pushed("$dm", "!dm", &claim(BOT, BOT, Some("178")));
        let group = [says("$2", "!group", OWN), says("$3", "!group", OTHER), dm];
        push(store, "2", &group).await;
        work(&mut worker).await;
        let expected = [is("$1", "in", &Value::Null), is("$2", "out", &login), is("$3", "in", &login)];
        assert_eq!(told(store).await, expected);
        assert_eq!(count(store, "SELECT COUNT(*) FROM bridge_logins").await, 1);
    }
}

#[tokio::test]
async fn a_login_of_a_room_without_the_owner_is_not_foreseen() {
    let test = testing::sqlite().await;
    let (store, clock) = (&test.store, ManualClock::at(START));
    let mut tx = store.begin().await.unwrap();
    let lease =
        leases::claim(&mut tx, "crypto", "test", START, Duration::from_hours(1)).await.unwrap().unwrap();
    tx.commit().await.unwrap();
    let mut parts = parts(store, lease, RelayPolicy::Bridged, &clock).await;
    parts.policy.trust.owner = Some(owned_user_id!("@owner:example.org"));
    let mut worker = Worker::load(parts).await.unwrap();
    let owner = json!({"type": "m.room.member", "state_key": "@owner:example.org", "sender": BOT,
        "content": {"membership": "join"}});
    settle(store, "!group", json!([claim(BOT, BOT, None), owner])).await;
    work(&mut worker).await;
    let dm = pushed("$dm", "!dm", &claim(BOT, BOT, Some("178")));
    push(store, "1", &[says("$1", "!group", OWN), dm.clone()]).await;
    work(&mut worker).await;
    assert_eq!(told(store).await, [is("$1", "in", &Value::Null)], "a login of anybody's");
    let join = pushed("$join", "!dm", &owner);
    push(store, "2", &[says("$2", "!group", OWN), dm, join]).await;
    work(&mut worker).await;
    assert_eq!(told(store).await[1..], [is("$2", "out", &json!("178"))]);
}

#[tokio::test]
async fn a_login_counts_for_all_that_comes_with_it_though_the_bridge_is_new() {
    let login = json!("178");
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut worker = worker(store, RelayPolicy::Bridged, &clock).await;
        let dm = pushed("$dm", "!dm", &claim(BOT, BOT, Some("178")));
        push(store, "1", &[says("$1", "!group", OWN), dm, says("$2", "!group", OTHER)]).await;
        work(&mut worker).await;
        assert_eq!(count(store, "SELECT COUNT(*) FROM bridge_logins").await, 0, "nobody believes it yet");
        // The group's state is read first.
        settle(store, "!group", json!([claim(BOT, BOT, None)])).await;
        work(&mut worker).await;
        assert_eq!(told(store).await, [is("$1", "out", &login), is("$2", "in", &login)]);
        settle(store, "!dm", json!([claim(BOT, BOT, Some("178"))])).await;
        push(store, "2", &[says("$3", "!dm", OWN), says("$4", "!dm", OTHER)]).await;
        work(&mut worker).await;
        assert_eq!(told(store).await[2..], [is("$3", "out", &login), is("$4", "in", &login)]);
    }
}

#[tokio::test]
async fn a_login_that_an_earlier_version_has_read_is_known() {
    let login = json!("178");
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut first = worker(store, RelayPolicy::Bridged, &clock).await;
        settle(store, "!group", json!([claim(BOT, BOT, None)])).await;
        settle(store, "!dm", json!([claim(BOT, BOT, Some("178"))])).await;
        work(&mut first).await;
        let mut tx = store.begin().await.unwrap();
        tx.execute("DELETE FROM bridge_logins", vec![]).await.unwrap();
        tx.execute("DELETE FROM leases", vec![]).await.unwrap();
        tx.commit().await.unwrap();
        let mut second = worker(store, RelayPolicy::Bridged, &clock).await;
        push(store, "1", &[says("$1", "!group", OWN)]).await;
        work(&mut second).await;
        assert_eq!(told(store).await, [is("$1", "out", &login)]);
        assert_eq!(count(store, "SELECT COUNT(*) FROM bridge_logins").await, 1);
    }
}

#[tokio::test]
async fn a_mark_in_the_clear_makes_nobody_the_owner() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut worker = worker(store, RelayPolicy::All, &clock).await;
        let join = |user: &str| json!({"type": "m.room.member", "state_key": user, "sender": user, "content": {"membership": "join"}});
        let (jane, mallory) = ("@jane:example.org", "@mallory:example.org");
        settle(store, "!one", json!([claim(BOT, BOT, None), join(BOT), join(OTHER), join(jane)])).await;
        let both = json!([claim(BOT, BOT, None), join(BOT), join(OTHER), join(jane), join(mallory)]);
        settle(store, "!two", both).await;
        settle(store, "!plain", json!([join(mallory)])).await;
        let marked = |id: &str, room: &str, sender: &str| {
            let mut event = says(id, room, sender);
            event["content"]["fi.mau.double_puppet_source"] = json!("mautrix-instagram");
            event
        };
        let events = [
            marked("$1", "!one", jane),
            says("$2", "!one", jane),
            marked("$3", "!two", mallory),
            marked("$4", "!plain", mallory),
            marked("$5", "!one", OTHER),
        ];
        push(store, "1", &events).await;
        work(&mut worker).await;
        let directions: Vec<_> = told(store).await.into_iter().map(|(_, direction, _)| direction).collect();
        assert_eq!(directions, ["out", "in", "in", "in", "in"]);
    }
}

#[tokio::test]
async fn what_two_bridges_bring_is_told_as_each_ones_own() {
    const SECOND: &str = "@facebookbot:example.org";
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut worker = worker(store, RelayPolicy::Bridged, &clock).await;
        let theirs = json!({"type": "m.bridge", "state_key": "example.org/facebook", "sender": SECOND,
            "content": {"bridgebot": SECOND, "protocol": {"id": "facebookgo"},
                "channel": {"id": "2", "fi.mau.receiver": "100"}}});
        settle(store, "!known", json!([theirs])).await;
        settle(store, "!both", json!([claim(BOT, BOT, Some("178")), theirs])).await;
        let senders =
            [OTHER, OWN, "@facebook_9:example.org", "@facebook_100:example.org", "@jane:example.org", SECOND];
        let events: Vec<_> =
            senders.iter().enumerate().map(|(n, sender)| says(&format!("${n}"), "!both", sender)).collect();
        push(store, "1", &events).await;
        work(&mut worker).await;
        let told: Vec<_> = payloads(store)
            .await
            .into_iter()
            .map(|payload| {
                let data = &payload["data"];
                let room = &data["room"];
                json!([
                    data["network"],
                    room["channel_id"],
                    room["login"],
                    data["direction"],
                    data["sender"]["network_id"]
                ])
            })
            .collect();
        assert_eq!(
            told,
            [
                json!(["instagram", "1", "178", "in", "1"]),
                json!(["instagram", "1", "178", "out", "178"]),
                json!(["messenger", "2", "100", "in", "9"]),
                json!(["messenger", "2", "100", "out", "100"]),
                json!(["instagram", "1", "178", "in", null]),
                json!(["messenger", "2", "100", "in", null]),
            ]
        );
        let networks = "SELECT COUNT(*) FROM network_hours WHERE network IN ('instagram', 'messenger')";
        assert_eq!(count(store, networks).await, 2, "each network is heard of");
    }
}

#[tokio::test]
async fn a_room_that_a_ghost_claims_is_read_again_when_its_bot_comes() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut worker = worker(store, RelayPolicy::Bridged, &clock).await;
        settle(store, "!dm", json!([claim(OTHER, BOT, None)])).await;
        work(&mut worker).await;
        assert_eq!(count(store, "SELECT COUNT(*) FROM rooms WHERE relay = 'no'").await, 1);
        let join = |user: &str| {
            let join = json!({"type": "m.room.member", "state_key": user, "sender": user,
                "content": {"membership": "join"}});
            pushed(&format!("${user}"), "!dm", &join)
        };
        let due = "SELECT COUNT(*) FROM rooms WHERE due_at IS NOT NULL";
        push(store, "1", &[join("@mallory:example.org")]).await;
        work(&mut worker).await;
        assert_eq!(count(store, due).await, 0, "somebody else's coming changes nothing");
        push(store, "2", &[join(BOT)]).await;
        work(&mut worker).await;
        assert_eq!(count(store, due).await, 1);
        settle(store, "!dm", json!([claim(OTHER, BOT, None), join(BOT)])).await;
        push(store, "3", &[says("$1", "!dm", OTHER)]).await;
        work(&mut worker).await;
        assert_eq!(told(store).await, [is("$1", "in", &Value::Null)]);
    }
}
