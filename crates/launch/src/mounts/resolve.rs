//! Paths inside a root that is not trusted: no link in it leads out.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, statat};
use rustix::io::Errno;

/// How many symbolic links one path may have, as the kernel's own limit.
const LINK_LIMIT: usize = 40;
/// How often a lookup is repeated that a rename elsewhere disturbed.
const RETRY_LIMIT: usize = 32;

/// Opens a path inside the root.
pub(crate) fn open(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    open_with(root, path, flags, ResolveFlags::empty())
}

/// Opens a path inside the root that must not have a symbolic link in it.
pub(crate) fn open_plain(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    open_with(root, path, flags, ResolveFlags::NO_SYMLINKS)
}

fn open_with(root: BorrowedFd<'_>, path: &Path, flags: OFlags, more: ResolveFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | more;
    for _ in 0..RETRY_LIMIT {
        match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            done => return Ok(done?),
        }
    }
    Err(Errno::AGAIN.into())
}

/// A place to mount on, and whether it was there before.
pub(crate) struct Target {
    pub(crate) place: OwnedFd,
    pub(crate) existed: bool,
}

/// Opens a path inside the root, making what is missing: directories, and a file at the end if
/// `directory` is false.
pub(crate) fn target(root: BorrowedFd<'_>, path: &Path, directory: bool) -> io::Result<Target> {
    match open(root, path, OFlags::PATH) {
        Ok(place) => Ok(Target { place, existed: true }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(Target { place: make(root, path, directory)?, existed: false })
        }
        Err(error) => Err(error),
    }
}

/// Opens a directory inside the root, making what is missing.
pub(crate) fn directory(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    Ok(target(root, path, true)?.place)
}

/// Walks component by component and makes what is missing. A link that leads nowhere is followed
/// to where it points, inside the root, as the path would be by a process in the container.
fn make(root: BorrowedFd<'_>, path: &Path, directory: bool) -> io::Result<OwnedFd> {
    let mut left = VecDeque::new();
    prepend(&mut left, path);
    // The directories walked through: `..` goes back by them, never by the file system's own.
    let mut walked: Vec<OwnedFd> = Vec::new();
    let mut links = 0;
    while let Some(name) = left.pop_front() {
        if name == ".." {
            walked.pop();
            continue;
        }
        let here = walked.last().map_or(root, AsFd::as_fd);
        let last = left.is_empty();
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = match openat(here, &name, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                if last && !directory {
                    let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                    openat(here, &name, create, Mode::from_raw_mode(0o755))?;
                } else {
                    mkdirat(here, &name, Mode::from_raw_mode(0o755))?;
                }
                openat(here, &name, flags, Mode::empty())?
            }
            done => done?,
        };
        let kind = FileType::from_raw_mode(statat(&found, "", AtFlags::EMPTY_PATH)?.st_mode);
        if kind == FileType::Symlink {
            links += 1;
            if links > LINK_LIMIT {
                return Err(Errno::LOOP.into());
            }
            let text = rustix::fs::readlinkat(&found, "", Vec::new())?;
            let to = Path::new(OsStr::from_bytes(text.as_bytes()));
            if to.is_absolute() {
                walked.clear();
            }
            prepend(&mut left, to);
            continue;
        }
        walked.push(found);
    }
    match walked.pop() {
        Some(place) => Ok(place),
        None => open(root, Path::new("."), OFlags::PATH),
    }
}

fn prepend(left: &mut VecDeque<OsString>, path: &Path) {
    let names: Vec<OsString> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect();
    for name in names.into_iter().rev() {
        left.push_front(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn root(directory: &Path) -> OwnedFd {
        rustix::fs::open(directory, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    #[test]
    fn missing_directories_and_files_are_made() {
        let temporary = tempfile::tempdir().unwrap();
        let root = root(temporary.path());
        assert!(!target(root.as_fd(), Path::new("/a/b/c"), true).unwrap().existed);
        assert!(target(root.as_fd(), Path::new("/a/b/c"), true).unwrap().existed);
        target(root.as_fd(), Path::new("/a/x/file"), false).unwrap();
        assert!(temporary.path().join("a/b/c").is_dir());
        assert!(temporary.path().join("a/x/file").is_file());
    }

    #[test]
    fn links_stay_inside() {
        let temporary = tempfile::tempdir().unwrap();
        let inside = temporary.path().join("root");
        fs::create_dir(&inside).unwrap();
        let outside = temporary.path().join("outside");
        fs::create_dir(&outside).unwrap();
        symlink(&outside, inside.join("absolute")).unwrap();
        symlink("../../../../outside", inside.join("relative")).unwrap();
        symlink("..", inside.join("up")).unwrap();
        symlink("loop", inside.join("loop")).unwrap();
        let root = root(&inside);
        for path in ["/absolute/made", "/relative/made", "/up/up/made", "/../../made2"] {
            target(root.as_fd(), Path::new(path), true).unwrap();
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert!(!temporary.path().join("made2").exists());
        assert!(inside.join("made").is_dir() && inside.join("made2").is_dir());
        assert!(target(root.as_fd(), Path::new("/loop/x"), true).is_err());
        assert!(open_plain(root.as_fd(), Path::new("/up"), OFlags::PATH).is_err());
    }
}
