//! The REST API over HTTP, on both databases.

use std::{collections::BTreeSet, time::Duration};

use axum::http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use serde_json::{Value, json};

use crate::{
    http::tests::Rig,
    model::{Direction, MessageType},
    store::{Store, db::values},
    testing::{self, START, message},
};

/// Seven messages in two rooms: of the first, one is by us, one an edit, one of another network.
async fn fill(store: &Store) {
    let mut five: Vec<_> = (1..=5).map(|n| message("!one:example.org", n)).collect();
    five[1].direction = Direction::Out;
    five[2].message_type = MessageType::MessageEdited;
    five[3].network = Some("messenger".to_owned());
    testing::insert(store, &five, START).await;
    let two = [message("!two:example.org", 1), message("!two:example.org", 2)];
    testing::insert(store, &two, START.plus(Duration::from_hours(1))).await;
}

fn texts(answer: &Value) -> Vec<String> {
    let messages = answer["messages"].as_array().unwrap_or_else(|| panic!("no messages in {answer}"));
    assert_eq!(answer["count"], json!(messages.len()));
    let text = |message: &Value| {
        format!("{} {}", &message["room_id"].as_str().unwrap()[1..4], message["sequence"])
    };
    messages.iter().map(text).collect()
}

#[tokio::test]
async fn messages_are_listed_filtered_and_paged() {
    for test in testing::both().await {
        let rig = Rig::new(&test.store).await;
        fill(&test.store).await;
        let list = async |path: &str| {
            let (status, answer) = rig.get(path).await;
            assert_eq!(status, 200, "{path}: {answer}");
            answer
        };
        let (first, rest) = ("?limit=3", "?limit=500");
        let page = list(&format!("messages{first}")).await;
        assert_eq!(texts(&page), ["two 2", "two 1", "one 5"]);
        let next = page["next"].as_str().unwrap();
        let page = list(&format!("messages{rest}&cursor={next}")).await;
        assert_eq!(texts(&page), ["one 4", "one 3", "one 2", "one 1"]);
        assert_eq!((&page["next"], &page["platform"]), (&Value::Null, &Value::Null));
        for (path, expected) in [
            ("messages?room=!two:example.org", &["two 2", "two 1"][..]),
            ("messages?room=%21two%3Aexample.org&limit=1", &["two 2"]),
            ("messages?direction=out", &["one 2"]),
            ("messages?type=message.edited", &["one 3"]),
            ("messages?network=messenger", &["one 4"]),
            ("messages?network=facebook", &["one 4"]),
            ("messages/messenger", &["one 4"]),
            ("messages/facebook", &["one 4"]),
            ("messages/instagram?direction=in&room=!one:example.org", &["one 5", "one 3", "one 1"]),
            ("messages/nowhere", &[]),
            ("messages?since=2025-10-09T09:00:00Z", &["two 2", "two 1"]),
            ("messages?since=2025-10-09T08:00:00Z&until=2025-10-09T09:00:00%2B00:00&limit=2", &["one 5", "one 4"]),
        ] {
            assert_eq!(texts(&list(path).await), expected, "{path}");
        }
        assert_eq!(list("messages/facebook").await["platform"], "messenger");
    }
}

#[tokio::test]
async fn a_message_has_what_programs_of_today_read_and_more() {
    let test = testing::sqlite().await;
    let rig = Rig::new(&test.store).await;
    let sent = message("!one:example.org", 1);
    testing::insert(&test.store, &[sent.clone()], START).await;
    let (_, list) = rig.get("messages/instagram").await;
    let expected = json!({
        "platform": "instagram", "count": 1, "next": null,
        "messages": [{
            "id": sent.message_id, "sender": "@instagram_1:example.org", "content": "text 1",
            "timestamp": "2025-10-09T08:53:20.000Z", "platform": "instagram", "room_id": "!one:example.org",
            "decrypted": true, "purged": false, "sender_name": "Alice", "room_name": "A room", "encrypted": true,
            "trust": "bridge", "type": "message.created", "kind": "text", "sequence": 1, "direction": "in",
            "event_id": sent.event_id, "relates_to": null, "backfill": false, "late": false,
            "received_at": "2025-10-09T08:53:20.000Z",
        }],
    });
    assert_eq!(list, expected);
    let (status, whole) = rig.get(&format!("messages/{}", sent.message_id)).await;
    assert_eq!(status, 200);
    assert_eq!(whole["payload"], serde_json::from_slice::<Value>(&sent.payload).unwrap());
    let mut message = list["messages"][0].clone();
    message["payload"] = whole["payload"].clone();
    assert_eq!(whole, message);
    let (status, answer) = rig.get(&format!("messages/msg_{}", "0".repeat(40))).await;
    assert_eq!((status, &answer["code"]), (404, &json!("not_found")));
    // Of one that was deleted for its age, what is left.
    let mut tx = test.store.begin().await.unwrap();
    tx.execute("UPDATE messages SET payload = $1, sender = ''", values![Vec::<u8>::new()]).await.unwrap();
    tx.commit().await.unwrap();
    let (_, whole) = rig.get(&format!("messages/{}", sent.message_id)).await;
    assert_eq!((&whole["purged"], &whole["decrypted"], &whole["payload"]), (&json!(true), &json!(false), &Value::Null));
    let (_, events) = rig.get("events").await;
    assert_eq!(events["events"][0]["payload"], Value::Null);
}

