//! The worker's rules on plain rooms, without a homeserver; encrypted ones are in the scenarios.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ruma::TransactionId;
use serde_json::{Value, json};

use super::{
    pins::TrustSettings,
    rooms::Policy,
    worker::{Progress, Wakes, Worker, WorkerParts},
};
use crate::{
    clock::ManualClock,
    model::{Filter, Flow, RelayPolicy, Route, SilenceSettings},
    store::{Lease, Store, inbox, leases, messages, webhooks},
    testing::{self, START},
};

mod odd;

const ROOM: &str = "!room";
pub(super) const SETTLE_AFTER: Duration = Duration::from_hours(1);
pub(super) const NOTIFY_AFTER: Duration = Duration::from_mins(5);

pub(super) async fn parts(
    store: &Store,
    lease: Lease,
    relay: RelayPolicy,
    clock: &Arc<ManualClock>,
) -> WorkerParts {
    let mut tx = store.begin().await.unwrap();
    let webhook = webhooks::ensure(&mut tx, "default", START).await.unwrap();
    tx.commit().await.unwrap();
    let our_users = Arc::new(BTreeSet::new());
    WorkerParts {
        store: store.clone(),
        lease,
        clock: clock.clone(),
        engines: vec![],
        policy: Policy {
            relay,
            settle_after: SETTLE_AFTER,
            our_users,
            networks: BTreeMap::new(),
            trust: TrustSettings::default(),
        },
        invite_bot: false,
        webhooks: vec![Route { webhook_id: webhook, filter: Filter::default(), flow: Flow::default() }],
        cautious: false,
        notify_after: Some(NOTIFY_AFTER),
        silence: Some(SilenceSettings {
            after: Duration::from_hours(6),
            transactions_after: Duration::from_mins(15),
        }),
        wakes: Wakes::default(),
        turn: Arc::default(),
    }
}

pub(super) async fn worker(store: &Store, relay: RelayPolicy, clock: &Arc<ManualClock>) -> Worker {
    let mut tx = store.begin().await.unwrap();
    let lease =
        leases::claim(&mut tx, "crypto", "test", START, Duration::from_hours(1)).await.unwrap().unwrap();
    tx.commit().await.unwrap();
    Worker::load(parts(store, lease, relay, clock).await).await.unwrap()
}

pub(super) async fn push(store: &Store, txn_id: &str, events: &[Value]) {
    let body = inbox::seal_body(store.seal().unwrap(), json!({ "events": events }).to_string().as_bytes());
    let mut tx = store.begin().await.unwrap();
    inbox::accept(&mut tx, <&TransactionId>::from(txn_id), body.unwrap(), START).await.unwrap();
    tx.commit().await.unwrap();
}

pub(super) async fn settle(store: &Store, room: &str, state: Value) {
    let body = json!({ "room_id": room, "state": state }).to_string();
    let body = inbox::seal_body(store.seal().unwrap(), body.as_bytes()).unwrap();
    let mut tx = store.begin().await.unwrap();
    inbox::accept_state(&mut tx, body, START).await.unwrap();
    tx.commit().await.unwrap();
}

pub(super) fn text(id: &str, room: &str, body: &str) -> Value {
    json!({"event_id": id, "room_id": room, "sender": "@a:example.org", "type": "m.room.message",
        "origin_server_ts": START.0, "content": {"msgtype": "m.text", "body": body}})
}

pub(super) async fn work(worker: &mut Worker) {
    while worker.step().await.unwrap() == Progress::Worked {}
}

/// What is stored, in the order of the rooms.
pub(super) async fn payloads(store: &Store) -> Vec<Value> {
    let payloads = messages::newest(store.db(), store.seal().unwrap(), 1000).await.unwrap();
    let mut payloads: Vec<Value> =
        payloads.iter().map(|payload| serde_json::from_slice(payload).unwrap()).collect();
    payloads.sort_by_key(|payload| payload["data"]["sequence"].as_u64());
    payloads
}

/// Texts and sequences of what is stored, in order.
async fn said(store: &Store) -> Vec<(String, u64)> {
    let said = payloads(store).await.into_iter().map(|payload| {
        let data = &payload["data"];
        (data["content"]["text"].as_str().unwrap().to_owned(), data["sequence"].as_u64().unwrap())
    });
    said.collect()
}

