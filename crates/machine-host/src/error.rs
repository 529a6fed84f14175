use std::path::PathBuf;

/// Why the host driver cannot do something that is not the node's fault. It is
/// the source of a [`kina_machine::Error::Node`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The machine's directory is not where this driver looks for it later.
    #[error("machine directory {path} is not {expected}")]
    Directory {
        /// The directory given.
        path: PathBuf,
        /// What it must be.
        expected: PathBuf,
    },
    /// The guest's socket would not fit its address.
    #[error(
        "guest socket {path} has {length} bytes, at most {limit} are possible: choose a shorter directory"
    )]
    SocketPath {
        /// The socket.
        path: PathBuf,
        /// Bytes of its path.
        length: usize,
        /// What the kernel takes.
        limit: usize,
    },
    /// The machine exists with another cgroup.
    #[error("the machine exists in cgroup {existing}, not in {asked}")]
    Cgroup {
        /// Its cgroup.
        existing: String,
        /// The cgroup asked for.
        asked: String,
    },
}
