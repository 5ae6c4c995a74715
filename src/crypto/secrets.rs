//! Secret storage: secrets of a user, encrypted in the account data by one key
//! ([spec](https://spec.matrix.org/latest/client-server-api/#storage)).
//!
//! Made in an order that leaves nothing half-way: the secrets first, then what describes the key, and last
//! that it is the one to use. A process that dies in between has changed nothing that anybody looks at.

use matrix_sdk_crypto::secret_storage::{AesHmacSha2EncryptedData, DecodeError, SecretStorageKey};
use rand::{Rng, distr::Alphanumeric};
use ruma::{
    OwnedUserId, UserId,
    events::{
        EventContentFromType,
        secret::request::SecretName,
        secret_storage::key::{
            SecretStorageEncryptionAlgorithm, SecretStorageKeyEventContent,
            SecretStorageV1AesHmacSha2Properties,
        },
    },
    serde::Base64,
};
use serde_json::{Value as Json, json, value::to_raw_value};
use tokio::task::spawn_blocking;
use zeroize::Zeroizing;

use super::engine::CryptoError;
use crate::{
    homeserver::{Homeserver, HomeserverError},
    model::{BadRecoveryKey, RecoveryKey},
};

/// Which key is the one to use.
const DEFAULT_KEY: &str = "m.secret_storage.default_key";

/// Rounds of key derivation that a homeserver may ask for; clients use half a million.
const MOST_ROUNDS: u64 = 10_000_000;

/// The private cross-signing keys.
pub(super) const CROSS_SIGNING: [SecretName; 3] = [
    SecretName::CrossSigningMasterKey,
    SecretName::CrossSigningSelfSigningKey,
    SecretName::CrossSigningUserSigningKey,
];

/// Why an account cannot be recovered, or not made recoverable.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The recovery key is none.
    #[error(transparent)]
    Key(#[from] BadRecoveryKey),
    /// The account has no secret storage.
    #[error("{0} has no secret storage on the homeserver: there is nothing that a recovery key could open")]
    NoStorage(OwnedUserId),
    /// The recovery key, or the passphrase, is another account's or an older one.
    #[error(
        "the recovery key does not open the secret storage of {0}: it is the key of another account, or was replaced since"
    )]
    WrongKey(OwnedUserId),
    /// What was asked for is not in there.
    #[error("the secret storage of {user_id} does not hold {secret}")]
    NoSecret {
        /// Whose storage.
        user_id: OwnedUserId,
        /// Which secret.
        secret: String,
    },
    /// There is no backup of room keys.
    #[error("{0} has no key backup on the homeserver that its secret storage opens")]
    NoBackup(OwnedUserId),
    /// What the homeserver holds cannot be what it should be.
    #[error("{0}")]
    Unusable(String),
    /// The homeserver, the store or the machine failed.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

impl From<HomeserverError> for RecoveryError {
    fn from(error: HomeserverError) -> Self {
        Self::Crypto(error.into())
    }
}

impl From<matrix_sdk_crypto::CryptoStoreError> for RecoveryError {
    fn from(error: matrix_sdk_crypto::CryptoStoreError) -> Self {
        Self::Crypto(error.into())
    }
}

impl From<crate::store::StoreError> for RecoveryError {
    fn from(error: crate::store::StoreError) -> Self {
        Self::Crypto(error.into())
    }
}

/// A user's secret storage, opened.
#[derive(Debug)]
pub struct SecretStorage {
    homeserver: Homeserver,
    user_id: OwnedUserId,
    key: SecretStorageKey,
}

impl SecretStorage {
    /// Whether a user has one. A user that the homeserver does not know has none.
    ///
    /// # Errors
    /// When the homeserver cannot be reached or refuses.
    pub async fn is_there(homeserver: &Homeserver, user_id: &UserId) -> Result<bool, HomeserverError> {
        Ok(default_key(homeserver, user_id).await?.is_some())
    }

