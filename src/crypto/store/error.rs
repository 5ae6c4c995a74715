//! What can go wrong in a crypto store, and how to find it again behind the SDK's errors, and where it has none.

use std::cell::RefCell;

use matrix_sdk_crypto::{CryptoStoreError, OlmError};
use tokio::task_local;

use crate::store::StoreError;

/// What can go wrong with an account's crypto store.
#[derive(Debug, thiserror::Error)]
pub enum AccountStoreError {
    /// The store below failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something was asked for that only an account with its own device has.
    #[error("the account has no Olm account or device in the store yet")]
    AccountUnset,
    /// What should be saved has no encoding. The cause is left out: it may quote a secret.
    #[error("data for {0} cannot be encoded")]
    Unencodable(&'static str),
    /// The store has failed before in the same call of the machine's.
    #[error("the crypto store has failed in this call, of which nothing more is saved")]
    Interrupted,
    /// The store was closed and not reopened.
    #[error("the crypto store is closed")]
    Closed,
}

/// A failure of the crypto store that the SDK kept to itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hidden {
    /// What it was.
    pub error: String,
    /// Whether the same can succeed later without anybody's doing.
    pub is_transient: bool,
}

task_local! {
    /// The first failure that the SDK was told of in the work under way.
    static HIDDEN: RefCell<Option<Hidden>>;
}

/// Runs what an `OlmMachine` does, and tells besides whether its store failed in it. Of a to-device message in
/// which the store fails, the machine says no more than that it could not be decrypted; its Olm session has moved
/// on by then, so that the room key in it would be lost for good.
pub async fn watch<T>(
    work: impl Future<Output = Result<T, OlmError>>,
) -> (Result<T, OlmError>, Option<Hidden>) {
    // In a box: it is as large as all that the machine does, and so would be whatever calls this.
    Box::pin(HIDDEN.scope(RefCell::default(), async { (work.await, HIDDEN.with(RefCell::take)) })).await
}

/// Refuses a write once the store has failed in the work under way. The machine goes on after that, and would save Olm
/// sessions and accounts that have moved on without what they moved on for.
///
/// # Errors
/// [`AccountStoreError::Interrupted`].
pub(super) fn refuse_after_failure() -> Result<(), AccountStoreError> {
    let has_failed = HIDDEN.try_with(|hidden| hidden.borrow().is_some()).unwrap_or(false);
    if has_failed { Err(AccountStoreError::Interrupted) } else { Ok(()) }
}

impl From<AccountStoreError> for CryptoStoreError {
    /// The one way by which an error of the store reaches the SDK.
    fn from(error: AccountStoreError) -> Self {
        let _ = HIDDEN.try_with(|hidden| {
            hidden.borrow_mut().get_or_insert_with(|| {
                let is_transient = matches!(&error, AccountStoreError::Store(error) if passes(error));
                Hidden { error: error.to_string(), is_transient }
            });
        });
        match error {
            // Boxed as it is, so that `store_error` finds it.
            AccountStoreError::Store(error) => Self::backend(error),
            AccountStoreError::AccountUnset => Self::AccountUnset,
            error => Self::backend(error),
        }
    }
}

/// The error of our store behind one of the SDK's, if that is what it is: to tell
/// [`StoreError::LeaseLost`] and [`StoreError::is_transient`] from the rest.
#[must_use]
pub fn store_error(error: &CryptoStoreError) -> Option<&StoreError> {
    match error {
        CryptoStoreError::Backend(error) => error.downcast_ref(),
        _ => None,
    }
}

/// Whether the same can succeed later without anybody's doing, under another lease perhaps.
#[must_use]
pub fn passes(error: &StoreError) -> bool {
    error.is_transient() || matches!(error, StoreError::LeaseLost)
}
