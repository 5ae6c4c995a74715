//! What rooms go through beside messages: members come and go, rooms become encrypted and are replaced, what
//! was said is taken back or has been kept long enough.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    coucou::Coucou,
    postgres::Database,
    receiver::{Answer, Attempt, Receiver},
    synapse::{Bridge, Line, Options, Sent, Synapse, User, as_service},
    until,
};

const BOT: &str = "@coucou:localhost";
const ARRIVAL: Duration = Duration::from_mins(1);

/// coucou between a bridge on a homeserver and a webhook.
struct Scene {
    coucou: Option<Coucou>,
    bridge: Bridge,
    /// The bridge as it acts without its encryption.
    service: User,
    receiver: Receiver,
    synapse: Synapse,
    database: Database,
}

impl Scene {
    async fn set() -> Self {
        let coucou = Coucou::new().await;
        let database = Database::create().await;
        let bridge = Bridge::new("instagram", &[]).await;
        let registrations = vec![coucou.registration(), bridge.registration()];
        let synapse = Synapse::start(Options { registrations, encrypted: true }).await;
        let receiver = Receiver::start().await;
        let mut coucou = coucou.store(&database.url()).homeserver(&synapse.url()).webhook(&receiver);
        coucou.start().await;
        let registration = std::fs::read_to_string(bridge.registration()).unwrap();
        let registration: Value = serde_saphyr::from_str(&registration).unwrap();
        let service = as_service(&synapse.url(), registration["as_token"].as_str().unwrap(), &bridge.bot());
        Self { coucou: Some(coucou), bridge, service, receiver, synapse, database }
    }

    /// Says something in a portal, which is made when there is none.
    async fn say(&self, portal: Option<&str>, kinds: &str) -> Sent {
        let send = self.bridge.send(&self.synapse.url()).invite(BOT).messages(kinds);
        let send = match portal {
            Some(room_id) => send.room(room_id),
            None => send,
        };
        send.run().await
    }

    /// A request as a user of the bridge.
    async fn ask(&self, mxid: &str, method: &str, path: &str, body: &Value) -> Value {
        self.service.request(method, &format!("v3/rooms/{path}?user_id={mxid}"), Some(body)).await
    }

    async fn redact(&self, line: &Line) {
        let path = format!("{}/redact/{}/redact{}", line.room_id, line.event_id, line.event_id.len());
        let path = format!("{path}{}", &line.event_id[1..9]);
        self.ask(&line.sender, "PUT", &path, &json!({"reason": "unsent"})).await;
    }

    /// What the webhook took of a room, once that is so many.
    async fn told(&self, room_id: &str, count: usize) -> Vec<Attempt> {
        let of_room = |taken: &[Attempt]| {
            taken.iter().filter(|attempt| attempt.room_id() == room_id).cloned().collect::<Vec<_>>()
        };
        let what = format!("{count} deliveries of {room_id}");
        let taken = self.receiver.wait_until(&what, ARRIVAL, |taken| of_room(taken).len() >= count).await;
        let told = of_room(&taken);
        let types: Vec<_> = told.iter().map(Attempt::event).collect();
        assert_eq!(told.len(), count, "{types:?}");
        for (expected, attempt) in (1..).zip(&told) {
            assert_eq!(attempt.data()["sequence"].as_u64(), Some(expected), "{types:?}");
        }
        told
    }

    async fn until_stored(&self, what: &str, sql: &'static str, count: i64) {
        until(what, ARRIVAL, async || (self.database.number(sql).await == count).then_some(())).await;
    }

    async fn restart_with(&mut self, name: &str, value: &str) {
        let mut coucou = self.coucou.take().unwrap();
        assert!(coucou.terminate().await.success());
        let mut coucou = coucou.set(name, value);
        coucou.start().await;
        self.coucou = Some(coucou);
    }
}

