//! The first stage: what comes in is made durable, then answered, then worked through.
//!
//! A transaction of the homeserver, or a page of the key lane, becomes a row before anybody is told that it
//! was taken. A process that dies before the commit has promised nothing, and the sender sends again; one that
//! dies after it finds the row.

pub mod accept;
pub mod batch;
mod claims;
mod commit;
mod decrypt;
pub mod describe;
pub mod envelope;
pub mod event;
mod flow;
mod heights;
mod imports;
mod known;
mod ledger;
pub mod pins;
mod presence;
mod reading;
mod redact;
mod relay;
pub mod rooms;
mod seen;
mod silence;
mod state;
mod takebacks;
#[cfg(test)]
mod tests;
pub mod trial;
pub mod verdict;
pub mod worker;

pub use accept::{AcceptError, Inbox};
pub use envelope::{Envelope, EnvelopeError};
pub use worker::{Worker, WorkerParts};
