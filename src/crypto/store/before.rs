//! The sessions that the SDK finds in the store while it takes in room keys: what they were before.
//!
//! The SDK asks for the session of every room key that it is given, by the id in the key itself. That is how one
//! learns which keys somebody really had, also of those that it discards, and who had given the session before.

use std::{cell::RefCell, collections::HashMap};

use matrix_sdk_crypto::olm::InboundGroupSession;
use ruma::{OwnedRoomId, RoomId};
use tokio::task_local;

/// Sessions by room and id; `None` of one that was not there.
pub type Before = HashMap<(OwnedRoomId, String), Option<InboundGroupSession>>;

task_local! {
    /// What was found first, in the work under way.
    static BEFORE: RefCell<Before>;
}

/// Runs work, and returns besides which sessions it found.
pub async fn observe<T>(work: impl Future<Output = T>) -> (T, Before) {
    BEFORE.scope(RefCell::default(), async { (work.await, BEFORE.with(RefCell::take)) }).await
}

/// Notes a session that was found, or was not there.
pub(super) fn note(room_id: &RoomId, session_id: &str, session: Option<&InboundGroupSession>) {
    let _ = BEFORE.try_with(|before| {
        let key = (room_id.to_owned(), session_id.to_owned());
        before.borrow_mut().entry(key).or_insert_with(|| session.cloned());
    });
}
