//! Bridge bots: whom coucou believes, who was not believed, and with which devices they encrypt.
//!
//! Only the process that works the crypto writes here, under its lease. All of it is read when that process
//! takes over, and small: rows come by bridges and their devices, not by messages.

use ruma::OwnedUserId;

use super::{Db, StoreError, Tx, db::values};
use crate::{clock::Timestamp, model::Pattern};

const CORRUPT: StoreError = StoreError::Corrupt("bridges");

/// A bridge bot that was believed when first seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedBridge {
    /// The bot.
    pub bot: OwnedUserId,
    /// The ghosts for which it speaks.
    pub ghosts: Option<Pattern>,
    /// The protocol that it stated.
    pub protocol: Option<String>,
    /// The room in which it was first seen.
    pub room_id: String,
    /// The maker of that room, or the maker's server; none when an earlier version pinned it.
    pub creator: Option<String>,
    /// When.
    pub pinned_at: Timestamp,
}

/// A login of the owner's on a network, as its bridge states it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeLogin {
    /// The bridge's bot.
    pub bot: OwnedUserId,
    /// The login, by its id on the network.
    pub login: String,
    /// The room in which it was first stated.
    pub room_id: String,
}

/// A state key of `m.bridge`, and the bot that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeKey {
    /// The state key.
    pub state_key: String,
    /// The bot.
    pub bot: OwnedUserId,
    /// The room in which it was first seen.
    pub room_id: String,
}

/// A bot that claimed a room and was not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeConflict {
    /// The room.
    pub room_id: String,
    /// The bot that is not believed.
    pub bot: OwnedUserId,
    /// The bot that is believed there.
    pub believed: Option<OwnedUserId>,
    /// When it was first seen.
    pub seen_at: Timestamp,
}

/// What was new about a device with which a bridge bot encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceChange {
    /// Nothing was known before.
    First,
    /// A known device, which is cross-signed now.
    Signed,
    /// Another device, as after a reset of the bridge.
    NewDevice,
    /// Other keys under a known device's id, which no honest device has.
    DeviceReplaced,
    /// Another cross-signing identity.
    IdentityChanged,
}

impl DeviceChange {
    const ALL: [Self; 5] =
        [Self::First, Self::Signed, Self::NewDevice, Self::DeviceReplaced, Self::IdentityChanged];

    /// The name in tables and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Signed => "signed",
            Self::NewDevice => "new_device",
            Self::DeviceReplaced => "device_replaced",
            Self::IdentityChanged => "identity_changed",
        }
    }

    /// The change of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == name)
    }
}

/// A device with which a bridge bot encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeDevice {
    /// The bot.
    pub bot: OwnedUserId,
    /// The device's id.
    pub device_id: String,
    /// Its Curve25519 key, base64.
    pub identity_key: String,
    /// The master key of the identity that signed it, base64.
    pub master_key: Option<String>,
    /// What was new about it when it was first seen.
    pub change: DeviceChange,
}

/// What is to be written.
#[derive(Clone, Debug, Default)]
pub struct BridgeChanges {
    /// Bots that are believed from now on.
    pub bridges: Vec<PinnedBridge>,
    /// State keys that belong to a bot from now on, also when another had them.
    pub keys: Vec<BridgeKey>,
    /// Logins that were not known.
    pub logins: Vec<BridgeLogin>,
    /// Bots that were not believed.
    pub conflicts: Vec<BridgeConflict>,
    /// Rooms and bots whose conflict is over.
    pub settled: Vec<(String, OwnedUserId)>,
    /// Devices that were not known.
    pub devices: Vec<BridgeDevice>,
}

/// Writes changes. What is known already stays as it is.
///
/// # Errors
/// When the database fails.
pub async fn put(tx: &mut Tx, changes: &BridgeChanges, now: Timestamp) -> Result<(), StoreError> {
    let bridges = changes.bridges.iter().map(|bridge| {
        let ghosts = bridge.ghosts.as_ref().map(Pattern::as_str);
        values![
            bridge.bot.as_str(),
            ghosts,
            bridge.protocol.as_deref(),
            bridge.room_id.as_str(),
            bridge.creator.as_deref(),
            bridge.pinned_at
        ]
    });
    tx.execute_many(
        "INSERT INTO bridges (bot, ghosts, protocol, room_id, creator, pinned_at) VALUES {rows} \
         ON CONFLICT (bot) DO NOTHING",
        vec![],
        bridges.collect(),
    )
    .await?;
    let keys = changes
        .keys
        .iter()
        .map(|key| values![key.state_key.as_str(), key.bot.as_str(), key.room_id.as_str(), now]);
    tx.execute_many(
        "INSERT INTO bridge_keys (state_key, bot, room_id, pinned_at) VALUES {rows} \
         ON CONFLICT (state_key) DO UPDATE SET bot = excluded.bot, room_id = excluded.room_id, \
         pinned_at = excluded.pinned_at",
        vec![],
        keys.collect(),
    )
    .await?;
    let logins = changes
        .logins
        .iter()
        .map(|login| values![login.bot.as_str(), login.login.as_str(), login.room_id.as_str(), now]);
    tx.execute_many(
        "INSERT INTO bridge_logins (bot, login, room_id, seen_at) VALUES {rows} \
         ON CONFLICT (bot, login) DO NOTHING",
        vec![],
        logins.collect(),
    )
    .await?;
    for (room_id, bot) in &changes.settled {
        tx.execute(
            "DELETE FROM bridge_conflicts WHERE room_id = $1 AND bot = $2",
            values![room_id.as_str(), bot.as_str()],
        )
        .await?;
    }
    let conflicts = changes.conflicts.iter().map(|conflict| {
        let believed = conflict.believed.as_ref().map(|bot| bot.as_str());
        values![conflict.room_id.as_str(), conflict.bot.as_str(), believed, conflict.seen_at]
    });
    tx.execute_many(
        "INSERT INTO bridge_conflicts (room_id, bot, believed, seen_at) VALUES {rows} \
         ON CONFLICT (room_id, bot) DO NOTHING",
        vec![],
        conflicts.collect(),
    )
    .await?;
    let devices = changes.devices.iter().map(|device| {
        values![
            device.bot.as_str(),
            device.device_id.as_str(),
            device.identity_key.as_str(),
            device.master_key.as_deref().unwrap_or_default(),
            device.change.as_str(),
            now
        ]
    });
    tx.execute_many(
        "INSERT INTO bridge_devices (bot, device_id, identity_key, master_key, change, seen_at) \
         VALUES {rows} ON CONFLICT (bot, device_id, identity_key, master_key) DO NOTHING",
        vec![],
        devices.collect(),
    )
    .await
    .map(|_| ())
}

