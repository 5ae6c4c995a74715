//! A homeserver in this process: quick to start, told when to fail, and it pushes what it is told to.
//!
//! It has just what coucou uses of the client-server API, and no more sense of right and wrong than that
//! needs: no power levels, no event authorisation, no federation. What depends on what a homeserver really
//! does is tested on Synapse. [`FakeBridge`] encrypts for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use base64::{
    Engine,
    prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Notify, task::JoinHandle, time::sleep};

use super::{coucou::Coucou, free_port, http, until};

mod bridge;
mod endpoints;
mod media;

pub(crate) use bridge::FakeBridge;
pub(crate) use media::Giving;

/// The name that user ids end in.
pub(crate) const SERVER_NAME: &str = "localhost";

/// How long it tries to push one transaction.
const PATIENCE: Duration = Duration::from_mins(2);

/// The application service, as the homeserver's configuration knows it.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// Where it is.
    pub(crate) url: String,
    /// What it shows to the homeserver.
    pub(crate) as_token: String,
    /// What the homeserver shows to it.
    pub(crate) hs_token: String,
    /// Its own user, who is not the bot.
    pub(crate) sender_localpart: String,
}

/// One homeserver on 127.0.0.1; gone when dropped.
pub(crate) struct FakeHomeserver {
    shared: Arc<Shared>,
    port: u16,
    server: JoinHandle<()>,
}

struct Shared {
    service: Service,
    client: reqwest::Client,
    world: Mutex<World>,
    /// Something came that a long poll may be waiting for.
    news: Notify,
    /// One transaction is in flight at a time.
    in_flight: tokio::sync::Mutex<()>,
}

/// Everything it knows.
#[derive(Default)]
struct World {
    users: BTreeSet<String>,
    devices: BTreeMap<(String, String), Device>,
    /// By user: the body of `keys/device_signing/upload`, with the signatures that came later.
    cross_signing: BTreeMap<String, Value>,
    rooms: BTreeMap<String, Room>,
    changed_users: BTreeSet<String>,
    failures: Vec<Failure>,
    requests: Vec<Request>,
    position: u64,
    /// Whether `/sync` keeps to-device messages back.
    lane_held: bool,
    transactions: u64,
    /// What it says the time is, in place of the real time.
    date: Option<String>,
    /// Events that the service's own doing gave rise to, and that it has not taken yet.
    unpushed: usize,
    /// What happened in all rooms, in order.
    timeline: Vec<Value>,
    /// By media id.
    files: BTreeMap<String, media::File>,
    downloads: media::Downloads,
}

#[derive(Default)]
struct Device {
    display_name: String,
    keys: Option<Value>,
    one_time_keys: BTreeMap<String, Value>,
    fallback_keys: BTreeMap<String, Value>,
    fallback_used: bool,
    /// To-device events that no `/sync` has acknowledged, each with its position.
    inbox: Vec<(u64, Value)>,
}

#[derive(Default)]
struct Room {
    /// By type and state key.
    state: BTreeMap<(String, String), Value>,
}

struct Failure {
    part: String,
    status: u16,
    left: usize,
}

/// A request that the homeserver got.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// The method.
    pub(crate) method: String,
    /// The path, decoded.
    pub(crate) path: String,
    /// The user that it was made for.
    pub(crate) user_id: String,
    /// The body's JSON.
    pub(crate) body: Value,
}

/// A transaction for the application service, to be put once or again and again.
#[derive(Clone, Debug)]
pub(crate) struct Transaction {
    /// Its id.
    pub(crate) txn_id: String,
    /// Its body.
    pub(crate) body: Value,
}

impl Transaction {
    /// As Synapse sends it again after a failure: its room events alone.
    pub(crate) fn retried(&self) -> Self {
        let body = json!({"events": self.body["events"]});
        Self { txn_id: self.txn_id.clone(), body }
    }
}

impl FakeHomeserver {
    /// Starts one that has `coucou`'s registration.
    pub(crate) async fn start(coucou: &Coucou) -> Self {
        Self::serve(Service {
            url: coucou.url(),
            as_token: coucou.registered("as_token"),
            hs_token: coucou.registered("hs_token"),
            sender_localpart: coucou.registered("sender_localpart"),
        })
        .await
    }

