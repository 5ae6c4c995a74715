//! Keys of export files that another process handed over: taken in between two steps' rows.

use std::time::Duration;

use super::worker::Worker;
use crate::{
    clock::Timestamp,
    crypto::{CryptoError, RoomKey, import},
};

/// How often parts of imports are looked for.
const LOOK: Duration = Duration::from_secs(1);

/// Parts of imports, looked for now and then.
#[derive(Debug, Default)]
pub(super) struct Imports {
    looked_at: Option<Timestamp>,
}

impl Worker {
    /// Takes in a part of an import, if one waits; answers the keys that are new or better now.
    pub(super) async fn take_import(&mut self, now: Timestamp) -> Result<Option<Vec<RoomKey>>, CryptoError> {
        if self.imports.looked_at.is_some_and(|at| now.since(at) < LOOK) {
            return Ok(None);
        }
        let (parts, engines) = (&self.parts, self.decrypter.engines());
        let taken = import::take_part(&parts.store, engines, &parts.lease, &parts.clock).await?;
        if taken.is_none() {
            self.imports.looked_at = Some(now);
        }
        Ok(taken)
    }
}
