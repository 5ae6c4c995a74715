//! Rooms, and what is known of them.
//!
//! Only the process that works the crypto writes here, under its lease; work that needs the homeserver
//! (reading a room's state) is a `due_at` on the row, so that it survives a restart.

pub mod read;

use std::collections::{BTreeSet, HashMap, HashSet};

use ruma::{OwnedRoomId, OwnedUserId, RoomId};

use super::{Db, Seal, StoreError, Tx, db::values};
use crate::{
    clock::Timestamp,
    model::{AccountId, Relay},
};

const TABLE: &str = "rooms";
const CORRUPT: StoreError = StoreError::Corrupt(TABLE);

/// A room as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomRow {
    /// Whether its messages are relayed.
    pub relay: Relay,
    /// The network it is bridged to, for statistics.
    pub network: Option<String>,
    /// The bridge bot that is believed, so that its invites to other rooms are known.
    pub bridge_bot: Option<OwnedUserId>,
    /// The serialised state, as its owner wrote it.
    pub state: Option<Vec<u8>>,
    /// The sequence of the room's newest message; 0 before the first.
    pub last_sequence: i64,
    /// Since when readings of its state say that it is not relayed, as long as that is not settled.
    pub unrelayed_since: Option<Timestamp>,
    /// The believed bridge bot whose management room it is; of a room that is not relayed.
    pub managed_by: Option<OwnedUserId>,
}

impl RoomRow {
    /// A room of which nothing is known but whether it is relayed.
    #[must_use]
    pub fn bare(relay: Relay) -> Self {
        Self {
            relay,
            network: None,
            bridge_bot: None,
            state: None,
            last_sequence: 0,
            unrelayed_since: None,
            managed_by: None,
        }
    }
}

/// A room whose state is to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueRoom {
    /// The room.
    pub room_id: OwnedRoomId,
    /// How often it was tried.
    pub tries: i64,
    /// `true` when it is relayed already.
    pub is_relayed: bool,
    /// Since when it was due.
    pub due_at: Timestamp,
}

/// The rooms of that list that are stored.
///
/// # Errors
/// When the database fails or a row does not open.
pub async fn find_many(
    db: &Db,
    seal: &Seal,
    room_ids: &[&RoomId],
) -> Result<HashMap<OwnedRoomId, RoomRow>, StoreError> {
    type FoundRow =
        (String, String, Option<String>, Option<String>, Option<Vec<u8>>, i64, Option<i64>, Option<String>);
    let rows: Vec<FoundRow> = db
        .fetch_many(
            "SELECT room_id, relay, network, bridge_bot, state, last_sequence, unrelayed_since, managed_by \
             FROM rooms WHERE room_id IN (VALUES {rows})",
            vec![],
            room_ids.iter().map(|room_id| values![room_id.as_str()]).collect(),
        )
        .await?;
    rows.into_iter()
        .map(|(room_id, relay, network, bridge_bot, state, last_sequence, since, managed_by)| {
            let user = |id: Option<String>| id.map(OwnedUserId::try_from).transpose().map_err(|_| CORRUPT);
            let state = state.map(|state| seal.open(TABLE, &room_id, &state)).transpose()?;
            let row = RoomRow {
                relay: Relay::parse(&relay).ok_or(CORRUPT)?,
                network,
                bridge_bot: user(bridge_bot)?,
                state,
                last_sequence,
                unrelayed_since: since.map(Timestamp),
                managed_by: user(managed_by)?,
            };
            Ok((OwnedRoomId::try_from(room_id).map_err(|_| CORRUPT)?, row))
        })
        .collect()
}

