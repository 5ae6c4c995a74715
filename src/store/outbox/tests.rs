use std::time::Duration;

use futures_util::future;
use rand::{SeedableRng, rngs::StdRng};
use ruma::RoomId;
use secrecy::ExposeSecret;

use super::*;
use crate::{
    clock::Timestamp,
    model::{Flow, WebhookId},
    store::{Store, db::values, webhooks},
    testing::{self, START},
};

const LEASE: Duration = Duration::from_mins(1);

/// The number of a webhook.
pub(crate) async fn webhook(store: &Store, name: &str) -> WebhookId {
    let mut tx = store.begin().await.unwrap();
    let id = webhooks::ensure(&mut tx, name, START).await.unwrap();
    tx.commit().await.unwrap();
    id
}

fn message_id(room_id: &str, sequence: i64) -> String {
    format!("{}_{sequence}", room_id.trim_start_matches('!'))
}

/// Stores messages and their deliveries in one transaction.
pub(crate) async fn put(store: &Store, webhooks: &[WebhookId], numbers: &[(&str, i64)], now: Timestamp) {
    put_as(store, webhooks, numbers, now, Flow::default()).await;
}

/// As [`put`], for webhooks with that order and those batches.
pub(crate) async fn put_as(
    store: &Store,
    webhooks: &[WebhookId],
    numbers: &[(&str, i64)],
    now: Timestamp,
    flow: Flow,
) {
    let mut tx = store.begin().await.unwrap();
    let ids: Vec<String> = numbers.iter().map(|(room, sequence)| message_id(room, *sequence)).collect();
    let rows = numbers.iter().zip(&ids).map(|((room, sequence), id)| {
        let body = format!("{{\"n\":{sequence},\"id\":\"{id}\"}}");
        let sealed = store.seal().unwrap().seal("messages", id, body.as_bytes()).unwrap();
        values![id.as_str(), *room, *sequence, now, sealed]
    });
    tx.execute_many(
        "INSERT INTO messages (message_id, event_id, room_id, sequence, type, direction, sender, \
             origin_server_ts, created_at, payload) \
         SELECT v.column1, v.column1, v.column2, v.column3, 'message.created', 'in', '@a:b', v.column4, \
             v.column4, v.column5 FROM (VALUES {rows}) AS v",
        vec![],
        rows.collect(),
    )
    .await
    .unwrap();
    let queued: Vec<Queued<'_>> = numbers
        .iter()
        .zip(&ids)
        .map(|((room, sequence), id)| Queued {
            webhooks: webhooks.iter().map(|id| (*id, flow)).collect(),
            message_id: id,
            room_id: <&RoomId>::try_from(*room).unwrap(),
            sequence: *sequence,
        })
        .collect();
    enqueue(&mut tx, &queued, now).await.unwrap();
    tx.commit().await.unwrap();
}

async fn claim(store: &Store, id: WebhookId, now: Timestamp, most: usize) -> Vec<Claimed> {
    let mut tx = store.begin().await.unwrap();
    let mut claimed = claim_due(&mut tx, id, now, LEASE, most).await.unwrap();
    tx.commit().await.unwrap();
    claimed.sort_by(|a, b| a.room_id.cmp(&b.room_id));
    claimed
}

async fn record(store: &Store, finished: &[Finished]) -> usize {
    let mut tx = store.begin().await.unwrap();
    let lost = finish(&mut tx, finished).await.unwrap();
    tx.commit().await.unwrap();
    lost
}

/// All of these deliveries taken.
fn delivered(claimed: &Claimed, loaded: &[Loaded], at: Timestamp) -> Finished {
    let attempts = loaded
        .iter()
        .map(|one| Attempted {
            delivery_id: one.delivery_id,
            fate: Fate::Delivered,
            sent: true,
            status: Some(200),
            error: None,
            duration_ms: 12,
            at,
        })
        .collect();
    Finished {
        claimed: claimed.clone(),
        attempts,
        failures: 0,
        scheduled_at: Timestamp(0),
        hold_until: Timestamp(0),
        found_empty: loaded.is_empty(),
        due_at: at,
    }
}

