//! What a layer image looked like when it was made, so that damage shows.
//!
//! A blob is named by its digest; a layer image is not named by its own, and
//! what makes it may write other bytes in another version of kina. So its size
//! and a checksum are recorded with the images. XXH3 finds what disks and
//! crashes do at the speed of memory, so that a pull does not feel it; whoever
//! could forge an image could rewrite the record as well.

use std::fs::File;
use std::hash::Hasher as _;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use twox_hash::XxHash3_64;

use crate::Error;

const CHUNK: usize = 256 << 10;

/// A layer image's size and checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seal {
    pub(crate) size: u64,
    pub(crate) checksum: u64,
}

impl Seal {
    /// Reads a file to its end. `progress` hears of each chunk's length, and
    /// ends the reading by an error.
    pub(crate) fn of(path: &Path, mut progress: impl FnMut(u64) -> Result<(), Error>) -> Result<Self, Error> {
        let mut file = File::open(path).map_err(Error::storage("open", path))?;
        let mut hasher = XxHash3_64::with_seed(0);
        let mut size = 0;
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = file.read(&mut buffer).map_err(Error::storage("read", path))?;
            if count == 0 {
                return Ok(Self { size, checksum: hasher.finish() });
            }
            hasher.write(&buffer[..count]);
            size += count as u64;
            progress(count as u64)?;
        }
    }

    /// The checksum as people and records read it.
    pub(crate) fn checksum_text(self) -> String {
        format!("xxh3:{:016x}", self.checksum)
    }
}

/// `<checksum> <size>`, as recorded.
impl std::fmt::Display for Seal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} {}", self.checksum_text(), self.size)
    }
}

/// The text is not a seal.
#[derive(Debug)]
pub(crate) struct NoSeal;

impl FromStr for Seal {
    type Err = NoSeal;

    fn from_str(text: &str) -> Result<Self, NoSeal> {
        let (checksum, size) = text.split_once(' ').ok_or(NoSeal)?;
        let checksum = checksum.strip_prefix("xxh3:").ok_or(NoSeal)?;
        let checksum = u64::from_str_radix(checksum, 16).map_err(|_| NoSeal)?;
        Ok(Self { size: size.parse().map_err(|_| NoSeal)?, checksum })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_is_read_as_it_was_written() {
        let seal = Seal { size: 4096, checksum: 0x1234 };
        assert_eq!(seal.to_string(), "xxh3:0000000000001234 4096");
        assert_eq!(seal.to_string().parse::<Seal>().unwrap(), seal);
        for text in ["", "xxh3:12", "sha256:12 4", "xxh3:no 4", "xxh3:12 -4"] {
            assert!(text.parse::<Seal>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_byte_counts() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut content = vec![7_u8; CHUNK + 5];
        std::fs::write(file.path(), &content).unwrap();
        let mut told = 0;
        let first = Seal::of(file.path(), |count| {
            told += count;
            Ok(())
        });
        let first = first.unwrap();
        assert_eq!((first.size, told), (content.len() as u64, content.len() as u64));
        content[CHUNK + 4] ^= 1;
        std::fs::write(file.path(), &content).unwrap();
        assert_ne!(Seal::of(file.path(), |_| Ok(())).unwrap().checksum, first.checksum);
    }
}
