//! From rows to signed calls: sends what is in `deliveries` to the webhooks.
//!
//! A [`Dispatcher`] claims the queues of (webhook, room) pairs that are due, sends each queue's deliveries
//! one after the other, many queues at once, and records the outcomes in batches. So order holds in a room,
//! and a room whose calls fail or hang delays no other. Any number of instances dispatch from one database.
//!
//! Every delivery is made at least once: it stays pending until a 2xx has been recorded, and is tried again
//! by its webhook's schedule ([`retry`]); after the last attempt it is dead, and kept, and its room goes on. While a
//! webhook takes nothing at all, one room is tried now and then (`breaker`); once it works again, all go at once.
//! One that answers 410 is disabled. A process that dies half-way leaves a lease
//! that ends by itself within seconds; what it sent without recording is then sent once more, with the same `webhook-id`
//! and the same body, by which the receiver knows it.

mod batch;
mod breaker;
mod caller;
mod care;
mod claims;
mod destination;
pub mod retry;
mod run;
pub(crate) mod shape;
mod signers;
mod sink;
#[cfg(test)]
mod tests;
mod webhook;
mod worker;

pub use caller::Client;
pub use destination::Destination;
pub use signers::Signers;
pub use sink::{Body, Outcome, SendError, Sink, WebhookRequest};
pub use webhook::{BadWebhook, WebhookSink, client};
pub use worker::{Config, Dispatcher, Progress};