pub(super) async fn count(store: &Store, sql: &'static str) -> i64 {
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
        assert_eq!(count(store, "SELECT COUNT(*) FROM pending_events").await, 2, "it may be a bridge's yet");
        clock.advance(SETTLE_AFTER);
        settle(store, ROOM, json!([])).await;
        push(store, "4", &[text("$4", ROOM, "private as well")]).await;
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

#[tokio::test]
async fn what_was_never_pushed_comes_late_when_others_have_gone_ahead() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut worker = worker(store, RelayPolicy::All, &clock).await;
        settle(store, ROOM, json!([])).await;
        push(store, "1", &[text("$1", ROOM, "one"), text("$4", ROOM, "four")]).await;
        work(&mut worker).await;
        let missed = ["two", "three", "four", "five"].into_iter().zip(2..);
        let missed: Vec<_> = missed.map(|(body, n)| text(&format!("${n}"), ROOM, body)).collect();
        let body = json!({ "events": missed }).to_string();
        let body = inbox::seal_body(store.seal().unwrap(), body.as_bytes()).unwrap();
        let mut tx = store.begin().await.unwrap();
        inbox::accept_missed(&mut tx, body, START).await.unwrap();
        tx.commit().await.unwrap();
        work(&mut worker).await;
        let expected = ["one", "four", "two", "three", "five"].into_iter().zip(1..);
        let expected: Vec<_> = expected.map(|(text, n)| (text.to_owned(), n)).collect();
        assert_eq!(said(store).await, expected);
        let payloads = messages::newest(store.db(), store.seal().unwrap(), 100).await.unwrap();
        let mut late: Vec<String> = payloads
            .iter()
            .map(|payload| serde_json::from_slice::<Value>(payload).unwrap())
            .filter(|payload| payload["data"]["late"] == true)
            .map(|payload| payload["data"]["content"]["text"].as_str().unwrap().to_owned())
            .collect();
        late.sort();
        assert_eq!(late, ["three", "two"], "five follows all that was relayed");
    }
}

fn redaction(id: &str, room: &str, redacts: &str) -> Value {
    json!({"event_id": id, "room_id": room, "sender": "@a:example.org", "type": "m.room.redaction",
        "origin_server_ts": START.0, "content": {"redacts": redacts}})
}

fn reaction(id: &str, to: &str) -> Value {
    let relation = json!({"rel_type": "m.annotation", "event_id": to, "key": "x"});
    json!({"event_id": id, "room_id": ROOM, "sender": "@a:example.org", "type": "m.reaction",
        "origin_server_ts": START.0, "content": {"m.relates_to": relation}})
}

fn edit(id: &str, of: &str, body: &str) -> Value {
    let mut edit = text(id, ROOM, "*");
    edit["content"]["m.new_content"] = json!({"msgtype": "m.text", "body": body});
    edit["content"]["m.relates_to"] = json!({"rel_type": "m.replace", "event_id": of});
    edit
}

/// Types, and texts or kinds, of what is stored, in order.
async fn told(store: &Store) -> Vec<String> {
    let payloads = messages::newest(store.db(), store.seal().unwrap(), 100).await.unwrap();
    let mut told: Vec<Value> =
        payloads.iter().map(|payload| serde_json::from_slice(payload).unwrap()).collect();
    told.sort_by_key(|payload| payload["data"]["sequence"].as_u64());
    let line = |payload: &Value| {
        let content = &payload["data"]["content"];
        let what = content["text"].as_str().or(content["kind"].as_str()).unwrap_or_default();
        format!("{} {what}", payload["type"].as_str().unwrap_or_default())
    };
    told.iter().map(line).collect()
}

