//! A webhook that writes down what it is told, verifies it, and fails on request.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    mem,
    panic::resume_unwind,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    response::{IntoResponse, Response},
    routing::post,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderMap, StatusCode};
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle};

use super::{free_port, json, schema, until};

/// How a request is answered.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// With this status.
    Status(u16),
    /// With this status and `Retry-After`, in seconds.
    RetryAfter(u16, u32),
    /// With this status, so much later.
    Late(u16, Duration),
    /// With this status and ten megabytes of `x`.
    Large(u16),
    /// With a redirect to itself.
    Redirect,
    /// Never: the request is read and nothing said.
    Hang,
    /// Not at all: the connection is closed once the request is read.
    Close,
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    /// `webhook-id`.
    pub(crate) id: String,
    /// `webhook-timestamp`, in seconds.
    pub(crate) timestamp: i64,
    /// All headers.
    pub(crate) headers: HeaderMap,
    /// The body as it came.
    pub(crate) body: Bytes,
    /// The body's JSON.
    pub(crate) payload: Value,
    /// When it came.
    pub(crate) at: Instant,
    /// The status that it was answered with, if it was.
    pub(crate) status: Option<u16>,
}

impl Attempt {
    /// Whether it was taken.
    pub(crate) fn accepted(&self) -> bool {
        self.status.is_some_and(|status| (200..300).contains(&status))
    }

    /// Whether it tells what somebody said: `message.created` or `message.edited`.
    pub(crate) fn is_message(&self) -> bool {
        matches!(self.event(), "message.created" | "message.edited")
    }

    /// The payload's `type`.
    pub(crate) fn event(&self) -> &str {
        self.payload["type"].as_str().unwrap_or_default()
    }

    /// The payload's `data`.
    pub(crate) fn data(&self) -> &Value {
        &self.payload["data"]
    }

    /// The room that it tells of.
    pub(crate) fn room_id(&self) -> &str {
        self.data()["room_id"].as_str().unwrap_or_default()
    }

    /// The messages that it tells: those of a batch, else itself.
    pub(crate) fn messages(&self) -> Vec<&Value> {
        match self.data()["messages"].as_array() {
            Some(messages) => messages.iter().collect(),
            None => vec![&self.payload],
        }
    }

    /// The Matrix event that it tells of.
    pub(crate) fn event_id(&self) -> &str {
        self.data()["event_id"].as_str().unwrap_or_default()
    }
}

/// What is kept of the requests.
#[derive(Default)]
struct Book {
    attempts: Vec<Attempt>,
    violations: Vec<String>,
    next: VecDeque<Answer>,
    always: Option<Answer>,
    /// Where the first attempt under an id is.
    first: HashMap<String, usize>,
    /// How many requests of a room are under way.
    at_once: HashMap<String, usize>,
}

struct Shared {
    key: standardwebhooks::Webhook,
    any_time: AtomicBool,
    any_payload: AtomicBool,
    any_order: AtomicBool,
    any_secret: AtomicBool,
    book: Mutex<Book>,
}

/// A webhook on 127.0.0.1.
///
/// Every request must be signed, be as the published schema says, and repeat the first body told under its
/// `webhook-id`, but for the addresses of files, which expire; and no two of one room may be under way at once.
/// Anything else fails the test, when it waits or at its end.
pub(crate) struct Receiver {
    shared: Arc<Shared>,
    secret: String,
    port: u16,
    server: JoinHandle<()>,
}

impl Receiver {
    /// Starts one that takes everything.
    pub(crate) async fn start() -> Self {
        Self::start_on(free_port()).await
    }

    /// As [`Receiver::start`], on a port that was known before.
    pub(crate) async fn start_on(port: u16) -> Self {
        let secret = format!("whsec_{}", BASE64_STANDARD.encode(rand::random::<[u8; 32]>()));
        let key = standardwebhooks::Webhook::new(&secret).unwrap();
        let shared = Arc::new(Shared {
            key,
            any_time: AtomicBool::default(),
            any_payload: AtomicBool::default(),
            any_order: AtomicBool::default(),
            any_secret: AtomicBool::default(),
            book: Mutex::default(),
        });
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let router = Router::new()
            .route("/hook", post(receive))
            .layer(DefaultBodyLimit::max(64 << 20))
            .with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { shared, secret, port, server }
    }

