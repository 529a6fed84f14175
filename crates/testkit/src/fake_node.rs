//! A node in memory. Files are real, below whatever directories the test uses;
//! everything else is an entry of a table.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use kina_model::{PodId, UserNamespace};
use kina_node::{
    Bind, Daemon, Error, ExitStatus, FilesystemUsage, GuestProgram, LayerImage, MountFacts, NetworkProbe,
    Node, Output, PathFacts, PathKind, ProbeStep, ProcessIdentity, ProcessUsage, Program,
};
use tokio::sync::mpsc;

use crate::fake_cni::{self, FakeNetwork};

/// Where its compiler of AppArmor profiles is.
const PARSER: &str = "/usr/sbin/apparmor_parser";

/// The node. Clones share their world: a clone is what a node is to the daemon
/// after a restart.
#[derive(Clone, Default)]
pub struct FakeNode {
    world: Arc<Mutex<World>>,
}

/// What a fake node holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    /// Pods with a network namespace.
    pub namespaces: BTreeSet<PodId>,
    /// Mounted layers, and how often each has been mounted anew.
    pub layers: BTreeMap<String, u32>,
    /// The network plugin and what it has given out. Outlives a reboot.
    pub network: FakeNetwork,
    /// The boot.
    pub boot: u32,
    /// Paths on which a file system is mounted, with other paths that lead to
    /// the same; all others are on the root's.
    pub mounts: BTreeMap<PathBuf, (MountFacts, Vec<PathBuf>)>,
    /// What its apparmor_parser makes of a profile; without, it has none.
    pub apparmor_policy: Option<Vec<u8>>,
    /// How many of the next effects by that name fail.
    pub failures: BTreeMap<&'static str, u32>,
}

impl FakeNode {
    /// What it holds.
    pub fn world(&self) -> World {
        self.lock().clone()
    }

    /// The next `count` calls of an operation fail: `create_network_namespace`,
    /// `remove_network_namespace`, `mount_layer`, `unmount_layer`,
    /// `create_directory`, `rename`, `remove_tree`.
    pub fn fail(&self, operation: &'static str, count: u32) {
        self.lock().failures.insert(operation, count);
    }

    /// Its apparmor_parser makes this of a profile, whatever that says.
    pub fn compile_apparmor(&self, policy: &[u8]) {
        self.lock().apparmor_policy = Some(policy.to_vec());
    }

    /// A file system is mounted at a path, which is `aliases`, too.
    pub fn mount(&self, path: &Path, filesystem: &str, size_bytes: u64, aliases: &[&Path]) {
        let mount = MountFacts { mountpoint: path.to_owned(), filesystem: filesystem.to_owned(), size_bytes };
        let aliases = aliases.iter().map(|alias| (*alias).to_owned()).collect();
        self.lock().mounts.insert(path.to_owned(), (mount, aliases));
    }

    /// As a reboot does: nothing but files is left.
    pub fn reboot(&self) {
        let mut world = self.lock();
        let network = std::mem::take(&mut world.network);
        *world = World { boot: world.boot + 1, network, ..World::default() };
    }

    /// The next `count` calls of the network plugin with that command fail.
    pub fn fail_plugin(&self, command: &'static str, count: u32) {
        self.lock().network.failures.insert(command, count);
    }

    /// Calls of the network plugin with that command do not end from now on.
    pub fn hang_plugin(&self, command: &'static str, hangs: bool) {
        let network = &mut self.lock().network;
        if hangs {
            network.hangs.insert(command)
        } else {
            network.hangs.remove(command)
        };
    }

    /// An address that was given out and never given back.
    pub fn leak_address(&self, container: &str, address: [u8; 4]) {
        self.lock().network.addresses.insert(container.to_owned(), address.into());
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn perform<T>(&self, operation: &'static str, work: impl FnOnce(&mut World) -> T) -> Result<T, Error> {
        let mut world = self.lock();
        match world.failures.get_mut(operation) {
            Some(left) if *left > 0 => {
                *left -= 1;
                Err(failure(operation, Path::new("/fake"), io::Error::other("ordered by the test")))
            }
            _ => Ok(work(&mut world)),
        }
    }
}

fn failure(operation: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io { operation, path: path.to_owned(), source }
}

#[async_trait]
impl Node for FakeNode {
    async fn boot_id(&self) -> Result<String, Error> {
        Ok(format!("boot-{}", self.lock().boot))
    }

