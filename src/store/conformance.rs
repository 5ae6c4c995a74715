//! Every store method, on both databases.

mod bridges;

use std::time::Duration;

use ruma::{device_id, user_id};

use super::{
    StoreError, accounts,
    db::values,
    leases,
    pending::{self, NewPending, Waits},
};
use crate::{
    model::{Role, ledger::Reason},
    testing::{self, START},
};

#[tokio::test]
async fn two_instances_can_prepare_an_empty_store_at_once() {
    for test in testing::both().await {
        let stores: Vec<_> = (0..4).map(|_| testing::open(&test.location, "test pickle key")).collect();
        let prepared = futures_util::future::join_all(stores.iter().map(|store| store.prepare(START))).await;
        assert!(prepared.iter().all(Result::is_ok), "{prepared:?}");
        let sealed = stores[0].seal().unwrap().seal("t", "r", b"secret").unwrap();
        assert_eq!(stores[3].seal().unwrap().open("t", "r", &sealed).unwrap(), b"secret");
    }
}

#[tokio::test]
async fn a_wrong_pickle_key_is_refused() {
    for test in testing::both().await {
        let store = testing::open(&test.location, "another pickle key");
        assert!(matches!(store.prepare(START).await, Err(StoreError::WrongPickleKey)));
        assert!(!store.is_ready());
        assert!(matches!(store.begin().await.err(), Some(StoreError::NotReady)));
    }
}

#[tokio::test]
async fn a_lease_has_one_holder_and_fences_off_the_last() {
    const LASTS: Duration = Duration::from_secs(10);
    for test in testing::both().await {
        let store = &test.store;
        let mut tx = store.begin().await.unwrap();
        let first = leases::claim(&mut tx, "crypto", "a", START, LASTS).await.unwrap().unwrap();
        assert_eq!(leases::claim(&mut tx, "crypto", "b", START, LASTS).await.unwrap(), None);
        leases::renew(&mut tx, &first, START.plus(LASTS), LASTS).await.unwrap();
        leases::check(&mut tx, &first).await.unwrap();
        tx.commit().await.unwrap();

        let later = START.plus(LASTS * 3);
        let mut tx = store.begin().await.unwrap();
        let second = leases::claim(&mut tx, "crypto", "b", later, LASTS).await.unwrap().unwrap();
        assert!(second.fence() > first.fence());
        assert!(matches!(leases::check(&mut tx, &first).await, Err(StoreError::LeaseLost)));
        assert!(matches!(leases::renew(&mut tx, &first, later, LASTS).await, Err(StoreError::LeaseLost)));
        leases::release(&mut tx, &first).await.unwrap();
        leases::check(&mut tx, &second).await.unwrap();
        leases::release(&mut tx, &second).await.unwrap();
        let third = leases::claim(&mut tx, "crypto", "a", later, LASTS).await.unwrap().unwrap();
        let again = leases::claim(&mut tx, "crypto", "a", later, LASTS).await.unwrap().unwrap();
        assert!(
            again.fence() > third.fence(),
            "who had it need not wait, and is fenced off from itself before"
        );
        assert!(matches!(leases::check(&mut tx, &third).await, Err(StoreError::LeaseLost)));
        tx.commit().await.unwrap();
    }
}

#[tokio::test]
async fn a_lease_of_a_clock_that_was_ahead_is_cut_down() {
    const LASTS: Duration = Duration::from_secs(10);
    let ahead = START.plus(Duration::from_hours(2));
    for test in testing::both().await {
        let mut tx = test.store.begin().await.unwrap();
        let held = leases::claim(&mut tx, "crypto", "a", ahead, LASTS).await.unwrap().unwrap();
        assert_eq!(leases::claim(&mut tx, "crypto", "b", START, LASTS).await.unwrap(), None);
        // A holder that still runs goes on, whatever its clock says.
        leases::renew(&mut tx, &held, ahead, LASTS).await.unwrap();
        assert_eq!(leases::claim(&mut tx, "crypto", "b", START, LASTS).await.unwrap(), None);
        let later = START.plus(LASTS + Duration::from_millis(1));
        assert!(leases::claim(&mut tx, "crypto", "b", later, LASTS).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn a_user_has_one_account_in_use() {
    for test in testing::both().await {
        let store = &test.store;
        let (user, device) = (user_id!("@coucou:example.org"), device_id!("COUCOU1"));
        assert_eq!(accounts::find(store.db(), user).await.unwrap(), None);
        let mut tx = store.begin().await.unwrap();
        let id = accounts::insert(&mut tx, user, &device.to_owned(), Role::Bot, START).await.unwrap();
        accounts::set_sync_token(&mut tx, id, "s1_2").await.unwrap();
        tx.commit().await.unwrap();
        let found = accounts::find(store.db(), user).await.unwrap().unwrap();
        assert_eq!((found.id, found.role, found.sync_token.as_deref()), (id, Role::Bot, Some("s1_2")));
        assert_eq!(accounts::all(store.db()).await.unwrap(), [found]);
        let mut tx = store.begin().await.unwrap();
        assert!(accounts::insert(&mut tx, user, &"COUCOU2".into(), Role::Bot, START).await.is_err());
    }
}

#[tokio::test]
async fn events_whose_key_is_there_are_found_on_the_ledger() {
    for test in testing::both().await {
        let store = &test.store;
        let pending = |event_id: &str, session: &str, waits, reason: &str| NewPending {
            event_id: event_id.to_owned(),
            room_id: "!room".to_owned(),
            session_id: Some(session.to_owned()),
            sender: "@a:example.org".to_owned(),
            waits,
            reason: Reason::parse(reason),
            event: b"{}".to_vec(),
            origin_server_ts: START,
            received_at: START,
        };
        let events = [
            pending("$1", "come", Waits::Ledger, "no_key"),
            pending("$2", "come", Waits::Ledger, "withheld:m.unverified"),
            pending("$3", "missing", Waits::Ledger, "no_key"),
            pending("$4", "replayed", Waits::Ledger, "replay"),
            pending("$5", "queued", Waits::Queued, "no_key"),
        ];
        let mut tx = store.begin().await.unwrap();
        let user = user_id!("@coucou:example.org");
        let id = accounts::insert(&mut tx, user, &"COUCOU1".into(), Role::Bot, START).await.unwrap();
        pending::insert(&mut tx, store.seal().unwrap(), &events, START).await.unwrap();
        for session in ["come", "replayed", "queued", "unrelated"] {
            let sql = "INSERT INTO megolm_inbound_sessions (account_id, room_id, session_id, sender_key, \
                       sender_data_type, backed_up, pickle, created_at) VALUES ($1, '!room', $2, 'k', 1, 0, $3, 0)";
            tx.execute(sql, values![id.0, session, b"sealed".to_vec()]).await.unwrap();
        }
        tx.commit().await.unwrap();
        let found = pending::releasable(store.db()).await.unwrap();
        assert_eq!(found, [("!room".to_owned(), "come".to_owned())]);
    }
}
