//! HTTP/1.1 calls to one address, on connections that are kept.
//!
//! A connection is driven by the call that uses it and belongs to no task of its own, so that no request and no answer
//! goes from task to task; between calls it waits in a list. A receiver that closes one meanwhile is noticed at the next
//! call, which then takes another one: what was never written may be written elsewhere.

use std::{
    error::Error,
    future::poll_fn,
    io,
    mem::take,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{ACCEPT, AUTHORIZATION, HOST, PROXY_AUTHORIZATION, USER_AGENT},
};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::{Body, Incoming},
    client::conn::http1::{self, Connection, SendRequest},
};
use hyper_rustls::HttpsConnector;
use hyper_util::client::{
    legacy::connect::{HttpConnector, proxy::Tunnel},
    proxy::matcher::{Intercept, Matcher},
};
use rustls::ClientConfig;
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;
use tower_service::Service;
use url::{Position, Url};

use super::SendError;

/// How long to wait for an address to take a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an idle connection is kept. Below the idle timeout of common servers and proxies, which is 60 s and more.
const IDLE_TIMEOUT: Duration = Duration::from_secs(45);

/// Between two probes of a connection on which nothing comes, and how long what was sent may stay unacknowledged: a
/// receiver that vanished is noticed, and what stands between keeps the connection in mind.
const KEEPALIVE: Duration = Duration::from_secs(15);
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// What is read of an answer's body, and for how long, so that its connection can be used again; nobody
/// looks at it.
const MOST_ANSWER: usize = 4096;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

type BoxError = Box<dyn Error + Send + Sync>;

/// Something that bytes come and go by: TCP, or TLS over it, or either through a proxy.
trait Wire: hyper::rt::Read + hyper::rt::Write + Send + Unpin {}

impl<T: hyper::rt::Read + hyper::rt::Write + Send + Unpin> Wire for T {}

/// How addresses are reached: the system's certificates and the environment's proxies (`HTTPS_PROXY`, `HTTP_PROXY`,
/// `ALL_PROXY`, `NO_PROXY`). One for all webhooks.
#[derive(Clone)]
pub struct Client {
    connector: HttpsConnector<HttpConnector>,
    tls: ClientConfig,
    proxies: Arc<Matcher>,
    /// How long an idle connection is kept.
    patience: Duration,
    tasks: TaskTracker,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// A client for this process.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new() -> Result<Self, rustls::Error> {
        Self::through(Matcher::from_env(), IDLE_TIMEOUT)
    }

    pub(super) fn through(proxies: Matcher, patience: Duration) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_platform_verifier()?
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE));
        tcp.set_keepalive_retries(Some(3));
        tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
        let connector = HttpsConnector::from((tcp, tls.clone()));
        Ok(Self { connector, tls, proxies: Arc::new(proxies), patience, tasks: TaskTracker::new() })
    }
}

/// An address that is called, and the connections to it.
pub(super) struct Caller {
    client: Client,
    /// With scheme and host, as it is connected to.
    address: Uri,
    /// As it stands in a request.
    target: Uri,
    proxy: Option<Intercept>,
    /// What goes with every call.
    headers: HeaderMap,
    idle: Arc<Mutex<Idle>>,
}

/// The connections that nobody uses now, the last used at the end.
#[derive(Default)]
struct Idle {
    channels: Vec<Channel>,
    /// Whether a task looks after them.
    is_watched: bool,
}

/// What was answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
}

