//! What the conformance suite does not ask: scoping, the lease, sealing, the cache, hostile names.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use matrix_sdk_common::deserialized_responses::WithheldCode;
use matrix_sdk_crypto::{
    Account, CryptoStoreError, DeviceData, UserIdentityData,
    olm::{InboundGroupSession, SenderData},
    store::{
        CryptoStore as _,
        types::{Changes, DeviceChanges, IdentityChanges, PendingChanges, RoomKeyWithheldEntry},
    },
    testing::{get_other_identity, get_own_identity},
    types::events::room_key_withheld::RoomKeyWithheldContent,
    vodozemac::Curve25519PublicKey,
};
use ruma::{RoomId, UserId, device_id, room_id, user_id};
use serde_json::json;

use super::{AccountStore, AccountStoreError, store_error};
use crate::{
    clock::{ManualClock, SharedClock},
    model::{AccountId, Role},
    store::{Lease, StoreError, accounts, leases},
    testing::{self, START, TestStore},
};

const LASTS: Duration = Duration::from_secs(10);

async fn account(test: &TestStore, user_id: &UserId, role: Role) -> AccountId {
    let mut tx = test.store.begin().await.unwrap();
    let id = accounts::insert(&mut tx, user_id, &device_id!("COUCOU").to_owned(), role, START).await.unwrap();
    tx.commit().await.unwrap();
    id
}

async fn bot(test: &TestStore) -> AccountId {
    account(test, user_id!("@coucou:example.org"), Role::Bot).await
}

fn clock() -> SharedClock {
    ManualClock::at(START)
}

fn open(test: &TestStore, account: AccountId) -> AccountStore {
    AccountStore::new(test.store.clone(), account, None, clock())
}

fn bridge() -> Account {
    Account::with_device_id(user_id!("@instagrambot:example.org"), device_id!("BRIDGE"))
}

async fn session(room_id: &RoomId) -> InboundGroupSession {
    bridge().create_group_session_pair_with_defaults(room_id).await.1
}

fn room() -> &'static RoomId {
    room_id!("!portal:example.org")
}

async fn claim(test: &TestStore, holder: &str, after: Duration) -> Lease {
    let mut tx = test.store.begin().await.unwrap();
    let lease = leases::claim(&mut tx, "crypto", holder, START.plus(after), LASTS).await.unwrap().unwrap();
    tx.commit().await.unwrap();
    lease
}

fn saved(sessions: &[&InboundGroupSession]) -> Changes {
    let inbound_group_sessions = sessions.iter().map(|session| (*session).clone()).collect();
    Changes { inbound_group_sessions, ..Changes::default() }
}

async fn has(store: &AccountStore, session: &InboundGroupSession) -> bool {
    store.get_inbound_group_session(session.room_id(), session.session_id()).await.unwrap().is_some()
}

#[tokio::test]
async fn two_accounts_in_one_database_do_not_see_each_other() {
    for test in testing::both().await {
        let bot = open(&test, bot(&test).await);
        let owner = open(&test, account(&test, user_id!("@owner:example.org"), Role::Owner).await);
        let device = DeviceData::from_account(&bridge());
        let session = session(room()).await;
        let changes = Changes {
            devices: DeviceChanges { new: vec![device.clone()], ..DeviceChanges::default() },
            next_batch_token: Some("s1".to_owned()),
            ..saved(&[&session])
        };
        bot.save_changes(changes).await.unwrap();
        bot.save_pending_changes(PendingChanges { account: Some(bridge()) }).await.unwrap();
        bot.set_custom_value("name", b"value".to_vec()).await.unwrap();
        bot.save_tracked_users(&[(user_id!("@ghost:example.org"), true)]).await.unwrap();

        assert!(has(&bot, &session).await);
        assert!(!has(&owner, &session).await);
        assert!(owner.get_inbound_group_sessions().await.unwrap().is_empty());
        assert_eq!(owner.inbound_group_session_counts(None).await.unwrap().total, 0);
        assert!(owner.get_user_devices(device.user_id()).await.unwrap().is_empty());
        assert!(owner.load_account().await.unwrap().is_none());
        assert_eq!(owner.next_batch_token().await.unwrap(), None);
        assert_eq!(owner.get_custom_value("name").await.unwrap(), None);
        assert!(owner.load_tracked_users().await.unwrap().is_empty());
        assert_eq!(owner.delete_inbound_group_sessions_of_room(room()).await.unwrap(), 0);
        owner.reset_backup_state().await.unwrap();
        assert!(has(&bot, &session).await);
    }
}

