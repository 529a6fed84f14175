//! What to launch.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use kina_cgroup::Group;
use oci_spec::runtime::{Process, Spec};

/// A container's first process.
#[derive(Debug)]
pub struct Plan {
    /// The OCI runtime spec. `root.path` is not used: see `rootfs`. `process.terminal` must agree
    /// with `stdio`.
    pub spec: Spec,
    /// The root filesystem.
    pub rootfs: RootFs,
    /// The standard streams.
    pub stdio: Stdio,
    /// The control group. It is created and given the limits of `linux.resources`; it outlives
    /// the process, and a failed launch, until the caller deletes it. `None`: the caller's own
    /// group, and `linux.resources` must then be absent.
    pub cgroup: Option<Group>,
}

/// One more process in a running container.
#[derive(Debug)]
pub struct ExecPlan<'a> {
    /// The spec that the container was created with. Its confinement (seccomp, capabilities, no
    /// new privileges, labels, rlimits, OOM score) is the process's.
    pub container: &'a Spec,
    /// Arguments, environment, directory, user and terminal. Where it speaks of confinement it
    /// must say the same as the container's own process; what it leaves out is taken from there.
    pub process: Process,
    /// The standard streams.
    pub stdio: Stdio,
    /// The container's control group.
    pub cgroup: Option<Group>,
}

/// Where the root filesystem is.
#[derive(Debug)]
pub enum RootFs {
    /// A directory; mounts below it come along.
    Path(PathBuf),
    /// A mount that is attached nowhere, of `fsmount` or `open_tree` with `OPEN_TREE_CLONE`.
    Detached(OwnedFd),
}

/// The standard streams of a process.
#[derive(Debug)]
pub enum Stdio {
    /// Descriptors that become 0, 1 and 2. They are closed in the caller.
    Files {
        /// Standard input.
        stdin: OwnedFd,
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
    },
    /// A new terminal of the container's own `/dev/pts`, which becomes the controlling terminal.
    /// Its other end is in [`Created::terminal`](crate::Created::terminal).
    Terminal,
}
