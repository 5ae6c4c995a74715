//! Claims to Megolm sessions, and in whose names their places were used.

use std::{collections::BTreeSet, time::Duration};

use ruma::device_id;

use crate::{
    model::{AccountId, Role},
    store::{
        Store, accounts,
        crypto::{
            Key, Plain, Rows, Scope,
            claims::{self, FIND},
            inbound,
            plans::assert_many_indexed,
        },
        db::values,
        messages::{self, CLAIMED},
        retention, rooms,
    },
    testing::{self, START},
};

async fn account(store: &Store, name: &str) -> AccountId {
    let mut tx = store.begin().await.unwrap();
    let user_id = ruma::UserId::parse(format!("@{name}:example.org")).unwrap();
    let id =
        accounts::insert(&mut tx, &user_id, &device_id!("D").to_owned(), Role::Bot, START).await.unwrap();
    tx.commit().await.unwrap();
    id
}

async fn add(store: &Store, account: AccountId, room: &str, user: &str, key: &str, data: &str) {
    let name = Key::of([room, "session", user, key]);
    let rows = Rows::from([(name, Plain::new(data.as_bytes().to_vec()))]);
    let mut tx = store.begin().await.unwrap();
    claims::add(&mut tx, &Scope::new(store.seal().unwrap(), account), rows, START).await.unwrap();
    tx.commit().await.unwrap();
}

async fn found(store: &Store, wanted: &[(AccountId, &str)]) -> Vec<(AccountId, String)> {
    let wanted: BTreeSet<_> =
        wanted.iter().map(|(account, room)| (*account, Key::of([room, "session"]))).collect();
    let found = claims::find(store.db(), store.seal().unwrap(), &wanted).await.unwrap();
    let text = |(account, plain): (AccountId, Plain)| (account, String::from_utf8(plain.to_vec()).unwrap());
    let mut found: Vec<_> = found.into_values().flatten().map(text).collect();
    found.sort();
    found
}

#[tokio::test]
async fn claims_add_up_and_go_with_their_sessions() {
    for test in testing::both().await {
        let store = &test.store;
        let (bot, owner) = (account(store, "bot").await, account(store, "owner").await);
        add(store, bot, "!a", "@alice:a", "k1", "first").await;
        add(store, bot, "!a", "@alice:a", "k1", "the same again").await;
        add(store, bot, "!a", "@mallory:a", "k1", "another's").await;
        add(store, owner, "!a", "@alice:a", "k1", "as the owner").await;
        add(store, bot, "!b", "@alice:a", "k1", "elsewhere").await;
        let all = found(store, &[(bot, "!a"), (owner, "!a"), (bot, "!b"), (bot, "!c")]).await;
        let texts: Vec<_> = all.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(texts, ["another's", "elsewhere", "first", "as the owner"]);
        // A user's devices are few, and another user's claim finds room beside any number of them.
        for n in 0..20 {
            add(store, bot, "!a", "@mallory:a", &format!("flood {n}"), "a flood").await;
        }
        add(store, bot, "!a", "@bob:a", "k", "beside it").await;
        let all = found(store, &[(bot, "!a")]).await;
        assert_eq!(all.iter().filter(|(_, text)| text == "a flood").count(), 9);
        assert!(all.iter().any(|(_, text)| text == "beside it"));

        let scope = Scope::new(store.seal().unwrap(), bot);
        let mut tx = store.begin().await.unwrap();
        inbound::delete(&mut tx, &scope, BTreeSet::from([Key::of(["!a", "session"])])).await.unwrap();
        inbound::delete_of_room(&mut tx, &scope, "!b").await.unwrap();
        let sql = "INSERT INTO rooms (room_id, relay, last_sequence, tries, created_at) VALUES ('!a', 'no', 0, 0, 0)";
        tx.execute(sql, vec![]).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(found(store, &[(bot, "!a"), (bot, "!b")]).await, []);
        assert_eq!(found(store, &[(owner, "!a")]).await.len(), 1);
        let mut tx = store.begin().await.unwrap();
        rooms::delete_unwanted_keys(&mut tx).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(found(store, &[(owner, "!a")]).await, []);
    }
}

#[tokio::test]
async fn places_are_used_once_in_each_name_until_they_are_forgotten() {
    for test in testing::both().await {
        let store = &test.store;
        let place = |index| ("!a".to_owned(), "s".to_owned(), index);
        let claim = |index, by: &str, event: &str| (place(index), by.to_owned(), event.to_owned());
        let mut tx = store.begin().await.unwrap();
        messages::use_indexes(&mut tx, &[(place(1), "$copy".to_owned())], START).await.unwrap();
        let claims = [claim(1, "@m:a", "$copy"), claim(1, "@b:a", "$original"), claim(2, "", "$other")];
        messages::claim_indexes(&mut tx, &claims).await.unwrap();
        messages::claim_indexes(&mut tx, &[claim(1, "@m:a", "$later")]).await.unwrap();
        tx.commit().await.unwrap();
        let found = async |index| {
            let mut found = messages::index_claims(store.db(), &[place(index)]).await.unwrap();
            found.sort();
            found
        };
        assert_eq!(found(1).await, [claims[1].clone(), claims[0].clone()]);
        assert_eq!(found(3).await, []);
        let mut tx = store.begin().await.unwrap();
        retention::forget_indexes(&mut tx, START.plus(Duration::from_secs(1))).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(found(1).await, []);
        assert_eq!(found(2).await.len(), 1, "not used as far as the other table knows");
    }
}

#[tokio::test]
async fn claims_are_found_by_index() {
    for test in testing::both().await {
        let store = &test.store;
        let session = ["account_id", "room_id", "session_id"];
        let rows = vec![values![1_i64, "!r", "s"], values![1_i64, "!r", "t"]];
        assert_many_indexed(store, "megolm_claims", &session, FIND, vec![], rows.clone()).await;
        assert_many_indexed(store, "megolm_claims", &session, claims::DELETE, vec![], rows).await;
        let place = ["room_id", "session_id", "message_index"];
        let rows = vec![values!["!r", "s", 1_i64], values!["!r", "s", 2_i64]];
        assert_many_indexed(store, "megolm_index_claims", &place, CLAIMED, vec![], rows).await;
    }
}
