//! Reading back what was said in a room.

use ruma::{RoomId, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Call, Homeserver, HomeserverError, Identity, LARGE_ANSWER};

/// What tells where to stop.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Head {
    #[serde(rename = "type")]
    event_type: String,
    state_key: Option<String>,
    origin_server_ts: i64,
    content: Member,
    unsigned: Unsigned,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Unsigned {
    prev_content: Option<Member>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Member {
    membership: String,
}

impl Head {
    /// Whether it is where the user came into the room: nobody shared a key with it before.
    fn is_entry_of(&self, user_id: &UserId) -> bool {
        if self.event_type != "m.room.member" || self.state_key.as_deref() != Some(user_id.as_str()) {
            return false;
        }
        let before = self.unsigned.prev_content.as_ref().map(|content| content.membership.as_str());
        match self.content.membership.as_str() {
            "invite" => true,
            "join" => !matches!(before, Some("invite" | "join")),
            _ => false,
        }
    }
}

/// What was read back of a room.
#[derive(Debug, Default)]
pub struct History {
    /// Events that are no state, oldest first.
    pub events: Vec<Box<RawValue>>,
    /// Whether there is more of that time than was read.
    pub is_cut_off: bool,
}

impl Homeserver {
    /// What was said in a room since a time (milliseconds) and since the user came into it, `most` events at
    /// most, the newest of them
    /// ([spec](https://spec.matrix.org/latest/client-server-api/#get_matrixclientv3roomsroomidmessages)).
    ///
    /// # Errors
    /// When the homeserver cannot be reached or refuses.
    pub async fn history(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        since: i64,
        most: usize,
    ) -> Result<History, HomeserverError> {
        #[derive(Deserialize)]
        struct Page {
            chunk: Vec<Box<RawValue>>,
            end: Option<String>,
        }
        let identity = Identity::user(user_id);
        let path = ["_matrix", "client", "v3", "rooms", room_id.as_str(), "messages"];
        let mut history = History::default();
        let (mut from, mut looked_at, mut ended) = (None::<String>, 0, false);
        while !ended && !history.is_cut_off {
            let mut call = Call::get(&path).with_identity(&identity);
            call.query.extend([("dir", "b"), ("limit", "100")]);
            call.query.extend(from.as_deref().map(|from| ("from", from)));
            call.limit = LARGE_ANSWER;
            let page: Page = self.call(call).await?;
            looked_at += page.chunk.len();
            for event in page.chunk {
                let head: Head = serde_json::from_str(event.get()).unwrap_or_default();
                if head.is_entry_of(user_id) || head.origin_server_ts < since {
                    ended = true;
                    break;
                }
                if head.state_key.is_none() {
                    history.events.push(event);
                }
            }
            ended |= page.end.is_none();
            history.is_cut_off = !ended && looked_at >= most;
            from = page.end;
        }
        history.events.reverse();
        Ok(history)
    }
}
