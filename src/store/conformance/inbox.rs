use std::time::Duration;

use ruma::{device_id, user_id};

use super::*;
use crate::{
    model::Role,
    store::{Store, accounts},
    testing::{self, START},
};

async fn push(store: &Store, txn_id: &str, body: &[u8]) -> Accepted {
    let body = seal_body(store.seal().unwrap(), body).unwrap();
    let mut tx = store.begin().await.unwrap();
    let accepted = accept(&mut tx, txn_id.into(), body, START).await.unwrap();
    tx.commit().await.unwrap();
    accepted
}

async fn all(store: &Store) -> Vec<InboxRow> {
    waiting(store.db(), store.seal().unwrap(), 1000, u64::MAX).await.unwrap()
}

async fn processed(store: &Store, ids: &[InboxId], now: Timestamp) -> Result<(), StoreError> {
    let mut tx = store.begin().await.unwrap();
    mark_processed(&mut tx, ids, now).await?;
    tx.commit().await
}

#[tokio::test]
async fn only_the_same_content_under_the_same_id_is_a_repeat() {
    for test in testing::both().await {
        let store = &test.store;
        assert_eq!(push(store, "1", b"{\"events\":[]}").await, Accepted::New);
        assert_eq!(push(store, "1", b"{\"events\":[]}").await, Accepted::Repeat);
        assert_eq!(push(store, "1", b"{}").await, Accepted::New);
        assert_eq!(push(store, "2", b"{}").await, Accepted::New);
        let rows = all(store).await;
        let bodies: Vec<_> = rows.iter().map(|row| row.body.as_deref().unwrap()).collect();
        assert_eq!(bodies, [&b"{\"events\":[]}"[..], b"{}", b"{}"]);
        assert!(rows.iter().all(|row| row.source == Source::Push && row.received_at == START));

        // Worked through, it is still known.
        let ids: Vec<_> = rows.iter().map(|row| row.inbox_id).collect();
        processed(store, &ids, START).await.unwrap();
        assert_eq!(push(store, "1", b"{}").await, Accepted::Repeat);
        assert_eq!(all(store).await, []);
    }
}

#[tokio::test]
async fn two_deliveries_of_a_transaction_at_once_are_one() {
    for test in testing::both().await {
        let pushes = (0..8).map(|_| push(&test.store, "1", b"{}"));
        let accepted = futures_util::future::join_all(pushes).await;
        assert_eq!(accepted.iter().filter(|accepted| **accepted == Accepted::New).count(), 1);
    }
}

#[tokio::test]
async fn bodies_are_sealed() {
    for test in testing::both().await {
        let store = &test.store;
        push(store, "1", b"the plaintext").await;
        let row: (Vec<u8>,) =
            store.db().fetch_optional("SELECT body FROM inbox", vec![]).await.unwrap().unwrap();
        assert!(!row.0.windows(9).any(|part| part == b"plaintext"));
        let mut tx = store.begin().await.unwrap();
        tx.execute("UPDATE inbox SET content_hash = $1", values![vec![7_u8; 32]]).await.unwrap();
        tx.commit().await.unwrap();
        let moved = waiting(store.db(), store.seal().unwrap(), 10, 10).await;
        assert!(moved.unwrap().iter().all(|row| row.body.is_none()));
    }
}

#[tokio::test]
async fn pages_of_the_key_lane_wait_in_the_same_line() {
    for test in testing::both().await {
        let store = &test.store;
        push(store, "1", b"{}").await;
        let (user, device) = (user_id!("@coucou:example.org"), device_id!("COUCOU1").to_owned());
        let mut tx = store.begin().await.unwrap();
        let account = accounts::insert(&mut tx, user, &device, Role::Bot, START).await.unwrap();
        for _ in 0..2 {
            let page = seal_body(store.seal().unwrap(), b"page").unwrap();
            accept_lane(&mut tx, account, page, START).await.unwrap();
        }
        tx.commit().await.unwrap();
        let sources: Vec<_> = all(store).await.iter().map(|row| row.source).collect();
        assert_eq!(sources, [Source::Push, Source::Lane(account), Source::Lane(account)]);
    }
}

