//! Each file of `tests/fixtures/events/` is an event and has a snapshot of its payload.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

use ruma::{OwnedUserId, owned_event_id, owned_room_id, owned_user_id};
use serde::Deserialize;
use serde_json::json;

use super::*;
use crate::{
    messages::room::RoomState,
    model::{Encryption, MessageId, RawObject, RepairReason, Trust, json::EventBody},
};

mod documented;
mod malformed;

/// A file of `tests/fixtures/events/`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fixture {
    #[expect(dead_code, reason = "for people who read the file")]
    about: String,
    /// Set when it was encrypted.
    session_id: Option<String>,
    /// `bridge` unless said otherwise.
    trust: Option<String>,
    /// `plain` for a room without a bridge.
    room: Option<String>,
    received_after_ms: Option<i64>,
    #[serde(default)]
    late: bool,
    /// Whether a bridge says it for the owner.
    #[serde(default)]
    is_owners: bool,
    event: FixtureEvent,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FixtureEvent {
    r#type: String,
    event_id: OwnedEventId,
    sender: OwnedUserId,
    origin_server_ts: Timestamp,
    content: Map<String, Value>,
    redacts: Option<OwnedEventId>,
}

fn our_users() -> Arc<BTreeSet<OwnedUserId>> {
    Arc::new(BTreeSet::from([owned_user_id!("@owner:localhost"), owned_user_id!("@coucou:localhost")]))
}

/// A portal, as the bridge makes it.
fn portal() -> RoomState {
    let bot = "@instagrambot:localhost";
    let ghost = "@instagram_17840000000000001:localhost";
    let claim = json!({
        "bridgebot": bot, "creator": bot,
        "protocol": {"id": "instagramgo", "displayname": "Instagram"},
        "channel": {"id": "1784999", "displayname": "alice", "fi.mau.receiver": "17841400000000000"},
        "com.beeper.room_type": "dm", "com.beeper.room_type.v2": "dm",
    });
    let member = |user: &str, name: &str| {
        json!({"type": "m.room.member", "state_key": user, "sender": user, "content": {
            "membership": "join", "displayname": name, "avatar_url": "mxc://localhost/face"}})
    };
    RoomState::default().rebuild(&[
        json!({"type": "m.room.create", "state_key": "", "sender": bot, "content": {"room_version": "12"}}),
        json!({"type": "m.room.name", "state_key": "", "sender": bot, "content": {"name": "Alice"}}),
        json!({"type": "m.bridge", "state_key": "localhost/instagram", "sender": bot, "content": claim}),
        member(bot, "instagram bridge bot"),
        member(ghost, "Alice A."),
        member("@owner:localhost", "Owner"),
        member("@friend:localhost", "Friend"),
    ])
}

/// The same without a bridge.
fn plain() -> RoomState {
    RoomState { bridge: None, name: None, ..portal() }
}

fn context(room: &RoomState) -> RoomContext {
    room.context(&our_users(), &std::collections::BTreeMap::new())
}

fn event(event_type: &str, content: Value) -> ClearEvent {
    let Value::Object(content) = content else { panic!("a content is an object") };
    ClearEvent {
        event_id: owned_event_id!("$event"),
        room_id: owned_room_id!("!portal"),
        sender: owned_user_id!("@instagram_17840000000000001:localhost"),
        origin_server_ts: Timestamp(1_795_317_263_000),
        event_type: event_type.to_owned(),
        content: content.into(),
        repairs: vec![],
        redacts: None,
        encryption: Encryption::default(),
        late: false,
        is_owners: false,
    }
}

/// The draft of an event that arrived at once.
fn drafted(event: ClearEvent) -> Draft {
    let room = portal();
    let (profile, received_at) = (room.profile(&event.sender), event.origin_server_ts);
    draft(event, &context(&room), profile, received_at)
}

