//! Whether user namespaces can be had, tried.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
};
use rustix::thread::UnshareFlags;

use crate::{Created, Error, Mapping, Range, With, create, map_mount};

/// What any mapping is like.
const TRIAL: Range = Range { inside: 0, outside: 65536, length: 65536 };

/// Tries what a container in a user namespace needs: the namespace itself, a mount of the file
/// system that `directory` is on mapped by it, and an overlay that stands on such a mount (Linux
/// 5.19). Nothing is left of it, and nothing is written.
///
/// # Errors
/// What did not work.
pub fn probe(directory: &Path) -> Result<(), Error> {
    let mapping = Mapping { uids: vec![TRIAL], gids: vec![TRIAL] };
    let Created { user, .. } = create(&mapping, With::Network)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let failed = |source: io::Error| Error::Probe { path: directory.to_owned(), source };
    let mount = rustix::mount::open_tree(CWD, directory, flags).map_err(|errno| failed(errno.into()))?;
    map_mount(&mount, &user, false)?;
    // In a thread of a moment: its mount namespace goes with it.
    let overlay = std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("overlay-probe".to_owned())
            .spawn_scoped(scope, || overlay(&mount))?
            .join()
            .unwrap_or_else(|_panic| Err(io::ErrorKind::Interrupted.into()))
    });
    overlay.map_err(failed)
}

/// Mounts an overlay with a mapped mount below and memory on top, attached nowhere.
fn overlay(lower: &OwnedFd) -> io::Result<()> {
    // SAFETY: nothing in Rust relies on mounts and the working directory being this thread's
    // creator's, and the thread ends right after.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    let memory = complete(&context("tmpfs", &[])?)?;
    for name in ["lower", "upper", "work"] {
        rustix::fs::mkdirat(&memory, name, Mode::RWXU)?;
    }
    // Over the root: there is no other place that surely exists. It is found by its descriptor.
    attach(&memory, "/")?;
    let below = format!("/proc/self/fd/{}", memory.as_raw_fd());
    attach(lower, &format!("{below}/lower"))?;
    let path = |name: &str| format!("{below}/{name}");
    let (lower, upper, work) = (path("lower"), path("upper"), path("work"));
    complete(&context("overlay", &[("lowerdir", &lower), ("upperdir", &upper), ("workdir", &work)])?)?;
    Ok(())
}

fn context(file_system: &str, options: &[(&str, &str)]) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen(file_system, FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "source", file_system)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(&context, *key, *value)?;
    }
    Ok(context)
}

fn complete(context: &OwnedFd) -> Result<OwnedFd, Errno> {
    rustix::mount::fsconfig_create(context)?;
    rustix::mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

fn attach(mount: &OwnedFd, at: &str) -> Result<(), Errno> {
    rustix::mount::move_mount(mount.as_fd(), "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_can_and_nothing_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let before = mounts();
        probe(directory.path()).unwrap();
        assert_eq!(mounts(), before);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_mapped_is_told() {
        // proc is for no other user namespace than its own.
        let refused = probe(Path::new("/proc")).unwrap_err();
        assert!(matches!(&refused, Error::MapMount(error) if error.raw_os_error() == Some(libc::EINVAL)));
        assert!(matches!(probe(Path::new("/no/such")), Err(Error::Probe { .. })));
    }
}
