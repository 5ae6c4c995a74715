//! A store that takes no writes for a while, gives few connections, or was left by a clock that was ahead: nothing is
//! lost, nothing wants a restart, and `ready` says what is so.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rand::{Rng, distr::Alphanumeric};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use url::Url;

use crate::support::{
    coucou::Coucou,
    fake_homeserver::{FakeBridge, FakeHomeserver},
    postgres::Database,
    receiver::Receiver,
    until,
};

const BOT: &str = "@coucou:localhost";
const SOON: Duration = Duration::from_mins(1);

/// How soon `ready` follows what the store is like.
const FOLLOWS: Duration = Duration::from_secs(10);

struct Scene {
    coucou: Coucou,
    homeserver: FakeHomeserver,
    bridge: FakeBridge,
    receiver: Receiver,
    room_id: String,
    said: Vec<String>,
    refused: Vec<Value>,
}

impl Scene {
    async fn set(change: impl FnOnce(Coucou) -> Coucou) -> Self {
        let coucou = Coucou::new().await;
        let homeserver = FakeHomeserver::start(&coucou).await;
        let receiver = Receiver::start().await;
        let mut coucou = change(coucou.homeserver(&homeserver.url()).webhook(&receiver));
        coucou.start().await;
        let device_id = homeserver.wait_for_device(BOT, SOON).await;
        let mut bridge = FakeBridge::new(&homeserver, "instagram");
        let room_id = bridge.create_portal(&homeserver, "1", "Alice");
        homeserver.invite(&room_id, &bridge.bot(), BOT).await;
        homeserver.wait_for_join(&room_id, BOT, SOON).await;
        let keys = bridge.share_key(&homeserver, &room_id, BOT, &device_id);
        homeserver.push_until_taken(&[], &keys).await;
        Self { coucou, homeserver, bridge, receiver, room_id, said: Vec::new(), refused: Vec::new() }
    }

    /// Has so many messages said, each in a transaction of its own.
    async fn say(&mut self, count: usize) {
        for _ in 0..count {
            let event = self.bridge.say(&self.room_id, "1", &format!("number {}", self.said.len()));
            self.said.push(event["event_id"].as_str().unwrap().to_owned());
            self.homeserver.push_until_taken(&[event], &[]).await;
        }
    }

    /// Pushes one message until it is refused, then says how it goes on.
    async fn refused(&mut self) {
        let event = self.bridge.say(&self.room_id, "1", "too much");
        let transaction = self.homeserver.transaction(&[event], &[]);
        until("a transaction to be refused", FOLLOWS, async || {
            (self.homeserver.put(&transaction).await == 503).then_some(())
        })
        .await;
    }

    /// Has messages of so many bytes said until one is refused: a file that exists has room for some of them. The one that is
    /// refused is pushed again later.
    async fn say_until_refused(&mut self, bytes: usize) {
        let text: String = rand::rng().sample_iter(Alphanumeric).take(bytes).map(char::from).collect();
        until("a transaction to be refused", SOON, async || {
            let event = self.bridge.say(&self.room_id, "1", &text);
            let transaction = self.homeserver.transaction(std::slice::from_ref(&event), &[]);
            let is_refused = self.homeserver.put(&transaction).await == 503;
            if is_refused {
                self.refused.push(event);
            } else {
                self.said.push(event["event_id"].as_str().unwrap().to_owned());
            }
            is_refused.then_some(())
        })
        .await;
    }

    /// Pushes what was refused, as the homeserver does.
    async fn push_refused(&mut self) {
        for event in std::mem::take(&mut self.refused) {
            self.said.push(event["event_id"].as_str().unwrap().to_owned());
            self.homeserver.push_until_taken(&[event], &[]).await;
        }
    }

    async fn is_ready(&self, status: u16) {
        until(&format!("ready to answer {status}"), FOLLOWS, async || {
            (self.coucou.try_api("ready").await?.0 == status).then_some(())
        })
        .await;
    }

    /// Waits until all that was said has come, in its order.
    async fn told(&self) {
        let ids = || -> Vec<String> {
            let messages = self.receiver.messages();
            messages.iter().map(|message| message.event_id().to_owned()).collect()
        };
        until("all messages", SOON, async || (ids().len() >= self.said.len()).then_some(())).await;
        assert_eq!(ids(), self.said);
    }
}

/// A file system of a few megabytes that only one process sees.
struct Disk {
    /// Where that process has it, as the test sees it.
    seen_at: PathBuf,
}

impl Disk {
    fn filler(&self) -> PathBuf {
        self.seen_at.join("filler")
    }

