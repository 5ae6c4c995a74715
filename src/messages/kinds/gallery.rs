//! Several files in one message, and several messages that are one album.

use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    Content, Kind, ReadContext, Said,
    files::pointer,
    media::{self, Media, Place},
    spoiler::{self, Spoiler},
    text,
};

/// Maximum number of files of one gallery that are told of.
const MAX_ITEMS: usize = 100;

/// One of `data.content.gallery`: a file of a `gallery`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GalleryItem {
    /// What sort of file it is: `image`, `video`, `audio`, `voice`, `file` or `sticker`.
    pub kind: Kind,
    /// The file.
    pub media: Media,
    /// The same as `media.caption` as HTML, as the sender wrote it: sanitise it before showing it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub html: Option<String>,
    /// Set when the file is to be hidden until the reader asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spoiler: Option<Spoiler>,
}

/// `data.content.album`: the message is one of several that belong together, as their sender says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Album {
    /// What they have in common. Of messages of one sender in one room.
    pub id: String,
    /// Its place among them, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// How many they are, when that is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

/// Returns the content of a gallery: of MSC4274
/// ([proposal](https://github.com/matrix-org/matrix-spec-proposals/pull/4274)), or as Beeper has it. Returns `None` when
/// it is none, or has no file.
pub(super) fn read(
    msgtype: &str,
    content: &Map<String, Value>,
    context: &ReadContext<'_>,
) -> Option<Content> {
    let (list, said) = match msgtype {
        "m.gallery" | "dm.filament.gallery" => ("itemtypes", Said::read(content, context)),
        "com.beeper.gallery" => ("com.beeper.gallery.images", beeper_caption(content, context)),
        _ => return None,
    };
    let items = content.get(list)?.as_array()?;
    let base = pointer(context.base, list);
    let items = items.iter().enumerate().take(MAX_ITEMS);
    let items: Vec<_> = items.filter_map(|(place, raw)| item(raw.as_object()?, place, &base)).collect();
    if items.is_empty() {
        return None;
    }
    Some(Content { text: said.text, html: said.html, gallery: items, ..Content::of(Kind::Gallery) })
}

fn beeper_caption(content: &Map<String, Value>, context: &ReadContext<'_>) -> Said {
    let own = |key| text(content, key).filter(|text| !text.is_empty()).map(str::to_owned);
    let caption = own("com.beeper.gallery.caption");
    match caption {
        Some(_) => Said { text: caption, html: own("com.beeper.gallery.caption_html") },
        None => Said::read(content, context),
    }
}

fn item(raw: &Map<String, Value>, place: usize, base: &str) -> Option<GalleryItem> {
    let named = ["itemtype", "msgtype"].into_iter().find_map(|key| text(raw, key));
    let kind = match named {
        Some(named) => media::kind(named, raw).unwrap_or(Kind::File),
        None => by_mimetype(raw),
    };
    let (base, part) = (format!("{base}/{place}"), format!("gallery.{place}"));
    let place = Place { base: &base, part: &part };
    let read = media::read(kind, raw, Said::as_written(raw), Some(place))?;
    Some(GalleryItem { kind, media: read.media?, html: read.html, spoiler: spoiler::read(raw, None) })
}

fn by_mimetype(raw: &Map<String, Value>) -> Kind {
    let mimetype = raw.get("info").and_then(|info| info.get("mimetype")).and_then(Value::as_str);
    match mimetype.and_then(|mimetype| mimetype.split('/').next()) {
        Some("image") => Kind::Image,
        Some("video") => Kind::Video,
        Some("audio") => Kind::Audio,
        _ => Kind::File,
    }
}

/// Returns which album a message belongs to, as bridges mark what was sent together.
pub(super) fn album(content: &Map<String, Value>) -> Option<Album> {
    let raw = ["fi.mau.album", "m.album"].into_iter().find_map(|key| content.get(key)?.as_object())?;
    let number = |key| raw.get(key).and_then(Value::as_u64);
    let id = text(raw, "id").filter(|id| !id.is_empty())?;
    Some(Album { id: id.to_owned(), index: number("index"), count: number("count") })
}
