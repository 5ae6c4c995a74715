//! When networks were heard of, and what is wrong with bridges.
//!
//! An hour is a row however much comes in it, so what is usual is known without looking at a single message.

use ruma::{OwnedRoomId, OwnedUserId, UserId};

use super::{Db, StoreError, Tx, db::values};
use crate::{
    clock::Timestamp,
    model::{Alarm, AlarmReason},
};

/// The network under which the hours stand during which coucou was there to hear.
pub const WATCHED: &str = "";

/// An hour in which something of a network came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hour {
    /// The network; [`WATCHED`] for coucou itself.
    pub network: String,
    /// Hours since 1970.
    pub hour: i64,
    /// How much came in it.
    pub count: i64,
    /// When the last of it came.
    pub last_at: Timestamp,
}

const HOURS: &str = "SELECT network, hour, count, last_at FROM network_hours ORDER BY network, hour";

/// All hours that are kept.
///
/// # Errors
/// When the database fails.
pub async fn hours(db: &Db) -> Result<Vec<Hour>, StoreError> {
    let rows: Vec<(String, i64, i64, i64)> = db.fetch_all(HOURS, vec![]).await?;
    let hour = |(network, hour, count, last_at)| Hour { network, hour, count, last_at: Timestamp(last_at) };
    Ok(rows.into_iter().map(hour).collect())
}

/// Adds to hours; each hour of a network is named once.
///
/// # Errors
/// When the database fails.
pub async fn add_hours(tx: &mut Tx, hours: &[Hour]) -> Result<(), StoreError> {
    let rows = hours.iter().map(|hour| values![hour.network.as_str(), hour.hour, hour.count, hour.last_at]);
    tx.execute_many(
        "INSERT INTO network_hours (network, hour, count, last_at) VALUES {rows} \
         ON CONFLICT (network, hour) DO UPDATE SET count = network_hours.count + excluded.count, \
         last_at = CASE WHEN network_hours.last_at > excluded.last_at THEN network_hours.last_at \
             ELSE excluded.last_at END",
        vec![],
        rows.collect(),
    )
    .await?;
    Ok(())
}

/// What is known of a network's messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The network.
    pub network: String,
    /// The first hour that is kept, in hours since 1970.
    pub first_hour: i64,
    /// In how many hours something came, of those that are kept.
    pub hour_count: u64,
    /// When something last came.
    pub last_at: Timestamp,
}

const HEARD: &str = "SELECT network, MIN(hour), COUNT(*), MAX(last_at) FROM network_hours \
     WHERE network <> '' GROUP BY network ORDER BY network";

/// What is known of each network's messages.
///
/// # Errors
/// When the database fails.
pub async fn heard(db: &Db) -> Result<Vec<Heard>, StoreError> {
    let rows: Vec<(String, i64, i64, i64)> = db.fetch_all(HEARD, vec![]).await?;
    let heard = |(network, first_hour, count, last_at): (String, i64, i64, i64)| Heard {
        network,
        first_hour,
        hour_count: u64::try_from(count).unwrap_or(0),
        last_at: Timestamp(last_at),
    };
    Ok(rows.into_iter().map(heard).collect())
}

pub(super) const IS_READ: &str = "SELECT r.room_id FROM rooms AS r \
     JOIN room_accounts AS a ON a.room_id = r.room_id AND a.membership = 'join' \
     WHERE r.network = $1 AND r.relay = 'yes' LIMIT 1";

/// Whether coucou reads a room of a network now.
///
/// # Errors
/// When the database fails.
pub async fn is_read(db: &Db, network: &str) -> Result<bool, StoreError> {
    let row: Option<(String,)> = db.fetch_optional(IS_READ, values![network]).await?;
    Ok(row.is_some())
}

/// Reason, subject, network, room, bot; login, status, error; since, told, message, ended.
type Row = (
    String,
    String,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    i64,
    i64,
    String,
    Option<i64>,
);

/// The columns of [`Row`], then the rest of a statement.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT reason, subject, network, room_id, bot, login, status, error, since, told_at, message_id, \
             ended_at FROM bridge_alarms ",
            $rest
        )
    };
}

fn alarm(row: Row) -> Result<Alarm, StoreError> {
    const CORRUPT: StoreError = StoreError::Corrupt("bridge_alarms");
    let room_id = row.3.map(OwnedRoomId::try_from).transpose().map_err(|_| CORRUPT)?;
    let bot = row.4.map(OwnedUserId::try_from).transpose().map_err(|_| CORRUPT)?;
    Ok(Alarm {
        reason: AlarmReason::parse(&row.0).ok_or(CORRUPT)?,
        subject: row.1,
        network: row.2,
        room_id,
        bot,
        login: row.5,
        status: row.6,
        error: row.7,
        since: Timestamp(row.8),
        told_at: Timestamp(row.9),
        message_id: row.10,
        ended_at: row.11.map(Timestamp),
    })
}

