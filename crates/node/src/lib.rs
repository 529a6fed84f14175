//! The Kubernetes node: every effect that must happen where Kubernetes' node
//! is, behind one trait. On Linux the node is this machine ([`LocalNode`]). A Mac
//! has files only ([`BareNode`]), until its node is a Linux VM, reached by the same
//! trait.
//!
//! Every method may be repeated; removing what is not there succeeds. A dropped
//! call may still take effect: its caller asks the node what is true now.

mod bare;
#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
mod files;
#[cfg(target_os = "linux")]
mod local;
mod path_facts;
mod probe;
mod records;
mod temporary;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kina_model::{PodId, UserNamespace};
use tokio::sync::mpsc;

pub use bare::BareNode;
pub use error::Error;
#[cfg(target_os = "linux")]
pub use local::LocalNode;
pub use path_facts::{MountFacts, PathFacts, PathKind};
pub use probe::{NetworkProbe, ProbeKind, ProbeStep};
pub use records::{MachineRecords, Recorded, find_cgroup};
pub use temporary::temporary_age;

/// Longest path of a unix socket in bytes: `sun_path` holds 108 with its end mark.
pub const MAX_SOCKET_PATH: usize = 107;

/// Where the local node keeps things.
#[derive(Clone, Debug)]
pub struct LocalNodeConfig {
    /// The daemon's volatile directory. Layers are mounted below its
    /// subdirectory `layers`.
    pub run_directory: PathBuf,
    /// Where network namespaces are pinned; `/var/run/netns` is where CNI
    /// plugins and `ip netns` look.
    pub netns_directory: PathBuf,
    /// What the names of this daemon's network namespaces begin with; the pod
    /// id follows.
    pub netns_prefix: String,
}

impl LocalNodeConfig {
    /// The usual places, below a volatile directory of the daemon's own.
    #[must_use]
    pub fn new(run_directory: PathBuf) -> Self {
        Self {
            run_directory,
            netns_directory: PathBuf::from("/var/run/netns"),
            netns_prefix: "kina-".to_owned(),
        }
    }
}

/// Whether this machine's own kernel can run pods.
pub const RUNS_PODS: bool = cfg!(target_os = "linux");

/// The node that is this machine.
#[cfg(target_os = "linux")]
#[must_use]
pub fn local_node(config: LocalNodeConfig) -> Arc<dyn Node> {
    Arc::new(LocalNode::new(config))
}

/// What this machine has of a node: files.
#[cfg(not(target_os = "linux"))]
#[must_use]
pub fn local_node(config: LocalNodeConfig) -> Arc<dyn Node> {
    Arc::new(BareNode::new(config))
}

/// A layer image on the node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerImage {
    /// `sha256:<hex>` of the uncompressed layer.
    pub diff_id: String,
    /// The EROFS image file.
    pub path: PathBuf,
}

/// A program to run to its end.
#[derive(Clone, Debug)]
pub struct Program {
    /// Path of the executable.
    pub path: PathBuf,
    /// Arguments, without the program's own name.
    pub args: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// What it reads from standard input.
    pub stdin: Vec<u8>,
    /// It is killed after that long.
    pub deadline: Duration,
    /// It is killed when it prints more bytes than that on either stream.
    pub max_output: usize,
}

/// What a program left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Exit code; 128 plus the signal's number where one ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

/// A guest to start on the node's own kernel.
#[derive(Clone, Debug)]
pub struct GuestProgram {
    /// The pod that it is for.
    pub pod: PodId,
    /// Path of the `kina-guest` executable.
    pub program: PathBuf,
    /// The unix socket that it shall listen on. Its directory exists.
    pub socket: PathBuf,
    /// Its own log file, bounded by the guest.
    pub log: PathBuf,
    /// Absolute cgroup path of the pod; the guest runs in the child `guest`.
    pub cgroup: String,
}

/// A program to start on the node that outlives its starter.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// Path of the executable.
    pub path: PathBuf,
    /// Arguments, without the program's own name.
    pub args: Vec<OsString>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Absolute path of the cgroup that it is in; made if it is missing.
    pub cgroup: String,
    /// Its network.
    pub network: DaemonNetwork,
    /// The user that it becomes, with no capability to gain any more; the
    /// starter's without.
    pub user: Option<Account>,
    /// Whether it can no longer gain privileges by executing something.
    pub no_new_privileges: bool,
    /// Where its standard output and error go: a file, written at its end, or a
    /// named pipe, whose reader is waited for. `/dev/null` without.
    pub output: Option<PathBuf>,
    /// Descriptors that it finds from number 3 on, in this order. Only a node
    /// that is this machine can hand them over.
    pub inherit: Vec<Arc<OwnedFd>>,
    /// How likely the kernel takes it when memory runs out, from -1000 to 1000;
    /// as its starter without, or where the kernel refuses.
    pub oom_score_adjust: Option<i32>,
}