fn ids(loaded: &[Loaded]) -> Vec<&str> {
    loaded.iter().map(|one| one.message_id.as_str()).collect()
}

/// Room, recorded count and real count of what is pending.
pub(crate) async fn counts(store: &Store) -> Vec<(String, i64, i64)> {
    store
        .db()
        .fetch_all(
            "SELECT q.room_id, q.pending_count, (SELECT COUNT(*) FROM deliveries AS d \
                 WHERE d.webhook_id = q.webhook_id AND d.room_id = q.room_id AND d.state = 'pending') \
             FROM room_queues AS q ORDER BY q.webhook_id, q.room_id",
            vec![],
        )
        .await
        .unwrap()
}

#[tokio::test]
async fn a_webhook_keeps_its_number_and_its_generated_secret() {
    for test in testing::both().await {
        let other = testing::open(&test.location, "test pickle key");
        other.prepare(START).await.unwrap();
        let id = webhook(&test.store, "main").await;
        assert_eq!(webhook(&other, "main").await, id);
        assert_ne!(webhook(&other, "audit").await, id);
        let names: Vec<_> = webhooks::all(other.db()).await.unwrap().into_iter().map(|(_, n)| n).collect();
        assert_eq!(names, ["audit", "main"]);

        let secret = |store: Store, seed| async move {
            let mut tx = store.begin().await.unwrap();
            let mut rng = StdRng::seed_from_u64(seed);
            let seal = store.seal().unwrap();
            let secret = webhooks::generated_secret(&mut tx, seal, id, &mut rng).await.unwrap();
            tx.commit().await.unwrap();
            secret.expose_secret().to_owned()
        };
        let (one, two) = future::join(secret(test.store.clone(), 1), secret(other.clone(), 2)).await;
        assert_eq!(one, two);
        assert!(one.starts_with("whsec_"));
        let stored: Vec<(Vec<u8>,)> = other
            .db()
            .fetch_all("SELECT secret FROM webhooks WHERE secret IS NOT NULL", vec![])
            .await
            .unwrap();
        assert_eq!(stored.len(), 1);
        assert!(!String::from_utf8_lossy(&stored[0].0).contains(&one[6..20]));
    }
}

#[tokio::test]
async fn deliveries_of_a_room_are_loaded_in_order_and_bounded() {
    for test in testing::both().await {
        let store = &test.store;
        let (main, audit) = (webhook(store, "main").await, webhook(store, "audit").await);
        put(
            store,
            &[main, audit],
            &[("!b:x", 2), ("!a:x", 1), ("!b:x", 1), ("!b:x", 3), ("!b:x", 10)],
            START,
        )
        .await;
        let claimed = claim(store, main, START, 10).await;
        assert_eq!(claimed.len(), 2);
        let loaded = load(store.db(), store.seal().unwrap(), &claimed, 3).await.unwrap();
        assert_eq!(ids(&loaded[0]), ["a:x_1"]);
        assert_eq!(ids(&loaded[1]), ["b:x_1", "b:x_2", "b:x_3"]);
        assert_eq!(loaded[1][2].payload.as_ref().unwrap(), b"{\"n\":3,\"id\":\"b:x_3\"}");

        // The other webhook is not concerned.
        assert_eq!(claim(store, main, START, 10).await, []);
        assert_eq!(claim(store, audit, START, 1).await.len(), 1);
        assert_eq!(claim(store, audit, START, 10).await.len(), 1);

        let outcomes: Vec<_> =
            claimed.iter().zip(&loaded).map(|(queue, loaded)| delivered(queue, loaded, START)).collect();
        assert_eq!(record(store, &outcomes).await, 0);
        let claimed = claim(store, main, START, 10).await;
        assert_eq!(claimed.len(), 1);
        let loaded = load(store.db(), store.seal().unwrap(), &claimed, 3).await.unwrap();
        assert_eq!(ids(&loaded[0]), ["b:x_10"]);
        let backlogs = backlogs(store.db()).await.unwrap();
        assert_eq!(
            backlogs,
            [
                Backlog { webhook_id: main, pending_count: 1, room_count: 1, oldest_at: Some(START) },
                Backlog { webhook_id: audit, pending_count: 5, room_count: 2, oldest_at: Some(START) },
            ]
        );
    }
}

