//! Plain data that the stages hand to each other. No behaviour but parsing and naming.

mod account;
mod pattern;
mod room;
mod sync;

pub use account::{Account, AccountId, Role};
pub use pattern::Pattern;
pub use room::{Membership, Relay, RelayPolicy};
pub use sync::SyncPage;
mod event;
mod message;

pub use event::{ClearEvent, Encryption, Trust};
pub use message::{Direction, Message, MessageId, MessageType, RoomContext, RoomKind, SenderProfile};
mod delivery;

pub use delivery::{DeliveryId, WebhookId};
