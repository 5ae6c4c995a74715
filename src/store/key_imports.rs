//! Keys of an export file on their way to whoever works the crypto.
//!
//! The command that reads the file writes its keys here, sealed and in parts; the holder of the crypto lease
//! takes them in, one part after the other, and leaves how many there were of each kind. Taking in a part
//! twice changes nothing, so neither end minds when the other dies.

use super::{Db, Seal, StoreError, Tx, db::values};
use crate::{clock::Timestamp, model::AccountId};

const TABLE: &str = "key_imports";

/// A part that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its number: parts are taken in in its order.
    pub part_id: i64,
    /// The account that the keys are for.
    pub account_id: AccountId,
    /// The keys as JSON; `None` when they do not open any more.
    pub keys: Option<Vec<u8>>,
}

/// How many keys there were of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sessions that were not known.
    pub new: u64,
    /// Known sessions of which the file had an earlier part.
    pub better: u64,
    /// Known sessions of which the file had nothing more.
    pub known: u64,
    /// Keys of rooms that are not relayed, which are not kept.
    pub unwanted: u64,
    /// Keys that contradict themselves or what is known.
    pub bad: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.new += other.new;
        self.better += other.better;
        self.known += other.known;
        self.unwanted += other.unwanted;
        self.bad += other.bad;
    }
}

/// How far an import is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Parts handed over.
    pub part_count: u64,
    /// Parts taken in.
    pub taken_count: u64,
    /// What was in these.
    pub counts: Counts,
}

/// Hands over a part.
///
/// # Errors
/// When the database fails.
pub async fn hand_over(
    tx: &mut Tx,
    seal: &Seal,
    import_id: &str,
    account_id: AccountId,
    keys: &[u8],
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO key_imports (import_id, account_id, keys, created_at) VALUES ($1, $2, $3, $4)",
        values![import_id, account_id.0, seal.seal(TABLE, import_id, keys)?, now],
    )
    .await?;
    Ok(())
}

const NEXT: &str = "SELECT part_id, import_id, account_id, keys FROM key_imports \
                    WHERE taken_at IS NULL ORDER BY part_id LIMIT 1";

/// The part to take in next.
///
/// # Errors
/// When the database fails.
pub async fn next(db: &Db, seal: &Seal) -> Result<Option<Part>, StoreError> {
    let row: Option<(i64, String, i64, Option<Vec<u8>>)> = db.fetch_optional(NEXT, vec![]).await?;
    Ok(row.map(|(part_id, import_id, account_id, keys)| Part {
        part_id,
        account_id: AccountId(account_id),
        keys: keys.and_then(|keys| seal.open(TABLE, &import_id, &keys).ok()),
    }))
}

fn count(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Notes that a part was taken in, and forgets its keys.
///
/// # Errors
/// When the database fails.
pub async fn take(tx: &mut Tx, part_id: i64, counts: &Counts, now: Timestamp) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE key_imports SET keys = NULL, taken_at = $2, new_count = $3, better_count = $4, \
         known_count = $5, unwanted_count = $6, bad_count = $7 WHERE part_id = $1",
        values![
            part_id,
            now,
            count(counts.new),
            count(counts.better),
            count(counts.known),
            count(counts.unwanted),
            count(counts.bad),
        ],
    )
    .await?;
    Ok(())
}

/// How far an import is.
///
/// # Errors
/// When the database fails.
pub async fn state(db: &Db, import_id: &str) -> Result<State, StoreError> {
    // PostgreSQL's SUM of BIGINT is NUMERIC.
    let row: Option<(i64, i64, i64, i64, i64, i64, i64)> = db
        .fetch_optional(
            "SELECT COUNT(*), COUNT(taken_at), \
             CAST(COALESCE(SUM(new_count), 0) AS BIGINT), CAST(COALESCE(SUM(better_count), 0) AS BIGINT), \
             CAST(COALESCE(SUM(known_count), 0) AS BIGINT), \
             CAST(COALESCE(SUM(unwanted_count), 0) AS BIGINT), \
             CAST(COALESCE(SUM(bad_count), 0) AS BIGINT) FROM key_imports WHERE import_id = $1",
            values![import_id],
        )
        .await?;
    let (parts, taken, new, better, known, unwanted, bad) = row.unwrap_or_default();
    let number = |number: i64| u64::try_from(number).unwrap_or(0);
    Ok(State {
        part_count: number(parts),
        taken_count: number(taken),
        counts: Counts {
            new: number(new),
            better: number(better),
            known: number(known),
            unwanted: number(unwanted),
            bad: number(bad),
        },
    })
}

/// Forgets an import.
///
/// # Errors
/// When the database fails.
pub async fn delete(tx: &mut Tx, import_id: &str) -> Result<u64, StoreError> {
    tx.execute("DELETE FROM key_imports WHERE import_id = $1", values![import_id]).await
}

/// Forgets parts that were taken in before a time, whose command never came back for them.
///
/// # Errors
/// When the database fails.
pub async fn prune(tx: &mut Tx, before: Timestamp) -> Result<u64, StoreError> {
    tx.execute("DELETE FROM key_imports WHERE taken_at IS NOT NULL AND taken_at < $1", values![before]).await
}

#[cfg(test)]
#[path = "conformance/key_imports.rs"]
mod conformance;
