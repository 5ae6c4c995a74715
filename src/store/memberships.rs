//! Which of our accounts is what to which room, and which invites wait for an answer.
//!
//! Only the process that works the crypto writes here, under its lease.

use std::collections::HashMap;

use ruma::{OwnedRoomId, OwnedUserId, RoomId};

use super::{Db, StoreError, Tx, db::values};
use crate::{
    clock::Timestamp,
    model::{AccountId, Membership, Relay},
};

const CORRUPT: StoreError = StoreError::Corrupt("room_accounts");

/// An invite that waits for an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueInvite {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Who is invited, or is to be.
    pub account_id: AccountId,
    /// `invite`, or `wanted` when the account is still to be invited.
    pub membership: Membership,
    /// Who invites.
    pub inviter: Option<OwnedUserId>,
    /// How often an answer was tried.
    pub tries: i64,
}

/// What became of one account's membership of a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembershipChange {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The account.
    pub account_id: AccountId,
    /// What it is now.
    pub membership: Membership,
    /// Who invited, for an invite.
    pub inviter: Option<OwnedUserId>,
}

/// Writes memberships; an invite becomes due at once, and who invited stays known of an account that joins.
///
/// # Errors
/// When the database fails.
pub async fn put(tx: &mut Tx, changes: &[MembershipChange], now: Timestamp) -> Result<(), StoreError> {
    // Two changes of one row in one statement are an error in PostgreSQL: the last one counts.
    let mut last = HashMap::new();
    for change in changes {
        last.insert((&change.room_id, change.account_id), change);
    }
    let row = |change: &MembershipChange| {
        let due_at = (change.membership == Membership::Invite).then_some(now);
        let inviter = change.inviter.as_ref().map(|inviter| inviter.as_str());
        let membership = change.membership.as_str();
        values![change.room_id.as_str(), change.account_id.0, membership, inviter, due_at, 0_i64]
    };
    let rows = last.into_values().map(row).collect();
    tx.execute_many(
        "INSERT INTO room_accounts (room_id, account_id, membership, inviter, due_at, tries) VALUES {rows} \
         ON CONFLICT (room_id, account_id) DO UPDATE SET membership = excluded.membership, \
         inviter = COALESCE(excluded.inviter, \
             CASE WHEN excluded.membership = 'join' THEN room_accounts.inviter END), \
         due_at = excluded.due_at, tries = 0",
        vec![],
        rows,
    )
    .await?;
    Ok(())
}

/// Asks for an account to be invited to rooms that it has nothing to do with yet.
///
/// # Errors
/// When the database fails.
pub async fn want(
    tx: &mut Tx,
    room_ids: &[&RoomId],
    account_id: AccountId,
    now: Timestamp,
) -> Result<(), StoreError> {
    let wanted = Membership::Wanted.as_str();
    tx.execute_many(
        "INSERT INTO room_accounts (room_id, account_id, membership, due_at, tries) VALUES {rows} \
         ON CONFLICT (room_id, account_id) DO NOTHING",
        vec![],
        room_ids.iter().map(|room_id| values![room_id.as_str(), account_id.0, wanted, now, 0_i64]).collect(),
    )
    .await?;
    Ok(())
}

/// As [`want`], for every bridged room that is relayed.
///
/// # Errors
/// When the database fails.
pub async fn want_bridged(tx: &mut Tx, account_id: AccountId, now: Timestamp) -> Result<u64, StoreError> {
    tx.execute(
        "INSERT INTO room_accounts (room_id, account_id, membership, due_at, tries) \
         SELECT room_id, $1, $2, $3, 0 FROM rooms WHERE relay = 'yes' AND bridge_bot IS NOT NULL \
         ON CONFLICT (room_id, account_id) DO NOTHING",
        values![account_id.0, Membership::Wanted.as_str(), now],
    )
    .await
}

/// A relayed room of a bridge bot's that an account has joined.
///
/// # Errors
/// When the database fails.
pub async fn shared_with_bot(
    db: &Db,
    account_id: AccountId,
    bot: &ruma::UserId,
) -> Result<Option<OwnedRoomId>, StoreError> {
    let row: Option<(String,)> = db
        .fetch_optional(
            "SELECT r.room_id FROM rooms r JOIN room_accounts a ON a.room_id = r.room_id \
             WHERE r.bridge_bot = $1 AND r.relay = 'yes' AND a.account_id = $2 AND a.membership = 'join' LIMIT 1",
            values![bot.as_str(), account_id.0],
        )
        .await?;
    row.map(|(room_id,)| OwnedRoomId::try_from(room_id).map_err(|_| CORRUPT)).transpose()
}

/// A room that replaces another which an account is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Successor {
    /// The new room.
    pub room_id: OwnedRoomId,
    /// The account.
    pub account_id: AccountId,
    /// Who replaced the old room by it.
    pub replaced_by: OwnedUserId,
}

