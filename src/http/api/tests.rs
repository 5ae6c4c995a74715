//! The REST API over HTTP, on both databases.

mod deliveries;
mod overview;

use std::{collections::BTreeSet, time::Duration};

use axum::http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use ruma::user_id;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::{
    http::{StoreState, tests::Rig},
    model::{Direction, Flow, Membership, MessageType, Relay, Role, WebhookId, ledger::Reason},
    store::{
        Store, accounts,
        crypto::{Key, Scope, inbound},
        db::values,
        memberships::{self, MembershipChange},
        outbox::{self, Queued},
        pending::{self, NewPending, Waits},
        rooms::{self, RoomRow},
        webhooks,
    },
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

/// A webhook whose deliveries are those of [`fill`], all pending.
async fn queue(store: &Store) -> WebhookId {
    fill(store).await;
    let mut tx = store.begin().await.unwrap();
    let id = webhooks::ensure(&mut tx, "default", START).await.unwrap();
    let rooms = [("!one:example.org", 5), ("!two:example.org", 2)];
    let messages = rooms.into_iter().flat_map(|(room, count)| (1..=count).map(move |n| message(room, n)));
    let messages: Vec<_> = messages.collect();
    let queued = messages.iter().map(|message| Queued {
        webhooks: vec![(id, Flow::default())],
        message_id: message.message_id.as_str(),
        room_id: &message.room_id,
        sequence: i64::try_from(message.sequence).unwrap(),
    });
    outbox::enqueue(&mut tx, &queued.collect::<Vec<_>>(), START).await.unwrap();
    tx.commit().await.unwrap();
    id
}

/// Has all that is queued delivered, but for what is given up: the first of the first room.
async fn deliver(store: &Store) {
    let mut tx = store.begin().await.unwrap();
    for sql in [
        "UPDATE deliveries SET state = 'delivered', attempts = 1, last_status = 204, finished_at = 7",
        "UPDATE deliveries SET state = 'dead', attempts = 10, last_status = 500, last_error = 'status' \
         WHERE room_id = '!one:example.org' AND sequence = 1",
        "UPDATE room_queues SET pending_count = 0",
    ] {
        tx.execute(sql, vec![]).await.unwrap();
    }
    tx.commit().await.unwrap();
}

fn texts(answer: &Value) -> Vec<String> {
    let messages = answer["messages"].as_array().unwrap_or_else(|| panic!("no messages in {answer}"));
    assert_eq!(answer["count"], json!(messages.len()));
    let text =
        |message: &Value| format!("{} {}", &message["room_id"].as_str().unwrap()[1..4], message["sequence"]);
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
            (
                "messages?since=2025-10-09T08:00:00Z&until=2025-10-09T09:00:00%2B00:00&limit=2",
                &["one 5", "one 4"],
            ),
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
    testing::insert(&test.store, std::slice::from_ref(&sent), START).await;
    let (_, list) = rig.get("messages/instagram").await;
    let expected = json!({
        "platform": "instagram", "count": 1, "next": null,
        "messages": [{
            "id": sent.message_id, "sender": "@instagram_1:example.org", "content": "text 1",
            "timestamp": "2025-10-09T08:53:20.000Z", "platform": "instagram", "room_id": "!one:example.org",
            "decrypted": true, "purged": false, "sender_name": "Alice", "room_name": "A room", "encrypted": true,
            "trust": "bridge", "type": "message.created", "kind": "text", "sequence": 1, "direction": "in",
            "event_id": sent.event_id, "relates_to": null, "backfill": false, "late": false,
            "received_at": "2025-10-09T08:53:20.000Z", "media": null,
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
    assert_eq!(
        (&whole["purged"], &whole["decrypted"], &whole["payload"]),
        (&json!(true), &json!(false), &Value::Null)
    );
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
    for (at, path) in protected().into_iter().enumerate() {
        // An address may be wrong twenty times at once.
        let tokens = if at < 6 { 3 } else { 1 };
        for (token, status, code) in [
            (None, 401, "token_missing"),
            (Some("wrong"), 401, "token_wrong"),
            (Some("hs-secret"), 401, "token_wrong"),
        ]
        .into_iter()
        .take(tokens)
        {
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
        // Files have signed addresses, and these anybody may ask for.
        let open = ["/health", "/ready", "/openapi.json"];
        if path.contains("/media/") || open.iter().any(|end| path.ends_with(end)) {
            continue;
        }
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
        (
            "messages?since=2025-10-09T09:00:00Z&until=2025-10-09T08:00:00Z",
            "bad_parameter",
            "since lies after",
        ),
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
        let path = path.replace("{delivery_id}", "1").replace("{name}", "default").replace("{id}", "msg_1");
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

#[test]
fn an_address_is_shown_without_its_secrets() {
    let shown = |url: &str| super::shown_url(&url.parse().unwrap());
    assert_eq!(
        shown("https://me:secret@hooks.example.org:8443/a/b?token=secret#secret"),
        "https://hooks.example.org:8443/a/b"
    );
}

/// The JSON blocks of the page about the API.
fn documented() -> Vec<Value> {
    let page = include_str!("../../../docs/rest.md");
    let blocks = page.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.map(|block| serde_json::from_str(block).unwrap()).collect()
}

#[tokio::test]
async fn the_page_about_the_api_shows_what_it_answers() {
    let test = testing::sqlite().await;
    let rig = Rig::new(&test.store).await;
    queue(&test.store).await;
    let [mut problem, mut messages, resend] = documented().try_into().unwrap();
    let (_, mut answer) = rig.get("messages?rom=x").await;
    assert!(answer["request_id"].is_string());
    problem["request_id"] = answer["request_id"].take();
    answer["request_id"] = problem["request_id"].clone();
    assert_eq!(problem, answer);
    let (_, answer) =
        rig.get("messages/instagram?until=2025-10-09T09:00:00Z&limit=1&room=!one:example.org").await;
    let keys = |list: &Value| list["messages"][0].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&messages), keys(&answer));
    let (_, answer) = rig.get(&format!("messages/{}", message("!one:example.org", 1).message_id)).await;
    let shown = messages["messages"][0].as_object_mut().unwrap();
    shown.remove("id");
    for (key, value) in shown {
        assert_eq!(*value, answer[key.as_str()], "{key}");
    }
    assert_eq!(
        rig.post("webhooks/default/resend", &resend.to_string()).await,
        (200, json!({"resent": 0, "next": null}))
    );
}

#[test]
fn the_page_about_the_api_names_every_endpoint_and_code() {
    let page = include_str!("../../../docs/rest.md");
    let description = serde_json::to_value(super::openapi::description()).unwrap();
    for (path, item) in description["paths"].as_object().unwrap() {
        let fixed: Vec<_> =
            path.split('/').filter(|part| !part.is_empty() && !part.starts_with('{')).collect();
        assert!(page.contains(&fixed[..3].join("/")), "{path}");
        assert!(fixed[3..].iter().all(|last| page.contains(&format!("/{last}`"))), "{path}");
        for parameter in item["get"]["parameters"].as_array().into_iter().flatten() {
            let name = parameter["name"].as_str().unwrap();
            let is_named = page.contains(&format!("`{name}`")) || page.contains(&format!("{name}="));
            assert!(parameter["in"] == "path" || is_named, "{path}: {name}");
        }
    }
    let errors = include_str!("../error.rs").split("impl Problem {").nth(1).unwrap();
    let codes = errors.split("StatusCode::").skip(1).filter_map(|rest| rest.split('"').nth(1));
    let codes: BTreeSet<_> =
        codes.filter(|code| code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')).collect();
    assert!(codes.len() > 12, "{codes:?}");
    for code in codes {
        assert!(page.contains(&format!("`{code}`")), "{code} is not in docs/rest.md");
    }
}
