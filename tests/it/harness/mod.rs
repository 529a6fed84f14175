//! A daemon of a test's own.

mod cri;
pub(crate) mod machine;
mod node_network;
mod place;

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use kina::admin::CHUNK_LIMIT;
use kina::admin::v1::{ImportImageRequest, ImportStart, InfoRequest, import_image_request::Part};
use kina::client::Client;
use kina::cri::v1;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

pub(crate) use cri::{Cri, IMAGE, labels, namespaces, output, script, shell, with_security};
pub(crate) use machine::handler;
pub(crate) use place::{BRIDGE, Place, busybox};

/// How long anything may take that must come to pass. The machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(10);

/// The guest: `KINA_GUEST`, or the static one that `cargo xtask guest` builds,
/// or the one of the last debug build.
pub(crate) fn guest() -> PathBuf {
    if let Some(path) = std::env::var_os("KINA_GUEST") {
        return path.into();
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    let built = target.join(format!("guest/{}-unknown-linux-gnu/guest/kina-guest", std::env::consts::ARCH));
    let found = [built, target.join("debug/kina-guest")].into_iter().find(|path| path.is_file());
    found.expect("no kina-guest; `cargo xtask guest` builds it")
}

/// Waits until a condition holds.
pub(crate) async fn wait_until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "{what}: not in {PATIENCE:?}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// How a daemon is started.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// Where it is to die: a value of `KINA_FAILPOINT`.
    pub(crate) failpoint: Option<String>,
    /// Another guest program.
    pub(crate) guest: Option<PathBuf>,
    /// The plugins of the pods' network: the daemon has a node's network of its
    /// own then, which only [`Daemon::with`] makes. Without, pods have loopback.
    pub(crate) plugins: Option<serde_json::Value>,
    /// The daemon's root is a file system of its own of that many MiB, which only
    /// [`Daemon::with`] makes.
    pub(crate) root_mib: Option<u32>,
    /// Where traces go.
    pub(crate) tracing: kina::config::Tracing,
}

/// A `kina serve`, with all that it and its pods leave on the machine, which
/// goes when this is dropped.
pub(crate) struct Daemon {
    // Before the place: what it leaves is removed when it has ended.
    child: Process,
    client: Option<Client>,
    pub(crate) place: Place,
}

/// A process that does not outlive its owner.
struct Process(Option<Child>);

