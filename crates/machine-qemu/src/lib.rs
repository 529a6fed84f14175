//! The machine driver that boots a virtual machine for every pod: QEMU's
//! `microvm` with a kernel of the node's, an initramfs made here, and
//! `kina-guest` as the first process in it.
//!
//! ```text
//! <pods>/<pod id>/machine/qemu.json   the driver's record; the machine exists while it does
//!                         share/         what the guest sees at /share, a mount of its own
//!                         guest.sock     where streams to the guest begin
//!                         console.log    the end of what the machine's processes said
//! <storage>/layers/                      hard links of the pod's layer images
//!           disk.ext4                    what the guest writes to, sparse
//! <pod cgroup>/machine                   QEMU and what serves it:
//!     qemu        an own user that can open nothing of kina's: what it uses it is
//!                 given as descriptors; seccomp; in the pod's network namespace
//!     virtiofsd   root's rights over files, for the shared tree only (chroot)
//!     kina-vsock  the guest's streams, where the kernel does not; another own user without rights, seccomp
//!     console     `kina-guest console`, which bounds what is kept of the console;
//!                 the same user, which can open nothing
//! ```
//!
//! **Network.** A tap in the pod's namespace is joined with the interface that
//! plugins made there (`kina-attachment`); QEMU is given the tap's queue, opened,
//! and has no other network.
//!
//! **Streams.** `kina-vsock` serves a machine, or the kernel's vhost-vsock where that is
//! configured: then the guest can also reach what listens on the node's own vsock.
//!
//! **Shares.** One tree for each machine, to which layers and volumes are added
//! while it runs, and from which volumes are taken. Layers are mounted read-only
//! in it, since other pods use the same files. Nothing else is visible.
//!
//! **Daemons come and go.** All processes outlive the daemon. What runs is asked
//! of the kernel: the recorded processes by their identity, unrecorded ones (the
//! daemon was killed while it started a machine) by the cgroup that the record
//! named beforehand; starting such a machine kills them and begins anew.
//!
//! **A damaged record** is named in the log and makes its machine count as ended.
//! What runs of it is found by the pod's cgroup, and stopped and destroyed as
//! others are; its disk and layers go with the caller's storage directory.
//!
//! **Ends.** A machine has ended when QEMU has, or when a process has that it
//! cannot do without: the rest is killed then. Why is said from what the node
//! knows (its out-of-memory kills, how QEMU ended where this daemon started it),
//! then from the console (the kernel's panic, or that it was switched off).

#[cfg(target_os = "linux")]
pub mod accelerator;
#[cfg(target_os = "linux")]
pub mod arguments;
#[cfg(target_os = "linux")]
pub mod boot;
mod config;
#[cfg(target_os = "linux")]
pub mod disk;
#[cfg(target_os = "linux")]
mod driver;
#[cfg(target_os = "linux")]
mod error;

use std::sync::Arc;

use kina_machine::Driver;
use kina_node::Node;

#[cfg(target_os = "linux")]
pub use accelerator::Accelerator;
pub use config::{Choice, KernelFiles, QemuConfig, Unavailable, Vsock};
#[cfg(target_os = "linux")]
pub use driver::QemuDriver;
#[cfg(target_os = "linux")]
pub use error::Error;

/// The driver on this machine; see [`QemuDriver::open`].
///
/// # Errors
/// When something is missing, in words for the user.
#[cfg(target_os = "linux")]
pub async fn open(node: Arc<dyn Node>, config: QemuConfig) -> Result<Arc<dyn Driver>, Unavailable> {
    Ok(Arc::new(QemuDriver::open(node, config).await?))
}

/// The driver on this machine.
///
/// # Errors
/// Elsewhere than on Linux there is none.
#[cfg(not(target_os = "linux"))]
pub async fn open(_node: Arc<dyn Node>, _config: QemuConfig) -> Result<Arc<dyn Driver>, Unavailable> {
    Err(Unavailable { reason: "kina starts QEMU on Linux only".to_owned() })
}