impl Daemon {
    /// A program without arguments, with the usual search path as its
    /// environment, as its starter in everything else.
    #[must_use]
    pub fn new(path: PathBuf, cgroup: String) -> Self {
        const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        Self {
            path,
            args: Vec::new(),
            env: vec![("PATH".to_owned(), PATH.to_owned())],
            cgroup,
            network: DaemonNetwork::Node,
            user: None,
            no_new_privileges: false,
            output: None,
            inherit: Vec::new(),
            oom_score_adjust: None,
        }
    }
}

/// The network that a daemon is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DaemonNetwork {
    /// The node's.
    Node,
    /// The namespace pinned at this path.
    Namespace(PathBuf),
    /// A new one with nothing in it.
    Empty,
}

/// A user by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, all of them.
    pub groups: Vec<u32>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// Something of the node to appear at a second place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// What: a directory or regular file. Symlinks are followed.
    pub source: PathBuf,
    /// Where. What is missing there is made: an empty file or directory below a
    /// directory that exists. No symlink is followed in its last part.
    pub target: PathBuf,
    /// Whether nothing can be changed through it, by root neither.
    pub readonly: bool,
    /// Whether that holds for what is mounted below the source, too.
    pub readonly_below: bool,
    /// Whether what is mounted below the source appears too.
    pub recursive: bool,
}

/// A process on the node, told apart from a later one with the same number by
/// its start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessIdentity {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot (`/proc/<pid>/stat`, field 22).
    pub start_ticks: u64,
}

/// What a process uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessUsage {
    /// Bytes of memory that it holds (proportional set size).
    pub memory_bytes: u64,
    /// What of them is memory that others can map, too: a virtual machine's.
    pub shared_memory_bytes: u64,
    /// CPU time in nanoseconds, of user space and kernel.
    pub cpu_nanos: u64,
}

/// Use of a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilesystemUsage {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Bytes used below the path asked for.
    pub used_bytes: u64,
    /// Inodes used below the path asked for.
    pub used_inodes: u64,
}

/// The Kubernetes node.
#[async_trait]
pub trait Node: Send + Sync {
    /// The kernel's boot id. Records of another boot describe nothing that runs.
    async fn boot_id(&self) -> Result<String, Error>;

    /// Makes a network namespace for a pod, pinned as
    /// `/var/run/netns/kina-<pod id>`, with loopback up, and returns that path.
    /// With `user` a new user namespace with those mappings owns it, and lasts as
    /// long as it does.
    async fn create_network_namespace(
        &self,
        pod: &PodId,
        user: Option<UserNamespace>,
    ) -> Result<PathBuf, Error>;

    /// Tries what pods with user namespaces need of the node's kernel, and of the
    /// file system that `directory` is on.
    async fn try_user_namespaces(&self, directory: &Path) -> Result<(), Error>;

    /// Unpins a pod's network namespace.
    async fn remove_network_namespace(&self, pod: &PodId) -> Result<(), Error>;

    /// Pods that have a pinned network namespace, also half-made ones.
    async fn network_namespaces(&self) -> Result<Vec<PodId>, Error>;

    /// Where a pod's network namespace is pinned, whether it is there or not.
    fn network_namespace(&self, pod: &PodId) -> PathBuf;

    /// Tries from within a pod's network namespace what a container of it
    /// would, or from the node's own network.
    async fn probe_network(&self, pod: Option<&PodId>, probe: &NetworkProbe)
    -> Result<Vec<ProbeStep>, Error>;

    /// Mounts a layer read-only, once in this kernel, and returns the
    /// directory. Mounting a mounted one returns the same directory.
    async fn mount_layer(&self, layer: &LayerImage) -> Result<PathBuf, Error>;

    /// Unmounts a layer and frees its loop device if it has one. Overlays that
    /// stand on it keep working.
    async fn unmount_layer(&self, diff_id: &str) -> Result<(), Error>;

    /// Layers that are mounted (from the mount table, not from memory).
    async fn mounted_layers(&self) -> Result<Vec<String>, Error>;

    /// Runs a program to its end.
    async fn run(&self, program: &Program) -> Result<Output, Error>;

    /// Kills the network plugins that work on namespaces of this daemon's pods,
    /// with all that they have started, and waits until none is left, no longer
    /// than `deadline`; returns how many processes there were. For what a
    /// daemon that was killed had running. They are known by the environment
    /// that they are given (`CNI_NETNS`).
    async fn kill_network_plugins(&self, deadline: Duration) -> Result<usize, Error>;

    /// Starts a guest on the node's kernel, daemonised: in its own session, in
    /// its cgroup, surviving the daemon. Returns once it has been executed.
    async fn spawn_guest(&self, guest: &GuestProgram) -> Result<ProcessIdentity, Error>;

