//! `tests/homeserver/sender.py`, run as a test goes along.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

use super::super::process::last_lines;
use super::{as_service, python, run};

/// How long the sender may be silent.
const SILENCE: Duration = Duration::from_mins(2);

/// A bridge: its registration, its bot's device and keys. All it sends comes from that one device.
pub(crate) struct Bridge {
    folder: TempDir,
    bot: String,
}

impl Bridge {
    /// Makes a bridge for a network of `sender.py`'s, e.g. `instagram` or `facebook`, which may also send as the users
    /// that `puppets` match.
    pub(crate) async fn new(network: &str, puppets: &[&str]) -> Self {
        Self::named(network, &format!("{network}bot"), &format!("{network}_"), puppets).await
    }

    /// As [`Bridge::new`], with a bot of that localpart, and ghosts that begin with `prefix`.
    pub(crate) async fn named(network: &str, bot: &str, prefix: &str, puppets: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("coucou-bridge-").tempdir().unwrap();
        let mut args = vec!["registration", "--network", network, "--bot", bot, "--prefix", prefix];
        for puppet in puppets {
            args.extend(["--puppet", puppet]);
        }
        let registration = run(python("sender.py", args, folder.path())).await;
        fs::write(folder.path().join("registration.yaml"), registration).unwrap();
        Self { folder, bot: format!("@{bot}:localhost") }
    }

    /// The file for the homeserver.
    pub(crate) fn registration(&self) -> PathBuf {
        self.folder.path().join("registration.yaml")
    }

    /// The bridge bot's user id.
    pub(crate) fn bot(&self) -> String {
        self.bot.clone()
    }

    /// Makes a request to `/_matrix/client/v3/{path}` as one of the bridge's users; panics unless it succeeds.
    pub(crate) async fn request_as(
        &self,
        homeserver: &str,
        mxid: &str,
        (method, path): (&str, &str),
        body: &Value,
    ) -> Value {
        let text = fs::read_to_string(self.registration()).unwrap();
        let registration: Value = serde_saphyr::from_str(&text).unwrap();
        let user = as_service(homeserver, registration["as_token"].as_str().unwrap(), mxid);
        let body = if method == "GET" { None } else { Some(body) };
        let and = if path.contains('?') { '&' } else { '?' };
        user.request(method, &format!("v3/{path}{and}user_id={mxid}"), body).await
    }

    /// What to send, to be completed and [run](Send::run).
    pub(crate) fn send(&self, homeserver: &str) -> Send<'_> {
        let send = Send { bridge: self, args: Vec::new() };
        send.arg("--homeserver", homeserver)
            .arg("--registration", &self.registration().to_string_lossy())
            .arg("--state", &self.folder.path().join("state.db").to_string_lossy())
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// A run of the sender, as it is put together. `sender.py send --help` tells what everything means.
pub(crate) struct Send<'a> {
    bridge: &'a Bridge,
    args: Vec<String>,
}

