//! Volumes of the pod's own: directories that the guest keeps for as long as the
//! pod lives. Containers write into them, so nothing in one is trusted: no link in it
//! is ever followed.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use kina_guest_api::v1;
use rustix::fs::{Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, UnmountFlags};

use crate::error::Error;
use crate::memory::{self, Shape};
use crate::unattached::{Unattached, descriptor_path};

/// Kubernetes has no such bound; a pod has a dozen.
const VOLUMES_LIMIT: usize = 256;
const NAME_LIMIT: usize = 255;

/// The volumes of one pod.
#[derive(Debug)]
pub(crate) struct Volumes {
    directory: PathBuf,
    known: Mutex<HashMap<String, Volume>>,
}

#[derive(Debug)]
enum Volume {
    Directory(OwnedFd),
    Memory(Unattached),
}

impl Volume {
    fn root(&self) -> &OwnedFd {
        match self {
            Self::Directory(root) => root,
            Self::Memory(memory) => memory.root(),
        }
    }
}

impl Volumes {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory, known: Mutex::default() }
    }

    /// Opens a volume, or what of it is asked for; makes what is missing. Blocks.
    pub(crate) fn open(&self, asked: &v1::PodVolume) -> Result<OwnedFd, Error> {
        let name = &asked.name;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if !(1..=NAME_LIMIT).contains(&name.len()) || name.starts_with('.') || !name.bytes().all(plain) {
            return Err(Error::invalid("mounts.volume.name", format!("{name:?}")));
        }
        // Held while one is made: the second container waits for the first's.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(volume) = known.get(name) {
            if matches!(volume, Volume::Memory(_)) != asked.memory {
                return Err(Error::invalid("mounts.volume.memory", format!("{name} is the other kind")));
            }
            return below(volume.root(), asked);
        }
        if known.len() >= VOLUMES_LIMIT {
            return Err(Error::TooMany { what: "volumes", limit: VOLUMES_LIMIT });
        }
        let volume = self.make(asked)?;
        let opened = below(volume.root(), asked);
        known.insert(name.clone(), volume);
        opened
    }

    fn make(&self, asked: &v1::PodVolume) -> Result<Volume, Error> {
        let path = self.directory.join(&asked.name);
        clear(&path)?;
        fs::create_dir_all(&self.directory)
            .map_err(|source| Error::file("create", &self.directory, source))?;
        if asked.memory {
            let shape = Shape {
                name: "volume",
                bytes: (asked.memory_bytes > 0).then_some(asked.memory_bytes),
                mode: asked.mode & 0o7777,
                owner: (asked.uid, asked.gid),
                attributes: MountAttrFlags::empty(),
                label: None,
            };
            return memory::create(&shape, &path).map(Volume::Memory);
        }
        let failed = |errno: Errno| Error::file("make volume", &path, errno);
        rustix::fs::mkdir(&path, Mode::RWXU).map_err(failed)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(&path, flags, Mode::empty()).map_err(failed)?;
        own(&root, asked).map_err(failed)?;
        Ok(Volume::Directory(root))
    }

    /// Removes them all, with what is in them.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
        remove_tree(&self.directory)
    }
}

/// Removes what a guest that was killed has left at a volume's place.
fn clear(path: &Path) -> Result<(), Error> {
    let _ = rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    remove_tree(path)
}

fn remove_tree(path: &Path) -> Result<(), Error> {
    // It follows no links either.
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", path, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Gives a directory its owner and, after that, its permissions.
fn own(directory: &OwnedFd, asked: &v1::PodVolume) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(asked.uid), Gid::from_raw(asked.gid));
    rustix::fs::chownat(directory, "", Some(uid), Some(gid), rustix::fs::AtFlags::EMPTY_PATH)?;
    // The one way to do so with a descriptor that is a path only.
    rustix::fs::chmod(descriptor_path(directory), Mode::from_raw_mode(asked.mode & 0o7777))
}

/// What lies at `sub_path` below a volume's root. Directories that are missing are made
/// like the root.
fn below(root: &OwnedFd, asked: &v1::PodVolume) -> Result<OwnedFd, Error> {
    const FIELD: &str = "mounts.volume.sub_path";
    let failed = |errno: Errno| {
        let what = format!("{}/{}", asked.name, asked.sub_path);
        match errno {
            Errno::LOOP => Error::invalid(FIELD, format!("{what} leads through a symbolic link")),
            Errno::NOTDIR => Error::invalid(FIELD, format!("{what} leads through a file")),
            errno => Error::file("open volume", what, errno),
        }
    };
    let mut at = root.try_clone().map_err(|source| Error::system("duplicate a descriptor", source))?;
    for component in Path::new(&asked.sub_path).components() {
        let name = match component {
            Component::Normal(name) => Path::new(name),
            Component::CurDir => continue,
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => {
                return Err(Error::invalid(FIELD, format!("{:?}", asked.sub_path)));
            }
        };
        at = match enter(&at, name, OFlags::empty()) {
            Ok(next) => next,
            Err(Errno::NOENT) => make_below(&at, name, asked).map_err(failed)?,
            Err(errno) => return Err(failed(errno)),
        };
    }
    Ok(at)
}

