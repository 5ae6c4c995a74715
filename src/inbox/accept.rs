//! Taking a transaction: checked as little as possible, committed, and only then a success.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ruma::TransactionId;
use tokio::{sync::Notify, task::spawn_blocking, time::timeout};

use super::{EnvelopeError, envelope};
use crate::{
    clock::SharedClock,
    metrics::metrics,
    store::{
        Store, StoreError,
        inbox::{self, SealedBody},
    },
};

pub use inbox::Accepted;

/// How long the database may take. Homeservers give up after 60 s, and a refusal in time is better than none.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a transaction waits for a store that is being connected. A refusal costs the transaction's room keys, which
/// the homeserver does not send again ([MSC2409](https://github.com/matrix-org/matrix-spec-proposals/pull/2409)).
const STORE_START_TIMEOUT: Duration = Duration::from_secs(10);

/// The most bytes of a `txn_id`, as Matrix bounds its other identifiers; an index must hold it.
const TXN_ID_LENGTH: usize = 255;

/// Why a transaction was not taken.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The transaction's id cannot be stored.
    #[error("the transaction id is too long or holds control characters")]
    TxnId,
    /// The body is not what a transaction is.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// The store did not keep it; the homeserver must send it again.
    #[error("the transaction could not be stored")]
    Store(#[from] StoreError),
    /// The store did not answer in time; the homeserver must send it again.
    #[error("the transaction could not be stored in time")]
    TimedOut,
    /// The process is stopping; the homeserver must send it again.
    #[error("the process is stopping")]
    Stopping,
}

/// Where transactions go; clones share it.
#[derive(Clone, Debug)]
pub struct Inbox {
    store: Store,
    clock: SharedClock,
    wake: Arc<Notify>,
    /// Told when a transaction was not taken for a reason of ours.
    refused: Arc<Notify>,
    /// Whose waiters are told that the homeserver is there.
    alive: Arc<Notify>,
}

impl Inbox {
    /// An inbox in `store` that notifies `wake` of each new row, so that the worker looks at once.
    #[must_use]
    pub fn new(store: Store, clock: SharedClock, wake: Arc<Notify>) -> Self {
        Self { store, clock, wake, refused: Arc::default(), alive: Arc::default() }
    }

    /// Tells `refused` of transactions that were not taken for a reason of ours: the homeserver waits longer
    /// with each of its retries, and a ping ends the wait.
    #[must_use]
    pub fn telling(self, refused: Arc<Notify>) -> Self {
        Self { refused, ..self }
    }

    /// Tells who waits on `alive` of each transaction and each ping: the homeserver is there.
    #[must_use]
    pub fn announcing(self, alive: Arc<Notify>) -> Self {
        Self { alive, ..self }
    }

    /// Tells who waits for the homeserver that it has made another request than a transaction.
    pub fn homeserver_is_alive(&self) {
        self.alive.notify_waiters();
    }

    /// Makes a transaction durable and answers whether it is new.
    ///
    /// Nothing is refused for the sake of a single event: the homeserver would send the whole transaction
    /// again for ever, and everything after it would wait.
    ///
    /// # Errors
    /// When the body is no transaction, or the store did not keep it.
    pub async fn accept(&self, txn_id: &TransactionId, body: Vec<u8>) -> Result<Accepted, AcceptError> {
        let began = Instant::now();
        let accepted = self.take(txn_id, body).await;
        let outcome = match &accepted {
            Ok(Accepted::New) => "new",
            Ok(Accepted::Repeat) => "repeat",
            Err(AcceptError::TxnId | AcceptError::Envelope(_)) => "malformed",
            Err(AcceptError::Store(_)) => "store",
            Err(AcceptError::TimedOut) => "timed_out",
            Err(AcceptError::Stopping) => "stopping",
        };
        metrics().transactions.inc(&[outcome]);
        metrics().transaction_seconds.observe(&[], began.elapsed());
        accepted
    }

