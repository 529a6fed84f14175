//! Starting the helper from a process with many threads.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::sys;

/// The helper's end of the socket.
pub(crate) const SOCKET: RawFd = 3;
/// The order.
pub(crate) const ORDER: RawFd = 4;
/// A detached root mount or the container's pidfd.
pub(crate) const EXTRA: RawFd = 5;
/// The first number that the helper closes.
pub(crate) const FIRST_FREE: RawFd = 6;
/// Above every fixed number.
const PARKING: RawFd = 64;

/// Opens a program so that whoever executes the descriptor cannot be made to give write access to
/// the file: through a read-only mount of its own, or where that cannot be made, as a sealed copy.
pub(crate) fn open_sealed(program: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(rustix::fs::CWD, program, flags).map_err(io::Error::from);
    let mount = mount.and_then(|mount| {
        sys::mount_setattr(mount.as_fd(), false, libc::MOUNT_ATTR_RDONLY, 0, 0)?;
        Ok(mount)
    });
    match mount {
        Ok(mount) => Ok(mount),
        Err(_) => sealed_copy(program),
    }
}

fn sealed_copy(program: &Path) -> io::Result<OwnedFd> {
    let mut from = File::from(rustix::fs::open(program, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(rustix::fs::memfd_create(c"kina-launch", flags)?);
    io::copy(&mut from, &mut copy)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&copy, seals)?;
    Ok(copy.into())
}

/// What is executed as the helper.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) file: OwnedFd,
    pub(crate) arguments: Vec<CString>,
}

/// Descriptors for the helper, by the number that each will have.
pub(crate) struct Descriptors<'a> {
    pub(crate) streams: [&'a OwnedFd; 3],
    pub(crate) socket: &'a OwnedFd,
    /// Without one it is to be a [`Forker`](crate::forker::Forker).
    pub(crate) order: Option<&'a OwnedFd>,
    pub(crate) extra: Option<&'a OwnedFd>,
}

impl Descriptors<'_> {
    /// Their present numbers in the order of their places; -1 for none.
    fn numbers(&self) -> [RawFd; 6] {
        let [stdin, stdout, stderr] = self.streams.map(AsRawFd::as_raw_fd);
        let number = |descriptor: Option<&OwnedFd>| descriptor.map_or(-1, AsRawFd::as_raw_fd);
        [stdin, stdout, stderr, self.socket.as_raw_fd(), number(self.order), number(self.extra)]
    }
}

/// Forks and executes the helper; returns its pid and pidfd. The environment is empty. `cgroup` is
/// the directory of the cgroup2 group that it is born in.
pub(crate) fn spawn(
    program: &Program,
    descriptors: &Descriptors<'_>,
    cgroup: Option<&OwnedFd>,
) -> io::Result<(i32, OwnedFd)> {
    let mut argv: Vec<*const libc::c_char> = program.arguments.iter().map(|a| a.as_ptr()).collect();
    argv.push(std::ptr::null());
    let envp = [std::ptr::null::<libc::c_char>()];
    let program = program.file.as_raw_fd();
    let numbers = descriptors.numbers();
    let child = || -> libc::c_int {
        // SAFETY: in the child; every pointer was made before the fork and is null-terminated.
        unsafe { become_helper(program, argv.as_ptr(), envp.as_ptr(), numbers) }
    };
    // SAFETY: `become_helper` makes system calls only.
    let forked = unsafe { kina_fork::fork(0, cgroup.map(AsFd::as_fd), child) }?;
    let pid = i32::try_from(forked.pid).map_err(io::Error::other)?;
    Ok((pid, forked.pidfd))
}

/// Puts the descriptors in their places and executes the helper.
///
/// # Safety
/// To be called in a forked child. Makes only system calls that are async-signal-safe, and does
/// not allocate.
unsafe fn become_helper(
    program: RawFd,
    argv: *const *const libc::c_char,
    envp: *const *const libc::c_char,
    numbers: [RawFd; 6],
) -> ! {
    // SAFETY: numbers and valid pointers only.
    unsafe {
        let program = libc::fcntl(program, libc::F_DUPFD_CLOEXEC, PARKING);
        put_in_place(numbers);
        libc::syscall(libc::SYS_close_range, FIRST_FREE, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::syscall(libc::SYS_execveat, program, c"".as_ptr(), argv, envp, libc::AT_EMPTY_PATH);
        // The launcher finds the error number in the exit code.
        libc::_exit(*libc::__errno_location());
    }
}

/// Gives descriptors the numbers 0 to 5, in their order; nothing is open where there is none.
///
/// # Safety
/// Nothing in this process owns those numbers. Makes only system calls that are
/// async-signal-safe, and does not allocate.
pub(crate) unsafe fn put_in_place(mut numbers: [RawFd; 6]) {
    // SAFETY: numbers only.
    unsafe {
        // First out of the way, so that no target number is still somebody's source.
        for number in numbers.iter_mut().filter(|number| **number >= 0) {
            *number = libc::fcntl(*number, libc::F_DUPFD_CLOEXEC, PARKING);
        }
        for (number, place) in numbers.into_iter().zip(0..) {
            if number >= 0 {
                libc::dup2(number, place);
            } else {
                libc::close(place);
            }
        }
    }
}
