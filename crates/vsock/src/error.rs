//! What can go wrong.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::Address;

/// Why there is no stream, or no device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing answers at the address: for a socket, the device's process is gone.
    #[error("dial {address}")]
    Dial {
        /// What was dialled.
        address: Address,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The machine is there, and its kernel refused: nobody listens on the port.
    #[error("dial {address}: the device answers {answer:?}")]
    Refused {
        /// What was dialled.
        address: Address,
        /// The device's words, without its `ERROR `.
        answer: String,
    },
    /// No answer in time: the guest has not come up, or is stuck.
    #[error("dial {address}: no answer after {patience:?}")]
    TimedOut {
        /// What was dialled.
        address: Address,
        /// How long was waited.
        patience: Duration,
    },
    /// The device answered what none answers.
    #[error("dial {address}: {answer:?} is no answer of a vsock device")]
    Answer {
        /// What was dialled.
        address: Address,
        /// What came, at most a few dozen bytes.
        answer: String,
    },
    /// A socket of the device cannot be made.
    #[error("listen on {}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The device cannot get what it needs from the host's kernel.
    #[error("{step}")]
    Setup {
        /// What it was about to do.
        step: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The emulator did not come.
    #[error("nobody connected to {} within {patience:?}", path.display())]
    NoFrontend {
        /// The socket.
        path: PathBuf,
        /// How long was waited.
        patience: Duration,
    },
    /// The emulator broke the protocol between it and the device.
    #[error("serve the machine: {message}")]
    Protocol {
        /// What was wrong, in the protocol library's words.
        message: String,
    },
}

impl Error {
    /// As an error of input and output, for callers that know no other. The
    /// kind is [`io::ErrorKind::ConnectionRefused`] where trying again soon
    /// makes sense.
    #[must_use]
    pub fn into_io(self) -> io::Error {
        let kind = match &self {
            Self::Dial { source, .. } | Self::Listen { source, .. } | Self::Setup { source, .. } => {
                source.kind()
            }
            Self::Refused { .. } => io::ErrorKind::ConnectionRefused,
            Self::TimedOut { .. } | Self::NoFrontend { .. } => io::ErrorKind::TimedOut,
            Self::Answer { .. } | Self::Protocol { .. } => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, self)
    }
}
