//! What stands before several processes: one address for the homeserver, any of them behind it. It can fail in
//! all the ways in which a load balancer fails.

use std::{
    collections::{HashSet, VecDeque},
    panic::resume_unwind,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, Method, StatusCode, Uri, header};
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::sleep,
};
use url::Url;

use super::{free_port, http};

/// A load balancer on 127.0.0.1: each request goes to the next process, and on to another when the
/// connection fails.
pub(crate) struct Forwarder {
    shared: Arc<Shared>,
    port: u16,
    server: JoinHandle<()>,
}

/// How a transaction fails on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// It is answered with 500, and coucou never sees it.
    Refuse,
    /// It is answered with 200, and coucou never sees it: as good as forgotten by the homeserver.
    Lose,
    /// coucou takes it, and the homeserver hears 500.
    TakeAndRefuse,
    /// coucou takes it, and the connection breaks before its answer.
    TakeAndBreak,
    /// The connection to coucou breaks in the middle of the body, and then that to the homeserver.
    BreakBody,
    /// Nothing is passed on and nothing said for so long; then the connection breaks.
    Hang(Duration),
}

struct Shared {
    client: reqwest::Client,
    targets: Mutex<Vec<Target>>,
    turn: AtomicUsize,
    book: Mutex<Book>,
}

/// What is to fail, and what passed.
#[derive(Default)]
struct Book {
    faults: VecDeque<Fault>,
    /// Faults that have begun.
    failed: usize,
    /// Room events in transactions that the homeserver knows to be taken.
    pushed: HashSet<String>,
    /// Pings that were answered with success.
    pings: usize,
}

#[derive(Clone)]
struct Target {
    url: String,
    /// Requests that it answered with success.
    taken: Arc<AtomicUsize>,
}

impl Forwarder {
    /// Starts one with nothing behind it yet.
    pub(crate) async fn start() -> Self {
        let port = free_port();
        let shared = Arc::new(Shared {
            client: http(),
            targets: Mutex::default(),
            turn: AtomicUsize::default(),
            book: Mutex::default(),
        });
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let router = Router::new()
            .fallback(forward)
            .layer(DefaultBodyLimit::max(64 << 20))
            .with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { shared, port, server }
    }

    /// Its base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Puts a process behind it.
    pub(crate) fn add(&self, url: &str) {
        let target = Target { url: url.to_owned(), taken: Arc::default() };
        self.shared.targets.lock().unwrap().push(target);
    }

    /// Lets the next transactions fail so, one each.
    pub(crate) fn fail_next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.shared.book.lock().unwrap().faults.extend(faults);
    }

    /// Faults that are still to come.
    pub(crate) fn to_come(&self) -> usize {
        self.shared.book.lock().unwrap().faults.len()
    }

    /// Faults that have begun.
    pub(crate) fn failed(&self) -> usize {
        self.shared.book.lock().unwrap().failed
    }

    /// Pings that were answered with success.
    pub(crate) fn pings(&self) -> usize {
        self.shared.book.lock().unwrap().pings
    }

    /// Whether a room event was in a transaction that was taken, as far as the homeserver knows.
    pub(crate) fn was_pushed(&self, event_id: &str) -> bool {
        self.shared.book.lock().unwrap().pushed.contains(event_id)
    }

    /// How many requests a process answered with success.
    pub(crate) fn taken(&self, url: &str) -> usize {
        let targets = self.shared.targets.lock().unwrap();
        let target = targets.iter().find(|target| target.url == url).expect("it is behind the forwarder");
        target.taken.load(Ordering::Relaxed)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn forward(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let is_push = method == Method::PUT && uri.path().contains("/transactions/");
    let fault = if is_push { shared.next_fault() } else { None };
    match fault {
        Some(Fault::Refuse) => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Some(Fault::Lose) => return Json(json!({})).into_response(),
        Some(Fault::Hang(time)) => {
            sleep(time).await;
            break_off()
        }
        Some(Fault::BreakBody) => {
            shared.send_half(&uri, &headers, &body).await;
            break_off()
        }
        Some(Fault::TakeAndRefuse | Fault::TakeAndBreak) | None => {}
    }
    let (status, answer) = shared.pass_on(&method, &uri, &headers, &body).await;
    match fault {
        Some(Fault::TakeAndRefuse) => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Some(_) => break_off(),
        None => {}
    }
    if status.is_success() && uri.path().ends_with("/ping") {
        shared.book.lock().unwrap().pings += 1;
    }
    if is_push && status.is_success() {
        shared.note_pushed(&body);
    }
    (status, [(header::CONTENT_TYPE, "application/json")], answer).into_response()
}

/// Ends the connection's task, and says nothing about it.
fn break_off() -> ! {
    resume_unwind(Box::new("broken off on request"))
}

impl Shared {
    fn next_fault(&self) -> Option<Fault> {
        let mut book = self.book.lock().unwrap();
        let fault = book.faults.pop_front()?;
        book.failed += 1;
        Some(fault)
    }

    fn note_pushed(&self, body: &[u8]) {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let events = body["events"].as_array().cloned().unwrap_or_default();
        let ids = events.iter().filter_map(|event| event["event_id"].as_str().map(str::to_owned));
        self.book.lock().unwrap().pushed.extend(ids);
    }

    fn in_turn(&self) -> Vec<Target> {
        let mut targets = self.targets.lock().unwrap().clone();
        if !targets.is_empty() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % targets.len();
            targets.rotate_left(turn);
        }
        targets
    }

    async fn pass_on(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> (StatusCode, Bytes) {
        for target in self.in_turn() {
            let url = format!("{}{uri}", target.url);
            let mut request = self.client.request(method.clone(), url).body(body.clone());
            for name in [header::AUTHORIZATION, header::CONTENT_TYPE] {
                if let Some(value) = headers.get(&name) {
                    request = request.header(name, value);
                }
            }
            let Ok(answer) = request.send().await else { continue };
            let status = answer.status();
            let Ok(body) = answer.bytes().await else { continue };
            if status.is_success() {
                target.taken.fetch_add(1, Ordering::Relaxed);
            }
            return (status, body);
        }
        (StatusCode::BAD_GATEWAY, Bytes::new())
    }

    /// Announces the whole body to a process, sends half of it, and is gone.
    async fn send_half(&self, uri: &Uri, headers: &HeaderMap, body: &Bytes) {
        let Some(target) = self.in_turn().into_iter().next() else { return };
        let port = Url::parse(&target.url).unwrap().port().unwrap();
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else { return };
        let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let head = format!(
            "PUT {uri} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: {}\r\ncontent-length: {}\r\n\r\n",
            token.unwrap_or_default(),
            body.len()
        );
        let _ = stream.write_all(head.as_bytes()).await;
        let _ = stream.write_all(&body[..body.len() / 2]).await;
        let _ = stream.flush().await;
    }
}
