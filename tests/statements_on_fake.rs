//! How many statements messages cost: a transaction of a hundred hardly more than one of a single message.

use std::time::Duration;

use serde_json::Value;
use sqlx::{Connection, PgConnection};

use crate::support::{
    coucou::{API_TOKEN, Coucou},
    fake_homeserver::{FakeBridge, FakeHomeserver},
    http,
    postgres::Database,
    receiver::Receiver,
    until,
};

const BOT: &str = "@coucou:localhost";
const SOON: Duration = Duration::from_mins(1);

/// Messages in the large transaction.
const MANY: usize = 100;

const STATEMENTS: &str = "coucou_store_statements_total";

/// A series of `/metrics`, 0 when it is not there.
async fn metric(coucou: &Coucou, series: &str) -> u64 {
    let answer = http().get(format!("{}/metrics", coucou.url())).bearer_auth(API_TOKEN).send().await.unwrap();
    let text = answer.text().await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().unwrap())
}

/// Pushes these messages, and answers how many statements were made until their outcomes were recorded.
async fn cost(
    (coucou, homeserver, receiver): (&Coucou, &FakeHomeserver, &Receiver),
    store: &mut PgConnection,
    said: &[Value],
    keys: &[Value],
    told: usize,
) -> u64 {
    let before = metric(coucou, STATEMENTS).await;
    homeserver.push_until_taken(said, keys).await;
    receiver.wait_for(told, SOON).await;
    until("the outcomes are recorded", SOON, async || {
        let pending = "SELECT COUNT(*) FROM deliveries WHERE state <> 'delivered'";
        let (pending,): (i64,) = sqlx::query_as(pending).fetch_one(&mut *store).await.unwrap();
        (pending == 0).then_some(())
    })
    .await;
    metric(coucou, STATEMENTS).await - before
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_messages_cost_hardly_more_statements_than_one() {
    let database = Database::create().await;
    let coucou = Coucou::new().await;
    let homeserver = FakeHomeserver::start(&coucou).await;
    let receiver = Receiver::start().await;
    let mut coucou = coucou.homeserver(&homeserver.url()).webhook(&receiver).store(&database.url());
    coucou.start().await;
    let device_id = homeserver.wait_for_device(BOT, SOON).await;
    let mut bridge = FakeBridge::new(&homeserver, "instagram");
    let room_id = bridge.create_portal(&homeserver, "1", "Alice");
    homeserver.invite(&room_id, &bridge.bot(), BOT).await;
    homeserver.wait_for_join(&room_id, BOT, SOON).await;
    let mut store = PgConnection::connect(&database.url()).await.unwrap();
    let mut key = bridge.share_key(&homeserver, &room_id, BOT, &device_id);
    let (mut told, mut costs) = (0, Vec::new());
    for messages in [1, 1, MANY] {
        let said: Vec<Value> =
            (0..messages).map(|number| bridge.say(&room_id, "1", &format!("message {number}"))).collect();
        told += messages;
        let scene = (&coucou, &homeserver, &receiver);
        costs.push(cost(scene, &mut store, &said, &std::mem::take(&mut key), told).await);
    }
    // The first one begins things: the room's key, what is cached, statements of a term's start.
    let (one, many) = (costs[1], costs[2]);
    println!("one message: {one} statements, {MANY}: {many}");
    assert!(one > 0 && one < 80, "one message costs {one} statements");
    assert!(many < one + 90, "{MANY} messages cost {many} statements, one costs {one}");
    let hits = metric(&coucou, "coucou_cache_lookups_total{cache=\"sessions\",outcome=\"hit\"}").await;
    assert!(hits >= u64::try_from(MANY).unwrap(), "{hits} room keys were found in memory");
}

/// After a start nothing is in memory: what each room needs is loaded for all of them together.
#[tokio::test(flavor = "multi_thread")]
async fn messages_of_many_rooms_cost_no_statement_each_after_a_start() {
    const ROOMS: usize = 60;
    let database = Database::create().await;
    let coucou = Coucou::new().await;
    let homeserver = FakeHomeserver::start(&coucou).await;
    let receiver = Receiver::start().await;
    let mut coucou = coucou.homeserver(&homeserver.url()).webhook(&receiver).store(&database.url());
    let mut bridge = FakeBridge::new(&homeserver, "instagram");
    let rooms: Vec<String> =
        (0..=ROOMS).map(|number| bridge.create_portal(&homeserver, "1", &format!("Room {number}"))).collect();
    for room_id in &rooms {
        homeserver.add_member(room_id, BOT, None);
    }
    coucou.start().await;
    let device_id = homeserver.wait_for_device(BOT, SOON).await;
    let (mut keys, mut said) = (Vec::new(), Vec::new());
    for room_id in &rooms {
        keys.extend(bridge.share_key(&homeserver, room_id, BOT, &device_id));
        said.push(bridge.say(room_id, "1", "the first"));
    }
    homeserver.push_until_taken(&said, &keys).await;
    let mut told = rooms.len();
    receiver.wait_for(told, SOON).await;
    coucou.restart().await;
    let mut store = PgConnection::connect(&database.url()).await.unwrap();
    let mut costs = Vec::new();
    for rooms in [&rooms[..1], &rooms[1..]] {
        let said: Vec<Value> = rooms.iter().map(|room_id| bridge.say(room_id, "1", "the second")).collect();
        told += said.len();
        let scene = (&coucou, &homeserver, &receiver);
        costs.push(cost(scene, &mut store, &said, &[], told).await);
    }
    let (one, many) = (costs[0], costs[1]);
    println!("a message in one room: {one} statements, in {ROOMS} rooms: {many}");
    // Statements of the start are among those of the first one.
    assert!(many < 90, "{ROOMS} messages in as many rooms cost {many} statements");
}
