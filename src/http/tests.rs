use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderMap, header::CONTENT_TYPE},
};
use ruma::user_id;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use super::*;
use crate::{
    clock::ManualClock,
    lifecycle::Lifecycle,
    model::Scope,
    store::{Store, inbox},
    testing::{self, START, TestStore},
};

pub(super) struct Rig {
    url: String,
    client: reqwest::Client,
    health: watch::Sender<StoreState>,
    wake: Arc<Notify>,
    lifecycle: Lifecycle,
}

impl Rig {
    pub(super) async fn new(store: &Store) -> Self {
        let tokens = [("admin-secret".into(), Scope::Admin), ("read-secret".into(), Scope::Read)];
        Self::with(store, Access::new(tokens)).await
    }

    pub(super) async fn without_tokens(store: &Store) -> Self {
        Self::with(store, Access::new([])).await
    }

    /// As [`Rig::get`], with a body.
    pub(super) async fn post(&self, path: &str, body: &str) -> (u16, Value) {
        let (path, body) = (format!("/api/v1/{path}"), body.as_bytes().to_vec());
        let (status, _, answer) = self.ask("POST", &path, Some("admin-secret"), body).await;
        (status, answer)
    }

    /// Tells how the store is.
    pub(super) fn store_is(&self, state: StoreState) {
        self.health.send_replace(state);
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn client(&self) -> &reqwest::Client {
        &self.client
    }

    async fn with(store: &Store, access: Access) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let lifecycle = Lifecycle::default();
        let (sender, health) = Health::new(store.backend());
        let wake = Arc::new(Notify::new());
        let bot = OnceLock::from(user_id!("@coucou:example.org").to_owned());
        let state = HttpState {
            inbox: Inbox::new(store.clone(), ManualClock::at(START), Arc::clone(&wake)),
            hs_token: HsToken::new(&SecretString::from("hs-secret")),
            bot: Arc::new(bot),
            health,
            api: Arc::new(api(store, access, &lifecycle)),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        lifecycle.spawn(serve(listener, router(state, axum::Router::new()), lifecycle.stop_token()));
        let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().unwrap();
        Self { url, client, health: sender, wake, lifecycle }
    }

    /// On the REST API, with the token that may do everything: status and answer.
    pub(super) async fn get(&self, path: &str) -> (u16, Value) {
        let (status, _, answer) =
            self.ask("GET", &format!("/api/v1/{path}"), Some("admin-secret"), vec![]).await;
        (status, answer)
    }

    pub(super) async fn ask(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: Vec<u8>,
    ) -> (u16, HeaderMap, Value) {
        let mut request =
            self.client.request(method.parse().unwrap(), format!("{}{path}", self.url)).body(body);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        (status, headers, serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or_default())
    }

    /// As the homeserver: status and errcode.
    async fn matrix(&self, method: &str, path: &str, body: &[u8]) -> (u16, String) {
        let (status, headers, answer) = self.ask(method, path, Some("hs-secret"), body.to_vec()).await;
        assert_eq!(headers[CONTENT_TYPE], "application/json");
        assert_eq!(answer.get("error").is_some(), status != 200, "{answer}");
        (status, answer.get("errcode").and_then(Value::as_str).unwrap_or_default().to_owned())
    }
}

fn api(store: &Store, access: Access, lifecycle: &Lifecycle) -> Api {
    Api {
        access,
        store: store.clone(),
        clock: ManualClock::at(START),
        started: std::time::Instant::now(),
        networks: [("signalgo".to_owned(), "signal".to_owned())].into(),
        owner: None,
        webhooks: [("default".to_owned(), "https://hooks.example.org/".to_owned())].into(),
        wake_outbox: Arc::default(),
        wake_signers: Arc::default(),
        media: testing::media(store, lifecycle),
        public: Some(("https://coucou.example.org".parse().unwrap(), Duration::from_hours(24))),
    }
}

async fn count(test: &TestStore) -> u64 {
    inbox::depth(test.store.db()).await.unwrap().count
}

fn is(answer: &(u16, String), status: u16, errcode: &str) {
    assert_eq!((answer.0, &*answer.1), (status, errcode));
}

const TRANSACTION: &str = "/_matrix/app/v1/transactions/1";

#[tokio::test]
async fn a_transaction_is_taken_once_however_often_it_comes() {
    for test in testing::both().await {
        let rig = Rig::new(&test.store).await;
        let body = br#"{"events":[{"type":"m.room.message"},{"no":"room"},7]}"#;
        for path in [TRANSACTION, TRANSACTION, "/transactions/1", "/transactions/1?access_token=hs-secret"] {
            is(&rig.matrix("PUT", path, body).await, 200, "");
        }
        assert_eq!(count(&test).await, 1);
        rig.wake.notified().await;
        is(&rig.matrix("PUT", TRANSACTION, b"{}").await, 200, "");
        is(&rig.matrix("PUT", "/_matrix/app/v1/transactions/%2Fa%20b", b"{}").await, 200, "");
        let rows = inbox::waiting(test.store.db(), test.store.seal().unwrap(), 10, 1 << 20).await.unwrap();
        assert_eq!(rows.len(), 3);
        assert_eq!(rows[0].body.as_deref(), Some(&body[..]));
        assert_eq!(rows[0].received_at, START);
    }
}

#[tokio::test]
async fn bad_input_gets_its_status_and_leaves_nothing() {
    let test = testing::sqlite().await;
    let rig = Rig::new(&test.store).await;
    for (token, status, errcode) in [(None, 401, "M_MISSING_TOKEN"), (Some("wrong"), 403, "M_FORBIDDEN")] {
        let (got, _, answer) = rig.ask("PUT", TRANSACTION, token, b"{}".to_vec()).await;
        assert_eq!((got, &answer["errcode"]), (status, &json!(errcode)));
        let (got, ..) = rig.ask("POST", "/_matrix/app/v1/ping", token, b"{}".to_vec()).await;
        assert_eq!(got, status);
    }
    for body in ["", "{", "[]", "nonsense", "{\"events\":[}"] {
        is(&rig.matrix("PUT", TRANSACTION, body.as_bytes()).await, 400, "M_NOT_JSON");
    }
    is(&rig.matrix("PUT", TRANSACTION, b"{\"a\":\"\xff\"}").await, 400, "M_NOT_JSON");
    is(&rig.matrix("PUT", TRANSACTION, b"{\"events\":{}}").await, 400, "M_BAD_JSON");
    is(&rig.matrix("PUT", "/transactions/%00", b"{}").await, 400, "M_INVALID_PARAM");
    is(&rig.matrix("PUT", "/transactions/%FF", b"{}").await, 400, "M_INVALID_PARAM");
    is(
        &rig.matrix("PUT", &format!("/transactions/{}", "x".repeat(256)), b"{}").await,
        400,
        "M_INVALID_PARAM",
    );
    is(&rig.matrix("PUT", "/_matrix/app/v1/nonsense", b"{}").await, 404, "M_UNRECOGNIZED");
    is(&rig.matrix("GET", "/", b"").await, 404, "M_UNRECOGNIZED");
    is(&rig.matrix("PUT", "/_matrix/app/v2/transactions/1", b"{}").await, 404, "M_UNRECOGNIZED");
    is(&rig.matrix("POST", TRANSACTION, b"{}").await, 405, "M_UNRECOGNIZED");
    assert_eq!(count(&test).await, 0);
    is(&rig.matrix("PUT", TRANSACTION, b"{}").await, 200, "");
}

#[tokio::test]
async fn a_body_may_have_32_mib_and_no_byte_more() {
    let test = testing::sqlite().await;
    let rig = Rig::new(&test.store).await;
    let mut body = b"{\"events\":[]".to_vec();
    body.resize(matrix::BODY_LIMIT, b' ');
    body.push(b'}');
    is(&rig.matrix("PUT", TRANSACTION, &body).await, 413, "M_TOO_LARGE");
    assert_eq!(count(&test).await, 0);
    body.pop();
    let read = matrix::read(&HeaderMap::new(), body.into(), Duration::from_secs(30)).await.unwrap();
    assert_eq!(read.len(), matrix::BODY_LIMIT);
    // A stranger's body is not even read.
    let (status, ..) = rig.ask("PUT", TRANSACTION, None, vec![b' '; 1 << 20]).await;
    assert_eq!(status, 401);
}

#[tokio::test]
async fn a_body_that_never_ends_is_given_up() {
    let body = Body::from_stream(futures_util::stream::pending::<io::Result<Vec<u8>>>());
    let error = matrix::read(&HeaderMap::new(), body, Duration::from_millis(20)).await.unwrap_err();
    assert_eq!(error.into_response().status(), StatusCode::REQUEST_TIMEOUT);
    let broken = futures_util::stream::iter([Ok("{"), Err(io::Error::other("gone"))]);
    let body = Body::from_stream(broken);
    let error = matrix::read(&HeaderMap::new(), body, Duration::from_secs(30)).await.unwrap_err();
    assert_eq!(error.into_response().status(), StatusCode::BAD_REQUEST);
}

/// A body of unknown length is bounded as it comes.
#[tokio::test]
async fn a_body_without_a_length_is_bounded_too() {
    let test = testing::sqlite().await;
    let rig = Rig::new(&test.store).await;
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, " ".repeat(1 << 20));
    let send = async |chunks: usize| {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let address = rig.url.trim_start_matches("http://");
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let head = format!(
            "PUT {TRANSACTION} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer hs-secret\r\n\
             transfer-encoding: chunked\r\nconnection: close\r\n\r\n2\r\n{{}}\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..chunks {
            stream.write_all(chunk.as_bytes()).await.unwrap();
        }
        stream.write_all(b"0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(send(2).await.starts_with("HTTP/1.1 200"));
    let answer = send(33).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("M_TOO_LARGE"), "{answer}");
    assert_eq!(count(&test).await, 1);
}

#[tokio::test]
async fn while_the_store_is_away_nothing_is_promised() {
    for test in testing::both().await {
        // Not prepared, as before the database was reached for the first time.
        let starting = testing::open(&test.location, "test pickle key");
        let rig = Rig::new(&starting).await;
        is(&rig.matrix("PUT", TRANSACTION, b"{}").await, 503, "M_UNKNOWN");
        starting.prepare(START).await.unwrap();
        is(&rig.matrix("PUT", TRANSACTION, b"{}").await, 200, "");
        starting.close().await;
        let (status, _, answer) = rig.ask("PUT", "/transactions/2", Some("hs-secret"), b"{}".to_vec()).await;
        let expected = json!({ "errcode": "M_UNKNOWN", "error": "the store is unavailable" });
        assert_eq!((status, answer), (503, expected), "a 5xx does not show its cause");
        // What is no transaction is none in bad times either, and the process answers on.
        is(&rig.matrix("PUT", TRANSACTION, b"[]").await, 400, "M_NOT_JSON");
        is(&rig.matrix("POST", "/_matrix/app/v1/ping", b"{}").await, 200, "");
        assert_eq!(count(&test).await, 1);
    }
}

#[tokio::test]
async fn the_bot_exists_and_nothing_else_does() {
    let test = testing::sqlite().await;
    let rig = Rig::new(&test.store).await;
    for root in ["/_matrix/app/v1", ""] {
        is(&rig.matrix("GET", &format!("{root}/users/@coucou:example.org"), b"").await, 200, "");
        is(&rig.matrix("GET", &format!("{root}/users/%40coucou%3Aexample.org"), b"").await, 200, "");
        is(&rig.matrix("GET", &format!("{root}/users/@other:example.org"), b"").await, 404, "M_NOT_FOUND");
        is(&rig.matrix("GET", &format!("{root}/rooms/%23a:example.org"), b"").await, 404, "M_NOT_FOUND");
    }
    for root in ["/_matrix/app/v1", "/_matrix/app/unstable"] {
        for path in ["protocol/instagram", "user", "user/x?a=b", "location", "location/x"] {
            is(&rig.matrix("GET", &format!("{root}/thirdparty/{path}"), b"").await, 404, "M_NOT_FOUND");
        }
    }
    is(&rig.matrix("POST", "/_matrix/app/v1/ping", b"{\"transaction_id\":\"t\"}").await, 200, "");
    is(&rig.matrix("GET", "/_matrix/app/v1/ping", b"").await, 405, "M_UNRECOGNIZED");
}

#[tokio::test]
async fn health_and_ready_say_how_the_store_is() {
    let test = testing::sqlite().await;
    let rig = Rig::new(&test.store).await;
    let ask = async |path: &str| {
        let (status, _, answer) = rig.ask("GET", path, None, vec![]).await;
        (status, answer)
    };
    let answer = |status: &str, store: Value| {
        let homeserver = json!({ "state": "unasked" });
        json!({ "status": status, "store": store, "homeserver": homeserver, "version": env!("CARGO_PKG_VERSION") })
    };
    let starting = answer("degraded", json!({ "backend": "sqlite", "state": "starting", "fallback": false }));
    assert_eq!(ask("/api/v1/health").await, (200, starting.clone()));
    assert_eq!(ask("/api/v1/ready").await, (503, starting));
    rig.health.send_replace(StoreState::Ready);
    let ready = answer("ok", json!({ "backend": "sqlite", "state": "ready", "fallback": false }));
    assert_eq!(ask("/api/v1/health").await, (200, ready.clone()));
    assert_eq!(ask("/api/v1/ready").await, (200, ready));
    rig.health.send_replace(StoreState::Unavailable { reason: "no connection".to_owned() });
    let away =
        json!({ "backend": "sqlite", "state": "unavailable", "reason": "no connection", "fallback": false });
    let away = answer("degraded", away);
    assert_eq!(ask("/api/v1/health").await, (200, away.clone()));
    assert_eq!(ask("/api/v1/ready").await, (503, away));
}

#[tokio::test]
async fn errors_of_our_own_api_are_problems() {
    let test = testing::sqlite().await;
    let rig = Rig::new(&test.store).await;
    for (method, path, status, title) in [
        ("GET", "/api", 404, "Not Found"),
        ("GET", "/api/v1/nonsense", 404, "Not Found"),
        ("POST", "/api/v1/health", 405, "Method Not Allowed"),
    ] {
        let (got, headers, answer) = rig.ask(method, path, None, vec![]).await;
        assert_eq!((got, &answer["title"], &answer["status"]), (status, &json!(title), &json!(status)));
        assert_eq!(headers[CONTENT_TYPE], "application/problem+json");
    }
    let (_, headers, _) = rig.ask("GET", "/apix", None, vec![]).await;
    assert_eq!(headers[CONTENT_TYPE], "application/json");
}

#[tokio::test]
async fn a_stop_ends_the_server_though_connections_are_kept_alive() {
    let test = testing::sqlite().await;
    let rig = Rig::new(&test.store).await;
    is(&rig.matrix("PUT", TRANSACTION, b"{}").await, 200, "");
    rig.lifecycle.stop();
    assert!(rig.lifecycle.stopped(Duration::from_secs(10)).await);
    assert!(rig.client.get(&rig.url).send().await.is_err());
}
