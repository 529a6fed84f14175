//! What the launcher tells the helper, and what comes back.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Operation;

/// Something that could not be done and does not stand in the way of the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Warning {
    /// `process.oomScoreAdj` was refused by the kernel (lowering it needs `CAP_SYS_RESOURCE`).
    OomScoreAdj {
        /// The value that was asked for.
        wanted: i32,
        /// The error number.
        errno: i32,
    },
    /// A capability that this kernel, or the launcher itself, does not have.
    UnavailableCapability {
        /// Its name.
        name: String,
    },
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OomScoreAdj { wanted, errno } => {
                let error = std::io::Error::from_raw_os_error(*errno);
                write!(f, "process.oomScoreAdj {wanted} was not set: {error}")
            }
            Self::UnavailableCapability { name } => {
                write!(f, "process.capabilities: {name} is not available here")
            }
        }
    }
}

/// The helper's task.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) task: Task,
    /// Files to write "0" into.
    pub(crate) cgroup_files: Vec<PathBuf>,
    /// The same for cgroup2, unless the helper was born in that group.
    pub(crate) unified_file: Option<PathBuf>,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) process: ProcessOrder,
    /// How many seccomp instructions follow the order.
    pub(crate) seccomp_length: Option<usize>,
    pub(crate) seccomp_flags: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    Init(Box<InitOrder>),
    /// Namespaces to join through the pidfd.
    Exec {
        namespaces: u32,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct InitOrder {
    /// `CLONE_NEW*` for the new process, without the cgroup namespace.
    pub(crate) new_namespaces: u64,
    pub(crate) new_cgroup_namespace: bool,
    /// Namespaces to join: path and `CLONE_NEW*`.
    pub(crate) join: Vec<(PathBuf, u32)>,
    /// `None`: the root is the detached mount that was passed.
    pub(crate) root: Option<PathBuf>,
    pub(crate) readonly_root: bool,
    /// `MS_*` of `rootfsPropagation`.
    pub(crate) propagation: Option<u64>,
    pub(crate) mounts: Vec<MountOrder>,
    /// Whether `/dev` is ours to fill.
    pub(crate) fill_dev: bool,
    pub(crate) devices: Vec<DeviceOrder>,
    pub(crate) masked: Vec<PathBuf>,
    pub(crate) readonly: Vec<PathBuf>,
    pub(crate) sysctl: Vec<(String, String)>,
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MountOrder {
    pub(crate) target: PathBuf,
    pub(crate) kind: MountKind,
    /// `MOUNT_ATTR_*` to set on the mount.
    pub(crate) set: u64,
    /// `MOUNT_ATTR_*` to clear: only the access time policy.
    pub(crate) clear: u64,
    /// `MOUNT_ATTR_*` to set on the mount and all below it.
    pub(crate) set_recursive: u64,
    /// `MS_*` propagation changes, in order.
    pub(crate) propagation: Vec<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum MountKind {
    Bind {
        source: PathBuf,
        recursive: bool,
        /// How its files' owners are shown, if not as they are.
        mapped: Option<MappedIds>,
    },
    New {
        file_system: String,
        source: String,
        /// Key and value, or a flag.
        data: Vec<(String, Option<String>)>,
        /// A read-only super block.
        readonly: bool,
    },
    /// A directory of the container's own root, which is made where it is missing. A mount of its
    /// own can be written where the root cannot.
    OfRoot(PathBuf),
    CgroupV1(Vec<CgroupV1>),
    /// The group's directory on the host, for kernels and namespaces that refuse a mount.
    CgroupV2(PathBuf),
}

/// Ids of a file system and what a mount shows them as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MappedIds {
    /// First id on the file system, first id shown, how many.
    pub(crate) uids: Vec<(u32, u32, u32)>,
    pub(crate) gids: Vec<(u32, u32, u32)>,
    /// Whether all mounts below are mapped, too.
    pub(crate) recursive: bool,
}

/// One v1 hierarchy in a container.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CgroupV1 {
    /// Controllers, or `name=…`.
    pub(crate) controllers: Vec<String>,
    /// The directory's name below the mount.
    pub(crate) name: String,
    /// The group's directory on the host.
    pub(crate) directory: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DeviceOrder {
    pub(crate) path: PathBuf,
    /// With `S_IF*`.
    pub(crate) mode: u32,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ProcessOrder {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: PathBuf,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) umask: u32,
    pub(crate) capabilities: CapabilitySets,
    pub(crate) no_new_privileges: bool,
    /// Rows and columns.
    pub(crate) terminal: Option<(u16, u16)>,
    pub(crate) apparmor: Option<String>,
    pub(crate) selinux: Option<String>,
    /// Whether the process is in a user namespace other than the launcher's.
    pub(crate) user_namespace: bool,
}

/// Bits by capability number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CapabilitySets {
    pub(crate) bounding: u64,
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
    pub(crate) ambient: u64,
}

/// What helper and init say to the launcher.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    /// The helper made the process. Comes with its warnings.
    Forked {
        pid: i32,
        warnings: Vec<Warning>,
    },
    /// The process waits for its start. The terminal comes along.
    Ready,
    Failed {
        operation: Operation,
        errno: i32,
    },
    /// `execve` failed, or there is no such program.
    NotExecutable {
        path: String,
        errno: i32,
    },
}

/// Goes to the init when the launcher knows it.
pub(crate) const GO: u8 = b'g';
/// Goes to the init when it is to execute its program.
pub(crate) const START: u8 = b's';
