//! The daemon's error: what failed, with ids, whatever the layer below.

use std::net::SocketAddr;
use std::time::Duration;

use kina_attachment::vni::LeaseError;
use kina_guest_api::GuestError;
use kina_model::{ContainerId, MachineSize, PodId, SpecError};

/// Why a request failed. `service/status.rs` maps each variant to a gRPC status.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request asks for something that makes no sense or cannot be had.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Something of the daemon's own cannot be written down.
    #[error("encode {what}")]
    Encode {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// There is no such pod.
    #[error("pod sandbox {id:?} not found")]
    PodNotFound {
        /// As the caller wrote it.
        id: String,
    },
    /// There is no such container.
    #[error("container {id:?} not found")]
    ContainerNotFound {
        /// As the caller wrote it.
        id: String,
    },
    /// There is no such image.
    #[error("image {reference:?} not found")]
    ImageNotFound {
        /// As the caller wrote it.
        reference: String,
    },
    /// A container's image is not here.
    #[error("image {reference:?} not found; pull it first")]
    ImageNotPulled {
        /// As the caller wrote it.
        reference: String,
    },
    /// A container cannot have an image as a volume. The text is the CRI's word for it
    /// (`ErrImageVolumeMountFailed` of its package `errors`), by which the kubelet knows it.
    #[error("ImageVolumeMountFailed")]
    ImageVolume(#[source] Box<Error>),
    /// An id's beginning that several share.
    #[error("{id:?} is the beginning of several ids; write more of it")]
    AmbiguousId {
        /// As the caller wrote it.
        id: String,
    },
    /// The name belongs to another one.
    #[error(
        "{what} {name} exists already with id {id}: it has another configuration, or has ended and is not removed yet"
    )]
    NameTaken {
        /// Pod sandbox or container.
        what: &'static str,
        /// The name.
        name: String,
        /// Whose it is.
        id: String,
    },
    /// The pod's state does not allow it.
    #[error("pod sandbox {pod} is {state}, cannot {operation}")]
    PodState {
        /// The pod.
        pod: PodId,
        /// Its state.
        state: &'static str,
        /// What was asked.
        operation: &'static str,
    },
    /// The container's state does not allow it.
    #[error("container {container} is {state}, cannot {operation}")]
    ContainerState {
        /// The container.
        container: ContainerId,
        /// Its state.
        state: &'static str,
        /// What was asked.
        operation: &'static str,
    },
    /// The pod's machine would have to grow.
    #[error(
        "pod sandbox {pod} has a machine of {has}, which cannot grow to {wanted} while it runs; \
         delete the pod so that it is made anew"
    )]
    MachineTooSmall {
        /// The pod.
        pod: PodId,
        /// What the machine has.
        has: MachineSize,
        /// What it would need.
        wanted: MachineSize,
    },
    /// The pod did not come up; it has been cleaned away.
    #[error("pod sandbox {pod} did not start: {reason}")]
    StartFailed {
        /// The pod.
        pod: PodId,
        /// The failed step and why.
        reason: String,
    },
    /// Teardown left something behind; the call may be repeated.
    #[error("pod sandbox {pod} is not torn down: {reason}")]
    TeardownFailed {
        /// The pod.
        pod: PodId,
        /// What could not be undone.
        reason: String,
    },
    /// The container did not come up.
    #[error("container {container}: {operation}: {reason}")]
    ContainerFailed {
        /// The container.
        container: ContainerId,
        /// What was being done.
        operation: &'static str,
        /// Why it failed.
        reason: String,
    },
    /// More requests wait for this pod than may.
    #[error("pod sandbox {pod} has too many requests waiting; try again")]
    Busy {
        /// The pod.
        pod: PodId,
    },
    /// It took longer than allowed.
    #[error("{what} took longer than {limit:?}")]
    Deadline {
        /// What was waited for.
        what: &'static str,
        /// How long it may take.
        limit: Duration,
    },
    /// A list does not fit the message that it would be.
    #[error("the list has {bytes} bytes, a message takes {limit}; ask for fewer, or call {instead}")]
    ListTooLarge {
        /// What the list takes.
        bytes: usize,
        /// What a message may.
        limit: usize,
        /// The call that answers in pieces.
        instead: &'static str,
    },
    /// A reader of events was too slow for them.
    #[error("{count} events were lost because they were not read in time; list, and ask for events again")]
    EventsLost {
        /// How many it has missed.
        count: u64,
    },
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    ShuttingDown,
    /// Pods get no network now.
    #[error("the pods' network is not available: {reason}")]
    NetworkUnavailable {
        /// What is missing.
        reason: String,
    },
    /// The plugins have made no address.
    #[error("network {network} gave the pod's interface {interface} no address")]
    NoAddress {
        /// The network.
        network: String,
        /// The interface.
        interface: &'static str,
    },
    /// The pod is in no network.
    #[error("pod sandbox {pod} is not attached to a network: it has the node's, or loopback only")]
    NotAttached {
        /// The pod.
        pod: PodId,
    },
    /// Plugins are at work that should be still.
    #[error("network plugins are at work for other pods; try again")]
    PluginsBusy,
    /// The plugins could not connect a pod.
    #[error("network")]
    Attach(#[source] Box<kina_cni::AddError>),
    /// Some other operation of the network plugins failed.
    #[error("network")]
    Network(#[source] Box<kina_cni::Error>),
    /// A pod's tunnel got no identifier, or could not give it back.
    #[error("tunnel")]
    Tunnel(#[source] Box<LeaseError<kina_store::Error>>),
    /// kina's own AppArmor profile does not compile.
    #[error("compile kina's AppArmor profile: {parser} ended with code {code}: {said}")]
    AppArmorProfile {
        /// The compiler.
        parser: &'static str,
        /// How it ended.
        code: i32,
        /// What it said.
        said: String,
    },
    /// The guest refused or is gone.
    #[error("guest of pod sandbox {pod}")]
    Guest {
        /// The pod.
        pod: PodId,
        /// Why.
        #[source]
        source: GuestError,
    },
    /// A container's log cannot be written.
    #[error("log of container {container}")]
    Log {
        /// The container.
        container: String,
        /// Why.
        #[source]
        source: kina_log::Error,
    },
    /// Nothing more is written to a container's log.
    #[error("the log of container {container} has ended")]
    LogOver {
        /// The container.
        container: String,
    },
    /// The machine driver failed.
    #[error("machine")]
    Machine(#[from] kina_machine::Error),
    /// The node refused an effect.
    #[error("node")]
    Node(#[from] kina_node::Error),
    /// The image store or a registry failed.
    #[error("image")]
    Image(#[from] kina_image::Error),
    /// No registry that was asked for an image answers. The text is the CRI's word for it
    /// (`ErrRegistryUnavailable` of its package `errors`), by which the kubelet knows it.
    #[error("RegistryUnavailable")]
    RegistryUnavailable(#[source] kina_image::Error),
    /// A streaming call asks for what cannot be, or its server cannot serve.
    #[error("streaming")]
    Streaming(#[from] kina_streaming::Error),
    /// Streaming clients cannot be served there.
    #[error("listen on {address} for streaming clients; see streaming.address in the configuration")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Metrics cannot be served there.
    #[error("listen on {address} for readers of metrics; see metrics.address in the configuration")]
    ListenMetrics {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The store failed.
    #[error("store")]
    Store(#[from] kina_store::Error),
}

// These are large, and seldom.
impl From<kina_cni::AddError> for Error {
    fn from(error: kina_cni::AddError) -> Self {
        Self::Attach(Box::new(error))
    }
}

impl From<kina_cni::Error> for Error {
    fn from(error: kina_cni::Error) -> Self {
        Self::Network(Box::new(error))
    }
}

/// An error with everything that caused it, in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some libraries repeat their source in their own text.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