const REDACTED: &str = "SELECT COUNT(*) FROM messages WHERE redacted_at IS NOT NULL";
const WITH_CONTENT: &str = "SELECT COUNT(*) FROM messages WHERE LENGTH(payload) > 0 OR sender <> ''";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_back_or_old_is_not_kept() {
    let mut scene = Scene::set().await;
    let sent = scene.say(None, "text,text,reaction").await;
    let portal = sent.portal().to_owned();
    let lines: Vec<&Line> = sent.messages().collect();
    scene.told(&portal, 4).await;
    scene.redact(lines[2]).await;
    scene.redact(lines[0]).await;
    let told = scene.told(&portal, 6).await;
    for (attempt, expected, line) in
        [(&told[4], "reaction.redacted", lines[2]), (&told[5], "message.redacted", lines[0])]
    {
        assert_eq!((attempt.event(), attempt.data()["redacts"].as_str()), (expected, Some(&*line.event_id)));
        assert_eq!(attempt.data()["content"], json!({"kind": "redaction", "reason": "unsent"}));
    }
    scene.until_stored("the content to be gone", REDACTED, 2).await;

    // The webhook is away while something is said and taken back: it never hears what it was.
    scene.receiver.answer_always(Some(Answer::Status(503)));
    let attempts = scene.receiver.attempts().len();
    let more = scene.say(Some(&portal), "text,text").await;
    let more: Vec<&Line> = more.messages().collect();
    scene.receiver.wait_for_attempts(attempts + 1, ARRIVAL).await;
    scene.redact(more[1]).await;
    scene.until_stored("the content to be gone before it is delivered", REDACTED, 3).await;
    scene.receiver.answer_always(None);
    let told = scene.told(&portal, 9).await;
    assert_eq!(told[6].data()["matrix"]["content"], more[0].content);
    let gone = told[7].data();
    assert_eq!((told[7].event(), told[7].event_id()), ("message.created", &*more[1].event_id));
    assert_eq!(gone["content"], json!({"kind": "redacted"}));
    assert_eq!(gone["matrix"], json!({"type": "m.room.message", "content": {}}));
    assert_eq!(told[8].event(), "message.redacted");
    let body = more[1].content["body"].as_str().unwrap();
    let sent_out = scene.receiver.attempts();
    let leaks = sent_out.iter().filter(|attempt| attempt.event_id() == more[1].event_id);
    assert!(leaks.into_iter().all(|attempt| !String::from_utf8_lossy(&attempt.body).contains(body)));

    // With a retention of nothing, what was delivered goes at the start, and the rest with its delivery.
    assert!(scene.database.number(WITH_CONTENT).await > 0);
    scene.restart_with("COUCOU_MESSAGES_RETENTION", "0").await;
    scene.until_stored("what was delivered to be gone", WITH_CONTENT, 0).await;
    let last = scene.say(Some(&portal), "text").await;
    let told = scene.told(&portal, 10).await;
    assert_eq!(told[9].data()["matrix"]["content"], last.messages().next().unwrap().content);
    scene.until_stored("the message to be gone once delivered", WITH_CONTENT, 0).await;
    scene.until_stored("its id to stay", "SELECT COUNT(*) FROM messages WHERE event_id <> ''", 10).await;
    let log = scene.coucou.as_ref().unwrap().log();
    assert!(!log.contains(body), "the log tells nothing of contents");
}

#[tokio::test(flavor = "multi_thread")]
async fn rooms_are_left_and_joined_again_and_become_encrypted_and_are_replaced() {
    let scene = Scene::set().await;
    let bridge_bot = scene.bridge.bot();
    let (portal, plain) = (async { scene.say(None, "text").await }, async {
        let send = scene.bridge.send(&scene.synapse.url()).arg("--ghost", "17840000000000002");
        send.plain().invite(BOT).messages("text").run().await
    });
    // One after the other: they share the bridge's device.
    let (portal, plain) = (portal.await.portal().to_owned(), plain.await.portal().to_owned());
    scene.told(&plain, 2).await;
    let told = scene.told(&portal, 2).await;
    assert_eq!(told[0].event(), "room.joined");
    let membership = json!({"user_id": BOT, "membership": "join", "reason": null});
    assert_eq!(told[0].data()["membership"], membership);
    assert_eq!(
        (&told[0].data()["network"], &told[0].data()["room"]["type"]),
        (&json!("instagram"), &json!("dm"))
    );

    kicked_and_invited_again(&scene, &portal).await;

    // From the next message on.
    let encryption = json!({"algorithm": "m.megolm.v1.aes-sha2"});
    scene.ask(&bridge_bot, "PUT", &format!("{plain}/state/m.room.encryption"), &encryption).await;
    let sent = scene.say(Some(&plain), "text,notice").await;
    let told = scene.told(&plain, 4).await;
    let encrypted: Vec<_> =
        told[1..].iter().map(|attempt| &attempt.data()["encryption"]["encrypted"]).collect();
    assert_eq!(encrypted, [&json!(false), &json!(true), &json!(true)]);
    for (line, attempt) in sent.messages().zip(&told[2..]) {
        assert_eq!(attempt.data()["matrix"]["content"], line.content);
        assert_eq!(attempt.data()["encryption"]["trust"], "bridge");
    }

    replaced(&scene, &plain, true).await;
    replaced(&scene, &portal, false).await;
}

