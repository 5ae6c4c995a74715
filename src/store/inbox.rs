//! What came in: a row for each transaction of the homeserver and each page of the key lane, in the order in
//! which they came, until it is worked through; only parts of timelines go before all others. Bodies are
//! sealed; a worked-through row keeps only its hash, by which a repeat is known.

use ruma::TransactionId;
use sha2::{Digest, Sha256};

use super::{Db, Seal, StoreError, Tx, db::values};
use crate::{clock::Timestamp, model::AccountId};

/// The most rows that one [`prune`] deletes, so that it holds no lock for long.
pub const PRUNE_BATCH: u64 = 500;

/// The number of a row: rows are worked through in its order, those of timelines first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InboxId(pub i64);

/// Whether a transaction was seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is stored now.
    New,
    /// The same content came before under the same id.
    Repeat,
}

/// Where a row came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The homeserver pushed it: a transaction's body.
    Push,
    /// The key lane of this account: a [`SyncPage`](crate::model::SyncPage) as JSON.
    Lane(AccountId),
    /// The state of a room, read by one of the accounts.
    State,
    /// The timeline of a room: events that were not pushed, oldest first, each followed by what came after it
    /// whether that was pushed or not. In the form of a transaction's body.
    Missed,
}

/// A row that waits to be worked through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboxRow {
    /// Its number.
    pub inbox_id: InboxId,
    /// Where it came from.
    pub source: Source,
    /// What came, as it came; `None` when it does not open any more.
    pub body: Option<Vec<u8>>,
    /// When it came.
    pub received_at: Timestamp,
}

/// How much waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    /// The number of waiting rows.
    pub count: u64,
    /// When the first of them came.
    pub oldest_at: Option<Timestamp>,
}

/// The row that a body is sealed for: its hash in hexadecimal, which is known before its number.
fn row(content_hash: &[u8]) -> String {
    content_hash.iter().fold(String::with_capacity(64), |mut hex, byte| {
        for nibble in [byte >> 4, byte & 15] {
            hex.extend(char::from_digit(nibble.into(), 16));
        }
        hex
    })
}

/// A body that is ready to be stored.
#[derive(Debug)]
pub struct SealedBody {
    content_hash: Vec<u8>,
    sealed: Vec<u8>,
}

/// Hashes and seals a body. Takes a while for a large one: before the transaction begins, and not on a thread
/// that others wait for.
///
/// # Errors
/// Never in practice, as [`Seal::seal`].
pub fn seal_body(seal: &Seal, body: &[u8]) -> Result<SealedBody, StoreError> {
    let content_hash = Sha256::digest(body).to_vec();
    let sealed = seal.seal("inbox", &row(&content_hash), body)?;
    Ok(SealedBody { content_hash, sealed })
}

/// Opens a body that was sealed by [`seal_body`].
///
/// # Errors
/// When it does not open.
pub(super) fn open_body(seal: &Seal, content_hash: &[u8], sealed: &[u8]) -> Result<Vec<u8>, StoreError> {
    seal.open("inbox", &row(content_hash), sealed)
}

/// Stores a transaction and answers whether it is new.
///
/// Homeservers resend a transaction until they read a 200, so a repeat is a success that changes nothing
/// ([spec](https://spec.matrix.org/latest/application-service-api/#pushing-events)). Other content under a
/// known id is new: a retry drops what is not an event, and ids start again after a homeserver's restart.
///
/// # Errors
/// Only when the database fails; the caller must then not answer 200.
pub async fn accept(
    tx: &mut Tx,
    txn_id: &TransactionId,
    body: SealedBody,
    now: Timestamp,
) -> Result<Accepted, StoreError> {
    let touched = tx
        .execute(
            "INSERT INTO inbox (source, txn_id, content_hash, body, received_at) \
             VALUES ('push', $1, $2, $3, $4) \
             ON CONFLICT (txn_id, content_hash) WHERE txn_id IS NOT NULL DO NOTHING",
            values![txn_id.as_str(), body.content_hash, body.sealed, now],
        )
        .await?;
    Ok(if touched == 0 { Accepted::Repeat } else { Accepted::New })
}

/// Stores a page of an account's key lane. The caller keeps the lane's position in the same transaction.
///
/// # Errors
/// When the database fails; the position must then stay.
pub async fn accept_lane(
    tx: &mut Tx,
    account_id: AccountId,
    body: SealedBody,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO inbox (source, account_id, content_hash, body, received_at) \
         VALUES ('lane', $1, $2, $3, $4)",
        values![account_id.0, body.content_hash, body.sealed, now],
    )
    .await?;
    Ok(())
}

/// Stores the state of a room that was asked for. The caller takes the errand off in the same transaction.
///
/// # Errors
/// When the database fails.
pub async fn accept_state(tx: &mut Tx, body: SealedBody, now: Timestamp) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO inbox (source, content_hash, body, received_at) VALUES ('state', $1, $2, $3)",
        values![body.content_hash, body.sealed, now],
    )
    .await?;
    Ok(())
}

/// Stores a part of a room's timeline that was not pushed, before all that waits: what followed it may wait
/// already. The caller keeps how far timelines were compared in the same transaction.
///
/// # Errors
/// When the database fails; that position must then stay.
pub async fn accept_missed(tx: &mut Tx, body: SealedBody, now: Timestamp) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO inbox (source, rank, content_hash, body, received_at) VALUES ('missed', 0, $1, $2, $3)",
        values![body.content_hash, body.sealed, now],
    )
    .await?;
    Ok(())
}

