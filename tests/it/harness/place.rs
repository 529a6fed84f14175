//! Where a test's daemon lives, and what it may leave there.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Once, OnceLock};

use kina::config::{Cdi, Config, Metrics, Network};
use kina::network::record::NetworkRecord;
use kina::network::tunnel::TunnelRecord;
use kina::pod::record::{ContainerRecord, PodRecord};
use kina::traces::{Scope, Trace};
use kina_store::Store;
use serde_json::{Value, json};

use super::node_network::{NodeNetwork, PLUGINS};
use super::{IMAGE, wait_until};

/// The name of the pods' bridge in the tests.
pub(crate) const BRIDGE: &str = "pods0";

/// Where the places are. Guests' sockets lie below, whose paths must be short.
const PARENT: &str = "/tmp";
const PREFIX: &str = "ki-";

/// Directories, cgroup and names that no other daemon has.
pub(crate) struct Place {
    directory: PathBuf,
    config: Config,
    scope: Scope,
    number: u32,
    /// The node's network, if it is not that of the test itself.
    pub(crate) node_network: Option<NodeNetwork>,
}

/// The image's archive, made once.
pub(crate) fn busybox() -> &'static [u8] {
    static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
    ARCHIVE.get_or_init(|| kina_testkit::images::busybox(IMAGE))
}

