//! What can be wrong with a layer, or with writing its image.

use std::fmt;
use std::io;

/// Why a layer could not be written.
///
/// Everything except [`Error::Read`] and [`Error::Write`] is caused by the
/// content of the stream. Paths are shown escaped: an archive chooses its own
/// bytes, and they must not reach a terminal or a log line raw.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The reader failed.
    #[error("cannot read the tar stream at byte {offset}, {place}")]
    Read {
        /// Bytes read so far.
        offset: u64,
        /// In or after which entry.
        place: Place,
        /// What the reader said.
        #[source]
        source: io::Error,
    },
    /// The output file could not be written.
    #[error("cannot write the image at byte {offset}")]
    Write {
        /// Where in the image.
        offset: u64,
        /// What the file said.
        #[source]
        source: io::Error,
    },
    /// The stream ended inside a header, a file or its padding.
    #[error("the tar stream ends at byte {offset}, inside {inside}, {place}")]
    Truncated {
        /// Bytes read in all.
        offset: u64,
        /// In or after which entry.
        place: Place,
        /// What was being read.
        inside: &'static str,
    },
    /// A header's checksum does not match its bytes: not a tar stream, or a damaged one.
    #[error("the tar header at byte {offset}, {place}, has a wrong checksum")]
    BadChecksum {
        /// Where the header starts.
        offset: u64,
        /// After which entry.
        place: Place,
    },
    /// One zero block that is neither the end of the stream nor followed by a second one.
    #[error("a lone zero block at byte {offset} in the tar stream, {place}")]
    LoneZeroBlock {
        /// Where the zero block starts.
        offset: u64,
        /// After which entry.
        place: Place,
    },
    /// A number in a header is malformed, negative where it cannot be, or too large for its meaning.
    #[error("the tar header at byte {offset}, {place}, has a bad {field}")]
    BadNumber {
        /// Where the header starts.
        offset: u64,
        /// In or after which entry.
        place: Place,
        /// Which field or PAX key.
        field: &'static str,
    },
    /// A PAX or GNU extension header cannot be understood.
    #[error("the tar extension header at byte {offset}, {place}, is bad: {problem}")]
    BadExtension {
        /// Where the extension header starts.
        offset: u64,
        /// After which entry.
        place: Place,
        /// What is wrong.
        problem: &'static str,
    },
    /// The map of a sparse file contradicts itself or the file's size.
    #[error("the sparse file {path} is bad: {problem}")]
    BadSparse {
        /// The entry's path.
        path: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// An entry of a type that a layer cannot hold.
    #[error("{path} has the unsupported tar entry type {kind:#04x}")]
    UnsupportedType {
        /// The entry's path.
        path: String,
        /// The type byte.
        kind: u8,
    },
    /// A path that no layer may use.
    #[error("the path {path} is refused: it {problem}")]
    BadPath {
        /// The path as given.
        path: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// An entry below something that is neither a directory nor a symbolic link.
    #[error("{path} lies below something that is not a directory")]
    NotADirectory {
        /// The entry's path.
        path: String,
    },
    /// An entry would replace the root directory with something else.
    #[error("the root of the layer must be a directory")]
    RootNotDirectory,
    /// Too many symbolic links on the way to an entry.
    #[error("too many symbolic links on the way to {path}")]
    SymlinkLoop {
        /// The entry's path.
        path: String,
    },
    /// A hard link to something that the layer does not hold (yet).
    #[error("{path} is a hard link to {target}, which is not in the layer before it")]
    LinkTargetMissing {
        /// The entry's path.
        path: String,
        /// What it links to.
        target: String,
    },
    /// A hard link to a directory.
    #[error("{path} is a hard link to the directory {target}")]
    LinkToDirectory {
        /// The entry's path.
        path: String,
        /// What it links to.
        target: String,
    },
    /// A whiteout that names nothing, or a path that goes through one.
    #[error("{path} is not a valid whiteout")]
    BadWhiteout {
        /// The entry's path.
        path: String,
    },
    /// The layer exceeds a limit of [`Limits`](crate::Limits).
    #[error("{path} exceeds the limit of {limit} {exceeded}")]
    LimitExceeded {
        /// The entry at which it happened, or which it came after.
        path: String,
        /// Which limit.
        exceeded: Exceeded,
        /// Its value.
        limit: u64,
    },
    /// The image would need more blocks than EROFS can address (16 TiB).
    #[error("the image would need {blocks} blocks of 4096 bytes, more than EROFS can address")]
    ImageTooLarge {
        /// How many blocks were asked for.
        blocks: u64,
    },
}

/// The limits that a layer can exceed; each names a field of [`Limits`](crate::Limits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exceeded {
    /// [`Limits::max_entries`](crate::Limits::max_entries)
    Entries,
    /// [`Limits::max_unpacked_bytes`](crate::Limits::max_unpacked_bytes)
    UnpackedBytes,
    /// [`Limits::max_archive_bytes`](crate::Limits::max_archive_bytes)
    ArchiveBytes,
    /// [`Limits::max_file_bytes`](crate::Limits::max_file_bytes)
    FileBytes,
    /// [`Limits::max_path_len`](crate::Limits::max_path_len)
    PathLength,
    /// [`Limits::max_depth`](crate::Limits::max_depth)
    Depth,
    /// [`Limits::max_xattr_bytes`](crate::Limits::max_xattr_bytes)
    XattrBytes,
    /// [`Limits::max_link_target`](crate::Limits::max_link_target)
    LinkTarget,
    /// [`Limits::max_extension_bytes`](crate::Limits::max_extension_bytes)
    ExtensionBytes,
    /// [`Limits::max_sparse_segments`](crate::Limits::max_sparse_segments)
    SparseSegments,
    /// [`Limits::max_memory_bytes`](crate::Limits::max_memory_bytes)
    MemoryBytes,
    /// [`Limits::max_trailing_bytes`](crate::Limits::max_trailing_bytes)
    TrailingBytes,
}

