//! Writing a VM's log on its behalf, so that each record is in the file once.
//!
//! The guest keeps records until they are acknowledged ([`crate::buffer`]); the
//! daemon writes them. For each chunk, in this order:
//!
//! 1. [`DurableLog::write`] appends the chunk and yields a [`Cursor`];
//! 2. the caller records the cursor in its store, then calls
//!    [`DurableLog::recorded`];
//! 3. the caller acknowledges to the guest the offset which that returned.
//!
//! The daemon may be killed between any two steps, and kubelet may rename the
//! file at any time. [`DurableLog::recover`] finds the file of the last recorded
//! cursor by its identity, cuts off what was written after it, and goes on from
//! the cursor's offset, which the guest still holds: step 3 comes last.
//!
//! This works because a cursor must be recorded before the next write: what a
//! crash leaves behind the recorded cursor is then always in the cursor's own
//! file, and a file that a rotation began is empty until a cursor names it.
//!
//! It protects against the death of the daemon, not of the node: file content
//! is not synced to disk, as a VM does not survive its node either.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::format::validate;
use crate::writer::{LogWriter, Position};

/// Most entries looked at in a log directory. A pod's container directory holds
/// a few files per restart.
const MAX_ENTRIES: usize = 10_000;

/// How far a log file holds the guest's stream. To be recorded durably.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Stream offset up to which records are in the files.
    pub offset: u64,
    /// Device of the file that holds the last of them.
    pub device: u64,
    /// Inode of that file.
    pub inode: u64,
    /// Bytes of that file that are accounted for.
    pub length: u64,
}

impl Cursor {
    fn at(offset: u64, position: Position) -> Self {
        Self { offset, device: position.device, inode: position.inode, length: position.offset }
    }
}

/// What [`DurableLog::recover`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// The cursor's file is in place.
    InPlace {
        /// Bytes cut off: written, but not recorded before the crash. The
        /// guest sends them again.
        cut: u64,
    },
    /// The cursor's file was renamed.
    Rotated {
        /// Its name now.
        rotated: PathBuf,
        /// Bytes cut off from it.
        cut: u64,
        /// Whether the log path names a new file, which is used from now on.
        /// Otherwise the renamed file stays in use until
        /// [`DurableLog::reopen`], just as if the daemon had never died:
        /// kubelet asks for it, or renames the file back.
        continues_in_new_file: bool,
    },
    /// The file is shorter than recorded (somebody truncated it, or the node
    /// lost power): goes on at its end.
    Shorter {
        /// Bytes that are missing.
        missing: u64,
    },
    /// The file is gone. Records that were written to it after the last
    /// recorded cursor are written again to the new file.
    Gone,
}

/// The log file of one container in a VM.
#[derive(Debug)]
pub struct DurableLog {
    writer: LogWriter,
    cursor: Cursor,
    recorded: bool,
}

