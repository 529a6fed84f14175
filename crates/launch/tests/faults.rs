//! What is left when a launch is disturbed: nothing. Needs root, control groups and busybox.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(unsafe_code, reason = "the helper runs before main")]

mod common;

use std::fs;
use std::os::fd::AsFd;
use std::process::{Command, Stdio as Pipes};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::*;
use kina_launch::{Created, ExecPlan, Plan, Stdio};
use rustix::process::{Pid, Signal, kill_process};

/// These tests count what the whole process has.
static ALONE: Mutex<()> = Mutex::new(());

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Children of any thread, zombies included.
fn children() -> Vec<i32> {
    let mut found = Vec::new();
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let list = task.unwrap().path().join("children");
        // The thread may have ended.
        let text = fs::read_to_string(list).unwrap_or_default();
        found.extend(text.split_whitespace().map(|pid| pid.parse::<i32>().unwrap()));
    }
    found
}

fn quiet() -> Stdio {
    Stdio::Files { stdin: null(), stdout: null(), stderr: null() }
}

#[test]
fn cycles_in_many_threads_leave_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let places: Vec<Place> = (0..4).map(|_| Place::new()).collect();
    let launcher = launcher();
    let standing = children();
    let before = descriptors();
    std::thread::scope(|scope| {
        for place in &places {
            scope.spawn(|| {
                for _ in 0..50 {
                    let cgroup = Some(place.group.clone());
                    let spec = shell("sleep 1000");
                    let plan = Plan { spec: spec.clone(), rootfs: place.rootfs(), stdio: quiet(), cgroup };
                    let Created { pidfd, start, .. } = launcher.create(plan).unwrap();
                    start.start().unwrap();
                    let mut exec = spec.clone();
                    set_args(&mut exec, &["/bin/true"]);
                    let plan = ExecPlan {
                        container: &spec,
                        process: exec.process().clone().unwrap(),
                        stdio: quiet(),
                        cgroup: Some(place.group.clone()),
                    };
                    let exec = launcher.exec(pidfd.as_fd(), plan).unwrap();
                    exec.start.start().unwrap();
                    assert_eq!(wait(&exec.pidfd), 0);
                    place.group.kill_all(LONG).unwrap();
                    assert_eq!(wait(&pidfd), 128 + libc::SIGKILL);
                    place.group.delete(LONG).unwrap();
                }
            });
        }
    });
    assert_eq!(descriptors(), before);
    assert_eq!(children(), standing, "all but the forker have gone");
    drop(launcher);
    assert_eq!(children(), Vec::<i32>::new());
    assert!(places.iter().all(|place| !place.group.exists()));
}

/// A killer takes the helper, or the helper and the new process, after every delay that the
/// set-up spans.
#[test]
fn a_killed_helper_leaves_nothing() {
    kill_helpers(true);
}

/// The same with helpers that are executed one by one, after the forker was killed.
#[test]
fn a_killed_helper_of_no_forker_leaves_nothing() {
    kill_helpers(false);
}

fn kill_forker() {
    for pid in children() {
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }
}

fn kill_helpers(forked: bool) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let place = Place::new();
    let launcher = launcher();
    if !forked {
        kill_forker();
        let cgroup = Some(place.group.clone());
        let plan = Plan { spec: shell("true"), rootfs: place.rootfs(), stdio: quiet(), cgroup };
        let Created { pidfd, start, .. } = launcher.create(plan).unwrap();
        start.start().unwrap();
        assert_eq!(wait(&pidfd), 0);
    }
    let standing = children();
    assert_eq!(standing.len(), usize::from(forked), "{standing:?}");
    let helpers = || children().into_iter().filter(|pid| !standing.contains(pid)).collect::<Vec<_>>();
    let before = descriptors();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut failed = 0;
    for all in [false, true] {
        for step in 0..120_u32 {
            let delay = Duration::from_micros(u64::from(step) * 100);
            let done = AtomicBool::new(false);
            let result = std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut seen = Vec::new();
                    while seen.is_empty() && !done.load(Ordering::Acquire) {
                        seen = helpers();
                    }
                    let begin = Instant::now();
                    while begin.elapsed() < delay && !done.load(Ordering::Acquire) {
                        std::hint::spin_loop();
                    }
                    if done.load(Ordering::Acquire) {
                        return;
                    }
                    if all {
                        seen = helpers();
                    }
                    for pid in seen {
                        // May have ended.
                        let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
                    }
                });
                let cgroup = Some(place.group.clone());
                let plan = Plan { spec: shell("true"), rootfs: place.rootfs(), stdio: quiet(), cgroup };
                let result = launcher.create(plan);
                done.store(true, Ordering::Release);
                result
            });
            match result {
                Err(_) => failed += 1,
                Ok(Created { pidfd, start, .. }) => {
                    drop(start);
                    wait(&pidfd);
                }
            }
            assert_eq!(children(), standing, "after {delay:?}");
            wait_until("an empty group", || place.group.processes().unwrap().is_empty());
        }
    }
    assert!(failed > 10, "only {failed} launches were disturbed");
    assert_eq!(descriptors(), before);
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), mounts);
}

/// The forker is killed after every delay that a launch spans: that launch and the next succeed
/// nevertheless.
#[test]
fn a_killed_forker_leaves_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let place = Place::new();
    let before = descriptors();
    for step in 0..60_u32 {
        let launcher = launcher();
        let forker = Pid::from_raw(children()[0]).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let begin = Instant::now();
                while begin.elapsed() < Duration::from_micros(u64::from(step) * 20) {
                    std::hint::spin_loop();
                }
                kill_process(forker, Signal::KILL).unwrap();
            });
            for _ in 0..2 {
                let cgroup = Some(place.group.clone());
                let plan = Plan { spec: shell("true"), rootfs: place.rootfs(), stdio: quiet(), cgroup };
                let Created { pidfd, start, .. } = launcher.create(plan).unwrap();
                start.start().unwrap();
                assert_eq!(wait(&pidfd), 0);
            }
        });
        drop(launcher);
        assert_eq!(children(), Vec::<i32>::new(), "{step}");
    }
    assert_eq!(descriptors(), before);
}

/// The caller is killed while it launches, or while it holds what it launched.
#[test]
fn a_dead_caller_leaves_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let place = Place::new();
    for step in 0..20_u32 {
        let mut caller = Command::new("/proc/self/exe")
            .args(["kina-launch", "kina-launch-caller"])
            .args([place.root().to_str().unwrap(), place.group.path()])
            .stdin(Pipes::null())
            .stdout(Pipes::null())
            .spawn()
            .unwrap();
        if step == 0 {
            wait_until("a created process", || place.group.processes().unwrap().len() == 1);
        } else {
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_micros(u64::from(step) * 1000) {
                std::hint::spin_loop();
            }
        }
        caller.kill().unwrap();
        caller.wait().unwrap();
        wait_until("an empty group", || place.group.processes().unwrap().is_empty());
    }
}
