//! Many at once: members, invites; and invites that were left unanswered.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    coucou::Coucou,
    fake_homeserver::{FakeBridge, FakeHomeserver, event},
    receiver::{Attempt, Receiver},
    until,
};

const BOT: &str = "@coucou:localhost";
const OWNER: &str = "@owner:localhost";
const SOON: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread")]
async fn a_room_of_thousands_costs_no_more_than_a_small_one() {
    const MEMBERS: usize = 3_000;
    let coucou = Coucou::new().await;
    let homeserver = FakeHomeserver::start(&coucou).await;
    let receiver = Receiver::start().await;
    let mut coucou = coucou.homeserver(&homeserver.url()).webhook(&receiver);
    coucou.start().await;
    let device_id = homeserver.wait_for_device(BOT, SOON).await;
    let mut bridge = FakeBridge::new(&homeserver, "instagram");
    let room_id = bridge.create_portal(&homeserver, "1", "Everybody");
    for number in 0..MEMBERS {
        homeserver.add_member(&room_id, &format!("@user{number}:localhost"), Some("Somebody"));
    }
    homeserver.invite(&room_id, &bridge.bot(), BOT).await;
    homeserver.wait_for_join(&room_id, BOT, SOON).await;
    let key = bridge.share_key(&homeserver, &room_id, BOT, &device_id);
    let said = bridge.say(&room_id, "1", "to everybody");
    // And a burst of arrivals, each with its device list.
    let arrivals: Vec<Value> = (0..300)
        .map(|number| {
            let mxid = format!("@late{number}:localhost");
            let mut join = event(&room_id, &mxid, "m.room.member", &json!({"membership": "join"}));
            join["state_key"] = json!(mxid);
            join
        })
        .collect();
    homeserver.push_until_taken(&[said], &key).await;
    homeserver.push_until_taken(&arrivals, &[]).await;
    let last = bridge.say(&room_id, "1", "after the arrivals");
    homeserver.push_until_taken(&[last], &[]).await;
    let messages = receiver.wait_for(2, SOON).await;
    let trusts: Vec<_> = messages.iter().map(|message| &message.data()["encryption"]["trust"]).collect();
    assert_eq!(trusts, ["bridge", "bridge"]);

    let queries = homeserver.requests("keys/query");
    let asked: BTreeSet<String> = queries
        .iter()
        .filter_map(|query| query.body["device_keys"].as_object())
        .flat_map(|users| users.keys().cloned())
        .collect();
    assert!(asked.contains(&bridge.bot()), "{asked:?}");
    assert!(asked.len() < 200, "the devices of {} users were asked for", asked.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_invites_is_answered_at_the_homeservers_pace() {
    const ROOMS: usize = 200;
    const REFUSALS: usize = 4;
    let coucou = Coucou::new().await;
    let homeserver = FakeHomeserver::start(&coucou).await;
    let receiver = Receiver::start().await;
    let mut coucou = coucou.homeserver(&homeserver.url()).webhook(&receiver);
    coucou.start().await;
    homeserver.wait_for_device(BOT, SOON).await;
    let bridge = FakeBridge::new(&homeserver, "instagram");
    let rooms: Vec<String> = (0..ROOMS).map(|_| bridge.create_portal(&homeserver, "1", "Alice")).collect();
    // Not of the list of joined rooms, which is asked for at the start.
    until("the comparison at the start", SOON, async || {
        (homeserver.requests("/sync").iter().any(|request| request.user_id == BOT)).then_some(())
    })
    .await;
    // As many as are asked for at once, so it has to be patient once.
    homeserver.fail("/join", 429, REFUSALS);
    for room_id in &rooms {
        homeserver.invite(room_id, &bridge.bot(), BOT).await;
    }
    for room_id in &rooms {
        homeserver.wait_for_join(room_id, BOT, SOON).await;
    }
    let joined = |taken: &[Attempt]| taken.iter().filter(|attempt| attempt.event() == "room.joined").count();
    let taken = receiver.wait_until("every room to be told of", SOON, |taken| joined(taken) == ROOMS).await;
    let told: BTreeSet<&str> = taken.iter().map(Attempt::room_id).collect();
    assert_eq!(told, rooms.iter().map(String::as_str).collect());
    let joins = homeserver.requests("/join").into_iter().filter(|request| request.path.ends_with("/join"));
    // An invite that was answered before its push came is answered again, which changes nothing.
    let (asked, most) = (joins.count(), ROOMS + REFUSALS + 20);
    assert!(asked <= most, "{asked} requests: once for each, and once more for each refusal");
}

/// Pushes that somebody has joined a room.
async fn join(homeserver: &FakeHomeserver, room_id: &str, mxid: &str) {
    homeserver.add_member(room_id, mxid, None);
    let mut join = event(room_id, mxid, "m.room.member", &json!({"membership": "join"}));
    join["state_key"] = json!(mxid);
    homeserver.push_until_taken(&[join], &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invites_are_answered_once_their_bridge_is_known_and_the_bot_comes_after() {
    let coucou = Coucou::of_owner(OWNER).await;
    let homeserver = FakeHomeserver::start(&coucou).await;
    let receiver = Receiver::start().await;
    let mut coucou = coucou.homeserver(&homeserver.url()).webhook(&receiver);
    let bridge = FakeBridge::new(&homeserver, "instagram");
    let unanswered = bridge.create_portal(&homeserver, "1", "Alice");
    let known = bridge.create_portal(&homeserver, "2", "Bob");
    coucou.start().await;
    homeserver.wait_for_device(OWNER, SOON).await;
    // Nothing proves that this is a bridge: an invite shows no m.bridge.
    homeserver.invite(&unanswered, &bridge.bot(), OWNER).await;
    until("the invite to be left unanswered", SOON, async || {
        coucou.log().contains("invite left unanswered").then_some(())
    })
    .await;
    assert_eq!(homeserver.membership(&unanswered, OWNER), "invite");
    // The owner joins another room of its, by hand.
    join(&homeserver, &known, OWNER).await;
    homeserver.wait_for_join(&unanswered, OWNER, SOON).await;
    let rooms = |taken: &[Attempt]| taken.iter().filter(|attempt| attempt.event() == "room.joined").count();
    receiver.wait_until("both rooms to be told of", SOON, |taken| rooms(taken) == 2).await;
    assert_eq!(homeserver.membership(&known, BOT), "", "the owner's device is enough");

    // From now on the bot is to be in every bridged room, those of before too.
    assert!(coucou.terminate().await.success());
    let mut coucou = coucou.set("COUCOU_OWNER_MODE", "invite");
    coucou.start().await;
    for room_id in [&unanswered, &known] {
        homeserver.wait_for_join(room_id, BOT, SOON).await;
    }
    let taken = receiver.taken();
    assert_eq!(rooms(&taken), 2, "another account in a room that is read is no news: {taken:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_that_the_settings_forbade_is_answered_when_they_allow_it() {
    let coucou = Coucou::new().await.set("COUCOU_ROOMS_INVITE_FROM", "example.org");
    let homeserver = FakeHomeserver::start(&coucou).await;
    let mut coucou = coucou.homeserver(&homeserver.url());
    let bridge = FakeBridge::new(&homeserver, "instagram");
    let room_id = bridge.create_portal(&homeserver, "1", "Alice");
    coucou.start().await;
    homeserver.wait_for_device(BOT, SOON).await;
    homeserver.invite(&room_id, &bridge.bot(), BOT).await;
    until("the invite to be left unanswered", SOON, async || {
        coucou.log().contains("invite left unanswered").then_some(())
    })
    .await;
    assert!(coucou.terminate().await.success());
    assert_eq!(homeserver.membership(&room_id, BOT), "invite");
    let mut coucou = coucou.set("COUCOU_ROOMS_INVITE_FROM", "localhost");
    coucou.start().await;
    homeserver.wait_for_join(&room_id, BOT, SOON).await;
}
