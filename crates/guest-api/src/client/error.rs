use std::error::Error;
use std::io;

use tonic::{Code, Status};

/// The longest refusal text that is kept, in bytes.
const MESSAGE_TEXT_LIMIT: usize = 4096;

/// Why a call to the guest failed.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// No byte stream to the guest.
    #[error("connect to the guest")]
    Connect {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A stream, but nothing that speaks the protocol at its other end.
    #[error("shake hands with the guest")]
    Handshake {
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The guest speaks none of the protocol versions that this build does.
    #[error("guest speaks protocol version {guest}, this daemon {oldest} to {newest}")]
    Version {
        /// The guest's version.
        guest: u32,
        /// The oldest that would do.
        oldest: u32,
        /// The newest that would do.
        newest: u32,
    },
    /// The connection to the guest is lost; it has ended, or its machine has.
    #[error("guest is gone during {call}")]
    Gone {
        /// The call in flight.
        call: &'static str,
    },
    /// No answer in time.
    #[error("guest does not answer {call} in time")]
    Deadline {
        /// The call.
        call: &'static str,
    },
    /// The guest says no.
    #[error("guest refuses {call}: {message}")]
    Refused {
        /// The call.
        call: &'static str,
        /// What kind of no.
        code: Refusal,
        /// The guest's words.
        message: String,
    },
    /// The guest breaks the protocol.
    #[error("guest breaks the protocol in {call}: {violation}")]
    Protocol {
        /// The call.
        call: &'static str,
        /// What it did.
        violation: &'static str,
    },
}

/// The kinds of refusal that callers tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such container.
    NotFound,
    /// There is one of that id.
    AlreadyExists,
    /// The operation needs another state.
    WrongState,
    /// The request cannot be carried out as written, now or ever.
    Invalid,
    /// This guest or its kernel cannot do that.
    Unsupported,
    /// A bound of the guest is reached: execs, connections, space.
    Exhausted,
    /// Something failed inside the guest.
    Internal,
}

impl GuestError {
    /// The kind of a refusal; `None` for every other error.
    pub fn refusal(&self) -> Option<Refusal> {
        if let Self::Refused { code, .. } = self { Some(*code) } else { None }
    }

    /// Whether an attempt at connecting that failed so is worth another.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Handshake { .. } | Self::Gone { .. } | Self::Deadline { .. } => true,
            Self::Version { .. } | Self::Refused { .. } | Self::Protocol { .. } => false,
        }
    }

    pub(super) fn from_status(call: &'static str, status: Status) -> Self {
        // A status with a source was made on this side, out of a transport error.
        let lost = status.source().is_some();
        let code = match status.code() {
            Code::Unavailable => return Self::Gone { call },
            Code::Unknown | Code::Cancelled | Code::Internal if lost => return Self::Gone { call },
            Code::DeadlineExceeded => return Self::Deadline { call },
            Code::OutOfRange => {
                return Self::Protocol { call, violation: "a message is too large" };
            }
            Code::NotFound => Refusal::NotFound,
            Code::AlreadyExists => Refusal::AlreadyExists,
            Code::FailedPrecondition => Refusal::WrongState,
            Code::InvalidArgument => Refusal::Invalid,
            Code::Unimplemented => Refusal::Unsupported,
            Code::ResourceExhausted => Refusal::Exhausted,
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::PermissionDenied
            | Code::Aborted
            | Code::Internal
            | Code::DataLoss
            | Code::Unauthenticated => Refusal::Internal,
        };
        Self::Refused { call, code, message: bounded(status.message()) }
    }
}

/// The guest's text, cut at the limit and without control characters: it ends
/// up in logs and on terminals.
fn bounded(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.char_indices()
        .take_while(|(start, c)| start + c.len_utf8() <= MESSAGE_TEXT_LIMIT)
        .map(|(_, c)| plain(c))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_text_is_bounded_and_plain() {
        let long = format!("{}\u{1b}[31mé", "x".repeat(MESSAGE_TEXT_LIMIT - 2));
        let text = bounded(&long);
        assert!(text.len() <= MESSAGE_TEXT_LIMIT);
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn codes_map_to_refusals() {
        for (status, refusal) in [
            (Status::not_found("x"), Refusal::NotFound),
            (Status::already_exists("x"), Refusal::AlreadyExists),
            (Status::failed_precondition("x"), Refusal::WrongState),
            (Status::invalid_argument("x"), Refusal::Invalid),
            (Status::unimplemented("x"), Refusal::Unsupported),
            (Status::resource_exhausted("x"), Refusal::Exhausted),
            (Status::internal("x"), Refusal::Internal),
        ] {
            assert_eq!(GuestError::from_status("X", status).refusal(), Some(refusal));
        }
        assert!(matches!(GuestError::from_status("X", Status::unavailable("x")), GuestError::Gone { .. }));
    }
}
