use ruma::{OwnedRoomId, RoomId, UserId};

use super::Pattern;

/// Whether a room's messages are relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Relay {
    /// Not known before the room's state was read.
    Unknown,
    /// They are.
    Yes,
    /// They are not: its events and room keys are not kept.
    No,
}

impl Relay {
    /// The name in tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Yes => "yes",
            Self::No => "no",
        }
    }

    /// The value of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "unknown" => Some(Self::Unknown),
            "yes" => Some(Self::Yes),
            "no" => Some(Self::No),
            _ => None,
        }
    }
}

/// What one of our accounts is to a room
/// ([`m.room.member`](https://spec.matrix.org/latest/client-server-api/#mroommember)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Membership {
    /// Nothing yet, but to be invited by the owner; never in an event.
    Wanted,
    /// Invited, not yet in.
    Invite,
    /// In.
    Join,
    /// Out: left, kicked, banned, or never in.
    Leave,
}

impl Membership {
    /// The name in tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wanted => "wanted",
            Self::Invite => "invite",
            Self::Join => "join",
            Self::Leave => "leave",
        }
    }

    /// What a member event's `membership` means; `knock` and `ban` are not being in.
    #[must_use]
    pub fn parse(membership: &str) -> Self {
        match membership {
            "wanted" => Self::Wanted,
            "invite" => Self::Invite,
            "join" => Self::Join,
            _ => Self::Leave,
        }
    }
}

/// Which rooms are relayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayPolicy {
    /// Rooms with a believable bridge; the default with an owner.
    Bridged,
    /// Every room that an account is in; the default without an owner.
    All,
    /// These rooms.
    Only(Vec<OwnedRoomId>),
    /// Those of another policy, but for a few.
    Adjusted {
        /// The other policy.
        base: Box<Self>,
        /// Rooms that are relayed as well.
        with: Vec<OwnedRoomId>,
        /// Rooms that are not relayed in any case.
        without: Vec<OwnedRoomId>,
    },
}

impl RelayPolicy {
    /// Returns whether a room is relayed: one that `is_bridged`, by its state, or that is a space.
    #[must_use]
    pub fn relays(&self, room_id: &RoomId, is_bridged: bool, is_space: bool) -> bool {
        match self {
            Self::All => !is_space,
            Self::Bridged => is_bridged,
            Self::Only(rooms) => rooms.iter().any(|room| room == room_id),
            Self::Adjusted { base, with, without } => {
                without.iter().all(|room| room != room_id)
                    && (with.iter().any(|room| room == room_id) || base.relays(room_id, is_bridged, is_space))
            }
        }
    }

    /// Returns whether a room can be relayed for its state: else it is not, whatever its state becomes.
    #[must_use]
    pub fn may_relay(&self, room_id: &RoomId) -> bool {
        self.relays(room_id, true, false)
    }

    /// Returns whether rooms are relayed for their bridges.
    #[must_use]
    pub fn is_by_bridge(&self) -> bool {
        match self {
            Self::Bridged => true,
            Self::All | Self::Only(_) => false,
            Self::Adjusted { base, .. } => base.is_by_bridge(),
        }
    }
}

/// Somebody whose invites are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inviter {
    /// Every user of the servers that match.
    Server(Pattern),
    /// The users whose whole id matches.
    User(Pattern),
}

impl Inviter {
    /// Whether an invite by `user_id` is accepted.
    #[must_use]
    pub fn matches(&self, user_id: &UserId) -> bool {
        match self {
            Self::Server(pattern) => pattern.matches(user_id.server_name().as_str()),
            Self::User(pattern) => pattern.matches(user_id.as_str()),
        }
    }
}
