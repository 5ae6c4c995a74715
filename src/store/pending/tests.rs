use std::time::Duration;

use ruma::{device_id, room_id, user_id};

use super::*;
use crate::{
    model::{Relay, Role},
    store::{
        Store, accounts,
        crypto::{Key, plans::assert_indexed},
        db::Values,
        holders, key_news, redacted, retention,
        rooms::{self, RoomRow},
    },
    testing::{self, START},
};

fn event(event_id: &str, room_id: &str, session: &str, reason: Reason) -> NewPending {
    NewPending {
        event_id: event_id.to_owned(),
        room_id: room_id.to_owned(),
        session_id: Some(session.to_owned()),
        sender: "@a:example.org".to_owned(),
        waits: Waits::Ledger,
        reason,
        event: b"{}".to_vec(),
        origin_server_ts: START,
        received_at: START,
    }
}

async fn put(store: &Store, events: &[NewPending]) {
    let mut tx = store.begin().await.unwrap();
    insert(&mut tx, store.seal().unwrap(), events, START).await.unwrap();
    tx.commit().await.unwrap();
}

/// A ledger of two rooms with several reasons, and an event that is on none.
async fn ledger_of(store: &Store) {
    let withheld = Reason::Withheld("m.unverified".to_owned());
    put(
        store,
        &[
            event("$1", "!a", "one", Reason::NoKey),
            event("$2", "!b", "one", Reason::NoKey),
            event("$3", "!a", "two", withheld),
            event("$4", "!a", "one", Reason::Replay),
            NewPending { waits: Waits::Queued, ..event("$5", "!a", "one", Reason::NoKey) },
            event("$6", "!a", "three", Reason::NoKey),
        ],
    )
    .await;
}

async fn add_key(store: &Store, room: &str, session: &str) {
    let user = user_id!("@coucou:example.org");
    let mut tx = store.begin().await.unwrap();
    let id = match accounts::find(store.db(), user).await.unwrap() {
        Some(account) => account.id,
        None => accounts::insert(&mut tx, user, &device_id!("D").to_owned(), Role::Bot, START).await.unwrap(),
    };
    let sql = "INSERT INTO megolm_inbound_sessions (account_id, room_id, session_id, sender_key, \
               sender_data_type, backed_up, pickle, created_at) VALUES ($1, $2, $3, 'k', 1, 0, $4, 0)";
    tx.execute(sql, values![id.0, room, session, b"sealed".to_vec()]).await.unwrap();
    tx.commit().await.unwrap();
}

fn ids(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.event_id.as_str()).collect()
}

