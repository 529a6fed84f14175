//! Bytes from async code to a blocking reader, with back-pressure.

use std::io::{self, BufRead, Read};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

use crate::Error;

/// Chunks in flight; with chunks of a few dozen KiB, about a megabyte.
const DEPTH: usize = 16;

/// What goes through the pipe: bytes, or `None` for the proper end.
type Item = Result<Option<Bytes>, Error>;

/// The writing end. Dropped without [`PipeWriter::finish`] it makes the reader fail.
pub(crate) struct PipeWriter(mpsc::Sender<Item>);

/// The reading end, for a blocking thread.
pub(crate) struct PipeReader {
    receiver: mpsc::Receiver<Item>,
    current: Bytes,
    ended: bool,
    failure: Option<Error>,
}

pub(crate) fn pipe() -> (PipeWriter, PipeReader) {
    let (sender, receiver) = mpsc::channel(DEPTH);
    (PipeWriter(sender), PipeReader { receiver, current: Bytes::new(), ended: false, failure: None })
}

impl PipeWriter {
    /// Passes bytes on; `false` if the reader is gone.
    pub(crate) async fn write(&self, bytes: Bytes) -> bool {
        self.0.send(Ok(Some(bytes))).await.is_ok()
    }

    /// Marks the proper end.
    pub(crate) async fn finish(self) -> bool {
        self.0.send(Ok(None)).await.is_ok()
    }

    /// Makes the reader fail with this error.
    pub(crate) async fn fail(self, error: Error) -> bool {
        self.0.send(Err(error)).await.is_ok()
    }
}

impl PipeReader {
    /// Why reading failed, which the `io::Error` does not tell.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.failure.clone()
    }
}

impl BufRead for PipeReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.ended {
            if self.failure.is_some() {
                return Err(io::Error::other("the transfer failed"));
            }
            match self.receiver.blocking_recv() {
                Some(Ok(Some(bytes))) => self.current = bytes,
                Some(Ok(None)) => self.ended = true,
                Some(Err(error)) => self.failure = Some(error),
                None => self.failure = Some(Error::Interrupted { what: "the transfer" }),
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount);
    }
}

impl Read for PipeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}
