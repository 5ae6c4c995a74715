use std::time::Duration;

use super::*;
use crate::{
    model::Role,
    store::{
        Store, accounts,
        crypto::plans::{assert_indexed, assert_many_indexed, plan},
        inbox, messages,
        outbox::tests::{put, webhook},
        pending::{self, NewPending, Waits},
    },
    testing::{self, START},
};

const HOUR: Duration = Duration::from_hours(1);

async fn count(store: &Store, sql: &'static str) -> i64 {
    let row: Option<(i64,)> = store.db().fetch_optional(sql, vec![]).await.unwrap();
    row.unwrap().0
}

/// Runs a batch in a transaction of its own.
macro_rules! batch {
    ($store:expr, |$tx:ident| $body:expr) => {{
        let mut tx = $store.begin().await.unwrap();
        let answer = {
            let $tx = &mut tx;
            $body.await.unwrap()
        };
        tx.commit().await.unwrap();
        answer
    }};
}

#[tokio::test]
async fn content_goes_with_age_but_not_before_it_is_delivered() {
    for test in testing::both().await {
        let store = &test.store;
        let main = webhook(store, "main").await;
        put(store, &[main], &[("!a", 1), ("!a", 2)], START).await;
        put(store, &[], &[("!b", 1)], START).await;
        put(store, &[], &[("!b", 2)], START.plus(HOUR * 2)).await;
        let before = START.plus(HOUR);
        let start = Place::default();
        let purged = batch!(store, |tx| purge_content(tx, before, &start, START));
        assert_eq!(purged, Purged { count: 1, undelivered: 2, next: None });
        let left = messages::newest(store.db(), store.seal().unwrap(), 9).await.unwrap();
        assert_eq!(left.len(), 3, "what is pending, and what is young");

        let sql = "UPDATE deliveries SET state = 'delivered' WHERE sequence = 1";
        batch!(store, |tx| tx.execute(sql, vec![]));
        let purged = batch!(store, |tx| purge_content(tx, before, &start, START));
        assert_eq!((purged.count, purged.undelivered), (1, 1));
        let kept = "SELECT COUNT(*) FROM messages WHERE purged_at IS NOT NULL AND sender = '' \
                    AND LENGTH(payload) = 0 AND event_id <> '' AND sequence > 0";
        assert_eq!(count(store, kept).await, 2, "ids stay");
        assert_eq!(messages::known(store.db(), &["a_1", "a_2", "b_1"]).await.unwrap().len(), 3);
    }
}

#[tokio::test]
async fn a_long_walk_passes_what_is_undelivered_once() {
    for test in testing::both().await {
        let store = &test.store;
        let main = webhook(store, "main").await;
        let numbers: Vec<(&str, i64)> = (1..=BATCH).map(|n| ("!a", n)).collect();
        put(store, &[main], &numbers, START).await;
        put(store, &[], &[("!b", 1)], START.plus(HOUR)).await;
        let before = START.plus(HOUR * 2);
        let first = batch!(store, |tx| purge_content(tx, before, &Place::default(), START));
        assert_eq!((first.count, first.undelivered), (0, BATCH.unsigned_abs()));
        let from = first.next.unwrap();
        let second = batch!(store, |tx| purge_content(tx, before, &from, START));
        assert_eq!(second, Purged { count: 1, undelivered: 0, next: None });
    }
}

#[tokio::test]
async fn content_can_go_with_its_last_delivery() {
    for test in testing::both().await {
        let store = &test.store;
        let (one, two) = (webhook(store, "one").await, webhook(store, "two").await);
        put(store, &[one, two], &[("!a", 1)], START).await;
        let rows: Vec<(i64,)> = store
            .db()
            .fetch_all("SELECT delivery_id FROM deliveries ORDER BY webhook_id", vec![])
            .await
            .unwrap();
        for (at, (id,)) in rows.into_iter().enumerate() {
            let sql = "UPDATE deliveries SET state = 'delivered' WHERE delivery_id = $1";
            batch!(store, |tx| tx.execute(sql, values![id]));
            let purged = batch!(store, |tx| purge_delivered(tx, [DeliveryId(id)], START));
            assert_eq!(purged, at as u64, "with the second one alone");
        }
    }
}

