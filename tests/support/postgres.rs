//! PostgreSQL for scenarios: a database on the tests' server, or a whole server to stop and start.

use std::{env, process::Command, thread};

use rand::{Rng, distr::Alphanumeric};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};
use tempfile::TempDir;
use url::Url;

use super::{free_port, repository, run};

/// An empty database of a test's own; dropped when dropped.
pub(crate) struct Database {
    server: String,
    name: String,
    drops: bool,
}

impl Database {
    /// Makes one on the server that `COUCOU_TEST_DATABASE_URL` names.
    pub(crate) async fn create() -> Self {
        let server = env::var("COUCOU_TEST_DATABASE_URL").expect(
            "COUCOU_TEST_DATABASE_URL names no PostgreSQL server: run `make test`, which starts one, or set it",
        );
        Self::on(server, true).await
    }

    async fn on(server: String, drops: bool) -> Self {
        let random: String = rand::rng().sample_iter(Alphanumeric).take(16).map(char::from).collect();
        let name = format!("coucou_test_{}", random.to_lowercase());
        let mut connection = PgConnection::connect(&server).await.expect("the test server answers");
        let statement = AssertSqlSafe(format!("CREATE DATABASE {name}"));
        connection.execute(statement).await.expect("the test user may create databases");
        Self { server, name, drops }
    }

    /// Where coucou finds it.
    pub(crate) fn url(&self) -> String {
        let mut url = Url::parse(&self.server).unwrap();
        url.set_path(&self.name);
        url.into()
    }

    /// The first column of the first row that `statement` answers, as a number.
    pub(crate) async fn number(&self, statement: &'static str) -> i64 {
        let mut connection = PgConnection::connect(&self.url()).await.unwrap();
        let row = sqlx::query(statement).fetch_one(&mut connection).await.unwrap();
        let number = row.get(0);
        connection.close().await.unwrap();
        number
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if !self.drops {
            return;
        }
        let server = self.server.clone();
        let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        // A thread of its own: a test's runtime is on its way out here.
        let dropped = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut connection = PgConnection::connect(&server).await?;
                connection.execute(AssertSqlSafe(statement)).await
            })?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        });
        let _ = dropped.join();
    }
}

/// A PostgreSQL server of a test's own, to be stopped and started; stopped when dropped.
pub(crate) struct Cluster {
    folder: TempDir,
    port: u16,
}

impl Cluster {
    /// Makes a server and starts it.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("coucou-cluster-").tempdir().unwrap();
        let cluster = Self { folder, port: free_port() };
        cluster.resume().await;
        cluster
    }

    /// Stops it, ending every connection; its data stays.
    pub(crate) async fn stop(&self) {
        let mut command = script("stop");
        command.arg(self.folder.path());
        run(command).await;
    }

    /// Ends it as an accident would: it recovers at the next start.
    pub(crate) async fn crash(&self) {
        let mut command = script("stop");
        command.arg(self.folder.path()).arg("immediate");
        run(command).await;
    }

    /// Starts it again, on the same port.
    pub(crate) async fn resume(&self) {
        let mut command = script("start");
        command.arg(self.folder.path()).arg(self.port.to_string());
        run(command).await;
    }

    /// Makes an empty database on it.
    pub(crate) async fn database(&self) -> Database {
        Database::on(format!("postgres://postgres@127.0.0.1:{}/postgres", self.port), false).await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = script("stop").arg(self.folder.path()).arg("immediate").output();
    }
}

fn script(verb: &str) -> Command {
    let mut command = Command::new(repository().join("tests/postgres.sh"));
    command.arg(verb);
    command
}
