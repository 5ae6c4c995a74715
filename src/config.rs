//! Every setting: meaning, unit, default, validation.
//!
//! A setting comes from the environment (`COUCOU_<SECTION>_<NAME>`), from the name of it that operators had
//! set before (an alias), or from the YAML file, in this order; else it has its default. [`SETTINGS`] lists
//! them all and drives reading, error messages and documentation alike. A wrong setting stops the start with
//! one line that names it, its environment variable and an example, and never shows a secret.
//!
//! Loading reads files and writes one at most: the pickle key beside a SQLite store that has none yet. That
//! file appears whole or not at all.

mod check;
mod duration;
mod error;
mod file;
mod load;
mod media;
mod postgres;
mod reference;
mod registration;
mod rooms;
mod settings;
mod source;
mod store;
#[cfg(test)]
mod tests;
mod trust;
mod webhooks;

use std::{collections::BTreeMap, fmt, net::IpAddr, path::PathBuf, time::Duration};

use http::{HeaderName, HeaderValue};
use ruma::{OwnedDeviceId, OwnedServerName, OwnedUserId, ServerName, UserId};
use secrecy::SecretString;
use url::Url;

pub use crate::model::{Inviter, RelayPolicy as Relay};
pub use error::ConfigError;
pub use reference::reference;
pub use registration::{Namespaces, Registration};
pub use settings::{SETTINGS, Setting};
pub use source::{Environment, Sources};

use crate::{
    model::{
        Detail, Filter, Flow, Format, Pattern, RecoveryKey, Schedule, Scope, SilenceSettings, TrustPolicy,
    },
    store::Location,
};

/// All settings, validated.
#[derive(Clone, Debug)]
pub struct Config {
    /// The homeserver that coucou serves.
    pub homeserver: Homeserver,
    /// Who coucou is to the homeserver.
    pub appservice: Appservice,
    /// Where coucou listens.
    pub http: Http,
    /// Where Prometheus reads metrics.
    pub metrics: Metrics,
    /// Where coucou keeps what lasts.
    pub store: StoreSettings,
    /// Where messages go; none means that they are only kept for the REST API.
    pub webhooks: Vec<Webhook>,
    /// The REST API.
    pub api: Api,
    /// The real user whose conversations are relayed; none means only rooms that the bot is invited to.
    pub owner: Option<Owner>,
    /// What opens the owner's secret storage; none means that coucou has its own device and nothing else.
    pub owner_recovery_key: Option<RecoveryKey>,
    /// What opens the bot's secret storage; none means that coucou makes a key and keeps it in the store.
    pub recovery_key: Option<RecoveryKey>,
    /// Which rooms.
    pub rooms: Rooms,
    /// Events that cannot be decrypted.
    pub undecryptable: Undecryptable,
    /// When a silence is worth telling; `None`: never.
    pub silence: Option<SilenceSettings>,
    /// Bridges known beforehand; others are pinned when first seen.
    pub bridges: Vec<Bridge>,
    /// Whom to believe.
    pub trust: Trust,
    /// Names of networks by the `protocol.id` of `m.bridge`, beside the built-in ones.
    pub networks: BTreeMap<String, String>,
    /// What is kept of messages.
    pub messages: Messages,
    /// Files of messages.
    pub media: Media,
    /// The log.
    pub log: Log,
    /// What the operator should know, one line each; to be logged once.
    pub warnings: Vec<String>,
}

/// The settings that matter before there is a registration.
#[derive(Clone, Debug)]
pub struct Partial {
    /// `homeserver.server_name`.
    pub server_name: Option<OwnedServerName>,
    /// `appservice.id`.
    pub id: Option<String>,
    /// `appservice.bot`, or its default.
    pub bot: String,
    /// `owner`.
    pub owner: Option<OwnedUserId>,
    /// `http`, or its defaults.
    pub http: Http,
}

