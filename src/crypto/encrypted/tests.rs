use matrix_sdk_crypto::vodozemac::megolm::{GroupSession, SessionConfig};
use ruma::{event_id, user_id};

use super::*;
use crate::{
    crypto::{
        RoomKey,
        engine::Clear,
        forward::tests::{Peer, Scene, bot, read, room, room_key, say_raw},
    },
    model::{Repair, RepairReason},
    testing,
};

/// A bridge that says things in a session of which the engine has the key.
struct Stage {
    scene: Scene,
    bridge: Peer,
    session: GroupSession,
    key: RoomKey,
}

impl Stage {
    async fn set(test: &testing::TestStore) -> Self {
        let mut bridge = Peer::new(bot(), "BRIDGE");
        let mut scene = Scene::set(test, &[&bridge]).await;
        let session = GroupSession::new(SessionConfig::version_1());
        let key = RoomKey { room_id: room().to_owned(), session_id: session.session_id() };
        let to_device = room_key(&mut bridge, &mut scene, &session);
        assert_eq!(scene.receive(to_device).await, std::slice::from_ref(&key));
        Self { scene, bridge, session, key }
    }

    async fn decrypt(&mut self, plain: &[u8]) -> Decrypted {
        let event = say_raw(&self.bridge, &mut self.session, plain);
        self.scene.engine.decrypt(&self.key, &read(&event)).await.unwrap()
    }

    async fn clear(&mut self, content: &str) -> Clear {
        let plain =
            format!("{{\"type\":\"m.room.message\",\"room_id\":\"{}\",\"content\":{content}}}", room());
        match self.decrypt(plain.as_bytes()).await {
            Decrypted::Clear(clear) => *clear,
            other => panic!("{content}: {other:?}"),
        }
    }
}

fn written(clear: &Clear) -> String {
    serde_json::to_string(&clear.body.content).unwrap()
}

#[tokio::test]
async fn what_the_sdk_cannot_read_is_decrypted_and_judged_as_anything_else() {
    for test in testing::both().await {
        let mut stage = Stage::set(&test).await;
        let plain = stage.clear("{\"body\":\"as ever\"}").await;
        assert_eq!((plain.session_owner.as_deref(), plain.body.repairs.len()), (Some(bot()), 0));
        let deep = format!("{{\"body\":\"x\",\"a\":{}{}}}", "[".repeat(200), "]".repeat(200));
        for (content, reason) in [
            ("{\"body\":\"half \\ud83d\"}", Some(RepairReason::LoneSurrogate)),
            ("{\"body\":\"x\",\"body\":\"y\"}", Some(RepairReason::DuplicateKey)),
            ("{\"body\":\"x\",\"n\":1e400}", Some(RepairReason::NumberOutOfRange)),
            ("{\"body\":\"x\",\"n\":NaN}", Some(RepairReason::NotANumber)),
            ("{\"body\":\"x\ny\"}", Some(RepairReason::ControlCharacter)),
            (&deep, Some(RepairReason::TooDeep)),
            ("{\"body\":\"x\",\"n\":123456789012345678901234567890}", None),
            ("{\"body\":\"x\",\"n\":1.50}", None),
        ] {
            let odd = stage.clear(content).await;
            let of = |clear: &Clear| {
                (clear.trust, clear.session_owner.clone(), clear.device.clone(), clear.algorithm)
            };
            assert_eq!(of(&odd), of(&plain), "{content}");
            assert!(odd.device.is_some());
            let reasons: Vec<_> = odd.body.repairs.iter().map(|repair| repair.reason).collect();
            assert_eq!(reasons, Vec::from_iter(reason), "{content}");
            assert_eq!(odd.body.event_type.as_deref(), Some("m.room.message"));
        }
        let odd = stage.clear("{\"n\":[1.50,1e400,123456789012345678901234567890,-0,2]}").await;
        assert_eq!(written(&odd), "{\"n\":[1.50,1e400,123456789012345678901234567890,-0,2]}");
        let odd = stage.clear("{\"body\":\"\u{fffd} is no repair\"}").await;
        assert_eq!(
            (odd.body.repairs.len(), odd.body.content["body"].as_str()),
            (0, Some("\u{fffd} is no repair"))
        );
        let bytes =
            [b"{\"type\":\"x\",\"room_id\":\"", room().as_bytes(), b"\",\"content\":{\"body\":\"\xff\"}}"]
                .concat();
        let Decrypted::Clear(odd) = stage.decrypt(&bytes).await else { panic!("it is authentic") };
        assert_eq!(odd.body.repairs, [Repair::new("/content/body", RepairReason::NotUtf8)]);
    }
}

#[tokio::test]
async fn what_nothing_helps_says_why() {
    for test in testing::both().await {
        let mut stage = Stage::set(&test).await;
        let room_id = room();
        for (plain, expected) in [
            ("no JSON".to_owned(), Malformed::NotJson),
            (String::new(), Malformed::NotJson),
            ("[1]".to_owned(), Malformed::NotJson),
            (format!("{{\"type\":\"x\",\"room_id\":\"{room_id}\",\"content\":{{"), Malformed::NotJson),
            ("{\"type\":\"x\",\"content\":{\"body\":\"x\"}}".to_owned(), Malformed::NoRoom),
            ("{\"type\":\"x\",\"room_id\":7,\"content\":{\"n\":1e400}}".to_owned(), Malformed::NoRoom),
        ] {
            let decrypted = stage.decrypt(plain.as_bytes()).await;
            assert!(
                matches!(decrypted, Decrypted::Malformed(lack) if lack == expected),
                "{plain}: {decrypted:?}"
            );
        }
        for number in ["1", "1e400"] {
            let plain = format!(
                "{{\"type\":\"x\",\"room_id\":\"!other:example.org\",\"content\":{{\"n\":{number}}}}}"
            );
            assert!(matches!(stage.decrypt(plain.as_bytes()).await, Decrypted::OtherRoom), "{number}");
        }
    }
}

