//! What is at a path of the node.

use std::fs::Metadata;
use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;

/// What is at a path, symbolic links followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathFacts {
    /// The path without symbolic links.
    pub real: PathBuf,
    /// What is there.
    pub kind: PathKind,
    /// Permission bits, those of setuid, setgid and sticky included.
    pub mode: u32,
    /// Whose it is.
    pub uid: u32,
    /// Likewise.
    pub gid: u32,
    /// The file system that it is on.
    pub mount: MountFacts,
    /// Whether something is mounted below it.
    pub has_mounts_below: bool,
    /// Other paths that lead to the same file or directory because its file
    /// system is mounted at several places.
    pub aliases: Vec<PathBuf>,
}

/// What can be at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A unix socket.
    Socket,
    /// A named pipe.
    Pipe,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharacterDevice,
}

/// What it is that these are of; `None` for something else than there is a name for.
pub(crate) fn kind_of(found: &Metadata) -> Option<PathKind> {
    let kind = found.file_type();
    [
        (kind.is_dir(), PathKind::Directory),
        (kind.is_file(), PathKind::File),
        (kind.is_socket(), PathKind::Socket),
        (kind.is_fifo(), PathKind::Pipe),
        (kind.is_block_device(), PathKind::BlockDevice),
        (kind.is_char_device(), PathKind::CharacterDevice),
    ]
    .into_iter()
    .find_map(|(is, kind)| is.then_some(kind))
}

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountFacts {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Its type: `ext4`, `tmpfs`.
    pub filesystem: String,
    /// Its size in bytes; 0 where it has none.
    pub size_bytes: u64,
}
