use ruma::{OwnedDeviceId, OwnedUserId};

/// The number of an account in the store: one device of one user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId(pub i64);

/// What coucou does as an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// coucou's own user, which reads the rooms it is invited to.
    Bot,
    /// A real user, whose rooms coucou reads through a device of its own.
    Owner,
}

impl Role {
    /// The name in tables and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bot => "bot",
            Self::Owner => "owner",
        }
    }

    /// The role of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "bot" => Some(Self::Bot),
            "owner" => Some(Self::Owner),
            _ => None,
        }
    }
}

/// A user that coucou reads as, with the device that is coucou's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its number in the store.
    pub id: AccountId,
    /// The user.
    pub user_id: OwnedUserId,
    /// coucou's device on that user; nobody else uses it.
    pub device_id: OwnedDeviceId,
    /// The bot or the owner.
    pub role: Role,
    /// Where the key lane stands: the `since` of the next `/sync`.
    pub sync_token: Option<String>,
}
