//! Bind mounts, and what is mounted below a path.

#![allow(unsafe_code, reason = "mount_setattr(2) has no safe wrapper")]

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};

use super::mountinfo;
use crate::{Bind, Error};

/// See [`crate::Node::bind`]. Blocks.
pub(crate) fn bind(bind: &Bind) -> Result<(), Error> {
    let Bind { source, target, .. } = bind;
    let failed = |source: Errno| Error::io("bind", target, source);
    let opened = rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| Error::io("open", source, error))?;
    let found = rustix::fs::fstat(&opened).map_err(|error| Error::io("inspect", source, error))?;
    let kind = FileType::from_raw_mode(found.st_mode);
    match kind {
        FileType::Directory | FileType::RegularFile => {}
        FileType::BlockDevice => return Err(refuse(source, "a block device")),
        FileType::CharacterDevice => return Err(refuse(source, "a character device")),
        FileType::Socket => return Err(refuse(source, "a socket")),
        FileType::Fifo => return Err(refuse(source, "a named pipe")),
        FileType::Symlink | FileType::Unknown => return Err(refuse(source, "of an unknown kind")),
    }
    prepare(target, kind)?;
    if is_mount_point(target).map_err(failed)? {
        return Ok(());
    }
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if bind.recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let mount = rustix::mount::open_tree(&opened, "", flags).map_err(failed)?;
    let (all, top) = if bind.readonly_below { (bind.readonly, false) } else { (false, bind.readonly) };
    let changed = change(&mount, bind.recursive, all);
    let changed = if top { changed.and_then(|()| change(&mount, false, true)) } else { changed };
    changed.map_err(|error| Error::io("bind", target, error))?;
    rustix::mount::move_mount(&mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(failed)
}

fn refuse(path: &Path, kind: &'static str) -> Error {
    Error::NotBindable { path: path.to_owned(), kind }
}

/// Makes what is mounted on.
fn prepare(target: &Path, kind: FileType) -> Result<(), Error> {
    let made = if kind == FileType::Directory {
        DirBuilder::new().mode(0o755).create(target)
    } else {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(target).map(drop::<File>)
    };
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(target).map_err(|error| Error::io("inspect", target, error))?;
            if found.is_dir() == (kind == FileType::Directory) && !found.is_symlink() {
                Ok(())
            } else {
                Err(Error::io("bind", target, io::ErrorKind::AlreadyExists))
            }
        }
        other => other.map_err(|error| Error::io("create", target, error)),
    }
}

fn is_mount_point(path: &Path) -> Result<bool, Errno> {
    let found = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty())?;
    Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Makes a mount that is nowhere yet what it shall be, alone or with all below it.
fn change(mount: &impl std::os::fd::AsFd, recursive: bool, readonly: bool) -> io::Result<()> {
    /// `struct mount_attr` of linux/mount.h.
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    let mount: BorrowedFd<'_> = mount.as_fd();
    let attributes = Attributes {
        set: if readonly { libc::MOUNT_ATTR_RDONLY } else { 0 },
        clear: 0,
        // From the node to here, and never back.
        propagation: libc::MS_SLAVE,
        user_namespace: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string and the attributes are a `struct
    // mount_attr` of the size that is passed; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// See [`crate::Node::unbind`]. Blocks.
pub(crate) fn unbind(path: &Path) -> Result<(), Error> {
    let table =
        mountinfo::read().map_err(|source| Error::io("read", Path::new("/proc/self/mountinfo"), source))?;
    // Later ones lie on or below earlier ones.
    for mount in table.iter().rev().filter(|mount| mount.mountpoint.starts_with(path)) {
        match rustix::mount::unmount(&mount.mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // It went with another, or meanwhile.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(source) => return Err(Error::io("unmount", &mount.mountpoint, source)),
        }
    }
    Ok(())
}
