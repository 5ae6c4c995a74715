//! When it is settled that a room is not relayed, as the worker sees it.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use crate::{
    clock::ManualClock,
    inbox::{
        rooms::Rooms,
        tests::{SETTLE_AFTER, count, parts, payloads, push, settle, text, work, worker},
        worker::Worker,
    },
    model::RelayPolicy,
    store::{Store, leases},
    testing::{self, START},
};

const BOT: &str = "@instagrambot:example.org";
const GHOST: &str = "@instagram_1:example.org";
const OWNER: &str = "@owner:example.org";

fn claim(sender: &str, bot: &str) -> Value {
    json!({"type": "m.bridge", "state_key": "example.org/instagram", "sender": sender,
        "content": {"bridgebot": bot, "protocol": {"id": "instagramgo"}, "channel": {"id": "1"}}})
}

fn emptied(sender: &str) -> Value {
    json!({"type": "m.bridge", "state_key": "example.org/instagram", "sender": sender, "content": {}})
}

fn member(user: &str) -> Value {
    json!({"type": "m.room.member", "state_key": user, "sender": user, "content": {"membership": "join"}})
}

fn create(sender: &str, content: &Value) -> Value {
    json!({"type": "m.room.create", "state_key": "", "sender": sender, "content": content})
}

fn pushed(id: &str, room: &str, state: &Value) -> Value {
    let mut event = state.clone();
    (event["event_id"], event["room_id"]) = (json!(id), json!(room));
    event["origin_server_ts"] = json!(START.0);
    event
}

/// What was told, in order.
async fn said(store: &Store) -> Vec<(String, u64)> {
    let said = payloads(store).await.into_iter().map(|payload| {
        let data = &payload["data"];
        (data["event_id"].as_str().unwrap().to_owned(), data["sequence"].as_u64().unwrap())
    });
    said.collect()
}

async fn waiting(store: &Store) -> i64 {
    count(store, "SELECT COUNT(*) FROM pending_events").await
}

/// Rooms that are not relayed: those for which that is settled, and those that are held.
async fn unrelayed(store: &Store) -> (i64, i64) {
    let settled =
        "SELECT COUNT(*) FROM rooms WHERE relay = 'no' AND unrelayed_since IS NULL AND due_at IS NULL";
    let held = "SELECT COUNT(*) FROM rooms WHERE relay = 'no' AND unrelayed_since IS NOT NULL";
    (count(store, settled).await, count(store, held).await)
}

/// Another worker in place of the last one.
async fn next_worker(store: &Store, relay: RelayPolicy, clock: &Arc<ManualClock>) -> Worker {
    let mut tx = store.begin().await.unwrap();
    tx.execute("DELETE FROM leases", vec![]).await.unwrap();
    tx.commit().await.unwrap();
    worker(store, relay, clock).await
}

/// Notes that a room's state was read, as whoever reads it does.
async fn read(store: &Store, room: &str, state: Value) {
    let mut tx = store.begin().await.unwrap();
    tx.execute("UPDATE rooms SET due_at = NULL", vec![]).await.unwrap();
    tx.commit().await.unwrap();
    settle(store, room, state).await;
}

#[tokio::test]
async fn a_room_that_becomes_a_bridges_late_finds_its_events_in_their_order() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut worker = worker(store, RelayPolicy::Bridged, &clock).await;
        push(store, "1", &[text("$1", "!new", "before the first reading")]).await;
        read(store, "!new", json!([])).await;
        work(&mut worker).await;
        push(store, "2", &[text("$2", "!new", "after it")]).await;
        work(&mut worker).await;
        assert_eq!((said(store).await, waiting(store).await), (vec![], 2));
        // Also for the process that takes over.
        let mut worker = next_worker(store, RelayPolicy::Bridged, &clock).await;
        clock.advance(Duration::from_mins(50));
        let due = "SELECT COUNT(*) FROM rooms WHERE due_at = 1760000000000 + 3600000";
        assert_eq!(count(store, due).await, 1, "the second reading");
        push(store, "3", &[pushed("$claim", "!new", &claim(BOT, BOT)), text("$3", "!new", "with it")]).await;
        work(&mut worker).await;
        assert_eq!(count(store, "SELECT COUNT(*) FROM rooms WHERE due_at <= 1760003000000").await, 1);
        read(store, "!new", json!([claim(BOT, BOT)])).await;
        work(&mut worker).await;
        let expected = [("$1", 1), ("$2", 2), ("$3", 3)].map(|(id, n)| (id.to_owned(), n));
        assert_eq!(said(store).await, expected);
        assert_eq!((waiting(store).await, unrelayed(store).await), (0, (0, 0)));
    }
}

