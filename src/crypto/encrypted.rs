//! Decrypting an event, whatever its sender wrote in it and around it.
//!
//! `matrix-sdk-crypto` reads events strictly, and not as they were: half a surrogate pair, a number that no type holds or a
//! time of 2⁶⁴−1 makes an authentic event one that it cannot decrypt, and numbers are rounded. So the plaintext is taken
//! from a copy of the SDK's session by vodozemac, which verifies it as it does for the SDK. Who sent it is for the SDK to say,
//! and so is why an event cannot be decrypted. A place in a session is used by one event.

use std::sync::Arc;

use matrix_sdk_common::deserialized_responses::EncryptionInfo;
use matrix_sdk_crypto::{
    CryptoStoreError, EventError, MegolmError,
    types::events::room::encrypted::EncryptedEvent,
    vodozemac::megolm::{DecryptionError, InboundGroupSession, MegolmMessage, SessionConfig},
};
use ruma::{EventId, OwnedUserId, RoomId, UserId, serde::Raw};
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};

use super::engine::{CryptoError, Decrypted, Engine, code_name, settings};
use crate::model::{json::EventBody, ledger::Malformed};

/// The algorithm of events in rooms ([spec](https://spec.matrix.org/latest/client-server-api/#mmegolmv1aes-sha2)).
const MEGOLM: &str = "m.megolm.v1.aes-sha2";

/// An `m.room.encrypted` event, as far as decrypting needs it.
#[derive(Debug)]
pub struct Encrypted {
    sender: OwnedUserId,
    algorithm: String,
    session_id: String,
    ciphertext: String,
    /// What the SDK gets to see.
    prepared: Raw<EncryptedEvent>,
    /// What stands outside of the encryption.
    outside: EventBody,
}

impl Encrypted {
    /// Reads an event of that id and sender.
    ///
    /// # Errors
    /// What it lacks, so that there is nothing to decrypt.
    pub fn read(event_id: &EventId, sender: &UserId, raw: &RawValue) -> Result<Self, Malformed> {
        let outside = EventBody::read(raw.get().as_bytes()).map_err(|_| Malformed::NotEncrypted)?;
        let text = |key: &str| outside.content.get(key).and_then(Value::as_str).map(str::to_owned);
        let algorithm = text("algorithm").ok_or(Malformed::NotEncrypted)?;
        let ciphertext = text("ciphertext").ok_or(Malformed::NotEncrypted)?;
        let session_id = text("session_id").ok_or(Malformed::NoSession)?;
        // The time plays no part in decrypting. What the event refers to is taken from the outside afterwards.
        let event = json!({
            "type": "m.room.encrypted", "event_id": event_id, "sender": sender, "origin_server_ts": 0,
            "content": {"algorithm": &algorithm, "ciphertext": &ciphertext, "session_id": &session_id},
        });
        let prepared = to_raw_value(&event).map_err(|_| Malformed::NotEncrypted)?;
        let prepared = Raw::from_json(prepared);
        Ok(Self { sender: sender.to_owned(), algorithm, session_id, ciphertext, prepared, outside })
    }
}

impl Engine {
    pub(super) async fn try_decrypt(
        &self,
        room_id: &RoomId,
        event: &Encrypted,
    ) -> Result<Decrypted, CryptoError> {
        let Some(plaintext) = self.plaintext(room_id, event).await? else {
            let result = self.machine.decrypt_room_event(&event.prepared, room_id, &settings()).await;
            // What the session does not open, the SDK does not open either, and it says why.
            return result.map_or_else(failed, |_| Ok(Decrypted::BadCiphertext));
        };
        match self.encryption_info(room_id, event).await? {
            Some(info) => self.read(room_id, event, &plaintext, &info).await,
            None => Ok(Decrypted::AwaitingKey),
        }
    }

    /// Makes of a plaintext what it says.
    async fn read(
        &self,
        room_id: &RoomId,
        event: &Encrypted,
        plaintext: &[u8],
        info: &EncryptionInfo,
    ) -> Result<Decrypted, CryptoError> {
        let Ok(mut body) = EventBody::read(plaintext) else {
            return Ok(Decrypted::Malformed(Malformed::NotJson));
        };
        match body.room_id.as_deref() {
            Some(said_in) if said_in == room_id => {}
            Some(_) => return Ok(Decrypted::OtherRoom),
            None => return Ok(Decrypted::Malformed(Malformed::NoRoom)),
        }
        body.adopt_relation(&event.outside);
        Ok(Decrypted::Clear(Box::new(self.clear(room_id, info, body).await?)))
    }

    /// Returns what the session of an event makes of its ciphertext, which it verifies; `None` when there is no session that
    /// made it.
    async fn plaintext(&self, room_id: &RoomId, event: &Encrypted) -> Result<Option<Vec<u8>>, CryptoError> {
        if event.algorithm != MEGOLM {
            return Ok(None);
        }
        let Ok(message) = MegolmMessage::from_base64(&event.ciphertext) else { return Ok(None) };
        let session = self.store.shared_inbound_group_session(room_id, &event.session_id).await;
        let Some(session) = session.map_err(CryptoStoreError::from)? else { return Ok(None) };
        // A copy of the session from this message on: the SDK gives no plaintext as it is.
        let key = session.export_at_index(message.message_index()).await;
        let mut session = InboundGroupSession::import(&key.session_key, SessionConfig::version_1());
        Ok(session.decrypt(&message).ok().map(|decrypted| decrypted.plaintext))
    }

    /// Returns what the SDK says of the sender of an event, as it does when it decrypts one.
    async fn encryption_info(
        &self,
        room_id: &RoomId,
        event: &Encrypted,
    ) -> Result<Option<Arc<EncryptionInfo>>, CryptoError> {
        match self.machine.get_session_encryption_info(room_id, &event.session_id, &event.sender).await {
            Ok(info) => Ok(Some(info)),
            Err(MegolmError::Store(error)) => Err(error.into()),
            Err(_) => Ok(None),
        }
    }
}

/// Returns what came of an attempt that the SDK gave up before it had a plaintext.
fn failed(error: MegolmError) -> Result<Decrypted, CryptoError> {
    Ok(match error {
        MegolmError::Store(error) => return Err(error.into()),
        MegolmError::MissingRoomKey(None) => Decrypted::AwaitingKey,
        MegolmError::MissingRoomKey(Some(code)) => Decrypted::Withheld(code_name(&code)),
        MegolmError::Decryption(DecryptionError::UnknownMessageIndex(..)) => Decrypted::UnknownIndex,
        MegolmError::EventError(EventError::UnsupportedAlgorithm) => Decrypted::UnsupportedAlgorithm,
        _ => Decrypted::BadCiphertext,
    })
}

#[cfg(test)]
mod tests;
