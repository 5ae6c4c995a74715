//! Room keys in and out of files, and what is known of them: what `coucou keys` does with the store.
//!
//! Reading needs no lease. Keys that come in are handed over through a table to whoever works the crypto; when
//! nobody does, this process claims the crypto lease for as long as it takes, and does it itself.

use std::{
    collections::{BTreeMap, HashMap},
    process,
    sync::Arc,
    time::Duration,
};

use matrix_sdk_crypto::{
    KeyExportError, decrypt_room_key_export, encrypt_room_key_export, olm::ExportedRoomKey,
};
use rand::Rng;
use ruma::{OwnedRoomId, OwnedUserId};
use secrecy::{ExposeSecret, SecretString};
use tokio::{task::spawn_blocking, time::sleep};

use crate::{
    clock::{Clock, SharedClock, SystemClock, Timestamp},
    config::Config,
    crypto::{CryptoError, Engine, import, store::AccountStore},
    homeserver::{Homeserver, HomeserverError},
    model::{
        Account,
        ledger::{Facts, Reason, next_step},
    },
    store::{
        Lease, Store, StoreError, accounts,
        crypto::inbound::{self, Overview},
        holders,
        key_imports::{self, Counts},
        key_requests, leases, pending, rooms,
    },
};

/// The name of the lease.
pub(super) const CRYPTO: &str = "crypto";

/// How long this process claims it for, and how often it looks whether somebody else works.
const LASTS: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(500);

/// Sessions read at once: some hundred kilobytes.
const PAGE: usize = 500;

/// Keys handed over at once. They are taken in between two steps of the worker, so a part is small.
const PART: usize = 200;

/// Rounds of PBKDF2, as many as Element makes. The specification advises at least 100,000
/// ([spec](https://spec.matrix.org/latest/client-server-api/#key-exports)).
const ROUNDS: u32 = 500_000;

/// The most rounds that a file may ask for: some seconds of work, not hours.
const MOST_ROUNDS: u32 = 20_000_000;

/// The first and the last line of a file.
const HEADER: &str = "-----BEGIN MEGOLM SESSION DATA-----";
const FOOTER: &str = "-----END MEGOLM SESSION DATA-----";

