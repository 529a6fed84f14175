//! Walks of whole trees: what a container made may be deep, huge, or changing.
//!
//! A walk holds one descriptor however deep it goes. It comes back up by `..`
//! and checks that it arrives where it came from, so that a directory moved
//! meanwhile cannot lead it out of the tree. No symlink is followed and no
//! mount point is crossed.

use std::collections::HashSet;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;

use super::mountinfo;
use crate::{Error, FilesystemUsage};

/// Names of subdirectories that a removal remembers per level; when there are
/// more it reads the directory again.
const REMEMBERED: usize = 1024;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// One directory on the way from the root of the walk to where it is.
struct Level {
    name: CString,
    device: (u32, u32),
    inode: u64,
    /// Subdirectories still to be visited.
    pending: Vec<CString>,
    /// Whether there may be more than those.
    again: bool,
}

struct Walk {
    root: PathBuf,
    current: OwnedFd,
    levels: Vec<Level>,
}

fn stat(directory: impl AsFd, name: &std::ffi::CStr) -> Result<Statx, Errno> {
    let flags = if name.is_empty() { AtFlags::EMPTY_PATH } else { AtFlags::SYMLINK_NOFOLLOW };
    rustix::fs::statx(
        directory,
        name,
        flags | AtFlags::NO_AUTOMOUNT,
        StatxFlags::BASIC_STATS | StatxFlags::MNT_ID,
    )
}

/// Opens a subdirectory that is on the same mount.
fn open_below(directory: impl AsFd, name: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    loop {
        match rustix::fs::openat2(&directory, name, DIRECTORY, Mode::empty(), resolve) {
            // A rename or mount somewhere in the system came between.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

impl Walk {
    fn new(root: &Path, directory: OwnedFd, name: CString) -> Result<Self, Errno> {
        let at = stat(&directory, c"")?;
        Ok(Self {
            root: root.to_owned(),
            current: directory,
            levels: vec![Level {
                name,
                device: (at.stx_dev_major, at.stx_dev_minor),
                inode: at.stx_ino,
                pending: Vec::new(),
                again: false,
            }],
        })
    }

    /// The path of something in the current directory, for messages.
    fn path(&self, name: &std::ffi::CStr) -> PathBuf {
        let mut path = self.root.clone();
        path.extend(self.levels.iter().skip(1).map(|level| OsStr::from_bytes(level.name.to_bytes())));
        if !name.is_empty() {
            path.push(OsStr::from_bytes(name.to_bytes()));
        }
        path
    }

    fn failed(&self, operation: &'static str, name: &std::ffi::CStr, source: Errno) -> Error {
        Error::io(operation, &self.path(name), source)
    }

    fn enter(&mut self, directory: OwnedFd, name: CString) -> Result<(), Error> {
        let at = stat(&directory, c"").map_err(|source| self.failed("inspect", &name, source))?;
        self.current = directory;
        self.levels.push(Level {
            name,
            device: (at.stx_dev_major, at.stx_dev_minor),
            inode: at.stx_ino,
            pending: Vec::new(),
            again: false,
        });
        Ok(())
    }

    /// Goes to the parent and returns the level that was left; `None` at the
    /// root of the walk.
    fn leave(&mut self) -> Result<Option<Level>, Error> {
        let [.., parent, _] = self.levels.as_slice() else { return Ok(None) };
        let moved = || Error::Moved { path: self.path(c"") };
        let up = rustix::fs::openat(&self.current, "..", DIRECTORY, Mode::empty())
            .map_err(|source| self.failed("open the parent of", c"", source))?;
        let at = stat(&up, c"").map_err(|source| self.failed("inspect the parent of", c"", source))?;
        if (at.stx_dev_major, at.stx_dev_minor, at.stx_ino)
            != (parent.device.0, parent.device.1, parent.inode)
        {
            return Err(moved());
        }
        self.current = up;
        Ok(self.levels.pop())
    }

    fn next_pending(&mut self) -> Option<CString> {
        self.levels.last_mut()?.pending.pop()
    }

    fn remember(&mut self, pending: Vec<CString>, again: bool) {
        if let Some(level) = self.levels.last_mut() {
            level.pending = pending;
            level.again = again;
        }
    }

    /// Names in the current directory, without `.` and `..`.
    fn entries(&self) -> Result<impl Iterator<Item = Result<(CString, FileType), Error>> + '_, Error> {
        let listing = Dir::read_from(&self.current).map_err(|source| self.failed("list", c"", source))?;
        Ok(listing.filter_map(|entry| match entry {
            Ok(entry) => {
                let name = entry.file_name();
                let own = name == c"." || name == c"..";
                (!own).then(|| Ok((name.to_owned(), entry.file_type())))
            }
            Err(source) => Some(Err(self.failed("list", c"", source))),
        }))
    }
}

fn split(path: &Path) -> Result<(&Path, CString), Error> {
    let invalid = || Error::io("walk", path, Errno::INVAL);
    let name = path.file_name().ok_or_else(invalid)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let name = CString::new(name.as_bytes()).map_err(|_nul| invalid())?;
    Ok((parent.unwrap_or(Path::new(".")), name))
}

/// See [`crate::Node::remove_tree`]. Blocks.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    let failed = |source: Errno| Error::io("remove", path, source);
    let (parent_path, name) = split(path)?;
    let parent = match rustix::fs::open(
        parent_path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(()),
        Err(source) => return Err(failed(source)),
    };
    match rustix::fs::unlinkat(&parent, &name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(Errno::BUSY) => return Err(Error::MountInside { path: path.to_owned() }),
        Err(source) => return Err(failed(source)),
    }
    let directory = match open_below(&parent, &name) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::XDEV) => return Err(Error::MountInside { path: path.to_owned() }),
        Err(source) => return Err(failed(source)),
    };
    let mut walk = Walk::new(path, directory, name).map_err(failed)?;
    empty_current(&mut walk)?;
    loop {
        if let Some(name) = walk.next_pending() {
            match open_below(&walk.current, &name) {
                Ok(directory) => {
                    walk.enter(directory, name)?;
                    empty_current(&mut walk)?;
                }
                Err(Errno::NOENT) => {}
                Err(Errno::XDEV) => return Err(Error::MountInside { path: walk.path(&name) }),
                Err(source) => return Err(walk.failed("remove", &name, source)),
            }
        } else if walk.levels.last().is_some_and(|level| level.again) {
            empty_current(&mut walk)?;
        } else if let Some(left) = walk.leave()? {
            remove_directory(&walk.current, &left.name)
                .map_err(|source| walk.failed("remove", &left.name, source))?;
        } else {
            let root = walk.levels.first().map(|level| level.name.clone()).unwrap_or_default();
            return remove_directory(&parent, &root).map_err(failed);
        }
    }
}

