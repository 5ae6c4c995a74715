//! PostgreSQL goes away and comes back; coucou stays, says so, and loses nothing.

use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use url::Url;

use crate::support::{
    arrival::assert_arrives_late_at_worst,
    coucou::Coucou,
    gate::Gate,
    http,
    postgres::{Cluster, Database},
    receiver::Receiver,
    synapse::{Bridge, Options, Synapse},
    until,
};

const BOT: &str = "@coucou:localhost";
const SOON: Duration = Duration::from_mins(1);
/// Synapse waits 2, 4, 8, 16 s and more between two attempts at a transaction.
const ALL: Duration = Duration::from_mins(2);
const OUTAGE: Duration = Duration::from_secs(20);
/// How soon the health endpoint must know.
const NOTICED: Duration = Duration::from_secs(10);

/// A homeserver, a bridge, a webhook, a database server of its own, and coucou between them; not started yet.
struct Scene {
    coucou: Coucou,
    bridge: Bridge,
    receiver: Receiver,
    synapse: Synapse,
    database: Database,
    cluster: Cluster,
}

impl Scene {
    async fn set() -> Self {
        let cluster = Cluster::start().await;
        let database = cluster.database().await;
        let coucou = Coucou::new().await.store(&database.url());
        let bridge = Bridge::new("instagram", &[]).await;
        let registrations = vec![coucou.registration(), bridge.registration()];
        let synapse = Synapse::start(Options { registrations, encrypted: true }).await;
        let receiver = Receiver::start().await;
        let coucou = coucou.homeserver(&synapse.url()).webhook(&receiver);
        Self { coucou, bridge, receiver, synapse, database, cluster }
    }

    /// Statuses of health and readiness, and what health says. It must not wait for the database.
    async fn health(&self) -> (u16, u16, Value) {
        let asked_at = Instant::now();
        let (health, body) = self.coucou.api("health").await;
        let (ready, _) = self.coucou.api("ready").await;
        assert!(asked_at.elapsed() < Duration::from_secs(2), "health took {:?}", asked_at.elapsed());
        (health, ready, body)
    }

    /// Runs a statement as the server's administrator; `{name}` in it is the database.
    async fn administer(&self, statement: &str) {
        let mut url = Url::parse(&self.database.url()).unwrap();
        let statement = statement.replace("{name}", url.path().trim_start_matches('/'));
        url.set_path("postgres");
        let mut connection = PgConnection::connect(url.as_str()).await.unwrap();
        connection.execute(AssertSqlSafe(statement)).await.unwrap();
    }

