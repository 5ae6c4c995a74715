//! Printing one delivery.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::receive::{Delivery, Signature};

/// How deliveries are printed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Style {
    /// For people.
    Text,
    /// One line of JSON each.
    Json,
}

/// Prints a delivery and flushes, so that a pipe sees it at once.
pub(super) fn delivery(out: &mut dyn Write, style: Style, delivery: &Delivery) -> io::Result<()> {
    match style {
        Style::Text => text(out, delivery)?,
        Style::Json => {
            let line = json!({
                "received_at": delivery.received_at.rfc3339(),
                "verified": delivery.signature == Signature::Verified,
                "repeat": delivery.repeat,
                "webhook_id": delivery.webhook_id,
                "body": delivery.body,
            });
            writeln!(out, "{line}")?;
        }
    }
    out.flush()
}

/// A line about the delivery, one about where it is from, and what was said.
fn text(out: &mut dyn Write, delivery: &Delivery) -> io::Result<()> {
    let signature = match &delivery.signature {
        Signature::Verified => "✔ verified".to_owned(),
        Signature::Unchecked => "? signature not checked".to_owned(),
        Signature::Bad(why) => format!("✘ refused, {why}"),
    };
    let repeat = if delivery.repeat { "  ↻ repeat" } else { "" };
    let id = delivery.webhook_id.as_deref().unwrap_or("no webhook-id");
    let body = delivery.body.as_ref();
    let message_type = body.and_then(|body| body.get("type")).and_then(Value::as_str).unwrap_or("no type");
    let (id, message_type) = (plain(id), plain(message_type));
    writeln!(out, "{}  {signature}{repeat}  {message_type}  {id}", delivery.received_at)?;
    let Some(body) = body else {
        return writeln!(out, "    the body is no JSON object");
    };
    match body.pointer("/data/messages").and_then(Value::as_array) {
        Some(messages) => messages.iter().try_for_each(|one| message(out, one)),
        None => message(out, body),
    }
}

/// Where a message is from, and what was said.
fn message(out: &mut dyn Write, body: &Value) -> io::Result<()> {
    let field = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).map(plain);
    let first = |pointers: &[&str]| pointers.iter().find_map(|pointer| field(pointer));
    let mut origin = Vec::new();
    origin.extend(field("/data/network"));
    origin.extend(first(&["/data/room/name", "/data/room_id"]));
    origin.extend(first(&["/data/sender/name", "/data/sender/mxid"]));
    origin.extend(field("/data/content/kind"));
    if let Some(sequence) = body.pointer("/data/sequence").and_then(Value::as_u64) {
        origin.push(format!("#{sequence}"));
    }
    if !origin.is_empty() {
        writeln!(out, "    {}", origin.join(" · "))?;
    }
    for line in body.pointer("/data/content/text").and_then(Value::as_str).unwrap_or_default().lines() {
        writeln!(out, "    > {}", plain(line))?;
    }
    Ok(())
}

/// Text without characters that would steer the terminal: others chose it.
fn plain(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { '�' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    fn message() -> Delivery {
        let body = json!({
            "type": "message.created",
            "data": {
                "sequence": 3,
                "network": "instagram",
                "room": {"name": "Ada"},
                "room_id": "!room:example.org",
                "sender": {"name": "Ada \u{1b}[31mLovelace", "mxid": "@instagram_1:example.org"},
                "content": {"kind": "text", "text": "one\ntwo"},
            },
        });
        Delivery {
            received_at: Timestamp(1_700_000_000_123),
            webhook_id: Some("msg1".to_owned()),
            signature: Signature::Verified,
            repeat: false,
            body: Some(body),
        }
    }

    fn printed(style: Style, message: &Delivery) -> String {
        let mut out = Vec::new();
        delivery(&mut out, style, message).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_message_is_printed_readably_and_cannot_steer_the_terminal() {
        assert_eq!(
            printed(Style::Text, &message()),
            "2023-11-14T22:13:20.123Z  ✔ verified  message.created  msg1\n    \
             instagram · Ada · Ada �[31mLovelace · text · #3\n    > one\n    > two\n"
        );
        let repeat = printed(Style::Text, &Delivery { repeat: true, ..message() });
        assert!(repeat.contains("✔ verified  ↻ repeat  message.created"));
        let signature = Signature::Bad("signature invalid".to_owned());
        let refused = printed(Style::Text, &Delivery { signature, body: None, ..message() });
        assert!(refused.contains("✘ refused, signature invalid") && refused.contains("no JSON object"));
    }

    #[test]
    fn json_is_one_line_a_delivery() {
        let text = printed(Style::Json, &message());
        assert_eq!(text.matches('\n').count(), 1);
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&line["verified"], &line["repeat"]), (&json!(true), &json!(false)));
        assert_eq!(line["webhook_id"], "msg1");
        assert_eq!(line["body"]["data"]["content"]["text"], "one\ntwo");
    }
}
