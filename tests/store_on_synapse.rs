//! What operators find in PostgreSQL, and what everybody finds on the homeserver.

use std::{collections::BTreeSet, time::Duration};

use matrix_sdk_crypto::vodozemac::{Ed25519PublicKey, Ed25519Signature};
use serde_json::Value;

use crate::support::{
    arrival::assert_arrives,
    coucou::Coucou,
    postgres::Database,
    receiver::Receiver,
    synapse::{Bridge, Options, Sent, Synapse, User},
    until,
};

const BOT: &str = "@coucou:localhost";
const ARRIVAL: Duration = Duration::from_mins(1);

/// The statements of operators' runbooks, word for word but for the type that tests read.
const SESSIONS: &str = "SELECT COUNT(*) FROM megolm_inbound_sessions";
const NEWEST: &str = "SELECT MAX(created_at) FROM megolm_inbound_sessions";
const ROOMS: &str = "SELECT COUNT(DISTINCT room_id) FROM megolm_inbound_sessions";

fn now_ms() -> i64 {
    i64::try_from(time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap()
}

/// The Megolm sessions that were used.
fn sessions(sent: &[&Sent]) -> BTreeSet<String> {
    sent.iter().flat_map(|sent| sent.messages()).filter_map(|line| line.session_id.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_monitoring_statements_tell_what_was_received() {
    let database = Database::create().await;
    let coucou = Coucou::new().await.store(&database.url());
    let bridge = Bridge::new("instagram", &[]).await;
    let registrations = vec![coucou.registration(), bridge.registration()];
    let synapse = Synapse::start(Options { registrations, encrypted: true }).await;
    let receiver = Receiver::start().await;
    let mut coucou = coucou.homeserver(&synapse.url()).webhook(&receiver);
    coucou.start().await;
    assert_eq!(database.number(SESSIONS).await, 0);

    let began = now_ms();
    let send = || bridge.send(&synapse.url()).invite(BOT).messages("text");
    let one = send().rotate_every(2).count(5).run().await;
    let two = send().count(2).run().await;
    assert_arrives(&receiver, &[&one, &two], ARRIVAL).await;
    let used = sessions(&[&one, &two]);
    assert_eq!(used.len(), 4, "3 in one portal, 1 in the other");
    assert_eq!(database.number(SESSIONS).await, 4);
    assert_eq!(database.number(ROOMS).await, 2);
    let newest = database.number(NEWEST).await;
    assert!((began..=now_ms()).contains(&newest), "{newest} is not between {began} and now");

    // A key that is there already does not count as new; a new one does, also after a restart.
    coucou.restart().await;
    assert_eq!(database.number(SESSIONS).await, 4);
    assert_eq!(database.number(NEWEST).await, newest);
    let three = send().count(1).run().await;
    assert_arrives(&receiver, &[&one, &two, &three], ARRIVAL).await;
    assert_eq!(database.number(SESSIONS).await, 5);
    assert_eq!(database.number(ROOMS).await, 3);
    assert!(database.number(NEWEST).await > newest);
}

/// Whether `signed` bears a valid signature of `signer` by the key `public`.
pub(crate) fn is_signed(signed: &Value, signer: &str, public: &str) -> bool {
    let signature = &signed["signatures"][signer][format!("ed25519:{public}")];
    let Some(signature) = signature.as_str() else { return false };
    let mut object = signed.as_object().unwrap().clone();
    object.remove("signatures");
    object.remove("unsigned");
    // Canonical JSON: serde_json's maps are sorted, and it writes no spaces.
    let text = Value::from(object).to_string();
    let key = Ed25519PublicKey::from_base64(public).unwrap();
    key.verify(text.as_bytes(), &Ed25519Signature::from_base64(signature).unwrap()).is_ok()
}

/// The one public key of a cross-signing key of the bot.
pub(crate) fn public_key(answer: &Value, keys: &str) -> String {
    let keys = answer[keys][BOT]["keys"].as_object().unwrap_or_else(|| panic!("no {keys} in {answer}"));
    assert_eq!(keys.len(), 1);
    keys.values().next().unwrap().as_str().unwrap().to_owned()
}

/// The bot's one device, which must be signed by itself and by the bot's identity, as `user` sees it.
async fn signed_device(user: &User) -> (String, Value) {
    let answer = user.query_keys(BOT).await;
    let (master, self_signing) =
        (public_key(&answer, "master_keys"), public_key(&answer, "self_signing_keys"));
    assert!(is_signed(&answer["self_signing_keys"][BOT], BOT, &master), "{answer}");
    let devices = answer["device_keys"][BOT].as_object().unwrap();
    assert_eq!(devices.len(), 1, "{answer}");
    let (device_id, device) = devices.iter().next().unwrap();
    assert!(is_signed(device, BOT, &self_signing), "{answer}");
    let own = &device["keys"][format!("ed25519:{device_id}")];
    let mut by_itself = device.clone();
    let signatures = by_itself["signatures"][BOT].as_object_mut().unwrap();
    let signature = signatures[&format!("ed25519:{device_id}")].clone();
    signatures.insert(format!("ed25519:{}", own.as_str().unwrap()), signature);
    assert!(is_signed(&by_itself, BOT, own.as_str().unwrap()), "{answer}");
    let identity = serde_json::json!([master, self_signing, device["keys"]]);
    (device_id.clone(), identity)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bot_signs_its_device_and_keeps_it() {
    let database = Database::create().await;
    let coucou = Coucou::new().await.store(&database.url());
    let synapse =
        Synapse::start(Options { registrations: vec![coucou.registration()], encrypted: true }).await;
    let user = synapse.user("reader", "secret").await;
    let mut coucou = coucou.homeserver(&synapse.url());
    coucou.start().await;
    let published = async || {
        let answer = user.query_keys(BOT).await;
        let devices = answer["device_keys"][BOT].as_object()?;
        let signatures = devices.values().next()?["signatures"][BOT].as_object()?;
        (signatures.len() == 2).then_some(())
    };
    until("the bot's signed device", ARRIVAL, published).await;
    let before = signed_device(&user).await;
    coucou.restart().await;
    works_the_crypto(&coucou, 2).await;
    assert_eq!(signed_device(&user).await, before, "after a power cut");
    assert!(coucou.terminate().await.success());
    coucou.start().await;
    works_the_crypto(&coucou, 3).await;
    assert_eq!(signed_device(&user).await, before, "after an orderly restart");
    assert_eq!(database.number("SELECT COUNT(*) FROM accounts").await, 1);
}

/// Waits until it has begun to work the crypto so many times, in as many lives.
async fn works_the_crypto(coucou: &Coucou, times: usize) {
    until("the crypto to work again", ARRIVAL, async || {
        let begun = coucou.log().matches("this process works the crypto").count();
        (begun >= times).then_some(())
    })
    .await;
    assert!(coucou.log().matches("this process works the crypto").count() == times);
}
