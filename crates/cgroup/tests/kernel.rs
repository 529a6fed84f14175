//! Groups of this machine's kernel. Needs root and mounted control groups.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(unsafe_code, reason = "a child enters its group before it runs its program")]

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kina_cgroup::{Error, Group, Hierarchy, HugepageLimit, Resources};

const LONG: Duration = Duration::from_secs(10);

/// A group that is emptied and removed at the end, also of a panic.
struct Scratch(Group);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = format!("/kina-test-{name}-{}/inner", std::process::id());
        let scratch = Self(Hierarchy::detect().unwrap().group(&path).unwrap());
        scratch.0.create().unwrap();
        scratch
    }

    fn outer(&self) -> Group {
        let parent = self.0.path().trim_end_matches("/inner").to_owned();
        self.0.hierarchy().group(&parent).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let outer = self.outer();
        outer.kill_all(LONG).unwrap();
        outer.delete(LONG).unwrap();
        assert!(!outer.exists());
    }
}

/// Runs a shell script inside the group.
fn run_in(group: &Group, script: &str) -> Child {
    let group = group.clone();
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdout(Stdio::piped());
    // SAFETY: this test binary's other threads hold no lock that opening and writing files needs
    // other than the allocator's, which fork handles.
    unsafe {
        command.pre_exec(move || group.enter().map_err(std::io::Error::other));
    }
    command.spawn().unwrap()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < LONG, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_process_enters_every_hierarchy_and_all_are_killed() {
    let scratch = Scratch::new("kill");
    let group = &scratch.0;
    group.create().unwrap();
    let mut child = run_in(group, "sleep 1000 & sleep 1000 & sleep 1000");
    wait_until("four processes", || group.processes().unwrap().len() == 4);
    let own = std::fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
    let expected =
        group.hierarchy().v1_hierarchies().count() + usize::from(group.hierarchy().unified_root().is_some());
    let inside = own.lines().filter(|line| line.ends_with(group.path())).count();
    assert_eq!(inside, expected, "{own}");
    assert_eq!(group.stats().unwrap().pids, Some(4));
    assert!(matches!(group.delete(Duration::ZERO), Err(Error::Delete { .. })));
    scratch.outer().kill_all(LONG).unwrap();
    child.wait().unwrap();
    assert_eq!(group.processes().unwrap(), Vec::<i32>::new());
    group.delete(LONG).unwrap();
    group.delete(LONG).unwrap();
    group.kill_all(LONG).unwrap();
}

#[test]
fn frozen_and_forking_processes_are_killed() {
    let scratch = Scratch::new("fork");
    let group = &scratch.0;
    let limit = Resources { pids_limit: Some(60), ..Resources::default() };
    group.set(&limit).unwrap();
    let mut child = run_in(group, "f() { f & f & sleep 0.01; f; }; f 2>/dev/null");
    wait_until("some processes", || group.processes().unwrap().len() > 20);
    group.freeze(LONG).unwrap();
    group.kill_all(LONG).unwrap();
    child.wait().unwrap();
}

#[test]
fn another_process_is_added_with_its_threads() {
    let scratch = Scratch::new("add");
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    scratch.0.add(pid).unwrap();
    assert_eq!(scratch.0.processes().unwrap(), [pid]);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn limits_are_in_the_files() {
    let scratch = Scratch::new("limits");
    let group = &scratch.0;
    let hierarchy = group.hierarchy();
    if hierarchy.v1_root("memory").is_none() {
        panic!("this test knows v1 files only; v2 is tested with a fake root");
    }
    let mut resources = Resources {
        cpu_shares: Some(512),
        cpu_quota: Some(50_000),
        cpu_period: Some(100_000),
        cpuset_cpus: Some("0".into()),
        cpuset_mems: Some("0".into()),
        memory_limit: Some(64 << 20),
        memory_swap_limit: Some(64 << 20),
        pids_limit: Some(77),
        ..Resources::default()
    };
    group.set(&resources).unwrap();
    let value = |controller: &str, file: &str| {
        let path = group.v1_directory(controller).unwrap().join(file);
        std::fs::read_to_string(path).unwrap().trim().to_owned()
    };
    assert_eq!(value("cpu", "cpu.shares"), "512");
    assert_eq!(value("cpu", "cpu.cfs_quota_us"), "50000");
    assert_eq!(value("cpuset", "cpuset.cpus"), "0");
    assert_eq!(value("pids", "pids.max"), "77");
    assert_eq!(value("memory", "memory.memsw.limit_in_bytes"), "67108864");
    let stats = group.stats().unwrap();
    assert_eq!(stats.memory_limit, Some(64 << 20));
    if group.v1_directory("memory").is_some() {
        assert!(stats.memory_kernel.is_some() && stats.memory_peak >= stats.memory_usage, "{stats:?}");
    }
    group.block_devices().unwrap();
    // Both orders: growing, then shrinking.
    for limit in [128_i64 << 20, 32 << 20] {
        resources.memory_limit = Some(limit);
        resources.memory_swap_limit = Some(limit);
        group.set(&resources).unwrap();
        assert_eq!(value("memory", "memory.limit_in_bytes"), limit.to_string());
    }
}

#[test]
fn a_control_that_is_not_there_is_named() {
    let scratch = Scratch::new("absent");
    let huge = Resources {
        hugepage_limits: vec![HugepageLimit { page_size: "3MB".into(), limit: 1 }],
        ..Resources::default()
    };
    match scratch.0.set(&huge) {
        Err(Error::Unsupported { field, file }) => {
            assert_eq!(field, "hugepage_limits");
            assert!(file.starts_with("hugetlb.3MB."), "{file}");
        }
        other => panic!("{other:?}"),
    }
    let unified =
        Resources { unified: [("memory.nothing".to_owned(), "1".to_owned())].into(), ..Resources::default() };
    assert!(matches!(scratch.0.set(&unified), Err(Error::Unsupported { .. })));
    let escape = Resources {
        unified: [("../cgroup.procs".to_owned(), "1".to_owned())].into(),
        ..Resources::default()
    };
    assert!(matches!(scratch.0.set(&escape), Err(Error::InvalidValue { .. })));
}

#[test]
fn hugepages_are_limited_in_the_hierarchy_that_has_them() {
    let scratch = Scratch::new("huge");
    let limit = Resources {
        hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 }],
        ..Resources::default()
    };
    let has = scratch.0.directories().any(|directory| {
        ["hugetlb.2MB.max", "hugetlb.2MB.limit_in_bytes"].iter().any(|file| directory.join(file).exists())
    });
    assert_eq!(scratch.0.set(&limit).is_ok(), has);
}

#[test]
fn an_oom_kill_is_counted_and_wakes_the_watch() {
    let scratch = Scratch::new("oom");
    let group = &scratch.0;
    let limit = Resources {
        memory_limit: Some(16 << 20),
        memory_swap_limit: group.hierarchy().limits_swap().then_some(16 << 20),
        ..Resources::default()
    };
    group.set(&limit).unwrap();
    assert_eq!(group.oom_kill_count().unwrap(), Some(0));
    let watch = group.watch_oom().unwrap().unwrap();
    let mut child = run_in(group, "head -c 100000000 /dev/zero | tail");
    child.wait().unwrap();
    assert!(group.oom_kill_count().unwrap().unwrap() >= 1);
    let mut entry = [rustix::event::PollFd::new(&watch, rustix::event::PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut entry, None).unwrap(), 1);
    assert!(scratch.outer().oom_kill_count().unwrap().unwrap() >= 1);
}