#[tokio::test]
async fn what_was_not_made_with_the_session_stays_that() {
    for test in testing::both().await {
        let mut stage = Stage::set(&test).await;
        let mut other = GroupSession::new(SessionConfig::version_1());
        let odd = format!("{{\"type\":\"x\",\"room_id\":\"{}\",\"content\":{{\"n\":1e400}}}}", room());
        let forged = say_raw(&stage.bridge, &mut other, odd.as_bytes());
        let mut forged: Value = serde_json::from_str(forged.get()).unwrap();
        forged["content"]["session_id"] = json!(stage.key.session_id);
        let genuine = say_raw(&stage.bridge, &mut stage.session, odd.as_bytes());
        let mut damaged: Value = serde_json::from_str(genuine.get()).unwrap();
        let ciphertext = damaged["content"]["ciphertext"].as_str().unwrap().to_owned();
        for content in
            [format!("{}AAAA", &ciphertext[..ciphertext.len() - 4]), "AwgA?".to_owned(), String::new()]
        {
            damaged["content"]["ciphertext"] = json!(content);
            let event = read(&to_raw_value(&damaged).unwrap());
            let decrypted = stage.scene.engine.decrypt(&stage.key, &event).await.unwrap();
            assert!(matches!(decrypted, Decrypted::BadCiphertext), "{decrypted:?}");
        }
        let event = read(&to_raw_value(&forged).unwrap());
        let decrypted = stage.scene.engine.decrypt(&stage.key, &event).await.unwrap();
        assert!(matches!(decrypted, Decrypted::BadCiphertext), "{decrypted:?}");
        let decrypted = stage.scene.engine.decrypt(&stage.key, &read(&genuine)).await.unwrap();
        assert!(matches!(decrypted, Decrypted::Clear(_)), "{decrypted:?}");
    }
}

#[tokio::test]
async fn the_envelope_may_be_as_odd_as_the_content() {
    for test in testing::both().await {
        let mut stage = Stage::set(&test).await;
        let plain =
            json!({"type": "m.room.message", "room_id": room(), "content": {"body": "hello"}}).to_string();
        for (name, value) in [
            ("origin_server_ts", "18446744073709551615"),
            ("origin_server_ts", "-1"),
            ("origin_server_ts", "1.5"),
            ("origin_server_ts", "null"),
            ("unsigned", "{\"age\":1e400,\"x\":\"\\ud83d\"}"),
            ("unsigned", "7"),
            ("odd", "\"\\ud83d\""),
        ] {
            let event = say_raw(&stage.bridge, &mut stage.session, plain.as_bytes());
            let event = event.get().replace("\"origin_server_ts\":1,", "");
            let event = format!("{{\"{name}\":{value},{}", event.strip_prefix('{').unwrap());
            let event = read(&RawValue::from_string(event).unwrap());
            let decrypted = stage.scene.engine.decrypt(&stage.key, &event).await.unwrap();
            assert!(matches!(decrypted, Decrypted::Clear(_)), "{name} {value}: {decrypted:?}");
        }
        let event = say_raw(&stage.bridge, &mut stage.session, plain.as_bytes());
        let relation = "\"m.relates_to\":{\"event_id\":\"$a\",\"n\":1e400,\"x\":\"\\ud83d\"},\"sender_key\":7,\"device_id\":[]";
        let event = event.get().replace("\"algorithm\"", &format!("{relation},\"algorithm\""));
        let event = read(&RawValue::from_string(event).unwrap());
        let Decrypted::Clear(clear) = stage.scene.engine.decrypt(&stage.key, &event).await.unwrap() else {
            panic!("it is authentic")
        };
        assert!(written(&clear).contains("1e400"), "{}", written(&clear));
        assert_eq!(clear.body.repairs.len(), 2);
    }
}

#[test]
fn what_an_encrypted_event_lacks_is_told() {
    let of = |content: Value| {
        let event = to_raw_value(&json!({"content": content})).unwrap();
        Encrypted::read(event_id!("$a"), user_id!("@a:b"), &event).map(drop)
    };
    let (algorithm, session_id, ciphertext) = ("m.megolm.v1.aes-sha2", "s", "c");
    assert_eq!(
        of(json!({"algorithm": algorithm, "session_id": session_id, "ciphertext": ciphertext})),
        Ok(())
    );
    assert_eq!(of(json!({"session_id": session_id, "ciphertext": ciphertext})), Err(Malformed::NotEncrypted));
    assert_eq!(of(json!({"algorithm": algorithm, "session_id": session_id})), Err(Malformed::NotEncrypted));
    assert_eq!(of(json!({"algorithm": algorithm, "ciphertext": ciphertext})), Err(Malformed::NoSession));
    assert_eq!(of(json!([])), Err(Malformed::NotEncrypted));
}
