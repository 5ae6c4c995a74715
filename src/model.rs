//! Plain data that the stages hand to each other. No behaviour but parsing and naming.

mod account;
mod event;
mod message;

pub use account::{Account, AccountId, Role};
pub use event::{ClearEvent, Encryption, Trust};
pub use message::{Direction, Message, MessageId, MessageType, RoomContext, RoomKind, SenderProfile};
