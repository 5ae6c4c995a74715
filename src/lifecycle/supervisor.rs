//! Core tasks, begun again when they end before the process does.
//!
//! A task that panics must not leave a process that takes transactions and does nothing with them. It is begun again with
//! a pause; when that does not help, the process ends with an error, so that whatever started it starts it again.

use std::{future::Future, time::Duration};

use tokio::time::{Instant, sleep};

use super::Lifecycle;
use crate::metrics::metrics;

/// How long to wait before a task is begun again.
const RESTART_INTERVAL: Duration = Duration::from_secs(1);

/// A task that ends more often than this within [`RESTART_WINDOW`] cannot be helped.
const MAX_RESTARTS: usize = 5;
const RESTART_WINDOW: Duration = Duration::from_mins(1);

/// A part of coucou that runs as long as the process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoreTask {
    /// Prepares the store and watches it.
    Store,
    /// Sends deliveries to webhooks.
    Outbox,
    /// Claims the crypto lease and works under it.
    Crypto,
    /// Deletes what has expired.
    Retention,
    /// Follows the webhooks' secrets.
    Secrets,
    /// Serves HTTP.
    Http,
    /// Looks for PostgreSQL while another store stands in for it.
    Fallback,
}

impl CoreTask {
    /// Returns the name in logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Outbox => "outbox",
            Self::Crypto => "crypto",
            Self::Retention => "retention",
            Self::Secrets => "secrets",
            Self::Http => "http",
            Self::Fallback => "fallback",
        }
    }
}

impl Lifecycle {
    /// Runs the task that `begin` makes until the stop, and begins it again when it panics or ends by itself. Calls
    /// `give_up` when it has ended too often.
    pub fn keep_running<F>(
        &self,
        task: CoreTask,
        begin: impl Fn() -> F + Send + 'static,
        give_up: impl FnOnce() + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let lifecycle = self.clone();
        self.spawn(async move {
            let mut ends: Vec<Instant> = Vec::new();
            loop {
                let ended = lifecycle.spawn(begin()).await;
                if lifecycle.stop.is_cancelled() {
                    return;
                }
                metrics().task_restarts.inc(&[task.as_str()]);
                ends.retain(|at| at.elapsed() < RESTART_WINDOW);
                ends.push(Instant::now());
                let panicked = ended.is_err_and(|error| error.is_panic());
                if ends.len() > MAX_RESTARTS {
                    tracing::error!(task = task.as_str(), panicked, "a core task ends again and again");
                    give_up();
                    return;
                }
                tracing::error!(task = task.as_str(), panicked, "a core task ended and is begun again");
                tokio::select! {
                    () = lifecycle.stop.cancelled() => return,
                    () = sleep(RESTART_INTERVAL) => {}
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tokio::{sync::Notify, time::timeout};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_task_that_panics_is_begun_again() {
        let lifecycle = Lifecycle::default();
        let (begun, works) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let (counter, working, stop) = (Arc::clone(&begun), Arc::clone(&works), lifecycle.stop_token());
        let begin = move || {
            let (number, working, stop) =
                (counter.fetch_add(1, Ordering::SeqCst), Arc::clone(&working), stop.clone());
            async move {
                assert!(number > 0, "the first one panics");
                working.notify_one();
                stop.cancelled().await;
            }
        };
        lifecycle.keep_running(CoreTask::Outbox, begin, || panic!("it can be helped"));
        timeout(LIMIT, works.notified()).await.expect("it is begun again");
        lifecycle.stop();
        assert!(lifecycle.stopped(LIMIT).await, "the stop ends it");
        assert_eq!(begun.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_task_that_ends_again_and_again_ends_the_process() {
        let lifecycle = Lifecycle::default();
        let given_up = Arc::new(Notify::new());
        let (begun, gives_up) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&given_up));
        let counter = Arc::clone(&begun);
        let begin = move || {
            counter.fetch_add(1, Ordering::SeqCst);
            async {}
        };
        lifecycle.keep_running(CoreTask::Outbox, begin, move || gives_up.notify_one());
        timeout(LIMIT, given_up.notified()).await.expect("it is given up");
        assert_eq!(begun.load(Ordering::SeqCst), MAX_RESTARTS + 1);
    }
}
