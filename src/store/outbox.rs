//! What is still to be delivered: `deliveries`, and `room_queues`, one row for each (webhook, room).
//!
//! A delivery is written in the transaction that writes its message ([`enqueue`]). A dispatcher claims
//! queues ([`claim_due`]), loads the first deliveries of each ([`load`]), sends them in order, and records
//! all outcomes of many queues at once ([`finish`]). A claim is a lease: a dispatcher that dies leaves its
//! queues to be claimed again when the lease ends, one that lives renews it ([`renew`]), and what it sent without recording is sent once more,
//! under the same id and with the same body. The lease's token keeps an outcome from counting twice.

pub mod admin;
mod claim;
mod enqueue;
mod finish;
mod rescue;
mod shared;
mod stats;

#[cfg(test)]
pub(crate) mod tests;

pub use claim::{Claimed, Loaded, claim_due, load, next_due, renew};
pub use enqueue::{Queued, enqueue};
pub use finish::{Attempted, Fate, Finished, finish};
pub use rescue::{MAX_HOLD, claim_any, cut_deadlines, failing, release, trim};
pub use shared::{SHARED, begin_batches, share_out};
pub use stats::{Backlog, backlogs, dead};
