//! The test.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use kina_guest_api::{ExecOutput, GuestClient, v1};
use kina_testkit::vm::{Config, Machine, Prerequisites};
use tokio_stream::StreamExt;

use crate::daemon::{self, Death, Place};
use crate::pod::{self, CONTAINER, POD};

/// A machine boots in three seconds where nothing else runs.
const BOOT_PATIENCE: Duration = Duration::from_secs(40);
/// For everything else.
const PATIENCE: Duration = Duration::from_secs(30);
/// Lines that a daemon writes before it is killed from outside.
const LINES: usize = 200;
const EXEC_OUTPUT_LIMIT: usize = 64 << 10;
/// Between two looks at a file.
const PAUSE: Duration = Duration::from_millis(5);

/// Shows what the machine's console said when the test fails.
struct ConsoleOnPanic<'a>(&'a Machine);

impl Drop for ConsoleOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{:?}\nthe machine's console:\n{}", self.0.progress(), self.0.console());
        }
    }
}

#[tokio::test]
async fn vm_a_pod_in_a_machine_survives_its_daemon() {
    let prerequisites = Prerequisites::find().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let share = directory.path().join("share");
    std::fs::create_dir(&share).unwrap();
    let diff_id = pod::write_layer(&share);

    let config = Config::new(POD, share);
    let mut machine = Machine::boot(&prerequisites, &config).unwrap();
    let guest = machine.guest(BOOT_PATIENCE).await.unwrap_or_else(|error| panic!("{error:?}"));
    let on_panic = ConsoleOnPanic(&machine);
    let mut stages = Stages::new(&machine);

    check_hello(&guest);
    guest.setup_pod(pod::setup()).await.unwrap();
    stages.passed("SetupPod");
    guest.create_container(pod::container(&diff_id)).await.unwrap();
    stages.passed("CreateContainer");

    let place = Place {
        socket: machine.socket(),
        store: directory.path().join("store"),
        log: directory.path().join("0.log"),
        recoveries: directory.path().join("recoveries"),
    };
    // Killed from outside, somewhere; then at the two places that matter most.
    let mut first = daemon::start(&place, Death::None);
    wait_for_lines(&place.log, LINES);
    first.kill();
    stages.passed("first daemon wrote and was killed");
    let written = last_number(&place.log);
    // Nobody reads, and the container goes on.
    exec(&guest, &format!("while read n < /count; test ${{n:-0}} -le {}; do :; done", written + LINES)).await;
    stages.passed("container went on alone");
    for death in [Death::Written, Death::Recorded] {
        let mut daemon = daemon::start(&place, death);
        let status = daemon.wait(PATIENCE).unwrap();
        assert_eq!(status.signal(), Some(9), "{death:?}: {status}");
        stages.passed("next daemon killed itself");
    }

    let mut last = daemon::start(&place, Death::None);
    check_exec(&guest).await;
    stages.passed("execs");
    exec(&guest, "touch /stop").await;
    let status = last.wait(PATIENCE).unwrap();
    assert!(status.success(), "{status}");
    stages.passed("last daemon wrote the rest");

    check_recoveries(&std::fs::read_to_string(&place.recoveries).unwrap());
    let lines = check_log(&std::fs::read_to_string(&place.log).unwrap());
    let exit = tokio::time::timeout(PATIENCE, exit_of_container(&guest)).await.unwrap();
    assert_eq!(exit.code, 0);
    let listed = guest.list_containers().await.unwrap();
    assert_eq!(listed.containers[0].state(), v1::ContainerState::Exited);

    guest.delete_container(v1::DeleteContainerRequest { id: CONTAINER.to_owned() }).await.unwrap();
    stages.passed("DeleteContainer");
    guest.shutdown(Duration::from_secs(1)).await.unwrap();
    stages.passed("Shutdown");
    drop(on_panic);
    let table = stages.table;
    let begin = Instant::now();
    let status = machine.off(PATIENCE).unwrap();
    assert!(status.success(), "{status}");
    eprintln!("{table}{:>7.2} s until off\n{lines} lines, each once", begin.elapsed().as_secs_f64());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(directory.path().to_str().unwrap()), "{mounts}");
}

/// Another kernel than the host's answers.
fn check_hello(guest: &GuestClient) {
    let hello = guest.hello();
    let of_host = |file: &str| std::fs::read_to_string(file).unwrap().trim().to_owned();
    assert_eq!(hello.pod_id, POD);
    assert_eq!(hello.architecture, "x86_64");
    assert!(!hello.boot_id.is_empty() && !hello.kernel_release.is_empty(), "{hello:?}");
    assert_ne!(hello.boot_id, of_host("/proc/sys/kernel/random/boot_id"));
    assert_ne!(hello.kernel_release, of_host("/proc/sys/kernel/osrelease"));
    let features = hello.features.as_ref().unwrap();
    assert_eq!(features.cgroup_mode(), v1::CgroupMode::V2);
    assert!(features.seccomp, "{features:?}");
    // Linux 6.1 cannot map the ids of a tmpfs, which is all that this machine has to write to.
    assert!(!features.user_namespaces, "{features:?}");
}

