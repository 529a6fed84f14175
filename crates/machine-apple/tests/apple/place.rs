//! What the tests have around the driver.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use kina_machine::conformance::Subject;
use kina_machine::{Driver, MachineSpec, Share, ShareKind, Stream};
use kina_machine_apple::{AppleConfig, AppleDriver, Unavailable};
use kina_model::PodId;
use kina_node::{BareNode, LocalNodeConfig};
use kina_testkit::ping::Pings;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

/// No step takes longer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

const GO_AWAY: &[u8] = b"\x00\x00\x08\x07\x00\x00\x00\x00\x00kinakina";

/// Directories of one test's own.
pub(crate) struct Place {
    pub(crate) directory: TempDir,
    pub(crate) config: AppleConfig,
    pub(crate) driver: AppleDriver,
    /// Whether Apple's program is the simulator, and the guest a real one.
    simulated: bool,
    pings: Pings,
}

impl Place {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut AppleConfig)) -> Self {
        // Short, for the sake of socket paths.
        let directory = tempfile::Builder::new().prefix("kma").tempdir_in("/tmp").unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["pods", "storage", "data", "apple/containers", "apple/traps"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        fs::write(at("data/file"), "of all pods").unwrap();
        archive(&at("pod.tar"), "localhost/kina-pod:two", "sha256:22");
        fs::write(at("apple/images"), "localhost/kina-pod:one sha256:11\nother:1 sha256:33\n").unwrap();
        let mut config = AppleConfig::new(at("pod.tar"), at("pods"), at("s"));
        config.program = env!("CARGO_BIN_EXE_stand-in-container").into();
        config.environment = vec![("STAND_IN".to_owned(), at("apple").display().to_string())];
        change(&mut config);
        let driver = open(config.clone()).await.unwrap();
        Self { directory, config, driver, simulated: false, pings: Pings::default() }
    }

    /// With the simulator of Apple's program, and the image that machines boot.
    pub(crate) async fn simulated() -> Self {
        Self::simulated_with(&[]).await
    }

