use ruma::{owned_user_id, room_id, user_id};
use serde_json::{Value, json};

use super::*;
use crate::testing::{self, START};

fn configured(bot: &str, ghosts: &str, puppets: Option<&str>) -> trust::Bridge {
    trust::Bridge {
        bot: bot.try_into().unwrap(),
        ghosts: vec![Ghosts { pattern: Pattern::new(ghosts), strength: Strength::Configured }],
        puppets: puppets.map(Pattern::new),
        is_configured: true,
    }
}

fn claim(bot: &str, state_key: &str) -> Value {
    json!({"type": "m.bridge", "state_key": state_key, "sender": bot,
        "content": {"bridgebot": bot, "protocol": {"id": "instagramgo"}}})
}

/// A room after these claims, each judged and noted.
fn room(pins: &mut Pins, room_id: &str, claims: &[Value]) -> RoomState {
    let mut state = RoomState::default();
    let room_id = <&RoomId>::try_from(room_id).unwrap();
    for claim in claims {
        state.apply_judged(claim, &|claim| pins.standing(claim));
        pins.note(room_id, &state, START);
    }
    state
}

fn bot_of(state: &RoomState) -> Option<&str> {
    state.bridge.as_ref().map(|bridge| bridge.bot.as_str())
}

#[tokio::test]
async fn what_was_pinned_outlives_the_worker() {
    for test in testing::both().await {
        let settings = TrustSettings::default();
        let mut pins = Pins::new(&settings);
        room(&mut pins, "!1", &[claim("@instagrambot:a.org", "a.org/instagram")]);
        room(&mut pins, "!2", &[claim("@mallorybot:a.org", "a.org/instagram")]);
        let changes = pins.take_changes();
        let mut tx = test.store.begin().await.unwrap();
        bridges::put(&mut tx, &changes, START).await.unwrap();
        tx.commit().await.unwrap();
        let counts = (changes.bridges.len(), changes.keys.len(), changes.conflicts.len());
        assert_eq!(counts, (1, 1, 1));

        let mut pins = Pins::new(&settings);
        pins.load(test.store.db()).await.unwrap();
        assert!(pins.is_ghost(user_id!("@instagram_1:a.org"), &RoomState::default()));
        let theirs = room(&mut pins, "!3", &[claim("@mallorybot:a.org", "a.org/instagram")]);
        assert_eq!(bot_of(&theirs), None, "another's state key");
        let ours = room(&mut pins, "!4", &[claim("@instagrambot:a.org", "a.org/instagram")]);
        assert_eq!(bot_of(&ours), Some("@instagrambot:a.org"));
        assert!(pins.take_changes().bridges.is_empty(), "known already");
    }
}

#[test]
fn a_ghost_is_no_bridge() {
    let mut pins = Pins::new(&TrustSettings::default());
    room(&mut pins, "!1", &[claim("@instagrambot:a.org", "one")]);
    let theirs = room(&mut pins, "!2", &[claim("@instagram_bot:a.org", "two")]);
    assert_eq!(bot_of(&theirs), None);
    assert_eq!(pins.take_changes().conflicts[0].bot, "@instagram_bot:a.org");
}

#[test]
fn the_settings_can_refuse_all_others() {
    let bot = user_id!("@instagrambot:a.org");
    let settings = TrustSettings {
        bridges: vec![configured(bot.as_str(), "@instagram_*:a.org", None)],
        only_configured: true,
        ..TrustSettings::default()
    };
    let mut pins = Pins::new(&settings);
    let theirs = room(&mut pins, "!1", &[claim("@metabot:a.org", "a.org/instagram")]);
    assert_eq!(bot_of(&theirs), None);
    let both = [claim("@metabot:a.org", "k"), claim(bot.as_str(), "k")];
    assert_eq!(bot_of(&room(&mut pins, "!1", &both)), Some(bot.as_str()));
    let changes = pins.take_changes();
    assert!(changes.bridges.is_empty(), "what is configured is not pinned");
    assert_eq!(changes.conflicts.len(), 1, "each is reported once");
}

#[test]
fn odd_state_keys_are_not_looked_up_by() {
    let mut pins = Pins::new(&TrustSettings::default());
    for key in ["", "a\0b", &"x".repeat(256)] {
        for bot in ["@onebot:a.org", "@twobot:a.org"] {
            assert_eq!(bot_of(&room(&mut pins, "!1", &[claim(bot, key)])), Some(bot));
        }
    }
    assert!(pins.take_changes().keys.is_empty());
}

