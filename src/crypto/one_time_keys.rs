//! One-time keys on the homeserver: how many there are to be, and when it is asked how many are left.
//!
//! Whoever begins an Olm session with the device takes one away, and once none is left all share the fallback key.
//! Homeservers tell how many are left with what they push and in `/sync`, but never because one was taken: a burst would
//! find none for as long as a poll lasts. So the homeserver holds more of them than the SDK would upload, and it is asked
//! after some new sessions. Whatever it says is given to the SDK less the part that the SDK does not know of; the answer
//! to an upload too, so that uploads go on until there are enough.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use matrix_sdk_crypto::{EncryptionSyncChanges, vodozemac::olm::OlmMessage};
use ruma::{OneTimeKeyAlgorithm, UInt, api::client::sync::sync_events::DeviceLists};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::engine::{CryptoError, Engine, settings, watched};

/// One-time keys that the homeserver holds for a device when it has enough.
pub const ENOUGH_KEYS: u64 = 200;

/// Those of them that the SDK knows of: as many as vodozemac lets a device publish at once.
const KEYS_OF_THE_SDK: u64 = 50;

/// New Olm sessions after which the homeserver is asked for the count.
const MAX_UNCOUNTED_SESSIONS: usize = 20;

/// Olm sessions that are remembered, as each is named by every message until it is answered.
const MAX_KNOWN_SESSIONS: usize = 2_000;

/// The algorithm of the keys ([spec](https://spec.matrix.org/latest/client-server-api/#key-algorithms)).
const SIGNED_CURVE25519: &str = "signed_curve25519";

/// The Olm sessions that were begun with a device since its keys were counted; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyStock(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    known_sessions: HashSet<String>,
    uncounted_sessions: usize,
    /// The last count that the homeserver told when it was asked, or took an upload.
    last_count: Option<u64>,
}

impl KeyStock {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a session that a message begins, unless an earlier message did.
    fn add_session(&self, session_id: String) {
        let mut state = self.state();
        if state.known_sessions.len() >= MAX_KNOWN_SESSIONS {
            state.known_sessions.clear();
        }
        if state.known_sessions.insert(session_id) {
            state.uncounted_sessions += 1;
        }
    }

    /// Returns whether the keys are to be counted now.
    fn is_due(&self) -> bool {
        self.state().uncounted_sessions >= MAX_UNCOUNTED_SESSIONS
    }

    /// Notes a count that the homeserver told; returns whether an upload that it answers has helped.
    fn note_count(&self, count: u64) -> bool {
        let mut state = self.state();
        let has_grown = state.last_count.is_none_or(|last| last < count);
        state.last_count = Some(count);
        state.uncounted_sessions = 0;
        has_grown
    }
}

/// What an Olm message shows of its session.
#[derive(Deserialize)]
struct Envelope {
    content: EnvelopeContent,
}

#[derive(Deserialize)]
struct EnvelopeContent {
    ciphertext: BTreeMap<String, OlmMessage>,
}

/// Returns key counts as the SDK is to know them.
pub(super) fn for_the_sdk(counts: &BTreeMap<String, u64>) -> BTreeMap<OneTimeKeyAlgorithm, UInt> {
    let counts = counts.iter().map(|(name, count)| {
        let reserve = if name == SIGNED_CURVE25519 { ENOUGH_KEYS - KEYS_OF_THE_SDK } else { 0 };
        (name.as_str().into(), UInt::new_saturating(count.saturating_sub(reserve)))
    });
    counts.collect()
}

impl Engine {
    /// Counts the Olm sessions that messages begin with the device.
    pub(super) fn note_new_sessions(&self, to_device: &[Box<RawValue>]) {
        let own = self.machine.identity_keys().curve25519.to_base64();
        for raw in to_device {
            let Ok(mut envelope) = serde_json::from_str::<Envelope>(raw.get()) else { continue };
            if let Some(OlmMessage::PreKey(message)) = envelope.content.ciphertext.remove(&own) {
                self.key_stock.add_session(message.session_id());
            }
        }
    }

