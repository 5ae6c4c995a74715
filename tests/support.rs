//! The rig: everything that a scenario runs against, real where it can be.
#![expect(dead_code, reason = "the rig offers more than today's scenarios use")]

use std::{
    net::TcpListener,
    path::PathBuf,
    process::Command,
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use rand::Rng;

pub(crate) mod arrival;
pub(crate) mod certificates;
pub(crate) mod consumers;
pub(crate) mod coucou;
pub(crate) mod cutter;
pub(crate) mod device;
pub(crate) mod fake_homeserver;
pub(crate) mod forwarder;
pub(crate) mod gate;
pub(crate) mod json;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod receiver;
pub(crate) mod schema;
pub(crate) mod synapse;

/// The folder of the crate.
pub(crate) fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A port on which nothing listens, given out once.
///
/// It lies below the range from which systems take ports for outgoing connections, so that it stays free
/// while a server is down.
pub(crate) fn free_port() -> u16 {
    static NEXT: LazyLock<AtomicU16> =
        LazyLock::new(|| AtomicU16::new(rand::rng().random_range(12_000..19_000)));
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Asks `look` again and again until it answers something; panics after `deadline`, saying `what` it awaited.
pub(crate) async fn until<T>(what: &str, deadline: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(began.elapsed() < deadline, "waited {deadline:?} in vain for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Runs a command to its end and answers its standard output; panics with all it said when it fails.
pub(crate) async fn run(mut command: Command) -> String {
    tokio::task::spawn_blocking(move || {
        let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?} ended with {}:\n{said}{complaint}", output.status);
        said
    })
    .await
    .unwrap()
}

/// A client for plain HTTP on this machine.
pub(crate) fn http() -> reqwest::Client {
    // An error means that another test was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().timeout(Duration::from_secs(30)).build().unwrap()
}
