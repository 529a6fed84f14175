//! The v2 file logic, against a directory that only looks like cgroup2: no machine of the CI's
//! kind has v2 controllers.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};

use kina_cgroup::{
    BlockDeviceStats, Error, Group, Hierarchy, HugePages, Layout, Pressure, Resources, Stall, ThrottleDevice,
};

struct Fake {
    root: tempfile::TempDir,
    group: Group,
}

/// A root whose group `/pod/c` exists already with the files that the kernel would make.
fn fake(files: &[&str]) -> Fake {
    let root = tempfile::tempdir().unwrap();
    let mount = root.path().join("sys/fs/cgroup");
    fs::create_dir_all(mount.join("pod/c")).unwrap();
    for (directory, has) in [("", "cpu memory pids io cpuset rdma"), ("pod", "cpu memory")] {
        let directory = mount.join(directory);
        fs::write(directory.join("cgroup.controllers"), has).unwrap();
        fs::write(directory.join("cgroup.subtree_control"), "").unwrap();
    }
    for file in files {
        fs::write(mount.join("pod/c").join(file), "").unwrap();
    }
    let line = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    let hierarchy = Hierarchy::from_mountinfo(line, root.path()).unwrap();
    assert_eq!(hierarchy.layout(), Layout::V2);
    let group = hierarchy.group("/pod/c").unwrap();
    Fake { root, group }
}

impl Fake {
    fn place(&self, relative: &str) -> PathBuf {
        self.root.path().join("sys/fs/cgroup").join(relative)
    }

