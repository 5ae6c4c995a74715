//! A network between coucou and its homeserver, on which connections break in the middle of an answer.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
};

use super::free_port;

/// No connection is that long.
const WHOLE: usize = usize::MAX;

/// A TCP proxy on 127.0.0.1.
pub(crate) struct Cutter {
    port: u16,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

struct Shared {
    /// Bytes of answers that a connection carries before it breaks.
    most: AtomicUsize,
    cuts: AtomicUsize,
}

impl Cutter {
    /// A whole network, to a port of this machine.
    pub(crate) async fn before(port: u16) -> Self {
        let own = free_port();
        let listener = TcpListener::bind(("127.0.0.1", own)).await.unwrap();
        let shared = Arc::new(Shared { most: AtomicUsize::new(WHOLE), cuts: AtomicUsize::new(0) });
        let seen = Arc::clone(&shared);
        let server = tokio::spawn(async move {
            while let Ok((inner, _)) = listener.accept().await {
                tokio::spawn(pass(inner, port, Arc::clone(&seen)));
            }
        });
        Self { port: own, shared, server }
    }

    /// Its base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Lets no connection carry more than so many bytes of answers from now on.
    pub(crate) fn cut_after(&self, bytes: usize) {
        self.shared.most.store(bytes, Ordering::Relaxed);
    }

    /// Cuts no more.
    pub(crate) fn mend(&self) {
        self.shared.most.store(WHOLE, Ordering::Relaxed);
    }

    /// Connections cut so far.
    pub(crate) fn cuts(&self) -> usize {
        self.shared.cuts.load(Ordering::Relaxed)
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn pass(inner: TcpStream, port: u16, shared: Arc<Shared>) {
    let Ok(outer) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let (mut inner_read, inner_write) = inner.into_split();
    let (outer_read, mut outer_write) = outer.into_split();
    // What ends first ends both.
    tokio::select! {
        _ = copy(&mut inner_read, &mut outer_write) => {}
        () = answers(outer_read, inner_write, &shared) => {}
    }
}

/// Copies answers until they are too many.
async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shared: &Shared) {
    let mut buffer = vec![0; 4 << 10];
    let mut carried = 0;
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let most = shared.most.load(Ordering::Relaxed);
        carried = if most == WHOLE { 0 } else { carried + length };
        let beyond = carried.saturating_sub(most).min(length);
        if to.write_all(&buffer[..length - beyond]).await.is_err() {
            return;
        }
        if beyond > 0 {
            shared.cuts.fetch_add(1, Ordering::Relaxed);
            let _ = to.flush().await;
            return;
        }
    }
}
