//! Room keys that events on the ledger wait for, and whom we asked for them.
//!
//! A row is written before its request is sent, so that a process that dies in between neither forgets it nor
//! asks again at once; and a forwarded key is taken only from the device of a row, for the row's session.

use std::collections::BTreeSet;

use super::{
    Db, Seal, StoreError, Tx,
    db::{Values, values},
};
use crate::{clock::Timestamp, model::AccountId};

/// A session that nobody was asked for yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The room.
    pub room_id: String,
    /// The Megolm session.
    pub session_id: String,
    /// The bridge bot that the room believably names.
    pub bridge_bot: Option<String>,
    /// One of the events that wait for it, as it came.
    pub event: Vec<u8>,
}

/// A device to be asked, or asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRequest {
    /// The account that asks.
    pub account_id: AccountId,
    /// The room.
    pub room_id: String,
    /// The Megolm session.
    pub session_id: String,
    /// Whose device.
    pub user_id: String,
    /// The device; `*` for the account's own other ones.
    pub device_id: String,
    /// The device's Curve25519 key; empty with `*`.
    pub sender_key: String,
    /// The id of the request and of its cancellation.
    pub request_id: String,
    /// How often it was asked.
    pub tries: i64,
}

/// Room, session, bridge bot, event id, event.
type WantedRow = (String, String, Option<String>, String, Vec<u8>);

type RequestRow = (i64, String, String, String, String, String, String, i64);

fn request(row: RequestRow) -> KeyRequest {
    let (account_id, room_id, session_id, user_id, device_id, sender_key, request_id, tries) = row;
    let account_id = AccountId(account_id);
    KeyRequest { account_id, room_id, session_id, user_id, device_id, sender_key, request_id, tries }
}

/// Sessions that events on the ledger wait for and that nobody was asked for, those of the newest events first.
///
/// # Errors
/// When the database fails or an event does not open.
pub async fn wanted(db: &Db, seal: &Seal, most: i64) -> Result<Vec<Wanted>, StoreError> {
    let rows: Vec<WantedRow> = db
        .fetch_all(
            "SELECT e.room_id, e.session_id, r.bridge_bot, e.event_id, e.event FROM pending_events e \
             JOIN rooms r ON r.room_id = e.room_id \
             WHERE e.position IN ( \
                 SELECT MAX(p.position) FROM pending_events p WHERE p.state = 'ledger' \
                 AND p.session_id IS NOT NULL \
                 AND (p.reason IN ('no_key', 'before_join', 'unknown_index') OR p.reason LIKE 'withheld:%') \
                 AND NOT EXISTS (SELECT 1 FROM key_requests q \
                     WHERE q.room_id = p.room_id AND q.session_id = p.session_id) \
                 GROUP BY p.room_id, p.session_id \
             ) AND r.relay = 'yes' ORDER BY e.position DESC LIMIT $1",
            values![most],
        )
        .await?;
    rows.into_iter()
        .map(|(room_id, session_id, bridge_bot, event_id, event)| {
            let event = seal.open("pending_events", &event_id, &event)?;
            Ok(Wanted { room_id, session_id, bridge_bot, event })
        })
        .collect()
}

/// Plans requests; one that is planned already keeps its turn.
///
/// # Errors
/// When the database fails.
pub async fn plan(
    tx: &mut Tx,
    requests: &[KeyRequest],
    now: Timestamp,
    next_at: Timestamp,
) -> Result<(), StoreError> {
    let rows = requests.iter().map(|request| {
        values![
            request.account_id.0,
            request.room_id.as_str(),
            request.session_id.as_str(),
            request.user_id.as_str(),
            request.device_id.as_str(),
            request.sender_key.as_str(),
            request.request_id.as_str(),
            request.tries,
            now,
            next_at,
        ]
    });
    tx.execute_many(
        "INSERT INTO key_requests (account_id, room_id, session_id, user_id, device_id, sender_key, \
         request_id, tries, created_at, next_at) VALUES {rows} \
         ON CONFLICT (account_id, room_id, session_id, user_id, device_id) DO NOTHING",
        vec![],
        rows.collect(),
    )
    .await?;
    Ok(())
}

const DUE: &str = "SELECT account_id, room_id, session_id, user_id, device_id, sender_key, request_id, tries \
                   FROM key_requests WHERE next_at <= $1 ORDER BY next_at LIMIT $2";

/// Requests whose turn it is, the longest due first.
///
/// # Errors
/// When the database fails.
pub async fn due(db: &Db, now: Timestamp, most: i64) -> Result<Vec<KeyRequest>, StoreError> {
    let rows: Vec<RequestRow> = db.fetch_all(DUE, values![now, most]).await?;
    Ok(rows.into_iter().map(request).collect())
}

/// Requests that no event on the ledger waits for any more.
///
/// # Errors
/// When the database fails.
pub async fn settled(db: &Db, most: i64) -> Result<Vec<KeyRequest>, StoreError> {
    let rows: Vec<RequestRow> = db
        .fetch_all(
            "SELECT account_id, room_id, session_id, user_id, device_id, sender_key, request_id, tries \
             FROM key_requests q WHERE NOT EXISTS (SELECT 1 FROM pending_events p \
                 WHERE p.room_id = q.room_id AND p.session_id = q.session_id AND p.state = 'ledger' \
                 AND (p.reason IN ('no_key', 'before_join', 'unknown_index') OR p.reason LIKE 'withheld:%')) LIMIT $1",
            values![most],
        )
        .await?;
    Ok(rows.into_iter().map(request).collect())
}

