//! Start and stop: one token that says stop, one tracker of what still runs.
//!
//! The first signal asks workers to finish what is in hand; the second, or the timeout, ends the process.
//! Both are safe at any point: every step of coucou can run twice.

use std::{future::Future, io, time::Duration};

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