impl Place {
    pub(super) fn new() -> Self {
        static SWEPT: Once = Once::new();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        SWEPT.call_once(sweep);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = Path::new(PARENT).join(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        if super::machine::is_apple() {
            super::machine::start_simulator(&directory);
        }
        Self::at(directory, number)
    }

    fn at(directory: PathBuf, number: u32) -> Self {
        let name = directory.file_name().unwrap().to_str().unwrap().to_owned();
        let config = Config {
            root: directory.join("root"),
            run: directory.join("run"),
            cgroup_parent: format!("/kina-it-{name}"),
            network: Network {
                config_directory: directory.join("net.d"),
                plugin_directories: vec![directory.join("plugins"), PLUGINS.into()],
                cache_directory: directory.join("cni"),
                ..Network::default()
            },
            machine: super::machine::configuration(&directory),
            cdi: Cdi { directories: vec![directory.join("cdi")] },
            metrics: Metrics { address: "127.0.0.1:0".to_owned() },
            ..Config::default()
        };
        for path in [&config.root, &config.run, &config.network.config_directory] {
            fs::create_dir_all(path).unwrap();
        }
        let scope = Scope::of(&config);
        Self { directory, config, scope, number, node_network: None }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.config.socket_path()
    }

    /// Where the containers of a pod of that name log.
    pub(crate) fn logs(&self, pod: &str) -> PathBuf {
        self.path("logs").join(pod)
    }

    /// The end of what the daemons have said.
    pub(crate) fn daemon_log(&self) -> String {
        let log = fs::read(self.path("daemon.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(120)..].join("\n")
    }

    /// The process of a pod's guest, if its machine has been started and runs on the
    /// node's kernel.
    pub(crate) fn guest(&self, pod: &str) -> Option<u32> {
        if super::machine::is_apple() {
            return self.processes(pod).into_iter().find(|pid| super::machine::is_simulated_guest(*pid));
        }
        let record = fs::read(self.config.run.join("pods").join(pod).join("machine/machine.json")).ok()?;
        let record: serde_json::Value = serde_json::from_slice(&record).ok()?;
        record["phase"]["started"]["pid"].as_u64()?.try_into().ok()
    }

    /// The process on the node that a pod's guest knows by that number; `None` if it is gone.
    pub(crate) fn process(&self, pod: &str, number: u32) -> Option<u32> {
        if super::machine::is_apple() {
            let inside = |pid: &u32| super::machine::number_inside(*pid) == Some(number);
            return self.processes(pod).into_iter().find(inside);
        }
        super::lives(number).then_some(number)
    }

    /// Processes in a pod's cgroup, of any hierarchy.
    pub(crate) fn processes(&self, pod: &str) -> Vec<u32> {
        let group = super::machine::group(&self.config.cgroup_parent, pod);
        let in_group = |pid: &u32| {
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            super::lives(*pid) && groups.lines().any(|line| line.contains(&group))
        };
        let names = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.file_name());
        names.filter_map(|name| name.to_str()?.parse().ok()).filter(in_group).collect()
    }

    /// The ids of pods that have files here.
    pub(crate) fn pod_directories(&self) -> Vec<String> {
        let entries = fs::read_dir(self.config.run.join("pods")).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// What is there of the pods, beside the daemon itself.
    pub(crate) fn traces(&self, daemon: Option<u32>) -> Vec<Trace> {
        let mut found = self.scope.find();
        found.retain(|trace| match trace {
            Trace::Process { pid, .. } => Some(*pid) != daemon,
            // The test's own, of a root with a limit.
            Trace::Mount(path) => *path != self.config.root,
            _ => true,
        });
        found
    }

    /// Waits until no process, mount, namespace, cgroup, loop device or file of
    /// a pod is there. What was killed may take a moment to go.
    pub(crate) async fn wait_clean(&self, daemon: Option<u32>) {
        let mut found = Vec::new();
        let clean = wait_until("nothing left", async || {
            found = self.traces(daemon);
            found.is_empty()
        });
        if tokio::time::timeout(super::PATIENCE / 3, clean).await.is_err() {
            panic!("left behind: {found:#?}");
        }
    }

    /// After the daemon has ended and all pods were removed: its directories
    /// hold the store, the images, and nothing else; the store no records.
    pub(crate) fn check_directories(&self) {
        let store = Store::open(self.config.root.join("records.redb")).unwrap();
        assert_eq!(store.table::<PodRecord>().list_each().unwrap().len(), 0);
        assert_eq!(store.table::<ContainerRecord>().list_each().unwrap().len(), 0);
        assert_eq!(store.table::<NetworkRecord>().list_each().unwrap().len(), 0);
        assert_eq!(store.table::<TunnelRecord>().list_each().unwrap().len(), 0);
        drop(store);
        let names = |path: &Path| {
            let entries = fs::read_dir(path).unwrap();
            let mut names: Vec<String> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let mut root = names(&self.config.root);
        // What machines boot from is kept for the next ones.
        root.retain(|name| !super::machine::is_vm() || name != "machine");
        assert_eq!(root, ["images", "pods", "records.redb", "records.redb.lock"]);
        assert_eq!(names(&self.config.root.join("pods")), [""; 0]);
        let mut run = names(&self.config.run);
        // Empty once the last layer is unmounted; traces have said so.
        run.retain(|name| name != "layers");
        if super::machine::is_apple() {
            assert_eq!(names(&self.config.run.join("s")), [""; 0]);
            assert_eq!(super::machine::simulated_containers(self), [""; 0]);
            run.retain(|name| name != "s");
        }
        assert_eq!(run, ["kina.lock", "pods"]);
        assert_eq!(names(&self.config.run.join("pods")), [""; 0]);
    }

    /// Has the root on a file system of its own, which goes with this place.
    pub(super) fn limit_root(&self, mib: u32) {
        let size = format!("size={mib}m");
        let mut mount = std::process::Command::new("mount");
        let status =
            mount.args(["-t", "tmpfs", "-o", &size, "none"]).arg(&self.config.root).status().unwrap();
        assert!(status.success());
    }

    pub(super) fn add_node_network(&mut self) {
        self.node_network = Some(NodeNetwork::new(self.number));
    }

    /// Both: a node's network, and a network for its pods.
    pub(crate) fn node_network_with(&mut self, version: &str, plugins: &Value) {
        self.add_node_network();
        self.write_network(version, plugins);
    }

    /// Changes the configuration for the next daemon.
    pub(crate) fn set_network(&mut self, change: impl FnOnce(&mut Network)) {
        change(&mut self.config.network);
    }

    /// Likewise.
    pub(crate) fn set_machine(&mut self, change: impl FnOnce(&mut kina::config::Machine)) {
        change(&mut self.config.machine);
    }

    /// The configuration of the pods' network; where plugins keep their state
    /// is this place's.
    pub(crate) fn write_network(&self, version: &str, plugins: &Value) {
        let mut plugins = plugins.clone();
        for plugin in plugins.as_array_mut().unwrap() {
            if let Some(ipam) = plugin.get_mut("ipam") {
                ipam["dataDir"] = json!(self.path("ipam"));
            }
        }
        let list = json!({"cniVersion": version, "name": "pods", "plugins": plugins});
        let path = self.config.network.config_directory.join("10-pods.conflist");
        fs::write(path, list.to_string()).unwrap();
    }

    /// A plugin that is a shell script.
    pub(crate) fn write_plugin(&self, name: &str, script: &str) {
        let directory = self.path("plugins");
        fs::create_dir_all(&directory).unwrap();
        // Written elsewhere: it may be executed at any moment.
        let temporary = directory.join(format!(".{name}"));
        fs::write(&temporary, format!("#!/bin/busybox sh\n{script}\n")).unwrap();
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&temporary, directory.join(name)).unwrap();
    }

    /// Addresses that host-local has given out and not taken back.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("ipam/pods")).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> =
            names.filter(|name| name != "lock" && !name.starts_with("last_reserved_ip")).collect();
        names.sort();
        names
    }

    /// No address, link or recorded attachment is left of any pod.
    pub(crate) fn check_network(&self) {
        assert_eq!(self.addresses(), [""; 0]);
        let cached = fs::read_dir(self.path("cni/results")).into_iter().flatten().flatten();
        let cached: Vec<PathBuf> = cached.map(|entry| entry.path()).collect();
        assert_eq!(cached, [""; 0].map(PathBuf::from));
        if let Some(network) = &self.node_network {
            let mut links = network.links();
            // The kernel's own, and the pods' bridge, which stays.
            links.retain(|link| !link.starts_with("ifb") && link != BRIDGE);
            assert_eq!(links, [""; 0]);
        }
    }

    fn erase(&self) {
        super::machine::end_simulator(&self.directory);
        if let Err(error) = self.scope.erase() {
            eprintln!("{}: {error}", self.directory.display());
        }
        // What the test itself has mounted; the last one stands on the others.
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
        let below: Vec<&Path> = points.filter(|point| point.starts_with(&self.directory)).collect();
        for point in below.into_iter().rev() {
            let _gone = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
        }
        drop(fs::remove_dir_all(&self.directory));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon's last words:\n{}", self.daemon_log());
            for pod in self.pod_directories() {
                let log = self.config.run.join("pods").join(&pod).join("machine/guest.log");
                eprintln!("guest of {pod}:\n{}", fs::read_to_string(log).unwrap_or_default());
            }
        }
        self.erase();
    }
}

/// Removes what tests of processes that are no more have left.
fn sweep() {
    for entry in fs::read_dir(PARENT).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process =
            name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok());
        if process.is_some_and(|process: u32| !Path::new(&format!("/proc/{process}")).exists()) {
            Place::at(entry.path(), 0).erase();
        }
    }
}
