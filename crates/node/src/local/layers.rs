//! Layer images mounted read-only, each once in this kernel, at
//! `<layers>/<hex of the diff id>`.
//!
//! The kernel is the only memory: a directory with EROFS on it is a mounted
//! layer, whoever mounted it. An empty one is left over and is removed.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    UnmountFlags,
};

use tracing::debug;

use super::loop_device;
use crate::{Error, LayerImage};

/// `EROFS_SUPER_MAGIC_V1` of linux/magic.h.
const EROFS: u64 = 0xe0f5_e1e2;

/// The directory of mounted layers.
pub(crate) struct Layers {
    directory: PathBuf,
    // Between the look at the directory and the mount; taken only by blocking
    // code, for the length of one mount or unmount.
    changes: Mutex<()>,
}

/// The hexadecimal part of a diff id, which names the layer's directory.
fn hex_of(diff_id: &str) -> Result<&str, Error> {
    diff_id
        .strip_prefix("sha256:")
        .filter(|hex| is_hex_name(hex))
        .ok_or_else(|| Error::LayerName { diff_id: diff_id.to_owned() })
}

fn is_hex_name(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether EROFS is mounted on this directory.
fn is_mounted(path: &Path) -> Result<bool, Error> {
    match rustix::fs::statfs(path) {
        Ok(found) => Ok(u64::try_from(found.f_type) == Ok(EROFS)),
        Err(Errno::NOENT) => Ok(false),
        Err(source) => Err(Error::io("inspect", path, source)),
    }
}

impl Layers {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory, changes: Mutex::new(()) }
    }

    /// Where a layer is mounted, if it is. Quick: nothing is read from a disk.
    pub(crate) fn find(&self, layer: &LayerImage) -> Result<Option<PathBuf>, Error> {
        let target = self.directory.join(hex_of(&layer.diff_id)?);
        Ok(is_mounted(&target)?.then_some(target))
    }

    /// See [`crate::Node::mount_layer`]. Blocks.
    pub(crate) fn mount(&self, layer: &LayerImage) -> Result<PathBuf, Error> {
        let target = self.directory.join(hex_of(&layer.diff_id)?);
        let _changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if is_mounted(&target)? {
            return Ok(target);
        }
        self.prepare()?;
        make_directory(&target)?;
        let mounted = mount_image(&layer.path, &target);
        match mounted {
            Ok(()) => Ok(target),
            Err(error) => {
                // Empty directories are no layers; they may stay.
                drop(fs::remove_dir(&target));
                self.release();
                Err(error)
            }
        }
    }

    /// See [`crate::Node::unmount_layer`]. Blocks.
    pub(crate) fn unmount(&self, diff_id: &str) -> Result<(), Error> {
        let target = self.directory.join(hex_of(diff_id)?);
        let _changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        // Overlays hold the file system itself, not this mount. What makes it
        // busy is a process with an open file in it; that keeps its file.
        let unmounted = match rustix::mount::unmount(&target, UnmountFlags::NOFOLLOW) {
            Err(Errno::BUSY) => {
                rustix::mount::unmount(&target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
            }
            other => other,
        };
        match unmounted {
            // INVAL: not a mount point.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(source) => return Err(Error::io("unmount layer", &target, source)),
        }
        match fs::remove_dir(&target) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove directory", &target, source));
            }
            _ => {}
        }
        self.release();
        Ok(())
    }

    /// See [`crate::Node::mounted_layers`]. Blocks.
    pub(crate) fn mounted(&self) -> Result<Vec<String>, Error> {
        let _changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("list", &self.directory, error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| Error::io("list", &self.directory, source))?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            if !is_hex_name(&name) {
                continue;
            }
            if is_mounted(&entry.path())? {
                found.push(format!("sha256:{name}"));
            } else {
                // Left between making the directory and mounting on it.
                drop(fs::remove_dir(entry.path()));
            }
        }
        if found.is_empty() {
            // Left between unmounting the last layer and this.
            self.release();
        }
        Ok(found)
    }

    /// Makes the directory a private mount of its own, so that layers mounted
    /// in it do not spread into the mount namespaces of others (where they
    /// would hold the image after it is unmounted here).
    fn prepare(&self) -> Result<(), Error> {
        make_directory(&self.directory)?;
        let failed = |source: Errno| Error::io("make a private mount of", &self.directory, source);
        let private = || rustix::mount::mount_change(&self.directory, MountPropagationFlags::PRIVATE);
        match private() {
            // Not a mount point.
            Err(Errno::INVAL) => {
                rustix::mount::mount_bind(&self.directory, &self.directory).map_err(failed)?;
                private().map_err(failed)
            }
            other => other.map_err(failed),
        }
    }

    /// Takes the directory's own mount away with the last layer. Whoever looks into
    /// the directory at that moment does not keep it.
    fn release(&self) {
        let Ok(entries) = fs::read_dir(&self.directory) else { return };
        let in_use = entries.flatten().any(|entry| is_mounted(&entry.path()).unwrap_or(true));
        if !in_use {
            let flags = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
            let _no_mount = rustix::mount::unmount(&self.directory, flags);
        }
    }
}

