//! Lists of deliveries, and sending again, on both databases.

use std::time::Duration;

use super::{
    super::{Queued, claim_due, enqueue, load},
    *,
};
use crate::{
    model::Message,
    store::{Store, Tx, webhooks},
    testing::{self, START, message},
};

async fn queue(tx: &mut Tx, id: WebhookId, messages: &[Message]) {
    for message in messages {
        let queued = Queued {
            webhooks: vec![(id, crate::model::Flow::default())],
            message_id: message.message_id.as_str(),
            room_id: &message.room_id,
            sequence: i64::try_from(message.sequence).unwrap(),
        };
        enqueue(tx, &[queued], START).await.unwrap();
    }
}

/// A webhook with deliveries of messages 1 to 3 of one room and 1 of another, all delivered.
async fn delivered(store: &Store) -> WebhookId {
    let messages: Vec<_> =
        [("!one:x", 1), ("!one:x", 2), ("!two:x", 1), ("!one:x", 3)].map(|(room, n)| message(room, n)).into();
    testing::insert(store, &messages, START).await;
    let mut tx = store.begin().await.unwrap();
    let id = webhooks::ensure(&mut tx, "default", START).await.unwrap();
    queue(&mut tx, id, &messages).await;
    let sql = "UPDATE deliveries SET state = 'delivered', attempts = 2, finished_at = 5, last_status = 200";
    tx.execute(sql, vec![]).await.unwrap();
    tx.execute("UPDATE room_queues SET pending_count = 0", vec![]).await.unwrap();
    tx.commit().await.unwrap();
    id
}

async fn set_state(store: &Store, id: DeliveryId, state: &str) {
    let mut tx = store.begin().await.unwrap();
    let sql = "UPDATE deliveries SET state = $2 WHERE delivery_id = $1";
    tx.execute(sql, values![id.0, state]).await.unwrap();
    tx.commit().await.unwrap();
}

async fn again(store: &Store, ids: &[DeliveryId], now: Timestamp) -> u64 {
    let mut tx = store.begin().await.unwrap();
    let count = resend(&mut tx, ids, now).await.unwrap();
    tx.commit().await.unwrap();
    count
}

#[tokio::test]
async fn what_is_sent_again_goes_in_its_rooms_order_and_once() {
    for test in testing::both().await {
        let store = &test.store;
        let id = delivered(store).await;
        let all = page(store.db(), id, &Filter::default(), i64::MAX, 10).await.unwrap();
        let ids: Vec<_> = all.iter().map(|delivery| delivery.delivery_id).collect();
        let later = START.plus(Duration::from_secs(9));
        assert_eq!(again(store, &ids, later).await, 4);
        assert_eq!(again(store, &ids, later).await, 0, "pending ones stay as they are");
        let mut tx = store.begin().await.unwrap();
        let lease = Duration::from_mins(1);
        assert!(
            claim_due(&mut tx, id, START, lease, 10).await.unwrap().is_empty(),
            "not before it was asked for"
        );
        let mut claimed = claim_due(&mut tx, id, later, lease, 10).await.unwrap();
        tx.commit().await.unwrap();
        claimed.sort_by(|a, b| a.room_id.cmp(&b.room_id));
        let loaded = load(store.db(), store.seal().unwrap(), &claimed, 10).await.unwrap();
        let sent: Vec<Vec<_>> =
            loaded.iter().map(|queue| queue.iter().map(|one| one.message_id.clone()).collect()).collect();
        let id_of = |room, n| message(room, n).message_id.0;
        assert_eq!(
            sent,
            [vec![id_of("!one:x", 1), id_of("!one:x", 2), id_of("!one:x", 3)], vec![id_of("!two:x", 1)]]
        );
        let found = find(store.db(), ids[0]).await.unwrap().unwrap();
        assert_eq!((found.state.as_str(), found.attempts, found.finished_at), ("pending", 0, None));
    }
}

#[tokio::test]
async fn what_has_no_content_any_more_is_not_sent_again() {
    for test in testing::both().await {
        let store = &test.store;
        let id = delivered(store).await;
        let first = message("!one:x", 1).message_id;
        let mut tx = store.begin().await.unwrap();
        let sql = "UPDATE messages SET payload = $1 WHERE message_id = $2";
        tx.execute(sql, values![Vec::<u8>::new(), first.as_str()]).await.unwrap();
        tx.commit().await.unwrap();
        let ids = of_messages(store.db(), id, &[first.0.clone(), "msg_x".to_owned()]).await.unwrap();
        assert_eq!((ids.len(), again(store, &ids, START).await), (1, 0));
        let found = find(store.db(), ids[0]).await.unwrap().unwrap();
        assert_eq!(found.state, "delivered");
        assert_eq!(find(store.db(), DeliveryId(99)).await.unwrap(), None);
    }
}

