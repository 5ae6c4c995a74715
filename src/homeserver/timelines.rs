//! Rooms' timelines as their members see them, to compare with what was pushed.

use std::collections::BTreeMap;

use ruma::{OwnedRoomId, UserId};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::{Call, Homeserver, HomeserverError, Identity, LARGE_ANSWER, sync::no_room};

/// Events of one room that come with the answer; of a room with more, all are asked for.
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
    /// Whether there are more since then, before these.
    pub is_limited: bool,
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
            let Page { events, limited: is_limited } = room.timeline;
            Timeline { room_id, events, is_limited }
        });
        Ok(Timelines { next_batch: answer.next_batch, rooms: rooms.collect() })
    }
}
