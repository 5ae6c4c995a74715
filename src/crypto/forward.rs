//! Room keys that a bridge bot's device forwards because we [asked](super::requests) it.
//!
//! The SDK takes forwards from the account's own devices only, and wipes others before anybody sees them. So
//! a batch of to-device messages is looked through before the machine gets it: an Olm message from a device
//! that we have asked is decrypted on copies of the Olm session or account, which are thrown away; the machine
//! then handles the same message as ever. What a forward must fulfil is [`judge`]d here, and is as strict as
//! for a key that comes straight from its maker: the device that made the session says so itself, over a
//! channel that only it can use. Whoever dies half-way meets the same message again, and nothing happens twice.

use std::collections::BTreeSet;

use matrix_sdk_common::deserialized_responses::ProcessedToDeviceEvent;
use matrix_sdk_crypto::{
    Device,
    olm::{ExportedRoomKey, SenderData},
    store::{CryptoStore as _, types::Changes},
    types::events::{forwarded_room_key::ForwardedRoomKeyContent, olm_v1::DecryptedForwardedRoomKeyEvent},
    vodozemac::{
        Curve25519PublicKey, Ed25519PublicKey,
        olm::{self, OlmMessage, SessionConfig},
    },
};
use ruma::{OwnedRoomId, OwnedUserId, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::{
    engine::{CryptoError, Engine, RoomKey},
    import,
};
use crate::store::{
    key_requests::{self, KeyRequest},
    leases,
};

/// The type of a forward ([spec](https://spec.matrix.org/latest/client-server-api/#mforwarded_room_key)).
const FORWARDED: &str = "m.forwarded_room_key";

/// How a forward that was accepted is counted; refusals are counted by [`Refusal::as_str`].
const ACCEPTED: &str = "accepted";

/// Why a forward is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is not what its type says.
    Malformed,
    /// It was encrypted for another user or device.
    NotForUs,
    /// It names another sender than the message that it came in.
    Sender,
    /// The device is not known, or has other keys than the message claims.
    Device,
    /// That session was not asked for, or not of that device.
    NotAsked,
    /// The device says itself that it did not make the session.
    NotTheMaker,
    /// The key is of another session, or contradicts the one that is there.
    BadKey,
}

impl Refusal {
    /// The word that the log and the figures use.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NotForUs => "not_for_us",
            Self::Sender => "wrong_sender",
            Self::Device => "unknown_device",
            Self::NotAsked => "not_asked",
            Self::NotTheMaker => "not_the_maker",
            Self::BadKey => "bad_key",
        }
    }
}

/// What a batch held.
#[derive(Debug, Default)]
pub(super) struct Forwards {
    /// Keys that were taken.
    pub(super) taken: Vec<RoomKey>,
    /// Sessions that judged forwards speak of.
    judged: BTreeSet<RoomKey>,
    refused: Vec<Refusal>,
}

/// An Olm message as it comes ([spec](https://spec.matrix.org/latest/client-server-api/#mroomencrypted)).
#[derive(Deserialize)]
struct Envelope {
    sender: OwnedUserId,
    #[serde(rename = "type")]
    event_type: String,
    content: EnvelopeContent,
}

#[derive(Deserialize)]
struct EnvelopeContent {
    algorithm: String,
    sender_key: String,
    ciphertext: std::collections::BTreeMap<String, OlmMessage>,
}

impl Envelope {
    /// Whether it is a message encrypted with Olm.
    fn is_olm(&self) -> bool {
        self.event_type == "m.room.encrypted" && self.content.algorithm == "m.olm.v1.curve25519-aes-sha2"
    }

    /// The device that it claims to be from: the user, and the device's Curve25519 key.
    fn device(&self) -> (&str, &str) {
        (self.sender.as_str(), &self.content.sender_key)
    }
}

/// The type of a decrypted message.
#[derive(Deserialize)]
struct Head {
    #[serde(rename = "type")]
    event_type: String,
}

/// Who we are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Us<'a> {
    /// Our user id.
    pub(super) user_id: &'a UserId,
    /// Our device's signing key.
    pub(super) ed25519: Ed25519PublicKey,
}

/// Who the message claims to be from, and whom we know by that.
#[derive(Clone, Copy, Debug)]
pub(super) struct From<'a> {
    /// The sender that the homeserver vouches for.
    pub(super) sender: &'a UserId,
    /// The Curve25519 key that the message was encrypted with, proven by decrypting it.
    pub(super) sender_key: Curve25519PublicKey,
    /// The keys of the device that was asked, as the store knows them.
    pub(super) device: Option<(Curve25519PublicKey, Ed25519PublicKey)>,
}