    /// Opens a user's secret storage.
    ///
    /// # Errors
    /// [`RecoveryError::NoStorage`] and [`RecoveryError::WrongKey`]; when the homeserver fails.
    pub async fn open(
        homeserver: &Homeserver,
        user_id: &UserId,
        key: &RecoveryKey,
    ) -> Result<Self, RecoveryError> {
        let Some(key_id) = default_key(homeserver, user_id).await? else {
            return Err(RecoveryError::NoStorage(user_id.to_owned()));
        };
        let event_type = format!("m.secret_storage.key.{key_id}");
        let Some(description) = homeserver.account_data(user_id, &event_type).await? else {
            return Err(RecoveryError::NoStorage(user_id.to_owned()));
        };
        let unusable = || {
            RecoveryError::Unusable(format!("the secret storage of {user_id} is of a kind that is not known"))
        };
        let raw = to_raw_value(&description).map_err(|_| unusable())?;
        let description =
            SecretStorageKeyEventContent::from_parts(&event_type, &raw).map_err(|_| unusable())?;
        let rounds = description.passphrase.as_ref().map_or(0, |passphrase| passphrase.iterations.into());
        if rounds > MOST_ROUNDS {
            return Err(unusable());
        }
        let text = Zeroizing::new(key.text().to_owned());
        // Deriving a key from a passphrase takes a good part of a second.
        let opened = spawn_blocking(move || SecretStorageKey::from_account_data(&text, description));
        let key = match opened.await.map_err(CryptoError::from)? {
            Ok(key) => key,
            Err(
                DecodeError::UnsupportedAlgorithm(_) | DecodeError::IvLength(..) | DecodeError::MacLength(..),
            ) => {
                return Err(unusable());
            }
            Err(_) => return Err(RecoveryError::WrongKey(user_id.to_owned())),
        };
        Ok(Self { homeserver: homeserver.clone(), user_id: user_id.to_owned(), key })
    }

    /// Makes a secret storage that `key` opens, with these secrets, in place of the one in use.
    ///
    /// # Errors
    /// When the homeserver fails; the one in use is then still in use.
    pub async fn create(
        homeserver: &Homeserver,
        user_id: &UserId,
        key: &RecoveryKey,
        secrets: &[(SecretName, Zeroizing<String>)],
    ) -> Result<Self, RecoveryError> {
        let (text, is_passphrase) = (Zeroizing::new(key.text().to_owned()), key.is_passphrase());
        let made = spawn_blocking(move || {
            if is_passphrase { Ok(SecretStorageKey::new_from_passphrase(&text)) } else { describe(&text) }
        });
        let key = made.await.map_err(CryptoError::from)?;
        // The key was checked when it was read.
        let key = key.map_err(|_| BadRecoveryKey::Mistyped)?;
        let storage = Self { homeserver: homeserver.clone(), user_id: user_id.to_owned(), key };
        for (name, secret) in secrets {
            storage.put(name, secret).await?;
        }
        let description = serde_json::to_value(storage.key.event_content());
        let description =
            description.map_err(matrix_sdk_crypto::OlmError::from).map_err(CryptoError::from)?;
        let key_id = storage.key.key_id();
        homeserver.set_account_data(user_id, &format!("m.secret_storage.key.{key_id}"), description).await?;
        homeserver.set_account_data(user_id, DEFAULT_KEY, json!({ "key": key_id })).await?;
        Ok(storage)
    }

    /// A secret, when it is there.
    ///
    /// # Errors
    /// When it does not open, or the homeserver fails.
    pub async fn get(&self, name: &SecretName) -> Result<Option<Zeroizing<String>>, RecoveryError> {
        let Some(mut content) = self.homeserver.account_data(&self.user_id, name.as_str()).await? else {
            return Ok(None);
        };
        let Some(encrypted) =
            content.pointer_mut("/encrypted").and_then(|all| all.get_mut(self.key.key_id()))
        else {
            return Ok(None);
        };
        let data: Option<AesHmacSha2EncryptedData> = serde_json::from_value(encrypted.take()).ok();
        let plain = data.and_then(|data| self.key.decrypt(&data, name).ok()).map(Zeroizing::new);
        let text = plain.and_then(|plain| String::from_utf8(plain.to_vec()).ok()).map(Zeroizing::new);
        let text = text.ok_or_else(|| {
            RecoveryError::Unusable(format!("{name} in the secret storage of {} does not open", self.user_id))
        })?;
        Ok(Some(text))
    }

