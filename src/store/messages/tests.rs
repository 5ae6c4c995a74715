//! Positions, pages and counts, on both databases.

use std::time::Duration;

use super::{counts, read::*, *};
use crate::{
    model::{Direction, MessageType},
    store::Store,
    testing::{self, START, message},
};

fn positions(found: &[Stored]) -> Vec<i64> {
    found.iter().map(|message| message.position).collect()
}

async fn listed(store: &Store, filter: &Filter, before: Option<i64>, limit: u16) -> Vec<i64> {
    positions(&page(store.db(), store.seal().unwrap(), filter, before, limit).await.unwrap())
}

#[tokio::test]
async fn pages_run_backwards_along_the_positions_and_filters_hold() {
    for test in testing::both().await {
        let store = &test.store;
        let mut five: Vec<_> = (1..=5).map(|n| message("!one:x", n)).collect();
        five[1].direction = Direction::Out;
        five[2].message_type = MessageType::MessageEdited;
        five[3].network = None;
        testing::insert(store, &five, START).await;
        let later = START.plus(Duration::from_hours(1));
        testing::insert(store, &[message("!two:x", 1), message("!two:x", 2)], later).await;

        let all = Filter::default();
        assert_eq!(listed(store, &all, None, 3).await, [7, 6, 5]);
        assert_eq!(listed(store, &all, Some(5), 3).await, [4, 3, 2]);
        assert_eq!(listed(store, &all, Some(2), 3).await, [1]);
        let of = |filter: Filter| async move { listed(store, &filter, None, 10).await };
        assert_eq!(of(Filter { room_id: Some("!one:x".to_owned()), ..all.clone() }).await, [5, 4, 3, 2, 1]);
        assert_eq!(
            of(Filter { network: Some("instagram".to_owned()), ..all.clone() }).await,
            [7, 6, 5, 3, 2, 1]
        );
        assert_eq!(of(Filter { direction: Some(Direction::Out), ..all.clone() }).await, [2]);
        assert_eq!(of(Filter { message_type: Some(MessageType::MessageEdited), ..all.clone() }).await, [3]);
        let created = Filter { message_type: Some(MessageType::MessageCreated), ..all.clone() };
        assert_eq!(of(created).await, [7, 6, 5, 4, 2, 1]);
        assert_eq!(of(Filter { since: Some(later), ..all.clone() }).await, [7, 6]);
        assert_eq!(of(Filter { until: Some(later), ..all.clone() }).await, [5, 4, 3, 2, 1]);
        let never = Filter { since: Some(later.plus(Duration::from_millis(1))), ..all.clone() };
        assert_eq!(of(never).await, [0_i64; 0]);
        let both =
            Filter { room_id: Some("!one:x".to_owned()), network: Some("instagram".to_owned()), ..all };
        assert_eq!(of(both).await, [5, 3, 2, 1]);
    }
}

#[tokio::test]
async fn whoever_reads_on_misses_nothing_that_is_committed_late() {
    let test = testing::postgres().await;
    let store = &test.store;
    let seal = store.seal().unwrap();
    let mut slow = store.begin().await.unwrap();
    insert(&mut slow, seal, &[message("!one:x", 1)], START).await.unwrap();
    // Somebody else cannot even get a position before the first has committed.
    let mut quick = store.begin().await.unwrap();
    let two = [message("!two:x", 1)];
    {
        let mut inserting = Box::pin(insert(&mut quick, seal, &two, START));
        assert!(tokio::time::timeout(Duration::from_millis(300), &mut inserting).await.is_err());
        assert_eq!(positions(&after(store.db(), seal, 0, 10).await.unwrap()), [0_i64; 0]);
        slow.commit().await.unwrap();
        inserting.await.unwrap();
    }
    assert_eq!(positions(&after(store.db(), seal, 0, 10).await.unwrap()), [1]);
    quick.commit().await.unwrap();
    assert_eq!(positions(&after(store.db(), seal, 1, 10).await.unwrap()), [2]);
}

#[tokio::test]
async fn positions_are_never_drawn_twice_and_time_never_runs_backwards_along_them() {
    for test in testing::both().await {
        let store = &test.store;
        let seal = store.seal().unwrap();
        assert_eq!(last(store.db()).await.unwrap(), 0);
        testing::insert(store, &[message("!one:x", 1), message("!one:x", 2)], START).await;
        let mut tx = store.begin().await.unwrap();
        tx.execute("DELETE FROM messages", vec![]).await.unwrap();
        tx.commit().await.unwrap();
        // Another process took over, whose clock is behind.
        testing::insert(store, &[message("!one:x", 3)], START.minus(Duration::from_secs(9))).await;
        let found = after(store.db(), seal, 0, 10).await.unwrap();
        assert_eq!(positions(&found), [3], "a reader at 2 sees the new one");
        assert_eq!(found[0].created_at, START);
        // A rolled back transaction takes its positions with it.
        let mut tx = store.begin().await.unwrap();
        insert(&mut tx, seal, &[message("!one:x", 4)], START).await.unwrap();
        drop(tx);
        testing::insert(store, &[message("!one:x", 5)], START).await;
        assert_eq!(last(store.db()).await.unwrap(), 4);
    }
}

