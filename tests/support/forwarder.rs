//! What stands before several processes: one address for the homeserver, any of them behind it.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, Method, StatusCode, Uri, header};
use tokio::{net::TcpListener, task::JoinHandle};

use super::{free_port, http};

/// A load balancer on 127.0.0.1: each request goes to the next process, and on to another when the
/// connection fails.
pub(crate) struct Forwarder {
    shared: Arc<Shared>,
    port: u16,
    server: JoinHandle<()>,
}

struct Shared {
    client: reqwest::Client,
    targets: Mutex<Vec<Target>>,
    turn: AtomicUsize,
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
        let shared =
            Arc::new(Shared { client: http(), targets: Mutex::default(), turn: AtomicUsize::default() });
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
    let mut targets = shared.targets.lock().unwrap().clone();
    if !targets.is_empty() {
        let turn = shared.turn.fetch_add(1, Ordering::Relaxed) % targets.len();
        targets.rotate_left(turn);
    }
    for target in targets {
        let mut request =
            shared.client.request(method.clone(), format!("{}{uri}", target.url)).body(body.clone());
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
        return (status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
    }
    StatusCode::BAD_GATEWAY.into_response()
}
