use ruma::user_id;

use super::*;
use crate::{
    model::Role,
    store::accounts,
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
