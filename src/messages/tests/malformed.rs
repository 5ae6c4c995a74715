//! Whatever a content holds, it makes a message.

use std::collections::BTreeSet;

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Map, Number, Value, json};

use super::{context, drafted, event, portal};
use crate::{
    messages::{draft, room::RoomState},
    model::{MessageType, SenderProfile},
};

/// Keys that the code looks at, so that a random content gets past the first check.
const KEYS: &[&str] = &[
    "msgtype",
    "body",
    "format",
    "formatted_body",
    "url",
    "file",
    "filename",
    "info",
    "mimetype",
    "size",
    "w",
    "h",
    "duration",
    "thumbnail_url",
    "thumbnail_file",
    "thumbnail_info",
    "geo_uri",
    "m.location",
    "uri",
    "m.relates_to",
    "rel_type",
    "event_id",
    "key",
    "m.in_reply_to",
    "is_falling_back",
    "m.new_content",
    "m.mentions",
    "user_ids",
    "room",
    "redacts",
    "reason",
    "org.matrix.msc3245.voice",
    "membership",
    "org.matrix.msc1767.audio",
    "fi.mau.double_puppet_source",
    "m.historical",
    "displayname",
    "avatar_url",
    "bridgebot",
    "protocol",
    "channel",
    "id",
    "name",
    "algorithm",
    "is_direct",
    "com.beeper.room_type",
    "m.text",
    "org.matrix.msc1767.text",
    "m.file",
    "org.matrix.msc1767.file",
    "m.thumbnail",
    "m.caption",
    "m.image_details",
    "itemtypes",
    "itemtype",
    "com.beeper.gallery.images",
    "com.beeper.per_message_profile",
    "has_fallback",
    "avatar_file",
    "com.beeper.linkpreviews",
    "matched_url",
    "beeper:image:encryption",
    "og:image",
    "hashes",
    "iv",
    "external_url",
    "com.beeper.unresolved_media",
    "fi.mau.album",
    "index",
    "m.content_warning",
    "m.spoiler",
    "",
];

/// Values likewise.
const TEXTS: &[&str] = &[
    "m.text",
    "m.image",
    "m.audio",
    "m.location",
    "m.sticker",
    "org.matrix.custom.html",
    "mxc://localhost/x",
    "geo:1,2",
    "m.replace",
    "m.annotation",
    "m.thread",
    "$event",
    "$",
    "> <@a:b> q\n\nanswer",
    "> <@a:b>",
    "> <@\n",
    "<mx-reply>",
    "<mx-reply>x</mx-reply>y",
    "<blockquote>Replied to your story</blockquote>y",
    "<a href=\"https://matrix.to/#/@a:b\">a</a>",
    "<strong data-mx-profile-fallback>x: </strong><img src='mxc://a/b'>",
    "m.gallery",
    "dm.filament.gallery",
    "com.beeper.gallery",
    "https://www.instagram.com/stories/a/1",
    "text/html",
    "join",
    "@instagrambot:localhost",
    "@:",
    "\u{0}\u{202e}é",
    "",
    "true",
];

const TYPES: &[&str] = &[
    "m.room.message",
    "m.sticker",
    "m.reaction",
    "m.room.redaction",
    "m.message",
    "m.image",
    "org.matrix.msc3672.beacon",
    "m.room.encrypted",
    "m.bridge",
    "",
    "m.room.member",
    "m.room.name",
    "m.room.encryption",
    "m.room.create",
    "m.room.tombstone",
];

fn value(random: &mut StdRng, depth: u32) -> Value {
    match random.random_range(0..if depth == 0 { 6 } else { 12 }) {
        0 => Value::Null,
        1 => Value::Bool(random.random()),
        2 => Value::Number(random.random::<i64>().into()),
        3 => Number::from_f64(f64::from_bits(random.random())).map_or(Value::Null, Value::Number),
        4 | 5 => Value::String((*TEXTS.choose(random).unwrap()).to_owned()),
        6 => (0..random.random_range(0..4)).map(|_| value(random, depth - 1)).collect(),
        _ => Value::Object(object(random, depth - 1)),
    }
}

