use ruma::{owned_user_id, user_id};
use serde_json::json;

use super::*;

const BOT: &str = "@instagrambot:localhost";

fn state(event_type: &str, state_key: &str, sender: &str, content: &Value) -> Value {
    json!({"type": event_type, "state_key": state_key, "sender": sender, "content": content})
}

fn claim(bot: &str, channel: &str) -> Value {
    json!({"bridgebot": bot, "creator": "@owner:localhost", "protocol": {"id": "instagramgo", "displayname": "Instagram"},
        "channel": {"id": channel, "displayname": "alice", "avatar_url": "mxc://localhost/a",
            "fi.mau.receiver": "178"}, "com.beeper.room_type": "dm"})
}

fn bridged() -> RoomState {
    let mut room = RoomState::default();
    assert_eq!(room.apply(&state("m.bridge", "key", BOT, &claim(BOT, "1"))), Change::Bridge);
    room
}

fn join(user: &str, name: &str) -> Value {
    state("m.room.member", user, user, &json!({"membership": "join", "displayname": name}))
}

fn context(room: &RoomState) -> RoomContext {
    let ours = BTreeSet::from([owned_user_id!("@owner:localhost"), owned_user_id!("@coucou:localhost")]);
    room.context(&Arc::new(ours), &BTreeMap::new())
}

#[test]
fn a_bridge_is_believed_when_its_own_bot_says_so() {
    let room = bridged();
    let bridge = room.bridge.as_ref().unwrap();
    assert_eq!(bridge.bot, BOT);
    assert_eq!(bridge.receiver.as_deref(), Some("178"));
    assert_eq!(bridge.channel_avatar.as_deref(), Some("mxc://localhost/a"));
    let context = context(&room);
    assert_eq!(context.network.as_deref(), Some("instagram"));
    assert_eq!(context.channel_id.as_deref(), Some("1"));
    assert_eq!(context.kind, RoomKind::Dm);
    assert_eq!(context.bridge_bot.unwrap(), BOT);
}

#[test]
fn a_bridge_that_somebody_else_claims_is_not() {
    let mut room = RoomState::default();
    let forged = state("m.bridge", "key", "@mallory:localhost", &claim(BOT, "1"));
    assert_eq!(room.apply(&forged), Change::None);
    assert_eq!(room, RoomState::default());
    let mut room = bridged();
    let hijack = state("m.bridge", "key", "@mallory:localhost", &claim(BOT, "2"));
    assert_eq!(room.apply(&hijack), Change::None);
    assert_eq!(room, bridged());
    let emptied = state("m.bridge", "key", "@mallory:localhost", &json!({}));
    assert_eq!(room.apply(&emptied), Change::None);
    assert_eq!(room, bridged());
}

#[test]
fn a_second_bot_does_not_take_a_room_over() {
    let mut room = bridged();
    let mallory = "@mallory:localhost";
    let other = state("m.bridge", "key", mallory, &claim(mallory, "2"));
    assert_eq!(room.apply(&other), Change::Bridge);
    assert_eq!(room.apply(&other), Change::None);
    assert_eq!(room.bridge.as_ref().unwrap().bot, BOT);
    let conflict = room.bridge_conflict.clone().unwrap();
    assert_eq!((conflict.bot.as_str(), conflict.state_key.as_str()), (mallory, "key"));
    // A withdrawal ends the conflict; the first bot's own claim was never in question.
    assert_eq!(room.apply(&state("m.bridge", "key", mallory, &json!({}))), Change::Bridge);
    assert_eq!(room, bridged());
}

#[test]
fn a_bot_changes_and_ends_its_own_claim() {
    let mut room = bridged();
    let renamed = state("m.bridge", "key", BOT, &claim(BOT, "2"));
    assert_eq!(room.apply(&renamed), Change::Bridge);
    assert_eq!(room.apply(&renamed), Change::None);
    assert_eq!(room.bridge.as_ref().unwrap().channel_id.as_deref(), Some("2"));
    let older = state("uk.half-shot.bridge", "key", BOT, &claim(BOT, "1"));
    assert_eq!(room.apply(&older), Change::None, "the newer type counts");
    assert_eq!(room.apply(&state("m.bridge", "key", BOT, &json!({}))), Change::Bridge);
    assert_eq!(room.bridge, None);
}

