//! Layer images that the guest mounts itself: each once, however many
//! containers stand on it.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags};

use crate::error::Error;

/// Attempts at a loop device that somebody else takes first.
const LOOP_ATTEMPTS: usize = 16;

/// The mounted layer images of one guest.
#[derive(Debug, Default)]
pub(crate) struct LayerStore {
    mounted: Mutex<HashMap<String, Mounted>>,
}

#[derive(Debug)]
struct Mounted {
    path: PathBuf,
    users: usize,
}

/// The use of one mounted layer; dropping the last one unmounts it.
#[derive(Debug)]
pub(crate) struct LayerUse {
    store: Arc<LayerStore>,
    diff_id: String,
    path: PathBuf,
}

impl LayerUse {
    /// Where the layer is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl LayerStore {
    /// Mounts an image below `directory`, or uses the mount that is there. Blocks.
    pub(crate) fn mount(
        self: &Arc<Self>,
        directory: &Path,
        diff_id: &str,
        image: &Path,
    ) -> Result<LayerUse, Error> {
        let name = diff_id
            .strip_prefix("sha256:")
            .filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .ok_or_else(|| Error::invalid("rootfs.layers.diff_id", format!("{diff_id:?}")))?;
        let path = directory.join(name);
        // Held while mounting: a second user of the layer waits for the first's mount.
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        match mounted.get_mut(diff_id) {
            Some(layer) => layer.users += 1,
            None => {
                std::fs::create_dir_all(&path).map_err(|source| Error::file("create", &path, source))?;
                mount_image(image, &path).map_err(|source| {
                    drop(std::fs::remove_dir(&path));
                    Error::file("mount layer image", image, source)
                })?;
                let layer = Mounted { path: path.clone(), users: 1 };
                mounted.insert(diff_id.to_owned(), layer);
            }
        }
        Ok(LayerUse { store: Arc::clone(self), diff_id: diff_id.to_owned(), path })
    }
}

impl Drop for LayerUse {
    fn drop(&mut self) {
        let mut mounted = self.store.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(layer) = mounted.get_mut(&self.diff_id) {
            layer.users -= 1;
            if layer.users == 0 {
                let _ = rustix::mount::unmount(&layer.path, UnmountFlags::DETACH);
                drop(std::fs::remove_dir(&layer.path));
                mounted.remove(&self.diff_id);
            }
        }
    }
}

fn mount_image(image: &Path, at: &Path) -> io::Result<()> {
    // The file itself where the kernel can (6.12 and later, by configuration).
    let mount = match erofs(image) {
        Ok(mount) => mount,
        Err(Errno::NOTBLK | Errno::INVAL | Errno::OPNOTSUPP) => {
            let (device, _hold) = attach_loop(image)?;
            erofs(&device)?
        }
        Err(errno) => return Err(errno.into()),
    };
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount.as_fd(), "", rustix::fs::CWD, at, flags)?;
    Ok(())
}

fn erofs(source: &Path) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "source", source)?;
    rustix::mount::fsconfig_set_flag(&context, "ro")?;
    rustix::mount::fsconfig_create(&context)?;
    // Set-user-ID programs and device nodes of an image keep their meaning.
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)
}

/// A read-only loop device that frees itself with its last user: the returned
/// file, then the mount.
#[allow(unsafe_code, reason = "ioctls that no crate wraps")]
fn attach_loop(image: &Path) -> io::Result<(PathBuf, File)> {
    let backing = File::open(image)?;
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..LOOP_ATTEMPTS {
        // SAFETY: the descriptor is open and the call takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = File::open(&path)?;
        // SAFETY: all zeros is a valid loop_config.
        let mut config: LoopConfig = unsafe { std::mem::zeroed() };
        config.descriptor = u32::try_from(backing.as_raw_fd()).unwrap_or(u32::MAX);
        config.info.flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR;
        // SAFETY: the descriptor is open; the structure is the kernel's and outlives the call.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
        if result == 0 {
            return Ok((path, device));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::ResourceBusy {
            return Err(error);
        }
    }
    Err(io::Error::from(io::ErrorKind::ResourceBusy))
}

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    descriptor: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopConfig>() == 304);
