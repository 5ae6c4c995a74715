//! Reading a room in the homeserver's order, from a place that is found first.
//!
//! The order is that of the room's graph, so that events on a fork beside another are not left out. `/messages` is asked
//! without a `to`: homeservers compare only a part of it, and end early at a fork.

use ruma::{OwnedEventId, RoomId, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Call, Homeserver, HomeserverError, Identity, LARGE_ANSWER};

/// The most memberships of a user that are followed back to an invite: each change of the user's name is one.
const MAX_MEMBERSHIPS: usize = 20;

/// The part of an event by which places are found.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Head {
    event_id: String,
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
    replaces_state: Option<OwnedEventId>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Member {
    membership: String,
}

impl Head {
    fn of(event: &RawValue) -> Self {
        serde_json::from_str(event.get()).unwrap_or_default()
    }

    fn is_member(&self, user_id: &UserId) -> bool {
        self.event_type == "m.room.member" && self.state_key.as_deref() == Some(user_id.as_str())
    }

    /// Returns whether it is where the user came into the room: no one shared a key with the user before.
    fn is_entry_of(&self, user_id: &UserId) -> bool {
        if !self.is_member(user_id) {
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

/// A part of a room, in the direction in which it was asked for.
#[derive(Debug, Deserialize)]
pub struct Page {
    /// Its events. A page without any may have others behind it.
    #[serde(rename = "chunk")]
    pub events: Vec<Box<RawValue>>,
    /// Where the next page begins; `None` at the end.
    pub end: Option<String>,
}

/// The direction in which a room is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Towards what is new.
    Forwards,
    /// Towards the room's beginning.
    Backwards,
}

/// An event and the places around it.
#[derive(Deserialize)]
struct Context {
    event: Box<RawValue>,
    start: Option<String>,
    end: Option<String>,
}

/// The membership by which a user is in a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The join.
    pub join_id: String,
    /// When it was made, in milliseconds, as the homeserver says.
    pub joined_at: i64,
    /// When the invite was, or else the join.
    pub entered_at: i64,
    /// Right behind the invite that the join followed; without one, or when it cannot be seen, a place before everything
    /// that is beside the join.
    pub from: Option<String>,
}

impl Homeserver {
    /// Returns a page of a room; without `from` it is the room's first or its last
    /// ([spec](https://spec.matrix.org/latest/client-server-api/#get_matrixclientv3roomsroomidmessages)).
    ///
    /// # Errors
    /// When the homeserver cannot be reached or refuses.
    pub async fn messages(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        direction: Direction,
        from: Option<&str>,
        limit: usize,
    ) -> Result<Page, HomeserverError> {
        let path = ["_matrix", "client", "v3", "rooms", room_id.as_str(), "messages"];
        let (identity, limit) = (Identity::user(user_id), limit.to_string());
        let mut call = Call::get(&path).with_identity(&identity);
        let direction = if direction == Direction::Forwards { "f" } else { "b" };
        call.query.extend([("dir", direction), ("limit", &limit)]);
        call.query.extend(from.map(|from| ("from", from)));
        call.limit = LARGE_ANSWER;
        let page: Page = self.call(call).await?;
        let end = page.end.filter(|end| Some(end.as_str()) != from);
        Ok(Page { end, ..page })
    }

    /// Returns the id of the newest event of a room that a user may see; `None` when there is none.
    ///
    /// # Errors
    /// When the homeserver cannot be reached or refuses.
    pub async fn newest_event(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
    ) -> Result<Option<String>, HomeserverError> {
        let page = self.messages(user_id, room_id, Direction::Backwards, None, 1).await?;
        Ok(page.events.first().map(|event| Head::of(event).event_id).filter(|id| !id.is_empty()))
    }

    /// Returns how a user came into a room, as its `state` has it; `None` when the user is not in it. What was said between
    /// the invite and the join is not pushed, but senders share their keys with who is invited.
    ///
    /// # Errors
    /// When the homeserver cannot be reached or refuses.
    pub async fn entry(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        state: &[Box<RawValue>],
    ) -> Result<Option<Entry>, HomeserverError> {
        let mut members = state.iter().map(|event| Head::of(event)).filter(|head| head.is_member(user_id));
        let Some(mut join) = members.next().filter(|head| head.content.membership == "join") else {
            return Ok(None);
        };
        let (mut from, mut entered_at) = (None, None);
        for _ in 0..MAX_MEMBERSHIPS {
            let Some(before) = join.unsigned.replaces_state.take() else { break };
            let context = match self.context(user_id, room_id, before.as_str()).await {
                // The room's history is not shown to who is invited.
                Err(HomeserverError::Status { status: 403 | 404, .. }) => break,
                context => context?,
            };
            let head = Head::of(&context.event);
            match head.content.membership.as_str() {
                "invite" => {
                    (from, entered_at) = (context.end, Some(head.origin_server_ts));
                    break;
                }
                "join" => join = head,
                _ => break,
            }
        }
        if from.is_none() {
            from = self.context(user_id, room_id, &join.event_id).await?.start;
        }
        let joined_at = join.origin_server_ts;
        let entered_at = entered_at.unwrap_or(joined_at);
        Ok(Some(Entry { join_id: join.event_id, joined_at, entered_at, from }))
    }

    /// Returns the place from which a room is to be read for what was said in it since a time (milliseconds) and since the
    /// user came into it, about `max` events back at most; `None` is the room's beginning.
    ///
    /// # Errors
    /// When the homeserver cannot be reached or refuses.
    pub async fn place_at(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        since: i64,
        max: usize,
    ) -> Result<Option<String>, HomeserverError> {
        let (mut from, mut looked_at) = (None::<String>, 0);
        loop {
            let page = self.messages(user_id, room_id, Direction::Backwards, from.as_deref(), 100).await?;
            looked_at += page.events.len();
            let heads = page.events.iter().map(|event| Head::of(event));
            let mut ends = heads.filter(|head| head.is_entry_of(user_id) || head.origin_server_ts < since);
            if let Some(end) = ends.next() {
                return Ok(self.context(user_id, room_id, &end.event_id).await?.end);
            }
            if page.end.is_none() || looked_at >= max {
                return Ok(page.end);
            }
            from = page.end;
        }
    }

    /// Returns a place right before an event, so that it and what is beside it are read from there
    /// ([spec](https://spec.matrix.org/latest/client-server-api/#get_matrixclientv3roomsroomidcontexteventid)).
    ///
    /// # Errors
    /// When the homeserver cannot be reached or refuses.
    pub async fn place_before(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        event_id: &str,
    ) -> Result<Option<String>, HomeserverError> {
        Ok(self.context(user_id, room_id, event_id).await?.start)
    }

    async fn context(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        event_id: &str,
    ) -> Result<Context, HomeserverError> {
        let path = ["_matrix", "client", "v3", "rooms", room_id.as_str(), "context", event_id];
        let identity = Identity::user(user_id);
        let mut call = Call::get(&path).with_identity(&identity);
        // The state of the room comes with it; none of it is asked for.
        call.query.extend([("limit", "0"), ("filter", r#"{"types":[],"lazy_load_members":true}"#)]);
        call.limit = LARGE_ANSWER;
        self.call(call).await
    }
}
