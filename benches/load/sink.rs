//! A webhook that is quick, and checks everything: signature, content, order, no message under two ids.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Deserialize;
use tokio::{net::TcpListener, time::sleep};

use crate::rig::support::free_port;

/// How long nothing may arrive before the run is given up.
const SILENCE: Duration = Duration::from_mins(1);

#[derive(Deserialize)]
struct Payload {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    id: String,
    event_id: String,
    room_id: String,
    sequence: u64,
    /// None of a room that is joined.
    content: Option<Content>,
}

#[derive(Deserialize)]
struct Content {
    text: String,
}

#[derive(Default)]
struct Book {
    /// By event: when it arrived.
    arrived: HashMap<String, Instant>,
    ids: HashSet<String>,
    last_sequence: HashMap<String, u64>,
    repeats: usize,
}

struct Shared {
    key: standardwebhooks::Webhook,
    book: Mutex<Book>,
    /// What each event must say.
    expected: Mutex<HashMap<String, String>>,
    pause: Duration,
}

/// A webhook on 127.0.0.1.
pub(crate) struct Sink {
    shared: Arc<Shared>,
    pub(crate) secret: String,
    port: u16,
}

impl Sink {
    /// Starts one that waits for `pause` before each answer.
    pub(crate) async fn start(pause: Duration) -> Self {
        let secret = format!("whsec_{}", BASE64_STANDARD.encode(rand::random::<[u8; 32]>()));
        let key = standardwebhooks::Webhook::new(&secret).unwrap();
        let (book, expected) = (Mutex::default(), Mutex::default());
        let shared = Arc::new(Shared { key, book, expected, pause });
        let port = free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let router = Router::new().route("/hook", post(receive)).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { shared, secret, port }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port)
    }

    /// From now on these events may come, and must say this.
    pub(crate) fn expect(&self, events: impl IntoIterator<Item = (String, String)>) {
        self.shared.expected.lock().unwrap().extend(events);
    }

    /// Waits until all that is expected has arrived; answers when each did, and how many came again.
    pub(crate) async fn all(&self) -> (HashMap<String, Instant>, usize) {
        let wanted = self.shared.expected.lock().unwrap().len();
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            let arrived = self.shared.book.lock().unwrap().arrived.len();
            if arrived == wanted {
                let book = self.shared.book.lock().unwrap();
                return (book.arrived.clone(), book.repeats);
            }
            if arrived > seen {
                (seen, since) = (arrived, Instant::now());
            }
            assert!(since.elapsed() < SILENCE, "{arrived} of {wanted} messages arrived, then none");
            sleep(Duration::from_millis(2)).await;
        }
    }
}

async fn receive(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) {
    shared.key.verify(&body, &headers).expect("every delivery is signed");
    let Payload { data } = serde_json::from_slice(&body).expect("every delivery is a message");
    if !shared.pause.is_zero() {
        sleep(shared.pause).await;
    }
    let at = Instant::now();
    let Some(content) = data.content else {
        shared.book.lock().unwrap().last_sequence.insert(data.room_id, data.sequence);
        return;
    };
    let expected = shared.expected.lock().unwrap().get(&data.event_id).cloned();
    assert_eq!(expected.as_deref(), Some(&*content.text), "what {} says", data.event_id);
    let mut book = shared.book.lock().unwrap();
    if book.arrived.contains_key(&data.event_id) {
        assert!(book.ids.contains(&data.id), "{} came under two ids", data.event_id);
        book.repeats += 1;
        return;
    }
    assert!(book.ids.insert(data.id), "an id stands for two events");
    let last = book.last_sequence.insert(data.room_id, data.sequence).unwrap_or_default();
    assert_eq!(last + 1, data.sequence, "the order of a room");
    book.arrived.insert(data.event_id, at);
}
