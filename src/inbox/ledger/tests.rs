//! The ledger with real sessions: keys come from another process's hand, through the store alone.

mod readings;
mod scene;
mod timelines;

use std::time::Duration;

use matrix_sdk_common::deserialized_responses::WithheldCode;
use matrix_sdk_crypto::{
    olm::{ExportedRoomKey, InboundGroupSession},
    store::{
        CryptoStore as _,
        types::{Changes, RoomKeyWithheldEntry},
    },
    types::events::room_key_withheld::RoomKeyWithheldContent,
    vodozemac::Curve25519PublicKey,
};
use ruma::{RoomId, UserId, device_id};
use serde_json::{Value, json};

use self::scene::{OTHER_ROOM, ROOM, SENDER, Scene, Session, copy, owned, redaction};
use crate::{
    inbox::tests::{NOTIFY_AFTER, count, payloads, settle, text},
    model::ledger::Reason,
    store::{
        pending,
        readings::{self as stored, Cause},
    },
    testing::START,
};

#[tokio::test]
async fn a_key_releases_exactly_its_sessions_events_late_and_in_order() {
    for mut scene in Scene::both().await {
        let (mut a, mut b) = (Session::begin(), Session::begin());
        let said = [a.say("$1", "a one"), a.say("$2", "a two"), b.say("$3", "b one"), a.say("$4", "a three")];
        scene.push(&said).await;
        assert_eq!(scene.ledger().await, [], "they hold up their room at first");
        scene.give_up().await;
        scene.push(&[text("$5", ROOM, "plain")]).await;
        let waiting = ["$1", "$2", "$3", "$4"].map(|id| (id.to_owned(), "no_key".to_owned(), 1));
        assert_eq!(scene.ledger().await, waiting);

        scene.import(a.key(0)).await;
        assert_eq!(scene.texts().await, ["plain", "a one", "a two", "a three"]);
        assert_eq!(scene.reasons().await, owned(&[("$3", "no_key")]));
        for payload in &payloads(&scene.test.store).await[1..] {
            assert_eq!(payload["data"]["late"], true);
            let sent_at = crate::clock::Timestamp(START.0 - 1000).rfc3339();
            assert_eq!(payload["timestamp"], sent_at, "with the time at which it was written");
            assert_eq!(payload["data"].get("undecryptable_id"), None);
        }
        scene.import(b.key(0)).await;
        assert_eq!(scene.texts().await.last().unwrap(), "b one");
        assert_eq!(count(&scene.test.store, "SELECT COUNT(*) FROM pending_events").await, 0);
        assert_eq!(count(&scene.test.store, "SELECT COUNT(*) FROM key_news").await, 0);
    }
}

#[tokio::test]
async fn a_key_that_is_late_for_a_moment_only_changes_nothing_in_the_order() {
    for mut scene in Scene::both().await {
        let mut session = Session::begin();
        scene.push(&[session.say("$1", "one"), text("$2", ROOM, "two")]).await;
        scene.pass(Duration::from_secs(1)).await;
        scene.import(session.key(0)).await;
        let told = scene.told().await;
        assert_eq!(
            told.iter().map(|(_, text, late)| (text.as_str(), *late)).collect::<Vec<_>>(),
            [("one", false), ("two", false)]
        );
    }
}

#[tokio::test]
async fn a_better_key_of_another_process_is_seen_behind_the_cache() {
    for mut scene in Scene::both().await {
        let mut session = Session::begin();
        let said = [session.say("$0", "zero"), session.say("$1", "one"), session.say("$2", "two")];
        scene.import(session.key(2)).await;
        scene.push(&said).await;
        assert_eq!(scene.texts().await, ["two"], "and now the short key is in the cache");
        let unknown = |tries| ["$0", "$1"].map(|id| (id.to_owned(), "unknown_index".to_owned(), tries));
        assert_eq!(scene.ledger().await, unknown(1));
        scene.pass(Duration::from_mins(1)).await;
        assert_eq!(scene.ledger().await, unknown(1), "nothing is tried again without news");
        scene.import(session.key(1)).await;
        assert_eq!(scene.texts().await, ["two", "one"]);
        assert_eq!(scene.ledger().await, unknown(2)[..1]);
        scene.import(session.key(0)).await;
        assert_eq!(scene.texts().await, ["two", "one", "zero"]);
    }
}