/// The values $1 to $5 that a request is found by, and those after them.
fn placed(request: &KeyRequest, others: Values) -> Values {
    let mut values = values![
        request.account_id.0,
        request.room_id.as_str(),
        request.session_id.as_str(),
        request.user_id.as_str(),
        request.device_id.as_str(),
    ];
    values.extend(others);
    values
}

/// Counts a try, and sets when the next one is due.
///
/// # Errors
/// When the database fails.
pub async fn reschedule(tx: &mut Tx, request: &KeyRequest, next_at: Timestamp) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE key_requests SET tries = tries + 1, next_at = $6 WHERE account_id = $1 AND room_id = $2 \
         AND session_id = $3 AND user_id = $4 AND device_id = $5",
        placed(request, values![next_at]),
    )
    .await?;
    Ok(())
}

/// Notes the id under which our own devices were asked.
///
/// # Errors
/// When the database fails.
pub async fn set_request_id(tx: &mut Tx, request: &KeyRequest, request_id: &str) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE key_requests SET request_id = $6 WHERE account_id = $1 AND room_id = $2 \
         AND session_id = $3 AND user_id = $4 AND device_id = $5",
        placed(request, values![request_id]),
    )
    .await?;
    Ok(())
}

/// Forgets a request.
///
/// # Errors
/// When the database fails.
pub async fn delete(tx: &mut Tx, request: &KeyRequest) -> Result<(), StoreError> {
    tx.execute(
        "DELETE FROM key_requests WHERE account_id = $1 AND room_id = $2 AND session_id = $3 \
         AND user_id = $4 AND device_id = $5",
        placed(request, values![]),
    )
    .await?;
    Ok(())
}

const ASKED: &str = "SELECT q.account_id, q.room_id, q.session_id, q.user_id, q.device_id, q.sender_key, \
                     q.request_id, q.tries FROM (VALUES {rows}) AS v JOIN key_requests q \
                     ON q.account_id = $1 AND q.user_id = v.column1 AND q.sender_key = v.column2 \
                     WHERE q.tries > 0";

/// What an account has asked of devices, each named by its user and its Curve25519 key.
///
/// # Errors
/// When the database fails.
pub async fn asked(
    db: &Db,
    account_id: AccountId,
    devices: &BTreeSet<(&str, &str)>,
) -> Result<Vec<KeyRequest>, StoreError> {
    let devices = devices.iter().map(|(user_id, sender_key)| values![*user_id, *sender_key]).collect();
    let rows: Vec<RequestRow> = db.fetch_many(ASKED, values![account_id.0], devices).await?;
    Ok(rows.into_iter().map(request).collect())
}

/// How many requests are out for each device (user, device), by account.
///
/// # Errors
/// When the database fails.
pub async fn outstanding(db: &Db) -> Result<Vec<(AccountId, String, String, i64)>, StoreError> {
    let rows: Vec<(i64, String, String, i64)> = db
        .fetch_all(
            "SELECT account_id, user_id, device_id, COUNT(*) FROM key_requests WHERE tries > 0 \
             GROUP BY account_id, user_id, device_id",
            vec![],
        )
        .await?;
    Ok(rows.into_iter().map(|(id, user, device, count)| (AccountId(id), user, device, count)).collect())
}

/// How often the keys of these sessions (room and session id) were asked for, and when they are next.
///
/// # Errors
/// When the database fails.
pub async fn progress(
    db: &Db,
    sessions: &[(&str, &str)],
) -> Result<Vec<(String, String, i64, Timestamp)>, StoreError> {
    let rows: Vec<(String, String, i64, i64)> = db
        .fetch_many(
            "SELECT room_id, session_id, CAST(SUM(tries) AS BIGINT), MIN(next_at) FROM key_requests \
             WHERE (room_id, session_id) IN (VALUES {rows}) GROUP BY room_id, session_id",
            vec![],
            sessions.iter().map(|(room_id, session_id)| values![*room_id, *session_id]).collect(),
        )
        .await?;
    let progress = |(room, session, tries, next_at)| (room, session, tries, Timestamp(next_at));
    Ok(rows.into_iter().map(progress).collect())
}

/// Counts what became of a forwarded key.
///
/// # Errors
/// When the database fails.
pub async fn count_forward(
    tx: &mut Tx,
    account_id: AccountId,
    outcome: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO key_forwards (account_id, outcome, forward_count, last_at) VALUES ($1, $2, 1, $3) \
         ON CONFLICT (account_id, outcome) DO UPDATE SET \
         forward_count = key_forwards.forward_count + 1, last_at = excluded.last_at",
        values![account_id.0, outcome, now],
    )
    .await?;
    Ok(())
}

/// What became of forwarded keys: outcome and count.
///
/// # Errors
/// When the database fails.
pub async fn forwards(db: &Db, account_id: AccountId) -> Result<Vec<(String, i64)>, StoreError> {
    db.fetch_all(
        "SELECT outcome, forward_count FROM key_forwards WHERE account_id = $1 ORDER BY outcome",
        values![account_id.0],
    )
    .await
}

#[cfg(test)]
#[path = "conformance/key_requests.rs"]
mod conformance;
