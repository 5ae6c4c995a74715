//! Two processes on one PostgreSQL, as in every rolling deploy: any of them takes transactions and delivers,
//! one at a time works the crypto, and the other takes over.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use sqlx::{Connection, PgConnection};
use tokio::task::JoinHandle;

use crate::support::{
    arrival::assert_arrives,
    coucou::Coucou,
    forwarder::Forwarder,
    postgres::Database,
    receiver::Receiver,
    synapse::{Bridge, Options, Synapse, Timed},
    until,
};

const BOT: &str = "@coucou:localhost";
const SOON: Duration = Duration::from_mins(1);
/// A delivery that was under way when its process was killed is made again when its claim has ended.
const ALL: Duration = Duration::from_secs(100);
const INTERVAL: Duration = Duration::from_millis(400);
const AFTER_KILL: Duration = Duration::from_secs(15);
const AFTER_TERMINATION: Duration = Duration::from_secs(5);

/// Who held the crypto lease, by fence: looked at all the time.
struct Watch {
    holders: Arc<Mutex<BTreeMap<i64, String>>>,
    task: JoinHandle<()>,
}

impl Watch {
    async fn start(database: &Database) -> Self {
        let mut connection = PgConnection::connect(&database.url()).await.unwrap();
        let holders = Arc::new(Mutex::new(BTreeMap::<i64, String>::new()));
        let book = Arc::clone(&holders);
        let task = tokio::spawn(async move {
            loop {
                let rows: Vec<(i64, String)> =
                    sqlx::query_as("SELECT fence, holder FROM leases WHERE name = 'crypto'")
                        .fetch_all(&mut connection)
                        .await
                        .unwrap();
                assert!(rows.len() < 2, "one lease: {rows:?}");
                for (fence, holder) in rows {
                    let mut holders = book.lock().unwrap();
                    let known = holders.entry(fence).or_insert_with(|| holder.clone());
                    assert_eq!(*known, holder, "one holder under fence {fence}");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        Self { holders, task }
    }

    /// The process that holds the lease.
    fn holder(&self) -> u32 {
        assert!(!self.task.is_finished(), "the watch has seen what must not be");
        let holders = self.holders.lock().unwrap();
        let (_, holder) = holders.last_key_value().expect("somebody holds the lease");
        holder.split('-').next().unwrap().parse().unwrap()
    }

    /// How often the lease changed hands, the first time included.
    fn changes(&self) -> usize {
        assert!(!self.task.is_finished(), "the watch has seen what must not be");
        self.holders.lock().unwrap().len()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Two processes, a homeserver that knows the one address before them, and two bridges.
struct Scene {
    instances: [Coucou; 2],
    forwarder: Forwarder,
    synapse: Synapse,
    bridges: [Bridge; 2],
    receiver: Receiver,
    watch: Watch,
    database: Database,
}

impl Scene {
    async fn set() -> Self {
        let forwarder = Forwarder::start().await;
        let database = Database::create().await;
        let receiver = Receiver::start().await;
        let one = Coucou::behind(&forwarder.url()).await;
        let bridges = [Bridge::new("instagram", &[]).await, Bridge::new("facebook", &[]).await];
        let mut registrations = vec![one.registration()];
        registrations.extend(bridges.iter().map(Bridge::registration));
        let synapse = Synapse::start(Options { registrations, encrypted: true }).await;
        let one = one.store(&database.url()).homeserver(&synapse.url()).webhook(&receiver);
        let two = one.sibling();
        let mut instances = [one, two];
        for instance in &mut instances {
            forwarder.add(&instance.url());
            instance.spawn();
        }
        for instance in &mut instances {
            instance.ready().await;
        }
        let watch = Watch::start(&database).await;
        Self { instances, forwarder, synapse, bridges, receiver, watch, database }
    }

    /// Lets both bridges speak for a while, each in its own portal; a room key lasts for some messages.
    fn speak(&self, count: usize, portals: Option<[&str; 2]>) -> [Timed; 2] {
        [0, 1].map(|at| {
            let send = self.bridges[at].send(&self.synapse.url()).invite(BOT).messages("text");
            let send = match portals {
                Some(portals) => send.room(portals[at]),
                None => send.rotate_every(7),
            };
            send.count(count).interval(INTERVAL).start().timed()
        })
    }

    /// Which of the instances works the crypto.
    fn holder(&mut self) -> usize {
        let holder = self.watch.holder();
        let ids = self.instances.each_mut().map(|instance| instance.process().id());
        ids.iter().position(|id| *id == holder).expect("one of the two holds the lease")
    }

    /// How long it took from `at` until a message arrived that was sent after it.
    async fn gap(&self, at: Instant, streams: &[Timed; 2]) -> Duration {
        until("a message that was sent later", SOON, async || {
            let later: Vec<_> =
                streams.iter().flat_map(|stream| stream.sent_between(at, Instant::now())).collect();
            let taken = self.receiver.messages();
            let sent_later = |event_id: &str| later.iter().any(|line| line.event_id == event_id);
            taken.iter().find(|message| sent_later(message.event_id())).map(|message| message.at - at)
        })
        .await
    }

    /// How often one of the two began to work the crypto.
    fn terms(&self) -> usize {
        let began = |instance: &Coucou| instance.log().matches("this process works the crypto").count();
        self.instances.iter().map(began).sum()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_takes_over_and_nothing_is_lost() {
    let mut scene = Scene::set().await;
    let first = scene.speak(60, None);
    scene.receiver.wait_for(20, SOON).await;
    assert_eq!(scene.watch.changes(), 1, "the lease stays where it is while its holder lives");

    let holder = scene.holder();
    let killed_at = Instant::now();
    scene.instances[holder].kill9();
    let gap = scene.gap(killed_at, &first).await;
    println!("a message arrived {gap:?} after the kill");
    assert!(gap < AFTER_KILL, "the other process took {gap:?} to take over from one that was killed");
    assert_eq!(scene.watch.changes(), 2);
    scene.instances[holder].start().await;
    let [one, two] = first;
    let first = [one.finish().await, two.finish().await];
    assert_arrives(&scene.receiver, &first.each_ref(), ALL).await;
    for instance in &scene.instances {
        let taken = scene.forwarder.taken(&instance.url());
        assert!(taken > 5, "{} took {taken} transactions", instance.url());
    }

    let second = scene.speak(30, Some([first[0].portal(), first[1].portal()]));
    scene.receiver.wait_for(140, SOON).await;
    let holder = scene.holder();
    let asked_at = Instant::now();
    let status = scene.instances[holder].terminate().await;
    println!("it ended {:?} after it was asked to", asked_at.elapsed());
    assert!(status.success(), "it ended with {status}");
    let gap = scene.gap(asked_at, &second).await;
    println!("a message arrived {gap:?} after the request to end");
    assert!(gap < AFTER_TERMINATION, "the other process took {gap:?} to take over from one that ended");
    let [one, two] = second;
    let second = [one.finish().await, two.finish().await];
    let all = [&first[0], &first[1], &second[0], &second[1]];
    assert_arrives(&scene.receiver, &all, ALL).await;

    assert_eq!(scene.watch.changes(), 3, "start, kill, end: {:?}", scene.watch.holders);
    assert_eq!(scene.terms(), 3, "nobody worked the crypto without the lease");
    // What was said, and that each of the two rooms is read.
    assert_eq!(scene.database.number("SELECT COUNT(*) FROM messages").await, 180 + 2);
    assert_eq!(scene.database.number("SELECT COUNT(DISTINCT event_id) FROM messages").await, 180 + 2);
    assert_eq!(scene.database.number("SELECT COUNT(*) FROM accounts").await, 1, "one device for both");
}
