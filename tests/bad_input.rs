//! Input that is not what it should be, from outside, on both databases: the right status and a line in the
//! log, nothing kept of what is refused, and above all: nothing that comes after it is held up.

use std::{path::Path, time::Duration};

use http::Method;
use rand::{Rng, distr::Alphanumeric};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::support::{
    coucou::Coucou,
    fake_homeserver::{FakeBridge, FakeHomeserver, event},
    http,
    postgres::Database,
    receiver::{Attempt, Receiver},
    until,
};

const BOT: &str = "@coucou:localhost";
const SOON: Duration = Duration::from_mins(1);

/// What a worker says that cannot get past something, and tries again.
const STUCK: &str = "the crypto stopped and will start anew";

/// The database that coucou keeps its things in.
enum Store {
    Postgres(Database),
    Sqlite,
}

/// coucou in a portal whose key it has, and nothing under way.
struct Scene {
    store: Store,
    coucou: Coucou,
    homeserver: FakeHomeserver,
    bridge: FakeBridge,
    receiver: Receiver,
    device_id: String,
    room_id: String,
    said: Vec<String>,
}

impl Scene {
    async fn set(store: Store) -> Self {
        let mut coucou = Coucou::new().await;
        if let Store::Postgres(database) = &store {
            coucou = coucou.store(&database.url());
        }
        let homeserver = FakeHomeserver::start(&coucou).await;
        let receiver = Receiver::start().await;
        let mut coucou = coucou.homeserver(&homeserver.url()).webhook(&receiver);
        coucou.start().await;
        let device_id = homeserver.wait_for_device(BOT, SOON).await;
        let mut bridge = FakeBridge::new(&homeserver, "instagram");
        let room_id = bridge.create_portal(&homeserver, "1", "Alice");
        homeserver.invite(&room_id, &bridge.bot(), BOT).await;
        homeserver.wait_for_join(&room_id, BOT, SOON).await;
        let key = bridge.share_key(&homeserver, &room_id, BOT, &device_id);
        assert_eq!(homeserver.push(&[], &key).await, 200);
        let mut scene =
            Self { store, coucou, homeserver, bridge, receiver, device_id, room_id, said: Vec::new() };
        scene.good_passes("before").await;
        scene
    }

    /// Says something good after what was bad, and waits until all that was good has arrived, in order.
    async fn good_passes(&mut self, text: &str) {
        let good = self.say(text);
        assert_eq!(self.homeserver.push(&[good], &[]).await, 200, "{text}");
        self.all_arrived(text).await;
    }

    /// A good event.
    fn say(&mut self, text: &str) -> Value {
        self.said.push(text.to_owned());
        self.bridge.say(&self.room_id, "1", text)
    }

    /// Puts a transaction as it is written, which need be no JSON that a reader of ours takes.
    async fn put_written(&self, txn_id: &str, body: &str) {
        let url = format!("{}/_matrix/app/v1/transactions/{txn_id}", self.coucou.url());
        let put = http().put(url).bearer_auth(self.coucou.registered("hs_token")).body(body.to_owned());
        assert_eq!(put.send().await.unwrap().status().as_u16(), 200, "{body}");
    }

    async fn all_arrived(&mut self, after: &str) {
        self.receiver.wait_for(self.said.len(), SOON).await;
        self.settled().await;
        let arrived: Vec<String> = self.texts();
        assert_eq!(arrived, self.said, "after {after}");
        assert!(!self.coucou.log().contains(STUCK), "after {after}:\n{}", self.coucou.log());
        self.coucou.process().assert_alive();
    }

    fn texts(&self) -> Vec<String> {
        let messages = self.receiver.messages();
        let text = |data: &Value| data["content"]["text"].as_str().unwrap_or_default().to_owned();
        messages.iter().map(|message| text(message.data())).collect()
    }

    /// Waits until the inbox is worked through.
    async fn settled(&self) {
        until("the inbox to be worked through", SOON, async || {
            (self.number("SELECT COUNT(*) FROM inbox WHERE processed_at IS NULL").await == 0).then_some(())
        })
        .await;
    }

