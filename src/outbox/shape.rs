//! The body as a webhook wants it: all of it or without what was said, plain or as a `CloudEvents` event.
//!
//! What is stored is always the whole payload, so that a webhook's settings may change. The same payload gives the
//! same body at every attempt, but for the addresses of files, which expire and are made anew.

use std::borrow::Cow;

use serde_json::{Map, Value, json};
use url::form_urlencoded::byte_serialize;

use crate::model::{Detail, Format};

/// The media type of a body.
pub(super) fn content_type(format: Format) -> &'static str {
    match format {
        Format::Standard => "application/json",
        Format::CloudEvents => "application/cloudevents+json",
    }
}

/// The body for a payload; `None` when the payload is none.
pub(super) fn body(payload: &[u8], detail: Detail, format: Format) -> Option<Cow<'_, [u8]>> {
    if (detail, format) == (Detail::Full, Format::Standard) {
        return Some(Cow::Borrowed(payload));
    }
    let Value::Object(mut payload) = serde_json::from_slice(payload).ok()? else { return None };
    if detail == Detail::Metadata {
        leave_out_what_was_said(payload.get_mut("data")?.as_object_mut()?);
    }
    let payload = match format {
        Format::Standard => payload,
        Format::CloudEvents => cloud_event(payload)?,
    };
    serde_json::to_vec(&payload).ok().map(Cow::Owned)
}

/// Leaves of `data.content` the kind, and of `data.matrix` the type.
fn leave_out_what_was_said(data: &mut Map<String, Value>) {
    if let Some(content) = data.get_mut("content").and_then(Value::as_object_mut) {
        content.retain(|key, _| key == "kind");
    }
    if let Some(matrix) = data.get_mut("matrix").and_then(Value::as_object_mut) {
        matrix.retain(|key, _| key == "type");
        matrix.insert("content".to_owned(), json!({}));
    }
    if let Some(membership) = data.get_mut("membership").and_then(Value::as_object_mut) {
        membership.insert("reason".to_owned(), Value::Null);
    }
}

/// A [CloudEvents 1.0](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md) event:
/// `id` is the message's, `source` the room as a [Matrix URI](https://spec.matrix.org/latest/appendices/#matrix-uri-scheme).
fn cloud_event(mut payload: Map<String, Value>) -> Option<Map<String, Value>> {
    let data = payload.remove("data")?;
    let text = |key: &str| data.get(key).and_then(Value::as_str);
    let source = text("room_id").map_or_else(
        || "coucou".to_owned(),
        |room| {
            format!(
                "matrix:roomid/{}",
                byte_serialize(room.trim_start_matches('!').as_bytes()).collect::<String>()
            )
        },
    );
    let mut event = Map::new();
    event.insert("specversion".to_owned(), json!("1.0"));
    event.insert("id".to_owned(), json!(text("id")?));
    event.insert("source".to_owned(), json!(source));
    event.insert("type".to_owned(), payload.remove("type")?);
    event.insert("time".to_owned(), payload.remove("timestamp")?);
    if let Some(subject) = text("event_id") {
        event.insert("subject".to_owned(), json!(subject));
    }
    event.insert("datacontenttype".to_owned(), json!("application/json"));
    event.insert("payloadversion".to_owned(), payload.remove("version").unwrap_or(Value::Null));
    event.insert("data".to_owned(), data);
    Some(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload() -> Value {
        json!({
            "type": "message.created", "timestamp": "2026-11-22T03:14:22.900Z", "version": 1,
            "data": {
                "id": "msg_1", "sequence": 7, "event_id": "$e", "room_id": "!room:example.org",
                "sender": {"mxid": "@a:b"},
                "content": {"kind": "text", "text": "hush", "html": "<b>hush</b>"},
                "relates_to": {"reply_to": "$d"},
                "matrix": {"type": "m.room.message", "content": {"body": "hush"}},
            },
        })
    }

    fn shaped(detail: Detail, format: Format) -> Value {
        let payload = payload().to_string();
        serde_json::from_slice(&body(payload.as_bytes(), detail, format).unwrap()).unwrap()
    }

    #[test]
    fn the_standard_body_is_the_payload_byte_for_byte() {
        let odd = b"{ \"any\" : 1}";
        assert_eq!(body(odd, Detail::Full, Format::Standard).unwrap(), odd.as_slice());
    }

    #[test]
    fn metadata_tells_nothing_of_what_was_said() {
        let shaped = shaped(Detail::Metadata, Format::Standard);
        assert!(!shaped.to_string().contains("hush"), "{shaped}");
        assert_eq!(shaped["data"]["content"], json!({"kind": "text"}));
        assert_eq!(shaped["data"]["matrix"], json!({"type": "m.room.message", "content": {}}));
        for key in ["id", "sequence", "event_id", "room_id", "sender", "relates_to"] {
            assert_eq!(shaped["data"][key], payload()["data"][key], "{key}");
        }
    }

    #[test]
    fn a_cloud_event_has_what_the_specification_requires() {
        let event = shaped(Detail::Full, Format::CloudEvents);
        assert_eq!(
            event,
            json!({
                "specversion": "1.0", "id": "msg_1", "source": "matrix:roomid/room%3Aexample.org",
                "type": "message.created", "time": "2026-11-22T03:14:22.900Z", "subject": "$e",
                "datacontenttype": "application/json", "payloadversion": 1, "data": payload()["data"],
            })
        );
        let both = shaped(Detail::Metadata, Format::CloudEvents);
        assert!(!both.to_string().contains("hush"), "{both}");
        let test = json!({"type": "webhook.test", "timestamp": "t", "version": 1, "data": {"id": "msg_2"}})
            .to_string();
        let event = body(test.as_bytes(), Detail::Metadata, Format::CloudEvents).unwrap();
        let event: Value = serde_json::from_slice(&event).unwrap();
        assert_eq!((&event["source"], event.get("subject")), (&json!("coucou"), None));
    }

    #[test]
    fn what_is_no_payload_is_not_sent() {
        for odd in ["", "7", "{}", "{\"data\": 1}", "{\"data\": {}}"] {
            assert_eq!(body(odd.as_bytes(), Detail::Metadata, Format::CloudEvents), None, "{odd}");
        }
    }
}