async fn kicked_and_invited_again(scene: &Scene, portal: &str) {
    let bridge_bot = scene.bridge.bot();
    let kick = json!({"user_id": BOT, "reason": "out"});
    scene.ask(&bridge_bot, "POST", &format!("{portal}/kick"), &kick).await;
    let told = scene.told(portal, 3).await;
    assert_eq!((told[2].event(), &told[2].data()["content"]), ("room.left", &Value::Null));
    let membership = json!({"user_id": BOT, "membership": "leave", "reason": "out"});
    assert_eq!(
        (&told[2].data()["membership"], &told[2].data()["sender"]["mxid"]),
        (&membership, &json!(bridge_bot))
    );
    // Nobody tells coucou of this, and it does not read it afterwards.
    let ghost = told[1].data()["sender"]["mxid"].as_str().unwrap();
    let missed = json!({"msgtype": "m.text", "body": "between us"});
    scene.ask(ghost, "PUT", &format!("{portal}/send/m.room.message/missed"), &missed).await;

    let sent = scene.say(Some(portal), "text,notice").await;
    let told = scene.told(portal, 6).await;
    assert_eq!(told[3].event(), "room.joined");
    for (line, attempt) in sent.messages().zip(&told[4..]) {
        assert_eq!((attempt.event_id(), attempt.data()["late"].as_bool()), (&*line.event_id, Some(false)));
        assert_eq!(attempt.data()["matrix"]["content"], line.content);
    }
}

/// Replaces a room by one that anybody, or who is invited, may join.
async fn replaced(scene: &Scene, room_id: &str, open: bool) {
    let bridge_bot = scene.bridge.bot();
    if open {
        let rules = json!({"join_rule": "public"});
        scene.ask(&bridge_bot, "PUT", &format!("{room_id}/state/m.room.join_rules"), &rules).await;
    }
    // Of an older version the maker of a room has no power there.
    let version = json!({"new_version": "12"});
    let answer = scene.ask(&bridge_bot, "POST", &format!("{room_id}/upgrade"), &version).await;
    let successor = answer["replacement_room"].as_str().unwrap();
    if !open {
        scene.ask(&bridge_bot, "POST", &format!("{successor}/invite"), &json!({"user_id": BOT})).await;
    }
    let told = scene.told(successor, 1).await;
    assert_eq!(told[0].event(), "room.joined");
    let membership = json!({"user_id": BOT, "membership": "join", "reason": null, "replaces_room": room_id});
    assert_eq!(told[0].data()["membership"], membership);
    // As bridges do; until then a ghost's message that the bridge encrypts would pass for a forgery.
    let state = scene.ask(&bridge_bot, "GET", &format!("{room_id}/state"), &json!({})).await;
    let info = state.as_array().unwrap().iter().find(|event| event["type"] == "m.bridge").unwrap();
    let key = info["state_key"].as_str().unwrap().replace('/', "%2F");
    scene.ask(&bridge_bot, "PUT", &format!("{successor}/state/m.bridge/{key}"), &info["content"]).await;
    let sent = scene.say(Some(successor), "text").await;
    let line = sent.messages().next().unwrap();
    let told = scene.told(successor, 2).await;
    assert_eq!(told[1].data()["matrix"]["content"], line.content);
    // Here redactions name their event in the content.
    scene.redact(line).await;
    let told = scene.told(successor, 3).await;
    assert_eq!(
        (told[2].event(), told[2].data()["redacts"].as_str()),
        ("message.redacted", Some(&*line.event_id))
    );
}
