//! Rooms, statistics, and what could not be decrypted.

use super::*;

#[tokio::test]
async fn rooms_are_listed_with_what_is_known_of_them() {
    for test in testing::both().await {
        let rig = Rig::new(&test.store).await;
        let mut tx = test.store.begin().await.unwrap();
        let bot = user_id!("@coucou:example.org");
        let account = accounts::insert(&mut tx, bot, &"COUCOU1".into(), Role::Bot, START).await.unwrap();
        let row = |relay, network: Option<&str>, state: Option<Value>, last_sequence| RoomRow {
            network: network.map(str::to_owned),
            state: state.map(|state| state.to_string().into_bytes()),
            last_sequence,
            ..RoomRow::bare(relay)
        };
        let known = json!({"name": "A room", "encryption": "m.megolm.v1.aes-sha2"});
        let rooms = [
            ("!a:example.org", row(Relay::Yes, Some("instagram"), Some(known), 7)),
            ("!b:example.org", row(Relay::No, None, None, 0)),
            ("!c", row(Relay::Yes, Some("messenger"), None, 1)),
        ];
        let rooms = rooms.map(|(id, row)| (ruma::RoomId::parse(id).unwrap(), row));
        rooms::put_many(&mut tx, test.store.seal().unwrap(), &rooms, START).await.unwrap();
        let change = MembershipChange {
            room_id: rooms[0].0.clone(),
            account_id: account,
            membership: Membership::Join,
            inviter: None,
        };
        memberships::put(&mut tx, &[change], START).await.unwrap();
        tx.commit().await.unwrap();
        let ids = |answer: &Value| {
            let rooms = answer["rooms"].as_array().unwrap();
            rooms.iter().map(|room| room["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let (_, page) = rig.get("rooms?limit=2").await;
        assert_eq!(ids(&page), ["!a:example.org", "!b:example.org"]);
        let next = page["next"].as_str().unwrap();
        assert_eq!(ids(&rig.get(&format!("rooms?limit=2&cursor={next}")).await.1), ["!c"]);
        assert_eq!(ids(&rig.get("rooms?network=facebook").await.1), ["!c"]);
        assert_eq!(ids(&rig.get("rooms?relayed=no").await.1), ["!b:example.org"]);
        let expected = json!({
            "id": "!a:example.org", "name": "A room", "type": "group", "network": "instagram", "channel_id": null,
            "bridge_bot": null, "relayed": "yes", "encrypted": true, "replacement": null, "message_count": 7,
            "accounts": [{"user_id": bot, "membership": "join"}], "created_at": START.rfc3339(),
        });
        assert_eq!(rig.get("rooms/!a:example.org").await, (200, expected));
        assert_eq!(rig.get("rooms/!x:example.org").await.0, 404);
        assert_eq!(rig.get("rooms/a").await.0, 400);
        let (_, stats) = rig.get("stats").await;
        assert_eq!(stats["stored"], Value::Null, "the store was not seen yet");
        rig.store_is(StoreState::Ready);
        let rooms = rig.get("stats").await.1["stored"]["rooms"].clone();
        let expected = json!({"tracked": 2, "by_network": {"instagram": 1, "messenger": 1}, "not_relayed": 1, "unknown": 0});
        assert_eq!(rooms, expected);
    }
}

#[tokio::test]
async fn stats_tell_how_it_is() {
    for test in testing::both().await {
        let rig = Rig::new(&test.store).await;
        rig.store_is(StoreState::Ready);
        queue(&test.store).await;
        deliver(&test.store).await;
        let (status, stats) = rig.get("stats").await;
        assert_eq!(status, 200, "{stats}");
        let store = json!({
            "backend": test.store.backend(), "state": "connected", "fallback": false, "fallback_reason": null,
        });
        assert_eq!(stats["store"], store);
        let stored = &stats["stored"];
        let lately = json!({"hour": 7, "day": 7, "week": 7});
        assert_eq!((&stored["messages"]["total"], &stored["messages"]["stored"]), (&json!(7), &lately));
        assert_eq!(stored["messages"]["by_network"]["messenger"], json!({"hour": 1, "day": 1, "week": 1}));
        assert_eq!(stored["messages"]["decryptable_rate"], json!({"hour": 1.0, "day": 1.0, "week": 1.0}));
        assert_eq!(
            (&stored["deliveries"][0]["dead"], &stored["deliveries"][0]["pending"]),
            (&json!(1), &json!(0))
        );
        assert_eq!(
            stored["crypto"],
            json!({"holder": null, "is_held": false, "fence": 0, "accounts": [], "recovery_key": null})
        );
        assert_eq!(stored["inbox"]["depth"], 0);
        assert_eq!(stored["inbox"]["last_transaction_at"], Value::Null);
        rig.ask("PUT", "/_matrix/app/v1/transactions/1", Some("hs-secret"), b"{}".to_vec()).await;
        let inbox = rig.get("stats").await.1["stored"]["inbox"].clone();
        assert_eq!((&inbox["depth"], &inbox["last_transaction_at"]), (&json!(1), &json!(START.rfc3339())));
        rig.store_is(StoreState::Unavailable { reason: "no connection".to_owned() });
        let (status, stats) = rig.get("stats").await;
        assert_eq!((status, &stats["stored"]), (200, &Value::Null));
        assert_eq!(stats["store"]["state"], "unavailable: no connection");
    }
}

#[tokio::test]
async fn the_ledger_is_leafed_through() {
    for test in testing::both().await {
        let rig = Rig::new(&test.store).await;
        let event = |n: i64, room: &str, reason: &str| NewPending {
            event_id: format!("${n}"),
            room_id: room.to_owned(),
            session_id: Some("session".to_owned()),
            sender: "@instagram_1:example.org".to_owned(),
            waits: Waits::Ledger,
            reason: Reason::parse(reason),
            event: b"{}".to_vec(),
            origin_server_ts: START,
            received_at: START,
        };
        let withheld = "withheld:m.unverified";
        let events = [event(1, "!one", "no_key"), event(2, "!one", withheld), event(3, "!two", "no_key")];
        let mut tx = test.store.begin().await.unwrap();
        pending::insert(&mut tx, test.store.seal().unwrap(), &events, START).await.unwrap();
        tx.commit().await.unwrap();
        let list = async |path: &str| {
            let (status, answer) = rig.get(path).await;
            assert_eq!(status, 200, "{path}: {answer}");
            answer
        };
        let ids = |answer: &Value| {
            let events = answer["events"].as_array().unwrap();
            events.iter().map(|event| event["event_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let page = list("undecryptable?limit=2").await;
        assert_eq!(
            (ids(&page), &page["by_reason"]),
            (vec!["$3".into(), "$2".into()], &json!({"no_key": 2, withheld: 1}))
        );
        let next = page["next"].as_str().unwrap();
        assert_eq!(ids(&list(&format!("undecryptable?limit=2&cursor={next}")).await), ["$1"]);
        assert_eq!(ids(&list("undecryptable?room=!one").await), ["$2", "$1"]);
        assert_eq!(ids(&list("undecryptable?reason=withheld:m.unverified").await), ["$2"]);
        let one = &list("undecryptable?reason=no_key&room=!one").await["events"][0];
        assert_eq!((&one["event_id"], &one["session_id"]), (&json!("$1"), &json!("session")));
        assert!(one["next_step"].as_str().unwrap().contains("key"), "{one}");
        assert_eq!(rig.get("undecryptable?reason=").await.0, 400);
        rig.store_is(StoreState::Ready);
        let stored = rig.get("stats").await.1["stored"].clone();
        let lately = |n| json!({"hour": n, "day": n, "week": n});
        assert_eq!(stored["undecryptable"], json!({"no_key": lately(2), withheld: lately(1)}));
        assert_eq!(stored["messages"]["decryptable_rate"]["hour"], 0.0);
    }
}

#[tokio::test]
async fn room_keys_are_listed_without_what_they_open() {
    for test in testing::both().await {
        let rig = Rig::new(&test.store).await;
        let mut tx = test.store.begin().await.unwrap();
        let bot = user_id!("@coucou:example.org");
        let account = accounts::insert(&mut tx, bot, &"COUCOU1".into(), Role::Bot, START).await.unwrap();
        let scope = Scope::new(test.store.seal().unwrap(), account);
        let rows = [("!a:example.org", "one"), ("!a:example.org", "two"), ("!b:example.org", "three")];
        let row = |(room_id, session_id): (&str, &str)| {
            let pickle = Zeroizing::new(b"a secret".to_vec());
            let row = inbound::Row {
                sender_key: "curve".to_owned(),
                sender_data_type: 1,
                backed_up: session_id == "two",
                pickle,
            };
            (Key::of([room_id, session_id]), row)
        };
        inbound::save(&mut tx, &scope, rows.into_iter().map(row).collect(), START).await.unwrap();
        tx.commit().await.unwrap();
        let (status, page) = rig.get("keys?limit=2").await;
        assert_eq!(status, 200, "{page}");
        let expected = json!({"inbound_sessions": 3, "rooms": 2, "newest_at": START.rfc3339()});
        assert_eq!((&page["count"], &page["total"]), (&json!(2), &expected));
        let expected = json!({
            "user_id": bot, "room_id": "!a:example.org", "session_id": "two", "sender_key": "curve",
            "backed_up": true, "created_at": START.rfc3339(),
        });
        assert_eq!(page["keys"][1], expected);
        let ids = |answer: &Value| -> Vec<String> {
            let keys = answer["keys"].as_array().unwrap().iter();
            keys.map(|key| key["session_id"].as_str().unwrap().to_owned()).collect()
        };
        let next = page["next"].as_str().unwrap();
        let (_, last) = rig.get(&format!("keys?limit=2&cursor={next}")).await;
        assert_eq!((ids(&last), &last["next"]), (vec!["three".to_owned()], &Value::Null));
        let (_, first) = rig.get("keys?room=!a:example.org&limit=1").await;
        let next = first["next"].as_str().unwrap();
        let (_, second) = rig.get(&format!("keys?room=!a:example.org&limit=1&cursor={next}")).await;
        assert_eq!((ids(&first), ids(&second)), (vec!["one".to_owned()], vec!["two".to_owned()]));
        assert_eq!(second["next"], Value::Null);
        assert_eq!(rig.get("keys?cursor=a").await.0, 400);
    }
}
