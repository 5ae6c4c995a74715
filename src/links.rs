//! Addresses that open a file for whoever has them, for a time: `…/media/{id}?expires=…&signature=…`.
//!
//! The signature covers the message, which of its files, and the time, under a key that is
//! [derived](crate::store::Seal::derive) from the store's data key: every process on the store makes and knows the
//! same ones, before and after a restart. Nothing is stored, so that nothing has to be told apart or cleaned up; what
//! an address opens is looked up when somebody comes with it.

mod payload;

use std::{borrow::Cow, fmt, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use url::Url;
use zeroize::Zeroizing;

use crate::{clock::Timestamp, model::MediaPart};

/// The label that the signing key is derived under.
pub const LABEL: &str = "coucou media links v1";

/// The least and the longest time that an address may work.
pub const LIFETIMES: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_hours(30 * 24);

/// A lifetime has so many parts, at whose ends addresses expire: two that are made in the same part are the same, so
/// that a delivery that is tried again has the same body as a rule, and caches find what they have.
const PARTS: u32 = 24;

/// What signs, and knows what it has signed.
#[derive(Clone)]
pub struct Signer {
    keys: Vec<Zeroizing<[u8; 32]>>,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("keys", &self.keys.len()).finish()
    }
}

/// What a signature is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It opens the file until then.
    Valid {
        /// Whole seconds since the epoch.
        until: i64,
    },
    /// It did, but no longer.
    Expired,
    /// It is not one of ours, or not for this.
    Invalid,
}

impl Signer {
    /// Signs with the first of `keys`, which were derived under [`LABEL`], and knows what any of them has signed.
    #[must_use]
    pub fn new(keys: Vec<Zeroizing<[u8; 32]>>) -> Self {
        Self { keys }
    }

    /// The signature for a file of a message, valid until a time in seconds.
    fn sign(&self, message_id: &str, part: &MediaPart, until: i64) -> Option<String> {
        let mac = mac(self.keys.first()?, message_id, part, until)?;
        Some(URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
    }

    /// Looks at `expires` and `signature` as they came with a request. Compares in constant time.
    #[must_use]
    pub fn verify(
        &self,
        message_id: &str,
        part: &MediaPart,
        expires: &str,
        signature: &str,
        now: Timestamp,
    ) -> Verdict {
        let until = expires.parse::<i64>().ok().filter(|until| until.to_string() == expires);
        let Some((until, given)) = until.zip(URL_SAFE_NO_PAD.decode(signature).ok()) else {
            return Verdict::Invalid;
        };
        let matches = |key: &Zeroizing<[u8; 32]>| {
            mac(key, message_id, part, until).is_some_and(|mac| mac.verify_slice(&given).is_ok())
        };
        if !self.keys.iter().any(matches) {
            return Verdict::Invalid;
        }
        if now.0.div_euclid(1000) >= until { Verdict::Expired } else { Verdict::Valid { until } }
    }
}

fn mac(key: &Zeroizing<[u8; 32]>, message_id: &str, part: &MediaPart, until: i64) -> Option<Hmac<Sha256>> {
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(&**key).ok()?;
    // No part of it has a NUL, so no two of them give the same bytes.
    mac.update(format!("{message_id}\0{}\0{until}", part.as_str()).as_bytes());
    Some(mac)
}

/// Makes addresses.
#[derive(Clone, Debug)]
pub struct Links {
    signer: Signer,
    base: Url,
    lifetime: Duration,
}

impl Links {
    /// Addresses below `base`, coucou's own public one, that work for `lifetime` at least.
    #[must_use]
    pub fn new(signer: Signer, base: &Url, lifetime: Duration) -> Self {
        let mut base = base.clone();
        base.set_query(None);
        base.set_fragment(None);
        Self { signer, base, lifetime }
    }

    /// Until when an address works that is made now: whole seconds since the epoch.
    fn until(&self, now: Timestamp) -> i64 {
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let step = seconds(self.lifetime / PARTS).max(1);
        let least = now.0.div_euclid(1000).saturating_add(seconds(self.lifetime));
        least.div_euclid(step).saturating_add(1).saturating_mul(step)
    }

    /// The address of a file of a message, valid until a time in seconds.
    fn url(&self, message_id: &str, part: &MediaPart, until: i64) -> Option<String> {
        let signature = self.signer.sign(message_id, part, until)?;
        let mut url = self.base.clone();
        let part = (*part != MediaPart::File).then_some(part.as_str());
        url.path_segments_mut()
            .ok()?
            .pop_if_empty()
            .extend(["api", "v1", "media", message_id].into_iter().chain(part));
        url.query_pairs_mut().append_pair("expires", &until.to_string()).append_pair("signature", &signature);
        Some(url.into())
    }

    /// A payload with addresses for its files that work from now on. One without files, and what is no payload,
    /// stays as it is, byte for byte; of others nothing changes but these fields.
    #[must_use]
    pub fn refresh<'a>(&self, payload: &'a [u8], now: Timestamp) -> Cow<'a, [u8]> {
        if !payload::may_have_files(payload) {
            return Cow::Borrowed(payload);
        }
        let until = self.until(now);
        let url = |message_id: &str, part: &MediaPart| self.url(message_id, part, until);
        let expires_at = Timestamp(until.saturating_mul(1000)).rfc3339();
        payload::with_urls(payload, &expires_at, url).map_or(Cow::Borrowed(payload), Cow::Owned)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: Timestamp = Timestamp(1_760_000_000_123);
    const HOUR: Duration = Duration::from_hours(1);

    fn signer(keys: &[u8]) -> Signer {
        Signer::new(keys.iter().map(|byte| Zeroizing::new([*byte; 32])).collect())
    }

