use std::collections::BTreeSet;

use ruma::{room_id, user_id};
use serde_json::json;

use super::*;
use crate::testing::{self, START};

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
        assert!(pins.is_ghost(user_id!("@instagram_1:a.org")));
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
    let configured = trust::Bridge {
        bot: bot.to_owned(),
        ghosts: Pattern::ghosts_of(bot),
        puppets: None,
        is_configured: true,
    };
    let settings =
        TrustSettings { bridges: vec![configured], only_configured: true, ..TrustSettings::default() };
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
fn bots_without_end_are_not_pinned() {
    let mut pins = Pins::new(&TrustSettings::default());
    for n in 0..=MOST_PINNED {
        room(&mut pins, &format!("!{n}"), &[claim(&format!("@b{n}bot:a.org"), &format!("k{n}"))]);
    }
    let changes = pins.take_changes();
    let bots: BTreeSet<_> = changes.bridges.iter().map(|bridge| &bridge.bot).collect();
    assert_eq!((bots.len(), changes.conflicts.len()), (MOST_PINNED, 1));
}

#[test]
fn a_bridges_devices_are_reported_when_they_change() {
    let bot = user_id!("@instagrambot:a.org");
    let mut pins = Pins::new(&TrustSettings::default());
    let mut seen = |device: &str, key: &str, master: Option<&str>| {
        let master_key = master.map(str::to_owned);
        pins.observe(
            bot,
            &SessionDevice { device_id: device.to_owned(), identity_key: key.to_owned(), master_key },
        );
        pins.take_changes().devices.pop().map(|device| device.change)
    };
    assert_eq!(seen("A", "k1", None), Some(DeviceChange::First));
    assert_eq!(seen("A", "k1", None), None);
    assert_eq!(seen("A", "k1", Some("m1")), Some(DeviceChange::Signed));
    assert_eq!(seen("A", "k1", None), None, "signed before");
    assert_eq!(seen("B", "k2", Some("m1")), Some(DeviceChange::NewDevice));
    assert_eq!(seen("A", "k3", Some("m1")), Some(DeviceChange::DeviceReplaced));
    assert_eq!(seen("C", "k4", Some("m2")), Some(DeviceChange::IdentityChanged));
    assert_eq!(seen("C", "k4", Some("m2")), None, "reported once");
    for n in 0..2 * MOST_DEVICES {
        seen("D", &format!("key {n}"), None);
    }
    assert_eq!(pins.devices[bot].len(), MOST_DEVICES);
}

#[test]
fn doubts_are_looked_at_again_ever_more_rarely() {
    let (mut doubts, room) = (Doubts::default(), room_id!("!room"));
    let mut now = START;
    let mut looks = 0;
    doubts.soon(room, now);
    assert!(doubts.take_due(now).is_empty());
    while now < START.plus(Duration::from_hours(2)) {
        now = now.plus(Duration::from_secs(1));
        if !doubts.take_due(now).is_empty() {
            looks += 1;
            doubts.soon(room, now);
            doubts.soon(room, now);
        }
    }
    assert_eq!(looks, MOST_TRIES);
    doubts.at_once(room, now);
    assert_eq!(doubts.take_due(now), [room]);
    assert!(doubts.take_due(now).is_empty() && doubts.rooms.is_empty(), "no doubt is left");
}