/// The bots that were believed when first seen, in that order.
///
/// # Errors
/// When the database fails or holds what is no user id.
pub async fn pinned(db: &Db) -> Result<Vec<PinnedBridge>, StoreError> {
    type PinnedRow = (String, Option<String>, Option<String>, String, Option<String>, i64);
    let rows: Vec<PinnedRow> = db
        .fetch_all(
            "SELECT bot, ghosts, protocol, room_id, creator, pinned_at FROM bridges ORDER BY pinned_at, bot",
            vec![],
        )
        .await?;
    rows.into_iter()
        .map(|(bot, ghosts, protocol, room_id, creator, pinned_at)| {
            let (bot, ghosts) = (user_id(bot)?, ghosts.as_deref().map(Pattern::new));
            Ok(PinnedBridge { bot, ghosts, protocol, room_id, creator, pinned_at: Timestamp(pinned_at) })
        })
        .collect()
}

/// The state keys of `m.bridge`, each with the bot that it belongs to.
///
/// # Errors
/// When the database fails or holds what is no user id.
pub async fn keys(db: &Db) -> Result<Vec<BridgeKey>, StoreError> {
    let rows: Vec<(String, String, String)> =
        db.fetch_all("SELECT state_key, bot, room_id FROM bridge_keys ORDER BY state_key", vec![]).await?;
    rows.into_iter()
        .map(|(state_key, bot, room_id)| Ok(BridgeKey { state_key, bot: user_id(bot)?, room_id }))
        .collect()
}

/// The owner's logins, as bridges have stated them.
///
/// # Errors
/// When the database fails or holds what is no user id.
pub async fn logins(db: &Db) -> Result<Vec<BridgeLogin>, StoreError> {
    let rows: Vec<(String, String, String)> =
        db.fetch_all("SELECT bot, login, room_id FROM bridge_logins ORDER BY bot, login", vec![]).await?;
    rows.into_iter()
        .map(|(bot, login, room_id)| Ok(BridgeLogin { bot: user_id(bot)?, login, room_id }))
        .collect()
}

/// The latest bots that claimed a room and were not believed.
///
/// # Errors
/// When the database fails or holds what is no user id.
pub async fn conflicts(db: &Db, most: i64) -> Result<Vec<BridgeConflict>, StoreError> {
    let rows: Vec<(String, String, Option<String>, i64)> = db
        .fetch_all(
            "SELECT room_id, bot, believed, seen_at FROM bridge_conflicts ORDER BY seen_at DESC LIMIT $1",
            values![most],
        )
        .await?;
    rows.into_iter()
        .map(|(room_id, bot, believed, seen_at)| {
            let believed = believed.map(user_id).transpose()?;
            Ok(BridgeConflict { room_id, bot: user_id(bot)?, believed, seen_at: Timestamp(seen_at) })
        })
        .collect()
}

/// The devices with which bridge bots encrypted, in the order in which they came.
///
/// # Errors
/// When the database fails or holds what was not written here.
pub async fn devices(db: &Db) -> Result<Vec<BridgeDevice>, StoreError> {
    let rows: Vec<(String, String, String, String, String)> = db
        .fetch_all(
            "SELECT bot, device_id, identity_key, master_key, change FROM bridge_devices \
             ORDER BY seen_at, bot, device_id, identity_key, master_key",
            vec![],
        )
        .await?;
    rows.into_iter()
        .map(|(bot, device_id, identity_key, master_key, change)| {
            let change = DeviceChange::parse(&change).ok_or(CORRUPT)?;
            let master_key = Some(master_key).filter(|key| !key.is_empty());
            Ok(BridgeDevice { bot: user_id(bot)?, device_id, identity_key, master_key, change })
        })
        .collect()
}

fn user_id(text: String) -> Result<OwnedUserId, StoreError> {
    OwnedUserId::try_from(text).map_err(|_| CORRUPT)
}
