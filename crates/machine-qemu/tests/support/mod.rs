//! Directories, a cgroup and namespaces of one test's own, with a driver.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use kina_guest_api::{Connect, GuestClient, GuestStream};
use kina_machine::conformance::Subject;
use kina_machine::{Driver, MachineSpec, SandboxNetwork, Share, ShareKind, Stream};
use kina_machine_qemu::boot::KernelFiles;
use kina_machine_qemu::{Choice, QemuConfig, QemuDriver};
use kina_model::PodId;
use kina_node::{LocalNode, Node};
use kina_testkit::ground::Ground;
use kina_testkit::ping::Pings;
use kina_testkit::vm::Prerequisites;

/// No step takes longer, a boot without acceleration included.
pub const DEADLINE: Duration = Duration::from_secs(40);

/// What the names of these tests' places begin with.
pub const KIND: &str = "kmq";

pub struct Place {
    pub directory: Ground,
    pub cgroup: String,
    pub node: LocalNode,
    pub config: QemuConfig,
    pub driver: QemuDriver,
    /// Pods with a network namespace.
    pods: Mutex<BTreeSet<PodId>>,
    pings: Pings,
}

impl Place {
    pub async fn new() -> Self {
        let prerequisites = Prerequisites::find().unwrap();
        let directory = Ground::new(KIND);
        let at = |name: &str| directory.path().join(name);
        for name in ["pods", "storage", "images"] {
            fs::create_dir(at(name)).unwrap();
        }
        fs::write(at("images/layer"), "of all pods").unwrap();
        let node = directory.node().clone();
        let config = QemuConfig {
            qemu: prerequisites.qemu,
            virtiofsd: prerequisites.virtiofsd,
            kernel: Some(KernelFiles { image: prerequisites.kernel, modules: prerequisites.modules }),
            accelerator: Choice::Tcg,
            disk_bytes: 1 << 30,
            device_deadline: DEADLINE,
            ..QemuConfig::new(
                prerequisites.guest,
                prerequisites.vsock_device,
                // Kept between tests: making boot files takes seconds.
                prerequisites.cache.with_file_name("machine-qemu-test"),
                at("pods"),
            )
        };
        let driver = QemuDriver::open(Arc::new(node.clone()), config.clone()).await.unwrap();
        let cgroup = directory.cgroup();
        let (pods, pings) = Default::default();
        Self { directory, cgroup, node, config, driver, pods, pings }
    }

    pub fn machine(&self, pod: &PodId) -> PathBuf {
        self.directory.path().join("pods").join(pod.as_str()).join("machine")
    }

    pub fn storage(&self, pod: &PodId) -> PathBuf {
        self.directory.path().join("storage").join(pod.as_str())
    }

    pub fn layer(&self) -> PathBuf {
        self.directory.path().join("images/layer")
    }

    /// A started machine's guest, once it answers.
    pub async fn guest(&self, pod: &PodId) -> GuestClient {
        let connector = Connector { driver: self.driver.clone(), pod: pod.clone() };
        match kina_guest_api::connect(Arc::new(connector), DEADLINE).await {
            Ok(guest) => guest,
            Err(error) => {
                let console = self.driver.console(pod, 100_000).await.unwrap();
                panic!("{error:?}\n{}", String::from_utf8_lossy(&console));
            }
        }
    }

    pub async fn started(&self) -> (PodId, GuestClient) {
        let pod = PodId::random();
        self.driver.create(&self.spec(&pod).await).await.unwrap();
        self.driver.start(&pod).await.unwrap();
        let guest = self.guest(&pod).await;
        (pod, guest)
    }

    /// The number of a process of a running machine.
    pub async fn process(&self, pod: &PodId, role: &str) -> u32 {
        let details = self.driver.inspect(pod).await.unwrap();
        details.processes.iter().find(|process| process.role == role).unwrap().pid
    }

