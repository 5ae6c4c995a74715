//! Files of messages: fetched from the homeserver, checked, decrypted, handed out.
//!
//! What there is to know of a file, its key included, is in its message's payload, as it is stored: a message that
//! was taken back, or whose content was deleted for its age, has no file any more. A file is fetched when somebody
//! asks for it, by one request however many ask, and kept in a cache that only ever holds ciphertext. It is
//! decrypted while it is handed out. Neither way is it ever in memory as a whole.
//!
//! Nothing is handed out of a file whose hash is not the one that its sender stated. When the process dies, what it
//! had fetched is of no use to anybody, and is deleted by the next one.

mod cache;
mod feed;
mod fetch;
mod reading;
mod source;

use std::{
    collections::HashMap,
    error::Error,
    fmt, io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use matrix_sdk_crypto::MediaEncryptionInfo;
use ruma::{OwnedUserId, UserId};
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};

pub use reading::Reading;

use crate::{
    homeserver::{Homeserver, HomeserverError},
    lifecycle::Lifecycle,
    model::MediaPart,
    store::{Store, StoreError, accounts, messages::read, rooms},
};
use cache::{Cache, Cached};
use source::Source;

/// How long somebody who asks is kept waiting: below what connections and proxies grant. The file goes on coming.
const PATIENCE: Duration = Duration::from_secs(45);

/// The most files that are fetched, or wait for their turn.
const MOST_WAITING: usize = 256;

/// How files are fetched and kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the cache's folder is made.
    pub folder: PathBuf,
    /// The most bytes that are kept.
    pub cache_size: u64,
    /// The most bytes of a file.
    pub max_size: u64,
    /// How long a file may take to come.
    pub timeout: Duration,
    /// Files that are fetched at the same time.
    pub concurrency: usize,
}