#[tokio::test]
async fn the_ledger_is_leafed_through_by_room_and_reason() {
    for test in testing::both().await {
        let (store, a) = (&test.store, room_id!("!a"));
        ledger_of(store).await;
        add_key(store, "!a", "two").await;
        let leaf =
            async |filter, order, after, most| page(store.db(), filter, order, after, most).await.unwrap();
        let all = leaf(Filter::default(), Order::NewestFirst, None, 10).await;
        assert_eq!(ids(&all), ["$6", "$4", "$3", "$2", "$1"]);
        let of_room = Filter { room_id: Some(a), reason: None };
        let first = leaf(of_room, Order::OldestFirst, None, 2).await;
        assert_eq!(ids(&first), ["$1", "$3"]);
        let next = leaf(of_room, Order::OldestFirst, Some(first[1].position), 2).await;
        assert_eq!(ids(&next), ["$4", "$6"]);
        let back = leaf(of_room, Order::NewestFirst, Some(next[0].position), 9).await;
        assert_eq!(ids(&back), ["$3", "$1"]);
        let of_reason = Filter { room_id: None, reason: Some(&Reason::NoKey) };
        assert_eq!(ids(&leaf(of_reason, Order::OldestFirst, None, 9).await), ["$1", "$2", "$6"]);
        let of_both = Filter { room_id: Some(a), reason: Some(&Reason::NoKey) };
        assert_eq!(ids(&leaf(of_both, Order::NewestFirst, None, 9).await), ["$6", "$1"]);

        let withheld = &first[1];
        assert_eq!(withheld.reason, Reason::Withheld("m.unverified".to_owned()));
        assert_eq!((withheld.room_id.as_str(), withheld.session_id.as_deref()), ("!a", Some("two")));
        assert_eq!((withheld.sender.as_str(), withheld.first_seen_at), ("@a:example.org", START));
        assert_eq!((withheld.tries, withheld.tried_at, withheld.notified_at), (1, Some(START), None));
        assert!(withheld.key_is_here && !first[0].key_is_here);
        assert_eq!((withheld.next_try, next[0].next_try), (NextTry::WithKey, NextTry::Never));
        let expected = [(Reason::NoKey, 3), (Reason::Replay, 1), (withheld.reason.clone(), 1)];
        assert_eq!(counts(store.db()).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn tries_and_news_of_an_event_are_remembered() {
    for test in testing::both().await {
        let store = &test.store;
        ledger_of(store).await;
        let later = START.plus(Duration::from_mins(1));
        let mut tx = store.begin().await.unwrap();
        let tried = [("$1".to_owned(), Reason::UnknownIndex), ("$5".to_owned(), Reason::BadCiphertext)];
        to_ledger(&mut tx, &tried, later).await.unwrap();
        to_ledger(&mut tx, &tried[..1], later).await.unwrap();
        set_reason(&mut tx, &["$2".to_owned()], &Reason::Replay).await.unwrap();
        set_told(&mut tx, &["$3".to_owned()], later).await.unwrap();
        set_told(&mut tx, &["$3".to_owned()], later.plus(Duration::from_mins(1))).await.unwrap();
        tx.commit().await.unwrap();
        let entries = page(store.db(), Filter::default(), Order::OldestFirst, None, 9).await.unwrap();
        let got: Vec<_> = entries
            .iter()
            .map(|entry| (entry.event_id.as_str(), entry.reason.to_string(), entry.tries, entry.notified_at))
            .collect();
        let expected = [
            ("$1", "unknown_index", 3, None),
            ("$2", "replay", 1, None),
            ("$3", "withheld:m.unverified", 1, Some(later)),
            ("$4", "replay", 1, None),
            ("$5", "bad_ciphertext", 1, None),
            ("$6", "no_key", 1, None),
        ];
        assert_eq!(got, expected.map(|(id, why, tries, told)| (id, why.to_owned(), tries, told)));
        let untold = untold(store.db(), store.seal().unwrap(), START, 2).await.unwrap();
        assert_eq!(
            untold.iter().map(|row| (&*row.event_id, row.told)).collect::<Vec<_>>(),
            [("$1", false), ("$5", false)]
        );
        let early = START.minus(Duration::from_millis(1));
        assert_eq!(super::untold(store.db(), store.seal().unwrap(), early, 9).await.unwrap(), []);
        let on_ledger = on_ledger(store.db(), &["$1", "$5", "$none"]).await.unwrap();
        assert_eq!(on_ledger, HashSet::from(["$1".to_owned(), "$5".to_owned()]));
    }
}

#[tokio::test]
async fn what_the_previous_version_put_down_goes_on_working() {
    for test in testing::both().await {
        let store = &test.store;
        // Its statement, word for word.
        let sql = "INSERT INTO pending_events (event_id, room_id, session_id, sender, state, reason, event, \
                   origin_server_ts, received_at) VALUES {rows} ON CONFLICT (event_id) DO NOTHING";
        let sealed = store.seal().unwrap().seal(TABLE, "$1", b"{}").unwrap();
        let row = values!["$1", "!a", "one", "@a:example.org", "ledger", "no_key", sealed, START, START];
        let mut tx = store.begin().await.unwrap();
        tx.execute_many(sql, vec![], vec![row]).await.unwrap();
        tx.commit().await.unwrap();
        let entries = page(store.db(), Filter::default(), Order::OldestFirst, None, 9).await.unwrap();
        assert_eq!((entries[0].tries, entries[0].tried_at), (0, None));
        assert_eq!(untold(store.db(), store.seal().unwrap(), START, 9).await.unwrap().len(), 1);
        add_key(store, "!a", "one").await;
        assert_eq!(releasable(store.db()).await.unwrap(), [("!a".to_owned(), "one".to_owned())]);
    }
}

#[tokio::test]
async fn a_session_of_another_room_is_recognised_from_both_ends() {
    for test in testing::both().await {
        let store = &test.store;
        ledger_of(store).await;
        let key = |room: &str, session: &str| (room.to_owned(), session.to_owned());
        let keyless = async |keys: &[(String, String)]| keyless_elsewhere(store.db(), keys).await.unwrap();
        assert_eq!(keyless(&[key("!a", "one"), key("!a", "two")]).await, ["$2"]);
        assert_eq!(keyless(&[key("!b", "three")]).await, ["$6"]);
        add_key(store, "!a", "one").await;
        let elsewhere = holders::elsewhere(store.db(), &[("!a", "one"), ("!b", "one"), ("!b", "two")]).await;
        assert_eq!(elsewhere.unwrap(), HashSet::from([key("!b", "one")]));
    }
}

#[tokio::test]
async fn news_of_keys_wait_until_they_were_acted_upon() {
    for test in testing::both().await {
        let store = &test.store;
        let mut tx = store.begin().await.unwrap();
        let keys = [Key::of(["!a", "one"]), Key::of(["!b", "two"])];
        key_news::tell(&mut tx, keys.into_iter().collect()).await.unwrap();
        key_news::tell(&mut tx, [Key::of(["!a", "one"])].into()).await.unwrap();
        tx.commit().await.unwrap();
        let news = key_news::waiting(store.db(), 9).await.unwrap();
        let rooms: Vec<_> = news.iter().map(|(_, room, session)| (room.as_str(), session.as_str())).collect();
        assert_eq!(rooms, [("!a", "one"), ("!b", "two"), ("!a", "one")]);
        let mut tx = store.begin().await.unwrap();
        key_news::forget(&mut tx, &[news[0].0, news[2].0]).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(key_news::waiting(store.db(), 9).await.unwrap(), news[1..2]);
        assert_eq!(key_news::waiting(store.db(), 0).await.unwrap(), []);
    }
}

#[tokio::test]
async fn what_was_taken_back_is_deleted_and_remembered_for_a_while() {
    for test in testing::both().await {
        let store = &test.store;
        ledger_of(store).await;
        let target = |room: &str, event: &str| (room.to_owned(), event.to_owned());
        let targets = [target("!a", "$1"), target("!a", "$2"), target("!a", "$5"), target("!b", "$7")];
        for _ in 0..2 {
            let mut tx = store.begin().await.unwrap();
            redacted::put(&mut tx, &targets, START).await.unwrap();
            tx.commit().await.unwrap();
        }
        let left = page(store.db(), Filter::default(), Order::OldestFirst, None, 9).await.unwrap();
        assert_eq!(ids(&left), ["$2", "$3", "$4", "$6"], "$2 is an event of another room");
        let queue = queue(store.db(), store.seal().unwrap(), room_id!("!a"), 9).await.unwrap();
        assert_eq!(queue, []);
        let asked = [("!a", "$1"), ("!b", "$1"), ("!b", "$7"), ("!a", "$3")];
        let found = redacted::find(store.db(), &asked).await.unwrap();
        assert_eq!(found, HashSet::from([target("!a", "$1"), target("!b", "$7")]));
        let mut tx = store.begin().await.unwrap();
        assert_eq!(redacted::delete_room(&mut tx, room_id!("!b")).await.unwrap(), 1);
        assert_eq!(redacted::prune(&mut tx, START).await.unwrap(), 0);
        assert_eq!(redacted::prune(&mut tx, START.plus(Duration::from_millis(1))).await.unwrap(), 3);
        tx.commit().await.unwrap();
    }
}

#[tokio::test]
async fn the_ledger_is_read_off_its_indexes() {
    for test in testing::both().await {
        let store = &test.store;
        let pages = |statements: [&'static str; 2], values: Values| {
            statements
                .map(|statement| (statement, [values![1000_i64, 9_i64], values.clone()].concat(), vec![]))
        };
        let pairs = || vec![values!["!a", "one"], values!["!b", "two"]];
        let mut reads: Vec<(&'static str, Values, Vec<Values>, &str)> = vec![
            (UNTOLD, values![0_i64, 9_i64], vec![], "pending_events_untold"),
            (LEDGER, vec![], pairs(), "pending_events_session"),
            (KEYLESS_ELSEWHERE, vec![], pairs(), "pending_events_keyless"),
            (QUEUE, values!["!a", 9_i64], vec![], "pending_events_queued"),
            (holders::ELSEWHERE, vec![], pairs(), "megolm_inbound_sessions_session"),
        ];
        for (statements, index) in [
            (pages(page::ALL, vec![]), "pending_events_ledger"),
            (pages(page::OF_ROOM, values!["!a"]), "pending_events_room"),
            (pages(page::OF_REASON, values!["unknown_index"]), "pending_events_reason"),
        ] {
            reads.extend(statements.map(|(statement, shared, rows)| (statement, shared, rows, index)));
        }
        let many = |n: u32| {
            let why = if n.is_multiple_of(50) { Reason::UnknownIndex } else { Reason::NoKey };
            event(&format!("${n}"), &format!("!{}", n % 40), &format!("s{}", n % 400), why)
        };
        put(store, &(0..2000).map(many).collect::<Vec<_>>()).await;
        if store.backend() == "postgres" {
            // As it does by itself, and SQLite never.
            let mut tx = store.begin().await.unwrap();
            tx.execute("ANALYZE", vec![]).await.unwrap();
            tx.commit().await.unwrap();
        }
        for (statement, shared, rows, index) in reads {
            let mut tx = store.begin().await.unwrap();
            if store.backend() == "postgres" {
                tx.execute("SET LOCAL enable_seqscan = off", vec![]).await.unwrap();
                tx.execute("SET LOCAL enable_sort = off", vec![]).await.unwrap();
                tx.execute("SET LOCAL enable_incremental_sort = off", vec![]).await.unwrap();
            }
            let plan = tx.explain(statement, shared, rows).await;
            assert!(plan.contains(index), "{index} in {}: {statement}\n{plan}", store.backend());
        }
    }
}

#[tokio::test]
async fn of_what_is_kept_of_rooms_that_are_not_relayed_the_oldest_goes_first() {
    for test in testing::both().await {
        let store = &test.store;
        let queued = |id: &str, room: &str| NewPending {
            waits: Waits::Queued,
            ..event(id, room, "one", Reason::RoomState)
        };
        let events = [
            queued("$1", "!a"),
            queued("$2", "!b"),
            queued("$3", "!a"),
            queued("$4", "!c"),
            queued("$5", "!a"),
        ];
        put(store, &events).await;
        put(store, &[event("$6", "!a", "one", Reason::NoKey)]).await;
        let left = async || {
            let queued = queued_ids(store).await;
            queued.into_iter().collect::<std::collections::BTreeSet<_>>()
        };
        let mut tx = store.begin().await.unwrap();
        assert_eq!(trim_queue(&mut tx, room_id!("!a"), 2).await.unwrap(), 1);
        assert_eq!(trim_queue(&mut tx, room_id!("!a"), 2).await.unwrap(), 0);
        tx.commit().await.unwrap();
        assert_eq!(left().await, ["$2", "$3", "$4", "$5"].map(str::to_owned).into());
        let rows = [("!a", Relay::No), ("!b", Relay::No), ("!c", Relay::Yes)];
        let rows: Vec<_> = rows.map(|(id, relay)| (id.try_into().unwrap(), RoomRow::bare(relay))).into();
        let mut tx = store.begin().await.unwrap();
        rooms::put_many(&mut tx, store.seal().unwrap(), &rows, START).await.unwrap();
        assert_eq!(trim_held(&mut tx, 2).await.unwrap(), 1);
        tx.commit().await.unwrap();
        assert_eq!(left().await, ["$3", "$4", "$5"].map(str::to_owned).into(), "nothing of a relayed room");
        let mut tx = store.begin().await.unwrap();
        assert_eq!(retention::delete_held(&mut tx, START.plus(Duration::from_secs(1))).await.unwrap(), 2);
        tx.commit().await.unwrap();
        assert_eq!(left().await, ["$4".to_owned()].into());
        let ledger = on_ledger(store.db(), &["$6"]).await.unwrap();
        assert_eq!(ledger.len(), 1);
        assert_indexed(store, "pending_events", &["room_id"], TRIM_QUEUE, values!["!a", 2_i64]).await;
    }
}

async fn queued_ids(store: &Store) -> std::collections::HashSet<String> {
    queued(store.db(), &["$1", "$2", "$3", "$4", "$5"]).await.unwrap()
}
