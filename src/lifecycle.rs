//! Start and stop: one token that says stop, one tracker of what still runs.
//!
//! The first signal asks workers to finish what is in hand; the second, or the timeout, ends the process.
//! Both are safe at any point: every step of coucou can run twice.

mod supervisor;

pub use supervisor::CoreTask;

use std::{future::Future, hint::black_box, io, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Hands out the stop token and spawns tasks that the stop waits for.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Lifecycle {
    /// A token that is cancelled when the process shall stop.
    #[must_use]
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Spawns a task that [`Lifecycle::stopped`] waits for.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn(future)
    }

    /// Asks every worker to stop.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until every task has ended, `patience` at most; says whether all did.
    pub async fn stopped(&self, patience: Duration) -> bool {
        self.tasks.close();
        tokio::time::timeout(patience, self.tasks.wait()).await.is_ok()
    }
}

/// A block so large that the allocator has pages of its own for it.
const LARGE_BLOCK: usize = 1 << 20;

/// Lets the allocator give back to the system what was freed a while ago.
///
/// mimalloc looks for that when a large block is freed, so a process in which nothing happens would keep what its start
/// has taken (19 MiB for the hash of the pickle key alone), and a busy one what a burst took.
pub fn give_memory_back() {
    drop(black_box(Vec::<u8>::with_capacity(LARGE_BLOCK)));
}

/// Waits for the signal to stop: SIGTERM or SIGINT.
///
/// # Errors
/// When signals cannot be waited for.
pub async fn signalled() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    Ok(())
}
