//! Rooms that come in while somebody speaks in them, on a real Synapse: everything that is said beside a join arrives.

use std::{collections::BTreeMap, env, fs, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    arrival::{assert_arrives, assert_arrives_in_any_order},
    coucou::Coucou,
    postgres::Database,
    receiver::Receiver,
    synapse::{Bridge, Options, Sent, Synapse},
};

const OWNER: &str = "@owner:localhost";
const BOT: &str = "@coucou:localhost";
const ARRIVAL: Duration = Duration::from_mins(3);

/// How long a join is held back once it has its place in the graph.
const FORK: Duration = Duration::from_millis(400);

/// Messages in each room, and the time between two of them: longer together than a join takes.
const MESSAGES: usize = 24;
const PAUSE: Duration = Duration::from_millis(40);

/// Who is invited, and to what.
const KINDS: [(&str, &str, bool, bool); 4] = [
    ("instagram", OWNER, true, false),
    ("facebook", BOT, false, true),
    ("whatsapp", OWNER, false, true),
    ("googlechat", BOT, true, false),
];

#[derive(Clone, Copy)]
enum Store {
    Postgres,
    Sqlite,
}

/// How many rooms of each kind: `make test-faults` is the long form.
fn rooms(short: usize, long: usize) -> usize {
    let is_long = env::var("COUCOU_TEST_FAULTS").is_ok_and(|form| form == "long");
    (if is_long { long } else { short }) / KINDS.len()
}

/// Has so many rooms of each kind come in at once while a ghost speaks in each, and compares what arrives.
async fn join(store: Store, slow_joins: Option<Duration>, rooms: usize) {
    let mut bridges = Vec::new();
    for (network, ..) in KINDS {
        bridges.push(Bridge::new(network, &[]).await);
    }
    let registrations = bridges.iter().map(Bridge::registration).collect();
    let mut synapse = Synapse::start_slow(Options { registrations, encrypted: true }, slow_joins).await;
    synapse.user("owner", "the password of a scenario").await;
    let coucou = Coucou::of_owner(OWNER).await.homeserver(&synapse.url());
    let database = match store {
        Store::Postgres => Some(Database::create().await),
        Store::Sqlite => None,
    };
    let coucou = match &database {
        Some(database) => coucou.store(&database.url()),
        None => coucou,
    };
    let bots: Vec<_> = bridges.iter().map(|bridge| format!("{{bot: '{}'}}", bridge.bot())).collect();
    fs::write(coucou.path("coucou.yaml"), format!("bridges: [{}]\n", bots.join(", "))).unwrap();
    synapse.register(coucou.registration()).await;
    let receiver = Receiver::start().await;
    let mut coucou = coucou.webhook(&receiver);
    coucou.start().await;
    // Both devices must be there for keys to be shared with them.
    let mut first = Vec::new();
    for mxid in [OWNER, BOT] {
        first.push(bridges[0].send(&synapse.url()).invite(mxid).messages("text").run().await);
    }
    assert_arrives(&receiver, &first.iter().collect::<Vec<_>>(), ARRIVAL).await;
    let sends = bridges.iter().zip(KINDS).map(|(bridge, (_, invitee, encrypted, group))| {
        let mut send = bridge
            .send(&synapse.url())
            .invite(invitee)
            .no_wait()
            .messages("text")
            .interval(PAUSE)
            .arg("--rooms", &rooms.to_string())
            .arg("--at-once", &MESSAGES.to_string());
        if !encrypted {
            send = send.plain();
        }
        if group {
            send = send.group();
        }
        send.run()
    });
    let sent: Vec<Sent> = futures_util::future::join_all(sends).await;
    let count: usize = sent.iter().map(|sent| sent.messages().count()).sum();
    assert_eq!(count, rooms * KINDS.len() * MESSAGES);
    println!("{count} messages in {} rooms", rooms * KINDS.len());
    let all: Vec<&Sent> = first.iter().chain(&sent).collect();
    // On a busy machine rooms were seen in which one message was told before two that were said before it, with a fork
    // beside the join; why is not known yet.
    let differing = assert_arrives_in_any_order(&receiver, &all, ARRIVAL).await;
    println!("rooms in another order: {}", differing.len());
    if slow_joins.is_none() {
        assert!(differing.len() * 10 <= rooms * KINDS.len(), "in another order: {differing:?}");
    }
    let told = receiver.messages();
    let late = told.iter().filter(|message| message.data()["late"] == true).count();
    println!("messages that are late: {late}");
    let mut by_room: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for message in &told {
        by_room.entry(message.room_id()).or_default().push(message.event_id());
    }
    for (bridge, sent) in bridges.iter().zip(&sent) {
        for room_id in sent.lines.iter().filter_map(|line| line.portal.as_deref()) {
            let theirs = timeline(bridge, &synapse.url(), room_id).await;
            if differing.iter().any(|differing| differing == room_id) {
                println!("{room_id}: told {:?}, said {theirs:?}", by_room[room_id]);
            } else {
                assert_eq!(by_room[room_id], theirs, "as the homeserver has it");
            }
        }
    }
    receiver.check();
}

/// The ids of what was said in a room, in the homeserver's order.
async fn timeline(bridge: &Bridge, homeserver: &str, room_id: &str) -> Vec<String> {
    let path = format!("rooms/{room_id}/messages?dir=f&limit=1000");
    let page = bridge.request_as(homeserver, &bridge.bot(), ("GET", &path), &json!({})).await;
    let events = page["chunk"].as_array().unwrap().iter();
    let said = events.filter(|event| event.get("state_key").is_none());
    said.map(|event: &Value| event["event_id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_on_a_fork_beside_the_join_arrives_with_postgres() {
    join(Store::Postgres, Some(FORK), rooms(12, 100)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_on_a_fork_beside_the_join_arrives_with_sqlite() {
    join(Store::Sqlite, Some(FORK), rooms(12, 100)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_rooms_that_come_in_at_once_lose_nothing_with_postgres() {
    join(Store::Postgres, None, rooms(60, 200)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_rooms_that_come_in_at_once_lose_nothing_with_sqlite() {
    join(Store::Sqlite, None, rooms(60, 200)).await;
}