/// All alarms, also those that are over and not forgotten yet.
///
/// # Errors
/// When the database fails.
pub async fn alarms(db: &Db) -> Result<Vec<Alarm>, StoreError> {
    let rows: Vec<Row> = db.fetch_all(select!("ORDER BY reason, subject"), vec![]).await?;
    rows.into_iter().map(alarm).collect()
}

pub(super) const ACTIVE: &str = select!("WHERE ended_at IS NULL ORDER BY reason, told_at LIMIT $1");

/// The alarms that are not over, `most` at most.
///
/// # Errors
/// When the database fails.
pub async fn active(db: &Db, most: i64) -> Result<Vec<Alarm>, StoreError> {
    let rows: Vec<Row> = db.fetch_all(ACTIVE, values![most]).await?;
    rows.into_iter().map(alarm).collect()
}

pub(super) const COUNTS: &str =
    "SELECT reason, COUNT(*) FROM bridge_alarms WHERE ended_at IS NULL GROUP BY reason";

/// How many alarms are not over, for every reason.
///
/// # Errors
/// When the database fails.
pub async fn counts(db: &Db) -> Result<Vec<(AlarmReason, u64)>, StoreError> {
    let rows: Vec<(String, i64)> = db.fetch_all(COUNTS, vec![]).await?;
    let count = |reason: AlarmReason| {
        let found = rows.iter().find(|(name, _)| name == reason.as_str());
        (reason, found.and_then(|(_, count)| u64::try_from(*count).ok()).unwrap_or(0))
    };
    Ok(AlarmReason::ALL.into_iter().map(count).collect())
}

/// Keeps alarms as they are now; each is named once.
///
/// # Errors
/// When the database fails.
pub async fn put_alarms(tx: &mut Tx, alarms: &[Alarm]) -> Result<(), StoreError> {
    let row = |alarm: &Alarm| {
        values![
            alarm.reason.as_str(),
            alarm.subject.as_str(),
            alarm.network.as_deref(),
            alarm.room_id.as_ref().map(|room_id| room_id.as_str()),
            alarm.bot.as_ref().map(|bot| bot.as_str()),
            alarm.login.as_deref(),
            alarm.status.as_deref(),
            alarm.error.as_deref(),
            alarm.since,
            alarm.told_at,
            alarm.message_id.as_str(),
            alarm.ended_at,
        ]
    };
    tx.execute_many(
        "INSERT INTO bridge_alarms (reason, subject, network, room_id, bot, login, status, error, since, told_at, \
         message_id, ended_at) VALUES {rows} \
         ON CONFLICT (reason, subject) DO UPDATE SET network = excluded.network, room_id = excluded.room_id, \
         bot = excluded.bot, login = excluded.login, status = excluded.status, error = excluded.error, \
         since = excluded.since, told_at = excluded.told_at, message_id = excluded.message_id, \
         ended_at = excluded.ended_at",
        vec![],
        alarms.iter().map(row).collect(),
    )
    .await?;
    Ok(())
}

/// Ends all alarms without a word: nobody looks any more.
///
/// # Errors
/// When the database fails.
pub async fn drop_all(tx: &mut Tx, now: Timestamp) -> Result<(), StoreError> {
    tx.execute("UPDATE bridge_alarms SET ended_at = $1 WHERE ended_at IS NULL", values![now]).await?;
    Ok(())
}

pub(super) const NETWORK_OF: &str =
    "SELECT network FROM rooms WHERE bridge_bot = $1 AND network IS NOT NULL LIMIT 1";

/// The network that a bot bridges, by the rooms that it has.
///
/// # Errors
/// When the database fails.
pub async fn network_of(tx: &mut Tx, bot: &UserId) -> Result<Option<String>, StoreError> {
    let row: Option<(String,)> = tx.fetch_optional(NETWORK_OF, values![bot.as_str()]).await?;
    Ok(row.map(|(network,)| network))
}

const PRUNE_HOURS: &str = "DELETE FROM network_hours WHERE hour < $1";
pub(super) const PRUNE_ALARMS: &str = "DELETE FROM bridge_alarms WHERE ended_at < $1";

/// Forgets hours before one, and alarms that were over before a time.
///
/// # Errors
/// When the database fails.
pub async fn prune(tx: &mut Tx, before_hour: i64, ended_before: Timestamp) -> Result<(), StoreError> {
    tx.execute(PRUNE_HOURS, values![before_hour]).await?;
    tx.execute(PRUNE_ALARMS, values![ended_before]).await?;
    Ok(())
}

#[cfg(test)]
#[path = "conformance/silence.rs"]
mod conformance;
