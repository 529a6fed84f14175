//! The first process of a PID namespace that a pod's containers share.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::error::Error;

/// The namespace's first process, as the guest sees it. It dies with the guest;
/// dropping this kills it, and with it every process of the namespace.
#[derive(Debug)]
pub(crate) struct Pause {
    descriptor: OwnedFd,
    pid: i32,
}

impl Pause {
    /// Starts it. Must be called on the guest's main thread: the process dies
    /// with the thread that started it.
    #[allow(unsafe_code, reason = "clone3 into a new namespace")]
    pub(crate) fn start() -> Result<Self, Error> {
        let operation = "start the pod's first process";
        let program = CString::from(c"/proc/self/exe");
        let arguments = [c"kina-guest".as_ptr(), c"pause".as_ptr(), std::ptr::null()];
        let environment = [std::ptr::null()];
        let mut descriptor: libc::c_int = -1;
        // SAFETY: all zeros is a valid clone_args.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = u64::from((libc::CLONE_NEWPID | libc::CLONE_PIDFD).cast_unsigned());
        args.pidfd = (&raw mut descriptor).addr() as u64;
        args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
        // SAFETY: without CLONE_VM this is fork; the child makes async-signal-safe
        // calls only, on memory that was prepared before.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
        if pid == 0 {
            // SAFETY: plain system calls on valid, terminated arrays; none returns into Rust.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr());
                libc::_exit(127);
            }
        }
        if pid < 0 {
            return Err(Error::system(operation, io::Error::last_os_error()));
        }
        // SAFETY: the kernel has just put a new descriptor there, which nobody else owns.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        Ok(Self { descriptor, pid: i32::try_from(pid).unwrap_or(i32::MAX) })
    }

    /// Takes over a process that another one has made a child of this guest's
    /// main thread (see [`fork_sibling`]).
    pub(crate) fn adopt(pid: i32) -> Result<Self, Error> {
        let failed = |errno: Errno| Error::system("take over the pod's first process", errno);
        let known = Pid::from_raw(pid).ok_or_else(|| failed(Errno::SRCH))?;
        let descriptor = rustix::process::pidfd_open(known, PidfdFlags::empty()).map_err(failed)?;
        Ok(Self { descriptor, pid })
    }

    /// The namespace itself, to be joined.
    pub(crate) fn namespace(&self) -> Result<OwnedFd, Error> {
        let path = format!("/proc/{}/ns/pid", self.pid);
        std::fs::File::open(&path).map(OwnedFd::from).map_err(|source| Error::file("open", path, source))
    }
}

impl Drop for Pause {
    #[allow(unsafe_code, reason = "waitid on a pidfd that no crate takes borrowed with WNOWAIT off")]
    fn drop(&mut self) {
        let _ = rustix::process::pidfd_send_signal(&self.descriptor, rustix::process::Signal::KILL);
        let id = u32::try_from(self.descriptor.as_raw_fd()).unwrap_or(u32::MAX);
        // SAFETY: the descriptor is open, and no result is asked for. SIGKILL ends the wait.
        unsafe { libc::waitid(libc::P_PIDFD, id, std::ptr::null_mut(), libc::WEXITED) };
    }
}

/// Starts it in the PID namespace that the calling process, which has one thread,
/// makes its children in, as a child of that process's parent.
#[allow(unsafe_code, reason = "clone3 with another parent")]
pub(crate) fn fork_sibling() -> io::Result<i32> {
    // SAFETY: all zeros is a valid clone_args.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    // The signal at its end is that of the caller, SIGCHLD.
    args.flags = u64::from(libc::CLONE_PARENT.cast_unsigned());
    // SAFETY: without CLONE_VM this is fork, and there is no other thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    match pid {
        0 => {
            // SAFETY: nothing here uses a descriptor any more, and whoever waits for the end of
            // one shall not wait for this process.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0);
            }
            run()
        }
        1.. => i32::try_from(pid).map_err(io::Error::other),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What the process does: take in orphans and wait for the end. Signals from
/// inside the namespace do not reach it, as for every first process.
#[allow(unsafe_code, reason = "signal calls")]
pub(crate) fn run() -> ! {
    // SAFETY: a terminated name, for those who list processes.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"kina-pause".as_ptr()) };
    // SAFETY: no handler runs; an ignored SIGCHLD makes the kernel reap at once.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    loop {
        // SAFETY: takes nothing and touches nothing.
        unsafe { libc::pause() };
    }
}
