//! The worker's rules on plain rooms, without a homeserver; encrypted ones are in the scenarios.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ruma::TransactionId;
use serde_json::{Value, json};

use super::{
    rooms::Policy,
    worker::{Progress, Wakes, Worker, WorkerParts},
};
use crate::{
    clock::ManualClock,
    model::{Filter, RelayPolicy, Route},
    store::{Store, inbox, leases, messages, webhooks},
    testing::{self, START},
};

const ROOM: &str = "!room";
const NOTIFY_AFTER: Duration = Duration::from_mins(5);

async fn worker(store: &Store, relay: RelayPolicy, clock: &Arc<ManualClock>) -> Worker {
    let mut tx = store.begin().await.unwrap();
    let lease =
        leases::claim(&mut tx, "crypto", "test", START, Duration::from_hours(1)).await.unwrap().unwrap();
    let webhook = webhooks::ensure(&mut tx, "default", START).await.unwrap();
    tx.commit().await.unwrap();
    let our_users = Arc::new(BTreeSet::new());
    let parts = WorkerParts {
        store: store.clone(),
        lease,
        clock: clock.clone(),
        engines: vec![],
        policy: Policy { relay, our_users, networks: BTreeMap::new() },
        invite_bot: false,
        webhooks: vec![Route { webhook_id: webhook, filter: Filter::default() }],
        cautious: false,
        notify_after: Some(NOTIFY_AFTER),
        wakes: Wakes::default(),
    };
    Worker::load(parts).await.unwrap()
}

async fn push(store: &Store, txn_id: &str, events: &[Value]) {
    let body = inbox::seal_body(store.seal().unwrap(), json!({ "events": events }).to_string().as_bytes());
    let mut tx = store.begin().await.unwrap();
    inbox::accept(&mut tx, <&TransactionId>::from(txn_id), body.unwrap(), START).await.unwrap();
    tx.commit().await.unwrap();
}

async fn settle(store: &Store, room: &str, state: Value) {
    let body = json!({ "room_id": room, "state": state }).to_string();
    let body = inbox::seal_body(store.seal().unwrap(), body.as_bytes()).unwrap();
    let mut tx = store.begin().await.unwrap();
    inbox::accept_state(&mut tx, body, START).await.unwrap();
    tx.commit().await.unwrap();
}

fn text(id: &str, room: &str, body: &str) -> Value {
    json!({"event_id": id, "room_id": room, "sender": "@a:example.org", "type": "m.room.message",
        "origin_server_ts": START.0, "content": {"msgtype": "m.text", "body": body}})
}

async fn work(worker: &mut Worker) {
    while worker.step().await.unwrap() == Progress::Worked {}
}

/// Texts and sequences of what is stored, in order.
async fn said(store: &Store) -> Vec<(String, u64)> {
    let payloads = messages::newest(store.db(), store.seal().unwrap(), 100).await.unwrap();
    let mut said: Vec<_> = payloads
        .iter()
        .map(|payload| {
            let payload: Value = serde_json::from_slice(payload).unwrap();
            let data = &payload["data"];
            (data["content"]["text"].as_str().unwrap().to_owned(), data["sequence"].as_u64().unwrap())
        })
        .collect();
    said.sort_by_key(|(_, sequence)| *sequence);
    said
}

async fn count(store: &Store, sql: &'static str) -> i64 {
    store.db().fetch_optional::<(i64,)>(sql, vec![]).await.unwrap().unwrap().0
}

#[tokio::test]
async fn events_of_a_room_wait_for_its_state_and_keep_their_order() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut worker = worker(store, RelayPolicy::All, &clock).await;
        push(store, "1", &[text("$1", ROOM, "one"), text("$2", ROOM, "two")]).await;
        work(&mut worker).await;
        assert_eq!(said(store).await, []);
        assert_eq!(count(store, "SELECT COUNT(*) FROM rooms WHERE due_at IS NOT NULL").await, 1);
        clock.advance(Duration::from_mins(5));
        push(store, "2", &[text("$3", ROOM, "three")]).await;
        settle(store, ROOM, json!([])).await;
        work(&mut worker).await;
        let expected = [("one", 1), ("two", 2), ("three", 3)].map(|(text, n)| (text.to_owned(), n));
        assert_eq!(said(store).await, expected);
        assert_eq!(count(store, "SELECT COUNT(*) FROM pending_events").await, 0);
        assert_eq!(count(store, "SELECT pending_count FROM room_queues").await, 3);
    }
}