#[tokio::test]
async fn a_private_room_is_settled_by_a_second_reading_that_is_late_enough() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut worker = worker(store, RelayPolicy::Bridged, &clock).await;
        let state = json!([create(OWNER, &json!({})), member(OWNER), member("@friend:example.org")]);
        push(store, "1", &[text("$1", "!private", "a secret")]).await;
        read(store, "!private", state.clone()).await;
        work(&mut worker).await;
        assert_eq!((waiting(store).await, unrelayed(store).await), (1, (0, 1)));
        clock.advance(SETTLE_AFTER.checked_sub(Duration::from_secs(1)).unwrap());
        read(store, "!private", state.clone()).await;
        work(&mut worker).await;
        assert_eq!((waiting(store).await, unrelayed(store).await), (1, (0, 1)), "a second too early");
        let due = "SELECT COUNT(*) FROM rooms WHERE due_at = 1760000000000 + 3600000";
        assert_eq!(count(store, due).await, 1);
        clock.advance(Duration::from_secs(1));
        read(store, "!private", state).await;
        work(&mut worker).await;
        assert_eq!((waiting(store).await, unrelayed(store).await), (0, (1, 0)));
        push(store, "2", &[text("$2", "!private", "another secret")]).await;
        work(&mut worker).await;
        assert_eq!((waiting(store).await, said(store).await), (0, vec![]));
        assert_eq!(count(store, "SELECT COUNT(*) FROM rooms WHERE state IS NOT NULL").await, 0);
    }
}

#[tokio::test]
async fn a_room_is_never_settled_while_somebody_of_a_known_bridge_is_in_it() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut worker = worker(store, RelayPolicy::Bridged, &clock).await;
        let old = json!([claim(BOT, BOT), {"type": "m.room.tombstone", "state_key": "", "sender": BOT,
            "content": {"replacement_room": "!replaces"}}]);
        settle(store, "!old", old).await;
        work(&mut worker).await;
        let predecessor = json!({"predecessor": {"room_id": "!old"}});
        let rooms = [
            ("!bot", json!([member(OWNER), member(BOT), member("@friend:example.org")])),
            ("!ghost", json!([member(OWNER), member(GHOST)])),
            ("!creator", json!([create(GHOST, &json!({})), member(OWNER)])),
            ("!replaces", json!([create(OWNER, &predecessor), member(OWNER)])),
        ];
        for hour in 0..3 {
            for (room, state) in &rooms {
                read(store, room, state.clone()).await;
            }
            push(store, &hour.to_string(), &[text(&format!("${hour}"), "!ghost", "hello")]).await;
            work(&mut worker).await;
            assert_eq!(unrelayed(store).await, (0, 4), "after {hour} hours");
            clock.advance(SETTLE_AFTER);
        }
        assert_eq!(waiting(store).await, 3);
        // They leave, and it is a private room like any other.
        for (room, _) in &rooms {
            read(store, room, json!([member(OWNER)])).await;
        }
        work(&mut worker).await;
        assert_eq!((waiting(store).await, unrelayed(store).await), (0, (4, 0)));
        // A ghost that speaks in such a room makes it worth another look.
        let mut event = text("$late", "!ghost", "hello again");
        event["sender"] = json!(GHOST);
        push(store, "late", &[event]).await;
        work(&mut worker).await;
        assert_eq!(waiting(store).await, 1);
        assert_eq!(count(store, "SELECT COUNT(*) FROM rooms WHERE relay = 'unknown'").await, 1);
    }
}

#[tokio::test]
async fn a_bridge_that_lets_go_for_a_moment_loses_nothing() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut worker = worker(store, RelayPolicy::Bridged, &clock).await;
        settle(store, "!portal", json!([claim(BOT, BOT)])).await;
        let events = [
            text("$1", "!portal", "1"),
            pushed("$gone", "!portal", &emptied(BOT)),
            text("$2", "!portal", "2"),
        ];
        push(store, "1", &events).await;
        work(&mut worker).await;
        assert_eq!((said(store).await, waiting(store).await), (vec![("$1".to_owned(), 1)], 1));
        assert_eq!(count(store, "SELECT COUNT(*) FROM rooms WHERE due_at = 1760000000000").await, 1);
        // Read in that moment, and once more much later; the bridge is still in it.
        for _ in 0..2 {
            read(store, "!portal", json!([emptied(BOT), member(BOT), member(GHOST)])).await;
            work(&mut worker).await;
            assert_eq!((waiting(store).await, unrelayed(store).await), (1, (0, 1)));
            clock.advance(SETTLE_AFTER);
        }
        let mut worker = next_worker(store, RelayPolicy::Bridged, &clock).await;
        let events = [pushed("$back", "!portal", &claim(BOT, BOT)), text("$3", "!portal", "3")];
        push(store, "2", &events).await;
        work(&mut worker).await;
        read(store, "!portal", json!([claim(BOT, BOT), member(BOT), member(GHOST)])).await;
        push(store, "3", &[text("$4", "!portal", "4")]).await;
        work(&mut worker).await;
        let expected = [("$1", 1), ("$2", 2), ("$3", 3), ("$4", 4)].map(|(id, n)| (id.to_owned(), n));
        assert_eq!(said(store).await, expected);
        assert_eq!(waiting(store).await, 0);
        // A step that finds nothing to do ends.
        work(&mut worker).await;
        // It lets go for good, and all leave.
        push(store, "4", &[pushed("$end", "!portal", &emptied(BOT)), text("$5", "!portal", "5")]).await;
        work(&mut worker).await;
        clock.advance(SETTLE_AFTER);
        read(store, "!portal", json!([emptied(BOT)])).await;
        work(&mut worker).await;
        assert_eq!((waiting(store).await, unrelayed(store).await), (0, (1, 0)));
        assert_eq!(count(store, "SELECT COUNT(*) FROM rooms WHERE state IS NOT NULL").await, 0);
    }
}

