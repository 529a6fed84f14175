//! Keeps the end of what a virtual machine's processes say: on the node, beside
//! them, so that a daemon that is away misses nothing and no machine can fill
//! the node's disk.
//!
//! It keeps two files: what one has goes to the other, `<file>.old`, when it is half
//! as long as both may be. Both are open before the first byte comes, which is a
//! stranger's: by then the process has given up the rights to open any.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
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
    /// The user to become.
    pub(crate) user: Option<u32>,
}

/// Reads to the end.
pub(crate) fn run(options: &Console) -> io::Result<()> {
    let files = Files::open(&options.to)?;
    // Waits for the first writer.
    let from = File::open(&options.from)?;
    kina_confine::confine(options.user).map_err(io::Error::other)?;
    keep(from, files, options.limit / 2)
}

/// The file that is written, and the one before.
struct Files {
    now: File,
    old: File,
}

impl Files {
    /// Both, empty.
    fn open(to: &Path) -> io::Result<Self> {
        let mut old = OsString::from(to);
        old.push(".old");
        Ok(Self { now: open(to)?, old: open(Path::new(&old))? })
    }

    /// Begins anew. A full disk loses words; the machine must not wait for it.
    fn turn(&mut self) -> io::Result<()> {
        self.old.set_len(0)?;
        self.old.rewind()?;
        self.now.rewind()?;
        let _lost_on_a_full_disk = io::copy(&mut self.now, &mut self.old);
        self.now.set_len(0)?;
        self.now.rewind()
    }
}

fn keep(mut from: impl Read, mut files: Files, most: usize) -> io::Result<()> {
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
            files.turn()?;
            length = 0;
        }
        if files.now.write_all(&piece[..count]).is_ok() {
            length += count;
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_end_is_kept_and_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let (to, old) = (directory.path().join("console"), directory.path().join("console.old"));
        keep(&b"short"[..], Files::open(&to).unwrap(), 10_000).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"short");
        assert_eq!(fs::read(&old).unwrap(), b"");
        let long: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        keep(&long[..], Files::open(&to).unwrap(), 10_000).unwrap();
        let mut kept = fs::read(&old).unwrap();
        assert!(kept.len() <= 10_000);
        kept.extend(fs::read(&to).unwrap());
        assert!((10_000..=20_000).contains(&kept.len()), "{}", kept.len());
        assert!(long.ends_with(&kept));
    }
}
