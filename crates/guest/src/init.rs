//! The first process of a machine. It makes the kernel's file systems
//! available, starts the guest proper as a child, takes in orphans, and
//! switches the machine off when the guest ends.
//!
//! Orphans are kept apart from the guest's own children by that: the guest
//! waits for its children only, and this process for everything else.
//!
//! From the kernel's initramfs it loads modules and moves to a tmpfs, since a
//! container's pivot_root refuses the initramfs. Its own file stays where it is,
//! in memory once, and is started from there as `/proc/self/exe`.
//!
//! A machine that lacks what its command line promises (a shared directory, its
//! disk) switches itself off: the console has the reason.

mod options;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::mount::MsFlags;

use options::{Mounted, Options};

/// Where the root moves to.
const NEW_ROOT: &str = "/new";
/// Modules to load, in order, one path below /modules a line.
const MODULE_LIST: &str = "/modules/list";
/// How long the disk's device may take to appear, and between two looks at it.
const DISK_PATIENCE: Duration = Duration::from_secs(5);
const DISK_PAUSE: Duration = Duration::from_millis(5);
/// The longest line of the guest that a probe looks at.
const PROBE_LINE_LIMIT: u64 = 4096;

/// Whether the kernel has started this process as the machine's first.
pub(crate) fn started_by_kernel(program: Option<&str>) -> bool {
    std::process::id() == 1 && program == Some("/init")
}

pub(crate) fn complain(what: &str, error: impl std::fmt::Display) {
    drop(writeln!(io::stderr(), "kina-guest: {what}: {error}"));
}

/// Mounts a file system of the kernel's; one that is mounted already is fine.
pub(crate) fn mount(kind: &str, source: &str, at: &str, flags: MsFlags, options: Option<&str>) -> bool {
    if let Err(error) = fs::create_dir_all(at) {
        complain(at, error);
        return false;
    }
    match nix::mount::mount(Some(source), at, Some(kind), flags, options) {
        Ok(()) | Err(nix::errno::Errno::EBUSY) => true,
        Err(error) => {
            complain(&format!("mount {kind} at {at}"), error);
            false
        }
    }
}

/// Runs the machine, from the initramfs to its end. Returns only when that
/// fails, or even switching off does.
pub(crate) fn run() -> io::Error {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount("proc", "proc", "/proc", plain, None);
    mount("sysfs", "sysfs", "/sys", plain, None);
    mount("devtmpfs", "devtmpfs", "/dev", MsFlags::MS_NOSUID, Some("mode=755"));
    load_modules();
    match move_root() {
        Ok(()) => run_machine(),
        Err(error) => error,
    }
}

fn load_modules() {
    let Ok(list) = fs::read_to_string(MODULE_LIST) else {
        return;
    };
    for name in list.lines().map(str::trim).filter(|name| !name.is_empty()) {
        let path = Path::new("/modules").join(name.trim_start_matches('/'));
        let loaded = fs::File::open(&path)
            .and_then(|file| rustix::system::finit_module(&file, c"", 0).map_err(io::Error::from));
        match loaded {
            Ok(()) => {}
            // Built in or loaded already.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => complain(&path.display().to_string(), error),
        }
    }
}