#[tokio::test]
async fn a_failed_queue_waits_and_new_messages_wait_with_it() {
    for test in testing::both().await {
        let store = &test.store;
        let main = webhook(store, "main").await;
        put(store, &[main], &[("!a:x", 1)], START).await;
        let claimed = claim(store, main, START, 10).await;
        let loaded = load(store.db(), store.seal().unwrap(), &claimed, 3).await.unwrap();
        let due_at = START.plus(Duration::from_secs(30));
        let mut outcome = delivered(&claimed[0], &loaded[0], START);
        outcome.attempts[0].fate = Fate::Pending;
        outcome.attempts[0].status = Some(500);
        (outcome.failures, outcome.due_at) = (1, due_at);
        assert_eq!(record(store, &[outcome]).await, 0);

        put(store, &[main], &[("!a:x", 2)], START).await;
        assert_eq!(next_due(store.db(), [main]).await.unwrap(), [(main, due_at)]);
        assert_eq!(claim(store, main, due_at.minus(Duration::from_millis(1)), 10).await, []);
        let claimed = claim(store, main, due_at, 10).await;
        assert_eq!(claimed[0].failures, 1);
        let loaded = load(store.db(), store.seal().unwrap(), &claimed, 3).await.unwrap();
        assert_eq!(ids(&loaded[0]), ["a:x_1", "a:x_2"]);
        assert_eq!(loaded[0][0].attempts, 1);

        record(store, &[delivered(&claimed[0], &loaded[0], due_at)]).await;
        assert_eq!(next_due(store.db(), [main]).await.unwrap(), []);
        // An idle queue is due as soon as something comes.
        let later = due_at.plus(LEASE);
        put(store, &[main], &[("!a:x", 3)], later).await;
        assert_eq!(claim(store, main, later, 10).await.len(), 1);
    }
}

#[tokio::test]
async fn an_expired_lease_is_claimed_again_and_its_outcome_changes_nothing() {
    for test in testing::both().await {
        let store = &test.store;
        let main = webhook(store, "main").await;
        put(store, &[main], &[("!a:x", 1), ("!a:x", 2)], START).await;
        let first = claim(store, main, START, 10).await;
        let loaded = load(store.db(), store.seal().unwrap(), &first, 9).await.unwrap();
        let later = START.plus(LEASE);
        assert_eq!(claim(store, main, later.minus(Duration::from_millis(1)), 10).await, []);
        let second = claim(store, main, later, 10).await;
        assert_eq!(second.len(), 1);

        assert_eq!(record(store, &[delivered(&first[0], &loaded[0], later)]).await, 1);
        assert_eq!(counts(store).await, [("!a:x".to_owned(), 2, 2)]);
        let again = delivered(&second[0], &loaded[0][..1], later);
        assert_eq!(record(store, std::slice::from_ref(&again)).await, 0);
        // A commit whose answer was lost is recorded once more.
        assert_eq!(record(store, &[again]).await, 1);
        assert_eq!(counts(store).await, [("!a:x".to_owned(), 1, 1)]);
    }
}

#[tokio::test]
async fn claims_are_renewed_together_unless_somebody_else_has_the_queue() {
    for test in testing::both().await {
        let store = &test.store;
        let main = webhook(store, "main").await;
        put(store, &[main], &[("!a:x", 1), ("!B:x", 1)], START).await;
        let first = claim(store, main, START, 10).await;
        let later = START.plus(Duration::from_secs(50));
        let renewed = async |claims: &[Claimed], now| {
            let mut tx = store.begin().await.unwrap();
            let claims: Vec<&Claimed> = claims.iter().collect();
            let mut held = renew(&mut tx, &claims, now, LEASE).await.unwrap();
            tx.commit().await.unwrap();
            held.sort();
            held.into_iter().map(|(_, room)| room).collect::<Vec<_>>()
        };
        assert_eq!(renewed(&first, later).await, ["!B:x", "!a:x"]);
        assert_eq!(claim(store, main, START.plus(LEASE), 10).await, []);
        let second = claim(store, main, later.plus(LEASE), 1).await;
        assert_eq!(second.len(), 1);
        let left = first.iter().map(|claim| claim.room_id.clone()).find(|room| *room != second[0].room_id);
        assert_eq!(renewed(&first, later.plus(LEASE)).await, [left.unwrap()]);
        assert_eq!(claim(store, main, later.plus(LEASE), 10).await, []);
    }
}