    /// The same, with some of the simulator's settings.
    pub(crate) async fn simulated_with(settings: &[(&str, &str)]) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_stand-in-container")).with_file_name("container");
        assert!(program.is_file(), "no {}; `cargo build -p kina-apple-sim` builds it", program.display());
        let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest/kina-pod.tar");
        assert!(image.is_file(), "no {}; `cargo xtask pod-image` makes it", image.display());
        let mut place = Self::with(|config| {
            let root = config.pods_directory.with_file_name("simulated").display().to_string();
            let own = [("CONTAINER_APP_ROOT", root.as_str()), ("CONTAINER_SIM_BOOT_MS", "50")];
            let variables = [&own, settings].concat();
            let start = ["system", "start", "--enable-kernel-install"];
            let started = std::process::Command::new(&program)
                .args(start)
                .envs(variables.iter().copied())
                .output()
                .unwrap();
            assert!(started.status.success(), "{started:?}");
            let owned = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            config.environment = owned.collect();
            config.program = program;
            config.image = image;
        })
        .await;
        place.simulated = true;
        place
    }

    /// Asks the simulator.
    pub(crate) fn simulate(&self, words: &[&str]) -> std::process::Output {
        let variables = self.config.environment.iter().map(|(name, value)| (name, value));
        std::process::Command::new(&self.config.program).args(words).envs(variables).output().unwrap()
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn machine(&self, pod: &PodId) -> PathBuf {
        self.at("pods").join(pod.as_str()).join("machine")
    }

    pub(crate) fn socket(&self, pod: &PodId) -> PathBuf {
        self.at("s").join(format!("{pod}.sock"))
    }

    pub(crate) fn set(&self, trap: &str, content: &str) {
        fs::write(self.at("apple/traps").join(trap), content).unwrap();
    }

    pub(crate) fn unset(&self, trap: &str) {
        fs::remove_file(self.at("apple/traps").join(trap)).unwrap();
    }

    /// The command lines so far that begin with these words.
    pub(crate) fn calls(&self, words: &str) -> Vec<String> {
        let calls = fs::read_to_string(self.at("apple/calls")).unwrap_or_default();
        calls.lines().filter(|line| line.starts_with(words)).map(str::to_owned).collect()
    }

    pub(crate) async fn wait_calls(&self, words: &str, number: usize) {
        let end = Instant::now() + DEADLINE;
        while self.calls(words).len() < number {
            assert!(Instant::now() < end, "{words}: {:?}", self.calls(""));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn wait_trap(&self, trap: &str) {
        let end = Instant::now() + DEADLINE;
        while !self.at("apple/traps").join(trap).exists() {
            assert!(Instant::now() < end, "{trap}: {:?}", self.calls(""));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The process of a pod's machine.
    pub(crate) fn pid(&self, pod: &PodId) -> u32 {
        let path = self.at("apple/containers").join(format!("kina-{pod}")).join("pid");
        fs::read_to_string(path).unwrap().parse().unwrap()
    }

    pub(crate) fn containers(&self) -> usize {
        fs::read_dir(self.at("apple/containers")).unwrap().count()
    }

    pub(crate) async fn created(&self) -> PodId {
        let pod = PodId::random();
        self.driver.create(&self.spec(&pod).await).await.unwrap();
        pod
    }

    pub(crate) async fn started(&self) -> PodId {
        let pod = self.created().await;
        self.driver.start(&pod).await.unwrap();
        drop(self.answered(&self.driver, &pod).await);
        pod
    }

    /// A stream on which the guest answered.
    pub(crate) async fn answered(&self, driver: &dyn Driver, pod: &PodId) -> Box<dyn Stream> {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Ok(mut stream) = driver.connect(pod).await
                && self.probe(&mut *stream).await.is_ok()
            {
                return stream;
            }
            assert!(Instant::now() < end, "no answer");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) fn left(&self, pod: &PodId) -> Vec<PathBuf> {
        let mut left: Vec<PathBuf> = [self.machine(pod), self.at("storage").join(pod.as_str())]
            .into_iter()
            .flat_map(|directory| fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()))
            .collect();
        left.extend(Some(self.socket(pod)).filter(|path| path.exists()));
        left
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.simulated {
            self.simulate(&["simulator", "sweep"]);
        }
        for entry in fs::read_dir(self.at("apple/containers")).unwrap().flatten() {
            if let Ok(pid) = fs::read_to_string(entry.path().join("pid")) {
                let _gone = std::process::Command::new("kill").args(["-9", &pid]).status();
            }
        }
    }
}

/// The driver, with the files of this machine.
pub(crate) async fn open(config: AppleConfig) -> Result<AppleDriver, Unavailable> {
    let node = BareNode::new(LocalNodeConfig::new(config.pods_directory.clone()));
    AppleDriver::open(Arc::new(node), config).await
}

/// An archive with an index that names one image.
fn archive(path: &Path, name: &str, digest: &str) {
    let index = serde_json::json!({
        "manifests": [{ "digest": digest, "annotations": { "io.containerd.image.name": name } }],
    })
    .to_string();
    let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_size(index.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "index.json", index.as_bytes()).unwrap();
    tar.finish().unwrap();
}

/// Whether a process is there and is no zombie.
pub(crate) fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z")))
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

#[async_trait]
impl Subject for Place {
    fn driver(&self) -> Arc<dyn Driver> {
        Arc::new(self.driver.clone())
    }

    fn another(&self) -> Arc<dyn Driver> {
        let config = self.config.clone();
        let opened = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(open(config))
        });
        Arc::new(opened.join().unwrap().unwrap())
    }

    async fn spec(&self, pod: &PodId) -> MachineSpec {
        let storage = self.at("storage").join(pod.as_str());
        for directory in [&self.machine(pod), &storage] {
            fs::create_dir_all(directory).unwrap();
        }
        MachineSpec {
            pod: pod.clone(),
            directory: self.machine(pod),
            storage_directory: storage,
            cgroup: String::new(),
            network: None,
            ports: Vec::new(),
            shareable: vec![self.at("data")],
            memory_bytes: 256 << 20,
            cpus: 1,
            user: None,
        }
    }

    async fn probe(&self, stream: &mut dyn Stream) -> io::Result<()> {
        self.pings.ping(stream, DEADLINE).await
    }

    async fn ask_to_end(&self, pod: &PodId, mut stream: Box<dyn Stream>) -> io::Result<()> {
        if self.simulated {
            let asked = self.simulate(&["kill", "--signal", "TERM", &format!("kina-{pod}")]);
            assert!(asked.status.success(), "{asked:?}");
            return Ok(());
        }
        stream.write_all(GO_AWAY).await
    }

    async fn crash(&self, pod: &PodId) {
        if self.simulated {
            let killed = self.simulate(&["kill", &format!("kina-{pod}")]);
            assert!(killed.status.success(), "{killed:?}");
            return;
        }
        let killed = std::process::Command::new("kill").args(["-9", &self.pid(pod).to_string()]).status();
        assert!(killed.unwrap().success());
        // Apple removes the socket of a machine that is no more.
        fs::remove_file(self.socket(pod)).unwrap();
    }

    fn share(&self) -> Share {
        Share { source: self.at("data/file"), readonly: true, readonly_below: true, kind: ShareKind::Layer }
    }

    fn deadline(&self) -> Duration {
        DEADLINE
    }
}
