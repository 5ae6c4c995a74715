//! What bridges add to a content for clients that know them: story replies, notices of what they cannot bridge,
//! previews of links.

use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    File,
    files::{PREVIEW_KEYS, number, pointer},
    text,
};

/// Previews of one message that are read at most.
const MOST_PREVIEWS: usize = 20;

/// `data.content.bridge`: what the bridge says of a message beyond Matrix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Bridged {
    /// What the network says before the text, which begins with it: `Replied to your story`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snippet: Option<String>,
    /// What it is a reply or a reaction to, in the bridge's words: `story`, `story_reaction`, ….
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_type: Option<String>,
    /// What the person wrote, without the snippet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_text: Option<String>,
    /// The reaction to a story, without the snippet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reaction: Option<String>,
    /// What happened, for a message that tells of something rather than says something: `call`,
    /// `disappearing_timer`, ….
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// The bridge could not bridge what there was (a view-once photo …): the text says so. As `content.unsupported`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unsupported: bool,
    /// A video that is meant as a moving picture: without sound, played again and again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub gif: bool,
}

/// One of `data.content.link_previews`
/// ([MSC4095](https://github.com/matrix-org/matrix-spec-proposals/pull/4095)): what the sender says of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LinkPreview {
    /// The link.
    pub url: String,
    /// Its title.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// What it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// A picture of it, an `mxc://` address; encrypted when `data.matrix` has a key for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The same picture as a file, for whoever wants to have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub picture: Option<File>,
}

/// What the bridge adds; none when it adds nothing.
pub(super) fn read(content: &Map<String, Value>, is_unsupported: bool) -> Option<Bridged> {
    let owned = |key| text(content, key).filter(|text| !text.is_empty()).map(str::to_owned);
    let of_info = |key| content.get("info").and_then(|info| info.get(key)).is_some();
    let mark = |key| content.get(key).is_some_and(|mark| mark != &Value::Bool(false) && !mark.is_null());
    let action = content.get("com.beeper.action_message").and_then(|action| action.get("type"));
    let bridged = Bridged {
        snippet: owned("com.beeper.relation_snippet"),
        reply_type: owned("com.beeper.relation_preview_type"),
        reply_text: owned("com.beeper.raw_reply_text"),
        reaction: owned("com.beeper.raw_reaction"),
        action: action.and_then(Value::as_str).map(str::to_owned),
        unsupported: is_unsupported,
        gif: mark("fi.mau.gif") || of_info("fi.mau.gif") || of_info("fi.mau.telegram.gif"),
    };
    (bridged != Bridged::default()).then_some(bridged)
}

/// The previews of links of a content that stands at `base` in the event's; empty when there are none.
pub(super) fn link_previews(content: &Map<String, Value>, base: &str) -> Vec<LinkPreview> {
    let Some(key) =
        ["m.url_previews", "com.beeper.linkpreviews"].into_iter().find(|key| content.contains_key(*key))
    else {
        return Vec::new();
    };
    let base = pointer(base, key);
    let raw =
        content.get(key).and_then(Value::as_array).into_iter().flatten().take(MOST_PREVIEWS).enumerate();
    raw.filter_map(|(place, raw)| link_preview(raw.as_object()?, &format!("{base}/{place}"), place)).collect()
}

fn link_preview(raw: &Map<String, Value>, base: &str, place: usize) -> Option<LinkPreview> {
    let first = |keys: &[&str]| {
        keys.iter().find_map(|key| text(raw, key).filter(|text| !text.is_empty())).map(str::to_owned)
    };
    let picture = File::at(raw, "og:image", PREVIEW_KEYS, base, &format!("preview.{place}"));
    let count = |key| {
        let value = raw.get(key)?;
        number(Some(value)).or_else(|| value.as_str()?.parse().ok())
    };
    Some(LinkPreview {
        url: first(&["matrix:matched_url", "matched_url", "og:url"])?,
        title: first(&["og:title"]),
        description: first(&["og:description"]),
        image: picture.as_ref().map(|picture| picture.mxc.clone()),
        picture: picture.map(|picture| File {
            mimetype: first(&["og:image:type"]),
            size: count("matrix:image:size"),
            width: count("og:image:width"),
            height: count("og:image:height"),
            ..picture
        }),
    })
}