/// Whether a forward may be taken.
///
/// # Errors
/// Why not.
pub(super) fn judge(
    us: Us<'_>,
    from: &From<'_>,
    asked: &[KeyRequest],
    event: &DecryptedForwardedRoomKeyEvent,
) -> Result<(), Refusal> {
    if event.recipient != us.user_id || event.recipient_keys.ed25519 != us.ed25519 {
        return Err(Refusal::NotForUs);
    }
    if event.sender != from.sender {
        return Err(Refusal::Sender);
    }
    let Some((curve25519, ed25519)) = from.device else { return Err(Refusal::Device) };
    let told = event.sender_device_keys.as_ref();
    let told_otherwise = told
        .is_some_and(|keys| keys.curve25519_key() != Some(curve25519) || keys.ed25519_key() != Some(ed25519));
    if curve25519 != from.sender_key || event.keys.ed25519 != ed25519 || told_otherwise {
        return Err(Refusal::Device);
    }
    let ForwardedRoomKeyContent::MegolmV1AesSha2(content) = &event.content else {
        return Err(Refusal::Malformed);
    };
    let is_asked = |request: &KeyRequest| {
        request.room_id == content.room_id.as_str() && request.session_id == content.session_id
    };
    if !asked.iter().any(is_asked) {
        return Err(Refusal::NotAsked);
    }
    let is_maker = content.claimed_sender_key == from.sender_key
        && content.claimed_ed25519_key == ed25519
        && content.forwarding_curve25519_key_chain.is_empty();
    if is_maker { Ok(()) } else { Err(Refusal::NotTheMaker) }
}