    fn value(&self, file: &str) -> String {
        fs::read_to_string(self.place("pod/c").join(file)).unwrap()
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn ancestors_hand_down_what_they_have() {
    let fake = fake(&[]);
    fake.group.create().unwrap();
    assert_eq!(text(&fake.place("cgroup.subtree_control")), "+cpu +memory +pids +io +cpuset");
    assert_eq!(text(&fake.place("pod/cgroup.subtree_control")), "+cpu +memory");
}

#[test]
fn a_group_with_processes_in_it_hands_nothing_down() {
    let fake = fake(&[]);
    for (directory, processes) in [("", "1\n"), ("pod", "7\n0\n")] {
        fs::write(fake.place(directory).join("cgroup.procs"), processes).unwrap();
    }
    // The kernel's root has no type, and may.
    fs::write(fake.place("pod/cgroup.type"), "domain\n").unwrap();
    fake.group.create().unwrap();
    assert!(text(&fake.place("cgroup.subtree_control")).contains("+cpu"));
    assert_eq!(text(&fake.place("pod/cgroup.subtree_control")), "");
    // Once they have left it does.
    fs::write(fake.place("pod/cgroup.procs"), "").unwrap();
    fake.group.create().unwrap();
    assert_eq!(text(&fake.place("pod/cgroup.subtree_control")), "+cpu +memory");
}

#[test]
fn limits_are_converted() {
    let fake = fake(&[
        "cpu.weight",
        "cpu.max",
        "memory.max",
        "memory.swap.max",
        "memory.low",
        "pids.max",
        "io.max",
        "cpuset.cpus",
        "memory.high",
    ]);
    fs::write(fake.place("pod/c/cpu.max"), "max 100000\n").unwrap();
    let resources = Resources {
        cpu_shares: Some(1024),
        cpu_quota: Some(20_000),
        cpu_period: Some(50_000),
        cpuset_cpus: Some("0-1".into()),
        memory_limit: Some(1000),
        memory_swap_limit: Some(1500),
        memory_reservation: Some(10),
        pids_limit: Some(0),
        throttle_read_bps: vec![ThrottleDevice { major: 8, minor: 0, rate: 9 }],
        unified: [("memory.high".to_owned(), "900".to_owned())].into(),
        ..Resources::default()
    };
    fake.group.set(&resources).unwrap();
    assert_eq!(fake.value("cpu.weight"), "39");
    assert!(fake.value("cpu.max").starts_with("20000 50000"));
    assert_eq!(fake.value("memory.max"), "1000");
    assert_eq!(fake.value("memory.swap.max"), "500");
    assert_eq!(fake.value("memory.low"), "10");
    assert_eq!(fake.value("pids.max"), "max");
    assert_eq!(fake.value("io.max"), "8:0 rbps=9");
    assert_eq!(fake.value("memory.high"), "900");
    assert_eq!(fake.value("cpuset.cpus"), "0-1");
}

#[test]
fn what_v2_cannot_do_is_named() {
    let fake = fake(&["memory.max"]);
    let swappiness = Resources { memory_swappiness: Some(10), ..Resources::default() };
    match fake.group.set(&swappiness) {
        Err(Error::Unsupported { field, file }) => {
            assert_eq!((field, file.as_str()), ("memory_swappiness", "memory.swappiness"));
        }
        other => panic!("{other:?}"),
    }
    let swap_below_memory =
        Resources { memory_swap_limit: Some(10), memory_limit: Some(20), ..Resources::default() };
    assert!(matches!(
        fake.group.set(&swap_below_memory),
        Err(Error::InvalidValue { field: "memory_swap_limit", .. })
    ));
}

#[test]
fn usage_is_read() {
    let fake = fake(&[]);
    for (file, content) in [
        (
            "cpu.stat",
            "usage_usec 12\nuser_usec 7\nsystem_usec 5\nnr_periods 9\nnr_throttled 2\nthrottled_usec 3\n",
        ),
        ("cpu.pressure", "some avg10=98.06 avg60=1.00 avg300=0.25 total=77\n"),
        (
            "memory.pressure",
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=1.50 avg60=0.00 avg300=0.00 total=8\n",
        ),
        ("io.pressure", "nonsense\n"),
        ("memory.swap.current", "4096\n"),
        ("memory.swap.max", "8192\n"),
        ("memory.current", "5000\n"),
        ("memory.max", "max\n"),
        ("memory.peak", "7000\n"),
        (
            "memory.stat",
            "anon 3000\nfile 2000\nkernel 800\nfile_mapped 900\ninactive_file 1500\nactive_file 500\npgfault 4\npgmajfault 1\n",
        ),
        ("memory.events", "low 0\nhigh 11\nmax 6\noom 2\noom_kill 1\n"),
        ("pids.current", "3\n"),
        ("pids.max", "40\n"),
        ("hugetlb.2MB.current", "4194304\n"),
        ("hugetlb.2MB.rsvd.current", "6291456\n"),
        ("hugetlb.2MB.max", "max\n"),
        ("hugetlb.1GB.current", "0\n"),
        ("io.stat", "8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n"),
    ] {
        fs::write(fake.place("pod/c").join(file), content).unwrap();
    }
    let stats = fake.group.stats().unwrap();
    assert_eq!(stats.cpu_usage_ns, Some(12_000));
    assert_eq!(stats.memory_usage, Some(5000));
    assert_eq!(stats.memory_working_set, Some(3500));
    assert_eq!(stats.memory_rss, Some(3000));
    assert_eq!(stats.memory_limit, None);
    assert_eq!((stats.pids, stats.pids_limit), (Some(3), Some(40)));
    assert_eq!((stats.memory_kernel, stats.memory_peak), (Some(800), Some(7000)));
    let device = BlockDeviceStats { major: 8, read_bytes: 4096, reads: 1, ..BlockDeviceStats::default() };
    assert_eq!(fake.group.block_devices().unwrap(), [device]);
    let pages = |size: &str, bytes| HugePages { page_size: size.to_owned(), bytes, peak_bytes: None };
    assert_eq!(fake.group.huge_pages().unwrap(), [pages("1GB", 0), pages("2MB", 4 << 20)]);
    assert_eq!((stats.cpu_user_ns, stats.cpu_system_ns), (Some(7_000), Some(5_000)));
    let throttled = (stats.cpu_periods, stats.cpu_throttled_periods, stats.cpu_throttled_ns);
    assert_eq!(throttled, (Some(9), Some(2), Some(3_000)));
    assert_eq!((stats.memory_cache, stats.memory_mapped_file), (Some(2000), Some(900)));
    assert_eq!((stats.memory_active_file, stats.memory_inactive_file), (Some(500), Some(1500)));
    assert_eq!((stats.memory_swap, stats.memory_swap_limit), (Some(4096), Some(8192)));
    assert_eq!((stats.memory_failures, stats.memory_high_events), (Some(6), Some(11)));
    let cpu = Stall { average_10: 9806, average_60: 100, average_300: 25, total_micros: 77 };
    assert_eq!(stats.cpu_pressure, Some(Pressure { some: cpu, full: None }));
    let full = Stall { average_10: 150, total_micros: 8, ..Stall::default() };
    assert_eq!(stats.memory_pressure, Some(Pressure { some: Stall::default(), full: Some(full) }));
    assert_eq!(stats.io_pressure, None);
    assert_eq!(fake.group.oom_kill_count().unwrap(), Some(1));
}
