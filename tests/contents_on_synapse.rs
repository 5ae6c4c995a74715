//! What today's bridges and clients write, sent for real: each message arrives as it was meant, with all of its files.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::{
    coucou::{API_TOKEN, Coucou},
    http,
    postgres::Database,
    receiver::{Attempt, Receiver},
    repository,
    synapse::{Bridge, Line, Options, Sent, Synapse},
};

const BOT: &str = "@coucou:localhost";
const ARRIVAL: Duration = Duration::from_mins(1);

/// Contents of `tests/homeserver/contents.py`, those first that refer to the text before them.
const KINDS: &str = "text,reply_name,reply_only_quotation,edit_quoting,edit_only_quotation,profile_edit,gallery_edit,\
    share_fetched,reaction_picture,location_live,gallery,gallery_beeper,album,sticker_message,extensible_text,\
    extensible_untyped,extensible_image,location_block,profile,spoiler_media,spoiler_text,content_warning,\
    mention_pills,mention_room,link_picture,story_text,story_picture,share_reel,share_text,once,unsupported,call_words,\
    bridge_failure,messenger_story,messenger_share,file_beside,file_unknown,inline_image";

/// Contents that nobody says.
const CONTROLS: &str = "status,error_notice,error_edit,verification,verification_step";

struct Scene {
    coucou: Coucou,
    bridge: Bridge,
    receiver: Receiver,
    synapse: Synapse,
    _database: Option<Database>,
}

impl Scene {
    async fn set(database: Option<Database>) -> Self {
        let mut coucou = Coucou::new().await;
        if let Some(database) = &database {
            coucou = coucou.store(&database.url());
        }
        let bridge = Bridge::new("instagram", &[]).await;
        let registrations = vec![coucou.registration(), bridge.registration()];
        let synapse = Synapse::start(Options { registrations, encrypted: true }).await;
        let receiver = Receiver::start().await;
        let mut coucou = coucou.homeserver(&synapse.url()).webhook(&receiver);
        coucou.start().await;
        Self { coucou, bridge, receiver, synapse, _database: database }
    }

