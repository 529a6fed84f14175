//! How the driver is set up.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The accelerator as configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// KVM if a machine boots on it, else none.
    #[default]
    Auto,
    /// KVM, untried.
    Kvm,
    /// Emulation.
    Tcg,
}

/// What carries streams to the guests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vsock {
    /// kina's own process, one for each machine. The guest cannot open streams itself.
    #[default]
    Kina,
    /// The kernel's `/dev/vhost-vsock`. The guest can reach what listens on the node's
    /// vsock.
    Kernel,
    /// The kernel's where it opens, else kina's.
    Auto,
}

/// A kernel's image and its folder of modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelFiles {
    /// The image.
    pub image: PathBuf,
    /// The folder with `modules.dep`: usually `/lib/modules/VERSION`.
    pub modules: PathBuf,
}

/// How the driver is set up. All paths are the node's.
#[derive(Clone, Debug)]
pub struct QemuConfig {
    /// QEMU, `qemu-system-<architecture>`.
    pub qemu: PathBuf,
    /// virtiofsd, the one in Rust (1.10 or later).
    pub virtiofsd: PathBuf,
    /// kina's `kina-vsock`.
    pub vsock: PathBuf,
    /// The static `kina-guest`: the first process of every machine, and on the
    /// node the keeper of their consoles.
    pub guest: PathBuf,
    /// The kernel; without one, the newest of the distribution's that has
    /// everything.
    pub kernel: Option<KernelFiles>,
    /// Modules to load beyond those that every machine needs.
    pub modules: Vec<String>,
    /// A directory of the driver's own that outlasts a boot: made boot files,
    /// the disks' template, the result of the probe boot.
    pub cache_directory: PathBuf,
    /// The directory of the pods: a machine's directory must be
    /// `<pods_directory>/<pod id>/machine`, where the driver looks for machines.
    pub pods_directory: PathBuf,
    /// Users that machines' processes run as, two for each machine (QEMU, and what
    /// serves it), with groups of the same numbers. Nobody else may be among them.
    pub users: Range<u32>,
    /// Bytes of a machine's own disk, on which its containers write; 0 for none.
    /// Without one they write into the machine's memory.
    pub disk_bytes: u64,
    /// The accelerator.
    pub accelerator: Choice,
    /// Whether kernels tell all that they do on the console, which takes time.
    pub verbose: bool,
    /// How long the probe boot may take.
    pub probe_deadline: Duration,
    /// How long a machine's devices may take to come up.
    pub device_deadline: Duration,
    /// How long killing a machine's processes may take.
    pub kill_deadline: Duration,
    /// Most bytes that are kept of a machine's console.
    pub console_limit: usize,
    /// What carries streams to new machines.
    pub streams: Vsock,
    /// Whether machines may send frames with addresses that are not their pods'.
    pub forging: bool,
}

impl QemuConfig {
    /// With Debian's places of programs, a disk of 10 GiB (sparse: it takes what
    /// is written), and users from 2,000,000,000 on.
    #[must_use]
    pub fn new(guest: PathBuf, vsock: PathBuf, cache_directory: PathBuf, pods_directory: PathBuf) -> Self {
        Self {
            qemu: PathBuf::from(format!("/usr/bin/qemu-system-{}", std::env::consts::ARCH)),
            virtiofsd: PathBuf::from("/usr/libexec/virtiofsd"),
            vsock,
            guest,
            kernel: None,
            modules: Vec::new(),
            cache_directory,
            pods_directory,
            users: 2_000_000_000..2_000_065_536,
            disk_bytes: 10 << 30,
            accelerator: Choice::Auto,
            verbose: false,
            probe_deadline: Duration::from_secs(20),
            device_deadline: Duration::from_secs(10),
            kill_deadline: Duration::from_secs(10),
            console_limit: 256 * 1024,
            streams: Vsock::Kina,
            forging: false,
        }
    }
}

/// Why this node runs no virtual machines, for people: what is missing, and
/// what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no virtual machines on this node: {reason}")]
pub struct Unavailable {
    /// What is missing.
    pub reason: String,
}