    async fn take(&self, txn_id: &TransactionId, body: Vec<u8>) -> Result<Accepted, AcceptError> {
        if txn_id.as_str().len() > TXN_ID_LENGTH || txn_id.as_str().chars().any(char::is_control) {
            return Err(AcceptError::TxnId);
        }
        self.homeserver_is_alive();
        self.store.wait_until_ready(STORE_START_TIMEOUT).await;
        let store = self.store.clone();
        // 32 MiB are read, hashed and sealed in a fraction of a second, which others would have to wait for.
        let body = spawn_blocking(move || {
            envelope::check(&body)?;
            Ok::<_, AcceptError>(inbox::seal_body(store.seal()?, &body)?)
        });
        let body = body.await.map_err(|_| AcceptError::Stopping)??;
        let inserted = timeout(PATIENCE, self.insert(txn_id, body)).await;
        if !matches!(inserted, Ok(Ok(_))) {
            self.refused.notify_one();
        }
        let accepted = inserted.map_err(|_| AcceptError::TimedOut)??;
        if accepted == Accepted::New {
            self.wake.notify_one();
        }
        Ok(accepted)
    }

    async fn insert(&self, txn_id: &TransactionId, body: SealedBody) -> Result<Accepted, StoreError> {
        let mut tx = self.store.begin().await?;
        let accepted = inbox::accept(&mut tx, txn_id, body, self.clock.now()).await?;
        tx.commit().await?;
        Ok(accepted)
    }
}

#[cfg(test)]
mod tests {
    use assert_matches::assert_matches;
    use futures_util::FutureExt;

    use super::*;
    use crate::{
        clock::ManualClock,
        store::Location,
        testing::{self, START},
    };

    #[tokio::test]
    async fn a_new_transaction_wakes_the_worker_and_a_repeat_does_not() {
        let test = testing::sqlite().await;
        let wake = Arc::new(Notify::new());
        let inbox = Inbox::new(test.store.clone(), ManualClock::at(START), Arc::clone(&wake));
        assert_matches!(inbox.accept("1".into(), b"{}".to_vec()).await, Ok(Accepted::New));
        assert!(wake.notified().now_or_never().is_some());
        assert_matches!(inbox.accept("1".into(), b"{}".to_vec()).await, Ok(Accepted::Repeat));
        assert!(wake.notified().now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_transaction_that_comes_before_the_store_is_connected_waits_for_it() {
        let test = testing::sqlite().await;
        let store = testing::open(&test.location, "test pickle key");
        let inbox = Inbox::new(store.clone(), ManualClock::at(START), Arc::default());
        let accepting = inbox.accept("1".into(), b"{}".to_vec());
        tokio::pin!(accepting);
        assert!(
            timeout(Duration::from_millis(100), &mut accepting).await.is_err(),
            "answered without a store"
        );
        store.prepare(START).await.unwrap();
        assert_matches!(accepting.await, Ok(Accepted::New));
    }

    #[tokio::test]
    async fn a_store_that_does_not_come_is_not_waited_for_without_end() {
        let location = Location::Sqlite { path: "/nonexistent/coucou.db".into() };
        let store = testing::open(&location, "test pickle key");
        let waited = timeout(Duration::from_secs(5), store.wait_until_ready(Duration::from_millis(50)));
        waited.await.expect("the wait has an end");
        assert!(!store.is_ready());
    }

    #[tokio::test]
    async fn what_is_no_transaction_leaves_nothing() {
        let test = testing::sqlite().await;
        let inbox = Inbox::new(test.store.clone(), ManualClock::at(START), Arc::default());
        assert_matches!(
            inbox.accept("1".into(), b"[]".to_vec()).await,
            Err(AcceptError::Envelope(EnvelopeError::NotJson))
        );
        assert_matches!(
            inbox.accept("1".into(), b"{\"events\":{}}".to_vec()).await,
            Err(AcceptError::Envelope(EnvelopeError::Events))
        );
        assert_matches!(inbox.accept("a\0b".into(), b"{}".to_vec()).await, Err(AcceptError::TxnId));
        assert_matches!(
            inbox.accept((&*"x".repeat(256)).into(), b"{}".to_vec()).await,
            Err(AcceptError::TxnId)
        );
        assert_eq!(inbox::depth(test.store.db()).await.unwrap().count, 0);
    }
}
