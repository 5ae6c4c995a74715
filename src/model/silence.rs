use std::time::Duration;

use ruma::{OwnedRoomId, OwnedUserId, UserId};
use serde::Serialize;

use super::{MessageType, Pattern, naming};
use crate::clock::Timestamp;

/// What can be wrong with a bridge, or between the homeserver and coucou.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum AlarmReason {
    /// A network has been quiet for longer than usual.
    NoMessages,
    /// The homeserver pushes nothing, while room keys or messages come by other ways.
    NoTransactions,
    /// The bridge's bot is no longer in a room.
    BotLeft,
    /// The bridge says that it is no longer logged in, or not connected.
    LoginLost,
    /// Messages of the bridge are held, because nothing tells for whom it may speak.
    MessagesHeld,
}

impl AlarmReason {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::NoMessages, Self::NoTransactions, Self::BotLeft, Self::LoginLost, Self::MessagesHeld];

    /// The name in payloads, tables, metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoMessages => "no_messages",
            Self::NoTransactions => "no_transactions",
            Self::BotLeft => "bot_left",
            Self::LoginLost => "login_lost",
            Self::MessagesHeld => "messages_held",
        }
    }

    /// The reason of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == name)
    }

    /// The type of the message that tells of it.
    #[must_use]
    pub fn message_type(self) -> MessageType {
        match self {
            Self::NoMessages | Self::NoTransactions => MessageType::BridgeSilent,
            Self::BotLeft | Self::LoginLost | Self::MessagesHeld => MessageType::BridgeDisconnected,
        }
    }
}

/// When a silence is worth telling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SilenceSettings {
    /// How many expected hours without a message make a network silent, at least.
    pub after: Duration,
    /// How long other ways bring something while the homeserver pushes nothing.
    pub transactions_after: Duration,
}

/// Something that is wrong, or was until lately.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// What.
    pub reason: AlarmReason,
    /// What it is about: a network, a room, a bot with one of its logins or with those for whom it spoke. One alarm for
    /// each.
    pub subject: String,
    /// The network, when it is known.
    pub network: Option<String>,
    /// The room, of [`AlarmReason::BotLeft`].
    pub room_id: Option<OwnedRoomId>,
    /// The bridge's bot, of what is about one.
    pub bot: Option<OwnedUserId>,
    /// The login on the network, as the bridge calls it.
    pub login: Option<String>,
    /// The state that the bridge stated, such as `BAD_CREDENTIALS`.
    pub status: Option<String>,
    /// The code of the error that it stated.
    pub error: Option<String>,
    /// Since when: of a silence, the last sign of life.
    pub since: Timestamp,
    /// When it was told, or its end.
    pub told_at: Timestamp,
    /// The id of the message that told of it, or of its end.
    pub message_id: String,
    /// When it was over; none while it is so.
    pub ended_at: Option<Timestamp>,
}

impl Alarm {
    /// Whether it is so.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.ended_at.is_none()
    }

    /// Returns the subject of [`AlarmReason::MessagesHeld`]: the bot, and for whom it spoke.
    #[must_use]
    pub fn subject_of_held(bot: &UserId, users: &Pattern) -> String {
        format!("{bot} {users}")
    }

    /// Returns for whom the bridge of [`AlarmReason::MessagesHeld`] spoke.
    #[must_use]
    pub fn held_users(&self) -> Option<Pattern> {
        let is_held = self.reason == AlarmReason::MessagesHeld;
        let (_, users) = self.subject.split_once(' ').filter(|_| is_held)?;
        Some(Pattern::new(users))
    }

    /// Returns the line of the settings that ends it, of [`AlarmReason::MessagesHeld`].
    #[must_use]
    pub fn settings_line(&self) -> Option<String> {
        let (bot, users) = (self.bot.as_ref()?, self.held_users()?);
        // Real users of a server have any names.
        let is_puppets = users.as_str().starts_with("@*");
        let (ghosts, puppets) = if is_puppets { (None, Some(&users)) } else { (Some(&users), None) };
        Some(naming::settings_line(bot, ghosts, puppets))
    }
}
