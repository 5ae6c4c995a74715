//! All that lasts: PostgreSQL, or a SQLite file, behind one set of methods.
//!
//! A [`Store`] can be opened while its database is down. It is *ready* once [`Store::prepare`] has brought
//! the schema up to date and unlocked the data key; until then every method that needs the key answers
//! [`StoreError::NotReady`], which callers treat as they treat an unavailable database.
//!
//! Every method either reads, or writes through a [`Tx`] that its caller commits, so that what must happen
//! together does. A process that dies leaves nothing half-written.

pub mod accounts;
#[cfg(test)]
mod conformance;
pub mod crypto;
pub mod db;
pub mod holders;
pub mod inbox;
pub mod leases;
pub mod messages;
pub mod outbox;
pub mod pending;
pub mod rooms;
mod seal;
pub mod webhooks;

use std::sync::{Arc, OnceLock};

use secrecy::SecretString;
use sqlx::migrate::MigrateError;

pub use db::{Db, Location, Tx};
pub use leases::Lease;
pub use seal::Seal;

use crate::clock::Timestamp;

/// What can go wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached, or has just gone; trying again later makes sense.
    #[error("the database is unavailable")]
    Unavailable(#[source] sqlx::Error),
    /// The store has not been prepared yet.
    #[error("the store is not ready yet")]
    NotReady,
    /// The database refused a statement.
    #[error("the database refused a statement")]
    Database(#[source] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("the database schema could not be brought up to date")]
    Migration(#[from] MigrateError),
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
            Self::Unavailable(sqlx::Error::Tls(_)) => "the encrypted connection cannot be made".to_owned(),
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
        matches!(self, Self::Unavailable(_) | Self::NotReady)
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let transient = match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => true,
            // PostgreSQL: connection exceptions, too many connections, shutting down, starting up,
            // serialisation failures and deadlocks. SQLite: busy and locked.
            // https://www.postgresql.org/docs/current/errcodes-appendix.html
            sqlx::Error::Database(database) => database.code().is_some_and(|code| {
                code.starts_with("08")
                    || code.starts_with("57P")
                    || matches!(&*code, "53300" | "40001" | "40P01" | "5" | "6" | "261" | "517")
            }),
            _ => false,
        };
        if transient { Self::Unavailable(error) } else { Self::Database(error) }
    }
}

/// The store; clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    db: Db,
    backend: &'static str,
    pickle_key: Arc<SecretString>,
    seal: Arc<OnceLock<Seal>>,
}

impl Store {
    /// Opens the store without connecting.
    ///
    /// # Errors
    /// When `location` cannot be used at all.
    pub fn open(location: &Location, pickle_key: SecretString) -> Result<Self, StoreError> {
        let db = Db::open(location)?;
        let backend = location.backend();
        Ok(Self { db, backend, pickle_key: Arc::new(pickle_key), seal: Arc::default() })
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
        Ok(())
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
        self.db.fetch_optional::<(i64,)>("SELECT CAST(1 AS BIGINT)", vec![]).await?;
        Ok(())
    }

    /// Closes every connection.
    pub async fn close(&self) {
        self.db.close().await;
    }
}