fn read_fixture(text: &str) -> Draft {
    let fixture: Fixture = serde_json::from_str(text).expect("the file is a fixture");
    let trust = [Trust::Bridge, Trust::CrossSigned, Trust::MismatchedSender]
        .into_iter()
        .find(|trust| trust.as_str() == fixture.trust.as_deref().unwrap_or("bridge"))
        .expect("a trust of that name");
    let encryption = fixture.session_id.map_or_else(Encryption::default, |session_id| Encryption {
        encrypted: true,
        algorithm: Some("m.megolm.v1.aes-sha2".to_owned()),
        session_id: Some(session_id),
        trust: Some(trust),
        bridged_by: (trust == Trust::Bridge).then(|| owned_user_id!("@instagrambot:localhost")),
        flagged: trust == Trust::MismatchedSender,
    });
    let room = if fixture.room.as_deref() == Some("plain") { plain() } else { portal() };
    let FixtureEvent { r#type, event_id, sender, origin_server_ts, content, redacts } = fixture.event;
    let profile = room.profile(&sender);
    let event = ClearEvent {
        event_id,
        room_id: owned_room_id!("!ixWrFP9eM1l-OQQ-5iIG53Nfhl6wmDCHrFKo9QrzG-8"),
        sender,
        origin_server_ts,
        event_type: r#type,
        content: content.into(),
        repairs: vec![],
        redacts,
        encryption,
        late: fixture.late,
        is_owners: fixture.is_owners,
    };
    let received_at = Timestamp(origin_server_ts.0 + fixture.received_after_ms.unwrap_or(120));
    draft(event, &context(&room), profile, received_at)
}

#[test]
fn each_fixture_makes_its_payload() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/events");
    let mut paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    paths.sort();
    assert!(paths.len() > 30, "the fixtures are there");
    for path in paths {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let draft = read_fixture(&fs::read_to_string(&path).unwrap());
        insta::assert_json_snapshot!(name, draft.payload(7));
    }
}

#[test]
fn the_body_is_the_payload_in_the_documented_order() {
    let draft = drafted(event("m.room.message", json!({"msgtype": "m.text", "body": "hi"})));
    let body = String::from_utf8(draft.render(3).unwrap()).unwrap();
    let mut at = 0;
    for key in [
        "type",
        "timestamp",
        "version",
        "data",
        "id",
        "sequence",
        "event_id",
        "room_id",
        "network",
        "direction",
        "backfill",
        "late",
        "room",
        "sender",
        "content",
        "relates_to",
        "encryption",
        "matrix",
    ] {
        let found = body[at..].find(&format!("\"{key}\":")).unwrap_or_else(|| panic!("{key} in its place"));
        at += found;
    }
    let parsed: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(parsed["data"]["sequence"], 3);
    assert_eq!(parsed["data"]["id"], json!(draft.message_id().as_str()));
}

/// An event whose content no strict reader takes.
fn odd_event() -> ClearEvent {
    let text = "{\"type\":\"m.room.message\",\"content\":{\"msgtype\":\"m.image\",\"body\":\"half \\ud83d\",\
        \"url\":\"mxc://a/b\",\"info\":{\"size\":1e400,\"w\":7},\"n\":[1.50,123456789012345678901234567890]}}";
    let body = EventBody::read(text.as_bytes()).unwrap();
    ClearEvent { content: body.content, repairs: body.repairs, ..event("m.room.message", json!({})) }
}

#[test]
fn numbers_are_told_as_written_and_repairs_are_named() {
    let body = String::from_utf8(drafted(odd_event()).render(3).unwrap()).unwrap();
    let written = "\"info\":{\"size\":1e400,\"w\":7},\"n\":[1.50,123456789012345678901234567890]}";
    assert!(body.contains(written), "{body}");
    let repairs = "\"repairs\":[{\"field\":\"/content/body\",\"reason\":\"lone_surrogate\"},\
        {\"field\":\"/content/info/size\",\"reason\":\"number_out_of_range\"}]";
    assert!(body.contains(repairs), "{body}");
    let data = RawObject::read(RawObject::parse(body.as_bytes()).unwrap().get("data").unwrap()).unwrap();
    let content: Value = data.get_as("content").unwrap();
    assert_eq!((&content["kind"], &content["media"]["width"]), (&json!("image"), &json!(7)));
    assert_eq!(content["media"].get("size"), None);
    let good = drafted(event("m.room.message", json!({"msgtype": "m.text", "body": "hi"})));
    assert!(!String::from_utf8(good.render(1).unwrap()).unwrap().contains("repairs"));
}