#[tokio::test]
async fn events_are_read_to_the_end_and_on_from_there() {
    for test in testing::both().await {
        let rig = Rig::new(&test.store).await;
        fill(&test.store).await;
        let (mut seen, mut path) = (Vec::new(), "events?limit=2".to_owned());
        let next = loop {
            let (status, page) = rig.get(&path).await;
            assert_eq!(status, 200, "{page}");
            let events = page["events"].as_array().unwrap();
            assert_eq!(page["count"], json!(events.len()));
            seen.extend(events.clone());
            let next = page["next"].as_str().unwrap().to_owned();
            assert_eq!(events.last().unwrap()["cursor"], page["next"]);
            if page["has_more"] == json!(false) {
                break next;
            }
            path = format!("events?limit=2&after={next}");
        };
        let ids: BTreeSet<_> = seen.iter().map(|event| event["id"].as_str().unwrap()).collect();
        assert_eq!((seen.len(), ids.len()), (7, 7));
        assert!(seen.iter().all(|event| event["payload"]["data"]["id"] == event["id"]));
        let (_, latest) = rig.get("events?after=latest").await;
        assert_eq!((&latest["next"], &latest["count"]), (&json!(next), &json!(0)));
        testing::insert(&test.store, &[message("!two:example.org", 3)], START).await;
        let (_, page) = rig.get(&format!("events?after={next}")).await;
        assert_eq!((&page["count"], &page["has_more"]), (&json!(1), &json!(false)));
        // Of a store that has more than this one.
        let ahead = super::query::List::Events.cursor(9);
        let (status, answer) = rig.get(&format!("events?after={ahead}")).await;
        assert_eq!((status, &answer["code"]), (409, &json!("cursor_ahead")));
    }
}

#[tokio::test]
async fn tokens_open_what_their_scope_says_and_nothing_is_open_without() {
    let test = testing::sqlite().await;
    let rig = Rig::new(&test.store).await;
    for path in protected() {
        for (token, status, code) in [
            (None, 401, "token_missing"),
            (Some("wrong"), 401, "token_wrong"),
            (Some("hs-secret"), 401, "token_wrong"),
        ] {
            let (got, headers, answer) = rig.ask(path.0, &path.1, token, vec![]).await;
            assert_eq!((got, &answer["code"]), (status, &json!(code)), "{path:?}");
            assert!(headers[WWW_AUTHENTICATE].to_str().unwrap().starts_with("Bearer "));
            assert_eq!(headers[CONTENT_TYPE], "application/problem+json");
        }
        let (status, _, answer) = rig.ask(path.0, &path.1, Some("read-secret"), b"{}".to_vec()).await;
        let refused = answer["code"] == json!("scope_insufficient");
        assert_eq!(refused, path.0 == "POST", "{path:?}: {status} {answer}");
    }
    let rig = Rig::without_tokens(&test.store).await;
    for token in [None, Some("admin-secret"), Some("")] {
        let (status, _, answer) = rig.ask("GET", "/api/v1/messages", token, vec![]).await;
        assert_eq!((status, &answer["code"]), (403, &json!("api_disabled")));
        assert!(answer["detail"].as_str().unwrap().contains("COUCOU_API_TOKEN"));
    }
}

/// Every operation that needs a token, from the description, with harmless values in its path.
fn protected() -> Vec<(&'static str, String)> {
    let description = serde_json::to_value(super::openapi::description()).unwrap();
    let mut operations = Vec::new();
    for (path, item) in description["paths"].as_object().unwrap() {
        let path = path.replace("{network_or_id}", "instagram").replace("{room_id}", "!one:example.org");
        let path = path.replace("{delivery_id}", "1").replace("{name}", "default");
        for method in item.as_object().unwrap().keys() {
            operations.push((if method == "post" { "POST" } else { "GET" }, path.clone()));
        }
    }
    assert!(operations.len() > 2, "{operations:?}");
    operations
}

