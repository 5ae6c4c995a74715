//! What a database is like, without changing it.

use std::{future::Future, io, time::Duration};

use tokio::time::timeout;

use super::{Db, Pools, migrations, values};
use crate::{clock::Timestamp, store::StoreError};

/// A database that is well answers in a fraction of this.
const SOON: Duration = Duration::from_secs(3);

/// The row is a lease that is never claimed.
const PROBE: &str = "INSERT INTO leases (name, holder, fence, lease_until) VALUES ('write_probe', '', 1, $1) \
     ON CONFLICT (name) DO UPDATE SET lease_until = $1";

async fn soon<T>(answer: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    match timeout(SOON, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(StoreError::Unavailable(sqlx::Error::Io(io::ErrorKind::TimedOut.into()))),
    }
}

impl Db {
    /// The names of the migrations that are missing, without applying them; `None` when the database has no schema of
    /// coucou's at all.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn missing_migrations(&self) -> Result<Option<Vec<&'static str>>, StoreError> {
        let (table, files) = match &self.pools {
            Pools::Postgres { .. } => {
                ("SELECT to_regclass('_sqlx_migrations') :: text", migrations::POSTGRES)
            }
            Pools::Sqlite { .. } => (
                "SELECT MAX(name) FROM sqlite_master WHERE type = 'table' AND name = '_sqlx_migrations'",
                migrations::SQLITE,
            ),
        };
        if !matches!(self.fetch_optional::<(Option<String>,)>(table, vec![]).await?, Some((Some(_),))) {
            return Ok(None);
        }
        let applied: Vec<(i64,)> =
            self.fetch_all("SELECT version FROM _sqlx_migrations ORDER BY version", vec![]).await?;
        let applied: Vec<i64> = applied.into_iter().map(|(version,)| version).collect();
        Ok(Some(migrations::missing(files, &applied)))
    }

    /// Whether the database answers, and soon: whoever asks cannot wait as long as for a statement that has work to do.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let answer = self.fetch_optional::<(i64,)>("SELECT CAST(1 AS BIGINT)", vec![]);
        soon(answer).await.map(drop)
    }

    /// Writes a row of no meaning, and soon: reads are answered by a database that takes no writes, too.
    ///
    /// # Errors
    /// When that fails.
    pub async fn probe(&self, now: Timestamp) -> Result<(), StoreError> {
        soon(async {
            let mut tx = self.begin().await?;
            tx.execute(PROBE, values![now]).await?;
            tx.commit().await
        })
        .await
    }

    /// Counts the connections that PostgreSQL gives coucou at once, `wanted` at most: those in use by any process of it,
    /// and as many more as are given now. `None` for SQLite.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn given_connections(&self, wanted: u32) -> Result<Option<u32>, StoreError> {
        const IN_USE: &str = "SELECT COUNT(*) FROM pg_stat_activity WHERE application_name = 'coucou' \
             AND usename = current_user AND datname = current_database()";
        let Pools::Postgres { pool, .. } = &self.pools else { return Ok(None) };
        let in_use = self.fetch_optional::<(i64,)>(IN_USE, vec![]).await?.map_or(0, |(count,)| count);
        let in_use = u32::try_from(in_use).unwrap_or(u32::MAX);
        let more = pool.given(wanted.saturating_sub(in_use)).await;
        Ok(Some(in_use.saturating_add(more).min(wanted)))
    }

    /// How many connections are open, and how many of them are idle.
    #[must_use]
    pub fn connections(&self) -> (u32, usize) {
        match &self.pools {
            Pools::Postgres { pool, .. } => {
                let pool = pool.current();
                (pool.size(), pool.num_idle())
            }
            Pools::Sqlite { write, read } => (write.size() + read.size(), write.num_idle() + read.num_idle()),
        }
    }
}