    /// A secret that must be there.
    ///
    /// # Errors
    /// [`RecoveryError::NoSecret`] when it is not, and as [`SecretStorage::get`].
    pub async fn need(&self, name: &SecretName) -> Result<Zeroizing<String>, RecoveryError> {
        self.get(name).await?.ok_or_else(|| RecoveryError::NoSecret {
            user_id: self.user_id.clone(),
            secret: name.to_string(),
        })
    }

    /// Puts a secret, unless it is there as it is.
    ///
    /// # Errors
    /// When the homeserver fails.
    pub async fn put(&self, name: &SecretName, secret: &str) -> Result<(), RecoveryError> {
        if matches!(self.get(name).await, Ok(Some(there)) if *there == secret) {
            return Ok(());
        }
        let data = self.key.encrypt(secret.as_bytes().to_vec(), name);
        let data = serde_json::to_value(data);
        let data = data.map_err(matrix_sdk_crypto::OlmError::from).map_err(CryptoError::from)?;
        // What the same secret is encrypted with besides stays, as long as this is not the key in use.
        let there = self.homeserver.account_data(&self.user_id, name.as_str()).await?;
        let mut all = match there.and_then(|mut content| Some(content.get_mut("encrypted")?.take())) {
            Some(Json::Object(all)) => all,
            _ => serde_json::Map::new(),
        };
        all.insert(self.key.key_id().to_owned(), data);
        let content = json!({ "encrypted": all });
        Ok(self.homeserver.set_account_data(&self.user_id, name.as_str(), content).await?)
    }
}

async fn default_key(homeserver: &Homeserver, user_id: &UserId) -> Result<Option<String>, HomeserverError> {
    let content = match homeserver.account_data(user_id, DEFAULT_KEY).await {
        // A user of the service that was never registered.
        Err(HomeserverError::Status { status: 403, .. }) => None,
        content => content?,
    };
    Ok(content.and_then(|content| Some(content.get("key")?.as_str()?.to_owned())))
}

/// Makes the description of a key that exists, so that a wrong one is recognised: the SDK makes it for keys of
/// its own making only. It is the encryption of 32 zeros
/// ([spec](https://spec.matrix.org/latest/client-server-api/#msecret_storagev1aes-hmac-sha2-1)).
fn describe(key: &str) -> Result<SecretStorageKey, DecodeError> {
    let key_id: String = rand::rng().sample_iter(Alphanumeric).take(32).map(char::from).collect();
    let content = |iv, mac| {
        let properties = SecretStorageV1AesHmacSha2Properties::new(iv, mac);
        let algorithm = SecretStorageEncryptionAlgorithm::V1AesHmacSha2(properties);
        SecretStorageKeyEventContent::new(key_id.clone(), algorithm)
    };
    let bare = SecretStorageKey::from_account_data(key, content(None, None))?;
    let zeros = bare.encrypt(vec![0; 32], &SecretName::from(""));
    let (iv, mac) = (Base64::new(zeros.iv.to_vec()), Base64::new(zeros.mac.to_vec()));
    SecretStorageKey::from_account_data(key, content(Some(iv), Some(mac)))
}

#[cfg(test)]
mod tests {
    use matrix_sdk_crypto::store::types::BackupDecryptionKey;

    use super::*;

    #[test]
    fn a_described_key_knows_itself_and_no_other() {
        let ours = BackupDecryptionKey::from_bytes(&[7; 32]).to_base58();
        let other = BackupDecryptionKey::from_bytes(&[8; 32]).to_base58();
        let described = describe(&ours).unwrap();
        let content = described.event_content().clone();
        let name = SecretName::RecoveryKey;
        let data = described.encrypt(b"a secret".to_vec(), &name);
        let again = SecretStorageKey::from_account_data(&ours, content.clone()).unwrap();
        assert_eq!(again.decrypt(&data, &name).unwrap(), b"a secret");
        assert!(matches!(SecretStorageKey::from_account_data(&other, content), Err(DecodeError::Mac(_))));
    }
}
