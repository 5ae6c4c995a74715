//! Leafing through the ledger: for the REST API and the command line, without any ciphertext.

use ruma::RoomId;

use crate::{
    clock::Timestamp,
    model::ledger::Reason,
    store::{Db, StoreError, db::values},
};

/// Which part of the ledger.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter<'a> {
    /// Only events of this room.
    pub room_id: Option<&'a RoomId>,
    /// Only events with exactly this reason; of withheld keys, with this code.
    pub reason: Option<&'a Reason>,
}

/// In which order: by when events were put down, which is nearly the order in which they came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The newest first.
    #[default]
    NewestFirst,
    /// The oldest first.
    OldestFirst,
}

/// When an event on the ledger is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextTry {
    /// As soon as a key of its session is stored, by whichever way it comes.
    WithKey,
    /// Nothing that coucou waits for would help.
    Never,
}

/// An event on the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place, the cursor of the next page.
    pub position: i64,
    /// The event.
    pub event_id: String,
    /// Its room.
    pub room_id: String,
    /// Who sent it.
    pub sender: String,
    /// Its Megolm session, when it names one.
    pub session_id: Option<String>,
    /// Why it could not be decrypted.
    pub reason: Reason,
    /// When it was sent, as its sender's homeserver says.
    pub origin_server_ts: Timestamp,
    /// When it came.
    pub first_seen_at: Timestamp,
    /// Attempts to decrypt it since it is on the ledger.
    pub tries: u64,
    /// When the last of them was.
    pub tried_at: Option<Timestamp>,
    /// When it is tried again.
    pub next_try: NextTry,
    /// When the webhooks were told of it.
    pub notified_at: Option<Timestamp>,
    /// Whether any account has a key of its session by now.
    pub key_is_here: bool,
}

/// Position, event, room, sender, session, reason; sent, came, tries, tried, told; whether the key is here.
type Row =
    (i64, String, String, String, Option<String>, String, i64, i64, i64, Option<i64>, Option<i64>, i64);

/// The two statements for a filter, newest first and oldest first: the place to go on from is $1, the number
/// of rows $2.
macro_rules! page {
    ($filter:literal) => {
        [page!($filter, "position < $1", "position DESC"), page!($filter, "position > $1", "position")]
    };
    ($filter:literal, $from:literal, $order:literal) => {
        concat!(
            "SELECT position, event_id, room_id, sender, session_id, reason, origin_server_ts, received_at, \
             tries, tried_at, notified_at, (SELECT COUNT(*) FROM megolm_inbound_sessions s \
             WHERE s.session_id = p.session_id AND s.room_id = p.room_id) \
             FROM pending_events p WHERE state = 'ledger' AND ",
            $from,
            $filter,
            " ORDER BY ",
            $order,
            " LIMIT $2",
        )
    };
}

pub(super) const ALL: [&str; 2] = page!("");
pub(super) const OF_ROOM: [&str; 2] = page!(" AND room_id = $3");
pub(super) const OF_REASON: [&str; 2] = page!(" AND reason = $3");
pub(super) const OF_ROOM_AND_REASON: [&str; 2] = page!(" AND room_id = $3 AND reason = $4");

/// A page of the ledger, `most` entries from behind `after`, the position of the last entry of the page
/// before, or from the start.
///
/// # Errors
/// When the database fails.
pub async fn page(
    db: &Db,
    filter: Filter<'_>,
    order: Order,
    after: Option<i64>,
    most: u32,
) -> Result<Vec<Entry>, StoreError> {
    let start = match order {
        Order::NewestFirst => i64::MAX,
        Order::OldestFirst => 0,
    };
    let mut values = values![after.unwrap_or(start), i64::from(most)];
    let statements = match (filter.room_id, filter.reason) {
        (None, None) => ALL,
        (Some(_), None) => OF_ROOM,
        (None, Some(_)) => OF_REASON,
        (Some(_), Some(_)) => OF_ROOM_AND_REASON,
    };
    values.extend(filter.room_id.map(|room_id| room_id.as_str().into()));
    values.extend(filter.reason.map(|reason| reason.to_string().into()));
    let [newest_first, oldest_first] = statements;
    let statement = if order == Order::NewestFirst { newest_first } else { oldest_first };
    let rows: Vec<Row> = db.fetch_all(statement, values).await?;
    Ok(rows.into_iter().map(entry).collect())
}

fn entry(
    (position, event_id, room_id, sender, session_id, reason, sent, came, tries, tried, told, keys): Row,
) -> Entry {
    let reason = Reason::parse(&reason);
    Entry {
        position,
        event_id,
        room_id,
        sender,
        session_id,
        next_try: if reason.wants_key() { NextTry::WithKey } else { NextTry::Never },
        reason,
        origin_server_ts: Timestamp(sent),
        first_seen_at: Timestamp(came),
        tries: u64::try_from(tries).unwrap_or(0),
        tried_at: tried.map(Timestamp),
        notified_at: told.map(Timestamp),
        key_is_here: keys > 0,
    }
}

/// How many events are on the ledger, by reason.
///
/// # Errors
/// When the database fails.
pub async fn counts(db: &Db) -> Result<Vec<(Reason, u64)>, StoreError> {
    let rows: Vec<(String, i64)> = db
        .fetch_all(
            "SELECT reason, COUNT(*) FROM pending_events WHERE state = 'ledger' GROUP BY reason ORDER BY reason",
            vec![],
        )
        .await?;
    Ok(rows
        .into_iter()
        .map(|(reason, count)| (Reason::parse(&reason), u64::try_from(count).unwrap_or(0)))
        .collect())
}
