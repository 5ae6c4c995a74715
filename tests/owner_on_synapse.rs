//! The owner's way, told from outside: bridges invite nobody but the owner, and everything arrives.
//!
//! The owner is a real user with a password, a phone with a cross-signed device, and a private life.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, SqliteConnection};

use crate::support::{
    coucou::Coucou,
    postgres::Database,
    receiver::{Attempt, Receiver},
    synapse::{Bridge, Client, Options, Sent, Synapse, User},
    until,
};

const OWNER: &str = "@owner:localhost";
const FRIEND: &str = "@friend:localhost";
const BOT: &str = "@coucou:localhost";
const PASSWORD: &str = "the password of a scenario";
const ARRIVAL: Duration = Duration::from_mins(1);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Read,
    Invite,
}

#[derive(Clone, Copy)]
enum Store {
    Postgres,
    Sqlite,
}

/// The owner's account as the homeserver shows it.
#[derive(Debug, PartialEq)]
struct Identity {
    /// Names of devices by their ids.
    devices: BTreeMap<String, Value>,
    /// Keys of devices by their ids, with all signatures.
    device_keys: BTreeMap<String, Value>,
    /// The master, self-signing and user-signing keys.
    cross_signing: Vec<Value>,
    /// Settings and secrets.
    account_data: Value,
}

impl Identity {
    async fn of(owner: &User) -> Self {
        let devices = owner.request("GET", "v3/devices", None).await["devices"].take();
        let id = |device: &Value| device["device_id"].as_str().unwrap().to_owned();
        let devices = devices.as_array().unwrap().iter();
        let mut keys = owner.query_keys(OWNER).await;
        let device_keys = serde_json::from_value(keys["device_keys"][OWNER].take()).unwrap();
        let kinds = ["master_keys", "self_signing_keys", "user_signing_keys"];
        let nothing = r#"{"room":{"timeline":{"limit":1}},"presence":{"types":[]}}"#;
        let filter: String = url::form_urlencoded::byte_serialize(nothing.as_bytes()).collect();
        let mut sync = owner.request("GET", &format!("v3/sync?timeout=0&filter={filter}"), None).await;
        Self {
            devices: devices.map(|device| (id(device), device["display_name"].clone())).collect(),
            device_keys,
            cross_signing: kinds.map(|kind| keys[kind][OWNER].take()).into(),
            account_data: sync["account_data"]["events"].take(),
        }
    }
}

/// A homeserver that knows coucou, which runs; before it did, the owner had a life, and a portal.
struct Scene {
    coucou: Coucou,
    synapse: Synapse,
    bridge: Bridge,
    receiver: Receiver,
    /// The owner in a browser: a session without encryption, for looking at things.
    owner: User,
    phone: Client,
    friend: Client,
    before: Identity,
    /// A portal that existed before.
    portal: String,
    /// An encrypted room of the owner and a friend that existed before.
    private: String,
    /// coucou's device on the owner's account.
    device_id: String,
    _database: Option<Database>,
}

