//! What a content says, by its type: `data.content` of the payload.
//!
//! A content without what its type needs (the text of a text, the address of an image) is of kind `unknown`;
//! what is optional and has the wrong shape is left out. The raw content goes with the payload either way.

mod bridged;
mod call;
mod media;
mod poll;

use serde::Serialize;
use serde_json::{Map, Value};

pub use bridged::{Bridged, LinkPreview};
pub use call::Call;
pub use media::{Media, Thumbnail};
pub use poll::{Answer, Poll};

use crate::messages::relations;

/// What sort of thing was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A text.
    Text,
    /// A text by a machine; bridges send what they cannot bridge (view-once photos …) so.
    Notice,
    /// A text in the third person: `/me waves`.
    Emote,
    /// A picture.
    Image,
    /// A video.
    Video,
    /// A sound.
    Audio,
    /// A voice message.
    Voice,
    /// Any other file.
    File,
    /// A sticker.
    Sticker,
    /// A place.
    Location,
    /// A question with answers to choose from.
    Poll,
    /// What somebody chose.
    PollResponse,
    /// The end of a poll.
    PollEnd,
    /// Something about a call.
    Call,
    /// A reaction to a message.
    Reaction,
    /// A message or reaction taken back.
    Redaction,
    /// What was taken back before it was delivered, whatever it was.
    Redacted,
    /// Of a type that has no kind, or malformed: look at `data.matrix`.
    Unknown,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::Text,
        Self::Notice,
        Self::Emote,
        Self::Image,
        Self::Video,
        Self::Audio,
        Self::Voice,
        Self::File,
        Self::Sticker,
        Self::Location,
        Self::Poll,
        Self::PollResponse,
        Self::PollEnd,
        Self::Call,
        Self::Reaction,
        Self::Redaction,
        Self::Redacted,
        Self::Unknown,
    ];

    /// The name in payloads and settings.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Notice => "notice",
            Self::Emote => "emote",
            Self::Image => "image",
            Self::Video => "video",
            Self::Audio => "audio",
            Self::Voice => "voice",
            Self::File => "file",
            Self::Sticker => "sticker",
            Self::Location => "location",
            Self::Poll => "poll",
            Self::PollResponse => "poll_response",
            Self::PollEnd => "poll_end",
            Self::Call => "call",
            Self::Reaction => "reaction",
            Self::Redaction => "redaction",
            Self::Redacted => "redacted",
            Self::Unknown => "unknown",
        }
    }
}

/// `data.content`: what was said.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Content {
    /// What sort of thing it is. New kinds may come: treat one you do not know as `unknown`.
    pub kind: Kind,
    /// What there is to read: the text of `text`, `notice` and `emote`, the caption of media (also in
    /// `media.caption`), the description of a `sticker` or `location`, the fallback text of `unknown`. Without the
    /// quotation that older clients put before replies. May be empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The same as HTML, as the sender wrote it: sanitise it before showing it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub html: Option<String>,
    /// The file of `image`, `video`, `audio`, `voice`, `file` and `sticker`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub media: Option<Media>,
    /// The place of `location`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
    /// What a `poll` asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poll: Option<Poll>,
    /// The ids of the answers that a `poll_response` chooses; none takes an earlier choice back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selections: Option<Vec<String>>,
    /// What a `call` is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call: Option<Call>,
    /// The reaction of `reaction`: an emoji as a rule, but any text or an `mxc://` address is possible.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The reason of `redaction`, if one was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who is meant in particular.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mentions: Option<Mentions>,
    /// Previews of the links in the text, as the sender wrote them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub link_previews: Vec<LinkPreview>,
    /// What the bridge says of it beyond Matrix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge: Option<Bridged>,
}

/// `data.content.location`: a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Location {
    /// Where, an [RFC 5870](https://www.rfc-editor.org/rfc/rfc5870) address: `geo:48.85,2.35`.
    pub geo_uri: String,
    /// What the sender calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// `data.content.mentions`: who is meant in particular.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Mentions {
    /// Matrix users, as the sender wrote them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub user_ids: Vec<String>,
    /// Whether everybody in the room is meant.
    pub room: bool,
}