#[tokio::test]
async fn the_webhooks_are_told_once_and_what_comes_after_all_refers_to_it() {
    for mut scene in Scene::both().await {
        let mut session = Session::begin();
        scene.push(&[session.say("$1", "one"), text("$2", ROOM, "plain")]).await;
        scene.give_up().await;
        scene.pass(NOTIFY_AFTER.saturating_sub(Duration::from_secs(11))).await;
        assert_eq!(scene.texts().await, ["plain"], "not yet");
        scene.pass(Duration::from_secs(2)).await;
        for _ in 0..3 {
            assert_eq!(scene.texts().await, ["plain", "no_key"]);
            scene.pass(NOTIFY_AFTER).await;
            scene.restart().await;
        }
        let told = &payloads(&scene.test.store).await[1];
        assert_eq!(told["type"], "message.undecryptable");
        assert_eq!(told["data"]["matrix"]["content"].get("ciphertext"), None);
        assert_eq!(told["data"]["encryption"]["session_id"], session.outbound.session_id());

        scene.import(session.key(0)).await;
        let payloads = payloads(&scene.test.store).await;
        assert_eq!(payloads[2]["data"]["content"]["text"], "one");
        assert_eq!(payloads[2]["data"]["undecryptable_id"], told["data"]["id"]);
        assert_eq!(payloads[2]["data"]["sequence"], 3);
    }
}

#[tokio::test]
async fn the_webhooks_are_not_told_when_that_is_off_until_it_is_on_again() {
    for mut scene in Scene::both().await {
        scene.notify_after = None;
        scene.restart().await;
        scene.push(&[Session::begin().say("$1", "one")]).await;
        scene.give_up().await;
        scene.pass(NOTIFY_AFTER * 2).await;
        assert_eq!(scene.told().await, []);
        scene.notify_after = Some(NOTIFY_AFTER);
        scene.restart().await;
        assert_eq!(scene.texts().await, ["no_key"]);
    }
}

#[tokio::test]
async fn the_same_ciphertext_under_another_name_is_refused_and_a_redelivery_is_the_same() {
    for mut scene in Scene::both().await {
        let mut session = Session::begin();
        scene.import(session.key(0)).await;
        let one = session.say("$1", "one");
        let copied = copy(&one, "$2", SENDER, ROOM);
        scene.push(&[one.clone(), copied.clone()]).await;
        scene.push(&[one.clone(), copy(&one, "$3", "@b:example.org", ROOM)]).await;
        scene.push(&[copy(&one, "$4", SENDER, OTHER_ROOM), text("$5", OTHER_ROOM, "goes on")]).await;
        scene.restart().await;
        scene.push(&[copied, copy(&one, "$6", SENDER, ROOM), one]).await;
        let mut texts = scene.texts().await;
        texts.sort();
        assert_eq!(texts, ["goes on", "one"]);
        let refused = ["$2", "$3", "$4", "$6"].map(|id| (id.to_owned(), "replay".to_owned(), 1));
        assert_eq!(scene.ledger().await, refused);
        scene.pass(NOTIFY_AFTER * 2).await;
        assert_eq!(scene.told().await.len(), 2, "nobody is told that a replay was said");
        let counts = pending::counts(scene.test.store.db()).await.unwrap();
        assert_eq!(counts, [(Reason::Replay, 4)]);
    }
}

#[tokio::test]
async fn a_replay_of_what_waits_stays_behind_it() {
    for mut scene in Scene::both().await {
        let mut session = Session::begin();
        let (one, two) = (session.say("$1", "one"), session.say("$2", "two"));
        // In the queue behind the original, on the ledger with it, and in the batch of its redelivery.
        scene.push(&[one.clone(), copy(&one, "$r1", SENDER, ROOM), two.clone()]).await;
        scene.give_up().await;
        scene.push(&[copy(&two, "$r2", SENDER, ROOM), one.clone(), two.clone()]).await;
        scene.push(&[copy(&one, "$r3", SENDER, OTHER_ROOM)]).await;
        scene.give_up().await;
        assert_eq!(scene.reasons().await.len(), 5, "{:?}", scene.reasons().await);
        scene.import(session.key(0)).await;
        assert_eq!(scene.texts().await, ["one", "two"]);
        let refused = [("$r1", "replay"), ("$r2", "replay"), ("$r3", "replay")];
        assert_eq!(scene.reasons().await, owned(&refused));
    }
}

#[tokio::test]
async fn an_event_is_no_replay_because_somebody_shared_its_session_for_another_room() {
    for mut scene in Scene::both().await {
        let mut session = Session::begin();
        let one = session.say("$1", "one");
        let mut foreign = session.key(0);
        let exported = json!({
            "algorithm": "m.megolm.v1.aes-sha2", "room_id": OTHER_ROOM, "session_id": foreign.session_id(),
            "session_key": session.inbound.export_at(0).unwrap().to_base64(),
            "sender_key": foreign.sender_key().to_base64(), "sender_claimed_keys": {},
            "forwarding_curve25519_key_chain": [],
        });
        let exported: ExportedRoomKey = serde_json::from_value(exported).unwrap();
        foreign = InboundGroupSession::from_export(&exported).unwrap();
        scene.import(foreign).await;
        scene.push(&[one]).await;
        assert_eq!(scene.reasons().await, owned(&[("$1", "replay")]));
        scene.import(session.key(0)).await;
        assert_eq!(scene.texts().await, ["one"], "its own key proves it");
        assert_eq!(scene.ledger().await, []);
    }
}

