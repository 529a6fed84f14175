//! Mounts that launchers copy into containers, attached nowhere where the kernel
//! allows it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::error::Error;

/// A mount; gone when this is dropped and no container holds it.
#[derive(Debug)]
pub(crate) struct Unattached {
    mount: OwnedFd,
    /// Where it had to be attached.
    attached: Option<PathBuf>,
}

impl Unattached {
    /// Takes a mount of fsmount(2). Where the kernel can copy a mount that is
    /// attached nowhere (6.15 and later) nothing of it is seen; else it is
    /// attached at `place`.
    pub(crate) fn new(mount: OwnedFd, place: &Path) -> Result<Self, Error> {
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let attached = match rustix::mount::open_tree(&mount, "", flags) {
            Ok(_copy) => None,
            Err(Errno::INVAL) => Some(attach(&mount, place)?),
            Err(errno) => return Err(Error::system("copy a mount", errno)),
        };
        Ok(Self { mount, attached })
    }

    /// Its root directory.
    pub(crate) fn root(&self) -> &OwnedFd {
        &self.mount
    }

    /// What a container binds, for as long as this lives. Any process of this
    /// machine may use it.
    pub(crate) fn source(&self) -> PathBuf {
        match &self.attached {
            Some(path) => path.clone(),
            None => descriptor_path(&self.mount),
        }
    }
}

impl Drop for Unattached {
    fn drop(&mut self) {
        if let Some(path) = &self.attached {
            let _ = rustix::mount::unmount(path, UnmountFlags::DETACH);
            drop(std::fs::remove_dir(path));
        }
    }
}

/// One of the guest's descriptors as a path for other processes.
pub(crate) fn descriptor_path(descriptor: &OwnedFd) -> PathBuf {
    let (process, number) = (std::process::id(), descriptor.as_raw_fd());
    format!("/proc/{process}/fd/{number}").into()
}

fn attach(mount: &OwnedFd, at: &Path) -> Result<PathBuf, Error> {
    let failed = |source: std::io::Error| Error::file("mount at", at, source);
    // Of a guest that was killed.
    let _ = rustix::mount::unmount(at, UnmountFlags::DETACH);
    std::fs::create_dir_all(at).map_err(failed)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount.as_fd(), "", rustix::fs::CWD, at, flags)
        .map_err(|errno| failed(errno.into()))?;
    Ok(at.to_owned())
}

#[cfg(test)]
pub(crate) mod test_support {
    use super::*;

    /// As on a kernel that cannot copy what is attached nowhere.
    pub(crate) fn attached(mount: OwnedFd, place: &Path) -> Unattached {
        let attached = Some(attach(&mount, place).unwrap());
        Unattached { mount, attached }
    }
}
