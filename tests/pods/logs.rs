//! Logs that the daemon writes, because the guest of a machine may not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kina::pod::logs::LogRecord;
use kina::runtime::Runtime;
use kina_guest_api::v1;
use kina_model::{ContainerId, ContainerState, PodId};
use kina_store::Store;

use crate::support::{World, container_spec, eventually, kill, pod_spec, state_of};

const PATIENCE: Duration = Duration::from_secs(10);

/// A pod with one container, whose log the daemon writes.
struct Logged {
    world: World,
    pod: PodId,
    container: ContainerId,
    /// Lines printed so far.
    printed: usize,
}

impl Logged {
    async fn start() -> (Self, Runtime) {
        let world = World::with_log_streams();
        let daemon = world.daemon().await;
        let (pod, container) = make(&world, &daemon).await;
        daemon.start_container(container.as_str()).await.unwrap();
        (Self { world, pod, container, printed: 0 }, daemon)
    }

    fn log(&self) -> PathBuf {
        log_path(&self.world)
    }

    async fn print(&mut self, lines: usize) {
        let records: String = (self.printed..self.printed + lines).map(record).collect();
        self.printed += lines;
        let print = self.world.guests.print(&self.pod, self.container.as_str(), records.as_bytes());
        tokio::time::timeout(PATIENCE, print).await.expect("somebody takes it");
    }

    /// Waits until a file has all lines from one on.
    async fn written(&self, path: &Path, from: usize) {
        let expected: String = (from..self.printed).map(record).collect();
        wait_for(path, |text| text == expected).await;
    }

    fn exit(&self) {
        self.world.guests.exit(&self.pod, self.container.as_str(), 0, false);
    }
}

fn log_path(world: &World) -> PathBuf {
    world.directory.path().join("logs/app/0.log")
}

async fn make(world: &World, daemon: &Runtime) -> (PodId, ContainerId) {
    let mut spec = pod_spec("p");
    spec.log_directory = Some(world.directory.path().join("logs"));
    let pod = daemon.run_pod(spec).await.unwrap();
    let mut spec = container_spec("c");
    spec.log_path = "app/0.log".into();
    let container = daemon.create_container(pod.as_str(), spec).await.unwrap();
    (pod, container)
}

fn record(number: usize) -> String {
    format!("2026-11-24T12:00:00.000000001Z stdout F line {number}\n")
}

async fn wait_for(path: &Path, wanted: impl Fn(&str) -> bool) {
    let waiting = async {
        while !std::fs::read_to_string(path).is_ok_and(|text| wanted(&text)) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        panic!("{}: {} lines", path.display(), text.lines().count())
    });
}

#[tokio::test]
async fn the_end_is_told_when_the_log_is_complete() {
    let (mut logged, daemon) = Logged::start().await;
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(logged.log()).unwrap().permissions());
    assert_eq!(mode & 0o137, 0, "no more than 0640: {mode:o}");
    logged.print(5_000).await;
    logged.exit();
    let container = logged.container.clone();
    eventually(&daemon, logged.pod.as_str(), "the exit", |view| {
        view.containers[&container].state.exit().is_some()
    })
    .await;
    let expected: String = (0..logged.printed).map(record).collect();
    assert_eq!(std::fs::read_to_string(logged.log()).unwrap(), expected);
    daemon.remove_pod(logged.pod.as_str()).await.unwrap();
    logged.world.assert_empty().await;
    kill(daemon).await;
    assert_no_cursor(&logged.world);
}

fn assert_no_cursor(world: &World) {
    let store = Store::open(world.directory.path().join("root/records.redb")).unwrap();
    assert_eq!(store.table::<LogRecord>().list().unwrap(), []);
}

