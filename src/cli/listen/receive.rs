//! Judging one delivery.

use std::collections::HashSet;

use axum::http::{HeaderMap, StatusCode};
use serde_json::Value;
use standardwebhooks::{HEADER_WEBHOOK_ID, Webhook};

use crate::clock::Timestamp;

/// Ids remembered to recognise repeats; then all are forgotten, for this is a tool for development.
const MOST_IDS: usize = 100_000;

/// Checks signatures and recognises repeats.
pub(super) struct Receiver {
    webhook: Option<Webhook>,
    seen: HashSet<String>,
}

/// What was received, and what was thought of it.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) received_at: Timestamp,
    pub(super) webhook_id: Option<String>,
    pub(super) signature: Signature,
    /// Whether a delivery with this id was accepted before.
    pub(super) repeat: bool,
    /// The body; `None` when it is not a JSON object.
    pub(super) body: Option<Value>,
}

/// What was thought of the signature.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Signature {
    /// It is good.
    Verified,
    /// There is no secret to check it with.
    Unchecked,
    /// It is not good, for this reason.
    Bad(String),
}

impl Receiver {
    /// A receiver that checks signatures with `secret`, if there is one.
    ///
    /// # Errors
    /// When the secret is malformed.
    pub(super) fn new(secret: Option<&str>) -> Result<Self, ()> {
        let webhook = secret.map(|secret| Webhook::new(secret.trim())).transpose().map_err(|_| ())?;
        Ok(Self { webhook, seen: HashSet::new() })
    }

    /// Judges a delivery.
    pub(super) fn receive(&mut self, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Delivery {
        let signature = match &self.webhook {
            None => Signature::Unchecked,
            Some(webhook) => match webhook.verify(body, headers) {
                Ok(()) => Signature::Verified,
                Err(error) => Signature::Bad(error.to_string()),
            },
        };
        let webhook_id = headers.get(HEADER_WEBHOOK_ID).and_then(|id| id.to_str().ok()).map(str::to_owned);
        let body = serde_json::from_slice(body).ok().filter(Value::is_object);
        let mut delivery = Delivery { received_at: now, webhook_id, signature, repeat: false, body };
        if delivery.answer().0.is_success()
            && let Some(id) = &delivery.webhook_id
        {
            if self.seen.len() >= MOST_IDS {
                self.seen.clear();
            }
            delivery.repeat = !self.seen.insert(id.clone());
        }
        delivery
    }
}

impl Delivery {
    /// What the sender is answered.
    pub(super) fn answer(&self) -> (StatusCode, &'static str) {
        match (&self.signature, &self.body) {
            (Signature::Bad(_), _) => (StatusCode::UNAUTHORIZED, "the signature is not good\n"),
            (_, None) => (StatusCode::BAD_REQUEST, "the body is no JSON object\n"),
            _ => (StatusCode::NO_CONTENT, ""),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

    const SECRET: &str = "whsec_dGhpcyBpcyBhbiBleGFtcGxlIHNlY3JldCE=";
    const BODY: &[u8] = br#"{"type":"message.created"}"#;

    fn signed(id: &str, body: &[u8]) -> HeaderMap {
        let seconds = SystemClock.now().0 / 1000;
        let signature = Webhook::new(SECRET).unwrap().sign(id, seconds, body).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", id.parse().unwrap());
        headers.insert("webhook-timestamp", seconds.to_string().parse().unwrap());
        headers.insert("webhook-signature", signature.parse().unwrap());
        headers
    }

    fn receiver() -> Receiver {
        Receiver::new(Some(SECRET)).unwrap()
    }

    #[test]
    fn a_good_signature_is_verified_and_a_repeat_is_known() {
        let mut receiver = receiver();
        let mut receive = |id| receiver.receive(&signed(id, BODY), BODY, Timestamp(1));
        let first = receive("one");
        assert_eq!((&first.signature, first.repeat), (&Signature::Verified, false));
        assert_eq!(first.answer().0, StatusCode::NO_CONTENT);
        assert_eq!(first.webhook_id.as_deref(), Some("one"));
        assert!(receive("one").repeat);
        assert!(!receive("two").repeat);
    }

    #[test]
    fn a_bad_signature_is_401_and_no_delivery() {
        let mut receiver = receiver();
        let mut other = signed("one", BODY);
        other.insert("webhook-id", "two".parse().unwrap());
        let mut old = signed("one", BODY);
        old.insert("webhook-timestamp", "1000".parse().unwrap());
        for headers in [other, old, HeaderMap::new()] {
            let delivery = receiver.receive(&headers, BODY, Timestamp(1));
            assert!(matches!(delivery.signature, Signature::Bad(_)));
            assert_eq!(delivery.answer().0, StatusCode::UNAUTHORIZED);
        }
        let changed = receiver.receive(&signed("one", BODY), b"{}", Timestamp(1));
        assert_eq!(changed.answer().0, StatusCode::UNAUTHORIZED);
        assert!(!receiver.receive(&signed("one", BODY), BODY, Timestamp(1)).repeat, "it was never accepted");
    }

    #[test]
    fn a_body_that_is_no_object_is_400() {
        let mut receiver = receiver();
        for body in [b"" as &[u8], b"[]", b"{", b"text"] {
            let delivery = receiver.receive(&signed("one", body), body, Timestamp(1));
            assert_eq!(delivery.answer().0, StatusCode::BAD_REQUEST);
        }
    }

    #[test]
    fn without_a_secret_nothing_is_checked_and_that_is_said() {
        let mut receiver = Receiver::new(None).unwrap();
        let delivery = receiver.receive(&HeaderMap::new(), BODY, Timestamp(1));
        assert_eq!(delivery.signature, Signature::Unchecked);
        assert_eq!(delivery.answer().0, StatusCode::NO_CONTENT);
        assert!(Receiver::new(Some("whsec_not base64")).is_err());
    }
}
