use ruma::{event_id, room_id, user_id};

use super::*;
use crate::{
    model::{Direction, Message, MessageId, MessageType},
    store::{Store, crypto::plans::assert_many_indexed, messages},
    testing::{self, START},
};

fn message(id: &str, event: &str, room: &str, sequence: u64, message_type: MessageType) -> Message {
    Message {
        message_id: MessageId(id.to_owned()),
        event_id: event.try_into().unwrap(),
        room_id: room.try_into().unwrap(),
        sequence,
        message_type,
        network: None,
        direction: Direction::In,
        sender: user_id!("@a:example.org").to_owned(),
        origin_server_ts: START,
        kind: None,
        encrypted: false,
        trust: None,
        replaces: None,
        payload: id.as_bytes().to_vec(),
    }
}

async fn insert(store: &Store, new: &[Message]) {
    let mut tx = store.begin().await.unwrap();
    messages::insert(&mut tx, store.seal().unwrap(), new, START).await.unwrap();
    tx.commit().await.unwrap();
}

async fn redact(store: &Store, targets: &[Target]) -> u64 {
    let mut tx = store.begin().await.unwrap();
    let without = |payload: &[u8]| Some([payload, b" redacted"].concat());
    let count = apply(&mut tx, store.seal().unwrap(), targets, without, START).await.unwrap();
    tx.commit().await.unwrap();
    count
}

async fn payloads(store: &Store) -> Vec<String> {
    let payloads = messages::newest(store.db(), store.seal().unwrap(), 9).await.unwrap();
    let mut texts: Vec<_> = payloads.into_iter().map(|text| String::from_utf8(text).unwrap()).collect();
    texts.sort();
    texts
}

fn target(room: &str, event: &str) -> Target {
    (room.to_owned(), event.to_owned())
}

#[tokio::test]
async fn a_message_and_its_edits_lose_their_content_in_their_room_alone() {
    for test in testing::both().await {
        let store = &test.store;
        let created = MessageType::MessageCreated;
        let mut edit = message("edit", "$edit", "!a", 2, MessageType::MessageEdited);
        edit.replaces = Some(event_id!("$said").to_owned());
        let mut elsewhere = message("elsewhere", "$other", "!b", 1, MessageType::MessageEdited);
        elsewhere.replaces = Some(event_id!("$said").to_owned());
        insert(store, &[message("said", "$said", "!a", 1, created), edit, elsewhere]).await;
        insert(store, &[message("next", "$next", "!a", 3, created)]).await;

        assert_eq!(redact(store, &[target(room_id!("!b").as_str(), "$next")]).await, 0, "of another room");
        assert_eq!(redact(store, &[target("!a", "$said"), target("!a", "$said")]).await, 2);
        assert_eq!(redact(store, &[target("!a", "$said")]).await, 0, "twice is once");
        assert_eq!(payloads(store).await, ["edit redacted", "elsewhere", "next", "said redacted"]);
    }
}

#[tokio::test]
async fn an_edit_of_what_was_taken_back_comes_without_content() {
    for test in testing::both().await {
        let store = &test.store;
        insert(store, &[message("said", "$said", "!a", 1, MessageType::MessageCreated)]).await;
        redact(store, &[target("!a", "$said")]).await;
        let edit = |id: &str, event: &str, sequence, replaces: &str| {
            let mut edit = message(id, event, "!a", sequence, MessageType::MessageEdited);
            edit.replaces = Some(replaces.try_into().unwrap());
            edit
        };
        insert(store, &[edit("late", "$late", 2, "$said"), edit("fine", "$fine", 3, "$another")]).await;
        let mut tx = store.begin().await.unwrap();
        let without = |_: &[u8]| Some(b"nothing".to_vec());
        let seal = store.seal().unwrap();
        assert_eq!(apply_to_edits(&mut tx, seal, &["late", "fine"], without, START).await.unwrap(), 1);
        tx.commit().await.unwrap();
        assert_eq!(payloads(store).await, ["fine", "nothing", "said redacted"]);
    }
}

#[tokio::test]
async fn reactions_are_known_by_their_event() {
    for test in testing::both().await {
        let store = &test.store;
        insert(
            store,
            &[
                message("1", "$reaction", "!a", 1, MessageType::ReactionCreated),
                message("2", "$said", "!a", 2, MessageType::MessageCreated),
            ],
        )
        .await;
        let asked = [target("!a", "$reaction"), target("!a", "$said"), target("!b", "$reaction")];
        let found = reactions(store.db(), &asked).await.unwrap();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["$reaction"]);
        assert!(reactions(store.db(), &asked[1..]).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn what_is_taken_back_is_found_by_index() {
    for test in testing::both().await {
        let store = &test.store;
        // Whether the edit or what it replaces comes first is the planner's choice; neither is read whole.
        for table in ["messages", "m", "original"] {
            assert_many_indexed(store, table, &[], LATE_EDITS, vec![], vec![values!["m"]]).await;
        }
        // What an empty table's planner takes for as good.
        let room: Vec<_> = (1..=300).map(|n| testing::message("!a", n)).collect();
        testing::insert(store, &room, START).await;
        let mut tx = store.begin().await.unwrap();
        tx.execute("ANALYZE", vec![]).await.unwrap();
        tx.commit().await.unwrap();
        for (sql, column) in [(REACTIONS, "event_id"), (OF_EVENTS, "event_id"), (OF_EDITS, "replaces")] {
            let rows = vec![values!["!a", "$a"]];
            assert_many_indexed(store, "messages", &[column], sql, vec![], rows).await;
        }
    }
}
