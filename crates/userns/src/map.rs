//! What a user namespace is good for once it is there.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use crate::Error;

/// `NS_GET_USERNS` of linux/nsfs.h.
const NS_GET_USERNS: libc::Ioctl = 0xb701;

/// The user namespace that owns another namespace.
///
/// # Errors
/// [`Error::Owner`], also when the owner is an ancestor of the caller's user namespace.
pub fn owner(namespace: impl AsFd) -> Result<OwnedFd, Error> {
    // SAFETY: the descriptor is open, and the call takes no argument.
    let number = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_USERNS) };
    if number < 0 {
        return Err(Error::Owner(io::Error::last_os_error()));
    }
    // SAFETY: the kernel has just made it, close-on-exec, for this caller alone.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Has a mount that is attached nowhere show its files as a user namespace sees them: what belongs
/// to id 0 on the file system belongs to the namespace's root, and so on. With `recursive`, what
/// is mounted below as well, or nothing.
///
/// # Errors
/// [`Error::MapMount`]; `EINVAL` means that the file system cannot be mapped, `EPERM` that the
/// mount has been mapped before.
pub fn map_mount(mount: impl AsFd, user: impl AsFd, recursive: bool) -> Result<(), Error> {
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    let user = u64::try_from(user.as_fd().as_raw_fd()).map_err(|e| Error::MapMount(io::Error::other(e)))?;
    let attributes =
        Attributes { set: libc::MOUNT_ATTR_IDMAP, clear: 0, propagation: 0, user_namespace: user };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string and the attributes are a `struct mount_attr` of the
    // size that is passed; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(Error::MapMount(io::Error::last_os_error())) }
}