    /// Asks the homeserver for the count of one-time keys when so many sessions have begun that few may be left; what
    /// is missing is among the next outgoing requests.
    ///
    /// # Errors
    /// When the homeserver or the store fails.
    pub(super) async fn count_one_time_keys(&self) -> Result<(), CryptoError> {
        if self.key_stock.is_due() { self.recount_one_time_keys().await } else { Ok(()) }
    }

    /// Asks the homeserver for the count of one-time keys.
    ///
    /// # Errors
    /// When the homeserver or the store fails.
    pub(super) async fn recount_one_time_keys(&self) -> Result<(), CryptoError> {
        let mut counts = self.homeserver.one_time_key_counts(&self.identity).await?;
        // None are left of an algorithm that is not named.
        let count = *counts.entry(SIGNED_CURVE25519.to_owned()).or_default();
        self.key_stock.note_count(count);
        self.take_counts(&counts).await
    }

    /// Takes the counts in the answer to an upload, unless that has changed nothing: then asking again would be for ever.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) async fn take_counts_of_upload(
        &self,
        counts: &BTreeMap<OneTimeKeyAlgorithm, UInt>,
    ) -> Result<(), CryptoError> {
        let counts: BTreeMap<_, _> =
            counts.iter().map(|(name, count)| (name.to_string(), u64::from(*count))).collect();
        match counts.get(SIGNED_CURVE25519) {
            Some(count) if self.key_stock.note_count(*count) => self.take_counts(&counts).await,
            _ => Ok(()),
        }
    }

    async fn take_counts(&self, counts: &BTreeMap<String, u64>) -> Result<(), CryptoError> {
        let changes = EncryptionSyncChanges {
            to_device_events: Vec::new(),
            changed_devices: &DeviceLists::new(),
            one_time_keys_counts: &for_the_sdk(counts),
            unused_fallback_keys: None,
            next_batch_token: None,
        };
        watched(self.machine.receive_sync_changes(changes, &settings())).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_are_counted_after_so_many_new_sessions() {
        let stock = KeyStock::default();
        for n in 1..MAX_UNCOUNTED_SESSIONS {
            stock.add_session(n.to_string());
            stock.add_session(n.to_string());
        }
        assert!(!stock.is_due(), "a session is counted once, however many messages it sends");
        stock.add_session("another".to_owned());
        assert!(stock.is_due());
        assert!(stock.note_count(20));
        assert!(!stock.is_due());
        stock.add_session("1".to_owned());
        assert_eq!(stock.state().uncounted_sessions, 0, "counted before");
        for n in 0..=MAX_KNOWN_SESSIONS {
            stock.add_session(format!("of many {n}"));
        }
        assert!(stock.state().known_sessions.len() <= MAX_KNOWN_SESSIONS);
    }

    #[test]
    fn uploads_end_when_they_change_nothing() {
        let stock = KeyStock::default();
        assert!(stock.note_count(50));
        assert!(stock.note_count(100));
        assert!(!stock.note_count(100), "a homeserver that takes no more");
        assert!(!stock.note_count(90) && stock.note_count(91));
    }

    #[test]
    fn the_sdk_fills_up_what_is_missing_to_the_whole_stock() {
        let told =
            |count| for_the_sdk(&[(SIGNED_CURVE25519.to_owned(), count), ("other".to_owned(), count)].into());
        for (count, known) in [(0, 0), (50, 0), (150, 0), (151, 1), (199, 49), (200, 50), (1_000, 850)] {
            let counts = told(count);
            assert_eq!(u64::from(counts[&OneTimeKeyAlgorithm::SignedCurve25519]), known);
            assert_eq!(u64::from(counts[&OneTimeKeyAlgorithm::from("other")]), count);
        }
    }
}
