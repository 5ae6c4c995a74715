use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId};
use serde::Serialize;

use super::{JsonObject, Repair};
use crate::clock::Timestamp;

/// A room event in the clear: decrypted, or never encrypted. What a message is made of.
///
/// The ids are checked by whoever parses the wire event; `content` is whatever its sender wrote and may
/// have any shape.
#[derive(Clone, Debug)]
pub struct ClearEvent {
    /// The event's id; the same whichever account read it.
    pub event_id: OwnedEventId,
    /// The room it was sent in.
    pub room_id: OwnedRoomId,
    /// Who sent it, as the homeserver says: for bridged messages usually a ghost.
    pub sender: OwnedUserId,
    /// When the sender's homeserver, or the bridge, says it was sent.
    pub origin_server_ts: Timestamp,
    /// The type, after decryption: `m.room.message`, not `m.room.encrypted`.
    pub event_type: String,
    /// The content, after decryption. For an encrypted event `m.relates_to` may have been copied in from
    /// the wire event, which carries it in the clear.
    pub content: JsonObject,
    /// What of it had to be repaired.
    pub repairs: Vec<Repair>,
    /// `redacts` beside the content, where room versions before 11 have it; later ones have it in the
    /// content, which is looked at too.
    pub redacts: Option<OwnedEventId>,
    /// How it was encrypted, and how far its sender can be believed.
    pub encryption: Encryption,
    /// Whether it had to wait for its key, so that newer events of its room were relayed first.
    pub late: bool,
    /// Set when a bridge said it for the owner of the conversation: through the owner's account, or through the ghost
    /// of the owner's login.
    pub is_owners: bool,
}

/// How an event was encrypted. Serialised as `data.encryption` of the webhook payload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Encryption {
    /// Whether the event was end-to-end encrypted. Reactions and redactions of bridges never are.
    pub encrypted: bool,
    /// The algorithm, e.g. `m.megolm.v1.aes-sha2`; null when not encrypted.
    pub algorithm: Option<String>,
    /// The Megolm session; null when not encrypted.
    pub session_id: Option<String>,
    /// What is known about the device that encrypted it; null when not encrypted or not decrypted.
    pub trust: Option<Trust>,
    /// The bridge bot whose device encrypted the event for `sender`; set with trust `bridge`, else null.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub bridged_by: Option<OwnedUserId>,
    /// Whether it is to be taken with care: its trust is one that the operator has flagged. Left out when not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub flagged: bool,
}

/// What is known about the device that encrypted an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    /// The room's own bridge bot, which is configured or pinned, for one of its ghosts or double puppets.
    Bridge,
    /// The sender's device, and the sender's identity is verified.
    Verified,
    /// The sender's device, signed by the sender's identity, which nobody verified.
    CrossSigned,
    /// The sender's device, which the sender did not sign.
    Unverified,
    /// A device of somebody else who is not the room's bridge: possibly forged.
    MismatchedSender,
    /// A device that is not known, or no longer.
    UnknownDevice,
    /// A key from a backup, an import or a forward: who made it is not proven.
    Imported,
}

impl Trust {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Bridge,
        Self::Verified,
        Self::CrossSigned,
        Self::Unverified,
        Self::MismatchedSender,
        Self::UnknownDevice,
        Self::Imported,
    ];

    /// What is called so in payloads and settings.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == name)
    }

    /// The name in payloads, tables and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Verified => "verified",
            Self::CrossSigned => "cross_signed",
            Self::Unverified => "unverified",
            Self::MismatchedSender => "mismatched_sender",
            Self::UnknownDevice => "unknown_device",
            Self::Imported => "imported",
        }
    }
}
