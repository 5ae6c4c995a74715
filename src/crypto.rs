//! End-to-end encryption: one `OlmMachine` for each account, over a store of ours.

pub mod backup;
pub mod engine;
pub mod keylane;
mod outgoing;
pub mod recovery;
pub mod secrets;
pub mod setup;
pub mod store;
pub mod trust;

pub use backup::KeyBackup;
pub use engine::{Changes, Clear, CryptoError, Decrypted, Engine, RoomKey, SessionDevice};
pub use keylane::KeyLane;
pub use secrets::{RecoveryError, SecretStorage};
