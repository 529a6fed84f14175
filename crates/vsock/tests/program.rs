//! The program by itself: its sockets, its words, its end.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// Killed with the test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Program {
    fn start(directory: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_kina-vsock"))
            .arg("--vhost")
            .arg(directory.join("vhost"))
            .arg("--host")
            .arg(directory.join("host"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let program = Self(child);
        wait_until(|| directory.join("vhost").exists());
        program
    }
}

fn wait_until(mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "not after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn sockets_accept_when_they_are_there_and_are_the_users_alone() {
    let directory = tempfile::tempdir().unwrap();
    // What a killed one left.
    std::fs::write(directory.path().join("vhost~"), "").unwrap();
    std::fs::write(directory.path().join("host"), "").unwrap();
    let _program = Program::start(directory.path());
    let client = UnixStream::connect(directory.path().join("host")).unwrap();
    for name in ["host", "vhost"] {
        let mode = std::fs::metadata(directory.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
    drop(client);
}

#[test]
fn an_emulator_that_makes_no_sense_ends_it_with_a_message() {
    let directory = tempfile::tempdir().unwrap();
    let mut program = Program::start(directory.path());
    let mut emulator = UnixStream::connect(directory.path().join("vhost")).unwrap();
    std::io::Write::write_all(&mut emulator, &[0xff; 64]).unwrap();
    let status = program.0.wait().unwrap();
    assert_eq!(status.code(), Some(1));
    let mut words = String::new();
    program.0.stderr.take().unwrap().read_to_string(&mut words).unwrap();
    assert!(words.starts_with("kina-vsock: serve the machine: "), "{words}");
}

#[test]
fn an_emulator_that_goes_ends_it_quietly() {
    let directory = tempfile::tempdir().unwrap();
    let mut program = Program::start(directory.path());
    let mut client = UnixStream::connect(directory.path().join("host")).unwrap();
    drop(UnixStream::connect(directory.path().join("vhost")).unwrap());
    let status = program.0.wait().unwrap();
    let mut words = String::new();
    program.0.stderr.take().unwrap().read_to_string(&mut words).unwrap();
    assert_eq!((status.code(), words.as_str()), (Some(0), ""));
    assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
}

#[test]
fn wrong_arguments_are_told_with_the_right_ones() {
    let output = Command::new(env!("CARGO_BIN_EXE_kina-vsock")).arg("--help").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("usage: kina-vsock --vhost"));
}
