//! Plain data that the stages hand to each other. No behaviour but parsing and naming.

mod account;

pub use account::{Account, AccountId, Role};
