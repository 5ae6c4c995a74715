//! The two databases behind one surface: the only file that knows which one it talks to.
//!
//! One statement text serves both: `$1` placeholders, `ON CONFLICT`, `RETURNING`, `UPDATE … FROM`, and the
//! column types `TEXT`, `BIGINT` and `BYTEA`/`BLOB` ([`Value`]). Statements are constants and values are
//! bound; the one text made at run time is what stands for the rows of a multi-row statement
//! ([`Tx::execute_many`]).

mod begin;
mod kept;
mod look;
mod many;
mod migrations;
mod pool;
mod reach;
mod sessions;
mod value;

use std::{str::FromStr, time::Duration};

pub(crate) use self::value::values;
pub use self::value::{Value, Values};
use self::{kept::Kept, many::Many, pool::Pool, sessions::Sessions, value::Bind};
use super::StoreError;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, FromRow, Postgres, Sqlite, SqliteConnection, SqlitePool,
    Transaction,
    postgres::{PgConnectOptions, PgRow},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous},
};

/// A connection that was in use so lately is not tried before it is used again.
const TRUSTED: Duration = Duration::from_secs(1);

/// Prepared statements kept per connection: all that there are, of which SQLite has the multi-row ones at nine sizes
/// each.
const STATEMENT_CACHE: usize = 512;

/// A statement that the databases have different words for, as one that locks rows it reads (`locking!`); [`Tx::text`] and
/// [`Db::text`] give its text.
#[derive(Clone, Copy, Debug)]
pub struct Locking {
    pub(super) postgres: &'static str,
    pub(super) sqlite: &'static str,
}

/// Makes a [`Locking`] of the text before the lock, the lock (`FOR UPDATE …`, and the order that goes with
/// it), and the text after. SQLite leaves the lock out: its one writer has locked everything.
macro_rules! locking {
    ($before:literal, $lock:literal, $after:literal $(,)?) => {
        $crate::store::db::Locking {
            postgres: concat!($before, " ", $lock, " ", $after),
            sqlite: concat!($before, " ", $after),
        }
    };
}
pub(crate) use locking;

/// A row that either database can give: any tuple of `String`, `i64`, `Vec<u8>` and their `Option`s.
pub trait Row: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin {}
impl<T> Row for T where T: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin {}

/// Where the data is.
#[derive(Clone, Debug)]
pub enum Location {
    /// A PostgreSQL database: connection URL or the parts of one, and the size of the pool.
    Postgres {
        /// How to connect, `sslmode` included.
        options: Box<PgConnectOptions>,
        /// Most connections held at once.
        pool_size: u32,
    },
    /// A SQLite file, made when absent.
    Sqlite {
        /// The file's path.
        path: std::path::PathBuf,
    },
}

impl Location {
    /// Parses a PostgreSQL connection URL.
    ///
    /// # Errors
    /// When it is none; the error does not contain the URL, which may hold a password.
    pub fn postgres(url: &str, pool_size: u32) -> Result<Self, StoreError> {
        let options = PgConnectOptions::from_str(url).map_err(|_| StoreError::BadUrl)?;
        Ok(Self::Postgres { options: Box::new(options), pool_size })
    }

    /// `postgres` or `sqlite`.
    #[must_use]
    pub fn backend(&self) -> &'static str {
        match self {
            Self::Postgres { .. } => "postgres",
            Self::Sqlite { .. } => "sqlite",
        }
    }
}

/// A handle on the database; clones share its connections.
#[derive(Clone, Debug)]
pub struct Db {
    pools: Pools,
    sessions: Sessions,
}

#[derive(Clone, Debug)]
enum Pools {
    Postgres {
        pool: Pool,
        kept: Kept,
    },
    /// SQLite has one writer at a time: a pool of one makes the others wait in line instead of failing.
    Sqlite {
        write: SqlitePool,
        read: SqlitePool,
    },
}

/// A transaction; rolled back when dropped.
pub struct Tx {
    inner: Inner,
    sessions: Sessions,
}

