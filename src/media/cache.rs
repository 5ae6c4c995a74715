//! The cache: ciphertext in a folder of this process's own, bounded in size, the least recently used goes first.
//!
//! The folder is new at every start, and open to nobody else. A lock on a file in it says that its process lives; a
//! folder that is not locked was left behind by one that died, and is deleted by the next one that starts.
//!
//! Every byte is accounted for before it is written, also those of files that are still coming, so the folder is
//! never larger than it may be. A file that is being read is not deleted to make room.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use matrix_sdk_crypto::MediaEncryptionInfo;
use rand::Rng;
use tokio::{
    fs::{File, OpenOptions},
    io::AsyncWriteExt,
};
use zeroize::Zeroizing;

use super::{Failure, Key};

/// How the folders of processes begin.
const PREFIX: &str = "coucou-media-";
/// The file in a folder that its process keeps locked.
const LOCK: &str = "lock";

/// The cache; gone from the disk with it.
pub(super) struct Cache {
    files: Mutex<Files>,
    space: Arc<Space>,
    number: AtomicU64,
    // Last: nothing is deleted one by one any more when the folder goes.
    folder: Folder,
}

#[derive(Default)]
struct Files {
    kept: HashMap<Key, Kept>,
    /// Counts uses, so that the least recent is known.
    uses: u64,
}

struct Kept {
    file: Arc<Cached>,
    used: u64,
}

/// How much is on the disk, and how much may be.
struct Space {
    taken: AtomicU64,
    most: u64,
}

impl Cache {
    /// A cache in a new folder within `base`, with `most` bytes at most.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub(super) fn make(base: &Path, most: u64) -> io::Result<Self> {
        let folder = Folder::make(base)?;
        let space = Arc::new(Space { taken: AtomicU64::new(0), most });
        Ok(Self { files: Mutex::default(), space, number: AtomicU64::new(0), folder })
    }

    /// A file that is there; it counts as used now.
    pub(super) fn find(&self, key: &Key) -> Option<Arc<Cached>> {
        let mut files = self.files();
        files.uses += 1;
        let uses = files.uses;
        let kept = files.kept.get_mut(key)?;
        kept.used = uses;
        Some(Arc::clone(&kept.file))
    }

    /// Keeps a file that has come.
    pub(super) fn keep(&self, key: Key, file: Cached) -> Arc<Cached> {
        let file = Arc::new(file);
        let mut files = self.files();
        files.uses += 1;
        let kept = Kept { file: Arc::clone(&file), used: files.uses };
        let old = files.kept.insert(key, kept);
        drop(files);
        drop(old);
        file
    }

    /// Forgets the files of a message.
    pub(super) fn forget(&self, message_id: &str) {
        let mut files = self.files();
        let old: Vec<Kept> =
            files.kept.extract_if(|(message, _), _| message == message_id).map(|(_, kept)| kept).collect();
        drop(files);
        drop(old);
    }

    /// A new file, to be written.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) async fn spool(&self) -> Result<Spool, Failure> {
        let name = self.number.fetch_add(1, Ordering::Relaxed).to_string();
        let held = Held { path: self.folder.path.join(name), size: 0, space: Arc::clone(&self.space) };
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&held.path).await?;
        Ok(Spool { held, file })
    }

    /// Takes room for more bytes of a file, from those that were not used for longest if need be.
    fn grow(&self, held: &mut Held, bytes: u64) -> bool {
        let mut victims = Vec::new();
        let mut files = self.files();
        let mut taken = self.space.taken.load(Ordering::Acquire);
        while taken.saturating_add(bytes) > self.space.most {
            // Only under the lock is a file handed out, so nobody begins to read a victim meanwhile.
            let idle = files.kept.iter().filter(|(_, kept)| Arc::strong_count(&kept.file) == 1);
            let Some(key) = idle.min_by_key(|(_, kept)| kept.used).map(|(key, _)| key.clone()) else {
                return false;
            };
            let Some(victim) = files.kept.remove(&key) else { return false };
            taken = taken.saturating_sub(victim.file.size);
            victims.push(victim);
        }
        self.space.taken.fetch_add(bytes, Ordering::AcqRel);
        held.size += bytes;
        drop(files);
        // Off the disk before anything is written in their place.
        drop(victims);
        true
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file on the disk, deleted when dropped.
#[derive(Debug)]
struct Held {
    path: PathBuf,
    /// Bytes that are accounted for.
    size: u64,
    space: Arc<Space>,
}

impl std::fmt::Debug for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Space").field("taken", &self.taken).field("most", &self.most).finish()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "a file of the media cache cannot be deleted");
        }
        self.space.taken.fetch_sub(self.size, Ordering::AcqRel);
    }
}