#[test]
fn bots_without_end_are_believed_and_not_pinned() {
    let mut pins = Pins::new(&TrustSettings::default());
    for n in 0..=MAX_PINNED {
        room(&mut pins, &format!("!{n}"), &[claim(&format!("@b{n}bot:a.org"), &format!("k{n}"))]);
    }
    let changes = pins.take_changes();
    let bots: BTreeSet<_> = changes.bridges.iter().map(|bridge| &bridge.bot).collect();
    assert_eq!((bots.len(), changes.conflicts.len()), (MAX_PINNED, 0));
    let theirs = room(&mut pins, "!real", &[claim("@igbot:a.org", "a.org/ig")]);
    assert_eq!(bot_of(&theirs), Some("@igbot:a.org"), "who comes after the flood is believed in its rooms");
    let (bot, ghost) = (user_id!("@igbot:a.org"), user_id!("@ig_1:a.org"));
    assert!(pins.bridges.may_speak(bot, ghost, false) && pins.is_ghost(ghost, &theirs));
    assert!(pins.bridges.find(bot).is_none());
}

#[test]
fn one_user_or_server_makes_few_bridges() {
    let ours = owned_user_id!("@owner:a.org");
    let mut pins = Pins::new(&TrustSettings::default()).of_user(Some(&ours));
    let mut pinned = |creator: &str, bot: &str| {
        let mut state = RoomState { creator: UserId::parse(creator).ok(), ..RoomState::default() };
        state.apply_judged(&claim(bot, bot), &|claim| pins.standing(claim));
        pins.note(room_id!("!1"), &state, START);
        assert_eq!(bot_of(&state), Some(bot), "believed in its room");
        pins.take_changes().bridges.len()
    };
    for n in 0..MAX_PINNED_PER_CREATOR {
        assert_eq!(pinned("@mallory:a.org", &format!("@b{n}bot:a.org")), 1);
        assert_eq!(pinned(&format!("@user{n}:b.org"), &format!("@b{n}bot:b.org")), 1);
    }
    assert_eq!(pinned("@mallory:a.org", "@morebot:a.org"), 0);
    assert_eq!(pinned("@another:b.org", "@morebot:b.org"), 0, "a server has users without end");
    assert_eq!(pinned("@another:a.org", "@onebot:a.org"), 1);
    assert_eq!(pinned("@mallory:a.org", "@instagrambot:a.org"), 1, "what is installed here finds room");
    assert_eq!(pinned("@mallory:b.org", "@instagrambot:b.org"), 0);
}

#[test]
fn one_bot_has_few_state_keys() {
    let mut pins = Pins::new(&TrustSettings::default());
    let bot = "@telegrambot:a.org";
    for n in 0..MAX_KEYS_PER_BOT + 10 {
        let theirs = room(&mut pins, "!1", &[claim(bot, &format!("telegram/{n}"))]);
        assert_eq!(bot_of(&theirs), Some(bot));
    }
    assert_eq!(pins.take_changes().keys.len(), MAX_KEYS_PER_BOT);
}

#[test]
fn who_comes_first_keeps_no_installed_bridge_from_its_key() {
    let mut pins = Pins::new(&TrustSettings::default());
    room(&mut pins, "!1", &[claim("@evilbot:a.org", "a.org/instagram")]);
    let real = room(&mut pins, "!2", &[claim("@instagrambot:a.org", "a.org/instagram")]);
    assert_eq!(bot_of(&real), Some("@instagrambot:a.org"));
    let keys: Vec<_> = pins.take_changes().keys.into_iter().map(|key| key.bot).collect();
    assert_eq!(keys, ["@evilbot:a.org", "@instagrambot:a.org"]);
    let evil = room(&mut pins, "!3", &[claim("@evilbot:a.org", "a.org/instagram")]);
    assert_eq!(bot_of(&evil), None, "it is another's now");
    // A bot whose name merely covers another's is no reason to refuse that one.
    room(&mut pins, "!4", &[claim("@_teambot:a.org", "x")]);
    let real = room(&mut pins, "!5", &[claim("@_team_bot:a.org", "y")]);
    assert_eq!(bot_of(&real), Some("@_team_bot:a.org"));
}

