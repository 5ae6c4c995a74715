//! The whole API, fuzzed from its own description by [schemathesis](https://schemathesis.io), on both databases: no 5xx,
//! no hang, and no answer that the description does not know. The same for what the homeserver and Prometheus ask.
//!
//! `COUCOU_TEST_FUZZ_EXAMPLES=500` makes the long form, with so many requests for each endpoint beside the systematic
//! ones, and another seed each time.

use std::{env, fs, path::PathBuf, process::Command, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    coucou::{API_TOKEN, Coucou},
    fake_homeserver::{FakeBridge, FakeHomeserver, event},
    postgres::Database,
    receiver::{Answer, Receiver},
    repository, run, until,
};

const BOT: &str = "@coucou:localhost";
const SOON: Duration = Duration::from_mins(1);

/// Tokens of each scope: each has its own budget of requests, and together they have enough.
const TOKENS: usize = 60;

/// coucou with something of everything that the API tells of.
struct Scene {
    coucou: Coucou,
    homeserver: FakeHomeserver,
    bridge: FakeBridge,
    _receivers: [Receiver; 2],
    taking: usize,
    /// Whether to send what is systematic, too.
    systematic: bool,
}

fn token(scope: &str, at: usize) -> String {
    format!("the-{scope}-token-of-a-fuzzer-{at}")
}

fn settings(taking: &Receiver, refusing: &Receiver) -> String {
    let scoped = |scope: &'static str| {
        (0..TOKENS).map(move |at| format!("{{token: {}, scope: {scope}}}", token(scope, at)))
    };
    let tokens: Vec<String> =
        ["read", "admin"].into_iter().flat_map(|scope| scoped(scope).collect::<Vec<_>>()).collect();
    let webhook = |name: &str, receiver: &Receiver, more: &str| {
        format!("  - {{name: {name}, url: \"{}\", secret: {}, {more}}}\n", receiver.url(), receiver.secret())
    };
    format!(
        "webhooks:\n{}{}api:\n  tokens: [{API_TOKEN}, {}]\n",
        webhook("default", taking, ""),
        webhook("refusing", refusing, "schedule: [1s]"),
        tokens.join(", ")
    )
}

impl Scene {
    async fn set(store: Option<&Database>) -> Self {
        let mut coucou = Coucou::new().await.unset("COUCOU_API_TOKEN");
        if let Some(database) = store {
            coucou = coucou.store(&database.url());
        }
        let homeserver = FakeHomeserver::start(&coucou).await;
        let (taking, refusing) = (Receiver::start().await, Receiver::start().await);
        refusing.answer_always(Some(Answer::Status(500)));
        for receiver in [&taking, &refusing] {
            // The fuzzer rotates secrets.
            receiver.signed_by_anybody();
        }
        fs::write(coucou.path("coucou.yaml"), settings(&taking, &refusing)).unwrap();
        let mut coucou = coucou.homeserver(&homeserver.url());
        coucou.start().await;
        let device_id = homeserver.wait_for_device(BOT, SOON).await;
        let bridge = FakeBridge::new(&homeserver, "instagram");
        let mut scene = Self {
            coucou,
            homeserver,
            bridge,
            _receivers: [taking, refusing],
            taking: 0,
            systematic: store.is_some(),
        };
        scene.talk(&device_id).await;
        scene
    }

