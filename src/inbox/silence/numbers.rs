//! The numbers of what is told of bridges.

use ruma::{OwnedRoomId, UserId};

use crate::{
    messages::bridge::{self, Tidings},
    model::Message,
    store::{StoreError, Tx, messages as stored},
};

/// The message of tidings. `next`: the number after the last of what is about no room, once that is known.
pub(super) async fn numbered(
    tx: &mut Tx,
    tidings: Tidings,
    sequence: Option<u64>,
    next: &mut Option<u64>,
    us: &UserId,
) -> Result<Message, StoreError> {
    const CORRUPT: StoreError = StoreError::Corrupt("messages");
    let room_id: OwnedRoomId = bridge::room_of(&tidings.alarm).map_err(|_| CORRUPT)?;
    let sequence = match sequence.or(*next) {
        Some(sequence) => sequence,
        None => u64::try_from(stored::next_sequence(tx, &room_id).await?).map_err(|_| CORRUPT)?,
    };
    if tidings.alarm.room_id.is_none() {
        *next = Some(sequence + 1);
    }
    tidings.into_message(sequence, us).map_err(|_| CORRUPT)
}
