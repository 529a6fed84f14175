//! Appending records to a log file, and following its rotation.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::OFlags;

use crate::error::Error;
use crate::format::MAX_RECORD;

/// Mode of a new log file (before the umask): readable by kubelet's group.
const LOG_FILE_MODE: u32 = 0o640;

/// A place in a log file: between two records of the file with this identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Device of the file.
    pub device: u64,
    /// Inode of the file.
    pub inode: u64,
    /// Bytes of whole records before this place.
    pub offset: u64,
}

/// Appends whole records to one log file.
///
/// Blocking file IO; what it costs is a copy into the page cache. Every batch
/// lands in one file, also around [`reopen`](Self::reopen).
#[derive(Debug)]
pub struct LogWriter {
    path: PathBuf,
    file: File,
    device: u64,
    inode: u64,
    /// Length of the whole records, when a failed append left more than those
    /// in the file and it could not be cut. Set means: cut before anything else.
    cut_to: Option<u64>,
}

impl LogWriter {
    /// Opens the log file for appending, or creates it (mode 0640, the
    /// directory must exist). Does not follow a symlink. If the file ends
    /// inside a record (its writer was killed), that torn record is cut off.
    ///
    /// # Errors
    /// [`Error::Open`], [`Error::NotRegular`], [`Error::Inspect`],
    /// [`Error::Truncate`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let mut writer = Self::open_as_is(path.into(), true)?;
        writer.cut_torn_tail()?;
        Ok(writer)
    }

    /// Opens without a look at the content. Without `create` the file must
    /// exist.
    pub(crate) fn open_as_is(path: PathBuf, create: bool) -> Result<Self, Error> {
        // Without O_NONBLOCK a FIFO planted here would block the open.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let opened = OpenOptions::new()
            .read(true)
            .append(true)
            .create(create)
            .mode(LOG_FILE_MODE)
            .custom_flags(flags.bits().cast_signed())
            .open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(source) => return Err(Error::Open { path, source }),
        };
        let metadata = match file.metadata() {
            Ok(metadata) => metadata,
            Err(source) => return Err(Error::Inspect { path, source }),
        };
        if !metadata.is_file() {
            return Err(Error::NotRegular { path });
        }
        Ok(Self { path, file, device: metadata.dev(), inode: metadata.ino(), cut_to: None })
    }

    /// The path that [`reopen`](Self::reopen) opens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode of the open file.
    pub(crate) fn identity(&self) -> (u64, u64) {
        (self.device, self.inode)
    }

    pub(crate) fn set_path(&mut self, path: PathBuf) {
        self.path = path;
    }

    /// Where the next record will go.
    ///
    /// # Errors
    /// [`Error::Inspect`].
    pub fn position(&self) -> Result<Position, Error> {
        let offset = match self.cut_to {
            Some(length) => length,
            None => self.length()?,
        };
        Ok(Position { device: self.device, inode: self.inode, offset })
    }

    /// Appends a batch of whole records with one write.
    ///
    /// On failure the records that were written whole stay, a torn one is cut
    /// off (now, or before the next append if even that fails), and the caller
    /// retries with what is behind [`Error::Append`]'s `written`. An empty
    /// batch does nothing.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the batch does not end a record,
    /// [`Error::Append`], [`Error::Truncate`], [`Error::Inspect`].
    pub fn append(&mut self, batch: &[u8]) -> Result<(), Error> {
        match batch.last() {
            None => return Ok(()),
            Some(b'\n') => {}
            Some(_) => {
                return Err(Error::Malformed { at: batch.len(), reason: "batch ends inside a record" });
            }
        }
        self.cut()?;
        let before = self.length()?;
        let (written, outcome) = write_until_error(&mut self.file, batch);
        let Err(source) = outcome else { return Ok(()) };
        let whole = batch[..written].iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        if whole < written {
            self.cut_to = Some(before + whole as u64);
            // What failed here is tried again before the next append.
            let _ = self.cut();
        }
        Err(Error::Append { path: self.path.clone(), written: whole, source })
    }

    /// Goes on with the file that the path names now, created if missing:
    /// kubelet renames the log file and then asks for this. Records appended
    /// before are in the old file, records appended after in the new one. If
    /// the path still names the open file nothing changes.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`Error::Truncate`]; the old file stays in
    /// use then.
    pub fn reopen(&mut self) -> Result<(), Error> {
        self.cut()?;
        let new = Self::open(self.path.clone())?;
        if new.identity() != self.identity() {
            *self = new;
        }
        Ok(())
    }

    /// Cuts the file to `length` if it is longer; until that works, nothing is
    /// appended.
    pub(crate) fn truncate(&mut self, length: u64) -> Result<(), Error> {
        if self.length()? > length {
            self.cut_to = Some(length);
        }
        self.cut()
    }

    pub(crate) fn length(&self) -> Result<u64, Error> {
        match self.file.metadata() {
            Ok(metadata) => Ok(metadata.len()),
            Err(source) => Err(Error::Inspect { path: self.path.clone(), source }),
        }
    }

    fn cut(&mut self) -> Result<(), Error> {
        let Some(length) = self.cut_to else {
            return Ok(());
        };
        if let Err(source) = self.file.set_len(length) {
            return Err(Error::Truncate { path: self.path.clone(), length, source });
        }
        self.cut_to = None;
        Ok(())
    }

    /// Cuts off what follows the last newline. A tail longer than any record
    /// was not written by us: it is kept and ended with a newline.
    pub(crate) fn cut_torn_tail(&mut self) -> Result<(), Error> {
        let length = self.length()?;
        if length == 0 {
            return Ok(());
        }
        let inspect = |path: &Path, source| Error::Inspect { path: path.to_owned(), source };
        let mut last = [0u8; 1];
        self.file.read_exact_at(&mut last, length - 1).map_err(|source| inspect(&self.path, source))?;
        if last == *b"\n" {
            return Ok(());
        }
        let start = length.saturating_sub(MAX_RECORD as u64);
        let mut tail = vec![0u8; (length - start) as usize];
        self.file.read_exact_at(&mut tail, start).map_err(|source| inspect(&self.path, source))?;
        match tail.iter().rposition(|byte| *byte == b'\n') {
            Some(newline) => self.truncate(start + newline as u64 + 1),
            None if start == 0 => self.truncate(0),
            None => self.append(b"\n"),
        }
    }
}

