//! Named network namespaces, laid out as iproute2 does (`ip netns list` shows
//! them): an empty file below the directory with the namespace bound on it.
//!
//! The file is made before the namespace is bound on it, so whatever a killed
//! daemon leaves is found by its name.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use kina_model::{IdRange, UserNamespace};
use kina_userns::{Mapping, Range, With};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::Error;

/// `NSFS_MAGIC` of linux/magic.h: the file system of namespaces.
const NAMESPACE_FILESYSTEM: u64 = 0x6e73_6673;

/// Whether a namespace is bound on this file.
fn is_bound(path: &Path) -> io::Result<bool> {
    match rustix::fs::statfs(path) {
        Ok(found) => Ok(u64::try_from(found.f_type) == Ok(NAMESPACE_FILESYSTEM)),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Makes the directory a shared mount like `ip netns add`, so that a name added
/// or deleted in one mount namespace is so in those that came from it. The lock
/// on the directory is the one that iproute2 takes around the same steps.
fn prepare_directory(directory: &Path) -> Result<(), Error> {
    let failed = |source: Errno| Error::io("make a shared mount of", directory, source);
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)
        .map_err(|source| Error::io("create directory", directory, source))?;
    let lock = File::open(directory).map_err(|source| Error::io("open", directory, source))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(failed)?;
    let share =
        || rustix::mount::mount_change(directory, MountPropagationFlags::SHARED | MountPropagationFlags::REC);
    match share() {
        // Not a mount point.
        Err(Errno::INVAL) => {
            rustix::mount::mount_bind_recursive(directory, directory).map_err(failed)?;
            share().map_err(failed)
        }
        other => other.map_err(failed),
    }
}

/// Makes a namespace with loopback up and binds it on `path`, owned by a user
/// namespace with the mappings `user` if there are any. One that is bound already is
/// left as it is.
///
/// Blocks; the caller sees to it that one path is not made twice at once.
pub(crate) fn create(directory: &Path, path: &Path, user: Option<UserNamespace>) -> Result<(), Error> {
    if is_bound(path).map_err(|source| Error::io("inspect", path, source))? {
        return Ok(());
    }
    prepare_directory(directory)?;
    match OpenOptions::new().write(true).create_new(true).mode(0o444).open(path) {
        Ok(_) => {}
        // Left by a daemon that was killed before it bound the namespace.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Error::io("create", path, error)),
    }
    // The namespace belongs to the thread that unshares it, so to one that ends.
    let made = std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("new-netns".to_owned())
            .spawn_scoped(scope, || bind_new_namespace(path, user))
            .map_err(|source| Error::io("start a thread for", path, source))?
            .join()
            .map_err(|_panic| Error::Interrupted { operation: "create network namespace" })?
    });
    if made.is_err() {
        // The name stays when this fails; it is then listed and removed later.
        drop(fs::remove_file(path));
    }
    made
}

#[allow(unsafe_code, reason = "unshare(2) and an interface ioctl have no safe wrapper")]
fn bind_new_namespace(path: &Path, user: Option<UserNamespace>) -> Result<(), Error> {
    match user {
        // SAFETY: CLONE_NEWNET changes nothing that Rust relies on (files, memory
        // and signal handlers stay shared), and this thread ends right after.
        None => unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
            .map_err(|source| Error::io("create network namespace", path, source))?,
        Some(user) => enter_owned_namespace(user)?,
    }
    raise_loopback().map_err(|source| Error::io("bring loopback up in", path, source))?;
    rustix::mount::mount_bind("/proc/thread-self/ns/net", path)
        .map_err(|source| Error::io("bind network namespace on", path, source))
}

/// Makes a user namespace with a network namespace and moves this thread into the
/// latter. The former lasts because it owns the latter.
fn enter_owned_namespace(user: UserNamespace) -> Result<(), Error> {
    let range = |IdRange { inside, outside, length }| vec![Range { inside, outside, length }];
    let mapping = Mapping { uids: range(user.uids), gids: range(user.gids) };
    let made = kina_userns::create(&mapping, With::Network)
        .map_err(|source| Error::UserNamespace { source: source.into() })?;
    let network = made.network.ok_or(Error::Interrupted { operation: "create network namespace" })?;
    rustix::thread::move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|source| Error::io("enter network namespace", Path::new("/proc/self/ns/net"), source))
}

#[allow(unsafe_code, reason = "unshare(2) and an interface ioctl have no safe wrapper")]
fn raise_loopback() -> io::Result<()> {
    use std::os::fd::AsRawFd;

    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: ifreq is plain old data; all zeroes are a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *slot = libc::c_char::from_ne_bytes([*byte]);
    }
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).map_err(io::Error::other)?;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives until the call returns.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Unbinds a namespace and removes its name.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // Not bound, or not there.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(source) => return Err(Error::io("unbind network namespace", path, source)),
    }
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, source)),
        _ => Ok(()),
    }
}