#[test]
fn the_older_type_is_enough() {
    let mut room = RoomState::default();
    room.apply(&state("uk.half-shot.bridge", "key", BOT, &claim(BOT, "1")));
    assert_eq!(room.bridge.as_ref().unwrap().bot, BOT);
    assert_eq!(room.apply(&state("m.bridge", "key", BOT, &claim(BOT, "2"))), Change::Bridge);
    assert_eq!(room.bridge.as_ref().unwrap().channel_id.as_deref(), Some("2"));
}

#[test]
fn reading_the_state_anew_keeps_the_bot_that_was_believed() {
    let mallory = "@mallory:localhost";
    let events = |creator: &str| {
        let mut theirs = state("m.bridge", "other", mallory, &claim(mallory, "2"));
        theirs["origin_server_ts"] = 1.into();
        let mut ours = state("m.bridge", "key", BOT, &claim(BOT, "1"));
        ours["origin_server_ts"] = 2.into();
        vec![theirs, ours, state("m.room.create", "", creator, &json!({}))]
    };
    let bot_of = |room: &RoomState| room.bridge.as_ref().unwrap().bot.to_string();
    let known = bridged().rebuild(&events("@admin:localhost"));
    assert_eq!(bot_of(&known), BOT);
    assert_eq!(known.bridge_conflict.as_ref().unwrap().bot, mallory);
    let fresh = RoomState::default().rebuild(&events(BOT));
    assert_eq!(bot_of(&fresh), BOT, "the bot that made the room comes first");
    let neither = RoomState::default().rebuild(&events("@admin:localhost"));
    assert_eq!(bot_of(&neither), mallory, "else the one that spoke first");
    let gone = bridged().rebuild(&[join(BOT, "bot")]);
    assert_eq!(gone.bridge, None);
}

#[test]
fn a_room_stays_its_first_bots_when_that_lets_go() {
    let mallory = "@mallory:localhost";
    let theirs = state("m.bridge", "key", mallory, &claim(mallory, "2"));
    let mut room = bridged();
    room.apply(&state("m.bridge", "key", BOT, &json!({})));
    assert_eq!(room.apply(&theirs), Change::Bridge);
    assert_eq!((&room.bridge, room.bridge_conflict.as_ref().unwrap().bot.as_str()), (&None, mallory));
    let mut stored: RoomState = serde_json::from_value(serde_json::to_value(&room).unwrap()).unwrap();
    assert_eq!(stored.rebuild(std::slice::from_ref(&theirs)).bridge, None, "nor after a restart");
    stored.apply(&state("m.bridge", "key", BOT, &claim(BOT, "1")));
    assert_eq!(stored.bridge.unwrap().bot, BOT);
    // What writes over a claim does not end it.
    assert_eq!(bridged().rebuild(&[theirs]).bridge, bridged().bridge);
}

#[test]
fn who_writes_over_a_claim_or_redacts_it_does_not_end_it() {
    let of = |event_type: &str, sender: &str| state(event_type, "key", sender, &json!({}));
    let both = |sender: &str| vec![of("m.bridge", sender), of("uk.half-shot.bridge", sender)];
    assert_eq!(bridged().rebuild(&both("@mallory:localhost")).bridge, bridged().bridge);
    assert_eq!(bridged().rebuild(&both(BOT)).bridge, None, "the bot itself does");
    let mut redacted = both(BOT);
    for event in &mut redacted {
        event["unsigned"] =
            json!({"redacted_because": {"type": "m.room.redaction", "sender": "@mod:localhost"}});
    }
    assert_eq!(bridged().rebuild(&redacted).bridge, bridged().bridge);
    redacted[0]["unsigned"]["redacted_because"]["sender"] = BOT.into();
    assert_eq!(bridged().rebuild(&redacted).bridge, None, "the bot has redacted it");
    // A second bot that claims the room under another key does not keep the first one's claim alive.
    let theirs = state("m.bridge", "other", "@mallory:localhost", &claim("@mallory:localhost", "2"));
    let ended = bridged().rebuild(&[both(BOT), vec![theirs]].concat());
    assert_eq!((ended.bridge, ended.bridge_conflict.is_some()), (None, true));
}