#[tokio::test]
async fn what_is_taken_back_is_not_kept_and_not_delivered() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut worker = worker(store, RelayPolicy::All, &clock).await;
        settle(store, ROOM, json!([])).await;
        settle(store, "!other", json!([])).await;
        push(store, "1", &[text("$1", ROOM, "one"), edit("$2", "$1", "won"), reaction("$3", "$1")]).await;
        work(&mut worker).await;
        // From another room it takes nothing back.
        push(store, "2", &[redaction("$4", "!other", "$1"), redaction("$5", "!other", "$3")]).await;
        work(&mut worker).await;
        let said = ["message.created one", "message.edited won", "reaction.created reaction"];
        assert_eq!(told(store).await.iter().filter(|line| said.contains(&&***line)).count(), 3);

        push(store, "3", &[redaction("$6", ROOM, "$1"), redaction("$7", ROOM, "$3")]).await;
        // One that comes, is edited and is taken back at once, and an edit that comes too late.
        let events = [text("$8", ROOM, "x"), reaction("$9", "$8"), redaction("$10", ROOM, "$9")];
        push(store, "4", &events).await;
        push(store, "5", &[edit("$11", "$1", "too late")]).await;
        work(&mut worker).await;
        let mut lines = told(store).await;
        lines.retain(|line| !line.contains("other"));
        let of_room: Vec<_> = lines.iter().map(String::as_str).collect();
        let mut expected = vec![
            "message.created redacted",
            "message.edited redacted",
            "reaction.created redacted",
            "message.redacted redaction",
            "reaction.redacted redaction",
            "message.created x",
            "reaction.created redacted",
            "reaction.redacted redaction",
            "message.edited redacted",
            // The two of the other room.
            "message.redacted redaction",
            "message.redacted redaction",
        ];
        let mut sorted = of_room.clone();
        sorted.sort_unstable();
        expected.sort_unstable();
        assert_eq!(sorted, expected, "{of_room:?}");
        assert_eq!(count(store, "SELECT COUNT(*) FROM deliveries WHERE state = 'pending'").await, 11);
    }
}

#[tokio::test]
async fn a_redaction_that_comes_again_changes_nothing() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut worker = worker(store, RelayPolicy::All, &clock).await;
        settle(store, ROOM, json!([])).await;
        push(store, "1", &[text("$1", ROOM, "one"), redaction("$2", ROOM, "$1")]).await;
        push(store, "2", &[text("$1", ROOM, "one"), redaction("$2", ROOM, "$1")]).await;
        work(&mut worker).await;
        assert_eq!(told(store).await, ["message.created redacted", "message.redacted redaction"]);
    }
}

#[tokio::test]
async fn a_bridge_that_is_not_believed_is_reported_and_its_room_not_relayed() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut worker = worker(store, RelayPolicy::Bridged, &clock).await;
        let claim = |bot: &str| {
            json!([{"type": "m.bridge", "state_key": "example.org/instagram", "sender": bot,
                "content": {"bridgebot": bot, "protocol": {"id": "instagramgo"}}}])
        };
        settle(store, "!first", claim("@instagrambot:example.org")).await;
        settle(store, "!second", claim("@mallory:example.org")).await;
        push(store, "1", &[text("$1", "!first", "genuine"), text("$2", "!second", "forged")]).await;
        work(&mut worker).await;
        assert_eq!(said(store).await, [("genuine".to_owned(), 1)]);
        let conflicts = crate::store::bridges::conflicts(store.db(), 10).await.unwrap();
        assert_eq!(conflicts.len(), 1);
        assert_eq!(
            (conflicts[0].room_id.as_str(), conflicts[0].bot.as_str()),
            ("!second", "@mallory:example.org")
        );
        assert_eq!(count(store, "SELECT COUNT(*) FROM bridges").await, 1);
        assert_eq!(count(store, "SELECT COUNT(*) FROM rooms WHERE relay = 'no' AND state IS NULL").await, 1);
    }
}