    async fn create_network_namespace(
        &self,
        pod: &PodId,
        _user: Option<UserNamespace>,
    ) -> Result<PathBuf, Error> {
        self.perform("create_network_namespace", |world| {
            world.namespaces.insert(pod.clone());
            PathBuf::from(format!("/fake/netns/{pod}"))
        })
    }

    async fn try_user_namespaces(&self, _directory: &Path) -> Result<(), Error> {
        self.perform("try_user_namespaces", |_| ())
    }

    async fn remove_network_namespace(&self, pod: &PodId) -> Result<(), Error> {
        self.perform("remove_network_namespace", |world| {
            world.namespaces.remove(pod);
        })
    }

    async fn network_namespaces(&self) -> Result<Vec<PodId>, Error> {
        Ok(self.lock().namespaces.iter().cloned().collect())
    }

    fn network_namespace(&self, pod: &PodId) -> PathBuf {
        PathBuf::from(format!("/fake/netns/{pod}"))
    }

    async fn probe_network(
        &self,
        _pod: Option<&PodId>,
        _probe: &NetworkProbe,
    ) -> Result<Vec<ProbeStep>, Error> {
        Err(failure("probe network", Path::new("/fake"), io::ErrorKind::Unsupported.into()))
    }

    async fn mount_layer(&self, layer: &LayerImage) -> Result<PathBuf, Error> {
        self.perform("mount_layer", |world| {
            *world.layers.entry(layer.diff_id.clone()).or_insert(0) += 1;
            PathBuf::from(format!("/fake/layers/{}", layer.diff_id))
        })
    }

    async fn unmount_layer(&self, diff_id: &str) -> Result<(), Error> {
        self.perform("unmount_layer", |world| {
            world.layers.remove(diff_id);
        })
    }

    async fn mounted_layers(&self) -> Result<Vec<String>, Error> {
        Ok(self.lock().layers.keys().cloned().collect())
    }

    async fn run(&self, program: &Program) -> Result<Output, Error> {
        if program.path.ends_with(fake_cni::PLUGIN) {
            // As any program it may be interrupted while it runs.
            tokio::task::yield_now().await;
            let (output, hangs) = self.lock().network.run(program);
            if hangs {
                return std::future::pending().await;
            }
            return Ok(output);
        }
        if let (Some(PARSER), Some(policy)) = (program.path.to_str(), self.lock().apparmor_policy.clone()) {
            return Ok(Output { code: 0, stdout: policy, stderr: Vec::new() });
        }
        Err(failure("run", &program.path, io::ErrorKind::Unsupported.into()))
    }

    async fn kill_network_plugins(&self, _deadline: Duration) -> Result<usize, Error> {
        Ok(0)
    }

    async fn spawn_guest(&self, guest: &GuestProgram) -> Result<ProcessIdentity, Error> {
        Err(failure("spawn guest", &guest.program, io::ErrorKind::Unsupported.into()))
    }

    async fn start(&self, daemon: &Daemon) -> Result<ProcessIdentity, Error> {
        Err(failure("start", &daemon.path, io::ErrorKind::Unsupported.into()))
    }

    async fn exit_status(&self, _process: ProcessIdentity) -> Option<ExitStatus> {
        None
    }

    async fn dial(&self, socket: &Path) -> Result<tokio::net::UnixStream, Error> {
        Err(failure("dial", socket, io::ErrorKind::Unsupported.into()))
    }

    async fn wait_process(&self, _process: ProcessIdentity) -> Result<(), Error> {
        Ok(())
    }

    async fn process_lives(&self, _process: ProcessIdentity) -> Result<bool, Error> {
        Ok(false)
    }

    async fn process_usage(&self, _process: ProcessIdentity) -> Result<Option<ProcessUsage>, Error> {
        Ok(None)
    }

    async fn kill_cgroup(&self, _path: &str, _deadline: Duration) -> Result<(), Error> {
        Ok(())
    }

    async fn out_of_memory_kills(&self, _path: &str) -> Result<u64, Error> {
        Ok(0)
    }

    async fn remove_idle_cgroup(&self, _path: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn cgroups(&self, _parent: &str, _prefix: &str) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }

