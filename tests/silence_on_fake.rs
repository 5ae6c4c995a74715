//! A network falls silent, told from outside with a clock that is moved by hand.

use std::time::Duration;

use coucou::clock::{Clock, ManualClock, Timestamp};
use serde_json::{Value, json};
use sqlx::{Connection, SqliteConnection};

use crate::support::{
    coucou::Coucou,
    fake_homeserver::{FakeBridge, FakeHomeserver, event},
    http,
    receiver::{Attempt, Receiver},
    until,
};

const BOT: &str = "@coucou:localhost";
const SOON: Duration = Duration::from_mins(1);
const HOUR: i64 = 3_600_000;

async fn store(coucou: &Coucou) -> SqliteConnection {
    SqliteConnection::connect(coucou.store_url()).await.unwrap()
}

/// Four weeks before `now` in which something came from nine to five, and nothing at night; coucou ran all the time.
async fn remember(coucou: &Coucou, now: Timestamp) {
    let last = now.0 / HOUR;
    let insert = "INSERT INTO network_hours (network, hour, count, last_at) VALUES (?, ?, 1, ?)";
    let mut store = store(coucou).await;
    let mut tx = store.begin().await.unwrap();
    for hour in last - 4 * 168..=last {
        let networks: &[&str] = if (9..17).contains(&(hour % 24)) { &["", "instagram"] } else { &[""] };
        for network in networks {
            let row = sqlx::query(insert).bind(*network).bind(hour).bind(hour * HOUR + 1);
            row.execute(&mut *tx).await.unwrap();
        }
    }
    tx.commit().await.unwrap();
}

/// Moves the clock by hours, and waits until coucou has looked after each.
async fn pass(coucou: &Coucou, clock: &ManualClock, hours: usize) {
    let mut store = store(coucou).await;
    for _ in 0..hours {
        clock.advance(Duration::from_hours(1));
        let before = clock.now().0 / HOUR - 1;
        until("a look", SOON, async || {
            let sql = "SELECT MAX(hour) FROM network_hours WHERE network = ''";
            let watched: (Option<i64>,) = sqlx::query_as(sql).fetch_one(&mut store).await.ok()?;
            (watched.0 >= Some(before)).then_some(())
        })
        .await;
    }
}

fn told(receiver: &Receiver) -> Vec<Attempt> {
    let mut taken = receiver.taken();
    taken.retain(|attempt| attempt.event().starts_with("bridge."));
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_falls_silent_is_told_once_and_a_message_ends_it() {
    // Nine in the morning: from here on something usually comes every hour.
    let today = time::OffsetDateTime::now_utc().unix_timestamp() / 86_400;
    let start = Timestamp((today * 24 + 9) * HOUR + HOUR / 2);
    let clock = ManualClock::at(start);
    let (mut coucou, receiver) = (Coucou::new().await, Receiver::start().await);
    receiver.at_any_time();
    let homeserver = FakeHomeserver::start(&coucou).await;
    coucou = coucou.homeserver(&homeserver.url()).webhook(&receiver);
    assert!(coucou.run(&["migrate"]).await.status.success());
    remember(&coucou, start).await;
    coucou.start_inside(&clock).await;
    homeserver.wait_for_device(BOT, SOON).await;
    let bridge = FakeBridge::new(&homeserver, "instagram");
    let room = bridge.create_room(&homeserver, "1", "Alice", false);
    homeserver.invite(&room, &bridge.bot(), BOT).await;
    homeserver.wait_for_join(&room, BOT, SOON).await;
    let says = || {
        let content = json!({"msgtype": "m.text", "body": "hello"});
        let mut event = event(&room, &bridge.ghost("1"), "m.room.message", &content);
        event["origin_server_ts"] = json!(clock.now().0);
        event
    };
    homeserver.push_until_taken(&[says()], &[]).await;
    receiver.wait_until("a message", SOON, |attempts| attempts.iter().any(Attempt::is_message)).await;

    // Until ten that evening: seven hours in which something usually comes, and five in which nothing does.
    pass(&coucou, &clock, 6).await;
    assert_eq!(told(&receiver).len(), 0, "until half past three");
    pass(&coucou, &clock, 1).await;
    let silent = until("the silence to be told", SOON, async || told(&receiver).pop()).await;
    assert_eq!((silent.event(), &silent.data()["reason"]), ("bridge.silent", &json!("no_messages")));
    assert_eq!(
        (&silent.data()["network"], &silent.data()["since"]),
        (&json!("instagram"), &json!(start.rfc3339()))
    );
    let (_, stats) = coucou.api("stats").await;
    let bridges = &stats["stored"]["bridges"];
    assert_eq!(bridges["alarm_counts"]["no_messages"], 1, "{bridges}");
    assert_eq!(bridges["alarms"][0]["message_id"], silent.data()["id"]);
    assert_eq!(
        (&bridges["networks"][0]["network"], bridges["networks"].as_array().unwrap().len()),
        (&json!("instagram"), 1)
    );
    let metrics =
        http().get(format!("{}/metrics", coucou.url())).bearer_auth(crate::support::coucou::API_TOKEN);
    let metrics = metrics.send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("coucou_bridge_alarms{reason=\"no_messages\"} 1.0"), "{metrics}");
    let listed = coucou.api("messages/instagram?type=bridge.silent").await.1;
    assert_eq!(listed["messages"][0]["id"], silent.data()["id"]);

    // Not again, whoever takes over.
    coucou.stop_inside().await;
    coucou.start_inside(&clock).await;
    let mut topic = event(&room, &bridge.ghost("1"), "m.room.topic", &json!({"topic": "x"}));
    topic["state_key"] = json!("");
    homeserver.push_until_taken(&[topic], &[]).await;
    until("somebody to work again", SOON, async || {
        (coucou.api("stats").await.1["stored"]["inbox"]["depth"] == 0).then_some(())
    })
    .await;
    pass(&coucou, &clock, 3).await;
    assert_eq!(told(&receiver).len(), 1);
    homeserver.push_until_taken(&[says()], &[]).await;
    let resumed = until("its end", SOON, async || told(&receiver).into_iter().nth(1)).await;
    assert_eq!((resumed.event(), &resumed.data()["resumes"]), ("bridge.resumed", &silent.data()["id"]));
    let (_, stats) = coucou.api("stats").await;
    assert_eq!(stats["stored"]["bridges"]["alarms"], Value::Array(Vec::new()));

    // A night is none.
    pass(&coucou, &clock, 12).await;
    assert_eq!(told(&receiver).len(), 2);
    coucou.stop_inside().await;
}
