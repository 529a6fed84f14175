//! Makes the process of a daemon: in its cgroups from the start, in a session of
//! its own, with nothing open but what it is given.
//!
//! The standard library's `Command` cannot make a process in a cgroup, and
//! moving it there afterwards is what costs most of a guest's start.

#![allow(unsafe_code, reason = "a forked child of a threaded process makes bare system calls")]

use std::ffi::{CStr, CString};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::Arc;

use kina_fork::Forked;
use rustix::pipe::PipeFlags;

use super::control_groups::Membership;
use crate::Account;

/// `CLOSE_RANGE_CLOEXEC` of linux/close_range.h (Linux 5.11).
const CLOSE_RANGE_CLOEXEC: libc::c_int = 4;

/// Where descriptors lie that the child uses, above those that it is given.
const ABOVE: RawFd = 256;

/// What is executed, and how.
pub(crate) struct Image {
    /// Path of the program.
    pub(crate) program: CString,
    /// Its arguments, its own name first.
    pub(crate) args: Vec<CString>,
    /// `NAME=value` for its whole environment.
    pub(crate) env: Vec<CString>,
    /// Standard output and error; `/dev/null` without.
    pub(crate) output: Option<OwnedFd>,
    /// Further descriptors, which it finds from 3 on.
    pub(crate) inherit: Vec<Arc<OwnedFd>>,
    /// The network namespace that it is in.
    pub(crate) network: Network,
    /// The user that it becomes, with its groups.
    pub(crate) user: Option<Account>,
    /// Whether it can no longer gain privileges by executing something.
    pub(crate) no_new_privileges: bool,
}

/// The network of a process.
pub(crate) enum Network {
    /// The daemon's own.
    Node,
    /// This namespace.
    Namespace(OwnedFd),
    /// A new namespace with nothing in it.
    Empty,
}

/// All that the child uses, made before it exists: it may not allocate.
struct Prepared<'a> {
    program: &'a CStr,
    args: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
    null: RawFd,
    output: RawFd,
    /// Copied to 3 and on.
    inherit: Vec<RawFd>,
    network: Option<RawFd>,
    empty_network: bool,
    user: Option<&'a Account>,
    no_new_privileges: bool,
    /// Where the child writes the error number when it does not get to execute.
    report: RawFd,
    /// Files to write `0` to.
    join: Vec<RawFd>,
}

/// A copy of a descriptor that no descriptor of the child's overwrites.
fn above(descriptor: &impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(descriptor, ABOVE)?)
}

fn pointers(texts: &[CString]) -> Vec<*const libc::c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

/// Starts a process and returns once it has been executed. Blocks.
///
/// # Errors
/// What execve(2), or a step before it, answered.
pub(crate) fn start(image: &Image, membership: &Membership) -> io::Result<Forked> {
    let null = above(&OpenOptions::new().read(true).write(true).open("/dev/null")?)?;
    let (reading, low) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let writing = above(&low)?;
    // The end of the pipe shows that the child has been executed.
    drop(low);
    let output = image.output.as_ref().map(above).transpose()?;
    let inherit = image.inherit.iter().map(above).collect::<io::Result<Vec<_>>>()?;
    let tasks = membership.tasks.iter().map(above).collect::<io::Result<Vec<_>>>()?;
    let network = match &image.network {
        Network::Namespace(namespace) => Some(above(namespace)?),
        Network::Node | Network::Empty => None,
    };
    let processes = membership.unified.as_ref().map(|unified| above(&unified.processes)).transpose()?;
    let mut prepared = Prepared {
        program: &image.program,
        args: pointers(&image.args),
        env: pointers(&image.env),
        null: null.as_raw_fd(),
        output: output.as_ref().unwrap_or(&null).as_raw_fd(),
        inherit: inherit.iter().map(AsRawFd::as_raw_fd).collect(),
        network: network.as_ref().map(AsRawFd::as_raw_fd),
        empty_network: matches!(image.network, Network::Empty),
        user: image.user.as_ref(),
        no_new_privileges: image.no_new_privileges,
        report: writing.as_raw_fd(),
        join: tasks.iter().map(AsRawFd::as_raw_fd).collect(),
    };
    let daemon = match &membership.unified {
        None => clone(&prepared, None)?,
        Some(unified) => match clone(&prepared, Some(&unified.directory)) {
            Ok(daemon) => daemon,
            // An old kernel, or a seccomp filter that knows clone3 not. The
            // process then moves itself.
            Err(_) => {
                prepared.join.extend(processes.as_ref().map(AsRawFd::as_raw_fd));
                clone(&prepared, None)?
            }
        },
    };
    drop(writing);
    let mut report = [0; 4];
    match File::from(reading).read_exact(&mut report) {
        Ok(()) => {
            // It is about to exit; leave no zombie.
            drop(reap(&daemon.pidfd));
            Err(io::Error::from_raw_os_error(i32::from_ne_bytes(report)))
        }
        // Closed by execve.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(daemon),
        Err(error) => Err(error),
    }
}

