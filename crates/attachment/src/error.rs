use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

/// Why a machine could not be joined to a namespace.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A network namespace cannot be opened or entered.
    #[error("{operation} network namespace {namespace}")]
    Namespace {
        /// What was being done: "open", "enter".
        operation: &'static str,
        /// The namespace's path.
        namespace: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The path is there, but nothing that is a network namespace.
    #[error("{namespace} is not a network namespace: pin one there, as `ip netns add` does")]
    NotANamespace {
        /// The path.
        namespace: PathBuf,
    },
    /// The kernel refused a change or a question.
    #[error("{operation} {object} in network namespace {namespace}")]
    Kernel {
        /// What was being done: "make", "add address".
        operation: &'static str,
        /// To what: an interface, an address on an interface.
        object: String,
        /// The namespace's path.
        namespace: PathBuf,
        /// The kernel's words.
        #[source]
        source: Refusal,
    },
    /// The interface that a plugin was to make is not there.
    #[error("network namespace {namespace} has no interface {interface}: was the pod's network set up?")]
    NoInterface {
        /// The namespace's path.
        namespace: PathBuf,
        /// The interface.
        interface: String,
    },
    /// An interface is not fit for a pod.
    #[error("interface {interface} in network namespace {namespace} {problem}")]
    Unfit {
        /// The namespace's path.
        namespace: PathBuf,
        /// The interface.
        interface: String,
        /// What is wrong with it, as the end of a sentence.
        problem: &'static str,
    },
    /// The namespace has something that cannot be carried to a machine.
    #[error("network namespace {namespace} has {what}, which cannot be carried to the pod's machine")]
    NotCarried {
        /// The namespace's path.
        namespace: PathBuf,
        /// What it is, with its destination.
        what: String,
    },
    /// A name that no interface can have.
    #[error("{name:?} cannot be an interface's name: 1 to 15 characters without `/`, `:` and spaces")]
    BadName {
        /// The name.
        name: String,
    },
    /// IPv6 does not fit through the tunnel.
    #[error(
        "an underlay with an MTU of {underlay} leaves {inner} inside a tunnel, and IPv6 needs 1280: \
         raise the underlay's MTU to {needed}, or give the pod no IPv6 address"
    )]
    TooSmallForIpv6 {
        /// The underlay's MTU in bytes.
        underlay: u32,
        /// What is left inside, in bytes.
        inner: u32,
        /// The least MTU of the underlay that would do, in bytes.
        needed: u32,
    },
    /// Nothing fits through the tunnel.
    #[error("an underlay with an MTU of {underlay} leaves too little for packets inside a tunnel")]
    TooSmall {
        /// The underlay's MTU in bytes.
        underlay: u32,
    },
    /// The two ends of a tunnel are of different families.
    #[error("a tunnel from {local} to {remote}: both ends must be IPv4 or both IPv6")]
    MixedFamilies {
        /// The near end.
        local: IpAddr,
        /// The far end.
        remote: IpAddr,
    },
    /// The peer cannot be reached from the node.
    #[error("network namespace {namespace} has no way to {peer}")]
    NoWay {
        /// The namespace's path.
        namespace: PathBuf,
        /// The peer.
        peer: IpAddr,
    },
}

/// A refusal in the kernel's words: the error number, and what it says beyond.
#[derive(Debug)]
pub struct Refusal {
    source: io::Error,
    words: Option<String>,
}

impl Refusal {
    /// A refusal with what the kernel said beyond the number, if anything.
    pub fn new(source: io::Error, words: Option<String>) -> Self {
        Self { source, words }
    }

    /// The error number, if it came from the kernel.
    pub fn number(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.words {
            Some(words) => write!(formatter, "{} ({words})", self.source),
            None => write!(formatter, "{}", self.source),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<io::Error> for Refusal {
    fn from(source: io::Error) -> Self {
        Self { source, words: None }
    }
}
