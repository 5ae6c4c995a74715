//! Rooms: which there are, coming and going, and their state.

use std::collections::BTreeMap;

use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde::Deserialize;
use serde_json::{Value as Json, json, value::RawValue};

use super::{Call, Homeserver, HomeserverError, Identity, LARGE_ANSWER};

/// An invite that its user has not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invite {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Who invites; unknown when the homeserver does not show the invite itself.
    pub inviter: Option<OwnedUserId>,
}

/// The part of an invited room that comes with `/sync`.
#[derive(Deserialize)]
struct InvitedRoom {
    #[serde(default)]
    invite_state: Events,
}

#[derive(Default, Deserialize)]
struct Events {
    #[serde(default)]
    events: Vec<Json>,
}

impl Homeserver {
    /// The rooms that a user is in
    /// ([spec](https://spec.matrix.org/latest/client-server-api/#get_matrixclientv3joined_rooms)).
    ///
    /// # Errors
    /// When the homeserver cannot be reached or refuses.
    pub async fn joined_rooms(&self, user_id: &UserId) -> Result<Vec<OwnedRoomId>, HomeserverError> {
        #[derive(Deserialize)]
        struct Answer {
            joined_rooms: Vec<OwnedRoomId>,
        }
        let path = ["_matrix", "client", "v3", "joined_rooms"];
        let identity = Identity::user(user_id);
        Ok(self.call::<Answer>(Call::get(&path).with_identity(&identity)).await?.joined_rooms)
    }

    /// The invites that wait for a user's answer.
    ///
    /// Asked by a `/sync` without a device, so that no device's to-device messages are acknowledged by it.
    ///
    /// # Errors
    /// When the homeserver cannot be reached or refuses.
    pub async fn pending_invites(&self, user_id: &UserId) -> Result<Vec<Invite>, HomeserverError> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            rooms: Rooms,
        }
        #[derive(Default, Deserialize)]
        struct Rooms {
            #[serde(default)]
            invite: BTreeMap<OwnedRoomId, InvitedRoom>,
        }
        let path = ["_matrix", "client", "v3", "sync"];
        let none = json!({ "types": [], "limit": 1 });
        // Synapse answers the same first /sync from a cache for two minutes (`sync_response_cache_duration`),
        // and its key is the request: leaving out a room that is none makes every request another one.
        let nobodys = format!("!{:032x}:coucou.invalid", rand::random::<u128>());
        let filter = json!({
            "room": {
                "not_rooms": [nobodys],
                "timeline": none, "state": none, "ephemeral": none, "account_data": none,
            },
            "presence": none,
            "account_data": none,
        });
        let filter = filter.to_string();
        let identity = Identity::user(user_id);
        let mut call = Call::get(&path).with_identity(&identity);
        call.query.extend([("filter", &*filter), ("set_presence", "offline"), ("timeout", "0")]);
        call.limit = LARGE_ANSWER;
        // A first /sync goes through every room, and an owner may be in thousands.
        call.timeout *= 3;
        let answer: Answer = self.call(call).await?;
        let invites = answer.rooms.invite.into_iter().map(|(room_id, room)| {
            let inviter = inviter(&room.invite_state.events, user_id);
            Invite { room_id, inviter }
        });
        Ok(invites.collect())
    }

    /// Joins a room, by invite or freely; joining it again changes nothing
    /// ([spec](https://spec.matrix.org/latest/client-server-api/#post_matrixclientv3roomsroomidjoin)).
    ///
    /// # Errors
    /// `M_FORBIDDEN` without an invite to a room that needs one.
    pub async fn join(&self, user_id: &UserId, room_id: &RoomId) -> Result<(), HomeserverError> {
        self.move_in_room(user_id, room_id, "join", json!({})).await
    }

    /// Leaves a room, or declines the invite to it
    /// ([spec](https://spec.matrix.org/latest/client-server-api/#post_matrixclientv3roomsroomidleave)).
    ///
    /// # Errors
    /// When the homeserver cannot be reached or refuses.
    pub async fn leave(&self, user_id: &UserId, room_id: &RoomId) -> Result<(), HomeserverError> {
        self.move_in_room(user_id, room_id, "leave", json!({})).await
    }

    /// Invites `invitee` to a room, as a user who is in it
    /// ([spec](https://spec.matrix.org/latest/client-server-api/#post_matrixclientv3roomsroomidinvite)).
    ///
    /// # Errors
    /// `M_FORBIDDEN` when the user may not invite or the invitee is in the room already.
    pub async fn invite(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        invitee: &UserId,
    ) -> Result<(), HomeserverError> {
        self.move_in_room(user_id, room_id, "invite", json!({ "user_id": invitee })).await
    }

    /// The current state of a room that a user is in, each event as it is
    /// ([spec](https://spec.matrix.org/latest/client-server-api/#get_matrixclientv3roomsroomidstate)).
    ///
    /// # Errors
    /// `M_FORBIDDEN` when the user has never been in the room.
    pub async fn room_state(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
    ) -> Result<Vec<Box<RawValue>>, HomeserverError> {
        let path = ["_matrix", "client", "v3", "rooms", room_id.as_str(), "state"];
        let identity = Identity::user(user_id);
        let mut call = Call::get(&path).with_identity(&identity);
        call.limit = LARGE_ANSWER;
        self.call(call).await
    }

    async fn move_in_room(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        verb: &str,
        body: Json,
    ) -> Result<(), HomeserverError> {
        let path = ["_matrix", "client", "v3", "rooms", room_id.as_str(), verb];
        let identity = Identity::user(user_id);
        self.call::<Json>(Call::post(&path, body).with_identity(&identity)).await.map(drop)
    }
}

/// Who sent the invite that stands for `user_id` in stripped state.
fn inviter(events: &[Json], user_id: &UserId) -> Option<OwnedUserId> {
    let is = |event: &Json, name: &str, value: &str| event.get(name).and_then(Json::as_str) == Some(value);
    let invite = events.iter().find(|event| {
        is(event, "type", "m.room.member")
            && is(event, "state_key", user_id.as_str())
            && event.get("content").is_some_and(|content| is(content, "membership", "invite"))
    })?;
    OwnedUserId::try_from(invite.get("sender")?.as_str()?).ok()
}
