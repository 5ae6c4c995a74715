//! Databases for unit tests: a fresh, migrated one for each, on real PostgreSQL and on SQLite.

use std::{env, thread, time::Duration};

use rand::{Rng, distr::Alphanumeric};
use ruma::owned_user_id;
use secrecy::SecretString;
use serde_json::json;
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tempfile::TempDir;

use crate::{
    clock::{SharedClock, Timestamp},
    crypto::Engine,
    homeserver::Homeserver,
    lifecycle::Lifecycle,
    media::{self, Media},
    model::{Account, Direction, Message, MessageId, MessageType, Trust},
    store::{Lease, Location, Store, messages},
};

/// The time at which tests begin.
pub(crate) const START: Timestamp = Timestamp(1_760_000_000_000);

/// A store of a test's own; gone when dropped.
pub(crate) struct TestStore {
    pub(crate) store: Store,
    pub(crate) location: Location,
    _guard: Guard,
}

enum Guard {
    Postgres(String),
    Sqlite(#[expect(dead_code, reason = "removes the folder when dropped")] TempDir),
}

/// The server that tests make their databases on.
fn server() -> String {
    env::var("COUCOU_TEST_DATABASE_URL").expect(
        "COUCOU_TEST_DATABASE_URL names no PostgreSQL server: run `make test`, which starts one, or set it",
    )
}

/// A fresh store on PostgreSQL.
pub(crate) async fn postgres() -> TestStore {
    let random = rand::rng().sample_iter(Alphanumeric).take(16).map(char::from).collect::<String>();
    let name = format!("coucou_test_{}", random.to_lowercase());
    let mut connection = PgConnection::connect(&server()).await.expect("the test server answers");
    let sql = AssertSqlSafe(format!("CREATE DATABASE {name}"));
    connection.execute(sql).await.expect("the test user may create databases");
    let mut url = url::Url::parse(&server()).expect("COUCOU_TEST_DATABASE_URL is a URL");
    url.set_path(&name);
    prepare(Location::postgres(url.as_str(), 4).unwrap(), Guard::Postgres(name)).await
}

/// A fresh store in a SQLite file.
pub(crate) async fn sqlite() -> TestStore {
    let folder = tempfile::tempdir().expect("a temporary folder");
    prepare(Location::Sqlite { path: folder.path().join("coucou.db") }, Guard::Sqlite(folder)).await
}

/// One of each.
pub(crate) async fn both() -> [TestStore; 2] {
    [postgres().await, sqlite().await]
}

/// An account's crypto, with no homeserver to talk to.
pub(crate) async fn engine(account: &Account, store: &Store, lease: &Lease, clock: SharedClock) -> Engine {
    // As the process does at its start; another test may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let nowhere = "http://127.0.0.1:9".parse().expect("a URL");
    let homeserver = Homeserver::new(&nowhere, SecretString::from("token")).expect("a client");
    let loaded = Engine::load(account.clone(), store.clone(), lease.clone(), homeserver, clock);
    loaded.await.expect("the engine loads")
}

/// What fetches files, with no homeserver to fetch them from.
pub(crate) fn media(store: &Store, lifecycle: &Lifecycle) -> Media {
    let nowhere = "http://127.0.0.1:9".parse().expect("a URL");
    let homeserver = Homeserver::new(&nowhere, SecretString::from("token")).expect("a client");
    let settings = media::Settings {
        folder: env::temp_dir(),
        cache_size: 1 << 20,
        max_size: 1 << 20,
        timeout: Duration::from_secs(5),
        concurrency: 1,
    };
    Media::open(homeserver, store.clone(), lifecycle.clone(), settings).expect("a folder for the cache")
}

async fn prepare(location: Location, guard: Guard) -> TestStore {
    let store = open(&location, "test pickle key");
    store.prepare(START).await.expect("the store can be prepared");
    TestStore { store, location, _guard: guard }
}

/// Opens a store at `location`, as a process of its own would.
pub(crate) fn open(location: &Location, pickle_key: &str) -> Store {
    Store::open(location, SecretString::from(pickle_key)).expect("the store opens")
}

/// The `sequence`th message of a room: an encrypted text of Instagram, like its webhook call in the few fields that
/// the store and the REST API look at.
pub(crate) fn message(room_id: &str, sequence: u64) -> Message {
    let event_id = format!("$event{sequence}-of-{}", &room_id[1..]);
    let message_id = format!("msg_{:x}", Sha256::digest(event_id.as_bytes()));
    let message_id = message_id[..44].to_owned();
    let payload = json!({
        "type": "message.created", "timestamp": START.rfc3339(), "version": 1,
        "data": {
            "id": message_id, "sequence": sequence, "event_id": event_id, "room_id": room_id,
            "network": "instagram", "direction": "in", "backfill": false, "late": false,
            "room": {"name": "A room", "type": "dm", "channel_id": "1"},
            "sender": {"mxid": "@instagram_1:example.org", "name": "Alice", "avatar": null, "network_id": "1"},
            "content": {"kind": "text", "text": format!("text {sequence}")}, "relates_to": null,
            "encryption": {"encrypted": true, "algorithm": "m.megolm.v1.aes-sha2", "session_id": "s",
                "trust": "bridge", "bridged_by": "@instagrambot:example.org"},
            "matrix": {"type": "m.room.message", "content": {"body": "text"}},
        },
    });
    Message {
        message_id: MessageId(message_id),
        event_id: event_id.try_into().unwrap(),
        room_id: room_id.try_into().unwrap(),
        sequence,
        message_type: MessageType::MessageCreated,
        network: Some("instagram".to_owned()),
        direction: Direction::In,
        sender: owned_user_id!("@instagram_1:example.org"),
        origin_server_ts: START,
        replaces: None,
        kind: Some("text"),
        encrypted: true,
        trust: Some(Trust::Bridge),
        payload: payload.to_string().into_bytes(),
    }
}

/// Stores messages in a transaction of their own.
pub(crate) async fn insert(store: &Store, messages: &[Message], now: Timestamp) {
    let mut tx = store.begin().await.unwrap();
    messages::insert(&mut tx, store.seal().unwrap(), messages, now).await.unwrap();
    tx.commit().await.unwrap();
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Self::Postgres(name) = self else { return };
        let sql = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
        // A thread of its own: a test's runtime is on its way out here.
        let dropped = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut connection = PgConnection::connect(&server()).await?;
                connection.execute(AssertSqlSafe(sql)).await
            })?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        });
        let _ = dropped.join();
    }
}
