//! What can go wrong with a launch.

use std::fmt;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A failed launch. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The spec asks for something that cannot be done here.
    #[error("{field}: {reason}")]
    Refused {
        /// The field's path in the spec, as in `linux.seccomp.flags`.
        field: &'static str,
        /// Why.
        reason: String,
    },
    /// A step of the set-up failed, in the helper or in the new process.
    #[error("cannot {operation}")]
    Setup {
        /// The step.
        operation: Operation,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The program cannot be executed. `ENOENT`: there is none; `EACCES`: it is not executable.
    #[error("cannot execute {path:?}")]
    Execute {
        /// The program as asked for, or as found in `PATH`.
        path: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A control group operation failed.
    #[error("control group")]
    Cgroup(#[source] kina_cgroup::Error),
    /// The launcher's own program cannot be run as helper.
    #[error("cannot run the helper {}", program.display())]
    Helper {
        /// The program.
        program: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The helper or the new process ended without saying why: it was killed.
    #[error("the new process ended before it was ready")]
    Died,
    /// The new process was killed because its control group may have too little memory even for
    /// the set-up.
    #[error("the memory limit is too low for a process to be made")]
    OutOfMemory,
    /// The set-up took too long; everything was killed.
    #[error("the new process was not ready in time")]
    TimedOut,
    /// The container to exec in is gone.
    #[error("the container is not running")]
    Gone,
}

impl Error {
    pub(crate) fn refused(field: &'static str, reason: &str) -> Self {
        Self::Refused { field, reason: reason.to_owned() }
    }

    pub(crate) fn setup(operation: Operation, source: impl Into<io::Error>) -> Self {
        Self::Setup { operation, source: source.into() }
    }
}

/// A step of the set-up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Operation {
    /// Preparing descriptors and messages between launcher and helper.
    Communicate,
    /// Moving into the control group.
    EnterCgroup,
    /// Opening or joining a namespace.
    JoinNamespace(PathBuf),
    /// Joining the namespaces of a container.
    JoinContainer,
    /// Making new namespaces and the process in them.
    Clone,
    /// Writing the id mappings of a user namespace.
    MapIds,
    /// Becoming the root user of the user namespace.
    BecomeRoot,
    /// Setting mount propagation.
    Propagation,
    /// Opening the root filesystem.
    OpenRoot,
    /// Opening the source of a mount.
    OpenSource(PathBuf),
    /// Mapping the ids of a mount, by the source it is of.
    MapMount(PathBuf),
    /// Making a mount point.
    MountPoint(PathBuf),
    /// Mounting.
    Mount(PathBuf),
    /// Making a device node.
    Device(PathBuf),
    /// Making a link in `/dev`.
    DeviceLink(PathBuf),
    /// Making the working directory.
    MakeWorkingDirectory(PathBuf),
    /// Changing into the new root.
    Pivot,
    /// Hiding a path.
    Mask(PathBuf),
    /// Making a path read-only.
    ReadOnly(PathBuf),
    /// Setting a kernel parameter.
    Sysctl(String),
    /// Setting the host name.
    Hostname,
    /// Setting the domain name.
    Domainname,
    /// Bringing the loopback interface up.
    Loopback,
    /// Making a session.
    Session,
    /// Making the terminal.
    Terminal,
    /// Setting a resource limit.
    Rlimit(String),
    /// Changing the user, groups or owner of the standard streams.
    User,
    /// Changing capabilities.
    Capabilities,
    /// Changing to the working directory.
    WorkingDirectory(PathBuf),
    /// Forbidding new privileges.
    NoNewPrivileges,
    /// Loading the seccomp filter.
    Seccomp,
    /// Setting the AppArmor profile or SELinux label.
    Label,
    /// Reading the container's user database.
    ReadPasswd,
    /// Closing descriptors.
    CloseDescriptors,
}

impl Operation {
    /// Whether what it works on is named by the spec, so that the spec is at fault if that is not
    /// there or of another kind.
    #[must_use]
    pub fn is_asked_for(&self) -> bool {
        match self {
            Self::OpenSource(_)
            | Self::MountPoint(_)
            | Self::Mount(_)
            | Self::Device(_)
            | Self::MakeWorkingDirectory(_)
            | Self::WorkingDirectory(_)
            | Self::Sysctl(_)
            | Self::Rlimit(_) => true,
            Self::Communicate
            | Self::EnterCgroup
            | Self::JoinNamespace(_)
            | Self::JoinContainer
            | Self::Clone
            | Self::MapIds
            | Self::BecomeRoot
            | Self::Propagation
            | Self::OpenRoot
            | Self::MapMount(_)
            | Self::DeviceLink(_)
            | Self::Pivot
            | Self::Mask(_)
            | Self::ReadOnly(_)
            | Self::Hostname
            | Self::Domainname
            | Self::Loopback
            | Self::Session
            | Self::Terminal
            | Self::User
            | Self::Capabilities
            | Self::NoNewPrivileges
            | Self::Seccomp
            | Self::Label
            | Self::ReadPasswd
            | Self::CloseDescriptors => false,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, path) = match self {
            Self::Communicate => ("talk to the helper", None),
            Self::EnterCgroup => ("enter the control group", None),
            Self::JoinNamespace(path) => ("join namespace", Some(path)),
            Self::JoinContainer => ("join the namespaces of the container", None),
            Self::Clone => ("make the process", None),
            Self::MapIds => ("map user and group ids", None),
            Self::BecomeRoot => ("become root of the user namespace", None),
            Self::Propagation => ("set mount propagation", None),
            Self::OpenRoot => ("open the root filesystem", None),
            Self::OpenSource(path) => ("open mount source", Some(path)),
            Self::MapMount(path) => {
                return write!(
                    f,
                    "map the ids of {path:?}, which takes a file system that can (tmpfs since Linux 6.3)"
                );
            }
            Self::MountPoint(path) => ("make mount point", Some(path)),
            Self::Mount(path) => ("mount", Some(path)),
            Self::Device(path) => ("make device", Some(path)),
            Self::DeviceLink(path) => ("make link", Some(path)),
            Self::MakeWorkingDirectory(path) => ("make working directory", Some(path)),
            Self::Pivot => ("change into the root filesystem", None),
            Self::Mask(path) => ("mask", Some(path)),
            Self::ReadOnly(path) => ("make read-only", Some(path)),
            Self::Sysctl(name) => return write!(f, "set sysctl {name:?}"),
            Self::Hostname => ("set the host name", None),
            Self::Domainname => ("set the domain name", None),
            Self::Loopback => ("bring up loopback", None),
            Self::Session => ("make a session", None),
            Self::Terminal => ("make the terminal", None),
            Self::Rlimit(name) => return write!(f, "set {name}"),
            Self::User => ("change the user", None),
            Self::Capabilities => ("change capabilities", None),
            Self::WorkingDirectory(path) => ("change to directory", Some(path)),
            Self::NoNewPrivileges => ("forbid new privileges", None),
            Self::Seccomp => ("load the seccomp filter", None),
            Self::Label => ("set the security label", None),
            Self::ReadPasswd => ("read /etc/passwd", None),
            Self::CloseDescriptors => ("close descriptors", None),
        };
        match path {
            Some(path) => write!(f, "{what} {path:?}"),
            None => f.write_str(what),
        }
    }
}
