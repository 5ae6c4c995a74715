//! How many messages there were lately: a row for every five minutes, written with the messages themselves, so that
//! asking costs the same however many there are.

use std::{collections::BTreeMap, time::Duration};

use super::super::{Db, StoreError, Tx, db::values};
use crate::{
    clock::Timestamp,
    model::{Message, MessageType},
};

/// How long a bucket lasts.
pub const BUCKET: Duration = Duration::from_mins(5);

/// How long buckets are kept.
pub const KEPT: Duration = Duration::from_hours(8 * 24);

/// The messages of one network in a span of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// The network; empty for rooms without a bridge.
    pub network: String,
    /// Whether they had to be decrypted.
    pub encrypted: bool,
    /// Those of the last hour, to the bucket.
    pub hour: u64,
    /// Those of the last day.
    pub day: u64,
    /// Those of the last seven days.
    pub week: u64,
}

fn bucket(at: Timestamp) -> i64 {
    at.0.div_euclid(i64::try_from(BUCKET.as_millis()).unwrap_or(i64::MAX))
}

/// Counts messages that are being stored.
///
/// # Errors
/// When the database fails.
pub(super) async fn add(tx: &mut Tx, messages: &[Message], now: Timestamp) -> Result<(), StoreError> {
    let mut counts = BTreeMap::<(&str, bool), i64>::new();
    for message in messages.iter().filter(|message| !message.message_type.is_about_service()) {
        let network = message.network.as_deref().unwrap_or_default();
        let decrypted = message.encrypted && message.message_type != MessageType::MessageUndecryptable;
        *counts.entry((network, decrypted)).or_default() += 1;
    }
    let rows = counts
        .into_iter()
        .map(|((network, encrypted), count)| values![bucket(now), network, encrypted, count]);
    tx.execute_many(
        "INSERT INTO message_counts (bucket, network, encrypted, count) VALUES {rows} \
         ON CONFLICT (bucket, network, encrypted) DO UPDATE SET count = message_counts.count + excluded.count",
        vec![],
        rows.collect(),
    )
    .await?;
    Ok(())
}

// As INTEGER, because PostgreSQL adds up BIGINT as NUMERIC, which takes several times as long.
pub(super) const LATELY: &str = "SELECT network, encrypted, \
         CAST(SUM(CASE WHEN bucket > $1 THEN CAST(count AS INTEGER) ELSE 0 END) AS BIGINT), \
         CAST(SUM(CASE WHEN bucket > $2 THEN CAST(count AS INTEGER) ELSE 0 END) AS BIGINT), \
         CAST(SUM(CAST(count AS INTEGER)) AS BIGINT) \
     FROM message_counts WHERE bucket > $3 GROUP BY network, encrypted ORDER BY network, encrypted";

/// The messages of the last hour, day and week, by network.
///
/// # Errors
/// When the database fails.
pub async fn lately(db: &Db, now: Timestamp) -> Result<Vec<Count>, StoreError> {
    let before = |hours| bucket(now.minus(Duration::from_hours(hours)));
    let rows: Vec<(String, i64, i64, i64, i64)> =
        db.fetch_all(LATELY, values![before(1), before(24), before(7 * 24)]).await?;
    let number = |count: i64| u64::try_from(count).unwrap_or(0);
    let count = |(network, encrypted, hour, day, week): (String, i64, i64, i64, i64)| Count {
        network,
        encrypted: encrypted != 0,
        hour: number(hour),
        day: number(day),
        week: number(week),
    };
    Ok(rows.into_iter().map(count).collect())
}

pub(super) const PRUNE: &str = "DELETE FROM message_counts WHERE bucket < $1";

/// Forgets buckets that nobody asks for any more.
///
/// # Errors
/// When the database fails.
pub async fn prune(tx: &mut Tx, now: Timestamp) -> Result<(), StoreError> {
    tx.execute(PRUNE, values![bucket(now.minus(KEPT))]).await?;
    Ok(())
}
