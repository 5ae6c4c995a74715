//! The body of a webhook call: its fields, what they mean, in the order in which they are written.
//!
//! This is the public contract. The comments on the fields are its documentation, together with
//! `docs/webhook.md`; the snapshots of the tests hold it still.
//!
//! Keys of the payload, of `data`, and of `data.room`, `data.sender`, `data.encryption` and `data.matrix` are
//! always there, null when unknown, but for the four that belong to one case (`redacts`, `membership`,
//! `undecryptable`, `undecryptable_id`). Keys of `data.content`, `data.relates_to` and below are left out when they do not apply.

use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde::Serialize;
use serde_json::json;

use crate::{
    clock::Timestamp,
    messages::{
        ids::{PayloadClass, message_id},
        kinds::{Content, Kind},
        profile::MessageProfile,
        relations::RelatesTo,
    },
    model::{
        Direction, Encryption, JsonObject, Message, MessageId, MessageType, RawObject, Repair, RoomKind,
    },
};

/// The version of the schema. It is raised when a field goes or changes its meaning; new fields, types and
/// kinds come without.
pub const VERSION: u32 = 1;

/// A payload that lacks only its sequence number, which the store gives out when the message is stored.
#[derive(Clone, Debug)]
pub struct Draft {
    pub(super) message_type: MessageType,
    pub(super) message_id: MessageId,
    pub(super) event_id: OwnedEventId,
    pub(super) room_id: OwnedRoomId,
    pub(super) sender: OwnedUserId,
    pub(super) origin_server_ts: Timestamp,
    pub(super) network: Option<String>,
    pub(super) direction: Direction,
    pub(super) backfill: bool,
    pub(super) late: bool,
    pub(super) room: Room,
    pub(super) profile: Profile,
    pub(super) content: Option<Content>,
    pub(super) relates_to: Option<RelatesTo>,
    pub(super) redacts: Option<OwnedEventId>,
    pub(super) membership: Option<Membership>,
    pub(super) undecryptable: Option<Undecryptable>,
    pub(super) undecryptable_id: Option<MessageId>,
    pub(super) encryption: Encryption,
    pub(super) repairs: Vec<Repair>,
    pub(super) matrix: Matrix,
}

impl Draft {
    /// The id of the message, the `webhook-id` of its deliveries.
    #[must_use]
    pub fn message_id(&self) -> &MessageId {
        &self.message_id
    }

    /// The event it was made of.
    #[must_use]
    pub fn event_id(&self) -> &EventId {
        &self.event_id
    }

    /// The room.
    #[must_use]
    pub fn room_id(&self) -> &RoomId {
        &self.room_id
    }

    /// What it tells.
    #[must_use]
    pub fn message_type(&self) -> MessageType {
        self.message_type
    }

    /// The network, when a believable bridge is in the room.
    #[must_use]
    pub fn network(&self) -> Option<&str> {
        self.network.as_deref()
    }

    /// In or out.
    #[must_use]
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// Who sent the event.
    #[must_use]
    pub fn sender(&self) -> &UserId {
        &self.sender
    }

    /// When the event says it was sent.
    #[must_use]
    pub fn origin_server_ts(&self) -> Timestamp {
        self.origin_server_ts
    }

    /// How it was encrypted and how far its sender can be believed: what a webhook's policy decides on.
    #[must_use]
    pub fn encryption(&self) -> &Encryption {
        &self.encryption
    }

    /// The event that a redaction takes back.
    #[must_use]
    pub fn redacts(&self) -> Option<&EventId> {
        self.redacts.as_deref()
    }

    /// The same, as `reaction.redacted`: for a redaction whose [`Self::redacts`] is known to be a reaction.
    /// Of any other type it stays what it is. The id stays in any case.
    #[must_use]
    pub fn of_reaction(mut self) -> Self {
        if self.message_type == MessageType::MessageRedacted {
            self.message_type = MessageType::ReactionRedacted;
        }
        self
    }

    /// The same, for a `room.joined` of a room that replaces another. Of any other type it stays what it is.
    #[must_use]
    pub fn of_successor(mut self, predecessor: Option<String>) -> Self {
        if self.message_type == MessageType::RoomJoined
            && let Some(membership) = &mut self.membership
        {
            membership.replaces_room = predecessor;
        }
        self
    }

    /// The same, saying that a `message.undecryptable` told of the event before, and under which id.
    #[must_use]
    pub fn after_undecryptable(mut self) -> Self {
        self.undecryptable_id = Some(message_id(PayloadClass::Undecryptable, &self.event_id));
        self
    }

    /// The body of the webhook call, JSON, for the message's number in its room.
    ///
    /// # Errors
    /// None that is known: every key is text and the bytes go to memory. The caller still must not store
    /// half a payload.
    pub fn render(&self, sequence: u64) -> Result<Vec<u8>, serde_json::Error> {
        // Most are not much larger, and growing would copy it.
        let mut body = Vec::with_capacity(1024);
        serde_json::to_writer(&mut body, &self.payload(sequence))?;
        Ok(body)
    }

