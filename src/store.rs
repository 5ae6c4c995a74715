//! All that lasts: PostgreSQL, or a SQLite file, behind one set of methods.
//!
//! A [`Store`] can be opened while its database is down. It is *ready* once [`Store::prepare`] has brought
//! the schema up to date and unlocked the data key; until then every method that needs the key answers
//! [`StoreError::NotReady`], which callers treat as they treat an unavailable database.
//!
//! Every method either reads, or writes through a [`Tx`] that its caller commits, so that what must happen
//! together does. A process that dies leaves nothing half-written.

pub mod accounts;
pub mod backups;
pub mod bridges;
#[cfg(test)]
mod conformance;
pub mod crypto;
pub mod db;
pub mod deadlines;
pub mod dismissed;
pub mod fallback;
pub mod holders;
pub mod inbox;
pub mod key_imports;
pub mod key_news;
pub mod key_requests;
pub mod leases;
pub mod memberships;
pub mod messages;
pub mod outbox;
pub mod pending;
pub mod probes;
pub mod readings;
pub mod redacted;
pub mod redactions;
pub mod retention;
pub mod rooms;
mod seal;
pub mod silence;
pub mod stats;
mod tls;
pub mod webhooks;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use secrecy::SecretString;
use sqlx::migrate::MigrateError;
use tokio::{sync::Notify, time::timeout};

pub use db::{Db, Location, Tx};
pub use leases::Lease;
pub use seal::{DerivedKey, Seal};
pub use tls::Distrust;

use crate::clock::Timestamp;

/// What can go wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached, or has just gone; trying again later makes sense.
    #[error("the database is unavailable")]
    Unavailable(#[source] sqlx::Error),
    /// TLS and the settings do not agree with the server; it may be mended there.
    #[error("{0}")]
    Encryption(Distrust, #[source] Box<sqlx::Error>),
    /// The store has not been prepared yet.
    #[error("the store is not ready yet")]
    NotReady,
    /// The database refused a statement.
    #[error("the database refused a statement")]
    Database(#[source] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("the database schema could not be brought up to date")]
    Migration(#[source] MigrateError),
    /// The connection URL is malformed.
    #[error("the database URL is malformed")]
    BadUrl,
    /// The pickle key is not the one this store was made with.
    #[error(
        "the pickle key does not open this store: set store.pickle_key (COUCOU_STORE_PICKLE_KEY) to the key \
         that the store was made with"
    )]
    WrongPickleKey,
    /// Sealed data does not open: it was changed, or moved from another row.
    #[error("sealed data in {0} does not open")]
    Sealed(&'static str),
    /// A row holds what this version cannot read.
    #[error("unreadable data in {0}")]
    Corrupt(&'static str),
    /// Another process holds the lease now.
    #[error("the lease was taken over by another process")]
    LeaseLost,
}

impl StoreError {
    /// What is wrong, in words that everybody may read: no address, no name, no text of the database's.
    #[must_use]
    pub fn public_reason(&self) -> String {
        match self {
            Self::Unavailable(sqlx::Error::Io(error)) => {
                format!("the database cannot be reached: {}", error.kind())
            }
            Self::Unavailable(sqlx::Error::PoolTimedOut) => "no connection could be had in time".to_owned(),
            Self::Unavailable(sqlx::Error::Database(error))
            | Self::Database(sqlx::Error::Database(error)) => {
                format!("the database refuses with code {}", error.code().as_deref().unwrap_or("unknown"))
            }
            other => other.to_string(),
        }
    }

    /// Whether the same call can succeed later without anybody's doing.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Encryption(..) | Self::NotReady)
    }
}

/// Whether an error of the database passes by itself.
fn passes(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(database) => database.code().is_some_and(|code| is_passing(&code)),
        _ => false,
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match Distrust::of(&error) {
            // Boxed: all futures that can fail would grow with it.
            Some(distrust) => Self::Encryption(distrust, Box::new(error)),
            None if passes(&error) => Self::Unavailable(error),
            None => Self::Database(error),
        }
    }
}

/// Whether an error code tells of the state that the database is in, and not of the statement or its values:
/// the same statement succeeds once that state has passed.
fn is_passing(code: &str) -> bool {
    // SQLite's are numbers of up to four digits, whose low byte is the primary code: busy, locked, read-only,
    // I/O error, full, cannot open. https://www.sqlite.org/rescode.html
    if code.len() < 5 {
        return code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 8 | 10 | 13 | 14));
    }
    // PostgreSQL's: connection exceptions, transactions that were rolled back, insufficient resources, operator
    // intervention and system errors; whatever refuses a connection; a standby, a lock or a timeout in the way.
    // https://www.postgresql.org/docs/current/errcodes-appendix.html
    matches!(code.get(..2), Some("08" | "28" | "40" | "53" | "57" | "58"))
        || matches!(code, "3D000" | "25006" | "25P03" | "25P04" | "55000" | "55006" | "55P03")
}

impl From<MigrateError> for StoreError {
    fn from(error: MigrateError) -> Self {
        // The database can go away in the middle of a migration, too, and take the transaction with it.
        match error {
            MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _) if passes(&cause) => {
                Self::Unavailable(cause)
            }
            error => Self::Migration(error),
        }
    }
}

/// What a store is like that was only looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Looked {
    /// It has nothing of coucou's yet.
    Empty,
    /// Its schema lacks the migrations of these names.
    Behind(Vec<&'static str>),
    /// It can be read.
    Ready,
}

/// The store; clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    db: Db,
    backend: &'static str,
    pickle_key: Arc<SecretString>,
    seal: Arc<OnceLock<Seal>>,
    /// Notifies callers of [`Store::wait_until_ready`].
    prepared: Arc<Notify>,
}

