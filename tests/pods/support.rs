//! A runtime whose machines, guests and node are in memory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kina::config::Config;
use kina::pod::view::PodView;
use kina::runtime::Runtime;
use kina_machine::fake::FakeDriver;
use kina_model::{
    ContainerMetadata, ContainerSpec, ContainerState, PidMode, Placement, PodMetadata, PodNamespaces,
    PodSpec, Resources, Security,
};
use kina_testkit::fake_guest::FakeGuests;
use kina_testkit::fake_node::FakeNode;
use kina_testkit::images::{File, archive};
use serde_json::json;

pub(crate) const IMAGE: &str = "example.test/app:1";

pub(crate) struct World {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) node: FakeNode,
    pub(crate) guests: FakeGuests,
    pub(crate) driver: FakeDriver,
}

impl World {
    pub(crate) fn new() -> Self {
        let guests = FakeGuests::default();
        let accept = guests.clone();
        Self {
            directory: tempfile::tempdir().unwrap(),
            node: FakeNode::default(),
            driver: FakeDriver::new(move |pod, stream| accept.accept(pod, stream)),
            guests,
        }
    }

    /// A daemon in this world. Only one may live at a time.
    pub(crate) async fn daemon(&self) -> Runtime {
        let config = Config {
            root: self.directory.path().join("root"),
            run: self.directory.path().join("run"),
            guest: kina::config::Guest { program: "/nonexistent".into(), handshake_seconds: 5 },
            ..Config::default()
        };
        let runtime = Runtime::with_drivers(
            config.runtime().unwrap(),
            Arc::new(self.node.clone()),
            Some(Arc::new(self.driver.clone())),
            None,
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

    /// Asserts that nothing of any pod is left.
    pub(crate) fn assert_empty(&self) {
        let world = self.node.world();
        assert!(world.namespaces.is_empty(), "{world:?}");
        assert!(world.layers.is_empty(), "{world:?}");
        for directory in ["root/pods", "run/pods"] {
            assert_eq!(entries(&self.directory.path().join(directory)), Vec::<String>::new(), "{directory}");
        }
    }

    pub(crate) async fn assert_no_machines(&self) {
        use kina_machine::Driver;
        assert_eq!(self.driver.list().await.unwrap(), []);
    }
}

fn entries(path: &Path) -> Vec<String> {
    std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

pub(crate) fn pod_spec(name: &str) -> PodSpec {
    PodSpec {
        metadata: PodMetadata {
            name: name.into(),
            uid: "uid".into(),
            namespace: "default".into(),
            attempt: 0,
        },
        hostname: name.into(),
        log_directory: None,
        dns: None,
        port_mappings: Vec::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        handler: String::new(),
        placement: Placement::Shared,
        cgroup_parent: String::new(),
        sysctls: BTreeMap::new(),
        namespaces: PodNamespaces { host_network: false, host_ipc: false, pid: PidMode::Container },
        privileged: false,
        overhead: None,
        resources: None,
    }
}

pub(crate) fn container_spec(name: &str) -> ContainerSpec {
    ContainerSpec {
        metadata: ContainerMetadata { name: name.into(), attempt: 0 },
        image: IMAGE.into(),
        user_specified_image: String::new(),
        image_annotations: BTreeMap::new(),
        command: Vec::new(),
        args: Vec::new(),
        working_dir: String::new(),
        env: Vec::new(),
        mounts: Vec::new(),
        devices: Vec::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        log_path: String::new(),
        stdin: false,
        stdin_once: false,
        tty: false,
        resources: Resources::default(),
        security: Security::default(),
        stop_signal: None,
    }
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
