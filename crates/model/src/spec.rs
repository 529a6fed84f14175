//! What a caller asked for, validated and free of any interface's types.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Digest, Signal};

/// Why a specification is refused: the field, by its path in the caller's
/// message, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The value makes no sense.
    #[error("{field}: {reason}")]
    Invalid {
        /// For example `config.linux.sysctls[net.core.somaxconn]`.
        field: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// The value makes sense, but kina or this machine cannot honour it.
    #[error("{field}: {reason}")]
    Unsupported {
        /// As in [`SpecError::Invalid`].
        field: String,
        /// Why not, and what to do instead.
        reason: String,
    },
}

impl SpecError {
    /// An [`SpecError::Invalid`].
    pub fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), reason: reason.into() }
    }

    /// An [`SpecError::Unsupported`].
    pub fn unsupported(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unsupported { field: field.into(), reason: reason.into() }
    }
}

/// What tells a pod apart from its like. All four together are its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodMetadata {
    /// Name of the Kubernetes pod.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Counts the sandboxes made for it.
    pub attempt: u32,
}

/// A pod sandbox as asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodSpec {
    /// What it is called.
    pub metadata: PodMetadata,
    /// Host name of its containers; empty takes the node's (host network only).
    pub hostname: String,
    /// Directory of its containers' logs, on the node.
    pub log_directory: Option<PathBuf>,
    /// What its resolv.conf says; `None` takes the node's.
    pub dns: Option<Dns>,
    /// Ports of the node that lead to it.
    pub port_mappings: Vec<PortMapping>,
    /// For selectors.
    pub labels: BTreeMap<String, String>,
    /// Kept and given back.
    pub annotations: BTreeMap<String, String>,
    /// The runtime handler as the caller wrote it; empty lets kina place the pod.
    pub handler: String,
    /// Where that places it.
    pub placement: Placement,
    /// Absolute cgroup path below which the pod's own cgroup is made.
    pub cgroup_parent: String,
    /// Kernel parameters of its namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Which namespaces it shares with the node.
    pub namespaces: PodNamespaces,
    /// Whether its containers may be privileged.
    pub privileged: bool,
    /// What the machine itself may cost beyond the containers.
    pub overhead: Option<Resources>,
    /// The sum of its containers' resources.
    pub resources: Option<Resources>,
    /// The SELinux label of what its containers share, and theirs if they name none.
    #[serde(default)]
    pub selinux: Option<SelinuxOptions>,
}

/// On which kind of machine a pod runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// A virtual machine of its own.
    Vm,
    /// The node's own kernel.
    Shared,
}

impl Placement {
    /// The runtime handler that asks for it.
    #[must_use]
    pub fn handler(self) -> &'static str {
        match self {
            Self::Vm => "vm",
            Self::Shared => "shared",
        }
    }
}

/// Which namespaces a pod shares with the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodNamespaces {
    /// The user namespace that is its own; `None` has its users be the machine's.
    #[serde(default)]
    pub user: Option<UserNamespace>,
    /// The network namespace is the node's.
    pub host_network: bool,
    /// The IPC namespace is the node's.
    pub host_ipc: bool,
    /// How containers see processes, unless they ask for something else.
    pub pid: PidMode,
}

/// The users and groups of a pod, and what they are outside of its user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    /// Its users.
    pub uids: IdRange,
    /// Its groups.
    pub gids: IdRange,
}

/// Ids inside of a user namespace and what they are outside. No id is above `u32::MAX - 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The first id inside.
    pub inside: u32,
    /// The first id outside.
    pub outside: u32,
    /// How many there are; not 0.
    pub length: u32,
}

/// Which processes a container sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Copy)]
#[serde(rename_all = "lowercase")]
pub enum PidMode {
    /// Those of all containers of its pod.
    Pod,
    /// Its own.
    Container,
    /// The node's.
    Node,
}

/// Contents of a resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// The `search` line.
    pub searches: Vec<String>,
    /// The `options` line.
    pub options: Vec<String>,
}

impl Dns {
    /// What such a file says (resolv.conf(5)): of several lists of domains the
    /// last, of servers and options all. The rest of it is left out.
    #[must_use]
    pub fn read(text: &str) -> Self {
        let mut dns = Self::default();
        for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => dns.servers.extend(words.next()),
                Some("search") => dns.searches = words.collect(),
                Some("domain") => dns.searches = words.take(1).collect(),
                Some("options") => dns.options.extend(words),
                Some(_) | None => {}
            }
        }
        dns
    }
}

/// A port of the node that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Port in the pod.
    pub container_port: u16,
    /// Port of the node; 0 maps nothing.
    pub host_port: u16,
    /// Address of the node; empty is all.
    pub host_ip: String,
}

/// What tells a container apart within its pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContainerMetadata {
    /// Name of the container in the pod's specification.
    pub name: String,
    /// Counts its restarts.
    pub attempt: u32,
}