#[test]
fn a_space_is_no_conversation() {
    let mut room = RoomState::default();
    assert!(room.is_conversation());
    room.apply(&state("m.room.create", "", BOT, &json!({"type": "m.space"})));
    assert!(room.is_space() && !room.is_conversation());
    for (room_type, expected) in
        [("dm", true), ("group_dm", true), ("", true), ("space", false), ("personal_filtering_space", false)]
    {
        for key in ["com.beeper.room_type", "com.beeper.room_type.v2"] {
            let mut said = json!({"bridgebot": BOT});
            said[key] = room_type.into();
            let mut room = RoomState::default();
            room.apply(&state("m.bridge", "", BOT, &said));
            assert_eq!(room.is_conversation(), expected, "{said}");
        }
    }
}

#[test]
fn the_settings_can_give_a_room_to_another_bot() {
    let new = "@metabot:localhost";
    let standing = |claim: &Claim<'_>| {
        if claim.bridge.bot == new { Standing::Configured } else { Standing::Open }
    };
    let mut room = bridged();
    room.apply(&state("m.bridge", "key", new, &claim(new, "2")));
    assert_eq!(room.clone().reconsider(&|_| Standing::Open), Change::None);
    assert_eq!(room.reconsider(&standing), Change::Bridge);
    assert_eq!(room.bridge.as_ref().unwrap().bot, new);
    assert_eq!(room.bridge_conflict.as_ref().unwrap().bot, BOT);
    assert_eq!(room.reconsider(&standing), Change::None);
    let mut room = bridged();
    room.apply_judged(&state("m.bridge", "key", new, &claim(new, "2")), &standing);
    assert_eq!(room.bridge.as_ref().unwrap().bot, new, "at once, too");
}

#[test]
fn a_bot_that_is_refused_is_no_rooms_bridge() {
    let mut room = RoomState::default();
    let theirs = state("m.bridge", "key", BOT, &claim(BOT, "1"));
    assert_eq!(room.apply_judged(&theirs, &|_| Standing::Refused), Change::Bridge);
    assert_eq!(room.bridge, None);
    assert_eq!(room.rebuild_judged(&[theirs], &|_| Standing::Refused).bridge, None);
    assert_eq!(room.reconsider(&|_| Standing::Open), Change::Bridge);
    assert_eq!(room.bridge.as_ref().unwrap().bot, BOT);
    assert_eq!(room.reconsider(&|_| Standing::Refused), Change::Bridge);
    assert_eq!((&room.bridge, room.bridge_conflict.unwrap().bot.as_str()), (&None, BOT));
}

const OTHER_BOT: &str = "@facebookbot:localhost";

/// A room after a claim of each bot, with a state key of its own.
fn two_bridges(standing: Judge<'_>) -> RoomState {
    let mut room = bridged();
    room.apply_judged(&state("m.bridge", "other", OTHER_BOT, &claim(OTHER_BOT, "2")), standing);
    room
}

fn bots(room: &RoomState) -> Vec<String> {
    room.bridges().map(|bridge| bridge.bot.to_string()).collect()
}

