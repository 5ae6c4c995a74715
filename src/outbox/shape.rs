//! The body as a webhook wants it: all of it or without what was said, plain or as a `CloudEvents` event.
//!
//! What is stored is always the whole payload, so that a webhook's settings may change. The same payload gives the
//! same body at every attempt, but for the addresses of files, which expire and are made anew.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};
use url::form_urlencoded::byte_serialize;

use crate::model::{Detail, Format, RawObject};

/// Every way in which a body can look.
#[cfg(test)]
pub(crate) const ALL: [(Detail, Format); 4] = [
    (Detail::Full, Format::Standard),
    (Detail::Full, Format::CloudEvents),
    (Detail::Metadata, Format::Standard),
    (Detail::Metadata, Format::CloudEvents),
];

/// The media type of a body.
pub(super) fn content_type(format: Format, is_batch: bool) -> &'static str {
    match (format, is_batch) {
        (Format::Standard, _) => "application/json",
        (Format::CloudEvents, false) => "application/cloudevents+json",
        (Format::CloudEvents, true) => "application/cloudevents-batch+json",
    }
}

/// The body for a payload; `None` when the payload is none.
pub(crate) fn body(payload: &[u8], detail: Detail, format: Format) -> Option<Cow<'_, [u8]>> {
    if (detail, format) == (Detail::Full, Format::Standard) {
        return Some(Cow::Borrowed(payload));
    }
    let mut payload = RawObject::parse(payload)?;
    if detail == Detail::Metadata {
        payload.within("data", |data| {
            leave_out_what_was_said(data);
            Some(())
        })?;
    }
    match format {
        Format::Standard => payload.to_vec(),
        Format::CloudEvents => serde_json::to_vec(&cloud_event(payload)?).ok(),
    }
    .map(Cow::Owned)
}

/// Several messages in one body, with `batch`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Batch<M> {
    /// `batch`.
    #[serde(rename = "type")]
    #[cfg_attr(test, schemars(extend("const" = "batch")))]
    pub(crate) message_type: &'static str,
    /// That of the last message, RFC 3339, UTC.
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    pub(crate) timestamp: String,
    /// The version of the schema, 1.
    #[cfg_attr(test, schemars(extend("const" = 1)))]
    pub(crate) version: u64,
    /// What it is about.
    pub(crate) data: BatchData<M>,
}

/// `data` of a batch.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct BatchData<M> {
    /// Its id, made of those of its messages: equal to the `webhook-id` header.
    #[cfg_attr(test, schemars(regex(pattern = "^bat_[0-9a-f]{40}$")))]
    pub(crate) id: String,
    /// How many messages there are.
    #[cfg_attr(test, schemars(range(min = 1)))]
    pub(crate) count: usize,
    /// The messages, each as it would be sent alone; those of a room in their order.
    #[cfg_attr(test, schemars(length(min = 1)))]
    pub(crate) messages: Vec<M>,
}

/// The body for several payloads; `None` when one of them is none. With `CloudEvents` that is a
/// [batch](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md#4-json-batch-format).
pub(crate) fn batch(
    id: &str,
    payloads: &[impl AsRef<[u8]>],
    detail: Detail,
    format: Format,
) -> Option<Vec<u8>> {
    #[derive(Deserialize)]
    struct Head {
        timestamp: String,
        version: u64,
    }
    let shaped = payloads.iter().map(|payload| body(payload.as_ref(), detail, format));
    let shaped = shaped.collect::<Option<Vec<_>>>()?;
    let raw =
        |shaped: Cow<'_, [u8]>| RawValue::from_string(String::from_utf8(shaped.into_owned()).ok()?).ok();
    let messages = shaped.into_iter().map(raw).collect::<Option<Vec<_>>>()?;
    let whole = match format {
        Format::CloudEvents => serde_json::to_vec(&messages),
        Format::Standard => {
            let Head { timestamp, version } = serde_json::from_slice(payloads.last()?.as_ref()).ok()?;
            let data = BatchData { id: id.to_owned(), count: messages.len(), messages };
            serde_json::to_vec(&Batch { message_type: "batch", timestamp, version, data })
        }
    };
    whole.ok()
}

/// Leaves of `data.content` the kind, of `data.matrix` the type, and nothing that names a part of the content.
fn leave_out_what_was_said(data: &mut RawObject) {
    // Where one of them is null there is nothing to leave out.
    let _ = data.within("content", |content| {
        content.0.retain(|(key, _)| key == "kind");
        Some(())
    });
    let _ = data.within("matrix", |matrix| {
        matrix.0.retain(|(key, _)| key == "type");
        matrix.set("content", &json!({}))
    });
    let _ = data.within("membership", |membership| membership.set("reason", &Value::Null));
    data.remove("repairs");
}