/// Writes rooms whole. `due_at` of a room that is stored already stays as it is.
///
/// # Errors
/// When the database fails.
pub async fn put_many(
    tx: &mut Tx,
    seal: &Seal,
    rooms: &[(OwnedRoomId, RoomRow)],
    now: Timestamp,
) -> Result<(), StoreError> {
    let mut rows = Vec::with_capacity(rooms.len());
    for (room_id, room) in rooms {
        let state = room.state.as_ref().map(|state| seal.seal(TABLE, room_id.as_str(), state)).transpose()?;
        rows.push(values![
            room_id.as_str(),
            room.relay.as_str(),
            room.network.as_deref(),
            room.bridge_bot.as_ref().map(|bot| bot.as_str()),
            state,
            room.last_sequence,
            0_i64,
            now,
            room.unrelayed_since,
            room.managed_by.as_ref().map(|bot| bot.as_str()),
        ]);
    }
    tx.execute_many(
        "INSERT INTO rooms (room_id, relay, network, bridge_bot, state, last_sequence, tries, created_at, \
         unrelayed_since, managed_by) \
         VALUES {rows} ON CONFLICT (room_id) DO UPDATE SET relay = excluded.relay, \
         network = excluded.network, bridge_bot = excluded.bridge_bot, state = excluded.state, \
         last_sequence = excluded.last_sequence, unrelayed_since = excluded.unrelayed_since, \
         managed_by = excluded.managed_by",
        vec![],
        rows,
    )
    .await?;
    Ok(())
}

/// Writes only the newest sequence of rooms.
///
/// # Errors
/// When the database fails.
pub async fn put_sequences(tx: &mut Tx, sequences: &[(OwnedRoomId, i64)]) -> Result<(), StoreError> {
    tx.execute_many(
        "UPDATE rooms SET last_sequence = v.column2 FROM (VALUES {rows}) AS v WHERE room_id = v.column1",
        vec![],
        sequences.iter().map(|(room_id, last)| values![room_id.as_str(), *last]).collect(),
    )
    .await?;
    Ok(())
}

/// Makes rows for rooms that have none, with their state due to be read; rooms that are stored stay as they
/// are.
///
/// # Errors
/// When the database fails.
pub async fn ensure(tx: &mut Tx, room_ids: &[&RoomId], now: Timestamp) -> Result<(), StoreError> {
    let unknown = Relay::Unknown.as_str();
    let rows =
        room_ids.iter().map(|room_id| values![room_id.as_str(), unknown, 0_i64, now, 0_i64, now]).collect();
    tx.execute_many(
        "INSERT INTO rooms (room_id, relay, last_sequence, due_at, tries, created_at) VALUES {rows} \
         ON CONFLICT (room_id) DO NOTHING",
        vec![],
        rows,
    )
    .await?;
    Ok(())
}

/// Whether a user is the believed bridge bot of a relayed room in which an account is: of one that its user has
/// joined, so that nobody becomes a bridge by making a room.
///
/// # Errors
/// When the database fails.
pub async fn is_bridge_bot(
    db: &Db,
    user_id: &ruma::UserId,
    account_id: AccountId,
) -> Result<bool, StoreError> {
    let found: Option<(i64,)> = db
        .fetch_optional(
            "SELECT CAST(1 AS BIGINT) FROM rooms r JOIN room_accounts a ON a.room_id = r.room_id \
             WHERE r.bridge_bot = $1 AND r.relay = 'yes' AND a.account_id = $2 AND a.membership = 'join' LIMIT 1",
            values![user_id.as_str(), account_id.0],
        )
        .await?;
    Ok(found.is_some())
}

/// Relayed rooms with a bridge, those first that became known last.
///
/// # Errors
/// When the database fails.
pub async fn latest_bridged(db: &Db, most: i64) -> Result<Vec<OwnedRoomId>, StoreError> {
    let rows: Vec<(String,)> = db
        .fetch_all(
            "SELECT room_id FROM rooms WHERE relay = 'yes' AND bridge_bot IS NOT NULL \
             ORDER BY created_at DESC, room_id LIMIT $1",
            values![most],
        )
        .await?;
    rows.into_iter().map(|(room_id,)| OwnedRoomId::try_from(room_id).map_err(|_| CORRUPT)).collect()
}

