//! Keys of export files that another process handed over: taken in between two steps' rows. Storing them is
//! what tells the ledger of them.

use std::time::Duration;

use super::worker::Worker;
use crate::{
    clock::Timestamp,
    crypto::{CryptoError, import},
};

/// How often parts of imports are looked for.
const LOOK: Duration = Duration::from_secs(1);

/// Parts of imports, looked for now and then.
#[derive(Debug, Default)]
pub(super) struct Imports {
    looked_at: Option<Timestamp>,
}

impl Worker {
    /// Takes in a part of an import, and answers whether one waited.
    pub(super) async fn take_import(&mut self, now: Timestamp) -> Result<bool, CryptoError> {
        if self.imports.looked_at.is_some_and(|at| now.since(at) < LOOK) {
            return Ok(false);
        }
        let (parts, engines) = (&self.parts, self.decrypter.engines());
        let taken = import::take_part(&parts.store, engines, &parts.lease, &parts.clock).await?;
        if !taken {
            self.imports.looked_at = Some(now);
        }
        Ok(taken)
    }
}