impl Scene {
    async fn set(store: Store, mode: Mode, encrypted: bool) -> Self {
        let bridge = Bridge::new("instagram", &["^@owner:localhost$"]).await;
        let registrations = vec![bridge.registration()];
        let mut synapse = Synapse::start(Options { registrations, encrypted }).await;
        let owner = synapse.user("owner", PASSWORD).await;
        synapse.user("friend", PASSWORD).await;
        let phone = Client::log_in(&synapse, "owner", PASSWORD).await;
        let friend = Client::log_in(&synapse, "friend", PASSWORD).await;

        let mut greeting = bridge.send(&synapse.url()).invite(OWNER).name("Alice").messages("text").start();
        let portal = greeting.portal().await;
        phone.join(&portal).await;
        greeting.finish().await;
        let private = phone.private_room(FRIEND).await;
        friend.join(&private).await;
        phone.say(&private, "a secret before coucou").await;
        let before = Identity::of(&owner).await;
        assert_eq!(before.device_keys.keys().collect::<Vec<_>>(), [&phone.device_id]);
        assert!(before.cross_signing.iter().all(Value::is_object), "{:?}", before.cross_signing);

        let coucou = Coucou::of_owner(OWNER).await.homeserver(&synapse.url());
        let mut coucou = coucou.set("COUCOU_ROOMS_SETTLE_AFTER", "2s");
        let database = match store {
            Store::Postgres => Some(Database::create().await),
            Store::Sqlite => None,
        };
        if let Some(database) = &database {
            coucou = coucou.store(&database.url());
        }
        if mode == Mode::Invite {
            coucou = coucou.set("COUCOU_OWNER_MODE", "invite");
        }
        synapse.register(coucou.registration()).await;
        let receiver = Receiver::start().await;
        let mut coucou = coucou.webhook(&receiver);
        coucou.start().await;
        let device_id = until("coucou's device on the owner's account", ARRIVAL, async || {
            let keys = owner.query_keys(OWNER).await;
            let devices = keys["device_keys"][OWNER].as_object()?.keys();
            devices.into_iter().find(|device_id| **device_id != phone.device_id).cloned()
        })
        .await;
        Self {
            coucou,
            synapse,
            bridge,
            receiver,
            owner,
            phone,
            friend,
            before,
            portal,
            private,
            device_id,
            _database: database,
        }
    }

    async fn members(&self, room_id: &str) -> Vec<String> {
        let answer = self.owner.request("GET", &format!("v3/rooms/{room_id}/joined_members"), None).await;
        answer["joined"].as_object().unwrap().keys().cloned().collect()
    }

    /// Waits until as many messages of a room as `sent` has were delivered, and compares them.
    async fn assert_relayed(&self, room_id: &str, sent: &[Heard]) {
        let in_room = |taken: &[Attempt]| {
            let messages =
                taken.iter().filter(|attempt| attempt.is_message() && attempt.room_id() == room_id);
            messages.map(Heard::from).collect::<Vec<_>>()
        };
        let what = format!("{} messages of {room_id}", sent.len());
        let taken =
            self.receiver.wait_until(&what, ARRIVAL, |taken| in_room(taken).len() >= sent.len()).await;
        assert_eq!(in_room(&taken), sent, "{}", self.coucou.log());
    }

    /// How many rows of a table are about a room.
    async fn rows(&self, statement: &'static str, room_id: &str) -> i64 {
        let url = self.coucou.store_url();
        if url.starts_with("sqlite:") {
            let mut connection = SqliteConnection::connect(url).await.unwrap();
            return sqlx::query_scalar(statement).bind(room_id).fetch_one(&mut connection).await.unwrap();
        }
        let mut connection = PgConnection::connect(url).await.unwrap();
        sqlx::query_scalar(statement).bind(room_id).fetch_one(&mut connection).await.unwrap()
    }
}

/// What the webhook tells of a message, as far as these scenarios look.
#[derive(Debug, PartialEq)]
struct Heard {
    event_id: String,
    direction: &'static str,
    trust: &'static str,
    sender: String,
    content: Value,
}

impl Heard {
    fn all(sent: &Sent, direction: &'static str) -> Vec<Self> {
        let heard = |line: &crate::support::synapse::Line| Self {
            event_id: line.event_id.clone(),
            direction,
            trust: "bridge",
            sender: line.sender.clone(),
            content: line.content.clone(),
        };
        sent.messages().map(heard).collect()
    }
}

