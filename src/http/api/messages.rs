//! `GET /api/v1/messages`, `/messages/{network}`, `/messages/{id}`: what was relayed, newest first.

use std::borrow::Cow;

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    super::{HttpState, error::Problem},
    openapi::{Page, Refusals, Times},
    query::{self, List, Query, Segment},
};
use crate::{
    clock::Timestamp,
    links::Links,
    model::{Direction, MessageType},
    store::{
        StoreError,
        messages::read::{self, Filter, Stored},
    },
};

/// A page of messages.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MessagePage)]
#[expect(clippy::struct_field_names, reason = "the list has the name that programs read it by")]
pub(super) struct Messages {
    /// The network that was asked for; null for all.
    #[schema(example = "instagram")]
    platform: Option<String>,
    /// How many messages this page has.
    count: usize,
    /// The messages, the last stored first.
    messages: Vec<Message>,
    /// The `cursor` of the next page; null when this is the last.
    next: Option<String>,
}

/// A message.
#[derive(Debug, Serialize, ToSchema)]
#[expect(clippy::struct_excessive_bools, reason = "each is a field of the API")]
pub(super) struct Message {
    /// Its id, the `webhook-id` of its deliveries.
    #[schema(example = "msg_f1c7e5b38171947b61cce4fda713f1969a464f7d")]
    id: String,
    /// The Matrix user that sent it, as a rule a ghost that stands for a person on the network.
    sender: String,
    /// How the sender presents itself.
    sender_name: Option<String>,
    /// What there is to read: the text, a file's name, a reaction's key. Empty when there is nothing.
    content: String,
    /// When it was sent, RFC 3339 in UTC.
    timestamp: String,
    /// The network; null when the room has no believable bridge.
    platform: Option<String>,
    /// The Matrix room.
    room_id: String,
    /// The room's name.
    room_name: Option<String>,
    /// Whether the content can be read here: false for `message.undecryptable`, and for what is `purged`.
    decrypted: bool,
    /// Whether the content was deleted for its age.
    purged: bool,
    /// Whether the event was end-to-end encrypted.
    encrypted: bool,
    /// How far the sender can be believed; null when not encrypted.
    trust: Option<String>,
    /// What it tells, e.g. `message.created`.
    r#type: String,
    /// The kind of its content, e.g. `text` or `image`.
    kind: Option<String>,
    /// The number of the message in its room.
    sequence: i64,
    /// `in`: somebody else wrote it; `out`: the owner or coucou did.
    direction: String,
    /// The Matrix event.
    event_id: String,
    /// The events it refers to, by `reply_to`, `replaces`, `reacts_to` or `thread`; null when to none.
    #[schema(value_type = Option<Object>)]
    relates_to: Option<Box<RawValue>>,
    /// Whether it is history rather than news.
    backfill: bool,
    /// Whether it waited for its key while later messages went ahead.
    late: bool,
    /// When coucou stored it, RFC 3339 in UTC: what `since` and `until` go by.
    received_at: String,
    /// Its file, as in `payload.data.content.media`, with an address that works from now on; null when it has none.
    #[schema(value_type = Option<Object>)]
    media: Option<Box<RawValue>>,
}

/// A message with all that its webhook call says.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct WholeMessage {
    #[serde(flatten)]
    message: Message,
    /// The body of the webhook call, see `docs/webhook.md`; null once it was deleted for its age.
    #[schema(value_type = Option<Object>)]
    payload: Option<Box<RawValue>>,
}

/// A page of a network's messages, or one message.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum MessagesOrMessage {
    /// For a network's name.
    Messages(Messages),
    /// For a message's id.
    Message(Box<WholeMessage>),
}

/// What of a payload a list shows.
#[derive(Deserialize)]
struct Payload {
    data: Data,
}

#[derive(Default, Deserialize)]
struct Data {
    #[serde(default)]
    backfill: bool,
    #[serde(default)]
    late: bool,
    #[serde(default)]
    room: Named,
    #[serde(default)]
    sender: Named,
    content: Option<Content>,
    relates_to: Option<Box<RawValue>>,
    #[serde(default)]
    encryption: Encryption,
}