fn make_directory(path: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(|source| Error::io("create directory", path, source))
}

/// Mounts an image in the way that costs the least page cache.
///
/// Measured on Linux 6.18 with a file of 64 MiB, read through the mount and
/// through two overlays on it (cachestat(2)): the overlays add nothing, they
/// use the pages of the layer's inode. A file-backed mount that reads buffered
/// fills 64 MiB for the image file and 64 MiB for the layer; with `directio`
/// only the latter. A loop device is the same: twice buffered, once with direct
/// reads. So: the file with `directio`; where the kernel does not know that
/// option or wants block devices, a loop device with direct reads; and the file
/// buffered where no loop device can be had.
fn mount_image(image: &Path, target: &Path) -> Result<(), Error> {
    let failed = |source: Errno| Error::io("mount layer", image, source);
    match mount_file(image, target, true) {
        Ok(()) => Ok(()),
        Err(FileMount::Failed(source)) => Err(failed(source)),
        Err(FileMount::NeedsDevice) => mount_by_loop_device(image, target),
        Err(FileMount::NoDirectReads) => {
            let Err(by_device) = mount_by_loop_device(image, target) else { return Ok(()) };
            debug!(image = %image.display(), error = %by_device, "no loop device; reading the file buffered");
            mount_file(image, target, false).map_err(|_| by_device)
        }
    }
}

/// Why a file cannot be mounted itself.
enum FileMount {
    /// The kernel takes block devices only: it is older than 6.12, or built
    /// without EROFS_FS_BACKED_BY_FILE.
    NeedsDevice,
    /// The kernel does not know the option `directio`.
    NoDirectReads,
    /// The image is bad, or missing.
    Failed(Errno),
}

impl From<Errno> for FileMount {
    fn from(error: Errno) -> Self {
        match error {
            Errno::NOTBLK | Errno::NOSYS => Self::NeedsDevice,
            other => Self::Failed(other),
        }
    }
}

