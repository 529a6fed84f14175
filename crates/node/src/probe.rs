//! What can be tried from within a pod's network namespace, and what came of it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// What to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkProbe {
    /// Whom to reach.
    pub target: Option<IpAddr>,
    /// A TCP port of it.
    pub port: Option<u16>,
    /// Name servers to ask.
    pub name_servers: Vec<SocketAddr>,
    /// What to ask them for.
    pub name: String,
    /// The longest wait for one answer.
    pub patience: Duration,
}

/// What was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    /// An interface other than loopback is up and has an address.
    Interface,
    /// The kernel knows a way to the target.
    Route,
    /// The first router on that way answers.
    Gateway,
    /// The target answers an echo request.
    Echo,
    /// The target accepts a TCP connection.
    Tcp,
    /// The largest packet that reaches the target unfragmented.
    PathMtu,
    /// A name server answers.
    NameServer,
}

impl ProbeKind {
    /// Its name for people and programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Interface => "interface",
            Self::Route => "route",
            Self::Gateway => "gateway",
            Self::Echo => "echo",
            Self::Tcp => "tcp",
            Self::PathMtu => "path-mtu",
            Self::NameServer => "dns",
        }
    }
}

/// What came of one trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeStep {
    /// What was tried.
    pub kind: ProbeKind,
    /// Whether it worked.
    pub good: bool,
    /// What was found, or why it did not work.
    pub detail: String,
    /// How long the answer took.
    pub took: Option<Duration>,
    /// Bytes, for [`ProbeKind::PathMtu`].
    pub bytes: Option<u32>,
}
