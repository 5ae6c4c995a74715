//! Plain data that the stages hand to each other. No behaviour but parsing and naming.

mod account;
mod delivery;

pub use account::{Account, AccountId, Role};
pub use delivery::{DeliveryId, WebhookId};
