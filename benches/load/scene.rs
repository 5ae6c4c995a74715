//! What a run needs: a homeserver, a bridge with its rooms, coucou in all of them, and the webhook.

use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde_json::Value;

use super::{fill, measure, sink::Sink};
use crate::rig::support::{
    coucou::{API_TOKEN, Coucou},
    fake_homeserver::{FakeBridge, FakeHomeserver},
    http,
    postgres::Database,
};

const BOT: &str = "@coucou:localhost";
const SOON: Duration = Duration::from_mins(2);

/// Events in a transaction, as Synapse bounds it.
pub(crate) const BATCH: usize = 100;

/// Where coucou keeps its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// PostgreSQL, a server of this run's own.
    Postgres,
    /// A SQLite file.
    Sqlite,
}

impl Backend {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Postgres => "PostgreSQL",
            Self::Sqlite => "SQLite",
        }
    }
}

/// Everything in place: coucou is in all rooms and has their keys.
pub(crate) struct Scene {
    pub(crate) coucou: Coucou,
    /// Further processes on the same store; transactions go to each in turn.
    siblings: Vec<Coucou>,
    pub(crate) homeserver: FakeHomeserver,
    pub(crate) bridge: FakeBridge,
    pub(crate) sink: Sink,
    pub(crate) rooms: Vec<String>,
    device_id: String,
    client: reqwest::Client,
    transactions: u64,
    // Dropped last.
    _database: Option<Database>,
}

/// Transactions that were made beforehand.
pub(crate) struct Traffic {
    bodies: Vec<Vec<u8>>,
    /// What each event says, by transaction.
    says: Vec<Vec<(String, String)>>,
}

impl Scene {
    /// Sets it up, over a store that holds so many sessions and messages of other rooms already.
    pub(crate) async fn set(backend: Backend, rooms: usize, pause: Duration, stored: i64) -> Self {
        let database = match backend {
            Backend::Postgres => Some(Database::create().await),
            Backend::Sqlite => None,
        };
        let coucou = Coucou::new().await.set("COUCOU_LOG_FILTER", "warn");
        let homeserver = FakeHomeserver::start(&coucou).await;
        let sink = Sink::start(pause).await;
        let mut coucou = coucou
            .homeserver(&homeserver.url())
            .set("COUCOU_WEBHOOK_URL", &sink.url())
            .set("COUCOU_WEBHOOK_SECRET", &sink.secret);
        if let Some(database) = &database {
            coucou = coucou.store(&database.url());
        }
        let bridge = FakeBridge::new(&homeserver, "instagram");
        let portal = |number: usize| bridge.create_portal(&homeserver, "1", &format!("Room {number}"));
        let rooms: Vec<String> = (0..rooms).map(portal).collect();
        for room_id in &rooms {
            homeserver.add_member(room_id, BOT, None);
        }
        coucou.start().await;
        let device_id = homeserver.wait_for_device(BOT, SOON).await;
        if stored > 0 {
            fill::fill(coucou.store_url(), stored).await;
        }
        let client = http();
        Self {
            coucou,
            siblings: Vec::new(),
            homeserver,
            bridge,
            sink,
            rooms,
            device_id,
            client,
            transactions: 0,
            _database: database,
        }
    }

    /// Starts another process on the same store.
    pub(crate) async fn add_instance(&mut self) {
        let mut sibling = self.coucou.sibling();
        sibling.start().await;
        self.siblings.push(sibling);
    }

    /// Shares the keys of all rooms, and waits until one message of each has arrived.
    pub(crate) async fn warm_up(&mut self) {
        for room_id in self.rooms.clone() {
            let key = self.bridge.share_key(&self.homeserver, &room_id, BOT, &self.device_id);
            let said = self.bridge.say(&room_id, "1", "the first");
            self.sink.expect([(text(&said["event_id"]), "the first".to_owned())]);
            self.homeserver.push_until_taken(&[said], &key).await;
        }
        self.sink.all().await;
    }

