//! A SQLite store that stands in for PostgreSQL, for development: chosen at a start at which nobody answers there.
//!
//! It has devices of its own, since two stores with one Olm account would corrupt it, and they stay unsigned: the bot's
//! identity is in PostgreSQL. Its file belongs to one process, which holds a lock beside it as long as it lives, so
//! that nobody merges what is still written. What it took goes into PostgreSQL at a later start, in `merge`.

mod merge;

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

pub(super) use merge::{Merge, merge};

use super::{AppError, Shared};
use crate::{
    clock::Timestamp,
    config::{Fallback, StoreSettings},
    crypto::CryptoError,
    store::Location,
};

/// How long PostgreSQL is waited for at the start: it may be starting, too.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often it is looked whether it is back, and for how long.
const LOOK: Duration = Duration::from_secs(30);
const GLANCE: Duration = Duration::from_secs(2);

/// How often it is looked whether the process that uses the file has ended.
const FREE: Duration = Duration::from_secs(2);

/// The store that stands in for PostgreSQL, for as long as the process lives.
#[derive(Debug)]
pub(super) struct StandIn {
    /// Why PostgreSQL could not be reached, in words that everybody may read.
    pub(super) reason: String,
    /// Its file.
    pub(super) file: PathBuf,
    _lock: Lock,
}

/// Keeps others from the fallback's file; the system drops it with the process.
#[derive(Debug)]
struct Lock {
    _file: File,
}

impl Lock {
    /// Takes it; `None` while another process has it.
    fn take(file: &Path) -> io::Result<Option<Self>> {
        // Not the file itself: SQLite's own locks would end when it is closed.
        let path = beside(file, ".lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// The path with something after it.
fn beside(file: &Path, end: &str) -> PathBuf {
    let mut name: OsString = file.as_os_str().to_owned();
    name.push(end);
    PathBuf::from(name)
}

/// Where this process keeps what lasts: where the settings say, or in the fallback's file.
///
/// # Errors
/// When the fallback's file cannot be locked.
pub(super) async fn choose(settings: &StoreSettings) -> Result<(Location, Option<Arc<StandIn>>), AppError> {
    let asked = settings.location.clone();
    let Some(Fallback { file, is_on: true }) = &settings.fallback else { return Ok((asked, None)) };
    let Some(reason) = asked.unreachable(PATIENCE).await else {
        tracing::info!("PostgreSQL answers, so the fallback is not used");
        return Ok((asked, None));
    };
    let lock = Lock::take(file).map_err(|error| AppError::FallbackLock(beside(file, ".lock"), error))?;
    let Some(lock) = lock else {
        tracing::warn!(
            reason,
            file = %file.display(),
            "PostgreSQL cannot be reached and another process uses the fallback's file: this one waits for PostgreSQL"
        );
        return Ok((asked, None));
    };
    tracing::warn!(
        reason,
        file = %file.display(),
        "PostgreSQL cannot be reached: going on with the SQLite fallback and a device of its own, because \
         store.fallback is sqlite; what it takes is merged when PostgreSQL is back at a later start"
    );
    let stand_in = StandIn { reason, file: file.clone(), _lock: lock };
    Ok((Location::Sqlite { path: file.clone() }, Some(Arc::new(stand_in))))
}

/// Tells when PostgreSQL is back.
pub(super) async fn watch_for_postgres(shared: Shared, stop: CancellationToken) {
    let mut was_back = false;
    loop {
        tokio::select! { () = stop.cancelled() => return, () = sleep(LOOK) => {} }
        let looked = shared.config.store.location.unreachable(GLANCE);
        let is_back = tokio::select! { () = stop.cancelled() => return, away = looked => away.is_none() };
        if is_back && !was_back {
            tracing::warn!("PostgreSQL answers again: restart coucou, which merges the fallback into it");
        }
        was_back = is_back;
    }
}

/// Ends the term when the process that uses the fallback's file has ended, so that the next term merges it.
///
/// # Errors
/// None; as the other tasks of a term.
pub(super) async fn end_when_free(shared: Shared, stop: CancellationToken) -> Result<(), CryptoError> {
    let Some(fallback) = &shared.config.store.fallback else { return Ok(()) };
    while !stop.is_cancelled() && fallback.file.exists() {
        if matches!(Lock::take(&fallback.file), Ok(Some(_))) {
            stop.cancel();
            return Ok(());
        }
        tokio::select! { () = stop.cancelled() => {}, () = sleep(FREE) => {} }
    }
    Ok(())
}

/// Gives a merged file a name that says so, and answers it.
fn put_aside(file: &Path, now: Timestamp) -> io::Result<PathBuf> {
    let aside = beside(file, &format!(".merged-{}", now.rfc3339().replace(':', "-")));
    // The file last: as long as it is there it is merged again, and a log of its writes must not meet another file.
    for end in ["-wal", "-shm", ""] {
        match fs::rename(beside(file, end), beside(&aside, end)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;
    use crate::testing::START;

    fn settings(folder: &Path, url: &str, is_on: bool) -> StoreSettings {
        StoreSettings {
            location: Location::postgres(url, 1).unwrap(),
            pickle_key: SecretString::from("test pickle key"),
            chosen_because: String::new(),
            fallback: Some(Fallback { file: folder.join("fallback.db"), is_on }),
        }
    }

    #[tokio::test]
    async fn only_one_process_falls_back_to_a_file_and_only_when_it_may() {
        let folder = tempfile::tempdir().unwrap();
        let nowhere = "postgres://a:b@127.0.0.1:9/c";
        let off = choose(&settings(folder.path(), nowhere, false)).await.unwrap();
        assert!(matches!(off, (Location::Postgres { .. }, None)));
        let (location, one) = choose(&settings(folder.path(), nowhere, true)).await.unwrap();
        assert!(matches!(location, Location::Sqlite { path } if path.ends_with("fallback.db")));
        assert_eq!(one.as_ref().unwrap().reason, "connection refused");
        let second = choose(&settings(folder.path(), nowhere, true)).await.unwrap();
        assert!(matches!(second, (Location::Postgres { .. }, None)), "another one has it");
        drop(one);
        assert!(choose(&settings(folder.path(), nowhere, true)).await.unwrap().1.is_some());
    }

    #[test]
    fn a_merged_file_says_so_and_takes_its_log_along() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("fallback.db");
        for end in ["", "-wal"] {
            fs::write(beside(&file, end), end).unwrap();
        }
        let aside = put_aside(&file, START).unwrap();
        assert_eq!(aside, folder.path().join("fallback.db.merged-2025-10-09T08-53-20.000Z"));
        assert!(!file.exists() && !beside(&file, "-wal").exists());
        assert!(aside.exists() && fs::read_to_string(beside(&aside, "-wal")).unwrap() == "-wal");
    }
}
