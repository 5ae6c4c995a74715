//! Members of whom all that they have said is taken back, while their messages are gone through.
//!
//! There may be many messages, so they are gone through in parts, each in a transaction with how far it came; a process
//! that dies goes on where the last part ended. The row goes with the last part.

use ruma::{OwnedRoomId, OwnedUserId};

use super::{Db, Seal, StoreError, Tx, db::values};
use crate::clock::Timestamp;

const TABLE: &str = "member_redactions";
const CORRUPT: StoreError = StoreError::Corrupt(TABLE);

/// A member of whom all is taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRedaction {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The member.
    pub user_id: OwnedUserId,
    /// The membership event that asks for it.
    pub event: Vec<u8>,
    /// When it came.
    pub received_at: Timestamp,
    /// The position of the last message that was gone through.
    pub position: i64,
}

/// A message of such a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Its position.
    pub position: i64,
    /// Its event.
    pub event_id: String,
    /// What it tells.
    pub message_type: String,
    /// Of an edit: the event that it replaces.
    pub replaces: Option<String>,
}

pub(super) const DELETE_WAITING: &str = "DELETE FROM pending_events WHERE room_id = $1 AND sender = $2";

/// Begins to go through the messages of a member, and deletes what waits of them. One that is gone through already goes on
/// from the beginning.
///
/// # Errors
/// When the database fails.
pub async fn put(tx: &mut Tx, seal: &Seal, members: &[MemberRedaction]) -> Result<(), StoreError> {
    for of in members {
        tx.execute(DELETE_WAITING, values![of.room_id.as_str(), of.user_id.as_str()]).await?;
    }
    let mut rows = Vec::with_capacity(members.len());
    for of in members {
        let (room_id, user_id) = (of.room_id.as_str(), of.user_id.as_str());
        let event = seal.seal(TABLE, &name(room_id, user_id), &of.event)?;
        rows.push(values![room_id, user_id, event, of.received_at, of.position]);
    }
    tx.execute_many(
        "INSERT INTO member_redactions (room_id, user_id, event, received_at, position) VALUES {rows} \
         ON CONFLICT (room_id, user_id) DO UPDATE SET event = excluded.event, \
         received_at = excluded.received_at, position = excluded.position",
        vec![],
        rows,
    )
    .await?;
    Ok(())
}

/// What the event of a row is sealed for.
fn name(room_id: &str, user_id: &str) -> String {
    format!("{room_id} {user_id}")
}

/// All members whose messages are gone through.
///
/// # Errors
/// When the database fails or a row does not open.
pub async fn all(db: &Db, seal: &Seal) -> Result<Vec<MemberRedaction>, StoreError> {
    let rows: Vec<(String, String, Vec<u8>, i64, i64)> = db
        .fetch_all(
            "SELECT room_id, user_id, event, received_at, position FROM member_redactions \
             ORDER BY room_id, user_id",
            vec![],
        )
        .await?;
    rows.into_iter()
        .map(|(room_id, user_id, event, received_at, position)| {
            Ok(MemberRedaction {
                event: seal.open(TABLE, &name(&room_id, &user_id), &event)?,
                room_id: room_id.try_into().map_err(|_| CORRUPT)?,
                user_id: user_id.try_into().map_err(|_| CORRUPT)?,
                received_at: Timestamp(received_at),
                position,
            })
        })
        .collect()
}

pub(super) const SAID: &str = "SELECT position, event_id, type, replaces FROM messages \
     WHERE room_id = $1 AND position > $2 AND sender = $3 AND redacted_at IS NULL \
     AND type IN ('message.created', 'message.edited', 'message.undecryptable', 'reaction.created') \
     ORDER BY position LIMIT $4";

/// What a member has said that is not taken back, behind the position that was reached, in order.
///
/// # Errors
/// When the database fails.
pub async fn said(db: &Db, of: &MemberRedaction, most: i64) -> Result<Vec<Said>, StoreError> {
    let values = values![of.room_id.as_str(), of.position, of.user_id.as_str(), most];
    let rows: Vec<(i64, String, String, Option<String>)> = db.fetch_all(SAID, values).await?;
    let said =
        |(position, event_id, message_type, replaces)| Said { position, event_id, message_type, replaces };
    Ok(rows.into_iter().map(said).collect())
}

const ADVANCE: &str = "UPDATE member_redactions SET position = $3 WHERE room_id = $1 AND user_id = $2";
const FINISH: &str = "DELETE FROM member_redactions WHERE room_id = $1 AND user_id = $2";

/// Notes how far a member's messages were gone through; `None` when that was all.
///
/// # Errors
/// When the database fails.
pub async fn advance(
    tx: &mut Tx,
    room_id: &str,
    user_id: &str,
    position: Option<i64>,
) -> Result<(), StoreError> {
    let (statement, values) = match position {
        Some(position) => (ADVANCE, values![room_id, user_id, position]),
        None => (FINISH, values![room_id, user_id]),
    };
    tx.execute(statement, values).await?;
    Ok(())
}

#[cfg(test)]
#[path = "conformance/member_redactions.rs"]
mod conformance;