impl Store {
    /// Opens the store without connecting.
    ///
    /// # Errors
    /// When `location` cannot be used at all.
    pub fn open(location: &Location, pickle_key: SecretString) -> Result<Self, StoreError> {
        let db = Db::open(location)?;
        let backend = location.backend();
        Ok(Self {
            db,
            backend,
            pickle_key: Arc::new(pickle_key),
            seal: Arc::default(),
            prepared: Arc::default(),
        })
    }

    /// Brings the schema up to date and unlocks the data key. Does nothing when that is done.
    ///
    /// # Errors
    /// [`StoreError::WrongPickleKey`] and [`StoreError::Migration`] want a person; the rest, time.
    pub async fn prepare(&self, now: Timestamp) -> Result<(), StoreError> {
        if self.seal.get().is_some() {
            return Ok(());
        }
        self.db.migrate().await?;
        let seal = seal::unlock(&self.db, &self.pickle_key, now).await?;
        // Two callers at once unlock the same key: whichever is first.
        let _ = self.seal.set(seal);
        self.prepared.notify_waiters();
        Ok(())
    }

    /// Waits until [`Store::prepare`] has succeeded, for `limit` at most.
    pub async fn wait_until_ready(&self, limit: Duration) {
        let prepared = self.prepared.notified();
        if !self.is_ready() {
            let _ = timeout(limit, prepared).await;
        }
    }

    /// Unlocks the data key of a store that was prepared before, and changes nothing: it can then be read.
    ///
    /// # Errors
    /// [`StoreError::WrongPickleKey`], or when the database fails.
    pub async fn look(&self) -> Result<Looked, StoreError> {
        match self.db.missing_migrations().await? {
            None => return Ok(Looked::Empty),
            Some(missing) if !missing.is_empty() => return Ok(Looked::Behind(missing)),
            Some(_) => {}
        }
        let Some(seal) = seal::open(&self.db, &self.pickle_key).await? else { return Ok(Looked::Empty) };
        let _ = self.seal.set(seal);
        Ok(Looked::Ready)
    }

    /// Whether [`Store::prepare`] has succeeded.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.seal.get().is_some()
    }

    /// `postgres` or `sqlite`.
    #[must_use]
    pub fn backend(&self) -> &'static str {
        self.backend
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// When the database is unavailable or the store not ready.
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        self.seal()?;
        self.db.begin().await
    }

    /// The database, for reads outside a transaction.
    #[must_use]
    pub fn db(&self) -> &Db {
        &self.db
    }

    /// What encrypts and decrypts stored secrets.
    ///
    /// # Errors
    /// [`StoreError::NotReady`] before [`Store::prepare`].
    pub fn seal(&self) -> Result<&Seal, StoreError> {
        self.seal.get().ok_or(StoreError::NotReady)
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.db.ping().await
    }

    /// Writes a row of no meaning, and soon.
    ///
    /// # Errors
    /// When the database takes no writes: it is away, full or read-only.
    pub async fn probe(&self, now: Timestamp) -> Result<(), StoreError> {
        self.db.probe(now).await
    }

    /// Closes every connection.
    pub async fn close(&self) {
        self.db.close().await;
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use assert_matches::assert_matches;

    use super::*;
    use crate::{
        store::db::values,
        testing::{self, START},
    };

    fn gone() -> sqlx::Error {
        sqlx::Error::Io(io::ErrorKind::ConnectionReset.into())
    }

    #[test]
    fn a_database_that_goes_away_amid_a_migration_is_no_broken_schema() {
        for error in [MigrateError::Execute(gone()), MigrateError::ExecuteMigration(gone(), 2)] {
            assert_matches!(StoreError::from(error), StoreError::Unavailable(_));
        }
        assert_matches!(StoreError::from(MigrateError::VersionMismatch(2)), StoreError::Migration(_));
        let refused = MigrateError::ExecuteMigration(sqlx::Error::RowNotFound, 2);
        assert_matches!(StoreError::from(refused), StoreError::Migration(_));
    }

    #[test]
    fn states_of_the_database_pass_and_bad_statements_do_not() {
        let postgres = [
            "08006", "28P01", "3D000", "25006", "40001", "40P01", "53100", "53200", "53300", "55000",
            "57014", "57P01", "57P02", "57P03", "58030",
        ];
        // Busy, busy snapshot, locked by a shared cache, read-only, short read, full, cannot open.
        let sqlite = ["5", "517", "262", "8", "522", "13", "14"];
        for code in postgres.into_iter().chain(sqlite) {
            assert!(is_passing(code), "{code}");
        }
        // A bad value, a duplicate, no such table, corruption; and the same on SQLite, with a misuse.
        for code in ["22021", "23505", "42P01", "XX001", "19", "1555", "1", "11", "26", "21", ""] {
            assert!(!is_passing(code), "{code}");
        }
    }

    #[tokio::test]
    async fn a_statement_that_is_cut_off_or_read_only_can_be_tried_again_and_a_bad_one_cannot() {
        let test = testing::postgres().await;
        for sql in ["SET TRANSACTION READ ONLY", "SET LOCAL statement_timeout = 1"] {
            let mut tx = test.store.begin().await.unwrap();
            tx.execute(sql, vec![]).await.unwrap();
            let failed = tx.execute("INSERT INTO leases SELECT 'x', pg_sleep(1) :: text, 1, 1", vec![]).await;
            assert_matches!(failed, Err(error) if error.is_transient(), "{sql}");
        }
        for test in testing::both().await {
            let mut tx = test.store.begin().await.unwrap();
            let sql = "INSERT INTO leases (name, holder, fence, lease_until) VALUES ($1, NULL, 1, $2)";
            assert_matches!(tx.execute(sql, values!["x", START]).await, Err(StoreError::Database(_)));
        }
    }
}
