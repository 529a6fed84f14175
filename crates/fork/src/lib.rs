//! Forks off a process of a program with many threads: with a descriptor of its own, in
//! namespaces or a control group from its start.
//!
//! The standard library's `Command` can do neither, and forks no process that goes on
//! with the same program.
#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "clone3 has no safe wrapper")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// `CLONE_INTO_CGROUP` of linux/sched.h.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A process that was forked off; whoever has it reaps it.
#[derive(Debug)]
pub struct Forked {
    /// Its number.
    pub pid: u32,
    /// It itself, whoever gets its number later.
    pub pidfd: OwnedFd,
}

/// Forks off a process that runs `child` and exits with what it returns, in the new namespaces that `namespaces`
/// (`CLONE_NEW*`) names, and in the cgroup2 group of that directory. All its signals are
/// blocked: no handler of this process runs in it. SIGCHLD tells of its end.
///
/// # Errors
/// What clone3(2) answered.
///
/// # Safety
/// The child is a copy of one thread of many: `child` may only make calls that are
/// async-signal-safe, and neither allocate nor take a lock nor panic.
pub unsafe fn fork(
    namespaces: libc::c_int,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> libc::c_int,
) -> io::Result<Forked> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all zeros is a valid clone_args.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = u64::from((namespaces | libc::CLONE_PIDFD).cast_unsigned());
    arguments.pidfd = (&raw mut pidfd).expose_provenance() as u64;
    arguments.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::try_from(cgroup.as_raw_fd()).map_err(io::Error::other)?;
    }
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets live until the calls return; sigfillset initialises the first.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
    }
    // SAFETY: the arguments are laid out as the kernel wants them and live until the call
    // returns. Without CLONE_VM and a stack this is a fork: the child goes on here, on a copy
    // of this thread's stack, and exits.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of_val(&arguments)) };
    if pid == 0 {
        let code = child();
        // SAFETY: async-signal-safe.
        unsafe { libc::_exit(code) };
    }
    let result = if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: pthread_sigmask initialised `before` above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    result?;
    // SAFETY: the kernel has just put a new descriptor there, which nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Forked { pid: u32::try_from(pid).map_err(io::Error::other)?, pidfd })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};

    use super::*;

    fn end(forked: &Forked) -> WaitIdStatus {
        waitid(WaitId::PidFd(forked.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap()
    }

    /// The signals that this thread has blocked.
    fn blocked() -> String {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        status.lines().find(|line| line.starts_with("SigBlk:")).unwrap().to_owned()
    }

    #[test]
    fn a_child_runs_with_its_signals_blocked() {
        let before = blocked();
        let child = || {
            // SAFETY: calls on numbers, and on a set of the child's own.
            unsafe {
                let mut set = MaybeUninit::<libc::sigset_t>::uninit();
                libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), set.as_mut_ptr());
                let blocked = libc::sigismember(set.as_ptr(), libc::SIGTERM) == 1;
                if blocked && libc::getpid() == 1 { 7 } else { 8 }
            }
        };
        // SAFETY: the child makes system calls and ends.
        let forked = unsafe { fork(libc::CLONE_NEWPID, None, child) }.unwrap();
        assert_eq!(end(&forked).exit_status(), Some(7));
        assert!(forked.pid > 1);
        assert_eq!(blocked(), before);
    }

    #[test]
    fn what_the_kernel_refuses_is_told() {
        let before = blocked();
        let file = std::fs::File::open("/proc/self/status").unwrap();
        // SAFETY: there is no child.
        let refused = unsafe { fork(0, Some(file.as_fd()), || 9) };
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(blocked(), before);
    }
}
