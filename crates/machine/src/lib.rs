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
mod turns;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use kina_attachment::Interface;
use kina_model::{ContainerId, PodId, UserNamespace};
use tokio::io::{AsyncRead, AsyncWrite};

pub use error::Error;
pub use turns::Turns;

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
    /// Whether the machine has a kernel of its own. Its pods then cannot have
    /// the node's namespaces, its guest keeps the pod's state in
    /// `kina_guest_api::MACHINE_STATE_DIRECTORY`, and what only the pod uses
    /// (an emptyDir) is best kept inside.
    pub own_kernel: bool,
    /// What machines boot: as long as it is the same text, they have the same
    /// kernel and guest. `None` for those that a caller must ask each.
    pub boot_files: Option<String>,
}

/// When paths can be shared with a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shares {
    /// At any time.
    Dynamic,
    /// Files only below directories that it was created with
    /// ([`MachineSpec::shareable`]); layers at any time.
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
    /// The machine has a network of its own, which is the pod's: no namespace and
    /// no plugin on the node takes part.
    Machine,
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
    /// A directory of this machine's own on the node, that exists, outlasts a
    /// boot, and is on the file system of the layer images where the node has
    /// them on one. The driver keeps in it what is large (disks, linked layers);
    /// as with `directory`, the caller removes it.
    pub storage_directory: PathBuf,
    /// Absolute path of the pod's cgroup, below which the machine's processes
    /// run.
    pub cgroup: String,
    /// The pod's network namespace on the node; `None` for a pod on the node's
    /// own network, and where the machine has a network of its own.
    pub network: Option<SandboxNetwork>,
    /// Ports of the node that lead into the machine, where it has a network of its
    /// own ([`NetworkAttachment::Machine`]); elsewhere plugins see to them.
    pub ports: Vec<PublishedPort>,
    /// Directories of which something may be shared with the machine later, where
    /// that is decided at its boot ([`Shares::AtBoot`]). Those that do not exist
    /// are left out.
    pub shareable: Vec<PathBuf>,
    /// Bytes of memory, for drivers that give the machine its own.
    pub memory_bytes: u64,
    /// Virtual CPUs, likewise.
    pub cpus: u32,
    /// The user namespace of the pod's containers. A machine with a kernel of its
    /// own sees what is shared with it mapped: what belongs to id 0 on the node
    /// belongs to the pod's root.
    pub user: Option<UserNamespace>,
}

/// A port of the node that leads into a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedPort {
    /// On this address of the node only; `None` is all.
    pub address: Option<IpAddr>,
    /// The node's port.
    pub node: u16,
    /// The machine's port.
    pub machine: u16,
    /// What is carried.
    pub protocol: PortProtocol,
}

/// What a published port carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A pod's network on the node, as the plugins made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxNetwork {
    /// Path of the network namespace.
    pub namespace: PathBuf,
    /// The interface that plugins made in it for the pod; `None` when there is
    /// only loopback.
    pub interface: Option<String>,
}

/// A path of the node that a machine shall see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The path on the node.
    pub source: PathBuf,
    /// Whether the guest can change nothing.
    pub readonly: bool,
    /// Whether that holds for what is mounted below the source, too.
    pub readonly_below: bool,
    /// What it is.
    pub kind: ShareKind,
}

/// What a shared path is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShareKind {
    /// The pod's own state, for guests on the node's kernel.
    State,
    /// A layer image, which stays until the machine goes.
    Layer,
    /// A file or directory for one container, until
    /// [`Driver::unshare`].
    Volume(ContainerId),
}

/// How the machine was joined to the pod's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// The guest finds the namespace itself at this path.
    Namespace(PathBuf),
    /// The guest finds a network card with this interface's hardware address,
    /// and makes it look like the interface in a namespace of its own.
    Interface(Box<Interface>),
    /// There is nothing but loopback, which the guest makes itself.
    Loopback,
    /// The machine's own network is the pod's, with these addresses; one at least.
    Machine(MachineNetwork),
}

/// A network that a machine has of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineNetwork {
    /// The network's name.
    pub name: String,
    /// The machine's addresses in it, for as long as this boot lasts.
    pub addresses: Vec<IpAddr>,
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Why, as far as can be told: "its guest ended", "out of memory on the
    /// node", the kernel's last words.
    pub reason: String,
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

/// A process that makes up a machine on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// What it is to the machine: `guest`, `qemu`, `virtiofsd`.
    pub role: &'static str,
    /// Its process id on the node.
    pub pid: u32,
    /// Bytes of memory that it holds (proportional set size).
    pub memory_bytes: u64,
    /// CPU time in nanoseconds.
    pub cpu_nanos: u64,
}

/// What can be said of a machine to a person who looks for a fault.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Its living processes, its containers' left out.
    pub processes: Vec<Process>,
    /// Further facts, as name and value, in the order in which to show them:
    /// the accelerator, the kernel, the user that it runs as.
    pub facts: Vec<(&'static str, String)>,
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
    /// daemon keeps one such wait per pod; dropping it is harmless. Says how it
    /// ended, the same each time while the driver lives.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown one, [`Error::WrongState`] for one that
    /// has not been started.
    async fn wait(&self, pod: &PodId) -> Result<Ended, Error>;

    /// A fresh byte stream to the guest. It says nothing about whether the
    /// guest answers: the caller shakes hands, with back-off and a deadline.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown one, [`Error::Connect`] when the stream
    /// cannot be had (now).
    async fn connect(&self, pod: &PodId) -> Result<Box<dyn Stream>, Error>;

    /// Lets the machine see a path of the node and returns where the guest
    /// finds it. The same share again gives the same path.
    ///
    /// # Errors
    /// When the path does not exist or cannot be shared.
    async fn share(&self, pod: &PodId, share: &Share) -> Result<PathBuf, Error>;

    /// Takes the volumes of a container back. None, or an unknown machine,
    /// succeeds.
    ///
    /// # Errors
    /// When one stays; it may be repeated.
    async fn unshare(&self, pod: &PodId, container: &ContainerId) -> Result<(), Error>;

    /// How a started machine is joined to the network that it was created with
    /// ([`MachineSpec::network`]); joins it where that is not done yet.
    ///
    /// # Errors
    /// When it cannot be joined.
    async fn attach_network(&self, pod: &PodId) -> Result<Attachment, Error>;

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

    /// The last words of the machine, at most `limit` bytes of them: its
    /// kernel's console, or the guest's log where the kernel is the node's. They
    /// are kept after its end, until [`Driver::destroy`]. The guest writes them,
    /// so they may hold anything.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown one.
    async fn console(&self, pod: &PodId, limit: usize) -> Result<Vec<u8>, Error>;

    /// What the machine is made of, for people.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown one.
    async fn inspect(&self, pod: &PodId) -> Result<Details, Error>;
}