#[tokio::test]
async fn a_lost_lease_refuses_every_write() {
    for test in testing::both().await {
        let account = bot(&test).await;
        let lease = claim(&test, "old", Duration::ZERO).await;
        let old = AccountStore::new(test.store.clone(), account, Some(lease), clock());
        let (first, second) = (session(room()).await, session(room()).await);
        old.save_changes(saved(&[&first])).await.unwrap();

        let lease = claim(&test, "new", LASTS * 2).await;
        let new = AccountStore::new(test.store.clone(), account, Some(lease), clock());
        let refused = old.save_changes(saved(&[&second])).await.unwrap_err();
        let refused = CryptoStoreError::from(refused);
        assert!(matches!(store_error(&refused), Some(StoreError::LeaseLost)), "{refused:?}");
        let lost = AccountStoreError::Store(StoreError::LeaseLost).to_string();
        let pending = PendingChanges { account: Some(bridge()) };
        let key = (room(), first.session_id());
        let refusals = [
            old.save_pending_changes(pending).await,
            old.save_inbound_group_sessions(vec![second.clone()], None).await,
            old.save_tracked_users(&[(user_id!("@ghost:example.org"), true)]).await,
            old.mark_inbound_group_sessions_as_backed_up("1", &[key]).await,
            old.set_custom_value("a", vec![1]).await,
            old.delete_inbound_group_sessions_of_room(room()).await.map(|_| ()),
            old.try_take_leased_lock(1, "a", "b").await.map(|_| ()),
        ];
        for refusal in refusals {
            assert_eq!(refusal.unwrap_err().to_string(), lost);
        }
        assert!(old.get_static_account().is_none(), "an account that was not saved is not known");

        assert!(has(&new, &first).await);
        assert!(!has(&new, &second).await);
        new.save_changes(saved(&[&second])).await.unwrap();
        assert!(has(&new, &second).await);
    }
}

#[tokio::test]
async fn nothing_secret_is_in_clear() {
    for test in testing::both().await {
        let store = open(&test, bot(&test).await);
        let session = session(room()).await;
        store.save_changes(saved(&[&session])).await.unwrap();
        let pickle = session.pickle().await;
        let plain = rmp_serde::to_vec_named(&pickle).unwrap();
        // The ratchet is 128 bytes in the middle of the pickle; any run of the plain bytes would show.
        let (stored,): (Vec<u8>,) = test
            .store
            .db()
            .fetch_optional("SELECT pickle FROM megolm_inbound_sessions", vec![])
            .await
            .unwrap()
            .unwrap();
        assert!(stored.len() > plain.len());
        let key = session.export().await.session_key.to_bytes();
        for secret in key.windows(8).chain(plain.windows(8)) {
            assert!(!stored.windows(8).any(|window| window == secret));
        }
        store.set_custom_value("name", b"in the open".to_vec()).await.unwrap();
        let sql = "SELECT value FROM crypto_custom_values";
        let (stored,): (Vec<u8>,) = test.store.db().fetch_optional(sql, vec![]).await.unwrap().unwrap();
        assert!(!stored.windows(11).any(|window| window == b"in the open"));
    }
}

