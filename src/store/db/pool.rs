//! Connections to PostgreSQL, no more than the server gives.
//!
//! A role, a database or a server may allow fewer connections than `store.pool_size`. The pool would then hold places for
//! connections that it never gets, and its callers wait for those while others are idle. So when the server says that
//! there are too many, the pool is replaced by one of half the size, down to two, and grows again, one connection at a
//! time, when the server gives one more.

use std::{
    cmp::Ordering,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures_util::future::join_all;
use sqlx::{
    ConnectOptions, Connection, Executor, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::time::{Instant, timeout};

use super::{STATEMENT_CACHE, TRUSTED, sessions::Sessions};

/// How long a caller waits for a connection before the database counts as unavailable.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the server may take to give a connection or to refuse it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How often a pool that was made smaller tries to grow.
const GROW_INTERVAL: Duration = Duration::from_mins(1);

/// How long the idle connections of a replaced pool may take to close.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// Fewer connections are never asked for: one for what is written, one for what is read meanwhile.
const MIN_SIZE: u32 = 2;

/// How long PostgreSQL keeps a transaction whose process says nothing. Its locks, the lease's among them, would
/// otherwise outlast a process that is stopped or cut off by hours.
const SET_TIMEOUT: &str = "SET idle_in_transaction_session_timeout = '15s'";

/// PostgreSQL's code for too many connections: of a role, of a database, or of the server.
const TOO_MANY_CONNECTIONS: &str = "53300";

/// A pool that is replaced by one of another size; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Pool(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    options: PgConnectOptions,
    max_size: u32,
    sessions: Sessions,
    current: RwLock<Current>,
}

#[derive(Debug)]
struct Current {
    pool: PgPool,
    resized_at: Instant,
}

impl Pool {
    /// Makes a pool of `max_size` connections that connects when it is first used.
    pub(super) fn new(options: &PgConnectOptions, max_size: u32, sessions: Sessions) -> Self {
        let options = options
            .clone()
            .application_name("coucou")
            .statement_cache_capacity(STATEMENT_CACHE)
            .disable_statement_logging();
        let pool = of_size(&options, max_size, &sessions);
        let current = RwLock::new(Current { pool, resized_at: Instant::now() });
        Self(Arc::new(Parts { options, max_size, sessions, current }))
    }

    /// Returns the pool as it is now.
    pub(super) fn current(&self) -> PgPool {
        self.0.current.read().unwrap_or_else(PoisonError::into_inner).pool.clone()
    }

    /// Returns `true` when `pool` could not give a connection because it is larger than the server allows, or was
    /// replaced meanwhile: then [`Pool::current`] is another one.
    pub(super) async fn is_too_large(&self, pool: &PgPool, error: &sqlx::Error) -> bool {
        match error {
            sqlx::Error::PoolClosed => {}
            sqlx::Error::PoolTimedOut => {
                let size = pool.options().get_max_connections();
                let is_refused = || async { matches!(self.connect().await, Err(Refusal::TooMany)) };
                if size > MIN_SIZE && !pool.is_closed() && is_refused().await {
                    self.resize(pool, (size / 2).max(MIN_SIZE)).await;
                }
            }
            _ => return false,
        }
        // Another caller may have replaced it meanwhile.
        pool.is_closed() && !self.current().is_closed()
    }

    /// Makes a pool that is smaller than it may be larger by one, if the server gives so many connections. Does nothing
    /// within a minute of the last change.
    pub(super) async fn grow(&self) {
        let (pool, resized_at) = {
            let current = self.0.current.read().unwrap_or_else(PoisonError::into_inner);
            (current.pool.clone(), current.resized_at)
        };
        let size = pool.options().get_max_connections();
        if size >= self.0.max_size || resized_at.elapsed() < GROW_INTERVAL {
            return;
        }
        // Those that the pool may still open, and one more, all at once.
        let wanted = size.saturating_sub(pool.size()) + 1;
        let given = self.given(wanted).await;
        self.resize(&pool, if given == wanted { size + 1 } else { size }).await;
    }

    /// Returns how many of `wanted` further connections the server gives at once.
    pub(super) async fn given(&self, wanted: u32) -> u32 {
        let connected = join_all((0..wanted).map(|_| self.connect())).await;
        let mut given = 0;
        for connection in connected.into_iter().flatten() {
            given += 1;
            let _ = timeout(CONNECT_TIMEOUT, connection.close()).await;
        }
        given
    }

    async fn connect(&self) -> Result<PgConnection, Refusal> {
        match timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&self.0.options)).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(sqlx::Error::Database(error)))
                if error.code().as_deref() == Some(TOO_MANY_CONNECTIONS) =>
            {
                Err(Refusal::TooMany)
            }
            Ok(Err(_)) | Err(_) => Err(Refusal::Other),
        }
    }

    /// Replaces `pool` unless that was done already.
    async fn resize(&self, pool: &PgPool, size: u32) {
        if self.replace(pool, size) {
            // Closes the idle ones now; those in use are closed as they are given back.
            let _ = timeout(CLOSE_TIMEOUT, pool.close()).await;
        }
    }

    fn replace(&self, pool: &PgPool, size: u32) -> bool {
        let mut current = self.0.current.write().unwrap_or_else(PoisonError::into_inner);
        if pool.is_closed() || current.pool.is_closed() {
            return false;
        }
        current.resized_at = Instant::now();
        let (before, pool_size) = (pool.options().get_max_connections(), self.0.max_size);
        match size.cmp(&before) {
            Ordering::Less => tracing::warn!(
                pool_size,
                size,
                "the database gives fewer connections than store.pool_size (COUCOU_STORE_POOL_SIZE): using fewer"
            ),
            Ordering::Greater => tracing::info!(pool_size, size, "the database gives more connections again"),
            Ordering::Equal => return false,
        }
        current.pool = of_size(&self.0.options, size, &self.0.sessions);
        // Marks it as closed at once, so that no second caller replaces it.
        drop(pool.close());
        true
    }
}

