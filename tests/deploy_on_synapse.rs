//! What `deploy/` brings along does what it says.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use serde_json::json;
use tempfile::TempDir;
use tokio::task::spawn_blocking;

use crate::support::{
    arrival::assert_arrives,
    coucou::Coucou,
    postgres::Database,
    receiver::{Attempt, Receiver},
    repository,
    synapse::{Bridge, Options, Sent, Synapse, User},
    until,
};

const BOT: &str = "@coucou:localhost";
/// As many one-time keys a device keeps on the homeserver.
const FULL: i64 = 200;
const SOON: Duration = Duration::from_mins(1);

async fn script(name: &str, database: &Database, file: &Path) -> Output {
    let mut command = Command::new(repository().join("deploy/backup").join(name));
    command.arg(file).env("COUCOU_STORE_URL", database.url());
    spawn_blocking(move || command.output()).await.unwrap().unwrap()
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Claims a one-time key of the bot's device, as somebody who wants to write to it.
async fn claim_a_key(stranger: &User) {
    let devices = stranger.query_keys(BOT).await;
    let device_id = devices["device_keys"][BOT].as_object().unwrap().keys().next().unwrap().clone();
    let body = json!({ "one_time_keys": { BOT: { device_id: "signed_curve25519" } } });
    stranger.request("POST", "v3/keys/claim", Some(&body)).await;
}

/// The ids of messages by their events.
fn ids(receiver: &Receiver) -> HashMap<String, String> {
    let messages = receiver.messages().into_iter();
    messages.map(|message| (message.event_id().to_owned(), message.id)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_brings_back_what_was_and_the_homeserver_what_came_since() {
    let (database, other, receiver) = tokio::join!(Database::create(), Database::create(), Receiver::start());
    let coucou = Coucou::new().await;
    let (instagram, facebook) = tokio::join!(Bridge::new("instagram", &[]), Bridge::new("facebook", &[]));
    let registrations = vec![coucou.registration(), instagram.registration(), facebook.registration()];
    let synapse = Synapse::start(Options { registrations, encrypted: true }).await;
    let stranger = synapse.user("stranger", "a password of a stranger").await;
    let mut coucou = coucou.store(&database.url()).homeserver(&synapse.url()).webhook(&receiver);
    coucou.start().await;
    let url = synapse.url();
    let first = instagram.send(&url).messages("text").rotate_every(2).invite(BOT).count(4).run().await;
    assert_arrives(&receiver, &[&first], SOON).await;
    let folder = TempDir::new().unwrap();
    let dump = folder.path().join("coucou.dump");
    let dumped = script("dump.sh", &database, &dump).await;
    assert!(dumped.status.success(), "{}", told(&dumped));
    let again = script("dump.sh", &database, &dump).await;
    assert!(!again.status.success() && told(&again).contains("is there already"), "{}", told(&again));

    // Life goes on, with keys and one-time keys that the dump does not have, and then all is lost.
    while synapse.one_time_keys_of(BOT).await > FULL - 5 {
        claim_a_key(&stranger).await;
    }
    let second =
        instagram.send(&url).messages("text").rotate_every(2).room(first.portal()).count(4).run().await;
    assert_arrives(&receiver, &[&first, &second], SOON).await;
    until("new one-time keys", SOON, async || (synapse.one_time_keys_of(BOT).await >= FULL).then_some(()))
        .await;
    let not_backed_up = "SELECT COUNT(*) FROM megolm_inbound_sessions WHERE backed_up = 0";
    until("the key backup", SOON, async || (database.number(not_backed_up).await == 0).then_some(())).await;
    let before = ids(&receiver);
    let full = script("restore.sh", &database, &dump).await;
    assert!(!full.status.success() && told(&full).contains("restore into an empty one"), "{}", told(&full));
    coucou.kill9();
    drop(database);
    let missing = script("restore.sh", &other, &folder.path().join("nothing.dump")).await;
    assert!(!missing.status.success() && told(&missing).contains("cannot be read"), "{}", told(&missing));
    let restored = script("restore.sh", &other, &dump).await;
    assert!(restored.status.success(), "{}", told(&restored));
    let receiver = Receiver::start().await;
    let mut coucou = coucou.store(&other.url()).webhook(&receiver);
    coucou.start().await;

    // Whoever never spoke to the device takes one of its one-time keys, and more are made.
    let others =
        instagram.send(&url).messages("text").rotate_every(2).room(first.portal()).count(4).run().await;
    let third = facebook.send(&url).messages("text").rotate_every(2).invite(BOT).count(3).run().await;
    for _ in 0..5 {
        claim_a_key(&stranger).await;
    }
    until("one-time keys under ids that were used", SOON, async || {
        coucou.log().contains("other one-time keys under these ids").then_some(())
    })
    .await;
    // What was under way when it was dumped may come again as well.
    let told = receiver
        .wait_until("everything since the dump", SOON, |taken| {
            let ids: HashSet<&str> = taken.iter().map(Attempt::event_id).collect();
            [&second, &others, &third]
                .iter()
                .all(|sent| sent.messages().all(|line| ids.contains(&*line.event_id)))
        })
        .await;
    let of = |sent: &Sent| sent.messages().map(|line| line.event_id.clone()).collect::<Vec<_>>();
    let room = told.iter().filter(|message| message.room_id() == first.portal());
    let known = of(&first);
    let (late, in_time): (Vec<_>, Vec<_>) = room
        .filter(|message| known.iter().all(|event_id| event_id != message.event_id()))
        .partition(|message| message.data()["late"] == true);
    let late: Vec<_> = late.iter().map(|message| message.event_id()).collect();
    let in_time: Vec<_> = in_time.iter().map(|message| message.event_id().to_owned()).collect();
    let mut expected = [of(&second), of(&others)].concat();
    expected.retain(|event_id| !late.contains(&event_id.as_str()));
    assert_eq!(in_time, expected);
    let after = ids(&receiver);
    assert!(of(&third).iter().all(|event_id| after.contains_key(event_id)));
    assert!(second.messages().all(|line| before[&line.event_id] == after[&line.event_id]));
    let stored = "SELECT COUNT(*) FROM messages WHERE type = 'message.created'";
    let all = [&first, &second, &others, &third].map(|sent| sent.messages().count());
    assert_eq!(other.number(stored).await, i64::try_from(all.iter().sum::<usize>()).unwrap());
    assert!(coucou.terminate().await.success());
}