/// `homeserver`: the homeserver that coucou serves.
#[derive(Clone, Debug)]
pub struct Homeserver {
    /// Base URL of its client-server API; its path ends with a slash only when it is the root.
    pub url: Url,
    /// The part of its user ids after the colon; to be asked of the homeserver when absent.
    pub server_name: Option<OwnedServerName>,
}

/// `appservice`: who coucou is to the homeserver.
#[derive(Clone, Debug)]
pub struct Appservice {
    /// The registration's `id`; needed to ask the homeserver for a ping.
    pub id: Option<String>,
    /// The token with which coucou speaks to the homeserver.
    pub as_token: SecretString,
    /// The token with which the homeserver speaks to coucou.
    pub hs_token: SecretString,
    /// The bot: a localpart, or a whole user id.
    pub bot: String,
    /// The registration's own user, which cannot be the bot: `/sync` fails for it.
    pub sender_localpart: Option<String>,
    /// The bot's device, when it shall be a certain one; else one is made and kept in the store.
    pub device_id: Option<OwnedDeviceId>,
    /// Which users the registration claims, when it is known.
    pub namespaces: Option<Namespaces>,
    /// The registration's `url`, when it is known: where the homeserver reaches coucou.
    pub url: Option<String>,
}

/// `http`: where coucou listens.
#[derive(Clone, Copy, Debug)]
pub struct Http {
    /// Address to listen on.
    pub host: IpAddr,
    /// Port to listen on; 0 takes any free one.
    pub port: u16,
}

/// `metrics`: where Prometheus reads metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// A port of its own; `None` for the main port.
    pub port: Option<u16>,
    /// The path.
    pub path: String,
    /// What Prometheus shows.
    pub token: Option<SecretString>,
}

/// `store`: where coucou keeps what lasts.
#[derive(Clone)]
pub struct StoreSettings {
    /// PostgreSQL or a SQLite file.
    pub location: Location,
    /// What protects the secrets in it.
    pub pickle_key: SecretString,
    /// One line for the log: which store, where, and why that one. Holds no password.
    pub chosen_because: String,
    /// What stands in for PostgreSQL; none with SQLite.
    pub fallback: Option<Fallback>,
}

/// The SQLite store that may stand in for PostgreSQL. It is sealed with the same pickle key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// Its file. One that is there is merged into PostgreSQL whether the fallback is still on or not.
    pub file: PathBuf,
    /// Whether it may be used.
    pub is_on: bool,
}

/// One of `webhooks`: a destination.
#[derive(Clone)]
pub struct Webhook {
    /// Its name, unique; the one from the environment is `default`.
    pub name: String,
    /// Where deliveries are posted.
    pub url: Url,
    /// Standard Webhooks secrets (`whsec_…`), each of which signs, the first one first; when there is none, one is
    /// made and kept in the store.
    pub secrets: Vec<SecretString>,
    /// Which messages it is told of.
    pub filter: Filter,
    /// What is sent along with each delivery.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Rooms that are sent at once.
    pub concurrency: usize,
    /// The waits between attempts.
    pub schedule: Schedule,
    /// How much of a message it is told.
    pub detail: Detail,
    /// What a body looks like.
    pub format: Format,
    /// In which order, and how many messages at once.
    pub flow: Flow,
    /// Deliveries that are kept pending while it is disabled.
    pub max_queue: u64,
}

/// `undecryptable`: events that cannot be decrypted.
#[derive(Clone, Copy, Debug)]
pub struct Undecryptable {
    /// How long after an event came the webhooks are told that it cannot be decrypted; `None`: never.
    pub notify_after: Option<Duration>,
}

/// `api`: the REST API.
#[derive(Clone, Debug)]
pub struct Api {
    /// Tokens that are let in; without any, everything but health answers 403.
    pub tokens: Vec<ApiToken>,
}

/// One of `api.tokens`.
#[derive(Clone, Debug)]
pub struct ApiToken {
    /// What the caller sends.
    pub token: SecretString,
    /// What it may do.
    pub scope: Scope,
}

