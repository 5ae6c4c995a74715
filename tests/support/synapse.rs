//! A real Synapse of a test's own, and the sender that plays an encrypting bridge on it.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};
use sqlx::{Connection, Row, SqliteConnection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{free_port, http, process::Process, repository, run, until};

mod client;
mod sender;

pub(crate) use client::Client;
pub(crate) use sender::{Bridge, Choir, Line, Send, Sending, Sent, Timed};

/// How long a Synapse may take to start on a busy machine.
const START: Duration = Duration::from_mins(2);

/// Each takes some 150 MB and a processor while it starts.
static AT_ONCE: Semaphore = Semaphore::const_new(2);

/// What a Synapse is started with.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The application services it serves.
    pub(crate) registrations: Vec<PathBuf>,
    /// Whether its experimental features for encrypted application services are on.
    pub(crate) encrypted: bool,
}

/// A Synapse on 127.0.0.1, server name `localhost`; gone when dropped.
pub(crate) struct Synapse {
    // Before its folder: it shows the end of its log when dropped.
    process: Option<Process>,
    folder: TempDir,
    port: u16,
    options: Options,
    /// How long the joins of coucou's users are held back, when they are.
    slow_joins: Option<Duration>,
    _turn: SemaphorePermit<'static>,
}

impl Synapse {
    /// Starts one, once fewer than two others run.
    pub(crate) async fn start(options: Options) -> Self {
        Self::start_slow(options, None).await
    }

    /// As [`Synapse::start`], but a join of coucou's users is held back so long once it has its place in the graph.
    pub(crate) async fn start_slow(options: Options, slow_joins: Option<Duration>) -> Self {
        let turn = AT_ONCE.acquire().await.unwrap();
        let folder = tempfile::Builder::new().prefix("coucou-synapse-").tempdir().unwrap();
        let mut synapse = Self { folder, port: free_port(), options, slow_joins, process: None, _turn: turn };
        synapse.resume().await;
        synapse
    }

    /// Its base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its log.
    pub(crate) fn log(&self) -> PathBuf {
        self.folder.path().join("hs/synapse.log")
    }

    /// The files that were uploaded to it, as they are on its disk.
    pub(crate) fn uploads(&self) -> Vec<PathBuf> {
        let mut folders = vec![self.folder.path().join("hs/media/local_content")];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { folders.push(path) } else { files.push(path) }
            }
        }
        files
    }

    /// How many to-device messages it keeps for a user, as its database says.
    pub(crate) async fn to_device_messages_for(&self, mxid: &str) -> i64 {
        self.count("SELECT COUNT(*) FROM device_inbox WHERE user_id = $1", mxid).await
    }

    /// How many one-time keys of a user's devices it has, as its database says.
    pub(crate) async fn one_time_keys_of(&self, mxid: &str) -> i64 {
        self.count("SELECT COUNT(*) FROM e2e_one_time_keys_json WHERE user_id = $1", mxid).await
    }

    async fn count(&self, statement: &'static str, mxid: &str) -> i64 {
        let file = self.folder.path().join("hs/homeserver.db");
        let options = SqliteConnectOptions::new().filename(file).read_only(true);
        let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
        let statement = sqlx::query(statement).bind(mxid);
        statement.fetch_one(&mut connection).await.unwrap().get(0)
    }

    /// Stops it; its data stays.
    pub(crate) async fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.terminate(Duration::from_secs(30)).await;
        }
    }

    /// Switches its experimental features for encrypted application services at its next start.
    pub(crate) fn encrypt(&mut self, encrypted: bool) {
        self.options.encrypted = encrypted;
    }

    /// Starts it again on its data.
    pub(crate) async fn resume(&mut self) {
        assert!(self.process.is_none(), "Synapse runs already");
        let mut command = script();
        command
            .arg("run")
            .arg("--dir")
            .arg(self.folder.path().join("hs"))
            .args(["--port", &self.port.to_string()]);
        for registration in &self.options.registrations {
            command.arg("--registration").arg(registration);
        }
        if let Some(slow_joins) = self.slow_joins {
            command.args(["--slow-joins", &slow_joins.as_secs_f64().to_string()]);
        }
        if !self.options.encrypted {
            command.arg("--no-encrypted-appservices");
        }
        let mut process = Process::start("Synapse", command, &self.folder.path().join("stdout"));
        let (client, versions) = (http(), format!("{}/_matrix/client/versions", self.url()));
        until("Synapse to answer", START, async || {
            process.assert_alive();
            client.get(&versions).send().await.ok().filter(|answer| answer.status().is_success())
        })
        .await;
        self.process = Some(process);
    }

    /// Serves one more application service; it has to be restarted for that, as a real one has.
    pub(crate) async fn register(&mut self, registration: PathBuf) {
        self.stop().await;
        self.options.registrations.push(registration);
        self.resume().await;
    }

    /// Creates an account with a password, and logs in: an ordinary user with an ordinary client.
    pub(crate) async fn user(&self, name: &str, password: &str) -> User {
        let mut command = script();
        command.arg("user").arg("--dir").arg(self.folder.path().join("hs")).args([name, password]);
        run(command).await;
        self.log_in(name, password).await
    }

    /// Logs in to an account that exists, with another device.
    pub(crate) async fn log_in(&self, name: &str, password: &str) -> User {
        let login = json!({
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": name},
            "password": password,
        });
        let mut user =
            User { url: self.url(), mxid: String::new(), device_id: String::new(), token: String::new() };
        let answer = user.request("POST", "v3/login", Some(&login)).await;
        let field = |name: &str| answer[name].as_str().expect("a login answers this").to_owned();
        (user.mxid, user.device_id, user.token) =
            (field("user_id"), field("device_id"), field("access_token"));
        user
    }
}