#[tokio::test]
async fn a_read_is_bounded_by_rows_and_bytes() {
    for test in testing::both().await {
        let store = &test.store;
        for number in 0..6_u8 {
            push(store, "1", &[number; 1000]).await;
        }
        let read = async |rows, bytes| {
            let rows = waiting(store.db(), store.seal().unwrap(), rows, bytes).await.unwrap();
            rows.iter().map(|row| row.body.as_deref().unwrap()[0]).collect::<Vec<_>>()
        };
        assert_eq!(read(4, u64::MAX).await, [0, 1, 2, 3]);
        assert_eq!(read(100, 2500).await, [0, 1, 2]);
        assert_eq!(read(100, 1).await, [0]);
    }
}

#[tokio::test]
async fn a_row_is_worked_through_once() {
    for test in testing::both().await {
        let store = &test.store;
        for body in [&b"a"[..], b"b", b"c"] {
            push(store, "1", body).await;
        }
        let later = START.plus(Duration::from_secs(5));
        let ids: Vec<_> = all(store).await.iter().map(|row| row.inbox_id).collect();
        assert_eq!(depth(store.db()).await.unwrap(), Depth { count: 3, oldest_at: Some(START) });
        processed(store, &ids[..2], later).await.unwrap();
        assert!(matches!(processed(store, &ids[1..], later).await, Err(StoreError::LeaseLost)));
        assert_eq!(all(store).await[0].body.as_deref(), Some(&b"c"[..]));
        processed(store, &ids[2..], later).await.unwrap();
        processed(store, &[], later).await.unwrap();
        assert_eq!(depth(store.db()).await.unwrap(), Depth { count: 0, oldest_at: None });
        let kept: Vec<(i64,)> =
            store.db().fetch_all("SELECT inbox_id FROM inbox WHERE body IS NOT NULL", vec![]).await.unwrap();
        assert_eq!(kept, []);
    }
}

#[tokio::test]
async fn prune_deletes_old_rows_in_batches_and_never_a_waiting_one() {
    for test in testing::both().await {
        let store = &test.store;
        let mut tx = store.begin().await.unwrap();
        let rows = (0..=i64::try_from(PRUNE_BATCH).unwrap()).map(|n| values![n.to_be_bytes().to_vec()]);
        tx.execute_many(
            "INSERT INTO inbox (source, content_hash, received_at, processed_at) \
             SELECT 'push', column1, 0, 5 FROM (VALUES {rows}) AS v",
            vec![],
            rows.collect(),
        )
        .await
        .unwrap();
        tx.commit().await.unwrap();
        push(store, "1", b"waits").await;
        let prune = async |before| {
            let mut tx = store.begin().await.unwrap();
            let count = super::prune(&mut tx, Timestamp(before)).await.unwrap();
            tx.commit().await.unwrap();
            count
        };
        assert_eq!(prune(5).await, 0);
        assert_eq!(prune(6).await, PRUNE_BATCH);
        assert_eq!(prune(i64::MAX).await, 1);
        assert_eq!(prune(i64::MAX).await, 0);
        assert_eq!(all(store).await.len(), 1);
    }
}

/// The plan of a statement, in the words of the database.
async fn plan(
    store: &Store,
    postgres: &'static str,
    sqlite: &'static str,
    values: super::super::db::Values,
) -> String {
    let mut tx = store.begin().await.unwrap();
    if store.backend() == "postgres" {
        // An empty table is read whole, whatever its indexes.
        tx.execute("SET LOCAL enable_seqscan = off", vec![]).await.unwrap();
        let lines: Vec<(String,)> = tx.fetch_all(postgres, values).await.unwrap();
        return lines.into_iter().map(|(line,)| line + "\n").collect();
    }
    let lines: Vec<(i64, i64, i64, String)> = tx.fetch_all(sqlite, values).await.unwrap();
    lines.into_iter().map(|(.., line)| line + "\n").collect()
}