fn make_below(at: &OwnedFd, name: &Path, asked: &v1::PodVolume) -> Result<OwnedFd, Errno> {
    match rustix::fs::mkdirat(at, name, Mode::RWXU) {
        Ok(()) => {
            let made = enter(at, name, OFlags::DIRECTORY)?;
            own(&made, asked)?;
            Ok(made)
        }
        // A container was faster.
        Err(Errno::EXIST) => enter(at, name, OFlags::empty()),
        Err(errno) => Err(errno),
    }
}

/// Opens one name below a directory, as a path: a pipe or device is not touched by that.
fn enter(at: impl AsFd, name: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(at, name, OFlags::PATH | OFlags::CLOEXEC | flags, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn asked(sub_path: &str) -> v1::PodVolume {
        v1::PodVolume {
            name: "data".to_owned(),
            mode: 0o2770,
            uid: 12,
            gid: 34,
            sub_path: sub_path.to_owned(),
            ..v1::PodVolume::default()
        }
    }

    fn volumes() -> (tempfile::TempDir, Volumes) {
        let directory = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(directory.path().join("volumes"));
        (directory, volumes)
    }

    fn status(descriptor: &OwnedFd) -> fs::Metadata {
        fs::metadata(descriptor_path(descriptor)).unwrap()
    }

    #[test]
    fn what_is_missing_is_made_with_mode_and_owner() {
        let (directory, volumes) = volumes();
        let stale = directory.path().join("volumes/data/of-another-guest");
        fs::create_dir_all(&stale).unwrap();
        for sub_path in ["", "a/./b", "a/b/c"] {
            let status = status(&volumes.open(&asked(sub_path)).unwrap());
            assert_eq!((status.mode(), status.uid(), status.gid()), (0o042_770, 12, 34), "{sub_path}");
        }
        assert!(!stale.exists());
        let root = directory.path().join("volumes/data");
        fs::write(root.join("a/file"), "x").unwrap();
        assert!(status(&volumes.open(&asked("a/file")).unwrap()).is_file());
        volumes.remove().unwrap();
        volumes.remove().unwrap();
        assert!(!directory.path().join("volumes").exists());
    }

    #[test]
    fn no_link_is_followed() {
        let (directory, volumes) = volumes();
        drop(volumes.open(&asked("inside")).unwrap());
        let root = directory.path().join("volumes/data");
        symlink("/", root.join("absolute")).unwrap();
        symlink("../../..", root.join("upward")).unwrap();
        symlink("inside", root.join("harmless")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        for path in ["absolute", "absolute/etc", "upward/x", "harmless/x", "file/x", "/etc", "../x", "a/../b"]
        {
            let error = volumes.open(&asked(path)).unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }), "{path}: {error:?}");
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn memory_has_its_size_and_stays_memory() {
        let (directory, volumes) = volumes();
        let memory = v1::PodVolume { memory: true, memory_bytes: 1 << 20, ..asked("") };
        let opened = volumes.open(&memory).unwrap();
        let size = rustix::fs::fstatvfs(&opened).unwrap();
        assert_eq!(size.f_blocks * size.f_frsize, 1 << 20);
        assert_eq!(status(&opened).mode() & 0o7777, 0o2770);
        let part = volumes.open(&v1::PodVolume { sub_path: "a/b".to_owned(), ..memory }).unwrap();
        assert_eq!(status(&part).dev(), status(&opened).dev());
        assert!(matches!(volumes.open(&asked("")), Err(Error::Invalid { .. })));
        volumes.remove().unwrap();
        assert!(!directory.path().join("volumes").exists());
    }

    #[test]
    fn names_are_one_component() {
        let (_directory, volumes) = volumes();
        for name in ["", ".", "..", "a/b", ".hidden", &"x".repeat(256)] {
            let named = v1::PodVolume { name: name.to_owned(), ..asked("") };
            assert!(matches!(volumes.open(&named), Err(Error::Invalid { .. })), "{name}");
        }
    }
}
