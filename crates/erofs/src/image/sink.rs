//! The image file, written in order through one buffer.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use crate::error::Error;
use crate::image::format::BLOCK_BYTES;

const BUFFER_BYTES: usize = 1 << 20;
/// Pieces of this size go to the file without a copy; smaller ones are collected.
const DIRECT_BYTES: usize = 64 << 10;
/// Zeros in file data are looked for in pieces of this size.
const ZERO_PIECE_BYTES: usize = 64 << 10;

pub(crate) struct Sink<'a> {
    file: &'a mut File,
    buffer: Vec<u8>,
    /// Where the next byte goes, the buffer counted in.
    position: u64,
    /// Where the file stands.
    file_position: u64,
}

impl<'a> Sink<'a> {
    /// Empties the file and leaves the first block for the superblock.
    pub(crate) fn new(file: &'a mut File) -> Result<Self, Error> {
        let failed = |source| Error::Write { offset: 0, source };
        file.set_len(0).map_err(failed)?;
        file.seek(SeekFrom::Start(BLOCK_BYTES)).map_err(failed)?;
        Ok(Self {
            file,
            buffer: Vec::with_capacity(BUFFER_BYTES),
            position: BLOCK_BYTES,
            file_position: BLOCK_BYTES,
        })
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
        if bytes.len() >= DIRECT_BYTES {
            self.flush()?;
            return self.write_out(bytes);
        }
        while !bytes.is_empty() {
            let room = BUFFER_BYTES - self.buffer.len();
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.buffer.extend_from_slice(now);
            self.position += now.len() as u64;
            bytes = later;
            if self.buffer.len() == BUFFER_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// A file's data. Long runs of zeros become holes in the image's file, so that an archive
    /// of zeros does not fill the disk.
    pub(crate) fn write_data(&mut self, bytes: &[u8]) -> Result<(), Error> {
        static ZEROS: [u8; ZERO_PIECE_BYTES] = [0; ZERO_PIECE_BYTES];
        let mut done = 0;
        let mut at = 0;
        while bytes.len() - at >= ZERO_PIECE_BYTES {
            let end = at + ZERO_PIECE_BYTES;
            if bytes[at..end] == ZEROS {
                self.write(&bytes[done..at])?;
                self.skip(ZERO_PIECE_BYTES as u64)?;
                done = end;
            }
            at = end;
        }
        self.write(&bytes[done..])
    }

    /// Leaves `count` bytes that read as zeros: a hole in the file where that is worth it.
    pub(crate) fn skip(&mut self, count: u64) -> Result<(), Error> {
        if count < BLOCK_BYTES {
            let zeros = [0; BLOCK_BYTES as usize];
            return self.write(&zeros[..usize::try_from(count).unwrap_or(0)]);
        }
        self.flush()?;
        self.position += count;
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
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.position -= self.buffer.len() as u64;
        let buffer = std::mem::take(&mut self.buffer);
        let written = self.write_out(&buffer);
        self.buffer = buffer;
        self.buffer.clear();
        written
    }

    /// Writes at the current position, past what was skipped.
    fn write_out(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let offset = self.position;
        let failed = |source| Error::Write { offset, source };
        if self.file_position != offset {
            self.file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        }
        self.file.write_all(bytes).map_err(failed)?;
        self.position += bytes.len() as u64;
        self.file_position = self.position;
        Ok(())
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
