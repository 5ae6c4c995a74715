//! What tells how the homeserver is and what it has of us: questions that change nothing.

use std::collections::BTreeMap;

use reqwest::{Method, header::AUTHORIZATION, header::HeaderMap};
use ruma::{OwnedDeviceId, OwnedUserId, TransactionId, UserId};
use serde::Deserialize;
use serde_json::{Value as Json, json};
use time::{OffsetDateTime, format_description::well_known::Rfc2822};

use super::{Call, Homeserver, HomeserverError, Identity, SMALL_ANSWER, read};
use crate::clock::Timestamp;

/// What a homeserver says of itself to everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Greeting {
    /// The versions of the specification that it speaks.
    pub versions: Vec<String>,
    /// The program and its version, as its header has it: `Synapse/1.163.2`; a proxy may say its own.
    pub server: Option<String>,
    /// What time it is there, to the second.
    pub date: Option<Timestamp>,
}

/// The keys of a user, as the homeserver shows them to everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishedKeys {
    /// The devices that have keys.
    pub devices: BTreeMap<OwnedDeviceId, PublishedDevice>,
    /// Whether the user has a cross-signing identity.
    pub has_identity: bool,
}

/// A device, as the homeserver shows it to everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishedDevice {
    /// Its Curve25519 key, base64.
    pub curve25519: Option<String>,
    /// Its Ed25519 key, base64.
    pub ed25519: Option<String>,
    /// What its user calls it.
    pub name: Option<String>,
    /// Whether a signature by the user's self-signing key stands under it; the signature itself is not verified.
    pub is_signed: bool,
}

impl Homeserver {
    /// Asks who is there, without a token
    /// ([spec](https://spec.matrix.org/latest/client-server-api/#get_matrixclientversions)).
    ///
    /// # Errors
    /// When nobody answers, or what answers is no homeserver.
    pub async fn greet(&self) -> Result<Greeting, HomeserverError> {
        #[derive(Deserialize)]
        struct Answer {
            versions: Vec<String>,
        }
        let path = ["_matrix", "client", "versions"];
        let mut request = self.request(Call::get(&path))?;
        // Whoever answers at a mistyped address need not have it.
        request.headers_mut().remove(AUTHORIZATION);
        let response = self.client.execute(request).await.map_err(HomeserverError::unreachable)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = read(response, SMALL_ANSWER).await?;
        if !status.is_success() {
            return Err(HomeserverError::refused(status.as_u16(), None, &body, &self.as_token));
        }
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|_| HomeserverError::Malformed("the homeserver's answer"))?;
        let server = text(&headers, "server").map(|server| server.chars().take(100).collect());
        let date = text(&headers, "date").and_then(|date| OffsetDateTime::parse(date, &Rfc2822).ok());
        let date = date.map(|date| Timestamp(date.unix_timestamp().saturating_mul(1000)));
        Ok(Greeting { versions: answer.versions, server, date })
    }

    /// Whether the homeserver lets us act as a user, and has that user.
    ///
    /// # Errors
    /// `M_FORBIDDEN` when the user is not of the namespace, or is not registered.
    pub async fn acts_as(&self, user_id: &UserId) -> Result<(), HomeserverError> {
        let path = ["_matrix", "client", "v3", "account", "whoami"];
        let identity = Identity::user(user_id);
        self.call::<Json>(Call::get(&path).with_identity(&identity)).await.map(drop)
    }

    /// The keys of one of our users, as everybody sees them
    /// ([spec](https://spec.matrix.org/latest/client-server-api/#post_matrixclientv3keysquery)).
    ///
    /// # Errors
    /// When the homeserver cannot be reached or refuses.
    pub async fn published_keys(&self, user_id: &UserId) -> Result<PublishedKeys, HomeserverError> {
        let path = ["_matrix", "client", "v3", "keys", "query"];
        let identity = Identity::user(user_id);
        let body = json!({ "device_keys": { user_id.as_str(): [] } });
        let answer: Json = self.call(Call::post(&path, body).with_identity(&identity)).await?;
        let object = |value: &Json| value.as_object().cloned().unwrap_or_default();
        let self_signing = object(&answer["self_signing_keys"][user_id.as_str()]["keys"]);
        let has_identity = answer["master_keys"][user_id.as_str()].is_object();
        let mut devices = BTreeMap::new();
        for (device_id, device) in object(&answer["device_keys"][user_id.as_str()]) {
            let key = |kind: &str| device["keys"][format!("{kind}:{device_id}")].as_str().map(str::to_owned);
            let signatures = object(&device["signatures"][user_id.as_str()]);
            let known = PublishedDevice {
                curve25519: key("curve25519"),
                ed25519: key("ed25519"),
                name: device["unsigned"]["device_display_name"].as_str().map(str::to_owned),
                is_signed: self_signing.keys().any(|key_id| signatures.contains_key(key_id)),
            };
            devices.insert(OwnedDeviceId::from(device_id), known);
        }
        Ok(PublishedKeys { devices, has_identity })
    }

    /// How many one-time keys of a device are left, by algorithm: an upload of nothing tells
    /// ([spec](https://spec.matrix.org/latest/client-server-api/#post_matrixclientv3keysupload)).
    ///
    /// # Errors
    /// When the homeserver cannot be reached or refuses.
    pub async fn one_time_key_counts(
        &self,
        identity: &Identity,
    ) -> Result<BTreeMap<String, u64>, HomeserverError> {
        #[derive(Deserialize)]
        struct Answer {
            one_time_key_counts: BTreeMap<String, u64>,
        }
        let path = ["_matrix", "client", "v3", "keys", "upload"];
        let call = Call::post(&path, json!({})).with_identity(identity);
        Ok(self.call::<Answer>(call).await?.one_time_key_counts)
    }

    /// Sends a message in clear from one of our users to a device of the same user
    /// ([spec](https://spec.matrix.org/latest/client-server-api/#put_matrixclientv3sendtodeviceeventtypetxnid)).
    ///
    /// # Errors
    /// When the homeserver cannot be reached or refuses.
    pub async fn send_to_own_device(
        &self,
        user_id: &OwnedUserId,
        device_id: &OwnedDeviceId,
        event_type: &str,
        content: Json,
    ) -> Result<(), HomeserverError> {
        let txn_id = TransactionId::new();
        let path = ["_matrix", "client", "v3", "sendToDevice", event_type, txn_id.as_str()];
        let identity = Identity::user(user_id);
        let mut call = Call::new(Method::PUT, &path).with_identity(&identity);
        call.body = Some(json!({ "messages": { user_id.as_str(): { device_id.as_str(): content } } }));
        self.call::<Json>(call).await.map(drop)
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
