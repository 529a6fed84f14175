use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why the node refused an effect.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This computer is no Kubernetes node.
    #[error("{operation} takes a Linux kernel, which this computer has not")]
    NeedsLinux {
        /// What was asked for.
        operation: &'static str,
    },
    /// A system call on a path failed.
    #[error("{operation} {path}")]
    Io {
        /// What was being done: "create directory", "mount layer".
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The kernel, or a file system of the node, does not do what pods with user
    /// namespaces need.
    #[error("user namespaces of pods")]
    UserNamespace {
        /// Why.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// A file is larger than the caller accepts.
    #[error("{path} has more than {limit} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most that was asked for, in bytes.
        limit: usize,
    },
    /// A path that must be a regular file is something else.
    #[error("{path} is not a regular file")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A path cannot appear at a second place.
    #[error("{path} is {kind}: only directories and regular files can be shared")]
    NotBindable {
        /// The path.
        path: PathBuf,
        /// What it is, as the end of a sentence.
        kind: &'static str,
    },
    /// A tree that was to be removed has something mounted in it.
    #[error(
        "{path} is a mount point inside a tree that is to be removed; unmount it (umount --recursive {path})"
    )]
    MountInside {
        /// The mount point.
        path: PathBuf,
    },
    /// A tree changed under the walk in a way that only hostility explains.
    #[error("directory {path} was moved while it was walked")]
    Moved {
        /// The directory, as it was reached.
        path: PathBuf,
    },
    /// A unix socket's path does not fit its address.
    #[error("socket path {path} has {length} bytes, at most {limit} are possible")]
    SocketPath {
        /// The path.
        path: PathBuf,
        /// Its bytes.
        length: usize,
        /// What is possible.
        limit: usize,
    },
    /// A layer's name is no digest.
    #[error("layer {diff_id:?} is not named sha256:<64 lower-case hexadecimal characters>")]
    LayerName {
        /// The name.
        diff_id: String,
    },
    /// No loop device could be had.
    #[error("no free loop device for {path} after {attempts} attempts")]
    LoopDevices {
        /// The image file.
        path: PathBuf,
        /// How often it was tried.
        attempts: u32,
    },
    /// A program could not be executed.
    #[error("execute {path}")]
    Execute {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program was killed because it took too long.
    #[error("{path} was killed after {deadline:?}")]
    ProgramDeadline {
        /// The program.
        path: PathBuf,
        /// How long it had.
        deadline: Duration,
    },
    /// A program was killed because it printed too much.
    #[error("{path} was killed because it printed more than {limit} bytes")]
    ProgramOutput {
        /// The program.
        path: PathBuf,
        /// What it was allowed on each stream, in bytes.
        limit: usize,
    },
    /// A process cannot be watched.
    #[error("{operation} process {pid}")]
    Process {
        /// What was being done.
        operation: &'static str,
        /// The process.
        pid: u32,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A control group operation failed.
    #[error("{operation} cgroup {path}")]
    Cgroup {
        /// What was being done.
        operation: &'static str,
        /// Absolute path of the group in its hierarchies.
        path: String,
        /// Why it failed.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// Processes of a control group outlive the kill.
    #[error("{count} processes of cgroup {path} survive a kill for {waited:?}")]
    Survivors {
        /// Absolute path of the group in its hierarchies.
        path: String,
        /// How many.
        count: usize,
        /// How long they had.
        waited: Duration,
    },
    /// The record of a machine cannot be put into words.
    #[error("encode the machine's record {path}")]
    Record {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// A cgroup cannot be looked for.
    #[error("there are more than {limit} cgroups: too many to look for one")]
    Cgroups {
        /// How many are looked at.
        limit: usize,
    },
    /// The node stops, or the operation itself broke.
    #[error("{operation} was interrupted")]
    Interrupted {
        /// What was being done.
        operation: &'static str,
    },
}

impl Error {
    /// An [`Error::Io`].
    #[must_use]
    pub fn io(operation: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io { operation, path: path.to_owned(), source: source.into() }
    }

    /// The kind of the system error behind this one, where there is one.
    #[must_use]
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io { source, .. } | Self::Execute { source, .. } | Self::Process { source, .. } => {
                Some(source.kind())
            }
            Self::NeedsLinux { .. }
            | Self::TooLarge { .. }
            | Self::NotAFile { .. }
            | Self::NotBindable { .. }
            | Self::MountInside { .. }
            | Self::Moved { .. }
            | Self::SocketPath { .. }
            | Self::LayerName { .. }
            | Self::LoopDevices { .. }
            | Self::ProgramDeadline { .. }
            | Self::ProgramOutput { .. }
            | Self::Cgroup { .. }
            | Self::Survivors { .. }
            | Self::Record { .. }
            | Self::Cgroups { .. }
            | Self::UserNamespace { .. }
            | Self::Interrupted { .. } => None,
        }
    }

    /// Whether the path or the program is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.io_kind() == Some(io::ErrorKind::NotFound)
    }
}