impl From<&Attempt> for Heard {
    fn from(attempt: &Attempt) -> Self {
        let data = attempt.data();
        let known = |field: &Value, names: [&'static str; 2]| {
            names.into_iter().find(|name| field.as_str() == Some(name)).unwrap_or("something else")
        };
        Self {
            event_id: attempt.event_id().to_owned(),
            direction: known(&data["direction"], ["in", "out"]),
            trust: known(&data["encryption"]["trust"], ["bridge", "cross_signed"]),
            sender: data["sender"]["mxid"].as_str().unwrap_or_default().to_owned(),
            content: data["matrix"]["content"].clone(),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owners_portals_arrive_without_another_member() {
    every_portal_of_the_owner_arrives(Store::Postgres, Mode::Read, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owners_portals_arrive_and_the_bot_is_invited() {
    every_portal_of_the_owner_arrives(Store::Postgres, Mode::Invite, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owners_portals_arrive_from_a_homeserver_without_experimental_features() {
    every_portal_of_the_owner_arrives(Store::Sqlite, Mode::Read, false).await;
}

async fn every_portal_of_the_owner_arrives(store: Store, mode: Mode, encrypted: bool) {
    let scene = Scene::set(store, mode, encrypted).await;
    let url = scene.synapse.url();
    let bridge = || scene.bridge.send(&url).invite(OWNER);

    // The portal that was there before: the bridge speaks for the ghost, and for the owner.
    let portal = &scene.portal;
    let mut old = Heard::all(&bridge().room(portal).messages("text,notice").run().await, "in");
    let puppet = bridge().room(portal).puppet(OWNER).messages("text").run().await;
    old.extend(Heard::all(&puppet, "out"));
    scene.assert_relayed(portal, &old).await;

    // A new portal: nobody joins by hand, and the bridge waits for nobody.
    let bob = || bridge().arg("--ghost", "17840000000000002").name("Bob");
    let sent = bob().no_wait().messages("text,image").run().await;
    let new_portal = sent.portal().to_owned();
    let mut new = Heard::all(&sent, "in");
    scene.assert_relayed(&new_portal, &new).await;

    for room_id in [portal, &new_portal] {
        if mode == Mode::Invite {
            let joined = async || scene.members(room_id).await.contains(&BOT.to_owned()).then_some(());
            until("the bot to be in the portal", ARRIVAL, joined).await;
        } else {
            assert!(!scene.members(room_id).await.contains(&BOT.to_owned()), "nobody else is to see it");
        }
    }
    new.extend(Heard::all(&bob().room(&new_portal).messages("emote").run().await, "in"));

    // The phone goes on as before.
    let last = old.last().map(|heard| heard.event_id.clone()).unwrap();
    assert!(scene.phone.can_read(portal, &last).await, "the phone reads what the bridge says");
    let said = scene.phone.say(portal, "from my phone").await;
    old.push(Heard {
        event_id: said.event_id,
        direction: "out",
        trust: "cross_signed",
        sender: OWNER.to_owned(),
        content: said.content,
    });
    scene.assert_relayed(portal, &old).await;
    scene.assert_relayed(&new_portal, &new).await;
    assert_eq!(scene.receiver.messages().len(), old.len() + new.len(), "and nothing else");
    if encrypted {
        scene.assert_checked().await;
    }
    scene.assert_identity_untouched().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_bridge_says_before_the_owner_has_joined_arrives() {
    let mut scene = Scene::set(Store::Postgres, Mode::Read, true).await;
    let url = scene.synapse.url();
    let portal = scene.portal.clone();
    let sent = scene.bridge.send(&url).invite(OWNER).room(&portal).messages("text").run().await;
    scene.assert_relayed(&portal, &Heard::all(&sent, "in")).await;

    // The homeserver pushes nothing of a room before the owner is in, and nobody answers the invite yet.
    scene.coucou.kill9();
    let bob = scene.bridge.send(&url).invite(OWNER).arg("--ghost", "17840000000000002").name("Bob");
    let sent = bob.no_wait().messages("text,notice,image").run().await;
    let new_portal = sent.portal().to_owned();
    scene.coucou.start().await;
    let mut new = Heard::all(&sent, "in");
    scene.assert_relayed(&new_portal, &new).await;

    let bob = scene.bridge.send(&url).invite(OWNER).arg("--ghost", "17840000000000002").room(&new_portal);
    new.extend(Heard::all(&bob.messages("emote").run().await, "in"));
    scene.assert_relayed(&new_portal, &new).await;
}

impl Scene {
    /// coucou's device came to the owner's account, and nothing else changed.
    /// `coucou check` finds all in order but what a person has not done yet: the recovery key was never printed,
    /// and without the owner's own the owner's identity cannot sign the device.
    async fn assert_checked(&self) {
        let output = self.coucou.run(&["check", "--json"]).await;
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(output.status.success(), "{report:#}");
        let lines = |status: &str| {
            let all = report["checks"].as_array().unwrap().iter();
            let of = all.filter(|finding| finding["status"] == status);
            of.map(|finding| finding["check"].as_str().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(lines("warn"), ["recovery_key", "identity"], "{report:#}");
        let good = lines("ok");
        for check in ["owner", "ping", "device", "to_device", "rooms", "webhooks"] {
            assert!(good.contains(&check), "{check}: {report:#}");
        }
    }

    async fn assert_identity_untouched(&self) {
        let mut after = Identity::of(&self.owner).await;
        assert_eq!(after.devices.remove(&self.device_id), Some(json!("coucou")));
        let keys = after.device_keys.remove(&self.device_id).unwrap();
        let signers = keys["signatures"][OWNER].as_object().unwrap().keys().collect::<Vec<_>>();
        assert_eq!(signers, [&format!("ed25519:{}", self.device_id)], "the owner's identity signed nothing");
        assert_eq!(after, self.before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owners_private_rooms_leave_nothing_with_postgres() {
    private_rooms_leave_nothing(Store::Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owners_private_rooms_leave_nothing_with_sqlite() {
    private_rooms_leave_nothing(Store::Sqlite).await;
}

async fn private_rooms_leave_nothing(store: Store) {
    let scene = Scene::set(store, Mode::Read, true).await;
    let Scene { phone, friend, private, portal, device_id, .. } = &scene;

    // The room that was there before: from now on coucou's device is given its keys as well.
    for (client, text) in [(friend, "a secret of the friend's"), (phone, "a secret of the owner's")] {
        let said = client.say(private, text).await;
        assert!(said.shared_with.contains(device_id), "{said:?}");
    }
    // A new one that a friend invites to: the answer is the owner's alone.
    let invited = &friend.private_room(OWNER).await;
    let said = friend.say(invited, "a secret for somebody who is not there yet").await;
    assert!(said.shared_with.contains(device_id), "{said:?}");
    // What is relayed afterwards came in afterwards.
    phone.say(portal, "so far").await;
    scene.receiver.wait_for(1, ARRIVAL).await;
    assert!(!scene.owner.joined_rooms().await.contains(invited), "only bridges are answered");
    phone.join(invited).await;
    phone.say(invited, "another secret").await;
    friend.say(invited, "and one more").await;
    phone.say(portal, "that is all").await;
    scene.receiver.wait_for(2, ARRIVAL).await;

    for room_id in [private, invited] {
        until(&format!("{room_id} to be known as private"), ARRIVAL, async || {
            let known = "SELECT COUNT(*) FROM rooms WHERE room_id = $1 AND relay = 'no' \
                         AND unrelayed_since IS NULL AND state IS NULL";
            (scene.rows(known, room_id).await == 1).then_some(())
        })
        .await;
        for statement in KEPT {
            assert_eq!(scene.rows(statement, room_id).await, 0, "{statement}\n{}", scene.coucou.log());
        }
    }
    assert!(scene.rows(KEPT[0], portal).await > 0, "keys of portals are kept");
    let told = scene.receiver.taken();
    assert!(told.iter().all(|attempt| attempt.room_id() == portal), "{told:#?}");
}

/// Whatever the store could keep of what was said in a room.
const KEPT: [&str; 5] = [
    "SELECT COUNT(*) FROM megolm_inbound_sessions WHERE room_id = $1",
    "SELECT COUNT(*) FROM megolm_indexes WHERE room_id = $1",
    "SELECT COUNT(*) FROM megolm_withheld WHERE room_id = $1",
    "SELECT COUNT(*) FROM pending_events WHERE room_id = $1",
    "SELECT COUNT(*) FROM messages WHERE room_id = $1",
];
