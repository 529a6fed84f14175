//! Mounting, checking and walking images.
#![allow(dead_code, unreachable_pub, reason = "shared by test binaries that each use a part")]
#![allow(unsafe_code, reason = "a thread leaves the process's mount namespace")]

use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use kina_erofs::{Error, Options, Summary, write_layer};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

/// Everything about a file that an image must keep. Files with one `identity` are one inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub what: What,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, i64),
    pub links: u64,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub identity: u64,
}

#[derive(Clone, PartialEq, Eq)]
pub enum What {
    Directory,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Character(u32, u32),
    Block(u32, u32),
    Fifo,
    Socket,
}

impl std::fmt::Debug for What {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory => write!(formatter, "directory"),
            Self::File(data) => {
                let start = &data[..data.len().min(32)];
                write!(formatter, "file of {}: {}", data.len(), start.escape_ascii())
            }
            Self::Symlink(target) => write!(formatter, "link to {}", target.escape_ascii()),
            Self::Character(major, minor) => write!(formatter, "character {major}:{minor}"),
            Self::Block(major, minor) => write!(formatter, "block {major}:{minor}"),
            Self::Fifo => write!(formatter, "fifo"),
            Self::Socket => write!(formatter, "socket"),
        }
    }
}

/// By path from the root, which is the empty path.
pub type Listing = BTreeMap<Vec<u8>, Node>;

/// Writes an image into `directory`.
pub fn image_at(path: &Path, tar: impl std::io::Read) -> Result<Summary, Error> {
    let mut file = File::create(path).unwrap();
    write_layer(std::io::BufReader::with_capacity(1 << 18, tar), &mut file, &Options::default())
}

/// Runs `work` on a thread with mounts of its own, which end with it, whatever happens.
pub fn with_own_mounts<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: only this thread's mounts and working directory are unshared; no
            // descriptors are, so no other thread can see one vanish.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
                .expect("leave the mount namespace (root is needed)");
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", private).expect("make mounts private");
            work()
        });
        match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Mounts an image: from the file itself where the kernel can, else by a loop device.
/// Call inside [`with_own_mounts`].
pub fn mount_image(image: &Path, at: &Path) {
    fs::create_dir_all(at).unwrap();
    if mount(image, at, "erofs", MountFlags::RDONLY, None::<&CStr>).is_ok() {
        return;
    }
    let status =
        Command::new("mount").args(["-t", "erofs", "-o", "ro,loop"]).args([image, at]).status().unwrap();
    assert!(status.success(), "the kernel does not mount {}", image.display());
}

/// Mounts, walks and checks an image.
pub fn read_back(image: &Path) -> Listing {
    fsck(image);
    let at = image.with_extension("mounted");
    with_own_mounts(|| {
        mount_image(image, &at);
        walk(&at)
    })
}

/// Has erofs-utils read the whole image.
pub fn fsck(image: &Path) {
    let output = Command::new("fsck.erofs").arg("--extract").arg(image).output();
    let output = output.expect("fsck.erofs is needed: apt-get install erofs-utils");
    assert!(
        output.status.success(),
        "fsck.erofs: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// All that is below a directory.
pub fn walk(root: &Path) -> Listing {
    let mut listing = Listing::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let path = root.join(&relative);
        let node = node(&path);
        if node.what == What::Directory {
            for child in fs::read_dir(&path).unwrap() {
                let child = child.unwrap();
                // What the directory says of the type must be what the inode says.
                let metadata = child.metadata().unwrap();
                assert_eq!(child.file_type().unwrap(), metadata.file_type(), "{child:?}");
                pending.push(relative.join(child.file_name()));
            }
        }
        listing.insert(relative.into_os_string().into_vec(), node);
    }
    listing
}

fn node(path: &Path) -> Node {
    let metadata = fs::symlink_metadata(path).unwrap();
    let device = metadata.rdev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let kind = metadata.file_type();
    let what = if kind.is_dir() {
        What::Directory
    } else if kind.is_file() {
        What::File(fs::read(path).unwrap())
    } else if kind.is_symlink() {
        What::Symlink(fs::read_link(path).unwrap().into_os_string().into_vec())
    } else if kind.is_char_device() {
        What::Character(major, minor)
    } else if kind.is_block_device() {
        What::Block(major, minor)
    } else if kind.is_socket() {
        What::Socket
    } else {
        What::Fifo
    };
    if let What::File(data) = &what {
        assert_eq!(data.len() as u64, metadata.len());
    }
    Node {
        what,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        links: metadata.nlink(),
        xattrs: xattrs(path),
        identity: metadata.ino(),
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
        value[..length].to_vec()
    };
    names.map(|name| (name.to_vec(), value(name))).collect()
}

/// Replaces inode numbers by the first path that has them, so that trees compare.
pub fn by_first_name(listing: &Listing) -> Vec<(Vec<u8>, Node, Vec<u8>)> {
    let mut first: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    listing
        .iter()
        .map(|(path, node)| {
            let first = first.entry(node.identity).or_insert_with(|| path.clone()).clone();
            (path.clone(), Node { identity: 0, ..node.clone() }, first)
        })
        .collect()
}

/// Compares two trees entry by entry, with a readable first difference.
pub fn assert_same(found: &Listing, expected: &Listing) {
    let (found, expected) = (by_first_name(found), by_first_name(expected));
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected, "at {} / {}", found.0.escape_ascii(), expected.0.escape_ascii());
    }
    assert_eq!(found.len(), expected.len(), "number of entries");
}

/// Runs GNU tar and gives what it wrote.
pub fn gnu_tar(directory: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("tar").arg("-C").arg(directory).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tar: {errors}");
    output.stdout
}

/// A tar stream made header by header, without the checks of a well-meaning writer.
#[derive(Default)]
pub struct Raw(pub Vec<u8>);

impl Raw {
    pub fn entry(mut self, name: &str, kind: u8, data: &[u8]) -> Self {
        self = self.header(name, kind, |header| header.set_size(data.len() as u64));
        self.data(data)
    }

    pub fn link(self, name: &str, kind: u8, target: &str) -> Self {
        self.header(name, kind, |header| {
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        })
    }

    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length += 1;
            }
            data.extend(format!("{length} {key}=").bytes());
            data.extend(*value);
            data.push(b'\n');
        }
        self.entry("pax", b'x', &data)
    }

    pub fn header(mut self, name: &str, kind: u8, change: impl FnOnce(&mut tar::Header)) -> Self {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        change(&mut header);
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self
    }

    pub fn data(mut self, data: &[u8]) -> Self {
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}