impl Engine {
    /// Takes the forwards that we asked for out of a batch.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) async fn take_forwards(&self, to_device: &[Box<RawValue>]) -> Result<Forwards, CryptoError> {
        let mut forwards = Forwards::default();
        let envelopes = to_device.iter().filter_map(|raw| serde_json::from_str::<Envelope>(raw.get()).ok());
        let envelopes: Vec<_> = envelopes.filter(Envelope::is_olm).collect();
        let devices = envelopes.iter().map(Envelope::device).collect();
        let all_asked = key_requests::asked(self.whole.db(), self.account().id, &devices).await?;
        for envelope in envelopes {
            let (sender, device) = (&envelope.sender, envelope.device());
            let of_device = all_asked.iter().filter(|asked| (&*asked.user_id, &*asked.sender_key) == device);
            let asked: Vec<_> = of_device.cloned().collect();
            if asked.is_empty() {
                continue;
            }
            match self.look_into(&envelope, &asked, &mut forwards.judged).await? {
                None => {}
                Some(Ok(key)) => {
                    tracing::info!(sender = %sender, room.id = %key.room_id, session = key.session_id,
                        "a room key came that was asked for");
                    forwards.taken.push(key);
                }
                Some(Err(why)) => {
                    tracing::warn!(sender = %sender, why = why.as_str(), "a forwarded room key is refused");
                    forwards.refused.push(why);
                }
            }
        }
        Ok(forwards)
    }

    /// Decrypts a message of a device that was asked; `None` when it is no forward, or does not open.
    async fn look_into(
        &self,
        envelope: &Envelope,
        asked: &[KeyRequest],
        judged: &mut BTreeSet<RoomKey>,
    ) -> Result<Option<Result<RoomKey, Refusal>>, CryptoError> {
        let Ok(sender_key) = Curve25519PublicKey::from_base64(&envelope.content.sender_key) else {
            return Ok(None);
        };
        let own = self.machine.identity_keys();
        let Some(message) = envelope.content.ciphertext.get(&own.curve25519.to_base64()) else {
            return Ok(None);
        };
        let Some(plain) = self.open_on_a_copy(sender_key, message).await? else { return Ok(None) };
        if !serde_json::from_slice::<Head>(&plain).is_ok_and(|head| head.event_type == FORWARDED) {
            return Ok(None);
        }
        let Ok(event) = serde_json::from_slice::<DecryptedForwardedRoomKeyEvent>(&plain) else {
            return Ok(Some(Err(Refusal::Malformed)));
        };
        let ForwardedRoomKeyContent::MegolmV1AesSha2(content) = &event.content else {
            return Ok(Some(Err(Refusal::Malformed)));
        };
        let key = RoomKey { room_id: content.room_id.clone(), session_id: content.session_id.clone() };
        judged.insert(key.clone());
        let request = asked
            .iter()
            .find(|request| request.room_id == key.room_id.as_str() && request.session_id == key.session_id);
        // Devices do not change their keys, so one of the requests is as good as any to know the device by.
        let Some(known) = request.or(asked.first()) else { return Ok(Some(Err(Refusal::NotAsked))) };
        let device = self.machine.get_device(&envelope.sender, known.device_id.as_str().into(), None).await?;
        let keys = device.as_ref().and_then(|device| Some((device.curve25519_key()?, device.ed25519_key()?)));
        let us = Us { user_id: &self.account().user_id, ed25519: own.ed25519 };
        let from = From { sender: &envelope.sender, sender_key, device: keys };
        if let Err(why) = judge(us, &from, asked, &event) {
            return Ok(Some(Err(why)));
        }
        let (Some(device), Ok(exported)) = (device, ExportedRoomKey::try_from(event.content)) else {
            return Ok(Some(Err(Refusal::Malformed)));
        };
        Ok(Some(self.take_forward(key, exported, &device).await?))
    }

    /// Imports a forward that was found good, and notes that the device made its session.
    async fn take_forward(
        &self,
        key: RoomKey,
        exported: ExportedRoomKey,
        device: &Device,
    ) -> Result<Result<RoomKey, Refusal>, CryptoError> {
        if import::first_index(&exported).is_none() || self.import(vec![exported]).await?.bad_count > 0 {
            return Ok(Err(Refusal::BadKey));
        }
        let store = self.machine.store();
        let session = store.get_inbound_group_session(&key.room_id, &key.session_id).await?;
        if let Some(mut session) = session
            && matches!(session.sender_data, SenderData::UnknownDevice { .. })
        {
            // An import knows no maker. Here it is as proven as for a key that comes by itself.
            session.sender_data = SenderData::from_device(device);
            let changes = Changes { inbound_group_sessions: vec![session], ..Changes::default() };
            self.store.save_changes(changes).await.map_err(matrix_sdk_crypto::CryptoStoreError::from)?;
        }
        Ok(Ok(key))
    }

    /// Decrypts an Olm message and leaves no trace of that: what would be advanced is a copy of what is
    /// stored, and is thrown away.
    async fn open_on_a_copy(
        &self,
        sender_key: Curve25519PublicKey,
        message: &OlmMessage,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, CryptoError> {
        let store = &self.store;
        let failed = matrix_sdk_crypto::CryptoStoreError::from;
        let stored = store.get_sessions(&sender_key.to_base64()).await.map_err(failed)?.unwrap_or_default();
        for session in stored {
            let is_other = |message: &olm::PreKeyMessage| message.session_id() != session.session_id();
            if matches!(message, OlmMessage::PreKey(message) if is_other(message)) {
                continue;
            }
            let mut copy = olm::Session::from_pickle(session.pickle().await.pickle);
            if let Ok(plain) = copy.decrypt(message) {
                return Ok(Some(Zeroizing::new(plain)));
            }
        }
        let OlmMessage::PreKey(message) = message else { return Ok(None) };
        let Some(account) = store.load_account().await.map_err(failed)? else { return Ok(None) };
        let mut copy = olm::Account::from_pickle(account.pickle().pickle);
        let created = copy.create_inbound_session(SessionConfig::version_1(), sender_key, message);
        Ok(created.ok().map(|created| Zeroizing::new(created.plaintext)))
    }

    /// Counts what became of forwards, those that nobody asked for included.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) async fn count_forwards(
        &self,
        forwards: &Forwards,
        processed: &[ProcessedToDeviceEvent],
        keys: &[RoomKey],
    ) -> Result<(), CryptoError> {
        let mut outcomes: Vec<&str> = vec![ACCEPTED; forwards.taken.len()];
        outcomes.extend(forwards.refused.iter().map(|why| why.as_str()));
        for event in processed {
            let ProcessedToDeviceEvent::Decrypted { raw, .. } = event else { continue };
            let Ok(unasked) = serde_json::from_str::<Unasked>(raw.json().get()) else { continue };
            if unasked.event_type != FORWARDED {
                continue;
            }
            let key = RoomKey { room_id: unasked.content.room_id, session_id: unasked.content.session_id };
            if keys.contains(&key) {
                outcomes.push(ACCEPTED);
            } else if !forwards.judged.contains(&key) {
                tracing::warn!(sender = %unasked.sender, room.id = %key.room_id, session = key.session_id,
                    why = Refusal::NotAsked.as_str(), "a forwarded room key is refused");
                outcomes.push(Refusal::NotAsked.as_str());
            }
        }
        if outcomes.is_empty() {
            return Ok(());
        }
        let now = self.clock.now();
        let mut tx = self.whole.begin().await?;
        leases::check(&mut tx, &self.lease).await?;
        for outcome in outcomes {
            key_requests::count_forward(&mut tx, self.account().id, outcome, now).await?;
        }
        Ok(tx.commit().await?)
    }
}

/// A forward as the machine shows it, without its key.
#[derive(Deserialize)]
struct Unasked {
    sender: OwnedUserId,
    #[serde(rename = "type")]
    event_type: String,
    content: UnaskedContent,
}

#[derive(Deserialize)]
struct UnaskedContent {
    room_id: OwnedRoomId,
    session_id: String,
}

#[cfg(test)]
pub(super) mod tests;