    /// Starts one for any application service.
    pub(crate) async fn serve(service: Service) -> Self {
        let port = free_port();
        let shared = Arc::new(Shared {
            service,
            client: http(),
            world: Mutex::default(),
            news: Notify::new(),
            in_flight: tokio::sync::Mutex::default(),
        });
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let router = endpoints::router(Arc::clone(&shared));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { shared, port, server }
    }

    /// Its base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Answers the next `times` requests whose path contains `part` with this status.
    pub(crate) fn fail(&self, part: &str, status: u16, times: usize) {
        self.world().failures.push(Failure { part: part.to_owned(), status, left: times });
    }

    /// Has `/sync` keep to-device messages back, or not any more.
    pub(crate) fn hold_lane(&self, held: bool) {
        self.world().lane_held = held;
    }

    /// Has it say what time it is, in each of its answers.
    pub(crate) fn set_date(&self, date: Option<String>) {
        self.world().date = date;
    }

    /// Fails no more.
    pub(crate) fn mend(&self) {
        self.world().failures.clear();
    }

    /// The requests so far whose path contains `part`.
    pub(crate) fn requests(&self, part: &str) -> Vec<Request> {
        self.world().requests.iter().filter(|request| request.path.contains(part)).cloned().collect()
    }

    /// The ids of a user's devices that have keys.
    pub(crate) fn devices(&self, mxid: &str) -> Vec<String> {
        let world = self.world();
        let of_user =
            world.devices.iter().filter(|((user, _), device)| user == mxid && device.keys.is_some());
        of_user.map(|((_, device_id), _)| device_id.clone()).collect()
    }

    /// Waits until a user has a device with keys and one-time keys, and answers its id.
    pub(crate) async fn wait_for_device(&self, mxid: &str, deadline: Duration) -> String {
        until(&format!("a device of {mxid}"), deadline, async || {
            let world = self.world();
            let mut of_user = world.devices.iter().filter(|((user, _), _)| user == mxid);
            of_user
                .find(|(_, device)| device.keys.is_some() && !device.one_time_keys.is_empty())
                .map(|(id, _)| id.1.clone())
        })
        .await
    }

    /// How many one-time keys of a device are left.
    pub(crate) fn one_time_keys(&self, mxid: &str, device_id: &str) -> usize {
        let world = self.world();
        world
            .devices
            .get(&(mxid.to_owned(), device_id.to_owned()))
            .map_or(0, |device| device.one_time_keys.len())
    }

    /// How many to-device events of a device are not acknowledged.
    pub(crate) fn inbox(&self, mxid: &str, device_id: &str) -> usize {
        let world = self.world();
        world.devices.get(&(mxid.to_owned(), device_id.to_owned())).map_or(0, |device| device.inbox.len())
    }

    /// Makes a room in which `creator` has joined; `state` are its events of type, state key and content.
    pub(crate) fn create_room(&self, creator: &str, state: &[(&str, &str, Value)]) -> String {
        let room_id = format!("!{}", random_id());
        let mut world = self.world();
        world.rooms.insert(room_id.clone(), Room::default());
        let create = ("m.room.create", "", json!({"room_version": "12"}));
        let member = ("m.room.member", creator, json!({"membership": "join"}));
        for (event_type, state_key, content) in [&create, &member].into_iter().chain(state) {
            world.set_state(&room_id, creator, event_type, state_key, content);
        }
        room_id
    }

    /// Makes a user a member of a room without a word to the application service.
    pub(crate) fn add_member(&self, room_id: &str, mxid: &str, name: Option<&str>) {
        let content = json!({"membership": "join", "displayname": name});
        self.world().set_state(room_id, mxid, "m.room.member", mxid, &content);
    }

    /// Invites a user, and pushes the invite until it is taken.
    pub(crate) async fn invite(&self, room_id: &str, inviter: &str, mxid: &str) {
        let event = {
            let mut world = self.world();
            let content = json!({"membership": "invite"});
            let mut event = world.set_state(room_id, inviter, "m.room.member", mxid, &content);
            event["invite_room_state"] = world.stripped(room_id).into();
            event
        };
        self.shared.news.notify_waiters();
        self.push_until_taken(&[event], &[]).await;
    }