#[tokio::test]
async fn a_wrong_count_is_counted_anew() {
    for test in testing::both().await {
        let store = &test.store;
        let main = webhook(store, "main").await;
        put(store, &[main], &[("!a:x", 1), ("!b:x", 1), ("!b:x", 2)], START).await;
        let mut tx = store.begin().await.unwrap();
        tx.execute("UPDATE deliveries SET state = 'delivered' WHERE message_id = 'a:x_1'", vec![])
            .await
            .unwrap();
        tx.execute("UPDATE room_queues SET pending_count = 1 WHERE room_id = '!b:x'", vec![]).await.unwrap();
        tx.commit().await.unwrap();

        let claimed = claim(store, main, START, 10).await;
        let loaded = load(store.db(), store.seal().unwrap(), &claimed, 9).await.unwrap();
        assert!(loaded[0].is_empty());
        let outcomes: Vec<_> =
            claimed.iter().zip(&loaded).map(|(queue, loaded)| delivered(queue, loaded, START)).collect();
        assert_eq!(record(store, &outcomes).await, 0);
        assert_eq!(counts(store).await, [("!a:x".to_owned(), 0, 0), ("!b:x".to_owned(), 0, 0)]);
    }
}

#[tokio::test]
async fn a_payload_that_does_not_open_stops_only_its_own_queue() {
    for test in testing::both().await {
        let store = &test.store;
        let main = webhook(store, "main").await;
        put(store, &[main], &[("!a:x", 1), ("!b:x", 1), ("!c:x", 1)], START).await;
        let mut tx = store.begin().await.unwrap();
        let garbage = b"garbage".to_vec();
        tx.execute("UPDATE messages SET payload = $1 WHERE room_id = '!a:x'", values![garbage])
            .await
            .unwrap();
        tx.execute("DELETE FROM messages WHERE room_id = '!c:x'", vec![]).await.unwrap();
        tx.commit().await.unwrap();
        let claimed = claim(store, main, START, 10).await;
        let loaded = load(store.db(), store.seal().unwrap(), &claimed, 9).await.unwrap();
        let opens: Vec<bool> = loaded.iter().map(|queue| queue[0].payload.is_ok()).collect();
        assert_eq!(opens, [false, true, false]);
    }
}

/// Writers and dispatchers at once: everything is sent once, in order, and the counts end at nothing.
#[tokio::test]
async fn nothing_is_lost_while_messages_come_and_go_at_once() {
    const ROOMS: [&str; 5] = ["!a:x", "!B:x", "!c:x", "!Z:x", "!e:x"];
    const EACH: i64 = 40;
    for test in testing::both().await {
        let webhooks = [webhook(&test.store, "main").await, webhook(&test.store, "audit").await];
        let writer = async {
            for sequence in 1..=EACH {
                let mut numbers: Vec<_> = ROOMS.iter().map(|room| (*room, sequence)).collect();
                numbers.rotate_left(usize::try_from(sequence).unwrap() % ROOMS.len());
                put(&test.store, &webhooks, &numbers, START).await;
            }
        };
        let dispatcher = |store: Store| async move {
            let mut sent = Vec::new();
            let mut idle = 0;
            while idle < 50 {
                let mut outcomes = Vec::new();
                for id in webhooks {
                    let claimed = claim(&store, id, START, 3).await;
                    let loaded = load(store.db(), store.seal().unwrap(), &claimed, 4).await.unwrap();
                    for (queue, loaded) in claimed.iter().zip(&loaded) {
                        assert!(!loaded.is_empty());
                        outcomes.push(delivered(queue, loaded, START));
                        sent.extend(loaded.iter().map(|one| (id, one.message_id.clone())));
                    }
                }
                if outcomes.is_empty() {
                    idle += 1;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                } else {
                    idle = 0;
                    assert_eq!(record(&store, &outcomes).await, 0);
                }
            }
            sent
        };
        let other = testing::open(&test.location, "test pickle key");
        other.prepare(START).await.unwrap();
        let ((), mut one, two) =
            future::join3(writer, dispatcher(test.store.clone()), dispatcher(other)).await;
        one.extend(two);
        one.sort();
        let all = one.len();
        one.dedup();
        assert_eq!((all, one.len()), (400, 400), "each delivery was sent exactly once");
        assert!(counts(&test.store).await.iter().all(|(_, count, real)| (*count, *real) == (0, 0)));
    }
}

