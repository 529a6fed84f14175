//! The host driver on the local node, with a stand-in for the guest.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use kina_machine::conformance::{self, Subject};
use kina_machine::{Driver, Error, MachineSpec, MachineState, SandboxNetwork, Share, ShareKind, Stream};
use kina_machine_host::{HostConfig, HostDriver};
use kina_model::PodId;
use kina_node::{GuestProgram, LocalNode, Node};
use kina_testkit::ground::{self, Ground};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const KILL: Duration = Duration::from_secs(10);

/// Directories and a cgroup of one test's own.
struct Place {
    directory: Ground,
    cgroup: String,
    node: LocalNode,
    driver: HostDriver,
}

/// What the names of these tests' places begin with.
const KIND: &str = "kmh";

impl Place {
    fn new() -> Self {
        let directory = Ground::new(KIND);
        let node = directory.node().clone();
        let driver = driver(&node, directory.path());
        Self { cgroup: directory.cgroup(), directory, node, driver }
    }

    fn machine(&self, pod: &PodId) -> PathBuf {
        self.directory.path().join("pods").join(pod.as_str()).join("machine")
    }

    fn pod_spec(&self, pod: &PodId) -> MachineSpec {
        let directory = self.machine(pod);
        fs::create_dir_all(&directory).unwrap();
        MachineSpec {
            pod: pod.clone(),
            storage_directory: directory.clone(),
            directory,
            cgroup: format!("{}/{pod}", self.cgroup),
            network: Some(SandboxNetwork { namespace: PathBuf::from("/proc/self/ns/net"), interface: None }),
            ports: Vec::new(),
            shareable: Vec::new(),
            memory_bytes: 0,
            cpus: 0,
            user: None,
        }
    }

    async fn guest_processes(&self, pod: &PodId) -> Vec<u32> {
        let cgroup = format!("{}/{pod}/guest", self.cgroup);
        let found = self.node.cgroup_processes(&cgroup).await.unwrap();
        found.into_iter().map(|process| process.pid).collect()
    }

    async fn answered(&self, pod: &PodId) -> Box<dyn Stream> {
        let begin = Instant::now();
        loop {
            match self.driver.connect(pod).await {
                Ok(stream) => return stream,
                Err(error) => assert!(begin.elapsed() < KILL, "{error:?}"),
            }
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
    }
}

fn driver(node: &LocalNode, directory: &Path) -> HostDriver {
    let config = HostConfig::new(PathBuf::from(env!("CARGO_BIN_EXE_stand-in-guest")), directory.join("pods"));
    HostDriver::new(Arc::new(node.clone()), config)
}

#[async_trait]
impl Subject for Place {
    fn driver(&self) -> Arc<dyn Driver> {
        Arc::new(self.driver.clone())
    }

    fn another(&self) -> Arc<dyn Driver> {
        Arc::new(driver(&self.directory.another_node(), self.directory.path()))
    }

    async fn spec(&self, pod: &PodId) -> MachineSpec {
        self.pod_spec(pod)
    }

    async fn probe(&self, stream: &mut dyn Stream) -> io::Result<()> {
        stream.write_all(b"x").await?;
        let answer = stream.read_u8().await?;
        if answer == b'x' { Ok(()) } else { Err(io::Error::from(io::ErrorKind::InvalidData)) }
    }

    async fn ask_to_end(&self, _pod: &PodId, mut stream: Box<dyn Stream>) -> io::Result<()> {
        stream.write_all(&[4]).await
    }

    async fn crash(&self, pod: &PodId) {
        for pid in self.guest_processes(pod).await {
            let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status();
            assert!(killed.unwrap().success());
        }
    }

    fn share(&self) -> Share {
        Share {
            source: self.directory.path().to_owned(),
            readonly: false,
            readonly_below: false,
            kind: ShareKind::State,
        }
    }

