//! Fetching a file into the cache: every piece is hashed and written as it comes.

use std::sync::Arc;

use matrix_sdk_crypto::AttachmentEncryptor;
use ruma::{
    UserId,
    events::room::{EncryptedFileHash, EncryptedFileHashAlgorithm, EncryptedFileInfo},
};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{
    Failure, Settings,
    cache::{Cache, Cached, Spool},
    feed::Feed,
    source::Source,
};
use crate::homeserver::{Download, Homeserver, HomeserverError};

/// Fetches a file as `reader`.
///
/// # Errors
/// When it cannot be had, is too large, or is not what its sender encrypted; nothing is left of it then.
pub(super) async fn fetch(
    homeserver: &Homeserver,
    cache: &Cache,
    settings: &Settings,
    source: &Source,
    reader: &UserId,
) -> Result<Cached, Failure> {
    let expected = if source.is_encrypted() { Some(stated_hash(source)?) } else { None };
    let download =
        homeserver.download(reader, &source.server_name, &source.media_id, settings.timeout).await?;
    let most = settings.max_size;
    if download.announced().is_some_and(|size| size > most) {
        return Err(Failure::TooLarge(most));
    }
    let incoming = Incoming { download, cache, spool: cache.spool().await?, most };
    match expected {
        Some(hash) => incoming.encrypted(&hash).await,
        None => incoming.plain().await,
    }
}

/// The hash that the sender states. What cannot be decrypted later need not be fetched.
fn stated_hash(source: &Source) -> Result<[u8; 32], Failure> {
    let info = source.info().ok_or(Failure::BadKey)?;
    let hash = info.hashes.get(&EncryptedFileHashAlgorithm::Sha256);
    match (&info.encryption_info, hash) {
        (EncryptedFileInfo::V2(_), Some(EncryptedFileHash::Sha256(hash))) => Ok(hash.clone().into_inner()),
        _ => Err(Failure::BadKey),
    }
}

struct Incoming<'a> {
    download: Download,
    cache: &'a Cache,
    spool: Spool,
    most: u64,
}

impl Incoming<'_> {
    /// The next piece, which fits into what a file may be.
    async fn chunk(&mut self) -> Result<Option<impl AsRef<[u8]> + Send + use<>>, Failure> {
        let Some(chunk) = self.download.chunk().await? else { return Ok(None) };
        let size = self.spool.size().saturating_add(chunk.as_ref().len() as u64);
        if size > self.most {
            return Err(Failure::TooLarge(self.most));
        }
        Ok(Some(chunk))
    }

    /// Keeps a file that its sender encrypted as it is, if it is as it was.
    async fn encrypted(mut self, expected: &[u8; 32]) -> Result<Cached, Failure> {
        let mut hash = Sha256::new();
        while let Some(chunk) = self.chunk().await? {
            hash.update(chunk.as_ref());
            self.spool.write(self.cache, chunk.as_ref()).await?;
        }
        if !bool::from(hash.finalize().as_slice().ct_eq(expected)) {
            return Err(Failure::HashMismatch);
        }
        self.spool.finish(None).await
    }

    /// Encrypts a file that came in the clear, with a key that only this process knows.
    async fn plain(mut self) -> Result<Cached, Failure> {
        let feed = Feed::default();
        let mut reader = feed.clone();
        let mut cipher = AttachmentEncryptor::new(&mut reader);
        while let Some(chunk) = self.chunk().await? {
            let mut bytes = chunk.as_ref().to_vec();
            feed.through(&mut cipher, &mut bytes)?;
            self.spool.write(self.cache, &bytes).await?;
        }
        self.spool.finish(Some(&cipher.finish())).await
    }
}

impl From<HomeserverError> for Failure {
    fn from(error: HomeserverError) -> Self {
        match &error {
            HomeserverError::Status { status: 404, errcode, .. } if errcode == "M_NOT_FOUND" => Self::Missing,
            known if known.is_transient() => {
                let wait = known.retry_after();
                Self::Unavailable(Arc::new(error), wait)
            }
            _ => Self::Refused(Arc::new(error)),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Cache(Arc::new(error))
    }
}
