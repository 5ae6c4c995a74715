//! Rooms whose bridge states them to be its own late, for a moment not, or never, on a real Synapse.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use coucou::clock::{ManualClock, Timestamp};
use serde_json::{Value, json};

use crate::support::{
    coucou::Coucou,
    postgres::Database,
    receiver::{Attempt, Receiver},
    synapse::{Bridge, Client, Options, Send, Sent, Synapse},
    until,
};

const OWNER: &str = "@owner:localhost";
const FRIEND: &str = "@friend:localhost";
const GHOST: &str = "@instagram_17840000000000001:localhost";
const PASSWORD: &str = "the password of a scenario";
const ARRIVAL: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const KEYS: &str = "SELECT COUNT(*) FROM megolm_inbound_sessions";

/// coucou with an owner who has a phone, a friend, and a bridge.
struct Scene {
    coucou: Coucou,
    synapse: Synapse,
    bridge: Bridge,
    receiver: Receiver,
    phone: Client,
    friend: Client,
    database: Database,
}

impl Scene {
    /// One in which coucou does not run so far.
    async fn prepare() -> Self {
        let database = Database::create().await;
        let coucou = Coucou::of_owner(OWNER).await.store(&database.url());
        let bridge = Bridge::new("instagram", &[]).await;
        let registrations = vec![coucou.registration(), bridge.registration()];
        let synapse = Synapse::start(Options { registrations, encrypted: true }).await;
        let mut clients = Vec::new();
        for name in ["owner", "friend"] {
            synapse.user(name, PASSWORD).await;
            clients.push(Client::log_in(&synapse, name, PASSWORD).await);
        }
        let (friend, phone) = (clients.pop().unwrap(), clients.pop().unwrap());
        let receiver = Receiver::start().await;
        let coucou = coucou.homeserver(&synapse.url()).webhook(&receiver);
        Self { coucou, synapse, bridge, receiver, phone, friend, database }
    }

    async fn set() -> Self {
        let mut scene = Self::prepare().await;
        scene.coucou.start().await;
        scene
    }

