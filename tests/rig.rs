//! The rig itself: a test that passes because its tools are broken is worse than none.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;
use sqlx::{Connection, Executor, PgConnection};

use crate::support::{
    http,
    postgres::{Cluster, Database},
    receiver::{Answer, Receiver},
    synapse::{Bridge, Options, Synapse},
};

mod fake_homeserver;

const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_keeps_its_data_while_it_is_stopped() {
    let cluster = Cluster::start().await;
    let database = cluster.database().await;
    let mut connection = PgConnection::connect(&database.url()).await.unwrap();
    connection.execute("CREATE TABLE kept AS SELECT 7 :: bigint AS number").await.unwrap();
    cluster.stop().await;
    assert!(connection.execute("SELECT 1").await.is_err(), "the connection is gone");
    assert!(PgConnection::connect(&database.url()).await.is_err(), "and no other comes about");
    cluster.resume().await;
    assert_eq!(database.number("SELECT number FROM kept").await, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_gone_with_its_test() {
    let database = Database::create().await;
    let url = database.url();
    assert_eq!(database.number("SELECT 1 :: bigint").await, 1);
    drop(database);
    assert!(PgConnection::connect(&url).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn synapse_keeps_its_data_and_the_sender_its_session() {
    let bridge = Bridge::new("instagram", &[]).await;
    let options = Options { registrations: vec![bridge.registration()], encrypted: true };
    let mut synapse = Synapse::start(options).await;
    let user = synapse.user("reader", "secret").await;
    assert_eq!(user.mxid, "@reader:localhost");
    let first = bridge.send(&synapse.url()).invite(&user.mxid).no_wait().messages("text,edit").run().await;
    synapse.stop().await;
    synapse.resume().await;
    let portal = first.portal();
    let second =
        bridge.send(&synapse.url()).invite(&user.mxid).no_wait().room(portal).messages("notice").run().await;
    assert_eq!(second.portal(), portal);
    let kinds: Vec<_> = first.messages().chain(second.messages()).map(|line| &*line.kind).collect();
    assert_eq!(kinds, ["text", "edit", "notice"]);
    let mut sessions: Vec<_> =
        first.messages().chain(second.messages()).map(|line| line.session_id.clone()).collect();
    sessions.dedup();
    assert_eq!(sessions.len(), 1, "one Megolm session");
    let path = format!("v3/join/{}", portal.replace('!', "%21"));
    user.request("POST", &path, Some(&json!({}))).await;
    assert_eq!(user.joined_rooms().await, [portal]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_receiver_answers_as_told_and_counts_what_it_took() {
    let receiver = Receiver::start().await.of_any_payload();
    receiver.answer_next([Answer::Status(503), Answer::Close, Answer::RetryAfter(429, 3)]);
    assert_eq!(post(&receiver, "msg_1", "one", None).await, Some(503));
    assert_eq!(post(&receiver, "msg_1", "one", None).await, None);
    assert_eq!(post(&receiver, "msg_1", "one", None).await, Some(429));
    assert!(receiver.messages().is_empty());
    assert_eq!(post(&receiver, "msg_1", "one", None).await, Some(200));
    assert_eq!(post(&receiver, "msg_1", "one", None).await, Some(200));
    let messages = receiver.wait_for(1, SOON).await;
    assert_eq!(messages.len(), 1, "a repeat is the same message");
    assert_eq!(receiver.attempts().len(), 5);
    receiver.answer_always(Some(Answer::Hang));
    let hung = tokio::time::timeout(Duration::from_millis(200), post(&receiver, "msg_2", "two", None));
    assert!(hung.await.is_err());
    receiver.answer_always(None);
    assert_eq!(post(&receiver, "msg_2", "two", None).await, Some(200));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_receiver_finds_a_bad_signature() {
    let receiver = Receiver::start().await.of_any_payload();
    let stranger = format!("whsec_{}", BASE64_STANDARD.encode([7; 32]));
    post(&receiver, "msg_1", "one", Some(&stranger)).await;
    assert_complains(&receiver, "signature invalid");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_receiver_finds_an_id_that_changes_its_body() {
    let receiver = Receiver::start().await.of_any_payload();
    receiver.answer_next([Answer::Status(500)]);
    post(&receiver, "msg_1", "one", None).await;
    post(&receiver, "msg_1", "another", None).await;
    assert_complains(&receiver, "another body than the first");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_receiver_finds_a_payload_that_the_schema_does_not_know() {
    let receiver = Receiver::start().await;
    post(&receiver, "msg_1", "one", None).await;
    assert_complains(&receiver, "not as docs/schema/webhook.json says");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_receiver_finds_a_delivery_that_overtakes() {
    let receiver = Receiver::start().await.of_any_payload();
    receiver.answer_next([Answer::Late(200, Duration::from_millis(500))]);
    tokio::join!(post(&receiver, "msg_1", "one", None), post(&receiver, "msg_2", "two", None));
    assert_complains(&receiver, "overtakes");
}

fn assert_complains(receiver: &Receiver, about: &str) {
    let violations = receiver.violations();
    assert!(violations.len() == 1 && violations[0].contains(about), "{violations:?}");
}

/// Delivers a message to the receiver; answers its status, if it gave one.
async fn post(receiver: &Receiver, id: &str, text: &str, secret: Option<&str>) -> Option<u16> {
    let body = json!({"type": "message.created", "data": {"room_id": "!room", "content": {"text": text}}});
    let body = serde_json::to_vec(&body).unwrap();
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    let key = standardwebhooks::Webhook::new(secret.unwrap_or_else(|| receiver.secret())).unwrap();
    let request = http()
        .post(receiver.url())
        .header("webhook-id", id)
        .header("webhook-timestamp", now.to_string())
        .header("webhook-signature", key.sign(id, now, &body).unwrap())
        .body(body);
    request.send().await.ok().map(|answer| answer.status().as_u16())
}
