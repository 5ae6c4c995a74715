//! A network between coucou and its database, which can swallow everything without a word.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

use super::free_port;

/// A TCP proxy on 127.0.0.1. While it is shut nothing passes, and no connection ends; those that were open
/// then stay dead for ever, as when a firewall has forgotten them.
pub(crate) struct Gate {
    port: u16,
    /// How often it was shut and opened: even while it is open.
    turns: watch::Sender<u32>,
    server: JoinHandle<()>,
}

impl Gate {
    /// An open gate to a port of this machine.
    pub(crate) async fn before(port: u16) -> Self {
        let own = free_port();
        let listener = TcpListener::bind(("127.0.0.1", own)).await.unwrap();
        let (turns, seen) = watch::channel(0);
        let server = tokio::spawn(async move {
            while let Ok((inner, _)) = listener.accept().await {
                tokio::spawn(pass(inner, port, seen.clone()));
            }
        });
        Self { port: own, turns, server }
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Lets nothing pass from now on.
    pub(crate) fn shut(&self) {
        self.turns.send_modify(|turns| *turns |= 1);
    }

    /// Lets new connections pass again.
    pub(crate) fn open(&self) {
        self.turns.send_modify(|turns| *turns = (*turns | 1) + 1);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn pass(inner: TcpStream, port: u16, turns: watch::Receiver<u32>) {
    let turn = *turns.borrow();
    if turn % 2 == 1 {
        return hold(inner).await;
    }
    let Ok(outer) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let (inner_read, inner_write) = inner.into_split();
    let (outer_read, outer_write) = outer.into_split();
    tokio::select! {
        () = copy(inner_read, outer_write, turn, turns.clone()) => {}
        () = copy(outer_read, inner_write, turn, turns) => {}
    }
}

/// Copies until the gate is shut; then both ends are kept, and hear nothing more.
async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, turn: u32, turns: watch::Receiver<u32>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if *turns.borrow() != turn {
            return hold((from, to)).await;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
    if *turns.borrow() != turn {
        hold((from, to)).await;
    }
}

async fn hold<T: Send>(connection: T) {
    sleep(Duration::from_hours(1)).await;
    drop(connection);
}
