//! Numbers for the operator, from counts that are kept and ends of indexes: as quick with a million messages as with
//! none.

use std::time::Duration;

use super::{Db, StoreError, db::values};
use crate::clock::Timestamp;

/// The room keys that are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// Keys, of all accounts.
    pub count: u64,
    /// Rooms that they are of.
    pub room_count: u64,
    /// When the newest came.
    pub newest_at: Option<Timestamp>,
}

// As INTEGER, because PostgreSQL adds up BIGINT as NUMERIC, which takes several times as long.
pub(super) const KEYS: &str = "SELECT CAST(COALESCE(SUM(CAST(count AS INTEGER)), 0) AS BIGINT), COUNT(*) \
     FROM room_key_counts WHERE count > 0";
pub(super) const NEWEST_KEY: &str = "SELECT MAX(created_at) FROM megolm_inbound_sessions";

fn number(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

/// How many room keys there are.
///
/// # Errors
/// When the database fails.
pub async fn keys(db: &Db) -> Result<Keys, StoreError> {
    let counts: Option<(i64, i64)> = db.fetch_optional(KEYS, vec![]).await?;
    let newest: Option<(Option<i64>,)> = db.fetch_optional(NEWEST_KEY, vec![]).await?;
    let (count, rooms) = counts.unwrap_or_default();
    let newest_at = newest.and_then(|(newest,)| newest).map(Timestamp);
    Ok(Keys { count: number(count), room_count: number(rooms), newest_at })
}

pub(super) const ROOMS: &str =
    "SELECT relay, network, COUNT(*) FROM rooms GROUP BY relay, network ORDER BY relay, network";

/// How many rooms there are: by whether they are relayed (`unknown`, `yes`, `no`), and by network.
///
/// # Errors
/// When the database fails.
pub async fn rooms(db: &Db) -> Result<Vec<(String, Option<String>, u64)>, StoreError> {
    let rows: Vec<(String, Option<String>, i64)> = db.fetch_all(ROOMS, vec![]).await?;
    Ok(rows.into_iter().map(|(relay, network, count)| (relay, network, number(count))).collect())
}

/// Events on the ledger, of one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failures {
    /// Why they cannot be relayed.
    pub reason: String,
    /// Those that came in the last hour.
    pub hour: u64,
    /// Those of the last day.
    pub day: u64,
    /// Those of the last seven days.
    pub week: u64,
}

pub(super) const FAILURES: &str = "SELECT reason, \
         CAST(SUM(CASE WHEN received_at >= $1 THEN 1 ELSE 0 END) AS BIGINT), \
         CAST(SUM(CASE WHEN received_at >= $2 THEN 1 ELSE 0 END) AS BIGINT), COUNT(*) \
     FROM pending_events WHERE state = 'ledger' AND received_at >= $3 GROUP BY reason ORDER BY reason";

/// The events of the last hour, day and week that still cannot be relayed, by reason.
///
/// # Errors
/// When the database fails.
pub async fn failures(db: &Db, now: Timestamp) -> Result<Vec<Failures>, StoreError> {
    let since = |hours| now.minus(Duration::from_hours(hours));
    let rows: Vec<(String, i64, i64, i64)> =
        db.fetch_all(FAILURES, values![since(1), since(24), since(7 * 24)]).await?;
    let failures = |(reason, hour, day, week)| Failures {
        reason,
        hour: number(hour),
        day: number(day),
        week: number(week),
    };
    Ok(rows.into_iter().map(failures).collect())
}

pub(super) const LAST_ROW: &str =
    "SELECT received_at FROM inbox WHERE source = $1 ORDER BY inbox_id DESC LIMIT 1";

/// When something last came in: of `push` a transaction, of `lane` a page of the key lane that had something in it.
/// Rows are kept for a day.
///
/// # Errors
/// When the database fails.
pub async fn last_row(db: &Db, source: &str) -> Result<Option<Timestamp>, StoreError> {
    let row: Option<(i64,)> = db.fetch_optional(LAST_ROW, values![source]).await?;
    Ok(row.map(|(at,)| Timestamp(at)))
}

/// Who works the crypto.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The process.
    pub holder: String,
    /// How often the lease has changed hands.
    pub fence: i64,
    /// Until when it holds the lease; renewed again and again.
    pub until: Timestamp,
}

/// Who works the crypto, or did last.
///
/// # Errors
/// When the database fails.
pub async fn holder(db: &Db) -> Result<Option<Holder>, StoreError> {
    let row: Option<(String, i64, i64)> = db
        .fetch_optional("SELECT holder, fence, lease_until FROM leases WHERE name = 'crypto'", vec![])
        .await?;
    Ok(row.map(|(holder, fence, until)| Holder { holder, fence, until: Timestamp(until) }))
}

pub(super) const NEWEST_MESSAGE: &str = "SELECT MAX(created_at) FROM messages";

/// When the newest message was stored.
///
/// # Errors
/// When the database fails.
pub async fn newest_message(db: &Db) -> Result<Option<Timestamp>, StoreError> {
    let row: Option<(Option<i64>,)> = db.fetch_optional(NEWEST_MESSAGE, vec![]).await?;
    Ok(row.and_then(|(at,)| at).map(Timestamp))
}

#[cfg(test)]
mod tests;