    /// Takes events into their rooms' timelines, without pushing them.
    pub(crate) fn remember(&self, events: &[Value]) {
        self.world().timeline.extend_from_slice(events);
    }

    /// The membership of a user in a room; empty when there was none.
    pub(crate) fn membership(&self, room_id: &str, mxid: &str) -> String {
        let world = self.world();
        let member = world.state(room_id, "m.room.member", mxid);
        member.and_then(|event| event["content"]["membership"].as_str()).unwrap_or_default().to_owned()
    }

    /// Waits until a user has joined a room, and the service has been told.
    pub(crate) async fn wait_for_join(&self, room_id: &str, mxid: &str, deadline: Duration) {
        let joined =
            async || (self.membership(room_id, mxid) == "join" && self.world().unpushed == 0).then_some(());
        until(&format!("{mxid} to join {room_id}"), deadline, joined).await;
    }

    /// A transaction under the next id, with the counts and the lists that are due.
    pub(crate) fn transaction(&self, events: &[Value], to_device: &[Value]) -> Transaction {
        self.world().transaction(events, to_device)
    }

    /// Puts a transaction once, and answers the status; 0 when there was no answer.
    pub(crate) async fn put(&self, transaction: &Transaction) -> u16 {
        let _turn = self.shared.in_flight.lock().await;
        self.shared.put(transaction).await
    }

    /// Pushes in a new transaction, once, and answers the status; 0 when there was no answer.
    pub(crate) async fn push(&self, events: &[Value], to_device: &[Value]) -> u16 {
        let transaction = self.transaction(events, to_device);
        self.put(&transaction).await
    }

    /// Pushes as Synapse does: the same transaction until it is taken, and after a failure its events alone.
    pub(crate) async fn push_until_taken(&self, events: &[Value], to_device: &[Value]) {
        self.shared.push_until_taken(events, to_device).await;
    }

    /// Leaves a to-device event in the inbox of one device, or of each of a user's for `*`; answers what is
    /// pushed of it.
    pub(crate) fn send_to_device(
        &self,
        sender: &str,
        event_type: &str,
        (mxid, device_id): (&str, &str),
        content: &Value,
    ) -> Vec<Value> {
        let pushed = self.world().send_to_device(sender, event_type, (mxid, device_id), content);
        self.shared.news.notify_waiters();
        pushed
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.shared.world.lock().unwrap()
    }
}

impl Drop for FakeHomeserver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Shared {
    async fn put(&self, transaction: &Transaction) -> u16 {
        let url = format!("{}/_matrix/app/v1/transactions/{}", self.service.url, transaction.txn_id);
        let body = serde_json::to_vec(&transaction.body).unwrap();
        let request = self.client.put(url).bearer_auth(&self.service.hs_token);
        let answer = request.header("content-type", "application/json").body(body).send().await;
        answer.map_or(0, |answer| answer.status().as_u16())
    }

    async fn push_until_taken(&self, events: &[Value], to_device: &[Value]) {
        let _turn = self.in_flight.lock().await;
        let mut transaction = self.world.lock().unwrap().transaction(events, to_device);
        let began = Instant::now();
        while self.put(&transaction).await != 200 {
            assert!(began.elapsed() < PATIENCE, "no transaction was taken for {PATIENCE:?}");
            transaction = transaction.retried();
            sleep(Duration::from_millis(100)).await;
        }
    }
}

impl World {
    fn state(&self, room_id: &str, event_type: &str, state_key: &str) -> Option<&Value> {
        self.rooms.get(room_id)?.state.get(&(event_type.to_owned(), state_key.to_owned()))
    }

