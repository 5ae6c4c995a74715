//! `docs/webhook.md` says what the code does.

use serde_json::Value;

use super::{MessageType, read_fixture};
use crate::messages::kinds::Kind;

const PAGE: &str = include_str!("../../../docs/webhook.md");

#[test]
fn the_example_is_a_real_payload() {
    let (_, after) = PAGE.split_once("```json\n").expect("an example");
    let (example, _) = after.split_once("```").expect("its end");
    let draft = read_fixture(include_str!("../../../tests/fixtures/events/text.json"));
    assert_eq!(example.trim(), serde_json::to_string_pretty(&draft.payload(7)).unwrap());
}

#[test]
fn every_type_and_kind_is_on_the_page() {
    let kinds = [
        Kind::Text,
        Kind::Notice,
        Kind::Emote,
        Kind::Image,
        Kind::Video,
        Kind::Audio,
        Kind::Voice,
        Kind::File,
        Kind::Gallery,
        Kind::Sticker,
        Kind::Location,
        Kind::Poll,
        Kind::PollResponse,
        Kind::PollEnd,
        Kind::Call,
        Kind::Reaction,
        Kind::Redaction,
        Kind::Redacted,
        Kind::Unknown,
    ];
    let kinds = kinds.map(|kind| serde_json::to_value(kind).unwrap());
    let names = kinds.iter().filter_map(Value::as_str).chain(MessageType::ALL.map(MessageType::as_str));
    for name in names {
        assert!(PAGE.contains(&format!("`{name}`")), "{name}");
    }
}

#[test]
fn every_field_is_on_the_page() {
    for fixture in [
        include_str!("../../../tests/fixtures/events/video.json"),
        include_str!("../../../tests/fixtures/events/image_caption.json"),
        include_str!("../../../tests/fixtures/events/text_html.json"),
        include_str!("../../../tests/fixtures/events/location.json"),
        include_str!("../../../tests/fixtures/events/reaction.json"),
        include_str!("../../../tests/fixtures/events/redaction_old.json"),
        include_str!("../../../tests/fixtures/events/thread_reply.json"),
        include_str!("../../../tests/fixtures/events/edit.json"),
        include_str!("../../../tests/fixtures/events/poll.json"),
        include_str!("../../../tests/fixtures/events/poll_response.json"),
        include_str!("../../../tests/fixtures/events/call_notice.json"),
        include_str!("../../../tests/fixtures/events/story_reply.json"),
        include_str!("../../../tests/fixtures/events/story_reaction.json"),
        include_str!("../../../tests/fixtures/events/link_preview.json"),
        include_str!("../../../tests/fixtures/events/mention_pills.json"),
        include_str!("../../../tests/fixtures/events/gallery.json"),
        include_str!("../../../tests/fixtures/events/album.json"),
        include_str!("../../../tests/fixtures/events/sticker_msgtype.json"),
        include_str!("../../../tests/fixtures/events/extensible_image.json"),
        include_str!("../../../tests/fixtures/events/profile.json"),
        include_str!("../../../tests/fixtures/events/profile_edit.json"),
        include_str!("../../../tests/fixtures/events/content_warning.json"),
        include_str!("../../../tests/fixtures/events/instagram_link.json"),
        include_str!("../../../tests/fixtures/events/instagram_story_picture.json"),
        include_str!("../../../tests/fixtures/events/instagram_share_reel.json"),
        include_str!("../../../tests/fixtures/events/instagram_view_once.json"),
        include_str!("../../../tests/fixtures/events/file_unknown.json"),
    ] {
        let mut payload = serde_json::to_value(read_fixture(fixture).payload(1)).unwrap();
        payload["data"]["matrix"]["content"].take();
        on_page(&payload);
    }
}

/// Every key of `value`, at any depth, stands on the page as the last part of something in code style.
fn on_page(value: &Value) {
    match value {
        Value::Object(fields) => {
            for (key, inner) in fields {
                let found =
                    [format!("`{key}`"), format!(".{key}`")].iter().any(|written| PAGE.contains(written));
                assert!(found || key == "data" || inner.is_object(), "{key}");
                on_page(inner);
            }
        }
        Value::Array(list) => list.iter().for_each(on_page),
        _ => {}
    }
}