/// Treats the successor of a room as if whoever replaced the room had invited to it, unless the account has
/// something to do with the new room already.
///
/// # Errors
/// When the database fails.
pub async fn follow(tx: &mut Tx, successors: &[Successor], now: Timestamp) -> Result<(), StoreError> {
    let invite = Membership::Invite.as_str();
    let row = |to: &Successor| {
        values![to.room_id.as_str(), to.account_id.0, invite, to.replaced_by.as_str(), now, 0_i64]
    };
    tx.execute_many(
        "INSERT INTO room_accounts (room_id, account_id, membership, inviter, due_at, tries) VALUES {rows} \
         ON CONFLICT (room_id, account_id) DO NOTHING",
        vec![],
        successors.iter().map(row).collect(),
    )
    .await?;
    Ok(())
}

/// What an account is to a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembershipOf {
    /// Its membership.
    pub membership: Membership,
    /// Who invited it, last.
    pub inviter: Option<OwnedUserId>,
    /// Whether the room is relayed.
    pub relay: Relay,
}

/// Finds what an account is to a room.
///
/// # Errors
/// When the database fails.
pub async fn find(
    db: &Db,
    room_id: &RoomId,
    account_id: AccountId,
) -> Result<Option<MembershipOf>, StoreError> {
    let row: Option<(String, Option<String>, Option<String>)> = db
        .fetch_optional(
            "SELECT a.membership, a.inviter, r.relay FROM room_accounts AS a \
             LEFT JOIN rooms AS r ON r.room_id = a.room_id WHERE a.room_id = $1 AND a.account_id = $2",
            values![room_id.as_str(), account_id.0],
        )
        .await?;
    let found = |(membership, inviter, relay): (String, Option<String>, Option<String>)| MembershipOf {
        membership: Membership::parse(&membership),
        inviter: inviter.and_then(|inviter| OwnedUserId::try_from(inviter).ok()),
        relay: relay.as_deref().and_then(Relay::parse).unwrap_or(Relay::Unknown),
    };
    Ok(row.map(found))
}

/// The rooms that an account has joined.
///
/// # Errors
/// When the database fails.
pub async fn joined(db: &Db, account_id: AccountId) -> Result<Vec<OwnedRoomId>, StoreError> {
    let rows: Vec<(String,)> = db
        .fetch_all(
            "SELECT room_id FROM room_accounts WHERE account_id = $1 AND membership = 'join'",
            values![account_id.0],
        )
        .await?;
    rows.into_iter().map(|(room_id,)| OwnedRoomId::try_from(room_id).map_err(|_| CORRUPT)).collect()
}

/// Which accounts have joined a room.
///
/// # Errors
/// When the database fails.
pub async fn members(db: &Db, room_id: &RoomId) -> Result<Vec<AccountId>, StoreError> {
    let rows: Vec<(i64,)> = db
        .fetch_all(
            "SELECT account_id FROM room_accounts WHERE room_id = $1 AND membership = 'join' \
             ORDER BY account_id",
            values![room_id.as_str()],
        )
        .await?;
    Ok(rows.into_iter().map(|(id,)| AccountId(id)).collect())
}

/// Invites that wait for an answer, longest due first.
///
/// # Errors
/// When the database fails.
pub async fn due_invites(db: &Db, now: Timestamp, most: i64) -> Result<Vec<DueInvite>, StoreError> {
    let rows: Vec<(String, i64, String, Option<String>, i64)> = db
        .fetch_all(
            "SELECT room_id, account_id, membership, inviter, tries FROM room_accounts \
             WHERE due_at <= $1 ORDER BY due_at LIMIT $2",
            values![now, most],
        )
        .await?;
    rows.into_iter()
        .map(|(room_id, account_id, membership, inviter, tries)| {
            Ok(DueInvite {
                room_id: OwnedRoomId::try_from(room_id).map_err(|_| CORRUPT)?,
                account_id: AccountId(account_id),
                membership: Membership::parse(&membership),
                inviter: inviter.map(OwnedUserId::try_from).transpose().map_err(|_| CORRUPT)?,
                tries,
            })
        })
        .collect()
}

/// Notes that an invite was answered (`next` is `None`) or is to be tried again.
///
/// # Errors
/// When the database fails.
pub async fn reschedule_invite(
    tx: &mut Tx,
    room_id: &RoomId,
    account_id: AccountId,
    next: Option<Timestamp>,
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE room_accounts SET due_at = $3, tries = tries + 1 WHERE room_id = $1 AND account_id = $2",
        values![room_id.as_str(), account_id.0, next],
    )
    .await?;
    Ok(())
}

/// Puts an invite off without counting a try: nobody was asked.
///
/// # Errors
/// When the database fails.
pub async fn postpone_invite(
    tx: &mut Tx,
    room_id: &RoomId,
    account_id: AccountId,
    until: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE room_accounts SET due_at = $3 WHERE room_id = $1 AND account_id = $2",
        values![room_id.as_str(), account_id.0, until],
    )
    .await?;
    Ok(())
}

/// Makes invites of an account that were left unanswered due again.
///
/// # Errors
/// When the database fails.
pub async fn retry_invites(tx: &mut Tx, now: Timestamp) -> Result<u64, StoreError> {
    tx.execute(
        "UPDATE room_accounts SET due_at = $1, tries = 0 WHERE membership = 'invite' AND due_at IS NULL",
        values![now],
    )
    .await
}