    fn deadline(&self) -> Duration {
        KILL
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_host_driver_conforms() {
    conformance::all(&Place::new()).await;
}

#[tokio::test]
async fn a_guest_that_was_started_and_not_recorded_is_found() {
    let place = Place::new();
    let pod = PodId::random();
    let spec = place.pod_spec(&pod);
    place.driver.create(&spec).await.unwrap();
    // What a daemon leaves that is killed right after the guest was executed.
    let guest = place
        .node
        .spawn_guest(&GuestProgram {
            pod: pod.clone(),
            program: PathBuf::from(env!("CARGO_BIN_EXE_stand-in-guest")),
            socket: spec.directory.join("guest.sock"),
            log: spec.directory.join("guest.log"),
            cgroup: spec.cgroup.clone(),
        })
        .await
        .unwrap();
    let adopting = place.another();
    assert_eq!(adopting.list().await.unwrap()[0].state, MachineState::Running);
    adopting.start(&pod).await.unwrap();
    assert_eq!(place.guest_processes(&pod).await, [guest.pid], "a second guest was started");
    let record = fs::read_to_string(spec.directory.join("machine.json")).unwrap();
    assert!(record.contains(&format!("\"pid\":{}", guest.pid)), "{record}");
    adopting.stop(&pod, Duration::ZERO).await.unwrap();
    assert!(!place.node.process_lives(guest).await.unwrap());
    adopting.destroy(&pod).await.unwrap();
}

#[tokio::test]
async fn stop_takes_what_the_guest_started_and_destroy_leaves_only_the_directory() {
    let place = Place::new();
    let pod = PodId::random();
    let spec = place.pod_spec(&pod);
    place.driver.create(&spec).await.unwrap();
    place.driver.start(&pod).await.unwrap();
    let mut stream = place.answered(&pod).await;
    stream.write_all(&[5]).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), 5);
    // The guest dies alone; its child is still there.
    let guest = place.guest_processes(&pod).await;
    assert!(guest.len() >= 2, "{guest:?}");
    stream.write_all(&[4]).await.unwrap();
    place.driver.wait(&pod).await.unwrap();
    assert_eq!(place.driver.status(&pod).await.unwrap(), MachineState::Stopped);
    assert!(!place.guest_processes(&pod).await.is_empty());
    place.driver.stop(&pod, Duration::ZERO).await.unwrap();
    assert!(place.guest_processes(&pod).await.is_empty());
    place.driver.destroy(&pod).await.unwrap();
    assert_eq!(fs::read_dir(&spec.directory).unwrap().count(), 0);
    let groups = place.node.cgroups(&place.cgroup, "").await.unwrap();
    assert!(groups.is_empty(), "{groups:?}");
}

#[tokio::test]
async fn the_guest_is_a_daemon_of_its_own() {
    let place = Place::new();
    let pod = PodId::random();
    let spec = place.pod_spec(&pod);
    place.driver.create(&spec).await.unwrap();
    place.driver.start(&pod).await.unwrap();
    let _stream = place.answered(&pod).await;
    let pid = place.guest_processes(&pod).await[0];
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
    assert_eq!((fields[2], fields[3]), (&*pid.to_string(), &*pid.to_string()), "group, session");
    for descriptor in 0..3 {
        let target = fs::read_link(format!("/proc/{pid}/fd/{descriptor}")).unwrap();
        assert_eq!(target, Path::new("/dev/null"));
    }
    // Its listener, its log (closed again) and the stream; nothing inherited.
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let target = fs::read_link(entry.unwrap().path()).unwrap_or_default();
        let target = target.to_string_lossy();
        assert!(target == "/dev/null" || target.starts_with("socket:"), "inherited {target}");
    }
    assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let expected = format!(":{}/{pod}/guest", place.cgroup);
    assert!(groups.lines().all(|line| line.ends_with(&expected)), "{groups}");
    let log = fs::read_to_string(spec.directory.join("guest.log")).unwrap();
    assert_eq!(log, format!("{pod} {}\n", spec.cgroup));
    place.driver.destroy(&pod).await.unwrap();
}

#[tokio::test]
async fn what_cannot_work_is_refused_by_name() {
    let place = Place::new();
    let pod = PodId::random();
    let spec = place.pod_spec(&pod);

    let elsewhere = MachineSpec { directory: PathBuf::from("/tmp"), ..spec.clone() };
    let error = place.driver.create(&elsewhere).await.unwrap_err();
    let Error::Node { source, .. } = &error else { panic!("{error:?}") };
    assert!(source.to_string().contains("machine directory /tmp is not"), "{source}");

    let deep = place.directory.path().join("x".repeat(60));
    let config = HostConfig::new(PathBuf::from("/bin/false"), deep.clone());
    let driver = HostDriver::new(Arc::new(place.node.clone()), config);
    let long = MachineSpec { directory: driver.machine_directory(&pod), ..spec.clone() };
    let error = driver.create(&long).await.unwrap_err();
    let Error::Node { source, .. } = &error else { panic!("{error:?}") };
    assert!(source.to_string().contains("at most 107"), "{source}");

    let missing = PathBuf::from("/nonexistent/kina-guest");
    let config = HostConfig::new(missing.clone(), place.directory.path().join("pods"));
    let driver = HostDriver::new(Arc::new(place.node.clone()), config);
    driver.create(&spec).await.unwrap();
    match driver.start(&pod).await.unwrap_err() {
        Error::Guest { path, source } => {
            assert_eq!(path, missing);
            assert_eq!(source.kind(), io::ErrorKind::NotFound);
        }
        error => panic!("{error:?}"),
    }
    assert_eq!(driver.status(&pod).await.unwrap(), MachineState::Created);
    // A driver with the right program can still start it.
    place.driver.start(&pod).await.unwrap();
    place.driver.destroy(&pod).await.unwrap();
}

