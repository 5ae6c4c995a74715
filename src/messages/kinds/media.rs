//! Files: pictures, videos, sounds, stickers and the rest.

use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    Content, Kind, Said,
    files::{self, Address, address, mimetype, number, pointer},
    text,
};

/// `data.content.media`, and `media` of each of `data.content.gallery`: a file of a message. coucou hands it out, decrypted, at `url`.
///
/// Sizes and types are what the sender claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Media {
    /// Where coucou hands it out, decrypted, to whoever has this address. Made anew whenever the message is told;
    /// absent when coucou does not know its own public address (`http.public_url`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Until when `url` works, RFC 3339 in UTC. `GET /api/v1/messages/{id}` has a fresh one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url_expires_at: Option<String>,
    /// Where it is on the homeserver, an `mxc://` address.
    pub mxc: String,
    /// Whether it is stored encrypted; the key is in `data.matrix.content.file`, unless `key_at` says where else.
    pub encrypted: bool,
    /// Its name, as the sender wrote it: not safe as a path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
    /// What the sender wrote to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caption: Option<String>,
    /// Its type, e.g. `image/jpeg`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mimetype: Option<String>,
    /// In bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// In pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<u64>,
    /// In pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<u64>,
    /// In milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// Whether the picture moves; left out when that is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub animated: Option<bool>,
    /// A smaller picture of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thumbnail: Option<Thumbnail>,
    /// Only of `content.gallery`: which of the message's files it is, as in `url`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// Where in `data.matrix.content` its key is, a JSON pointer (RFC 6901), when that is not `file` (of an edit:
    /// `file` in `m.new_content`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_at: Option<String>,
}

/// `data.content.media.thumbnail`: a smaller picture of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Thumbnail {
    /// Where coucou hands it out, decrypted, to whoever has this address. Made anew whenever the message is told;
    /// absent when coucou does not know its own public address (`http.public_url`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Until when `url` works, RFC 3339 in UTC. `GET /api/v1/messages/{id}` has a fresh one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url_expires_at: Option<String>,
    /// Where it is on the homeserver, an `mxc://` address.
    pub mxc: String,
    /// Whether it is stored encrypted; the key is in `data.matrix.content.info.thumbnail_file`, unless `key_at` says where
    /// else.
    pub encrypted: bool,
    /// Its type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mimetype: Option<String>,
    /// In bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// In pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<u64>,
    /// In pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<u64>,
    /// Only of `content.gallery`: which of the message's files it is, as in `url`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// Where in `data.matrix.content` its key is, a JSON pointer (RFC 6901), when that is not `info.thumbnail_file` (of
    /// an edit: `info.thumbnail_file` in `m.new_content`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_at: Option<String>,
}

/// Names a file that is one of several.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// Where its content is in the event's, a JSON pointer.
    pub(super) base: &'a str,
    /// The name of the part.
    pub(super) part: &'a str,
}

/// Whether a sound is a voice message
/// ([MSC3245](https://github.com/matrix-org/matrix-spec-proposals/pull/3245)).
pub(super) fn is_voice(content: &Map<String, Value>) -> bool {
    ["org.matrix.msc3245.voice", "m.voice"].iter().any(|key| content.get(*key).is_some_and(Value::is_object))
}

/// Returns the kind of a content with a file, by its `msgtype` or what stands for it.
pub(super) fn kind(msgtype: &str, content: &Map<String, Value>) -> Option<Kind> {
    Some(match msgtype {
        "m.image" => Kind::Image,
        "m.video" => Kind::Video,
        "m.audio" if is_voice(content) => Kind::Voice,
        "m.audio" => Kind::Audio,
        "m.file" => Kind::File,
        // As `m.sticker` is called where somebody took a sticker for a message.
        "m.sticker" => Kind::Sticker,
        _ => return None,
    })
}

/// A content with a file; none when there is no address. `said` is what stands in the body.
pub(super) fn read(
    kind: Kind,
    content: &Map<String, Value>,
    said: Said,
    place: Option<Place<'_>>,
) -> Option<Content> {
    let Address { mxc, key } = address(content, "url", &["file"])?;
    let body = said.text.filter(|body| !body.is_empty());
    let filename = text(content, "filename").filter(|name| !name.is_empty());
    // A body beside a file name is a caption; alone it is the file name, or a sticker's description.
    let sticker = kind == Kind::Sticker;
    let is_caption =
        !sticker && filename.is_some_and(|name| body.as_deref().is_some_and(|body| body != name));
    let caption = body.clone().filter(|_| is_caption);
    let none = Map::new();
    let info = content.get("info").and_then(Value::as_object).unwrap_or(&none);
    let sound = content.get("org.matrix.msc1767.audio");
    let media = Media {
        url: None,
        url_expires_at: None,
        mxc,
        encrypted: key.is_some(),
        filename: filename.map(str::to_owned).or_else(|| body.clone().filter(|_| !sticker)),
        caption: caption.clone(),
        mimetype: mimetype(info),
        size: number(info.get("size")),
        width: number(info.get("w")),
        height: number(info.get("h")),
        duration_ms: number(info.get("duration"))
            .or_else(|| number(sound.and_then(|sound| sound.get("duration")))),
        animated: animated(info),
        thumbnail: thumbnail(info, place),
        part: place.map(|place| place.part.to_owned()),
        key_at: key.zip(place).map(|(key, place)| pointer(place.base, key)),
    };
    Some(Content {
        html: said.html.filter(|_| is_caption),
        text: if sticker { body } else { caption },
        media: Some(media),
        ..Content::of(kind)
    })
}

/// Whether a picture moves ([MSC4230](https://github.com/matrix-org/matrix-spec-proposals/pull/4230)).
fn animated(info: &Map<String, Value>) -> Option<bool> {
    ["is_animated", "org.matrix.msc4230.is_animated"].into_iter().find_map(|key| info.get(key)?.as_bool())
}

fn thumbnail(info: &Map<String, Value>, place: Option<Place<'_>>) -> Option<Thumbnail> {
    let Address { mxc, key } = address(info, "thumbnail_url", &["thumbnail_file"])?;
    let none = Map::new();
    let info = info.get("thumbnail_info").and_then(Value::as_object).unwrap_or(&none);
    Some(Thumbnail {
        url: None,
        url_expires_at: None,
        mxc,
        encrypted: key.is_some(),
        mimetype: mimetype(info),
        size: number(info.get("size")),
        width: number(info.get("w")),
        height: number(info.get("h")),
        part: place.map(|place| format!("{}.thumbnail", place.part)),
        key_at: key.zip(place).map(|(key, place)| files::pointer(&files::pointer(place.base, "info"), key)),
    })
}
