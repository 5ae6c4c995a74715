//! Rooms that are read on, told in the homeserver's order.

use std::time::Duration;

use ruma::RoomId;
use serde_json::{Value, json};

use super::scene::{OTHER_ROOM, ROOM, SENDER, Scene, Session, owned};
use crate::{
    inbox::tests::text,
    store::{
        dismissed,
        readings::{self, Cause, Reading},
    },
    testing::START,
};

/// What was told: the text, and whether it is late.
async fn told(scene: &Scene) -> Vec<(String, bool)> {
    scene.told().await.into_iter().map(|(_, text, late)| (text, late)).collect()
}

fn expected(told: &[(&str, bool)]) -> Vec<(String, bool)> {
    told.iter().map(|(text, late)| ((*text).to_owned(), *late)).collect()
}

fn said(number: usize) -> Value {
    text(&format!("${number}"), ROOM, &number.to_string())
}

#[tokio::test]
async fn nothing_is_told_before_all_is_read_and_then_in_the_order_of_reading() {
    for mut scene in Scene::both().await {
        let mut session = Session::begin();
        scene.read(json!({"begins": true}), &[]).await;
        scene.push(&[said(4), said(5), text("$x", OTHER_ROOM, "elsewhere"), session.say("$7", "7")]).await;
        scene.read(json!({}), &[said(1), said(2)]).await;
        scene.restart().await;
        scene.pass(Duration::from_mins(1)).await;
        // A page comes again when the process dies between the two.
        scene.read(json!({}), &[said(1), said(2)]).await;
        scene.push(&[said(2), said(8)]).await;
        // A key of the room's lets nothing pass.
        scene.import(session.key(0)).await;
        assert_eq!(told(&scene).await, expected(&[("elsewhere", false)]));
        scene.read(json!({"ends": true}), &[said(3), said(4), said(5)]).await;
        let in_order = ["1", "2", "3", "4", "5", "7", "8"].map(|text| (text, false));
        let told = told(&scene).await.into_iter().filter(|(text, _)| text != "elsewhere");
        assert_eq!(told.collect::<Vec<_>>(), expected(&in_order));
        assert!(readings::rooms(scene.test.store.db()).await.unwrap().is_empty());
        scene.push(&[said(9)]).await;
        assert!(scene.texts().await.contains(&"9".to_owned()), "the room goes on");
    }
}

#[tokio::test]
async fn what_was_read_is_late_when_what_follows_it_was_told_before() {
    for mut scene in Scene::both().await {
        let mut session = Session::begin();
        scene.push(&[said(4)]).await;
        scene.read(json!({"begins": true}), &[]).await;
        scene.push(&[said(6)]).await;
        scene.read(json!({}), &[said(1), session.say("$2", "2")]).await;
        scene.read(json!({}), &[said(3), said(4), said(5)]).await;
        scene.read(json!({"ends": true}), &[said(6)]).await;
        let at_once = [("4", false), ("1", true), ("3", true), ("5", false), ("6", false)];
        assert_eq!(told(&scene).await, expected(&at_once), "and it holds up nothing");
        assert_eq!(scene.reasons().await, owned(&[("$2", "no_key")]));
        scene.import(session.key(0)).await;
        assert_eq!(told(&scene).await, expected(&[&at_once[..], &[("2", true)]].concat()));
    }
}

#[tokio::test]
async fn what_waited_before_a_reading_keeps_its_place_before_what_is_read() {
    for mut scene in Scene::both().await {
        let mut session = Session::begin();
        scene.push(&[session.say("$0", "0")]).await;
        scene.read(json!({"begins": true}), &[]).await;
        scene.push(&[said(3)]).await;
        scene.read(json!({"ends": true}), &[said(1), said(2), said(3)]).await;
        assert!(scene.texts().await.is_empty(), "the first one holds up the room");
        scene.import(session.key(0)).await;
        assert_eq!(scene.texts().await, ["0", "1", "2", "3"]);
    }
}

#[tokio::test]
async fn a_room_that_is_to_be_read_on_meanwhile_stays_suspended() {
    for mut scene in Scene::both().await {
        scene.read(json!({"begins": true}), &[]).await;
        let room_id = <&RoomId>::try_from(ROOM).unwrap();
        let mut tx = scene.test.store.begin().await.unwrap();
        readings::finish(&mut tx, room_id, None).await.unwrap();
        let again = Reading::new(room_id, scene.account.id, Cause::Gap, None);
        readings::put(&mut tx, &again, START).await.unwrap();
        let body = json!({"events": [said(1)], "reading": {"room_id": ROOM, "ends": true}}).to_string();
        let seal = scene.test.store.seal().unwrap();
        let body = crate::store::inbox::seal_body(seal, body.as_bytes()).unwrap();
        crate::store::inbox::accept_missed(&mut tx, body, START).await.unwrap();
        tx.commit().await.unwrap();
        scene.work().await;
        scene.push(&[said(3)]).await;
        assert!(scene.texts().await.is_empty());
        scene.read(json!({"ends": true}), &[said(2)]).await;
        assert_eq!(scene.texts().await, ["1", "2", "3"]);
    }
}

#[tokio::test]
async fn what_is_no_message_is_remembered_and_not_missed() {
    for mut scene in Scene::both().await {
        let status = json!({"event_id": "$status", "room_id": ROOM, "sender": SENDER,
            "type": "com.beeper.message_send_status", "origin_server_ts": START.0, "content": {}});
        scene.push(&[status.clone(), said(1)]).await;
        let db = scene.test.store.db();
        assert_eq!(dismissed::find(db, &["$status", "$1"]).await.unwrap(), ["$status".to_owned()].into());
        let room_id = <&RoomId>::try_from(ROOM).unwrap();
        assert!(readings::unknown(db, room_id, &["$status", "$1"]).await.unwrap().is_empty());
        scene.read(json!({"begins": true}), &[]).await;
        scene.read(json!({"ends": true}), &[status, said(1), said(2)]).await;
        assert_eq!(scene.texts().await, ["1", "2"]);
    }
}
