//! What a content says, by its type: `data.content` of the payload.
//!
//! A content without what its type needs (the text of a text, the address of an image) is of kind `unknown`;
//! what is optional and has the wrong shape is left out. The raw content goes with the payload either way.

mod bridged;
mod call;
mod extensible;
mod files;
mod gallery;
mod media;
mod mentions;
mod notices;
mod poll;
mod share;
mod spoiler;

use serde::Serialize;
use serde_json::{Map, Value};

pub use bridged::{Bridged, LinkPreview};
pub use call::Call;
pub use files::File;
pub use gallery::{Album, GalleryItem};
pub use media::{Media, Thumbnail};
pub use mentions::Mentions;
pub use poll::{Answer, Poll};
pub use share::{Share, Story};
pub use spoiler::Spoiler;

use crate::messages::{profile::MessageProfile, relations};

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
    /// Several files in one message.
    Gallery,
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
    pub const ALL: [Self; 19] = [
        Self::Text,
        Self::Notice,
        Self::Emote,
        Self::Image,
        Self::Video,
        Self::Audio,
        Self::Voice,
        Self::File,
        Self::Gallery,
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
            Self::Gallery => "gallery",
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
    /// `media.caption`) and of a `gallery`, the description of a `sticker` or `location`, the fallback text of `unknown`.
    /// Without the quotation that older clients put before replies. May be empty.
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
    /// What a `call` is about; also of a `notice` whose words tell of a call.
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
    /// The files of a `gallery`, in their order; `text` is its caption.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gallery: Vec<GalleryItem>,
    /// Which album the message is a part of, where several messages are one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub album: Option<Album>,
    /// Of an answer to a story: what it answers, and the answer alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub story: Option<Story>,
    /// What of the network the message shares: a post, a reel, a story.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<Share>,
    /// Set when something of it is to be hidden until the reader asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spoiler: Option<Spoiler>,
    /// Whether the bridge could not bridge what there was: the text says so.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unsupported: bool,
    /// Whether it is something that can be looked at once. With `unsupported` it can be looked at only in the
    /// network's own app.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub view_once: bool,
    /// The files that stand elsewhere in the content: pictures amid the text, those of types that have no kind.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<File>,
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

/// What is known of a content beyond itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadContext<'a> {
    /// Whether the message answers another, so that a quotation may stand before its text.
    pub is_reply: bool,
    /// Whether it is the new content of an edit, which need not say whether the message answers another.
    pub is_edit: bool,
    /// Whether a bridge wrote it: for one of its ghosts, or for a user in whose name it may speak.
    pub is_bridged: bool,
    /// The network of the bridge.
    pub network: Option<&'a str>,
    /// The protocol of the bridge, as it calls it.
    pub protocol: Option<&'a str>,
    /// Where the content stands in the event's, a JSON pointer.
    pub base: &'a str,
}

impl ReadContext<'_> {
    /// Returns whether the network is one of Meta's.
    fn is_of_meta(&self) -> bool {
        const NAMES: [&str; 6] = ["instagram", "instagramgo", "messenger", "facebook", "facebookgo", "meta"];
        [self.protocol, self.network].into_iter().flatten().any(|name| NAMES.contains(&name))
    }
}

/// The words of a content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Said {
    text: Option<String>,
    html: Option<String>,
}

impl Said {
    /// Reads the words without what stands before them for older clients.
    fn read(content: &Map<String, Value>, context: &ReadContext<'_>) -> Self {
        let Self { text, html } = Self::as_written(content);
        let Some(text) = text else { return Self { text, html } };
        let has_fallback = html.as_deref().is_some_and(relations::has_fallback);
        let (mut text, mut html) = if context.is_reply || (context.is_edit && has_fallback) {
            let (text, html) = relations::without_fallback(&text, html.as_deref());
            (text.to_owned(), html.map(str::to_owned))
        } else {
            (text, html)
        };
        if let Some(profile) = MessageProfile::read(content, context.base) {
            text = profile.without_fallback(&text).into();
            html = html.map(|html| profile.without_html_fallback(&html));
        }
        Self { text: Some(text), html: html.filter(|html| !html.is_empty()) }
    }

