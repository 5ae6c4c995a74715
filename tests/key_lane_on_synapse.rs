//! A homeserver that cannot reach coucou, or only now and then: keys come through the key lane, events from the
//! rooms' timelines, and a ping begins the pushing anew.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::support::{
    arrival::assert_arrives,
    coucou::Coucou,
    forwarder::{Fault, Forwarder},
    postgres::Database,
    receiver::Receiver,
    synapse::{Bridge, Options, Synapse, User},
    until,
};

const BOT: &str = "@coucou:localhost";
const SOON: Duration = Duration::from_mins(1);
/// More than a page of to-device messages on Synapse, and more than a page of a timeline.
const TO_DEVICE: usize = 620;
const MESSAGES: usize = 130;

/// Sends many plain to-device messages to every device of the bot.
async fn flood(stranger: &User, count: usize) {
    let send = |number: usize| async move {
        let path = format!("v3/sendToDevice/org.example.nothing/{number}");
        let body = json!({ "messages": { BOT: { "*": { "number": number } } } });
        stranger.request("PUT", &path, Some(&body)).await;
    };
    stream::iter(0..count).map(send).buffer_unordered(8).collect::<Vec<_>>().await;
}

async fn execute(database: &Database, statement: &'static str) {
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    connection.execute(AssertSqlSafe(statement)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_pushed_and_everything_arrives() {
    let (database, forwarder, receiver) =
        tokio::join!(Database::create(), Forwarder::start(), Receiver::start());
    let coucou = Coucou::behind(&forwarder.url()).await;
    let bridge = Bridge::new("instagram", &[]).await;
    let registrations = vec![coucou.registration(), bridge.registration()];
    let synapse = Synapse::start(Options { registrations, encrypted: false }).await;
    let stranger = synapse.user("stranger", "a password of a stranger").await;
    let mut coucou = coucou.store(&database.url()).homeserver(&synapse.url()).webhook(&receiver);
    coucou.start().await;
    until("coucou's keys", SOON, async || {
        let devices = stranger.query_keys(BOT).await;
        devices["device_keys"][BOT].as_object().filter(|devices| !devices.is_empty()).map(drop)
    })
    .await;

    // An invite that nobody tells of.
    let send = bridge.send(&synapse.url()).invite(BOT).no_wait().rotate_every(20);
    let first = send.messages("text,image").count(4).run().await;
    assert!(coucou.terminate().await.success());
    assert!(coucou.log().contains("the homeserver could not ping coucou"), "a failed ping is told");
    coucou.start().await;
    assert_arrives(&receiver, &[&first], SOON).await;

    // A long absence: pages of keys among other messages, pages of a timeline.
    let room_id = first.portal().to_owned();
    let go_on = |count| bridge.send(&synapse.url()).room(&room_id).messages("text").count(count).run();
    assert!(coucou.terminate().await.success());
    let ((), second) = tokio::join!(flood(&stranger, TO_DEVICE), go_on(MESSAGES));
    assert!(synapse.to_device_messages_for(BOT).await >= i64::try_from(TO_DEVICE).unwrap());
    coucou.start().await;
    assert_arrives(&receiver, &[&first, &second], SOON).await;
    assert!(coucou.log().contains("fetching the key lane's backlog"), "progress is told");
    until("the homeserver's inbox to be empty", SOON, async || {
        (synapse.to_device_messages_for(BOT).await == 0).then_some(())
    })
    .await;

    // A position that the homeserver never gave out, as after a restored backup.
    assert!(coucou.terminate().await.success());
    execute(&database, "UPDATE accounts SET sync_token = 'nobody knows this'").await;
    let third = go_on(21).await;
    coucou.start().await;
    assert_arrives(&receiver, &[&first, &second, &third], SOON).await;
    assert!(coucou.log().contains("does not know the key lane's position"));
    assert!(second.messages().all(|line| !forwarder.was_pushed(&line.event_id)), "nothing was pushed");

    // The same for events; what was said meanwhile comes by push, as soon as coucou has asked for a ping.
    assert!(coucou.terminate().await.success());
    execute(&database, "UPDATE accounts SET events_token = 'nobody knows this'").await;
    let fourth = go_on(3).await;
    forwarder.add(&coucou.url());
    assert_eq!(forwarder.pings(), 0);
    coucou.start().await;
    assert_arrives(&receiver, &[&first, &second, &third, &fourth], SOON).await;
    assert_eq!(forwarder.pings(), 1, "one ping for one outage");
    assert!(second.messages().all(|line| forwarder.was_pushed(&line.event_id)), "late pushes change nothing");
    let waiting = "SELECT COUNT(*) FROM inbox WHERE processed_at IS NULL";
    until("the inbox to be worked through", SOON, async || {
        (database.number(waiting).await == 0).then_some(())
    })
    .await;
    let all = i64::try_from(4 + MESSAGES + 21 + 3).unwrap();
    // And that the room is read, once: the invite and the join were pushed long after they were known.
    assert_eq!(database.number("SELECT COUNT(*) FROM messages").await, all + 1);
    assert_eq!(database.number("SELECT COUNT(*) FROM pending_events").await, 0);
    assert!(coucou.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_pushed_comes_before_what_was_pushed_after_it() {
    let (database, forwarder, receiver) =
        tokio::join!(Database::create(), Forwarder::start(), Receiver::start());
    let coucou = Coucou::behind(&forwarder.url()).await;
    forwarder.add(&coucou.url());
    let bridge = Bridge::new("instagram", &[]).await;
    let registrations = vec![coucou.registration(), bridge.registration()];
    let synapse = Synapse::start(Options { registrations, encrypted: true }).await;
    let mut coucou = coucou.store(&database.url()).homeserver(&synapse.url()).webhook(&receiver);
    coucou.start().await;
    let first = bridge.send(&synapse.url()).invite(BOT).messages("text").run().await;
    assert_arrives(&receiver, &[&first], SOON).await;

    // Another process has the lease and does nothing; this one takes transactions, of which one never comes.
    coucou.kill9();
    let keep = "UPDATE leases SET holder = 'another', lease_until = 9000000000000000 WHERE name = 'crypto'";
    execute(&database, keep).await;
    coucou.start().await;
    let mut later = Vec::new();
    for lost in [false, true, false, false] {
        forwarder.fail_next(lost.then_some(Fault::Lose));
        let said = bridge.send(&synapse.url()).room(first.portal()).messages("text").run().await;
        let event_id = said.messages().next().unwrap().event_id.clone();
        until("the push", SOON, async || {
            let over = if lost { forwarder.to_come() == 0 } else { forwarder.was_pushed(&event_id) };
            over.then_some(())
        })
        .await;
        assert!(lost != forwarder.was_pushed(&event_id));
        later.push(event_id);
    }
    let before = first.messages().count();
    assert_eq!(receiver.message_count(), before, "nobody works");
    execute(&database, "UPDATE leases SET lease_until = 0 WHERE name = 'crypto'").await;
    let taken = receiver.wait_for(before + later.len(), SOON).await;
    let told = taken.iter().map(|message| message.data()["event_id"].as_str().unwrap().to_owned());
    assert_eq!(told.skip(before).collect::<Vec<_>>(), later);
    assert!(coucou.terminate().await.success());
}
