//! End-to-end encryption: one `OlmMachine` for each account, over a store of ours.

pub mod backup;
pub mod bundles;
pub mod claims;
pub mod encrypted;
pub mod engine;
mod forward;
pub mod import;
pub mod keylane;
pub mod merge;
mod one_time_keys;
mod outgoing;
pub mod recovery;
pub mod requests;
pub mod secrets;
pub mod setup;
pub mod store;
pub mod trust;
mod unwedge;

pub use backup::KeyBackup;
pub use bundles::KeyBundles;
pub use claims::Claim;
pub use encrypted::Encrypted;
pub use engine::{Changes, Clear, CryptoError, Decrypted, Engine, RoomKey, SessionDevice};
pub use keylane::KeyLane;
pub use one_time_keys::ENOUGH_KEYS;
pub use requests::Asker;
pub use secrets::{RecoveryError, SecretStorage};
