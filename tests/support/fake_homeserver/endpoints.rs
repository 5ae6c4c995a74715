//! The client-server API, as far as coucou uses it.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Query, Request as HttpRequest, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use url::form_urlencoded;

use super::{Request, SERVER_NAME, Shared, World, media};

/// What is asked of it.
struct Call {
    user_id: String,
    device_id: Option<String>,
    query: std::collections::HashMap<String, String>,
    body: Value,
}

type Answer = Result<Value, (u16, &'static str)>;

const NOT_FOUND: (u16, &str) = (404, "M_NOT_FOUND");

pub(super) fn router(shared: Arc<Shared>) -> Router {
    let dated = from_fn_with_state(Arc::clone(&shared), dated);
    Router::new().fallback(handle).layer(DefaultBodyLimit::max(64 << 20)).layer(dated).with_state(shared)
}

/// Answers, with the date that it was told to say.
async fn dated(State(shared): State<Arc<Shared>>, request: HttpRequest, next: Next) -> Response {
    let mut response = next.run(request).await;
    if let Some(date) = &shared.world.lock().unwrap().date {
        response.headers_mut().insert("date", date.parse().unwrap());
    }
    response
}

async fn handle(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    Query(query): Query<std::collections::HashMap<String, String>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let segments: Vec<String> = uri.path().split('/').skip(1).map(decode).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let own = format!("@{}:{SERVER_NAME}", shared.service.sender_localpart);
    let call = Call {
        user_id: query.get("user_id").cloned().unwrap_or(own),
        device_id: query.get("device_id").cloned(),
        query,
        body: serde_json::from_slice(&body).unwrap_or_default(),
    };
    let path = segments.join("/");
    if let Some(status) = shared.world.lock().unwrap().note(&method, &path, &call) {
        return answer(Err((status, "M_UNKNOWN")));
    }
    if path == "_matrix/client/versions" {
        return answer(Ok(json!({"versions": ["v1.1", "v1.11", "v1.12"], "unstable_features": {}})));
    }
    let token = headers.get("authorization").and_then(|value| value.to_str().ok());
    if token != Some(&format!("Bearer {}", shared.service.as_token)) {
        return answer(Err((401, "M_UNKNOWN_TOKEN")));
    }
    let ["_matrix", "client", _, rest @ ..] = &segments[..] else {
        return answer(Err((404, "M_UNRECOGNIZED")));
    };
    if let ("GET", ["media", "download", SERVER_NAME, id]) = (method.as_str(), rest) {
        return media::download(&shared, id).await;
    }
    answer(match (method.as_str(), rest) {
        ("GET", ["sync"]) => sync(&shared, &call).await,
        ("POST", ["appservice", _, "ping"]) => ping(&shared, &call).await,
        ("POST", ["rooms", room_id, verb]) => move_in_room(&shared, room_id, verb, &call),
        (method, rest) => shared.world.lock().unwrap().answer(method, rest, &call),
    })
}

fn answer(answer: Answer) -> Response {
    let (status, body) = match answer {
        Ok(body) => (200, body),
        Err((status, errcode)) => {
            (status, json!({"errcode": errcode, "error": "the fake homeserver says so"}))
        }
    };
    let headers = [("content-type", "application/json")];
    (StatusCode::from_u16(status).unwrap(), headers, body.to_string()).into_response()
}

/// A path segment without its percent signs.
fn decode(segment: &str) -> String {
    let pair = format!("x={}", segment.replace('+', "%2B").replace('&', "%26"));
    form_urlencoded::parse(pair.as_bytes()).next().map(|(_, value)| value.into_owned()).unwrap_or_default()
}

async fn ping(shared: &Shared, call: &Call) -> Answer {
    let url = format!("{}/_matrix/app/v1/ping", shared.service.url);
    let body = json!({"transaction_id": call.body["transaction_id"]}).to_string();
    let request = shared.client.post(url).bearer_auth(&shared.service.hs_token).body(body);
    match request.header("content-type", "application/json").send().await {
        Ok(answer) if answer.status().is_success() => Ok(json!({"duration_ms": 1})),
        Ok(_) => Err((502, "M_BAD_STATUS")),
        Err(_) => Err((502, "M_CONNECTION_FAILED")),
    }
}

async fn sync(shared: &Shared, call: &Call) -> Answer {
    let patience = call.query.get("timeout").and_then(|text| text.parse().ok()).unwrap_or_default();
    let deadline = Instant::now() + Duration::from_millis(patience);
    loop {
        let news = shared.news.notified();
        let (answer, empty) = shared.world.lock().unwrap().sync(call)?;
        if !empty || timeout_at(deadline, news).await.is_err() {
            return Ok(answer);
        }
    }
}

/// Joins, leaves or invites, and pushes that to the application service by and by.
fn move_in_room(shared: &Arc<Shared>, room_id: &str, verb: &str, call: &Call) -> Answer {
    let event = {
        let mut world = shared.world.lock().unwrap();
        if !world.rooms.contains_key(room_id) {
            return Err(NOT_FOUND);
        }
        let (membership, member) = match verb {
            "join" => ("join", call.user_id.clone()),
            "leave" => ("leave", call.user_id.clone()),
            "invite" => ("invite", call.body["user_id"].as_str().unwrap_or_default().to_owned()),
            _ => return Err((404, "M_UNRECOGNIZED")),
        };
        let before = world
            .state(room_id, "m.room.member", &member)
            .map(|event| event["content"]["membership"].clone());
        if verb == "join" && !matches!(before.as_ref().and_then(Value::as_str), Some("invite" | "join")) {
            return Err((403, "M_FORBIDDEN"));
        }
        if before == Some(membership.into()) {
            return Ok(json!({"room_id": room_id}));
        }
        world.unpushed += 1;
        world.set_state(room_id, &call.user_id, "m.room.member", &member, &json!({"membership": membership}))
    };
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        shared.push_until_taken(&[event], &[]).await;
        shared.world.lock().unwrap().unpushed -= 1;
    });
    Ok(json!({"room_id": room_id}))
}

