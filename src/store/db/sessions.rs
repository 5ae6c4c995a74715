//! Which sessions with the database are still good, and how long an answer of theirs may take.
//!
//! Some refusals are not the statement's and not the database's, but the session's: one that was begun while a server
//! took no writes goes on refusing them after the server takes them again. The pool cannot see that, since such a session
//! answers every ping. So after such a refusal no session is used that is older than it.

use std::{
    future::Future,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::time::{Instant, timeout};

use crate::{metrics::metrics, store::StoreError};

/// How long a statement may take before the database counts as unavailable. A network that swallows everything
/// breaks no connection: without a limit, the caller would wait for a quarter of an hour.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// What is known of the sessions with one database; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Sessions {
    /// When a session last refused what a new one may take.
    refused_at: Arc<Mutex<Option<Instant>>>,
}

impl Sessions {
    /// Waits for an answer of the database, for [`ANSWER_TIMEOUT`] at most, and notes a refusal of the session's.
    pub(super) fn answer<'a, T: 'a>(
        &self,
        answer: impl Future<Output = Result<T, sqlx::Error>> + Send + 'a,
    ) -> impl Future<Output = Result<T, StoreError>> + Send + 'a {
        // Boxed, because a query's future is large and every caller's would hold it.
        let answer: BoxFuture<'a, _> = Box::pin(answer);
        let sessions = self.clone();
        async move {
            metrics().statements.inc(&[]);
            match timeout(ANSWER_TIMEOUT, answer).await {
                Ok(Err(error)) => {
                    if is_of_the_session(&error) {
                        sessions.distrust();
                    }
                    Err(error.into())
                }
                Ok(answer) => Ok(answer?),
                Err(_) => Err(StoreError::Unavailable(sqlx::Error::Io(io::ErrorKind::TimedOut.into()))),
            }
        }
    }

    /// Lets no session be used any more that is there now.
    fn distrust(&self) {
        *self.refused_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Returns `true` unless a session refused something since this one was begun, `age` ago.
    pub(super) fn are_trusted_since(&self, age: Duration) -> bool {
        let refused_at = *self.refused_at.lock().unwrap_or_else(PoisonError::into_inner);
        refused_at.is_none_or(|at| age < at.elapsed())
    }
}

/// Returns `true` for a refusal that a new session may not repeat: PostgreSQL's `read_only_sql_transaction`, and
/// SQLite's read-only, I/O error and cannot-open, which stay with a connection whose file was replaced.
fn is_of_the_session(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    let Some(code) = error.code() else { return false };
    match code.parse::<u32>() {
        Ok(code) if code < 10_000 => matches!(code & 0xff, 8 | 10 | 14),
        _ => code == "25006",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{store::db::values, testing};

    #[tokio::test]
    async fn a_full_disk_leaves_no_connection_that_takes_nothing() {
        let test = testing::sqlite().await;
        let db = test.store.db();
        let big = || values![vec![0_u8; 1 << 20]];
        let insert = "INSERT INTO leases (name, holder, fence, lease_until) VALUES ($1, '', 1, 1)";
        for _ in 0..3 {
            let mut tx = db.begin().await.unwrap();
            // As full as it is now: the limit is the connection's own.
            let pages: Option<(i64,)> = tx.fetch_optional("PRAGMA page_count", vec![]).await.unwrap();
            assert!(pages.is_some_and(|(count,)| count > 0));
            let _: Vec<(i64,)> = tx.fetch_all("PRAGMA max_page_count = 1", vec![]).await.unwrap();
            let refused = tx.execute(insert, big()).await.unwrap_err();
            assert_eq!(refused.public_reason(), "the database refuses with code 13", "SQLITE_FULL");
            assert!(refused.is_transient());
            let _: Vec<(i64,)> = tx.fetch_all("PRAGMA max_page_count = 1000000", vec![]).await.unwrap();
            let _ = tx.commit().await;
            let mut tx = db.begin().await.expect("a transaction can be begun");
            tx.execute("DELETE FROM leases", vec![]).await.unwrap();
            tx.execute(insert, values!["x"]).await.unwrap();
            tx.commit().await.unwrap();
        }
    }

    #[tokio::test]
    async fn only_sessions_begun_after_the_last_refusal_are_trusted() {
        let sessions = Sessions::default();
        assert!(sessions.are_trusted_since(Duration::from_hours(1)));
        sessions.distrust();
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(!sessions.are_trusted_since(Duration::from_hours(1)));
        assert!(sessions.are_trusted_since(Duration::ZERO));
    }
}