/// The image that a container runs, as asked for and as found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerImage {
    /// As the caller wrote it (`ImageSpec.image`).
    pub requested: String,
    /// As the pod's author wrote it (`ImageSpec.user_specified_image`).
    pub user_specified: String,
    /// Annotations of the caller's image specification.
    pub annotations: BTreeMap<String, String>,
    /// The image's id: the digest of its configuration.
    pub id: Digest,
    /// A reference by digest, or the id where the image has none.
    pub reference: String,
    /// Directories that the image says will be written (its VOLUMEs).
    #[serde(default)]
    pub volumes: Vec<String>,
}

/// A container as asked for, before its image is known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// What it is called.
    pub metadata: ContainerMetadata,
    /// The image as the caller wrote it (`ImageSpec.image`).
    pub image: String,
    /// As the pod's author wrote it (`ImageSpec.user_specified_image`).
    pub user_specified_image: String,
    /// Annotations of the caller's image specification.
    pub image_annotations: BTreeMap<String, String>,
    /// Replaces the image's entrypoint, if not empty.
    pub command: Vec<String>,
    /// Replaces the image's arguments, if not empty.
    pub args: Vec<String>,
    /// Replaces the image's working directory, if not empty.
    pub working_dir: String,
    /// Added to the image's environment; a later key wins.
    pub env: Vec<(String, String)>,
    /// What is mounted into it.
    pub mounts: Vec<Mount>,
    /// Device nodes it may use.
    pub devices: Vec<Device>,
    /// Devices by name, as CDI has them: `vendor/class=name`.
    #[serde(default)]
    pub cdi_devices: Vec<String>,
    /// For selectors.
    pub labels: BTreeMap<String, String>,
    /// Kept and given back.
    pub annotations: BTreeMap<String, String>,
    /// Log file, relative to the pod's log directory; empty drops the output.
    pub log_path: String,
    /// Whether standard input stays open.
    pub stdin: bool,
    /// Whether it closes after the first attach.
    pub stdin_once: bool,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Limits.
    pub resources: Resources,
    /// Privileges.
    pub security: Security,
    /// What ends it politely; `None` takes the image's, else SIGTERM.
    pub stop_signal: Option<Signal>,
}

/// Limits of a container or pod. `None` leaves the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Relative weight.
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU time in each period; -1 is unlimited.
    pub cpu_quota_micros: Option<i64>,
    /// Length of a period in microseconds.
    pub cpu_period_micros: Option<u64>,
    /// CPUs, as `0-2,7`.
    pub cpuset_cpus: String,
    /// Memory nodes, likewise.
    pub cpuset_mems: String,
    /// Bytes; -1 is unlimited.
    pub memory_limit_bytes: Option<i64>,
    /// Bytes of memory and swap together; -1 is unlimited.
    pub memory_swap_limit_bytes: Option<i64>,
    /// Processes and threads.
    pub pids_limit: Option<i64>,
    /// From -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// Bytes by page size (`2MB`, `1GB`).
    pub hugepage_limits: BTreeMap<String, u64>,
    /// Files of cgroup v2 by name.
    pub unified: BTreeMap<String, String>,
}

impl ContainerSpec {
    /// The images that are mounted, in the order of the mounts.
    pub fn image_volumes(&self) -> impl Iterator<Item = &ImageVolume> {
        self.mounts.iter().filter_map(|mount| mount.source.image())
    }
}

impl Resources {
    /// Takes over what `other` names.
    pub fn update(&mut self, other: &Self) {
        fn take<T: Clone>(own: &mut Option<T>, other: &Option<T>) {
            if other.is_some() {
                own.clone_from(other);
            }
        }
        take(&mut self.cpu_shares, &other.cpu_shares);
        take(&mut self.cpu_quota_micros, &other.cpu_quota_micros);
        take(&mut self.cpu_period_micros, &other.cpu_period_micros);
        take(&mut self.memory_limit_bytes, &other.memory_limit_bytes);
        take(&mut self.memory_swap_limit_bytes, &other.memory_swap_limit_bytes);
        take(&mut self.pids_limit, &other.pids_limit);
        for (own, other) in
            [(&mut self.cpuset_cpus, &other.cpuset_cpus), (&mut self.cpuset_mems, &other.cpuset_mems)]
        {
            if !other.is_empty() {
                own.clone_from(other);
            }
        }
        self.hugepage_limits.extend(other.hugepage_limits.clone());
        self.unified.extend(other.unified.clone());
        // oom_score_adj is a property of processes: it was given to the first
        // one when that was made, and no limit changes it.
    }
}