#[tokio::test]
async fn a_row_that_was_moved_to_another_account_does_not_open() {
    for test in testing::both().await {
        let bot = open(&test, bot(&test).await);
        let owner = account(&test, user_id!("@owner:example.org"), Role::Owner).await;
        let session = session(room()).await;
        bot.save_changes(saved(&[&session])).await.unwrap();
        let mut tx = test.store.begin().await.unwrap();
        let sql = "UPDATE megolm_inbound_sessions SET account_id = $1";
        tx.execute(sql, crate::store::db::values![owner.0]).await.unwrap();
        tx.commit().await.unwrap();
        let moved = open(&test, owner).get_inbound_group_session(room(), session.session_id()).await;
        let refused = AccountStoreError::Store(StoreError::Sealed("megolm_inbound_sessions"));
        assert_eq!(moved.unwrap_err().to_string(), refused.to_string());
    }
}

#[tokio::test]
async fn the_monitoring_statements_answer() {
    for test in testing::both().await {
        let clock = ManualClock::at(START);
        let store = AccountStore::new(test.store.clone(), bot(&test).await, None, clock.clone());
        let first = session(room()).await;
        store.save_changes(saved(&[&first, &session(room()).await])).await.unwrap();
        clock.advance(LASTS);
        store.save_changes(saved(&[&session(room_id!("!other:example.org")).await])).await.unwrap();
        clock.advance(LASTS);
        // Saved again, not received again.
        store.save_changes(saved(&[&first])).await.unwrap();

        let number = async |sql: &'static str| {
            test.store.db().fetch_optional::<(i64,)>(sql, vec![]).await.unwrap().unwrap().0
        };
        assert_eq!(number("SELECT COUNT(*) FROM megolm_inbound_sessions").await, 3);
        assert_eq!(number("SELECT MAX(created_at) FROM megolm_inbound_sessions").await, START.plus(LASTS).0);
        assert_eq!(number("SELECT COUNT(DISTINCT room_id) FROM megolm_inbound_sessions").await, 2);
    }
}

#[tokio::test]
async fn the_cache_follows_every_change_of_a_session() {
    for test in testing::both().await {
        let store = open(&test, bot(&test).await);
        let mut session = session(room()).await;
        let id = session.session_id().to_owned();
        let find = async || store.get_inbound_group_session(room(), &id).await.unwrap();
        assert!(find().await.is_none());
        store.save_inbound_group_sessions(vec![session.clone()], None).await.unwrap();
        assert!(find().await.is_some(), "that a key was missing is not remembered");

        let keys = bridge().device_keys().clone();
        session.sender_data = SenderData::device_info(keys);
        store.save_changes(saved(&[&session])).await.unwrap();
        assert_eq!(find().await.unwrap().sender_data_type(), session.sender_data_type());

        store.mark_inbound_group_sessions_as_backed_up("1", &[(room(), &id)]).await.unwrap();
        assert!(find().await.unwrap().backed_up());
        store.reset_backup_state().await.unwrap();
        assert!(!find().await.unwrap().backed_up());

        let named = [(room().to_owned(), id.clone())];
        assert_eq!(store.delete_inbound_group_sessions(&named).await.unwrap(), 1);
        assert!(find().await.is_none());
        store.save_changes(saved(&[&session])).await.unwrap();
        assert!(find().await.is_some());
        assert_eq!(store.delete_inbound_group_sessions_of_room(room()).await.unwrap(), 1);
        assert!(find().await.is_none());
    }
}

#[tokio::test]
async fn a_cached_session_shares_its_ratchet() {
    let test = testing::sqlite().await;
    let store = open(&test, bot(&test).await);
    let session = session(room()).await;
    store.save_changes(saved(&[&session])).await.unwrap();
    let cached = store.get_inbound_group_session(room(), session.session_id()).await.unwrap().unwrap();
    // `backed_up` is shared by clones and by nothing else that can be seen from here.
    session.mark_as_backed_up();
    assert!(cached.backed_up());
    let other = open(&test, store.account);
    let read = other.get_inbound_group_session(room(), session.session_id()).await.unwrap().unwrap();
    assert!(!read.backed_up());
    let again = other.get_inbound_group_session(room(), session.session_id()).await.unwrap().unwrap();
    read.mark_as_backed_up();
    assert!(again.backed_up(), "what was read is kept");
}

