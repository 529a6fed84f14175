//! What a URL stands for.

use crate::error::Error;

/// The streams of an exec or attach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Streams {
    /// The client sends standard input.
    pub stdin: bool,
    /// The client gets standard output.
    pub stdout: bool,
    /// The client gets standard error.
    pub stderr: bool,
    /// Both ends are a terminal, whose size the client may change.
    pub tty: bool,
}

impl Streams {
    /// The rules that the CRI has for them.
    pub(crate) fn check(self) -> Result<(), Error> {
        if self.tty && self.stderr {
            return Err(Error::TtyWithStderr);
        }
        if !self.stdin && !self.stdout && !self.stderr {
            return Err(Error::NoStreams);
        }
        Ok(())
    }
}

/// Run a command in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// The container's id.
    pub container: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Its streams.
    pub streams: Streams,
}

/// Attach to a container's main process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// The container's id.
    pub container: String,
    /// The streams.
    pub streams: Streams,
}

/// Forward connections to ports of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortForward {
    /// The pod's id.
    pub pod: String,
    /// The ports of a WebSocket client that has one channel for each; others name theirs later. If it is
    /// empty, such a client names them in the URL's query.
    pub ports: Vec<u16>,
}

/// What one URL is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// See [`Exec`].
    Exec(Exec),
    /// See [`Attach`].
    Attach(Attach),
    /// See [`PortForward`].
    PortForward(PortForward),
}

impl Request {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Exec(_) => Kind::Exec,
            Self::Attach(_) => Kind::Attach,
            Self::PortForward(_) => Kind::PortForward,
        }
    }
}

/// The first part of a URL's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Exec,
    Attach,
    PortForward,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
        }
    }
}