/// Privileges of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Security {
    /// Everything that the machine allows.
    pub privileged: bool,
    /// Added to the default capabilities, without `CAP_`; `ALL` is all, unless all are dropped.
    pub add_capabilities: Vec<String>,
    /// Taken from them, also where they are added; of `ALL`, those stay that are added by name.
    pub drop_capabilities: Vec<String>,
    /// Kept over execve by a program that is not root.
    pub ambient_capabilities: Vec<String>,
    /// Differs from the pod's.
    pub pid: Option<ContainerPid>,
    /// Who it runs as; `None` takes the image's.
    pub user: Option<RunAs>,
    /// Group id; needs a user.
    pub group: Option<u32>,
    /// Further group ids.
    pub supplemental_groups: Vec<u32>,
    /// Leave out the groups that the image's /etc/group gives the user.
    pub strict_groups: bool,
    /// Whether its root file system is read-only.
    pub readonly_rootfs: bool,
    /// Whether execve never grants privileges.
    pub no_new_privs: bool,
    /// Hidden paths; `None` takes the defaults.
    pub masked_paths: Option<Vec<String>>,
    /// Read-only paths; `None` takes the defaults.
    pub readonly_paths: Option<Vec<String>>,
    /// System call filter.
    pub seccomp: Seccomp,
    /// AppArmor profile.
    #[serde(default)]
    pub apparmor: AppArmor,
    /// SELinux label; `None` takes the pod's unless it is privileged.
    #[serde(default)]
    pub selinux: Option<SelinuxOptions>,
}

/// An SELinux label of processes. Empty parts are what the pod's system has for containers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelinuxOptions {
    /// User.
    pub user: String,
    /// Role.
    pub role: String,
    /// Type.
    pub kind: String,
    /// Level: sensitivity and categories.
    pub level: String,
}

/// An AppArmor profile, for where the kernel has AppArmor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AppArmor {
    /// Nothing is asked for: kina's own where it can be had.
    #[default]
    Unset,
    /// kina's own.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// One that is loaded, by name.
    Localhost(String),
}

/// The PID namespace of a container that differs from its pod's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerPid {
    /// As a pod's.
    Mode(PidMode),
    /// That of another container of the pod, by id.
    Target(String),
}

/// Who a container runs as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunAs {
    /// A user id.
    Uid(u32),
    /// A name of the image's /etc/passwd.
    Name(String),
}

/// A system call filter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Seccomp {
    /// kina's default.
    #[default]
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A profile, its JSON text.
    Localhost(String),
}

/// Something mounted into a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path in the container.
    pub container_path: String,
    /// What is mounted.
    #[serde(flatten)]
    pub source: MountSource,
    /// Whether writing is refused.
    pub readonly: bool,
    /// Whether that holds for mounts below, too.
    pub recursive_read_only: bool,
    /// The pod's user namespace, if the files' owners are its ids: what belongs to id 0 on the
    /// node belongs to the pod's root.
    #[serde(default)]
    pub mapped: Option<UserNamespace>,
    /// Whether later mounts below pass between node and container.
    pub propagation: Propagation,
    /// Whether its files get the SELinux label of the container's, where it has one.
    #[serde(default)]
    pub relabel: bool,
    /// Further options, of [`Mount::OPTIONS`].
    pub options: Vec<String>,
}

impl Mount {
    /// The options that it may have: those of a bind mount that only say what the
    /// mount allows.
    pub const OPTIONS: [&str; 14] = [
        "nosuid",
        "suid",
        "nodev",
        "dev",
        "noexec",
        "exec",
        "noatime",
        "atime",
        "nodiratime",
        "diratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nosymfollow",
    ];
}

/// What is mounted into a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountSource {
    /// An absolute path on the node.
    HostPath(PathBuf),
    /// The files of an image, which nobody can change.
    Image(ImageVolume),
}

impl MountSource {
    /// The path on the node, if it is one.
    #[must_use]
    pub fn host_path(&self) -> Option<&Path> {
        match self {
            Self::HostPath(path) => Some(path),
            Self::Image(_) => None,
        }
    }

    /// The image, if it is one.
    #[must_use]
    pub fn image(&self) -> Option<&ImageVolume> {
        match self {
            Self::HostPath(_) => None,
            Self::Image(image) => Some(image),
        }
    }
}

/// An image whose files are mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageVolume {
    /// As the caller wrote it (`ImageSpec.image`).
    pub requested: String,
    /// As the pod's author wrote it (`ImageSpec.user_specified_image`).
    pub user_specified: String,
    /// Annotations of the caller's image specification.
    pub annotations: BTreeMap<String, String>,
    /// What of it is mounted, by a path below its root; empty for all of it.
    pub sub_path: String,
}

/// Whether later mounts pass between node and container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Propagation {
    /// No.
    #[default]
    Private,
    /// From the node into the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// A device node of the node that a container may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Path in the container.
    pub container_path: String,
    /// Path on the node.
    pub host_path: PathBuf,
    /// Of `r`, `w` and `m`.
    pub permissions: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolvers_file_is_read() {
        let text = "# nameserver 192.0.2.1\n; search no\ndomain first.example\nsearch a.example\tb.example\n\
                    nameserver 192.0.2.53\nnameserver   fe80::1%eth0 # here\nsortlist 192.0.2.0\nnameserver\n\
                    options ndots:5 edns0\noptions rotate\n";
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let wanted = Dns {
            servers: words("192.0.2.53 fe80::1%eth0"),
            searches: words("a.example b.example"),
            options: words("ndots:5 edns0 rotate"),
        };
        assert_eq!(Dns::read(text), wanted);
        assert_eq!(Dns::read("domain one.example two\n").searches, ["one.example"]);
        assert_eq!(Dns::read(""), Dns::default());
    }
}
