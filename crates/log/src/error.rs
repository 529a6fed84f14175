//! The errors of this crate.

use std::io;
use std::path::PathBuf;

/// What can go wrong with a container's log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The log file could not be opened or created.
    #[error("open log file {}", path.display())]
    Open {
        /// The log file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path names something other than a regular file.
    #[error("log file {} is not a regular file", path.display())]
    NotRegular {
        /// The log file.
        path: PathBuf,
    },
    /// Size or identity of the open log file could not be read.
    #[error("inspect log file {}", path.display())]
    Inspect {
        /// The log file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Records could not be appended. The file ends after the last record that
    /// was written whole.
    #[error("append to log file {} ({written} bytes of whole records written)", path.display())]
    Append {
        /// The log file.
        path: PathBuf,
        /// Bytes from the start of the batch that are in the file, always whole
        /// records. A retry starts behind them.
        written: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The log file could not be cut back to its last whole record.
    #[error("truncate log file {} to {length} bytes", path.display())]
    Truncate {
        /// The log file.
        path: PathBuf,
        /// The length that it should have.
        length: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The directory of the log file could not be searched for rotated files.
    #[error("search {} for rotated log files", directory.display())]
    Search {
        /// The directory.
        directory: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// More directory entries than any log directory has.
    #[error("log directory {} has more than {limit} entries", directory.display())]
    TooManyEntries {
        /// The directory.
        directory: PathBuf,
        /// The bound.
        limit: usize,
    },
    /// Bytes that should be whole records are not.
    #[error("malformed log record at byte {at}: {reason}")]
    Malformed {
        /// Offset of the bad record in the bytes given.
        at: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Reading a container's output failed.
    #[error("read the container's {stream}")]
    Read {
        /// Which output.
        stream: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A reader asked for an offset that the stream does not hold (any more, or
    /// yet), or that lies inside a record.
    #[error("log stream offset {offset} is not a record boundary in {start}..={end}")]
    Offset {
        /// The offset asked for.
        offset: u64,
        /// First offset still held.
        start: u64,
        /// Offset after the last record.
        end: u64,
    },
    /// Records were offered to a stream that was already closed.
    #[error("log stream is closed")]
    Closed,
    /// A chunk does not continue where the log file stands.
    #[error("log chunk starts at stream offset {got}, expected {expected}")]
    Gap {
        /// Where the file stands.
        expected: u64,
        /// Where the chunk starts.
        got: u64,
    },
    /// A write was tried before the previous cursor was recorded; a crash now
    /// could double records.
    #[error("the log cursor at stream offset {offset} is not recorded yet")]
    Unrecorded {
        /// Stream offset of the cursor that waits to be recorded.
        offset: u64,
    },
}