#[tokio::test]
async fn a_parameter_that_is_wrong_is_named() {
    let test = testing::sqlite().await;
    let rig = Rig::new(&test.store).await;
    for (path, code, named) in [
        ("messages?rom=x", "unknown_parameter", "rom"),
        ("messages?limit=0", "bad_parameter", "limit"),
        ("messages?limit=501", "bad_parameter", "limit"),
        ("messages?limit=1&limit=2", "bad_parameter", "limit is there twice"),
        ("messages?cursor=x", "bad_cursor", "cursor"),
        ("messages?cursor=", "bad_cursor", "cursor"),
        ("messages?since=yesterday", "bad_parameter", "since"),
        ("messages?since=2025-10-09T09:00:00Z&until=2025-10-09T08:00:00Z", "bad_parameter", "since lies after"),
        ("messages?room=one", "bad_parameter", "room"),
        ("messages?room=!a%00b", "bad_parameter", "room"),
        ("messages?direction=up", "bad_parameter", "direction"),
        ("messages?type=webhook.test", "bad_parameter", "type"),
        ("messages?network=A", "bad_parameter", "network"),
        ("messages/instagram?network=instagram", "unknown_parameter", "network"),
        ("messages/INSTAGRAM", "bad_parameter", "network"),
        ("messages/%00", "bad_parameter", "path"),
        ("messages/%FF", "bad_parameter", "path"),
        ("events?after=x", "bad_cursor", "cursor"),
        ("events?cursor=x", "unknown_parameter", "after"),
    ] {
        let (status, answer) = rig.get(path).await;
        assert_eq!((status, &answer["code"]), (400, &json!(code)), "{path}: {answer}");
        assert!(answer["detail"].as_str().unwrap().contains(named), "{path}: {answer}");
    }
    let (status, answer) = rig.get(&format!("messages/msg_{}?limit=1", "0".repeat(40))).await;
    assert_eq!((status, &answer["code"]), (400, &json!("unknown_parameter")));
}

#[tokio::test]
async fn every_answer_has_an_id_and_no_browser_does_anything_with_it() {
    let test = testing::sqlite().await;
    let rig = Rig::new(&test.store).await;
    for path in ["health", "messages", "messages?x=y", "nothing", "openapi.json"] {
        let url = format!("{}/api/v1/{path}", rig.url());
        let send = async |id: Option<&str>| {
            let mut request = rig.client().get(&url).bearer_auth("read-secret");
            if let Some(id) = id {
                request = request.header("x-request-id", id);
            }
            request.send().await.unwrap()
        };
        let fresh = send(None).await;
        assert_eq!(fresh.headers()["x-content-type-options"], "nosniff");
        assert_eq!(fresh.headers()["cache-control"], "no-store");
        assert!(fresh.headers()["content-security-policy"].to_str().unwrap().contains("default-src 'none'"));
        let id = fresh.headers()["x-request-id"].clone();
        assert_ne!(id, send(None).await.headers()["x-request-id"]);
        let answer: Value = serde_json::from_slice(&fresh.bytes().await.unwrap()).unwrap();
        if answer.get("code").is_some() {
            assert_eq!(answer["request_id"].as_str(), id.to_str().ok(), "{answer}");
        }
        assert_eq!(send(Some("mine-1")).await.headers()["x-request-id"], "mine-1");
        assert_ne!(send(Some("mine; not")).await.headers()["x-request-id"], "mine; not");
    }
}

#[tokio::test]
async fn while_the_store_is_away_the_api_says_so_and_not_why() {
    for test in testing::both().await {
        let store = testing::open(&test.location, "test pickle key");
        let rig = Rig::new(&store).await;
        let expected = json!("store_unavailable");
        for path in ["messages", "events"] {
            let (status, answer) = rig.get(path).await;
            assert_eq!((status, &answer["code"]), (503, &expected), "not ready: {answer}");
        }
        store.prepare(START).await.unwrap();
        assert_eq!(rig.get("messages").await.0, 200);
        store.close().await;
        let (status, answer) = rig.get("messages").await;
        assert_eq!((status, &answer["code"]), (503, &expected));
        assert_eq!(answer["detail"], "the store is unavailable; try again later");
    }
}

#[test]
fn the_description_is_what_it_was() {
    insta::assert_json_snapshot!("openapi", super::openapi::description());
}

#[tokio::test]
async fn every_parameter_that_is_described_is_known() {
    let test = testing::sqlite().await;
    let rig = Rig::new(&test.store).await;
    let description = serde_json::to_value(super::openapi::description()).unwrap();
    let mut count = 0;
    for (path, item) in description["paths"].as_object().unwrap() {
        let path = path.replace("{network_or_id}", "instagram").replace("{room_id}", "!one:example.org");
        let path = path.replace("{delivery_id}", "1").replace("{name}", "default");
        for parameter in item["get"]["parameters"].as_array().into_iter().flatten() {
            if parameter["in"] != json!("query") {
                continue;
            }
            let name = parameter["name"].as_str().unwrap();
            let (_, _, answer) =
                rig.ask("GET", &format!("{path}?{name}=%20"), Some("read-secret"), vec![]).await;
            assert_ne!(answer["code"], json!("unknown_parameter"), "{path}?{name}");
            count += 1;
        }
    }
    assert!(count > 10);
}
