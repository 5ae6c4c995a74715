//! coucou: end-to-end encrypted bridge rooms, relayed as plaintext to webhooks.
//!
//! ```text
//! homeserver ─ PUT transaction ─▶ http/matrix ─▶ inbox ─▶ crypto ─▶ messages ─▶ outbox ─▶ webhook
//! ```
//!
//! Data flows one way. Stages that can fail apart hand over through a table: a row is the promise, a
//! notification only a hint to look sooner. Imports point down this list, never up; `tests/architecture.rs`
//! holds them to it.

pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod crypto;
pub mod homeserver;
pub mod http;
pub mod inbox;
pub mod lifecycle;
pub mod links;
pub mod media;
pub mod messages;
pub mod metrics;
pub mod model;
pub mod outbox;
pub mod rooms;
pub mod store;
pub mod telemetry;

#[cfg(test)]
mod schema;
#[cfg(test)]
mod testing;