impl DurableLog {
    /// Begins the log of a container whose stream is at its start. The
    /// [`cursor`](Self::cursor) must be recorded before the container is
    /// started.
    ///
    /// # Errors
    /// As [`LogWriter::open`].
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let writer = LogWriter::open(path)?;
        Self::unrecorded(writer, 0)
    }

    /// Goes on with a log after a restart, from the last recorded cursor. The
    /// new [`cursor`](Self::cursor) must be recorded before the first write.
    ///
    /// # Errors
    /// As [`LogWriter::open`], and [`Error::Search`],
    /// [`Error::TooManyEntries`].
    pub fn recover(path: impl Into<PathBuf>, last: &Cursor) -> Result<(Self, Recovery), Error> {
        let path = path.into();
        let wanted = (last.device, last.inode);
        let in_place = open_existing(&path)?;
        let path_is_taken = in_place.is_some();
        let (writer, recovery) = match in_place {
            Some(writer) if writer.identity() == wanted => go_on_in_place(writer, last)?,
            _ => match open_rotated(&path, last)? {
                Some((rotated, mut old)) => {
                    let cut = old.length()?.saturating_sub(last.length);
                    old.truncate(last.length)?;
                    let writer = if path_is_taken {
                        LogWriter::open(path)?
                    } else {
                        old.set_path(path);
                        old
                    };
                    let recovery = Recovery::Rotated { rotated, cut, continues_in_new_file: path_is_taken };
                    (writer, recovery)
                }
                // Kubelet may have renamed it back since the first look.
                None => match open_existing(&path)? {
                    Some(writer) if writer.identity() == wanted => go_on_in_place(writer, last)?,
                    _ => (LogWriter::open(path)?, Recovery::Gone),
                },
            },
        };
        Ok((Self::unrecorded(writer, last.offset)?, recovery))
    }

    /// How far the files hold the stream. To be recorded if
    /// [`is_recorded`](Self::is_recorded) says not yet.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Whether the cursor was recorded.
    pub fn is_recorded(&self) -> bool {
        self.recorded
    }

    /// Stream offset that the next chunk must start at.
    pub fn next_offset(&self) -> u64 {
        self.cursor.offset
    }

    /// Appends a chunk that starts at stream offset `offset`, all of it or
    /// nothing. Returns the cursor to be recorded. The bytes are not trusted:
    /// anything but whole records is refused.
    ///
    /// # Errors
    /// [`Error::Unrecorded`] if the last cursor was not recorded,
    /// [`Error::Gap`] if the chunk starts elsewhere than at
    /// [`next_offset`](Self::next_offset), [`Error::Malformed`],
    /// [`Error::Append`] and [`Error::Truncate`] (the file has no room; the
    /// same chunk may be tried again), [`Error::Inspect`].
    pub fn write(&mut self, offset: u64, chunk: &[u8]) -> Result<Cursor, Error> {
        if !self.recorded {
            return Err(Error::Unrecorded { offset: self.cursor.offset });
        }
        if offset != self.cursor.offset {
            return Err(Error::Gap { expected: self.cursor.offset, got: offset });
        }
        validate(chunk)?;
        let before = self.writer.position()?;
        if let Err(error) = self.writer.append(chunk) {
            self.writer.truncate(before.offset)?;
            return Err(error);
        }
        self.advance(offset + chunk.len() as u64)
    }

    /// The cursor is in the store. Returns the stream offset that may now be
    /// acknowledged to the guest. A cursor that is not the present one (a
    /// rotation came between) changes nothing but may be acknowledged as well.
    pub fn recorded(&mut self, cursor: &Cursor) -> u64 {
        if *cursor == self.cursor {
            self.recorded = true;
        }
        cursor.offset
    }

    /// Follows a rotation by kubelet, see [`LogWriter::reopen`]. Returns the
    /// cursor to be recorded before the next write, and before kubelet is told
    /// that it is done.
    ///
    /// # Errors
    /// As [`LogWriter::reopen`]; the old file stays in use then.
    pub fn reopen(&mut self) -> Result<Cursor, Error> {
        self.writer.reopen()?;
        self.advance(self.cursor.offset)
    }

    fn advance(&mut self, offset: u64) -> Result<Cursor, Error> {
        let cursor = Cursor::at(offset, self.writer.position()?);
        if cursor != self.cursor {
            self.cursor = cursor;
            self.recorded = false;
        }
        Ok(cursor)
    }

    fn unrecorded(writer: LogWriter, offset: u64) -> Result<Self, Error> {
        let cursor = Cursor::at(offset, writer.position()?);
        Ok(Self { writer, cursor, recorded: false })
    }
}

/// Goes on in the cursor's file, which the log path names.
fn go_on_in_place(mut writer: LogWriter, last: &Cursor) -> Result<(LogWriter, Recovery), Error> {
    let length = writer.length()?;
    let recovery = if length < last.length {
        writer.cut_torn_tail()?;
        Recovery::Shorter { missing: last.length - length }
    } else {
        writer.truncate(last.length)?;
        Recovery::InPlace { cut: length - last.length }
    };
    Ok((writer, recovery))
}

/// Opens a file as it is; `None` if there is none.
fn open_existing(path: &Path) -> Result<Option<LogWriter>, Error> {
    match LogWriter::open_as_is(path.to_owned(), false) {
        Ok(writer) => Ok(Some(writer)),
        Err(Error::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(other) => Err(other),
    }
}

/// Looks for the cursor's file among `<path>.*`: kubelet appends the time of
/// the rotation to the name.
fn open_rotated(path: &Path, cursor: &Cursor) -> Result<Option<(PathBuf, LogWriter)>, Error> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let search = |source| Error::Search { directory: directory.to_owned(), source };
    let mut prefix = OsString::from(path.file_name().unwrap_or_default());
    prefix.push(".");
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(search(source)),
    };
    for (count, entry) in entries.enumerate() {
        if count >= MAX_ENTRIES {
            return Err(Error::TooManyEntries { directory: directory.to_owned(), limit: MAX_ENTRIES });
        }
        let entry = entry.map_err(search)?;
        if !entry.file_name().as_bytes().starts_with(prefix.as_bytes()) {
            continue;
        }
        // Not the inode in the entry: file systems may show another one there.
        let wanted = (cursor.device, cursor.inode);
        let candidate = entry.path();
        match fs::symlink_metadata(&candidate) {
            Ok(metadata) if (metadata.dev(), metadata.ino()) == wanted => {}
            _ => continue,
        }
        if let Some(writer) = open_existing(&candidate)?
            && writer.identity() == wanted
        {
            return Ok(Some((candidate, writer)));
        }
    }
    Ok(None)
}
