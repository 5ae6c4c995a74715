use ruma::UserId;

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
    /// Rooms with a believable bridge.
    Bridged,
    /// Every room that an account is in.
    All,
    /// These rooms.
    Only(Vec<ruma::OwnedRoomId>),
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