fn remove_directory(parent: impl AsFd, name: &std::ffi::CStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Removes what is no directory from the current one and remembers its
/// subdirectories.
fn empty_current(walk: &mut Walk) -> Result<(), Error> {
    let mut pending = Vec::new();
    let mut again = false;
    for entry in walk.entries()? {
        let (name, kind) = entry?;
        let is_directory = kind == FileType::Directory
            || match rustix::fs::unlinkat(&walk.current, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => false,
                Err(Errno::ISDIR) => true,
                Err(Errno::BUSY) => return Err(Error::MountInside { path: walk.path(&name) }),
                Err(source) => return Err(walk.failed("remove", &name, source)),
            };
        if is_directory && pending.len() < REMEMBERED {
            pending.push(name);
        } else if is_directory {
            again = true;
            break;
        }
    }
    walk.remember(pending, again);
    Ok(())
}

#[derive(Default)]
struct Tally {
    bytes: u64,
    inodes: u64,
    /// Files with several names that have been counted.
    linked: HashSet<u64>,
}

impl Tally {
    fn count(&mut self, found: &Statx) {
        let is_directory = FileType::from_raw_mode(found.stx_mode.into()) == FileType::Directory;
        if found.stx_nlink > 1 && !is_directory && !self.linked.insert(found.stx_ino) {
            return;
        }
        // statx(2) counts blocks of 512 bytes on every file system.
        self.bytes = self.bytes.saturating_add(found.stx_blocks.saturating_mul(512));
        self.inodes = self.inodes.saturating_add(1);
    }
}

/// See [`crate::Node::usage`]. Blocks. What vanishes during the walk is not
/// counted; files with several names are counted once.
pub(crate) fn usage(path: &Path) -> Result<FilesystemUsage, Error> {
    let failed = |source: Errno| Error::io("measure", path, source);
    let (parent_path, name) = split(path)?;
    let parent =
        rustix::fs::open(parent_path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(failed)?;
    let top = stat(&parent, &name).map_err(failed)?;
    let mut tally = Tally::default();
    tally.count(&top);
    if FileType::from_raw_mode(top.stx_mode.into()) == FileType::Directory {
        // The root of the walk may itself be a mount point.
        let directory = rustix::fs::openat(&parent, &name, DIRECTORY, Mode::empty()).map_err(failed)?;
        let mut walk = Walk::new(path, directory, name).map_err(failed)?;
        count_current(&mut walk, top.stx_mnt_id, &mut tally)?;
        loop {
            if let Some(name) = walk.next_pending() {
                match open_below(&walk.current, &name) {
                    Ok(directory) => {
                        walk.enter(directory, name)?;
                        count_current(&mut walk, top.stx_mnt_id, &mut tally)?;
                    }
                    Err(Errno::NOENT | Errno::XDEV | Errno::NOTDIR | Errno::LOOP) => {}
                    Err(source) => return Err(walk.failed("measure", &name, source)),
                }
            } else if walk.leave()?.is_none() {
                break;
            }
        }
    }
    let table = Path::new("/proc/self/mountinfo");
    let mounts = mountinfo::read().map_err(|source| Error::io("read", table, source))?;
    let mountpoint = mounts
        .into_iter()
        .find(|mount| mount.id == top.stx_mnt_id)
        .map_or_else(|| PathBuf::from("/"), |mount| mount.mountpoint);
    Ok(FilesystemUsage { mountpoint, used_bytes: tally.bytes, used_inodes: tally.inodes })
}

fn count_current(walk: &mut Walk, mount: u64, tally: &mut Tally) -> Result<(), Error> {
    let mut pending = Vec::new();
    for entry in walk.entries()? {
        let (name, _) = entry?;
        let found = match stat(&walk.current, &name) {
            Ok(found) => found,
            Err(Errno::NOENT) => continue,
            Err(source) => return Err(walk.failed("measure", &name, source)),
        };
        if found.stx_mnt_id != mount {
            continue;
        }
        tally.count(&found);
        if FileType::from_raw_mode(found.stx_mode.into()) == FileType::Directory {
            pending.push(name);
        }
    }
    walk.remember(pending, false);
    Ok(())
}
