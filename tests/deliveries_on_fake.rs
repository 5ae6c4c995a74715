//! Delivery under faults, counted: the real binary on PostgreSQL between a homeserver that pushes and webhooks that
//! fail in every way they can.
//!
//! `COUCOU_TEST_DELIVERIES=10000` makes the long form of the first one, with more ends by SIGKILL.

use std::{
    collections::BTreeMap,
    env, fs,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};

use crate::support::{
    consumers::{Case, verdicts},
    coucou::Coucou,
    fake_homeserver::{FakeBridge, FakeHomeserver, event},
    postgres::Database,
    receiver::{Answer, Attempt, Receiver},
    until,
};

const BOT: &str = "@coucou:localhost";
pub(crate) const SOON: Duration = Duration::from_mins(1);

/// coucou with these webhooks, and rooms of a bridge that it has joined.
pub(crate) struct Scene {
    pub(crate) coucou: Coucou,
    homeserver: FakeHomeserver,
    bridge: FakeBridge,
    rooms: Vec<String>,
    pub(crate) said: usize,
    _database: Database,
}

impl Scene {
    pub(crate) async fn set(rooms: usize, webhooks: &str) -> Self {
        let database = Database::create().await;
        let coucou = Coucou::new().await.store(&database.url()).set("COUCOU_LOG_FORMAT", "json");
        let homeserver = FakeHomeserver::start(&coucou).await;
        let mut coucou = coucou.homeserver(&homeserver.url());
        fs::write(coucou.path("coucou.yaml"), webhooks).unwrap();
        coucou.start().await;
        homeserver.wait_for_device(BOT, SOON).await;
        let bridge = FakeBridge::new(&homeserver, "instagram");
        let mut scene = Self { coucou, homeserver, bridge, rooms: Vec::new(), said: 0, _database: database };
        for _ in 0..rooms {
            let room_id = scene.bridge.create_room(&scene.homeserver, "1", "Alice", false);
            scene.homeserver.invite(&room_id, &scene.bridge.bot(), BOT).await;
            scene.rooms.push(room_id);
        }
        for room_id in &scene.rooms {
            scene.homeserver.wait_for_join(room_id, BOT, SOON).await;
        }
        scene
    }

    fn says(&mut self, room_id: &str, content: &Value) -> Value {
        event(room_id, &self.bridge.ghost("1"), "m.room.message", content)
    }

    /// Pushes so many messages of any rooms, as Synapse does a hundred at a time, until they are taken.
    pub(crate) async fn push(&mut self, count: usize, rng: &mut StdRng) {
        for begun in (0..count).step_by(100) {
            self.push_one(100.min(count - begun), rng).await;
        }
    }

    async fn push_one(&mut self, count: usize, rng: &mut StdRng) {
        let rooms = self.rooms.clone();
        let events: Vec<Value> = (0..count)
            .map(|_| {
                self.said += 1;
                let text = format!("number {}", self.said);
                self.says(rooms.choose(rng).unwrap(), &json!({"msgtype": "m.text", "body": text}))
            })
            .collect();
        self.homeserver.push_until_taken(&events, &[]).await;
    }