impl Send<'_> {
    /// Any option with a value.
    pub(crate) fn arg(mut self, name: &str, value: &str) -> Self {
        self.args.push(format!("{name}={value}"));
        self
    }

    /// Any option without a value.
    pub(crate) fn flag(mut self, name: &str) -> Self {
        self.args.push(name.to_owned());
        self
    }

    /// Invites a user, and waits for the join and for device keys.
    pub(crate) fn invite(self, mxid: &str) -> Self {
        self.arg("--invite", mxid)
    }

    /// Does not wait for who is invited.
    pub(crate) fn no_wait(self) -> Self {
        self.flag("--no-wait")
    }

    /// The kinds of messages to send, in turn: `text,notice,emote,edit,reply,reaction,redaction,image,sticker`.
    pub(crate) fn messages(self, kinds: &str) -> Self {
        self.arg("--messages", kinds)
    }

    /// Goes on through the kinds until so many are sent.
    pub(crate) fn count(self, count: usize) -> Self {
        self.arg("--count", &count.to_string())
    }

    /// What texts say; `{n}` is the message's number, `{kind}` its kind.
    pub(crate) fn text(self, template: &str) -> Self {
        self.arg("--text", template)
    }

    /// Waits so long between two messages.
    pub(crate) fn interval(self, interval: Duration) -> Self {
        self.arg("--interval", &interval.as_secs_f64().to_string())
    }

    /// Goes on in a portal of an earlier run, and in its Megolm session.
    pub(crate) fn room(self, room_id: &str) -> Self {
        self.arg("--room", room_id)
    }

    /// The remote user's name, which a new portal bears too.
    pub(crate) fn name(self, name: &str) -> Self {
        self.arg("--name", name)
    }

    /// A new portal without encryption.
    pub(crate) fn plain(self) -> Self {
        self.flag("--plain")
    }

    /// Speaks as a real user instead of the ghost.
    pub(crate) fn puppet(self, mxid: &str) -> Self {
        self.arg("--puppet", mxid)
    }

    /// Speaks as the ghost of a login, as bridges do for a user without a double puppet.
    pub(crate) fn by_login(self, login: &str) -> Self {
        self.arg("--as-login", login)
    }

    /// The login that receives a new portal; `none` where the bridge does not say.
    pub(crate) fn receiver(self, login: &str) -> Self {
        self.arg("--receiver", login)
    }

    /// A new portal is a group, which names no login.
    pub(crate) fn group(self) -> Self {
        self.flag("--group")
    }

    /// A new portal is made by the ghost, which also states whose it is.
    pub(crate) fn made_by_ghost(self) -> Self {
        self.arg("--maker", "ghost")
    }

    /// States a room of another bridge's to be this one's as well, under a state key of its own.
    pub(crate) fn claim(self, room_id: &str) -> Self {
        self.room(room_id).flag("--claim")
    }

    /// A new portal is none at first: the bridge states it to be its own so much later.
    pub(crate) fn bridge_info_after(self, delay: Duration) -> Self {
        self.arg("--bridge-info-after", &delay.as_secs_f64().to_string())
    }

    /// A new portal takes the place of another room, which gets a tombstone.
    pub(crate) fn replaces(self, room_id: &str) -> Self {
        self.arg("--replaces", room_id)
    }

    /// The room in which the bot talks with its user, `login_lost` and `login_back` for example.
    pub(crate) fn management(self) -> Self {
        self.arg("--kind", "management")
    }

    /// Begins a new Megolm session after so many messages of a new portal.
    pub(crate) fn rotate_every(self, count: usize) -> Self {
        self.arg("--rotate-every", &count.to_string())
    }

    /// Room keys come so much later than the first message.
    pub(crate) fn late_keys(self, delay: Duration) -> Self {
        self.arg("--late-keys", &delay.as_secs_f64().to_string())
    }

    /// The key of the n-th session of this run comes once the file `n` is in `folder`, n from 1.
    pub(crate) fn keys_when(self, folder: &Path) -> Self {
        self.arg("--keys-when", &folder.to_string_lossy())
    }

    /// Room keys are withheld from everybody, who is told so.
    pub(crate) fn withhold(self) -> Self {
        self.flag("--withhold")
    }

    /// Room keys never come.
    pub(crate) fn lose_keys(self) -> Self {
        self.flag("--lose-keys")
    }

    /// Runs it to its end.
    pub(crate) async fn run(self) -> Sent {
        self.start().finish().await
    }

    /// Opens so many portals, and then does as it is told.
    pub(crate) async fn conduct(self, rooms: usize) -> Choir {
        let sending = self.arg("--rooms", &rooms.to_string()).launch(Stdio::piped());
        let mut choir = Choir { sending };
        choir.done().await;
        choir
    }

    /// Starts it; its lines are read as they come.
    pub(crate) fn start(self) -> Sending {
        self.launch(Stdio::null())
    }

    fn launch(self, input: Stdio) -> Sending {
        let log = self.bridge.folder().join("sender.log");
        let errors = File::options().create(true).append(true).open(&log).unwrap();
        let arguments = ["send".to_owned()].into_iter().chain(self.args);
        let mut child = python("sender.py", arguments, self.bridge.folder())
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .unwrap();
        let (lines, receiver) = mpsc::unbounded_channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    return;
                }
            }
        });
        Sending { child: Some(child), lines: receiver, log, sent: Sent::default() }
    }
}

/// One line that the sender printed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Line {
    /// The room, on the first line alone.
    pub(crate) portal: Option<String>,
    /// The bridge bot's device, on the first line alone.
    pub(crate) device_id: Option<String>,
    /// Its Curve25519 key, on the first line alone.
    pub(crate) identity_key: Option<String>,
    /// What was sent.
    pub(crate) event_id: String,
    /// Where.
    pub(crate) room_id: String,
    /// Who is shown as the sender.
    pub(crate) sender: String,
    /// One of the kinds of [`Send::messages`].
    pub(crate) kind: String,
    /// The event type, inside the encryption if there is one.
    #[serde(rename = "type")]
    pub(crate) event_type: String,
    /// The event type that the homeserver sees.
    pub(crate) wire_type: String,
    /// The content before it was encrypted.
    pub(crate) content: Value,
    /// The Megolm session.
    pub(crate) session_id: Option<String>,
    /// What a redaction takes away.
    pub(crate) redacts: Option<String>,
    /// A session whose key was sent late, just now.
    pub(crate) shared_late: Option<String>,
    /// An event that somebody else sent; then `sender`, `event_type` and `content` are its.
    pub(crate) received: Option<String>,
    /// A command that is done.
    pub(crate) said: Option<String>,
    /// Why that could not be decrypted.
    pub(crate) error: Option<String>,
}