    /// Makes messages, one room after the other, in transactions of `batch`.
    pub(crate) fn traffic(&mut self, messages: usize, batch: usize) -> Traffic {
        let (mut bodies, mut says) = (Vec::new(), Vec::new());
        let mut number = 0;
        while number < messages {
            let (mut events, mut said) = (Vec::new(), Vec::new());
            for _ in 0..batch.min(messages - number) {
                let words = format!("message {number}");
                let event = self.bridge.say(&self.rooms[number % self.rooms.len()], "1", &words);
                said.push((text(&event["event_id"]), words));
                events.push(event);
                number += 1;
            }
            let transaction = self.homeserver.transaction(&events, &[]);
            bodies.push(serde_json::to_vec(&transaction.body).unwrap());
            says.push(said);
        }
        Traffic { bodies, says }
    }

    /// Makes new room keys in transactions of a hundred; the last room's last one is in use afterwards.
    pub(crate) fn keys(&mut self, count: usize) -> Traffic {
        let (mut bodies, mut to_device) = (Vec::new(), Vec::new());
        for number in 0..count {
            let room_id = self.rooms[number % self.rooms.len()].clone();
            self.bridge.rotate(&room_id);
            to_device.extend(self.bridge.share_key(&self.homeserver, &room_id, BOT, &self.device_id));
            if to_device.len() == BATCH || number + 1 == count {
                let transaction = self.homeserver.transaction(&[], &to_device);
                bodies.push(serde_json::to_vec(&transaction.body).unwrap());
                to_device.clear();
            }
        }
        Traffic { bodies, says: Vec::new() }
    }

    /// Pushes as Synapse does, one transaction at a time; answers how long each took to be acknowledged. With
    /// `every`, one begins so often, or as soon as the last one was taken. Answers when each was begun, too.
    pub(crate) async fn push(
        &mut self,
        traffic: &Traffic,
        every: Option<Duration>,
    ) -> (Vec<Duration>, Vec<Instant>) {
        self.sink.expect(traffic.says.iter().flatten().cloned());
        let hs_token = self.coucou.registered("hs_token");
        let instances = [&self.coucou].into_iter().chain(&self.siblings);
        let base: Vec<_> =
            instances.map(|one| format!("{}/_matrix/app/v1/transactions", one.url())).collect();
        let (mut acknowledged, mut begun) = (Vec::new(), Vec::new());
        let start = tokio::time::Instant::now();
        for (number, body) in traffic.bodies.iter().enumerate() {
            if let Some(every) = every {
                tokio::time::sleep_until(start + every * u32::try_from(number).unwrap()).await;
            }
            self.transactions += 1;
            let url = format!("{}/load{}", base[number % base.len()], self.transactions);
            let began = Instant::now();
            let request = self.client.put(url).bearer_auth(&hs_token).body(body.clone());
            let answer = request.header("content-type", "application/json").send().await.unwrap();
            assert_eq!(answer.status().as_u16(), 200);
            begun.push(began);
            acknowledged.push(began.elapsed());
        }
        (acknowledged, begun)
    }

    /// What coucou answers to its operator.
    pub(crate) async fn ask(&self, path: &str) -> String {
        let url = format!("{}/{path}", self.coucou.url());
        let answer = self.client.get(url).bearer_auth(API_TOKEN).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200, "{path}");
        answer.text().await.unwrap()
    }

    pub(crate) fn pid(&mut self) -> u32 {
        self.coucou.process().id()
    }

    /// Seconds of processor time that all processes of coucou have used.
    pub(crate) fn cpu_seconds(&mut self) -> f64 {
        let instances = [&mut self.coucou].into_iter().chain(&mut self.siblings);
        instances.map(|one| measure::cpu_seconds(one.process().id())).sum()
    }
}

impl Traffic {
    /// The events of each transaction.
    pub(crate) fn event_ids(&self) -> impl Iterator<Item = impl Iterator<Item = &str>> {
        self.says.iter().map(|said| said.iter().map(|(event_id, _)| &**event_id))
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}