#[derive(Default, Deserialize)]
struct Named {
    name: Option<String>,
}

#[derive(Deserialize)]
struct Content {
    kind: Option<String>,
    text: Option<String>,
    key: Option<String>,
    reason: Option<String>,
    media: Option<Box<RawValue>>,
}

#[derive(Default, Deserialize)]
struct Media {
    filename: Option<String>,
}

#[derive(Default, Deserialize)]
struct Encryption {
    #[serde(default)]
    encrypted: bool,
    trust: Option<String>,
}

impl Content {
    /// What there is to read.
    fn words(&self) -> String {
        let media: Option<Media> =
            self.media.as_ref().and_then(|media| serde_json::from_str(media.get()).ok());
        let filename = media.and_then(|media| media.filename);
        let said = [self.text.as_ref(), filename.as_ref(), self.key.as_ref(), self.reason.as_ref()];
        said.into_iter().flatten().find(|text| !text.is_empty()).cloned().unwrap_or_default()
    }
}

impl Message {
    fn of(
        mut stored: Stored,
        links: Option<&Links>,
        now: Timestamp,
    ) -> Result<(Self, Option<Vec<u8>>), Problem> {
        stored.payload = stored.payload.map(|payload| located(links, payload, now));
        let data = match &stored.payload {
            Some(payload) => {
                serde_json::from_slice::<Payload>(payload)
                    .map_err(|_| Problem::from(StoreError::Corrupt("messages")))?
                    .data
            }
            None => Data::default(),
        };
        let content = data.content.as_ref();
        let purged = stored.payload.is_none();
        let message = Self {
            id: stored.message_id,
            sender: stored.sender,
            sender_name: data.sender.name,
            content: content.map(Content::words).unwrap_or_default(),
            timestamp: stored.origin_server_ts.rfc3339(),
            platform: stored.network,
            room_id: stored.room_id,
            room_name: data.room.name,
            decrypted: !purged && stored.message_type != MessageType::MessageUndecryptable.as_str(),
            purged,
            encrypted: data.encryption.encrypted,
            trust: data.encryption.trust,
            r#type: stored.message_type,
            kind: content.and_then(|content| content.kind.clone()),
            sequence: stored.sequence,
            direction: stored.direction,
            event_id: stored.event_id,
            relates_to: data.relates_to,
            media: data.content.and_then(|content| content.media),
            backfill: data.backfill,
            late: data.late,
            received_at: stored.created_at.rfc3339(),
        };
        Ok((message, stored.payload))
    }
}

/// The payload with addresses of its files that work from now on.
pub(super) fn located(links: Option<&Links>, payload: Vec<u8>, now: Timestamp) -> Vec<u8> {
    match links.map(|links| links.refresh(&payload, now)) {
        Some(Cow::Owned(located)) => located,
        Some(Cow::Borrowed(_)) | None => payload,
    }
}

/// The payload as it is, to be put into an answer.
pub(super) fn raw(payload: Vec<u8>) -> Result<Box<RawValue>, Problem> {
    let corrupt = || Problem::from(StoreError::Corrupt("messages"));
    let text = String::from_utf8(payload).map_err(|_| corrupt())?;
    RawValue::from_string(text).map_err(|_| corrupt())
}

/// Messages, newest first
///
/// Of all rooms and networks, or of those that the filters leave. `since` and `until` go by when coucou stored a
/// message, not by when it was sent: history that a bridge fetches is new here.
#[utoipa::path(
    get, path = "/api/v1/messages", tag = "messages",
    params(
        Page, Times,
        ("room" = Option<String>, Query, description = "Of this room alone."),
        ("network" = Option<String>, Query, description = "Of this network alone; `facebook` means `messenger`."),
        ("direction" = Option<String>, Query, description = "`in` or `out`."),
        ("type" = Option<String>, Query, description = "Of this type alone, e.g. `message.edited`."),
    ),
    responses((status = 200, description = "A page of messages.", body = Messages), Refusals),
)]
pub(super) async fn list(
    State(state): State<HttpState>,
    mut query: Query,
) -> Result<Json<Messages>, Problem> {
    let network = query.network()?.map(|network| state.api.network(network));
    page(&state, query, network).await.map(Json)
}