    fn links() -> Links {
        Links::new(signer(&[1]), &"https://coucou.example.org/below/?x#y".parse().unwrap(), HOUR)
    }

    fn query(url: &str) -> (String, String) {
        let url = Url::parse(url).unwrap();
        let pairs: Vec<_> = url.query_pairs().map(|(_, value)| value.into_owned()).collect();
        (pairs[0].clone(), pairs[1].clone())
    }

    fn payload() -> String {
        // As it is rendered: not in the order of the alphabet, and with numbers and escapes as they were written.
        r#"{"type":"message.created","version":1,"data":{"id":"msg_1","z":1.50,"content":{"kind":"image","media":{"mxc":"mxc://a/b","encrypted":true,"thumbnail":{"mxc":"mxc://a/c","encrypted":false}},"bridge":null},"a":"\u00e9"}}"#
            .to_owned()
    }

    #[test]
    fn a_link_opens_its_file_until_its_time_and_nothing_else() {
        let links = links();
        let until = links.until(NOW);
        let url = links.url("msg_1", &MediaPart::File, until).unwrap();
        assert!(url.starts_with("https://coucou.example.org/below/api/v1/media/msg_1?expires="), "{url}");
        let (expires, signature) = query(&url);
        let verify = |id: &str, part, expires: &str, signature: &str, now| {
            links.signer.verify(id, part, expires, signature, now)
        };
        let last = Timestamp(until * 1000 - 1);
        for now in [NOW, last] {
            assert_eq!(
                verify("msg_1", &MediaPart::File, &expires, &signature, now),
                Verdict::Valid { until }
            );
        }
        let over = Timestamp(until * 1000);
        assert_eq!(verify("msg_1", &MediaPart::File, &expires, &signature, over), Verdict::Expired);
        assert!(until - NOW.0 / 1000 >= 3600 && until - NOW.0 / 1000 <= 3600 + 150, "{until}");

        let later = (until + 1).to_string();
        for (id, part, expires, signature) in [
            ("msg_2", &MediaPart::File, &*expires, &*signature),
            ("msg_1", &MediaPart::Thumbnail, &expires, &signature),
            ("msg_1", &MediaPart::File, &later, &signature),
            ("msg_1", &MediaPart::File, &format!("+{expires}"), &signature),
            ("msg_1", &MediaPart::File, &format!("0{expires}"), &signature),
            ("msg_1", &MediaPart::File, "", &signature),
            ("msg_1", &MediaPart::File, &expires, ""),
            ("msg_1", &MediaPart::File, &expires, &signature[1..]),
            ("msg_1", &MediaPart::File, &expires, &format!("{signature}=")),
        ] {
            assert_eq!(
                verify(id, part, expires, signature, NOW),
                Verdict::Invalid,
                "{id} {expires} {signature}"
            );
        }
        for at in 0..signature.len() {
            let mut altered = signature.clone().into_bytes();
            altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
            let altered = String::from_utf8(altered).unwrap();
            assert_eq!(verify("msg_1", &MediaPart::File, &expires, &altered, NOW), Verdict::Invalid, "{at}");
        }
        // By an older data key's, and by a stranger's.
        let (both, other) = (signer(&[2, 1]), signer(&[2]));
        assert_eq!(
            both.verify("msg_1", &MediaPart::File, &expires, &signature, NOW),
            Verdict::Valid { until }
        );
        assert_eq!(other.verify("msg_1", &MediaPart::File, &expires, &signature, NOW), Verdict::Invalid);
        assert_eq!(
            signer(&[]).verify("msg_1", &MediaPart::File, &expires, &signature, NOW),
            Verdict::Invalid
        );
        assert_eq!(format!("{other:?}"), "Signer { keys: 1 }");
    }

    #[test]
    fn a_payload_gets_addresses_for_its_files_and_is_otherwise_as_it_was() {
        let links = links();
        let fresh = String::from_utf8(links.refresh(payload().as_bytes(), NOW).into_owned()).unwrap();
        let value: Value = serde_json::from_str(&fresh).unwrap();
        let media = &value["data"]["content"]["media"];
        assert_eq!(media["url_expires_at"], media["thumbnail"]["url_expires_at"]);
        let thumbnail = media["thumbnail"]["url"].as_str().unwrap();
        assert!(thumbnail.contains("/media/msg_1/thumbnail?"), "{thumbnail}");
        // Without them it is the payload again: nothing else was touched, in content, order or form.
        let mut rest = fresh.clone();
        for file in [media, &media["thumbnail"]] {
            for key in ["url", "url_expires_at"] {
                rest = rest.replacen(&format!("\"{key}\":{},", file[key]), "", 1);
            }
        }
        assert_eq!(rest, payload());
        // Once more, later: the old addresses are replaced, not added to.
        let later = links.refresh(fresh.as_bytes(), NOW.plus(HOUR)).into_owned();
        assert_eq!(later, links.refresh(payload().as_bytes(), NOW.plus(HOUR)).into_owned());
        assert_ne!(later, fresh.as_bytes());
        assert_eq!(links.refresh(payload().as_bytes(), NOW.plus(Duration::from_secs(5))), fresh.as_bytes());
    }

    #[test]
    fn what_has_no_file_stays_as_it_is() {
        let text = json!({"type": "message.created", "data": {"id": "msg_1", "content": {
            "kind": "text", "text": "\"media\":{\"mxc\":1}",
        }, "matrix": {"content": {"media": {"mxc": "mxc://a/b"}}}}});
        for odd in
            [text.to_string(), String::new(), "7".to_owned(), "\"media\":{".to_owned(), "{}".to_owned()]
        {
            assert!(matches!(links().refresh(odd.as_bytes(), NOW), Cow::Borrowed(_)), "{odd}");
        }
    }
}