#[tokio::test]
async fn two_dispatchers_claim_different_queues() {
    let test = testing::postgres().await;
    let store = &test.store;
    let main = webhook(store, "main").await;
    put(store, &[main], &[("!a:x", 1), ("!b:x", 1), ("!c:x", 1)], START).await;
    // Both transactions are open at once: the second skips what the first has locked.
    let mut first = store.begin().await.unwrap();
    let mut second = store.begin().await.unwrap();
    let one = claim_due(&mut first, main, START, LEASE, 2).await.unwrap();
    let two = claim_due(&mut second, main, START, LEASE, 5).await.unwrap();
    assert_eq!((one.len(), two.len()), (2, 1));
    assert!(one.iter().all(|queue| queue.room_id != two[0].room_id));
}

/// Every statement on a table that grows reads an index, at a size at which the planner has a choice.
#[tokio::test]
async fn statements_use_the_indexes() {
    for test in testing::both().await {
        let store = &test.store;
        let main = webhook(store, "main").await;
        let mut tx = store.begin().await.unwrap();
        fill(&mut tx).await;
        tx.execute("ANALYZE", vec![]).await.unwrap();

        let rooms = |columns: &[i64]| -> Vec<_> {
            (0..16)
                .map(|room| {
                    let mut row = values![main.0, format!("!{room}:x")];
                    row.extend(columns.iter().map(|column| (*column).into()));
                    row
                })
                .collect()
        };
        let claim_sql = tx.text(super::claim::CLAIM);
        let load_sql = tx.text(super::claim::LOAD);
        let renew_sql = tx.text(super::claim::RENEW);
        let lock_sql = tx.text(super::finish::LOCK);
        let attempt = |n: i64| {
            let none: Option<&str> = None;
            values![n, "delivered", 1_i64, Some(200_i64), none, 12_i64, START, Some(START)]
        };
        let any_sql = tx.text(super::rescue::CLAIM_ANY);
        let cut_sql = tx.text(super::rescue::CUT_DEADLINES);
        let release_sql = tx.text(super::rescue::RELEASE);
        let plans = [
            tx.explain(super::claim::NEXT_DUE, vec![], vec![values![main.0]]).await,
            tx.explain(claim_sql, values![main.0, START, START, 64_i64], vec![]).await,
            tx.explain(load_sql, values![32_i64], rooms(&[])).await,
            tx.explain(lock_sql, vec![], rooms(&[1])).await,
            tx.explain(renew_sql, values![START], rooms(&[1])).await,
            tx.explain(super::finish::ATTEMPTED, vec![], (0..64).map(attempt).collect()).await,
            tx.explain(super::finish::SETTLE, vec![], rooms(&[1, 1, 1, 1, 1])).await,
            tx.explain(super::finish::RECOUNT, vec![], rooms(&[1, 1, 1, 1, 1])).await,
            tx.explain(any_sql, values![main.0, START, START, "!5:x"], vec![]).await,
            tx.explain(release_sql, values![main.0, START], vec![]).await,
            tx.explain(cut_sql, values![main.0, START], vec![values![1_i64, START]]).await,
            tx.explain(super::rescue::FAILING, vec![], vec![values![main.0]]).await,
            tx.explain(super::stats::DEAD, vec![], vec![]).await,
            tx.explain(super::stats::BACKLOGS, vec![], vec![]).await,
            tx.explain(super::shared::OLDEST, values![main.0, 64_i64], vec![]).await,
            tx.explain(super::shared::MOVE, vec![], vec![values![1_i64, "~1-0"]]).await,
            tx.explain(super::shared::REMOVE, vec![], rooms(&[])).await,
            tx.explain(super::shared::BEGIN, vec![], rooms(&[1, 1])).await,
            tx.explain(super::enqueue::FULL, values![START], rooms(&[1])).await,
        ];
        let tables = ["deliveries", "room_queues", "messages"];
        for (at, plan) in plans.iter().enumerate() {
            for step in plan.lines() {
                let scan = ["Seq Scan on ", "SCAN "].iter().find_map(|scan| step.split(scan).nth(1));
                let scanned = scan.unwrap_or_default();
                // The stats read all queues with something pending, and nothing else.
                let partial = step.contains("USING") && step.contains("INDEX");
                assert!(
                    partial || !tables.iter().any(|table| scanned.starts_with(table)),
                    "statement {at}:\n{plan}"
                );
            }
        }
        assert!(plans[1].contains("room_queues_due"), "{}", plans[1]);
        assert!(plans[2].contains("deliveries_pending"), "{}", plans[2]);
    }
}

