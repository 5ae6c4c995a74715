//! Two processes on one PostgreSQL under a steady load, one or the other killed again and again.

use std::{
    collections::{BTreeMap, HashMap},
    env,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use rand::Rng;
use tokio::time::{interval, sleep};

use crate::support::{
    arrival::check_numbers,
    coucou::Coucou,
    fake_homeserver::{FakeBridge, FakeHomeserver, Service},
    forwarder::Forwarder,
    postgres::Database,
    receiver::Receiver,
};

const BOT: &str = "@coucou:localhost";
const SOON: Duration = Duration::from_mins(1);

/// The claims of the processes that were killed last must end first.
const ALL: Duration = Duration::from_mins(3);

const ROOMS: usize = 10;

/// A message in each room so often.
const EVERY: Duration = Duration::from_millis(100);

/// A room's key lasts for so many messages.
const ROTATE: usize = 40;

/// How often something is killed: `make test-faults` is the long form.
fn kills() -> usize {
    if env::var("COUCOU_TEST_FAULTS").is_ok_and(|form| form == "long") { 20 } else { 4 }
}

fn pause(least: u64, most: u64) -> Duration {
    Duration::from_millis(rand::rng().random_range(least..most))
}

/// Speaks until told to stop, a message in each room in each transaction; answers what was said, by room.
async fn speak(
    homeserver: &FakeHomeserver,
    bridge: &mut FakeBridge,
    rooms: &[String],
    device_id: &str,
    enough: &AtomicBool,
) -> BTreeMap<String, Vec<(String, String)>> {
    let mut said: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    let mut ticks = interval(EVERY);
    let mut round = 0;
    while !enough.load(Ordering::SeqCst) {
        ticks.tick().await;
        let (mut keys, mut events) = (Vec::new(), Vec::new());
        for (at, room_id) in rooms.iter().enumerate() {
            if round == 0 || (round + at) % ROTATE == 0 {
                bridge.rotate(room_id);
                keys.extend(bridge.share_key(homeserver, room_id, BOT, device_id));
            }
            let text = format!("{round} in {room_id}");
            let event = bridge.say(room_id, "1", &text);
            let event_id = event["event_id"].as_str().unwrap().to_owned();
            said.entry(room_id.clone()).or_default().push((event_id, text));
            events.push(event);
        }
        homeserver.push_until_taken(&events, &keys).await;
        round += 1;
    }
    said
}

/// Kills one of them, and starts it again, so often.
async fn kill(instances: &mut [Coucou; 2], kills: usize) {
    for _ in 0..kills {
        sleep(pause(500, 9_000)).await;
        let at = rand::rng().random_range(0..2);
        instances[at].kill9();
        sleep(pause(0, 2_000)).await;
        instances[at].spawn();
        instances[at].ready().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_of_either_of_two_processes_lose_and_double_nothing() {
    let (forwarder, database, receiver) =
        tokio::join!(Forwarder::start(), Database::create(), Receiver::start());
    let one = Coucou::behind(&forwarder.url()).await;
    let homeserver = FakeHomeserver::serve(Service {
        url: forwarder.url(),
        as_token: one.registered("as_token"),
        hs_token: one.registered("hs_token"),
        sender_localpart: one.registered("sender_localpart"),
    })
    .await;
    let one = one.store(&database.url()).homeserver(&homeserver.url()).webhook(&receiver);
    let two = one.sibling();
    let mut instances = [one, two];
    for instance in &mut instances {
        forwarder.add(&instance.url());
        instance.spawn();
    }
    for instance in &mut instances {
        instance.ready().await;
    }
    let device_id = homeserver.wait_for_device(BOT, SOON).await;
    let mut bridge = FakeBridge::new(&homeserver, "instagram");
    let mut rooms = Vec::new();
    for number in 0..ROOMS {
        let room_id = bridge.create_portal(&homeserver, "1", &format!("Room {number}"));
        homeserver.invite(&room_id, &bridge.bot(), BOT).await;
        homeserver.wait_for_join(&room_id, BOT, SOON).await;
        rooms.push(room_id);
    }
    let enough = AtomicBool::new(false);
    let ((), said) = tokio::join!(
        async {
            kill(&mut instances, kills()).await;
            enough.store(true, Ordering::SeqCst);
        },
        speak(&homeserver, &mut bridge, &rooms, &device_id, &enough)
    );
    let count = said.values().map(Vec::len).sum();
    println!("{count} messages, {} kills", kills());
    let taken = receiver
        .wait_until(&format!("{count} messages"), ALL, |taken| {
            taken.iter().filter(|attempt| attempt.is_message()).count() >= count
        })
        .await;
    check_numbers(&taken);
    let mut ids: HashMap<&str, &str> = HashMap::new();
    let mut told: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for message in taken.iter().filter(|attempt| attempt.is_message()) {
        let other = ids.insert(message.event_id(), &message.id);
        assert!(other.is_none(), "{} came as {other:?} and as {}", message.event_id(), message.id);
        let text = message.data()["content"]["text"].as_str().map(str::to_owned);
        let event = (message.event_id().to_owned(), text.unwrap_or_default());
        told.entry(message.room_id().to_owned()).or_default().push(event);
    }
    assert_eq!(told, said, "what was said, in its order");
    receiver.check();
}
