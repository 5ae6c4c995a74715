//! Extensible events: contents made of blocks, such as `m.text`, rather than by `msgtype`
//! ([MSC1767](https://github.com/matrix-org/matrix-spec-proposals/pull/1767) and those on it).
//!
//! Blocks have stable and unstable names, and both are in the field: in messages of older types too, where they repeat
//! what stands there, or stand in for it.

use serde_json::{Map, Value};

use super::{
    Content, Kind, Location, ReadContext, Said,
    files::{Address, address, has_key, is_mxc, mimetype, number, pointer},
    media::{Media, Thumbnail, is_voice},
    text,
};

const UNSTABLE: &str = "org.matrix.msc1767.";

/// Returns the content of an event of an extensible type; none when it is of another, or lacks what its type needs.
pub(super) fn read(
    event_type: &str,
    content: &Map<String, Value>,
    context: &ReadContext<'_>,
) -> Option<Content> {
    let bare = event_type.strip_prefix(UNSTABLE).or_else(|| event_type.strip_prefix("m."));
    let bare = bare.or(match event_type {
        "org.matrix.msc3488.location" => Some("location"),
        "org.matrix.msc3672.beacon" => Some("beacon"),
        "org.matrix.msc3551.file" => Some("file"),
        "org.matrix.msc3552.image" => Some("image"),
        "org.matrix.msc3553.video" => Some("video"),
        "org.matrix.msc3246.audio" | "org.matrix.msc3927.audio" => Some("audio"),
        "org.matrix.msc3245.voice" | "org.matrix.msc3245.voice.v2" => Some("voice"),
        _ => None,
    })?;
    match bare {
        "message" | "emote" | "notice" => Said::read(content, context).text.is_some().then(|| {
            let Said { text, html } = Said::read(content, context);
            let kind = match bare {
                "emote" => Kind::Emote,
                "notice" => Kind::Notice,
                _ if is_automated(content) => Kind::Notice,
                _ => Kind::Text,
            };
            Content { text, html, ..Content::of(kind) }
        }),
        "image" | "video" | "audio" | "voice" | "file" => file(Some(bare), content, context),
        "location" | "beacon" => location(content, context),
        _ => None,
    }
}

/// Returns the content of a message without a `msgtype`, by the blocks that it has.
pub(super) fn read_untyped(content: &Map<String, Value>, context: &ReadContext<'_>) -> Option<Content> {
    file(None, content, context).or_else(|| location(content, context)).or_else(|| {
        words(content)?;
        let Said { text, html } = Said::read(content, context);
        let kind = if is_automated(content) { Kind::Notice } else { Kind::Text };
        Some(Content { text, html, ..Content::of(kind) })
    })
}

fn is_automated(content: &Map<String, Value>) -> bool {
    ["m.automated", "org.matrix.msc3955.automated"]
        .iter()
        .any(|key| content.get(*key) == Some(&Value::Bool(true)))
}

/// Returns a block of a content, under its stable name or an unstable one.
fn block<'a>(content: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    content.get(&format!("m.{name}")).or_else(|| content.get(&format!("{UNSTABLE}{name}")))
}

