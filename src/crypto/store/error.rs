//! What can go wrong in a crypto store, and how to find it again behind the SDK's errors.

use matrix_sdk_crypto::CryptoStoreError;

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
    /// The store was closed and not reopened.
    #[error("the crypto store is closed")]
    Closed,
}

impl From<AccountStoreError> for CryptoStoreError {
    fn from(error: AccountStoreError) -> Self {
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
