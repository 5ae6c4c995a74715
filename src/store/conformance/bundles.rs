//! Key bundles that are to be fetched.

use std::{collections::BTreeSet, time::Duration};

use ruma::{device_id, room_id, user_id};

use crate::{
    model::{Membership, Relay, Role},
    store::{
        accounts,
        crypto::{
            Key, Plain, Rows, Scope,
            bundles::{self, DUE},
            plans::assert_indexed,
            rooms,
        },
        db::values,
        memberships::{self, MembershipChange, MembershipOf},
    },
    testing::{self, START},
};

#[tokio::test]
async fn a_bundle_is_due_until_it_is_forgotten_and_again_when_another_comes() {
    for test in testing::both().await {
        let store = &test.store;
        let mut tx = store.begin().await.unwrap();
        let (user, device) = (user_id!("@coucou:example.org"), device_id!("D"));
        let account = accounts::insert(&mut tx, user, &device.to_owned(), Role::Bot, START).await.unwrap();
        tx.commit().await.unwrap();
        let scope = Scope::new(store.seal().unwrap(), account);
        let (one, two) = (Key::of(["!a", "@alice:a"]), Key::of(["!b", "@bob:a"]));
        let later = START.plus(Duration::from_mins(1));
        let want = async |bundle: &Key<2>, now| {
            let mut tx = store.begin().await.unwrap();
            let rows = Rows::from([(bundle.clone(), Plain::new(b"{}".to_vec()))]);
            rooms::save_bundles(&mut tx, &scope, rows).await.unwrap();
            bundles::want(&mut tx, &scope, BTreeSet::from([bundle.clone()]), now).await.unwrap();
            tx.commit().await.unwrap();
        };
        want(&one, START).await;
        want(&two, later).await;
        let due = async |now| bundles::due(store.db(), now, 9).await.unwrap();
        let first = due(START).await;
        assert_eq!(first.iter().map(|fetch| (&fetch.bundle, fetch.tries)).collect::<Vec<_>>(), [(&one, 0)]);
        assert_eq!(first[0].account_id, account);
        let mut tx = store.begin().await.unwrap();
        bundles::postpone(&mut tx, &first[0], later).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(due(START).await, []);
        let both: BTreeSet<_> =
            due(later).await.into_iter().map(|fetch| (fetch.bundle, fetch.tries)).collect();
        assert_eq!(both, BTreeSet::from([(one.clone(), 1), (two.clone(), 0)]));
        want(&one, START).await;
        assert_eq!(due(START).await[0].tries, 0, "another one begins anew");
        let mut tx = store.begin().await.unwrap();
        bundles::delete(&mut tx, &scope, one.clone()).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(due(later).await.len(), 1);
        assert!(rooms::find_bundle(store.db(), &scope, one).await.unwrap().is_none());
        assert!(rooms::find_bundle(store.db(), &scope, two).await.unwrap().is_some());
        assert_indexed(store, "key_bundle_fetches", &["due_at"], DUE, values![0_i64, 9_i64]).await;
    }
}

#[tokio::test]
async fn who_invited_stays_known_while_the_account_is_in_the_room() {
    for test in testing::both().await {
        let store = &test.store;
        let mut tx = store.begin().await.unwrap();
        let (user, device) = (user_id!("@coucou:example.org"), device_id!("D"));
        let account = accounts::insert(&mut tx, user, &device.to_owned(), Role::Bot, START).await.unwrap();
        let (room_id, alice) = (room_id!("!a:a"), user_id!("@alice:a"));
        let change = |membership, inviter: Option<&ruma::UserId>| MembershipChange {
            room_id: room_id.to_owned(),
            account_id: account,
            membership,
            inviter: inviter.map(ToOwned::to_owned),
        };
        let mut found = Vec::new();
        assert_eq!(memberships::find(store.db(), room_id, account).await.unwrap(), None);
        tx.commit().await.unwrap();
        for (membership, inviter) in [
            (Membership::Invite, Some(alice)),
            (Membership::Join, None),
            (Membership::Join, None),
            (Membership::Leave, None),
            (Membership::Join, None),
        ] {
            let mut tx = store.begin().await.unwrap();
            memberships::put(&mut tx, &[change(membership, inviter)], START).await.unwrap();
            tx.commit().await.unwrap();
            found.push(memberships::find(store.db(), room_id, account).await.unwrap().unwrap());
        }
        let of = |membership, inviter: Option<&ruma::UserId>| MembershipOf {
            membership,
            inviter: inviter.map(ToOwned::to_owned),
            relay: Relay::Unknown,
        };
        let expected = [
            of(Membership::Invite, Some(alice)),
            of(Membership::Join, Some(alice)),
            of(Membership::Join, Some(alice)),
            of(Membership::Leave, None),
            of(Membership::Join, None),
        ];
        assert_eq!(found, expected);
    }
}