#[tokio::test]
async fn a_rotated_log_goes_on_in_a_new_file() {
    let (mut logged, daemon) = Logged::start().await;
    logged.print(10).await;
    logged.written(&logged.log(), 0).await;
    let rotated = logged.log().with_extension("log.1");
    std::fs::rename(logged.log(), &rotated).unwrap();
    logged.print(10).await;
    // Until the kubelet says so, the renamed file goes on.
    logged.written(&rotated, 0).await;
    daemon.reopen_log(logged.container.as_str()).await.unwrap();
    assert_eq!(std::fs::read_to_string(logged.log()).unwrap(), "");
    logged.print(10).await;
    logged.written(&logged.log(), 20).await;
    // A container that cannot get its new file keeps the old one.
    std::fs::rename(logged.log(), logged.log().with_extension("log.2")).unwrap();
    std::fs::create_dir(logged.log()).unwrap();
    daemon.reopen_log(logged.container.as_str()).await.unwrap_err();
    logged.print(10).await;
    logged.written(&logged.log().with_extension("log.2"), 20).await;
    logged.exit();
    let container = logged.container.clone();
    eventually(&daemon, logged.pod.as_str(), "the exit", |view| {
        view.containers[&container].state.exit().is_some()
    })
    .await;
    daemon.reopen_log(logged.container.as_str()).await.unwrap_err();
}

/// What is printed while no daemon lives is written by the next, across a
/// rotation; and so is the rest of one that has ended meanwhile.
#[tokio::test]
async fn the_next_daemon_goes_on() {
    let (mut logged, mut daemon) = Logged::start().await;
    let mut files = Vec::new();
    for number in 1..=3 {
        logged.print(500).await;
        wait_for(&logged.log(), |text| !text.is_empty()).await;
        kill(daemon).await;
        logged.print(500).await;
        let rotated = logged.log().with_extension(format!("log.{number}"));
        std::fs::rename(logged.log(), &rotated).unwrap();
        files.push(rotated);
        daemon = logged.world.daemon().await;
        daemon.reopen_log(logged.container.as_str()).await.unwrap();
        logged.print(100).await;
    }
    wait_for(&logged.log(), |text| !text.is_empty()).await;
    kill(daemon).await;
    logged.print(300).await;
    logged.exit();
    let daemon = logged.world.daemon().await;
    let container = logged.container.clone();
    eventually(&daemon, logged.pod.as_str(), "the exit", |view| {
        view.containers[&container].state.exit().is_some()
    })
    .await;
    files.push(logged.log());
    let text: String = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let expected: String = (0..logged.printed).map(record).collect();
    assert!(text == expected, "{} lines of {}", text.lines().count(), logged.printed);

    // Complete is complete: the next one leaves it alone.
    kill(daemon).await;
    std::fs::remove_file(logged.log()).unwrap();
    let daemon = logged.world.daemon().await;
    assert_eq!(state_of(&daemon, container.as_str()).exit().unwrap().code, 0);
    daemon.remove_container(container.as_str()).await.unwrap();
    assert!(!logged.log().exists());
    daemon.remove_pod(logged.pod.as_str()).await.unwrap();
    kill(daemon).await;
    assert_no_cursor(&logged.world);
}

#[tokio::test]
async fn a_lost_connection_is_made_again() {
    let (mut logged, daemon) = Logged::start().await;
    logged.print(10).await;
    logged.written(&logged.log(), 0).await;
    for refused in [1, 3] {
        logged.world.guests.refuse("read_log", refused);
        logged.world.driver.cut(&logged.pod);
        logged.print(1_000).await;
        logged.written(&logged.log(), 0).await;
    }
    assert!(daemon.find_pod(logged.pod.as_str()).unwrap().state.is_ready());
}

/// Whatever a guest says instead of records is not in the log, and holds nothing up.
#[tokio::test]
async fn a_lying_guest_ends_its_log_only() {
    let answer = |offset, records: &[u8], end| v1::ReadLogResponse { offset, records: records.to_vec(), end };
    let good = record(0);
    let good = good.as_bytes();
    let after = good.len() as u64;
    let endless = vec![b'x'; 3 << 20];
    let lies = [
        ("a gap", vec![answer(0, good, false), answer(after + 1, good, false)]),
        ("a step back", vec![answer(0, good, false), answer(0, good, false)]),
        ("an offset out of the world", vec![answer(0, good, false), answer(u64::MAX, good, false)]),
        ("no record", vec![answer(0, good, false), answer(after, b"no record\n", false)]),
        ("a torn record", vec![answer(0, good, false), answer(after, &good[..20], true)]),
        ("an endless line", vec![answer(0, good, false), answer(after, &endless, false)]),
        ("an end in between", vec![answer(0, good, true), answer(after, good, false)]),
        ("nothing, many times", [vec![answer(0, b"", false); 500], vec![answer(0, good, true)]].concat()),
    ];
    for (what, lie) in lies {
        let world = World::with_log_streams();
        world.guests.lie(lie);
        let daemon = world.daemon().await;
        let (pod, container) = make(&world, &daemon).await;
        daemon.start_container(container.as_str()).await.unwrap();
        wait_for(&log_path(&world), |text| text == record(0)).await;
        world.guests.exit(&pod, container.as_str(), 3, false);
        eventually(&daemon, pod.as_str(), what, |view| view.containers[&container].state.exit().is_some())
            .await;
        assert_eq!(std::fs::read_to_string(log_path(&world)).unwrap(), record(0), "{what}");
        daemon.remove_pod(pod.as_str()).await.unwrap();
    }
}