    /// How much is kept: transactions, messages, events that wait.
    async fn kept(&self) -> [i64; 3] {
        [
            self.number("SELECT COUNT(*) FROM inbox WHERE source = 'push'").await,
            self.number("SELECT COUNT(*) FROM messages").await,
            self.number("SELECT COUNT(*) FROM pending_events").await,
        ]
    }

    async fn number(&self, statement: &'static str) -> i64 {
        match &self.store {
            Store::Postgres(database) => database.number(statement).await,
            Store::Sqlite => sqlite_number(&self.coucou.path("coucou.db"), statement).await,
        }
    }

    fn bad(&self, event_type: &str, content: &Value) -> Value {
        event(&self.room_id, &self.bridge.ghost("1"), event_type, content)
    }
}

async fn sqlite_number(path: &Path, statement: &str) -> i64 {
    let options = SqliteConnectOptions::new().filename(path).busy_timeout(Duration::from_secs(10));
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    let row = sqlx::query(AssertSqlSafe(statement.to_owned())).fetch_one(&mut connection).await.unwrap();
    let number = row.get(0);
    connection.close().await.unwrap();
    number
}

/// A request that is refused: what is wrong, how it is asked, how it is answered, and what the log says.
type Refused = (&'static str, Method, String, Option<String>, Vec<u8>, u16, &'static str, &'static str);

fn refused_requests(hs_token: &str) -> Vec<Refused> {
    let put = || Method::PUT;
    let path = |txn: &str| format!("_matrix/app/v1/transactions/{txn}");
    let own = || Some(format!("Bearer {hs_token}"));
    let empty = || br#"{"events":[]}"#.to_vec();
    let json = |text: &str| text.as_bytes().to_vec();
    let large = vec![b' '; (32 << 20) + 1];
    let wrong = || Some("Bearer wrong".to_owned());
    let long = "x".repeat(256);
    vec![
        ("no token", put(), path("b1"), None, empty(), 401, "M_MISSING_TOKEN", "token is missing"),
        ("wrong token", put(), path("b2"), wrong(), empty(), 403, "M_FORBIDDEN", "not the registration"),
        ("no JSON", put(), path("b3"), own(), json("{\"events\": ["), 400, "M_NOT_JSON", "not a JSON object"),
        ("no object", put(), path("b4"), own(), json("[]"), 400, "M_NOT_JSON", "not a JSON object"),
        (
            "no UTF-8",
            put(),
            path("b5"),
            own(),
            vec![b'{', 0xff, b'}'],
            400,
            "M_NOT_JSON",
            "not a JSON object",
        ),
        ("no body", put(), path("b6"), own(), vec![], 400, "M_NOT_JSON", "not a JSON object"),
        ("no array", put(), path("b7"), own(), json("{\"events\":7}"), 400, "M_BAD_JSON", "not an array"),
        ("too large", put(), path("b8"), own(), large, 413, "M_TOO_LARGE", "larger than 32 MiB"),
        ("long id", put(), path(&long), own(), empty(), 400, "M_INVALID_PARAM", "longer than 255 bytes"),
        ("NUL in id", put(), path("b%00"), own(), empty(), 400, "M_INVALID_PARAM", "control characters"),
        ("id no UTF-8", put(), path("%ff"), own(), empty(), 400, "M_INVALID_PARAM", "is not UTF-8"),
        ("path", put(), "_matrix/app/v1/x".to_owned(), own(), empty(), 404, "M_UNRECOGNIZED", "unknown endp"),
        ("method", Method::POST, path("b9"), own(), empty(), 405, "M_UNRECOGNIZED", "another method"),
    ]
}

async fn requests_are_refused(store: Store) {
    let mut scene = Scene::set(store).await;
    let kept = scene.kept().await;
    let hs_token = scene.coucou.registered("hs_token");
    for (what, method, path, token, body, status, errcode, line) in refused_requests(&hs_token) {
        let logged = scene.coucou.log().len();
        let mut request = http().request(method, format!("{}/{path}", scene.coucou.url())).body(body);
        if let Some(token) = token {
            request = request.header("authorization", token);
        }
        let answer = request.send().await.unwrap();
        let got = answer.status().as_u16();
        let answer: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        assert_eq!((got, &answer["errcode"]), (status, &json!(errcode)), "{what}: {answer}");
        until(&format!("a line about: {what}"), SOON, async || {
            let log = scene.coucou.log();
            log[logged..]
                .lines()
                .any(|said| said.contains(line) && said.contains(&status.to_string()))
                .then_some(())
        })
        .await;
        assert_eq!(scene.kept().await, kept, "{what}");
    }
    assert!(!scene.coucou.log().contains(&hs_token), "the log shows the token");
    scene.good_passes("after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_refused_on_sqlite() {
    requests_are_refused(Store::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_refused_on_postgres() {
    requests_are_refused(Store::Postgres(Database::create().await)).await;
}

/// What is no event of a room: left out, with a line in the log.
fn homeless_events(scene: &Scene) -> Vec<(&'static str, Value)> {
    let good = scene.bad("m.room.message", &json!({"msgtype": "m.text", "body": "must not arrive"}));
    let long = "x".repeat(10_000);
    let with = |key: &str, value: Value| {
        let mut event = good.clone();
        event[key] = value;
        event
    };
    let mut without_room = good.clone();
    without_room.as_object_mut().unwrap().remove("room_id");
    vec![
        ("no room", without_room),
        ("a number for an id", with("event_id", json!(7))),
        ("an array for a room", with("room_id", json!(["!room"]))),
        ("an object for a sender", with("sender", json!({}))),
        ("null for a type", with("type", Value::Null)),
        ("NUL in the event id", with("event_id", json!("$a\0b"))),
        ("NUL in the room id", with("room_id", json!("!a\0b:localhost"))),
        ("NUL in the sender", with("sender", json!("@a\0b:localhost"))),
        ("a long event id", with("event_id", json!(format!("${long}")))),
        ("a long room id", with("room_id", json!(format!("!{long}:localhost")))),
        ("a long sender", with("sender", json!(format!("@{long}:localhost")))),
    ]
}

/// Encrypted events that nobody can read: on the ledger they go.
fn unreadable_events(scene: &mut Scene) -> Vec<(&'static str, Value)> {
    let long = "x".repeat(10_000);
    let (room_id, genuine) = (scene.room_id.clone(), scene.bridge.session_id(&scene.room_id.clone()));
    let encrypted = |session_id: &str, ciphertext: &str| {
        json!({"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": ciphertext, "session_id": session_id,
            "sender_key": 1, "device_id": null})
    };
    let content = [
        ("garbage ciphertext", encrypted(&genuine, "AwgA?")),
        ("ciphertext of nothing", encrypted(&genuine, "")),
        ("an unknown algorithm", json!({"algorithm": "m.rot13", "ciphertext": "uryyb"})),
        (
            "an unknown algorithm in a known session",
            json!({"algorithm": "m.rot13", "ciphertext": "uryyb", "session_id": genuine}),
        ),
        ("no content", Value::Null),
        ("a text for content", json!("text")),
        ("numbers everywhere", json!({"algorithm": 1, "ciphertext": 2, "session_id": 3})),
        ("NUL in the session id", encrypted("a\0b", "AwgA")),
        ("a long session id", encrypted(&long, "AwgA")),
    ];
    let mut events: Vec<_> =
        content.iter().map(|(what, content)| (*what, scene.bad("m.room.encrypted", content))).collect();
    let mut damaged = scene.bridge.say(&room_id, "1", "must not arrive");
    let ciphertext = damaged["content"]["ciphertext"].as_str().unwrap().to_owned();
    damaged["content"]["ciphertext"] = json!(format!("{}AAAA", &ciphertext[..ciphertext.len() - 4]));
    events.push(("damaged ciphertext", damaged));
    events
}

/// State that makes no sense: the room stays what it was.
fn odd_states(scene: &Scene) -> Vec<(&'static str, Value)> {
    let long = "x".repeat(10_000);
    let bot = scene.bridge.bot();
    let state = |event_type: &str, state_key: Value, content: Value| {
        let mut event = event(&scene.room_id, &bot, event_type, &content);
        event["state_key"] = state_key;
        event
    };
    let bridge = |protocol: &str| {
        let content = json!({"bridgebot": bot, "protocol": {"id": protocol}, "channel": {"id": protocol}});
        state("m.bridge", json!("localhost/instagram"), content)
    };
    let mut deep = json!("deep");
    for _ in 0..500 {
        deep = json!([deep]);
    }
    vec![
        ("a number for a membership", state("m.room.member", json!(BOT), json!({"membership": 7}))),
        ("a state key with NUL", state("m.room.member", json!("@a\0b:c"), json!({"membership": "join"}))),
        (
            "a long state key",
            state("m.room.member", json!(format!("@{long}:localhost")), json!({"membership": "join"})),
        ),
        ("a list for a name", state("m.room.name", json!(""), json!({"name": ["a"]}))),
        ("a text for content", state("m.room.name", json!(""), json!("text"))),
        ("a name with NUL", state("m.room.name", json!(""), json!({"name": "a\0b"}))),
        ("no content", state("m.room.encryption", json!(""), Value::Null)),
        ("a protocol with NUL", bridge("a\0b")),
        ("a long protocol", bridge(&long)),
        (
            "a bridge bot with a long name",
            state("m.bridge", json!("other"), json!({"bridgebot": format!("@{long}:localhost")})),
        ),
        ("a content without bottom", state("m.room.topic", json!(""), deep)),
        ("a number for a state key", state("m.room.name", json!(7), json!({"name": "x"}))),
        ("the bridge as it was", bridge("instagramgo")),
    ]
}

/// Members of an event's envelope that no strict reader takes; the event is authentic all the same.
fn odd_members() -> [&'static str; 11] {
    [
        "\"origin_server_ts\":18446744073709551615",
        "\"origin_server_ts\":-1",
        "\"origin_server_ts\":1.5",
        "\"origin_server_ts\":1e400",
        "\"origin_server_ts\":\"noon\"",
        "\"origin_server_ts\":null",
        "\"unsigned\":{\"age\":1e400}",
        "\"unsigned\":{\"prev_content\":{\"body\":\"\\ud83d\"}}",
        "\"\\udc00\":1",
        "\"redacts\":{\"n\":1e400}",
        "\"depth\":123456789012345678901234567890",
    ]
}

/// An event with another member, as a text.
fn with_member(event: &Value, member: &str) -> String {
    let mut event = event.clone();
    let (name, _) = member.split_once(':').unwrap();
    event.as_object_mut().unwrap().remove(name.trim_matches('"'));
    let event = event.to_string();
    format!("{{{member},{}", event.strip_prefix('{').unwrap())
}

/// To-device messages that are none, or lie.
fn odd_messages(scene: &mut Scene) -> Vec<(&'static str, Value)> {
    let (long, room_id) = ("x".repeat(10_000), scene.room_id.clone());
    let mut messages = Vec::new();
    for (what, event_type, content) in [
        ("a text for content", "m.room.encrypted", json!("text")),
        (
            "Olm for nobody",
            "m.room.encrypted",
            json!({"algorithm": "m.olm.v1.curve25519-aes-sha2",
            "sender_key": "x", "ciphertext": {}}),
        ),
        (
            "Olm with garbage",
            "m.room.encrypted",
            json!({"algorithm": "m.olm.v1.curve25519-aes-sha2",
            "sender_key": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "ciphertext": {"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA": {"type": 9, "body": "?"}}}),
        ),
        ("an unknown algorithm", "m.room.encrypted", json!({"algorithm": "m.rot13"})),
        (
            "a key in clear",
            "m.room_key",
            json!({"algorithm": "m.megolm.v1.aes-sha2", "room_id": room_id,
            "session_id": "s", "session_key": "k"}),
        ),
        ("a type with NUL", "m.\0", json!({})),
        ("an empty type", "", json!({})),
        ("a forwarded key", "m.forwarded_room_key", json!({"room_id": 7})),
        (
            "a withheld key with NUL",
            "m.room_key.withheld",
            json!({"algorithm": "m.megolm.v1.aes-sha2",
            "room_id": room_id, "session_id": "a\0b", "code": "m.\0", "reason": "\0",
            "sender_key": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}),
        ),
        (
            "a withheld key of a long session",
            "m.room_key.withheld",
            json!({"algorithm": "m.megolm.v1.aes-sha2",
            "room_id": format!("!{long}"), "session_id": long, "code": long, "reason": long,
            "sender_key": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}),
        ),
        (
            "a withheld key that is used",
            "m.room_key.withheld",
            json!({"algorithm": "m.megolm.v1.aes-sha2",
            "room_id": room_id, "session_id": "withheld", "code": "m.\0", "reason": "\0",
            "sender_key": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}),
        ),
    ] {
        let address = (BOT, scene.device_id.as_str());
        let pushed = scene.homeserver.send_to_device("@mallory:localhost", event_type, address, &content);
        messages.extend(pushed.into_iter().map(|message| (what, message)));
    }
    // These are well encrypted, and what is inside is bad.
    let key = scene.bridge.room_key(&room_id);
    for (what, name, value) in [
        ("a key for a long room", "room_id", format!("!{long}:localhost")),
        ("a key for a room with NUL", "room_id", "!a\0b:localhost".to_owned()),
        ("a key that is none", "session_key", "AgAAAAA".to_owned()),
        ("a key of a session with NUL", "session_id", "a\0b".to_owned()),
        ("a key of an unknown algorithm", "algorithm", "m.\0".to_owned()),
    ] {
        let mut key = key.clone();
        key[name] = json!(value);
        let pushed = scene.bridge.send_key(&scene.homeserver, &key, BOT, &scene.device_id);
        messages.extend(pushed.into_iter().map(|message| (what, message)));
    }
    messages
}

async fn nothing_bad_holds_up_what_is_good(store: Store) {
    let mut scene = Scene::set(store).await;
    let [_, _, waiting] = scene.kept().await;
    for (what, event) in homeless_events(&scene) {
        let logged = scene.coucou.log().len();
        let good = scene.say(what);
        // In one transaction with a good one, which comes twice.
        assert_eq!(scene.homeserver.push(&[event, good.clone(), good], &[]).await, 200);
        scene.all_arrived(what).await;
        assert!(scene.coucou.log()[logged..].contains("skipped what is not a room event"), "{what}");
    }
    let rest = [json!("text"), Value::Null, json!([]), json!({}), json!(7)];
    assert_eq!(scene.homeserver.push(&rest, &[json!(7), Value::Null]).await, 200);
    scene.good_passes("what is no event at all").await;
    assert!(scene.coucou.log().contains("a transaction has malformed members"));
    assert_eq!(scene.kept().await[2], waiting, "nothing is kept of what is refused");

    for (number, odd) in odd_members().into_iter().enumerate() {
        let event = scene.say(odd);
        let encrypted = with_member(&event, odd);
        let plain =
            scene.bad("m.room.message", &json!({"msgtype": "m.text", "body": format!("plain {odd}")}));
        scene.said.push(format!("plain {odd}"));
        let plain = with_member(&plain, odd);
        scene.put_written(&format!("odd{number}"), &format!("{{\"events\":[{encrypted},{plain}]}}")).await;
        scene.good_passes(odd).await;
    }
    assert_eq!(scene.kept().await[2], waiting, "all of it was told");

    for (what, state) in odd_states(&scene) {
        assert_eq!(scene.homeserver.push(&[state], &[]).await, 200);
        scene.good_passes(what).await;
    }
    for (what, message) in odd_messages(&mut scene) {
        assert_eq!(scene.homeserver.push(&[], &[message]).await, 200);
        scene.good_passes(what).await;
    }
    assert_eq!(scene.kept().await[2], waiting, "nothing is kept of what is no event");

    let mut unreadable = unreadable_events(&mut scene);
    let mut withheld = json!({"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "AwgA", "sender_key": "x"});
    withheld["session_id"] = json!("withheld");
    unreadable.push(("a withheld key", scene.bad("m.room.encrypted", &withheld)));
    let count = i64::try_from(unreadable.len()).unwrap();
    for (what, event) in unreadable {
        assert_eq!(scene.homeserver.push(&[event], &[]).await, 200);
        scene.good_passes(what).await;
    }
    let ledger = scene.number("SELECT COUNT(*) FROM pending_events WHERE state = 'ledger'").await;
    assert_eq!(ledger, count, "what cannot be read is on the ledger");
    // The same again, and a new start on what they left.
    scene.coucou.restart().await;
    scene.good_passes("a restart").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_bad_holds_up_what_is_good_on_sqlite() {
    nothing_bad_holds_up_what_is_good(Store::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_bad_holds_up_what_is_good_on_postgres() {
    nothing_bad_holds_up_what_is_good(Store::Postgres(Database::create().await)).await;
}

/// Contents with ids that no server gave, as they stand inside of ciphertext.
fn hostile_contents() -> Vec<Value> {
    let long: String = (0..8_000_u32).map(|at| char::from(b'a' + (at * 7919 % 25) as u8)).collect();
    let ids = [
        json!("$\0"),
        json!(format!("$a\0{long}")),
        json!(format!("${long}")),
        json!(7),
        json!({"a": "$\0"}),
        Value::Null,
    ];
    let new = json!({"msgtype": "m.text", "body": "x"});
    let relations = |id: &Value| {
        [
            json!({"rel_type": "m.replace", "event_id": id}),
            json!({"rel_type": "m.thread", "event_id": id, "m.in_reply_to": {"event_id": id}}),
            json!({"rel_type": "m.annotation", "event_id": id, "key": "\0"}),
            json!({"rel_type": "m.reference", "event_id": id}),
            json!({"m.in_reply_to": {"event_id": id}}),
        ]
    };
    let relations = ids.iter().flat_map(relations);
    relations
        .map(|relation| {
            json!({"msgtype": "m.text", "body": "hostile", "m.new_content": new, "m.relates_to": relation,
                "redacts": "$\0", "m.mentions": {"user_ids": ["@\0:b"]}, "external_url": long})
        })
        .collect()
}

/// How long something good may take beside something hostile.
const AT_ONCE: Duration = Duration::from_secs(5);

async fn hostile_ids_inside_of_ciphertext_hold_up_no_one(store: Store) {
    let mut scene = Scene::set(store).await;
    let (bot, device_id, room_id) = (scene.bridge.bot(), scene.device_id.clone(), scene.room_id.clone());
    let other = scene.bridge.create_portal(&scene.homeserver, "2", "Bob");
    scene.homeserver.invite(&other, &bot, BOT).await;
    scene.homeserver.wait_for_join(&other, BOT, SOON).await;
    let key = scene.bridge.share_key(&scene.homeserver, &other, BOT, &device_id);
    assert_eq!(scene.homeserver.push(&[], &key).await, 200);
    let hostile = hostile_contents();
    let mut expected = scene.receiver.messages().len();
    for when in ["before", "with", "after"] {
        scene.bridge.rotate(&room_id);
        scene.homeserver.hold_lane(true);
        let key = scene.bridge.share_key(&scene.homeserver, &room_id, BOT, &device_id);
        let mut events = vec![scene.bridge.say(&room_id, "1", "good")];
        for content in &hostile {
            events.push(scene.bridge.encrypt(&room_id, "1", "m.room.message", content));
            events.push(scene.bridge.say(&room_id, "1", "good"));
        }
        let ids: Vec<String> =
            events.iter().map(|event| event["event_id"].as_str().unwrap().to_owned()).collect();
        let count = ids.len();
        match when {
            "before" => {
                assert_eq!(scene.homeserver.push(&[], &key).await, 200);
                assert_eq!(scene.homeserver.push(&events, &[]).await, 200);
            }
            "with" => assert_eq!(scene.homeserver.push(&events, &key).await, 200),
            _ => {
                assert_eq!(scene.homeserver.push(&events, &[]).await, 200);
                let waiting = async || {
                    let on_ledger = "SELECT COUNT(*) FROM pending_events WHERE state = 'ledger'";
                    (scene.number(on_ledger).await == i64::try_from(count).unwrap()).then_some(())
                };
                until("the events to be on the ledger", SOON, waiting).await;
                assert_eq!(scene.homeserver.push(&[], &key).await, 200);
            }
        }
        scene.homeserver.hold_lane(false);
        let beside = scene.bridge.say(&other, "2", "beside");
        assert_eq!(scene.homeserver.push(&[beside], &[]).await, 200);
        expected += count + 1;
        scene.receiver.wait_for(expected, AT_ONCE).await;
        let taken = scene.receiver.messages();
        let arrived: Vec<&str> =
            taken.iter().map(Attempt::event_id).filter(|id| ids.iter().any(|it| it == id)).collect();
        assert!(arrived == ids, "{when}: each once, in order");
        assert!(!scene.coucou.log().contains(STUCK), "{when}:\n{}", scene.coucou.log());
    }
    let taken = scene.receiver.messages();
    let hostile_ones: Vec<_> =
        taken.iter().filter(|taken| taken.data()["content"]["text"] == "hostile").collect();
    assert_eq!(hostile_ones.len(), 3 * hostile.len());
    assert!(hostile_ones.iter().all(|taken| taken.data()["repairs"][0]["reason"] == "bad_id"));
    assert_eq!(
        scene.number("SELECT COUNT(*) FROM inbox WHERE processed_at IS NULL").await,
        0,
        "nothing is set aside"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_ids_inside_of_ciphertext_hold_up_no_one_on_sqlite() {
    hostile_ids_inside_of_ciphertext_hold_up_no_one(Store::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_ids_inside_of_ciphertext_hold_up_no_one_on_postgres() {
    hostile_ids_inside_of_ciphertext_hold_up_no_one(Store::Postgres(Database::create().await)).await;
}

/// Ids of four kilobytes of random text, which no index holds: a room that is named to replace another, and a device of
/// the bridge's bot, which would be asked for the key of an event.
async fn long_ids_in_state_and_device_lists_hold_up_no_one(store: Store) {
    let mut scene = Scene::set(store).await;
    let long: String = rand::rng().sample_iter(Alphanumeric).take(4096).map(char::from).collect();
    let replaced = json!({"body": "", "replacement_room": format!("!{long}:localhost")});
    let mut tombstone = event(&scene.room_id, &scene.bridge.bot(), "m.room.tombstone", &replaced);
    tombstone["state_key"] = json!("");
    assert_eq!(scene.homeserver.push(&[tombstone], &[]).await, 200);
    scene.good_passes("a tombstone").await;

    scene.bridge.publish_device(&scene.homeserver, &long);
    let (room_id, device_id) = (scene.room_id.clone(), scene.device_id.clone());
    scene.bridge.rotate(&room_id);
    scene.homeserver.hold_lane(true);
    let key = scene.bridge.share_key(&scene.homeserver, &room_id, BOT, &device_id);
    let without_key = scene.say("without a key");
    assert_eq!(scene.homeserver.push(&[without_key], &[]).await, 200);
    let asked = "SELECT COUNT(*) FROM key_requests";
    until("a device to be asked", SOON, async || (scene.number(asked).await > 0).then_some(())).await;
    assert!(!scene.coucou.log().contains(STUCK), "{}", scene.coucou.log());
    assert_eq!(scene.homeserver.push(&[], &key).await, 200);
    scene.homeserver.hold_lane(false);
    scene.good_passes("a device").await;
    let set_aside = "SELECT COUNT(*) FROM inbox WHERE processed_at IS NULL";
    assert_eq!(scene.number(set_aside).await, 0, "nothing is set aside");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_ids_in_state_and_device_lists_hold_up_no_one_on_sqlite() {
    long_ids_in_state_and_device_lists_hold_up_no_one(Store::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_ids_in_state_and_device_lists_hold_up_no_one_on_postgres() {
    long_ids_in_state_and_device_lists_hold_up_no_one(Store::Postgres(Database::create().await)).await;
}