#[tokio::test]
async fn the_cache_follows_devices_and_identities() {
    for test in testing::both().await {
        let store = open(&test, bot(&test).await);
        let device = DeviceData::from_account(&bridge());
        let devices = async || store.get_user_devices(device.user_id()).await.unwrap().len();
        let change = |devices| Changes { devices, ..Changes::default() };
        assert_eq!(devices().await, 0);
        let new = DeviceChanges { new: vec![device.clone()], ..DeviceChanges::default() };
        store.save_changes(change(new)).await.unwrap();
        assert_eq!(devices().await, 1, "that a user had no devices is forgotten");
        assert!(store.get_device(device.user_id(), device.device_id()).await.unwrap().is_some());
        let deleted = DeviceChanges { deleted: vec![device.clone()], ..DeviceChanges::default() };
        store.save_changes(change(deleted)).await.unwrap();
        assert_eq!(devices().await, 0);

        let other = get_other_identity();
        assert!(store.get_user_identity(other.user_id()).await.unwrap().is_none());
        let new = vec![UserIdentityData::from(other.clone())];
        let identities = IdentityChanges { new, ..IdentityChanges::default() };
        store.save_changes(Changes { identities, ..Changes::default() }).await.unwrap();
        assert!(store.get_user_identity(other.user_id()).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn an_identity_that_was_changed_but_not_saved_is_read_as_it_was_saved() {
    let test = testing::sqlite().await;
    let store = open(&test, bot(&test).await);
    let own = get_own_identity();
    let new = vec![UserIdentityData::from(own.clone())];
    let identities = IdentityChanges { new, ..IdentityChanges::default() };
    store.save_changes(Changes { identities, ..Changes::default() }).await.unwrap();
    let read = async || {
        let identity = store.get_user_identity(own.user_id()).await.unwrap().unwrap();
        identity.own().unwrap().clone()
    };
    let kept = read().await;
    assert!(!kept.is_verified());
    kept.mark_as_verified();
    assert!(!read().await.is_verified());
    let changed = vec![UserIdentityData::from(kept)];
    let identities = IdentityChanges { changed, ..IdentityChanges::default() };
    store.save_changes(Changes { identities, ..Changes::default() }).await.unwrap();
    assert!(read().await.is_verified());
}

#[tokio::test]
async fn a_failed_write_empties_the_cache_until_one_succeeds() {
    let test = testing::sqlite().await;
    let account = bot(&test).await;
    let lease = claim(&test, "old", Duration::ZERO).await;
    let store = AccountStore::new(test.store.clone(), account, Some(lease.clone()), clock());
    let session = session(room()).await;
    store.save_changes(saved(&[&session])).await.unwrap();
    let cached = || store.cache.session(room(), session.session_id()).is_some();
    assert!(cached());
    let mut tx = test.store.begin().await.unwrap();
    tx.execute("UPDATE leases SET fence = fence + 1", vec![]).await.unwrap();
    tx.commit().await.unwrap();
    store.save_changes(saved(&[&session])).await.unwrap_err();
    assert!(!cached());
    assert!(has(&store, &session).await);
    assert!(!cached(), "nothing is kept while it is unknown what was written");
    let mut tx = test.store.begin().await.unwrap();
    tx.execute("UPDATE leases SET fence = fence - 1", vec![]).await.unwrap();
    tx.commit().await.unwrap();
    store.set_custom_value("a", vec![]).await.unwrap();
    assert!(has(&store, &session).await);
    assert!(cached());
}

#[test]
fn a_reader_that_was_overtaken_keeps_nothing() {
    let cache = super::cache::Cache::new();
    let user = user_id!("@ghost:example.org");
    let ticket = cache.ticket();
    cache.begin_write().committed(|cache| cache.remove_devices(user));
    cache.fill_devices(ticket, user, Arc::default());
    assert!(cache.devices(user).is_none());
    cache.fill_devices(cache.ticket(), user, Arc::default());
    assert!(cache.devices(user).is_some());
}

#[tokio::test]
async fn names_that_no_column_holds_are_stored_all_the_same() {
    for test in testing::both().await {
        let store = open(&test, bot(&test).await);
        let long = "x".repeat(10_000);
        let names = ["nul\0nul", "#hash", "", long.as_str()];
        let entry = |name: &str| RoomKeyWithheldEntry {
            sender: user_id!("@stranger:example.org").to_owned(),
            content: serde_json::from_value::<RoomKeyWithheldContent>(json!({
                "algorithm": "m.megolm.v1.aes-sha2", "code": "m.blacklisted", "room_id": room(),
                "session_id": name, "sender_key": "9n7mdWKOjr9c4NTlG6zV8dbFtNK79q9vZADoh7nMUwA",
            }))
            .unwrap(),
        };
        let entries: BTreeMap<_, _> = names.iter().map(|name| ((*name).to_owned(), entry(name))).collect();
        let withheld_session_info = BTreeMap::from([(room().to_owned(), entries)]);
        store.save_changes(Changes { withheld_session_info, ..Changes::default() }).await.unwrap();
        for name in names {
            let found = store.get_withheld_info(room(), name).await.unwrap().unwrap();
            assert_eq!(found.content.megolm_session_id(), Some(name));
            assert_eq!(found.content.withheld_code(), WithheldCode::Blacklisted);
        }
        assert_eq!(store.get_withheld_sessions_by_room_id(room()).await.unwrap().len(), names.len());
    }
}

#[tokio::test]
async fn saving_the_same_thing_twice_at_once_keeps_the_last() {
    for test in testing::both().await {
        let store = open(&test, bot(&test).await);
        let first = session(room()).await;
        let mut last = first.clone();
        last.sender_data = SenderData::device_info(bridge().device_keys().clone());
        store.save_changes(saved(&[&first, &last])).await.unwrap();
        let store = open(&test, store.account);
        let read = store.get_inbound_group_session(room(), first.session_id()).await.unwrap().unwrap();
        assert_eq!(read.sender_data_type(), last.sender_data_type());
    }
}

#[tokio::test]
async fn many_room_keys_are_saved_and_paged() {
    for test in testing::both().await {
        let store = open(&test, bot(&test).await);
        let bridge = bridge();
        let mut sessions = Vec::new();
        for _ in 0..300 {
            sessions.push(bridge.create_group_session_pair_with_defaults(room()).await.1);
        }
        let sender: Curve25519PublicKey = sessions[0].sender_key();
        let kind = sessions[0].sender_data_type();
        store.save_inbound_group_sessions(sessions, None).await.unwrap();
        assert_eq!(store.inbound_group_session_counts(None).await.unwrap().total, 300);
        let (mut found, mut after) = (0, None);
        loop {
            let page =
                store.get_inbound_group_sessions_for_device_batch(sender, kind, after, 128).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.session_id().to_owned());
            found += page.len();
        }
        assert_eq!(found, 300);
        assert_eq!(store.delete_inbound_group_sessions_of_room(room()).await.unwrap(), 300);
    }
}

#[tokio::test]
async fn a_closed_store_answers_nothing_until_reopened() {
    let test = testing::sqlite().await;
    let store = open(&test, bot(&test).await);
    let session = session(room()).await;
    store.save_changes(saved(&[&session])).await.unwrap();
    store.close().await.unwrap();
    let closed = AccountStoreError::Closed.to_string();
    let read = store.get_inbound_group_session(room(), session.session_id()).await;
    assert_eq!(read.unwrap_err().to_string(), closed);
    assert_eq!(store.set_custom_value("a", vec![]).await.unwrap_err().to_string(), closed);
    store.reopen().await.unwrap();
    assert!(has(&store, &session).await);
}
