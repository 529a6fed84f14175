//! The driver with a stand-in for Apple's program, and each of Apple's traps.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use kina_machine::conformance::{self, Subject};
use kina_machine::{
    Attachment, Driver, Error, MachineSpec, MachineState, PortProtocol, PublishedPort, Share, ShareKind,
    Stream,
};
use kina_machine_apple::{AppleConfig, AppleDriver};
use kina_model::{ContainerId, PodId};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// No step takes longer.
const DEADLINE: Duration = Duration::from_secs(30);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
const TYPE_PING: u8 = 6;
const ACKNOWLEDGED: u8 = 1;
const PING: &[u8] = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00kinakina";
const GO_AWAY: &[u8] = b"\x00\x00\x08\x07\x00\x00\x00\x00\x00kinakina";

/// Directories of one test's own.
struct Place {
    directory: TempDir,
    config: AppleConfig,
    driver: AppleDriver,
    /// Whether Apple's program is the simulator, and the guest a real one.
    simulated: bool,
    /// Streams on which the preface was sent, by their address.
    begun: Mutex<BTreeSet<usize>>,
}

impl Place {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut AppleConfig)) -> Self {
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
        let driver = AppleDriver::open(config.clone()).await.unwrap();
        Self { directory, config, driver, simulated: false, begun: Mutex::default() }
    }

    /// With the simulator of Apple's program, and the image that machines boot.
    async fn simulated() -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_stand-in-container")).with_file_name("container");
        assert!(program.is_file(), "no {}; `cargo build -p kina-apple-sim` builds it", program.display());
        let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest/kina-pod.tar");
        assert!(image.is_file(), "no {}; `cargo xtask pod-image` makes it", image.display());
        let mut place = Self::with(|config| {
            let root = config.pods_directory.with_file_name("simulated").display().to_string();
            let variables = [("CONTAINER_APP_ROOT", root.as_str()), ("CONTAINER_SIM_BOOT_MS", "50")];
            let start = ["system", "start", "--enable-kernel-install"];
            let started = std::process::Command::new(&program).args(start).envs(variables).output().unwrap();
            assert!(started.status.success(), "{started:?}");
            config.environment = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
            config.program = program;
            config.image = image;
        })
        .await;
        place.simulated = true;
        place
    }

    /// Asks the simulator.
    fn simulate(&self, words: &[&str]) -> std::process::Output {
        let variables = self.config.environment.iter().map(|(name, value)| (name, value));
        std::process::Command::new(&self.config.program).args(words).envs(variables).output().unwrap()
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn machine(&self, pod: &PodId) -> PathBuf {
        self.at("pods").join(pod.as_str()).join("machine")
    }

    fn socket(&self, pod: &PodId) -> PathBuf {
        self.at("s").join(format!("{pod}.sock"))
    }

    fn set(&self, trap: &str, content: &str) {
        fs::write(self.at("apple/traps").join(trap), content).unwrap();
    }

    fn unset(&self, trap: &str) {
        fs::remove_file(self.at("apple/traps").join(trap)).unwrap();
    }

    /// The command lines so far that begin with these words.
    fn calls(&self, words: &str) -> Vec<String> {
        let calls = fs::read_to_string(self.at("apple/calls")).unwrap_or_default();
        calls.lines().filter(|line| line.starts_with(words)).map(str::to_owned).collect()
    }

    async fn wait_calls(&self, words: &str, number: usize) {
        let end = Instant::now() + DEADLINE;
        while self.calls(words).len() < number {
            assert!(Instant::now() < end, "{words}: {:?}", self.calls(""));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The process of a pod's machine.
    fn pid(&self, pod: &PodId) -> u32 {
        let path = self.at("apple/containers").join(format!("kina-{pod}")).join("pid");
        fs::read_to_string(path).unwrap().parse().unwrap()
    }

    fn containers(&self) -> usize {
        fs::read_dir(self.at("apple/containers")).unwrap().count()
    }

    async fn created(&self) -> PodId {
        let pod = PodId::random();
        self.driver.create(&self.spec(&pod).await).await.unwrap();
        pod
    }

    async fn started(&self) -> PodId {
        let pod = self.created().await;
        self.driver.start(&pod).await.unwrap();
        drop(self.answered(&self.driver, &pod).await);
        pod
    }

    /// A stream on which the guest answered.
    async fn answered(&self, driver: &dyn Driver, pod: &PodId) -> Box<dyn Stream> {
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

    fn left(&self, pod: &PodId) -> Vec<PathBuf> {
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
fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z")))
}

fn chain(error: &dyn std::error::Error) -> String {
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
            runtime.block_on(AppleDriver::open(config))
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
        let address = (&raw mut *stream).cast::<()>() as usize;
        let answered = async {
            if self.begun.lock().unwrap().insert(address) {
                stream.write_all(PREFACE).await?;
            }
            stream.write_all(PING).await?;
            loop {
                let mut header = [0; 9];
                stream.read_exact(&mut header).await?;
                let length = usize::from(header[1]) << 8 | usize::from(header[2]);
                stream.read_exact(&mut vec![0; length]).await?;
                if header[3] == TYPE_PING && header[4] == ACKNOWLEDGED {
                    return Ok(());
                }
            }
        };
        let answered =
            tokio::time::timeout(DEADLINE, answered).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()));
        if answered.is_err() {
            // Another stream may have been at this address before.
            self.begun.lock().unwrap().remove(&address);
        }
        answered
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_driver_conforms() {
    let place = Place::new().await;
    conformance::all(&place).await;
    assert_eq!(place.containers(), 0);
}

/// Real guests, in the simulator's machines.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_driver_conforms_with_the_simulator() {
    let place = Place::simulated().await;
    conformance::all(&place).await;
    let left = place.simulate(&["list", "--all", "--quiet"]);
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_driver_conforms_with_the_json_of_old_versions() {
    let place = Place::new().await;
    place.set("old-json", "");
    conformance::life_in_order(&place).await;
    conformance::wait_ends_with_the_machine(&place).await;
    conformance::another_instance_adopts(&place).await;
}

#[tokio::test]
async fn the_image_is_loaded_once_and_older_ones_go() {
    let place = Place::new().await;
    for _ in 0..2 {
        place.started().await;
    }
    assert_eq!(place.calls("image load").len(), 1);
    let images = fs::read_to_string(place.at("apple/images")).unwrap();
    assert_eq!(images, "other:1 sha256:33\nlocalhost/kina-pod:two sha256:22\n");
    // Somebody removed it, while this daemon believed that it was there.
    fs::write(place.at("apple/images"), "").unwrap();
    place.started().await;
    assert_eq!(place.calls("image load").len(), 2);
    // The same name with another content is another image.
    fs::write(place.at("apple/images"), "localhost/kina-pod:two sha256:99\n").unwrap();
    let another = place.another();
    let pod = place.created().await;
    another.start(&pod).await.unwrap();
    assert_eq!(place.calls("image load").len(), 3);
}

#[tokio::test]
async fn a_pod_is_one_container_with_all_that_it_needs() {
    let place = Place::new().await;
    let pod = PodId::random();
    let ports = vec![PublishedPort { address: None, node: 8080, machine: 80, protocol: PortProtocol::Tcp }];
    let spec = MachineSpec { ports, ..place.spec(&pod).await };
    place.driver.create(&spec).await.unwrap();
    place.driver.start(&pod).await.unwrap();
    let [line] = &place.calls("run ")[..] else { panic!("not one boot") };
    for part in [
        &format!("--name kina-{pod} "),
        &format!("--label kina.pod={pod} "),
        "--memory 256M --cpus 1 --cap-add ALL --masked-path NONE --read-only-path NONE",
        "--network default,mtu=1500 --publish 8080:80/tcp ",
        &format!("--volume {}/storage/{pod}/layers:/share/layers:ro ", place.directory.path().display()),
        &format!("--volume {}/data:/share/volumes/0 ", place.directory.path().display()),
        &format!("--publish-socket {}:/kina.sock ", place.socket(&pod).display()),
        "localhost/kina-pod:two entry --pod",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    match place.driver.attach_network(&pod).await.unwrap() {
        Attachment::Machine(network) => {
            assert_eq!(
                (network.name.as_str(), network.addresses),
                ("default", vec![[192, 168, 64, 3].into()])
            );
        }
        other => panic!("{other:?}"),
    }
    place.driver.destroy(&pod).await.unwrap();
    assert_eq!(place.left(&pod), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn volumes_lie_in_what_the_machine_was_booted_with() {
    let place = Place::new().await;
    let pod = place.started().await;
    let kind = ShareKind::Volume(ContainerId::random());
    let share = Share { source: place.at("data/file"), readonly: false, readonly_below: false, kind };
    assert_eq!(place.driver.share(&pod, &share).await.unwrap(), Path::new("/share/volumes/0/file"));
    let elsewhere = Share { source: place.at("pod.tar"), ..share.clone() };
    let error = chain(&place.driver.share(&pod, &elsewhere).await.unwrap_err());
    assert!(error.contains("pod.tar") && error.contains("machine.share_roots"), "{error}");
    let layer = Share { kind: ShareKind::Layer, ..share };
    assert_eq!(place.driver.share(&pod, &layer).await.unwrap(), Path::new("/share/layers/file"));
    assert!(place.at("storage").join(pod.as_str()).join("layers/file").exists());
}

/// An apiserver that was started anew calls every container stopped.
#[tokio::test]
async fn a_guest_that_answers_outranks_the_list() {
    let place = Place::new().await;
    let pod = place.started().await;
    place.set("forgetful", "");
    let another = place.another();
    for driver in [&place.driver as &dyn Driver, &*another] {
        assert_eq!(driver.status(&pod).await.unwrap(), MachineState::Running);
        assert_eq!(driver.list().await.unwrap()[0].state, MachineState::Running);
        drop(place.answered(driver, &pod).await);
    }
    let waiting = tokio::spawn({
        let (another, pod) = (another.clone(), pod.clone());
        async move { another.wait(&pod).await }
    });
    let pid = place.pid(&pod);
    another.stop(&pod, Duration::ZERO).await.unwrap();
    assert!(!lives(pid), "the machine runs on");
    tokio::time::timeout(DEADLINE, waiting).await.unwrap().unwrap().unwrap();
    another.destroy(&pod).await.unwrap();
    assert_eq!(place.containers(), 0);
}

/// One failed dial ends Apple's relay and removes its socket for good.
#[tokio::test]
async fn streams_go_around_a_relay_that_is_gone() {
    let place = Place::new().await;
    let pod = place.started().await;
    fs::remove_file(place.socket(&pod)).unwrap();
    let mut one = place.answered(&place.driver, &pod).await;
    let mut two = place.answered(&place.driver, &pod).await;
    for stream in [&mut one, &mut two] {
        place.probe(&mut **stream).await.unwrap();
    }
    assert!(!place.calls("exec --interactive").is_empty());
    assert_eq!(place.driver.status(&pod).await.unwrap(), MachineState::Running);
    let facts = place.driver.inspect(&pod).await.unwrap().facts;
    assert!(facts.contains(&("streams", "exec".to_owned())), "{facts:?}");
    place.driver.destroy(&pod).await.unwrap();
}

#[tokio::test]
async fn a_service_that_is_down_is_named_and_harms_nobody() {
    let place = Place::new().await;
    let (pod, fresh) = (place.started().await, place.created().await);
    place.set("down", "");
    // What runs is adopted, and reached.
    let another = place.another();
    assert_eq!(another.status(&pod).await.unwrap(), MachineState::Running);
    drop(place.answered(&*another, &pod).await);
    let found = another.list().await.unwrap();
    assert!(found.iter().any(|found| found.pod == pod && found.state == MachineState::Running), "{found:?}");
    let down = |what: &str, result: Result<(), Error>| match result {
        Err(error @ Error::Unavailable { .. }) => {
            let text = chain(&error);
            assert!(text.contains("type `container system start`"), "{what}: {text}");
        }
        other => panic!("{what}: {other:?}"),
    };
    down("start", another.start(&fresh).await);
    down("stop", another.stop(&pod, Duration::ZERO).await);
    down("destroy", another.destroy(&pod).await);
    // Not ended, not forgotten.
    assert_eq!(another.status(&pod).await.unwrap(), MachineState::Running);
    place.unset("down");
    another.start(&fresh).await.unwrap();
    for pod in [&pod, &fresh] {
        another.destroy(pod).await.unwrap();
        assert_eq!(place.left(pod), Vec::<PathBuf>::new());
    }
    assert_eq!(place.containers(), 0);
}

#[tokio::test]
async fn a_service_that_hangs_costs_its_deadline() {
    let place = Place::with(|config| config.call_deadline = Duration::from_millis(500)).await;
    let pod = place.started().await;
    place.set("hang", "");
    let begin = Instant::now();
    // A guest that answers needs no list.
    assert_eq!(place.driver.status(&pod).await.unwrap(), MachineState::Running);
    match place.driver.stop(&pod, Duration::ZERO).await {
        Err(error @ Error::Unavailable { .. }) => {
            assert!(chain(&error).contains("did not end within"), "{}", chain(&error));
        }
        other => panic!("{other:?}"),
    }
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    // Also when it hangs while the daemon starts.
    drop(place.another());
    place.unset("hang");
    place.driver.stop(&pod, Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn what_keeps_a_machine_from_booting_is_said() {
    let place = Place::new().await;
    for (refusal, expected) in [
        ("default kernel not configured for architecture arm64", "container system kernel set --recommended"),
        ("network nowhere not found", "machine.apple.network"),
        ("minimum memory amount allowed is 200 MiB (got 1 bytes)", "minimum memory amount"),
    ] {
        place.set("refuse", refusal);
        let pod = place.created().await;
        match place.driver.start(&pod).await {
            Err(Error::Boot { reason, .. }) => assert!(reason.contains(expected), "{reason}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(place.driver.status(&pod).await.unwrap(), MachineState::Created);
        place.unset("refuse");
        // It may be tried again.
        place.driver.start(&pod).await.unwrap();
        place.driver.destroy(&pod).await.unwrap();
    }
    place.set("dies-at-once", "");
    let pod = place.created().await;
    match place.driver.start(&pod).await {
        Err(Error::Boot { reason, .. }) => assert!(reason.contains("exit status: 3"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(place.containers(), 0);
}

#[tokio::test]
async fn a_socket_that_is_left_does_not_keep_a_machine_from_booting() {
    let place = Place::new().await;
    let pod = place.created().await;
    fs::write(place.socket(&pod), "").unwrap();
    place.driver.start(&pod).await.unwrap();
    drop(place.answered(&place.driver, &pod).await);
}

#[tokio::test]
async fn boots_are_one_at_a_time_and_a_stop_leaves_the_queue() {
    let place = Place::new().await;
    let running = place.started().await;
    let boots = place.calls("run ").len();
    place.set("slow-boot", "");
    let pods = [place.created().await, place.created().await, place.created().await];
    let mut starts = Vec::new();
    for (index, pod) in pods.iter().enumerate() {
        let (driver, pod) = (place.driver.clone(), pod.clone());
        starts.push(tokio::spawn(async move { driver.start(&pod).await }));
        if index == 0 {
            place.wait_calls("run ", boots + 1).await;
        }
        tokio::task::yield_now().await;
    }
    // Queued, not booted: its stop waits for nobody, and needs nothing of Apple.
    let begin = Instant::now();
    place.driver.stop(&pods[1], Duration::ZERO).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    match starts.remove(1).await.unwrap() {
        Err(Error::Boot { reason, .. }) => assert!(reason.contains("stopped before"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(place.calls("run ").len(), boots + 1, "boots are side by side");
    // Others are as quick as ever.
    drop(place.answered(&place.driver, &running).await);
    assert_eq!(place.driver.status(&running).await.unwrap(), MachineState::Running);
    place.driver.stop(&running, Duration::ZERO).await.unwrap();
    // The one that boots now is ended in the middle; the last has its turn.
    place.driver.stop(&pods[0], Duration::ZERO).await.unwrap();
    assert!(starts.remove(0).await.unwrap().is_err());
    place.unset("slow-boot");
    tokio::time::timeout(DEADLINE, starts.remove(0)).await.unwrap().unwrap().unwrap();
    drop(place.answered(&place.driver, &pods[2]).await);
    for pod in pods.iter().chain([&running]) {
        place.driver.destroy(pod).await.unwrap();
    }
    assert_eq!(place.containers(), 0);
}

#[tokio::test]
async fn no_more_machines_than_can_run() {
    let place = Place::with(|config| config.limit = 2).await;
    let (one, two, three) = (place.started().await, place.started().await, place.created().await);
    match place.driver.start(&three).await {
        Err(error @ Error::TooMany { limit: 2, .. }) => {
            assert!(error.to_string().contains("remove a pod first"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    place.driver.stop(&one, Duration::ZERO).await.unwrap();
    place.driver.start(&three).await.unwrap();
    for pod in [one, two, three] {
        place.driver.destroy(&pod).await.unwrap();
    }
}

#[tokio::test]
async fn a_machine_without_a_record_is_found_and_destroyed() {
    let place = Place::new().await;
    let (lost, booting) = (place.started().await, place.started().await);
    fs::remove_file(place.machine(&lost).join("apple.json")).unwrap();
    // The daemon was killed while Apple booted it.
    let record = place.machine(&booting).join("apple.json");
    let mut text: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    text["phase"] = "booting".into();
    fs::write(&record, text.to_string()).unwrap();
    let another = place.another();
    let mut found = another.list().await.unwrap();
    found.retain(|found| found.pod == lost);
    assert_eq!(found.len(), 1);
    assert_eq!(another.status(&booting).await.unwrap(), MachineState::Created);
    let before = place.pid(&booting);
    another.start(&booting).await.unwrap();
    assert_ne!(place.pid(&booting), before, "the half-made one was taken over");
    another.destroy(&lost).await.unwrap();
    another.destroy(&booting).await.unwrap();
    assert_eq!(place.containers(), 0);
    // Other daemons' machines are theirs.
    let stranger = Place::new().await;
    stranger.started().await;
    let mut config = stranger.config.clone();
    config.pods_directory = stranger.at("other-pods");
    let other = AppleDriver::open(config).await.unwrap();
    assert_eq!(other.list().await.unwrap(), []);
}

#[tokio::test]
async fn a_damaged_record_counts_as_ended_and_is_destroyed() {
    let place = Place::new().await;
    let pod = place.started().await;
    fs::write(place.machine(&pod).join("apple.json"), "{").unwrap();
    assert_eq!(place.driver.status(&pod).await.unwrap(), MachineState::Stopped);
    place.driver.stop(&pod, Duration::ZERO).await.unwrap();
    place.driver.destroy(&pod).await.unwrap();
    assert_eq!(place.containers(), 0);
}

#[tokio::test]
async fn ends_have_a_reason_and_last_words() {
    let place = Place::new().await;
    let pod = place.started().await;
    let stream = place.answered(&place.driver, &pod).await;
    place.ask_to_end(&pod, stream).await.unwrap();
    let ended = tokio::time::timeout(DEADLINE, place.driver.wait(&pod)).await.unwrap().unwrap();
    assert_eq!(ended.reason, "its guest has ended");
    assert_eq!(place.driver.wait(&pod).await.unwrap(), ended);
    place.driver.stop(&pod, Duration::ZERO).await.unwrap();
    assert_eq!(place.containers(), 0);
    let words = String::from_utf8(place.driver.console(&pod, 1000).await.unwrap()).unwrap();
    assert!(words.contains("the kernel boots") && words.contains("exit status: 0"), "{words}");
    assert_eq!(place.driver.wait(&pod).await.unwrap(), ended);
}

#[tokio::test]
async fn what_is_missing_is_named_when_the_driver_is_opened() {
    let place = Place::new().await;
    let open = async |change: &dyn Fn(&mut AppleConfig)| {
        let mut config = place.config.clone();
        change(&mut config);
        match AppleDriver::open(config).await {
            Ok(_) => String::new(),
            Err(unavailable) => unavailable.reason,
        }
    };
    let long = PathBuf::from(format!("/{}", "x".repeat(80)));
    for (reason, expected) in [
        (open(&|config| config.program = "/nowhere/container".into()).await, "machine.apple.program"),
        (open(&|config| config.image = "/nowhere/pod.tar".into()).await, "machine.apple.image"),
        (open(&|config| config.kernel = Some("/nowhere/vmlinux".into())).await, "/nowhere/vmlinux"),
        (open(&|config| config.socket_directory = long.clone()).await, "machine.apple.socket_directory"),
    ] {
        assert!(reason.contains(expected), "{expected}: {reason}");
    }
    fs::write(place.at("apple/version"), "0.11.0").unwrap();
    let reason = open(&|_| {}).await;
    assert!(reason.contains("container 0.11.0 is too old") && reason.contains("0.12.0"), "{reason}");
    fs::write(place.at("apple/version"), "1.2.0").unwrap();
    assert_eq!(open(&|_| {}).await, "");
}