#[test]
fn two_bridges_share_a_room_each_with_its_state_key() {
    for standing in [Standing::Configured, Standing::Known] {
        let judge = |_: &Claim<'_>| standing;
        let mut room = two_bridges(&judge);
        assert_eq!(
            (bots(&room), &room.bridge_conflict),
            (vec![BOT.to_owned(), OTHER_BOT.to_owned()], &None),
            "{standing:?}"
        );
        // What is stored is read again, also by a version that knows of one bridge alone.
        let stored = serde_json::to_value(&room).unwrap();
        assert_eq!(stored["bridge"]["bot"], BOT);
        assert_eq!(serde_json::from_value::<RoomState>(stored).unwrap(), room);
        // Each changes and ends its own claim alone.
        let renamed = state("m.bridge", "other", OTHER_BOT, &claim(OTHER_BOT, "3"));
        assert_eq!(room.apply_judged(&renamed, &judge), Change::Bridge);
        let channels = |room: &RoomState| {
            room.bridges().map(|bridge| bridge.channel_id.clone().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(channels(&room), ["1", "3"]);
        let moved = state("m.bridge", "key", OTHER_BOT, &claim(OTHER_BOT, "4"));
        assert_eq!(room.apply_judged(&moved, &judge), Change::None, "that key is the other's");
        assert_eq!(room.apply_judged(&state("m.bridge", "key", BOT, &json!({})), &judge), Change::Bridge);
        assert_eq!(bots(&room), [OTHER_BOT], "who stays is the first now");
        let mut other = two_bridges(&judge);
        assert_eq!(other.apply(&state("m.bridge", "other", OTHER_BOT, &json!({}))), Change::Bridge);
        assert_eq!(bots(&other), [BOT]);
    }
    // Of a bot of which nothing is known a room needs no second.
    let room = two_bridges(&|_| Standing::Open);
    assert_eq!((bots(&room), room.bridge_conflict.unwrap().bot.as_str()), (vec![BOT.to_owned()], OTHER_BOT));
}

#[test]
fn a_bridge_of_the_settings_comes_first_and_keeps_another_company() {
    let standing = |claim: &Claim<'_>| {
        if claim.bridge.bot == OTHER_BOT { Standing::Configured } else { Standing::Known }
    };
    let mut room = two_bridges(&standing);
    assert_eq!(bots(&room), [OTHER_BOT, BOT]);
    assert_eq!(room.reconsider(&standing), Change::None);
    assert_eq!(
        room.reconsider(&|claim| {
            if claim.bridge.bot == BOT { Standing::Refused } else { Standing::Configured }
        }),
        Change::Bridge
    );
    assert_eq!((bots(&room), room.bridge_conflict.unwrap().bot.as_str()), (vec![OTHER_BOT.to_owned()], BOT));
    // What was refused by an earlier version is believed by the settings.
    let mut room = two_bridges(&|_| Standing::Open);
    assert_eq!(room.reconsider(&standing), Change::Bridge);
    assert_eq!((bots(&room), room.bridge_conflict), (vec![OTHER_BOT.to_owned(), BOT.to_owned()], None));
}

#[test]
fn bridges_without_end_have_no_room() {
    let mut room = bridged();
    for n in 0..20 {
        let bot = format!("@b{n}bot:localhost");
        room.apply_judged(&state("m.bridge", &bot, &bot, &claim(&bot, "2")), &|_| Standing::Configured);
    }
    assert_eq!(room.bridges().count(), 8);
}

#[test]
fn reading_the_state_anew_keeps_both_bridges() {
    let claims = [
        state("m.bridge", "other", OTHER_BOT, &claim(OTHER_BOT, "2")),
        state("m.bridge", "key", BOT, &claim(BOT, "1")),
    ];
    let judge = |_: &Claim<'_>| Standing::Known;
    let room = two_bridges(&judge);
    assert_eq!(bots(&room.rebuild_judged(&claims, &judge)), [BOT, OTHER_BOT]);
    // Whoever may send state writes over a claim, and does not end it.
    let emptied = state("m.bridge", "other", "@mallory:localhost", &json!({}));
    let rebuilt = room.rebuild_judged(&[emptied, claims[1].clone()], &judge);
    assert_eq!(bots(&rebuilt), [BOT, OTHER_BOT]);
    let emptied = state("m.bridge", "key", "@mallory:localhost", &json!({}));
    assert_eq!(bots(&bridged().rebuild(&[emptied])), [BOT]);
    let let_go = state("m.bridge", "other", OTHER_BOT, &json!({}));
    assert_eq!(bots(&room.rebuild_judged(&[let_go, claims[1].clone()], &judge)), [BOT]);
}

#[test]
fn a_ghost_claims_a_room_for_its_bridge() {
    const GHOST: &str = "@instagram_1:localhost";
    let theirs = state("m.bridge", "key", GHOST, &claim(BOT, "1"));
    // Somebody of whom nothing is known says nothing.
    assert_eq!(RoomState::default().apply(&theirs), Change::None);
    let standing = |claim: &Claim<'_>| match &claim.bridge.claimed_by {
        Some(ghost) if ghost != GHOST => Standing::Unrelated,
        _ if claim.is_bot_in_room => Standing::Open,
        _ => Standing::Refused,
    };
    // It counts once the bot is there, whichever comes first.
    let mut room = RoomState::default();
    assert_eq!(room.apply_judged(&theirs, &standing), Change::Bridge);
    assert_eq!(
        (bots(&room), room.bridge_conflict.clone().unwrap().bot.as_str()),
        (Vec::<String>::new(), BOT)
    );
    assert_eq!(room.apply_judged(&join(BOT, "bot"), &standing), Change::Bridge);
    assert_eq!((bots(&room), &room.bridge_conflict), (vec![BOT.to_owned()], &None));
    assert_eq!(room.bridge.as_ref().unwrap().claimed_by.as_deref(), Some(user_id!("@instagram_1:localhost")));
    let rebuilt = RoomState::default().rebuild_judged(&[theirs.clone(), join(BOT, "bot")], &standing);
    assert_eq!(rebuilt.bridge, room.bridge);
    // What the bot says itself is no ghost's to change, but its own to take back.
    let mut ours = bridged();
    assert_eq!(
        ours.apply_judged(&join(BOT, "bot"), &standing),
        Change::Member(owned_user_id!("@instagrambot:localhost"))
    );
    let other = state("m.bridge", "key", GHOST, &claim(BOT, "2"));
    assert_eq!(ours.apply_judged(&other, &standing), Change::None);
    assert_eq!(ours.bridge, bridged().bridge);
    assert_eq!(room.apply(&state("m.bridge", "key", GHOST, &json!({}))), Change::Bridge);
    assert_eq!(bots(&room), Vec::<String>::new());
}

