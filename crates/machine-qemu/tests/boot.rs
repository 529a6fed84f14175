//! A machine that boots: the test's kernel, an initramfs made here, the real
//! guest.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use kina_machine_qemu::accelerator::{Choice, Outcome, ProbeConfig, choose, probe};
use kina_machine_qemu::{Accelerator, Error};
use kina_testkit::vm::Prerequisites;

/// An emulated machine boots in three seconds where nothing else runs.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn vm_a_machine_boots_to_its_guest_and_switches_off() {
    let prerequisites = Prerequisites::find().unwrap();
    let files = prerequisites.boot_files().unwrap();
    let config = ProbeConfig {
        qemu: &prerequisites.qemu,
        files: &files,
        device: Path::new("/dev/kvm"),
        result: Path::new("/nowhere"),
        deadline: PATIENCE,
    };
    assert_eq!(probe(&config, Accelerator::Tcg).unwrap(), Outcome::Booted);
    // A machine is only emulated when that is asked for, and then untried.
    assert_eq!(choose(Choice::Tcg, &config).unwrap(), Accelerator::Tcg);
    // The kernel was unpacked: QEMU starts it as it is.
    assert_eq!(fs::read(&files.kernel).unwrap()[..4], *b"\x7fELF");
}

/// A program in QEMU's place; what it says to `--version`, and does otherwise.
/// It counts its runs in the file `runs` beside it.
fn stand_in(directory: &Path, version: &str, then: &str) -> std::path::PathBuf {
    let path = directory.join("qemu");
    let script = format!(
        "#!/bin/sh\nif test \"$1\" = --version; then echo '{version}'; exit; fi\n\
         echo $$ >> {}/runs\n{then}\n",
        directory.display()
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_machine_that_hangs_is_killed_and_not_tried_again() {
    let prerequisites = Prerequisites::find().unwrap();
    let files = prerequisites.boot_files().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let result = directory.path().join("kvm.json");
    let qemu = stand_in(directory.path(), "QEMU 1", "echo booting; exec sleep 1000");
    let config = ProbeConfig {
        qemu: &qemu,
        files: &files,
        // Any file that opens stands for the device.
        device: &files.kernel,
        result: &result,
        deadline: Duration::from_millis(300),
    };
    let runs = || fs::read_to_string(directory.path().join("runs")).unwrap();
    for _ in 0..2 {
        let begin = Instant::now();
        let error = choose(Choice::Auto, &config).unwrap_err().to_string();
        assert!(begin.elapsed() < PATIENCE);
        assert!(
            error.contains("opens, but a kernel did not boot on it in 0.3 s; its last words: booting"),
            "{error}"
        );
        assert!(error.ends_with("set machine.qemu.accelerator = \"tcg\" to emulate (slow)"), "{error}");
        assert_eq!(runs().lines().count(), 1);
    }
    let pid = runs().trim().to_owned();
    assert!(!Path::new("/proc").join(pid).exists());

    // Another QEMU is another matter.
    stand_in(directory.path(), "QEMU 2", "echo 'kina-guest: probe: 1 s on'");
    assert_eq!(choose(Choice::Auto, &config).unwrap(), Accelerator::Kvm);
    assert_eq!(choose(Choice::Auto, &config).unwrap(), Accelerator::Kvm);
    assert_eq!(runs().lines().count(), 2);

    stand_in(directory.path(), "QEMU 3", "echo no such machine; exit 1");
    let error = choose(Choice::Auto, &config).unwrap_err();
    assert!(
        matches!(&error, Error::NoAccelerator { reason, .. } if reason.contains("exit status: 1")),
        "{error}"
    );
}
