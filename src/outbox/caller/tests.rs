use std::net::SocketAddr;

use assert_matches::assert_matches;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::task::AbortOnDropHandle;

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A receiver's end of a connection, read and written by hand.
struct Line(TcpStream);

impl Line {
    async fn accept(listener: &TcpListener) -> Self {
        Self(timeout(LIMIT, listener.accept()).await.unwrap().unwrap().0)
    }

    /// The head of the next request, whose body is `{}` unless it has none; `None` at the end of the connection.
    async fn request(&mut self) -> Option<String> {
        let mut read = Vec::new();
        loop {
            if self.0.read_buf(&mut read).await.unwrap() == 0 {
                assert!(read.is_empty());
                return None;
            }
            let text = String::from_utf8(read.clone()).unwrap();
            if text.ends_with("\r\n\r\n{}") || (text.starts_with("CONNECT") && text.ends_with("\r\n\r\n")) {
                return Some(text);
            }
        }
    }

    async fn answer(&mut self, answer: &str) {
        self.0.write_all(answer.as_bytes()).await.unwrap();
    }
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn caller(url: &str, proxies: Matcher) -> Arc<Caller> {
    let client = Client::through(proxies, IDLE_TIMEOUT).unwrap();
    Arc::new(Caller::new(client, &Url::parse(url).unwrap()).unwrap())
}

fn direct(address: SocketAddr) -> Arc<Caller> {
    caller(&format!("http://{address}/hook?token=t#part"), Matcher::builder().build())
}

fn post(caller: &Arc<Caller>) -> AbortOnDropHandle<Result<Answer, SendError>> {
    let caller = Arc::clone(caller);
    let post = async move { caller.post([], Bytes::from_static(b"{}"), LIMIT).await };
    AbortOnDropHandle::new(TaskTracker::new().spawn(post))
}

#[tokio::test]
async fn calls_that_follow_each_other_share_a_connection_and_others_do_not() {
    let (listener, address) = listener().await;
    let caller = direct(address);
    let first = post(&caller);
    let mut line = Line::accept(&listener).await;
    let request = line.request().await.unwrap();
    assert!(request.starts_with("POST /hook?token=t HTTP/1.1\r\n"), "{request}");
    assert!(request.contains(&format!("\r\nhost: {address}\r\n")), "{request}");
    // While the first one waits, another needs its own.
    let second = post(&caller);
    let mut other = Line::accept(&listener).await;
    assert!(other.request().await.is_some());
    other.answer(OK).await;
    assert_eq!(second.await.unwrap().unwrap().status, 200);
    line.answer("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(first.await.unwrap().unwrap().status, 204);
    // The one that was used last is used again, whose answer had no body.
    for _ in 0..3 {
        let next = post(&caller);
        assert!(line.request().await.is_some());
        line.answer("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").await;
        assert_eq!(next.await.unwrap().unwrap().status, 200);
    }
    assert_eq!(lock(&caller.idle).channels.len(), 2);
}

#[tokio::test]
async fn a_connection_that_was_closed_meanwhile_costs_no_call() {
    let (listener, address) = listener().await;
    let caller = direct(address);
    let (first, second) = (post(&caller), post(&caller));
    let mut lines = [Line::accept(&listener).await, Line::accept(&listener).await];
    for line in &mut lines {
        assert!(line.request().await.is_some());
        line.answer(OK).await;
    }
    assert!(first.await.unwrap().is_ok() && second.await.unwrap().is_ok());
    assert_eq!(lock(&caller.idle).channels.len(), 2);
    drop(lines);
    // It takes a moment until that is known here.
    sleep(Duration::from_millis(50)).await;
    let next = post(&caller);
    let mut line = Line::accept(&listener).await;
    assert!(line.request().await.is_some());
    line.answer("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(next.await.unwrap().unwrap().status, 200);
    // The receiver said that it would close this one.
    let next = post(&caller);
    let mut line = Line::accept(&listener).await;
    assert!(line.request().await.is_some());
    // Nobody knows whether this request was taken, so it is not made again here.
    drop(line);
    assert_matches!(next.await.unwrap(), Err(SendError::Broken(_)));
    assert!(lock(&caller.idle).channels.is_empty());
}

#[tokio::test]
async fn a_connection_with_an_answer_that_goes_on_is_not_used_again() {
    let (listener, address) = listener().await;
    let caller = direct(address);
    for answer in [
        // More than anybody wants to read.
        format!("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n{}", "x".repeat(MOST_ANSWER + 1)),
        // Less than was promised.
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok".to_owned(),
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nno size".to_owned(),
    ] {
        let next = post(&caller);
        let mut line = Line::accept(&listener).await;
        assert!(line.request().await.is_some());
        line.answer(&answer).await;
        assert_eq!(next.await.unwrap().unwrap().status, 200, "the status stands");
        assert!(lock(&caller.idle).channels.is_empty(), "{}", &answer[..60]);
        drop(line);
    }
}

#[tokio::test]
async fn idle_connections_are_closed_in_time() {
    let (listener, address) = listener().await;
    let client = Client::through(Matcher::builder().build(), Duration::from_millis(300)).unwrap();
    let url = Url::parse(&format!("http://{address}")).unwrap();
    let caller = Arc::new(Caller::new(client, &url).unwrap());
    let first = post(&caller);
    let mut line = Line::accept(&listener).await;
    assert!(line.request().await.is_some());
    line.answer(OK).await;
    assert!(first.await.unwrap().is_ok());
    assert!(line.request().await.is_none(), "nobody calls, and the receiver sees the end of the connection");
    // Whoever looks after them has ended with the last of them, and begins anew.
    assert!(lock(&caller.idle).channels.is_empty() && !lock(&caller.idle).is_watched);
    let next = post(&caller);
    let mut line = Line::accept(&listener).await;
    assert!(line.request().await.is_some());
    line.answer(OK).await;
    assert!(next.await.unwrap().is_ok());
    assert!(lock(&caller.idle).is_watched);
}

#[tokio::test]
async fn a_call_that_is_given_up_ends_its_connection() {
    let (listener, address) = listener().await;
    let caller = direct(address);
    let call = post(&caller);
    let mut line = Line::accept(&listener).await;
    assert!(line.request().await.is_some());
    drop(call);
    assert!(line.request().await.is_none());
    assert!(lock(&caller.idle).channels.is_empty(), "an answer to it would be taken for that of another");
}

#[tokio::test]
async fn a_login_in_the_address_goes_into_a_header() {
    let (listener, address) = listener().await;
    let caller =
        caller(&format!("http://me:p%40ss%20word@{address}/{{a}}|b?x=\"y\""), Matcher::builder().build());
    let call = post(&caller);
    let mut line = Line::accept(&listener).await;
    let request = line.request().await.unwrap();
    assert!(request.contains("\r\nauthorization: Basic bWU6cEBzcyB3b3Jk\r\n"), "{request}");
    assert!(request.contains(&format!("\r\nhost: {address}\r\n")), "{request}");
    assert!(!request.contains("me:"), "{request}");
    line.answer(OK).await;
    assert!(call.await.unwrap().is_ok());
    // As the settings may say it themselves.
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer t"));
    let caller = Arc::new(Arc::into_inner(caller).unwrap().with(headers));
    let _call = post(&caller);
    let request = line.request().await.unwrap();
    assert!(request.contains("\r\nauthorization: Bearer t\r\n") && !request.contains("Basic"), "{request}");
}

#[tokio::test]
async fn a_proxy_is_asked_for_what_it_is_there_for() {
    let (listener, address) = listener().await;
    let proxies = || {
        let proxy = format!("http://me:secret@{address}");
        Matcher::builder().all(proxy).no("inside.example").build()
    };
    let plain = caller("http://webhook.example:8080/hook?token=t", proxies());
    let call = post(&plain);
    let mut line = Line::accept(&listener).await;
    let request = line.request().await.unwrap();
    assert!(request.starts_with("POST http://webhook.example:8080/hook?token=t HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("\r\nhost: webhook.example:8080\r\n"), "{request}");
    assert!(request.contains("\r\nproxy-authorization: Basic bWU6c2VjcmV0\r\n"), "{request}");
    line.answer(OK).await;
    assert_eq!(call.await.unwrap().unwrap().status, 200);

    let secure = caller("https://webhook.example/hook?token=t", proxies());
    let call = post(&secure);
    let mut line = Line::accept(&listener).await;
    let request = line.request().await.unwrap();
    assert!(request.starts_with("CONNECT webhook.example:443 HTTP/1.1\r\n"), "{request}");
    assert!(request.to_lowercase().contains("proxy-authorization: basic bwu6c2vjcmv0\r\n"), "{request}");
    assert!(!request.contains("token"), "{request}");
    line.answer("HTTP/1.1 200 OK\r\n\r\n").await;
    // The greeting of TLS, and not a word of the request.
    assert_eq!(line.0.read_u8().await.unwrap(), 22);
    drop(line);
    assert_matches!(call.await.unwrap(), Err(SendError::Connect(_)));

    assert!(caller("https://inside.example", proxies()).proxy.is_none());
    assert!(caller("https://elsewhere.example", proxies()).proxy.is_some());
}

#[tokio::test]
async fn what_does_not_speak_tls_is_no_connection() {
    let (listener, address) = listener().await;
    let caller = caller(&format!("https://{address}/"), Matcher::builder().build());
    let call = post(&caller);
    let mut line = Line::accept(&listener).await;
    let mut hello = [0; 5];
    line.0.read_exact(&mut hello).await.unwrap();
    line.answer("HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let why = assert_matches!(call.await.unwrap(), Err(SendError::Connect(why)) => why);
    assert!(!why.to_string().is_empty());
}
