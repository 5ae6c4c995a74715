//! Databases for unit tests: a fresh, migrated one for each, on real PostgreSQL and on SQLite.

use std::{env, thread};

use rand::{Rng, distr::Alphanumeric};
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tempfile::TempDir;

use crate::{
    clock::{SharedClock, Timestamp},
    crypto::Engine,
    homeserver::Homeserver,
    model::Account,
    store::{Lease, Location, Store},
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

async fn prepare(location: Location, guard: Guard) -> TestStore {
    let store = open(&location, "test pickle key");
    store.prepare(START).await.expect("the store can be prepared");
    TestStore { store, location, _guard: guard }
}

/// Opens a store at `location`, as a process of its own would.
pub(crate) fn open(location: &Location, pickle_key: &str) -> Store {
    Store::open(location, SecretString::from(pickle_key)).expect("the store opens")
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
