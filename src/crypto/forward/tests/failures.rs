//! A store that fails while the machine takes in a message: what the message brought is not lost.

use super::*;

/// Gives a table another name, so that every statement on it fails.
async fn rename(store: &crate::store::Store, from: &str, to: &str) {
    let mut tx = store.begin().await.unwrap();
    let statement = format!("ALTER TABLE {from} RENAME TO {to}");
    tx.execute(&*statement.leak(), vec![]).await.unwrap();
    tx.commit().await.unwrap();
}

/// Has the store fail in one table while a first message of a new Olm session, with a room key, is taken in; then the
/// message comes again, as it does.
async fn comes_again_after(table: &str, test: &TestStore) {
    let mut bridge = Peer::new(bot(), "BRIDGE");
    let mut scene = Scene::set(test, &[&bridge]).await;
    let store = &test.store;
    let key = room_key(&mut bridge, &mut scene, &GroupSession::new(MegolmConfig::version_1()));
    scene.reload().await;
    rename(store, table, "away").await;
    let received = Received { to_device: vec![key.clone()], ..Received::default() };
    let failed = scene.engine.receive(received).await;
    assert!(failed.as_ref().is_err_and(CryptoError::is_of_the_store), "{table}: {failed:?}");
    rename(store, "away", table).await;
    scene.reload().await;
    assert_eq!(scene.receive(key).await.len(), 1, "{table}: the room key is there");
}

#[tokio::test]
async fn a_key_is_not_lost_when_the_store_fails_within_the_machine() {
    // What the machine reads amid a message, before it saves anything.
    for table in ["olm_sessions", "megolm_inbound_sessions", "crypto_devices"] {
        for test in testing::both().await {
            comes_again_after(table, &test).await;
        }
    }
}

#[tokio::test]
async fn a_key_is_not_lost_when_the_store_fails_after_its_session_was_made() {
    // What is saved with the room key alone.
    for table in ["olm_hashes", "key_news"] {
        for test in testing::both().await {
            comes_again_after(table, &test).await;
        }
    }
}
