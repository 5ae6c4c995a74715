//! What deliveries are signed with, which may change while they are sent.

use std::sync::{Arc, PoisonError, RwLock};

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::BadWebhook;
use crate::{clock::Timestamp, store::webhooks::secrets::Signing};

/// The sizes of a secret, in bytes. Standard Webhooks asks for 24 at least; a plain text that an operator has
/// from before may be shorter.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 16..=64;

/// The secrets of one webhook, shared by whoever signs and whoever changes them.
#[derive(Clone)]
pub struct Signers(Arc<RwLock<Vec<Key>>>);

/// A key, and until when it signs.
type Key = (Hmac<Sha256>, Option<Timestamp>);

impl std::fmt::Debug for Signers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signers").finish_non_exhaustive()
    }
}

impl Signers {
    /// Each of these signs, in this order, until its end.
    ///
    /// # Errors
    /// When one has the wrong form, or there is none; the error names the webhook.
    pub fn new(name: &str, secrets: &[Signing]) -> Result<Self, BadWebhook> {
        Ok(Self(Arc::new(RwLock::new(keys(name, secrets)?))))
    }

    /// From now on these sign.
    ///
    /// # Errors
    /// As [`Self::new`]; what signed before goes on then.
    pub fn replace(&self, name: &str, secrets: &[Signing]) -> Result<(), BadWebhook> {
        let keys = keys(name, secrets)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }

    /// `v1,…` for each secret that signs at a time in seconds; `None` when none does.
    pub(super) fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> Option<String> {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let now = Timestamp(timestamp.saturating_mul(1000));
        let in_use = keys.iter().filter(|(_, until)| until.is_none_or(|until| until > now));
        let signed = in_use.map(|(key, _)| sign(key.clone(), id, timestamp, body));
        let signed = signed.collect::<Vec<_>>().join(" ");
        (!signed.is_empty()).then_some(signed)
    }
}

/// A signature as
/// [Standard Webhooks](https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md#signature-scheme)
/// has it: of the id, the time and the body, with dots between them.
fn sign(mut key: Hmac<Sha256>, id: &str, timestamp: i64, body: &[u8]) -> String {
    for part in [id.as_bytes(), b".", timestamp.to_string().as_bytes(), b".", body] {
        key.update(part);
    }
    format!("v1,{}", STANDARD.encode(key.finalize().into_bytes()))
}

fn keys(name: &str, secrets: &[Signing]) -> Result<Vec<Key>, BadWebhook> {
    let bad = || BadWebhook::Secret { name: name.to_owned() };
    let one = |signing: &Signing| Ok((key(&signing.secret).ok_or_else(bad)?, signing.until));
    let keys = secrets.iter().map(one).collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() { Err(bad()) } else { Ok(keys) }
}

/// What signs with a secret. The libraries of Standard Webhooks take one with and without `whsec_`, as
/// base64 in both cases; any other text would give signatures that none of them can verify.
fn key(secret: &SecretString) -> Option<Hmac<Sha256>> {
    let secret = secret.expose_secret().trim();
    let key = Zeroizing::new(STANDARD.decode(secret.strip_prefix("whsec_").unwrap_or(secret)).ok()?);
    if !SECRET_BYTES.contains(&key.len()) {
        return None;
    }
    Hmac::new_from_slice(&key).ok()
}

#[cfg(test)]
mod tests {
    use standardwebhooks::Webhook;

    use super::*;

    const ONE: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    const TWO: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

    fn signing(secret: &str, until: Option<i64>) -> Signing {
        Signing { secret: SecretString::from(secret), until: until.map(Timestamp), is_rotated: false }
    }

    #[test]
    fn each_signs_until_its_end_and_they_can_be_replaced() {
        let sign = |key: &str, at| Webhook::new(key).unwrap().sign("msg_1", at, b"{}").unwrap();
        let signers = Signers::new("main", &[signing(ONE, None), signing(TWO, Some(20_000))]).unwrap();
        assert_eq!(signers.sign("msg_1", 19, b"{}"), Some(format!("{} {}", sign(ONE, 19), sign(TWO, 19))));
        assert_eq!(signers.sign("msg_1", 20, b"{}"), Some(sign(ONE, 20)));
        let other = signers.clone();
        signers.replace("main", &[signing(TWO, None)]).unwrap();
        assert_eq!(other.sign("msg_1", 20, b"{}"), Some(sign(TWO, 20)));
        assert!(signers.replace("main", &[signing("hush", None)]).is_err());
        assert!(signers.replace("main", &[]).is_err());
        assert_eq!(other.sign("msg_1", 20, b"{}"), Some(sign(TWO, 20)), "what is wrong changes nothing");
        signers.replace("main", &[signing(TWO, Some(1))]).unwrap();
        assert_eq!(signers.sign("msg_1", 20, b"{}"), None, "nothing goes out without a signature");
    }
}