    /// Reads the words with all that stands before them.
    fn as_written(content: &Map<String, Value>) -> Self {
        let html = text(content, "formatted_body")
            .filter(|html| text(content, "format") == Some("org.matrix.custom.html") && !html.is_empty());
        match text(content, "body") {
            Some(body) => Self { text: Some(body.to_owned()), html: html.map(str::to_owned) },
            None => extensible::words(content)
                .map_or_else(Self::default, |(text, html)| Self { text: Some(text), html }),
        }
    }
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
            gallery: Vec::new(),
            album: None,
            story: None,
            share: None,
            spoiler: None,
            unsupported: false,
            view_once: false,
            files: Vec::new(),
        }
    }

    /// Returns the addresses of the files that are told.
    fn addresses(&self) -> Vec<String> {
        let of_media = |media: &Media| {
            let thumbnail = media.thumbnail.as_ref().map(|thumbnail| thumbnail.mxc.clone());
            [Some(media.mxc.clone()), thumbnail].into_iter().flatten().collect::<Vec<_>>()
        };
        let items = self.gallery.iter().map(|item| &item.media).chain(&self.media).flat_map(of_media);
        let pictures = self.link_previews.iter().filter_map(|preview| preview.image.clone());
        items.chain(pictures).collect()
    }
}

/// What the content of an event of that type says.
#[must_use]
pub fn read(event_type: &str, content: &Map<String, Value>, context: &ReadContext<'_>) -> Content {
    let known = match event_type {
        "m.room.message" => read_message(content, context),
        "m.sticker" => media::read(Kind::Sticker, content, Said::read(content, context), None),
        other => poll::read(other, content)
            .or_else(|| call::read(other, content))
            .or_else(|| extensible::read(other, content, context)),
    };
    let mut read = known.unwrap_or_else(|| unknown(content));
    let html =
        read.html.clone().or_else(|| read.text.as_ref().and_then(|_| Said::read(content, context).html));
    read.mentions = mentions::read(content, read.text.as_deref(), html.as_deref());
    read.spoiler = spoiler::read(content, html.as_deref());
    read.link_previews = bridged::link_previews(content, context.base);
    let notice = notices::read(content, context);
    (read.unsupported, read.view_once) = (notice.is_unsupported, notice.is_view_once);
    read.bridge = bridged::read(content, notice.is_unsupported);
    read.call = read.call.take().or_else(|| notices::call(content, context));
    read.album = gallery::album(content);
    share::read(&mut read, content, context);
    read.files = files_elsewhere(&read, content, context);
    read
}

/// The files of a content that is told of by its files alone.
#[must_use]
pub fn files(content: &Map<String, Value>) -> Vec<File> {
    files::Search::beside(Vec::new()).through(content, "")
}

/// The files of a content that `read` does not tell of.
fn files_elsewhere(read: &Content, content: &Map<String, Value>, context: &ReadContext<'_>) -> Vec<File> {
    let mut told = read.addresses();
    let profile = MessageProfile::read(content, context.base);
    told.extend(profile.and_then(|profile| profile.avatar).map(|avatar| avatar.mxc));
    files::Search::beside(told).through(content, context.base)
}

/// What an edit makes of the event that it replaces: `m.new_content`, and `unknown` without one.
#[must_use]
pub fn read_edit(event_type: &str, content: &Map<String, Value>, context: &ReadContext<'_>) -> Content {
    match content.get("m.new_content") {
        Some(Value::Object(new)) => {
            let answers = |content: &Map<String, Value>| {
                content
                    .get("m.relates_to")
                    .and_then(|to| to.get("m.in_reply_to"))
                    .is_some_and(Value::is_object)
            };
            let is_reply = context.is_reply || answers(new);
            let context = ReadContext { is_edit: true, is_reply, base: "/m.new_content", ..*context };
            read(event_type, new, &context)
        }
        _ => unknown(content),
    }
}

/// A content that says nothing we understand, with whatever text it has for clients like us.
#[must_use]
pub fn unknown(content: &Map<String, Value>) -> Content {
    Content { text: Said::as_written(content).text, ..Content::of(Kind::Unknown) }
}

fn read_message(content: &Map<String, Value>, context: &ReadContext<'_>) -> Option<Content> {
    if let Some(call) = call::read_notice(content) {
        return Some(call);
    }
    let Some(msgtype) = text(content, "msgtype") else { return extensible::read_untyped(content, context) };
    match msgtype {
        "m.text" => read_text(Kind::Text, content, context),
        "m.notice" | "m.server_notice" => read_text(Kind::Notice, content, context),
        "m.emote" => read_text(Kind::Emote, content, context),
        "m.location" => extensible::location(content, context),
        msgtype => match media::kind(msgtype, content) {
            Some(kind) => media::read(kind, content, Said::read(content, context), None)
                .or_else(|| extensible::file(msgtype.strip_prefix("m."), content, context)),
            None => gallery::read(msgtype, content, context),
        },
    }
}

fn read_text(kind: Kind, content: &Map<String, Value>, context: &ReadContext<'_>) -> Option<Content> {
    let Said { text, html } = Said::read(content, context);
    Some(Content { text: Some(text?), html, ..Content::of(kind) })
}

fn text<'a>(content: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    content.get(key).and_then(Value::as_str)
}
