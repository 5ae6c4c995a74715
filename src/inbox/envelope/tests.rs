use ruma::{device_id, user_id};
use serde_json::json;

use super::*;
use crate::model::{AccountId, Role};

fn parse(body: &serde_json::Value) -> Envelope {
    Envelope::parse(body.to_string().as_bytes()).unwrap()
}

#[test]
fn all_that_is_needed_is_an_object_and_an_array_of_events() {
    for good in
        ["{}", " {\"events\" : [ ] } ", "{\"events\":null}", "{\"events\":[7,null,{\"type\":1}],\"x\":[[]]}"]
    {
        assert_eq!(check(good.as_bytes()), Ok(()), "{good}");
    }
    // Two members of one name are no reason to refuse.
    assert_eq!(check(b"{\"events\":{},\"events\":[]}"), Ok(()));
    for bad in ["", "[]", "null", "\"{}\"", "{", "{}{}", "{\"events\":[}", "{'a':1}", "{\"a\":01}"] {
        assert_eq!(check(bad.as_bytes()), Err(EnvelopeError::NotJson), "{bad}");
    }
    assert_eq!(check(b"{\"a\":\"\xff\"}"), Err(EnvelopeError::NotJson));
    for bad in ["{\"events\":{}}", "{\"events\":\"[]\"}", "{\"events\":1}"] {
        assert_eq!(check(bad.as_bytes()), Err(EnvelopeError::Events), "{bad}");
    }
    // Depth that would overflow a recursive reader's stack.
    let deep = format!("{{\"events\":[{}{}]}}", "[".repeat(200_000), "]".repeat(200_000));
    assert_eq!(check(deep.as_bytes()), Ok(()));
    assert_eq!(Envelope::parse(deep.as_bytes()).unwrap().skipped_count, 1);
}

#[test]
fn every_part_is_found_under_each_of_its_names() {
    let (user, device) = (user_id!("@coucou:example.org"), device_id!("COUCOU1"));
    for prefix in ["", "org.matrix.msc3202."] {
        for counts in ["device_one_time_keys_count", "device_one_time_key_counts"] {
            let name = |name: &str| format!("{prefix}{name}");
            let old = |name: &str| {
                if prefix.is_empty() { name.to_owned() } else { format!("de.sorunome.msc2409.{name}") }
            };
            let envelope = parse(&json!({
                "events": [{ "type": "m.room.message" }],
                old("to_device"): [{ "type": "m.room.encrypted" }, { "type": "m.dummy" }],
                old("ephemeral"): [{ "type": "m.typing" }],
                name("device_lists"): { "changed": ["@a:b"], "left": ["@c:d"] },
                name(counts): { user: { device: { "signed_curve25519": 49 }, "OTHER": {} } },
                name("device_unused_fallback_key_types"): { user: { device: ["signed_curve25519"] } },
            }));
            let sizes = (envelope.events.len(), envelope.to_device.len(), envelope.ephemeral.len());
            assert_eq!(sizes, (1, 2, 1));
            assert_eq!(envelope.device_lists_changed, ["@a:b"]);
            assert_eq!(envelope.device_lists_left, ["@c:d"]);
            assert_eq!(envelope.one_time_key_counts[user][device]["signed_curve25519"], 49);
            assert!(envelope.one_time_key_counts[user][device_id!("OTHER")].is_empty());
            assert_eq!(envelope.unused_fallback_key_types[user][device], ["signed_curve25519"]);
            assert_eq!(envelope.skipped_count, 0);
        }
    }
}

#[test]
fn an_empty_part_does_not_hide_the_same_part_under_another_name() {
    let envelope = parse(&json!({
        "ephemeral": [], "de.sorunome.msc2409.ephemeral": [{}],
        "to_device": null, "de.sorunome.msc2409.to_device": [{}, {}],
    }));
    assert_eq!((envelope.ephemeral.len(), envelope.to_device.len(), envelope.skipped_count), (1, 2, 0));
    // The same under both names is not twice.
    let envelope = parse(&json!({ "to_device": [{}], "de.sorunome.msc2409.to_device": [{}] }));
    assert_eq!(envelope.to_device.len(), 1);
}

#[test]
fn a_bad_member_costs_only_itself() {
    let user = user_id!("@coucou:example.org");
    let envelope = parse(&json!({
        "events": [{ "type": 7 }, "no event", null, { "room_id": 1 }],
        "to_device": "nothing",
        "device_lists": { "changed": ["@a:b", "nonsense", 7], "left": "?" },
        "device_one_time_keys_count": {
            "nonsense": {}, "@x:y": 3,
            user: { "A": { "signed_curve25519": -1, "other": 2 }, "B": [] },
        },
        "device_unused_fallback_key_types": [],
    }));
    assert_eq!(envelope.events.len(), 2);
    assert_eq!(envelope.device_lists_changed, ["@a:b"]);
    assert_eq!(envelope.one_time_key_counts[user][device_id!("A")], [("other".to_owned(), 2)].into());
    assert!(envelope.one_time_key_counts[user][device_id!("B")].is_empty());
    // Two events, to_device, two users, left, a user, a user's devices, a count, a device, the fallback keys.
    assert_eq!(envelope.skipped_count, 11);
}

#[test]
fn events_stay_as_they_came() {
    let body = br#"{"events":[{"b":1.0,  "a":18446744073709551616,"a":"\ud83d\ude00"}]}"#;
    let envelope = Envelope::parse(body).unwrap();
    assert_eq!(envelope.events[0].get(), r#"{"b":1.0,  "a":18446744073709551616,"a":"\ud83d\ude00"}"#);
}

#[test]
fn a_page_of_the_key_lane_is_for_the_device_that_asked() {
    let account = Account {
        id: AccountId(1),
        user_id: user_id!("@coucou:example.org").to_owned(),
        device_id: device_id!("COUCOU1").to_owned(),
        role: Role::Bot,
        sync_token: None,
    };
    let page = SyncPage {
        next_batch: "s2".to_owned(),
        to_device: ["{\"type\":  \"m.dummy\"}", "7"]
            .map(|message| RawValue::from_string(message.to_owned()).unwrap())
            .into(),
        device_lists_changed: vec![user_id!("@a:b").to_owned()],
        device_lists_left: vec![],
        one_time_key_counts: Some([("signed_curve25519".to_owned(), 3)].into()),
        unused_fallback_key_types: None,
    };
    let body = serde_json::to_vec(&page).unwrap();
    let envelope = Envelope::parse_lane(&body, &account).unwrap();
    assert_eq!(envelope.to_device[0].get(), "{\"type\":  \"m.dummy\"}");
    assert_eq!((envelope.to_device.len(), envelope.skipped_count), (1, 1));
    assert_eq!(envelope.device_lists_changed, ["@a:b"]);
    let counts = &envelope.one_time_key_counts[&account.user_id][&account.device_id];
    assert_eq!(counts["signed_curve25519"], 3);
    assert!(envelope.unused_fallback_key_types.is_empty());
    assert!(Envelope::parse_lane(b"{}", &account).is_err());
}
