//! The gate through which every text passes before it is bound to a column.
//!
//! PostgreSQL stores no NUL and indexes nothing beyond 2704 bytes, and ids come from other servers, from inside of
//! ciphertext and from requests. A statement that fails for one of them fails its whole step, and would fail it again.

use ruma::OwnedEventId;
use sha2::{Digest, Sha256};

use super::RepairReason;

/// The most bytes of an id ([spec](https://spec.matrix.org/latest/appendices/#common-identifier-format)).
pub const MAX_ID: usize = 255;

/// The most bytes of a text in a column: five of them make one entry of an index.
const MAX_TEXT: usize = 512;

/// The most bytes of a token of the homeserver's, which no index has.
const MAX_TOKEN: usize = 64 << 10;

/// Bytes of a text that does not fit that are kept, so that people recognise it.
const KEPT: usize = 200;

/// A text that fits every column.
///
/// There is no other way to make one than through the gate, and a statement takes no other text. What fits stays as it
/// is. What does not is kept in part, with a hash of the whole: texts that differ stay different, and what is looked up
/// by is found under what it was stored under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(String);

impl Text {
    /// Passes a text through the gate.
    #[must_use]
    pub fn of(text: &str) -> Self {
        Self::bounded(text, MAX_TEXT)
    }

    /// Passes a token through the gate, which may be long and is never looked up by.
    #[must_use]
    pub fn of_token(token: &str) -> Self {
        Self::bounded(token, MAX_TOKEN)
    }

    fn bounded(text: &str, most: usize) -> Self {
        if text.len() <= most && !text.contains('\0') {
            return Self(text.to_owned());
        }
        tracing::warn!(bytes = text.len(), "cut down a text that no column holds");
        let mut kept =
            text.get(..text.floor_char_boundary(KEPT)).unwrap_or_default().replace('\0', "\u{fffd}");
        kept.push('#');
        for byte in Sha256::digest(text).iter().take(16) {
            let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or_default();
            kept.extend([digit(byte >> 4), digit(byte & 15)]);
        }
        Self(kept)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text, for a database driver.
    #[must_use]
    pub fn into_string(self) -> String {
        self.0
    }
}

/// Returns whether a text may be an id: what is longer, or holds a NUL, is one that no server gave.
#[must_use]
pub fn is_id(text: &str) -> bool {
    text.len() <= MAX_ID && !text.contains('\0')
}

/// Reads the id of an event to which another refers.
///
/// # Errors
/// [`RepairReason::BadId`] when it is none, so that the event is told without it.
pub fn read_event_id(text: &str) -> Result<OwnedEventId, RepairReason> {
    let id = Some(text).filter(|text| is_id(text)).and_then(|text| OwnedEventId::try_from(text).ok());
    id.ok_or(RepairReason::BadId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_stays_as_it_is() {
        for text in ["", "$event", "é🌷", &"x".repeat(MAX_TEXT)] {
            assert_eq!(Text::of(text).as_str(), text);
        }
        let token = "s".repeat(MAX_TOKEN);
        assert_eq!(Text::of_token(&token).as_str(), token);
    }

    #[test]
    fn what_does_not_fit_is_cut_and_stays_itself() {
        let texts = [
            "a\0b",
            "a\0c",
            &"x".repeat(513),
            &"x".repeat(514),
            &"é".repeat(4_000),
            &format!("{}\0", "y".repeat(300)),
        ];
        let mut seen = std::collections::HashSet::new();
        for text in texts {
            let fitted = Text::of(text);
            assert!(fitted.as_str().len() <= MAX_ID && !fitted.as_str().contains('\0'), "{fitted:?}");
            assert_eq!(fitted, Text::of(text), "the same every time");
            assert_eq!(Text::of(fitted.as_str()), fitted, "and again");
            assert!(seen.insert(fitted.into_string()), "no two are the same");
        }
        assert!(Text::of_token(&"s".repeat(MAX_TOKEN + 1)).as_str().len() < MAX_ID);
    }

    #[test]
    fn an_id_is_what_a_server_may_have_given() {
        assert_eq!(read_event_id("$a").unwrap(), "$a");
        for bad in ["", "a", "$\0", "$a\0b", &format!("${}", "x".repeat(255))] {
            assert_eq!(read_event_id(bad), Err(RepairReason::BadId), "{bad}");
        }
        assert!(read_event_id(&format!("${}", "x".repeat(254))).is_ok());
    }
}