fn object(random: &mut StdRng, depth: u32) -> Map<String, Value> {
    (0..random.random_range(0..10))
        .map(|_| ((*KEYS.choose(random).unwrap()).to_owned(), value(random, depth)))
        .collect()
}

/// A content that is often nearly right, so that the kinds are reached and not only the way round them.
fn content(random: &mut StdRng) -> Map<String, Value> {
    const NEARLY: &[(&str, &[&str])] = &[
        (
            "msgtype",
            &["m.text", "m.emote", "m.image", "m.video", "m.audio", "m.location", "m.file", "m.gallery"],
        ),
        ("body", &["> <@a:b> q\n\nanswer", "text", ""]),
        ("url", &["mxc://localhost/x", "https://localhost/x"]),
        ("geo_uri", &["geo:1,2", "1,2"]),
    ];
    let mut content = object(random, 3);
    for (key, texts) in NEARLY {
        if random.random_bool(0.8) {
            content.insert((*key).to_owned(), (*texts.choose(random).unwrap()).into());
        }
    }
    if random.random_bool(0.4) {
        let relation = ["m.replace", "m.annotation", "m.thread", "m.unknown"].choose(random).unwrap();
        let mut to = object(random, 2);
        to.insert("rel_type".to_owned(), (*relation).into());
        to.insert("event_id".to_owned(), "$event".into());
        to.insert("key".to_owned(), value(random, 0));
        content.insert("m.relates_to".to_owned(), Value::Object(to));
    }
    content
}

#[test]
fn any_content_makes_a_message_that_holds_it() {
    let mut random = StdRng::seed_from_u64(2);
    let room = context(&portal());
    let mut kinds = BTreeSet::new();
    for _ in 0..5_000 {
        let event_type = *TYPES.choose(&mut random).unwrap();
        let content = Value::Object(content(&mut random));
        let event = event(event_type, content.clone());
        let received_at = event.origin_server_ts;
        let draft = draft(event, &room, SenderProfile::default(), received_at);
        let payload: Value = serde_json::from_slice(&draft.render(1).unwrap()).unwrap();
        let raw = serde_json::from_slice::<Value>(&serde_json::to_vec(&content).unwrap()).unwrap();
        assert_eq!(payload["data"]["matrix"], json!({"type": event_type, "content": raw}));
        kinds.insert(payload["data"]["content"]["kind"].as_str().unwrap().to_owned());
    }
    // The generator is only worth something when it gets through to the kinds: all but notice and voice.
    assert!(kinds.len() >= 11, "{kinds:?}");
}

#[test]
fn any_state_event_is_taken_in() {
    let mut random = StdRng::seed_from_u64(3);
    let mut room = RoomState::default();
    for _ in 0..5_000 {
        let mut event = object(&mut random, 2);
        for (key, texts) in [("type", TYPES), ("sender", TEXTS), ("state_key", TEXTS)] {
            event.insert(key.to_owned(), (*texts.choose(&mut random).unwrap()).into());
        }
        event.insert("content".to_owned(), value(&mut random, 3));
        room.apply(&Value::Object(event));
    }
    let stored = serde_json::to_string(&room).unwrap();
    assert_eq!(serde_json::from_str::<RoomState>(&stored).unwrap(), room);
    context(&room);
}

#[test]
fn a_content_as_deep_as_json_may_be_is_no_trouble() {
    let text = format!("{}{}", "[".repeat(120), "]".repeat(120));
    let deep: Value = serde_json::from_str(&text).unwrap();
    let draft = drafted(event("m.room.message", json!({"msgtype": "m.text", "body": "x", "deep": deep})));
    assert_eq!(draft.message_type(), MessageType::MessageCreated);
    assert!(!draft.render(1).unwrap().is_empty());
}