impl Process {
    fn end(&mut self) {
        if let Some(mut child) = self.0.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

impl Daemon {
    /// A daemon on empty directories, with the image [`IMAGE`].
    pub(crate) async fn start() -> Self {
        Self::with(Options::default()).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        let mut place = Place::new();
        if let Some(plugins) = &options.plugins {
            place.add_node_network();
            place.write_network("1.0.0", plugins);
        }
        if let Some(mib) = options.root_mib {
            place.limit_root(mib);
        }
        let mut daemon = Self { child: Process(None), client: None, place };
        daemon.start_again(options).await;
        daemon.import(busybox()).await;
        daemon
    }

    /// Starts the daemon on the directories of the one before.
    pub(crate) async fn start_again(&mut self, options: Options) {
        assert!(self.child.0.is_none(), "the daemon runs");
        let child = self.command(&options).spawn().unwrap();
        self.child = Process(Some(child));
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.0.as_mut().unwrap().try_wait().unwrap() {
                panic!("the daemon does not start: {status}\n{}", self.place.daemon_log());
            }
            if let Ok(mut client) = Client::connect(self.place.socket()).await
                && client.admin.info(InfoRequest {}).await.is_ok()
            {
                self.client = Some(client);
                return;
            }
            assert!(Instant::now() < deadline, "the daemon does not answer\n{}", self.place.daemon_log());
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The command of a daemon on these directories.
    pub(crate) fn command(&self, options: &Options) -> Command {
        let program = env!("CARGO_BIN_EXE_kina");
        let mut command = match &self.place.node_network {
            Some(network) => network.command(program),
            None => Command::new(program),
        };
        for name in ["NOTIFY_SOCKET", "KINA_SOCKET", "KINA_GUEST", "KINA_REGISTRY_CREDENTIALS"] {
            command.env_remove(name);
        }
        if let Some(failpoint) = &options.failpoint {
            command.env("KINA_FAILPOINT", failpoint);
        }
        let config = kina::config::Config { tracing: options.tracing.clone(), ..self.place.config().clone() };
        let file = self.place.path("config.toml");
        std::fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
        command.arg("serve").arg("--config").arg(file);
        command.arg("--root").arg(&config.root).arg("--run").arg(&config.run);
        command.args(["--cgroup-parent", &config.cgroup_parent, "--log-level", "debug,h2=info,hyper=info"]);
        command.arg("--guest").arg(options.guest.clone().unwrap_or_else(guest));
        let log = File::options().create(true).append(true).open(self.place.path("daemon.log")).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command
    }

    /// Brings an image archive in.
    pub(crate) async fn import(&self, archive: &[u8]) {
        let start = Part::Start(ImportStart::default());
        let chunks = archive.chunks(CHUNK_LIMIT).map(|chunk| Part::Chunk(chunk.to_vec()));
        let parts: Vec<_> = std::iter::once(start)
            .chain(chunks)
            .map(|part| ImportImageRequest { part: Some(part) })
            .collect();
        let mut admin = self.client.as_ref().unwrap().admin.clone();
        admin.import_image(tokio_stream::iter(parts)).await.unwrap();
    }

    /// What the daemon that runs now tells Prometheus.
    pub(crate) async fn metrics(&self) -> String {
        // It takes any port, and its log says which.
        let log = std::fs::read_to_string(self.place.path("daemon.log")).unwrap();
        let line = log.lines().rev().find(|line| line.contains("metrics are served")).unwrap();
        let address = line.split("address=").nth(1).unwrap().split_whitespace().next().unwrap();
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: kina\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        body.to_owned()
    }

    /// One value of it; 0 if it is not there.
    pub(crate) async fn metric(&self, sample: &str) -> f64 {
        let text = self.metrics().await;
        let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Calls to the daemon that runs now.
    pub(crate) fn cri(&self) -> Cri {
        Cri::new(self.client.clone().expect("the daemon runs"), &self.place)
    }

    /// The daemon's process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.0.as_ref().expect("the daemon runs").id()
    }

    /// `kill -9`.
    pub(crate) async fn kill9(&mut self) {
        kill(self.pid(), Signal::KILL);
        self.wait_killed().await;
    }

    /// Waits until the daemon has died of SIGKILL, as at a failpoint.
    pub(crate) async fn wait_killed(&mut self) {
        let status = self.wait().await;
        assert_eq!(status.signal(), Some(9), "{status}\n{}", self.place.daemon_log());
    }

    /// Whether a daemon that was to die has died.
    pub(crate) fn has_died(&mut self) -> bool {
        self.child.0.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some())
    }

    /// SIGTERM.
    pub(crate) async fn stop(&mut self) {
        // No connection that the daemon would wait for.
        self.client = None;
        kill(self.pid(), Signal::TERM);
        let status = self.wait().await;
        assert!(status.success(), "{status}\n{}", self.place.daemon_log());
    }

    async fn wait(&mut self) -> ExitStatus {
        self.client = None;
        let child = self.child.0.as_mut().expect("the daemon runs");
        let mut status = None;
        wait_until("the daemon's end", async || {
            status = child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        self.child.0 = None;
        status.unwrap()
    }

    /// `kill -9` and a new daemon.
    pub(crate) async fn restart(&mut self) {
        self.kill9().await;
        self.start_again(Options::default()).await;
    }

    /// Removes all pods; then nothing may be left: while the daemon runs, and
    /// after it has ended.
    pub(crate) async fn leave_nothing(&mut self) {
        let cri = self.cri();
        for pod in cri.pods(None).await {
            cri.stop_pod(&pod.id).await.unwrap();
            cri.remove_pod(&pod.id).await.unwrap();
        }
        assert_eq!(cri.pods(None).await, []);
        assert_eq!(cri.containers(None).await, []);
        self.place.wait_clean(Some(self.pid())).await;
        drop(cri);
        self.stop().await;
        self.place.wait_clean(None).await;
        self.place.check_directories();
        self.place.check_network();
    }

    /// Waits until the pods' network is as it should be.
    pub(crate) async fn wait_network(&self, ready: bool) -> v1::RuntimeCondition {
        let mut last = None;
        wait_until("the pods' network", async || {
            let request = v1::StatusRequest { verbose: false };
            let status =
                self.cri().client.runtime.status(request).await.unwrap().into_inner().status.unwrap();
            let network = status.conditions.into_iter().find(|one| one.r#type == "NetworkReady").unwrap();
            let found = network.status == ready;
            last = Some(network);
            found
        })
        .await;
        last.unwrap()
    }
}

/// Signals a process that is or was there.
pub(crate) fn kill(pid: u32, signal: Signal) {
    match kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("signal {signal:?} to {pid}: {error}"),
    }
}

/// Whether a process is there and is no zombie.
pub(crate) fn lives(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z")))
}

/// Open descriptors of a process.
pub(crate) fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// A field of `/proc/<pid>/status` in KiB.
pub(crate) fn memory_kib(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

/// A container's end as its status says it.
pub(crate) fn end(status: &v1::ContainerStatus) -> (i32, &str) {
    assert_eq!(status.state(), v1::ContainerState::ContainerExited, "{status:?}");
    (status.exit_code, &status.reason)
}