    fn fill(&self) {
        let mut file = File::create(self.filler()).unwrap();
        for size in [1 << 16, 1 << 12, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }

    fn empty(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_for_a_while_loses_nothing_and_needs_no_restart() {
    let mut place = PathBuf::new();
    let mut scene = Scene::set(|coucou| {
        place = coucou.path("small");
        std::fs::create_dir(&place).unwrap();
        let store = format!("sqlite:{}", place.join("coucou.db").display());
        coucou.on_disk_of("8m", &place).store(&store)
    })
    .await;
    let root = PathBuf::from(format!("/proc/{}/root", scene.coucou.process().id()));
    let disk = Disk { seen_at: root.join(place.strip_prefix(Path::new("/")).unwrap()) };
    let process = scene.coucou.process().id();
    for _ in 0..3 {
        scene.say(5).await;
        scene.told().await;
        disk.fill();
        scene.say_until_refused(1 << 16).await;
        scene.say_until_refused(1 << 10).await;
        scene.is_ready(503).await;
        disk.empty();
        scene.is_ready(200).await;
        scene.push_refused().await;
        scene.say(5).await;
        scene.told().await;
    }
    assert_eq!(scene.coucou.process().id(), process);
    scene.coucou.process().assert_alive();
    scene.receiver.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_takes_no_writes_for_a_while_needs_no_restart() {
    let database = Database::create().await;
    let mut scene = Scene::set(|coucou| coucou.store(&database.url())).await;
    let name = Url::parse(&database.url()).unwrap().path()[1..].to_owned();
    let mut admin = PgConnection::connect(&database.url()).await.unwrap();
    let mut set = async |statement: String| {
        admin.execute("SET default_transaction_read_only = off").await.unwrap();
        admin.execute(AssertSqlSafe(statement)).await.unwrap();
        // As a server does that becomes another's standby, and no longer is.
        let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                      WHERE datname = current_database() AND pid <> pg_backend_pid()";
        admin.execute(others).await.unwrap();
    };
    for _ in 0..3 {
        scene.say(5).await;
        // What was said may not be taken in yet.
        set(format!("ALTER DATABASE {name} SET default_transaction_read_only = on")).await;
        scene.is_ready(503).await;
        scene.refused().await;
        let mut admin = PgConnection::connect(&database.url()).await.unwrap();
        admin.execute("SET default_transaction_read_only = off").await.unwrap();
        // The sessions of then stay.
        let statement = format!("ALTER DATABASE {name} RESET default_transaction_read_only");
        admin.execute(AssertSqlSafe(statement)).await.unwrap();
        scene.is_ready(200).await;
        scene.say(5).await;
        scene.told().await;
    }
    scene.receiver.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_gets_four_connections_is_served() {
    let database = Database::create().await;
    let mut admin = PgConnection::connect(&database.url()).await.unwrap();
    let mut url = Url::parse(&database.url()).unwrap();
    let role = format!("limited_{}", &url.path()[1..]);
    admin
        .execute(AssertSqlSafe(format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'x' CONNECTION LIMIT 4; GRANT ALL ON SCHEMA public TO {role}"
        )))
        .await
        .unwrap();
    url.set_username(&role).unwrap();
    url.set_password(Some("x")).unwrap();
    let mut scene = Scene::set(|coucou| coucou.store(url.as_str())).await;
    scene.say(50).await;
    scene.told().await;
    let (status, _) = scene.coucou.api("stats").await;
    assert_eq!(status, 200);
    assert!(!scene.coucou.log().contains("set aside"), "{}", scene.coucou.log());
    let check = scene.coucou.run(&["check"]).await;
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(said.contains("connections"), "{said}");
    scene.coucou.kill9();
    let gone = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    until("its connections to end", SOON, async || (database.number(gone).await <= 1).then_some(())).await;
    let statement = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    admin.execute(AssertSqlSafe(statement)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_two_hours_ahead_stops_nothing() {
    let database = Database::create().await;
    let mut scene = Scene::set(|coucou| coucou.store(&database.url())).await;
    scene.say(3).await;
    scene.told().await;
    scene.coucou.kill9();
    let mut admin = PgConnection::connect(&database.url()).await.unwrap();
    let ahead = "UPDATE leases SET lease_until = lease_until + 7200000; \
                 UPDATE rooms SET tries = 1, due_at = CAST(extract(epoch FROM now()) * 1000 AS BIGINT) + 7200000";
    admin.execute(ahead).await.unwrap();
    scene.coucou.start().await;
    scene.say(3).await;
    scene.told().await;
    let waits = "SELECT COUNT(*) FROM rooms WHERE due_at > CAST(extract(epoch FROM now()) * 1000 AS BIGINT) + 3660000";
    assert_eq!(database.number(waits).await, 0);
}