#[tokio::test]
async fn a_space_is_not_relayed() {
    for test in testing::both().await {
        for policy in [RelayPolicy::Bridged, RelayPolicy::All] {
            let (store, clock) = (&test.store, ManualClock::at(START));
            let mut tx = store.begin().await.unwrap();
            tx.execute("UPDATE leases SET lease_until = 0", vec![]).await.unwrap();
            tx.commit().await.unwrap();
            let mut worker = worker(store, policy.clone(), &clock).await;
            let bot = "@instagrambot:example.org";
            // As bridges make one for each login.
            let claim = json!({"bridgebot": bot, "protocol": {"id": "instagramgo"},
                "channel": {"id": "__personal_filtering_space__", "fi.mau.receiver": "178"},
                "com.beeper.room_type.v2": "personal_filtering_space"});
            let state = json!([
                {"type": "m.room.create", "state_key": "", "sender": bot, "content": {"type": "m.space"}},
                {"type": "m.bridge", "state_key": "", "sender": bot, "content": claim},
            ]);
            settle(store, "!space", state).await;
            push(store, &format!("{policy:?}"), &[text("$1", "!space", "in a space")]).await;
            work(&mut worker).await;
            assert_eq!(said(store).await, []);
            assert_eq!(count(store, "SELECT COUNT(*) FROM rooms WHERE relay = 'no'").await, 1);
        }
    }
}

#[tokio::test]
async fn a_member_of_a_bridge_may_be_dated_back() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut worker = worker(store, RelayPolicy::All, &clock).await;
        let member = |name: &str, ts: i64| {
            json!({"event_id": format!("${name}"), "room_id": ROOM, "type": "m.room.member", "sender": "@a:example.org",
                "state_key": "@a:example.org", "origin_server_ts": ts,
                "content": {"membership": "join", "displayname": name}})
        };
        settle(store, ROOM, json!([member("Before", START.0)])).await;
        push(store, "1", &[member("After", START.0 - 1000), text("$1", ROOM, "one")]).await;
        work(&mut worker).await;
        assert_eq!(payloads(store).await[0]["data"]["sender"]["name"], "After");
    }
}

#[tokio::test]
async fn statuses_error_notices_and_verifications_are_no_messages() {
    for test in testing::both().await {
        let (store, clock) = (&test.store, ManualClock::at(START));
        let mut worker = worker(store, RelayPolicy::All, &clock).await;
        let bot = "@instagrambot:example.org";
        let claim = json!({"bridgebot": bot, "protocol": {"id": "instagramgo"}});
        let claim = json!({"type": "m.bridge", "state_key": "example.org/instagram", "sender": bot, "content": claim});
        settle(store, ROOM, json!([claim])).await;
        let of = |id: &str, sender: &str, event_type: &str, content: Value| {
            json!({"event_id": id, "room_id": ROOM, "sender": sender, "type": event_type,
                "origin_server_ts": START.0, "content": content})
        };
        let refers = json!({"m.in_reply_to": {"event_id": "$ours"}});
        let error = json!({"msgtype": "m.notice", "m.relates_to": refers,
            "body": "\u{26a0}\u{fe0f} Your message was not bridged: the bridge hasn't received the decryption keys"});
        let edit = json!({"msgtype": "m.notice", "body": "* \u{26a0}\u{fe0f} …", "m.new_content": error,
            "m.relates_to": {"rel_type": "m.replace", "event_id": "$error"}});
        let status =
            json!({"m.relates_to": {"rel_type": "m.reference", "event_id": "$ours"}, "status": "SUCCESS"});
        let request =
            json!({"msgtype": "m.key.verification.request", "body": "…", "to": "@coucou:example.org"});
        let person = "@a:example.org";
        push(
            store,
            "1",
            &[
                text("$1", ROOM, "one"),
                of("$status", bot, "com.beeper.message_send_status", status),
                of("$error", bot, "m.room.message", error.clone()),
                of("$edit", bot, "m.room.message", edit),
                of("$request", person, "m.room.message", request),
                of("$start", person, "m.key.verification.start", json!({"method": "m.sas.v1"})),
                of("$forged", person, "m.room.message", error),
                of("$answer", bot, "m.room.message", json!({"msgtype": "m.notice", "body": "Help: …"})),
                of("$unknown", person, "org.example.type", json!({"body": "unknown"})),
            ],
        )
        .await;
        work(&mut worker).await;
        let said = said(store).await;
        let texts: Vec<&str> = said.iter().map(|(text, _)| &**text).collect();
        assert_eq!(texts.len(), 4, "{texts:?}");
        assert!(
            texts[0] == "one" && texts[1].contains("not bridged") && texts[2..] == ["Help: …", "unknown"]
        );
        assert_eq!(said.last().unwrap().1, 4, "they take no number");
    }
}
