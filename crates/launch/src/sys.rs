//! System calls without a safe wrapper elsewhere, each made safe here.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::c_long;

/// `mount_setattr`: `set`, `clear` and `propagation` on a mount, or on all below it.
pub(crate) fn mount_setattr(
    mount: BorrowedFd<'_>,
    recursive: bool,
    set: u64,
    clear: u64,
    propagation: u64,
) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    let attributes = Attributes { set, clear, propagation, user_namespace: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string and the attributes are a `struct mount_attr` of the
    // size that is passed; both outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    })?;
    Ok(())
}

/// Changes the propagation of a mount by path: `flags` are `MS_*`.
pub(crate) fn change_propagation(path: &CStr, flags: u64) -> io::Result<()> {
    // SAFETY: the path is a C string; the other pointers may be null for a propagation change.
    check_int(unsafe {
        libc::mount(std::ptr::null(), path.as_ptr(), std::ptr::null(), flags, std::ptr::null())
    })
}

/// `clone3` as a fork with these flags, into the cgroup2 group of a directory if one is given:
/// returns 0 in the child.
///
/// # Safety
/// If the process has more than one thread, the child may only make async-signal-safe calls.
pub(crate) unsafe fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<i32> {
    /// `CLONE_INTO_CGROUP` of linux/sched.h.
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    // SAFETY: all zeros is a valid clone_args.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags;
    if let Some(cgroup) = cgroup {
        arguments.flags |= INTO_CGROUP;
        arguments.cgroup = u64::try_from(cgroup.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?;
    }
    // SAFETY: the arguments are a `struct clone_args` of the size passed. Without CLONE_VM the
    // child has its own copy of the memory and the stack.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of_val(&arguments)) })?;
    i32::try_from(pid).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Joins the namespaces `flags` of a process, through a pidfd.
pub(crate) fn setns(descriptor: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    let flags = i32::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: takes a descriptor and a number. The caller has one thread.
    check_int(unsafe { libc::setns(descriptor.as_raw_fd(), flags) })
}

/// `unshare`.
pub(crate) fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: takes a number. The caller has one thread.
    check_int(unsafe { libc::unshare(flags) })
}

/// Closes (or marks close-on-exec) every descriptor from `first` on.
pub(crate) fn close_range(first: RawFd, close_on_exec: bool) -> io::Result<()> {
    let flags = if close_on_exec { libc::CLOSE_RANGE_CLOEXEC } else { 0 };
    // SAFETY: takes numbers. With CLOEXEC nothing is closed now; else the caller owns nothing in
    // the range.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) })?;
    Ok(())
}

/// Duplicates onto a fixed number, without close-on-exec.
pub(crate) fn dup2(from: BorrowedFd<'_>, to: RawFd) -> io::Result<()> {
    // SAFETY: `to` is one of the standard streams, which are not owned by any value.
    check_int(unsafe { libc::dup2(from.as_raw_fd(), to) })
}

/// Gives every signal its default action and unblocks all.
pub(crate) fn reset_signals() {
    // `struct sigaction` of the kernel: handler, flags, restorer, mask; all zero is the default
    // action. The C library's own call would leave out the two signals that it keeps to itself.
    let default = [0_u64; 4];
    for signal in 1..=64 {
        // SAFETY: at least as long as the kernel's struct on every 64-bit machine. SIGKILL and
        // SIGSTOP are refused, which is right.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null::<u64>(), 8_usize)
        };
    }
    let none = 0_u64;
    // SAFETY: a set of 64 signals is one word.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null::<u64>(),
            8_usize,
        )
    };
}

/// A new anonymous session keyring, so that keys of the launcher's session are out of reach.
/// Kernels without keys have nothing to hide.
pub(crate) fn new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    let result = check(unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<u8>())
    });
    match result {
        Err(error) if error.raw_os_error() != Some(libc::ENOSYS) => Err(error),
        _ => Ok(()),
    }
}

/// Sets the three sets of the calling thread.
pub(crate) fn capset(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION_3, 0];
    let half = |set: u64, shift: u32| u32::try_from((set >> shift) & 0xffff_ffff).unwrap_or(0);
    let mut data = [0_u32; 6];
    for (index, shift) in [(0, 0), (3, 32)] {
        data[index] = half(effective, shift);
        data[index + 1] = half(permitted, shift);
        data[index + 2] = half(inheritable, shift);
    }
    // SAFETY: version 3 has a header of two words and two times three words of data.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) })?;
    Ok(())
}

/// `prctl` with numbers only.
pub(crate) fn prctl(option: i32, second: u64, third: u64) -> io::Result<i32> {
    // SAFETY: the options used here (dumpable, death signal, keep capabilities, capability sets,
    // no new privileges) take no pointers.
    let result = unsafe { libc::prctl(option, second, third, 0_u64, 0_u64) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// Loads a seccomp filter.
pub(crate) fn load_filter(code: &[libc::sock_filter], flags: u64) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(code.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: code.as_ptr().cast_mut(),
    };
    // SAFETY: the program describes `code`, which the kernel copies and does not write to.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    })?;
    Ok(())
}

/// Executes a program; returns only an error.
pub(crate) fn execve(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let list = |strings: &[CString]| {
        let mut list: Vec<*const libc::c_char> = strings.iter().map(|s| s.as_ptr()).collect();
        list.push(std::ptr::null());
        list
    };
    let (args, env) = (list(args), list(env));
    // SAFETY: null-terminated lists of C strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends the process at once: no destructors, nothing flushed.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: always defined.
    unsafe { libc::_exit(code) }
}

/// Takes a descriptor that was passed on by number.
///
/// # Safety
/// The number is open and nothing else owns it.
pub(crate) unsafe fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: promised by the caller.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn check_int(result: i32) -> io::Result<()> {
    check(c_long::from(result)).map(drop)
}