/// Why keys cannot be exported, imported or told of.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The store cannot be used.
    #[error("the store cannot be used")]
    Store(#[from] StoreError),
    /// The crypto store cannot be used.
    #[error("the room keys cannot be read or written")]
    Crypto(#[from] CryptoError),
    /// The homeserver's settings cannot be used.
    #[error("the homeserver's settings cannot be used")]
    Homeserver(#[from] HomeserverError),
    /// There is no device that could have keys.
    #[error("the store has no device yet: run `coucou serve` once, which makes it")]
    NoAccount,
    /// Another user was named than coucou reads as.
    #[error("{0} is no account of this store; it has {1}")]
    WrongAccount(OwnedUserId, String),
    /// There is nothing to export.
    #[error("there are no room keys to export")]
    NoKeys,
    /// The file is no key export.
    #[error("the file is no key export: its first line must be -----BEGIN MEGOLM SESSION DATA-----")]
    NoExport,
    /// The file is a key export, and damaged.
    #[error("the file is damaged or cut off, so nothing was imported")]
    Damaged,
    /// The passphrase is another one, or the file was changed.
    #[error("the passphrase does not open the file, or the file was changed; nothing was imported")]
    WrongPassphrase,
    /// Keys cannot be written down.
    #[error("the room keys cannot be encoded")]
    Encode,
    /// A task of this process panicked or was cut off.
    #[error("a task ended early")]
    Task(#[from] tokio::task::JoinError),
}

/// Told how far the work is: done, of how many when that is known.
pub type Progress<'a> = &'a (dyn Fn(u64, Option<u64>) + Sync);

/// The store of a command, closed when it is done.
async fn open(config: &Config) -> Result<Store, KeysError> {
    let store = Store::open(&config.store.location, config.store.pickle_key.clone())?;
    store.prepare(SystemClock.now()).await?;
    Ok(store)
}

async fn accounts_of(store: &Store, only: Option<&OwnedUserId>) -> Result<Vec<Account>, KeysError> {
    let all = accounts::all(store.db()).await?;
    if all.is_empty() {
        return Err(KeysError::NoAccount);
    }
    let Some(only) = only else { return Ok(all) };
    let named: Vec<_> = all.iter().filter(|account| account.user_id == *only).cloned().collect();
    if named.is_empty() {
        let users: Vec<_> = all.iter().map(|account| account.user_id.as_str()).collect();
        return Err(KeysError::WrongAccount(only.clone(), users.join(" and ")));
    }
    Ok(named)
}

/// Encrypts room keys of all accounts, or of one, for a file; of a session that several hold the key that
/// begins first. Answers the file's text and how many keys it holds.
///
/// The format is one piece under one MAC, so the keys to write are all in memory at once; the store is read in
/// pages.
///
/// # Errors
/// When the store cannot be read or there are no keys.
pub async fn export(
    config: &Config,
    account: Option<OwnedUserId>,
    room_id: Option<OwnedRoomId>,
    passphrase: SecretString,
    progress: Progress<'_>,
) -> Result<(String, u64), KeysError> {
    let store = open(config).await?;
    let keys = read_keys(&store, account.as_ref(), room_id, progress).await;
    store.close().await;
    let keys = keys?;
    if keys.is_empty() {
        return Err(KeysError::NoKeys);
    }
    let count = keys.len() as u64;
    let encrypt = move || encrypt_room_key_export(&keys, passphrase.expose_secret(), ROUNDS);
    let text = spawn_blocking(encrypt).await?.map_err(|_| KeysError::Encode)?;
    Ok((text, count))
}

async fn read_keys(
    store: &Store,
    account: Option<&OwnedUserId>,
    room_id: Option<OwnedRoomId>,
    progress: Progress<'_>,
) -> Result<Vec<ExportedRoomKey>, KeysError> {
    let clock: SharedClock = Arc::new(SystemClock);
    let mut best = BTreeMap::<(OwnedRoomId, String), (u32, ExportedRoomKey)>::new();
    let (mut done, mut total) = (0, 0);
    let accounts = accounts_of(store, account).await?;
    for account in &accounts {
        total += inbound::overview(store.db(), account.id).await?.session_count;
    }
    let total = room_id.is_none().then_some(total);
    for account in accounts {
        let crypto = AccountStore::new(store.clone(), account.id, None, Arc::clone(&clock));
        let mut after = None;
        loop {
            let page = crypto.page_of_inbound_group_sessions(room_id.as_deref(), after.as_ref(), PAGE);
            let page = page.await.map_err(|error| CryptoError::Store(error.into()))?;
            for session in &page {
                let index = session.first_known_index();
                let name = (session.room_id().to_owned(), session.session_id().to_owned());
                if best.get(&name).is_none_or(|(known, _)| index < *known) {
                    best.insert(name, (index, session.export().await));
                }
            }
            done += page.len() as u64;
            progress(done, total);
            if page.len() < PAGE {
                break;
            }
            after = page.into_iter().next_back();
        }
    }
    Ok(best.into_values().map(|(_, key)| key).collect())
}

/// Opens a key export.
///
/// # Errors
/// When it is none, is damaged, or the passphrase is another one.
pub async fn decrypt(text: String, passphrase: SecretString) -> Result<Vec<ExportedRoomKey>, KeysError> {
    let is_whole = text.trim_end().ends_with(FOOTER);
    if text.trim_start().starts_with(HEADER)
        && (!is_whole || rounds(&text).is_none_or(|rounds| rounds > MOST_ROUNDS))
    {
        return Err(KeysError::Damaged);
    }
    let open = move || decrypt_room_key_export(text.as_bytes(), passphrase.expose_secret());
    spawn_blocking(open).await?.map_err(|error| match error {
        KeyExportError::InvalidHeaders => KeysError::NoExport,
        KeyExportError::InvalidMac => KeysError::WrongPassphrase,
        _ => KeysError::Damaged,
    })
}

/// How many rounds of PBKDF2 a file asks for: four bytes after the version, the salt and the IV.
fn rounds(text: &str) -> Option<u32> {
    use base64::{Engine as _, prelude::BASE64_STANDARD_NO_PAD};
    let body: String =
        text.lines().filter(|line| !line.starts_with("-----")).flat_map(str::chars).take(52).collect();
    let head = BASE64_STANDARD_NO_PAD.decode(body).ok()?;
    Some(u32::from_be_bytes(head.get(33..37)?.try_into().ok()?))
}

/// Imports the keys of a file: into the accounts that hold their sessions, else into `account` or the bot's.
/// Answers how many there were of each kind, once whoever works the crypto has taken them in.
///
/// # Errors
/// When the store fails. Repeating it is harmless.
pub async fn import(
    config: &Config,
    account: Option<OwnedUserId>,
    keys: Vec<ExportedRoomKey>,
    progress: Progress<'_>,
) -> Result<Counts, KeysError> {
    let store = open(config).await?;
    let imported = import_into(config, &store, account.as_ref(), keys, progress).await;
    store.close().await;
    imported
}

async fn import_into(
    config: &Config,
    store: &Store,
    account: Option<&OwnedUserId>,
    keys: Vec<ExportedRoomKey>,
    progress: Progress<'_>,
) -> Result<Counts, KeysError> {
    let Some(account) = accounts_of(store, account).await?.into_iter().next() else {
        return Err(KeysError::NoAccount);
    };
    let total = keys.len() as u64;
    let import_id = format!("{:032x}", rand::rng().random::<u128>());
    for part in keys.chunks(PART) {
        let plain = serde_json::to_vec(part).map(zeroize::Zeroizing::new).map_err(|_| KeysError::Encode)?;
        let mut tx = store.begin().await?;
        let seal = store.seal()?;
        key_imports::hand_over(&mut tx, seal, &import_id, account.id, &plain, SystemClock.now()).await?;
        tx.commit().await?;
    }
    drop(keys);
    let mut worker = None;
    let state = loop {
        let state = key_imports::state(store.db(), &import_id).await?;
        progress((state.taken_count * PART as u64).min(total), Some(total));
        if state.taken_count >= state.part_count {
            break state;
        }
        if worker.is_none() {
            worker = Substitute::claim(config, store).await?;
        }
        match &worker {
            Some(substitute) => {
                if let Err(error) = substitute.take_part().await {
                    let _ = substitute.release().await;
                    if !error.is_transient() {
                        return Err(error.into());
                    }
                    worker = None;
                }
            }
            // Somebody works the crypto and takes the parts in, or dies, and then we do.
            None => sleep(LOOK).await,
        }
    };
    if let Some(substitute) = worker {
        substitute.release().await?;
    }
    let mut tx = store.begin().await?;
    key_imports::delete(&mut tx, &import_id).await?;
    tx.commit().await?;
    Ok(state.counts)
}

/// This process, while it holds the crypto lease because nobody else does.
struct Substitute {
    store: Store,
    lease: Lease,
    engines: Vec<Engine>,
    clock: SharedClock,
}

impl Substitute {
    /// Claims the lease; `None` while another process holds it.
    async fn claim(config: &Config, store: &Store) -> Result<Option<Self>, KeysError> {
        let clock: SharedClock = Arc::new(SystemClock);
        let holder = format!("keys-import-{}-{:08x}", process::id(), rand::rng().random::<u32>());
        let mut tx = store.begin().await?;
        let lease = leases::claim(&mut tx, CRYPTO, &holder, clock.now(), LASTS).await?;
        tx.commit().await?;
        let Some(lease) = lease else { return Ok(None) };
        let homeserver = Homeserver::new(&config.homeserver.url, config.appservice.as_token.clone())?;
        let mut engines = Vec::new();
        for account in accounts::all(store.db()).await? {
            let engine =
                Engine::load(account, store.clone(), lease.clone(), homeserver.clone(), Arc::clone(&clock));
            engines.push(engine.await?);
        }
        Ok(Some(Self { store: store.clone(), lease, engines, clock }))
    }

    async fn take_part(&self) -> Result<(), CryptoError> {
        let mut tx = self.store.begin().await?;
        leases::renew(&mut tx, &self.lease, self.clock.now(), LASTS).await?;
        tx.commit().await?;
        import::take_part(&self.store, &self.engines, &self.lease, &self.clock).await?;
        Ok(())
    }

    async fn release(&self) -> Result<(), KeysError> {
        let mut tx = self.store.begin().await?;
        leases::release(&mut tx, &self.lease).await?;
        Ok(tx.commit().await?)
    }
}

/// What is known of room keys.
#[derive(Debug)]
pub struct Status {
    /// By account.
    pub accounts: Vec<AccountStatus>,
    /// What events on the ledger wait for, the newest first.
    pub stuck: Vec<StuckStatus>,
    /// Whether there is more on the ledger.
    pub is_cut: bool,
}

/// An account's room keys.
#[derive(Debug)]
pub struct AccountStatus {
    /// The account.
    pub account: Account,
    /// Its keys in figures.
    pub overview: Overview,
    /// What became of keys that were forwarded to it: outcome and count.
    pub forwards: Vec<(String, i64)>,
}

/// A session that events on the ledger wait for, or cannot be read with.
#[derive(Debug)]
pub struct StuckStatus {
    /// The events in figures.
    pub stuck: pending::Stuck,
    /// How often its key was asked for.
    pub tries: i64,
    /// When it is asked for again.
    pub next_at: Option<Timestamp>,
    /// What would fix it.
    pub fix: String,
}

/// What is known of room keys, and of at most `most` sessions that the ledger waits for.
///
/// # Errors
/// When the store cannot be read.
pub async fn status(config: &Config, most: Option<usize>) -> Result<Status, KeysError> {
    let store = open(config).await?;
    let status = read_status(&store, most).await;
    store.close().await;
    status
}

async fn read_status(store: &Store, most: Option<usize>) -> Result<Status, KeysError> {
    let db = store.db();
    let mut statuses = Vec::new();
    for account in accounts_of(store, None).await? {
        let overview = inbound::overview(db, account.id).await?;
        let forwards = key_requests::forwards(db, account.id).await?;
        statuses.push(AccountStatus { account, overview, forwards });
    }
    let limit =
        most.and_then(|most| i64::try_from(most).ok()).map_or(i64::MAX, |most| most.saturating_add(1));
    let mut found = pending::stuck(db, limit).await?;
    let is_cut = most.is_some_and(|most| found.len() > most);
    if let Some(most) = most {
        found.truncate(most);
    }
    let sessions: Vec<_> = found
        .iter()
        .filter_map(|stuck| Some((stuck.room_id.as_str(), stuck.session_id.as_deref()?)))
        .collect();
    let mut asked = HashMap::new();
    for (room_id, session_id, tries, next_at) in key_requests::progress(db, &sessions).await? {
        asked.insert((room_id, session_id), (tries, next_at));
    }
    let places: Vec<_> = statuses
        .iter()
        .flat_map(|status| {
            let account_id = status.account.id;
            sessions.iter().map(move |(room_id, session_id)| (account_id, *room_id, *session_id))
        })
        .collect();
    let held: std::collections::HashSet<_> = holders::find(db, &places)
        .await?
        .into_iter()
        .map(|(_, room_id, session_id)| (room_id, session_id))
        .collect();
    let bridged = rooms::bridged(db, found.iter().map(|stuck| &*stuck.room_id)).await?;
    let stuck = found.into_iter().map(|stuck| {
        let place = (stuck.room_id.clone(), stuck.session_id.clone().unwrap_or_default());
        let (tries, next_at) = asked.get(&place).copied().unwrap_or_default();
        let facts = Facts {
            requested: tries > 0,
            key_is_here: held.contains(&place),
            is_bridged: bridged.contains(&stuck.room_id),
            ..Facts::default()
        };
        let fix = next_step(&Reason::parse(&stuck.reason), &facts);
        StuckStatus { stuck, tries, next_at: (tries > 0).then_some(next_at), fix }
    });
    Ok(Status { stuck: stuck.collect(), accounts: statuses, is_cut })
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, prelude::BASE64_STANDARD_NO_PAD};

    use super::*;

    #[tokio::test]
    async fn a_bad_file_is_told_from_a_wrong_passphrase() {
        let text = encrypt_room_key_export(&[], "right", 10).unwrap();
        let open = async |text: &str, passphrase: &str| {
            decrypt(text.to_owned(), SecretString::from(passphrase)).await.map(|keys| keys.len())
        };
        assert_eq!(rounds(&text), Some(10));
        assert_eq!(open(&text, "right").await.unwrap(), 0);
        assert!(matches!(open(&text, "wrong").await, Err(KeysError::WrongPassphrase)));
        assert!(matches!(open("nothing", "right").await, Err(KeysError::NoExport)));
        let head = text.lines().next().unwrap();
        let foot = text.lines().next_back().unwrap();
        for body in ["", "AAAA", "!!!!"] {
            let damaged = [head, body, foot].join("\n");
            assert!(matches!(open(&damaged, "right").await, Err(KeysError::Damaged)), "{body}");
        }
        let cut = &text[..text.len() - 40];
        assert!(matches!(open(cut, "right").await, Err(KeysError::Damaged)));
        let hours = encrypt_room_key_export(&[], "right", 1).unwrap();
        let body = hours.lines().nth(1).unwrap().to_owned();
        let mut bytes = BASE64_STANDARD_NO_PAD.decode(body).unwrap();
        bytes[33..37].copy_from_slice(&u32::MAX.to_be_bytes());
        let hours = [head, &BASE64_STANDARD_NO_PAD.encode(bytes), foot].join("\n");
        assert!(matches!(open(&hours, "right").await, Err(KeysError::Damaged)));
    }
}