#[tokio::test]
async fn deliveries_are_listed_by_time_room_and_state() {
    for test in testing::both().await {
        let store = &test.store;
        let id = delivered(store).await;
        let list = async |filter: &Filter, before, limit| {
            let found = page(store.db(), id, filter, before, limit).await.unwrap();
            found.iter().map(|one| format!("{} {}", &one.room_id[1..4], one.sequence)).collect::<Vec<_>>()
        };
        let all = Filter::default();
        assert_eq!(list(&all, i64::MAX, 3).await, ["one 3", "two 1", "one 2"]);
        assert_eq!(list(&all, 2, 3).await, ["one 1"]);
        let room = Filter { room_id: Some("!one:x".to_owned()), ..all.clone() };
        assert_eq!(list(&room, i64::MAX, 9).await, ["one 3", "one 2", "one 1"]);
        let later = Filter { since: Some(START.plus(Duration::from_millis(1))), ..all.clone() };
        assert_eq!(list(&later, i64::MAX, 9).await, [""; 0]);
        let until = Filter { until: Some(START), ..all.clone() };
        assert_eq!(list(&until, i64::MAX, 9).await, [""; 0]);
        let found = page(store.db(), id, &all, i64::MAX, 9).await.unwrap();
        set_state(store, found[0].delivery_id, "dead").await;
        set_state(store, found[2].delivery_id, "dead").await;
        let dead = Filter { state: Some(State::Dead), ..all.clone() };
        assert_eq!(list(&dead, i64::MAX, 9).await, ["one 3", "one 2"]);
        assert_eq!(list(&dead, found[0].delivery_id.0, 9).await, ["one 2"]);
        let done = Filter { state: Some(State::Delivered), ..all.clone() };
        assert_eq!(list(&done, i64::MAX, 9).await, ["two 1", "one 1"]);
        assert_eq!(given_up(store.db()).await.unwrap(), [(id, (2, START))].into());
        let finished = async |filter: &Filter, after| {
            let found = finished(store.db(), id, filter, after, 2).await.unwrap();
            found.into_iter().map(|(_, position)| position).collect::<Vec<_>>()
        };
        assert_eq!(finished(&all, 0).await, [1, 2]);
        assert_eq!(finished(&all, 2).await, [3, 4]);
        assert_eq!(finished(&dead, 0).await, [2, 4]);
        assert_eq!(finished(&later, 0).await, [0_i64; 0]);
    }
}

#[tokio::test]
async fn lists_of_deliveries_run_along_indexes() {
    for test in testing::both().await {
        let store = &test.store;
        let messages: Vec<_> = (1..=300).map(|n| message("!many:x", n)).collect();
        let id = delivered(store).await;
        testing::insert(store, &messages, START).await;
        let mut tx = store.begin().await.unwrap();
        queue(&mut tx, id, &messages).await;
        tx.execute("ANALYZE", vec![]).await.unwrap();
        tx.commit().await.unwrap();
        let page = |state: Option<&str>, room: Option<&str>| {
            values![1_i64, i64::MAX, state, None::<i64>, None::<i64>, room, 10_i64]
        };
        let finished = values![1_i64, 0_i64, 0_i64, None::<i64>, None::<&str>, None::<&str>, 10_i64];
        for (sql, values, rows, index) in [
            (BY_TIME, page(None, None), vec![], "messages_position"),
            (BY_ROOM, page(None, Some("!two:x")), vec![], "messages_room_position"),
            (OPEN, page(Some("dead"), None), vec![], "deliveries_"),
            (FINISHED, finished, vec![], "messages_position"),
            (QUEUES, vec![], vec![values![1_i64]], "deliveries"),
            (AGAIN, vec![], vec![values![1_i64]], "deliveries"),
            (DEAD, vec![], vec![], "deliveries_"),
        ] {
            let mut tx = store.begin().await.unwrap();
            if store.backend() == "postgres" {
                tx.execute("SET LOCAL enable_seqscan = off", vec![]).await.unwrap();
                // What small tables make look cheap.
                tx.execute("SET LOCAL enable_hashjoin = off", vec![]).await.unwrap();
                tx.execute("SET LOCAL enable_mergejoin = off", vec![]).await.unwrap();
                tx.execute("SET LOCAL enable_bitmapscan = off", vec![]).await.unwrap();
                tx.execute("SET LOCAL enable_sort = off", vec![]).await.unwrap();
            }
            let plan = tx.explain(sql, values, rows).await;
            let scans = [
                "Seq Scan on deliveries",
                "Seq Scan on messages",
                "SCAN d\n",
                "SCAN m\n",
                "SCAN deliveries\n",
            ];
            let bad = scans.iter().any(|scan| format!("{plan}\n").contains(scan));
            assert!(plan.contains(index) && !bad, "{sql}\n{plan}");
        }
    }
}
