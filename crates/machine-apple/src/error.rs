use std::path::PathBuf;
use std::time::Duration;

use crate::Version;

/// Why the driver cannot do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Apple's program cannot be run.
    #[error(
        "{program} cannot be run: install Apple's container (https://github.com/apple/container/releases), or say \
         where it is with machine.apple.program"
    )]
    Program {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Apple's program is of a version that lacks what machines need.
    #[error(
        "Apple's container {found} is too old: machines need {oldest} at least \
         (https://github.com/apple/container/releases)", oldest = Version::OLDEST
    )]
    TooOld {
        /// Its version.
        found: Version,
    },
    /// Nobody understands which version Apple's program is.
    #[error("`container --version` names no version: {words}")]
    NoVersion {
        /// What it said.
        words: String,
    },
    /// Apple's service is not there.
    #[error("`container {command}`: Apple's service does not run; type `container system start`")]
    ServiceDown {
        /// What was asked for.
        command: String,
    },
    /// Apple's service does not answer.
    #[error(
        "`container {command}`: Apple's service does not answer; if it stays so, type `container system stop`, then \
         `container system start` (which ends all machines)"
    )]
    ServiceHangs {
        /// What was asked for.
        command: String,
    },
    /// Apple's program took too long and was killed.
    #[error(
        "`container {command}` did not end within {deadline:?}; if it stays so, type `container system stop`, then \
         `container system start` (which ends all machines)"
    )]
    Deadline {
        /// What was asked for.
        command: String,
        /// How long it had.
        deadline: Duration,
    },
    /// Apple knows no such container.
    #[error("`container {command}`: there is no such container")]
    NotFound {
        /// What was asked for.
        command: String,
    },
    /// The container is there already.
    #[error("`container {command}`: a container of that name is there already")]
    Exists {
        /// What was asked for.
        command: String,
    },
    /// The container does not run.
    #[error("`container {command}`: the container does not run")]
    NotRunning {
        /// What was asked for.
        command: String,
    },
    /// The container is about to end.
    #[error("`container {command}`: the container is about to stop")]
    Stopping {
        /// What was asked for.
        command: String,
    },
    /// A socket is there already.
    #[error("`container {command}`: the guest's socket is there already: {words}")]
    SocketExists {
        /// What was asked for.
        command: String,
        /// What Apple's program said.
        words: String,
    },
    /// The machines' image is not there.
    #[error("`container {command}`: the image is not there: {words}")]
    NoImage {
        /// What was asked for.
        command: String,
        /// What Apple's program said.
        words: String,
    },
    /// There is no kernel to boot.
    #[error(
        "`container {command}`: there is no kernel; type `container system kernel set --recommended`, or name one with \
         machine.apple.kernel"
    )]
    NoKernel {
        /// What was asked for.
        command: String,
    },
    /// There is no such network.
    #[error(
        "`container {command}`: {words}; `container network list` shows which there are, machine.apple.network names \
         the one to use"
    )]
    NoNetwork {
        /// What was asked for.
        command: String,
        /// What Apple's program said.
        words: String,
    },
    /// Apple's program does not take these arguments.
    #[error("`container {command}` does not take these arguments: {words}")]
    Usage {
        /// What was asked for.
        command: String,
        /// What it said.
        words: String,
    },
    /// Anything else that Apple's program said.
    #[error("`container {command}` ended with code {code} {}", said(words))]
    Failed {
        /// What was asked for.
        command: String,
        /// Its exit code; 128 and the number where a signal ended it.
        code: i32,
        /// What it said.
        words: String,
    },
    /// Apple's program said too much.
    #[error("`container {command}` printed more than {limit} bytes")]
    TooMuchOutput {
        /// What was asked for.
        command: String,
        /// How much is read.
        limit: usize,
    },
    /// What Apple's program printed is not understood.
    #[error("`container {command}` printed what nobody understands")]
    Output {
        /// What was asked for.
        command: String,
        /// Where.
        #[source]
        source: serde_json::Error,
    },
    /// The image's archive is no such thing.
    #[error(
        "the image of machines {path} {reason}: install kina anew with all that is in its archive (`cargo xtask \
         pod-image` makes the image from the sources), or say where it is with machine.apple.image"
    )]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The image was loaded and is not there.
    #[error(
        "the image {name} was loaded from {path}, and `container image list` does not show it; see what `container \
         image load --input {path}` says"
    )]
    NotLoaded {
        /// The image.
        name: String,
        /// Its archive.
        path: PathBuf,
    },
    /// A path that would be two in an argument.
    #[error("{path} has a colon in it, which Apple's container takes for the end of a path")]
    Colon {
        /// The path.
        path: PathBuf,
    },
    /// The sockets' paths would be too long.
    #[error(
        "the guests' sockets would have paths of {length} bytes in {directory}, and {limit} are possible: set \
         machine.apple.socket_directory to a shorter one"
    )]
    SocketPath {
        /// Where they are to be.
        directory: PathBuf,
        /// How long their paths would be.
        length: usize,
        /// How long they can be.
        limit: usize,
    },
    /// A file of the driver's own, on the node.
    #[error(transparent)]
    Node(#[from] kina_node::Error),
    /// Another file.
    #[error("{operation} {path}")]
    File {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The machine's directory is not where this driver looks for it later.
    #[error("machine directory {path} is not {expected}")]
    Directory {
        /// The directory given.
        path: PathBuf,
        /// What it must be.
        expected: PathBuf,
    },
    /// A machine was removed and is listed.
    #[error(
        "`container delete --force {name}` succeeded, and `container list --all` shows it still; look at `container \
         system logs`"
    )]
    NotDeleted {
        /// Its container.
        name: String,
    },
    /// A machine was made and is not listed.
    #[error(
        "`container run` succeeded, and `container list --all` shows no such machine; look at `container system logs`"
    )]
    NotMade,
    /// A machine runs and the list does not tell its address.
    #[error(
        "`container list` shows no address of the machine; see whether `container network list` has its network running"
    )]
    NoAddress,
}

/// What a program said, as the end of a sentence.
fn said(words: &str) -> String {
    if words.is_empty() { "and said nothing".to_owned() } else { format!("and said: {words}") }
}

impl Error {
    /// Whether the same may succeed when Apple's service is well again.
    pub(crate) fn is_unavailable(&self) -> bool {
        matches!(self, Self::ServiceDown { .. } | Self::ServiceHangs { .. } | Self::Deadline { .. })
    }

    pub(crate) fn file(
        operation: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<std::io::Error>,
    ) -> Self {
        Self::File { operation, path: path.into(), source: source.into() }
    }
}
