//! Connections, bounded in number and in time.
//!
//! Tokens are checked per request; before that, anybody can open a connection and send nothing, or a byte a
//! minute. So a request must be answered within [`REQUEST_TIMEOUT`] of its first byte, an idle connection ends
//! after [`IDLE_TIMEOUT`], and there are [`MAX_CONNECTIONS`] at most; others wait to be accepted.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep},
};

/// Connections at once.
const MAX_CONNECTIONS: usize = 1024;

/// From the first byte of a request to the first of its answer; handlers take 60 s at most.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(2);

/// How long a connection may be idle. Longer than Synapse keeps its own (120 s): a connection that we end just
/// as a transaction is sent on it fails that transaction, and a failed one comes back without its room keys.
const IDLE_TIMEOUT: Duration = Duration::from_mins(5);

/// A listener whose connections are bounded.
#[derive(Debug)]
pub(super) struct Connections {
    listener: TcpListener,
    permits: Arc<Semaphore>,
    limits: Limits,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    request: Duration,
    idle: Duration,
}

impl Connections {
    pub(super) fn of(listener: TcpListener) -> Self {
        let limits = Limits { request: REQUEST_TIMEOUT, idle: IDLE_TIMEOUT };
        Self { listener, permits: Arc::new(Semaphore::new(MAX_CONNECTIONS)), limits }
    }
}

/// Where a request comes from: who is on the other end of its connection, which may be a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer(pub(super) IpAddr);

impl Connected<IncomingStream<'_, Connections>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Connections>) -> Self {
        Self(stream.remote_addr().ip())
    }
}

impl Listener for Connections {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        // The semaphore is never closed; without a permit a connection is merely not counted.
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        // axum's own accept waits out errors such as too many open files.
        let (stream, address) = Listener::accept(&mut self.listener).await;
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection cannot be set up for short answers");
        }
        let deadline = Box::pin(sleep(self.limits.idle));
        (Connection { stream, deadline, in_request: false, limits: self.limits, _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A connection that ends when it is silent, or a request slow, for too long.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    /// Whether something came since we last sent something.
    in_request: bool,
    limits: Limits,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Connection {
    /// For a side that has nothing to do: not yet, or never again.
    fn pending_or_expired<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        ready!(self.deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Something came: the first of it begins a request.
    fn has_read(&mut self) {
        if !self.in_request {
            self.in_request = true;
            self.deadline.as_mut().reset(Instant::now() + self.limits.request);
        }
    }

    fn has_written(&mut self) {
        self.in_request = false;
        self.deadline.as_mut().reset(Instant::now() + self.limits.idle);
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let Poll::Ready(result) = Pin::new(&mut self.stream).poll_read(cx, buf) else {
            return self.pending_or_expired(cx);
        };
        if buf.filled().len() > before {
            self.has_read();
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Poll::Ready(result) = Pin::new(&mut self.stream).poll_write(cx, buf) else {
            return self.pending_or_expired(cx);
        };
        self.has_written();
        Poll::Ready(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Poll::Ready(result) = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs) else {
            return self.pending_or_expired(cx);
        };
        self.has_written();
        Poll::Ready(result)
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, routing::get};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::lifecycle::Lifecycle;

    async fn listen(limits: Limits, most: usize) -> (SocketAddr, Lifecycle) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Connections { listener, permits: Arc::new(Semaphore::new(most)), limits };
        let lifecycle = Lifecycle::default();
        let router = Router::new().route("/", get(async || "hello"));
        lifecycle.spawn(async move { axum::serve(connections, router).await });
        (address, lifecycle)
    }

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
    const LONG: Duration = Duration::from_hours(1);
    const SHORT: Duration = Duration::from_millis(100);

    /// Reads until the other side ends the connection.
    async fn ended(stream: &mut TcpStream) {
        let mut rest = Vec::new();
        // Ended politely or not.
        let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await.unwrap();
    }

    #[tokio::test]
    async fn an_idle_connection_ends() {
        let (address, _lifecycle) = listen(Limits { request: LONG, idle: SHORT }, 8).await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        ended(&mut silent).await;
        let mut kept_alive = TcpStream::connect(address).await.unwrap();
        kept_alive.write_all(REQUEST).await.unwrap();
        ended(&mut kept_alive).await;
    }

    #[tokio::test]
    async fn a_request_that_trickles_in_ends_however_busy_it_looks() {
        let (address, _lifecycle) = listen(Limits { request: SHORT, idle: LONG }, 8).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let trickle = async {
            for byte in REQUEST.iter().cycle() {
                if stream.write_all(&[*byte | 32]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), trickle).await.unwrap();
    }

    #[tokio::test]
    async fn one_connection_too_many_waits_for_its_turn() {
        let (address, _lifecycle) = listen(Limits { request: LONG, idle: LONG }, 1).await;
        let first = TcpStream::connect(address).await.unwrap();
        let mut second = TcpStream::connect(address).await.unwrap();
        second.write_all(REQUEST).await.unwrap();
        let mut answer = [0; 12];
        let early = tokio::time::timeout(SHORT, second.read_exact(&mut answer)).await;
        assert!(early.is_err(), "the second is not served beside the first");
        drop(first);
        tokio::time::timeout(Duration::from_secs(10), second.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    }
}