    fn set_state(
        &mut self,
        room_id: &str,
        sender: &str,
        event_type: &str,
        state_key: &str,
        content: &Value,
    ) -> Value {
        let mut event = event(room_id, sender, event_type, content);
        event["state_key"] = state_key.into();
        let room = self.rooms.get_mut(room_id).expect("a room that was made");
        let place = (event_type.to_owned(), state_key.to_owned());
        if let Some(before) = room.state.get(&place) {
            event["unsigned"] =
                json!({"replaces_state": before["event_id"], "prev_content": before["content"]});
        }
        room.state.insert(place, event.clone());
        self.timeline.push(event.clone());
        event
    }

    /// What an invite tells of a room: as Synapse has it, without `m.bridge`.
    fn stripped(&self, room_id: &str) -> Vec<Value> {
        let told = ["m.room.create", "m.room.encryption", "m.room.name", "m.room.member"];
        let state = self.rooms[room_id].state.values();
        let strip = |event: &Value| {
            json!({
                "type": event["type"], "state_key": event["state_key"],
                "sender": event["sender"], "content": event["content"],
            })
        };
        state.filter(|event| told.contains(&event["type"].as_str().unwrap())).map(strip).collect()
    }

    fn transaction(&mut self, events: &[Value], to_device: &[Value]) -> Transaction {
        self.transactions += 1;
        let (mut counts, mut fallbacks) = (json!({}), json!({}));
        for ((user, device_id), device) in self.devices.iter().filter(|(_, device)| device.keys.is_some()) {
            counts[user][device_id] = device.counts();
            fallbacks[user][device_id] = device.unused_fallbacks();
        }
        let mut body = json!({
            "events": events,
            "ephemeral": [],
            "de.sorunome.msc2409.ephemeral": [],
            "de.sorunome.msc2409.to_device": to_device,
            "org.matrix.msc3202.device_one_time_keys_count": counts,
            "org.matrix.msc3202.device_one_time_key_counts": counts,
            "org.matrix.msc3202.device_unused_fallback_key_types": fallbacks,
        });
        let changed = std::mem::take(&mut self.changed_users);
        if !changed.is_empty() {
            body["org.matrix.msc3202.device_lists"] = json!({"changed": changed, "left": []});
        }
        Transaction { txn_id: self.transactions.to_string(), body }
    }

    fn send_to_device(
        &mut self,
        sender: &str,
        event_type: &str,
        (mxid, device_id): (&str, &str),
        content: &Value,
    ) -> Vec<Value> {
        let mut pushed = Vec::new();
        for ((user, id), device) in &mut self.devices {
            if user != mxid || (device_id != "*" && device_id != id) {
                continue;
            }
            self.position += 1;
            let event = json!({"type": event_type, "sender": sender, "content": content});
            device.inbox.push((self.position, event.clone()));
            let mut event = event;
            event["to_user_id"] = user.as_str().into();
            event["to_device_id"] = id.as_str().into();
            pushed.push(event);
        }
        pushed
    }

    /// Takes one one-time key of a device, or else its fallback key.
    fn claim(&mut self, mxid: &str, device_id: &str) -> Option<Value> {
        let device = self.devices.get_mut(&(mxid.to_owned(), device_id.to_owned()))?;
        if let Some((id, key)) = device.one_time_keys.pop_first() {
            return Some(json!({id: key}));
        }
        let (id, key) = device.fallback_keys.first_key_value()?;
        device.fallback_used = true;
        Some(json!({id: key}))
    }
}

impl Device {
    fn counts(&self) -> Value {
        json!({"signed_curve25519": self.one_time_keys.len()})
    }

    fn unused_fallbacks(&self) -> Value {
        let unused = !self.fallback_keys.is_empty() && !self.fallback_used;
        if unused { json!(["signed_curve25519"]) } else { json!([]) }
    }
}

/// An event as it is pushed; it is in no room's state.
pub(crate) fn event(room_id: &str, sender: &str, event_type: &str, content: &Value) -> Value {
    json!({
        "type": event_type,
        "event_id": format!("${}", random_id()),
        "room_id": room_id,
        "sender": sender,
        "origin_server_ts": now_ms(),
        "content": content,
    })
}

fn now_ms() -> i64 {
    i64::try_from(time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap()
}

/// What room ids and event ids are made of.
fn random_id() -> String {
    BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())
}

/// Matrix's way of writing bytes.
fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD_NO_PAD.encode(bytes)
}
