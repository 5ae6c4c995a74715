use matrix_sdk_crypto::store::types::BackupDecryptionKey;
use secrecy::{ExposeSecret, SecretString};

/// What opens an account's secret storage: a recovery key, or a passphrase that one is derived from
/// ([spec](https://spec.matrix.org/latest/client-server-api/#key-representation)).
#[derive(Clone, Debug)]
pub struct RecoveryKey {
    text: SecretString,
    is_passphrase: bool,
}

/// Why a text is no [`RecoveryKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRecoveryKey {
    /// There is nothing.
    #[error("the recovery key is empty")]
    Empty,
    /// It looks like a recovery key, but a letter is wrong or missing.
    #[error(
        "the recovery key is mistyped: it has the form of one (letters and digits that begin with Es), but \
         its checksum or its length is wrong"
    )]
    Mistyped,
}

/// Letters and digits of a recovery key: 35 bytes in base58, give or take what a slip of the hand does.
const LENGTHS: std::ops::RangeInclusive<usize> = 40..=60;

impl RecoveryKey {
    /// Reads what a person typed. White space around it does not count, nor any inside a key.
    ///
    /// A text in the form of a key is taken for nothing else: a mistyped key must not become a passphrase.
    ///
    /// # Errors
    /// When it is empty, or a key with a wrong checksum or length.
    pub fn parse(text: &str) -> Result<Self, BadRecoveryKey> {
        let text = text.trim();
        if text.is_empty() {
            return Err(BadRecoveryKey::Empty);
        }
        let compact: String = text.split_whitespace().collect();
        // The SDK reads the first 35 bytes and leaves the rest; the canonical form shows that there is none.
        let key = BackupDecryptionKey::from_base58(&compact).ok();
        if key.is_some_and(|key| key.to_base58() == compact) {
            return Ok(Self { text: compact.into(), is_passphrase: false });
        }
        let grouped = text.split_whitespace().all(|group| group.len() <= 5) || !text.contains(' ');
        let plain = compact.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if compact.starts_with("Es") && LENGTHS.contains(&compact.len()) && plain && grouped {
            return Err(BadRecoveryKey::Mistyped);
        }
        Ok(Self { text: text.into(), is_passphrase: true })
    }

    /// Whether it is a passphrase and not a key.
    #[must_use]
    pub fn is_passphrase(&self) -> bool {
        self.is_passphrase
    }

    /// The key without spaces, or the passphrase.
    #[must_use]
    pub fn text(&self) -> &str {
        self.text.expose_secret()
    }

    /// As people read and write it: a key in groups of four.
    #[must_use]
    pub fn in_groups(&self) -> SecretString {
        if self.is_passphrase {
            return self.text.clone();
        }
        let letters: Vec<char> = self.text().chars().collect();
        let groups: Vec<String> = letters.chunks(4).map(|group| group.iter().collect()).collect();
        groups.join(" ").into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> String {
        BackupDecryptionKey::from_bytes(&[7; 32]).to_base58()
    }

    #[test]
    fn a_key_is_read_however_it_is_spaced() {
        let parsed = RecoveryKey::parse(&key()).unwrap();
        assert!(!parsed.is_passphrase());
        let grouped = parsed.in_groups();
        assert!(grouped.expose_secret().split(' ').all(|group| group.len() <= 5));
        let again = RecoveryKey::parse(&format!("  {}\n", grouped.expose_secret())).unwrap();
        assert_eq!(again.text(), key());
        assert!(!format!("{again:?}").contains(&key()));
    }

    #[test]
    fn a_mistyped_key_is_no_passphrase() {
        let good = key();
        let mut swapped = good.clone().into_bytes();
        swapped.swap(10, 20);
        let swapped = String::from_utf8(swapped).unwrap();
        assert_ne!(swapped, good);
        for bad in [swapped, good[..good.len() - 1].to_owned(), format!("{good}1"), good.replace('E', "E ")] {
            let parsed = RecoveryKey::parse(&bad);
            let is_good = parsed.as_ref().is_ok_and(|parsed| !parsed.is_passphrase());
            assert!(is_good == (bad.replace(' ', "") == good), "{bad}");
            assert!(is_good || parsed.is_err(), "{bad}");
        }
        assert_eq!(RecoveryKey::parse(" \n").unwrap_err(), BadRecoveryKey::Empty);
    }

    #[test]
    fn anything_else_is_a_passphrase() {
        for text in
            ["correct horse battery staple", "Es war einmal ein sehr langer Satz, der kein Key ist", "x"]
        {
            assert!(RecoveryKey::parse(text).unwrap().is_passphrase(), "{text}");
        }
    }
}
