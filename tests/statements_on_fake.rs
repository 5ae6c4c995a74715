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

/// A series of `/metrics`, 0 when it is not there.
async fn metric(coucou: &Coucou, series: &str) -> u64 {
    let answer = http().get(format!("{}/metrics", coucou.url())).bearer_auth(API_TOKEN).send().await.unwrap();
    let text = answer.text().await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().unwrap())
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
        let before = metric(&coucou, "coucou_store_statements_total").await;
        homeserver.push_until_taken(&said, &std::mem::take(&mut key)).await;
        told += messages;
        receiver.wait_for(told, SOON).await;
        until("the outcomes are recorded", SOON, async || {
            let pending = "SELECT COUNT(*) FROM deliveries WHERE state <> 'delivered'";
            let (pending,): (i64,) = sqlx::query_as(pending).fetch_one(&mut store).await.unwrap();
            (pending == 0).then_some(())
        })
        .await;
        costs.push(metric(&coucou, "coucou_store_statements_total").await - before);
    }
    // The first one begins things: the room's key, what is cached, statements of a term's start.
    let (one, many) = (costs[1], costs[2]);
    println!("one message: {one} statements, {MANY}: {many}");
    assert!(one > 0 && one < 80, "one message costs {one} statements");
    assert!(many < one + 90, "{MANY} messages cost {many} statements, one costs {one}");
    let hits = metric(&coucou, "coucou_cache_lookups_total{cache=\"sessions\",outcome=\"hit\"}").await;
    assert!(hits >= u64::try_from(MANY).unwrap(), "{hits} room keys were found in memory");
}