#[tokio::test]
async fn an_event_counts_once_however_often_it_comes() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut first = worker(store, RelayPolicy::All, &clock).await;
        settle(store, ROOM, json!([])).await;
        push(store, "1", &[text("$1", ROOM, "one"), text("$1", ROOM, "one")]).await;
        push(store, "2", &[text("$1", ROOM, "one"), text("$2", ROOM, "two")]).await;
        work(&mut first).await;
        drop(first);
        let mut tx = store.begin().await.unwrap();
        tx.execute("UPDATE leases SET lease_until = 0", vec![]).await.unwrap();
        tx.commit().await.unwrap();
        let mut second = worker(store, RelayPolicy::All, &clock).await;
        push(store, "1", &[text("$2", ROOM, "two"), text("$3", ROOM, "three")]).await;
        work(&mut second).await;
        let expected = [("one", 1), ("two", 2), ("three", 3)].map(|(text, n)| (text.to_owned(), n));
        assert_eq!(said(store).await, expected);
    }
}

#[tokio::test]
async fn nothing_of_an_unbridged_room_is_kept_when_only_bridged_ones_are_relayed() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut worker = worker(store, RelayPolicy::Bridged, &clock).await;
        push(store, "1", &[text("$1", ROOM, "private")]).await;
        work(&mut worker).await;
        assert_eq!(count(store, "SELECT COUNT(*) FROM pending_events").await, 1);
        settle(store, ROOM, json!([])).await;
        push(store, "2", &[text("$2", ROOM, "private too")]).await;
        work(&mut worker).await;
        assert_eq!(said(store).await, []);
        assert_eq!(count(store, "SELECT COUNT(*) FROM pending_events").await, 0);
        assert_eq!(count(store, "SELECT COUNT(*) FROM rooms WHERE state IS NOT NULL").await, 0);
        // A bridge that comes later makes the room worth another look.
        let bridge = json!({"event_id": "$3", "room_id": ROOM, "sender": "@bot:example.org", "type": "m.bridge",
            "state_key": "x", "origin_server_ts": START.0, "content": {"bridgebot": "@bot:example.org"}});
        push(store, "3", &[bridge]).await;
        work(&mut worker).await;
        assert_eq!(count(store, "SELECT COUNT(*) FROM rooms WHERE relay = 'unknown'").await, 1);
    }
}

#[tokio::test]
async fn a_worker_that_lost_the_lease_writes_nothing() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut old = worker(store, RelayPolicy::All, &clock).await;
        settle(store, ROOM, json!([])).await;
        push(store, "1", &[text("$1", ROOM, "one")]).await;
        let mut tx = store.begin().await.unwrap();
        tx.execute("UPDATE leases SET fence = fence + 1", vec![]).await.unwrap();
        tx.commit().await.unwrap();
        let error = old.step().await.unwrap_err();
        assert!(error.is_of_the_store() && error.is_transient(), "{error:?}");
        assert_eq!(said(store).await, []);
        assert_eq!(count(store, "SELECT COUNT(*) FROM inbox WHERE processed_at IS NULL").await, 2);
    }
}

#[tokio::test]
async fn a_damaged_row_is_set_aside_and_the_rest_goes_on() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut worker = worker(store, RelayPolicy::All, &clock).await;
        settle(store, ROOM, json!([])).await;
        push(store, "1", &[text("$1", ROOM, "one")]).await;
        push(store, "2", &[text("$2", ROOM, "two")]).await;
        let mut tx = store.begin().await.unwrap();
        let damage = "UPDATE inbox SET content_hash = $1 WHERE txn_id = '1'";
        tx.execute(damage, crate::store::db::values![vec![7_u8]]).await.unwrap();
        tx.commit().await.unwrap();
        work(&mut worker).await;
        assert_eq!(said(store).await, [("two".to_owned(), 1)]);
        let kept = "SELECT COUNT(*) FROM inbox WHERE processed_at IS NOT NULL AND body IS NOT NULL";
        assert_eq!(count(store, kept).await, 1);
    }
}