    /// What the webhook took of `sent`, by kind.
    async fn told(&self, sent: &Sent, kinds: &str) -> BTreeMap<String, Attempt> {
        let wanted: Vec<&str> = kinds.split(',').collect();
        let lines: Vec<&Line> = sent.messages().filter(|line| wanted.contains(&&*line.kind)).collect();
        assert_eq!(lines.len(), wanted.len(), "each was sent");
        let of = |taken: &[Attempt], line: &Line| {
            taken.iter().find(|attempt| attempt.event_id() == line.event_id).cloned()
        };
        let what = format!("{} messages", lines.len());
        let all = |taken: &[Attempt]| lines.iter().all(|line| of(taken, line).is_some());
        let taken = self.receiver.wait_until(&what, ARRIVAL, all).await;
        lines.into_iter().map(|line| (line.kind.clone(), of(&taken, line).unwrap())).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_contents_arrive_as_they_were_meant_with_postgres() {
    odd_contents_arrive_as_they_were_meant(Some(Database::create().await)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_contents_arrive_as_they_were_meant_with_sqlite() {
    odd_contents_arrive_as_they_were_meant(None).await;
}

async fn odd_contents_arrive_as_they_were_meant(database: Option<Database>) {
    let scene = Scene::set(database).await;
    let kinds = format!("{KINDS},{CONTROLS},text");
    let sent = scene.bridge.send(&scene.synapse.url()).invite(BOT).name("Alice").messages(&kinds).run().await;
    let last = sent.messages().last().unwrap().event_id.clone();
    scene
        .receiver
        .wait_until("the last", ARRIVAL, |taken| taken.iter().any(|attempt| attempt.event_id() == last))
        .await;

    let told = scene.told(&sent, &KINDS["text,".len()..]).await;
    for line in sent.messages().filter(|line| told.contains_key(&line.kind)) {
        let message = &told[&line.kind];
        let expected = json!({"type": line.event_type, "content": line.content});
        assert_eq!(message.data()["matrix"], expected, "{}", line.kind);
        let is_encrypted = line.wire_type == "m.room.encrypted";
        assert_eq!(message.data()["encryption"]["encrypted"], json!(is_encrypted), "{}", line.kind);
    }
    assert_kinds(&told);
    assert_words(&told);
    assert_networks_own(&told);
    every_file_is_handed_out(&told).await;
    nothing_is_told_of_controls(&scene, &sent).await;
}

fn content<'a>(told: &'a BTreeMap<String, Attempt>, kind: &str) -> &'a Value {
    &told[kind].data()["content"]
}

fn assert_kinds(told: &BTreeMap<String, Attempt>) {
    for (kind, expected) in [
        ("gallery", "gallery"),
        ("gallery_edit", "gallery"),
        ("gallery_beeper", "gallery"),
        ("sticker_message", "sticker"),
        ("extensible_text", "text"),
        ("extensible_untyped", "text"),
        ("extensible_image", "image"),
        ("location_block", "location"),
        ("location_live", "location"),
        ("share_fetched", "video"),
        ("file_beside", "image"),
        ("reaction_picture", "reaction"),
        ("file_unknown", "unknown"),
    ] {
        assert_eq!(content(told, kind)["kind"], expected, "{kind}");
    }
    assert_eq!(told["share_fetched"].event(), "message.edited");
    assert_eq!(told["reaction_picture"].event(), "reaction.created");
}

fn assert_words(told: &BTreeMap<String, Attempt>) {
    let text = |kind: &str| content(told, kind)["text"].as_str().unwrap_or_else(|| panic!("{kind}"));
    assert_eq!(text("reply_name"), "reply_name number 1", "without the quotation");
    assert_eq!(text("reply_only_quotation"), "> <@owner:localhost> where?");
    assert_eq!(text("edit_quoting"), "> a line of a poem\n\nedit_quoting number 3");
    assert_eq!(text("edit_only_quotation"), "> <@owner:localhost> where?");
    assert!(text("extensible_text").starts_with("extensible_text number"));
    assert!(text("extensible_untyped").starts_with("extensible_untyped number"));
    assert!(text("profile").starts_with("profile number"), "without the name");
    assert!(content(told, "profile")["html"].as_str().unwrap().starts_with("<b>profile number"));
    let profile = &told["profile"].data()["sender"]["profile"];
    assert_eq!((&profile["id"], &profile["name"]), (&json!("meow"), &json!("cat <3")));
    assert_eq!(told["profile"].data()["sender"]["name"], "Alice");
    assert_eq!(told["profile_edit"].data()["sender"]["profile"]["without_avatar"], true);
    assert_eq!(content(told, "spoiler_media")["spoiler"]["reason"], "the end");
    assert_eq!(content(told, "spoiler_text")["spoiler"]["parts"], true);
    assert_eq!(content(told, "content_warning")["spoiler"]["category"], "graphic");
    let mentions = &content(told, "mention_pills")["mentions"];
    assert_eq!(mentions["user_ids"], json!(["@owner:localhost", "@bob:localhost"]));
    assert_eq!(content(told, "mention_room")["mentions"]["room"], true);
    assert_eq!(content(told, "location_block")["location"]["description"], "the tower");
    assert_eq!(content(told, "album")["album"], json!({"id": "album 1", "index": 0, "count": 2}));
}

/// What the network itself says.
fn assert_networks_own(told: &BTreeMap<String, Attempt>) {
    let story = &content(told, "story_text")["story"];
    assert_eq!(story["quote"], "Replied to your story");
    assert_eq!(story["text"], content(told, "story_text")["text"]);
    assert!(story["url"].as_str().unwrap().contains("/stories/"));
    assert_eq!(content(told, "story_picture")["story"]["quote"], "Replied to your story");
    assert_eq!(content(told, "messenger_story")["story"]["quote"], "Reply to Facebook story:");
    let reel = &content(told, "share_reel")["share"];
    assert_eq!(
        (&reel["kind"], &reel["title"], &reel["unresolved"]),
        (&json!("reel"), &json!("bob"), &json!(true))
    );
    let fetched = &content(told, "share_fetched")["share"];
    assert_eq!((&fetched["kind"], fetched.get("fetch_status")), (&json!("reel"), None));
    assert_eq!(content(told, "share_text")["share"]["title"], "bob");
    assert_eq!(content(told, "messenger_share")["share"]["title"], "Alice");
    assert_eq!(content(told, "once")["view_once"], true);
    for kind in ["once", "unsupported", "bridge_failure"] {
        assert_eq!(content(told, kind)["unsupported"], true, "{kind}");
    }
    assert_eq!(content(told, "call_words")["call"]["video"], true);
}

/// Files below a value: those with an `mxc` address.
fn files<'a>(value: &'a Value, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(object) => {
            if object.contains_key("mxc") {
                found.push(value);
            }
            object.values().for_each(|value| files(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| files(value, found)),
        _ => {}
    }
}

async fn every_file_is_handed_out(told: &BTreeMap<String, Attempt>) {
    assert_eq!(hand_out_every_file(told).await, 24, "files");
}

/// Fetches every file, and returns how many there are.
async fn hand_out_every_file(told: &BTreeMap<String, Attempt>) -> usize {
    let mut count = 0;
    for (kind, message) in told {
        let mut found = Vec::new();
        files(content(told, kind), &mut found);
        files(&message.data()["sender"], &mut found);
        for file in found {
            let url = file["url"].as_str().unwrap_or_else(|| panic!("{kind}: {file}"));
            let answer = http().get(url).send().await.unwrap();
            assert_eq!(answer.status().as_u16(), 200, "{kind}: {file}");
            let bytes = answer.bytes().await.unwrap();
            // What the sender put there, in the clear.
            let text = std::str::from_utf8(&bytes).unwrap_or_else(|_| panic!("{kind}: {file} is ciphertext"));
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines.len(), 200, "{kind}: {file}");
            assert!(lines.iter().all(|line| *line == lines[0] && line.contains('.')), "{kind}: {file}");
            count += 1;
        }
        if kind.contains("file") || kind.contains("gallery") || kind.contains("picture") {
            assert_ne!(count, 0, "{kind} has a file");
        }
    }
    count
}

/// A file of `tests/fixtures/contents`, as far as it says what is to come of it.
#[derive(Deserialize)]
struct Written {
    expect: Expected,
}

/// Either what is delivered, or why nothing is.
#[derive(Deserialize)]
#[serde(untagged)]
enum Expected {
    Refused {
        reason: String,
    },
    Told {
        kind: String,
        text: Option<String>,
        #[serde(default = "created")]
        event: String,
        #[serde(rename = "type")]
        event_type: Option<String>,
        /// Parts of `data.matrix.content`.
        written: Vec<String>,
        repairs: Value,
        #[serde(default)]
        files: usize,
    },
}

fn created() -> String {
    "message.created".to_owned()
}

fn fixtures() -> BTreeMap<String, Expected> {
    let folder = repository().join("tests/fixtures/contents");
    let read = |path: PathBuf| {
        let written: Written = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        (path.file_stem().unwrap().to_str().unwrap().to_owned(), written.expect)
    };
    fs::read_dir(folder).unwrap().map(|entry| read(entry.unwrap().path())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn contents_that_no_strict_reader_takes_arrive_as_written_with_postgres() {
    contents_that_no_strict_reader_takes_arrive_as_written(Some(Database::create().await)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn contents_that_no_strict_reader_takes_arrive_as_written_with_sqlite() {
    contents_that_no_strict_reader_takes_arrive_as_written(None).await;
}

async fn contents_that_no_strict_reader_takes_arrive_as_written(database: Option<Database>) {
    let scene = Scene::set(database).await;
    let expected = fixtures();
    let is_told = |kind: &str| matches!(expected[kind], Expected::Told { .. });
    let names: Vec<&str> = expected.keys().map(String::as_str).collect();
    let told: Vec<&str> = names.iter().copied().filter(|name| is_told(name)).collect();
    assert!(told.len() + KINDS.split(',').count() - 1 > 100, "more than a hundred with those of contents.py");
    let folder = repository().join("tests/fixtures/contents");
    let homeserver = scene.synapse.url();
    let send =
        scene.bridge.send(&homeserver).arg("--contents", &folder.to_string_lossy()).invite(BOT).name("Alice");
    let sent = send.messages(&format!("text,{},text", names.join(","))).run().await;
    let last = sent.messages().last().unwrap().event_id.clone();
    let is_last = |attempt: &Attempt| attempt.event_id() == last;
    scene.receiver.wait_until("the last", ARRIVAL, |taken| taken.iter().any(is_last)).await;

    let messages = scene.told(&sent, &told.join(",")).await;
    let before = &sent.messages().next().unwrap().event_id;
    let mut files_of = BTreeMap::new();
    for (name, message) in &messages {
        assert_as_written(name, message, &expected[name], before);
        let mut found = Vec::new();
        files(content(&messages, name), &mut found);
        let Expected::Told { files, .. } = &expected[name] else { unreachable!() };
        assert_eq!(found.len(), *files, "{name}");
        files_of.insert(name.clone(), message.clone());
    }
    let count: usize =
        expected.values().map(|it| if let Expected::Told { files, .. } = it { *files } else { 0 }).sum();
    assert_eq!(hand_out_every_file(&files_of).await, count);
    let taken = scene.receiver.taken().into_iter().filter(|attempt| attempt.event() != "room.joined");
    let order: Vec<String> = taken.map(|attempt| attempt.event_id().to_owned()).collect();
    let in_order: Vec<String> =
        sent.messages().map(|line| line.event_id.clone()).filter(|id| order.contains(id)).collect();
    assert!(order == in_order, "in order, and none twice");
    assert_refused(&scene, &sent, &expected).await;
}

fn assert_as_written(name: &str, message: &Attempt, expected: &Expected, before: &str) {
    let Expected::Told { kind, text, event, event_type, written, repairs, .. } = expected else {
        unreachable!()
    };
    let data = message.data();
    assert_eq!((message.event(), &data["content"]["kind"]), (&**event, &json!(kind)), "{name}");
    if let Some(text) = text {
        assert_eq!(&data["content"]["text"], text, "{name}");
    }
    if let Some(event_type) = event_type {
        assert_eq!(&data["matrix"]["type"], event_type, "{name}");
    }
    let none = json!([]);
    assert_eq!(data.get("repairs").unwrap_or(&none), repairs, "{name}");
    assert_eq!((&data["encryption"]["trust"], &data["late"]), (&json!("bridge"), &json!(false)), "{name}");
    let body = String::from_utf8(message.body.to_vec()).unwrap();
    let content = body.split_once("\"matrix\":").unwrap().1;
    for part in written {
        let part = part.replace("@BEFORE@", before);
        assert!(content.contains(&part), "{name}: {part} in {content}");
    }
}

/// What cannot be told is on the ledger, each with what is so.
async fn assert_refused(scene: &Scene, sent: &Sent, expected: &BTreeMap<String, Expected>) {
    let url = format!("{}/api/v1/undecryptable?limit=100", scene.coucou.url());
    let ledger = http().get(url).bearer_auth(API_TOKEN).send().await.unwrap().bytes().await.unwrap();
    let ledger: Value = serde_json::from_slice(&ledger).unwrap();
    let ledger = ledger["events"].as_array().unwrap().clone();
    let mut refused = 0;
    for line in sent.messages() {
        let Some(Expected::Refused { reason }) = expected.get(&line.kind) else { continue };
        let entry = ledger.iter().find(|entry| entry["event_id"] == json!(line.event_id));
        let entry = entry.unwrap_or_else(|| panic!("{} is on the ledger: {ledger:#?}", line.kind));
        assert_eq!(&entry["reason"], reason, "{}", line.kind);
        assert!(entry["next_step"].as_str().unwrap().starts_with("nothing"), "{entry}");
        refused += 1;
    }
    assert_eq!((refused, ledger.len()), (refused, refused), "and nothing else is");
}

async fn nothing_is_told_of_controls(scene: &Scene, sent: &Sent) {
    for kind in CONTROLS.split(',') {
        let line = sent.messages().find(|line| line.kind == kind).unwrap();
        let taken = scene.receiver.taken();
        assert!(taken.iter().all(|attempt| attempt.event_id() != line.event_id), "{kind} was told");
    }
    let portal = sent.portal();
    let of_room = scene.receiver.taken().into_iter().filter(|attempt| attempt.room_id() == portal);
    let numbers: Vec<u64> = of_room.map(|attempt| attempt.data()["sequence"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "they take no number");
    let metrics = http().get(format!("{}/metrics", scene.coucou.url())).bearer_auth(API_TOKEN).send();
    let metrics = metrics.await.unwrap();
    let metrics = metrics.text().await.unwrap();
    for (kind, count) in [("status", 1), ("error_notice", 2), ("verification", 2)] {
        // A comparison of timelines may bring one of them again, which is counted again.
        let name = format!("coucou_control_events_total{{kind=\"{kind}\"}} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok());
        assert!(value.is_some_and(|value| value >= count), "{name}{value:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reactions_and_what_replies_refer_to_are_read_from_inside_the_ciphertext() {
    let scene = Scene::set(None).await;
    let homeserver = scene.synapse.url();
    let send = scene.bridge.send(&homeserver).flag("--msc4392").invite(BOT);
    let kinds = "text,reply,thread,reaction,unreaction,text";
    let sent = send.messages(kinds).run().await;
    let lines: Vec<&Line> = sent.messages().collect();
    let last = lines.last().unwrap().event_id.clone();
    let taken = scene
        .receiver
        .wait_until("the last", ARRIVAL, |taken| taken.iter().any(|attempt| attempt.event_id() == last))
        .await;
    let told = |kind: &str| {
        let line = lines.iter().find(|line| line.kind == kind).unwrap();
        (line, taken.iter().find(|attempt| attempt.event_id() == line.event_id).unwrap())
    };
    let target = &lines[0].event_id;
    let (line, reaction) = told("reaction");
    assert_eq!((&*line.wire_type, reaction.event()), ("m.room.encrypted", "reaction.created"));
    assert_eq!(reaction.data()["encryption"]["encrypted"], true);
    assert_eq!(reaction.data()["relates_to"], json!({"reacts_to": line.content["m.relates_to"]["event_id"]}));
    assert_eq!(reaction.data()["content"]["key"], "❤️");
    let (_, redaction) = told("unreaction");
    assert_eq!(redaction.event(), "reaction.redacted");
    assert_eq!(redaction.data()["redacts"], json!(line.event_id));
    let (line, reply) = told("reply");
    assert_eq!(reply.data()["relates_to"], json!({"reply_to": target}));
    let path = format!("rooms/{}/event/{}", line.room_id, line.event_id);
    let wire = scene.bridge.request_as(&homeserver, &line.sender, ("GET", &path), &Value::Null).await;
    assert_eq!(wire["content"].get("m.relates_to"), None, "the homeserver sees nothing of it");
    let (line, thread) = told("thread");
    assert_eq!(thread.data()["relates_to"]["thread"], line.content["m.relates_to"]["event_id"]);
}
