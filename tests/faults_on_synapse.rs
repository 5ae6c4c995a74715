//! The fault suite: everything that can break breaks while people talk, and every message arrives.
//!
//! One sender speaks in many portals at once, with a new room key every few messages. Round after round each
//! fault is done to what is being said: pushes that fail in every way, coucou killed at random points, coucou
//! away while keys are sent, its one-time keys used up, Synapse restarted, PostgreSQL crashed, answers of
//! `/sync` cut off, one process handing over to another. After each, all that was said must be there, in the
//! order of its room.
//!
//! `make test-faults` runs the long form, `make test` a short one of the same. `COUCOU_TEST_SEED` repeats the
//! random choices of a run, which prints its seed.

use std::{
    env,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::time::sleep;
use url::Url;

use crate::support::{
    coucou::Coucou,
    cutter::Cutter,
    forwarder::{Fault, Forwarder},
    postgres::{Cluster, Database},
    receiver::Receiver,
    synapse::{Bridge, Choir, Line, Options, Synapse, User},
    until,
};

mod toll;

use toll::Toll;

const BOT: &str = "@coucou:localhost";
/// A room key lasts for so many messages.
const ROTATION: usize = 4;
/// Two messages of a room are about so far apart while something breaks.
const PACE: Duration = Duration::from_millis(150);
/// A delivery that was claimed by a process which was killed is made again after its lease, of a minute.
const ARRIVES: Duration = Duration::from_secs(100);
/// Until another process takes over from one that was killed.
const TAKEN_OVER: Duration = Duration::from_secs(30);

/// How much is done.
struct Form {
    rooms: usize,
    rounds: usize,
    /// Messages in each room during each fault.
    said: usize,
    /// Processes killed in a row.
    kills: usize,
    /// How long a push may hang at most: the homeserver gives up after a minute by itself.
    hang: Duration,
}

impl Form {
    fn chosen() -> Self {
        if env::var("COUCOU_TEST_FAULTS").is_ok_and(|form| form == "long") {
            return Self { rooms: 20, rounds: 4, said: 4, kills: 5, hang: Duration::from_secs(70) };
        }
        Self { rooms: 6, rounds: 1, said: 4, kills: 3, hang: Duration::from_secs(3) }
    }
}

/// All that takes part.
struct Stage {
    form: Form,
    rng: StdRng,
    /// How pushes are still to fail before all ways are taken anew.
    ways: Vec<Fault>,
    toll: Toll,
    began: Instant,
    // coucou and the sender end before what they speak to.
    choir: Choir,
    first: Coucou,
    second: Coucou,
    facebook: Bridge,
    _instagram: Bridge,
    receiver: Receiver,
    forwarder: Forwarder,
    cutter: Cutter,
    synapse: Synapse,
    database: Database,
    cluster: Cluster,
}

impl Stage {
    async fn set(encrypted: bool) -> Self {
        let form = Form::chosen();
        let seed = env::var("COUCOU_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
        println!("COUCOU_TEST_SEED={seed}");
        let (cluster, forwarder, receiver) =
            tokio::join!(Cluster::start(), Forwarder::start(), Receiver::start());
        let database = cluster.database().await;
        administer(&database, "ALTER DATABASE {name} SET synchronous_commit = on").await;
        let first = Coucou::behind(&forwarder.url()).await;
        let (instagram, facebook) = tokio::join!(Bridge::new("instagram", &[]), Bridge::new("facebook", &[]));
        let registrations = vec![first.registration(), instagram.registration(), facebook.registration()];
        let synapse = Synapse::start(Options { registrations, encrypted }).await;
        let cutter = Cutter::before(Url::parse(&synapse.url()).unwrap().port().unwrap()).await;
        let mut first = first.store(&database.url()).homeserver(&cutter.url()).webhook(&receiver);
        let second = first.sibling();
        forwarder.add(&first.url());
        forwarder.add(&second.url());
        first.start().await;
        let send = instagram.send(&synapse.url()).invite(BOT).messages("text").rotate_every(ROTATION);
        let choir = send.arg("--timeout", "120").conduct(form.rooms).await;
        let (rng, toll, began) = (StdRng::seed_from_u64(seed), Toll::default(), Instant::now());
        Self {
            form,
            rng,
            ways: Vec::new(),
            toll,
            began,
            choir,
            first,
            second,
            facebook,
            _instagram: instagram,
            receiver,
            forwarder,
            cutter,
            synapse,
            database,
            cluster,
        }
    }

    /// Begins to talk in every room.
    fn talk(&mut self) {
        self.choir.begin(self.form.said, PACE);
    }

    /// Waits until all is said.
    async fn finish(&mut self) -> Vec<Line> {
        let lines = self.choir.done().await;
        self.toll.say(&lines);
        lines
    }

    /// Waits until all that was said is there.
    async fn all_arrives(&mut self, what: &str) {
        let began = Instant::now();
        loop {
            let arrived = self.toll.check(&self.receiver);
            if arrived.missing.is_empty() {
                println!(
                    "{:5.1} s: {what}: all {} messages are there after {:.1} s, {} of them late",
                    self.began.elapsed().as_secs_f32(),
                    arrived.messages,
                    began.elapsed().as_secs_f32(),
                    arrived.late,
                );
                return;
            }
            assert!(
                began.elapsed() < ARRIVES,
                "{what}: {} of {} are missing: {:#?}",
                arrived.missing.len(),
                self.toll.total(),
                arrived.missing
            );
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// A while that is another one each time.
    async fn a_while(&mut self, most: Duration) {
        sleep(most.mul_f64(self.rng.random())).await;
    }

    /// Lets the next push fail, each time in another way.
    fn fail_a_push(&mut self) {
        const WAYS: [Fault; 5] = [
            Fault::Refuse,
            Fault::TakeAndRefuse,
            Fault::TakeAndBreak,
            Fault::BreakBody,
            Fault::Hang(Duration::from_secs(2)),
        ];
        if self.ways.is_empty() {
            self.ways = WAYS.to_vec();
            self.ways.shuffle(&mut self.rng);
        }
        self.forwarder.fail_next(self.ways.pop());
        self.toll.count("failed pushes", 1);
    }

    /// Processes are killed at any moment, and pushes fail, while everybody talks.
    async fn processes_are_killed(&mut self) {
        self.fail_a_push();
        self.talk();
        for _ in 0..self.form.kills {
            self.a_while(Duration::from_millis(1_500)).await;
            self.first.kill9();
            self.first.start().await;
            self.toll.count("SIGKILL", 1);
        }
        self.fail_a_push();
        self.finish().await;
        self.all_arrives("processes were killed").await;
    }

    /// Keys and messages are sent while coucou is away, and a stranger uses up its one-time keys.
    async fn nobody_is_there(&mut self, claims: &Claims, round: usize) {
        assert!(self.first.terminate().await.success());
        self.talk();
        self.toll.count("one-time keys used up", claims.use_up().await);
        // A bridge that never spoke to coucou has to take the fallback key.
        let send = self.facebook.send(&self.synapse.url()).invite(BOT).no_wait().messages("text").count(3);
        let other = send.text(&format!("round {round}: {{n}}")).run().await;
        let lines: Vec<Line> = other.messages().cloned().collect();
        self.toll.say(&lines);
        self.finish().await;
        self.first.start().await;
        self.all_arrives("coucou was away").await;
        let fresh = async || (!claims.fall_back().await).then_some(());
        until("new one-time keys", ARRIVES, fresh).await;
        self.toll.count("fallback key used", 1);
    }

    /// Synapse is restarted while a push is under way, others wait behind it, and everybody talks.
    async fn synapse_is_restarted(&mut self) {
        let failed = self.forwarder.failed();
        self.forwarder.fail_next([Fault::Hang(self.form.hang)]);
        self.talk();
        until("a push to hang", ARRIVES, async || (self.forwarder.failed() > failed).then_some(())).await;
        self.a_while(Duration::from_secs(1)).await;
        self.synapse.stop().await;
        self.synapse.resume().await;
        let lines = self.finish().await;
        self.all_arrives("Synapse was restarted").await;
        self.toll.count("Synapse restarted", 1);
        let lost = Toll::never_pushed(&lines, |event_id| self.forwarder.was_pushed(event_id));
        self.toll.count("events that Synapse never pushed", lost);
    }

    /// PostgreSQL crashes while everybody talks.
    async fn postgres_crashes(&mut self) {
        self.fail_a_push();
        self.talk();
        self.a_while(Duration::from_millis(600)).await;
        self.cluster.crash().await;
        self.a_while(Duration::from_secs(2)).await;
        self.cluster.resume().await;
        self.finish().await;
        self.all_arrives("PostgreSQL crashed").await;
        self.toll.count("PostgreSQL crashed", 1);
    }

    /// Answers of the homeserver break off in the middle.
    async fn answers_break_off(&mut self) {
        let cuts = self.cutter.cuts();
        self.cutter.cut_after(self.rng.random_range(200..1_500));
        self.fail_a_push();
        self.talk();
        self.finish().await;
        until("answers to break off", ARRIVES, async || (self.cutter.cuts() > cuts).then_some(())).await;
        self.cutter.mend();
        self.all_arrives("answers broke off").await;
        self.toll.count("answers broken off", self.cutter.cuts() - cuts);
    }

    /// A second process comes, takes over from the first, which is killed, and hands back to it.
    async fn processes_hand_over(&mut self) {
        self.second.start().await;
        self.fail_a_push();
        self.talk();
        self.a_while(PACE * 3).await;
        self.first.kill9();
        let terms = works(&self.second);
        until("the second process to take over", TAKEN_OVER, async || {
            (works(&self.second) > terms).then_some(())
        })
        .await;
        self.first.start().await;
        self.finish().await;
        self.all_arrives("the first process was killed").await;
        self.toll.count("SIGKILL", 1);
        self.talk();
        self.a_while(PACE * 3).await;
        assert!(self.second.terminate().await.success());
        self.finish().await;
        self.all_arrives("the second process ended").await;
        self.toll.count("hand-overs", 2);
    }

    /// Nothing is left anywhere of what arrived.
    async fn assert_settled(&self) {
        let waiting = "SELECT COUNT(*) FROM inbox WHERE processed_at IS NULL";
        until("the inbox to be worked through", ARRIVES, async || {
            (self.database.number(waiting).await == 0).then_some(())
        })
        .await;
        let stuck = "SELECT COUNT(*) FROM pending_events WHERE reason <> 'replay'";
        assert_eq!(self.database.number(stuck).await, 0, "events are left");
        let messages = "SELECT COUNT(*) FROM messages WHERE type = 'message.created'";
        assert_eq!(self.database.number(messages).await, i64::try_from(self.toll.total()).unwrap());
        let events = "SELECT COUNT(DISTINCT event_id) FROM messages WHERE type = 'message.created'";
        assert_eq!(self.database.number(events).await, i64::try_from(self.toll.total()).unwrap());
        assert_eq!(self.forwarder.to_come(), 0, "every push that was to fail has failed");
        // The homeserver's inbox is acknowledged.
        until("the device's inbox on the homeserver to be empty", ARRIVES, async || {
            (self.synapse.to_device_messages_for(BOT).await == 0).then_some(())
        })
        .await;
    }
}

/// How often a process began to work the crypto.
fn works(coucou: &Coucou) -> usize {
    coucou.log().matches("this process works the crypto").count()
}

/// Runs a statement as the server's administrator; `{name}` in it is the database.
async fn administer(database: &Database, statement: &str) {
    let mut url = Url::parse(&database.url()).unwrap();
    let statement = statement.replace("{name}", url.path().trim_start_matches('/'));
    url.set_path("postgres");
    let mut connection = PgConnection::connect(url.as_str()).await.unwrap();
    connection.execute(AssertSqlSafe(statement)).await.unwrap();
}

/// Claims one-time keys of coucou's device, as somebody who wants to write to it.
struct Claims {
    stranger: User,
    device_id: String,
}

impl Claims {
    async fn of(stranger: User) -> Self {
        let devices = stranger.query_keys(BOT).await;
        let device_id = devices["device_keys"][BOT].as_object().unwrap().keys().next().unwrap().clone();
        Self { stranger, device_id }
    }

    /// Claims a key, and answers whether it was the fallback key: there is no other left.
    async fn fall_back(&self) -> bool {
        let body = json!({ "one_time_keys": { BOT: { self.device_id.as_str(): "signed_curve25519" } } });
        let answer = self.stranger.request("POST", "v3/keys/claim", Some(&body)).await;
        let keys = answer["one_time_keys"][BOT][&self.device_id].as_object().cloned().unwrap_or_default();
        let key = keys.values().next().expect("there is a fallback key at least");
        key["fallback"] == true
    }

    /// Claims keys until there is none left; answers how many there were.
    async fn use_up(&self) -> usize {
        let mut claimed = 0;
        while !self.fall_back().await {
            claimed += 1;
            assert!(claimed < 1_000, "the keys never end");
        }
        claimed
    }
}

async fn run(encrypted: bool) {
    let mut stage = Stage::set(encrypted).await;
    let claims = Claims::of(stage.synapse.user("stranger", "a password of a stranger").await).await;
    stage.talk();
    stage.finish().await;
    stage.all_arrives("nothing happened").await;
    for round in 0..stage.form.rounds {
        stage.processes_are_killed().await;
        stage.nobody_is_there(&claims, round).await;
        stage.synapse_is_restarted().await;
        stage.postgres_crashes().await;
        stage.answers_break_off().await;
        stage.processes_hand_over().await;
    }
    stage.assert_settled().await;
    let late = stage.toll.check(&stage.receiver).late;
    println!("in {:.0} s: {}; {late} late; none lost", stage.began.elapsed().as_secs_f32(), stage.toll);
    assert!(stage.first.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_breaks_and_every_message_arrives() {
    run(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_breaks_on_a_homeserver_without_experimental_features() {
    run(false).await;
}