#[tokio::test]
async fn what_is_taken_back_before_its_key_comes_is_never_relayed() {
    for mut scene in Scene::both().await {
        let mut session = Session::begin();
        let said = [session.say("$1", "one"), session.say("$2", "two"), session.say("$3", "three")];
        scene.push(&said[..2]).await;
        scene.give_up().await;
        assert_eq!(scene.reasons().await, owned(&[("$1", "no_key"), ("$2", "no_key")]));
        scene.push(&[redaction("$r0", OTHER_ROOM, "$1")]).await;
        assert_eq!(scene.ledger().await.len(), 2, "a redaction counts in its own room alone");
        scene.push(&[redaction("$r1", ROOM, "$1")]).await;
        assert_eq!(scene.reasons().await, owned(&[("$2", "no_key")]), "its ciphertext is gone");
        // In the queue, where it holds up its own redaction; and in one batch with it, and behind it.
        scene.push(&said[2..]).await;
        scene.push(&[redaction("$r3", ROOM, "$3"), text("$4", ROOM, "four")]).await;
        let five = session.say("$5", "five");
        scene.push(&[five.clone(), redaction("$r5", ROOM, "$5"), text("$6", ROOM, "six")]).await;
        let seven = session.say("$7", "seven");
        scene.push(&[redaction("$r7", ROOM, "$7"), seven.clone()]).await;
        let expected = ["$1", "$3", "four", "$5", "six", "$7"];
        let told = async |scene: &Scene| {
            let told = payloads(&scene.test.store).await.into_iter();
            let told = told.filter(|payload| payload["data"]["room_id"] == ROOM);
            let what = |data: &Value| [&data["redacts"], &data["content"]["text"]].map(Value::clone);
            let told = told.map(|payload| what(&payload["data"]).into_iter().find(Value::is_string).unwrap());
            told.map(|what| what.as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(told(&scene).await, expected);
        assert_eq!(scene.reasons().await, owned(&[("$2", "no_key")]));

        // Neither the key nor a redelivery brings anything of it back.
        scene.restart().await;
        scene.import(session.key(0)).await;
        scene.push(&[said[0].clone(), said[2].clone(), five, seven]).await;
        scene.pass(NOTIFY_AFTER * 2).await;
        assert_eq!(told(&scene).await, [&expected[..], &["two"]].concat());
        assert_eq!(count(&scene.test.store, "SELECT COUNT(*) FROM pending_events").await, 0);
    }
}

#[tokio::test]
async fn a_redaction_of_what_no_column_holds_holds_up_nothing() {
    for mut scene in Scene::both().await {
        let long = format!("${}", "x".repeat(300));
        let mut events = vec![redaction("$r1", ROOM, "$a\0b"), redaction("$r2", ROOM, &long)];
        events.push(redaction("$r3", ROOM, "no id"));
        events.push(text("$1", ROOM, "goes on"));
        scene.push(&events).await;
        assert_eq!(scene.texts().await.last().unwrap(), "goes on");
    }
}

#[tokio::test]
async fn what_waits_for_its_rooms_state_and_is_taken_back_is_not_relayed() {
    for mut scene in Scene::both().await {
        let new = "!new";
        scene.push(&[text("$1", new, "one"), text("$2", new, "two")]).await;
        scene.push(&[redaction("$r", new, "$1")]).await;
        settle(&scene.test.store, new, json!([])).await;
        scene.work().await;
        assert_eq!(scene.texts().await, ["two", "$1"]);
    }
}

#[tokio::test]
async fn what_the_homeserver_has_emptied_is_not_relayed() {
    for mut scene in Scene::both().await {
        let emptied = |id: &str, event_type: &str| {
            json!({"event_id": id, "room_id": ROOM, "sender": SENDER, "type": event_type, "content": {},
                "origin_server_ts": 1, "unsigned": {"redacted_because": {"type": "m.room.redaction"}}})
        };
        scene.push(&[emptied("$1", "m.room.encrypted"), emptied("$2", "m.room.message")]).await;
        scene.push(&[redaction("$r1", ROOM, "$1")]).await;
        assert_eq!(scene.texts().await, ["$1"]);
        assert_eq!(scene.ledger().await, []);
    }
}

#[tokio::test]
async fn an_edit_can_come_before_the_message_that_it_edits() {
    for mut scene in Scene::both().await {
        let (mut lost, mut known) = (Session::begin(), Session::begin());
        let edit = |text: &str| {
            json!({"msgtype": "m.text", "body": text, "m.new_content": {"msgtype": "m.text", "body": text},
                "m.relates_to": {"rel_type": "m.replace", "event_id": "$1"}})
        };
        scene.import(known.key(0)).await;
        scene.push(&[lost.say("$1", "one"), lost.send("$2", &edit("edited"))]).await;
        scene.give_up().await;
        scene.push(&[known.send("$3", &edit("edited again"))]).await;
        scene.pass(NOTIFY_AFTER).await;
        let replaced: Vec<_> = payloads(&scene.test.store).await;
        assert_eq!(replaced[2]["data"]["relates_to"]["replaces"], "$1", "an edit shows what it edits");
        scene.import(lost.key(0)).await;
        let expected = [
            ("message.edited", "edited again", false),
            ("message.undecryptable", "no_key", false),
            ("message.undecryptable", "no_key", false),
            ("message.created", "one", true),
            ("message.edited", "edited", true),
        ];
        assert_eq!(
            scene.told().await,
            expected.map(|(kind, what, late)| (kind.to_owned(), what.to_owned(), late))
        );
    }
}

#[tokio::test]
async fn what_was_said_before_the_join_waits_as_that() {
    for mut scene in Scene::both().await {
        let (new, mut session) = (ROOM, Session::begin());
        let mut tx = scene.test.store.begin().await.unwrap();
        tx.execute("DELETE FROM rooms", vec![]).await.unwrap();
        tx.commit().await.unwrap();
        scene.restart().await;
        let earlier = [session.say("$1", "one"), text("$2", new, "two"), session.say("$3", "three")];
        let begin = json!({"account_id": scene.account.id.0, "from": "t1", "join_id": "$join"});
        let body = json!({"room_id": new, "state": [], "reading": begin}).to_string();
        let seal = scene.test.store.seal().unwrap();
        let body = crate::store::inbox::seal_body(seal, body.as_bytes()).unwrap();
        let mut tx = scene.test.store.begin().await.unwrap();
        crate::store::inbox::accept_state(&mut tx, body, START).await.unwrap();
        tx.commit().await.unwrap();
        scene.work().await;
        let due = stored::due(scene.test.store.db(), START, 9).await.unwrap();
        assert_eq!((due[0].join_id.as_deref(), due[0].cause), (Some("$join"), Cause::Join));
        scene.push(&[text("$4", new, "four")]).await;
        scene.read(json!({"before_join": true}), &earlier).await;
        assert!(scene.told().await.is_empty(), "the room waits until all is read");
        scene.read(json!({"ends": true}), &[text("$4", new, "four")]).await;
        scene.work().await;
        scene.restart().await;
        scene.give_up().await;
        assert_eq!(scene.reasons().await, owned(&[("$1", "before_join"), ("$3", "before_join")]));
        scene.import(session.key(2)).await;
        assert_eq!(scene.reasons().await, owned(&[("$1", "unknown_index"), ("$3", "unknown_index")]));
        scene.import(session.key(0)).await;
        assert_eq!(scene.texts().await, ["two", "four", "one", "three"]);
    }
}

#[tokio::test]
async fn that_a_key_is_withheld_is_noted_however_late_it_is_said() {
    for mut scene in Scene::both().await {
        let mut session = Session::begin();
        scene.push(&[session.say("$1", "one")]).await;
        scene.give_up().await;
        assert_eq!(scene.reasons().await, owned(&[("$1", "no_key")]));
        let (room, user) = (<&RoomId>::try_from(ROOM).unwrap(), <&UserId>::try_from(SENDER).unwrap());
        let content = RoomKeyWithheldContent::new(
            matrix_sdk_crypto::types::EventEncryptionAlgorithm::MegolmV1AesSha2,
            WithheldCode::Unverified,
            room.to_owned(),
            session.outbound.session_id(),
            Curve25519PublicKey::from([7; 32]),
            device_id!("THEIRS").to_owned(),
        );
        let entry = RoomKeyWithheldEntry { sender: user.to_owned(), content };
        let mut changes = Changes::default();
        changes
            .withheld_session_info
            .entry(room.to_owned())
            .or_default()
            .insert(session.outbound.session_id(), entry);
        scene.other.save_changes(changes).await.unwrap();
        scene.work().await;
        assert_eq!(scene.ledger().await, [("$1".to_owned(), "withheld:m.unverified".to_owned(), 2)]);
        scene.import(session.key(0)).await;
        assert_eq!(scene.texts().await, ["one"]);
    }
}
