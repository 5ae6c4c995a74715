//! Plain data that the stages hand to each other. No behaviour but parsing and naming.

mod access;
mod account;
mod delivery;
mod event;
mod homeserver;
pub mod json;
pub mod ledger;
mod media;
mod message;
pub mod naming;
mod pattern;
mod recovery;
mod room;
mod silence;
mod sync;
pub mod text;
mod trust;
mod webhook;

pub use access::Scope;
pub use account::{Account, AccountId, Role};
pub use delivery::{DeliveryId, WebhookId};
pub use event::{ClearEvent, Encryption, Trust};
pub use homeserver::HomeserverState;
pub use json::{JsonObject, RawObject, Repair, RepairReason};
pub use media::MediaPart;
pub use message::{Direction, Message, MessageId, MessageType, RoomContext, RoomKind, SenderProfile};
pub use pattern::Pattern;
pub use recovery::{BadRecoveryKey, RecoveryKey};
pub use room::{Inviter, Membership, Relay, RelayPolicy};
pub use silence::{Alarm, AlarmReason, SilenceSettings};
pub use sync::SyncPage;
pub use trust::{Action, TrustPolicy};
pub use webhook::{Batch, Detail, Filter, Flow, Format, Ordering, Route, Schedule};
