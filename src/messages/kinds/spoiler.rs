//! What is to be hidden until the reader asks for it.

use serde::Serialize;
use serde_json::{Map, Value};

use super::text;
use crate::messages::html::{Piece, Pieces};

/// `data.content.spoiler`: something of the message is to be hidden until the reader asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Spoiler {
    /// Whether that is the whole message, or of a message with a file: the file.
    pub whole: bool,
    /// Whether parts of the text are: in `html` they are marked `data-mx-spoiler`. `text` has them in the open, as a
    /// rule.
    pub parts: bool,
    /// Why, in the sender's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why, for programs: `spoiler`, `nsfw`, `graphic`, `medical`, as far as the sender says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
}

/// Returns what of a content is to be hidden: the file
/// ([MSC4193](https://github.com/matrix-org/matrix-spec-proposals/pull/4193)), all of it
/// ([MSC3725](https://github.com/matrix-org/matrix-spec-proposals/pull/3725)), or parts of the text
/// ([spec](https://spec.matrix.org/latest/client-server-api/#spoiler-messages)).
pub(super) fn read(content: &Map<String, Value>, html: Option<&str>) -> Option<Spoiler> {
    let mut spoiler = Spoiler::default();
    for prefix in ["m.spoiler", "page.codeberg.everypizza.msc4193.spoiler", "org.matrix.msc4193.spoiler"] {
        if content.get(prefix) == Some(&Value::Bool(true)) {
            spoiler.whole = true;
            spoiler.explain(text(content, &format!("{prefix}.reason")));
        }
    }
    let warning = ["m.content_warning", "town.robin.msc3725.content_warning"];
    if let Some(warning) = warning.into_iter().find_map(|key| content.get(key)?.as_object()) {
        spoiler.whole = true;
        spoiler.explain(text(warning, "description"));
        let category =
            text(warning, "type").map(|named| named.rsplit_once('.').map_or(named, |(_, last)| last));
        spoiler.category = category.filter(|category| !category.is_empty()).map(str::to_owned);
    }
    let info = content.get("info").and_then(Value::as_object);
    spoiler.whole |= info.is_some_and(|info| info.get("fi.mau.telegram.spoiler") == Some(&Value::Bool(true)));
    for (_, piece) in html.into_iter().flat_map(Pieces::of) {
        if let Piece::Open(tag) = piece
            && let Some(reason) = tag.attribute("data-mx-spoiler")
        {
            spoiler.parts = true;
            spoiler.explain(Some(&reason));
        }
    }
    (spoiler.whole || spoiler.parts).then_some(spoiler)
}

impl Spoiler {
    fn explain(&mut self, reason: Option<&str>) {
        let reason = reason.filter(|reason| !reason.is_empty());
        self.reason = self.reason.take().or_else(|| reason.map(str::to_owned));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(content: &Value, html: Option<&str>) -> Option<Spoiler> {
        read(content.as_object().unwrap(), html)
    }

    #[test]
    fn a_file_is_hidden_by_whichever_mark() {
        for prefix in ["m.spoiler", "page.codeberg.everypizza.msc4193.spoiler"] {
            let mut content = json!({prefix: true});
            assert_eq!(of(&content, None), Some(Spoiler { whole: true, ..Spoiler::default() }));
            content[format!("{prefix}.reason")] = json!("the end");
            assert_eq!(of(&content, None).unwrap().reason.as_deref(), Some("the end"));
            content[prefix] = json!(false);
            assert_eq!(of(&content, None), None);
        }
        let telegram = of(&json!({"info": {"fi.mau.telegram.spoiler": true}}), None);
        assert!(telegram.is_some_and(|spoiler| spoiler.whole));
        let warning = json!({"type": "town.robin.msc3725.nsfw", "description": "skin"});
        let warned = of(&json!({"town.robin.msc3725.content_warning": warning}), None).unwrap();
        assert_eq!((warned.category.as_deref(), warned.reason.as_deref()), (Some("nsfw"), Some("skin")));
    }

    #[test]
    fn parts_of_a_text_are_hidden_by_their_marks() {
        let html = "it was <span data-mx-spoiler>him</span> and <span data-mx-spoiler=\"the &quot;end&quot;\">her</span>";
        let spoiler = of(&json!({}), Some(html)).unwrap();
        assert_eq!((spoiler.whole, spoiler.parts), (false, true));
        assert_eq!(spoiler.reason.as_deref(), Some("the \"end\""));
        assert_eq!(of(&json!({}), Some("data-mx-spoiler")), None);
    }
}