impl World {
    /// Writes the request down, and answers the status that it shall fail with, if it shall.
    fn note(&mut self, method: &Method, path: &str, call: &Call) -> Option<u16> {
        let (user_id, body) = (call.user_id.clone(), call.body.clone());
        self.requests.push(Request { method: method.to_string(), path: path.to_owned(), user_id, body });
        let failure =
            self.failures.iter_mut().find(|failure| failure.left > 0 && path.contains(&failure.part))?;
        failure.left -= 1;
        Some(failure.status)
    }

    fn answer(&mut self, method: &str, path: &[&str], call: &Call) -> Answer {
        match (method, path) {
            ("GET", ["account", "whoami"]) => Ok(json!({"user_id": call.user_id})),
            ("POST", ["register"]) => self.register(call),
            ("POST", ["login"]) => Ok(self.login(call)),
            ("PUT", ["devices", device_id]) => {
                let name = call.body["display_name"].as_str().unwrap_or_default().to_owned();
                self.devices
                    .entry((call.user_id.clone(), (*device_id).to_owned()))
                    .or_default()
                    .display_name = name;
                Ok(json!({}))
            }
            ("POST", ["keys", "upload"]) => self.upload_keys(call),
            ("POST", ["keys", "query"]) => Ok(self.query_keys(call)),
            ("POST", ["keys", "claim"]) => Ok(self.claim_keys(call)),
            ("POST", ["keys", "device_signing", "upload"]) => {
                self.cross_signing.insert(call.user_id.clone(), call.body.clone());
                self.changed_users.insert(call.user_id.clone());
                Ok(json!({}))
            }
            ("POST", ["keys", "signatures", "upload"]) => {
                self.upload_signatures(call);
                Ok(json!({"failures": {}}))
            }
            ("PUT", ["sendToDevice", event_type, _]) => {
                for (mxid, devices) in entries(&call.body["messages"]) {
                    for (device_id, content) in entries(devices) {
                        self.send_to_device(&call.user_id, event_type, (mxid, device_id), content);
                    }
                }
                Ok(json!({}))
            }
            ("GET", ["joined_rooms"]) => {
                let rooms =
                    self.rooms.keys().filter(|room_id| self.is_member(room_id, &call.user_id, "join"));
                Ok(json!({"joined_rooms": rooms.collect::<Vec<_>>()}))
            }
            ("GET", ["rooms", room_id, "state"]) => {
                if !self.is_member(room_id, &call.user_id, "join") {
                    return Err((403, "M_FORBIDDEN"));
                }
                Ok(self.rooms[*room_id].state.values().cloned().collect())
            }
            ("GET", ["rooms", room_id, "messages"]) => self.messages(room_id, call),
            ("GET", ["rooms", room_id, "context", event_id]) => self.context(room_id, event_id),
            _ => Err((404, "M_UNRECOGNIZED")),
        }
    }

    fn is_member(&self, room_id: &str, mxid: &str, membership: &str) -> bool {
        self.state(room_id, "m.room.member", mxid)
            .is_some_and(|event| event["content"]["membership"] == membership)
    }