/// Returns the words of a content: plain text, and HTML if there is some.
pub(super) fn words(content: &Map<String, Value>) -> Option<(String, Option<String>)> {
    let own = |text: &str| text.to_owned();
    let (mut plain, mut html) = (None, None);
    for representations in ["text", "message"].into_iter().filter_map(|name| block(content, name)) {
        match representations {
            Value::String(body) => plain = plain.or_else(|| Some(own(body))),
            Value::Array(list) => {
                for one in list.iter().filter_map(Value::as_object) {
                    let Some(body) = text(one, "body") else { continue };
                    match text(one, "mimetype").unwrap_or("text/plain") {
                        "text/plain" => plain = plain.or_else(|| Some(own(body))),
                        "text/html" => html = html.or_else(|| Some(own(body))),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let html = html.or_else(|| block(content, "html").and_then(Value::as_str).map(own));
    // Who writes HTML alone says something all the same.
    let plain = plain.or_else(|| html.as_deref().map(crate::messages::html::text))?;
    Some((plain, html))
}

/// Returns the words of a block that holds a text of its own, such as a caption.
fn words_of(content: &Map<String, Value>, name: &str) -> Option<(String, Option<String>)> {
    words(block(content, name)?.as_object()?)
}

/// Returns the place that a content names, by whichever member: `geo_uri`, or the block of
/// [MSC3488](https://github.com/matrix-org/matrix-spec-proposals/pull/3488).
pub(super) fn location(content: &Map<String, Value>, context: &ReadContext<'_>) -> Option<Content> {
    let blocks = ["m.location", "org.matrix.msc3488.location"];
    let inner = blocks.into_iter().find_map(|key| content.get(key)?.as_object());
    let of_inner = |key| inner.and_then(|inner| text(inner, key));
    let is_geo = |uri: &&str| uri.starts_with("geo:");
    let geo_uri = text(content, "geo_uri").filter(is_geo).or_else(|| of_inner("uri").filter(is_geo))?;
    let said = Said::read(content, context).text;
    let description = of_inner("description").map(str::to_owned).or_else(|| said.clone());
    let location =
        Location { geo_uri: geo_uri.to_owned(), description: description.filter(|text| !text.is_empty()) };
    Some(Content { text: said, location: Some(location), ..Content::of(Kind::Location) })
}

/// Returns the content of an event with a file in a block. `named` is what the event's type says it is.
pub(super) fn file(
    named: Option<&str>,
    content: &Map<String, Value>,
    context: &ReadContext<'_>,
) -> Option<Content> {
    let (file, mxc, key_at) = place(content, context.base)?;
    let details = |name: &str| {
        let block = block(content, &format!("{name}_details")).or_else(|| block(content, name));
        block.and_then(Value::as_object)
    };
    let (image, video, audio) = (details("image"), details("video"), details("audio"));
    let is_voice = is_voice(content) || block(content, "voice").is_some();
    let kind = match named.or_else(|| named_by_blocks(content)).unwrap_or("file") {
        "image" if image.is_some_and(|image| image.get("m.sticker") == Some(&Value::Bool(true))) => {
            Kind::Sticker
        }
        "image" => Kind::Image,
        "video" => Kind::Video,
        "voice" => Kind::Voice,
        "audio" if is_voice => Kind::Voice,
        "audio" => Kind::Audio,
        "sticker" => Kind::Sticker,
        _ => Kind::File,
    };
    let seen = image.or(video);
    let pixels = |long: &str, short: &str| {
        let seen = seen?;
        number(seen.get(long)).or_else(|| number(seen.get(short)))
    };
    let (caption, html) = words_of(content, "caption").unzip();
    let described = words_of(content, "alt_text").map(|(text, _)| text);
    let media = Media {
        url: None,
        url_expires_at: None,
        encrypted: key_at.is_some(),
        mxc,
        filename: text(file, "name").filter(|name| !name.is_empty()).map(str::to_owned),
        caption: caption.clone().filter(|_| kind != Kind::Sticker),
        mimetype: mimetype(file),
        size: number(file.get("size")),
        width: pixels("width", "w"),
        height: pixels("height", "h"),
        duration_ms: audio.or(video).and_then(|heard| number(heard.get("duration"))),
        animated: None,
        thumbnail: thumbnail(content, context.base),
        part: None,
        key_at,
    };
    let text = if kind == Kind::Sticker { described.or(caption) } else { caption };
    Some(Content { text, html: html.flatten(), media: Some(media), ..Content::of(kind) })
}

/// Returns what a content with a file is, by the blocks beside the file's.
fn named_by_blocks(content: &Map<String, Value>) -> Option<&'static str> {
    let has =
        |name: &&str| block(content, name).is_some() || block(content, &format!("{name}_details")).is_some();
    ["video", "image", "voice", "audio"].into_iter().find(has)
}

/// Returns the block of the file of a content, its address, and where its key is when it is encrypted.
fn place<'a>(
    content: &'a Map<String, Value>,
    base: &str,
) -> Option<(&'a Map<String, Value>, String, Option<String>)> {
    let name = ["m.file", "org.matrix.msc1767.file"].into_iter().find(|key| content.contains_key(*key))?;
    let file = content.get(name)?.as_object()?;
    let url = ["url", "uri"].into_iter().find_map(|key| text(file, key)).filter(|url| is_mxc(url))?;
    // The members of an `EncryptedFile` stand beside the address.
    let key_at = has_key(file).then(|| pointer(base, name));
    Some((file, url.to_owned(), key_at))
}

fn thumbnail(content: &Map<String, Value>, base: &str) -> Option<Thumbnail> {
    let name =
        ["m.thumbnail", "org.matrix.msc1767.thumbnail"].into_iter().find(|key| content.contains_key(*key))?;
    let first = content.get(name)?.as_array()?.first()?.as_object()?;
    let base = pointer(&pointer(base, name), "0");
    let (file, mxc, key_at) = place(first, &base).or_else(|| {
        let Address { mxc, .. } = address(first, "url", &[]).or_else(|| address(first, "uri", &[]))?;
        Some((first, mxc, has_key(first).then(|| base.clone())))
    })?;
    let details = block(first, "image_details").or_else(|| block(first, "image"));
    let details = details.and_then(Value::as_object).unwrap_or(first);
    Some(Thumbnail {
        url: None,
        url_expires_at: None,
        encrypted: key_at.is_some(),
        mxc,
        mimetype: mimetype(file),
        size: number(file.get("size")),
        width: number(details.get("width")),
        height: number(details.get("height")),
        part: None,
        key_at,
    })
}
