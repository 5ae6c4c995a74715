//! The real binary, started and ended as an operator, or an accident, would.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output},
    sync::Arc,
    thread,
    time::Duration,
};

use coucou::{
    app::{AppError, run_with},
    clock::{ManualClock, SharedClock},
    config::{Config, Sources},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{free_port, http, process::Process, receiver::Receiver, run, until};

/// How long coucou may take to answer after its start, on a busy machine.
const START: Duration = Duration::from_mins(1);
/// How long it may take to stop when asked to.
const STOP: Duration = Duration::from_secs(30);

/// A coucou of a test's own: its settings, its folder, and the process while it runs.
pub(crate) struct Coucou {
    // Before its folder: it shows the end of its log when dropped.
    process: Option<Process>,
    /// In place of a process: a task of the test's own.
    inside: Option<Inside>,
    folder: TempDir,
    port: u16,
    environment: BTreeMap<String, String>,
    /// A program and arguments that start it: before its own.
    wrapper: Vec<String>,
}

/// A coucou that runs in the test's process.
struct Inside {
    stop: CancellationToken,
    task: JoinHandle<Result<(), AppError>>,
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Drop for Coucou {
    fn drop(&mut self) {
        if thread::panicking() {
            return;
        }
        let log = self.log();
        let told = self.secrets().into_iter().find(|(_, secret)| log.contains(secret));
        assert!(told.is_none(), "{} is in the log", told.unwrap().0);
    }
}

impl Coucou {
    /// One with a registration for a free port and a SQLite store in its own folder; not started yet.
    pub(crate) async fn new() -> Self {
        let coucou = Self::bare();
        let url = coucou.url();
        coucou.registered_at(&url, &[]).await
    }

    /// As [`Coucou::new`], reading for an owner.
    pub(crate) async fn of_owner(owner: &str) -> Self {
        let coucou = Self::bare();
        let url = coucou.url();
        coucou.registered_at(&url, &["--owner", owner]).await.set("COUCOU_OWNER", owner)
    }

    /// As [`Coucou::new`], with a registration that sends the homeserver to another address.
    pub(crate) async fn behind(url: &str) -> Self {
        Self::bare().registered_at(url, &[]).await
    }

    async fn registered_at(self, url: &str, args: &[&str]) -> Self {
        let registration = self.path("registration.yaml");
        let mut command = self.command(&["registration", "--server-name", "localhost", "--url", url]);
        command.args(args).arg("--output").arg(&registration);
        run(command).await;
        self.set("COUCOU_APPSERVICE_REGISTRATION", &registration.to_string_lossy())
    }

    /// One whose registration the test writes itself, for a free port.
    pub(crate) fn bare() -> Self {
        let folder = tempfile::Builder::new().prefix("coucou-").tempdir().unwrap();
        let port = free_port();
        let store = format!("sqlite:{}", folder.path().join("coucou.db").display());
        Self { folder, port, environment: BTreeMap::new(), wrapper: Vec::new(), process: None, inside: None }
            .set("COUCOU_HTTP_PORT", &port.to_string())
            .set("COUCOU_STORE_URL", &store)
            .set("COUCOU_STORE_PICKLE_KEY", "the pickle key of a scenario, long enough")
            .set("COUCOU_API_TOKEN", API_TOKEN)
    }

    /// Has `serve` see a file system of so many bytes, such as `8m`, at `place`, which it alone sees.
    pub(crate) fn on_disk_of(mut self, size: &str, place: &Path) -> Self {
        let mount = format!("mount -t tmpfs -o size={size} tmpfs {} && exec \"$@\"", place.display());
        let wrapper = ["unshare", "--map-root-user", "--mount", "sh", "-c", &mount, "sh"];
        self.wrapper = wrapper.map(str::to_owned).to_vec();
        self
    }

    /// A second process with the same registration, store and settings, on a port of its own.
    pub(crate) fn sibling(&self) -> Self {
        let mut sibling = Self::bare();
        let port = sibling.environment.remove("COUCOU_HTTP_PORT").unwrap();
        sibling.environment = self.environment.clone();
        sibling.set("COUCOU_HTTP_PORT", &port)
    }

    /// Sets an environment variable for the next start.
    pub(crate) fn set(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// As [`Coucou::set`], for one that has been started before.
    pub(crate) fn reset(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    /// Unsets an environment variable for the next start.
    pub(crate) fn unset(mut self, name: &str) -> Self {
        self.environment.remove(name);
        self
    }

    /// Sets the homeserver.
    pub(crate) fn homeserver(self, url: &str) -> Self {
        self.set("COUCOU_HOMESERVER_URL", url)
    }

    /// Sets the store.
    pub(crate) fn store(self, url: &str) -> Self {
        self.set("COUCOU_STORE_URL", url)
    }

    /// Where its store is.
    pub(crate) fn store_url(&self) -> &str {
        &self.environment["COUCOU_STORE_URL"]
    }

    /// Sets the webhook.
    pub(crate) fn webhook(self, receiver: &Receiver) -> Self {
        self.set("COUCOU_WEBHOOK_URL", &receiver.url()).set("COUCOU_WEBHOOK_SECRET", receiver.secret())
    }

    /// The file for the homeserver.
    pub(crate) fn registration(&self) -> PathBuf {
        let set = self.environment.get("COUCOU_APPSERVICE_REGISTRATION");
        set.map_or_else(|| self.path("registration.yaml"), PathBuf::from)
    }

    /// A file in its folder, which is also its working directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A field of the registration, such as `as_token`.
    pub(crate) fn registered(&self, field: &str) -> String {
        let text = fs::read_to_string(self.registration()).unwrap();
        let document: Value = serde_saphyr::from_str(&text).unwrap();
        document[field].as_str().unwrap_or_else(|| panic!("no {field} in {text}")).to_owned()
    }

    /// Its base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Starts `coucou serve` and waits until it takes transactions.
    pub(crate) async fn start(&mut self) {
        self.spawn();
        self.ready().await;
    }

    /// Starts the service inside of the test's process, by a clock that the test moves, and waits until it takes
    /// transactions.
    pub(crate) async fn start_inside(&mut self, clock: &Arc<ManualClock>) {
        assert!(self.process.is_none() && self.inside.is_none(), "coucou runs already");
        // As its own process does at its start; another test may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let environment = self.environment.clone().into_iter().collect();
        let sources = Sources { file: None, folder: self.folder.path().to_owned(), environment };
        let config = Config::load(&sources).unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(run_with(config, Arc::clone(clock) as SharedClock, stop.clone()));
        self.inside = Some(Inside { stop, task });
        self.ready().await;
    }

    /// Stops the service that was started inside, gently.
    pub(crate) async fn stop_inside(&mut self) {
        let mut inside = self.inside.take().expect("coucou was started inside");
        inside.stop.cancel();
        let ended = timeout(STOP, &mut inside.task).await.expect("coucou ends in time");
        ended.unwrap().unwrap();
    }

    /// Starts `coucou serve` and waits for nothing.
    pub(crate) fn spawn(&mut self) {
        assert!(self.process.is_none(), "coucou runs already");
        let mut command = self.command(&["serve"]);
        if let Some((program, args)) = self.wrapper.split_first() {
            command = wrapped(program, args, &command);
        }
        self.process = Some(Process::start("coucou", command, &self.path("log")));
    }

    /// Waits until `/api/v1/health` answers 200, and answers what it says.
    pub(crate) async fn healthy(&mut self) -> Value {
        self.answers("health").await
    }

    /// Waits until `/api/v1/ready` answers 200: the store is there.
    pub(crate) async fn ready(&mut self) -> Value {
        self.answers("ready").await
    }

    async fn answers(&mut self, path: &str) -> Value {
        let (client, url) = (http(), format!("{}/api/v1/{path}", self.url()));
        assert!(self.process.is_some() || self.inside.is_some(), "coucou was not started");
        let (process, inside) = (&mut self.process, &self.inside);
        until(&format!("{url} to answer 200"), START, async || {
            if let Some(process) = process.as_mut() {
                process.assert_alive();
            }
            assert!(inside.as_ref().is_none_or(|inside| !inside.task.is_finished()), "coucou has ended");
            let answer = client.get(&url).send().await.ok().filter(|answer| answer.status().is_success())?;
            serde_json::from_slice(&answer.bytes().await.ok()?).ok()
        })
        .await
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill9(&mut self) {
        self.process.take().expect("coucou was started").kill9();
    }

    /// Asks it to end, and answers how it did.
    pub(crate) async fn terminate(&mut self) -> ExitStatus {
        self.process.take().expect("coucou was started").terminate(STOP).await
    }

    /// Ends it as a power cut would, and starts it again.
    pub(crate) async fn restart(&mut self) {
        self.kill9();
        self.start().await;
    }

    /// The process, while it runs.
    pub(crate) fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("coucou was started")
    }

    /// Everything it has said since the first start.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// What must never be in the log: names and values.
    fn secrets(&self) -> Vec<(String, String)> {
        const SECRET: [&str; 4] = ["TOKEN", "SECRET", "PICKLE_KEY", "RECOVERY_KEY"];
        let is_secret = |name: &str| SECRET.iter().any(|part| name.ends_with(part));
        let set = self.environment.iter().filter(|(name, value)| is_secret(name) && value.len() >= 8);
        let mut secrets: Vec<_> = set.map(|(name, value)| (name.clone(), value.clone())).collect();
        // One that is broken on purpose may lack a token, or have a short one.
        let registration = fs::read_to_string(self.registration()).unwrap_or_default();
        let lines = registration.lines().filter_map(|line| line.split_once(": "));
        let tokens = lines.filter(|(name, token)| name.ends_with("s_token") && token.len() >= 8);
        let quotes = |char| matches!(char, '"' | '\'');
        secrets.extend(tokens.map(|(name, token)| (name.to_owned(), token.trim_matches(quotes).to_owned())));
        secrets
    }

    /// Answers a GET on the REST API, with its token.
    pub(crate) async fn api(&self, path: &str) -> (u16, Value) {
        let url = format!("{}/api/v1/{path}", self.url());
        let answer = http().get(url).bearer_auth(API_TOKEN).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default())
    }

    /// As [`Coucou::api`]; nothing while nobody answers.
    pub(crate) async fn try_api(&self, path: &str) -> Option<(u16, Value)> {
        let url = format!("{}/api/v1/{path}", self.url());
        let answer = http().get(url).bearer_auth(API_TOKEN).send().await.ok()?;
        let status = answer.status().as_u16();
        Some((status, serde_json::from_slice(&answer.bytes().await.ok()?).ok()?))
    }

    /// Runs another command with the same settings to its end.
    pub(crate) async fn run(&self, args: &[&str]) -> Output {
        let mut command = self.command(args);
        spawn_blocking(move || command.output()).await.unwrap().unwrap()
    }

    /// As [`Coucou::run`], with another value of one environment variable.
    pub(crate) async fn run_with(&self, args: &[&str], name: &str, value: &str) -> Output {
        let mut command = self.command(args);
        command.env(name, value);
        spawn_blocking(move || command.output()).await.unwrap().unwrap()
    }

    /// A command with these settings and nothing else of this test's environment.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_coucou")));
        command.args(args).current_dir(self.folder.path()).env_clear();
        for name in ["PATH", "HOME", "TMPDIR", "RUST_LOG", "LLVM_PROFILE_FILE"] {
            command.envs(env::var_os(name).map(|value| (name, value)));
        }
        command.env("RUST_BACKTRACE", "1").envs(&self.environment);
        command
    }
}

/// The same command, started by a program that is given it.
fn wrapped(program: &str, args: &[String], command: &Command) -> Command {
    let mut wrapped = Command::new(program);
    wrapped.args(args).arg(command.get_program()).args(command.get_args()).env_clear();
    wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    wrapped.current_dir(command.get_current_dir().unwrap_or(Path::new("/")));
    wrapped
}

/// The REST API's token in scenarios.
pub(crate) const API_TOKEN: &str = "the-api-token-of-a-scenario";
