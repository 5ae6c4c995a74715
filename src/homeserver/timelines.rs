//! Rooms' timelines as their members see them, to compare with what was pushed.

use std::collections::BTreeMap;

use ruma::{OwnedRoomId, RoomId, UserId};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::{Call, Homeserver, HomeserverError, Identity, LARGE_ANSWER, sync::no_room};

/// Events of one room that come with the first answer; what lies between is asked for room by room.
const FIRST_PAGE: u32 = 50;

/// What rooms say since a certain time.
#[derive(Debug)]
pub struct Timelines {
    /// The `since` of the next comparison.
    pub next_batch: String,
    /// The rooms in which anything happened.
    pub rooms: Vec<Timeline>,
}

/// What one room says since a certain time.
#[derive(Debug)]
pub struct Timeline {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Its events, oldest first, without their room id.
    pub events: Vec<Box<RawValue>>,
    /// Where to ask for the events before these, when there are more.
    pub earlier: Option<String>,
}

/// A part of a timeline, read backwards.
#[derive(Debug, Deserialize)]
pub struct EarlierPage {
    /// Its events, newest first.
    #[serde(rename = "chunk")]
    pub events: Vec<Box<RawValue>>,
    /// Where to go on; `None` at the end.
    #[serde(rename = "end")]
    pub earlier: Option<String>,
}

#[derive(Deserialize)]
struct Answer {
    next_batch: String,
    #[serde(default)]
    rooms: Rooms,
}

#[derive(Default, Deserialize)]
struct Rooms {
    #[serde(default)]
    join: BTreeMap<OwnedRoomId, JoinedRoom>,
}

#[derive(Deserialize)]
struct JoinedRoom {
    timeline: Page,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    events: Vec<Box<RawValue>>,
    #[serde(default)]
    limited: bool,
    prev_batch: Option<String>,
}

impl Homeserver {
    /// What happened since `since` in the rooms that a user is in
    /// ([spec](https://spec.matrix.org/latest/client-server-api/#get_matrixclientv3sync)).
    ///
    /// Asked by a `/sync` without a device, so that no device's to-device messages are acknowledged by it.
    ///
    /// # Errors
    /// When the homeserver cannot be reached or refuses; with 400 when it does not know `since`.
    pub async fn timelines(&self, user_id: &UserId, since: &str) -> Result<Timelines, HomeserverError> {
        let path = ["_matrix", "client", "v3", "sync"];
        let none = json!({ "types": [] });
        let filter = json!({
            "room": {
                "not_rooms": [no_room()],
                "timeline": { "limit": FIRST_PAGE, "lazy_load_members": true },
                "state": { "types": [], "lazy_load_members": true },
                "ephemeral": none,
                "account_data": none,
            },
            "presence": none,
            "account_data": none,
        });
        let filter = filter.to_string();
        let identity = Identity::user(user_id);
        let mut call = Call::get(&path).with_identity(&identity);
        call.query.extend([
            ("filter", &*filter),
            ("set_presence", "offline"),
            ("timeout", "0"),
            ("since", since),
        ]);
        call.limit = LARGE_ANSWER;
        let answer: Answer = self.call(call).await?;
        let rooms = answer.rooms.join.into_iter().map(|(room_id, room)| {
            let Page { events, limited, prev_batch } = room.timeline;
            Timeline { room_id, events, earlier: prev_batch.filter(|_| limited) }
        });
        Ok(Timelines { next_batch: answer.next_batch, rooms: rooms.collect() })
    }

    /// A room's events before `from` and after `to`, newest first
    /// ([spec](https://spec.matrix.org/latest/client-server-api/#get_matrixclientv3roomsroomidmessages)).
    ///
    /// # Errors
    /// When the homeserver cannot be reached or refuses.
    pub async fn messages_between(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        from: &str,
        to: &str,
    ) -> Result<EarlierPage, HomeserverError> {
        let path = ["_matrix", "client", "v3", "rooms", room_id.as_str(), "messages"];
        let identity = Identity::user(user_id);
        let mut call = Call::get(&path).with_identity(&identity);
        call.query.extend([("dir", "b"), ("limit", "100"), ("from", from), ("to", to)]);
        call.limit = LARGE_ANSWER;
        self.call(call).await
    }
}
