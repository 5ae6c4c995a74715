//! Room keys that come with an invite (MSC4268): the inviter's are taken, if the inviter's device is signed; no others.

use std::{io::Read, time::Duration};

use matrix_sdk_crypto::AttachmentEncryptor;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use vodozemac::megolm::{GroupSession, SessionConfig};

use crate::support::{
    coucou::Coucou,
    device::{Device, Peer, exported, send_encrypted},
    postgres::Database,
    receiver::Receiver,
    synapse::{Options, Synapse},
    until,
};

const BOT: &str = "@coucou:localhost";
const PASSWORD: &str = "the password of a scenario";
const ARRIVAL: Duration = Duration::from_mins(2);

/// Uploads a bundle, and tells coucou's device of it.
async fn send_bundle(device: &mut Device, bot: &Peer, room_id: &str, keys: &[Value]) {
    let bundle = json!({"room_keys": keys, "withheld": []}).to_string();
    let mut plain = bundle.as_bytes();
    let mut encryptor = AttachmentEncryptor::new(&mut plain);
    let mut ciphertext = Vec::new();
    encryptor.read_to_end(&mut ciphertext).unwrap();
    let mut file = serde_json::to_value(encryptor.finish()).unwrap();
    file["url"] = json!(device.user.upload(ciphertext).await);
    let content = json!({"room_id": room_id, "file": file});
    device.send_olm(bot, "io.element.msc4268.room_key_bundle", &content).await;
}

async fn ledger(database: &Database, count: usize) -> Vec<(String, String)> {
    until(&format!("{count} events on the ledger"), ARRIVAL, async || {
        let mut connection = PgConnection::connect(&database.url()).await.ok()?;
        let statement =
            "SELECT event_id, reason FROM pending_events WHERE state = 'ledger' ORDER BY event_id";
        let rows: Vec<(String, String)> = sqlx::query_as(statement).fetch_all(&mut connection).await.ok()?;
        (rows.len() == count).then_some(rows)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keys_that_come_with_an_invite_open_what_was_said_before_the_join() {
    let (coucou, receiver, database) = tokio::join!(Coucou::new(), Receiver::start(), Database::create());
    let options = Options { registrations: vec![coucou.registration()], encrypted: true };
    let synapse = Synapse::start(options).await;
    let mut devices = Vec::new();
    for name in ["alice", "mallory", "bob"] {
        devices.push(Device::new(synapse.user(name, PASSWORD).await));
    }
    let [mut alice, mut mallory, mut bob] = <[Device; 3]>::try_from(devices).ok().unwrap();
    for device in [&mut alice, &mut mallory] {
        device.cross_sign().await;
    }
    bob.tell_keys();
    for device in [&alice, &mallory, &bob] {
        device.publish().await;
    }
    let mut coucou = coucou
        .homeserver(&synapse.url())
        .store(&database.url())
        .webhook(&receiver)
        .set("COUCOU_ROOMS_RELAY", "all");
    coucou.start().await;
    let bot = Peer::of(BOT, &alice.user).await;
    assert!(coucou.terminate().await.success());

    // While coucou is away it is invited, something is said, and nobody shares a key but by a bundle.
    let encryption = json!({"algorithm": "m.megolm.v1.aes-sha2"});
    let room = |invite: &[&str]| {
        let state = json!([{"type": "m.room.encryption", "state_key": "", "content": encryption}]);
        json!({"invite": invite, "initial_state": state})
    };
    let room_id = alice.user.create_room(&room(&[BOT, "@mallory:localhost"])).await;
    mallory.user.request("POST", &format!("v3/join/{room_id}"), Some(&json!({}))).await;
    let other_id = bob.user.create_room(&room(&[BOT])).await;
    let mut sessions: Vec<_> = (0..4).map(|_| GroupSession::new(SessionConfig::version_1())).collect();
    let mut said = Vec::new();
    for (number, session) in sessions.iter_mut().enumerate() {
        let keys = exported(&alice, &room_id, session);
        let (device, room_id) = if number == 3 { (&bob, &other_id) } else { (&alice, &room_id) };
        let content = device.encrypt(room_id, session, &format!("message {number}"));
        said.push((send_encrypted(&device.user, room_id, &content).await, keys));
    }
    let [good, false_name, other_room, bobs] = <[(String, Value); 4]>::try_from(said).ok().unwrap();
    let (mut renamed, mut moved) = (good.1.clone(), other_room.1.clone());
    renamed["session_id"] = false_name.1["session_id"].clone();
    moved["room_id"] = json!(other_id);
    send_bundle(&mut alice, &bot, &room_id, &[renamed, moved, json!("damaged"), good.1.clone()]).await;
    // Of a member who has not invited, and of an inviter whose device is not signed.
    send_bundle(&mut mallory, &bot, &room_id, &[false_name.1.clone(), other_room.1.clone()]).await;
    let mut of_bob = bobs.1.clone();
    of_bob["room_id"] = json!(other_id);
    send_bundle(&mut bob, &bot, &other_id, &[of_bob]).await;

    coucou.start().await;
    let messages = receiver.wait_for(1, ARRIVAL).await;
    assert_eq!(messages[0].event_id(), good.0, "{}", coucou.log());
    let data = messages[0].data();
    assert_eq!(data["content"]["text"], "message 0");
    assert_eq!(data["encryption"]["trust"], "imported", "who invites is not who made the key");
    assert_eq!(data["encryption"]["flagged"], json!(true));
    until("the other bundles to be refused", ARRIVAL, async || {
        (coucou.log().contains("its sender did not invite us")
            && database.number("SELECT COUNT(*) FROM key_bundle_fetches WHERE tries > 0").await == 1)
            .then_some(())
    })
    .await;
    let mut left = vec![false_name.0, other_room.0, bobs.0];
    left.sort();
    let rows = ledger(&database, 3).await;
    assert_eq!(rows.iter().map(|(event_id, _)| event_id.clone()).collect::<Vec<_>>(), left, "{rows:?}");
    assert_eq!(receiver.message_count(), 1);
    assert_eq!(
        database.number("SELECT COUNT(*) FROM crypto_key_bundles").await,
        1,
        "bob's, as long as it waits"
    );
    assert!(coucou.terminate().await.success());
}