enum Inner {
    Postgres(Transaction<'static, Postgres>),
    Sqlite(Transaction<'static, Sqlite>),
}

/// Runs the same expression on a transaction of either database.
macro_rules! on_tx {
    ($tx:expr, |$connection:ident| $body:expr) => {
        match &mut $tx.inner {
            Inner::Postgres(tx) => {
                let $connection = &mut **tx;
                $body
            }
            Inner::Sqlite(tx) => {
                let $connection = &mut **tx;
                $body
            }
        }
    };
}

/// Runs the same read on either database, outside a transaction.
macro_rules! on_pool {
    ($db:expr, |$pool:ident| $read:expr) => {
        match &$db.pools {
            Pools::Postgres { pool, kept } => {
                let read = async {
                    let (mut taken, pool) = kept.take(pool, &$db.sessions).await?;
                    let $pool = &mut *taken.connection;
                    let found = $read.await?;
                    kept.keep(taken, &pool);
                    Ok(found)
                };
                $db.sessions.answer(read).await
            }
            Pools::Sqlite { read: $pool, .. } => $db.sessions.answer($read).await,
        }
    };
}

impl Db {
    /// The text of a statement for this database.
    #[must_use]
    pub fn text(&self, sql: Locking) -> &'static str {
        match &self.pools {
            Pools::Postgres { .. } => sql.postgres,
            Pools::Sqlite { .. } => sql.sqlite,
        }
    }

    /// Prepares the pools; connects when first used, so that a database that is down is no error here.
    ///
    /// # Errors
    /// Never for PostgreSQL; for SQLite when the file's folder cannot be used.
    pub fn open(location: &Location) -> Result<Self, StoreError> {
        let sessions = Sessions::default();
        let pools = match location {
            Location::Postgres { options, pool_size } => {
                let pool = Pool::new(options, *pool_size, sessions.clone());
                Pools::Postgres { pool, kept: Kept::default() }
            }
            Location::Sqlite { path } => {
                let options = SqliteConnectOptions::new()
                    .filename(path)
                    .create_if_missing(true)
                    .journal_mode(SqliteJournalMode::Wal)
                    // With WAL, FULL is what makes a commit survive a power cut, not only a crash.
                    .synchronous(SqliteSynchronous::Full)
                    .foreign_keys(true)
                    .busy_timeout(Duration::from_secs(10))
                    .statement_cache_capacity(STATEMENT_CACHE)
                    .disable_statement_logging();
                let pool = |most| {
                    let sessions = sessions.clone();
                    SqlitePoolOptions::new()
                        .max_connections(most)
                        .test_before_acquire(false)
                        .before_acquire(move |_, known| {
                            let is_trusted = sessions.are_trusted_since(known.age);
                            Box::pin(async move { Ok(is_trusted) })
                        })
                        .after_release(|connection, _| Box::pin(is_outside_transactions(connection)))
                        .acquire_timeout(Duration::from_secs(30))
                        .connect_lazy_with(options.clone())
                };
                Pools::Sqlite { write: pool(1), read: pool(4) }
            }
        };
        Ok(Self { pools, sessions })
    }

    /// Begins a transaction that may write.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when no connection can be had.
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        let inner = match &self.pools {
            Pools::Postgres { pool, kept } => Inner::Postgres(self.begin_on_postgres(pool, kept).await?),
            // IMMEDIATE takes the write lock now: a transaction that reads first cannot fail half-way.
            Pools::Sqlite { write, .. } => {
                Inner::Sqlite(self.sessions.answer(write.begin_with("BEGIN IMMEDIATE")).await?)
            }
        };
        Ok(Tx { inner, sessions: self.sessions.clone() })
    }