#[tokio::test]
async fn what_an_earlier_version_stored_is_numbered_when_a_newer_one_takes_over() {
    for test in testing::both().await {
        let store = &test.store;
        testing::insert(store, &[message("!one:x", 1)], START).await;
        testing::insert(store, &(2..=6).map(|n| message("!one:x", n)).collect::<Vec<_>>(), START).await;
        let mut tx = store.begin().await.unwrap();
        tx.execute("UPDATE messages SET position = NULL WHERE sequence > 1", vec![]).await.unwrap();
        tx.execute("UPDATE positions SET last = 1", vec![]).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(listed(store, &Filter::default(), None, 10).await, [1]);
        let mut tx = store.begin().await.unwrap();
        for expected in [3, 2, 0] {
            assert_eq!(number(&mut tx, 3, START).await.unwrap(), expected);
        }
        tx.commit().await.unwrap();
        let found = after(store.db(), store.seal().unwrap(), 0, 10).await.unwrap();
        assert_eq!(positions(&found), [1, 2, 3, 4, 5, 6]);
        assert!(found.is_sorted_by_key(|message| message.sequence));
    }
}

#[tokio::test]
async fn messages_are_counted_as_they_come() {
    for test in testing::both().await {
        let store = &test.store;
        let mut clear = message("!one:x", 1);
        clear.encrypted = false;
        clear.network = None;
        let day = Duration::from_hours(24);
        testing::insert(store, &[clear, message("!two:x", 1)], START).await;
        testing::insert(store, &[message("!two:x", 2)], START.plus(day / 2)).await;
        testing::insert(store, &[message("!two:x", 3), message("!two:x", 4)], START.plus(day)).await;
        let lately = counts::lately(store.db(), START.plus(day)).await.unwrap();
        let count = |network: &str, encrypted, hour, day, week| counts::Count {
            network: network.to_owned(),
            encrypted,
            hour,
            day,
            week,
        };
        assert_eq!(lately, [count("", false, 0, 0, 1), count("instagram", true, 2, 3, 4)]);
        let mut tx = store.begin().await.unwrap();
        counts::prune(&mut tx, START.plus(counts::KEPT + day / 2)).await.unwrap();
        tx.commit().await.unwrap();
        let lately = counts::lately(store.db(), START.plus(day)).await.unwrap();
        assert_eq!(lately, [count("instagram", true, 2, 3, 3)]);
    }
}

#[tokio::test]
async fn every_list_runs_along_an_index() {
    for test in testing::both().await {
        let store = &test.store;
        let page = |filter: Filter| super::read::listed(&filter, i64::MAX, 0, 10);
        let all = Filter::default();
        let room = Filter { room_id: Some("!r".to_owned()), ..all.clone() };
        let network = Filter { network: Some("n".to_owned()), ..all.clone() };
        let edited = Filter { message_type: Some(MessageType::MessageEdited), ..all.clone() };
        for (sql, values, index) in [
            (ALL, page(all), "messages_position"),
            (BY_ROOM, page(room), "messages_room_position"),
            (BY_NETWORK, page(network), "messages_network_position"),
            (BY_TYPE, page(edited), "messages_type_position"),
            (AFTER, values![1_i64, 10_i64], "messages_position"),
            (FIRST_SINCE, values![START], "messages_created"),
            (UNNUMBERED, values![10_i64], "messages_position"),
            (counts::LATELY, values![1_i64, 1_i64, 1_i64], "message_counts"),
            (counts::PRUNE, values![1_i64], "message_counts"),
        ] {
            let mut tx = store.begin().await.unwrap();
            if store.backend() == "postgres" {
                tx.execute("SET LOCAL enable_seqscan = off", vec![]).await.unwrap();
            }
            let plan = tx.explain(sql, values, vec![]).await;
            let sorts = sql != UNNUMBERED
                && (plan.contains("TEMP B-TREE FOR ORDER") || plan.contains("Sort Key: \"position\""));
            assert!(plan.contains(index) && !plan.contains("SCAN messages\n") && !sorts, "{sql}\n{plan}");
        }
    }
}
