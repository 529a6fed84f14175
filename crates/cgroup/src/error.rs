//! What can go wrong with a control group.

use std::path::PathBuf;
use std::time::Duration;

/// A failed operation on a control group.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No control group file system is mounted.
    #[error("no cgroup file system is mounted")]
    NotMounted,
    /// The group path is not absolute, or has `..`, an empty component or a NUL in it.
    #[error("{path:?} is not a valid cgroup path")]
    InvalidPath {
        /// The path as given.
        path: String,
    },
    /// A field was set for which this kernel has no control.
    #[error("{field} is not supported here: there is no {file}")]
    Unsupported {
        /// The field of the request, as in [`Resources`](crate::Resources).
        field: &'static str,
        /// The control file that would be needed.
        file: String,
    },
    /// A field has a value that no control can express.
    #[error("{field} cannot be {value:?}")]
    InvalidValue {
        /// The field of the request.
        field: &'static str,
        /// The value as given.
        value: String,
    },
    /// The kernel refused a value.
    #[error("cannot set {field} to {value:?} in {}", path.display())]
    Set {
        /// The field of the request.
        field: &'static str,
        /// The value as written.
        value: String,
        /// The control file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// A group's directory could not be made.
    #[error("cannot create {}", path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// A process could not be moved into the group.
    #[error("cannot move process {pid} into {}", path.display())]
    Add {
        /// The process; 0 is the calling process.
        pid: i32,
        /// The file written.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// A file of the group could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// A control file could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// A control file's content is not what the kernel documents.
    #[error("{} has unexpected content", path.display())]
    Content {
        /// The file.
        path: PathBuf,
    },
    /// The device program could not be loaded or attached (v2).
    #[error("cannot install the device program of {}", path.display())]
    DeviceProgram {
        /// The group's directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// Processes were still there when the deadline passed.
    #[error("{count} processes of {path} are still there after {waited:?}")]
    NotEmpty {
        /// The group.
        path: String,
        /// How many processes.
        count: usize,
        /// How long was waited.
        waited: Duration,
    },
    /// A group's directory could not be removed before the deadline.
    #[error("cannot remove {} within {waited:?}", path.display())]
    Delete {
        /// The directory.
        path: PathBuf,
        /// How long was waited.
        waited: Duration,
        /// The last answer of the kernel.
        #[source]
        source: std::io::Error,
    },
}