/// Messages of a network, or one message
///
/// A network's name (`instagram`, `messenger`, `facebook` for the same, whatever the bridge calls its own) answers
/// a page as `/messages` does, of that network. An id (`msg_` and 40 hexadecimal digits) answers that message, with
/// the body of its webhook call; it takes no parameters.
#[utoipa::path(
    get, path = "/api/v1/messages/{network_or_id}", tag = "messages",
    params(
        ("network_or_id" = String, Path, description = "A network's name, or a message's id."),
        Page, Times,
        ("room" = Option<String>, Query, description = "Of this room alone."),
        ("direction" = Option<String>, Query, description = "`in` or `out`."),
        ("type" = Option<String>, Query, description = "Of this type alone, e.g. `message.edited`."),
    ),
    responses(
        (status = 200, description = "A page of messages, or a message.", body = MessagesOrMessage),
        (status = 404, description = "There is no such message.", body = super::openapi::Problem,
            content_type = "application/problem+json"),
        Refusals,
    ),
)]
pub(super) async fn of(
    State(state): State<HttpState>,
    Segment(name): Segment,
    query: Query,
) -> Result<Json<MessagesOrMessage>, Problem> {
    if is_id(&name) {
        query.finish()?;
        let message = one(&state, &name).await?;
        return Ok(Json(MessagesOrMessage::Message(Box::new(message))));
    }
    let network = query::network(&name).ok_or_else(|| {
        Problem::bad_parameter("the path must end with a message's id or a network's name".to_owned())
    })?;
    let network = state.api.network(network.to_owned());
    page(&state, query, Some(network)).await.map(|messages| Json(MessagesOrMessage::Messages(messages)))
}

/// Whether a name is a message's id.
pub(super) fn is_id(name: &str) -> bool {
    name.strip_prefix("msg_").is_some_and(|hex| {
        hex.len() == 40 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

async fn one(state: &HttpState, id: &str) -> Result<WholeMessage, Problem> {
    let store = &state.api.store;
    let found = read::find(store.db(), store.seal()?, id).await?;
    let found = found.ok_or_else(|| Problem::not_there("message"))?;
    let (message, payload) = Message::of(found, state.api.links()?.as_ref(), state.api.clock.now())?;
    Ok(WholeMessage { message, payload: payload.map(raw).transpose()? })
}

async fn page(state: &HttpState, mut query: Query, network: Option<String>) -> Result<Messages, Problem> {
    let limit = query.limit()?;
    let before = query.number("cursor", List::Messages)?;
    let (since, until) = query.times()?;
    let room_id = query.room()?;
    let direction = query.parsed("direction", "in or out", Direction::parse)?;
    let message_type = query.parsed("type", "a type of message, such as message.created", |name| {
        MessageType::parse(name).filter(|kind| *kind != MessageType::WebhookTest)
    })?;
    query.finish()?;
    let filter = Filter { room_id, network: network.clone(), direction, message_type, since, until };
    let store = &state.api.store;
    let mut found = read::page(store.db(), store.seal()?, &filter, before, limit + 1).await?;
    let more = found.len() > usize::from(limit);
    found.truncate(limit.into());
    let next = found.last().filter(|_| more).map(|last| List::Messages.cursor(last.position));
    let (links, now) = (state.api.links()?, state.api.clock.now());
    let messages =
        found.into_iter().map(|stored| Message::of(stored, links.as_ref(), now).map(|(message, _)| message));
    let messages: Vec<_> = messages.collect::<Result<_, _>>()?;
    Ok(Messages { platform: network, count: messages.len(), messages, next })
}