    async fn begin_on_postgres(
        &self,
        pool: &Pool,
        kept: &Kept,
    ) -> Result<Transaction<'static, Postgres>, StoreError> {
        loop {
            let current = pool.current();
            let _wanted = kept.want(&current);
            match self.sessions.answer(begin::whole(current.clone())).await {
                Err(StoreError::Unavailable(error)) => {
                    // The one that is kept may be broken as well; the pool finds out.
                    kept.give_back();
                    if !pool.is_too_large(&current, &error).await {
                        return Err(StoreError::Unavailable(error));
                    }
                }
                begun => return begun,
            }
        }
    }

    /// Asks for more connections when fewer than the settings allow are used, because the server gave no more.
    pub async fn grow(&self) {
        if let Pools::Postgres { pool, .. } = &self.pools {
            pool.grow().await;
        }
    }

    /// All rows of a read outside a transaction.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn fetch_all<R: Row>(&self, sql: &'static str, values: Values) -> Result<Vec<R>, StoreError> {
        on_pool!(self, |pool| sqlx::query_as(sql).bind_values(values).fetch_all(pool))
    }

    /// The first row of a read outside a transaction, if any.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn fetch_optional<R: Row>(
        &self,
        sql: &'static str,
        values: Values,
    ) -> Result<Option<R>, StoreError> {
        on_pool!(self, |pool| sqlx::query_as(sql).bind_values(values).fetch_optional(pool))
    }

    /// As [`Tx::fetch_many`], outside a transaction.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn fetch_many<R: Row>(
        &self,
        sql: &'static str,
        shared: Values,
        rows: Vec<Values>,
    ) -> Result<Vec<R>, StoreError> {
        let statements = match self.pools {
            Pools::Postgres { .. } => many::arrays(sql, &shared, rows),
            Pools::Sqlite { .. } => many::lists(sql, &shared, rows),
        };
        let mut found = Vec::new();
        for Many { text, values, columns } in statements {
            let text = AssertSqlSafe(text);
            let part: Vec<R> =
                on_pool!(self, |pool| sqlx::query_as(text).bind_many(values, columns).fetch_all(pool))?;
            found.extend(part);
        }
        Ok(found)
    }

    /// Applies the migrations that are missing, one process at a time.
    ///
    /// The lock is held by a transaction, not by the session, so that it works behind a proxy that shares
    /// sessions. Migrations that this version does not know are left alone: during a rolling deploy the
    /// previous version runs on the newer schema.
    ///
    /// Answers the names of those it applied.
    ///
    /// # Errors
    /// When the database fails, or an applied migration differs from the one built in.
    pub async fn migrate(&self) -> Result<Vec<&'static str>, StoreError> {
        let mut tx = self.begin().await?;
        let applied = match &mut tx.inner {
            Inner::Postgres(tx) => {
                sqlx::query("SELECT pg_advisory_xact_lock($1)")
                    .bind(MIGRATION_LOCK)
                    .execute(&mut **tx)
                    .await?;
                migrations::apply(migrations::POSTGRES, &mut **tx).await?
            }
            Inner::Sqlite(tx) => migrations::apply(migrations::SQLITE, &mut **tx).await?,
        };
        tx.commit().await?;
        Ok(applied)
    }

    /// Closes every connection.
    pub async fn close(&self) {
        match &self.pools {
            Pools::Postgres { pool, kept } => {
                kept.give_back();
                pool.current().close().await;
            }
            Pools::Sqlite { write, read } => {
                read.close().await;
                write.close().await;
            }
        }
    }
}