#[tokio::test]
async fn a_claim_that_somebody_else_has_written_over_while_nobody_looked_is_still_the_bridges() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut worker = worker(store, RelayPolicy::Bridged, &clock).await;
        settle(store, "!portal", json!([claim(BOT, BOT)])).await;
        work(&mut worker).await;
        let mut worker = next_worker(store, RelayPolicy::Bridged, &clock).await;
        read(store, "!portal", json!([emptied("@mallory:example.org"), member(BOT)])).await;
        push(store, "1", &[text("$1", "!portal", "1")]).await;
        work(&mut worker).await;
        assert_eq!(said(store).await, [("$1".to_owned(), 1)]);
        assert_eq!(unrelayed(store).await, (0, 0));
    }
}

#[tokio::test]
async fn rooms_that_the_settings_leave_out_are_settled_at_once() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let policy = RelayPolicy::Adjusted {
            base: Box::new(RelayPolicy::Bridged),
            with: vec!["!named".try_into().unwrap()],
            without: vec!["!out".try_into().unwrap()],
        };
        let mut worker = worker(store, policy, &clock).await;
        let rooms = ["!named", "!out", "!portal", "!private", "!space"];
        for room in rooms {
            push(store, room, &[text(&format!("${}", &room[1..]), room, "hello")]).await;
        }
        work(&mut worker).await;
        assert_eq!(waiting(store).await, 5);
        for (room, state) in [
            ("!named", json!([])),
            ("!out", json!([claim(BOT, BOT)])),
            ("!portal", json!([claim(BOT, BOT)])),
            ("!private", json!([])),
            ("!space", json!([create(OWNER, &json!({"type": "m.space"}))])),
        ] {
            read(store, room, state).await;
        }
        work(&mut worker).await;
        let mut told: Vec<_> = said(store).await.into_iter().map(|(id, _)| id).collect();
        told.sort();
        assert_eq!(told, ["$named", "$portal"]);
        assert_eq!((waiting(store).await, unrelayed(store).await), (1, (2, 1)));
    }
}

#[tokio::test]
async fn the_room_of_a_bridges_bot_and_its_user_is_settled_and_read() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut tx = store.begin().await.unwrap();
        let hour = Duration::from_hours(1);
        let lease = leases::claim(&mut tx, "crypto", "test", START, hour).await.unwrap().unwrap();
        tx.commit().await.unwrap();
        let mut parts = parts(store, lease, RelayPolicy::Bridged, &clock).await;
        parts.policy.our_users = Arc::new([OWNER.try_into().unwrap()].into());
        let mut worker = Worker::load(parts).await.unwrap();
        settle(store, "!portal", json!([claim(BOT, BOT)])).await;
        let state = json!([create(OWNER, &json!({})), member(OWNER), member(BOT)]);
        for hour in 0..2 {
            push(store, &hour.to_string(), &[text(&format!("${hour}"), "!management", "login")]).await;
            read(store, "!management", state.clone()).await;
            work(&mut worker).await;
            clock.advance(SETTLE_AFTER);
        }
        let managed = "SELECT COUNT(*) FROM rooms WHERE managed_by = '@instagrambot:example.org'";
        assert_eq!(
            (waiting(store).await, unrelayed(store).await, count(store, managed).await),
            (0, (1, 0), 1)
        );
        // What the bot says of a login is read, and nothing is kept of it.
        let mut notice = text("$notice", "!management", "logged out");
        notice["sender"] = json!(BOT);
        notice["content"]["fi.mau.bridge_state"] =
            json!({"state_event": "BAD_CREDENTIALS", "remote_id": "178", "source": "bridge"});
        push(store, "notice", &[notice]).await;
        work(&mut worker).await;
        let told: Vec<_> = payloads(store).await.into_iter().map(|told| told["type"].clone()).collect();
        assert_eq!((told, waiting(store).await), (vec![json!("bridge.disconnected")], 0));
        assert_eq!(count(store, managed).await, 1, "and it is no reason to look at the room again");
        // Somebody else comes: it may become a portal.
        push(store, "ghost", &[pushed("$ghost", "!management", &member(GHOST))]).await;
        work(&mut worker).await;
        assert_eq!(count(store, "SELECT COUNT(*) FROM rooms WHERE relay = 'unknown'").await, 1);
    }
}

#[test]
fn the_room_that_a_room_replaces_is_read_from_its_creation() {
    let state = [member(OWNER), create(BOT, &json!({"predecessor": {"room_id": "!old"}}))];
    assert_eq!(Rooms::predecessor(&state).unwrap(), "!old");
    for content in [json!({}), json!({"predecessor": 7}), json!({"predecessor": {"room_id": "old"}})] {
        assert_eq!(Rooms::predecessor(&[create(BOT, &content)]), None, "{content}");
    }
}