/// Writes all of `batch`; returns how much was written, and what ended it early.
fn write_until_error(file: &mut impl Write, batch: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < batch.len() {
        match file.write(&batch[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

/// A [`LogWriter`] shared by the pumps of one container and whoever rotates.
#[derive(Debug)]
pub struct FileSink {
    writer: Mutex<LogWriter>,
}

impl FileSink {
    /// Shares a writer.
    pub fn new(writer: LogWriter) -> Self {
        Self { writer: Mutex::new(writer) }
    }

    /// [`LogWriter::append`].
    ///
    /// # Errors
    /// As there.
    pub fn append(&self, batch: &[u8]) -> Result<(), Error> {
        self.lock().append(batch)
    }

    /// [`LogWriter::reopen`].
    ///
    /// # Errors
    /// As there.
    pub fn reopen(&self) -> Result<(), Error> {
        self.lock().reopen()
    }

    /// [`LogWriter::position`].
    ///
    /// # Errors
    /// As there.
    pub fn position(&self) -> Result<Position, Error> {
        self.lock().position()
    }

    fn lock(&self) -> MutexGuard<'_, LogWriter> {
        // The writer is sound between any two of its steps.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// As after an append whose torn record could not be cut off at once.
    fn with_torn_record(path: &Path) -> LogWriter {
        fs::write(path, "whole\nto").unwrap();
        let mut writer = LogWriter::open_as_is(path.to_owned(), false).unwrap();
        writer.cut_to = Some(6);
        writer
    }

    #[test]
    fn a_torn_record_is_cut_before_anything_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let mut writer = with_torn_record(&path);
        assert_eq!(writer.position().unwrap().offset, 6);
        writer.append(b"next\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole\nnext\n");

        let mut writer = with_torn_record(&path);
        let rotated = directory.path().join("0.log.1");
        fs::rename(&path, &rotated).unwrap();
        writer.reopen().unwrap();
        assert_eq!(fs::read(&rotated).unwrap(), b"whole\n");
        assert_eq!(writer.position().unwrap().offset, 0);
    }
}
