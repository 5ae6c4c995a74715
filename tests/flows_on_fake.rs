//! What a webhook can choose beyond one message after the other, by the real binary: no order, batches, another secret.

use std::{collections::BTreeSet, time::Duration};

use rand::{SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use sqlx::{Connection, SqliteConnection};
use standardwebhooks::Webhook;

use crate::{
    deliveries_on_fake::{SOON, Scene, consumers_accept, entry},
    support::{
        consumers::consumer,
        coucou::API_TOKEN,
        free_port, http,
        receiver::{Answer, Receiver},
        until,
    },
};

async fn rotate(scene: &Scene, body: &Value) -> (u16, Value) {
    let url = format!("{}/api/v1/webhooks/default/rotate-secret", scene.coucou.url());
    let request = http().post(url).bearer_auth(API_TOKEN).body(body.to_string());
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap())
}

/// Which of these secrets have signed the newest request.
fn signed_by(receiver: &Receiver, secrets: &[&str]) -> Vec<bool> {
    let attempts = receiver.attempts();
    let newest = attempts.last().unwrap();
    let verifies =
        |secret: &&str| Webhook::new(secret).unwrap().verify(&newest.body, &newest.headers).is_ok();
    secrets.iter().map(verifies).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_and_deliveries_without_an_order_arrive_as_documented() {
    let mut rng = StdRng::seed_from_u64(5);
    let (bulk, cloud, loose) = (Receiver::start().await, Receiver::start().await, Receiver::start().await);
    loose.in_any_order();
    let webhooks = format!(
        "webhooks:\n{}{}{}",
        entry("bulk", &bulk, "schedule: [1s, 1s, 1s, 1s], batch: {max: 10, wait: 3s}"),
        entry("cloud", &cloud, "ordering: none, format: cloudevents, batch: {max: 100, wait: 2s}"),
        entry("loose", &loose, "ordering: none, timeout: 30s"),
    );
    let mut scene = Scene::set(2, &webhooks).await;
    // That the rooms are read is told before anything is said.
    until("the rooms", SOON, async || (loose.taken().len() == 2).then_some(())).await;
    bulk.answer_next([Answer::Status(500), Answer::Close]);
    // The first request is not answered for ever; with an order, its room would wait.
    loose.answer_next([Answer::Late(200, Duration::from_secs(10))]);
    scene.push(100, &mut rng).await;

    let all = async |name: &str, receiver: &Receiver, count: usize| {
        until(&format!("all to {name}"), SOON, async || {
            let taken = receiver.taken();
            let told = taken.iter().flat_map(|attempt| match attempt.payload.as_array() {
                Some(events) => events.iter().collect(),
                None => attempt.messages(),
            });
            let said = told.filter(|message| message["type"] == "message.created").count();
            (said >= count).then_some(said)
        })
        .await
    };
    assert_eq!(all("loose", &loose, 99).await, 99, "all but the one that is not answered yet");
    assert_eq!(all("bulk", &bulk, 100).await, 100);
    let first = bulk.taken()[0].clone();
    assert_eq!((first.event(), first.data()["id"].as_str()), ("batch", Some(first.id.as_str())));
    assert_eq!(first.data()["count"], first.messages().len());
    assert!(bulk.taken().len() <= 16, "{} requests", bulk.taken().len());
    let refused: BTreeSet<String> =
        bulk.attempts().into_iter().filter(|attempt| !attempt.accepted()).map(|attempt| attempt.id).collect();
    let taken: BTreeSet<String> = bulk.taken().into_iter().map(|attempt| attempt.id).collect();
    assert!(!refused.is_empty() && refused.is_subset(&taken), "a batch comes again under its id, as it was");

    assert_eq!(all("cloud", &cloud, 100).await, 100);
    let events = cloud.taken();
    let batch = events.iter().max_by_key(|attempt| attempt.payload.as_array().map(Vec::len)).unwrap();
    assert_eq!(batch.headers["content-type"], "application/cloudevents-batch+json");
    let rooms = batch.payload.as_array().unwrap().iter().map(|event| &event["source"]);
    assert!(rooms.map(Value::to_string).collect::<BTreeSet<_>>().len() == 2, "of any rooms");
    assert_eq!(all("loose", &loose, 100).await, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_secret_signs_beside_the_old_one_until_the_settings_change() {
    let mut rng = StdRng::seed_from_u64(6);
    let hook = Receiver::start().await;
    let webhooks = format!("webhooks:\n{}", entry("default", &hook, ""));
    let mut scene = Scene::set(1, &webhooks).await;
    let set = hook.secret().to_owned();
    let (status, answer) = rotate(&scene, &json!({})).await;
    assert_eq!(status, 200, "{answer}");
    let new = answer["secret"].as_str().unwrap().to_owned();

    // The receiver verifies its own secret, which is the settings', on every request.
    let mut signs = async |scene: &mut Scene, secrets: [&str; 2], expected: [bool; 2]| {
        until("the secrets to sign", SOON, async || {
            let before = hook.attempts().len();
            scene.push(1, &mut rng).await;
            hook.wait_for_attempts(before + 1, SOON).await;
            (signed_by(&hook, &secrets) == expected).then_some(())
        })
        .await;
    };
    signs(&mut scene, [&set, &new], [true, true]).await;
    signs(&mut scene, [&set, &new], [true, true]).await;
    let told: Vec<_> = hook.attempts().into_iter().rev().take(2).collect();
    consumers_accept(&told, &new, &set).await;
    // It outlives the process; nothing but the command shows it again.
    scene.coucou.kill9();
    scene.coucou.start().await;
    signs(&mut scene, [&set, &new], [true, true]).await;
    assert!(!scene.coucou.log().contains(&new[6..]), "a secret is in the log");
    let shown = scene.command(&["webhooks", "--show-secrets"]).await;
    assert!(shown.contains(&format!("{new} (made by a rotation)")), "{shown}");
    assert!(shown.contains(&format!("{set} (from the settings; signs until ")), "{shown}");

    // Without an overlap what leaked signs no more.
    let (_, answer) = rotate(&scene, &json!({"overlap_seconds": 0})).await;
    let third = answer["secret"].as_str().unwrap().to_owned();
    hook.signed_by_anybody();
    signs(&mut scene, [&new, &third], [false, true]).await;
    assert_eq!(signed_by(&hook, &[&set]), [false]);

    // The settings win once they change.
    let other = "whsec_dGhpcyBpcyBhbiBleGFtcGxlIHNlY3JldCE=";
    let path = scene.coucou.path("coucou.yaml");
    let changed = std::fs::read_to_string(&path).unwrap().replace(&set, other);
    std::fs::write(&path, changed).unwrap();
    scene.coucou.kill9();
    scene.coucou.start().await;
    signs(&mut scene, [&third, other], [false, true]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_consumer_of_the_documentation_loses_nothing() {
    const SECRET: &str = "whsec_dGhpcyBpcyBhbiBleGFtcGxlIHNlY3JldCE=";
    let mut rng = StdRng::seed_from_u64(7);
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("messages.db");
    let (port, wrong) = (free_port(), free_port());
    let waits = ["1s"; 50].join(", ");
    let webhooks = format!(
        "webhooks:\n  - {{name: default, url: 'http://127.0.0.1:{port}/', secret: {SECRET}, schedule: [{waits}], \
         batch: {{max: 3, wait: 0}}}}\n  - {{name: wrong, url: 'http://127.0.0.1:{wrong}/', secret: {SECRET}}}\n"
    );
    let mut scene = Scene::set(3, &webhooks).await;
    let other = folder.path().join("other.db");
    let _stranger = consumer(wrong, "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=", &other).await;
    // Killed at some point of its work, and started again.
    for _ in 0..3 {
        let running = consumer(port, SECRET, &database).await;
        scene.push(20, &mut rng).await;
        drop(running);
    }
    let _running = consumer(port, SECRET, &database).await;
    let count = async |sql: &'static str| {
        let url = format!("sqlite:{}", database.display());
        let mut connection = SqliteConnection::connect(&url).await.ok()?;
        let row: (i64,) = sqlx::query_as(sql).fetch_one(&mut connection).await.ok()?;
        Some(row.0)
    };
    let said = "SELECT COUNT(*) FROM messages WHERE payload LIKE '%message.created%'";
    until("all that was said", SOON, async || (count(said).await? == 60).then_some(())).await;
    let gaps = "SELECT COUNT(*) FROM (SELECT MAX(sequence) - COUNT(*) AS gap FROM messages GROUP BY room) WHERE gap <> 0";
    assert_eq!(count(gaps).await, Some(0), "in order and without gaps from the first on");
    let page = until("the wrong secret to be refused", SOON, async || {
        let (_, page) = scene.coucou.api("deliveries?webhook=wrong&status=pending&limit=500").await;
        page["deliveries"].as_array()?.iter().any(|one| one["last_status"] == 401).then_some(page)
    })
    .await;
    assert!(!page["deliveries"].as_array().unwrap().is_empty() && !other.exists());
}