impl Tx {
    /// The text of a statement for this database.
    #[must_use]
    pub fn text(&self, sql: Locking) -> &'static str {
        match self.inner {
            Inner::Postgres(_) => sql.postgres,
            Inner::Sqlite(_) => sql.sqlite,
        }
    }

    /// Runs a statement and answers how many rows it touched.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn execute(&mut self, sql: &'static str, values: Values) -> Result<u64, StoreError> {
        Ok(on_tx!(self, |connection| {
            self.sessions
                .answer(sqlx::query(sql).bind_values(values).execute(connection))
                .await?
                .rows_affected()
        }))
    }

    /// All rows of a statement. `RETURNING` gives them in no order.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn fetch_all<R: Row>(
        &mut self,
        sql: &'static str,
        values: Values,
    ) -> Result<Vec<R>, StoreError> {
        on_tx!(self, |connection| {
            self.sessions.answer(sqlx::query_as(sql).bind_values(values).fetch_all(connection)).await
        })
    }

    /// The first row of a statement, if any.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn fetch_optional<R: Row>(
        &mut self,
        sql: &'static str,
        values: Values,
    ) -> Result<Option<R>, StoreError> {
        on_tx!(self, |connection| {
            self.sessions.answer(sqlx::query_as(sql).bind_values(values).fetch_optional(connection)).await
        })
    }

    /// Runs a statement for many rows at once: `VALUES {rows}` in it becomes `VALUES ($2, $3), ($4, $5), …`, or an
    /// array for each column, after the placeholders of `shared`. Works after `INSERT`, in
    /// `IN (VALUES {rows})` and in `FROM (VALUES {rows}) AS v`, whose columns both databases call `column1`,
    /// `column2`, ….
    ///
    /// No rows, no statement. Answers how many rows were touched.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn execute_many(
        &mut self,
        sql: &'static str,
        shared: Values,
        rows: Vec<Values>,
    ) -> Result<u64, StoreError> {
        let mut touched = 0;
        for Many { text, values, columns } in self.many(sql, &shared, rows) {
            let text = AssertSqlSafe(text);
            touched += on_tx!(self, |connection| {
                self.sessions
                    .answer(sqlx::query(text).bind_many(values, columns).execute(connection))
                    .await?
                    .rows_affected()
            });
        }
        Ok(touched)
    }

    /// As [`Tx::execute_many`], for a statement that answers rows.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn fetch_many<R: Row>(
        &mut self,
        sql: &'static str,
        shared: Values,
        rows: Vec<Values>,
    ) -> Result<Vec<R>, StoreError> {
        let mut found = Vec::new();
        for Many { text, values, columns } in self.many(sql, &shared, rows) {
            let text = AssertSqlSafe(text);
            let part: Vec<R> = on_tx!(self, |connection| {
                self.sessions
                    .answer(sqlx::query_as(text).bind_many(values, columns).fetch_all(connection))
                    .await
            })?;
            found.extend(part);
        }
        Ok(found)
    }

    fn many(&self, sql: &str, shared: &Values, rows: Vec<Values>) -> Vec<Many> {
        match self.inner {
            Inner::Postgres(_) => many::arrays(sql, shared, rows),
            Inner::Sqlite(_) => many::lists(sql, shared, rows),
        }
    }

    /// The plan of a statement, one step a line.
    #[cfg(test)]
    pub(crate) async fn explain(&mut self, sql: &'static str, shared: Values, rows: Vec<Values>) -> String {
        let alone = Many { text: sql.to_owned(), values: shared.clone(), columns: Vec::new() };
        let Many { text, values, columns } = self.many(sql, &shared, rows).pop().unwrap_or(alone);
        let steps: Vec<String> = match &mut self.inner {
            Inner::Postgres(tx) => {
                let text = AssertSqlSafe(format!("EXPLAIN {text}"));
                let steps: Vec<(String,)> =
                    sqlx::query_as(text).bind_many(values, columns).fetch_all(&mut **tx).await.unwrap();
                steps.into_iter().map(|step| step.0).collect()
            }
            Inner::Sqlite(tx) => {
                let text = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {text}"));
                let steps: Vec<(i64, i64, i64, String)> =
                    sqlx::query_as(text).bind_many(values, columns).fetch_all(&mut **tx).await.unwrap();
                steps.into_iter().map(|step| step.3).collect()
            }
        };
        steps.join("\n")
    }

    /// Commits.
    ///
    /// # Errors
    /// When the database fails; nothing of the transaction is then there, or, when the connection broke
    /// during the commit, all of it.
    pub async fn commit(self) -> Result<(), StoreError> {
        match self.inner {
            Inner::Postgres(tx) => self.sessions.answer(tx.commit()).await,
            Inner::Sqlite(tx) => self.sessions.answer(tx.commit()).await,
        }
    }
}

/// Returns `false` for a connection within a transaction that nobody can end: SQLite ends one by itself when the disk is
/// full, and sqlx, whose `ROLLBACK` then fails, would begin the next one inside it.
async fn is_outside_transactions(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    if connection.is_in_transaction() {
        // A rollback may still be on its way.
        connection.ping().await?;
    }
    Ok(!connection.is_in_transaction())
}

/// Any number that other programs on the same database do not use: "coucou" in ASCII.
const MIGRATION_LOCK: i64 = 0x0000_636f_7563_6f75;
