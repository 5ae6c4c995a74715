//! How far each Megolm session is used.
//!
//! What is encrypted with a place beyond was never relayed, since a message and its place are stored together: so
//! nobody need ask the store for either. It is nearly all that comes. What lies below is looked up.

use std::collections::{HashMap, HashSet};

use quick_cache::sync::Cache;

use super::event::WireEvent;
use crate::{
    crypto::RoomKey,
    metrics::{Lookups, metrics},
    store::{
        Db, StoreError,
        messages::{self, MegolmIndex},
    },
};

/// Sessions remembered.
const MOST: usize = 10_000;

/// The sessions of late, and the last place of each that a message used; less than 0 when there is none.
#[derive(Debug)]
pub(super) struct Heights {
    known: Cache<RoomKey, i64>,
    lookups: Lookups,
}

impl Default for Heights {
    fn default() -> Self {
        Self { known: Cache::new(MOST), lookups: metrics().lookups("heights") }
    }
}

/// The heights of the sessions of some events.
#[derive(Debug, Default)]
pub(super) struct Found(HashMap<RoomKey, i64>);

impl Found {
    /// Whether an event is encrypted with a place beyond all that messages have used.
    pub(super) fn is_beyond(&self, event: &WireEvent) -> bool {
        let place = event.session.as_ref().and_then(|place| Some((self.0.get(&place.key)?, place.index?)));
        place.is_some_and(|(height, index)| index > *height)
    }
}

impl Heights {
    /// Finds the heights of the sessions of these events.
    ///
    /// # Errors
    /// When the database fails.
    pub(super) async fn find<'a>(
        &self,
        db: &Db,
        events: impl Iterator<Item = &'a WireEvent>,
    ) -> Result<Found, StoreError> {
        let keys: HashSet<&RoomKey> = events.filter_map(|event| Some(&event.session.as_ref()?.key)).collect();
        let (mut found, mut unknown) = (HashMap::with_capacity(keys.len()), Vec::new());
        for key in keys {
            match self.lookups.count(self.known.get(key)) {
                Some(height) => {
                    found.insert(key.clone(), height);
                }
                None => unknown.push(key),
            }
        }
        let names: Vec<_> =
            unknown.iter().map(|key| (key.room_id.as_str(), key.session_id.as_str())).collect();
        let mut heights = messages::heights(db, &names).await?;
        for key in unknown {
            let name = (key.room_id.to_string(), key.session_id.clone());
            let height = heights.remove(&name).unwrap_or(messages::UNUSED);
            self.known.insert(key.clone(), height);
            found.insert(key.clone(), height);
        }
        Ok(Found(found))
    }

    /// Takes in the places that messages have used, once they are stored.
    pub(super) fn raise(&self, used: &[(MegolmIndex, String)]) {
        for ((room_id, session_id, index), _) in used {
            let Ok(room_id) = room_id.as_str().try_into() else { continue };
            let key = RoomKey { room_id, session_id: session_id.clone() };
            // One that is not known any more is asked for when it is next needed.
            if self.known.get(&key).is_some_and(|height| *index > height) {
                self.known.insert(key, *index);
            }
        }
    }
}
