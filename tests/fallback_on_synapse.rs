//! PostgreSQL is down at the start: a SQLite store stands in for it, and is merged when it is back.

use std::{fs, time::Duration};

use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::support::{
    arrival::assert_arrives,
    coucou::Coucou,
    postgres::{Cluster, Database},
    receiver::{Answer, Attempt, Receiver},
    synapse::{Bridge, Options, Send, Sent, Synapse, as_service},
    until,
};

const BOT: &str = "@coucou:localhost";
const SOON: Duration = Duration::from_mins(1);
const FILE: &str = "coucou-fallback.db";

/// A homeserver, a bridge, a webhook, a database server of its own, and coucou between them, told to fall back.
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
        let (cluster, bridge) = tokio::join!(Cluster::start(), Bridge::new("instagram", &[]));
        let database = cluster.database().await;
        let coucou = Coucou::new().await.store(&database.url()).set("COUCOU_STORE_FALLBACK", "sqlite");
        let registrations = vec![coucou.registration(), bridge.registration()];
        let synapse = Synapse::start(Options { registrations, encrypted: true }).await;
        let receiver = Receiver::start().await;
        let coucou = coucou.homeserver(&synapse.url()).webhook(&receiver);
        Self { coucou, bridge, receiver, synapse, database, cluster }
    }

    fn send(&self) -> Send<'_> {
        self.bridge.send(&self.synapse.url()).messages("text").count(1)
    }

    /// The bot's devices on the homeserver.
    async fn devices(&self) -> Vec<String> {
        let user = as_service(&self.synapse.url(), &self.coucou.registered("as_token"), BOT);
        let answer = user.request("GET", &format!("v3/devices?user_id={BOT}"), None).await;
        let devices = answer["devices"].as_array().unwrap().iter();
        devices.map(|device| device["device_id"].as_str().unwrap().to_owned()).collect()
    }

    /// Whether the store of the running process stands in for PostgreSQL, and why, as statistics and health say.
    async fn stands_in(&self) -> (bool, Option<String>) {
        let (_, stats) = self.coucou.api("stats").await;
        let (_, health) = self.coucou.api("health").await;
        let stands_in = stats["store"]["fallback"].as_bool().unwrap();
        assert_eq!(health["store"]["fallback"], stands_in, "{health}");
        let backend = if stands_in { "sqlite" } else { "postgres" };
        assert_eq!(
            (&stats["store"]["backend"], &health["store"]["backend"]),
            (&backend.into(), &backend.into())
        );
        (stands_in, stats["store"]["fallback_reason"].as_str().map(str::to_owned))
    }

    async fn waiting_in_the_fallback(&self) -> i64 {
        let options = SqliteConnectOptions::new().filename(self.coucou.path(FILE)).read_only(true);
        let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
        sqlx::query_scalar("SELECT COUNT(*) FROM pending_events").fetch_one(&mut connection).await.unwrap()
    }

    async fn logged(&self, text: &str, times: usize) {
        let enough = async || (self.coucou.log().matches(text).count() >= times).then_some(());
        until(&format!("{text:?} in the log"), SOON, enough).await;
    }

    fn aside(&self) -> usize {
        let files = fs::read_dir(self.coucou.path(".")).unwrap().map(|file| file.unwrap().file_name());
        files.filter(|name| name.to_string_lossy().starts_with(&format!("{FILE}.merged-"))).count()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_fallback_took_is_merged_into_postgresql() {
    let mut scene = Scene::set().await;
    // PostgreSQL was never there: this store has the one device.
    scene.cluster.stop().await;
    scene.coucou.start().await;
    assert_eq!(scene.stands_in().await, (true, Some("connection refused".to_owned())));
    let log = scene.coucou.log();
    assert!(log.contains("PostgreSQL cannot be reached: going on with the SQLite fallback"), "{log}");
    assert!(log.contains("connection refused") && log.contains(FILE), "{log}");

    let one = scene.send().invite(BOT).run().await;
    assert_arrives(&scene.receiver, &[&one], SOON).await;
    let room = one.portal().to_owned();
    let first = scene.devices().await;
    assert_eq!(first.len(), 1);
    // The webhook goes away; one message is refused, and one waits behind it.
    let taken = scene.receiver.attempts().len();
    scene.receiver.answer_always(Some(Answer::Status(503)));
    let two = scene.send().room(&room).count(2).run().await;
    scene.receiver.wait_for_attempts(taken + 1, SOON).await;
    // One whose key is lost, and one whose key comes when nobody is there.
    let keys = tempfile::tempdir().unwrap();
    let mut late = scene.send().invite(BOT).keys_when(keys.path()).start();
    late.said(1).await;
    scene.send().invite(BOT).lose_keys().run().await;
    let both = async || (scene.waiting_in_the_fallback().await == 2).then_some(());
    until("both to wait", SOON, both).await;
    assert!(scene.coucou.terminate().await.success());
    fs::write(keys.path().join("1"), "").unwrap();
    let late = late.finish().await;
    // Of the fallback's session; no other device has its key.
    let four = scene.send().room(&room).no_wait().run().await;
    let session = |sent: &Sent| sent.messages().next().unwrap().session_id.clone().unwrap();
    assert_eq!(session(&four), session(&one));
    let checked = scene.coucou.run(&["check"]).await;
    let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.contains("fallback") && checked.contains(FILE), "{checked}");

    // PostgreSQL is back; the first process that merges dies amid it.
    scene.cluster.resume().await;
    scene.receiver.answer_always(None);
    scene.coucou.spawn();
    scene.logged("merging the fallback into it", 1).await;
    scene.coucou.kill9();
    scene.coucou.start().await;
    assert_eq!(scene.stands_in().await, (false, None));
    let five = scene.send().room(&room).run().await;
    scene.logged("the fallback is merged", 1).await;
    assert_arrives(&scene.receiver, &[&one, &two, &late, &four, &five], SOON).await;
    assert_eq!(
        scene.database.number("SELECT COUNT(*) FROM pending_events").await,
        1,
        "the lost one waits on"
    );
    let second = scene.devices().await;
    assert_eq!(second.len(), 1, "the fallback's is removed");
    assert_ne!(first, second, "two stores never share a device");
    assert!(!scene.coucou.path(FILE).exists() && scene.aside() == 1);
    // The same again, with a PostgreSQL that has messages and a device.
    assert!(scene.coucou.terminate().await.success());
    scene.cluster.stop().await;
    scene.coucou.start().await;
    assert!(scene.stands_in().await.0);
    let six = scene.send().room(&room).run().await;
    let event = six.messages().next().unwrap().event_id.clone();
    let is_here = |attempt: &Attempt| attempt.event_id() == event;
    scene.receiver.wait_until("the sixth", SOON, |taken| taken.iter().any(is_here)).await;
    let devices = scene.devices().await;
    assert!(devices.len() == 2 && devices.contains(&second[0]), "{devices:?}");
    scene.receiver.answer_always(Some(Answer::Status(503)));
    let seven = scene.send().room(&room).run().await;
    scene.receiver.wait_for_attempts(scene.receiver.attempts().len() + 1, SOON).await;
    assert!(scene.coucou.terminate().await.success());
    scene.cluster.resume().await;
    scene.receiver.answer_always(None);
    scene.coucou.start().await;
    scene.logged("the fallback is merged", 2).await;
    let eight = scene.send().room(&room).run().await;
    for sent in [&seven, &eight] {
        let event = sent.messages().next().unwrap().event_id.clone();
        let is_here = |attempt: &Attempt| attempt.event_id() == event;
        scene.receiver.wait_until("the last ones", SOON, |taken| taken.iter().any(is_here)).await;
    }
    assert_eq!(scene.devices().await, second);
    assert_eq!(scene.aside(), 2);
    let accepted =
        scene.receiver.attempts().iter().filter(|attempt| is_here(attempt) && attempt.accepted()).count();
    assert_eq!(accepted, 1, "what the fallback delivered is not delivered again");
    assert_eq!(scene.receiver.messages().len(), 9);
    let gaps = "SELECT SUM(last - count) :: BIGINT FROM (SELECT MAX(sequence) AS last, COUNT(*) AS count \
                FROM messages WHERE type <> 'webhook.test' GROUP BY room_id) AS r";
    assert_eq!(scene.database.number(gaps).await, 0);
    let pending = "SELECT COUNT(*) FROM deliveries WHERE state = 'pending'";
    until("all to be settled", SOON, async || (scene.database.number(pending).await == 0).then_some(()))
        .await;
    assert_eq!(scene.database.number("SELECT SUM(pending_count) :: BIGINT FROM room_queues").await, 0);
    assert!(scene.coucou.terminate().await.success());
}
