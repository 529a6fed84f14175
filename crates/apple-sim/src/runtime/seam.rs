//! What the two halves of a virtual machine say to each other: the process that keeps it, and
//! this program in it, where Apple's has `vminitd`.
//!
//! Each connection begins with one [`Opening`], by the host. Those with an answer are messages as
//! everywhere; the others are byte streams from there on.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::protocol::{Bundle, HelperRequest};
use crate::resources::Attachment;
use crate::settings::{Settings, Trap};

/// The vsock port that the machine's half listens on.
pub(super) const PORT: u32 = 1024;
/// Where the machine sees what the host shares with it.
pub(super) const SHARE: &str = "/share";
/// This program, in there.
#[cfg(feature = "microvm")]
pub(super) const PROGRAM: &str = "program";
/// What the machine is, in there.
pub(super) const CHARTER: &str = "machine.json";
/// The application root that the machine's half has.
pub(super) const ROOT: &str = "/run/simulator";

/// What the machine's half is told when it begins.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Charter {
    /// The container. Its shares are where the machine sees them; what the host does by itself
    /// (ports, sockets) is not in it.
    pub(super) bundle: Bundle,
    /// Its cards, in order.
    pub(super) attachments: Vec<Attachment>,
    /// For its own half.
    pub(super) settings: Settings,
}

/// How a connection begins.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Opening {
    /// A request. The answer is a [`HelperAnswer`](crate::protocol::HelperAnswer).
    Ask {
        /// What.
        request: Box<HelperRequest>,
        /// The streams that it carries, by their numbers: where descriptors are elsewhere.
        streams: Vec<u64>,
        /// What goes wrong on purpose.
        traps: BTreeSet<Trap>,
    },
    /// From here on this is a stream of a process.
    Stream(u64),
    /// From here on this is a connection to a socket on the root file system; it ends if nobody
    /// listens there.
    Dial(String),
    /// Switch off, once all requests are answered.
    End,
}