    fn send(&self) -> Send<'_> {
        self.bridge.send(&self.synapse.url())
    }

    /// Makes a portal that the owner joins by hand, and answers what was said in it.
    async fn portal(&self, send: Send<'_>) -> Sent {
        let mut sending = send.invite(OWNER).start();
        let portal = sending.portal().await;
        self.phone.join(&portal).await;
        sending.finish().await
    }

    async fn as_bot(&self, method: &str, path: &str, body: &Value) -> Value {
        let bot = self.bridge.bot();
        self.bridge.request_as(&self.synapse.url(), &bot, (method, path), body).await
    }

    /// Writes both kinds of the bridge's claim.
    async fn claim(&self, room: &str, content: &Value) {
        for kind in ["m.bridge", "uk.half-shot.bridge"] {
            self.as_bot("PUT", &format!("rooms/{room}/state/{kind}/localhost%2Finstagram"), content).await;
        }
    }

    async fn claim_of(&self, room: &str) -> Value {
        let path = format!("rooms/{room}/state/m.bridge/localhost%2Finstagram");
        self.as_bot("GET", &path, &Value::Null).await
    }

    /// Waits until all that was sent was told, in its order and by the bridge.
    async fn assert_told(&self, room: &str, sent: &[&Sent]) {
        let expected: Vec<_> =
            sent.iter().flat_map(|sent| sent.messages()).map(|line| &line.event_id).collect();
        let of_room = |taken: &[Attempt]| {
            let messages = taken.iter().filter(|told| told.is_message() && told.room_id() == room).cloned();
            messages.collect::<Vec<_>>()
        };
        let what = format!("{} messages of {room}", expected.len());
        let is_all = |taken: &[Attempt]| of_room(taken).len() >= expected.len();
        let told = of_room(&self.receiver.wait_until(&what, ARRIVAL, is_all).await);
        let ids: Vec<_> = told.iter().map(Attempt::event_id).collect();
        assert_eq!(ids, expected, "{}", self.coucou.log());
        for attempt in &told {
            let data = attempt.data();
            let found = (&data["network"], &data["encryption"]["trust"]);
            assert_eq!(found, (&json!("instagram"), &json!("bridge")), "{attempt:?}");
        }
    }

    /// The reasons of the alarms about bridges that last.
    async fn alarms(&self) -> Vec<Value> {
        let (_, stats) = self.coucou.api("stats").await;
        let alarms = stats["stored"]["bridges"]["alarms"].as_array().unwrap().iter();
        alarms.map(|alarm| alarm["reason"].clone()).collect()
    }

    async fn number(&self, statement: &'static str) -> i64 {
        self.database.number(statement).await
    }

    async fn until_is(&self, what: &str, statement: &'static str, expected: i64) {
        until(what, ARRIVAL, async || (self.number(statement).await == expected).then_some(())).await;
    }

    /// Waits for the news of a bridge, and answers type, reason and data of all.
    async fn bridge_news(&self, count: usize) -> Vec<(String, Value)> {
        let news = |taken: &[Attempt]| {
            let news = taken.iter().filter(|told| told.event().starts_with("bridge."));
            news.map(|told| (told.event().to_owned(), told.data()["reason"].clone())).collect::<Vec<_>>()
        };
        let is_all = |taken: &[Attempt]| news(taken).len() >= count;
        news(&self.receiver.wait_until("news of a bridge", ARRIVAL, is_all).await)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_that_the_bridge_follows_loses_nothing_and_is_no_disconnection() {
    let scene = Scene::set().await;
    let old = scene.portal(scene.send().messages("text")).await;
    scene.assert_told(old.portal(), &[&old]).await;
    // The bridge speaks first, and states the room to be its own a while later.
    let late = Duration::from_secs(2);
    let new =
        scene.send().replaces(old.portal()).bridge_info_after(late).invite(OWNER).messages("text,image");
    let sent = new.count(10).interval(Duration::from_millis(400)).run().await;
    scene.assert_told(sent.portal(), &[&sent]).await;
    let joined = scene
        .receiver
        .taken()
        .into_iter()
        .find(|told| told.event() == "room.joined" && told.room_id() == sent.portal());
    assert_eq!(joined.unwrap().data()["membership"]["replaces_room"], old.portal());
    scene.as_bot("POST", &format!("rooms/{}/leave", old.portal()), &json!({})).await;
    let more = scene.send().room(sent.portal()).messages("text").run().await;
    scene.assert_told(sent.portal(), &[&sent, &more]).await;
    assert_eq!(scene.alarms().await, [Value::Null; 0], "{}", scene.coucou.log());
    assert_eq!(scene.number("SELECT COUNT(*) FROM pending_events").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_portal_that_is_claimed_late_finds_its_messages_and_keys() {
    let scene = Scene::set().await;
    // Nothing is known of the bridge so far.
    let new = scene.send().bridge_info_after(Duration::from_secs(4)).rotate_every(3).messages("text,image");
    let sent = scene.portal(new.count(12).interval(Duration::from_millis(500))).await;
    scene.assert_told(sent.portal(), &[&sent]).await;
    let read = scene.coucou.log().matches("no, for now").count();
    assert!(read > 0, "it was read before it was claimed\n{}", scene.coucou.log());
    assert_eq!(scene.number("SELECT COUNT(*) FROM pending_events").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_changes_or_is_gone_for_a_moment_loses_nothing() {
    let scene = Scene::set().await;
    let first = scene.portal(scene.send().rotate_every(2).messages("text")).await;
    let portal = first.portal().to_owned();
    let claim = scene.claim_of(&portal).await;
    let mut changed = claim.clone();
    changed["channel"]["displayname"] = json!("Alice of Wonderland");
    scene.claim(&portal, &changed).await;
    let second = scene.send().room(&portal).messages("text").run().await;
    scene.assert_told(&portal, &[&first, &second]).await;
    // Gone, and there are more than one new keys in that moment.
    scene.claim(&portal, &json!({})).await;
    let third = scene.send().room(&portal).messages("text").count(5).run().await;
    scene
        .until_is("the room to be held", "SELECT COUNT(*) FROM pending_events WHERE state = 'queued'", 5)
        .await;
    scene.claim(&portal, &claim).await;
    let fourth = scene.send().room(&portal).messages("text").run().await;
    scene.assert_told(&portal, &[&first, &second, &third, &fourth]).await;
    assert_eq!(scene.number("SELECT COUNT(*) FROM pending_events").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_comes_after_the_bridge_has_let_go_of_its_room_releases_its_message() {
    let scene = Scene::set().await;
    let keys = tempfile::tempdir().unwrap();
    let mut sending = scene.send().invite(OWNER).keys_when(keys.path()).messages("text").start();
    let portal = sending.portal().await;
    scene.phone.join(&portal).await;
    let said = sending.next().await.unwrap();
    scene.until_is("the ledger", "SELECT COUNT(*) FROM pending_events WHERE state = 'ledger'", 1).await;
    scene.claim(&portal, &json!({})).await;
    scene.until_is("the room to be held", "SELECT COUNT(*) FROM rooms WHERE unrelayed_since > 0", 1).await;
    give(keys.path(), 1);
    let sent = sending.finish().await;
    scene.assert_told(&portal, &[&sent]).await;
    let told = scene.receiver.messages().into_iter().find(|told| told.event_id() == said.event_id).unwrap();
    assert_eq!((&told.data()["late"], &told.data()["direction"]), (&json!(true), &json!("in")));
}

fn give(keys: &Path, session: usize) {
    std::fs::write(keys.join(session.to_string()), "").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_that_a_member_has_written_over_while_coucou_was_down_cost_neither_keys_nor_ledger() {
    let mut scene = Scene::set().await;
    let keys = tempfile::tempdir().unwrap();
    let first = scene.portal(scene.send().rotate_every(1).messages("text")).await;
    let portal = first.portal().to_owned();
    scene.assert_told(&portal, &[&first]).await;
    let levels = format!("rooms/{portal}/state/m.room.power_levels");
    let mut content = scene.as_bot("GET", &levels, &Value::Null).await;
    content["users"][OWNER] = json!(100);
    scene.as_bot("PUT", &levels, &content).await;
    // One is on the ledger, whose key comes much later.
    let mut waiting = scene.send().room(&portal).keys_when(keys.path()).messages("text").start();
    let lone = waiting.next().await.unwrap();
    let lone = if lone.event_id.is_empty() { waiting.next().await.unwrap() } else { lone };
    scene.until_is("the ledger", "SELECT COUNT(*) FROM pending_events WHERE state = 'ledger'", 1).await;
    let known = scene.number(KEYS).await;

    scene.coucou.kill9();
    let owner = scene.synapse.log_in("owner", PASSWORD).await;
    for kind in ["m.bridge", "uk.half-shot.bridge"] {
        let path = format!("v3/rooms/{portal}/state/{kind}/localhost%2Finstagram");
        owner.request("PUT", &path, Some(&json!({}))).await;
    }
    scene.coucou.start().await;
    let read = "SELECT COUNT(*) FROM rooms WHERE relay = 'yes' AND due_at IS NULL";
    scene.until_is("the portal to be read", read, 1).await;
    assert!(scene.number(KEYS).await >= known, "{}", scene.coucou.log());
    give(keys.path(), 1);
    waiting.finish().await;
    let is_told = |taken: &[Attempt]| taken.iter().any(|told| told.event_id() == lone.event_id);
    let taken = scene.receiver.wait_until("the late message", ARRIVAL, is_told).await;
    let told = taken.iter().find(|told| told.is_message() && told.event_id() == lone.event_id).unwrap();
    let data = told.data();
    assert_eq!((&data["late"], &data["encryption"]["trust"]), (&json!(true), &json!("bridge")));
    let more = scene.send().room(&portal).messages("text").run().await;
    let more = &more.messages().next().unwrap().event_id;
    let is_told = |taken: &[Attempt]| taken.iter().any(|told| told.event_id() == more);
    scene.receiver.wait_until("what comes now", ARRIVAL, is_told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_rooms_keys_and_events_are_gone_after_an_hour_and_no_sooner() {
    let mut scene = Scene::prepare().await;
    scene.receiver.at_any_time();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let clock: Arc<ManualClock> = ManualClock::at(Timestamp::default().plus(now));
    scene.coucou.start_inside(&clock).await;
    let sent = scene.portal(scene.send().messages("text")).await;
    scene.assert_told(sent.portal(), &[&sent]).await;
    let of_portal = scene.number(KEYS).await;
    let private = scene.phone.private_room(FRIEND).await;
    scene.friend.join(&private).await;
    for client in [&scene.phone, &scene.friend] {
        client.say(&private, "a secret").await;
    }
    scene.until_is("its keys", KEYS, of_portal + 2).await;
    scene.until_is("its events", "SELECT COUNT(*) FROM pending_events WHERE state = 'queued'", 2).await;
    scene.until_is("the first reading", "SELECT COUNT(*) FROM rooms WHERE unrelayed_since > 0", 1).await;
    clock.advance(HOUR.checked_sub(Duration::from_mins(1)).unwrap());
    let more = scene.send().room(sent.portal()).messages("text").run().await;
    scene.assert_told(sent.portal(), &[&sent, &more]).await;
    assert_eq!(scene.number(KEYS).await, of_portal + 2, "not yet");
    clock.advance(Duration::from_mins(2));
    scene.until_is("its keys to be gone", KEYS, of_portal).await;
    let settled =
        "SELECT COUNT(*) FROM rooms WHERE relay = 'no' AND unrelayed_since IS NULL AND state IS NULL";
    scene.until_is("it to be settled", settled, 1).await;
    assert_eq!(scene.number("SELECT COUNT(*) FROM pending_events").await, 0);
    scene.friend.say(&private, "another secret").await;
    let last = scene.send().room(sent.portal()).messages("text").run().await;
    scene.assert_told(sent.portal(), &[&sent, &more, &last]).await;
    scene.until_is("nothing to be kept", KEYS, of_portal).await;
    assert_eq!(scene.number("SELECT COUNT(*) FROM pending_events").await, 0);
    let told = scene.receiver.taken();
    assert!(told.iter().all(|attempt| attempt.room_id() != private), "{told:#?}");
    scene.coucou.stop_inside().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_is_lost_is_told_from_an_encrypted_management_room() {
    let mut scene = Scene::prepare().await;
    scene.coucou.reset("COUCOU_ROOMS_SETTLE_AFTER", "3s");
    scene.coucou.start().await;
    let sent = scene.portal(scene.send().messages("text")).await;
    scene.assert_told(sent.portal(), &[&sent]).await;
    let lost = ("bridge.disconnected".to_owned(), json!("login_lost"));
    let back = ("bridge.resumed".to_owned(), json!("login_lost"));

    // While it is not settled what room it is.
    let management = scene.send().management().rotate_every(1).invite(OWNER);
    let said = management.messages("login_lost,login_back").run().await;
    assert!(said.messages().all(|line| line.wire_type == "m.room.encrypted"), "{said:?}");
    let management = said.portal().to_owned();
    assert_eq!(scene.bridge_news(2).await, [lost.clone(), back.clone()]);
    let managed = "SELECT COUNT(*) FROM rooms WHERE managed_by = '@instagrambot:localhost' \
                   AND relay = 'no' AND unrelayed_since IS NULL";
    scene.until_is("the management room to be known", managed, 1).await;
    scene.until_is("nothing of it to be kept", "SELECT COUNT(*) FROM pending_events", 0).await;
    // Afterwards, also by a process that begins anew.
    scene.coucou.restart().await;
    scene.send().management().room(&management).messages("login_lost").run().await;
    assert_eq!(scene.bridge_news(3).await[2], lost);
    // And with a key that comes after its message.
    let keys = tempfile::tempdir().unwrap();
    let late = scene.send().management().room(&management).keys_when(keys.path()).messages("login_back");
    let late = late.start();
    scene.until_is("its key to be awaited", "SELECT COUNT(*) FROM pending_events", 1).await;
    give(keys.path(), 1);
    late.finish().await;
    assert_eq!(scene.bridge_news(4).await[3], back);
    scene.until_is("nothing of it to be kept", "SELECT COUNT(*) FROM pending_events", 0).await;
    let told = scene.receiver.taken();
    assert!(told.iter().all(|attempt| attempt.room_id() != management), "{told:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ban_that_redacts_takes_back_what_the_member_has_said() {
    let scene = Scene::set().await;
    let sent = scene.portal(scene.send().messages("text,image,reaction")).await;
    let portal = sent.portal().to_owned();
    scene.assert_told_of(&sent).await;
    let ban = json!({"membership": "ban", "reason": "spam", "org.matrix.msc4293.redact_events": true});
    let path = format!("rooms/{portal}/state/m.room.member/{GHOST}");
    let event = scene.as_bot("PUT", &path, &ban).await["event_id"].take();
    let redactions = |taken: &[Attempt]| {
        let redactions = taken.iter().filter(|told| told.event().ends_with(".redacted")).cloned();
        redactions.collect::<Vec<_>>()
    };
    let is_all = |taken: &[Attempt]| redactions(taken).len() >= 3;
    let told = redactions(&scene.receiver.wait_until("the redactions", ARRIVAL, is_all).await);
    let found: Vec<_> = told.iter().map(|told| (told.event(), &told.data()["redacts"])).collect();
    let ids: Vec<_> = sent.messages().map(|line| json!(line.event_id)).collect();
    assert_eq!(
        found,
        [("message.redacted", &ids[0]), ("message.redacted", &ids[1]), ("reaction.redacted", &ids[2])]
    );
    for told in &told {
        let data = told.data();
        assert_eq!((&data["event_id"], &data["content"]["reason"]), (&event, &json!("spam")));
        assert_eq!(data["sender"]["mxid"], scene.bridge.bot());
    }
    let left = "SELECT COUNT(*) FROM messages WHERE redacted_at IS NULL AND type IN ('message.created', 'reaction.created')";
    assert_eq!(scene.number(left).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_may_be_named_beside_bridged_ones() {
    let mut scene = Scene::prepare().await;
    let named = scene.phone.private_room(FRIEND).await;
    let other = scene.phone.private_room(FRIEND).await;
    for room in [&named, &other] {
        scene.friend.join(room).await;
    }
    scene.coucou.reset("COUCOU_ROOMS_RELAY", &format!("bridged,{named}"));
    scene.coucou.start().await;
    let sent = scene.portal(scene.send().messages("text")).await;
    scene.assert_told(sent.portal(), &[&sent]).await;
    scene.friend.say(&other, "a secret").await;
    let said = scene.friend.say(&named, "not a secret").await;
    let is_told = |taken: &[Attempt]| taken.iter().any(|told| told.is_message() && told.room_id() == named);
    let taken = scene.receiver.wait_until("what is said in the named room", ARRIVAL, is_told).await;
    let told: Vec<_> =
        taken.iter().filter(|told| told.is_message() && told.room_id() != sent.portal()).collect();
    assert_eq!(told.len(), 1, "{told:#?}");
    assert_eq!(
        (told[0].event_id(), &told[0].data()["content"]["text"]),
        (&*said.event_id, &json!("not a secret"))
    );
    // Left out, a portal is not relayed.
    scene.coucou.kill9();
    scene.coucou.reset("COUCOU_ROOMS_RELAY", &format!("bridged,-{}", sent.portal()));
    scene.coucou.start().await;
    scene.send().room(sent.portal()).messages("text").run().await;
    let gone = "SELECT COUNT(*) FROM rooms WHERE relay = 'no' AND unrelayed_since IS NULL";
    until("the portal to be left out", ARRIVAL, async || (scene.number(gone).await >= 1).then_some(())).await;
    let told = scene.receiver.messages();
    let of_portal = told.iter().filter(|told| told.room_id() == sent.portal()).count();
    assert_eq!(of_portal, 1, "{told:#?}");
}

impl Scene {
    /// Waits until all that was sent was told.
    async fn assert_told_of(&self, sent: &Sent) {
        let ids: Vec<_> = sent.messages().map(|line| line.event_id.clone()).collect();
        let is_all = |taken: &[Attempt]| ids.iter().all(|id| taken.iter().any(|told| told.event_id() == id));
        self.receiver.wait_until("all that was sent", ARRIVAL, is_all).await;
    }
}