    /// Two rooms, and in them what there can be: texts, edits, reactions, files, what is taken back or cannot be read.
    async fn talk(&mut self, device_id: &str) {
        let Self { homeserver, bridge, .. } = self;
        let (encrypted, plain) = (
            bridge.create_portal(homeserver, "1", "Alice"),
            bridge.create_room(homeserver, "2", "Bob", false),
        );
        for room in [&encrypted, &plain] {
            homeserver.invite(room, &bridge.bot(), BOT).await;
            homeserver.wait_for_join(room, BOT, SOON).await;
        }
        let key = bridge.share_key(homeserver, &encrypted, BOT, device_id);
        homeserver.push_until_taken(&[], &key).await;
        let picture = [7; 3000];
        let info = json!({"mimetype": "image/png", "size": picture.len(), "thumbnail_file": homeserver.upload_encrypted(&picture)});
        let file = json!({"msgtype": "m.image", "body": "a.png", "file": homeserver.upload_encrypted(&picture), "info": info});
        let mut events: Vec<Value> =
            (1..=20).map(|n| bridge.say(&encrypted, "1", &format!("number {n}"))).collect();
        events.push(bridge.encrypt(&encrypted, "1", "m.room.message", &file));
        let text = json!({"msgtype": "m.text", "body": "in clear"});
        let said = event(&plain, &bridge.ghost("2"), "m.room.message", &text);
        let key = json!({"rel_type": "m.annotation", "event_id": said["event_id"], "key": "👍"});
        let reaction = event(&plain, &bridge.ghost("2"), "m.reaction", &json!({"m.relates_to": key}));
        let redaction =
            event(&plain, &bridge.ghost("2"), "m.room.redaction", &json!({"redacts": said["event_id"]}));
        events.extend([said, reaction, redaction]);
        bridge.rotate(&encrypted);
        events.extend((1..=3).map(|n| bridge.say(&encrypted, "1", &format!("unreadable {n}"))));
        homeserver.push_until_taken(&events, &[]).await;
        self.taking = events.len() - 3;
    }

    /// Waits until there is something of every kind.
    async fn settled(&self) {
        for (path, list, least) in [
            ("deliveries?status=delivered", "deliveries", self.taking),
            ("deliveries?status=dead", "deliveries", 1),
            ("deliveries?status=pending", "deliveries", 1),
            ("undecryptable", "events", 3),
            ("rooms", "rooms", 2),
        ] {
            until(&format!("{least} of {path}"), SOON, async || {
                let (_, answer) = self.coucou.api(path).await;
                (answer[list].as_array()?.len() >= least).then_some(())
            })
            .await;
        }
    }

    /// Has it fuzzed, and answers what was said.
    async fn fuzz(&self, reports: PathBuf) -> String {
        let tokens = |scope: &str| (0..TOKENS).map(|at| token(scope, at)).collect::<Vec<_>>();
        let told = json!({
            "url": self.coucou.url(), "read": tokens("read"), "admin": tokens("admin"),
            "hs_token": self.coucou.registered("hs_token"),
        });
        let mut command = Command::new(repository().join("tests/fuzz/fuzz.sh"));
        let file = self.coucou.path("fuzz.json");
        fs::write(&file, told.to_string()).unwrap();
        command.arg("run").env("COUCOU_FUZZ", file).env("COUCOU_FUZZ_REPORTS", reports);
        if let Some(count) = env::var_os("COUCOU_TEST_FUZZ_EXAMPLES") {
            let seed = rand::random::<u32>().to_string();
            command.env("COUCOU_FUZZ_EXAMPLES", count).env("COUCOU_FUZZ_SEED", seed);
        } else if !self.systematic {
            command.env("COUCOU_FUZZ_PHASES", "fuzzing").env("COUCOU_FUZZ_EXAMPLES", "5");
        }
        run(command).await
    }
}

async fn the_api_keeps_what_its_description_says(store: Option<Database>) {
    let mut scene = Scene::set(store.as_ref()).await;
    scene.settled().await;
    let said = scene.fuzz(scene.coucou.path("reports")).await;
    println!("{said}");
    // It goes on as if nothing had been.
    scene.coucou.process().assert_alive();
    assert_eq!(scene.coucou.api("stats").await.1["store"]["state"], "connected");
    assert_eq!(scene.coucou.api("stats").await.1["stored"]["crypto"]["is_held"], true);
    let log = scene.coucou.log();
    let expected = |line: &str| line.contains("a delivery is given up");
    let is_bad = |line: &&str| (line.contains("ERROR") && !expected(line)) || line.contains("panicked");
    let failures: Vec<&str> = log.lines().filter(is_bad).collect();
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(!log.contains("-token-of-a-fuzzer"), "a token is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_keeps_what_its_description_says_on_postgres() {
    the_api_keeps_what_its_description_says(Some(Database::create().await)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_keeps_what_its_description_says_on_sqlite() {
    the_api_keeps_what_its_description_says(None).await;
}