macro_rules! plan {
    ($store:expr, $sql:expr, $values:expr) => {{
        use std::sync::LazyLock;
        static POSTGRES: LazyLock<String> = LazyLock::new(|| format!("EXPLAIN {}", $sql));
        static SQLITE: LazyLock<String> = LazyLock::new(|| format!("EXPLAIN QUERY PLAN {}", $sql));
        plan($store, &POSTGRES, &SQLITE, $values).await
    }};
}

#[tokio::test]
async fn every_read_uses_an_index() {
    for test in testing::both().await {
        let store = &test.store;
        let read = plan!(store, WAITING, values![10_i64, 10_i64]);
        assert!(read.contains("inbox_waiting"), "{read}");
        assert!(!read.contains("Seq Scan") && !read.contains("SCAN inbox\n"), "{read}");
        let depth = plan!(store, DEPTH, vec![]);
        assert!(depth.contains("inbox_waiting"), "{depth}");
        let prune = plan!(store, PRUNE, values![10_i64, 10_i64]);
        assert!(prune.contains("inbox_processed"), "{prune}");
    }
}

#[tokio::test]
async fn a_damaged_row_does_not_hide_the_others() {
    for test in testing::both().await {
        let store = &test.store;
        for body in [&b"a"[..], b"b"] {
            push(store, "1", body).await;
        }
        let mut tx = store.begin().await.unwrap();
        let damage = "UPDATE inbox SET body = $1 WHERE inbox_id = (SELECT MIN(inbox_id) FROM inbox)";
        tx.execute(damage, values![b"damaged".to_vec()]).await.unwrap();
        tx.commit().await.unwrap();
        let rows = all(store).await;
        assert_eq!(rows.iter().map(|row| row.body.as_deref()).collect::<Vec<_>>(), [None, Some(&b"b"[..])]);
    }
}

#[tokio::test]
async fn a_row_that_fails_again_and_again_is_set_aside_with_its_body() {
    for test in testing::both().await {
        let store = &test.store;
        push(store, "1", b"a").await;
        push(store, "2", b"b").await;
        let first = all(store).await[0].inbox_id;
        for hopeless in [vec![], vec![], vec![first]] {
            let mut tx = store.begin().await.unwrap();
            assert_eq!(count_tries(&mut tx, &[first], 2).await.unwrap(), hopeless);
            set_aside(&mut tx, &hopeless, START).await.unwrap();
            tx.commit().await.unwrap();
        }
        let rows = all(store).await;
        assert_eq!((rows.len(), rows[0].body.as_deref()), (1, Some(&b"b"[..])));
        let mut tx = store.begin().await.unwrap();
        assert_eq!(prune(&mut tx, START.plus(Duration::from_secs(9))).await.unwrap(), 0);
        tx.commit().await.unwrap();
        let kept: Vec<(i64,)> =
            store.db().fetch_all("SELECT inbox_id FROM inbox WHERE body IS NOT NULL", vec![]).await.unwrap();
        assert_eq!(kept.len(), 2);
    }
}

#[tokio::test]
async fn what_was_not_pushed_goes_before_what_waits() {
    for test in testing::both().await {
        let store = &test.store;
        push(store, "1", b"pushed").await;
        for body in [&b"missed 1"[..], b"missed 2"] {
            let body = seal_body(store.seal().unwrap(), body).unwrap();
            let mut tx = store.begin().await.unwrap();
            accept_missed(&mut tx, body, START).await.unwrap();
            tx.commit().await.unwrap();
        }
        push(store, "2", b"pushed too").await;
        let bodies: Vec<_> = all(store).await.into_iter().map(|row| row.body.unwrap()).collect();
        assert_eq!(bodies, [&b"missed 1"[..], b"missed 2", b"pushed", b"pushed too"]);
        // Whatever the limit.
        let first = waiting(store.db(), store.seal().unwrap(), 10, 1).await.unwrap();
        assert_eq!(first.iter().map(|row| row.source).collect::<Vec<_>>(), [Source::Missed]);
    }
}
