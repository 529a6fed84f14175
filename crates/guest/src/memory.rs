//! Memory that a pod's containers share: a tmpfs that is attached nowhere, where the
//! kernel allows it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::error::Error;

/// What a tmpfs is to be like.
#[derive(Debug)]
pub(crate) struct Shape {
    /// The source that mount tables show.
    pub(crate) name: &'static str,
    /// `None`: half the machine's memory, the kernel's default.
    pub(crate) bytes: Option<u64>,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) attributes: MountAttrFlags,
}

/// The pod's /dev/shm of that size.
pub(crate) fn shared(bytes: u64, owner: (u32, u32)) -> Shape {
    Shape {
        name: "shm",
        bytes: Some(bytes),
        mode: 0o1777,
        owner,
        attributes: MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    }
}

/// The tmpfs; gone when this is dropped and no container holds it.
#[derive(Debug)]
pub(crate) struct Memory {
    mount: OwnedFd,
    /// Where it had to be attached.
    attached: Option<PathBuf>,
}

impl Memory {
    /// Makes it. Where the kernel can copy a mount that is attached nowhere
    /// (6.15 and later) nothing of it is seen; else it is attached at `place`.
    pub(crate) fn create(shape: &Shape, place: PathBuf) -> Result<Self, Error> {
        let failed = |errno: Errno| Error::system("make memory for the pod", errno);
        let mount = tmpfs(shape).map_err(failed)?;
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let attached = match rustix::mount::open_tree(&mount, "", flags) {
            Ok(_copy) => None,
            Err(Errno::INVAL) => Some(attach(&mount, place)?),
            Err(errno) => return Err(failed(errno)),
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

impl Drop for Memory {
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

fn tmpfs(shape: &Shape) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: &str| rustix::mount::fsconfig_set_string(&context, key, value);
    set("source", shape.name)?;
    if let Some(bytes) = shape.bytes {
        set("size", &bytes.to_string())?;
    }
    set("mode", &format!("{:o}", shape.mode))?;
    set("uid", &shape.owner.0.to_string())?;
    set("gid", &shape.owner.1.to_string())?;
    rustix::mount::fsconfig_create(&context)?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, shape.attributes)
}

fn attach(mount: &OwnedFd, at: PathBuf) -> Result<PathBuf, Error> {
    let failed = |source: std::io::Error| Error::file("mount memory at", &at, source);
    // Of a guest that was killed.
    let _ = rustix::mount::unmount(&at, UnmountFlags::DETACH);
    std::fs::create_dir_all(&at).map_err(failed)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount.as_fd(), "", rustix::fs::CWD, &at, flags)
        .map_err(|errno| failed(errno.into()))?;
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_its_size_and_is_shared() {
        let directory = tempfile::tempdir().unwrap();
        let memory = Memory::create(&shared(1 << 20, (0, 0)), directory.path().join("shm")).unwrap();
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let copy = || rustix::mount::open_tree(rustix::fs::CWD, memory.source(), flags).unwrap();
        let (one, two) = (copy(), copy());
        std::fs::write(descriptor_path(&one).join("file"), "seen").unwrap();
        let seen = std::fs::read_to_string(descriptor_path(&two).join("file")).unwrap();
        assert_eq!(seen, "seen");
        let size = rustix::fs::fstatvfs(&one).unwrap();
        assert_eq!(size.f_blocks * size.f_frsize, 1 << 20);
    }

    #[test]
    fn the_way_of_older_kernels() {
        let directory = tempfile::tempdir().unwrap();
        let mount = tmpfs(&shared(1 << 20, (0, 0))).unwrap();
        let attached = Some(attach(&mount, directory.path().join("shm")).unwrap());
        let memory = Memory { mount, attached };
        let source = memory.source();
        std::fs::write(source.join("file"), "seen").unwrap();
        drop(memory);
        assert!(!source.exists());
    }
}
