//! Launching, by itself. Needs root, control groups and busybox.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(unsafe_code, reason = "the helper runs before main")]

mod common;

use common::*;

#[test]
fn a_container_runs() {
    let place = Place::new();
    let spec = shell("cat /proc/self/status /proc/self/mountinfo /proc/self/cgroup; ls -l /dev; exit 7");
    let (code, output) = run(&place, &spec).unwrap();
    println!("{output}");
    assert_eq!(code, 7, "{output}");
    assert!(output.contains("Seccomp:\t2"), "{output}");
}
