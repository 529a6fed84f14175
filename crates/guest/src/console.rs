//! Keeps the end of what a virtual machine's processes say: on the node, beside
//! them, so that a daemon that is away misses nothing and no machine can fill
//! the node's disk.
//!
//! It keeps two files: a new one is begun when one is half as long as both may
//! be, and the one before goes by `<file>.old`.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Most bytes read at once.
const PIECE: usize = 4096;

/// What is kept, and where.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Console {
    /// The named pipe to read until its last writer has closed it.
    pub(crate) from: PathBuf,
    /// The file that has the end.
    pub(crate) to: PathBuf,
    /// Most bytes of both files together.
    pub(crate) limit: usize,
}

/// Reads to the end.
pub(crate) fn run(options: &Console) -> io::Result<()> {
    // Waits for the first writer.
    keep(File::open(&options.from)?, &options.to, options.limit / 2)
}

fn keep(mut from: impl Read, to: &Path, most: usize) -> io::Result<()> {
    let mut old = OsString::from(to);
    old.push(".old");
    let mut file = open(to)?;
    let mut length = 0;
    let mut piece = [0; PIECE];
    loop {
        let count = match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if length + count > most {
            fs::rename(to, &old)?;
            file = open(to)?;
            length = 0;
        }
        // A full disk loses words; the machine must not wait for it.
        if file.write_all(&piece[..count]).is_ok() {
            length += count;
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept_and_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let (to, old) = (directory.path().join("console"), directory.path().join("console.old"));
        keep(&b"short"[..], &to, 10_000).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"short");
        assert!(!old.exists());
        let long: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        keep(&long[..], &to, 10_000).unwrap();
        let mut kept = fs::read(&old).unwrap();
        assert!(kept.len() <= 10_000);
        kept.extend(fs::read(&to).unwrap());
        assert!((10_000..=20_000).contains(&kept.len()), "{}", kept.len());
        assert!(long.ends_with(&kept));
    }
}
