//! From events to messages: what a webhook is told about an event in the clear.
//!
//! Pure functions: no store, no network, no clock of their own. The same event in the same room makes the
//! same message, under the same id, however often it is done, so dying half-way costs nothing. Nothing an
//! event can hold makes them fail: what cannot be read is relayed as kind `unknown`, with the raw content.

pub mod bridge;
pub mod control;
pub mod filter;
mod html;
pub mod ids;
pub mod kinds;
pub mod network;
pub mod payload;
pub mod profile;
pub mod relations;
pub mod room;

use std::time::Duration;

use ruma::{OwnedEventId, OwnedUserId};
use serde_json::{Map, Value};

pub use ids::{PayloadClass, message_id};
pub use payload::{Draft, redacted, render_test, renumbered, target};

use crate::{
    clock::Timestamp,
    messages::{
        kinds::{Content, Kind, ReadContext},
        payload::{Matrix, Membership, Profile, Room, Undecryptable},
        profile::MessageProfile,
        relations::RelatesTo,
    },
    model::{ClearEvent, Direction, MessageType, Repair, RoomContext, SenderProfile, text::read_event_id},
};

/// An event older than this when it arrives is history: it was fetched from the network, or the homeserver
/// was cut off for so long that nobody waits for an answer.
pub const BACKFILL_AGE: Duration = Duration::from_hours(1);

/// What mautrix bridges put into the content of what the owner wrote in the network's own app.
const DOUBLE_PUPPET: &str = "fi.mau.double_puppet_source";

/// Marks of imported history ([MSC2716](https://github.com/matrix-org/matrix-spec-proposals/pull/2716)).
const HISTORICAL: [&str; 2] = ["m.historical", "org.matrix.msc2716.historical"];

/// The message that tells what `event` says.
///
/// `received_at` is when the event reached coucou (not when its key did), so that `backfill` is the same
/// every time. State events do not belong here; they would be relayed as kind `unknown`.
#[must_use]
pub fn draft(
    mut event: ClearEvent,
    room: &RoomContext,
    profile: SenderProfile,
    received_at: Timestamp,
) -> Draft {
    let read = read(&event, room);
    event.repairs.extend(read.repairs);
    let mut draft = bare(PayloadClass::Event, read.message_type, event, room, profile, received_at);
    draft.content = Some(read.content);
    draft.relates_to = read.relates_to;
    draft.redacts = read.redacts;
    draft.profile.profile = read.profile;
    draft
}

/// The message that tells that `event`, of type `m.room.encrypted` with its wire content, could not be
/// decrypted so far. `reason` is the ledger's word.
#[must_use]
pub fn undecryptable(
    mut event: ClearEvent,
    reason: &str,
    room: &RoomContext,
    profile: SenderProfile,
    received_at: Timestamp,
) -> Draft {
    // It is of no use to anybody without the key, and can be 60 kB.
    event.content = event.content.without("ciphertext");
    let device_id = event.content.get("device_id").and_then(Value::as_str).map(str::to_owned);
    let relates_to = RelatesTo::read(&event.content, &mut event.repairs);
    let class = PayloadClass::Undecryptable;
    let mut draft = bare(class, MessageType::MessageUndecryptable, event, room, profile, received_at);
    draft.relates_to = relates_to;
    draft.undecryptable = Some(Undecryptable { reason: reason.to_owned(), device_id });
    draft
}

/// The message that tells that coucou, as `account`, reads a room from now on (`room.joined`) or no longer
/// (`room.left`): `event` is the `m.room.member` event that made it so.
#[must_use]
pub fn room_change(
    event: ClearEvent,
    account: OwnedUserId,
    room: &RoomContext,
    profile: SenderProfile,
    received_at: Timestamp,
) -> Draft {
    let text = |key| event.content.get(key).and_then(Value::as_str).map(str::to_owned);
    let membership = text("membership").unwrap_or_else(|| "leave".to_owned());
    let reason = text("reason");
    let message_type = if membership == "join" { MessageType::RoomJoined } else { MessageType::RoomLeft };
    let mut draft = bare(PayloadClass::Room, message_type, event, room, profile, received_at);
    draft.membership = Some(Membership { user_id: account, membership, reason, replaces_room: None });
    draft
}

/// The message that tells that an event was taken back with all that its sender had said: `event` is the ban, or the
/// removal, that does so ([MSC4293](https://github.com/matrix-org/matrix-spec-proposals/pull/4293)).
#[must_use]
pub fn taken_back(
    event: ClearEvent,
    target: OwnedEventId,
    room: &RoomContext,
    profile: SenderProfile,
    received_at: Timestamp,
) -> Draft {
    let reason = event.content.get("reason").and_then(Value::as_str).map(str::to_owned);
    let message_id = ids::takeback_id(&event.event_id, &target);
    let mut draft =
        bare(PayloadClass::Event, MessageType::MessageRedacted, event, room, profile, received_at);
    draft.message_id = message_id;
    draft.content = Some(Content { reason, ..Content::of(Kind::Redaction) });
    draft.redacts = Some(target);
    draft
}