    /// Does not look at when requests say they were made: their sender's clock is moved by hand.
    pub(crate) fn at_any_time(&self) {
        self.shared.any_time.store(true, Ordering::SeqCst);
    }

    /// Takes requests that others than its own secret have signed.
    pub(crate) fn signed_by_anybody(&self) {
        self.shared.any_secret.store(true, Ordering::SeqCst);
    }

    /// Lets deliveries of one room be under way at once: its webhook has no order.
    pub(crate) fn in_any_order(&self) {
        self.shared.any_order.store(true, Ordering::SeqCst);
    }

    /// Takes any JSON for a payload: what is sent is not coucou's.
    pub(crate) fn of_any_payload(self) -> Self {
        self.shared.any_payload.store(true, Ordering::SeqCst);
        self
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port)
    }

    /// What deliveries must be signed with.
    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }

    /// Answers the next requests with these, one each, and then as before.
    pub(crate) fn answer_next(&self, answers: impl IntoIterator<Item = Answer>) {
        self.shared.book.lock().unwrap().next.extend(answers);
    }

    /// Answers every request so until told otherwise; `None` takes everything.
    pub(crate) fn answer_always(&self, answer: Option<Answer>) {
        self.shared.book.lock().unwrap().always = answer;
    }

    /// Every request so far, in order of arrival.
    pub(crate) fn attempts(&self) -> Vec<Attempt> {
        self.check();
        self.shared.book.lock().unwrap().attempts.clone()
    }

    /// The deliveries taken so far, each once, in the order in which they were taken.
    pub(crate) fn taken(&self) -> Vec<Attempt> {
        let mut seen = HashSet::new();
        let mut attempts = self.attempts();
        attempts.retain(|attempt| attempt.accepted() && seen.insert(attempt.id.clone()));
        attempts
    }

    /// How many messages and edits are taken so far; cheap however many there are.
    pub(crate) fn message_count(&self) -> usize {
        let book = self.shared.book.lock().unwrap();
        let told = book.attempts.iter().filter(|attempt| attempt.accepted()).flat_map(Attempt::messages);
        let said = told
            .filter(|message| message["type"] == "message.created" || message["type"] == "message.edited");
        said.map(|message| message["data"]["id"].as_str()).collect::<HashSet<_>>().len()
    }

    /// The messages and edits taken so far, each once.
    pub(crate) fn messages(&self) -> Vec<Attempt> {
        self.taken().into_iter().filter(Attempt::is_message).collect()
    }

    /// Waits until `count` messages are taken, and answers them; panics after `deadline`.
    pub(crate) async fn wait_for(&self, count: usize, deadline: Duration) -> Vec<Attempt> {
        self.wait_until(&format!("{count} messages"), deadline, |taken| {
            taken.iter().filter(|attempt| attempt.is_message()).count() >= count
        })
        .await;
        self.messages()
    }

    /// Waits until so many requests came, taken or not.
    pub(crate) async fn wait_for_attempts(&self, count: usize, deadline: Duration) {
        let enough = async || (self.attempts().len() >= count).then_some(());
        until(&format!("{count} requests"), deadline, enough).await;
    }

    /// Waits until what is taken satisfies `enough`, and answers it; panics after `deadline`.
    pub(crate) async fn wait_until(
        &self,
        what: &str,
        deadline: Duration,
        enough: impl Fn(&[Attempt]) -> bool + Send + Sync,
    ) -> Vec<Attempt> {
        let began = Instant::now();
        until(what, deadline, async || {
            let taken = self.taken();
            if enough(&taken) {
                return Some(taken);
            }
            assert!(began.elapsed() < deadline, "waited {deadline:?} for {what}; taken so far: {taken:#?}");
            None
        })
        .await
    }

    /// What broke the rules so far; forgotten hereby.
    pub(crate) fn violations(&self) -> Vec<String> {
        mem::take(&mut self.shared.book.lock().unwrap().violations)
    }

    /// Panics when a request broke the rules.
    pub(crate) fn check(&self) {
        let violations = self.violations();
        assert!(violations.is_empty(), "bad deliveries: {violations:#?}");
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
        if !thread::panicking() {
            self.check();
        }
    }
}