fn move_root() -> io::Result<()> {
    let none = None::<&str>;
    fs::create_dir_all(NEW_ROOT)?;
    nix::mount::mount(Some("root"), NEW_ROOT, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
    for directory in ["proc", "sys", "dev"] {
        let to = format!("{NEW_ROOT}/{directory}");
        fs::create_dir(&to)?;
        let from = format!("/{directory}");
        nix::mount::mount(Some(from.as_str()), to.as_str(), none, MsFlags::MS_MOVE, none)?;
    }
    // The initramfs is memory; what is not needed any more is given back.
    drop(fs::remove_dir_all("/modules"));
    nix::unistd::chdir(NEW_ROOT)?;
    nix::mount::mount(Some("."), "/", none, MsFlags::MS_MOVE, none)?;
    nix::unistd::chroot(".")?;
    nix::unistd::chdir("/")?;
    Ok(())
}

/// The machine's first process proper, on the tmpfs.
fn run_machine() -> io::Error {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    for directory in ["/tmp", "/etc"] {
        drop(fs::create_dir_all(directory));
    }
    mount("tmpfs", "run", "/run", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=755"));
    mount(
        "devpts",
        "devpts",
        "/dev/pts",
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        Some("mode=620,gid=5,ptmxmode=666"),
    );
    mount("tmpfs", "shm", "/dev/shm", plain, Some("mode=1777"));
    mount("mqueue", "mqueue", "/dev/mqueue", plain, None);
    mount("cgroup2", "cgroup2", "/sys/fs/cgroup", plain, None);
    // Where the kernel has them, it has made the places.
    for (kind, at) in [("securityfs", "/sys/kernel/security"), ("selinuxfs", "/sys/fs/selinux")] {
        if Path::new(at).exists() {
            mount(kind, kind, at, plain, None);
        }
    }
    if let Err(error) = crate::namespaces::bring_loopback_up() {
        complain("loopback", error);
    }
    let options = Options::parse(&fs::read_to_string("/proc/cmdline").unwrap_or_default());
    if mount_promised(&options) {
        if options.probe {
            probe(&options);
        } else {
            serve(&options);
        }
    }
    switch_off()
}

/// Mounts what the command line names; whether all of it is there.
fn mount_promised(options: &Options) -> bool {
    let shares = options.shares.iter().all(|Mounted { source, at }| {
        mount("virtiofs", source, at, MsFlags::MS_NOSUID | MsFlags::MS_NODEV, None)
    });
    shares
        && options.disk.as_ref().is_none_or(|Mounted { source, at }| {
            appears(source) && mount("ext4", source, at, MsFlags::MS_NOATIME, None)
        })
}

/// Waits for a device: its driver may still be looking at it.
fn appears(device: &str) -> bool {
    let end = Instant::now() + DISK_PATIENCE;
    while !Path::new(device).exists() {
        if Instant::now() >= end {
            complain(device, format!("no such device after {DISK_PATIENCE:?}"));
            return false;
        }
        std::thread::sleep(DISK_PAUSE);
    }
    true
}

/// Runs the guest to its end.
fn serve(options: &Options) {
    match start(options, Stdio::inherit()) {
        Ok(guest) => {
            let status = reap_until(guest.id());
            complain("the guest has ended", status);
        }
        Err(error) => complain("start the guest", error),
    }
}

/// Runs the guest until it listens, and tells the console how the boot went.
fn probe(options: &Options) {
    let mut guest = match start(options, Stdio::piped()) {
        Ok(guest) => guest,
        Err(error) => return complain("start the guest", error),
    };
    let Some(stderr) = guest.stderr.take() else {
        return;
    };
    let mut output = BufReader::new(stderr);
    let mut line = Vec::new();
    while let Ok(1..) = output.by_ref().take(PROBE_LINE_LIMIT).read_until(b'\n', &mut line) {
        drop(io::stderr().write_all(&line));
        if String::from_utf8_lossy(&line).contains("listens on") {
            let since = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
            let uptime = Duration::try_from(since).unwrap_or_default();
            let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
            let status = fs::read_to_string(format!("/proc/{}/status", guest.id())).unwrap_or_default();
            complain("probe", options::report(uptime, &meminfo, &status));
            return;
        }
        line.clear();
    }
}

fn start(options: &Options, stderr: Stdio) -> io::Result<Child> {
    let program = options.program.as_deref().unwrap_or("/proc/self/exe");
    Command::new(program).args(options.serve()).env_clear().stderr(stderr).spawn()
}

/// Waits for everything that ends, until the guest does.
fn reap_until(guest: u32) -> ExitStatus {
    loop {
        match nix::sys::wait::wait() {
            Ok(nix::sys::wait::WaitStatus::Exited(pid, code)) if pid.as_raw().unsigned_abs() == guest => {
                return ExitStatus::from_raw(code << 8);
            }
            Ok(nix::sys::wait::WaitStatus::Signaled(pid, signal, _))
                if pid.as_raw().unsigned_abs() == guest =>
            {
                return ExitStatus::from_raw(signal as i32);
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            // Without a child there is no guest.
            Err(_) => return ExitStatus::from_raw(0),
        }
    }
}

fn switch_off() -> io::Error {
    nix::unistd::sync();
    match nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_POWER_OFF) {
        Ok(never) => match never {},
        Err(errno) => errno.into(),
    }
}
