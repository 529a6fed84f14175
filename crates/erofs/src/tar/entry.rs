//! One entry of a layer, all headers before it merged.

use std::collections::BTreeMap;

use crate::tar::sparse::SparseMap;

/// Seconds since 1970 and nanoseconds after that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Timestamp {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

#[derive(Debug)]
pub(crate) struct Entry {
    /// As in the archive: may be absolute, and end with a slash.
    pub(crate) path: Vec<u8>,
    /// Target of a symbolic or hard link.
    pub(crate) link: Vec<u8>,
    pub(crate) kind: EntryKind,
    /// Permission bits, set-id and sticky.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    /// Major and minor of a device.
    pub(crate) device: (u32, u32),
    /// Bytes of data that follow in the stream.
    pub(crate) stored_size: u64,
    pub(crate) sparse: Option<SparseMap>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    Regular,
    HardLink,
    Symlink,
    Character,
    Block,
    Directory,
    Fifo,
    Socket,
}
