//! Which rooms are relayed, and when that is settled.

use std::time::Duration;

use ruma::OwnedRoomId;

use super::{Relay, load};

/// Values that a setting must not have: the variable, its value, and what is said of it.
pub(super) const MALFORMED: &[(&str, &str, &str)] = &[(
    "COUCOU_ROOMS_SETTLE_AFTER",
    "8d",
    "rooms.settle_after must be a number with a unit (s, m, h, d or w), such as 90s, 12h or 30d, or 0; from 1s to 7d, \
     but COUCOU_ROOMS_SETTLE_AFTER has \"8d\": set it in coucou.yaml or as COUCOU_ROOMS_SETTLE_AFTER, for example \
     COUCOU_ROOMS_SETTLE_AFTER=1h",
)];

fn relay(owner: bool, by_environment: &str) -> Relay {
    let file = if owner { "owner: \"@owner:example.org\"" } else { "" };
    load(file, &[("COUCOU_ROOMS_RELAY", by_environment)]).unwrap().rooms.relay
}

fn rooms(ids: &[&str]) -> Vec<OwnedRoomId> {
    ids.iter().map(|id| OwnedRoomId::try_from(*id).unwrap()).collect()
}

fn adjusted(base: Relay, with: &[&str], without: &[&str]) -> Relay {
    Relay::Adjusted { base: Box::new(base), with: rooms(with), without: rooms(without) }
}

#[test]
fn bridged_or_all_may_stand_in_a_list_with_rooms() {
    for (given, expected) in [
        ("bridged", Relay::Bridged),
        ("all", Relay::All),
        ("!a:b,!c", Relay::Only(rooms(&["!a:b", "!c"]))),
        ("bridged,!a:b", adjusted(Relay::Bridged, &["!a:b"], &[])),
        ("!a:b, bridged", adjusted(Relay::Bridged, &["!a:b"], &[])),
        ("all,-!a:b", adjusted(Relay::All, &[], &["!a:b"])),
        ("bridged,!a,-!b,-!c", adjusted(Relay::Bridged, &["!a"], &["!b", "!c"])),
        ("!a,-!b", adjusted(Relay::Only(vec![]), &["!a"], &["!b"])),
    ] {
        assert_eq!(relay(false, given), expected, "{given}");
    }
    assert_eq!(relay(true, "-!a:b"), adjusted(Relay::Bridged, &[], &["!a:b"]), "of the default");
    assert_eq!(relay(false, "-!a:b"), adjusted(Relay::All, &[], &["!a:b"]));
    let file = "rooms: {relay: [bridged, \"!a:b\", \"-!c:d\"]}";
    assert_eq!(load(file, &[]).unwrap().rooms.relay, adjusted(Relay::Bridged, &["!a:b"], &["!c:d"]));
    for bad in ["bridged,all", "all,all", "bridge", "!a:b,room", "--!a:b", "-bridged", "-"] {
        let error = load("", &[("COUCOU_ROOMS_RELAY", bad)]).unwrap_err().to_string();
        assert!(error.contains("rooms.relay must be"), "{bad}: {error}");
    }
}

#[test]
fn a_policy_with_rooms_relays_those_and_leaves_out_the_others() {
    let named = |policy: &Relay, is_bridged| {
        let ids = ["!with", "!without", "!other"].map(|id| OwnedRoomId::try_from(id).unwrap());
        let relayed = ids.iter().filter(|id| policy.relays(id, is_bridged, false));
        relayed.map(ToString::to_string).collect::<Vec<_>>()
    };
    let policy = adjusted(Relay::Bridged, &["!with"], &["!without"]);
    assert_eq!(named(&policy, false), ["!with"]);
    assert_eq!(named(&policy, true), ["!with", "!other"]);
    assert!(policy.is_by_bridge() && !policy.may_relay(&rooms(&["!without"])[0]));
    let policy = adjusted(Relay::All, &[], &["!without"]);
    assert_eq!(named(&policy, false), ["!with", "!other"]);
    assert!(!policy.is_by_bridge());
    assert!(!Relay::Only(rooms(&["!a"])).may_relay(&rooms(&["!b"])[0]));
}

#[test]
fn how_long_a_room_is_looked_at_can_be_set() {
    let after =
        |text| load("", &[("COUCOU_ROOMS_SETTLE_AFTER", text)]).map(|config| config.rooms.settle_after);
    assert_eq!(load("", &[]).unwrap().rooms.settle_after, Duration::from_hours(1));
    assert_eq!(after("1s").unwrap(), Duration::from_secs(1));
    assert_eq!(after("7d").unwrap(), Duration::from_hours(168));
    for bad in ["0", "8d", "soon", "999ms"] {
        let error = after(bad).unwrap_err().to_string();
        assert!(error.contains("from 1s to 7d"), "{error}");
    }
}