impl fmt::Display for Exceeded {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Entries => "entries",
            Self::UnpackedBytes => "unpacked bytes",
            Self::ArchiveBytes => "bytes in the archive",
            Self::FileBytes => "bytes in one file",
            Self::PathLength => "bytes in a path",
            Self::Depth => "levels of directories",
            Self::XattrBytes => "bytes of extended attributes",
            Self::LinkTarget => "bytes in a link target",
            Self::ExtensionBytes => "bytes in extension headers",
            Self::SparseSegments => "segments in a sparse file",
            Self::MemoryBytes => "bytes of metadata held in memory",
            Self::TrailingBytes => "bytes after the end of the archive",
        })
    }
}

/// Where in a stream of entries something happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// Before any entry was read.
    #[default]
    Start,
    /// In this entry: its own header or its data.
    In(String),
    /// Behind this entry, the last one that could be read.
    After(String),
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => formatter.write_str("before the first entry"),
            Self::In(path) => write!(formatter, "in {path}"),
            Self::After(path) => write!(formatter, "after {path}"),
        }
    }
}

impl Error {
    /// Says where it happened: what reads bytes does not know of entries.
    pub(crate) fn placed(mut self, at: impl FnOnce() -> Place) -> Self {
        match &mut self {
            Self::Read { place, .. }
            | Self::Truncated { place, .. }
            | Self::BadChecksum { place, .. }
            | Self::LoneZeroBlock { place, .. }
            | Self::BadNumber { place, .. }
            | Self::BadExtension { place, .. } => *place = at(),
            Self::LimitExceeded { path, .. } if path.is_empty() => {
                *path = format!("what comes {}", at());
            }
            _ => {}
        }
        self
    }

    pub(crate) fn limit(path: &[u8], exceeded: Exceeded, limit: u64) -> Self {
        Self::LimitExceeded { path: shown(path), exceeded, limit }
    }

    /// At what cannot be named yet.
    pub(crate) fn limit_between_entries(exceeded: Exceeded, limit: u64) -> Self {
        Self::LimitExceeded { path: String::new(), exceeded, limit }
    }
}

/// A path from the archive as text: escaped, and cut when absurdly long.
pub(crate) fn shown(path: &[u8]) -> String {
    const LONGEST: usize = 256;
    if path.is_empty() {
        return "the stream".to_owned();
    }
    if path.len() > LONGEST {
        return format!("{}...", path[..LONGEST].escape_ascii());
    }
    path.escape_ascii().to_string()
}
