use ruma::{device_id, room_id, user_id};

use crate::{
    model::{Role, ledger::Reason},
    store::{
        accounts,
        db::values,
        inbox, messages,
        pending::{self, NewPending, Waits},
        rooms,
    },
    testing::{self, START},
};

#[tokio::test]
async fn timelines_are_compared_from_where_the_lane_stands_until_they_were_once() {
    for test in testing::both().await {
        let (store, db) = (&test.store, test.store.db());
        let (user, device) = (user_id!("@coucou:example.org"), device_id!("COUCOU1").to_owned());
        let mut tx = store.begin().await.unwrap();
        let id = accounts::insert(&mut tx, user, &device, Role::Bot, START).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(accounts::events_token(db, id).await.unwrap(), None);
        let mut tx = store.begin().await.unwrap();
        accounts::set_sync_token(&mut tx, id, "lane").await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(accounts::events_token(db, id).await.unwrap().as_deref(), Some("lane"));
        let mut tx = store.begin().await.unwrap();
        accounts::set_events_token(&mut tx, id, Some("events")).await.unwrap();
        accounts::forget_sync_token(&mut tx, id).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(accounts::events_token(db, id).await.unwrap().as_deref(), Some("events"));
        assert_eq!(accounts::find(db, user).await.unwrap().unwrap().sync_token, None);
        let mut tx = store.begin().await.unwrap();
        accounts::set_events_token(&mut tx, id, None).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(accounts::events_token(db, id).await.unwrap(), None);
    }
}

#[tokio::test]
async fn an_event_is_known_as_a_message_or_while_it_waits() {
    for test in testing::both().await {
        let store = &test.store;
        let waiting = NewPending {
            event_id: "$waits".to_owned(),
            room_id: "!room".to_owned(),
            session_id: None,
            sender: "@a:example.org".to_owned(),
            waits: Waits::Queued,
            reason: Reason::Order,
            event: b"{}".to_vec(),
            origin_server_ts: START,
            received_at: START,
        };
        let mut tx = store.begin().await.unwrap();
        pending::insert(&mut tx, store.seal().unwrap(), &[waiting], START).await.unwrap();
        let sql = "INSERT INTO messages (message_id, event_id, room_id, sequence, type, direction, sender, \
                   origin_server_ts, created_at, payload) \
                   VALUES ('m', '$relayed', '!room', 1, 'message.created', 'in', '', 0, 0, $1)";
        tx.execute(sql, values![b"{}".to_vec()]).await.unwrap();
        tx.commit().await.unwrap();
        let known = messages::known_events(store.db(), &["$waits", "$relayed", "$never"]).await.unwrap();
        assert_eq!(known, ["$waits", "$relayed"].map(str::to_owned).into());
        assert!(messages::known_events(store.db(), &[]).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn only_rooms_that_are_known_not_to_be_relayed_are_left_out() {
    for test in testing::both().await {
        let store = &test.store;
        let (no, unknown, new) = (room_id!("!no:a.b"), room_id!("!unknown:a.b"), room_id!("!new:a.b"));
        let mut tx = store.begin().await.unwrap();
        rooms::ensure(&mut tx, &[no, unknown], START).await.unwrap();
        tx.execute("UPDATE rooms SET relay = 'no' WHERE room_id = $1", values![no.as_str()]).await.unwrap();
        tx.commit().await.unwrap();
        let unrelayed = rooms::unrelayed(store.db(), &[no, unknown, new]).await.unwrap();
        assert_eq!(unrelayed, [no.to_string()].into());
    }
}

#[tokio::test]
async fn what_was_missed_waits_in_the_same_line() {
    for test in testing::both().await {
        let (store, seal) = (&test.store, test.store.seal().unwrap());
        let mut tx = store.begin().await.unwrap();
        // The same part again, as after a comparison that was cut off, is another row.
        for _ in 0..2 {
            let body = inbox::seal_body(seal, b"{}").unwrap();
            inbox::accept_missed(&mut tx, body, START).await.unwrap();
        }
        tx.commit().await.unwrap();
        let rows = inbox::waiting(store.db(), seal, 10, u64::MAX).await.unwrap();
        let rows: Vec<_> = rows.iter().map(|row| (row.source, row.body.as_deref())).collect();
        assert_eq!(rows, [(inbox::Source::Missed, Some(&b"{}"[..])); 2]);
    }
}
