//! Encryption at rest.
//!
//! A random data key seals every secret and every plaintext with XChaCha20-Poly1305. The data key itself is
//! kept in `seal_keys`, sealed under a key that Argon2id derives from the pickle key. So the pickle key can
//! change without touching the data, and a wrong one is noticed at once.
//!
//! What is sealed begins with a header, `[version, key id (4 bytes, big endian)]`, so that data keys can be
//! replaced one after the other, and is bound to the table and row it belongs to: a value moved to another
//! row does not open.
//!
//! Keys for other purposes are [derived](Seal::derive) from the data keys, each under a label of its own.

use std::{collections::BTreeMap, fmt};

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::{
    AeadInPlace, Key, KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, OsRng, Payload, rand_core::RngCore},
};
use hmac::{Hmac, Mac};
use rand::Rng;
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{Db, StoreError, db::values};
use crate::clock::Timestamp;

const VERSION: u8 = 1;
const HEADER: usize = 5;
const NONCE: usize = 24;
const TAG: usize = 16;

/// A key that was derived from a data key, for one purpose.
pub type DerivedKey = Zeroizing<[u8; 32]>;

/// What the first derivation from a data key is made under.
const ROOT: &[u8] = b"coucou derived keys v1";

/// The data keys of a store.
pub struct Seal {
    current: u32,
    keys: BTreeMap<u32, DataKey>,
}

struct DataKey {
    cipher: XChaCha20Poly1305,
    /// What other keys are derived from: not the data key itself, which only the cipher has.
    root: DerivedKey,
}

impl DataKey {
    fn new(key: &[u8]) -> Option<Self> {
        Some(Self { cipher: XChaCha20Poly1305::new_from_slice(key).ok()?, root: derive(key, ROOT)? })
    }
}

/// HMAC as a key derivation function, as [RFC 5869](https://www.rfc-editor.org/rfc/rfc5869#section-2.3) expands.
fn derive(key: &[u8], label: &[u8]) -> Option<DerivedKey> {
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(key).ok()?;
    mac.update(label);
    Some(Zeroizing::new(mac.finalize().into_bytes().into()))
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seal").field("current", &self.current).finish_non_exhaustive()
    }
}

impl Seal {
    /// Encrypts `plaintext` for one row of one table.
    ///
    /// # Errors
    /// Never in practice: only when the plaintext exceeds the cipher's 256 GiB.
    pub fn seal(&self, table: &'static str, row: &str, plaintext: &[u8]) -> Result<Vec<u8>, StoreError> {
        let key = self.keys.get(&self.current).ok_or(StoreError::Sealed(table))?;
        seal_with(&key.cipher, self.current, table, row, plaintext)
    }

    /// Decrypts what [`Seal::seal`] made for the same table and row.
    ///
    /// # Errors
    /// [`StoreError::Sealed`] when it was made for another row, with another key, or was changed.
    pub fn open(&self, table: &'static str, row: &str, sealed: &[u8]) -> Result<Vec<u8>, StoreError> {
        let key_id = key_id(sealed).ok_or(StoreError::Sealed(table))?;
        let key = self.keys.get(&key_id).ok_or(StoreError::Sealed(table))?;
        open_with(&key.cipher, table, row, sealed)
    }

    /// Keys for a purpose, which `label` names: the first one is to be used, the others belong to older data keys.
    ///
    /// They are the same in every process on the store, after every start, and when the pickle key changes.
    #[must_use]
    pub fn derive(&self, label: &str) -> Vec<DerivedKey> {
        // Newest first: the current one is the last.
        self.keys.values().rev().filter_map(|key| derive(&*key.root, label.as_bytes())).collect()
    }
}

fn key_id(sealed: &[u8]) -> Option<u32> {
    let header: &[u8; HEADER] = sealed.first_chunk()?;
    let [VERSION, id @ ..] = header else { return None };
    Some(u32::from_be_bytes(*id))
}

fn associated(table: &str, row: &str) -> Vec<u8> {
    // A table's name has no NUL, so no two pairs give the same bytes.
    [table.as_bytes(), b"\0", row.as_bytes()].concat()
}

fn seal_with(
    cipher: &XChaCha20Poly1305,
    key_id: u32,
    table: &'static str,
    row: &str,
    plaintext: &[u8],
) -> Result<Vec<u8>, StoreError> {
    let nonce: [u8; NONCE] = rand::rng().random();
    let mut sealed = Vec::with_capacity(HEADER + NONCE + plaintext.len() + TAG);
    sealed.push(VERSION);
    sealed.extend_from_slice(&key_id.to_be_bytes());
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(plaintext);
    let body = sealed.get_mut(HEADER + NONCE..).unwrap_or_default();
    let tag = cipher.encrypt_in_place_detached(XNonce::from_slice(&nonce), &associated(table, row), body);
    sealed.extend_from_slice(&tag.map_err(|_| StoreError::Sealed(table))?);
    Ok(sealed)
}

fn open_with(
    cipher: &XChaCha20Poly1305,
    table: &'static str,
    row: &str,
    sealed: &[u8],
) -> Result<Vec<u8>, StoreError> {
    let body = sealed.get(HEADER..).ok_or(StoreError::Sealed(table))?;
    let (nonce, ciphertext) = body.split_at_checked(NONCE).ok_or(StoreError::Sealed(table))?;
    let payload = Payload { msg: ciphertext, aad: &associated(table, row) };
    cipher.decrypt(XNonce::from_slice(nonce), payload).map_err(|_| StoreError::Sealed(table))
}