    pub(crate) async fn command(&self, args: &[&str]) -> String {
        let output = self.coucou.run(args).await;
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

/// An entry of `webhooks` for a receiver.
pub(crate) fn entry(name: &str, receiver: &Receiver, more: &str) -> String {
    format!("  - {{name: {name}, url: \"{}\", secret: {}, {more}}}\n", receiver.url(), receiver.secret())
}

/// How long so many deliveries may take on a busy machine.
pub(crate) fn patience(count: usize) -> Duration {
    Duration::from_secs(30) + Duration::from_millis(60) * u32::try_from(count).unwrap()
}

/// Waits until a receiver has taken so many different messages.
async fn taken(name: &str, receiver: &Receiver, count: usize, deadline: Duration) {
    let began = Instant::now();
    until(&format!("{name} to take {count}"), deadline + Duration::from_secs(1), async || {
        let taken = receiver.message_count();
        assert!(began.elapsed() < deadline, "{name} has taken {taken} of {count} within {deadline:?}");
        (taken >= count).then_some(())
    })
    .await;
}

/// What a receiver of batches has taken is complete and in order in each room, whatever it got more than once.
fn assert_batches_complete(receiver: &Receiver, said: usize) {
    let mut rooms = BTreeMap::<String, Vec<u64>>::new();
    let mut ids = BTreeMap::<String, String>::new();
    for attempt in receiver.taken() {
        assert!(attempt.messages().len() <= 20, "no more than allowed");
        for message in attempt.messages() {
            let data = &message["data"];
            let id = data["id"].as_str().unwrap().to_owned();
            // A batch has one id for ever, and a message one batch.
            assert_eq!(ids.entry(id).or_insert_with(|| attempt.id.clone()), &attempt.id);
            if message["type"] == "message.created" {
                let room = rooms.entry(data["room_id"].as_str().unwrap().to_owned()).or_default();
                room.push(data["sequence"].as_u64().unwrap());
            }
        }
    }
    assert_eq!(rooms.values().map(Vec::len).sum::<usize>(), said, "each message once, and no other");
    for (room, sequences) in rooms {
        let expected: Vec<u64> = (sequences[0]..).take(sequences.len()).collect();
        assert_eq!(sequences, expected, "in order and without gaps in {room}");
    }
}

/// What a receiver has taken is complete, and in order in each room.
fn assert_complete(receiver: &Receiver, said: usize) {
    let taken = receiver.messages();
    assert_eq!(taken.len(), said, "each message once, and no other");
    let mut rooms = BTreeMap::<&str, Vec<u64>>::new();
    for attempt in &taken {
        rooms.entry(attempt.room_id()).or_default().push(attempt.data()["sequence"].as_u64().unwrap());
    }
    for (room, sequences) in rooms {
        let first = sequences[0];
        let expected: Vec<u64> = (first..first + sequences.len() as u64).collect();
        assert_eq!(sequences, expected, "in order and without gaps in {room}");
    }
}

pub(crate) fn faults(count: usize, rng: &mut StdRng) -> Vec<Answer> {
    let kinds = [
        Answer::Status(500),
        Answer::Status(503),
        Answer::Status(404),
        Answer::Redirect,
        Answer::Close,
        Answer::Large(500),
        Answer::Large(200),
        Answer::Late(200, Duration::from_millis(300)),
    ];
    (0..count)
        .map(|_| if rng.random_bool(0.7) { kinds.choose(rng).unwrap().clone() } else { Answer::Status(200) })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_with_every_fault_loses_nothing_and_delays_no_other() {
    let count: usize = env::var("COUCOU_TEST_DELIVERIES").map_or(600, |count| count.parse().unwrap());
    let mut rng = StdRng::seed_from_u64(4);
    let (moody, steady, stuck) = (Receiver::start().await, Receiver::start().await, Receiver::start().await);
    let (loose, bulk) = (Receiver::start().await, Receiver::start().await);
    loose.in_any_order();
    stuck.answer_always(Some(Answer::Hang));
    let waits = ["1s"; 100].join(", ");
    let webhooks = format!(
        "webhooks:\n{}{}{}{}{}",
        entry("moody", &moody, &format!("timeout: 2s, schedule: [{waits}]")),
        entry("loose", &loose, &format!("timeout: 2s, schedule: [{waits}], ordering: none")),
        entry("bulk", &bulk, &format!("timeout: 2s, schedule: [{waits}], batch: {{max: 20, wait: 100ms}}")),
        entry("steady", &steady, ""),
        entry("stuck", &stuck, "timeout: 2s"),
    );
    let mut scene = Scene::set(12, &webhooks).await;

    // Every fault but 410, while messages come.
    let each = count / 6;
    for _ in 0..3 {
        for receiver in [&moody, &loose, &bulk] {
            receiver.answer_next(faults(if count > 1000 { 30 } else { 10 }, &mut rng));
            receiver.answer_next([Answer::RetryAfter(429, 1), Answer::Hang]);
        }
        scene.push(each, &mut rng).await;
        let said = scene.said;
        taken("steady", &steady, said, patience(each)).await;
    }
    let said = scene.said;
    taken("moody", &moody, said, patience(each) + SOON).await;

    // 410 disables; what comes meanwhile is kept.
    moody.answer_always(Some(Answer::Status(410)));
    scene.push(each, &mut rng).await;
    until("the webhook to be disabled", SOON, async || {
        let status = scene.command(&["webhooks", "--status"]).await;
        status.lines().any(|line| line.starts_with("moody:") && line.contains("disabled")).then_some(())
    })
    .await;
    let attempts = moody.attempts().len();
    moody.answer_always(None);
    scene.push(each, &mut rng).await;
    let said = scene.said;
    taken("steady", &steady, said, patience(each)).await;
    assert!(moody.attempts().len() <= attempts + 1, "nothing is sent to a webhook that is disabled");
    assert!(scene.command(&["webhooks", "--enable", "moody"]).await.contains("enabled"));
    taken("moody", &moody, said, patience(2 * each) + SOON).await;

    // Killed at random points, while some answers are late or lost.
    let kills = if count > 1000 { 6 } else { 1 };
    let before = steady.attempts().len();
    let left = count - scene.said;
    for kill in 0..kills {
        steady.answer_next(vec![Answer::Late(200, Duration::from_millis(40)); 20]);
        for receiver in [&moody, &loose, &bulk] {
            receiver.answer_next(faults(10, &mut rng));
        }
        let share = if kill + 1 == kills { count - scene.said } else { left / kills };
        scene.push(share, &mut rng).await;
        steady.wait_for_attempts(before + 1 + kill, SOON).await;
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..150))).await;
        scene.coucou.kill9();
        scene.coucou.start().await;
        let (said, began) = (scene.said, Instant::now());
        taken("steady", &steady, said, patience(share) + Duration::from_secs(10)).await;
        println!("after SIGKILL the rooms went on within {:?}", began.elapsed());
    }
    taken("moody", &moody, count, patience(each) + SOON).await;
    taken("loose", &loose, count, patience(each) + SOON).await;
    taken("bulk", &bulk, count, patience(each) + SOON).await;
    for receiver in [&moody, &steady] {
        assert_complete(receiver, count);
    }
    assert_eq!(loose.messages().len(), count, "each message once, and no other");
    assert_batches_complete(&bulk, count);
    let requests = |receiver: &Receiver| receiver.attempts().len();
    println!(
        "{count} messages to each of four webhooks, in {} (moody), {} (steady), {} (loose) and {} (bulk) requests",
        requests(&moody),
        requests(&steady),
        requests(&loose),
        requests(&bulk)
    );
    assert!(stuck.taken().is_empty() && !stuck.attempts().is_empty());
    let status = scene.command(&["webhooks", "--status"]).await;
    assert!(status.contains("moody: 0 pending; 0 dead\n"), "{status}");
    let log = scene.coucou.log();
    assert!(!log.contains("xxxx"), "an answer's body is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_webhook_is_told_what_its_settings_say() {
    let (texts, bare, all, none) =
        (Receiver::start().await, Receiver::start().await, Receiver::start().await, Receiver::start().await);
    let old = "whsec_dGhpcyBpcyBhbiBleGFtcGxlIHNlY3JldCE=";
    let (url, secret) = (bare.url(), bare.secret());
    let webhooks = format!(
        "webhooks:\n{}  - {{name: bare, url: \"{url}\", secret: {old}, secrets: [{secret}], content: metadata, \
         format: cloudevents}}\n{}{}",
        entry("texts", &texts, "headers: {X-Tenant: seven}, filter: {kinds: [text], networks: [instagram]}"),
        entry("all", &all, ""),
        entry("none", &none, "filter: {encrypted_only: true}"),
    );
    let mut scene = Scene::set(1, &webhooks).await;
    let room_id = scene.rooms[0].clone();
    let one = scene.says(&room_id, &json!({"msgtype": "m.text", "body": "hush"}));
    let two = scene.says(&room_id, &json!({"msgtype": "m.notice", "body": "hush"}));
    let three = scene.says(&room_id, &json!({"msgtype": "m.text", "body": "hush again"}));
    scene.homeserver.push_until_taken(&[one, two, three], &[]).await;

    let told = all.wait_for(3, SOON).await;
    let sequence = |attempt: &Attempt| attempt.data()["sequence"].as_u64().unwrap();
    let first = sequence(&told[0]);
    let numbers = |told: &[Attempt]| told.iter().map(|attempt| sequence(attempt) - first).collect::<Vec<_>>();
    assert_eq!(numbers(&told), [0, 1, 2]);

    let told = texts.wait_for(2, SOON).await;
    assert_eq!(numbers(&told), [0, 2], "the numbers are the room's, whatever is left out");
    assert!(told.iter().all(|attempt| attempt.headers["x-tenant"] == "seven"));

    let told = bare.wait_for(3, SOON).await;
    for attempt in &told {
        assert_eq!(attempt.payload["specversion"], "1.0");
        assert_eq!(attempt.payload["id"], attempt.id.as_str());
        assert_eq!(attempt.headers["content-type"], "application/cloudevents+json");
        assert!(!attempt.payload.to_string().contains("hush"), "{attempt:?}");
        // The receiver has verified its own secret; the other one signed as well, and first.
        let signatures = attempt.headers["webhook-signature"].to_str().unwrap();
        let key = standardwebhooks::Webhook::new(old).unwrap();
        let expected = key.sign(&attempt.id, attempt.timestamp, &attempt.body).unwrap();
        assert_eq!(signatures.split(' ').next(), Some(expected.as_str()));
        assert_eq!(signatures.split(' ').count(), 2);
    }
    assert_eq!(told[1].data()["content"], json!({"kind": "notice"}));
    consumers_accept(&told, bare.secret(), old).await;
    // Everything was stored together, so what the filter lets pass would be there by now.
    assert_eq!(none.attempts().len(), 0);
}

/// The snippets of the documentation, with the published libraries, accept what is signed with either secret, and
/// nothing that was altered.
pub(crate) async fn consumers_accept(told: &[Attempt], new: &str, old: &str) {
    let genuine: Vec<Case> =
        told.iter().flat_map(|attempt| [Case::of(attempt, new), Case::of(attempt, old)]).collect();
    let one = genuine[0].clone();
    let moved = |seconds: i64| (one.timestamp.parse::<i64>().unwrap() + seconds).to_string();
    let altered = [
        Case { body: one.body.replace("notice", "text") + " ", ..one.clone() },
        Case { id: "msg_other".to_owned(), ..one.clone() },
        Case { timestamp: moved(1), ..one.clone() },
        Case { timestamp: moved(-3600), ..one.clone() },
        Case { signature: one.signature.replace("v1,", "v2,"), ..one.clone() },
        Case { signature: genuine[2].signature.clone(), ..one.clone() },
        Case { secret: "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned(), ..one.clone() },
    ];
    let cases: Vec<Case> = genuine.iter().chain(&altered).cloned().collect();
    for (language, verdicts) in verdicts(&cases).await {
        for (at, verdicts) in verdicts.iter().enumerate() {
            assert!(!verdicts.is_empty(), "there is a snippet in {language}");
            let expected = at < genuine.len();
            assert!(
                verdicts.iter().all(|said| *said == expected),
                "{language}: {verdicts:?} on {:?}",
                cases[at]
            );
        }
    }
}
