//! End-to-end encryption: one `OlmMachine` for each account, over a store of ours.

pub mod backup;
pub mod encrypted;
pub mod engine;
mod forward;
pub mod import;
pub mod keylane;
pub mod merge;
mod outgoing;
pub mod recovery;
pub mod requests;
pub mod secrets;
pub mod setup;
pub mod store;
pub mod trust;
mod unwedge;

pub use backup::KeyBackup;
pub use encrypted::Encrypted;
pub use engine::{Changes, Clear, CryptoError, Decrypted, ENOUGH_KEYS, Engine, RoomKey, SessionDevice};
pub use keylane::KeyLane;
pub use requests::Asker;
pub use secrets::{RecoveryError, SecretStorage};
