//! Of several keys of one session the best is kept.

use super::*;

#[tokio::test]
async fn a_better_key_is_never_replaced_and_a_worse_one_always() {
    for test in testing::both().await {
        let mut bridge = Peer::new(bot(), "BRIDGE");
        let mut scene = Scene::set(&test, &[&bridge]).await;
        let mut session = GroupSession::new(MegolmConfig::version_1());
        let id = session.session_id();
        scene.ask(&bridge, &id).await;
        let first = InboundGroupSession::new(&session.session_key(), MegolmConfig::version_1());
        let early = session.session_key();
        for _ in 0..5 {
            session.encrypt("ratchet");
        }
        // The first key begins at message 5.
        let late_key = room_key(&mut bridge, &mut scene, &session);
        assert_eq!(scene.receive(late_key).await.len(), 1);
        assert_eq!(scene.first_known(&id).await, Some(5));
        // A forward that begins earlier replaces it, and the maker stays known.
        let content = json!({
            "algorithm": MEGOLM, "room_id": room(), "session_id": id,
            "session_key": first.export_at_first_known_index().to_base64(),
            "sender_key": bridge.curve25519(), "sender_claimed_ed25519_key": bridge.ed25519(),
            "forwarding_curve25519_key_chain": [],
        });
        let plain = bridge.inside(&scene, FORWARDED, &content);
        let forward = bridge.encrypt(&mut scene, &plain);
        assert_eq!(scene.receive(forward).await.len(), 1);
        assert_eq!(scene.first_known(&id).await, Some(0));
        // Nothing that begins later replaces that: by forward, by to-device message, from a file.
        let forward = bridge.forward(&mut scene, &session, 5, |_| ());
        scene.receive(forward).await;
        assert_eq!(scene.first_known(&id).await, Some(0));
        let late_key = room_key(&mut bridge, &mut scene, &session);
        scene.receive(late_key).await;
        assert_eq!(scene.first_known(&id).await, Some(0));
        let exported = |key: &matrix_sdk_crypto::vodozemac::megolm::SessionKey, index| {
            let mut key = InboundGroupSession::new(key, MegolmConfig::version_1());
            let key = key.export_at(index).unwrap();
            let key = json!({
                "algorithm": MEGOLM, "room_id": room(), "session_id": id, "sender_key": bridge.curve25519(),
                "session_key": key.to_base64(), "sender_claimed_keys": {"ed25519": bridge.ed25519()},
                "forwarding_curve25519_key_chain": [],
            });
            serde_json::from_value::<ExportedRoomKey>(key).unwrap()
        };
        let imported = scene.engine.import(vec![exported(&early, 3), exported(&early, 7)]).await.unwrap();
        assert_eq!((imported.new.len(), imported.better.len(), imported.known.len()), (0, 0, 2));
        assert_eq!(scene.first_known(&id).await, Some(0));
        let store = scene.engine.machine.store();
        let known = store.get_inbound_group_session(room(), &id).await.unwrap().unwrap();
        assert!(!matches!(known.sender_data, SenderData::UnknownDevice { .. }), "its maker is still known");
    }
}

#[tokio::test]
async fn of_two_keys_in_one_file_the_earlier_counts_and_a_false_one_does_not() {
    for test in testing::both().await {
        let bridge = Peer::new(bot(), "BRIDGE");
        let scene = Scene::set(&test, &[&bridge]).await;
        let session = GroupSession::new(MegolmConfig::version_1());
        let id = session.session_id();
        let key = |index: u32, session_id: &str| {
            let mut key = InboundGroupSession::new(&session.session_key(), MegolmConfig::version_1());
            let key = json!({
                "algorithm": MEGOLM, "room_id": room(), "session_id": session_id,
                "sender_key": bridge.curve25519(), "session_key": key.export_at(index).unwrap().to_base64(),
                "sender_claimed_keys": {"ed25519": bridge.ed25519()}, "forwarding_curve25519_key_chain": [],
            });
            serde_json::from_value::<ExportedRoomKey>(key).unwrap()
        };
        let file = vec![key(4, &id), key(1, &id), key(6, &id), key(0, "another session")];
        let imported = scene.engine.import(file).await.unwrap();
        assert_eq!((imported.new.len(), imported.known.len(), imported.bad_count), (1, 2, 1));
        assert_eq!(scene.first_known(&id).await, Some(1));
        assert_eq!(scene.first_known("another session").await, None);
        let better = scene.engine.import(vec![key(0, &id)]).await.unwrap();
        assert_eq!((better.new.len(), better.better.len()), (0, 1));
        assert_eq!(scene.first_known(&id).await, Some(0));
    }
}