    /// The message to store, with its number in its room.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn into_message(self, sequence: u64) -> Result<Message, serde_json::Error> {
        let payload = self.render(sequence)?;
        Ok(Message {
            message_id: self.message_id,
            event_id: self.event_id,
            room_id: self.room_id,
            sequence,
            message_type: self.message_type,
            network: self.network,
            direction: self.direction,
            sender: self.sender,
            origin_server_ts: self.origin_server_ts,
            kind: self.content.as_ref().map(|content| content.kind.as_str()),
            encrypted: self.encryption.encrypted,
            trust: self.encryption.trust,
            replaces: self.relates_to.and_then(|to| to.replaces),
            payload,
        })
    }

    pub(super) fn payload(&self, sequence: u64) -> Payload<'_> {
        Payload {
            message_type: self.message_type,
            timestamp: self.origin_server_ts.rfc3339(),
            version: VERSION,
            data: Data {
                id: &self.message_id,
                sequence,
                event_id: &self.event_id,
                room_id: &self.room_id,
                network: self.network.as_deref(),
                direction: self.direction,
                backfill: self.backfill,
                late: self.late,
                room: &self.room,
                sender: Sender { mxid: &self.sender, profile: &self.profile },
                content: self.content.as_ref(),
                relates_to: self.relates_to.as_ref(),
                redacts: self.redacts.as_deref(),
                membership: self.membership.as_ref(),
                undecryptable: self.undecryptable.as_ref(),
                undecryptable_id: self.undecryptable_id.as_ref(),
                encryption: &self.encryption,
                repairs: &self.repairs,
                matrix: &self.matrix,
            },
        }
    }
}

/// The body of a webhook call.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(transform = crate::schema::by_type))]
pub struct Payload<'a> {
    /// What it tells, e.g. `message.created`.
    #[serde(rename = "type")]
    pub message_type: MessageType,
    /// When the event says it was sent (`origin_server_ts`), RFC 3339, UTC. For backfilled messages that is
    /// when they were written on the network, which may be long ago.
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    pub timestamp: String,
    /// The version of the schema, 1.
    #[cfg_attr(test, schemars(extend("const" = 1)))]
    pub version: u32,
    /// What it is about.
    pub data: Data<'a>,
}

/// `data` of the payload.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Data<'a> {
    /// The id of the message: the same at every attempt and every time the event is relayed again. Equal to
    /// the `webhook-id` header. Remember it to recognise repeats.
    pub id: &'a MessageId,
    /// The number of the message in its room: from 1, without gaps, in the order of relaying.
    #[cfg_attr(test, schemars(range(min = 1)))]
    pub sequence: u64,
    /// The Matrix event.
    #[cfg_attr(test, schemars(with = "String"))]
    pub event_id: &'a EventId,
    /// The Matrix room.
    #[cfg_attr(test, schemars(with = "String"))]
    pub room_id: &'a RoomId,
    /// The network, e.g. `instagram` or `messenger`; null when the room has no believable bridge.
    pub network: Option<&'a str>,
    /// `in`: somebody else wrote it; `out`: the owner did (here or in the network's own app), or coucou.
    pub direction: Direction,
    /// Whether it is history rather than news: marked so by its sender, or more than an hour old when it
    /// arrived.
    pub backfill: bool,
    /// Whether it had to wait for its key, so that newer messages of the room came before it.
    pub late: bool,
    /// The room.
    pub room: &'a Room,
    /// Who sent it.
    pub sender: Sender<'a>,
    /// What was said, read for you; null for `room.*` and `message.undecryptable`. Of an edit: the new
    /// content.
    pub content: Option<&'a Content>,
    /// The event it refers to; null when to none.
    pub relates_to: Option<&'a RelatesTo>,
    /// Only `message.redacted` and `reaction.redacted`: the event that was taken back.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub redacts: Option<&'a EventId>,
    /// Only `room.joined` and `room.left`: whose membership changed, and how.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub membership: Option<&'a Membership>,
    /// Only `message.undecryptable`: why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undecryptable: Option<&'a Undecryptable>,
    /// Only after a `message.undecryptable` about the same event: the id of that message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undecryptable_id: Option<&'a MessageId>,
    /// How it was encrypted and how far its sender can be believed.
    pub encryption: &'a Encryption,
    /// What of the event had to be repaired, so that it could be told at all; left out when nothing had.
    #[serde(skip_serializing_if = "<[Repair]>::is_empty")]
    pub repairs: &'a [Repair],
    /// The event as its sender wrote it.
    pub matrix: &'a Matrix,
}

/// `data.room`: the conversation.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Room {
    /// The name to show; null when it has none. Chosen by others: not to be trusted.
    pub name: Option<String>,
    /// `dm`: a conversation with one other person; `group`: anything else.
    #[serde(rename = "type")]
    pub kind: RoomKind,
    /// The conversation's id on the network; null when the room has no believable bridge.
    pub channel_id: Option<String>,
    /// Which of the owner's logins the conversation belongs to, by its id on the network: what the bridge says, or else
    /// the only login of that bridge that is known; null when that is not known.
    pub login: Option<String>,
}

