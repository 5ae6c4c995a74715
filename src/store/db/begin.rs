//! Beginning a transaction on PostgreSQL, so that being cut off does no harm.

use sqlx::{PgPool, Postgres, Transaction};

/// Begins a transaction in a task of its own, which goes on when nobody waits any more. Cut off before the database has
/// answered, sqlx would put the connection back into the pool within a transaction that it knows nothing of: what is
/// written by it later is then not there until somebody else commits, or never.
#[expect(
    clippy::disallowed_methods,
    reason = "it ends with the database's answer, and nobody need wait for it"
)]
pub(super) async fn whole(pool: PgPool) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
    tokio::spawn(async move { pool.begin().await }).await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    #[tokio::test]
    async fn a_transaction_that_is_cut_off_as_it_begins_leaves_no_connection_within_it() {
        const OPEN: &str = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() \
                            AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'";
        let test = crate::testing::postgres().await;
        let db = test.store.db();
        let other = crate::testing::open(&test.location, "test pickle key");
        for steps in 0..8 {
            // Further each time: a connection is had, asked whether it is alive, told to begin, heard.
            let mut begin = Box::pin(db.begin());
            for _ in 0..steps {
                if futures_util::poll!(&mut begin).is_ready() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            drop(begin);
            let closed = async {
                while other.db().fetch_optional::<(i64,)>(OPEN, vec![]).await.unwrap() != Some((0,)) {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            let closed = timeout(Duration::from_secs(5), closed).await;
            assert!(
                closed.is_ok(),
                "a connection stays within a transaction that was cut off after {steps} steps"
            );
        }
    }
}
