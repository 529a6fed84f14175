//! The image file, written in order through one buffer.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use crate::error::Error;
use crate::image::format::BLOCK_BYTES;

const BUFFER_BYTES: usize = 1 << 20;

pub(crate) struct Sink<'a> {
    file: &'a mut File,
    buffer: Vec<u8>,
    /// Where the next byte goes, the buffer counted in.
    position: u64,
}

impl<'a> Sink<'a> {
    /// Empties the file and leaves the first block for the superblock.
    pub(crate) fn new(file: &'a mut File) -> Result<Self, Error> {
        let failed = |source| Error::Write { offset: 0, source };
        file.set_len(0).map_err(failed)?;
        file.seek(SeekFrom::Start(BLOCK_BYTES)).map_err(failed)?;
        Ok(Self { file, buffer: Vec::with_capacity(BUFFER_BYTES), position: BLOCK_BYTES })
    }

    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The number of the block that starts here.
    pub(crate) fn block(&self) -> Result<u32, Error> {
        debug_assert!(self.position.is_multiple_of(BLOCK_BYTES), "at a block's start");
        block_number(self.position / BLOCK_BYTES)
    }

    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        self.position += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = BUFFER_BYTES - self.buffer.len();
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == BUFFER_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Leaves `count` bytes that read as zeros: a hole in the file where that is worth it.
    pub(crate) fn skip(&mut self, count: u64) -> Result<(), Error> {
        if count < BLOCK_BYTES {
            let zeros = [0; BLOCK_BYTES as usize];
            return self.write(&zeros[..usize::try_from(count).unwrap_or(0)]);
        }
        self.flush()?;
        self.position += count;
        let target = SeekFrom::Start(self.position);
        let offset = self.position;
        self.file.seek(target).map_err(|source| Error::Write { offset, source })?;
        Ok(())
    }

    /// Fills the current block with zeros.
    pub(crate) fn align(&mut self) -> Result<(), Error> {
        self.skip(self.position.next_multiple_of(BLOCK_BYTES) - self.position)
    }

    /// Ends the image and puts the superblock's block in place. Gives the image's size.
    pub(crate) fn finish(mut self, first_block: &[u8]) -> Result<u64, Error> {
        self.align()?;
        self.flush()?;
        let size = self.position;
        let failed = |offset| move |source| Error::Write { offset, source };
        self.file.set_len(size).map_err(failed(size))?;
        self.file.seek(SeekFrom::Start(0)).map_err(failed(0))?;
        self.file.write_all(first_block).map_err(failed(0))?;
        Ok(size)
    }

    fn flush(&mut self) -> Result<(), Error> {
        let offset = self.position.saturating_sub(self.buffer.len() as u64);
        let written = self.file.write_all(&self.buffer);
        self.buffer.clear();
        written.map_err(|source| Error::Write { offset, source })
    }
}

/// A block's number in 32 bits; all ones mean "no block".
pub(crate) fn block_number(block: u64) -> Result<u32, Error> {
    match u32::try_from(block) {
        Ok(number) if number != u32::MAX => Ok(number),
        _ => Err(Error::ImageTooLarge { blocks: block }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_numbers_end_before_the_null_block() {
        assert_eq!(block_number(u64::from(u32::MAX) - 1).unwrap(), u32::MAX - 1);
        assert!(matches!(block_number(u64::from(u32::MAX)), Err(Error::ImageTooLarge { .. })));
    }

    #[test]
    fn what_was_skipped_reads_as_zeros() {
        let mut file = tempfile::tempfile().unwrap();
        let mut sink = Sink::new(&mut file).unwrap();
        sink.write(b"x").unwrap();
        sink.skip(3 * BLOCK_BYTES).unwrap();
        sink.write(b"y").unwrap();
        let size = sink.finish(b"z").unwrap();
        assert_eq!(size, 5 * BLOCK_BYTES);
        let mut content = Vec::new();
        std::io::Read::read_to_end(
            {
                file.seek(SeekFrom::Start(0)).unwrap();
                &mut file
            },
            &mut content,
        )
        .unwrap();
        let set: Vec<_> = content.iter().enumerate().filter(|(_, byte)| **byte != 0).collect();
        assert_eq!(set, [(0, &b'z'), (4096, &b'x'), (16385, &b'y')]);
    }
}