    /// What happened in a user's rooms since a `/sync`, of each fifty events at most.
    fn timelines(&self, call: &Call) -> Value {
        let mut joined = json!({});
        let Some(since) = call.query.get("since").map(|token| place_of(token)) else { return joined };
        for room_id in self.rooms.keys().filter(|room_id| self.is_member(room_id, &call.user_id, "join")) {
            let events: Vec<_> = self.happened(room_id).filter(|(place, _)| *place > since).collect();
            if events.is_empty() {
                continue;
            }
            let last: Vec<_> =
                events.iter().skip(events.len().saturating_sub(50)).map(|(_, event)| event).collect();
            joined[room_id] =
                json!({"timeline": {"events": last, "limited": events.len() > 50, "prev_batch": "t0"}});
        }
        joined
    }

    /// The events of a room, each with its place.
    fn happened(&self, room_id: &str) -> impl DoubleEndedIterator<Item = (usize, &Value)> {
        let all = self.timeline.iter().enumerate().map(|(at, event)| (at + 1, event));
        all.filter(move |(_, event)| event["room_id"] == room_id)
    }

    /// A page of a room, in either direction.
    fn messages(&self, room_id: &str, call: &Call) -> Answer {
        if !self.is_member(room_id, &call.user_id, "join") {
            return Err((403, "M_FORBIDDEN"));
        }
        let asked = |name: &str| call.query.get(name).map(String::as_str);
        let (forwards, from) = (asked("dir") == Some("f"), asked("from").map(place_of));
        let limit = asked("limit").and_then(|limit| limit.parse().ok()).unwrap_or(10);
        let events: Vec<_> = if forwards {
            self.happened(room_id).filter(|(place, _)| *place > from.unwrap_or(0)).take(limit).collect()
        } else {
            let from = from.unwrap_or(usize::MAX);
            self.happened(room_id).rev().filter(|(place, _)| *place <= from).take(limit).collect()
        };
        let chunk: Vec<_> = events.iter().map(|(_, event)| event).collect();
        let end = events.last().map(|(place, _)| format!("t{}", if forwards { *place } else { place - 1 }));
        Ok(json!({"chunk": chunk, "start": asked("from"), "end": end}))
    }

    fn context(&self, room_id: &str, event_id: &str) -> Answer {
        let mut events = self.happened(room_id);
        let (place, event) = events.find(|(_, event)| event["event_id"] == event_id).ok_or(NOT_FOUND)?;
        let before = self.happened(room_id).rev().filter(|(at, _)| *at < place).take(50);
        let before: Vec<_> = before.map(|(_, event)| event).collect();
        let (start, end) = (format!("t{}", place - 1), format!("t{place}"));
        Ok(json!({"event": event, "events_before": before, "start": start, "end": end}))
    }

    fn register(&mut self, call: &Call) -> Answer {
        let mxid = format!("@{}:{SERVER_NAME}", call.body["username"].as_str().unwrap_or_default());
        if self.users.insert(mxid.clone()) {
            Ok(json!({"user_id": mxid}))
        } else {
            Err((400, "M_USER_IN_USE"))
        }
    }

    fn login(&mut self, call: &Call) -> Value {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (mxid, device_id) = (text(&call.body["identifier"]["user"]), text(&call.body["device_id"]));
        self.devices.entry((mxid.clone(), device_id.clone())).or_default();
        json!({"user_id": mxid, "device_id": device_id, "access_token": "one that nobody uses"})
    }

    fn upload_keys(&mut self, call: &Call) -> Answer {
        let Some(device_id) = &call.device_id else { return Err((400, "M_MISSING_PARAM")) };
        let Some(device) = self.devices.get_mut(&(call.user_id.clone(), device_id.clone())) else {
            return Err(NOT_FOUND);
        };
        let changed = call.body["device_keys"].is_object();
        if changed {
            device.keys = Some(call.body["device_keys"].clone());
        }
        for (id, key) in entries(&call.body["one_time_keys"]) {
            device.one_time_keys.insert(id.to_owned(), key.clone());
        }
        for (id, key) in entries(&call.body["fallback_keys"]) {
            device.fallback_keys = [(id.to_owned(), key.clone())].into();
            device.fallback_used = false;
        }
        let counts = device.counts();
        if changed {
            self.changed_users.insert(call.user_id.clone());
        }
        Ok(json!({"one_time_key_counts": counts}))
    }

