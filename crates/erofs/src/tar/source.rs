//! The reader, with a count of what was read.

use std::io::{self, BufRead};

use crate::error::{Error, Place};
use crate::tar::header::BLOCK;

pub(crate) struct Source<R> {
    reader: R,
    /// Bytes handed out (not: bytes read ahead).
    offset: u64,
}

impl<R: BufRead> Source<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, offset: 0 }
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// At least one byte, or none at the end of the stream.
    pub(crate) fn peek(&mut self) -> Result<&[u8], Error> {
        // Twice, since a borrow that may be returned cannot be taken in a loop; the second
        // call finds the buffer full.
        while let Err(source) = self.reader.fill_buf() {
            if source.kind() != io::ErrorKind::Interrupted {
                return Err(Error::Read { offset: self.offset, place: Place::Start, source });
            }
        }
        self.reader.fill_buf().map_err(|source| Error::Read {
            offset: self.offset,
            place: Place::Start,
            source,
        })
    }

    /// Takes bytes that [`Source::peek`] showed.
    pub(crate) fn consume(&mut self, count: usize) {
        self.reader.consume(count);
        self.offset += count as u64;
    }

    /// The next block; false at the end of the stream.
    pub(crate) fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, Error> {
        let mut filled = 0;
        while filled < BLOCK {
            let shown = self.peek()?;
            if shown.is_empty() {
                if filled == 0 {
                    return Ok(false);
                }
                return Err(self.truncated("a header"));
            }
            let count = shown.len().min(BLOCK - filled);
            block[filled..filled + count].copy_from_slice(&shown[..count]);
            self.consume(count);
            filled += count;
        }
        Ok(true)
    }

    /// Exactly `count` bytes, which the caller has bounded.
    pub(crate) fn take(&mut self, count: usize, inside: &'static str) -> Result<Vec<u8>, Error> {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            let shown = self.peek()?;
            if shown.is_empty() {
                return Err(self.truncated(inside));
            }
            let piece = shown.len().min(count - taken.len());
            taken.extend_from_slice(&shown[..piece]);
            self.consume(piece);
        }
        Ok(taken)
    }

    /// Reads over `count` bytes.
    pub(crate) fn skip(&mut self, mut count: u64, inside: &'static str) -> Result<(), Error> {
        while count > 0 {
            let shown = self.peek()?.len();
            if shown == 0 {
                return Err(self.truncated(inside));
            }
            let piece = shown.min(usize::try_from(count).unwrap_or(usize::MAX));
            self.consume(piece);
            count -= piece as u64;
        }
        Ok(())
    }

    pub(crate) fn truncated(&self, inside: &'static str) -> Error {
        Error::Truncated { offset: self.offset, place: Place::Start, inside }
    }
}
