//! The main job, told from outside: what a bridge says in an encrypted portal arrives at a webhook.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    coucou::Coucou,
    postgres::Database,
    receiver::{Attempt, Receiver},
    synapse::{Bridge, Line, Options, Sent, Synapse},
};

const BOT: &str = "@coucou:localhost";
const ARRIVAL: Duration = Duration::from_mins(1);
/// Every kind of content, the relations last.
const KINDS: &str = "text,html,notice,emote,image,video,audio,voice,file,sticker,location,mention,link_preview,\
    view_once,call_notice,call_invite,poll,poll_response,poll_end,poll_stable,poll_response_stable,poll_end_stable,\
    stranger,story_reply,thread,text,edit,reply";

/// A homeserver, a bridge, a webhook, and coucou between them.
struct Scene {
    coucou: Coucou,
    bridge: Bridge,
    receiver: Receiver,
    synapse: Synapse,
    _database: Option<Database>,
}

#[derive(Clone, Copy)]
enum Store {
    Postgres,
    Sqlite,
}

impl Scene {
    async fn set(store: Store, encrypted: bool) -> Self {
        let mut coucou = Coucou::new().await;
        let database = match store {
            Store::Postgres => Some(Database::create().await),
            Store::Sqlite => None,
        };
        if let Some(database) = &database {
            coucou = coucou.store(&database.url());
        }
        let bridge = Bridge::new("instagram", &[]).await;
        let registrations = vec![coucou.registration(), bridge.registration()];
        let synapse = Synapse::start(Options { registrations, encrypted }).await;
        let receiver = Receiver::start().await;
        let mut coucou = coucou.homeserver(&synapse.url()).webhook(&receiver);
        coucou.start().await;
        Self { coucou, bridge, receiver, synapse, _database: database }
    }

    async fn say(&self, kinds: &str) -> Sent {
        self.bridge.send(&self.synapse.url()).invite(BOT).messages(kinds).name("Alice").run().await
    }