/// Why there was no connection.
enum Refusal {
    TooMany,
    Other,
}

fn of_size(options: &PgConnectOptions, size: u32, sessions: &Sessions) -> PgPool {
    let sessions = sessions.clone();
    PgPoolOptions::new()
        .max_connections(size)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .after_connect(|connection, _| {
            Box::pin(async move { connection.execute(SET_TIMEOUT).await.map(|_| ()) })
        })
        // A connection is tried as it is given back; trying it again for every statement would double
        // how long each takes.
        .test_before_acquire(false)
        .before_acquire(move |connection, known| {
            let is_trusted = sessions.are_trusted_since(known.age);
            Box::pin(async move {
                // One that is broken is replaced.
                Ok(is_trusted && (known.idle_for < TRUSTED || connection.ping().await.is_ok()))
            })
        })
        .connect_lazy_with(options.clone())
}

#[cfg(test)]
mod tests {
    use std::env;

    use futures_util::future::try_join_all;
    use sqlx::AssertSqlSafe;

    use crate::{
        store::{Db, Location, db::values},
        testing,
    };

    use super::*;

    async fn admin() -> PgConnection {
        let url = env::var("COUCOU_TEST_DATABASE_URL").expect("COUCOU_TEST_DATABASE_URL names a server");
        PgConnection::connect(&url).await.unwrap()
    }

    fn of(location: &Location) -> PgConnectOptions {
        let Location::Postgres { options, .. } = location else { panic!("not PostgreSQL") };
        options.as_ref().clone()
    }

    #[tokio::test]
    async fn fewer_connections_than_the_pool_has_places_for_are_enough() {
        let test = testing::postgres().await;
        let role = format!("limited_{}", of(&test.location).get_database().unwrap());
        let mut admin = admin().await;
        let sql = format!("CREATE ROLE \"{role}\" LOGIN PASSWORD 'x' CONNECTION LIMIT 4");
        admin.execute(AssertSqlSafe(sql)).await.unwrap();
        let options = of(&test.location).username(&role).password("x");
        let db = Db::open(&Location::Postgres { options: Box::new(options), pool_size: 10 }).unwrap();
        let round = async || {
            let work = async || {
                for _ in 0..4 {
                    let mut tx = db.begin().await?;
                    tx.fetch_all::<(i64,)>("SELECT CAST(1 AS BIGINT) FROM pg_sleep(0.01)", vec![]).await?;
                    tx.commit().await?;
                    db.fetch_all::<(i64,)>("SELECT CAST(1 AS BIGINT)", vec![]).await?;
                }
                Ok::<_, crate::store::StoreError>(())
            };
            try_join_all((0..12).map(|_| work())).await
        };
        round().await.expect("whoever waited for a connection gets one");
        let began = Instant::now();
        round().await.unwrap();
        assert!(began.elapsed() < ACQUIRE_TIMEOUT, "somebody waited for connections that are not given");
        db.close().await;
        admin.execute(AssertSqlSafe(format!("DROP ROLE \"{role}\""))).await.unwrap();
    }

    #[tokio::test]
    async fn a_session_that_takes_no_writes_is_replaced() {
        let test = testing::postgres().await;
        let options = Box::new(of(&test.location));
        let db = Db::open(&Location::Postgres { options, pool_size: 2 }).unwrap();
        let write = async || {
            let mut tx = db.begin().await?;
            let sql = "INSERT INTO leases (name, holder, fence, lease_until) VALUES ('x', '', 1, $1) \
                       ON CONFLICT (name) DO UPDATE SET lease_until = $1";
            tx.execute(sql, values![1_i64]).await?;
            tx.commit().await
        };
        write().await.unwrap();
        let mut both = Vec::new();
        for _ in 0..2 {
            let mut tx = db.begin().await.unwrap();
            let sql = "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY";
            tx.execute(sql, vec![]).await.unwrap();
            both.push(tx);
        }
        for tx in both {
            tx.commit().await.unwrap();
        }
        assert!(write().await.is_err(), "the session takes no writes");
        write().await.expect("a new session does");
        write().await.expect("and every further one");
    }

    #[tokio::test]
    async fn a_pool_grows_again_when_the_server_gives_more() {
        let test = testing::postgres().await;
        let pool = Pool::new(&of(&test.location), 4, Sessions::default());
        pool.resize(&pool.current(), 2).await;
        pool.grow().await;
        assert_eq!(pool.current().options().get_max_connections(), 2, "not within a minute");
        let past = Instant::now().checked_sub(GROW_INTERVAL).unwrap();
        pool.0.current.write().unwrap().resized_at = past;
        pool.grow().await;
        assert_eq!(pool.current().options().get_max_connections(), 3);
    }
}
