//! Loop devices, for kernels whose EROFS cannot read from a file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::Error;

// ioctl numbers and flags of linux/loop.h; the ioctls are older than the
// argument-encoding macros and the same on every architecture.
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// Between asking for a free device and taking it another process may take it.
const ATTEMPTS: u32 = 64;

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

/// `struct loop_config` of linux/loop.h (LOOP_CONFIGURE is in Linux 5.8 and later).
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// A loop device that frees itself once nothing has it open or mounted.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    pub(crate) path: PathBuf,
    /// Keeps it until it is mounted.
    pub(crate) file: File,
}

/// Attaches a file read-only. Direct reads are asked for, so that pages are
/// cached once (with the file system on the device) and not a second time with
/// the file; the kernel reads buffered where the file cannot.
pub(crate) fn attach(image: &Path) -> Result<LoopDevice, Error> {
    let backing = File::open(image).map_err(|source| Error::io("open layer image", image, source))?;
    let size = backing.metadata().map_err(|source| Error::io("inspect layer image", image, source))?.len();
    // A device's size is whole blocks, and direct reads need blocks as large
    // as those below the file; 4096 suits all devices.
    let block_size = if size.is_multiple_of(4096) { 4096 } else { 512 };
    let control_path = Path::new("/dev/loop-control");
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open(control_path)
        .map_err(|source| Error::io("open", control_path, source))?;
    for _ in 0..ATTEMPTS {
        let number = free_number(&control)
            .map_err(|source| Error::io("ask for a loop device at", control_path, source))?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_CLOEXEC)
            .open(&path)
            .map_err(|source| Error::io("open", &path, source))?;
        match configure(&device, &backing, block_size) {
            Ok(()) => return Ok(LoopDevice { path, file: device }),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(Error::io("attach", &path, error)),
        }
    }
    Err(Error::LoopDevices { path: image.to_owned(), attempts: ATTEMPTS })
}

#[allow(unsafe_code, reason = "loop devices are made by ioctl")]
fn free_number(control: &File) -> io::Result<i32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    if number < 0 { Err(io::Error::last_os_error()) } else { Ok(number) }
}

#[allow(unsafe_code, reason = "loop devices are made by ioctl")]
fn configure(device: &File, backing: &File, block_size: u32) -> io::Result<()> {
    let config = LoopConfig {
        fd: u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?,
        block_size,
        info: LoopInfo {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads one loop_config, laid out as above, which
    // lives until the call returns.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