/// `data.sender`: who sent it.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Sender<'a> {
    /// The Matrix user; for bridged messages usually a ghost, which stands for a person on the network.
    #[cfg_attr(test, schemars(with = "String"))]
    pub mxid: &'a UserId,
    /// The rest.
    #[serde(flatten)]
    pub profile: &'a Profile,
}

/// The rest of `data.sender`.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Profile {
    /// The display name in the room; null when not known. Chosen by the sender: not to be trusted.
    pub name: Option<String>,
    /// The avatar, an `mxc://` address; null when not known.
    pub avatar: Option<String>,
    /// The person's id on the network, taken from the ghost's user id; null when the sender is no ghost.
    pub network_id: Option<String>,
    /// How the sender presents itself in this message alone; left out when as ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<MessageProfile>,
}

/// `data.membership` of `room.joined` and `room.left`.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Membership {
    /// The account of coucou's that came or went. `data.sender` is who made it so.
    #[cfg_attr(test, schemars(with = "String"))]
    pub user_id: OwnedUserId,
    /// `join`, `leave` or `ban`.
    pub membership: String,
    /// The reason given, if any; null otherwise.
    pub reason: Option<String>,
    /// Only `room.joined`: the room that this one replaces, when it was upgraded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaces_room: Option<String>,
}

/// `data.undecryptable` of `message.undecryptable`.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Undecryptable {
    /// Why, one word: the same as on the ledger of undecryptable events.
    pub reason: String,
    /// The device that encrypted it, as the event claims; null when it does not say.
    pub device_id: Option<String>,
}

/// `data.matrix`: the event as its sender wrote it, for what the other fields do not carry.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Matrix {
    /// The type of the event, after decryption.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The content, after decryption, unchanged but for `data.repairs`; numbers are written as their sender wrote them,
    /// also those that no floating-point type holds. For encrypted attachments it holds the file's key
    /// (`file.key`), so that the consumer can fetch and decrypt the file: keep payloads as safe as the
    /// conversation itself. Of `message.undecryptable`, the wire content without the ciphertext.
    #[cfg_attr(test, schemars(with = "serde_json::Map<String, serde_json::Value>"))]
    pub content: JsonObject,
}

/// A payload without what was said, for a message that was taken back: `data.content` has the kind `redacted`
/// alone, `data.matrix.content` is empty. `None` when it is no payload.
#[must_use]
pub fn redacted(payload: &[u8]) -> Option<Vec<u8>> {
    let mut payload = RawObject::parse(payload)?;
    payload.within("data", |data| {
        if data.get("content").is_some_and(|content| content.get() != "null") {
            data.set("content", &Content::of(Kind::Redacted))?;
        }
        let _ = data.within("matrix", |matrix| matrix.set("content", &json!({})));
        // They stood in the content, or tell of it.
        data.remove("repairs");
        let _ = data.within("sender", |sender| sender.remove("profile").map(drop));
        Some(())
    })?;
    payload.to_vec()
}

/// A payload under another number in its room. `None` when it is no payload.
#[must_use]
pub fn renumbered(payload: &[u8], sequence: u64) -> Option<Vec<u8>> {
    let mut payload = RawObject::parse(payload)?;
    payload.within("data", |data| data.set("sequence", &sequence))?;
    payload.to_vec()
}

/// What a payload says that its event takes back: room and event id.
#[must_use]
pub fn target(payload: &[u8]) -> Option<(String, String)> {
    let data = RawObject::read(RawObject::parse(payload)?.get("data")?)?;
    Some((data.get_as("room_id")?, data.get_as("redacts")?))
}

/// The body of a `webhook.test` call, which belongs to no event.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Test<'a> {
    /// `webhook.test`.
    #[serde(rename = "type")]
    #[cfg_attr(test, schemars(extend("const" = "webhook.test")))]
    pub message_type: MessageType,
    /// When it was asked for, RFC 3339, UTC.
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    pub timestamp: String,
    /// The version of the schema, 1.
    #[cfg_attr(test, schemars(extend("const" = 1)))]
    pub version: u32,
    /// What it is about.
    pub data: TestData<'a>,
}

/// `data` of a `webhook.test`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TestData<'a> {
    /// Its id, equal to the `webhook-id` header.
    pub id: &'a MessageId,
    /// A text to show.
    pub text: &'static str,
}

/// The body of a `webhook.test` call: `data` holds only `id` and a `text` to show.
///
/// # Errors
/// As [`Draft::render`].
pub fn render_test(id: &MessageId, now: Timestamp) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&Test {
        message_type: MessageType::WebhookTest,
        timestamp: now.rfc3339(),
        version: VERSION,
        data: TestData { id, text: "coucou reaches this webhook." },
    })
}