#[tokio::test]
async fn messages_without_content_are_forgotten_with_their_deliveries() {
    for test in testing::both().await {
        let store = &test.store;
        let main = webhook(store, "main").await;
        put(store, &[main], &[("!a", 1), ("!a", 2)], START).await;
        let sql = "UPDATE deliveries SET state = 'delivered' WHERE sequence = 1";
        batch!(store, |tx| tx.execute(sql, vec![]));
        let later = START.plus(HOUR);
        batch!(store, |tx| purge_content(tx, later, &Place::default(), START));
        assert_eq!(batch!(store, |tx| delete_messages(tx, START)), 0);
        assert_eq!(batch!(store, |tx| delete_messages(tx, later)), 1);
        assert_eq!(count(store, "SELECT COUNT(*) FROM messages").await, 1);
        assert_eq!(count(store, "SELECT COUNT(*) FROM deliveries").await, 1);
    }
}

#[tokio::test]
async fn a_place_that_is_forgotten_stays_taken() {
    for test in testing::both().await {
        let store = &test.store;
        let place = |session: &str, index| ("!a".to_owned(), session.to_owned(), index);
        let used = |session: &str, index: i64| (place(session, index), format!("${session}{index}"));
        let early = [used("s", 3), used("s", 5), used("t", 0)];
        batch!(store, |tx| messages::use_indexes(tx, &early, START));
        batch!(store, |tx| messages::use_indexes(tx, &[used("s", 4), used("s", 7)], START.plus(HOUR * 2)));
        assert_eq!(batch!(store, |tx| forget_indexes(tx, START.plus(HOUR))), 3);
        assert_eq!(batch!(store, |tx| forget_indexes(tx, START.plus(HOUR))), 0);
        let asked: Vec<_> =
            (0..9).map(|index| place("s", index)).chain([place("t", 0), place("u", 0)]).collect();
        let found = messages::used_indexes(store.db(), &asked).await.unwrap();
        let by = |session, index| found.get(&place(session, index)).map(String::as_str);
        for index in [0, 3, 5] {
            assert_eq!(by("s", index), Some(""), "{index} may be a replay");
        }
        assert_eq!((by("s", 4), by("s", 6), by("s", 7)), (Some("$s4"), None, Some("$s7")));
        assert_eq!((by("t", 0), by("u", 0)), (Some(""), None));
        let heights = messages::heights(store.db(), &[("!a", "s"), ("!a", "t"), ("!a", "u")]).await.unwrap();
        let height = |session: &str| heights.get(&("!a".to_owned(), session.to_owned())).copied();
        assert_eq!((height("s"), height("t"), height("u")), (Some(7), Some(0), None), "forgotten or not");
        // A later round raises what is left, and never lowers it.
        batch!(store, |tx| messages::use_indexes(tx, &[used("s", 6)], START));
        batch!(store, |tx| forget_indexes(tx, START.plus(HOUR * 3)));
        batch!(store, |tx| messages::use_indexes(tx, &[used("s", 1)], START));
        batch!(store, |tx| forget_indexes(tx, START.plus(HOUR * 3)));
        let found = messages::used_indexes(store.db(), &[place("s", 7), place("s", 8)]).await.unwrap();
        assert_eq!(found.len(), 1);
    }
}

#[tokio::test]
async fn what_nobody_could_read_goes_with_age() {
    for test in testing::both().await {
        let store = &test.store;
        let event = |id: &str, waits, received_at| NewPending {
            event_id: id.to_owned(),
            room_id: "!a".to_owned(),
            session_id: Some("s".to_owned()),
            sender: "@a:example.org".to_owned(),
            waits,
            reason: crate::model::ledger::Reason::NoKey,
            event: b"{}".to_vec(),
            origin_server_ts: START,
            received_at,
        };
        let events = [
            event("$old", Waits::Ledger, START),
            event("$queued", Waits::Queued, START),
            event("$new", Waits::Ledger, START.plus(HOUR * 2)),
        ];
        let seal = store.seal().unwrap();
        batch!(store, |tx| pending::insert(tx, seal, &events, START));
        for txn_id in ["aside", "waiting"] {
            let body = inbox::seal_body(seal, txn_id.as_bytes()).unwrap();
            batch!(store, |tx| inbox::accept(tx, txn_id.into(), body, START));
        }
        let first = inbox::waiting(store.db(), seal, 1, u64::MAX).await.unwrap();
        batch!(store, |tx| inbox::set_aside(tx, &[first[0].inbox_id], START));

        let before = START.plus(HOUR);
        assert_eq!(batch!(store, |tx| delete_ledger(tx, before)), 1);
        assert_eq!(batch!(store, |tx| delete_ledger(tx, before)), 0);
        assert_eq!(count(store, "SELECT COUNT(*) FROM pending_events WHERE event_id <> '$old'").await, 2);
        assert_eq!(batch!(store, |tx| delete_set_aside(tx, START)), 0);
        assert_eq!(batch!(store, |tx| delete_set_aside(tx, before)), 1);
        assert_eq!(count(store, "SELECT COUNT(*) FROM inbox WHERE body IS NOT NULL").await, 1);
    }
}

