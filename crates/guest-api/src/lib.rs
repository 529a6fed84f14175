//! The guest protocol, generated from `proto/guest/guest.proto`, and its
//! host-side client.

/// The generated messages, client and server of the guest protocol.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    clippy::unwrap_used,
    reason = "generated code; the protocol file carries the documentation"
)]
pub mod v1 {
    tonic::include_proto!("kina.guest.v1");
}

mod client;

pub use client::{
    ATTACH_DEADLINE, ATTEMPT_DEADLINE, AttachInput, AttachResponses, AttachSession, CREATE_DEADLINE, Connect,
    DELETE_DEADLINE, EXEC_START_DEADLINE, EXEC_TIMEOUT_MARGIN, Events, ExecInput, ExecOutput, ExecResponses,
    ExecSession, GuestClient, GuestError, GuestStream, LIST_DEADLINE, LogAcknowledger, LogReader,
    MESSAGE_LIMIT_BYTES, PORT_FORWARD_DEADLINE, PortForward, PortForwardInput, PortForwardOutput,
    REOPEN_DEADLINE, Refusal, SETUP_POD_DEADLINE, SHUTDOWN_MARGIN, SIGNAL_DEADLINE, START_DEADLINE,
    STATS_DEADLINE, UPDATE_DEADLINE, connect,
};

/// Where the guest of a machine with a kernel of its own keeps the pod's state:
/// on the machine's own disk if it has one, else in its memory.
pub const MACHINE_STATE_DIRECTORY: &str = "/run/kina";

/// What a refusal of CreateContainer begins with where an image that the container mounts is at
/// fault; the mount's destination follows.
pub const IMAGE_VOLUME: &str = "image volume ";

/// The newest protocol version that this build speaks.
pub const PROTOCOL_VERSION: u32 = 1;

/// The oldest guest that this daemon adopts: the previous version, once there is one.
pub const OLDEST_PROTOCOL_VERSION: u32 = 1;
