use ruma::{room_id, user_id};

use super::*;
use crate::{inbox::pins::TrustSettings, testing::START};

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