/// A logged-in user of a Synapse.
#[derive(Clone, Debug)]
pub(crate) struct User {
    url: String,
    /// The whole user id.
    pub(crate) mxid: String,
    /// The device that the login made.
    pub(crate) device_id: String,
    token: String,
}

impl User {
    /// Makes a request to `/_matrix/client/{path}` and answers its JSON; panics unless it succeeds.
    pub(crate) async fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let (status, answer) = self.try_request(method, path, body).await;
        assert!(status == 200, "{method} {path} as {} answered {status}: {answer}", self.mxid);
        answer
    }

    /// As [`User::request`], and answers the status too, whatever it is.
    pub(crate) async fn try_request(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let url = format!("{}/_matrix/client/{path}", self.url);
        let mut request = http().request(method.parse().unwrap(), url);
        if !self.token.is_empty() {
            request = request.bearer_auth(&self.token);
        }
        if let Some(body) = body {
            request = request.body(serde_json::to_vec(body).unwrap());
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default())
    }

    /// Makes a request that succeeds with any status of 2xx.
    pub(crate) async fn request_any(&self, method: &str, path: &str, body: &Value) {
        let (status, answer) = self.try_request(method, path, Some(body)).await;
        assert!((200..300).contains(&status), "{method} {path} answered {status}: {answer}");
    }

    /// Uploads a file and answers its address.
    pub(crate) async fn upload(&self, file: Vec<u8>) -> String {
        let url = format!("{}/_matrix/media/v3/upload", self.url);
        let request =
            http().post(url).bearer_auth(&self.token).header("content-type", "application/octet-stream");
        let answer = request.body(file).send().await.unwrap().bytes().await.unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        answer["content_uri"].as_str().unwrap().to_owned()
    }

    /// Creates a private room and answers its id.
    pub(crate) async fn create_room(&self, options: &Value) -> String {
        let answer = self.request("POST", "v3/createRoom", Some(options)).await;
        answer["room_id"].as_str().unwrap().to_owned()
    }

    /// The devices of a user, as everybody sees them.
    pub(crate) async fn query_keys(&self, mxid: &str) -> Value {
        self.request("POST", "v3/keys/query", Some(&json!({"device_keys": {mxid: []}}))).await
    }

    /// The ids of the rooms the user has joined.
    pub(crate) async fn joined_rooms(&self) -> Vec<String> {
        let answer = self.request("GET", "v3/joined_rooms", None).await;
        serde_json::from_value(answer["joined_rooms"].clone()).unwrap()
    }
}

/// A client that speaks for users of an application service's namespace.
pub(crate) fn as_service(url: &str, as_token: &str, mxid: &str) -> User {
    User { url: url.to_owned(), mxid: mxid.to_owned(), device_id: String::new(), token: as_token.to_owned() }
}

fn script() -> Command {
    Command::new(repository().join("tests/homeserver/synapse.sh"))
}

/// The environment's Python with a script of `tests/homeserver`.
fn python<I: AsRef<OsStr>>(name: &str, args: impl IntoIterator<Item = I>, folder: &Path) -> Command {
    let mut command = script();
    command
        .arg("python")
        .arg(repository().join("tests/homeserver").join(name))
        .args(args)
        .current_dir(folder);
    command
}