/// A waiting row: number, source, account of the lane, hash, sealed body, time.
type WaitingRow = (i64, String, Option<i64>, Vec<u8>, Option<Vec<u8>>, i64);

// The inner SELECTs end after $1 rows whatever waits behind them, and take lengths without reading bodies.
const WAITING: &str = "SELECT inbox.inbox_id, source, account_id, content_hash, body, received_at FROM ( \
         SELECT inbox_id, SUM(length) OVER (ORDER BY rank, inbox_id) - length AS bytes_before FROM ( \
             SELECT inbox_id, rank, COALESCE(LENGTH(body), 0) AS length FROM inbox \
             WHERE processed_at IS NULL ORDER BY rank, inbox_id LIMIT $1 \
         ) AS first_rows \
     ) AS sized \
     JOIN inbox ON inbox.inbox_id = sized.inbox_id \
     WHERE bytes_before < $2 ORDER BY inbox.rank, inbox.inbox_id";

/// The rows to work through next, in order: `most_rows` at most, and no further row once the bodies reach
/// `most_bytes`; so a single row of any size always comes.
///
/// # Errors
/// When the database fails, or a body does not open.
pub async fn waiting(
    db: &Db,
    seal: &Seal,
    most_rows: u32,
    most_bytes: u64,
) -> Result<Vec<InboxRow>, StoreError> {
    let most_bytes = i64::try_from(most_bytes).unwrap_or(i64::MAX);
    let rows: Vec<WaitingRow> = db.fetch_all(WAITING, values![i64::from(most_rows), most_bytes]).await?;
    rows.into_iter()
        .map(|(inbox_id, source, account_id, content_hash, body, received_at)| {
            let sealed = body.ok_or(StoreError::Corrupt("inbox"))?;
            Ok(InboxRow {
                inbox_id: InboxId(inbox_id),
                source: match (source.as_str(), account_id) {
                    ("push", None) => Source::Push,
                    ("lane", Some(id)) => Source::Lane(AccountId(id)),
                    ("state", None) => Source::State,
                    ("missed", None) => Source::Missed,
                    _ => return Err(StoreError::Corrupt("inbox")),
                },
                body: seal.open("inbox", &row(&content_hash), &sealed).ok(),
                received_at: Timestamp(received_at),
            })
        })
        .collect()
}

/// Marks rows as worked through and forgets their bodies, in the transaction that stores what became of them.
///
/// # Errors
/// [`StoreError::LeaseLost`] when one of them is worked through already, as only another worker can have done.
pub async fn mark_processed(tx: &mut Tx, ids: &[InboxId], now: Timestamp) -> Result<(), StoreError> {
    let touched = tx
        .execute_many(
            "UPDATE inbox SET body = NULL, processed_at = $1 \
             WHERE processed_at IS NULL AND inbox_id IN (VALUES {rows})",
            values![now],
            ids.iter().map(|id| values![id.0]).collect(),
        )
        .await?;
    if usize::try_from(touched) == Ok(ids.len()) { Ok(()) } else { Err(StoreError::LeaseLost) }
}

/// Counts a try at each of these rows, and answers those that have had more than `most`.
///
/// # Errors
/// When the database fails.
pub async fn count_tries(tx: &mut Tx, ids: &[InboxId], most: i64) -> Result<Vec<InboxId>, StoreError> {
    let tried: Vec<(i64, i64)> = tx
        .fetch_many(
            "UPDATE inbox SET tries = tries + 1 WHERE inbox_id IN (VALUES {rows}) RETURNING inbox_id, tries",
            vec![],
            ids.iter().map(|id| values![id.0]).collect(),
        )
        .await?;
    Ok(tried.into_iter().filter(|(_, tries)| *tries > most).map(|(id, _)| InboxId(id)).collect())
}

/// Takes rows out of the line without working them through. Their bodies stay, for a person to look at.
///
/// # Errors
/// When the database fails.
pub async fn set_aside(tx: &mut Tx, ids: &[InboxId], now: Timestamp) -> Result<(), StoreError> {
    tx.execute_many(
        "UPDATE inbox SET processed_at = $1 WHERE processed_at IS NULL AND inbox_id IN (VALUES {rows})",
        values![now],
        ids.iter().map(|id| values![id.0]).collect(),
    )
    .await?;
    Ok(())
}

const DEPTH: &str = "SELECT COUNT(*), MIN(received_at) FROM inbox WHERE processed_at IS NULL";

/// How much waits.
///
/// # Errors
/// When the database fails.
pub async fn depth(db: &Db) -> Result<Depth, StoreError> {
    let row: Option<(i64, Option<i64>)> = db.fetch_optional(DEPTH, vec![]).await?;
    let (count, oldest_at) = row.unwrap_or_default();
    Ok(Depth { count: u64::try_from(count).unwrap_or(0), oldest_at: oldest_at.map(Timestamp) })
}

const PRUNE: &str = "DELETE FROM inbox WHERE inbox_id IN ( \
         SELECT inbox_id FROM inbox WHERE processed_at IS NOT NULL AND processed_at < $1 AND body IS NULL \
         ORDER BY processed_at LIMIT $2)";

/// Deletes rows that were worked through before a time, [`PRUNE_BATCH`] at most, and answers how many; as many
/// as that, and there may be more. A transaction that is repeated later counts as new.
///
/// # Errors
/// When the database fails.
pub async fn prune(tx: &mut Tx, before: Timestamp) -> Result<u64, StoreError> {
    tx.execute(PRUNE, values![before, i64::try_from(PRUNE_BATCH).unwrap_or(i64::MAX)]).await
}

#[cfg(test)]
#[path = "conformance/inbox.rs"]
mod conformance;
