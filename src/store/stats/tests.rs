//! The operator's numbers, on both databases.

use ruma::user_id;

use super::*;
use crate::{
    model::{Role, ledger::Reason},
    store::{
        Store, accounts,
        pending::{self, NewPending, Waits},
    },
    testing::{self, START},
};

async fn execute(store: &Store, sql: &'static str, values: crate::store::db::Values) {
    let mut tx = store.begin().await.unwrap();
    tx.execute(sql, values).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn room_keys_are_counted_as_they_come_and_go() {
    for test in testing::both().await {
        let store = &test.store;
        assert_eq!(keys(store.db()).await.unwrap(), Keys::default());
        let mut tx = store.begin().await.unwrap();
        let user = user_id!("@coucou:example.org");
        let account = accounts::insert(&mut tx, user, &"COUCOU1".into(), Role::Bot, START).await.unwrap();
        tx.commit().await.unwrap();
        let insert = "INSERT INTO megolm_inbound_sessions (account_id, room_id, session_id, created_at, sender_key, \
             sender_data_type, backed_up, pickle) VALUES ($1, '!one', 'a', 1, 'k', 1, 0, $2), \
             ($1, '!one', 'b', 2, 'k', 1, 0, $2), ($1, '!two', 'c', 3, 'k', 1, 0, $2) \
             ON CONFLICT (account_id, room_id, session_id) DO UPDATE SET pickle = excluded.pickle";
        for _ in 0..2 {
            execute(store, insert, values![account.0, b"sealed".to_vec()]).await;
        }
        let newest_at = Some(Timestamp(3));
        assert_eq!(keys(store.db()).await.unwrap(), Keys { count: 3, room_count: 2, newest_at });
        execute(store, "UPDATE megolm_inbound_sessions SET backed_up = 1", vec![]).await;
        execute(store, "DELETE FROM megolm_inbound_sessions WHERE session_id <> 'a'", vec![]).await;
        let newest_at = Some(Timestamp(1));
        assert_eq!(keys(store.db()).await.unwrap(), Keys { count: 1, room_count: 1, newest_at });
    }
}

#[tokio::test]
async fn the_numbers_come_from_indexes() {
    for test in testing::both().await {
        let store = &test.store;
        let event = |n: i64| NewPending {
            event_id: format!("${n}"),
            room_id: "!room".to_owned(),
            session_id: None,
            sender: "@a:example.org".to_owned(),
            waits: Waits::Ledger,
            reason: Reason::NoKey,
            event: b"{}".to_vec(),
            origin_server_ts: START,
            received_at: Timestamp(n),
        };
        let events: Vec<_> = (0..2000).map(event).collect();
        let mut tx = store.begin().await.unwrap();
        pending::insert(&mut tx, store.seal().unwrap(), &events, START).await.unwrap();
        tx.execute("ANALYZE", vec![]).await.unwrap();
        tx.commit().await.unwrap();
        for (sql, values, index) in [
            (NEWEST_KEY, vec![], "megolm_inbound_sessions_created"),
            (ROOMS, vec![], "rooms_relay"),
            (FAILURES, values![1999_i64, 1990_i64, 1980_i64], "pending_events_"),
            (LAST_ROW, values!["push"], "inbox_source"),
            (NEWEST_MESSAGE, vec![], "messages_c"),
        ] {
            let mut tx = store.begin().await.unwrap();
            if store.backend() == "postgres" {
                tx.execute("SET LOCAL enable_seqscan = off", vec![]).await.unwrap();
                tx.execute("SET LOCAL enable_bitmapscan = off", vec![]).await.unwrap();
            }
            let plan = tx.explain(sql, values, vec![]).await;
            assert!(plan.contains(index), "{sql}\n{plan}");
            let leafs = plan.contains("pending_events_reason") || plan.contains("pending_events_ledger");
            assert!(!leafs, "not the whole ledger: {sql}\n{plan}");
        }
    }
}
