//! A terminal of the container's own.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::{mounts, sys};

/// `DEVPTS_SUPER_MAGIC`.
const DEVPTS_MAGIC: rustix::fs::FsWord = 0x1cd1;

/// Makes a terminal in `/dev/pts`, the controlling terminal and standard streams of this process,
/// which leads a session. `size` is rows and columns; 0 leaves the kernel's. Returns the other
/// end.
pub(crate) fn open(size: (u16, u16), console: bool) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let master = rustix::fs::openat2(&root, "/dev/pts/ptmx", flags, Mode::empty(), resolve)?;
    if rustix::fs::fstatfs(&master)?.f_type != DEVPTS_MAGIC {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let unlocked: libc::c_int = 0;
    let mut index: libc::c_uint = 0;
    let window = libc::winsize { ws_row: size.0, ws_col: size.1, ws_xpixel: 0, ws_ypixel: 0 };
    let number = master.as_raw_fd();
    // SAFETY: each request is given what it reads or writes: an int, an unsigned int, a winsize.
    unsafe {
        check(libc::ioctl(number, libc::TIOCSPTLCK, &raw const unlocked))?;
        check(libc::ioctl(number, libc::TIOCGPTN, &raw mut index))?;
        if size != (0, 0) {
            check(libc::ioctl(number, libc::TIOCSWINSZ, &raw const window))?;
        }
    }
    // The peer by the master itself: no path to be led astray by.
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: takes open flags and returns a new descriptor.
    let peer = check(unsafe { libc::ioctl(number, libc::TIOCGPTPEER, flags) })?;
    // SAFETY: the kernel just returned it.
    let peer = unsafe { sys::own(peer) };
    if console {
        mounts::bind_console(Path::new(&format!("/dev/pts/{index}")))?;
    }
    // SAFETY: takes a number.
    check(unsafe { libc::ioctl(peer.as_raw_fd(), libc::TIOCSCTTY, 0) })?;
    for stream in 0..3 {
        sys::dup2(borrow(&peer), stream)?;
    }
    Ok(master)
}

fn borrow(descriptor: &OwnedFd) -> BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(descriptor)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
