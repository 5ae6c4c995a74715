use std::{collections::BTreeSet, fmt, sync::Arc};

use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId};
use serde::{Deserialize, Serialize};

use super::{Pattern, Trust};
use crate::clock::Timestamp;

/// The id of a message, for ever: `msg_` and 40 hexadecimal digits, no dots.
///
/// Made in `messages` from the event, so that relaying an event again gives the same id. It is the
/// `webhook-id` of every attempt to deliver the message.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct MessageId(#[cfg_attr(test, schemars(regex(pattern = "^msg_[0-9a-f]{40}$")))] pub String);

impl MessageId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a message tells the webhook: the `type` of its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum MessageType {
    /// Somebody said something.
    #[serde(rename = "message.created")]
    MessageCreated,
    /// A message has a new content.
    #[serde(rename = "message.edited")]
    MessageEdited,
    /// A message was taken back.
    #[serde(rename = "message.redacted")]
    MessageRedacted,
    /// Somebody reacted to a message.
    #[serde(rename = "reaction.created")]
    ReactionCreated,
    /// A reaction was taken back.
    #[serde(rename = "reaction.redacted")]
    ReactionRedacted,
    /// A message arrived whose key has not come.
    #[serde(rename = "message.undecryptable")]
    MessageUndecryptable,
    /// coucou reads a room from now on.
    #[serde(rename = "room.joined")]
    RoomJoined,
    /// coucou no longer reads a room.
    #[serde(rename = "room.left")]
    RoomLeft,
    /// Nothing comes any more, of a network or from the homeserver.
    #[serde(rename = "bridge.silent")]
    BridgeSilent,
    /// A bridge's bot has left a room, or its login is lost.
    #[serde(rename = "bridge.disconnected")]
    BridgeDisconnected,
    /// One of the two is over.
    #[serde(rename = "bridge.resumed")]
    BridgeResumed,
    /// A trial delivery.
    #[serde(rename = "webhook.test")]
    WebhookTest,
}

impl MessageType {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::MessageCreated,
        Self::MessageEdited,
        Self::MessageRedacted,
        Self::ReactionCreated,
        Self::ReactionRedacted,
        Self::MessageUndecryptable,
        Self::RoomJoined,
        Self::RoomLeft,
        Self::BridgeSilent,
        Self::BridgeDisconnected,
        Self::BridgeResumed,
        Self::WebhookTest,
    ];

    /// The name in payloads, tables and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MessageCreated => "message.created",
            Self::MessageEdited => "message.edited",
            Self::MessageRedacted => "message.redacted",
            Self::ReactionCreated => "reaction.created",
            Self::ReactionRedacted => "reaction.redacted",
            Self::MessageUndecryptable => "message.undecryptable",
            Self::RoomJoined => "room.joined",
            Self::RoomLeft => "room.left",
            Self::BridgeSilent => "bridge.silent",
            Self::BridgeDisconnected => "bridge.disconnected",
            Self::BridgeResumed => "bridge.resumed",
            Self::WebhookTest => "webhook.test",
        }
    }

    /// Whether it tells something about bridges or webhooks rather than about a conversation.
    #[must_use]
    pub fn is_about_service(self) -> bool {
        matches!(
            self,
            Self::BridgeSilent | Self::BridgeDisconnected | Self::BridgeResumed | Self::WebhookTest
        )
    }

    /// The type of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == name)
    }
}

/// Which way a message went, seen from the owner of the conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Somebody else wrote it.
    In,
    /// The owner wrote it, in a Matrix client or in the network's own app, or coucou did.
    Out,
}

impl Direction {
    /// The name in payloads, tables and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }

    /// The direction of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::In, Self::Out].into_iter().find(|known| known.as_str() == name)
    }
}

/// Whether a room is a conversation of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum RoomKind {
    /// A conversation with one other person.
    Dm,
    /// Anything else.
    #[default]
    Group,
}

/// What the payload needs to know about a room. Made by `messages::room::RoomState::context`.
#[derive(Clone, Debug, Default)]
pub struct RoomContext {
    /// The name to show: the room's, else the channel's, else (in a DM) the other person's.
    pub name: Option<String>,
    /// A conversation of two or not.
    pub kind: RoomKind,
    /// The network, e.g. `instagram`; none when no believable bridge is in the room.
    pub network: Option<String>,
    /// The bridge's protocol id as it calls itself, e.g. `instagramgo`.
    pub protocol: Option<String>,
    /// The conversation's id on the network.
    pub channel_id: Option<String>,
    /// The conversation's name on the network.
    pub channel_name: Option<String>,
    /// The bridge bot, when a believable bridge is in the room.
    pub bridge_bot: Option<OwnedUserId>,
    /// The owner's login on the network, by its id there.
    pub login: Option<String>,
    /// The user ids of the bridge's ghosts, as far as they are known.
    pub ghosts: Vec<Pattern>,
    /// The users that count as us: the owner and the accounts. Shared by all rooms.
    pub our_users: Arc<BTreeSet<OwnedUserId>>,
}

/// How a sender presents itself in a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SenderProfile {
    /// The display name.
    pub name: Option<String>,
    /// The avatar, an `mxc://` address.
    pub avatar: Option<String>,
}

/// A message as it is stored: the row, with its payload in the clear.
#[derive(Clone, Debug)]
pub struct Message {
    /// Its id.
    pub message_id: MessageId,
    /// The event it was made of.
    pub event_id: OwnedEventId,
    /// The room.
    pub room_id: OwnedRoomId,
    /// Its number in the room, from 1, without gaps.
    pub sequence: u64,
    /// What it tells.
    pub message_type: MessageType,
    /// The network, if a believable bridge is in the room.
    pub network: Option<String>,
    /// In or out.
    pub direction: Direction,
    /// The Matrix user that sent the event.
    pub sender: OwnedUserId,
    /// When the event says it was sent.
    pub origin_server_ts: Timestamp,
    /// Of an edit: the event that it replaces.
    pub replaces: Option<OwnedEventId>,
    /// What sort of thing was said; none when nothing was.
    pub kind: Option<&'static str>,
    /// Whether the event was end-to-end encrypted.
    pub encrypted: bool,
    /// What is known about the device that encrypted it.
    pub trust: Option<Trust>,
    /// The body of the webhook call, JSON.
    pub payload: Vec<u8>,
}
