//! Who has the bot's recovery key: it was given to coucou, or coucou made it and somebody printed it, or nobody has.
//!
//! Printing it counts as writing it down. The note of that names the key by its hash, so that it says nothing of a key
//! that takes the place of the one that was printed. It is written without the crypto lease, by a command that may run
//! beside the service; a process that dies before the note is written reminds once more.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Scope, values};
use crate::{
    clock::Timestamp,
    model::{AccountId, RecoveryKey},
    store::{Store, StoreError},
};

/// The name under which the store keeps the bot's recovery key.
pub const KEPT_KEY: &str = "coucou.recovery_key";

/// The name under which it remembers that coucou made that key itself.
pub const MADE_HERE: &str = "coucou.recovery_key_made";

/// The name under which it notes that the key was printed.
const PRINTED: &str = "coucou.recovery_key_printed";

/// Who has the recovery key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryKeyHolder {
    /// It came from the settings, or from whoever restored the store.
    Given,
    /// coucou made it, and printed it then.
    Printed(Timestamp),
    /// coucou made it, and it was never printed: if the database is lost, so is the key.
    NobodyElse,
}

impl RecoveryKeyHolder {
    /// Returns the word for it in answers of the REST API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Given => "given",
            Self::Printed(_) => "printed",
            Self::NobodyElse => "not_printed",
        }
    }
}

/// The note that a key was printed.
#[derive(Debug, Serialize, Deserialize)]
struct Printed {
    /// The time, in milliseconds since the epoch.
    at: i64,
    /// The SHA-256 of the key, in hexadecimal.
    key: String,
}

fn hash(key: &RecoveryKey) -> String {
    Sha256::digest(key.text()).iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Returns the recovery key that the store keeps for an account; `None` before there is one.
///
/// # Errors
/// When the store fails.
pub async fn find(store: &Store, account: AccountId) -> Result<Option<RecoveryKey>, StoreError> {
    let scope = Scope::new(store.seal()?, account);
    let kept = values::find_custom(store.db(), &scope, KEPT_KEY).await?;
    Ok(kept.and_then(|text| RecoveryKey::parse(std::str::from_utf8(&text).ok()?).ok()))
}

/// Returns who has the recovery key of an account; `None` before there is one.
///
/// # Errors
/// When the store fails.
pub async fn holder(store: &Store, account: AccountId) -> Result<Option<RecoveryKeyHolder>, StoreError> {
    let Some(key) = find(store, account).await? else { return Ok(None) };
    let scope = Scope::new(store.seal()?, account);
    if values::find_custom(store.db(), &scope, MADE_HERE).await?.is_none() {
        return Ok(Some(RecoveryKeyHolder::Given));
    }
    let note = values::find_custom(store.db(), &scope, PRINTED).await?;
    let note = note.and_then(|note| serde_json::from_slice::<Printed>(&note).ok());
    Ok(Some(match note.filter(|note| note.key == hash(&key)) {
        Some(note) => RecoveryKeyHolder::Printed(Timestamp(note.at)),
        None => RecoveryKeyHolder::NobodyElse,
    }))
}

/// Notes that a recovery key was printed.
///
/// # Errors
/// When the store fails.
pub async fn note_printed(
    store: &Store,
    account: AccountId,
    key: &RecoveryKey,
    now: Timestamp,
) -> Result<(), StoreError> {
    let note = serde_json::to_vec(&Printed { at: now.0, key: hash(key) });
    let note = note.map_err(|_| StoreError::Corrupt("crypto_custom_values"))?;
    let mut tx = store.begin().await?;
    values::set_custom(&mut tx, &Scope::new(store.seal()?, account), PRINTED, note.into()).await?;
    tx.commit().await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use matrix_sdk_crypto::store::types::BackupDecryptionKey;
    use ruma::{device_id, user_id};

    use super::*;
    use crate::{
        model::Role,
        store::accounts,
        testing::{self, START},
    };

    async fn set(store: &Store, account: AccountId, name: &str, value: &str) {
        let mut tx = store.begin().await.unwrap();
        let scope = Scope::new(store.seal().unwrap(), account);
        values::set_custom(&mut tx, &scope, name, value.as_bytes().to_vec().into()).await.unwrap();
        tx.commit().await.unwrap();
    }

    #[tokio::test]
    async fn a_key_that_takes_the_place_of_a_printed_one_was_not_printed() {
        for test in testing::both().await {
            let store = &test.store;
            let mut tx = store.begin().await.unwrap();
            let user_id = user_id!("@coucou:example.org");
            let account = accounts::insert(&mut tx, user_id, &device_id!("D").to_owned(), Role::Bot, START)
                .await
                .unwrap();
            tx.commit().await.unwrap();
            assert_eq!(holder(store, account).await.unwrap(), None);
            let key = |seed: u8| BackupDecryptionKey::from_bytes(&[seed; 32]).to_base58();
            set(store, account, KEPT_KEY, &key(1)).await;
            assert_eq!(holder(store, account).await.unwrap(), Some(RecoveryKeyHolder::Given));
            set(store, account, MADE_HERE, "1").await;
            assert_eq!(holder(store, account).await.unwrap(), Some(RecoveryKeyHolder::NobodyElse));
            let printed = find(store, account).await.unwrap().unwrap();
            let at = START.plus(Duration::from_secs(1));
            note_printed(store, account, &printed, at).await.unwrap();
            assert_eq!(holder(store, account).await.unwrap(), Some(RecoveryKeyHolder::Printed(at)));
            set(store, account, KEPT_KEY, &key(2)).await;
            assert_eq!(holder(store, account).await.unwrap(), Some(RecoveryKeyHolder::NobodyElse));
        }
    }
}
