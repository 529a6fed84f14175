//! The machine driver: one machine is one Linux kernel with one guest in it,
//! made for one pod.
//!
//! ```text
//!            create            start             stop            destroy
//!  (nothing) ──────▶ Created ──────▶ Running ──────▶ Stopped ──────▶ (nothing)
//!                       └───────────────────────────────┘ destroy works from every state
//! ```
//!
//! A driver knows nothing of containers or of CRI; it hands out byte streams to
//! the guest (see [`Driver::connect`]) and the daemon speaks the guest protocol
//! over them. Every method may be repeated: a daemon that was killed in the
//! middle calls it again with the same arguments. Machines outlive the daemon;
//! [`Driver::list`] is how it finds them again.

#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
#[cfg(feature = "fake")]
pub mod fake;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use kina_model::PodId;
use tokio::io::{AsyncRead, AsyncWrite};

pub use error::Error;

/// A byte stream to the guest.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What a driver can do; the daemon decides by it, never by the driver's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// When paths can be shared with a machine.
    pub shares: Shares,
    /// How a layer reaches the guest.
    pub layers: LayerAccess,
    /// How the pod's network reaches the guest.
    pub network: NetworkAttachment,
    /// Whether the guest may write container logs itself: it sees the node's
    /// file system and is trusted.
    pub guest_writes_logs: bool,
    /// Whether the machine's size can change while it runs.
    pub resize: bool,
    /// Whether pods may ask for the node's own namespaces.
    pub host_namespaces: bool,
    /// Whether machines boot side by side, or one after another.
    pub boots: Boots,
}

/// When paths can be shared with a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shares {
    /// At any time.
    Dynamic,
    /// Only before it starts.
    AtBoot,
}

/// How a layer reaches the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerAccess {
    /// The node's kernel is the machine's: the node mounts the layer once and
    /// the guest is given the directory.
    Mounted,
    /// The guest is given the EROFS image file and mounts it in its own kernel.
    ImageFile,
}

/// How the pod's network reaches the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkAttachment {
    /// Containers enter the pod's network namespace on the node.
    Netns,
    /// A tap device in that namespace, joined to the pod's interface.
    Tap,
    /// A tunnel from that namespace to the machine.
    Tunnel,
}

/// Whether machines boot side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boots {
    /// Side by side.
    Parallel,
    /// One after another; the daemon queues.
    Serial,
}

/// What a machine is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineSpec {
    /// The pod that it belongs to.
    pub pod: PodId,
    /// A directory of this machine's own on the node, that exists. The driver
    /// keeps its files (sockets, process ids) in it; [`Driver::destroy`] leaves
    /// the directory itself to the caller.
    pub directory: PathBuf,
    /// Absolute path of the pod's cgroup, below which the machine's processes
    /// run.
    pub cgroup: String,
    /// Bytes of memory, for drivers that give the machine its own.
    pub memory_bytes: u64,
    /// Virtual CPUs, likewise.
    pub cpus: u32,
}

/// A path of the node that a machine shall see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The path on the node.
    pub source: PathBuf,
    /// Whether the guest may write.
    pub readonly: bool,
}

/// What the driver knows of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineState {
    /// Made, not started.
    Created,
    /// Its guest may be reached.
    Running,
    /// It has ended; what it held on the node is still to be destroyed.
    Stopped,
}

/// A machine found by [`Driver::list`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The pod that it belongs to.
    pub pod: PodId,
    /// What it does now.
    pub state: MachineState,
}

/// A machine's own use of the node, its containers left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overhead {
    /// Bytes of memory that its processes hold (proportional set size).
    pub memory_bytes: u64,
    /// CPU time in nanoseconds.
    pub cpu_nanos: u64,
}

/// A machine driver.
#[async_trait]
pub trait Driver: Send + Sync {
    /// The driver's name, as in configuration and status: `host`, `qemu`, `apple`.
    fn name(&self) -> &'static str;

    /// What it can do on this node.
    fn capabilities(&self) -> &Capabilities;

    /// Makes a machine, without starting it. Making a created one again
    /// succeeds.
    ///
    /// # Errors
    /// [`Error::WrongState`] for one that runs or has ended; else when the node
    /// refuses, and nothing is left then.
    async fn create(&self, spec: &MachineSpec) -> Result<(), Error>;

    /// Boots a created machine. Returns when [`Driver::connect`] may be tried;
    /// the guest may take longer to answer. Starting a running one succeeds.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown one, [`Error::WrongState`] for one that
    /// has ended; else the reason why it does not boot.
    async fn start(&self, pod: &PodId) -> Result<(), Error>;

    /// Ends a machine with everything that runs in it: at once when `grace` is
    /// zero, else the guest gets that long to end by itself (the caller has
    /// already asked it to). Stopping a stopped or unknown one succeeds; a
    /// created one can no longer be started then.
    ///
    /// # Errors
    /// When something survives.
    async fn stop(&self, pod: &PodId, grace: Duration) -> Result<(), Error>;

    /// Removes everything of a machine, from every state, and also what a
    /// half-done [`Driver::create`] left. An unknown one succeeds.
    ///
    /// # Errors
    /// When something stays; it may be repeated.
    async fn destroy(&self, pod: &PodId) -> Result<(), Error>;

    /// All machines of this driver on this node, also half-made ones.
    ///
    /// # Errors
    /// When the node cannot be asked.
    async fn list(&self) -> Result<Vec<Found>, Error>;

    /// The state of one machine.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown one.
    async fn status(&self, pod: &PodId) -> Result<MachineState, Error>;

    /// Waits until a running machine has ended; at once when it has ended. The
    /// daemon keeps one such wait per pod; dropping it is harmless.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown one, [`Error::WrongState`] for one that
    /// has not been started.
    async fn wait(&self, pod: &PodId) -> Result<(), Error>;

    /// A fresh byte stream to the guest. It says nothing about whether the
    /// guest answers: the caller shakes hands, with back-off and a deadline.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown one, [`Error::Connect`] when the stream
    /// cannot be had (now).
    async fn connect(&self, pod: &PodId) -> Result<Box<dyn Stream>, Error>;

    /// Lets the machine see a path of the node and returns where the guest
    /// finds it.
    ///
    /// # Errors
    /// When the path does not exist or cannot be shared.
    async fn share(&self, pod: &PodId, share: &Share) -> Result<PathBuf, Error>;

    /// Joins the machine to the pod's network namespace on the node and
    /// returns where the guest finds that namespace, or `None` when the guest
    /// makes its own.
    ///
    /// # Errors
    /// When it cannot be joined.
    async fn attach_network(&self, pod: &PodId, netns: &Path) -> Result<Option<PathBuf>, Error>;

    /// Changes the machine's size.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where [`Capabilities::resize`] is false.
    async fn resize(&self, pod: &PodId, memory_bytes: u64, cpus: u32) -> Result<(), Error>;

    /// What the machine itself costs the node.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown one.
    async fn overhead(&self, pod: &PodId) -> Result<Overhead, Error>;
}
