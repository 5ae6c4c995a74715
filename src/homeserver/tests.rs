mod history;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use axum::{Router, extract::State, response::IntoResponse};
use http::{HeaderMap, StatusCode, Uri};
use ruma::{
    api::client::{keys, to_device::send_event_to_device},
    device_id, room_id, user_id,
};
use serde_json::json;

use super::*;
use crate::lifecycle::Lifecycle;

type Answer = (StatusCode, HeaderMap, Vec<u8>);

/// A homeserver that answers what it was told to, in order, and remembers what it was asked.
#[derive(Clone, Default)]
struct Script {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

#[derive(Clone, Debug)]
struct Asked {
    method: http::Method,
    uri: Uri,
    headers: HeaderMap,
    body: Json,
}

impl Asked {
    /// The query's parameters, unescaped.
    fn query(&self) -> BTreeMap<String, String> {
        let url = Url::parse(&format!("http://localhost{}", self.uri)).unwrap();
        url.query_pairs().into_owned().collect()
    }
}

impl Script {
    fn answer(&self, status: u16, body: &Json) -> &Self {
        self.answer_raw(status, &[], body.to_string().into_bytes())
    }

    fn answer_raw(&self, status: u16, headers: &[(&'static str, &'static str)], body: Vec<u8>) -> &Self {
        let headers = headers.iter().map(|(name, value)| {
            (http::HeaderName::from_static(name), http::HeaderValue::from_static(value))
        });
        let answer = (StatusCode::from_u16(status).unwrap(), headers.collect(), body);
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).push_back(answer);
        self
    }

    fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn play(State(script): State<Script>, request: axum::extract::Request) -> impl IntoResponse {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let body = serde_json::from_slice(&body).unwrap_or_default();
    let asked = Asked { method: parts.method, uri: parts.uri, headers: parts.headers, body };
    script.asked.lock().unwrap().push(asked);
    script.answers.lock().unwrap().pop_front().unwrap_or((StatusCode::OK, HeaderMap::new(), b"{}".to_vec()))
}

/// A scripted homeserver and a client of it.
async fn rig() -> (Script, Homeserver, Lifecycle) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (script, lifecycle) = (Script::default(), Lifecycle::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let router = Router::new().fallback(play).with_state(script.clone());
    lifecycle.spawn(async move { axum::serve(listener, router).await });
    let homeserver = Homeserver::new(&url, SecretString::from("as-secret")).unwrap();
    (script, homeserver, lifecycle)
}

fn device() -> Identity {
    Identity {
        user_id: user_id!("@coucou:example.org").to_owned(),
        device_id: Some(device_id!("COUCOU/1").to_owned()),
    }
}

#[tokio::test]
async fn every_request_bears_token_agent_and_identity() {
    let (script, homeserver, _lifecycle) = rig().await;
    script.answer(200, &json!({ "one_time_key_counts": { "signed_curve25519": 50 } }));
    let answer = homeserver.send(&device(), keys::upload_keys::v3::Request::new()).await.unwrap();
    assert_eq!(u64::from(*answer.one_time_key_counts.values().next().unwrap()), 50);

    let [asked] = &script.asked()[..] else { panic!("one request") };
    assert_eq!(asked.uri.path(), "/_matrix/client/v3/keys/upload");
    assert_eq!(asked.headers["authorization"], "Bearer as-secret");
    assert_eq!(asked.headers["user-agent"], concat!("coucou/", env!("CARGO_PKG_VERSION")));
    let expected = [("user_id", "@coucou:example.org"), ("device_id", "COUCOU/1")];
    assert_eq!(asked.query(), expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
}

#[tokio::test]
async fn all_requests_of_the_crypto_engine_can_be_sent() {
    let (script, homeserver, _lifecycle) = rig().await;
    let who = device();
    script.answer(200, &json!({ "device_keys": {} }));
    homeserver.send(&who, keys::get_keys::v3::Request::new()).await.unwrap();
    script.answer(200, &json!({ "one_time_keys": {} }));
    homeserver.send(&who, keys::claim_keys::v3::Request::new(BTreeMap::new())).await.unwrap();
    homeserver.send(&who, keys::upload_signatures::v3::Request::new(BTreeMap::new())).await.unwrap();
    homeserver.send(&who, keys::upload_signing_keys::v3::Request::new()).await.unwrap();
    let request =
        send_event_to_device::v3::Request::new_raw("m.room.encrypted".into(), "txn1".into(), BTreeMap::new());
    homeserver.send(&who, request).await.unwrap();
    let paths: Vec<_> = script
        .asked()
        .iter()
        .map(|asked| {
            assert_eq!(asked.query()["device_id"], "COUCOU/1");
            format!("{} {}", asked.method, asked.uri.path())
        })
        .collect();
    assert_eq!(
        paths,
        [
            "POST /_matrix/client/v3/keys/query",
            "POST /_matrix/client/v3/keys/claim",
            "POST /_matrix/client/v3/keys/signatures/upload",
            "POST /_matrix/client/v3/keys/device_signing/upload",
            "PUT /_matrix/client/v3/sendToDevice/m.room.encrypted/txn1",
        ]
    );
}

#[tokio::test]
async fn users_and_devices_are_made() {
    let (script, homeserver, _lifecycle) = rig().await;
    let user = user_id!("@coucou:example.org");
    script.answer(200, &json!({ "user_id": "@_coucou:example.org" }));
    assert_eq!(homeserver.whoami().await.unwrap(), "@_coucou:example.org");
    assert!(homeserver.register("coucou").await.unwrap());
    script.answer(400, &json!({ "errcode": "M_USER_IN_USE", "error": "taken" }));
    assert!(!homeserver.register("coucou").await.unwrap());
    homeserver.put_device(user, device_id!("COUCOU/1"), "relay").await.unwrap();
    homeserver.login_appservice(user, device_id!("COUCOU/1"), "relay").await.unwrap();
    script.answer(200, &json!({ "device_keys": { user: { "A": {}, "B": {} } } }));
    let published = homeserver.published_keys(user).await.unwrap();
    assert_eq!(published.devices.keys().map(|id| id.as_str()).collect::<Vec<_>>(), ["A", "B"]);
    homeserver.ping("coucou", "t1").await.unwrap();

    let asked = script.asked();
    let registered = json!({
        "type": "m.login.application_service", "username": "coucou", "inhibit_login": true
    });
    assert!(asked[0].query().is_empty(), "the service itself asks");
    assert_eq!(asked[1].body, registered);
    assert_eq!(asked[3].method, "PUT");
    assert_eq!(asked[3].uri.path(), "/_matrix/client/v3/devices/COUCOU%2F1");
    assert_eq!(asked[3].query()["user_id"], user.as_str());
    assert!(!asked[3].query().contains_key("device_id"));
    assert_eq!(asked[4].body["device_id"], "COUCOU/1");
    assert_eq!(asked[5].body, json!({ "device_keys": { user: [] } }));
    assert_eq!(asked[6].uri.path(), "/_matrix/client/v1/appservice/coucou/ping");
}

#[tokio::test]
async fn sync_asks_for_to_device_only_and_survives_odd_members() {
    let (script, homeserver, _lifecycle) = rig().await;
    script.answer(
        200,
        &json!({
            "next_batch": "s2",
            "to_device": { "events": [{ "type": "m.room.encrypted" }, 7] },
            "device_lists": { "changed": ["@a:b", "nonsense"], "left": [] },
            "device_one_time_keys_count": { "signed_curve25519": 42 },
            "org.matrix.msc2732.device_unused_fallback_key_types": ["signed_curve25519"],
        }),
    );
    let page = homeserver.sync(&device(), Some("s1"), Duration::from_secs(30)).await.unwrap();
    assert_eq!((&*page.next_batch, page.to_device.len()), ("s2", 2));
    assert_eq!(page.device_lists_changed, ["@a:b"]);
    assert_eq!(page.one_time_key_counts.as_ref().unwrap()["signed_curve25519"], 42);
    assert_eq!(page.unused_fallback_key_types.as_deref().unwrap(), ["signed_curve25519"]);

    script.answer(200, &json!({ "next_batch": "s3", "device_lists": 7, "device_one_time_keys_count": "?" }));
    let page = homeserver.sync(&device(), None, Duration::ZERO).await.unwrap();
    assert!(page.is_empty() && page.one_time_key_counts.is_none());
    script.answer(200, &json!({ "to_device": {} }));
    let without_position = homeserver.sync(&device(), None, Duration::ZERO).await;
    assert!(matches!(without_position, Err(HomeserverError::Malformed(_))));

    let asked = script.asked();
    let query = asked[0].query();
    let filter: Json = serde_json::from_str(&query["filter"]).unwrap();
    assert_eq!(filter["room"]["rooms"], json!([]));
    assert_eq!((&*query["since"], &*query["timeout"]), ("s1", "30000"));
    assert_eq!((&*query["set_presence"], &*query["device_id"]), ("offline", "COUCOU/1"));
    assert!(!asked[1].query().contains_key("since"));
}

#[tokio::test]
async fn what_is_there_now_is_never_asked_for_in_the_same_words() {
    let (script, homeserver, _lifecycle) = rig().await;
    let empty = json!({ "next_batch": "s2" });
    for _ in 0..2 {
        script.answer(200, &empty);
        homeserver.sync(&device(), Some("s1"), Duration::ZERO).await.unwrap();
        script.answer(200, &empty);
        homeserver.timelines(&device().user_id, "s1").await.unwrap();
    }
    let filters: Vec<String> = script.asked().iter().map(|asked| asked.query()["filter"].clone()).collect();
    assert!(filters[0] != filters[2] && filters[1] != filters[3], "{filters:?}");
    // A poll that is made again may be.
    for _ in 0..2 {
        script.answer(200, &empty);
        homeserver.sync(&device(), Some("s1"), Duration::from_secs(30)).await.unwrap();
    }
    let polls: Vec<String> = script.asked().iter().map(|asked| asked.query()["filter"].clone()).collect();
    assert_eq!(polls[0], polls[1]);
}

#[tokio::test]
async fn rooms_are_listed_entered_and_read() {
    let (script, homeserver, _lifecycle) = rig().await;
    let (user, room) = (user_id!("@owner:example.org"), room_id!("!a/b:example.org"));
    script.answer(200, &json!({ "joined_rooms": [room] }));
    assert_eq!(homeserver.joined_rooms(user).await.unwrap(), [room]);
    let invite = json!({
        "type": "m.room.member", "state_key": user, "sender": "@instagrambot:example.org",
        "content": { "membership": "invite" }
    });
    script.answer(
        200,
        &json!({ "next_batch": "s1", "rooms": { "join": {}, "invite": {
            "!v12": { "invite_state": { "events": [{ "type": "m.room.name" }, invite] } },
            "!w": { "invite_state": {} },
        } } }),
    );
    let invites = homeserver.pending_invites(user).await.unwrap();
    assert_eq!(invites[0].room_id, "!v12");
    assert_eq!(invites[0].inviter.as_deref().unwrap(), "@instagrambot:example.org");
    assert_eq!(invites[1].inviter, None);
    homeserver.join(user, room).await.unwrap();
    homeserver.invite(user, room, user_id!("@coucou:example.org")).await.unwrap();
    homeserver.leave(user, room).await.unwrap();
    script.answer(200, &json!([{ "type": "m.room.create" }, { "type": "m.bridge" }]));
    assert_eq!(homeserver.room_state(user, room).await.unwrap().len(), 2);

    let asked = script.asked();
    assert!(asked.iter().all(|asked| asked.query()["user_id"] == user.as_str()));
    assert!(asked.iter().all(|asked| !asked.query().contains_key("device_id")));
    assert_eq!(asked[2].uri.path(), "/_matrix/client/v3/rooms/!a%2Fb:example.org/join");
    assert_eq!(asked[3].body, json!({ "user_id": "@coucou:example.org" }));
    assert!(asked[5].uri.path().ends_with("/state"));
}

#[tokio::test]
async fn no_two_questions_for_invites_are_the_same() {
    let (script, homeserver, _lifecycle) = rig().await;
    let user = user_id!("@owner:example.org");
    for _ in 0..2 {
        assert_eq!(homeserver.pending_invites(user).await.unwrap(), []);
    }
    // Synapse would answer the second from its cache, and an invite between them would not be in it.
    let asked = script.asked();
    assert_ne!(asked[0].query()["filter"], asked[1].query()["filter"]);
}

#[tokio::test]
async fn refusals_say_what_and_for_how_long() {
    let (script, homeserver, _lifecycle) = rig().await;
    script.answer(
        429,
        &json!({ "errcode": "M_LIMIT_EXCEEDED", "error": "as-secret is busy", "retry_after_ms": 1500 }),
    );
    let error = homeserver.whoami().await.unwrap_err();
    assert!(error.is_transient());
    assert_eq!(error.errcode(), Some("M_LIMIT_EXCEEDED"));
    assert_eq!(error.retry_after(), Some(Duration::from_millis(1500)));
    assert!(!format!("{error} {error:?}").contains("as-secret"), "{error}");

    script.answer_raw(502, &[("retry-after", "7")], b"<html>bad gateway</html>".to_vec());
    let error = homeserver.whoami().await.unwrap_err();
    assert!(error.is_transient());
    assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
    assert_eq!(error.to_string(), "the homeserver answered 502 M_UNKNOWN: no Matrix error in the answer");

    script.answer(429, &json!({ "retry_after_ms": u64::MAX }));
    assert_eq!(homeserver.whoami().await.unwrap_err().retry_after(), Some(Duration::from_hours(1)));

    script.answer(403, &json!({ "errcode": "M_FORBIDDEN", "error": "no" }));
    let error = homeserver.send(&device(), keys::upload_keys::v3::Request::new()).await.unwrap_err();
    assert!(!error.is_transient());
    assert!(matches!(error, HomeserverError::Status { status: 403, .. }), "{error:?}");

    // The token must not follow a redirect.
    script.answer_raw(302, &[("location", "/elsewhere")], vec![]);
    assert!(matches!(homeserver.whoami().await, Err(HomeserverError::Status { status: 302, .. })));
    assert_eq!(script.asked().len(), 5);
}

#[tokio::test]
async fn what_is_no_answer_is_an_error() {
    let (script, homeserver, _lifecycle) = rig().await;
    script.answer_raw(200, &[], b"<html>".to_vec());
    assert!(matches!(homeserver.whoami().await, Err(HomeserverError::Malformed(_))));
    script.answer_raw(200, &[], vec![b' '; SMALL_ANSWER + 1]);
    assert!(matches!(homeserver.whoami().await, Err(HomeserverError::Malformed(_))));

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    drop(listener);
    let nobody = Homeserver::new(&url, SecretString::from("as-secret")).unwrap();
    let error = nobody.whoami().await.unwrap_err();
    assert!(matches!(error, HomeserverError::Unreachable(_)) && error.is_transient());
    assert!(!format!("{nobody:?} {error:?}").contains("as-secret"));
}

#[test]
fn a_url_or_token_that_cannot_work_is_refused() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let token = || SecretString::from("as-secret");
    assert!(Homeserver::new(&Url::parse("mailto:a@b").unwrap(), token()).is_err());
    assert!(Homeserver::new(&Url::parse("ftp://example.org").unwrap(), token()).is_err());
    let url = Url::parse("https://example.org/sub/").unwrap();
    assert!(Homeserver::new(&url, SecretString::from("line\nbreak")).is_err());
    let homeserver = Homeserver::new(&url, token()).unwrap();
    let request = homeserver.request(Call::get(&["_matrix", "x"])).unwrap();
    assert_eq!(request.url().as_str(), "https://example.org/sub/_matrix/x");
}