#[test]
fn the_ghost_of_a_login_is_not_the_other_person() {
    let (own, other) = ("@instagram_178:localhost", "@instagram_1:localhost");
    let mut room = bridged();
    for (user, name) in [(BOT, "bot"), (own, "Me"), (other, "Alice"), ("@owner:localhost", "Owner")] {
        room.apply(&join(user, name));
    }
    let bridge = room.bridge.as_mut().unwrap();
    (bridge.channel_name, bridge.room_type) = (None, None);
    let told = |room: &RoomState| (context(room).kind, context(room).name);
    assert_eq!(told(&room), (RoomKind::Dm, Some("Alice".to_owned())));
    assert_eq!(context(&room).login.as_deref(), Some("178"));
    // Where the id does not tell, the bridge does.
    room.bridge.as_mut().unwrap().receiver = None;
    assert_eq!(told(&room), (RoomKind::Group, None));
    let service = json!({"service_members": [BOT, own, 7, "nobody"]});
    assert_eq!(room.apply(&state("io.element.functional_members", "", BOT, &service)), Change::Room);
    assert_eq!(told(&room), (RoomKind::Dm, Some("Alice".to_owned())));
    // In a chat with oneself the login's ghost is the only other one.
    let left = json!({"membership": "leave"});
    room.apply(&state("m.room.member", other, other, &left));
    assert_eq!(told(&room), (RoomKind::Dm, Some("Me".to_owned())));
}

#[test]
fn a_room_stays_encrypted() {
    let mut room = RoomState::default();
    let on = state("m.room.encryption", "", BOT, &json!({"algorithm": "m.megolm.v1.aes-sha2"}));
    assert_eq!(room.apply(&on), Change::Room);
    assert_eq!(room.apply(&on), Change::None);
    assert_eq!(room.apply(&state("m.room.encryption", "", BOT, &json!({}))), Change::None);
    assert_eq!(room.encryption.as_deref(), Some("m.megolm.v1.aes-sha2"));
    assert_eq!(room.rebuild(&[]).encryption, room.encryption);
}

#[test]
fn a_room_is_named_after_itself_its_channel_or_the_other_person() {
    let ghost = "@instagram_1:localhost";
    let mut room = bridged();
    for (user, name) in [(BOT, "bot"), (ghost, "Alice A."), ("@owner:localhost", "Owner")] {
        room.apply(&join(user, name));
    }
    room.apply(&state("m.room.name", "", BOT, &json!({"name": "Alice"})));
    assert_eq!(context(&room).name.as_deref(), Some("Alice"));
    assert_eq!(room.apply(&state("m.room.name", "", BOT, &json!({"name": " "}))), Change::Room);
    assert_eq!(context(&room).name.as_deref(), Some("alice"));
    room.bridge.as_mut().unwrap().channel_name = None;
    assert_eq!(context(&room).name.as_deref(), Some("Alice A."));
    room.bridge.as_mut().unwrap().room_type = Some("group".to_owned());
    assert_eq!(context(&room).name, None);
    assert_eq!(context(&room).kind, RoomKind::Group);
}

