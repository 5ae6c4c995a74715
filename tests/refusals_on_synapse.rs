//! What the homeserver refuses while coucou runs: a device that somebody has deleted, a token that is not its own.

use std::{fs, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    arrival::assert_arrives,
    coucou::{API_TOKEN, Coucou},
    http,
    receiver::Receiver,
    synapse::{Bridge, Options, Synapse, as_service},
    until,
};

const BOT: &str = "@coucou:localhost";
const SOON: Duration = Duration::from_mins(1);
const RESTORED: &str = "coucou_crypto_devices_restored_total{account=\"bot\"}";

/// A token of coucou's registration.
fn token(coucou: &Coucou, name: &str) -> String {
    let text = fs::read_to_string(coucou.registration()).unwrap();
    let registration: Value = serde_saphyr::from_str(&text).unwrap();
    registration[name].as_str().unwrap().to_owned()
}

async fn metric(coucou: &Coucou, series: &str) -> Option<u64> {
    let answer = http().get(format!("{}/metrics", coucou.url())).bearer_auth(API_TOKEN).send().await.unwrap();
    let text = answer.text().await.unwrap();
    text.lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))
        .map(|value| value.parse().unwrap())
}

/// How the homeserver is, as health and stats say.
async fn state(coucou: &Coucou) -> (String, String) {
    let ask = async |path: &str| -> Value {
        let url = format!("{}/api/v1/{path}", coucou.url());
        let answer = http().get(url).bearer_auth(API_TOKEN).send().await.unwrap().text().await.unwrap();
        serde_json::from_str(&answer).unwrap()
    };
    let (health, stats) = (ask("health").await, ask("stats").await);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&health["homeserver"]["state"]), text(&stats["homeserver"]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_deleted_while_it_runs_is_made_again() {
    let (coucou, receiver) = tokio::join!(Coucou::new(), Receiver::start());
    let bridge = Bridge::new("instagram", &[]).await;
    let registrations = vec![coucou.registration(), bridge.registration()];
    let synapse = Synapse::start(Options { registrations, encrypted: true }).await;
    let mut coucou = coucou.homeserver(&synapse.url()).webhook(&receiver);
    coucou.start().await;
    let url = synapse.url();
    let first = bridge.send(&url).messages("text").rotate_every(2).invite(BOT).count(2).run().await;
    assert_arrives(&receiver, &[&first], SOON).await;

    let service = as_service(&url, &token(&coucou, "as_token"), BOT);
    let devices = async || {
        let body = json!({"device_keys": {BOT: []}});
        let answer = service.request("POST", &format!("v3/keys/query?user_id={BOT}"), Some(&body)).await;
        answer["device_keys"][BOT].clone()
    };
    let before = devices().await;
    let (device_id, _) = before.as_object().unwrap().iter().next().expect("coucou has a device");
    let path = format!("v3/devices/{device_id}?user_id={BOT}");
    service.request("DELETE", &path, Some(&json!({}))).await;
    let deleted_at = std::time::Instant::now();
    until("the device to be there again", SOON, async || {
        (devices().await[device_id]["keys"] == before[device_id]["keys"]).then_some(())
    })
    .await;
    println!("the device was gone for {:?}", deleted_at.elapsed());
    until("its one-time keys", SOON, async || (synapse.one_time_keys_of(BOT).await >= 200).then_some(()))
        .await;
    // In a session of before, and in new ones.
    let room_id = first.portal();
    let second = bridge.send(&url).room(room_id).messages("text").count(5).run().await;
    assert_arrives(&receiver, &[&first, &second], SOON).await;
    assert_eq!(metric(&coucou, RESTORED).await, Some(1));
    assert!(coucou.log().contains("somebody has deleted coucou's device"), "{}", coucou.log());
    assert_eq!(state(&coucou).await, ("ok".to_owned(), "ok".to_owned()));
    assert!(coucou.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_the_homeserver_does_not_know_is_named() {
    let (coucou, receiver) = tokio::join!(Coucou::new(), Receiver::start());
    let options = Options { registrations: vec![coucou.registration()], encrypted: true };
    let mut synapse = Synapse::start(options).await;
    let mut coucou = coucou.homeserver(&synapse.url()).webhook(&receiver);
    coucou.start().await;
    until("it to be ok", SOON, async || (state(&coucou).await.0 == "ok").then_some(())).await;
    assert!(coucou.terminate().await.success());

    // As after a registration was made anew, which the homeserver has not read.
    let registration = fs::read_to_string(coucou.registration()).unwrap();
    let another =
        registration.replace(&token(&coucou, "as_token"), "another_token_that_is_long_enough_for_one");
    assert_ne!(registration, another);
    let file = coucou.path("another.yaml");
    fs::write(&file, another).unwrap();
    coucou.reset("COUCOU_APPSERVICE_REGISTRATION", &file.to_string_lossy());
    coucou.start().await;
    until("it to be refused", SOON, async || {
        let (health, stats) = state(&coucou).await;
        (health == "refuses" && stats == "refuses: the homeserver does not know the as_token").then_some(())
    })
    .await;
    let log = coucou.log();
    assert!(log.contains("COUCOU_APPSERVICE_AS_TOKEN"), "{log}");
    assert_eq!(log.matches("the homeserver refuses coucou").count(), 1, "told once: {log}");
    assert!(!log.contains("the homeserver is away") && !log.contains("none, unless it goes on"), "{log}");
    synapse.stop().await;
    until("it to be away", SOON, async || (state(&coucou).await.0 == "away").then_some(())).await;
    assert!(coucou.terminate().await.success());
}