impl Content {
    /// A content of which only the kind is known.
    #[must_use]
    pub fn of(kind: Kind) -> Self {
        Self {
            kind,
            text: None,
            html: None,
            media: None,
            location: None,
            poll: None,
            selections: None,
            call: None,
            key: None,
            reason: None,
            mentions: None,
            link_previews: Vec::new(),
            bridge: None,
        }
    }
}

/// What the content of an event of that type says. `reply`: whether the text may begin with a reply's fallback.
#[must_use]
pub fn read(event_type: &str, content: &Map<String, Value>, reply: bool) -> Content {
    let known = match event_type {
        "m.room.message" => read_message(content, reply),
        "m.sticker" => media::read(Kind::Sticker, content, reply),
        other => poll::read(other, content).or_else(|| call::read(other, content)),
    };
    let mut read = known.unwrap_or_else(|| unknown(content));
    read.mentions = mentions(content);
    read.link_previews = bridged::link_previews(content);
    read.bridge = bridged::read(content);
    read
}

/// What an edit makes of the event that it replaces: `m.new_content`, and `unknown` without one.
#[must_use]
pub fn read_edit(event_type: &str, content: &Map<String, Value>) -> Content {
    match content.get("m.new_content") {
        Some(Value::Object(new)) => read(event_type, new, true),
        _ => unknown(content),
    }
}

/// A content that says nothing we understand, with whatever text it has for clients like us.
#[must_use]
pub fn unknown(content: &Map<String, Value>) -> Content {
    let text = text(content, "body").or_else(|| text(content, "org.matrix.msc1767.text"));
    Content { text: text.map(str::to_owned), ..Content::of(Kind::Unknown) }
}

fn read_message(content: &Map<String, Value>, reply: bool) -> Option<Content> {
    if let Some(call) = call::read_notice(content) {
        return Some(call);
    }
    match text(content, "msgtype")? {
        "m.text" => read_text(Kind::Text, content, reply),
        "m.notice" | "m.server_notice" => read_text(Kind::Notice, content, reply),
        "m.emote" => read_text(Kind::Emote, content, reply),
        "m.image" => media::read(Kind::Image, content, reply),
        "m.video" => media::read(Kind::Video, content, reply),
        "m.audio" if media::is_voice(content) => media::read(Kind::Voice, content, reply),
        "m.audio" => media::read(Kind::Audio, content, reply),
        "m.file" => media::read(Kind::File, content, reply),
        "m.location" => read_location(content),
        _ => None,
    }
}

fn read_text(kind: Kind, content: &Map<String, Value>, reply: bool) -> Option<Content> {
    let body = text(content, "body")?;
    let body = if reply { relations::strip_text(body) } else { body };
    Some(Content { text: Some(body.to_owned()), html: html(content, reply), ..Content::of(kind) })
}

fn read_location(content: &Map<String, Value>) -> Option<Content> {
    let inner = content.get("m.location").or_else(|| content.get("org.matrix.msc3488.location"));
    let of_inner = |key| inner.and_then(|inner| inner.get(key)).and_then(Value::as_str);
    let geo_uri =
        text(content, "geo_uri").or_else(|| of_inner("uri")).filter(|uri| uri.starts_with("geo:"))?;
    let body = text(content, "body");
    let location = Location {
        geo_uri: geo_uri.to_owned(),
        description: of_inner("description").or(body).filter(|text| !text.is_empty()).map(str::to_owned),
    };
    let content = Content::of(Kind::Location);
    Some(Content { text: body.map(str::to_owned), location: Some(location), ..content })
}

/// The HTML of a content that has some.
fn html(content: &Map<String, Value>, reply: bool) -> Option<String> {
    let html = text(content, "formatted_body")
        .filter(|_| text(content, "format") == Some("org.matrix.custom.html"))?;
    let html = if reply { relations::strip_html(html) } else { html };
    (!html.is_empty()).then(|| html.to_owned())
}

fn mentions(content: &Map<String, Value>) -> Option<Mentions> {
    let raw = content.get("m.mentions")?.as_object()?;
    let user_ids = raw.get("user_ids").and_then(Value::as_array).map_or_else(Vec::new, |ids| {
        ids.iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
    });
    let room = raw.get("room") == Some(&Value::Bool(true));
    (room || !user_ids.is_empty()).then_some(Mentions { user_ids, room })
}

fn text<'a>(content: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    content.get(key).and_then(Value::as_str)
}
