//! What was asked of key backups, on both databases.

use std::time::Duration;

use ruma::{room_id, user_id};

use crate::{
    model::{Relay, Role},
    store::{
        Store, accounts,
        backups::{self, DueLookup},
        crypto::{Scope, inbound},
        db::values,
        rooms::{self, RoomRow},
    },
    testing::{self, START},
};

fn row(relay: Relay) -> RoomRow {
    RoomRow::bare(relay)
}

/// Two rooms that are relayed and one that is not.
async fn rooms(store: &Store) -> crate::model::AccountId {
    let mut tx = store.begin().await.unwrap();
    let user = user_id!("@owner:example.org");
    let id = accounts::insert(&mut tx, user, &"COUCOU1".into(), Role::Owner, START).await.unwrap();
    let all = [("!a", Relay::Yes), ("!b", Relay::Yes), ("!private", Relay::No), ("!new", Relay::Unknown)];
    let all: Vec<_> = all.into_iter().map(|(id, relay)| (id.try_into().unwrap(), row(relay))).collect();
    rooms::put_many(&mut tx, store.seal().unwrap(), &all, START).await.unwrap();
    tx.commit().await.unwrap();
    id
}

#[tokio::test]
async fn each_relayed_room_is_read_once_from_each_backup() {
    for test in testing::both().await {
        let store = &test.store;
        let id = rooms(store).await;
        let unread = async |version| backups::unread_rooms(store.db(), id, version, 10).await.unwrap();
        assert_eq!(unread("1").await, [room_id!("!a"), room_id!("!b")]);
        for _ in 0..2 {
            let mut tx = store.begin().await.unwrap();
            backups::room_was_read(&mut tx, id, room_id!("!a"), "1", START).await.unwrap();
            tx.commit().await.unwrap();
        }
        assert_eq!(unread("1").await, [room_id!("!b")]);
        assert_eq!(unread("2").await, [room_id!("!a"), room_id!("!b")], "another backup");
    }
}

#[tokio::test]
async fn keys_that_are_missing_are_asked_for_less_and_less_often() {
    for test in testing::both().await {
        let store = &test.store;
        let id = rooms(store).await;
        let mut tx = store.begin().await.unwrap();
        let events = [
            ("$1", Some("here"), "no_key"),
            ("$2", Some("missing"), "no_key"),
            ("$3", Some("missing"), "no_key"),
            ("$4", Some("withheld"), "withheld:m.unverified"),
            ("$5", Some("bad"), "bad_ciphertext"),
            ("$6", None, "no_key"),
        ];
        for (event_id, session, reason) in events {
            let sql = "INSERT INTO pending_events (event_id, room_id, session_id, sender, state, reason, event, \
                       origin_server_ts, received_at) VALUES ($1, '!a', $2, '@b:c', 'ledger', $3, $4, 0, 0)";
            tx.execute(sql, values![event_id, session, reason, b"sealed".to_vec()]).await.unwrap();
        }
        let sql = "INSERT INTO megolm_inbound_sessions (account_id, room_id, session_id, sender_key, \
                   sender_data_type, backed_up, pickle, created_at) VALUES ($1, '!a', 'here', 'k', 1, 0, $2, 0)";
        tx.execute(sql, values![id.0, b"sealed".to_vec()]).await.unwrap();
        tx.commit().await.unwrap();

        let due = async |at| {
            let mut due = backups::due_lookups(store.db(), at, 10).await.unwrap();
            due.sort_by(|a, b| a.session_id.cmp(&b.session_id));
            due
        };
        let lookup = |session_id: &str, tries| DueLookup {
            room_id: room_id!("!a").to_owned(),
            session_id: session_id.to_owned(),
            tries,
        };
        assert_eq!(due(START).await, [lookup("missing", 0), lookup("withheld", 0)]);
        let later = START.plus(Duration::from_secs(10));
        for _ in 0..2 {
            let mut tx = store.begin().await.unwrap();
            let answered = ((room_id!("!a").to_owned(), "missing".to_owned()), later);
            backups::were_looked_up(&mut tx, &[answered]).await.unwrap();
            tx.commit().await.unwrap();
        }
        assert_eq!(due(START).await, [lookup("withheld", 0)]);
        assert_eq!(due(later).await, [lookup("missing", 2), lookup("withheld", 0)]);
    }
}

#[tokio::test]
async fn only_keys_of_relayed_rooms_go_into_the_backup() {
    for test in testing::both().await {
        let store = &test.store;
        let id = rooms(store).await;
        let scope = Scope::new(store.seal().unwrap(), id);
        let mut tx = store.begin().await.unwrap();
        for (room_id, backed_up) in [("!a", 0), ("!b", 1), ("!private", 0), ("!new", 0), ("!unheard", 0)] {
            let key = crate::store::crypto::Key::of([room_id, "s"]);
            let row = inbound::Row {
                sender_key: "k".to_owned(),
                sender_data_type: 1,
                backed_up: backed_up == 1,
                pickle: room_id.as_bytes().to_vec().into(),
            };
            inbound::save(&mut tx, &scope, [(key, row)].into(), START).await.unwrap();
        }
        tx.commit().await.unwrap();
        let found = inbound::relayed_to_back_up(store.db(), &scope, 10).await.unwrap();
        assert_eq!(found.iter().map(|found| &**found.pickle).collect::<Vec<_>>(), [b"!a"]);
        assert_eq!(inbound::relayed_not_backed_up(store.db(), &scope).await.unwrap(), 1);
    }
}