/// A guest that is gone leaves what came.
#[tokio::test]
async fn a_machine_that_ends_leaves_its_log() {
    let (mut logged, daemon) = Logged::start().await;
    logged.print(10).await;
    logged.written(&logged.log(), 0).await;
    logged.world.driver.kill(&logged.pod);
    let container = logged.container.clone();
    eventually(&daemon, logged.pod.as_str(), "the end", |view| {
        matches!(view.containers[&container].state, ContainerState::Exited(_))
    })
    .await;
    logged.written(&logged.log(), 0).await;
    daemon.remove_pod(logged.pod.as_str()).await.unwrap();
    kill(daemon).await;
    assert_no_cursor(&logged.world);
}

/// One that is never started leaves nothing, whoever removes it.
#[tokio::test]
async fn a_container_that_never_runs() {
    let world = World::with_log_streams();
    let daemon = world.daemon().await;
    let (pod, container) = make(&world, &daemon).await;
    daemon.remove_container(container.as_str()).await.unwrap();
    assert_eq!(std::fs::read_to_string(log_path(&world)).unwrap(), "");
    world.guests.refuse("create_container", 1);
    let mut spec = container_spec("c");
    spec.log_path = "app/0.log".into();
    daemon.create_container(pod.as_str(), spec.clone()).await.unwrap_err();
    // No log, no container.
    std::fs::remove_file(log_path(&world)).unwrap();
    std::fs::create_dir(log_path(&world)).unwrap();
    let error = daemon.create_container(pod.as_str(), spec).await.unwrap_err();
    assert!(matches!(error, kina::error::Error::Log { .. }), "{error:?}");
    daemon.remove_pod(pod.as_str()).await.unwrap();
    world.assert_empty().await;
    kill(daemon).await;
    assert_no_cursor(&world);
}

/// What nobody can write waits in the guest, all of it; the daemon holds little.
#[tokio::test]
async fn a_disk_that_takes_nothing_stops_the_container() {
    let world = World::with_log_streams();
    let disk = SmallDisk::mount(log_path(&world).parent().unwrap());
    let daemon = world.daemon().await;
    let (pod, container) = make(&world, &daemon).await;
    daemon.start_container(container.as_str()).await.unwrap();
    let all: String = (0..20_000).map(record).collect();
    let printing = {
        let (guests, pod, container, all) = (world.guests.clone(), pod, container.to_string(), all.clone());
        tokio::spawn(async move { guests.print(&pod, &container, all.as_bytes()).await })
    };
    // The guest keeps all it can, and the container waits.
    let pod = daemon.pods()[0].id.clone();
    let kept = async {
        while world.guests.kept(&pod, container.as_str()) < 200 << 10 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, kept).await.unwrap();
    assert!(!printing.is_finished());
    let written = std::fs::read_to_string(log_path(&world)).unwrap();
    assert!(all.starts_with(&written) && written.len() < 200 << 10, "{} bytes", written.len());
    disk.grow();
    tokio::time::timeout(PATIENCE, printing).await.unwrap().unwrap();
    wait_for(&log_path(&world), |text| text == all).await;
    drop(daemon);
}

/// A file system with room for little.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: &Path) -> Self {
        use rustix::mount::{MountFlags, mount};
        std::fs::create_dir_all(path).unwrap();
        mount("kina-test", path, "tmpfs", MountFlags::empty(), c"size=128k").unwrap();
        Self(path.to_owned())
    }

    fn grow(&self) {
        use rustix::mount::{MountFlags, mount_remount};
        mount_remount(&self.0, MountFlags::empty(), "size=64m").unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}
