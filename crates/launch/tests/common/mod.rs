//! What the tests share: the helper inside the test program, a root filesystem, guards.
#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test")]
#![allow(dead_code, reason = "not every test program uses all of it")]

use std::ffi::{CStr, c_char, c_int};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kina_cgroup::{Group, Hierarchy};
use kina_launch::{Created, Error, Launcher, Plan, RootFs, Stdio};
use oci_spec::runtime::Spec;
use rustix::process::{WaitId, WaitIdOptions};

pub const LONG: Duration = Duration::from_secs(20);

/// Runs before `main`, where the test harness makes no thread yet: the helper's place in a program
/// whose `main` is not ours.
extern "C" fn maybe_helper(count: c_int, arguments: *const *const c_char, _: *const *const c_char) {
    let argument = |index: usize| {
        let count = usize::try_from(count).unwrap_or(0);
        // SAFETY: the C library passes main's own arguments: `count` strings.
        (index < count).then(|| unsafe { CStr::from_ptr(*arguments.add(index)) })
    };
    if argument(1) == Some(c"kina-launch-helper") {
        kina_launch::helper_main();
    }
    if argument(2) == Some(c"kina-launch-caller") {
        let text = |index: usize| argument(index).unwrap().to_str().unwrap();
        hold_a_created_process(text(3), text(4));
    }
}

/// Creates a process and neither starts nor ends it.
fn hold_a_created_process(root: &str, group: &str) -> ! {
    let cgroup = Some(Hierarchy::detect().unwrap().group(group).unwrap());
    let stdio = Stdio::Files { stdin: null(), stdout: null(), stderr: null() };
    let plan = Plan { spec: shell("true"), rootfs: RootFs::Path(root.into()), stdio, cgroup };
    let _created = launcher().create(plan).unwrap();
    loop {
        std::thread::park();
    }
}

#[used]
#[unsafe(link_section = ".init_array")]
static MAYBE_HELPER: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = maybe_helper;

pub fn launcher() -> Launcher {
    let program = Path::new("/proc/self/exe");
    Launcher::new(program, &["kina-launch", "kina-launch-helper"]).unwrap()
}

/// A root filesystem with busybox, and a control group; both go away at the end.
pub struct Place {
    directory: tempfile::TempDir,
    pub group: Group,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Place {
    pub fn new() -> Self {
        let busybox = Path::new("/bin/busybox");
        assert!(busybox.exists(), "these tests need a static busybox: apt-get install -y busybox-static");
        let directory = tempfile::Builder::new().prefix("kina-launch").tempdir().unwrap();
        let root = directory.path().join("root");
        for name in ["bin", "etc", "tmp", "proc", "sys", "dev", "home"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::copy(busybox, root.join("bin/busybox")).unwrap();
        for applet in [
            "sh", "cat", "sleep", "ls", "id", "mount", "grep", "echo", "true", "false", "stat", "head",
            "hostname", "env", "pwd", "mknod", "kill", "readlink", "dd", "tty", "ps", "unshare", "umount",
            "touch", "sort", "sed", "wc", "mkdir", "chown", "chmod", "stty",
        ] {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nu:x:1000:1000::/home/u:/bin/sh\n")
            .unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = format!("/kina-launch-test-{}-{number}", std::process::id());
        let group = Hierarchy::detect().unwrap().group(&path).unwrap();
        Self { directory, group }
    }

    pub fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    pub fn bundle(&self) -> &Path {
        self.directory.path()
    }

    pub fn rootfs(&self) -> RootFs {
        RootFs::Path(self.root())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.group.exists() {
            self.group.kill_all(LONG).unwrap();
            self.group.delete(LONG).unwrap();
        }
    }
}

/// A spec for a shell script with the defaults.
pub fn shell(script: &str) -> Spec {
    let mut spec = kina_launch::defaults::spec();
    set_args(&mut spec, &["/bin/sh", "-c", script]);
    spec
}

pub fn set_args(spec: &mut Spec, args: &[&str]) {
    let process = spec.process_mut().as_mut().unwrap();
    process.set_args(Some(args.iter().map(|arg| (*arg).to_owned()).collect()));
}

/// A pipe: what reads, what writes.
pub fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

pub fn null() -> OwnedFd {
    File::options().read(true).write(true).open("/dev/null").unwrap().into()
}

/// Standard streams whose output and errors go to one pipe.
pub fn streams() -> (Stdio, OwnedFd) {
    let (read, write) = pipe();
    let stderr = write.try_clone().unwrap();
    let stdio = Stdio::Files { stdin: null(), stdout: write, stderr };
    (stdio, read)
}

pub fn read_all(descriptor: OwnedFd) -> String {
    let mut bytes = Vec::new();
    match File::from(descriptor).read_to_end(&mut bytes) {
        Ok(_) => {}
        // How a terminal ends.
        Err(error) if error.raw_os_error() == Some(libc::EIO) => {}
        Err(error) => panic!("{error}"),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Exit code, or 128 and the signal.
pub fn wait(created_pidfd: &OwnedFd) -> i32 {
    let status = rustix::process::waitid(WaitId::PidFd(created_pidfd.as_fd()), WaitIdOptions::EXITED)
        .unwrap()
        .unwrap();
    status.exit_status().unwrap_or_else(|| 128 + status.terminating_signal().unwrap())
}

/// Starts, reads the output to its end, waits.
pub fn finish(created: Created, output: OwnedFd) -> (i32, String) {
    let Created { pidfd, start, .. } = created;
    start.start().unwrap();
    let text = read_all(output);
    (wait(&pidfd), text)
}

/// Runs a spec to its end.
pub fn run(place: &Place, spec: &Spec) -> Result<(i32, String), Error> {
    let (stdio, output) = streams();
    let created = launcher().create(Plan {
        spec: spec.clone(),
        rootfs: place.rootfs(),
        stdio,
        cgroup: Some(place.group.clone()),
    })?;
    Ok(finish(created, output))
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < LONG, "waited in vain for {what}");
        std::thread::yield_now();
    }
}