/// Those of these rooms that have a bridge, or that a bot claims in vain.
///
/// # Errors
/// When the database fails.
pub async fn bridged(
    db: &Db,
    room_ids: impl IntoIterator<Item = &str>,
) -> Result<HashSet<String>, StoreError> {
    let room_ids: BTreeSet<&str> = room_ids.into_iter().collect();
    let row = || room_ids.iter().map(|id| values![*id]).collect::<Vec<_>>();
    let with_bridge: Vec<(String,)> = db
        .fetch_many(
            "SELECT room_id FROM rooms WHERE bridge_bot IS NOT NULL AND room_id IN (VALUES {rows})",
            vec![],
            row(),
        )
        .await?;
    let claimed: Vec<(String,)> = db
        .fetch_many(
            "SELECT DISTINCT room_id FROM bridge_conflicts WHERE room_id IN (VALUES {rows})",
            vec![],
            row(),
        )
        .await?;
    Ok(with_bridge.into_iter().chain(claimed).map(|(room_id,)| room_id).collect())
}

/// Returns all relayed rooms that an account is in, each with the first such account.
///
/// # Errors
/// When the database fails.
pub async fn relayed(db: &Db) -> Result<Vec<(OwnedRoomId, AccountId)>, StoreError> {
    let rows: Vec<(String, i64)> = db
        .fetch_all(
            "SELECT r.room_id, MIN(a.account_id) FROM rooms r JOIN room_accounts a ON a.room_id = r.room_id \
             WHERE r.relay = 'yes' AND a.membership = 'join' GROUP BY r.room_id ORDER BY r.room_id",
            vec![],
        )
        .await?;
    let room = |(room_id, account_id)| {
        let room_id = OwnedRoomId::try_from(room_id).map_err(|_: ruma::IdParseError| CORRUPT)?;
        Ok((room_id, AccountId(account_id)))
    };
    rows.into_iter().map(room).collect()
}

/// Asks for rooms' state to be read at `due_at`; the rooms must be stored.
///
/// # Errors
/// When the database fails.
pub async fn set_due(tx: &mut Tx, room_ids: &[&RoomId], due_at: Timestamp) -> Result<(), StoreError> {
    // Another time than the one that is there tells a reading under way that it comes too early.
    tx.execute_many(
        "UPDATE rooms SET due_at = CASE WHEN due_at = $1 THEN $2 ELSE $1 END, tries = 0 \
         WHERE room_id IN (VALUES {rows})",
        values![due_at, Timestamp(due_at.0 - 1)],
        room_ids.iter().map(|room_id| values![room_id.as_str()]).collect(),
    )
    .await?;
    Ok(())
}

/// Asks for the second reading of rooms that the first one takes for unrelayed, unless one is due before.
///
/// # Errors
/// When the database fails.
pub async fn set_second_reading(tx: &mut Tx, rooms: &[(OwnedRoomId, Timestamp)]) -> Result<(), StoreError> {
    tx.execute_many(
        "UPDATE rooms SET due_at = v.column2, tries = 0 FROM (VALUES {rows}) AS v \
         WHERE room_id = v.column1 AND (due_at IS NULL OR due_at > v.column2)",
        vec![],
        rooms.iter().map(|(room_id, due_at)| values![room_id.as_str(), *due_at]).collect(),
    )
    .await?;
    Ok(())
}

/// As [`set_due`], for rooms that are not relayed yet.
///
/// # Errors
/// When the database fails.
pub async fn set_due_unless_relayed(
    tx: &mut Tx,
    room_ids: &[&RoomId],
    due_at: Timestamp,
) -> Result<(), StoreError> {
    tx.execute_many(
        "UPDATE rooms SET due_at = $1, tries = 0 WHERE relay <> 'yes' AND room_id IN (VALUES {rows})",
        values![due_at],
        room_ids.iter().map(|room_id| values![room_id.as_str()]).collect(),
    )
    .await?;
    Ok(())
}

/// Deletes room keys of rooms that are settled not to be relayed: those that a process took in and died before
/// it could delete them. Before any crypto store is opened, which would still know them. Keys of bridges' management rooms
/// stay.
///
/// # Errors
/// When the database fails.
pub async fn delete_unwanted_keys(tx: &mut Tx) -> Result<u64, StoreError> {
    tx.execute(
        "DELETE FROM megolm_claims WHERE room_id IN (SELECT room_id FROM rooms \
         WHERE relay = 'no' AND unrelayed_since IS NULL AND managed_by IS NULL)",
        vec![],
    )
    .await?;
    tx.execute(
        "DELETE FROM megolm_inbound_sessions WHERE room_id IN (SELECT room_id FROM rooms \
         WHERE relay = 'no' AND unrelayed_since IS NULL AND managed_by IS NULL)",
        vec![],
    )
    .await
}