    /// The status that an empty transaction gets.
    async fn transaction(&self, txn_id: &str) -> u16 {
        let url = format!("{}/_matrix/app/v1/transactions/{txn_id}", self.coucou.url());
        let token = self.coucou.registered("hs_token");
        let request = http().put(url).bearer_auth(token).body(r#"{"events":[]}"#);
        request.send().await.unwrap().status().as_u16()
    }

    /// Waits until health says that the database, gone at `began`, is away, and then sees it say so until `end`.
    async fn assert_degraded(&mut self, began: Instant, end: Instant) {
        let mut noticed = None;
        while Instant::now() < end {
            self.coucou.process().assert_alive();
            let (health, ready, body) = self.health().await;
            assert_eq!(health, 200, "{body}");
            if body["status"] == "degraded" {
                assert_eq!((ready, &body["store"]["state"]), (503, &Value::from("unavailable")), "{body}");
                noticed.get_or_insert_with(|| println!("health knows after {:?}", began.elapsed()));
            } else {
                assert!(noticed.is_none(), "the database is still away: {body}");
                assert!(began.elapsed() < NOTICED, "the database is away: {body}");
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    async fn assert_recovers(&mut self) {
        let began = Instant::now();
        until("health to be ok again", Duration::from_secs(15), async || {
            self.coucou.process().assert_alive();
            let (health, ready, body) = self.health().await;
            (health == 200 && ready == 200 && body["status"] == "ok").then_some(())
        })
        .await;
        println!("ok again after {:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_goes_away_amid_messages_and_comes_back() {
    let mut scene = Scene::set().await;
    scene.coucou.start().await;
    let process = scene.coucou.process().id();
    let send = scene.bridge.send(&scene.synapse.url()).invite(BOT).messages("text").rotate_every(3);
    let stream = send.count(90).interval(Duration::from_millis(400)).start().timed();
    scene.receiver.wait_for(15, SOON).await;

    scene.cluster.stop().await;
    let stopped_at = Instant::now();
    scene.assert_degraded(stopped_at, stopped_at + OUTAGE / 2).await;
    assert_eq!(scene.transaction("while-away").await, 503);
    scene.assert_degraded(stopped_at, stopped_at + OUTAGE).await;
    assert_eq!(scene.transaction("while-away").await, 503);
    let meanwhile = stream.sent_between(stopped_at, Instant::now());
    scene.cluster.resume().await;
    scene.assert_recovers().await;

    let mut sessions: Vec<_> = meanwhile.iter().filter_map(|line| line.session_id.clone()).collect();
    sessions.dedup();
    assert!(sessions.len() >= 3, "the sender went on, with new room keys: {meanwhile:#?}");
    let sent = stream.finish().await;
    assert_arrives_late_at_worst(&scene.receiver, &[&sent], ALL).await;
    assert_eq!(scene.coucou.process().id(), process);
    scene.coucou.process().assert_alive();
    assert_eq!(scene.database.number("SELECT COUNT(*) FROM messages").await, 1 + 90);
    assert_eq!(scene.transaction("while-away").await, 200);
    assert_eq!(scene.health().await.2["status"], "ok");
    assert!(scene.coucou.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_crashes_and_later_refuses_connections() {
    let mut scene = Scene::set().await;
    // The server of the tests is forgetful; what is to outlast its crash must be written.
    scene.administer("ALTER DATABASE {name} SET synchronous_commit = on").await;
    scene.coucou.start().await;
    let process = scene.coucou.process().id();
    let send = scene.bridge.send(&scene.synapse.url()).invite(BOT).messages("text").rotate_every(3);
    let stream = send.count(60).interval(Duration::from_millis(400)).start().timed();
    scene.receiver.wait_for(10, SOON).await;

    let now = Instant::now();
    scene.cluster.crash().await;
    scene.assert_degraded(now, now + Duration::from_secs(4)).await;
    scene.cluster.resume().await;
    scene.assert_recovers().await;
    let taken = scene.receiver.messages().len();
    scene.receiver.wait_for(taken + 5, ALL).await;

    // As a hosted database does in maintenance: SQLSTATE 55000 for whoever connects.
    let now = Instant::now();
    scene.administer("ALTER DATABASE {name} ALLOW_CONNECTIONS false").await;
    scene.administer("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'").await;
    scene.assert_degraded(now, now + Duration::from_secs(6)).await;
    assert_eq!(scene.transaction("while-away").await, 503);
    scene.administer("ALTER DATABASE {name} ALLOW_CONNECTIONS true").await;
    scene.assert_recovers().await;

    let sent = stream.finish().await;
    assert_arrives_late_at_worst(&scene.receiver, &[&sent], ALL).await;
    assert_eq!(scene.coucou.process().id(), process);
    scene.coucou.process().assert_alive();
    assert_eq!(scene.database.number("SELECT COUNT(*) FROM messages").await, 1 + 60);
    assert_eq!(
        scene.database.number("SELECT COUNT(*) FROM inbox WHERE processed_at IS NULL").await,
        0,
        "no row is left"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_network_to_the_database_swallows_everything_for_a_while() {
    let mut scene = Scene::set().await;
    let mut url = Url::parse(&scene.database.url()).unwrap();
    let gate = Gate::before(url.port().unwrap()).await;
    url.set_port(Some(gate.port())).unwrap();
    scene.coucou = scene.coucou.store(url.as_str());
    scene.coucou.start().await;
    let send = scene.bridge.send(&scene.synapse.url()).invite(BOT).messages("text").rotate_every(3);
    let stream = send.count(60).interval(Duration::from_millis(400)).start().timed();
    scene.receiver.wait_for(10, SOON).await;

    // Statements are under way when it happens: their answers never come.
    let mut url = Url::parse(&scene.database.url()).unwrap();
    url.set_query(None);
    let mut other = PgConnection::connect(url.as_str()).await.unwrap();
    let mut lock = other.begin().await.unwrap();
    lock.execute("LOCK TABLE room_queues, inbox IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let stuck = "SELECT COUNT(*) FROM pg_stat_activity \
                 WHERE datname = current_database() AND state = 'active' AND wait_event_type = 'Lock'";
    let both = async || (scene.database.number(stuck).await >= 2).then_some(());
    until("the worker and the dispatcher to wait for the lock", SOON, both).await;
    let shut_at = Instant::now();
    gate.shut();
    lock.rollback().await.unwrap();
    scene.assert_degraded(shut_at, shut_at + OUTAGE).await;
    gate.open();
    scene.assert_recovers().await;

    let sent = stream.finish().await;
    assert_arrives_late_at_worst(&scene.receiver, &[&sent], ALL).await;
    scene.coucou.process().assert_alive();
    assert!(scene.coucou.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_is_away_at_the_start() {
    let mut scene = Scene::set().await;
    scene.cluster.stop().await;
    scene.coucou.spawn();
    let process = scene.coucou.process().id();
    scene.coucou.healthy().await;
    until("health to say that the database is away", NOTICED, async || {
        let (health, ready, body) = scene.health().await;
        assert_eq!((health, ready, &body["status"]), (200, 503, &Value::from("degraded")), "{body}");
        (body["store"]["state"] == "unavailable").then_some(())
    })
    .await;
    assert_eq!(scene.transaction("too-early").await, 503);
    // The portal comes about, and its invite is refused again and again, before coucou can do anything.
    let send = scene.bridge.send(&scene.synapse.url()).invite(BOT).arg("--timeout", "110");
    let mut sending = send.messages("text,notice,image").start();
    sending.portal().await;
    let now = Instant::now();
    scene.assert_degraded(now, now + Duration::from_secs(5)).await;

    scene.cluster.resume().await;
    scene.assert_recovers().await;
    assert_eq!(scene.transaction("too-early").await, 200);
    let sent = sending.finish().await;
    assert_arrives_late_at_worst(&scene.receiver, &[&sent], ALL).await;
    assert_eq!(scene.coucou.process().id(), process);
    assert!(scene.coucou.terminate().await.success());
}
