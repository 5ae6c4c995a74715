//! Room keys of an account of another store: of one that stood in for this one, on a device of its own.
//!
//! Unlike keys of an export file they keep what is known of their maker. Before the account's machine is loaded, as
//! its cache would not know them.

use matrix_sdk_crypto::{store::CryptoStore as _, vodozemac::megolm::SessionOrdering};

use super::{
    engine::CryptoError,
    store::{AccountStore, AccountStoreError},
};

/// Keys written at once.
const PAGE: usize = 200;

/// What became of the keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Sessions that were not known.
    pub new: u64,
    /// Known sessions of which an earlier part is here now.
    pub better: u64,
    /// Known sessions of which nothing more came.
    pub known: u64,
    /// Keys that contradict what is known.
    pub bad: u64,
}

impl std::ops::AddAssign for Merged {
    fn add_assign(&mut self, other: Self) {
        self.new += other.new;
        self.better += other.better;
        self.known += other.known;
        self.bad += other.bad;
    }
}

/// Why room keys could not be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// The other store failed.
    #[error("the store to merge cannot be read")]
    From(#[source] CryptoError),
    /// This one did.
    #[error("the store to merge into cannot be written")]
    Into(#[source] CryptoError),
}

fn of_from(error: AccountStoreError) -> MergeError {
    MergeError::From(CryptoError::Store(error.into()))
}

fn of_into(error: AccountStoreError) -> MergeError {
    MergeError::Into(CryptoError::Store(error.into()))
}

/// Takes the room keys of `from` into `into`. A key never replaces one that begins as early. Doing it again changes
/// nothing.
///
/// # Errors
/// When one of the stores fails, and which.
pub async fn room_keys(from: &AccountStore, into: &AccountStore) -> Result<Merged, MergeError> {
    let mut merged = Merged::default();
    let mut after = None;
    loop {
        let page = from.page_of_inbound_group_sessions(None, after.as_ref(), PAGE).await.map_err(of_from)?;
        let Some(last) = page.last().cloned() else { return Ok(merged) };
        let mut wanted = Vec::with_capacity(page.len());
        for session in page {
            let known = into.get_inbound_group_session(session.room_id(), session.session_id());
            match known.await.map_err(of_into)? {
                None => {
                    merged.new += 1;
                    wanted.push(session);
                }
                Some(known) => match session.compare_ratchet(&known).await {
                    SessionOrdering::Better => {
                        merged.better += 1;
                        wanted.push(session);
                    }
                    SessionOrdering::Equal | SessionOrdering::Worse => merged.known += 1,
                    SessionOrdering::Unconnected => merged.bad += 1,
                },
            }
        }
        // No backup of this store's account has them.
        wanted.iter().for_each(matrix_sdk_crypto::olm::InboundGroupSession::reset_backup_state);
        into.save_inbound_group_sessions(wanted, None).await.map_err(of_into)?;
        after = Some(last);
    }
}