/// Which of these rooms are settled not to be relayed.
///
/// # Errors
/// When the database fails.
pub async fn unrelayed(db: &Db, room_ids: &[&RoomId]) -> Result<HashSet<String>, StoreError> {
    let rows: Vec<(String,)> = db
        .fetch_many(
            "SELECT room_id FROM rooms \
             WHERE relay = 'no' AND unrelayed_since IS NULL AND room_id IN (VALUES {rows})",
            vec![],
            room_ids.iter().map(|room_id| values![room_id.as_str()]).collect(),
        )
        .await?;
    Ok(rows.into_iter().map(|(room_id,)| room_id).collect())
}

/// Asks for the state of all rooms that are not relayed.
///
/// # Errors
/// When the database fails.
pub async fn look_again(tx: &mut Tx, now: Timestamp) -> Result<u64, StoreError> {
    tx.execute("UPDATE rooms SET due_at = $1, tries = 0 WHERE relay = 'no'", values![now]).await
}

/// Asks for the state of rooms that are not relayed and that one of these bots has claimed in vain: by now the
/// settings may name it.
///
/// # Errors
/// When the database fails.
pub async fn look_again_for(tx: &mut Tx, bots: &[OwnedUserId], now: Timestamp) -> Result<(), StoreError> {
    tx.execute_many(
        "UPDATE rooms SET due_at = $1, tries = 0 WHERE relay = 'no' AND room_id IN \
         (SELECT room_id FROM bridge_conflicts WHERE bot IN (VALUES {rows}))",
        values![now],
        bots.iter().map(|bot| values![bot.as_str()]).collect(),
    )
    .await?;
    Ok(())
}

/// Rooms whose state is due to be read, longest due first.
///
/// # Errors
/// When the database fails.
pub async fn due(db: &Db, now: Timestamp, most: i64) -> Result<Vec<DueRoom>, StoreError> {
    let rows: Vec<(String, i64, i64, String)> = db
        .fetch_all(
            "SELECT room_id, tries, due_at, relay FROM rooms WHERE due_at <= $1 ORDER BY due_at LIMIT $2",
            values![now, most],
        )
        .await?;
    rows.into_iter()
        .map(|(room_id, tries, due_at, relay)| {
            let room_id = OwnedRoomId::try_from(room_id).map_err(|_| CORRUPT)?;
            let is_relayed = relay == Relay::Yes.as_str();
            Ok(DueRoom { room_id, tries, is_relayed, due_at: Timestamp(due_at) })
        })
        .collect()
}

/// Notes that a room's state was read (`next` is `None`) or is to be tried again. A room that was asked for once more while
/// it was read stays due: what the reading was asked for again may have come after it.
///
/// # Errors
/// When the database fails.
pub async fn reschedule(tx: &mut Tx, room: &DueRoom, next: Option<Timestamp>) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE rooms SET due_at = $2, tries = tries + 1 WHERE room_id = $1 AND due_at = $3",
        values![room.room_id.as_str(), next, room.due_at],
    )
    .await?;
    Ok(())
}

/// Those of these rooms of which no room key is kept: they are settled not to be relayed, and no bridge's management room.
///
/// # Errors
/// When the database fails.
pub async fn not_relayed(db: &Db, room_ids: &[&str]) -> Result<HashSet<String>, StoreError> {
    let rows: Vec<(String,)> = db
        .fetch_many(
            "SELECT room_id FROM rooms WHERE relay = 'no' AND unrelayed_since IS NULL AND managed_by IS NULL \
             AND room_id IN (VALUES {rows})",
            vec![],
            room_ids.iter().map(|id| values![*id]).collect(),
        )
        .await?;
    Ok(rows.into_iter().map(|(room_id,)| room_id).collect())
}

#[cfg(test)]
#[path = "conformance/rooms.rs"]
mod conformance;
