//! Where the reading of a room begins.

use ruma::{room_id, user_id};
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};

use super::rig;
use crate::homeserver::{Direction, Entry};

const USER: &str = "@coucou:example.org";

fn member(event_id: &str, membership: &str, at: i64, replaces: Option<&str>) -> Value {
    json!({"event_id": event_id, "type": "m.room.member", "state_key": USER, "origin_server_ts": at,
        "content": {"membership": membership}, "unsigned": {"replaces_state": replaces}})
}

fn state(member: &Value) -> Vec<Box<RawValue>> {
    let other = json!({"event_id": "$o", "type": "m.room.member", "state_key": "@other:example.org",
        "content": {"membership": "join"}});
    [&other, member].map(|event| to_raw_value(event).unwrap()).into()
}

fn entry(entered_at: i64, from: &str) -> Entry {
    Entry { join_id: "$join".to_owned(), joined_at: 7, entered_at, from: Some(from.to_owned()) }
}

#[tokio::test]
async fn a_room_is_read_from_right_behind_the_invite() {
    let (script, homeserver, _lifecycle) = rig().await;
    let (user, room) = (user_id!("@coucou:example.org"), room_id!("!r:example.org"));
    let context = |event: Value| json!({"event": event, "start": "before", "end": "behind"});

    let join = member("$join", "join", 7, Some("$invite"));
    script.answer(200, &context(member("$invite", "invite", 5, None)));
    let found = homeserver.entry(user, room, &state(&join)).await.unwrap();
    assert_eq!(found, Some(entry(5, "behind")));

    // The user has another name by now.
    let renamed = member("$name", "join", 9, Some("$join"));
    script.answer(200, &context(join.clone()));
    script.answer(200, &context(member("$invite", "invite", 5, None)));
    let found = homeserver.entry(user, room, &state(&renamed)).await.unwrap();
    assert_eq!(found, Some(entry(5, "behind")));
    let asked: Vec<_> = script.asked().iter().map(|asked| asked.uri.path().to_owned()).collect();
    let ends = |at: usize, with: &str| assert!(asked[at].ends_with(with), "{asked:?}");
    ends(0, "/context/$invite");
    ends(1, "/context/$join");
    ends(2, "/context/$invite");
}

#[tokio::test]
async fn a_room_is_read_from_beside_the_join_when_no_invite_can_be_seen() {
    let (script, homeserver, _lifecycle) = rig().await;
    let (user, room) = (user_id!("@coucou:example.org"), room_id!("!r:example.org"));
    let join = |replaces| member("$join", "join", 7, replaces);
    let context = |event: Value| json!({"event": event, "start": "before", "end": "behind"});

    script.answer(403, &json!({"errcode": "M_FORBIDDEN", "error": "not yours to see"}));
    script.answer(200, &context(join(None)));
    let found = homeserver.entry(user, room, &state(&join(Some("$invite")))).await.unwrap();
    assert_eq!(found, Some(entry(7, "before")));

    script.answer(200, &context(join(None)));
    let found = homeserver.entry(user, room, &state(&join(None))).await.unwrap();
    assert_eq!(found, Some(entry(7, "before")), "it joined freely");

    script.answer(200, &context(member("$left", "leave", 3, Some("$old"))));
    script.answer(200, &context(join(None)));
    let found = homeserver.entry(user, room, &state(&join(Some("$left")))).await.unwrap();
    assert_eq!(found, Some(entry(7, "before")), "it came back freely");

    let left = member("$left", "leave", 9, Some("$join"));
    assert_eq!(homeserver.entry(user, room, &state(&left)).await.unwrap(), None);
    assert_eq!(homeserver.entry(user, room, &[]).await.unwrap(), None);
    assert_eq!(script.asked().len(), 5);
}

#[tokio::test]
async fn a_restored_room_is_read_from_a_time_or_from_the_users_coming_or_so_many_events_back() {
    let (script, homeserver, _lifecycle) = rig().await;
    let (user, room) = (user_id!("@coucou:example.org"), room_id!("!r:example.org"));
    let said = |event_id: &str, at: i64| json!({"event_id": event_id, "type": "m.room.message", "origin_server_ts": at, "content": {}});
    let context = json!({"event": said("$old", 4), "start": "before", "end": "behind"});
    let place = async |since, max| homeserver.place_at(user, room, since, max).await.unwrap();

    script.answer(200, &json!({"chunk": [said("$new", 9)], "end": "further"}));
    script.answer(200, &json!({"chunk": [said("$mid", 6), said("$old", 4)], "end": "furthest"}));
    script.answer(200, &context);
    assert_eq!(place(5, 100).await.as_deref(), Some("behind"));
    assert!(script.asked()[2].uri.path().ends_with("/context/$old"));

    script.answer(200, &json!({"chunk": [said("$new", 9), member("$in", "invite", 8, None)], "end": "x"}));
    script.answer(200, &context);
    assert_eq!(place(5, 100).await.as_deref(), Some("behind"));
    assert!(script.asked()[1].uri.path().ends_with("/context/$in"));

    script.answer(200, &json!({"chunk": [said("$new", 9), said("$mid", 8)], "end": "enough"}));
    assert_eq!(place(5, 2).await.as_deref(), Some("enough"));
    script.answer(200, &json!({"chunk": [said("$new", 9)]}));
    assert_eq!(place(5, 100).await, None, "the whole room");
}

#[tokio::test]
async fn a_page_that_does_not_get_on_is_the_last() {
    let (script, homeserver, _lifecycle) = rig().await;
    let (user, room) = (user_id!("@coucou:example.org"), room_id!("!r:example.org"));
    script.answer(200, &json!({"chunk": [], "end": "t2"}));
    script.answer(200, &json!({"chunk": [], "end": "t2"}));
    let page = async || homeserver.messages(user, room, Direction::Forwards, Some("t1"), 10).await.unwrap();
    assert_eq!(page().await.end.as_deref(), Some("t2"), "an empty page may have others behind it");
    let last = homeserver.messages(user, room, Direction::Forwards, Some("t2"), 10).await.unwrap();
    assert_eq!(last.end, None);
    let query = script.asked()[0].query();
    assert_eq!((&*query["dir"], &*query["from"], query.contains_key("to")), ("f", "t1", false));
    script.answer(200, &json!({"chunk": [{"event_id": "$new", "type": "m.x", "content": {}}]}));
    assert_eq!(homeserver.newest_event(user, room).await.unwrap().as_deref(), Some("$new"));
}