#[test]
fn a_payload_with_odd_numbers_can_be_changed_like_any_other() {
    let payload = drafted(odd_event()).render(3).unwrap();
    let renumbered = String::from_utf8(renumbered(&payload, 9).unwrap()).unwrap();
    let expected = String::from_utf8(payload.clone()).unwrap().replace("\"sequence\":3", "\"sequence\":9");
    assert_eq!(renumbered, expected);
    let redacted = redacted(&payload).unwrap();
    let value: Value = serde_json::from_slice(&redacted).unwrap();
    assert_eq!(value["data"]["content"], json!({"kind": "redacted"}));
    assert_eq!(value["data"]["matrix"], json!({"type": "m.room.message", "content": {}}));
    assert_eq!((value["data"].get("repairs"), &value["data"]["sequence"]), (None, &json!(3)));
    let mut redaction = event("m.room.redaction", json!({"redacts": "$it"}));
    redaction.content = odd_event().content;
    redaction.redacts = Some(owned_event_id!("$it"));
    let redaction = drafted(redaction).render(1).unwrap();
    assert_eq!(target(&redaction), Some(("!portal".to_owned(), "$it".to_owned())));
}

#[test]
fn an_id_that_no_server_gave_costs_the_relation_and_nothing_else() {
    let long = format!("${}", "x".repeat(8_000));
    for bad in [
        json!("$\0"),
        json!("$a\0b"),
        json!(long),
        json!("event"),
        json!(""),
        json!(7),
        json!({}),
        json!(null),
    ] {
        let new = json!({"msgtype": "m.text", "body": "x"});
        for (relation, place) in [
            (json!({"rel_type": "m.replace", "event_id": bad}), "event_id"),
            (json!({"rel_type": "m.thread", "event_id": bad}), "event_id"),
            (json!({"rel_type": "m.reference", "event_id": bad}), "event_id"),
            (json!({"rel_type": "m.annotation", "event_id": bad, "key": "k"}), "event_id"),
            (json!({"m.in_reply_to": {"event_id": bad}}), "m.in_reply_to/event_id"),
        ] {
            let content =
                json!({"msgtype": "m.text", "body": "* x", "m.new_content": new, "m.relates_to": relation});
            let message = drafted(event("m.room.message", content.clone()));
            assert_eq!(
                (message.message_type, message.relates_to.is_none()),
                (MessageType::MessageCreated, true)
            );
            let repair = Repair::new(format!("/content/m.relates_to/{place}"), RepairReason::BadId);
            assert_eq!(message.repairs, [repair], "{content}");
            let stored = message.into_message(1).unwrap();
            assert_eq!(stored.replaces, None);
            assert!(String::from_utf8(stored.payload).unwrap().contains("\"text\":\"* x\""));
            let reaction = drafted(event("m.reaction", content));
            assert_eq!(reaction.message_type, MessageType::MessageCreated);
        }
        let redaction = drafted(event("m.room.redaction", json!({"redacts": bad})));
        assert_eq!(redaction.redacts(), None, "{bad}");
    }
}

#[test]
fn an_event_makes_the_same_message_every_time() {
    let make = || drafted(event("m.room.message", json!({"msgtype": "m.text", "body": "hi"})));
    assert_eq!(make().render(1).unwrap(), make().render(1).unwrap());
}

#[test]
fn the_stored_message_is_the_rendered_one() {
    let draft = drafted(event("m.room.message", json!({"msgtype": "m.text", "body": "hi"})));
    let body = draft.render(9).unwrap();
    let message = draft.clone().into_message(9).unwrap();
    assert_eq!(message.payload, body);
    assert_eq!(message.sequence, 9);
    assert_eq!(&message.message_id, draft.message_id());
    assert_eq!((message.event_id.as_str(), message.room_id.as_str()), ("$event", "!portal"));
    assert_eq!(message.network.as_deref(), Some("instagram"));
    assert_eq!((message.message_type, message.direction), (MessageType::MessageCreated, Direction::In));
}