    async fn say_more(&self, portal: &str, kinds: &str) -> Sent {
        self.bridge.send(&self.synapse.url()).invite(BOT).room(portal).messages(kinds).run().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_arrives_decrypted_with_postgres() {
    every_kind_arrives(Store::Postgres, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_arrives_decrypted_with_sqlite() {
    every_kind_arrives(Store::Sqlite, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_arrives_without_experimental_features_with_postgres() {
    every_kind_arrives(Store::Postgres, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_arrives_without_experimental_features_with_sqlite() {
    every_kind_arrives(Store::Sqlite, false).await;
}

async fn every_kind_arrives(store: Store, encrypted: bool) {
    let scene = Scene::set(store, encrypted).await;
    let sent = scene.say(KINDS).await;
    let messages = scene.receiver.wait_for(sent.messages().count(), ARRIVAL).await;
    assert_same_order(&sent, &messages);
    for (line, message) in sent.messages().zip(&messages) {
        assert_relayed(line, message);
    }
    assert_gapless(&scene.receiver.taken());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_outlives_a_power_cut_with_postgres() {
    a_session_outlives_a_power_cut(Store::Postgres, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_outlives_a_power_cut_with_sqlite() {
    a_session_outlives_a_power_cut(Store::Sqlite, false).await;
}

async fn a_session_outlives_a_power_cut(store: Store, encrypted: bool) {
    let mut scene = Scene::set(store, encrypted).await;
    let before = scene.say("text").await;
    scene.receiver.wait_for(1, ARRIVAL).await;
    scene.coucou.restart().await;
    let after = scene.say_more(before.portal(), "text,notice").await;
    let session = |sent: &Sent| sent.messages().next().unwrap().session_id.clone().unwrap();
    assert_eq!(session(&before), session(&after), "the sender went on in its session");
    let messages = scene.receiver.wait_for(3, ARRIVAL).await;
    for (line, message) in before.messages().chain(after.messages()).zip(&messages) {
        assert_relayed(line, message);
    }
    assert_gapless(&scene.receiver.taken());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_room_is_relayed_and_said_to_be_plain() {
    let scene = Scene::set(Store::Sqlite, true).await;
    let sent = scene.bridge.send(&scene.synapse.url()).plain().invite(BOT).messages("text,image").run().await;
    let messages = scene.receiver.wait_for(2, ARRIVAL).await;
    for (line, message) in sent.messages().zip(&messages) {
        assert_eq!(message.event_id(), line.event_id);
        assert_eq!(message.data()["encryption"]["encrypted"], json!(false));
        assert_eq!(message.data()["matrix"]["content"], line.content);
    }
}

/// Every event of `sent` is among `messages`, once, in the same order, and nothing else.
fn assert_same_order(sent: &Sent, messages: &[Attempt]) {
    let sent: Vec<_> = sent.messages().map(|line| &*line.event_id).collect();
    let told: Vec<_> = messages.iter().map(Attempt::event_id).collect();
    assert_eq!(sent, told);
}

/// What `line` sent in an encrypted Instagram portal of Alice's is what `message` tells.
fn assert_relayed(line: &Line, message: &Attempt) {
    let data = message.data();
    assert_eq!(message.event_id(), line.event_id);
    assert_eq!(message.id, data["id"], "the webhook-id is the message's id");
    assert_eq!(data["matrix"], json!({"type": line.event_type, "content": line.content}));
    assert_eq!(data["room_id"], json!(line.room_id));
    assert_eq!(data["network"], "instagram");
    assert_eq!(data["direction"], "in");
    assert_eq!(data["sender"]["mxid"], json!(line.sender));
    assert_eq!(data["sender"]["name"], "Alice");
    assert_eq!(data["sender"]["network_id"], "17840000000000001");
    assert_eq!(data["room"]["name"], "Alice");
    assert_eq!(data["room"]["type"], "dm");
    assert_eq!(data["encryption"]["encrypted"], json!(true));
    assert_eq!(data["encryption"]["algorithm"], "m.megolm.v1.aes-sha2");
    assert_eq!(data["encryption"]["session_id"].as_str(), line.session_id.as_deref());
    let related = |field: &str| data["relates_to"][field].as_str();
    let target = |value: &Value| value["event_id"].as_str().map(ToOwned::to_owned);
    let (content, relation) = (&data["content"], &line.content["m.relates_to"]);
    match &*line.kind {
        "edit" => {
            assert_eq!(related("replaces"), target(relation).as_deref());
            assert_eq!(
                content["text"], line.content["m.new_content"]["body"],
                "the new text, without a star"
            );
        }
        "reply" => {
            assert_eq!(related("reply_to"), target(&relation["m.in_reply_to"]).as_deref());
            assert_eq!(content["text"], line.content["body"]);
        }
        "image" | "video" | "audio" | "voice" | "file" | "sticker" => {
            assert_eq!(content["kind"], json!(line.kind));
            let info = &line.content["info"];
            assert_eq!(content["media"]["mimetype"], info["mimetype"], "{content}");
            assert_eq!(content["media"]["size"], info["size"], "{content}");
        }
        kind => {
            let (kind, key, expected) = said(kind, &line.content);
            assert_eq!(content["kind"], kind, "{}: {content}", line.kind);
            assert_eq!(content[key], expected, "{}: {content}", line.kind);
        }
    }
}

/// The kind of what the sender calls so, and one thing that the payload must say of it.
fn said(kind: &str, content: &Value) -> (&'static str, &'static str, Value) {
    let body = content["body"].clone();
    match kind {
        "html" => ("text", "html", content["formatted_body"].clone()),
        "location" => ("location", "location", json!({"geo_uri": content["geo_uri"], "description": body})),
        "mention" => ("text", "mentions", json!({"user_ids": ["@owner:localhost"], "room": false})),
        "link_preview" => {
            ("text", "link_previews", json!([{"url": "https://example.org", "title": "An example"}]))
        }
        "view_once" => ("notice", "bridge", json!({"unsupported": true})),
        "story_reply" => {
            let text = &content["com.beeper.raw_reply_text"];
            let bridge =
                json!({"snippet": "Replied to your story", "reply_type": "story", "reply_text": text});
            ("text", "bridge", bridge)
        }
        "call_notice" => {
            let call = json!({"action": "notice", "video": true, "state": "ended", "duration_ms": 83_000});
            ("call", "call", call)
        }
        "call_invite" => ("call", "call", json!({"action": "invite", "call_id": "1", "video": false})),
        "poll" | "poll_stable" => {
            let question = &content["org.matrix.msc3381.poll.start"]["question"]["org.matrix.msc1767.text"];
            let question = question.as_str().or(content["m.text"][0]["body"].as_str());
            let answers = json!([{"id": "1", "text": "yes"}, {"id": "2", "text": "no"}]);
            let poll = json!({
                "question": question, "answers": answers, "max_selections": 1, "disclosed": true,
            });
            ("poll", "poll", poll)
        }
        "poll_response" | "poll_response_stable" => ("poll_response", "selections", json!(["1"])),
        "poll_end" | "poll_end_stable" => ("poll_end", "text", json!("The poll has closed.")),
        "stranger" => ("unknown", "text", body),
        "thread" | "text" => ("text", "text", body),
        "notice" => ("notice", "text", body),
        "emote" => ("emote", "text", body),
        other => panic!("the sender says {other}, of which this test knows nothing"),
    }
}

/// The numbers of each room count up from its first, one by one, in the order of delivery.
fn assert_gapless(taken: &[Attempt]) {
    let mut last = std::collections::HashMap::new();
    for attempt in taken {
        let sequence = attempt.data()["sequence"].as_u64().expect("a message has its number");
        let expected = last.get(attempt.room_id()).map_or(1, |last| last + 1);
        assert_eq!(sequence, expected, "in {}", attempt.room_id());
        last.insert(attempt.room_id(), sequence);
    }
}
