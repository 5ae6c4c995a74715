//! What the ciphers of attachments read from: they take a reader, where bytes come piece by piece.

use std::{
    collections::VecDeque,
    io::{self, Read},
    sync::{Arc, Mutex, PoisonError},
};

/// A reader of what is put into it; clones share it. At the end of that, it is at its end for now.
#[derive(Clone, Debug, Default)]
pub(super) struct Feed(Arc<Mutex<VecDeque<u8>>>);

impl Feed {
    /// Turns bytes, in place, into what `cipher` makes of them; it must read from this feed.
    ///
    /// # Errors
    /// When the cipher fails, or makes something else of them than as many bytes.
    pub(super) fn through(&self, cipher: &mut impl Read, bytes: &mut [u8]) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(&*bytes);
        cipher.read_exact(bytes)
    }
}

impl Read for Feed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read(into)
    }
}
