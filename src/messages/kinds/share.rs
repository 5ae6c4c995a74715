//! What somebody shared or answered on the network: posts, reels, stories, as the bridges of Meta's networks tell it.
//!
//! Of a post the bridge sends its picture with a caption that it makes of the post's own texts, or the post's video
//! once it has fetched it. What a story's answer quotes stands as `<blockquote>` before the text, or before the
//! caption of the story's picture, which the text follows as a message of its own.

use serde::Serialize;
use serde_json::{Map, Value};
use url::Url;

use super::{Content, Kind, ReadContext, text};
use crate::messages::html::{self, Piece, Pieces};

/// `data.content.share`: something of the network that the message shares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Share {
    /// Where it is on the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// What it is, as far as the address tells: `story`, `reel`, `post`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// What the network says of it, before all else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heading: Option<String>,
    /// Its title, as a rule the name of whose it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// What stands below the title.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subtitle: Option<String>,
    /// Its own text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Why the bridge has not fetched what was shared, in its words; left out when it has. `media` is a preview then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fetch_status: Option<String>,
    /// Whether the bridge can still fetch it: then it follows as `message.edited`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unresolved: bool,
}

/// `data.content.story`: the message answers a story.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Story {
    /// What the network says or quotes before the answer: `Replied to your story`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quote: Option<String>,
    /// What the person wrote, alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The reaction, when that is all there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reaction: Option<String>,
    /// Where the story is on the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// How the bridges' captions of what is shared begin, of those that quote what is answered. The network's own words,
/// in English; of other languages only the place tells.
const QUOTES: [&str; 7] = [
    "Replied to ",
    "You replied to ",
    "Reply to ",
    "Reacted to ",
    "You reacted to ",
    "Mentioned you in ",
    "You mentioned ",
];

/// Puts what a content shares and answers into what was read of it so far.
pub(super) fn read(read: &mut Content, content: &Map<String, Value>, context: &ReadContext<'_>) {
    let is_meta = context.is_bridged && context.is_of_meta();
    // The bridges leave the format out where the text itself has none.
    let html = text(content, "formatted_body").filter(|_| is_meta);
    let caption = html.and_then(Caption::parse);
    let url = text(content, "external_url").filter(|url| is_web(url));
    let has_marks = MARKS.iter().any(|key| content.get(*key).is_some_and(|value| !value.is_null()));
    let is_shared = has_marks || (url.is_some() && is_meta);
    if is_shared || caption.as_ref().is_some_and(|caption| caption.is_share(read.kind)) {
        read.share = Some(share(content, caption.clone().unwrap_or_default(), url));
    }
    read.story = by_marks(content, url).or_else(|| match read.kind {
        Kind::Text if !context.is_reply => before_text(content, html?, read),
        Kind::Image | Kind::Video if read.share.is_some() => before_caption(read.share.as_ref()?),
        _ => None,
    });
}

/// Members that stand only with what is shared.
const MARKS: [&str; 4] = [
    "fi.mau.instagram.xma_fetch_status",
    "com.beeper.unresolved_media",
    "com.beeper.meta.full_post_title",
    "com.beeper.meta.caption_body_text",
];

fn share(content: &Map<String, Value>, caption: Caption, url: Option<&str>) -> Share {
    let own = |key| text(content, key).filter(|text| !text.is_empty()).map(str::to_owned);
    let url = url.map(str::to_owned).or(caption.url);
    Share {
        kind: url.as_deref().and_then(kind_of).map(str::to_owned),
        url,
        heading: caption.quote,
        title: own("com.beeper.meta.full_post_title").or(caption.title),
        subtitle: caption.subtitle,
        text: own("com.beeper.meta.caption_body_text").or(caption.text),
        fetch_status: own("fi.mau.instagram.xma_fetch_status"),
        unresolved: content.get("com.beeper.unresolved_media").is_some_and(Value::is_object),
    }
}

/// A story's answer as Messenger's bridge marks it.
fn by_marks(content: &Map<String, Value>, url: Option<&str>) -> Option<Story> {
    let own = |key| text(content, key).filter(|text| !text.is_empty()).map(str::to_owned);
    own("com.beeper.relation_preview_type").filter(|named| named.starts_with("story"))?;
    Some(Story {
        quote: own("com.beeper.relation_snippet"),
        text: own("com.beeper.raw_reply_text"),
        reaction: own("com.beeper.raw_reaction"),
        url: url.map(str::to_owned),
    })
}

/// A story's answer whose quotation stands before the text, in the HTML alone: what a person quotes by itself stands
/// in the text as well.
fn before_text(content: &Map<String, Value>, html: &str, read: &Content) -> Option<Story> {
    let (quoted, rest) = html::split_first(html, "blockquote")?;
    let body = text(content, "body")?;
    let quote = Some(html::text(quoted)).filter(|quote| !quote.is_empty())?;
    let is_in_text = body.contains(quote.lines().next().unwrap_or_default());
    if is_in_text && !QUOTES.iter().any(|known| quote.starts_with(known)) {
        return None;
    }
    let preview = read.link_previews.first().map(|preview| preview.url.clone());
    let url = first_link(quoted).or(preview).or_else(|| text(content, "external_url").map(str::to_owned));
    let answer = if is_in_text { html::text(rest) } else { body.to_owned() };
    Some(Story { quote: Some(quote), text: Some(answer), reaction: None, url: url.filter(|url| is_web(url)) })
}