/// Why a file cannot be fetched. Everybody who waits for it is told the same.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// The homeserver does not have it, or no longer.
    #[error("the homeserver does not have the file")]
    Missing,
    /// The homeserver cannot be reached, or asks to come again, perhaps after a time.
    #[error("the homeserver does not give the file now")]
    Unavailable(#[source] Arc<HomeserverError>, Option<Duration>),
    /// The homeserver refuses.
    #[error("the homeserver refuses to give the file")]
    Refused(#[source] Arc<HomeserverError>),
    /// It is larger than the settings allow.
    #[error("the file is larger than {0} bytes")]
    TooLarge(u64),
    /// Its bytes are not those that were sent.
    #[error("the file's hash is not the one that its sender stated")]
    HashMismatch,
    /// The key that its sender stated is none that can be used.
    #[error("the file's key cannot be used")]
    BadKey,
    /// Too much is fetched, or handed out, at the same time.
    #[error("too many files are fetched at the same time")]
    Busy,
    /// It cannot be kept.
    #[error("the cache cannot be written")]
    Cache(#[source] Arc<io::Error>),
}

/// Why a file is not handed out.
#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    /// There is no such message, or it has no such file, or no longer.
    #[error("there is no such file")]
    NotFound,
    /// It is still coming.
    #[error("the file is still being fetched")]
    Pending,
    /// coucou stops.
    #[error("coucou is stopping")]
    Stopping,
    /// It cannot be fetched.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A file of a message.
type Key = (String, MediaPart);

/// What came of fetching a file, once it did.
type Landed = Option<Result<Arc<Cached>, Failure>>;

/// The files of messages; clones share it.
#[derive(Clone)]
pub struct Media {
    inner: Arc<Inner>,
}

struct Inner {
    homeserver: Homeserver,
    store: Store,
    lifecycle: Lifecycle,
    settings: Settings,
    cache: Cache,
    slots: Semaphore,
    /// What is being fetched.
    flights: Mutex<HashMap<Key, watch::Receiver<Landed>>>,
}

impl fmt::Debug for Media {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Media").field("settings", &self.inner.settings).finish_non_exhaustive()
    }
}

/// A file that a message has.
#[derive(Debug)]
pub struct Found {
    media: Media,
    key: Key,
    room_id: String,
    source: Source,
}

impl Media {
    /// Makes the cache's folder, and deletes what processes that are no more have left in theirs.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(
        homeserver: Homeserver,
        store: Store,
        lifecycle: Lifecycle,
        settings: Settings,
    ) -> io::Result<Self> {
        let cache = Cache::make(&settings.folder, settings.cache_size)?;
        let slots = Semaphore::new(settings.concurrency);
        let inner = Inner { homeserver, store, lifecycle, settings, cache, slots, flights: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Looks for a file of a message, without fetching it.
    ///
    /// # Errors
    /// [`MediaError::NotFound`] when there is none, and when the store fails.
    pub async fn find(&self, message_id: &str, part: &MediaPart) -> Result<Found, MediaError> {
        let store = &self.inner.store;
        let stored = read::find(store.db(), store.seal()?, message_id).await?;
        let key = (message_id.to_owned(), part.clone());
        let found = stored.and_then(|stored| {
            let source = Source::read(&stored.payload?, part)?;
            Some((stored.room_id, source))
        });
        let Some((room_id, source)) = found else {
            // It may have been there before the message was taken back.
            self.inner.cache.forget(message_id);
            return Err(MediaError::NotFound);
        };
        Ok(Found { media: self.clone(), key, room_id, source })
    }

    /// The account that reads the room, or did; else any.
    async fn reader(&self, room_id: &str) -> Result<OwnedUserId, MediaError> {
        let db = self.inner.store.db();
        let members = rooms::read::members(db, &[room_id]).await?;
        let joined = members.iter().find(|member| member.membership == "join").or(members.first());
        if let Some(user_id) = joined.and_then(|member| UserId::parse(&member.user_id).ok()) {
            return Ok(user_id);
        }
        let any = accounts::all(db).await?.into_iter().next();
        any.map(|account| account.user_id).ok_or(MediaError::Store(StoreError::NotReady))
    }

    /// The file from the cache, or what tells of it coming.
    fn board(&self, found: &Found, reader: OwnedUserId) -> Result<Boarded, Failure> {
        let mut flights = self.inner.flights();
        // Looked at under the lock: a flight that has landed meanwhile has left its file here.
        if let Some(cached) = self.inner.cache.find(&found.key) {
            return Ok(Boarded::Landed(cached));
        }
        if let Some(flight) = flights.get(&found.key) {
            return Ok(Boarded::Coming(flight.clone()));
        }
        if flights.len() >= MOST_WAITING {
            return Err(Failure::Busy);
        }
        let (landed, landing) = watch::channel(None);
        flights.insert(found.key.clone(), landing.clone());
        let flight = Flight { media: self.clone(), key: found.key.clone() };
        let (source, stop) = (found.source.clone(), self.inner.lifecycle.stop_token());
        // A task of its own: whoever asked may be gone before it is there, and ask again.
        self.inner.lifecycle.spawn(async move {
            let outcome = tokio::select! {
                () = stop.cancelled() => return,
                outcome = flight.fly(&source, &reader) => outcome,
            };
            landed.send_replace(Some(outcome));
        });
        Ok(Boarded::Coming(landing))
    }
}

impl Inner {
    fn flights(&self) -> MutexGuard<'_, HashMap<Key, watch::Receiver<Landed>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a file is.
enum Boarded {
    Landed(Arc<Cached>),
    Coming(watch::Receiver<Landed>),
}

/// Fetching one file. However it ends, others may begin again afterwards.
struct Flight {
    media: Media,
    key: Key,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.media.inner.flights().remove(&self.key);
    }
}

impl Flight {
    #[tracing::instrument(name = "media.fetch", skip_all, fields(message.id = %self.key.0, part = self.key.1.as_str()))]
    async fn fly(&self, source: &Source, reader: &UserId) -> Result<Arc<Cached>, Failure> {
        let inner = &self.media.inner;
        let turn = timeout(PATIENCE, inner.slots.acquire()).await;
        let fetched = match turn {
            Ok(Ok(_turn)) => {
                fetch::fetch(&inner.homeserver, &inner.cache, &inner.settings, source, reader).await
            }
            Ok(Err(_)) | Err(_) => Err(Failure::Busy),
        };
        match fetched {
            Ok(cached) => Ok(inner.cache.keep(self.key.clone(), cached)),
            Err(failure) => {
                tracing::warn!(error = &failure as &dyn Error, "a file was not fetched");
                Err(failure)
            }
        }
    }
}

/// A file that is there, in full and as its sender made it.
#[derive(Debug)]
pub struct Opened {
    cached: Arc<Cached>,
    info: MediaEncryptionInfo,
}

impl Found {
    /// Its type, as the sender claims.
    #[must_use]
    pub fn mimetype(&self) -> Option<&str> {
        self.source.mimetype.as_deref()
    }

    /// Its name, as the sender wrote it.
    #[must_use]
    pub fn filename(&self) -> Option<&str> {
        self.source.filename.as_deref()
    }

    /// Fetches it, unless it is in the cache.
    ///
    /// # Errors
    /// When it cannot be had, or not now.
    pub async fn open(&self) -> Result<Opened, MediaError> {
        let reader = self.media.reader(&self.room_id).await?;
        let cached = match self.media.board(self, reader)? {
            Boarded::Landed(cached) => cached,
            Boarded::Coming(mut landing) => {
                let landed = timeout(PATIENCE, landing.wait_for(Option::is_some)).await;
                let landed = landed.map_err(|_| MediaError::Pending)?.map_err(|_| MediaError::Stopping)?;
                landed.clone().ok_or(MediaError::Stopping)??
            }
        };
        let info = cached.own_info().or_else(|| self.source.info()).ok_or(Failure::BadKey)?;
        Ok(Opened { cached, info })
    }
}

impl Opened {
    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.cached.size
    }

    /// Its content in the clear, `length` bytes from `from` on.
    #[must_use]
    pub fn read(self, from: u64, length: u64) -> Reading {
        Reading::begin(self.cached, self.info, from, length)
    }
}