#[tokio::test]
async fn hashes_of_olm_messages_go_with_age() {
    for test in testing::both().await {
        let store = &test.store;
        let user = ruma::user_id!("@coucou:example.org");
        let id = batch!(store, |tx| accounts::insert(tx, user, &"COUCOU1".into(), Role::Bot, START));
        for (hash, at) in [("old", START), ("new", START.plus(HOUR * 2))] {
            let sql =
                "INSERT INTO olm_hashes (account_id, sender_key, hash, created_at) VALUES ($1, 'k', $2, $3)";
            batch!(store, |tx| tx.execute(sql, values![id.0, hash, at]));
        }
        assert_eq!(batch!(store, |tx| delete_hashes(tx, START.plus(HOUR))), 1);
        assert_eq!(count(store, "SELECT COUNT(*) FROM olm_hashes WHERE hash = 'new'").await, 1);
    }
}

#[tokio::test]
async fn what_a_webhook_of_the_past_never_took_is_given_up() {
    for test in testing::both().await {
        let store = &test.store;
        let (main, gone) = (webhook(store, "main").await, webhook(store, "gone").await);
        put(store, &[main, gone], &[("!a", 1), ("!b", 1)], START).await;
        put(store, &[main, gone], &[("!a", 2)], START.plus(HOUR * 2)).await;
        assert_eq!(abandoned(store.db(), &[main, gone]).await.unwrap(), []);
        assert_eq!(abandoned(store.db(), &[main]).await.unwrap(), [gone]);
        let before = START.plus(HOUR);
        assert_eq!(batch!(store, |tx| give_up(tx, gone, before)), 2);
        assert_eq!(batch!(store, |tx| give_up(tx, gone, before)), 0);
        let queues: Vec<(i64, String, i64)> = store
            .db()
            .fetch_all(
                "SELECT webhook_id, room_id, pending_count FROM room_queues ORDER BY webhook_id, room_id",
                vec![],
            )
            .await
            .unwrap();
        let queue = |id: WebhookId, room: &str, count| (id.0, room.to_owned(), count);
        let expected =
            [queue(main, "!a", 2), queue(main, "!b", 1), queue(gone, "!a", 1), queue(gone, "!b", 0)];
        assert_eq!(queues, expected);
    }
}

#[tokio::test]
async fn everything_that_expires_is_found_by_index() {
    for test in testing::both().await {
        let store = &test.store;
        let by_time = || values![1_i64, BATCH];
        for (table, column, sql) in [
            ("messages", "created_at", FORGOTTEN),
            ("megolm_indexes", "used_at", OLD_INDEXES),
            ("olm_hashes", "created_at", DELETE_HASHES),
            ("pending_events", "received_at", DELETE_LEDGER),
            ("inbox", "processed_at", DELETE_SET_ASIDE),
        ] {
            assert_indexed(store, table, &[column], sql, by_time()).await;
        }
        let expired = plan(store, EXPIRED, values![1_i64, 0_i64, "", BATCH]).await;
        assert!(expired.contains("messages_content"), "{expired}");
        assert!(!expired.contains("SCAN d") && !expired.contains("Seq Scan on deliveries"), "{expired}");
        let shared = values![Vec::<u8>::new(), 1_i64];
        let message = vec![values!["m"]];
        assert_many_indexed(store, "messages", &["message_id"], PURGE, shared.clone(), message).await;
        let delivery = vec![values![1_i64]];
        assert_many_indexed(store, "messages", &["message_id"], PURGE_DELIVERED, shared, delivery).await;
        let place = vec![values!["!r", "s", 1_i64]];
        let index = ["room_id", "session_id", "message_index"];
        assert_many_indexed(store, "megolm_indexes", &index, messages::USED, vec![], place).await;
        let session = vec![values!["!r", "s"]];
        assert_many_indexed(store, "megolm_indexes", &index[..2], messages::HEIGHTS, vec![], session).await;
        let values = values![1_i64, 1_i64, BATCH];
        assert_indexed(store, "deliveries", &["webhook_id"], GIVE_UP, values).await;
    }
}