    /// What is left of a pod's machine on the node.
    pub async fn left(&self, pod: &PodId) -> Vec<String> {
        let mut left = Vec::new();
        for directory in [self.machine(pod), self.storage(pod)] {
            let entries = fs::read_dir(directory).unwrap();
            left.extend(entries.map(|entry| entry.unwrap().path().display().to_string()));
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        left.extend(
            mounts
                .lines()
                .filter(|line| line.contains(pod.as_str()) && !line.contains("netns"))
                .map(str::to_owned),
        );
        left.extend(self.node.cgroups(&self.cgroup, "").await.unwrap());
        for entry in fs::read_dir("/proc").unwrap().map(Result::unwrap) {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&*self.machine(pod).to_string_lossy())
                || line.contains(&format!("kina.pod={pod}"))
            {
                left.push(line);
            }
        }
        let namespace = self.node.network_namespace(pod);
        let mut links = Command::new("nsenter");
        let links =
            links.arg(format!("--net={}", namespace.display())).args(["ip", "-o", "link"]).output().unwrap();
        let links = String::from_utf8_lossy(&links.stdout).into_owned();
        left.extend(links.lines().filter(|line| line.contains("tap0")).map(str::to_owned));
        left
    }
}

/// Runs a command that succeeds.
pub fn command(line: &str) {
    let mut words = line.split_whitespace();
    let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success(), "{line}");
}

pub fn kill(pid: u32) {
    command(&format!("kill -9 {pid}"));
}

#[derive(Clone)]
struct Connector {
    driver: QemuDriver,
    pod: PodId,
}

struct Joined(Box<dyn Stream>);

#[async_trait]
impl Connect for Connector {
    async fn connect(&self) -> io::Result<Box<dyn GuestStream>> {
        let stream = self.driver.connect(&self.pod).await.map_err(io::Error::other)?;
        Ok(Box::new(Joined(stream)))
    }
}

impl tokio::io::AsyncRead for Joined {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl tokio::io::AsyncWrite for Joined {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        content: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(context, content)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[async_trait]
impl Subject for Place {
    fn driver(&self) -> Arc<dyn Driver> {
        Arc::new(self.driver.clone())
    }

    fn another(&self) -> Arc<dyn Driver> {
        let node = self.directory.another_node();
        let config = self.config.clone();
        let opened = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(QemuDriver::open(Arc::new(node), config))
        });
        Arc::new(opened.join().unwrap().unwrap())
    }

    async fn spec(&self, pod: &PodId) -> MachineSpec {
        for directory in [self.machine(pod), self.storage(pod)] {
            fs::create_dir_all(directory).unwrap();
        }
        let namespace = self.node.create_network_namespace(pod, None).await.unwrap();
        if self.pods.lock().unwrap().insert(pod.clone()) {
            let inside = |line: &str| command(&format!("nsenter --net={} ip {line}", namespace.display()));
            inside("link add eth0 type veth peer name other");
            inside("addr add 192.0.2.7/24 dev eth0");
            inside("link set eth0 up");
            inside("link set other up");
        }
        MachineSpec {
            pod: pod.clone(),
            directory: self.machine(pod),
            storage_directory: self.storage(pod),
            cgroup: format!("{}/{pod}", self.cgroup),
            network: Some(SandboxNetwork { namespace, interface: Some("eth0".to_owned()) }),
            ports: Vec::new(),
            shareable: Vec::new(),
            memory_bytes: 192 << 20,
            cpus: 1,
            user: None,
        }
    }

    /// A ping, which the guest's HTTP/2 answers; begun with the first one on a
    /// stream.
    async fn probe(&self, stream: &mut dyn Stream) -> io::Result<()> {
        self.pings.ping(stream, DEADLINE).await
    }

    async fn ask_to_end(&self, pod: &PodId, _stream: Box<dyn Stream>) -> io::Result<()> {
        self.guest(pod).await.shutdown(Duration::ZERO).await.map_err(io::Error::other)
    }

    async fn crash(&self, pod: &PodId) {
        kill(self.process(pod, "qemu").await);
    }

    fn share(&self) -> Share {
        Share { source: self.layer(), readonly: true, readonly_below: true, kind: ShareKind::Layer }
    }

    fn deadline(&self) -> Duration {
        DEADLINE
    }
}
