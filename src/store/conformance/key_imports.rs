use ruma::user_id;

use super::*;
use crate::{
    model::Role,
    store::{accounts, pending::{self, NewPending, Waits}},
    testing::{self, START},
};

#[tokio::test]
async fn parts_are_taken_in_in_order_and_forgotten() {
    for test in testing::both().await {
        let (store, seal) = (&test.store, test.store.seal().unwrap());
        let mut tx = store.begin().await.unwrap();
        let bot = user_id!("@coucou:example.org");
        let account = accounts::insert(&mut tx, bot, &"D".into(), Role::Bot, START).await.unwrap();
        for (import, keys) in [("a", "1"), ("b", "2"), ("a", "3")] {
            hand_over(&mut tx, seal, import, account, keys.as_bytes(), START).await.unwrap();
        }
        tx.commit().await.unwrap();
        let db = store.db();
        let mut taken = Vec::new();
        while let Some(part) = next(db, seal).await.unwrap() {
            assert_eq!(part.account_id, account);
            taken.push(part.keys.unwrap());
            let counts = Counts { new: 1, better: 2, known: 3, unwanted: 4, bad: 5 };
            let mut tx = store.begin().await.unwrap();
            take(&mut tx, part.part_id, &counts, START).await.unwrap();
            tx.commit().await.unwrap();
            if taken.len() == 1 {
                let half = State { part_count: 2, taken_count: 1, counts };
                assert_eq!(state(db, "a").await.unwrap(), half);
            }
        }
        assert_eq!(taken, [b"1".to_vec(), b"2".to_vec(), b"3".to_vec()]);
        let counts = Counts { new: 2, better: 4, known: 6, unwanted: 8, bad: 10 };
        assert_eq!(state(db, "a").await.unwrap(), State { part_count: 2, taken_count: 2, counts });
        let mut tx = store.begin().await.unwrap();
        assert_eq!(prune(&mut tx, START).await.unwrap(), 0, "they are not old");
        assert_eq!(delete(&mut tx, "a").await.unwrap(), 2);
        assert_eq!(prune(&mut tx, Timestamp(START.0 + 1)).await.unwrap(), 1);
        tx.commit().await.unwrap();
        assert_eq!(state(db, "b").await.unwrap(), State::default());
    }
}

#[tokio::test]
async fn a_part_that_does_not_open_does_not_hold_up_the_others() {
    for test in testing::both().await {
        let (store, seal) = (&test.store, test.store.seal().unwrap());
        let mut tx = store.begin().await.unwrap();
        let bot = user_id!("@coucou:example.org");
        let account = accounts::insert(&mut tx, bot, &"D".into(), Role::Bot, START).await.unwrap();
        hand_over(&mut tx, seal, "a", account, b"1", START).await.unwrap();
        tx.execute("UPDATE key_imports SET import_id = 'moved'", vec![]).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(next(store.db(), seal).await.unwrap().unwrap().keys, None);
    }
}

#[tokio::test]
async fn what_a_better_key_may_mend_is_tried_again() {
    for test in testing::both().await {
        let store = &test.store;
        let event = |event_id: &str, session: &str, reason: &str| NewPending {
            event_id: event_id.to_owned(),
            room_id: "!room".to_owned(),
            session_id: Some(session.to_owned()),
            sender: "@a:example.org".to_owned(),
            waits: Waits::Ledger,
            reason: reason.to_owned(),
            event: b"{}".to_vec(),
            origin_server_ts: START,
            received_at: START,
        };
        let events = [
            event("$1", "come", "unknown_index"),
            event("$2", "come", "replay"),
            event("$3", "other", "unknown_index"),
        ];
        let mut tx = store.begin().await.unwrap();
        pending::insert(&mut tx, store.seal().unwrap(), &events).await.unwrap();
        pending::look_again(&mut tx, &[("!room", "come")]).await.unwrap();
        tx.commit().await.unwrap();
        let counts: Vec<_> = pending::counts(store.db()).await.unwrap();
        let expected = [("no_key", 1), ("replay", 1), ("unknown_index", 1)];
        assert_eq!(counts, expected.map(|(reason, count)| (reason.to_owned(), count)));
        let stuck = pending::stuck(store.db(), 2).await.unwrap();
        let told: Vec<_> =
            stuck.iter().map(|stuck| (&*stuck.event_id, &*stuck.reason, stuck.event_count)).collect();
        assert_eq!(told, [("$3", "unknown_index", 1), ("$2", "replay", 1)], "the newest first");
    }
}