/// `owner`, `owner_mode`, `owner_accept`: the real user whose conversations are relayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub user_id: OwnedUserId,
    /// How coucou gets at the conversations.
    pub mode: OwnerMode,
    /// Whether coucou accepts invites of known bridge bots for the owner.
    pub accept: bool,
}

/// How coucou gets at the owner's conversations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OwnerMode {
    /// Through a device of coucou's on the owner's account.
    #[default]
    Read,
    /// By inviting the bot, as the owner, into bridged rooms.
    Invite,
}

/// `rooms`: which rooms coucou reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rooms {
    /// What is relayed; the rest is neither decrypted nor stored for longer than `settle_after`.
    pub relay: Relay,
    /// How long a room is looked at before what came of it is deleted because it is not relayed.
    pub settle_after: Duration,
    /// Whose invites the bot accepts; absent means those from its own server.
    pub invite_from: Option<Vec<Inviter>>,
}

/// One of `bridges`: a bridge known beforehand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// The bridge's bot, whose device encrypts for its ghosts.
    pub bot: OwnedUserId,
    /// The bridge's ghosts, for example `@instagram_*:example.org`; by default what the bot's name tells.
    pub ghosts: Vec<Pattern>,
    /// The real users for whom it speaks; by default the owner.
    pub puppets: Option<Pattern>,
}

/// `trust`: whom to believe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// What is done with a message, by what is known of the device that encrypted it.
    pub actions: TrustPolicy,
    /// What is done with a bridge that is not in the settings.
    pub new_bridges: NewBridges,
}

/// What is done with a bridge that is not in the settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NewBridges {
    /// It is believed from when it is first seen, and pinned.
    #[default]
    Pin,
    /// It is not believed.
    Refuse,
}

/// `messages`: what is kept of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Messages {
    /// How long their content is kept, at most [`LONGEST_RETENTION`]; zero for no longer than it takes to
    /// deliver them.
    pub retention: Duration,
}

/// `media` and `http.public_url`: files of messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Media {
    /// Where consumers reach coucou; its path ends with a slash only when it is the root. Without it files have no
    /// address.
    pub public_url: Option<Url>,
    /// How long an address works, at least.
    pub url_lifetime: Duration,
    /// The most bytes of a file.
    pub max_size: u64,
    /// How long a file may take to come from the homeserver.
    pub timeout: Duration,
    /// Files that are fetched from the homeserver at the same time.
    pub concurrency: usize,
    /// The most bytes that the cache keeps; no less than `max_size`.
    pub cache_size: u64,
    /// Where the cache's folder is made.
    pub folder: PathBuf,
}

/// The longest [`Messages::retention`]: a hundred years.
pub const LONGEST_RETENTION: Duration = Duration::from_hours(100 * 366 * 24);

/// `log`: what is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// How a line looks.
    pub format: LogFormat,
    /// Which lines, as a `tracing` filter: `info,coucou::outbox=debug`.
    pub filter: String,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// The server's name as far as the settings tell it: set, or the owner's, or the bot's.
    #[must_use]
    pub fn known_server_name(&self) -> Option<OwnedServerName> {
        check::known_server_name(&self.homeserver, &self.appservice, self.owner.as_ref())
    }
}

impl Appservice {
    /// The bot's user id; `None` when the bot is a localpart and no server is given.
    #[must_use]
    pub fn bot_user_id(&self, server_name: Option<&ServerName>) -> Option<OwnedUserId> {
        if self.bot.starts_with('@') {
            return UserId::parse(&self.bot).ok();
        }
        UserId::parse(format!("@{}:{}", self.bot, server_name?)).ok()
    }
}

impl fmt::Debug for StoreSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreSettings").field("chosen_because", &self.chosen_because).finish_non_exhaustive()
    }
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Many receivers carry their token in the path or the query.
        f.debug_struct("Webhook")
            .field("name", &self.name)
            .field("host", &self.url.host_str())
            .finish_non_exhaustive()
    }
}