/// After a calm night the statistics say that nothing is pending. Then an outage comes, and a load must not read all of it.
#[tokio::test]
async fn a_load_reads_its_own_queues_alone_whatever_the_statistics_say() {
    for test in testing::both().await {
        let main = webhook(&test.store, "main").await;
        let mut tx = test.store.begin().await.unwrap();
        fill(&mut tx).await;
        tx.execute("UPDATE deliveries SET state = 'delivered'", vec![]).await.unwrap();
        tx.execute("ANALYZE", vec![]).await.unwrap();
        tx.execute("UPDATE deliveries SET state = 'pending'", vec![]).await.unwrap();
        let sql = tx.text(super::claim::LOAD);
        let rooms = (0..16).map(|room| values![main.0, format!("!{room}:x")]).collect();
        let plan = tx.explain(sql, values![32_i64], rooms).await;
        let count =
            |what: [&str; 2]| plan.lines().filter(|line| what.iter().all(|what| line.contains(what))).count();
        let looks = count(["deliveries_pending", ""]);
        // SQLite says it in one line: (webhook_id=? AND <expr>=? …).
        let narrow = count(["Index Cond", "COALESCE"]) + count(["deliveries_pending", "AND <expr>=?"]);
        assert!(looks > 0 && looks == narrow, "{plan}");
    }
}

/// 2000 rooms with 20 deliveries each, of which one room in ten has something pending, and 38 000 idle ones.
async fn fill(tx: &mut crate::store::Tx) {
    let statements: [&'static str; 3] = [
        "WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 39999) \
         INSERT INTO deliveries (webhook_id, message_id, room_id, sequence, state, attempts, created_at) \
         SELECT 1, 'm' || n, '!' || (n % 2000) || ':x', n / 2000, \
             CASE WHEN n % 10 = 0 THEN 'pending' ELSE 'delivered' END, 0, 0 FROM n",
        "WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 39999) \
         INSERT INTO messages (message_id, event_id, room_id, sequence, type, direction, sender, \
             origin_server_ts, created_at, payload) \
         SELECT 'm' || n, 'e' || n, '!' || (n % 2000) || ':x', n / 2000, 't', 'in', 's', 0, 0, '' FROM n",
        "WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 39999) \
         INSERT INTO room_queues \
             (webhook_id, room_id, pending_count, due_at, failures, lease_until, lease_token) \
         SELECT 1, '!' || n || ':x', CASE WHEN n < 2000 AND n % 10 = 0 THEN 20 ELSE 0 END, 0, 0, 0, 0 FROM n",
    ];
    for sql in statements {
        tx.execute(sql, vec![]).await.unwrap();
    }
}