/// A file that is being written.
#[derive(Debug)]
pub(super) struct Spool {
    held: Held,
    file: File,
}

impl Spool {
    /// Bytes so far.
    pub(super) fn size(&self) -> u64 {
        self.held.size
    }

    /// Writes the next bytes.
    ///
    /// # Errors
    /// [`Failure::Busy`] when there is no room for them and everything in the cache is being read, and when the disk
    /// does not take them.
    pub(super) async fn write(&mut self, cache: &Cache, bytes: &[u8]) -> Result<(), Failure> {
        if !cache.grow(&mut self.held, bytes.len() as u64) {
            return Err(Failure::Busy);
        }
        Ok(self.file.write_all(bytes).await?)
    }

    /// The whole file. `info`: what reads it, when only this process knows.
    ///
    /// # Errors
    /// When the disk does not take the last bytes.
    pub(super) async fn finish(mut self, info: Option<&MediaEncryptionInfo>) -> Result<Cached, Failure> {
        self.file.flush().await?;
        let info = info.map(serde_json::to_vec).transpose().map_err(io::Error::other)?;
        let size = self.held.size;
        Ok(Cached { held: self.held, size, info: info.map(Zeroizing::new) })
    }
}

/// A file that is there, as its sender made it. Off the disk when nobody has it any more.
pub(super) struct Cached {
    held: Held,
    /// Its size in bytes.
    pub(super) size: u64,
    info: Option<Zeroizing<Vec<u8>>>,
}

impl std::fmt::Debug for Cached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cached").field("size", &self.size).finish_non_exhaustive()
    }
}

impl Cached {
    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.held.path
    }

    /// What reads it, when its sender did not encrypt it.
    pub(super) fn own_info(&self) -> Option<MediaEncryptionInfo> {
        serde_json::from_slice(self.info.as_ref()?).ok()
    }
}

/// The folder of this process.
struct Folder {
    path: PathBuf,
    /// Locked as long as it is open, and so as long as the process lives.
    _lock: fs::File,
}

impl Folder {
    fn make(base: &Path) -> io::Result<Self> {
        fs::create_dir_all(base)?;
        let path = base.join(format!("{PREFIX}{:016x}", rand::rng().random::<u64>()));
        DirBuilder::new().mode(0o700).create(&path)?;
        // Locked before it bears its name: nobody finds it unlocked while this process lives.
        let unnamed = path.join("new");
        let lock = fs::File::create_new(&unnamed)?;
        lock.try_lock().map_err(io::Error::from)?;
        fs::rename(&unnamed, path.join(LOCK))?;
        let folder = Self { path, _lock: lock };
        if let Err(error) = folder.sweep(base) {
            tracing::warn!(%error, "what earlier processes left of the media cache cannot be deleted");
        }
        Ok(folder)
    }