/// A story's answer that follows the story's picture.
fn before_caption(share: &Share) -> Option<Story> {
    let quote = share.heading.clone()?;
    (share.kind.as_deref() == Some("story")).then(|| Story {
        quote: Some(quote),
        text: None,
        reaction: None,
        url: share.url.clone(),
    })
}

fn first_link(html: &str) -> Option<String> {
    Pieces::of(html).find_map(|(_, piece)| match piece {
        Piece::Open(tag) if tag.is("a") => tag.attribute("href").map(std::borrow::Cow::into_owned),
        _ => None,
    })
}

fn is_web(url: &str) -> bool {
    url.starts_with("https://") || url.starts_with("http://")
}

/// Returns what an address of the network leads to.
fn kind_of(url: &str) -> Option<&'static str> {
    let url = Url::parse(url).ok()?;
    let mut segments = url.path_segments()?;
    segments.find_map(|segment| match segment {
        "stories" | "s" => Some("story"),
        "reel" | "reels" => Some("reel"),
        "p" | "tv" | "posts" => Some("post"),
        _ => None,
    })
}

/// The texts of a caption that the bridge made of what was shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Caption {
    quote: Option<String>,
    title: Option<String>,
    subtitle: Option<String>,
    text: Option<String>,
    url: Option<String>,
}

impl Caption {
    /// Parses a caption: `<blockquote>…</blockquote><strong>…</strong><br>…<p>…</p><p><a href="…">…</a></p>`, of which
    /// any part may be missing. Returns `None` for HTML of any other form.
    fn parse(html: &str) -> Option<Self> {
        let mut caption = Self::default();
        let mut rest = html.trim();
        let take = |name: &str, rest: &mut &str| {
            let (inner, after) = html::split_first(rest, name)?;
            *rest = after.trim_start();
            Some(inner.to_owned())
        };
        caption.quote = take("blockquote", &mut rest).map(|inner| html::text(&inner));
        caption.title = take("strong", &mut rest).map(|inner| html::text(&inner));
        if let Some(after) = ["<br>", "<br/>", "<br />"].iter().find_map(|line| rest.strip_prefix(line)) {
            let (subtitle, after) = after.split_at(after.find("<p>").unwrap_or(after.len()));
            caption.subtitle = Some(html::text(subtitle));
            rest = after;
        }
        while let Some(paragraph) = take("p", &mut rest) {
            let link = first_link(&paragraph).filter(|_| html::split_first(&paragraph, "a").is_some());
            match link {
                Some(link) if caption.url.is_none() => caption.url = Some(link),
                None if caption.text.is_none() && caption.url.is_none() => {
                    caption.text = Some(html::text(&paragraph));
                }
                _ => return None,
            }
        }
        (rest.is_empty() && caption != Self::default()).then_some(caption)
    }

    /// Returns whether a message with this caption shares something though it does not say so: the bridge had no
    /// picture for it.
    fn is_share(&self, kind: Kind) -> bool {
        kind == Kind::Text && self.title.is_some() && self.url.as_deref().is_some_and(is_web)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caption_is_taken_apart() {
        let html = "<blockquote>Replied to your story</blockquote><strong>alice &amp; co</strong><br>A &lt;3<p>one<br>two</p>\
             <p><a href=\"https://www.instagram.com/reel/C1/?id=1&amp;x=2\">https://www.instagram.com/reel/C1/</a></p>";
        let caption = Caption::parse(html).unwrap();
        assert_eq!(caption.quote.as_deref(), Some("Replied to your story"));
        assert_eq!(caption.title.as_deref(), Some("alice & co"));
        assert_eq!(caption.subtitle.as_deref(), Some("A <3"));
        assert_eq!(caption.text.as_deref(), Some("one\ntwo"));
        assert_eq!(caption.url.as_deref(), Some("https://www.instagram.com/reel/C1/?id=1&x=2"));
        for other in ["", "text", "<strong>a</strong> b", "<p>a</p><p>b</p>", "<em>a</em>"] {
            assert_eq!(Caption::parse(other), None, "{other}");
        }
    }

    #[test]
    fn an_address_tells_what_is_there() {
        for (url, expected) in [
            ("https://www.instagram.com/stories/alice/31415?reel_id=2", Some("story")),
            ("https://www.instagram.com/reel/C1/", Some("reel")),
            ("https://www.instagram.com/p/C1/?img_index=2", Some("post")),
            ("https://www.instagram.com/alice", None),
            ("reel", None),
        ] {
            assert_eq!(kind_of(url), expected, "{url}");
        }
    }
}