#[test]
fn without_a_bridges_word_two_people_are_a_dm() {
    let mut room = RoomState::default();
    room.apply(&join("@coucou:localhost", "coucou"));
    room.apply(&join("@friend:localhost", "Friend"));
    assert_eq!(context(&room).kind, RoomKind::Group);
    let invite = json!({"membership": "invite", "is_direct": true});
    room.apply(&state("m.room.member", "@owner:localhost", "@friend:localhost", &invite));
    assert_eq!(context(&room).kind, RoomKind::Dm);
    assert_eq!(context(&room).name.as_deref(), Some("Friend"));
    room.apply(&join("@other:localhost", "Other"));
    assert_eq!(context(&room).kind, RoomKind::Group);
}

#[test]
fn members_are_those_who_are_in_or_asked_in() {
    let mut room = RoomState::default();
    let user = owned_user_id!("@a:localhost");
    assert_eq!(room.apply(&join("@a:localhost", "A")), Change::Member(user.clone()));
    assert_eq!(room.apply(&join("@a:localhost", "A")), Change::None);
    assert_eq!(room.profile(&user).name.as_deref(), Some("A"));
    let odd = json!({"membership": "invite", "displayname": 7, "avatar_url": "https://example.org"});
    room.apply(&state("m.room.member", "@a:localhost", BOT, &odd));
    let expected = Member { membership: Membership::Invite, name: None, avatar: None, since: None };
    assert_eq!(room.members.get(&user), Some(&expected));
    let ban = state("m.room.member", "@a:localhost", BOT, &json!({"membership": "ban"}));
    assert_eq!(room.apply(&ban), Change::Member(user.clone()));
    assert_eq!(room.apply(&ban), Change::None);
    assert!(room.members.is_empty());
    assert_eq!(room.apply(&join("nobody", "X")), Change::None);
    assert_eq!(room.profile(user_id!("@a:localhost")), SenderProfile::default());
}

#[test]
fn a_replaced_room_says_where_it_went() {
    let mut room = RoomState::default();
    let content = json!({"body": "moved", "replacement_room": "!new:localhost"});
    assert_eq!(room.apply(&state("m.room.tombstone", "", BOT, &content)), Change::Room);
    assert!(room.tombstoned);
    assert_eq!(room.replacement.as_deref(), Some("!new:localhost"));
}

#[test]
fn no_text_can_upset_a_table() {
    let mut room = RoomState::default();
    room.apply(&state("m.room.name", "", BOT, &json!({"name": "a\u{0}b"})));
    assert_eq!(room.name.as_deref(), Some("ab"));
    room.apply(&state("m.room.name", "", BOT, &json!({"name": "\u{0}"})));
    assert_eq!(room.name, None);
    let mut odd = claim(BOT, "1");
    odd["protocol"]["id"] = "insta gram\n".into();
    room.apply(&state("m.bridge", "key", BOT, &odd));
    assert!(room.bridge.is_some());
    assert_eq!(context(&room).network, None);
    assert_eq!(room.apply(&join("@a\u{0}:localhost", "A")), Change::None);
}

#[test]
fn a_direct_chat_stays_one_when_the_invite_is_no_longer_there() {
    let mut room = RoomState::default();
    let invite = json!({"membership": "invite", "is_direct": true});
    room.apply(&state("m.room.member", "@owner:localhost", "@friend:localhost", &invite));
    let joined = room.rebuild(&[join("@owner:localhost", "Owner"), join("@friend:localhost", "Friend")]);
    assert_eq!(context(&joined).kind, RoomKind::Dm);
}

#[test]
fn messages_change_nothing() {
    let message = json!({"type": "m.room.name", "sender": BOT, "content": {"name": "no state key"}});
    assert_eq!(RoomState::default().apply(&message), Change::None);
    assert_eq!(RoomState::default().apply(&json!(["not an event"])), Change::None);
}