#[tokio::test]
async fn the_state_key_tells_whose_names_a_bridge_bears() {
    for test in testing::both().await {
        let (bot, ghost) = (user_id!("@messengerbot:a.org"), user_id!("@facebook_1:a.org"));
        let mut pins = Pins::new(&TrustSettings::default());
        let state = room(&mut pins, "!1", &[claim(bot.as_str(), "a.org/facebook")]);
        assert!(pins.bridges.may_speak(bot, ghost, false) && pins.is_ghost(ghost, &state));
        let changes = pins.take_changes();
        assert_eq!(changes.bridges[0].ghosts.as_ref().unwrap().as_str(), "@facebook_*:a.org");
        let mut tx = test.store.begin().await.unwrap();
        bridges::put(&mut tx, &changes, START).await.unwrap();
        tx.commit().await.unwrap();
        // Also when an earlier version has read the bot's name alone.
        tx = test.store.begin().await.unwrap();
        let statement = "UPDATE bridges SET ghosts = '@messenger_*:a.org'";
        tx.execute(statement, vec![]).await.unwrap();
        tx.commit().await.unwrap();
        let mut pins = Pins::new(&TrustSettings::default());
        pins.load(test.store.db()).await.unwrap();
        assert!(pins.bridges.may_speak(bot, ghost, false));
        let forged = user_id!("@messenger_1:a.org");
        assert!(!pins.bridges.may_speak(bot, forged, false), "nobody keeps that name for the bridge");
    }
}

fn by_ghost(ghost: &str, bot: &str) -> Value {
    json!({"type": "m.bridge", "state_key": "old://1", "sender": ghost, "content": {"bridgebot": bot,
        "protocol": {"id": "googlechat"}, "channel": {"id": "1", "fi.mau.receiver": "7"}}})
}

fn join(user: &str) -> Value {
    json!({"type": "m.room.member", "state_key": user, "sender": user, "content": {"membership": "join"}})
}

#[test]
fn a_ghosts_claim_counts_where_its_bridge_is_known_or_there() {
    const CLAIMED: (&str, &str) = ("@googlechat_1:a.org", "@googlechatbot:a.org");
    let by = |pins: &mut Pins, others: &[Value]| {
        let events: Vec<_> = others.iter().cloned().chain([by_ghost(CLAIMED.0, CLAIMED.1)]).collect();
        let state = RoomState::default().rebuild_judged(&events, &|claim| pins.standing(claim));
        pins.note(room_id!("!1"), &state, START);
        bot_of(&state).is_some()
    };
    // Nobody knows the bot: a warning, and the line that would help.
    let mut pins = Pins::new(&TrustSettings::default());
    assert!(!by(&mut pins, &[]));
    let changes = pins.take_changes();
    assert_eq!((changes.conflicts[0].bot.as_str(), changes.bridges.len()), (CLAIMED.1, 0));
    assert!(pins.is_reported(room_id!("!1"), user_id!("@googlechatbot:a.org")));
    // It has joined, it is pinned, or in the settings.
    assert!(by(&mut pins, &[join(CLAIMED.1)]));
    let changes = pins.take_changes();
    assert_eq!((changes.bridges.len(), changes.keys.len()), (1, 0), "no state key by a ghost's word");
    assert_eq!(changes.settled.len(), 1);
    assert!(by(&mut pins, &[]), "pinned by now");
    let bridges = vec![configured(CLAIMED.1, "@googlechat_*:a.org", None)];
    let mut pins = Pins::new(&TrustSettings { bridges, only_configured: true, ..TrustSettings::default() });
    assert!(by(&mut pins, &[]));
    // A room that was claimed in vain is read again when the bot becomes known.
    let mut pins = Pins::new(&TrustSettings::default());
    assert!(!by(&mut pins, &[]) && pins.take_unread().is_empty());
    room(&mut pins, "!2", &[claim(CLAIMED.1, "group")]);
    assert_eq!(pins.take_unread().into_iter().collect::<Vec<_>>(), ["!1"]);
}

#[test]
fn a_claim_by_somebody_else_does_not_count() {
    let bridges = vec![configured("@instagrambot:a.org", "@instagram_*:a.org", None)];
    let pins = Pins::new(&TrustSettings { bridges, ..TrustSettings::default() });
    for (sender, is_reported) in
        [("@mallory:a.org", false), ("@instagram_1:b.org", false), ("@facebook_1:a.org", true)]
    {
        let events = [join("@instagrambot:a.org"), by_ghost(sender, "@instagrambot:a.org")];
        let state = RoomState::default().rebuild_judged(&events, &|claim| pins.standing(claim));
        assert_eq!(bot_of(&state), None, "{sender}");
        assert_eq!(state.bridge_conflict.is_some(), is_reported, "{sender}");
    }
    // A bot of a name that anybody may bear does not speak through others.
    let mut pins = Pins::new(&TrustSettings::default());
    let events = [join("@janebot:a.org"), by_ghost("@jane_doe:a.org", "@janebot:a.org")];
    let state = RoomState::default().rebuild_judged(&events, &|claim| pins.standing(claim));
    pins.note(room_id!("!1"), &state, START);
    assert_eq!(bot_of(&state), None);
}

