//! The first process of a virtual machine that has an init of its own, beside
//! which this is the only container: Apple's `container`, which boots one machine
//! for each container.
//!
//! That init has mounted the kernel's file systems and configured the network,
//! whose namespace is the machine's own. What it leaves to do: this process is in
//! the control group that the pod's groups will be below, and there may be none in
//! it then; files of /proc may be hidden. The guest proper runs as a child, as in
//! [`crate::init`], because it waits for its own children only. The machine ends
//! when this process does.
//!
//! Its root is the image's, on the machine's own disk, and the pod's state is in
//! it, unless that disk is an overlay. The guest's socket must be there, too: the
//! machine's init connects to it from outside of this mount namespace and sees
//! nothing that is mounted in it.

use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus};

use kina_cgroup::Hierarchy;
use kina_guest_api::MACHINE_STATE_DIRECTORY;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::sys::signal::{SigHandler, SigSet, Signal, kill, signal};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::arguments::Entry;
use crate::init::{complain, mount};

/// The group of this process and of what others start beside it.
const OWN_GROUP: &str = "/guest";

/// Runs the machine to its end.
pub(crate) fn run(options: &Entry) -> ExitCode {
    hear();
    prepare();
    let guest = match start(options) {
        Ok(guest) => guest,
        Err(error) => {
            complain("start the guest", error);
            return ExitCode::FAILURE;
        }
    };
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        signals.add(signal);
    }
    // Not before: a child has the signals blocked that its parent has, and all that it
    // starts have, too. Whatever has ended by now is found without a signal.
    if let Err(errno) = signals.thread_block() {
        complain("block signals", errno);
        return ExitCode::FAILURE;
    }
    let status = watch(guest.id(), &signals);
    complain("the guest has ended", status);
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}

/// Hears of its children's ends and of requests to end, whatever whoever started it has ignored:
/// the kernel tells nobody who ignores SIGCHLD, and a child ignores what its parent does.
#[allow(unsafe_code, reason = "signal dispositions are the process's")]
fn hear() {
    for name in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        // SAFETY: this process has no handlers yet.
        if let Err(errno) = unsafe { signal(name, SigHandler::SigDfl) } {
            complain("hear of signals", errno);
        }
    }
}

/// Makes the machine what the guest expects. What cannot be had shows when a
/// container needs it.
fn prepare() {
    let none = None::<&str>;
    if let Err(errno) = nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none) {
        complain("keep mounts apart", errno);
    }
    uncover();
    let mounted = mount_points();
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let terminals = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    for (kind, at, flags, options) in [
        ("devpts", "/dev/pts", terminals, Some("mode=620,gid=5,ptmxmode=666")),
        ("tmpfs", "/dev/shm", plain, Some("mode=1777")),
        ("mqueue", "/dev/mqueue", plain, None),
    ] {
        if !mounted.iter().any(|point| point == at) {
            mount(kind, kind, at, flags, options);
        }
    }
    for directory in ["/tmp", "/run", "/etc"] {
        drop(fs::create_dir_all(directory));
    }
    let state = Path::new(MACHINE_STATE_DIRECTORY);
    drop(fs::create_dir_all(state));
    if let Err(errno) = take_off_overlay(state) {
        complain("make room for what containers write", errno);
    }
    if let Err(error) = leave_the_root_group() {
        complain("move to a control group of its own", crate::guest::chain(&error));
    }
    if let Err(error) = crate::namespaces::bring_loopback_up() {
        complain("loopback", error);
    }
}

/// What containers write lies above their images in an overlay, and the kernel puts none on top
/// of another: where the machine's disk is one, memory takes its place.
fn take_off_overlay(directory: &Path) -> nix::Result<()> {
    if statfs(directory)?.filesystem_type() != OVERLAYFS_SUPER_MAGIC {
        return Ok(());
    }
    nix::mount::mount(Some("state"), directory, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
}

/// A group with processes hands nothing down to groups below it, unless it is
/// the kernel's root, which this one is not.
fn leave_the_root_group() -> Result<(), kina_cgroup::Error> {
    let group = Hierarchy::detect()?.group(OWN_GROUP)?;
    group.create()?;
    group.enter()
}

/// Takes away what hides files of /proc or makes them read-only, as containers
/// usually have it: the guest sets kernel parameters, and confines its containers
/// itself.
fn uncover() {
    for point in mount_points().iter().rev().filter(|point| point.starts_with("/proc/")) {
        if let Err(errno) = nix::mount::umount2(point.as_str(), MntFlags::MNT_DETACH) {
            complain(&format!("uncover {point}"), errno);
        }
    }
}

/// Where something is mounted, in order (proc_pid_mountinfo(5): the fifth field).
fn mount_points() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(str::to_owned).collect()
}

