//! Plain data that the stages hand to each other. No behaviour but parsing and naming.

mod account;
mod pattern;

pub use account::{Account, AccountId, Role};
pub use pattern::Pattern;
