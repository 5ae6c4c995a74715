//! Keys that come late, or never: what waits for them, what is told of it, and what is refused.
//!
//! The service runs inside of the test, by a clock that the test moves; Synapse, its pushes and the bridge's
//! keys are real. What no homeserver does by itself, a replay, is done on the fake one.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use coucou::clock::{ManualClock, Timestamp};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    coucou::Coucou,
    fake_homeserver::{FakeBridge, FakeHomeserver},
    postgres::Database,
    receiver::{Attempt, Receiver},
    synapse::{Bridge, Options, Sending, Sent, Synapse},
    until,
};

const BOT: &str = "@coucou:localhost";
const SOON: Duration = Duration::from_mins(1);
/// The default of `undecryptable.notify_after`.
const NOTIFY_AFTER: Duration = Duration::from_mins(5);
const WAITING: &str = "SELECT COUNT(*) FROM pending_events";
const ON_LEDGER: &str = "SELECT COUNT(*) FROM pending_events WHERE state = 'ledger'";

/// A homeserver, a bridge, a webhook, and coucou between them by a clock that the test moves.
struct Scene {
    coucou: Coucou,
    clock: Arc<ManualClock>,
    bridge: Bridge,
    receiver: Receiver,
    synapse: Synapse,
    database: Database,
}

impl Scene {
    async fn set() -> Self {
        let database = Database::create().await;
        let coucou = Coucou::new().await.store(&database.url());
        let bridge = Bridge::new("instagram", &[]).await;
        let registrations = vec![coucou.registration(), bridge.registration()];
        let synapse = Synapse::start(Options { registrations, encrypted: true }).await;
        let receiver = Receiver::start().await;
        receiver.at_any_time();
        let mut coucou = coucou.homeserver(&synapse.url()).webhook(&receiver);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let clock = ManualClock::at(Timestamp::default().plus(now));
        coucou.start_inside(&clock).await;
        Self { coucou, clock, bridge, receiver, synapse, database }
    }

    /// Sends these kinds of messages in a portal of their own, each session's key once it is [given](give).
    async fn say(&self, kinds: &str, rotate_every: usize, keys: &Path) -> Sending {
        let send = self.bridge.send(&self.synapse.url()).invite(BOT).messages(kinds).text("{n}");
        let mut sending = send.rotate_every(rotate_every).keys_when(keys).start();
        self.while_time_passes(sending.said(kinds.split(',').count())).await;
        sending
    }

    /// Lets the clock go on slowly: much slower than a busy machine, but what is to be tried again is.
    async fn while_time_passes(&self, work: impl Future<Output = ()>) {
        let tick = async {
            loop {
                tokio::time::sleep(Duration::from_millis(200)).await;
                self.clock.advance(Duration::from_millis(50));
            }
        };
        tokio::select! { () = work => {}, () = tick => {} }
    }

    async fn number_is(&self, statement: &'static str, expected: i64) {
        let what = format!("{expected} for {statement}");
        until(&what, SOON, async || (self.database.number(statement).await == expected).then_some(())).await;
    }

    /// Waits until so many messages and notices of a room are taken; that it was joined does not count.
    async fn taken(&self, room_id: &str, count: usize) -> Vec<Attempt> {
        let of_room = |taken: &[Attempt]| -> Vec<Attempt> {
            let of_room = taken.iter().filter(|attempt| attempt.room_id() == room_id);
            of_room.filter(|attempt| attempt.event().starts_with("message.")).cloned().collect()
        };
        let what = format!("{count} deliveries of {room_id}");
        of_room(&self.receiver.wait_until(&what, SOON, |taken| of_room(taken).len() >= count).await)
    }
}

/// Lets the sender send the key of its n-th session.
fn give(keys: &TempDir, session: usize) {
    fs::write(keys.path().join(session.to_string()), "").unwrap();
}

/// Type, text, and whether it is late.
fn told(attempts: &[Attempt]) -> Vec<(&str, &str, bool)> {
    let told = attempts.iter().map(|attempt| {
        let data = attempt.data();
        let what = [&data["content"]["text"], &data["undecryptable"]["reason"]];
        let what = what.iter().find_map(|what| what.as_str()).unwrap_or_default();
        (attempt.event(), what, data["late"].as_bool().unwrap())
    });
    told.collect()
}