fn mount_file(image: &Path, target: &Path, direct: bool) -> Result<(), FileMount> {
    let context = rustix::mount::fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_flag(&context, "ro")?;
    rustix::mount::fsconfig_set_string(&context, "source", image)?;
    if direct {
        rustix::mount::fsconfig_set_flag(&context, "directio")
            .map_err(|_unknown| FileMount::NoDirectReads)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    let mount = rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOATIME,
    )?;
    rustix::mount::move_mount(&mount, "", rustix::fs::CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

fn mount_by_loop_device(image: &Path, target: &Path) -> Result<(), Error> {
    let device = loop_device::attach(image)?;
    // The device frees itself when its last user goes: the mount, or, when
    // mounting fails, the descriptor in `device`.
    rustix::mount::mount(
        &device.path,
        target,
        "erofs",
        MountFlags::RDONLY | MountFlags::NOATIME,
        None::<&std::ffi::CStr>,
    )
    .map_err(|source| Error::io("mount layer", image, source))?;
    drop::<File>(device.file);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Unmounts also when a test panics.
    struct Mounted(PathBuf);

    impl Drop for Mounted {
        fn drop(&mut self) {
            let _gone = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
        }
    }

    fn image(directory: &Path) -> PathBuf {
        let (tree, image) = (directory.join("tree"), directory.join("image"));
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("hello"), vec![7; 100_000]).unwrap();
        let made = Command::new("mkfs.erofs").arg(&image).arg(&tree).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        image
    }

    fn backing_files() -> Vec<PathBuf> {
        let devices = fs::read_dir("/sys/block").unwrap();
        let files = devices.map(|device| device.unwrap().path().join("loop/backing_file"));
        files
            .filter_map(|file| fs::read_to_string(file).ok())
            .map(|path| PathBuf::from(path.trim()))
            .collect()
    }

    #[test]
    fn a_loop_device_serves_where_the_kernel_wants_one_and_frees_itself() {
        let directory = tempfile::tempdir().unwrap();
        let image = image(directory.path());
        let target = directory.path().join("target");
        fs::create_dir(&target).unwrap();
        mount_by_loop_device(&image, &target).unwrap();
        let mounted = Mounted(target.clone());
        assert!(is_mounted(&target).unwrap());
        assert_eq!(fs::read(target.join("hello")).unwrap(), vec![7; 100_000]);
        assert!(backing_files().contains(&image));
        drop(mounted);
        assert!(!is_mounted(&target).unwrap());
        // The kernel frees it when the last reference goes, in its own time.
        let begin = std::time::Instant::now();
        while backing_files().contains(&image) {
            assert!(begin.elapsed().as_secs() < 10, "the loop device stays");
            std::thread::yield_now();
        }
    }

    #[test]
    fn who_looks_into_the_directory_keeps_no_mount() {
        let directory = tempfile::tempdir().unwrap();
        let layers = Layers::new(directory.path().join("layers"));
        let layer = LayerImage { diff_id: format!("sha256:{:064}", 7), path: image(directory.path()) };
        let mounted = || {
            let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
            table.matches(layers.directory.to_str().unwrap()).count()
        };
        layers.mount(&layer).unwrap();
        let _guards = [layers.directory.clone(), layers.directory.join(format!("{:064}", 7))].map(Mounted);
        assert!(mounted() > 0);
        let _open = File::open(&layers.directory).unwrap();
        layers.unmount(&layer.diff_id).unwrap();
        assert_eq!(mounted(), 0);
    }

    #[test]
    fn a_bad_image_leaves_no_loop_device() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        fs::write(&image, [0; 8192]).unwrap();
        let error = mount_by_loop_device(&image, directory.path()).unwrap_err();
        assert!(matches!(error, Error::Io { operation: "mount layer", .. }), "{error:?}");
        let begin = std::time::Instant::now();
        while backing_files().contains(&image) {
            assert!(begin.elapsed().as_secs() < 10, "the loop device stays");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_file_is_mounted_buffered_too() {
        let directory = tempfile::tempdir().unwrap();
        let image = image(directory.path());
        let target = directory.path().join("target");
        fs::create_dir(&target).unwrap();
        match mount_file(&image, &target, false) {
            Ok(()) => {
                let _mounted = Mounted(target.clone());
                assert_eq!(fs::read(target.join("hello")).unwrap().len(), 100_000);
            }
            Err(FileMount::NeedsDevice) => {}
            Err(FileMount::NoDirectReads) => panic!("direct reads were not asked for"),
            Err(FileMount::Failed(error)) => panic!("{error}"),
        }
    }
}