#[tokio::test]
async fn another_boot_means_stopped() {
    let place = Place::new();
    let pod = PodId::random();
    let spec = place.pod_spec(&pod);
    place.driver.create(&spec).await.unwrap();
    place.driver.start(&pod).await.unwrap();
    let file = spec.directory.join("machine.json");
    let record = fs::read_to_string(&file).unwrap();
    let boot = place.node.boot_id().await.unwrap();
    fs::write(&file, record.replace(&boot, "another")).unwrap();
    assert_eq!(place.driver.status(&pod).await.unwrap(), MachineState::Stopped);
    place.driver.destroy(&pod).await.unwrap();
    assert!(place.driver.list().await.unwrap().is_empty());
}

/// Not a test of correctness: prints what the steps cost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_are_quick() {
    const ROUNDS: usize = 40;
    let place = Place::new();
    let mut times: Vec<[Duration; 4]> = Vec::new();
    for _ in 0..ROUNDS {
        let pod = PodId::random();
        let spec = place.pod_spec(&pod);
        let begin = Instant::now();
        place.driver.create(&spec).await.unwrap();
        let created = begin.elapsed();
        place.driver.start(&pod).await.unwrap();
        let started = begin.elapsed();
        drop(place.answered(&pod).await);
        let connected = begin.elapsed();
        let begin = Instant::now();
        place.driver.destroy(&pod).await.unwrap();
        times.push([created, started - created, connected - started, begin.elapsed()]);
    }
    let median = |step: usize| {
        let mut of_step: Vec<Duration> = times.iter().map(|time| time[step]).collect();
        of_step.sort_unstable();
        of_step[ROUNDS / 2]
    };
    let [create, start, connect, destroy] = [0, 1, 2, 3].map(median);
    println!(
        "medians of {ROUNDS}: create {create:?}, start {start:?}, until connected {connect:?}, destroy {destroy:?}"
    );
    // Ten times the goal: fails on a wait that should not be there.
    assert!(create + start + connect < Duration::from_millis(80));
}

#[tokio::test]
async fn a_damaged_record_hides_nothing_and_its_machine_can_be_removed() {
    let place = Place::new();
    let (pod, other) = (PodId::random(), PodId::random());
    for pod in [&pod, &other] {
        place.driver.create(&place.pod_spec(pod)).await.unwrap();
        place.driver.start(pod).await.unwrap();
    }
    let guest = place.guest_processes(&pod).await;
    assert!(!guest.is_empty());
    for damage in [b"{\"cgr".to_vec(), vec![b' '; 100 << 10]] {
        fs::write(place.machine(&pod).join("machine.json"), damage).unwrap();
        let mut found = place.another().list().await.unwrap();
        found.sort_by_key(|found| found.state == MachineState::Running);
        let found: Vec<_> = found.into_iter().map(|found| (found.pod, found.state)).collect();
        assert_eq!(found, [(pod.clone(), MachineState::Stopped), (other.clone(), MachineState::Running)]);
    }
    // What the record named is found without it.
    place.driver.wait(&pod).await.unwrap();
    place.driver.stop(&pod, Duration::ZERO).await.unwrap();
    assert!(place.guest_processes(&pod).await.is_empty());
    assert!(!place.guest_processes(&other).await.is_empty());
    place.driver.destroy(&pod).await.unwrap();
    assert_eq!(fs::read_dir(place.machine(&pod)).unwrap().count(), 0);
    place.driver.destroy(&other).await.unwrap();
}

#[test]
fn nothing_stays_of_a_killed_test() {
    ground::check_sweep(KIND, "nothing_stays_of_a_killed_test", || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let place = Place::new();
        runtime.block_on(async {
            let pod = PodId::random();
            place.driver.create(&place.pod_spec(&pod)).await.unwrap();
            place.node.create_network_namespace(&pod, None).await.unwrap();
            place.driver.start(&pod).await.unwrap();
        });
        let directory = place.directory.path().to_owned();
        ((runtime, place), directory)
    });
}