fn start(options: &Entry) -> io::Result<Child> {
    Command::new("/proc/self/exe")
        .args(["serve", "--own-kernel", "--pod", &options.pod, "--listen", &options.listen])
        .env_clear()
        .spawn()
}

/// Takes in orphans and passes requests to end on, until the guest has ended.
fn watch(guest: u32, signals: &SigSet) -> ExitStatus {
    let guest = Pid::from_raw(guest.cast_signed());
    loop {
        if let Some(status) = reap(guest) {
            return status;
        }
        match signals.wait() {
            Ok(Signal::SIGCHLD) | Err(_) => {}
            Ok(_) => {
                // It may have ended at this moment, which is found next.
                let _gone = kill(guest, Signal::SIGTERM);
            }
        }
    }
}

/// Waits for all that have ended; the guest's status if it is among them.
fn reap(guest: Pid) -> Option<ExitStatus> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == guest => {
                return Some(ExitStatus::from_raw(code << 8));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == guest => {
                return Some(ExitStatus::from_raw(signal as i32));
            }
            Ok(WaitStatus::StillAlive) => return None,
            Ok(_) | Err(Errno::EINTR) => {}
            // Without a child there is no guest.
            Err(_) => return Some(ExitStatus::from_raw(0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sched::CloneFlags;
    use nix::sys::statfs::TMPFS_MAGIC;

    use super::*;
    use crate::namespaces::in_thread;

    /// Run once more with SIGCHLD ignored, as some start their children.
    #[test]
    #[allow(unsafe_code, reason = "signal dispositions of a child")]
    fn the_end_of_a_child_is_heard_of() {
        use std::os::unix::process::CommandExt as _;
        const AGAIN: &str = "KINA_TEST_AGAIN";
        if std::env::var_os(AGAIN).is_some() {
            hear();
            assert!(Command::new("true").status().unwrap().success());
            return;
        }
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "entry::tests::the_end_of_a_child_is_heard_of"]).env(AGAIN, "");
        // SAFETY: a system call.
        unsafe {
            again.pre_exec(|| Ok(signal(Signal::SIGCHLD, SigHandler::SigIgn).map(|_| ())?));
        }
        let output = again.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    #[test]
    fn state_does_not_lie_on_an_overlay() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().to_owned();
        in_thread("test", move || {
            let none = None::<&str>;
            nix::sched::unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
            nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            nix::mount::mount(Some("disk"), &root, Some("tmpfs"), MsFlags::empty(), none).unwrap();
            for name in ["lower", "upper", "work", "merged"] {
                fs::create_dir(root.join(name)).unwrap();
            }
            let at = |name: &str| root.join(name).display().to_string();
            let options = format!("lowerdir={},upperdir={},workdir={}", at("lower"), at("upper"), at("work"));
            let merged = root.join("merged");
            nix::mount::mount(Some("o"), &merged, Some("overlay"), MsFlags::empty(), Some(&*options))
                .unwrap();
            let state = merged.join("state");
            fs::create_dir(&state).unwrap();
            for _ in 0..2 {
                take_off_overlay(&state).unwrap();
                assert_eq!(statfs(&state).unwrap().filesystem_type(), TMPFS_MAGIC);
            }
            let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            assert_eq!(mounts.matches("merged/state").count(), 1, "{mounts}");
            // A disk that is none is left alone.
            let lower = root.join("lower");
            take_off_overlay(&lower).unwrap();
            assert!(!fs::read_to_string("/proc/thread-self/mountinfo").unwrap().contains("/lower "));
            Ok(())
        })
        .unwrap();
    }
}