    fn query_keys(&self, call: &Call) -> Value {
        let (mut devices, mut signing) = (json!({}), [json!({}), json!({}), json!({})]);
        for (mxid, _) in entries(&call.body["device_keys"]) {
            devices[mxid] = json!({});
            for ((_, device_id), device) in self.devices.iter().filter(|((user, _), _)| user == mxid) {
                if let Some(keys) = &device.keys {
                    devices[mxid][device_id] = keys.clone();
                    devices[mxid][device_id]["unsigned"] =
                        json!({"device_display_name": device.display_name});
                }
            }
            for (answer, kind) in
                signing.iter_mut().zip(["master_key", "self_signing_key", "user_signing_key"])
            {
                if let Some(key) = self.cross_signing.get(mxid).and_then(|keys| keys.get(kind)) {
                    answer[mxid] = key.clone();
                }
            }
        }
        let [master, self_signing, user_signing] = signing;
        json!({
            "device_keys": devices, "failures": {}, "master_keys": master,
            "self_signing_keys": self_signing, "user_signing_keys": user_signing,
        })
    }

    fn claim_keys(&mut self, call: &Call) -> Value {
        let mut claimed = json!({});
        for (mxid, devices) in entries(&call.body["one_time_keys"]) {
            for (device_id, _) in entries(devices) {
                if let Some(key) = self.claim(mxid, device_id) {
                    claimed[mxid][device_id] = key;
                }
            }
        }
        json!({"one_time_keys": claimed, "failures": {}})
    }

    /// Adds the signatures to the device keys and the master keys that they are for.
    fn upload_signatures(&mut self, call: &Call) {
        for (mxid, signed) in entries(&call.body) {
            for (id, object) in entries(signed) {
                let device = self
                    .devices
                    .get_mut(&(mxid.to_owned(), id.to_owned()))
                    .and_then(|device| device.keys.as_mut());
                let master = self.cross_signing.get_mut(mxid).and_then(|keys| keys.get_mut("master_key"));
                let Some(target) = device.or(master) else { continue };
                for (signer, signatures) in entries(&object["signatures"]) {
                    for (key_id, signature) in entries(signatures) {
                        target["signatures"][signer][key_id] = signature.clone();
                    }
                }
            }
            self.changed_users.insert(mxid.to_owned());
        }
    }

    /// The answer to a `/sync`, and whether there is nothing in it.
    fn sync(&mut self, call: &Call) -> Result<(Value, bool), (u16, &'static str)> {
        let next_batch = format!("s{}_{}", self.position, self.timeline.len());
        let Some(device_id) = &call.device_id else {
            let invited =
                self.rooms.keys().filter(|room_id| self.is_member(room_id, &call.user_id, "invite"));
            let invited: Vec<String> = invited.cloned().collect();
            let mut invites = json!({});
            for room_id in invited {
                invites[&room_id] = json!({"invite_state": {"events": self.stripped(&room_id)}});
            }
            let joined = self.timelines(call);
            return Ok((
                json!({"next_batch": next_batch, "rooms": {"invite": invites, "join": joined}}),
                false,
            ));
        };
        let since = call.query.get("since").and_then(|token| position_of(token));
        let Some(device) = self.devices.get_mut(&(call.user_id.clone(), device_id.clone())) else {
            return Err((401, "M_UNKNOWN_TOKEN"));
        };
        device.inbox.retain(|(position, _)| since.is_none_or(|since| *position > since));
        // Synapse tells a hundred at a time.
        let most = if self.lane_held { 0 } else { 100 };
        let page: Vec<_> = device.inbox.iter().take(most).cloned().collect();
        let position = match page.last() {
            Some((position, _)) if page.len() == most => *position,
            None if self.lane_held => since.unwrap_or(0),
            _ => self.position,
        };
        let events: Vec<_> = page.into_iter().map(|(_, event)| event).collect();
        let empty = events.is_empty() && since.is_some();
        let answer = json!({
            "next_batch": format!("s{position}_{}", self.timeline.len()),
            "to_device": {"events": events},
            "device_lists": {"changed": [], "left": []},
            "device_one_time_keys_count": device.counts(),
            "device_unused_fallback_key_types": device.unused_fallbacks(),
        });
        Ok((answer, empty))
    }
}

/// The position of to-device messages in a token of `/sync`.
fn position_of(token: &str) -> Option<u64> {
    token.strip_prefix('s')?.split('_').next()?.parse().ok()
}

/// The place in the timeline of a token of `/sync` or of `/messages`.
fn place_of(token: &str) -> usize {
    let place = token.strip_prefix('t').or_else(|| token.split('_').nth(1));
    place.and_then(|place| place.parse().ok()).unwrap_or(0)
}

/// The entries of an object; none of anything else.
fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value))
}
