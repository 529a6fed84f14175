//! Where plugins run and files lie.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;

/// What a host says when something failed.
pub type HostError = Box<dyn std::error::Error + Send + Sync>;

/// One execution of a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Execution {
    /// The executable. It gets no arguments.
    pub path: PathBuf,
    /// The whole environment, names once each.
    pub environment: Vec<(String, String)>,
    /// What it reads from standard input.
    pub stdin: Vec<u8>,
    /// It is killed after that long.
    pub deadline: Duration,
    /// It is killed when it prints more bytes than that on either stream.
    pub max_output: usize,
}

/// What a plugin left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executed {
    /// Exit code; 128 plus the signal's number where one ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

/// Why a plugin was not run to its end.
#[derive(Debug)]
pub enum ExecuteError {
    /// The executable is open for writing (`ETXTBSY`): somebody is installing
    /// it. It will be tried again.
    Busy,
    /// It was killed at its deadline.
    Deadline,
    /// It was killed because it printed too much.
    TooMuchOutput,
    /// Anything else.
    Failed(HostError),
}

/// An executable that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundFile {
    /// Any text that changes when the file is replaced or rewritten, such as
    /// inode, size and times. What a plugin said about its versions is
    /// remembered for it; without one it is asked each time.
    pub identity: Option<String>,
}

/// The machine on which plugins run and on which configurations and cached
/// results lie. With the feature `local`, `LocalHost` is this machine.
#[async_trait]
pub trait Host: Send + Sync {
    /// Names of what lies in a directory, in any order; none for a directory
    /// that does not exist. A host that can tell leaves subdirectories out.
    async fn list_directory(&self, path: &Path) -> Result<Vec<String>, HostError>;

    /// A file's content; `None` if it does not exist. A file of more than
    /// `limit` bytes is an error.
    async fn read_file(&self, path: &Path, limit: usize) -> Result<Option<Vec<u8>>, HostError>;

    /// Replaces a file in one step: readers see the old or the new content.
    /// Missing directories are made, for the owner alone (0700), the file is
    /// the owner's (0600). A temporary file's name begins with a dot.
    async fn write_file(&self, path: &Path, content: &[u8]) -> Result<(), HostError>;

    /// How long ago a temporary file of [`write_file`](Self::write_file) was
    /// begun, by its name; `None` for any other name. An old one is left of a
    /// process that was killed, and is removed.
    fn temporary_age(&self, name: &str) -> Option<Duration>;

    /// Removes a file. One that does not exist is removed already.
    async fn remove_file(&self, path: &Path) -> Result<(), HostError>;

    /// Looks for a regular file, following symlinks; `None` if there is none.
    async fn find_file(&self, path: &Path) -> Result<Option<FoundFile>, HostError>;

    /// Runs a plugin to its end. Dropping the call, as well as the deadline,
    /// kills the plugin with all that it has started (its process group).
    async fn execute(&self, execution: &Execution) -> Result<Executed, ExecuteError>;
}
