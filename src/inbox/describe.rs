//! What is stored of a room, read for people.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::OwnedUserId;

use crate::{messages::room::RoomState, model::RoomContext};

/// A room's state in a few words.
#[derive(Clone, Debug, Default)]
pub struct Described {
    /// What payloads say of it.
    pub context: RoomContext,
    /// Whether it is end-to-end encrypted.
    pub encrypted: bool,
    /// The room that replaced it.
    pub replacement: Option<String>,
}

/// Reads a stored state, for whom these users are us; `None` when it is none.
#[must_use]
pub fn describe(
    state: &[u8],
    our_users: &Arc<BTreeSet<OwnedUserId>>,
    networks: &BTreeMap<String, String>,
) -> Option<Described> {
    let state: RoomState = serde_json::from_slice(state).ok()?;
    let context = state.context(our_users, networks);
    Some(Described { context, encrypted: state.encryption.is_some(), replacement: state.replacement })
}