impl Caller {
    /// Calls `url`, which is http or https; `None` when it cannot stand in a request.
    pub(super) fn new(client: Client, url: &Url) -> Option<Self> {
        let mut bare = url.clone();
        bare.set_fragment(None);
        // They cannot fail: the URL has a host.
        let _ = (bare.set_username(""), bare.set_password(None));
        let address: Uri = bare.as_str().parse().ok()?;
        let proxy = client.proxies.intercept(&address);
        let asks_proxy = proxy.as_ref().filter(|_| url.scheme() == "http");
        let target =
            if asks_proxy.is_some() { address.clone() } else { bare[Position::BeforePath..].parse().ok()? };
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_str(&bare[Position::BeforeHost..Position::AfterPort]).ok()?);
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("coucou/", env!("CARGO_PKG_VERSION"))));
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        headers.extend(basic_auth(url).map(|value| (AUTHORIZATION, value)));
        let password = asks_proxy.and_then(Intercept::basic_auth);
        headers.extend(password.map(|value| (PROXY_AUTHORIZATION, value.clone())));
        Some(Self { client, address, target, proxy, headers, idle: Arc::default() })
    }

    /// The same, sending these headers with every call, instead of its own of the same name.
    pub(super) fn with(mut self, headers: HeaderMap) -> Self {
        self.headers.extend(headers);
        self
    }

    /// Posts a body with these headers added; answers what was answered within `limit`.
    ///
    /// # Errors
    /// [`SendError::Timeout`], [`SendError::Connect`] and [`SendError::Broken`]; none of them says anything of the
    /// address's path.
    pub(super) async fn post<const N: usize>(
        &self,
        headers: [(HeaderName, HeaderValue); N],
        body: Bytes,
        limit: Duration,
    ) -> Result<Answer, SendError> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.target.clone();
        request.headers_mut().clone_from(&self.headers);
        for (name, value) in headers {
            request.headers_mut().insert(name, value);
        }
        let (mut channel, answer) =
            timeout(limit, self.ask(request)).await.map_err(|_| SendError::Timeout)??;
        let (head, body) = answer.into_parts();
        // However the rest of the answer fares, its status stands.
        if body.is_end_stream() || timeout(ANSWER_TIMEOUT, channel.drain(body)).await == Ok(true) {
            self.keep(channel);
        }
        Ok(Answer { status: head.status, headers: head.headers })
    }

    async fn ask(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<(Channel, Response<Incoming>), SendError> {
        let broken = |error| SendError::Broken(Box::new(error));
        while let Some(mut channel) = self.idle() {
            match channel.send(request).await {
                Ok(answer) => return Ok((channel, answer)),
                Err((Some(unsent), _)) => request = unsent,
                Err((None, error)) => return Err(broken(error)),
            }
        }
        let mut channel = self.connect().await.map_err(of_connecting)?;
        let answer = channel.send(request).await.map_err(|(_, error)| broken(error))?;
        Ok((channel, answer))
    }

    async fn connect(&self) -> Result<Channel, BoxError> {
        let mut direct = self.client.connector.clone();
        let wire: Box<dyn Wire> = match &self.proxy {
            None => Box::new(connect(&mut direct, &self.address).await?),
            Some(proxy) if self.address.scheme_str() == Some("http") => {
                Box::new(connect(&mut direct, proxy.uri()).await?)
            }
            Some(proxy) => {
                let mut tunnel = Tunnel::new(proxy.uri().clone(), direct);
                if let Some(password) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(password.clone());
                }
                let mut secure = HttpsConnector::from((tunnel, self.client.tls.clone()));
                Box::new(connect(&mut secure, &self.address).await?)
            }
        };
        let (sender, connection) = http1::handshake(wire).await?;
        Ok(Channel { sender, connection: Some(connection), since: Instant::now() })
    }

    /// The connection that was used last, unless that is too long ago.
    fn idle(&self) -> Option<Channel> {
        let mut idle = lock(&self.idle);
        let channel = idle.channels.pop()?;
        if channel.since.elapsed() < self.client.patience {
            return Some(channel);
        }
        // What was used before it is older still.
        let stale = take(&mut idle.channels);
        drop(idle);
        drop(stale);
        None
    }

    fn keep(&self, mut channel: Channel) {
        if channel.connection.is_none() {
            return;
        }
        channel.since = Instant::now();
        let mut idle = lock(&self.idle);
        idle.channels.push(channel);
        if !std::mem::replace(&mut idle.is_watched, true) {
            self.client.tasks.spawn(watch(Arc::downgrade(&self.idle), self.client.patience));
        }
    }
}

/// Closes connections that nobody has used for too long, until there is none or their caller is gone.
async fn watch(idle: Weak<Mutex<Idle>>, patience: Duration) {
    loop {
        sleep(patience / 3).await;
        let Some(idle) = idle.upgrade() else { return };
        let mut idle = lock(&idle);
        idle.channels.retain(|channel| channel.since.elapsed() < patience);
        idle.is_watched = !idle.channels.is_empty();
        if !idle.is_watched {
            return;
        }
    }
}

fn lock(idle: &Mutex<Idle>) -> MutexGuard<'_, Idle> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn connect<C>(connector: &mut C, address: &Uri) -> Result<C::Response, BoxError>
where
    C: Service<Uri, Error: Into<BoxError>>,
{
    poll_fn(|context| connector.poll_ready(context)).await.map_err(Into::into)?;
    connector.call(address.clone()).await.map_err(Into::into)
}

/// The name and password that an address contains, which is how some receivers want them.
fn basic_auth(url: &Url) -> Option<HeaderValue> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use percent_encoding::percent_decode_str;

    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let mut login: Vec<u8> = percent_decode_str(url.username()).collect();
    login.push(b':');
    login.extend(percent_decode_str(url.password().unwrap_or_default()));
    let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(login))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn of_connecting(error: BoxError) -> SendError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&*error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            return SendError::Timeout;
        }
        cause = error.source();
    }
    SendError::Connect(error)
}

/// A connection and what sends on it.
struct Channel {
    sender: SendRequest<Full<Bytes>>,
    /// `None` once it has ended.
    connection: Option<Connection<Box<dyn Wire>, Full<Bytes>>>,
    /// When it was last used.
    since: Instant,
}

/// The request, when nothing of it was written, and why.
type Unsent = (Option<Request<Full<Bytes>>>, hyper::Error);

impl Channel {
    async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Unsent> {
        if let Err(error) = drive(&mut self.connection, self.sender.ready()).await {
            return Err((Some(request), error));
        }
        let sent = drive(&mut self.connection, self.sender.try_send_request(request)).await;
        sent.map_err(|mut error| (error.take_message(), error.into_error()))
    }

    /// Reads what there is of an answer's body, unless it is much; answers whether that was all of it.
    async fn drain(&mut self, mut body: Incoming) -> bool {
        let mut read = 0;
        while read <= MOST_ANSWER {
            match drive(&mut self.connection, body.frame()).await {
                None => return true,
                Some(Ok(frame)) => read += frame.data_ref().map_or(0, Bytes::len),
                Some(Err(_)) => return false,
            }
        }
        false
    }
}

/// Does work on a connection that makes progress meanwhile. The end of the connection ends the work.
async fn drive<T>(
    connection: &mut Option<Connection<Box<dyn Wire>, Full<Bytes>>>,
    work: impl Future<Output = T>,
) -> T {
    let mut work = pin!(work);
    poll_fn(|context| {
        if let Poll::Ready(done) = work.as_mut().poll(context) {
            return Poll::Ready(done);
        }
        let ended = connection.as_mut().is_some_and(|running| Pin::new(running).poll(context).is_ready());
        if ended {
            *connection = None;
        }
        work.as_mut().poll(context)
    })
    .await
}

#[cfg(test)]
mod tests;