/// What a run of the sender said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sent {
    /// Everything, in order.
    pub(crate) lines: Vec<Line>,
}

impl Sent {
    /// The portal's room id.
    pub(crate) fn portal(&self) -> &str {
        let portal = self.lines.iter().find_map(|line| line.portal.as_deref());
        portal.expect("the sender names the portal first")
    }

    /// What was sent, in order.
    pub(crate) fn messages(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(|line| !line.event_id.is_empty())
    }

    /// What others said meanwhile.
    pub(crate) fn received(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(|line| line.received.is_some())
    }
}

/// A run of the sender under way; ended when dropped.
pub(crate) struct Sending {
    child: Option<Child>,
    lines: mpsc::UnboundedReceiver<String>,
    log: PathBuf,
    sent: Sent,
}

impl Sending {
    /// The next line, or nothing when the sender has ended.
    pub(crate) async fn next(&mut self) -> Option<Line> {
        let line = timeout(SILENCE, self.lines.recv()).await.expect("the sender says something in time")?;
        let line: Line = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        self.sent.lines.push(line.clone());
        Some(line)
    }

    /// Reads on until so many messages were sent.
    pub(crate) async fn said(&mut self, count: usize) {
        while self.sent.messages().count() < count {
            assert!(self.next().await.is_some(), "the sender ended:\n{}", last_lines(&self.log, 20));
        }
    }

    /// The portal, as soon as it is there.
    pub(crate) async fn portal(&mut self) -> String {
        while let Some(line) = self.next().await {
            if let Some(portal) = line.portal {
                return portal;
            }
        }
        panic!("the sender ended without a portal:\n{}", last_lines(&self.log, 20));
    }

    /// Notes, from now on and to its end, when each line was printed.
    pub(crate) fn timed(mut self) -> Timed {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let book = Arc::clone(&lines);
        let end = tokio::spawn(async move {
            while let Some(line) = self.next().await {
                book.lock().unwrap().push((Instant::now(), line));
            }
            self.finish().await
        });
        Timed { lines, end }
    }

    /// Waits for its end and answers all it said; panics when it failed.
    pub(crate) async fn finish(mut self) -> Sent {
        while self.next().await.is_some() {}
        let mut child = self.child.take().unwrap();
        let status = spawn_blocking(move || child.wait()).await.unwrap().unwrap();
        assert!(status.success(), "the sender ended with {status}:\n{}", last_lines(&self.log, 20));
        std::mem::take(&mut self.sent)
    }
}

/// A run of the sender whose lines are read while the test does something else.
pub(crate) struct Timed {
    lines: Arc<Mutex<Vec<(Instant, Line)>>>,
    end: JoinHandle<Sent>,
}

impl Timed {
    /// The messages that were sent in that time, as far as is known by now.
    pub(crate) fn sent_between(&self, from: Instant, to: Instant) -> Vec<Line> {
        let lines = self.lines.lock().unwrap();
        let sent = lines.iter().filter(|(at, line)| !line.event_id.is_empty() && (from..to).contains(at));
        sent.map(|(_, line)| line.clone()).collect()
    }

    /// Waits for its end and answers all it said; panics when it failed.
    pub(crate) async fn finish(self) -> Sent {
        self.end.await.unwrap()
    }
}

/// A run of the sender that speaks in many portals at once, when it is told to.
pub(crate) struct Choir {
    sending: Sending,
}

impl Choir {
    /// Begins to say so many messages in every portal, waiting about `interval` between two of a portal. While
    /// the homeserver is away it waits, and goes on.
    pub(crate) fn begin(&mut self, count: usize, interval: Duration) {
        let command = json!({"say": count, "interval": interval.as_secs_f64()});
        let input = self.sending.child.as_mut().and_then(|child| child.stdin.as_mut()).unwrap();
        writeln!(input, "{command}").unwrap();
    }

    /// Waits until all is said that it was told to, and answers that.
    pub(crate) async fn done(&mut self) -> Vec<Line> {
        let mut lines = Vec::new();
        while let Some(line) = self.sending.next().await {
            if line.said.is_some() {
                return lines;
            }
            lines.extend((!line.event_id.is_empty()).then_some(line));
        }
        panic!("the sender ended early:\n{}", last_lines(&self.sending.log, 20));
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