async fn exec(guest: &GuestClient, script: &str) -> ExecOutput {
    let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let output = guest.exec_sync(CONTAINER, command, Some(PATIENCE), EXEC_OUTPUT_LIMIT).await.unwrap();
    assert!(!output.timed_out, "{script}: {output:?}");
    output
}

/// The guest tells of the exit once the log is whole, hence maybe after its end.
async fn exit_of_container(guest: &GuestClient) -> v1::Exit {
    let mut events = guest.events(0).await.unwrap();
    loop {
        let event = events.next().await.unwrap().unwrap();
        if let Some(v1::event::What::Exited(exited)) = event.what {
            assert_eq!(exited.id, CONTAINER);
            return exited.exit.unwrap();
        }
    }
}

/// Execs are in the container, on the machine's kernel, and end with their code.
async fn check_exec(guest: &GuestClient) {
    let script = "cat /proc/sys/kernel/osrelease; hostname; grep ' / ' /proc/mounts; cat /etc/passwd; \
                  ls /sys/class/net; grep Seccomp: /proc/self/status; exit 42";
    let output = exec(guest, script).await;
    let text = String::from_utf8(output.stdout).unwrap();
    let release = &guest.hello().kernel_release;
    assert_eq!(text.lines().next(), Some(release.as_str()), "{text}");
    assert_eq!(text.lines().nth(1), Some("in-a-machine"), "{text}");
    assert!(text.lines().nth(2).is_some_and(|mount| mount.starts_with("overlay / overlay ")), "{text}");
    assert!(text.contains("alice:x:1000:1000"), "{text}");
    assert!(text.contains("\nlo\nSeccomp:\t2\n"), "{text}");
    assert_eq!(output.code, 42, "{text}");
}

/// Each daemon after the first went on in the same file. What the second had
/// written without recording it was cut off; the third left nothing such.
fn check_recoveries(text: &str) {
    let cuts: Vec<u64> = text
        .lines()
        .map(|line| {
            let cut = line.strip_prefix("InPlace { cut: ").and_then(|rest| rest.strip_suffix(" }"));
            cut.and_then(|cut| cut.parse().ok()).unwrap_or_else(|| panic!("{text}"))
        })
        .collect();
    assert_eq!(cuts.len(), 3, "{text}");
    assert!(cuts[1] > 0, "{text}");
    assert_eq!(cuts[2], 0, "{text}");
}

/// The file has every line once, in order. Returns how many.
fn check_log(log: &str) -> usize {
    let contents: Vec<&str> = log
        .lines()
        .map(|record| record.split_once(" stdout F ").unwrap_or_else(|| panic!("{record:?}")).1)
        .collect();
    let (end, lines) = contents.split_last().unwrap();
    for (number, line) in lines.iter().enumerate() {
        assert_eq!(*line, format!("line {number}"));
    }
    assert_eq!(*end, format!("end {}", lines.len()));
    lines.len()
}

/// Waits for that many lines of the log.
fn wait_for_lines(log: &Path, count: usize) {
    let end = Instant::now() + PATIENCE;
    loop {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        if text.lines().count() >= count {
            return;
        }
        assert!(Instant::now() < end, "{} lines after {PATIENCE:?}", text.lines().count());
        std::thread::sleep(PAUSE);
    }
}

/// The number of the last whole line in the log, whose writer was killed.
fn last_number(log: &Path) -> usize {
    let text = std::fs::read_to_string(log).unwrap();
    let (whole, _torn) = text.rsplit_once('\n').unwrap();
    whole.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Where the time goes.
struct Stages<'a> {
    machine: &'a Machine,
    table: String,
}

impl<'a> Stages<'a> {
    fn new(machine: &'a Machine) -> Self {
        let boot = machine.progress();
        let mut stages = Self { machine, table: String::new() };
        for (at, what) in [
            (Some(boot.files), "kernel and initramfs there"),
            (Some(boot.devices), "devices listen"),
            (boot.kernel, "kernel's first line"),
            (boot.init, "first process"),
            (boot.guest, "guest listens"),
            (Some(machine.age()), "Hello"),
        ] {
            if let Some(at) = at {
                stages.add(at, what);
            }
        }
        stages
    }

    fn passed(&mut self, what: &str) {
        self.add(self.machine.age(), what);
    }

    fn add(&mut self, at: Duration, what: &str) {
        self.table.push_str(&format!("{:>7.2} s {what}\n", at.as_secs_f64()));
    }
}
