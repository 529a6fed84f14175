//! Commands in a running container.

use std::time::{Duration, Instant};

use tonic::Code;

use crate::harness::machine::{also_in_apple, also_in_vm};
use crate::harness::{Daemon, script, shell, wait_until, with_security};

const FOREVER: &str = "sleep 1000";

/// What of `/proc/<pid>/status` says how a process is confined.
const CONFINEMENT: [&str; 8] = ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "Seccomp"];

#[tokio::test]
async fn output_and_exit_code() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let one = cri.run(&pod, script("one", FOREVER)).await;
    let response = cri.exec(&one, shell("echo out; echo err >&2; exit 5"), 10).await.unwrap();
    assert_eq!(
        (response.exit_code, &response.stdout[..], &response.stderr[..]),
        (5, &b"out\n"[..], &b"err\n"[..])
    );
    assert_eq!(cri.exec(&one, shell("kill -9 $$"), 10).await.unwrap().exit_code, 137);
    // No input: what reads it is at its end at once.
    assert_eq!(cri.sh(&one, "cat; echo end").await, "end\n");
    // It is in the container: its files, its working directory, its processes.
    cri.sh(&one, "echo written > /tmp/by-exec").await;
    assert_eq!(
        cri.sh(&one, "cat /tmp/by-exec; pwd; ps -o args | grep -c '^sleep 1000'").await,
        "written\n/\n1\n"
    );

    let refused = cri.exec(&one, vec!["/bin/no-such-program".to_owned()], 10).await.unwrap_err();
    assert!(refused.message().contains("no-such-program"), "{refused}");
    assert_ne!(refused.code(), Code::Internal, "{refused}");
    let empty = cri.exec(&one, Vec::new(), 10).await.unwrap_err();
    assert_eq!(empty.code(), Code::InvalidArgument, "{empty}");
    let created = cri.create(&pod, script("created", FOREVER)).await.unwrap();
    assert_eq!(cri.exec(&created, shell("true"), 10).await.unwrap_err().code(), Code::FailedPrecondition);
    let unknown = cri.exec("no-such-container", shell("true"), 10).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn a_timeout_ends_all_of_it() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let one = cri.run(&pod, script("one", FOREVER)).await;
    let idle = daemon.place.processes(&pod).len();
    let begin = Instant::now();
    let late = cri.exec(&one, shell("trap '' TERM; sleep 999 & sleep 999"), 1).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    assert!(begin.elapsed() >= Duration::from_secs(1));
    wait_until("the end of the command", async || daemon.place.processes(&pod).len() == idle).await;
    // A caller that gives up has the same effect.
    let gone = tokio::time::timeout(Duration::from_millis(300), cri.exec(&one, shell("sleep 998"), 0)).await;
    assert!(gone.is_err());
    wait_until("the end of the abandoned command", async || daemon.place.processes(&pod).len() == idle).await;
    assert_eq!(cri.sh(&one, "echo still here").await, "still here\n");
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn output_is_bounded() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let one = cri.run(&pod, script("one", FOREVER)).await;
    let before = crate::harness::memory_kib(daemon.pid(), "VmRSS");
    let much = "head -c 40000000 /dev/zero; head -c 20000000 /dev/zero >&2; exit 6";
    let response = cri.exec(&one, shell(much), 0).await.unwrap();
    assert_eq!(response.exit_code, 6);
    let total = response.stdout.len() + response.stderr.len();
    assert!(total > 15 << 20 && total < 16 << 20, "{total}");
    assert!(!response.stdout.is_empty() && !response.stderr.is_empty());
    // Whoever prints for ever is ended by the timeout.
    let endless = cri.exec(&one, shell("exec yes"), 2).await.unwrap_err();
    assert_eq!(endless.code(), Code::DeadlineExceeded, "{endless}");
    let peak = crate::harness::memory_kib(daemon.pid(), "VmHWM");
    println!("daemon: {before} KiB before, {peak} KiB at most");
    assert!(peak < before + (256 << 10), "{before} {peak}");
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn confined_as_its_container() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let user = with_security(script("user", FOREVER), |context| {
        context.run_as_user = Some(kina::cri::v1::Int64Value { value: 1000 });
        context.supplemental_groups = vec![44, 55];
        context.no_new_privs = true;
    });
    let added = with_security(script("added", FOREVER), |context| {
        context.capabilities = Some(kina::cri::v1::Capability {
            add_capabilities: vec!["NET_ADMIN".to_owned()],
            drop_capabilities: vec!["KILL".to_owned(), "MKNOD".to_owned()],
            ..Default::default()
        });
    });
    for config in [script("default", FOREVER), user, added] {
        let name = config.metadata.as_ref().unwrap().name.clone();
        let id = cri.run(&pod, config).await;
        let (init, exec) =
            (cri.sh(&id, "cat /proc/1/status").await, cri.sh(&id, "cat /proc/self/status").await);
        let field = |status: &str, field: &str| {
            let line = status.lines().find(|line| line.starts_with(&format!("{field}:"))).unwrap();
            line.split_ascii_whitespace().skip(1).collect::<Vec<_>>().join(" ")
        };
        for what in CONFINEMENT.iter().chain(&["CapAmb", "NoNewPrivs"]) {
            assert_eq!(field(&init, what), field(&exec, what), "{name}: {what}");
        }
        assert_eq!(field(&exec, "Seccomp"), "2", "{name}");
        for kind in ["mnt", "pid", "net", "ipc", "uts", "cgroup", "user"] {
            let both =
                cri.sh(&id, &format!("readlink /proc/1/ns/{kind}; readlink /proc/self/ns/{kind}")).await;
            let lines: Vec<&str> = both.lines().collect();
            assert!(lines.len() == 2 && lines[0] == lines[1], "{name}: {kind}: {both}");
        }
        let (own, theirs) =
            (cri.sh(&id, "cat /proc/1/cgroup").await, cri.sh(&id, "cat /proc/self/cgroup").await);
        assert_eq!(own, theirs, "{name}");
    }
    daemon.leave_nothing().await;
}

also_in_vm! {
    output_and_exit_code,
    a_timeout_ends_all_of_it,
    output_is_bounded,
    confined_as_its_container,
}

also_in_apple! {
    output_and_exit_code,
    a_timeout_ends_all_of_it,
    confined_as_its_container,
}