/// What the bridge states in a room: its receiver, and who is in it.
fn stated(bot: &str, receiver: Option<&str>, members: &[&str]) -> Vec<Value> {
    let mut claim = claim(bot, "a.org/instagram");
    if let Some(receiver) = receiver {
        claim["content"]["channel"] = json!({"fi.mau.receiver": receiver});
    }
    members.iter().map(|user| join(user)).chain([claim]).collect()
}

fn noted(pins: &mut Pins, room_id: &str, events: &[Value]) -> RoomState {
    let state = RoomState::default().rebuild_judged(events, &|claim| pins.standing(claim));
    pins.note(<&RoomId>::try_from(room_id).unwrap(), &state, START);
    state
}

#[tokio::test]
async fn a_login_that_is_stated_once_is_known_in_all_rooms() {
    const BOT: &str = "@instagrambot:a.org";
    for test in testing::both().await {
        let settings =
            TrustSettings { owner: Some(owned_user_id!("@owner:a.org")), ..TrustSettings::default() };
        let mut pins = Pins::new(&settings);
        let group = noted(&mut pins, "!group", &stated(BOT, None, &["@owner:a.org"]));
        let is_own = |pins: &Pins, state: &RoomState, user: &str| {
            pins.is_login(state.bridge.as_ref().unwrap(), state, <&UserId>::try_from(user).unwrap())
        };
        assert!(!is_own(&pins, &group, "@instagram_178:a.org"), "not known so far");
        let dm = noted(&mut pins, "!dm", &stated(BOT, Some("178"), &["@owner:a.org"]));
        // Another user of the bridge, whose conversation coucou's bot reads.
        let other = noted(&mut pins, "!other", &stated(BOT, Some("999"), &["@somebody:a.org"]));
        assert_eq!(pins.only_login(user_id!("@instagrambot:a.org")), Some("178"));
        let changes = pins.take_changes();
        let mut tx = test.store.begin().await.unwrap();
        bridges::put(&mut tx, &changes, START).await.unwrap();
        tx.commit().await.unwrap();
        let mut pins = Pins::new(&settings);
        pins.load(test.store.db()).await.unwrap();
        assert!(is_own(&pins, &group, "@instagram_178:a.org") && is_own(&pins, &dm, "@instagram_178:a.org"));
        assert!(is_own(&pins, &other, "@instagram_999:a.org"), "of that conversation");
        for (state, user) in [
            (&group, "@instagram_1:a.org"),
            (&group, "@instagram_178:b.org"),
            (&group, "@facebook_178:a.org"),
            (&group, "@instagram_999:a.org"),
            (&other, "@instagram_178:a.org"),
            (&dm, BOT),
        ] {
            assert!(!is_own(&pins, state, user), "{user}");
        }
        // Two logins of one owner: in a group both ghosts are the owner's, in a conversation of two its receiver's.
        let second = noted(&mut pins, "!second", &stated(BOT, Some("179"), &["@owner:a.org"]));
        assert!(
            is_own(&pins, &group, "@instagram_178:a.org") && is_own(&pins, &group, "@instagram_179:a.org")
        );
        assert!(is_own(&pins, &second, "@instagram_179:a.org"));
        assert!(!is_own(&pins, &second, "@instagram_178:a.org"), "the other one of these two");
        assert_eq!(pins.only_login(user_id!("@instagrambot:a.org")), None);
    }
}