    /// Deletes the folders of processes that are no more.
    fn sweep(&self, base: &Path) -> io::Result<()> {
        let owner = fs::symlink_metadata(&self.path)?.uid();
        for entry in fs::read_dir(base)? {
            let entry = entry?;
            let is_one = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
            if !is_one || entry.path() == self.path {
                continue;
            }
            let metadata = fs::symlink_metadata(entry.path())?;
            // Temporary folders are everybody's: a link, or what somebody else has put there, is left alone.
            if !metadata.is_dir() || metadata.uid() != owner {
                continue;
            }
            let Ok(lock) = fs::File::open(entry.path().join(LOCK)) else { continue };
            match lock.try_lock() {
                Ok(()) => fs::remove_dir_all(entry.path())?,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::debug!(%error, "the media cache cannot be deleted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MediaPart;

    fn key(name: &str) -> Key {
        (name.to_owned(), MediaPart::File)
    }

    async fn file(cache: &Cache, size: usize) -> Result<Cached, Failure> {
        let mut spool = cache.spool().await?;
        for piece in vec![7; size].chunks(10) {
            spool.write(cache, piece).await?;
        }
        spool.finish(None).await
    }

    fn on_disk(cache: &Cache) -> u64 {
        let entries = fs::read_dir(&cache.folder.path).unwrap();
        entries.map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
    }

    #[tokio::test]
    async fn the_least_recently_used_goes_when_there_is_no_room() {
        let base = tempfile::tempdir().unwrap();
        let cache = Cache::make(base.path(), 100).unwrap();
        for name in ["a", "b", "c"] {
            let made = file(&cache, 30).await.unwrap();
            cache.keep(key(name), made);
        }
        assert_eq!(cache.find(&key("a")).unwrap().size, 30);
        let made = file(&cache, 35).await.unwrap();
        cache.keep(key("d"), made);
        assert!(cache.find(&key("b")).is_none(), "used least recently");
        assert_eq!(on_disk(&cache), 95);
        for name in ["a", "c", "d"] {
            assert!(cache.find(&key(name)).is_some(), "{name}");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_read_stays_and_one_that_does_not_fit_leaves_nothing() {
        let base = tempfile::tempdir().unwrap();
        let cache = Cache::make(base.path(), 100).unwrap();
        let read = cache.keep(key("read"), file(&cache, 60).await.unwrap());
        cache.keep(key("idle"), file(&cache, 20).await.unwrap());
        assert!(matches!(file(&cache, 50).await, Err(Failure::Busy)));
        assert_eq!(fs::metadata(read.path()).unwrap().len(), 60);
        assert_eq!(on_disk(&cache), 60, "what was written of it is gone, as is what made room for it");
        drop(read);
        cache.keep(key("new"), file(&cache, 50).await.unwrap());
        assert!(cache.find(&key("read")).is_none());
        assert_eq!(on_disk(&cache), 50);
    }

    #[tokio::test]
    async fn what_is_forgotten_is_off_the_disk_once_nobody_reads_it() {
        let base = tempfile::tempdir().unwrap();
        let cache = Cache::make(base.path(), 100).unwrap();
        let read = cache.keep(key("one"), file(&cache, 10).await.unwrap());
        cache.keep(key("other"), file(&cache, 10).await.unwrap());
        cache.forget("one");
        assert!(cache.find(&key("one")).is_none() && cache.find(&key("other")).is_some());
        assert_eq!(on_disk(&cache), 20);
        drop(read);
        assert_eq!((on_disk(&cache), cache.space.taken.load(Ordering::Acquire)), (10, 10));
    }

    #[tokio::test]
    async fn folders_of_dead_processes_are_deleted_and_those_of_others_are_not() {
        let base = tempfile::tempdir().unwrap();
        let (alive, dead) = (Cache::make(base.path(), 100).unwrap(), base.path().join("coucou-media-dead"));
        let _file = file(&alive, 10).await.unwrap();
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join(LOCK), "").unwrap();
        fs::write(dead.join("0"), "ciphertext").unwrap();
        let stranger = base.path().join("coucou-media-of-no-process");
        fs::create_dir(&stranger).unwrap();
        let link = base.path().join("coucou-media-link");
        std::os::unix::fs::symlink(&stranger, &link).unwrap();
        let cache = Cache::make(base.path(), 100).unwrap();
        assert!(!dead.exists());
        assert!(stranger.exists() && link.exists() && on_disk(&alive) == 10);
        let own = cache.folder.path.clone();
        assert_eq!(fs::metadata(&own).unwrap().mode() & 0o777, 0o700);
        drop(cache);
        assert!(!own.exists() && alive.folder.path.exists());
    }
}