/// A [CloudEvents 1.0](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md) event,
/// the body with `format: cloudevents`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct CloudEvent<D> {
    /// The version of `CloudEvents`.
    #[cfg_attr(test, schemars(extend("const" = "1.0")))]
    pub(crate) specversion: &'static str,
    /// The id of the message, `data.id`.
    pub(crate) id: String,
    /// The room as a [Matrix URI](https://spec.matrix.org/latest/appendices/#matrix-uri-scheme),
    /// `matrix:roomid/…`; `coucou` when it is about no room.
    pub(crate) source: String,
    /// What it tells, e.g. `message.created`.
    #[serde(rename = "type")]
    #[cfg_attr(test, schemars(with = "crate::model::MessageType"))]
    pub(crate) message_type: String,
    /// When the event says it was sent, RFC 3339, UTC.
    #[cfg_attr(test, schemars(extend("format" = "date-time")))]
    pub(crate) time: String,
    /// The Matrix event; left out when it is about none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) subject: Option<String>,
    /// What `data` is.
    #[cfg_attr(test, schemars(extend("const" = "application/json")))]
    pub(crate) datacontenttype: &'static str,
    /// The version of the schema, 1.
    #[cfg_attr(test, schemars(extend("const" = 1)))]
    pub(crate) payloadversion: u64,
    /// What it is about: as `data` of the standard format.
    pub(crate) data: D,
}

fn cloud_event(mut payload: RawObject) -> Option<CloudEvent<Box<RawValue>>> {
    let data = payload.remove("data")?;
    let members = RawObject::read(&data)?;
    let text = |key: &str| members.get_as::<String>(key);
    let source = text("room_id").map_or_else(
        || "coucou".to_owned(),
        |room| {
            format!(
                "matrix:roomid/{}",
                byte_serialize(room.trim_start_matches('!').as_bytes()).collect::<String>()
            )
        },
    );
    Some(CloudEvent {
        specversion: "1.0",
        id: text("id")?,
        source,
        message_type: payload.get_as("type")?,
        time: payload.get_as("timestamp")?,
        subject: text("event_id"),
        datacontenttype: "application/json",
        payloadversion: payload.get_as("version")?,
        data,
    })
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
                "repairs": [{"field": "/content/hush", "reason": "lone_surrogate"}],
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
    fn odd_numbers_go_through_every_shape_unchanged() {
        let written = "{\"content\":{\"n\":[1e400,1.50,123456789012345678901234567890]}";
        let payload = payload().to_string().replace("{\"content\":{\"body\":\"hush\"}", written);
        for format in [Format::Standard, Format::CloudEvents] {
            let full = body(payload.as_bytes(), Detail::Full, format).unwrap();
            assert!(String::from_utf8_lossy(&full).contains(written));
            let metadata = body(payload.as_bytes(), Detail::Metadata, format).unwrap();
            assert!(String::from_utf8_lossy(&metadata).contains("\"content\":{}"));
            let both = batch("bat_1", &[&payload, &payload], Detail::Full, format).unwrap();
            assert_eq!(String::from_utf8_lossy(&both).matches(written).count(), 2);
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
    fn a_batch_holds_its_messages_as_they_are() {
        let (one, two) = (payload().to_string(), payload().to_string().replace("03:14", "03:15"));
        let payloads = [one.as_bytes(), two.as_bytes()];
        let whole = |detail, format| -> Value {
            serde_json::from_slice(&batch("bat_1", &payloads, detail, format).unwrap()).unwrap()
        };
        let standard = whole(Detail::Full, Format::Standard);
        assert_eq!(
            standard,
            json!({
                "type": "batch", "timestamp": "2026-11-22T03:15:22.900Z", "version": 1,
                "data": {"id": "bat_1", "count": 2, "messages": [
                    payload(), serde_json::from_str::<Value>(&two).unwrap(),
                ]},
            })
        );
        let cloud = whole(Detail::Metadata, Format::CloudEvents);
        assert_eq!(cloud.as_array().map(Vec::len), Some(2));
        assert_eq!(cloud[0], shaped(Detail::Metadata, Format::CloudEvents));
        assert_eq!(batch("bat_1", &[one.as_bytes(), b"7"], Detail::Metadata, Format::Standard), None);
        assert_eq!(batch("bat_1", &[] as &[&[u8]], Detail::Full, Format::Standard), None);
    }

    #[test]
    fn what_is_no_payload_is_not_sent() {
        for odd in ["", "7", "{}", "{\"data\": 1}", "{\"data\": {}}"] {
            assert_eq!(body(odd.as_bytes(), Detail::Metadata, Format::CloudEvents), None, "{odd}");
        }
    }
}
