//! Events that were never pushed, told late or in their place.

use std::time::Duration;

use super::scene::{ROOM, Scene, Session, owned};
use crate::inbox::tests::text;

/// What was told: the text, and whether it is late.
async fn told(scene: &Scene) -> Vec<(String, bool)> {
    scene.told().await.into_iter().map(|(_, text, late)| (text, late)).collect()
}

fn expected(told: &[(&str, bool)]) -> Vec<(String, bool)> {
    told.iter().map(|(text, late)| ((*text).to_owned(), *late)).collect()
}

#[tokio::test]
async fn what_was_overtaken_is_late() {
    for mut scene in Scene::both().await {
        let [one, two] = [text("$1", ROOM, "one"), text("$2", ROOM, "two")];
        scene.push(std::slice::from_ref(&two)).await;
        scene.miss(&[one, two, text("$3", ROOM, "three")]).await;
        assert_eq!(told(&scene).await, expected(&[("two", false), ("one", true), ("three", false)]));
    }
}

#[tokio::test]
async fn what_was_overtaken_holds_up_nothing_while_its_key_is_away() {
    for mut scene in Scene::both().await {
        let mut session = Session::begin();
        let (one, two) = (session.say("$1", "one"), text("$2", ROOM, "two"));
        scene.push(std::slice::from_ref(&two)).await;
        scene.miss(&[one, two, text("$3", ROOM, "three")]).await;
        scene.push(&[text("$4", ROOM, "four")]).await;
        let at_once = [("two", false), ("three", false), ("four", false)];
        assert_eq!(told(&scene).await, expected(&at_once));
        assert_eq!(scene.reasons().await, owned(&[("$1", "no_key")]));
        scene.import(session.key(0)).await;
        assert_eq!(told(&scene).await, expected(&[&at_once[..], &[("one", true)]].concat()));
    }
}

#[tokio::test]
async fn what_waits_for_its_turn_has_overtaken_what_was_missed() {
    for mut scene in Scene::both().await {
        let mut session = Session::begin();
        let (one, two) = (text("$1", ROOM, "one"), session.say("$2", "two"));
        scene.push(std::slice::from_ref(&two)).await;
        scene.miss(&[one, two]).await;
        assert_eq!(told(&scene).await, expected(&[("one", true)]));
        scene.pass(Duration::from_secs(1)).await;
        scene.import(session.key(0)).await;
        assert_eq!(told(&scene).await, expected(&[("one", true), ("two", false)]));
    }
}