/// A draft with all that does not depend on the type.
fn bare(
    class: PayloadClass,
    message_type: MessageType,
    event: ClearEvent,
    room: &RoomContext,
    profile: SenderProfile,
    received_at: Timestamp,
) -> Draft {
    let network_id = network::network_id(room, &event.sender).map(str::to_owned);
    Draft {
        message_type,
        message_id: message_id(class, &event.event_id),
        direction: direction(&event, room),
        backfill: is_backfill(&event, received_at),
        event_id: event.event_id,
        room_id: event.room_id,
        sender: event.sender,
        origin_server_ts: event.origin_server_ts,
        network: room.network.clone(),
        late: event.late,
        room: Room {
            name: room.name.clone(),
            kind: room.kind,
            channel_id: room.channel_id.clone(),
            login: room.login.clone(),
        },
        profile: Profile { name: profile.name, avatar: profile.avatar, network_id, profile: None },
        content: None,
        relates_to: None,
        redacts: None,
        membership: None,
        undecryptable: None,
        undecryptable_id: None,
        encryption: event.encryption,
        repairs: event.repairs,
        matrix: Matrix { event_type: event.event_type, content: event.content },
    }
}

/// Whether a content bears the mark of what a bridge says for a real user. Anybody can write it; it means
/// something only where a bridge did.
#[must_use]
pub fn is_puppets(content: &Map<String, Value>) -> bool {
    content.get(DOUBLE_PUPPET).and_then(Value::as_str).is_some_and(|by| !by.is_empty())
}

fn direction(event: &ClearEvent, room: &RoomContext) -> Direction {
    // Inside a bridge's own encryption nobody else can write the mark.
    let is_puppets = event.encryption.bridged_by.is_some() && is_puppets(&event.content);
    let is_out = event.is_owners || is_puppets || room.our_users.contains(&event.sender);
    if is_out { Direction::Out } else { Direction::In }
}

fn is_backfill(event: &ClearEvent, received_at: Timestamp) -> bool {
    HISTORICAL.iter().any(|mark| event.content.get(*mark) == Some(&Value::Bool(true)))
        || received_at.since(event.origin_server_ts) > BACKFILL_AGE
}

/// What an event says, by its type.
struct Read {
    message_type: MessageType,
    content: Content,
    relates_to: Option<RelatesTo>,
    redacts: Option<OwnedEventId>,
    profile: Option<MessageProfile>,
    repairs: Vec<Repair>,
}

impl Read {
    fn of(message_type: MessageType, content: Content, relates_to: Option<RelatesTo>) -> Self {
        Self { message_type, content, relates_to, redacts: None, profile: None, repairs: Vec::new() }
    }
}

fn read(event: &ClearEvent, room: &RoomContext) -> Read {
    let mut repairs = Vec::new();
    let relates_to = RelatesTo::read(&event.content, &mut repairs);
    let mut read = read_related(event, room, relates_to);
    read.repairs.extend(repairs);
    read
}

fn read_related(event: &ClearEvent, room: &RoomContext, relates_to: Option<RelatesTo>) -> Read {
    let content = &event.content;
    match event.event_type.as_str() {
        "m.reaction" => read_reaction(content, relates_to),
        // Homeservers check who may take back what, and see nothing of what is encrypted.
        "m.room.redaction" if !event.encryption.encrypted => read_redaction(event, relates_to),
        event_type => {
            let is_edit = relates_to.as_ref().is_some_and(|to| to.replaces.is_some());
            let context = ReadContext {
                is_reply: relates_to.as_ref().is_some_and(|to| to.is_reply),
                is_edit: false,
                is_bridged: is_bridged(event, room),
                network: room.network.as_deref(),
                protocol: room.protocol.as_deref(),
                base: "",
            };
            let new = content.get("m.new_content").and_then(Value::as_object).filter(|_| is_edit);
            let profile = match new {
                Some(new) => MessageProfile::read(new, "/m.new_content"),
                None => MessageProfile::read(content, ""),
            };
            let read = if is_edit {
                let content = kinds::read_edit(event_type, content, &context);
                Read::of(MessageType::MessageEdited, content, relates_to)
            } else {
                let content = kinds::read(event_type, content, &context);
                Read::of(MessageType::MessageCreated, content, relates_to)
            };
            Read { profile, ..read }
        }
    }
}

/// Whether a bridge wrote the event: for one of its ghosts, or for a user in whose name it speaks.
fn is_bridged(event: &ClearEvent, room: &RoomContext) -> bool {
    room.bridge_bot.is_some()
        && (is_puppets(&event.content) || network::network_id(room, &event.sender).is_some())
}

fn read_reaction(content: &Map<String, Value>, relates_to: Option<RelatesTo>) -> Read {
    let key = content.get("m.relates_to").and_then(|to| to.get("key")).and_then(Value::as_str);
    let known = relates_to.as_ref().is_some_and(|to| to.reacts_to.is_some());
    let (message_type, content) = match key {
        Some(key) if known => {
            let files = kinds::files(content);
            let content = Content { key: Some(key.to_owned()), files, ..Content::of(Kind::Reaction) };
            (MessageType::ReactionCreated, content)
        }
        _ => (MessageType::MessageCreated, kinds::unknown(content)),
    };
    Read::of(message_type, content, relates_to)
}

fn read_redaction(event: &ClearEvent, relates_to: Option<RelatesTo>) -> Read {
    let inside = || read_event_id(event.content.get("redacts").and_then(Value::as_str)?).ok();
    let redacts = event.redacts.clone().or_else(inside);
    if redacts.is_none() {
        return Read::of(MessageType::MessageCreated, kinds::unknown(&event.content), relates_to);
    }
    let reason = event.content.get("reason").and_then(Value::as_str).map(str::to_owned);
    let content = Content { reason, ..Content::of(Kind::Redaction) };
    Read { redacts, ..Read::of(MessageType::MessageRedacted, content, relates_to) }
}

#[cfg(test)]
mod tests;
