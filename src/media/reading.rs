//! Handing a file out: decrypted piece by piece, as fast as it is taken.

use std::{
    error::Error,
    io::{self, Read},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::Stream;
use matrix_sdk_crypto::{AttachmentDecryptor, MediaEncryptionInfo};
use tokio::{fs::File, io::AsyncReadExt, sync::mpsc};

use super::{cache::Cached, feed::Feed};

/// Bytes that are read at a time.
const PIECE: usize = 64 << 10;

/// The content of a file in the clear. Dropping it ends the work.
///
/// Of a whole file the last piece comes only when the hash is right once more: should somebody alter the cache's own
/// files, the content ends early, with an error.
pub struct Reading {
    /// Reads and decrypts while the stream is polled; none once it has ended.
    work: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send>>>,
    pieces: mpsc::Receiver<Vec<u8>>,
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reading")
    }
}

impl Reading {
    pub(super) fn begin(cached: Arc<Cached>, info: MediaEncryptionInfo, from: u64, length: u64) -> Self {
        let (sender, pieces) = mpsc::channel(1);
        let work = decrypt(cached, info, from, length, sender);
        Self { work: Some(Box::pin(work)), pieces }
    }
}

impl Stream for Reading {
    type Item = io::Result<Vec<u8>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(work) = &mut self.work
            && let Poll::Ready(ended) = work.as_mut().poll(cx)
        {
            self.work = None;
            if let Err(error) = ended {
                tracing::error!(error = &error as &dyn Error, "a file of the media cache cannot be read");
                self.pieces.close();
                return Poll::Ready(Some(Err(error)));
            }
        }
        self.pieces.poll_recv(cx).map(|piece| piece.map(Ok))
    }
}

/// Sends `length` bytes from `from` on. The cipher runs from the beginning in any case, which costs little: it is
/// several times as fast as a disk.
async fn decrypt(
    cached: Arc<Cached>,
    info: MediaEncryptionInfo,
    from: u64,
    length: u64,
    pieces: mpsc::Sender<Vec<u8>>,
) -> io::Result<()> {
    let is_whole = from == 0 && length == cached.size;
    let mut file = File::open(cached.path()).await?;
    let feed = Feed::default();
    let mut reader = feed.clone();
    let mut cipher = AttachmentDecryptor::new(&mut reader, info).map_err(io::Error::other)?;
    let (mut skip, mut left, mut last) = (from, length, None);
    while left > 0 {
        let mut piece = vec![0; PIECE];
        let count = file.read(&mut piece).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        piece.truncate(count);
        feed.through(&mut cipher, &mut piece)?;
        let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
        skip -= skipped as u64;
        piece.drain(..skipped);
        piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        left -= piece.len() as u64;
        if piece.is_empty() {
            continue;
        }
        if let Some(ready) = last.replace(piece)
            && pieces.send(ready).await.is_err()
        {
            return Ok(());
        }
    }
    if is_whole {
        // At the end of the file the cipher compares the hash.
        cipher.read_exact(&mut [0]).or_else(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Ok(()),
            _ => Err(error),
        })?;
    }
    if let Some(last) = last {
        let _ = pieces.send(last).await;
    }
    Ok(())
}