/// The cipher that seals data keys, from the pickle key.
fn wrapping_cipher(pickle_key: &SecretString, salt: &[u8]) -> Result<XChaCha20Poly1305, StoreError> {
    let mut key = Zeroizing::new([0_u8; 32]);
    // RFC 9106's second recommendation is too much for a 512 MiB container; OWASP's 19 MiB, 2 passes is not.
    let params =
        Params::new(19 * 1024, 2, 1, Some(key.len())).map_err(|_| StoreError::Corrupt("seal_keys"))?;
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(pickle_key.expose_secret().as_bytes(), salt, &mut *key)
        .map_err(|_| StoreError::Corrupt("seal_keys"))?;
    Ok(XChaCha20Poly1305::new(Key::from_slice(&*key)))
}

/// Loads the data keys, making the first one in an empty store.
///
/// # Errors
/// [`StoreError::WrongPickleKey`] when they do not open.
pub(super) async fn unlock(db: &Db, pickle_key: &SecretString, now: Timestamp) -> Result<Seal, StoreError> {
    if let Some(seal) = open(db, pickle_key).await? {
        return Ok(seal);
    }
    let made = make_first_key(db, pickle_key, now).await?;
    // Two instances may have made one each; the table keeps only the first.
    open_knowing(db, pickle_key, Some(made)).await?.ok_or(StoreError::Corrupt("seal_keys"))
}

/// Loads the data keys; `None` when there are none yet.
///
/// # Errors
/// [`StoreError::WrongPickleKey`] when they do not open.
pub(super) async fn open(db: &Db, pickle_key: &SecretString) -> Result<Option<Seal>, StoreError> {
    open_knowing(db, pickle_key, None).await
}

/// The cipher that belongs to a salt. To make it takes a moment, and 19 MiB.
type Known = (Vec<u8>, XChaCha20Poly1305);

async fn open_knowing(
    db: &Db,
    pickle_key: &SecretString,
    known: Option<Known>,
) -> Result<Option<Seal>, StoreError> {
    const FIND: &str = "SELECT key_id, salt, wrapped FROM seal_keys ORDER BY key_id";
    let rows: Vec<(i64, Vec<u8>, Vec<u8>)> = db.fetch_all(FIND, vec![]).await?;
    let mut keys = BTreeMap::new();
    for (id, salt, wrapped) in rows {
        let id = u32::try_from(id).map_err(|_| StoreError::Corrupt("seal_keys"))?;
        let cipher = match &known {
            Some((of, cipher)) if *of == salt => cipher.clone(),
            _ => wrapping_cipher(pickle_key, &salt)?,
        };
        let data_key = open_with(&cipher, "seal_keys", &id.to_string(), &wrapped)
            .map(Zeroizing::new)
            .map_err(|_| StoreError::WrongPickleKey)?;
        keys.insert(id, DataKey::new(&data_key).ok_or(StoreError::Corrupt("seal_keys"))?);
    }
    Ok(keys.last_key_value().map(|(current, _)| *current).map(|current| Seal { current, keys }))
}

async fn make_first_key(db: &Db, pickle_key: &SecretString, now: Timestamp) -> Result<Known, StoreError> {
    let mut salt = [0_u8; 16];
    OsRng.fill_bytes(&mut salt);
    let data_key = Zeroizing::new(XChaCha20Poly1305::generate_key(OsRng).to_vec());
    let cipher = wrapping_cipher(pickle_key, &salt)?;
    let wrapped = seal_with(&cipher, 1, "seal_keys", "1", &data_key)?;
    let mut tx = db.begin().await?;
    tx.execute(
        "INSERT INTO seal_keys (key_id, salt, wrapped, created_at) VALUES (1, $1, $2, $3) \
         ON CONFLICT (key_id) DO NOTHING",
        values![salt.to_vec(), wrapped, now],
    )
    .await?;
    tx.commit().await?;
    Ok((salt.to_vec(), cipher))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal() -> Seal {
        let key = |_| DataKey::new(&XChaCha20Poly1305::generate_key(OsRng)).unwrap();
        Seal { current: 3, keys: [(2, key(2)), (3, key(3))].into() }
    }

    #[test]
    fn derived_keys_are_of_their_label_and_data_key_and_the_current_one_comes_first() {
        let seal = seal();
        let one = seal.derive("one");
        assert_eq!(one, seal.derive("one"));
        assert_eq!(one[0], derive(&*seal.keys[&3].root, b"one").unwrap());
        let two = seal.derive("two");
        assert!(one.len() == 2 && one.iter().all(|key| !two.contains(key)) && one[0] != one[1]);
    }

    #[test]
    fn opens_only_in_the_row_it_was_sealed_for() {
        let seal = seal();
        let sealed = seal.seal("messages", "one", b"hello").unwrap();
        assert_eq!(seal.open("messages", "one", &sealed).unwrap(), b"hello");
        assert!(seal.open("messages", "two", &sealed).is_err());
        assert!(seal.open("inbox", "one", &sealed).is_err());
        assert_eq!(&sealed[..5], [1, 0, 0, 0, 3]);
    }

    #[test]
    fn garbage_is_refused() {
        let seal = seal();
        let mut sealed = seal.seal("messages", "one", b"hello").unwrap();
        *sealed.last_mut().unwrap() ^= 1;
        for garbage in [&sealed[..], b"", b"\x01\0\0\0\x03", b"\x01\0\0\0\x09 other key", b"\x02rest"] {
            assert!(seal.open("messages", "one", garbage).is_err());
        }
    }
}