#[test]
fn a_login_is_not_learned_from_whom_nobody_believes() {
    let bot = user_id!("@instagrambot:a.org");
    let mut pins = Pins::new(&TrustSettings::default());
    // A ghost's word counts for its room alone; anybody else's for nothing.
    let legacy = "@googlechatbot:a.org";
    let events = [join(legacy), by_ghost("@googlechat_1:a.org", legacy)];
    let state = noted(&mut pins, "!1", &events);
    assert!(pins.is_login(state.bridge.as_ref().unwrap(), &state, user_id!("@googlechat_7:a.org")));
    assert_eq!(pins.only_login(user_id!("@googlechatbot:a.org")), None);
    // In such a conversation of two that names no login, the ghost that has not made it is the owner's.
    let mut unnamed = events;
    unnamed[1]["content"]["channel"] = json!({"id": "1"});
    let group = noted(&mut pins, "!1", &unnamed);
    let is_own = |user| pins.is_login(group.bridge.as_ref().unwrap(), &group, user);
    assert!(!is_own(user_id!("@googlechat_7:a.org")), "some bridges let a ghost make groups, too");
    unnamed[1]["content"]["creator"] = json!("@googlechat_1:a.org");
    let state = noted(&mut pins, "!1", &unnamed);
    let is_own = |user| pins.is_login(state.bridge.as_ref().unwrap(), &state, user);
    assert!(is_own(user_id!("@googlechat_7:a.org")) && !is_own(user_id!("@googlechat_1:a.org")));
    assert!(!is_own(user_id!("@googlechatbot:a.org")) && !is_own(user_id!("@jane:a.org")));
    let forged = [join(bot.as_str()), by_ghost("@mallory:a.org", bot.as_str())];
    assert_eq!(bot_of(&noted(&mut pins, "!2", &forged)), None);
    assert_eq!(pins.only_login(bot), None);
    // What a bot has stated before it was believed counts once it is, and of one that is refused never.
    let foreseen = |bot: &str| {
        let claim = stated(bot, Some("178"), &[]).pop().unwrap();
        Bridge::of_event(&claim).unwrap()
    };
    pins.foresee(&foreseen(bot.as_str()), room_id!("!dm"));
    assert_eq!(pins.only_login(bot), None);
    noted(&mut pins, "!group", &stated(bot.as_str(), None, &[]));
    assert_eq!(pins.only_login(bot), Some("178"));
    pins.foresee(&foreseen("@instagram_bot:a.org"), room_id!("!dm"));
    pins.foresee(&foreseen("@mallory:a.org"), room_id!("!dm"));
    assert!(pins.logins.len() == 1 && pins.stated_logins.is_empty(), "another's state key");
}

#[test]
fn a_mark_in_the_clear_counts_of_the_only_user_or_of_whom_the_settings_name() {
    let ours = BTreeSet::from([owned_user_id!("@coucou:a.org")]);
    let user = user_id!("@jane:a.org");
    let is_puppet = |settings: &TrustSettings, members: &[&str]| {
        let mut pins = Pins::new(settings);
        let members =
            [&["@instagrambot:a.org", "@coucou:a.org", "@instagram_1:a.org", "@jane:a.org"], members];
        let state = noted(&mut pins, "!1", &stated("@instagrambot:a.org", Some("178"), &members.concat()));
        pins.is_puppet_in_clear(&state, user, &ours)
    };
    let nobody = TrustSettings::default();
    assert!(is_puppet(&nobody, &[]) && !is_puppet(&nobody, &["@mallory:a.org"]));
    let owner = TrustSettings { owner: Some(owned_user_id!("@owner:a.org")), ..TrustSettings::default() };
    assert!(!is_puppet(&owner, &[]));
    for (puppets, alone, with_others) in
        [("@jane:a.org", true, true), ("@*:a.org", true, false), ("@bob:a.org", false, false)]
    {
        let bridges = vec![configured("@instagrambot:a.org", "@instagram_*:a.org", Some(puppets))];
        let settings = TrustSettings { bridges, ..owner.clone() };
        let told = (is_puppet(&settings, &[]), is_puppet(&settings, &["@mallory:a.org"]));
        assert_eq!(told, (alone, with_others), "{puppets}");
    }
}

#[test]
fn whose_ghost_a_sender_is_decides_the_bridge() {
    let mut pins = Pins::new(&TrustSettings::default());
    room(&mut pins, "!1", &[claim("@instagrambot:a.org", "a.org/instagram")]);
    room(&mut pins, "!2", &[claim("@facebookbot:a.org", "a.org/facebook")]);
    let both =
        [claim("@instagrambot:a.org", "a.org/instagram"), claim("@facebookbot:a.org", "a.org/facebook")];
    let state = room(&mut pins, "!3", &both);
    let of = |user: &str, by: Option<&str>| {
        let by = by.map(|by| <&UserId>::try_from(by).unwrap());
        pins.bridge_of(&state, <&UserId>::try_from(user).unwrap(), by)
    };
    assert_eq!(of("@instagram_1:a.org", None), Some(0));
    assert_eq!(of("@facebook_1:a.org", None), Some(1));
    assert_eq!(of("@facebookbot:a.org", None), Some(1));
    assert_eq!(of("@owner:a.org", Some("@facebookbot:a.org")), Some(1));
    assert_eq!(of("@owner:a.org", None), None);
}