async fn receive(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let (index, room_id, answer) = shared.note(&headers, body);
    let under_way = UnderWay { shared: &shared, room_id };
    let status = match answer {
        Answer::Status(status) | Answer::RetryAfter(status, _) | Answer::Large(status) => status,
        Answer::Redirect => 302,
        Answer::Late(status, delay) => {
            tokio::time::sleep(delay).await;
            status
        }
        Answer::Hang => std::future::pending().await,
        // Ends the connection's task, and says nothing about it.
        Answer::Close => {
            drop(under_way);
            resume_unwind(Box::new("closed on request"))
        }
    };
    shared.book.lock().unwrap().attempts[index].status = Some(status);
    drop(under_way);
    let mut response = StatusCode::from_u16(status).unwrap().into_response();
    match answer {
        Answer::RetryAfter(_, seconds) => {
            response.headers_mut().insert("retry-after", seconds.into());
        }
        Answer::Large(_) => *response.body_mut() = vec![b'x'; 10_000_000].into(),
        Answer::Redirect => {
            response.headers_mut().insert("location", "/hook".parse().unwrap());
        }
        _ => {}
    }
    response
}

impl Shared {
    fn note(&self, headers: &HeaderMap, body: Bytes) -> (usize, String, Answer) {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let id = header("webhook-id").to_owned();
        let mut wrong = Vec::new();
        if self.any_secret.load(Ordering::SeqCst) {
            // The test looks itself.
        } else if self.any_time.load(Ordering::SeqCst) {
            let sent_at = header("webhook-timestamp").parse().unwrap_or_default();
            let signature = self.key.sign(&id, sent_at, &body).unwrap();
            if !header("webhook-signature").split(' ').any(|given| given == signature) {
                wrong.push(format!("{id}: not signed"));
            }
        } else if let Err(error) = self.key.verify(&body, headers) {
            wrong.push(format!("{id}: {error}"));
        }
        if id.is_empty() || id.contains('.') {
            wrong.push(format!("a webhook-id of {id:?}"));
        }
        let payload = json::read(&body).unwrap_or_else(|error| {
            wrong.push(format!("{id}: not JSON: {error}"));
            Value::Null
        });
        if let Some(complaint) =
            schema::complaint(&payload).filter(|_| !self.any_payload.load(Ordering::SeqCst))
        {
            wrong.push(format!("{id}: not as docs/schema/webhook.json says: {complaint}"));
        }
        let timestamp = header("webhook-timestamp").parse().unwrap_or_default();
        let headers = headers.clone();
        let attempt = Attempt { id, timestamp, headers, body, payload, at: Instant::now(), status: None };
        let room_id = attempt.room_id().to_owned();
        let mut book = self.book.lock().unwrap();
        let index = book.attempts.len();
        let first = *book.first.entry(attempt.id.clone()).or_insert(index);
        if first < index && without_addresses(&book.attempts[first]) != without_addresses(&attempt) {
            wrong.push(format!("another body than the first: {attempt:?}, {:?}", book.attempts[first]));
        }
        let under_way = book.at_once.entry(room_id.clone()).or_default();
        *under_way += 1;
        if *under_way > 1 && !room_id.is_empty() && !self.any_order.load(Ordering::SeqCst) {
            wrong.push(format!("{} overtakes another delivery of {room_id}", attempt.id));
        }
        book.violations.extend(wrong);
        book.attempts.push(attempt);
        let answer = book.next.pop_front().or_else(|| book.always.clone()).unwrap_or(Answer::Status(200));
        (index, room_id, answer)
    }
}

/// The body without the addresses of files; as it came when there are none.
fn without_addresses(attempt: &Attempt) -> String {
    let mut body = String::from_utf8_lossy(&attempt.body).into_owned();
    let mut files = Vec::new();
    for part in ["/data/content", "/data/sender"] {
        attempt.payload.pointer(part).into_iter().for_each(|value| find_files(value, &mut files));
    }
    for value in
        files.into_iter().flat_map(|file| ["url", "url_expires_at"].map(|key| file.get(key))).flatten()
    {
        body = body.replacen(&value.to_string(), "null", 1);
    }
    body
}

/// The objects below a value that are files: those with an `mxc` address.
fn find_files<'a>(value: &'a Value, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(object) => {
            if object.contains_key("mxc") {
                found.push(value);
            }
            object.values().for_each(|value| find_files(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| find_files(value, found)),
        _ => {}
    }
}

/// Counts a request as under way until it is answered or its sender hangs up.
struct UnderWay<'a> {
    shared: &'a Shared,
    room_id: String,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut book = self.shared.book.lock().unwrap();
        if let Some(count) = book.at_once.get_mut(&self.room_id) {
            *count -= 1;
        }
    }
}