    /// Starts a daemon: in its own session and its cgroup, surviving its
    /// starter. Returns once it has been executed.
    async fn start(&self, daemon: &Daemon) -> Result<ProcessIdentity, Error>;

    /// How a daemon has ended that this very instance started; `None` for
    /// others, as only a parent is told, and for one that runs.
    async fn exit_status(&self, process: ProcessIdentity) -> Option<ExitStatus>;

    /// A fresh stream to a guest's unix socket.
    async fn dial(&self, socket: &Path) -> Result<tokio::net::UnixStream, Error>;

    /// Waits for a process to end; at once when it is gone already.
    async fn wait_process(&self, process: ProcessIdentity) -> Result<(), Error>;

    /// Whether a process lives.
    async fn process_lives(&self, process: ProcessIdentity) -> Result<bool, Error>;

    /// What a process uses; `None` when it lives no more.
    async fn process_usage(&self, process: ProcessIdentity) -> Result<Option<ProcessUsage>, Error>;

    /// Kills every process below a cgroup, waits until none is left (no longer
    /// than `deadline`) and removes the cgroup.
    async fn kill_cgroup(&self, path: &str, deadline: Duration) -> Result<(), Error>;

    /// How many processes the kernel has killed in a cgroup because memory ran
    /// out; 0 for one that does not exist, or whose kernel does not count.
    async fn out_of_memory_kills(&self, path: &str) -> Result<u64, Error>;

    /// Removes a cgroup if nothing is in it, neither a process nor a cgroup.
    async fn remove_idle_cgroup(&self, path: &str) -> Result<(), Error>;

    /// Absolute paths of the cgroups directly below `parent` whose name starts
    /// with `prefix`, in any hierarchy.
    async fn cgroups(&self, parent: &str, prefix: &str) -> Result<Vec<String>, Error>;

    /// The processes of a cgroup itself, those of its children left out, in any
    /// hierarchy. None for a cgroup that does not exist.
    async fn cgroup_processes(&self, path: &str) -> Result<Vec<ProcessIdentity>, Error>;

    /// Makes a directory and its parents. `mode` is for those that are made.
    async fn create_directory(&self, path: &Path, mode: u32) -> Result<(), Error>;

    /// Removes a file or a whole tree, never crossing a mount point or
    /// following a symlink.
    async fn remove_tree(&self, path: &Path) -> Result<(), Error>;

    /// Mounts a file or directory at a second place. It does not spread to other
    /// mount namespaces, and what is unmounted below the source is so below the
    /// target. A target with something mounted on it is left as it is.
    async fn bind(&self, bind: &Bind) -> Result<(), Error>;

    /// Unmounts all that is mounted at and below a path, also what is in use.
    async fn unbind(&self, path: &Path) -> Result<(), Error>;

    /// Gives a file or directory another name on the same file system, which must be free. One
    /// that is not there is no error.
    async fn rename(&self, from: &Path, to: &Path) -> Result<(), Error>;

    /// Gives a file a second name. The same again succeeds.
    async fn hard_link(&self, source: &Path, target: &Path) -> Result<(), Error>;

    /// Makes a named pipe. One that is there already is left as it is.
    async fn create_pipe(&self, path: &Path, mode: u32) -> Result<(), Error>;

    /// Whether there is something at a path (symlinks are followed).
    async fn exists(&self, path: &Path) -> Result<bool, Error>;

    /// What is at a path, and under which other paths it is, too.
    async fn inspect_path(&self, path: &Path) -> Result<PathFacts, Error>;

    /// Names in a directory, in no order; none for one that does not exist.
    /// Names that are not UTF-8 are left out.
    async fn list_directory(&self, path: &Path) -> Result<Vec<String>, Error>;

    /// Tells when something in a directory has changed; changes in quick
    /// succession may be told once. Ends when the directory itself is gone or
    /// cannot be watched any longer.
    async fn watch_directory(&self, path: &Path) -> Result<mpsc::Receiver<()>, Error>;

    /// Reads a file of at most `limit` bytes.
    async fn read_file(&self, path: &Path, limit: usize) -> Result<Vec<u8>, Error>;

    /// Reads the last `limit` bytes of a file, or all of a shorter one.
    async fn read_end(&self, path: &Path, limit: usize) -> Result<Vec<u8>, Error>;

    /// A text that changes when the regular file at a path (symlinks are
    /// followed) is replaced or rewritten; `None` if there is no regular file.
    async fn file_identity(&self, path: &Path) -> Result<Option<String>, Error>;

    /// Replaces a file: temporary file, then rename. Of a process that is killed
    /// meanwhile the temporary file stays; [`temporary_age`] knows it.
    async fn write_file(&self, path: &Path, content: &[u8], mode: u32) -> Result<(), Error>;

    /// What the tree below a path uses.
    async fn usage(&self, path: &Path) -> Result<FilesystemUsage, Error>;
}