/// What is delivered of a room is numbered without gaps, and bears the times at which Synapse took it.
async fn assert_in_order(scene: &Scene, sent: &Sent, taken: &[Attempt]) {
    let numbers: Vec<_> = taken.iter().map(|attempt| attempt.data()["sequence"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (numbers[0]..).take(taken.len()).collect::<Vec<_>>());
    let token = scene.coucou.registered("as_token");
    let reader = crate::support::synapse::as_service(&scene.synapse.url(), &token, BOT);
    for attempt in taken {
        let path = format!("v3/rooms/{}/event/{}?user_id={BOT}", sent.portal(), attempt.event_id());
        let event = reader.request("GET", &path, None).await;
        let sent_at = Timestamp(event["origin_server_ts"].as_i64().unwrap()).rfc3339();
        assert_eq!(attempt.payload["timestamp"], json!(sent_at), "{event}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn late_keys_release_what_waits_for_them_and_the_webhook_is_told_once() {
    let mut scene = Scene::set().await;
    let keys = tempfile::tempdir().unwrap();
    let sending = scene.say("text,text,text,text", 2, keys.path()).await;
    scene.number_is(WAITING, 4).await;

    // A second late: nothing but the wait is to be seen of it.
    scene.clock.advance(Duration::from_secs(1));
    give(&keys, 1);
    let two = scene.receiver.wait_for(2, SOON).await;
    let room = two[0].room_id().to_owned();
    let created = |text, late| ("message.created", text, late);
    assert_eq!(told(&two), [created("0", false), created("1", false)]);
    scene.number_is(WAITING, 2).await;

    // Ten minutes late: told of after five, once, whatever happens to the service meanwhile.
    scene.clock.advance(NOTIFY_AFTER + Duration::from_secs(1));
    let notices = scene.taken(&room, 4).await;
    let notice = ("message.undecryptable", "no_key", false);
    assert_eq!(told(&notices[2..]), [notice, notice]);
    scene.number_is(ON_LEDGER, 2).await;
    scene.coucou.stop_inside().await;
    scene.coucou.start_inside(&scene.clock).await;
    scene.clock.advance(NOTIFY_AFTER);
    give(&keys, 2);
    let taken = scene.taken(&room, 6).await;
    assert_eq!(told(&taken[4..]), [created("2", true), created("3", true)]);
    for (notice, created) in taken[2..4].iter().zip(&taken[4..]) {
        assert_eq!(created.event_id(), notice.event_id());
        assert_eq!(created.data()["undecryptable_id"], notice.data()["id"]);
        assert_eq!(notice.data()["encryption"]["session_id"], created.data()["encryption"]["session_id"]);
    }
    assert_in_order(&scene, &sending.finish().await, &taken).await;
    scene.number_is(WAITING, 0).await;

    withheld(&scene).await;
    redacted_before_its_key_came(&scene).await;
    edited_before_its_key_came(&scene).await;
    assert_eq!(scene.database.number(WAITING).await, 1, "what is withheld stays on the ledger");
    scene.coucou.stop_inside().await;
}

/// Who withholds a key says why, and so does the ledger.
async fn withheld(scene: &Scene) {
    let send = scene.bridge.send(&scene.synapse.url()).invite(BOT).messages("text").withhold();
    let mut sending = send.start();
    scene.while_time_passes(sending.said(1)).await;
    let sent = sending.finish().await;
    let withheld =
        "SELECT COUNT(*) FROM pending_events WHERE state = 'ledger' AND reason = 'withheld:m.unverified'";
    scene.number_is(withheld, 1).await;
    scene.clock.advance(NOTIFY_AFTER);
    let taken = scene.taken(sent.portal(), 1).await;
    assert_eq!(told(&taken), [("message.undecryptable", "withheld:m.unverified", false)]);
    assert!(!String::from_utf8_lossy(&taken[0].body).contains("ciphertext"));
}

/// Of two messages without a key the second is taken back: only the first is ever relayed.
async fn redacted_before_its_key_came(scene: &Scene) {
    let keys = tempfile::tempdir().unwrap();
    let sending = scene.say("text,text,redaction", 100, keys.path()).await;
    let waiting = "SELECT COUNT(*) FROM pending_events WHERE state = 'queued'";
    scene.number_is(waiting, 2).await;
    give(&keys, 1);
    let sent = sending.finish().await;
    let taken = scene.taken(sent.portal(), 2).await;
    assert_eq!(told(&taken)[0], ("message.created", "0", false));
    let target = sent.messages().nth(1).unwrap().event_id.clone();
    assert_eq!((taken[1].event(), taken[1].data()["redacts"].as_str()), ("message.redacted", Some(&*target)));
    assert!(scene.receiver.attempts().iter().all(|attempt| attempt.event_id() != target));
}

/// The key of an edit comes, and then the key of what it edits.
async fn edited_before_its_key_came(scene: &Scene) {
    let keys = tempfile::tempdir().unwrap();
    let sending = scene.say("text,edit", 1, keys.path()).await;
    scene.number_is(WAITING, 3).await;
    give(&keys, 2);
    scene.number_is("SELECT COUNT(*) FROM key_news", 0).await;
    scene.clock.advance(Duration::from_secs(11));
    scene.number_is(ON_LEDGER, 2).await;
    give(&keys, 1);
    let sent = sending.finish().await;
    let taken = scene.taken(sent.portal(), 2).await;
    assert_eq!(told(&taken), [("message.edited", "1", false), ("message.created", "0", true)]);
    assert_eq!(taken[0].data()["relates_to"]["replaces"], json!(taken[1].event_id()));
    assert_in_order(scene, &sent, &taken).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_is_refused_whoever_sends_it_and_a_redelivery_is_the_same() {
    let database = Database::create().await;
    let coucou = Coucou::new().await.store(&database.url());
    let homeserver = FakeHomeserver::start(&coucou).await;
    let receiver = Receiver::start().await;
    let mut coucou = coucou.homeserver(&homeserver.url()).webhook(&receiver);
    coucou.start().await;
    let device_id = homeserver.wait_for_device(BOT, SOON).await;
    let mut bridge = FakeBridge::new(&homeserver, "instagram");
    let (room, other) =
        (bridge.create_portal(&homeserver, "1", "Alice"), bridge.create_portal(&homeserver, "2", "Bob"));
    for room_id in [&room, &other] {
        homeserver.invite(room_id, &bridge.bot(), BOT).await;
        homeserver.wait_for_join(room_id, BOT, SOON).await;
    }
    let copy = |event: &Value, id: &str, room_id: &str, sender: &str| {
        let mut copy = event.clone();
        (copy["event_id"], copy["room_id"], copy["sender"]) = (json!(id), json!(room_id), json!(sender));
        copy
    };
    let (alice, bob, mallory) = (bridge.ghost("1"), bridge.ghost("2"), "@mallory:localhost");
    let key = bridge.share_key(&homeserver, &room, BOT, &device_id);
    let (one, two) = (bridge.say(&room, "1", "one"), bridge.say(&room, "1", "two"));
    // Another id in the same room, another sender, another room, a stranger.
    let events = [
        one.clone(),
        copy(&one, "$another-id", &room, &alice),
        copy(&one, "$another-sender", &room, &bob),
        copy(&one, "$another-room", &other, &bob),
        copy(&one, "$a-stranger", &room, mallory),
        two.clone(),
    ];
    assert_eq!(homeserver.push(&events, &key).await, 200);
    receiver.wait_for(2, SOON).await;
    coucou.restart().await;
    let again = [one, two.clone(), copy(&two, "$after-a-restart", &room, &alice)];
    homeserver.push_until_taken(&again, &[]).await;
    let last = [bridge.say(&room, "1", "three"), copy(&two, "$last", &other, &alice)];
    homeserver.push_until_taken(&last, &[]).await;
    let messages = receiver.wait_for(3, SOON).await;
    assert_eq!(told(&messages).iter().map(|(_, text, _)| *text).collect::<Vec<_>>(), ["one", "two", "three"]);
    let refused = "SELECT COUNT(*) FROM pending_events WHERE state = 'ledger' \
                   AND reason IN ('replay', 'untrusted_sender')";
    until("the replays on the ledger", SOON, async || (database.number(refused).await == 6).then_some(()))
        .await;
    assert_eq!(database.number(WAITING).await, 6, "a redelivery leaves nothing");
}
