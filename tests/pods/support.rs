//! A runtime whose machines, guests and node are in memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kina::config::Config;
use kina::pod::record::PodRecord;
use kina::pod::view::PodView;
use kina::runtime::{Runtime, RuntimeConfig};
use kina_machine::fake::FakeDriver;
use kina_machine::{Capabilities, Driver, LayerAccess};
use kina_model::{ContainerSpec, ContainerState, PodId};
use kina_store::Store;
use kina_testkit::fake_cni::PLUGIN;
use kina_testkit::fake_guest::FakeGuests;
use kina_testkit::fake_node::FakeNode;
use kina_testkit::images::{File, archive};
pub(crate) use kina_testkit::spec::pod as pod_spec;
use serde_json::json;

pub(crate) const IMAGE: &str = "example.test/app:1";

pub(crate) struct World {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) node: FakeNode,
    pub(crate) guests: FakeGuests,
    pub(crate) driver: FakeDriver,
    /// Machines with a kernel of their own.
    pub(crate) vm: FakeDriver,
}

impl World {
    pub(crate) fn new() -> Self {
        let guests = FakeGuests::default();
        let (accept, accept_vm) = (guests.clone(), guests.clone());
        let vm = FakeDriver::new(move |pod, stream| accept_vm.accept(pod, stream));
        let capabilities = Capabilities {
            layers: LayerAccess::ImageFile,
            guest_writes_logs: false,
            own_kernel: true,
            ..kina_machine::Driver::capabilities(&vm).clone()
        };
        Self {
            vm: vm.with_capabilities(capabilities),
            directory: tempfile::tempdir().unwrap(),
            node: FakeNode::default(),
            driver: FakeDriver::new(move |pod, stream| accept.accept(pod, stream)),
            guests,
        }
    }

    /// One whose guests may not write logs themselves.
    pub(crate) fn with_log_streams() -> Self {
        let world = Self::new();
        let capabilities = world.driver.capabilities().clone();
        let capabilities = Capabilities { guest_writes_logs: false, ..capabilities };
        Self { driver: world.driver.with_capabilities(capabilities), ..world }
    }

    pub(crate) fn network(&self) -> kina::config::Network {
        kina::config::Network {
            config_directory: self.directory.path().join("net.d"),
            plugin_directories: vec![self.directory.path().join("plugins")],
            cache_directory: self.directory.path().join("cni"),
            ..kina::config::Network::default()
        }
    }

    /// Puts a file into the directory of network configurations.
    pub(crate) fn write_network(&self, file: &str, content: &str) {
        let network = self.network();
        for directory in [&network.config_directory, &network.plugin_directories[0]] {
            std::fs::create_dir_all(directory).unwrap();
        }
        std::fs::write(network.plugin_directories[0].join(PLUGIN), "").unwrap();
        std::fs::write(network.config_directory.join(file), content).unwrap();
    }

    /// Connects new pods to a network of the fake plugin.
    pub(crate) fn add_network(&self, name: &str) {
        let network = json!({"cniVersion": "1.1.0", "name": name, "plugins": [{"type": PLUGIN}]});
        self.write_network("10-net.conflist", &network.to_string());
    }

    pub(crate) fn remove_networks(&self) {
        std::fs::remove_dir_all(self.network().config_directory).unwrap();
    }

    /// A daemon in this world. Only one may live at a time.
    pub(crate) async fn daemon(&self) -> Runtime {
        self.daemon_with(self.network()).await
    }

    /// The same with another configuration of the network.
    pub(crate) async fn daemon_with(&self, network: kina::config::Network) -> Runtime {
        self.open(network, Err("none in this world".to_owned())).await
    }

    /// The same with virtual machines.
    pub(crate) async fn daemon_with_vm(&self) -> Runtime {
        self.open(self.network(), Ok(Arc::new(self.vm.clone()))).await
    }

    /// Where the kubelet keeps the volumes of a pod of [`pod_spec`].
    pub(crate) fn kubelet_pod(&self) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join("kubelet/pods/uid")
    }

    /// Takes a pod's record away, as if the store had lost it. No daemon may live.
    pub(crate) async fn lose_record(&self, pod: &PodId) {
        let store = Store::open(self.directory.path().join("root/records.redb")).unwrap();
        store.table::<PodRecord>().delete(pod.as_str()).await.unwrap();
    }

    async fn open(&self, network: kina::config::Network, vm: Result<Arc<dyn Driver>, String>) -> Runtime {
        let config = Config {
            network,
            machine: kina::config::Machine {
                kubelet_root: self.directory.path().join("kubelet"),
                share_roots: vec![self.directory.path().join("shared")],
                ..Default::default()
            },
            root: self.directory.path().join("root"),
            run: self.directory.path().join("run"),
            guest: kina::config::Guest { program: "/nonexistent".into(), handshake_seconds: 5 },
            ..Config::default()
        };
        // What is left behind is looked for at once.
        let config = RuntimeConfig { layers_kept: Duration::ZERO, ..config.runtime().unwrap() };
        let runtime = Runtime::with_drivers(
            config,
            Arc::new(self.node.clone()),
            Some(Arc::new(self.driver.clone())),
            vm,
        )
        .await
        .unwrap();
        if runtime.images().resolve(IMAGE).is_none() {
            let files = [File { path: "app", mode: 0o755, content: b"app" }];
            let image = archive(IMAGE, &[&files], json!({ "Cmd": ["/app"] }));
            runtime.images().import(&image[..], None).await.unwrap();
        }
        runtime
    }

    /// Asserts that nothing of any pod is left, once what was being removed is.
    pub(crate) async fn assert_empty(&self) {
        let removing = |directory: &str| {
            let entries = entries(&self.directory.path().join(directory));
            entries.iter().any(|name| name.starts_with(".discarded-"))
        };
        let removed = async {
            while removing("root/pods") || removing("run/pods") {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), removed).await.expect("what was removed stays");
        let world = self.node.world();
        assert!(world.namespaces.is_empty(), "{world:?}");
        assert!(world.layers.is_empty(), "{world:?}");
        assert!(world.network.addresses.is_empty(), "{world:?}");
        for directory in ["root/pods", "run/pods"] {
            assert_eq!(entries(&self.directory.path().join(directory)), Vec::<String>::new(), "{directory}");
        }
        let cached = self.directory.path().join("cni/results");
        assert!(!cached.exists() || entries(&cached).is_empty(), "{:?}", entries(&cached));
    }

    pub(crate) async fn assert_no_machines(&self) {
        assert_eq!(self.driver.list().await.unwrap(), []);
        assert_eq!(self.vm.list().await.unwrap(), []);
    }
}

fn entries(path: &Path) -> Vec<String> {
    std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

pub(crate) fn container_spec(name: &str) -> ContainerSpec {
    kina_testkit::spec::container(name, IMAGE)
}

/// Waits until a pod looks as wanted.
pub(crate) async fn eventually(runtime: &Runtime, pod: &str, what: &str, wanted: impl Fn(&PodView) -> bool) {
    let waiting = async {
        loop {
            if runtime.find_pod(pod).is_ok_and(|view| wanted(&view)) {
                return;
            }
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting)
        .await
        .unwrap_or_else(|_| panic!("{what} does not come"));
}

pub(crate) fn state_of(runtime: &Runtime, container: &str) -> ContainerState {
    runtime.find_container(container).unwrap().state.clone()
}

/// Lets the daemon go without a word, as `kill -9` does, and waits until its
/// store is closed.
pub(crate) async fn kill(daemon: Runtime) {
    drop(daemon);
    // The actors hold the store until they notice that nobody can ask them any more.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}