/// Waits for the end of a process that this one started. Blocks.
pub(crate) fn reap(pidfd: &OwnedFd) -> io::Result<Option<rustix::process::WaitIdStatus>> {
    use rustix::process::{WaitId, WaitIdOptions};

    Ok(rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)?)
}

fn clone(prepared: &Prepared<'_>, cgroup: Option<&File>) -> io::Result<Forked> {
    // SAFETY: `child` makes async-signal-safe calls only, on what was made before.
    unsafe { kina_fork::fork(0, cgroup.map(AsFd::as_fd), || child(prepared)) }
}

/// In the child: only async-signal-safe calls, on what was made before.
fn child(prepared: &Prepared<'_>) -> ! {
    // SAFETY: each call is async-signal-safe and works on numbers, on static
    // texts, or on memory that is a copy of what the parent made for it; the
    // arrays end in null pointers.
    unsafe {
        let fail = || -> ! {
            let error = (*libc::__errno_location()).to_ne_bytes();
            libc::write(prepared.report, error.as_ptr().cast(), error.len());
            libc::_exit(127)
        };
        // Out of the daemon's session: its terminal and its signals.
        if libc::setsid() < 0 {
            fail();
        }
        libc::umask(0o022);
        for file in &prepared.join {
            if libc::write(*file, c"0".as_ptr().cast(), 1) != 1 {
                fail();
            }
        }
        for (wanted, standard) in [(prepared.null, 0), (prepared.output, 1), (prepared.output, 2)] {
            if libc::dup2(wanted, standard) < 0 {
                fail();
            }
        }
        if let Some(network) = prepared.network
            && libc::setns(network, libc::CLONE_NEWNET) < 0
        {
            fail();
        }
        if prepared.empty_network && libc::unshare(libc::CLONE_NEWNET) < 0 {
            fail();
        }
        if libc::chdir(c"/".as_ptr()) < 0 {
            fail();
        }
        // Rust opens everything close-on-exec; a C library may not have.
        // Kernels that do not know the flag refuse it, which is no loss.
        libc::close_range(3, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC);
        for (given, descriptor) in (3..).zip(&prepared.inherit) {
            // A copy is not closed on execution.
            if libc::dup2(*descriptor, given) < 0 {
                fail();
            }
        }
        // No handler of the daemon runs once signals are let in again, and what
        // the daemon ignores is not ignored by the guest. Those that cannot be
        // changed are refused.
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
        if let Some(user) = prepared.user {
            // What it executes can gain no capability, whatever the file says.
            // The kernel refuses numbers that are beyond its last one.
            let none: libc::c_ulong = 0;
            for capability in none..64 {
                libc::prctl(libc::PR_CAPBSET_DROP, capability, none, none, none);
            }
            // By number: the library's functions would make every thread of
            // the daemon, of which there is none here, change too.
            if libc::syscall(libc::SYS_setgroups, user.groups.len(), user.groups.as_ptr()) < 0
                || libc::syscall(libc::SYS_setresgid, user.gid, user.gid, user.gid) < 0
                || libc::syscall(libc::SYS_setresuid, user.uid, user.uid, user.uid) < 0
            {
                fail();
            }
        }
        if prepared.no_new_privileges && libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 {
            fail();
        }
        libc::execve(prepared.program.as_ptr(), prepared.args.as_ptr(), prepared.env.as_ptr());
        fail()
    }
}