#[test]
fn a_redaction_of_a_reaction_says_so_under_the_same_id() {
    let redaction = drafted(event("m.room.redaction", json!({"redacts": "$reaction"})));
    assert_eq!(redaction.redacts().unwrap(), "$reaction");
    let of_reaction = redaction.clone().of_reaction();
    assert_eq!(of_reaction.message_type(), MessageType::ReactionRedacted);
    assert_eq!(of_reaction.message_id(), redaction.message_id());
    let text = drafted(event("m.room.message", json!({"msgtype": "m.text", "body": "hi"})));
    assert_eq!(text.of_reaction().message_type(), MessageType::MessageCreated);
}

#[test]
fn an_undecryptable_event_is_told_without_its_ciphertext_and_under_an_id_of_its_own() {
    let wire = json!({
        "algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "AwgA", "device_id": "TBVLNAPVZD",
        "session_id": "CC+RY7", "m.relates_to": {"m.in_reply_to": {"event_id": "$question"}},
    });
    let mut encrypted = event("m.room.encrypted", wire);
    encrypted.encryption = Encryption {
        encrypted: true,
        algorithm: Some("m.megolm.v1.aes-sha2".to_owned()),
        session_id: Some("CC+RY7".to_owned()),
        ..Encryption::default()
    };
    let room = portal();
    let profile = room.profile(&encrypted.sender);
    let later = Timestamp(encrypted.origin_server_ts.0 + 1000);
    let notice = undecryptable(encrypted, "no_key", &context(&room), profile, later);
    insta::assert_json_snapshot!("undecryptable", notice.payload(8));
    let decrypted = drafted(event("m.room.message", json!({"msgtype": "m.text", "body": "hi"})));
    assert_eq!(notice.event_id(), decrypted.event_id());
    assert_ne!(notice.message_id(), decrypted.message_id());
    let payload = |draft: &Draft| serde_json::to_value(draft.payload(9)).unwrap();
    assert_eq!(payload(&decrypted)["data"].get("undecryptable_id"), None);
    let after = payload(&decrypted.after_undecryptable());
    assert_eq!(after["data"]["undecryptable_id"], json!(notice.message_id()));
}

#[test]
fn rooms_that_come_and_go_are_told() {
    let room = portal();
    for (name, membership) in [("room_joined", "join"), ("room_left", "ban")] {
        let mut member = event("m.room.member", json!({"membership": membership, "reason": "spam"}));
        member.sender = owned_user_id!("@instagrambot:localhost");
        let profile = room.profile(&member.sender);
        let at = member.origin_server_ts;
        let account = owned_user_id!("@coucou:localhost");
        let draft = room_change(member, account, &context(&room), profile, at);
        insta::assert_json_snapshot!(name, draft.payload(1));
    }
}

#[test]
fn a_trial_delivery_says_that_it_is_one() {
    let body =
        render_test(&MessageId(format!("msg_{}", "7".repeat(40))), Timestamp(1_795_317_263_000)).unwrap();
    insta::assert_snapshot!("webhook_test", String::from_utf8(body).unwrap());
}

#[test]
fn an_hour_makes_history() {
    let arrived_after = |millis: i64| {
        let event = event("m.room.message", json!({"msgtype": "m.text", "body": "hi"}));
        let received_at = Timestamp(event.origin_server_ts.0 + millis);
        draft(event, &context(&portal()), SenderProfile::default(), received_at).backfill
    };
    assert!(!arrived_after(-5_000), "a clock ahead of ours");
    assert!(!arrived_after(3_600_000));
    assert!(arrived_after(3_600_001));
}

#[test]
fn a_name_is_parsed_as_it_is_written() {
    for message_type in MessageType::ALL {
        assert_eq!(MessageType::parse(message_type.as_str()), Some(message_type));
        assert_eq!(serde_json::to_value(message_type).unwrap(), message_type.as_str());
    }
    for direction in [Direction::In, Direction::Out] {
        assert_eq!(Direction::parse(direction.as_str()), Some(direction));
        assert_eq!(serde_json::to_value(direction).unwrap(), direction.as_str());
    }
    for trust in [
        Trust::Bridge,
        Trust::Verified,
        Trust::CrossSigned,
        Trust::Unverified,
        Trust::MismatchedSender,
        Trust::UnknownDevice,
        Trust::Imported,
    ] {
        assert_eq!(serde_json::to_value(trust).unwrap(), trust.as_str());
    }
}