    async fn cgroup_processes(&self, _path: &str) -> Result<Vec<ProcessIdentity>, Error> {
        Ok(Vec::new())
    }

    async fn create_directory(&self, path: &Path, _mode: u32) -> Result<(), Error> {
        self.perform("create_directory", |_| ())?;
        std::fs::create_dir_all(path).map_err(|source| failure("create directory", path, source))
    }

    async fn remove_tree(&self, path: &Path) -> Result<(), Error> {
        self.perform("remove_tree", |_| ())?;
        let removed = if path.is_file() { std::fs::remove_file(path) } else { std::fs::remove_dir_all(path) };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failure("remove tree", path, error)),
            _ => Ok(()),
        }
    }

    async fn bind(&self, bind: &Bind) -> Result<(), Error> {
        Err(failure("bind", &bind.source, io::ErrorKind::Unsupported.into()))
    }

    async fn unbind(&self, _path: &Path) -> Result<(), Error> {
        Ok(())
    }

    async fn rename(&self, from: &Path, to: &Path) -> Result<(), Error> {
        self.perform("rename", |_| ())?;
        match std::fs::rename(from, to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|error| failure("rename", from, error)),
        }
    }

    async fn hard_link(&self, source: &Path, target: &Path) -> Result<(), Error> {
        std::fs::hard_link(source, target).map_err(|error| failure("link", source, error))
    }

    async fn create_pipe(&self, path: &Path, _mode: u32) -> Result<(), Error> {
        Err(failure("make named pipe", path, io::ErrorKind::Unsupported.into()))
    }

    async fn exists(&self, path: &Path) -> Result<bool, Error> {
        if path.ends_with("apparmor_parser") {
            return Ok(path == Path::new(PARSER) && self.lock().apparmor_policy.is_some());
        }
        path.try_exists().map_err(|source| failure("inspect", path, source))
    }

    async fn inspect_path(&self, path: &Path) -> Result<PathFacts, Error> {
        let failed = |error| failure("inspect", path, error);
        let real = path.canonicalize().map_err(failed)?;
        let found = real.metadata().map_err(failed)?;
        let kind = match found.file_type() {
            kind if kind.is_dir() => PathKind::Directory,
            kind if kind.is_socket() => PathKind::Socket,
            kind if kind.is_char_device() => PathKind::CharacterDevice,
            _ => PathKind::File,
        };
        let root =
            || MountFacts { mountpoint: "/".into(), filesystem: "ext4".to_owned(), size_bytes: 1 << 40 };
        let (mount, aliases) = self.lock().mounts.get(&real).cloned().unwrap_or_else(|| (root(), Vec::new()));
        let (mode, uid, gid) = (found.mode() & 0o7777, found.uid(), found.gid());
        let has_mounts_below = false;
        Ok(PathFacts { real, kind, mode, uid, gid, mount, has_mounts_below, aliases })
    }

    async fn list_directory(&self, path: &Path) -> Result<Vec<String>, Error> {
        let Ok(entries) = std::fs::read_dir(path) else {
            return Ok(Vec::new());
        };
        Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    async fn watch_directory(&self, path: &Path) -> Result<mpsc::Receiver<()>, Error> {
        Err(failure("watch", path, io::ErrorKind::Unsupported.into()))
    }

    async fn file_identity(&self, path: &Path) -> Result<Option<String>, Error> {
        Ok(path.is_file().then(|| "unchanged".to_owned()))
    }

    async fn read_file(&self, path: &Path, _limit: usize) -> Result<Vec<u8>, Error> {
        std::fs::read(path).map_err(|source| failure("read", path, source))
    }

    async fn read_end(&self, path: &Path, limit: usize) -> Result<Vec<u8>, Error> {
        let content = self.read_file(path, limit).await?;
        Ok(content[content.len().saturating_sub(limit)..].to_vec())
    }

    #[allow(clippy::disallowed_methods, reason = "a fake needs no atomic replacement")]
    async fn write_file(&self, path: &Path, content: &[u8], _mode: u32) -> Result<(), Error> {
        std::fs::write(path, content).map_err(|source| failure("write", path, source))
    }

    async fn usage(&self, path: &Path) -> Result<FilesystemUsage, Error> {
        Ok(FilesystemUsage { mountpoint: path.to_owned(), used_bytes: 0, used_inodes: 0 })
    }
}
