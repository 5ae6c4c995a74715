//! Files: pictures, videos, sounds, stickers and the rest.

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Content, Kind, html, text};
use crate::messages::relations;

/// `data.content.media`: the file of a message. coucou hands it out, decrypted, at `url`.
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
    /// Whether it is stored encrypted; the key is in `data.matrix.content.file`.
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
    /// A smaller picture of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thumbnail: Option<Thumbnail>,
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
    /// Whether it is stored encrypted; the key is in `data.matrix.content.info.thumbnail_file`.
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
}

/// Whether a sound is a voice message
/// ([MSC3245](https://github.com/matrix-org/matrix-spec-proposals/pull/3245)).
pub(super) fn is_voice(content: &Map<String, Value>) -> bool {
    ["org.matrix.msc3245.voice", "m.voice"].iter().any(|key| content.get(*key).is_some_and(Value::is_object))
}

/// A content with a file; none when there is no address.
pub(super) fn read(kind: Kind, content: &Map<String, Value>, reply: bool) -> Option<Content> {
    let (mxc, encrypted) = address(content, "url", "file")?;
    let body = text(content, "body").filter(|body| !body.is_empty());
    let body = if reply { body.map(relations::strip_text) } else { body };
    let filename = text(content, "filename").filter(|name| !name.is_empty());
    // A body beside a file name is a caption; alone it is the file name, or a sticker's description.
    let sticker = kind == Kind::Sticker;
    let caption = body.filter(|body| !sticker && filename.is_some_and(|name| name != *body));
    let none = Map::new();
    let info = content.get("info").and_then(Value::as_object).unwrap_or(&none);
    let sound = content.get("org.matrix.msc1767.audio");
    let media = Media {
        url: None,
        url_expires_at: None,
        mxc,
        encrypted,
        filename: filename.or_else(|| body.filter(|_| !sticker)).map(str::to_owned),
        caption: caption.map(str::to_owned),
        mimetype: mimetype(info),
        size: number(info.get("size")),
        width: number(info.get("w")),
        height: number(info.get("h")),
        duration_ms: number(info.get("duration"))
            .or_else(|| number(sound.and_then(|sound| sound.get("duration")))),
        thumbnail: thumbnail(info),
    };
    Some(Content {
        text: if sticker { body } else { caption }.map(str::to_owned),
        html: caption.and_then(|_| html(content, reply)),
        media: Some(media),
        ..Content::of(kind)
    })
}

fn thumbnail(info: &Map<String, Value>) -> Option<Thumbnail> {
    let (mxc, encrypted) = address(info, "thumbnail_url", "thumbnail_file")?;
    let none = Map::new();
    let info = info.get("thumbnail_info").and_then(Value::as_object).unwrap_or(&none);
    Some(Thumbnail {
        url: None,
        url_expires_at: None,
        mxc,
        encrypted,
        mimetype: mimetype(info),
        size: number(info.get("size")),
        width: number(info.get("w")),
        height: number(info.get("h")),
    })
}

/// Where a file is and whether it is encrypted. An encrypted one wins: who has it need not have the other.
fn address(content: &Map<String, Value>, plain: &str, encrypted: &str) -> Option<(String, bool)> {
    let is_mxc = |url: &&str| url.starts_with("mxc://");
    let sealed = content.get(encrypted).and_then(|file| file.get("url")).and_then(Value::as_str);
    if let Some(url) = sealed.filter(is_mxc) {
        return Some((url.to_owned(), true));
    }
    text(content, plain).filter(is_mxc).map(|url| (url.to_owned(), false))
}

fn mimetype(info: &Map<String, Value>) -> Option<String> {
    text(info, "mimetype").filter(|mimetype| !mimetype.is_empty()).map(str::to_owned)
}

/// A count of something. Some clients write whole numbers as `23.0`.
fn number(value: Option<&Value>) -> Option<u64> {
    let value = value?;
    value.as_u64().or_else(|| {
        let float = value.as_f64().filter(|float| (0.0..=MAX_INTEGER).contains(float))?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was checked")]
        Some(float.round() as u64)
    })
}

/// The largest number that Matrix allows, and that a float holds exactly: 2⁵³ − 1.
const MAX_INTEGER: f64 = 9_007_199_254_740_991.0;
