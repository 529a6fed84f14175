//! Memory that a pod's containers share: a tmpfs.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::error::Error;
use crate::unattached::Unattached;

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
    /// The SELinux label that all files in it show.
    pub(crate) label: Option<String>,
}

/// The pod's /dev/shm of that size.
pub(crate) fn shared(bytes: u64, owner: (u32, u32), label: Option<String>) -> Shape {
    Shape {
        name: "shm",
        bytes: Some(bytes),
        mode: 0o1777,
        owner,
        attributes: MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
        label,
    }
}

/// Makes the tmpfs; `place` is for kernels that need one.
pub(crate) fn create(shape: &Shape, place: &Path) -> Result<Unattached, Error> {
    let mount = tmpfs(shape).map_err(|errno| Error::system("make memory for the pod", errno))?;
    Unattached::new(mount, place)
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
    if let Some(label) = &shape.label {
        set("context", label)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, shape.attributes)
}

#[cfg(test)]
mod tests {
    use rustix::mount::OpenTreeFlags;

    use super::*;
    use crate::unattached::{descriptor_path, test_support};

    #[test]
    fn it_has_its_size_and_is_shared() {
        let directory = tempfile::tempdir().unwrap();
        let memory = create(&shared(1 << 20, (0, 0), None), &directory.path().join("shm")).unwrap();
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
        let mount = tmpfs(&shared(1 << 20, (0, 0), None)).unwrap();
        let memory = test_support::attached(mount, &directory.path().join("shm"));
        let source = memory.source();
        std::fs::write(source.join("file"), "seen").unwrap();
        drop(memory);
        assert!(!source.exists());
    }
}
