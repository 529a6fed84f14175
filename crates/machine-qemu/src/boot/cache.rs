//! Files that are made once and kept: one folder per key, in a directory that
//! several processes may use.
//!
//! ```text
//! <directory>/<key>/      complete; in use while somebody holds a shared lock on it
//!             .new-XXXX/  in the making, locked likewise; becomes `<key>` by a rename
//! ```
//!
//! A folder that nobody holds is removed as soon as another one is asked for.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What a folder in the making is called.
const UNFINISHED: &str = ".new-";
/// How often a folder may vanish under the one who wants it.
const TRIES: usize = 64;

/// A folder of files that stays while this is held.
#[derive(Debug)]
pub(super) struct Held {
    path: PathBuf,
    /// Has the shared lock, which ends with it.
    _lock: File,
}

impl Held {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// The folder of `key`; `make` fills a new one if there is none. Others that
/// nobody holds are removed.
///
/// # Errors
/// When `make` fails, or the directory cannot be used.
pub(super) fn get<E: From<io::Error>>(
    directory: &Path,
    key: &str,
    make: impl Fn(&Path) -> Result<(), E>,
) -> Result<Held, E> {
    fs::create_dir_all(directory)?;
    let path = directory.join(key);
    for _ in 0..TRIES {
        let held = match hold(&path)? {
            Some(held) => held,
            None => match make_new(directory, &path, &make)? {
                Some(held) => held,
                None => continue,
            },
        };
        sweep(directory, &path);
        return Ok(held);
    }
    let reason = format!("{} vanished {TRIES} times: does something else clean up there?", path.display());
    Err(io::Error::new(io::ErrorKind::ResourceBusy, reason).into())
}

/// Locks the folder. `None` when there is none, or it is just being removed.
fn hold(path: &Path) -> io::Result<Option<Held>> {
    let lock = match File::open(path) {
        Ok(folder) => folder,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match lock.try_lock_shared() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // Removed, or even made anew, before it was locked?
    Ok(is_at(&lock, path)?.then(|| Held { path: path.to_owned(), _lock: lock }))
}

fn is_at(folder: &File, path: &Path) -> io::Result<bool> {
    let held = folder.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (held.dev(), held.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes the folder. `None` when somebody else was faster.
fn make_new<E: From<io::Error>>(
    directory: &Path,
    path: &Path,
    make: impl Fn(&Path) -> Result<(), E>,
) -> Result<Option<Held>, E> {
    let unfinished = tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(directory)?;
    let Some(Held { _lock: lock, .. }) = hold(unfinished.path())? else {
        return Ok(None);
    };
    // QEMU may run as another user; nothing in it is secret.
    fs::set_permissions(unfinished.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    make(unfinished.path())?;
    for entry in fs::read_dir(unfinished.path())? {
        File::open(entry?.path())?.sync_all()?;
    }
    match fs::rename(unfinished.path(), path) {
        Ok(()) => {
            // It has another name: there is nothing to remove.
            let _ = unfinished.keep();
            Ok(Some(Held { path: path.to_owned(), _lock: lock }))
        }
        Err(error)
            if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Removes every folder but `keep` that nobody holds. What cannot be removed now
/// is left for the next time.
fn sweep(directory: &Path, keep: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        if path == keep || !path.is_dir() {
            continue;
        }
        if let Err(error) = remove(directory, &path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove old boot files");
        }
    }
}

/// Removes a folder that nobody holds: first out of the way, so that its name
/// never stands for half of it.
fn remove(directory: &Path, path: &Path) -> io::Result<()> {
    let folder = File::open(path)?;
    match folder.try_lock() {
        Ok(()) if is_at(&folder, path)? => {}
        Ok(()) | Err(TryLockError::WouldBlock) => return Ok(()),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.starts_with(UNFINISHED) {
        return fs::remove_dir_all(path);
    }
    let aside = directory.join(format!("{UNFINISHED}{name}"));
    fs::rename(path, &aside)?;
    fs::remove_dir_all(aside)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Barrier;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn make(folder: &Path) -> io::Result<()> {
        fs::write(folder.join("file"), "content")
    }

    #[test]
    fn a_folder_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let made = Cell::new(0);
        for _ in 0..3 {
            let held = get(directory.path(), "a", |folder| {
                made.set(made.get() + 1);
                make(folder)
            })
            .unwrap();
            assert_eq!(fs::read(held.path().join("file")).unwrap(), b"content");
        }
        assert_eq!(made.get(), 1);
    }

    #[test]
    fn old_ones_stay_while_they_are_held() {
        let directory = tempfile::tempdir().unwrap();
        let old = get(directory.path(), "old", make).unwrap();
        fs::create_dir(directory.path().join(".new-left")).unwrap();
        let new = get(directory.path(), "new", make).unwrap();
        assert_eq!(names(directory.path()), ["new", "old"]);
        drop(old);
        let again = get(directory.path(), "new", make).unwrap();
        assert_eq!(names(directory.path()), ["new"]);
        drop((new, again));
    }

    #[test]
    fn a_failure_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let error = get(directory.path(), "a", |folder| {
            make(folder)?;
            Err(io::Error::other("no"))
        });
        assert_eq!(error.unwrap_err().to_string(), "no");
        assert_eq!(names(directory.path()), Vec::<String>::new());
    }

    #[test]
    fn many_at_once_get_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let barrier = Barrier::new(8);
        std::thread::scope(|scope| {
            for index in 0..8 {
                let (directory, barrier) = (directory.path(), &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    for round in 0..8 {
                        // Two keys, each removing the other's folder where it can.
                        let key = if (index + round) % 2 == 0 { "a" } else { "b" };
                        let held = get(directory, key, make).unwrap();
                        assert_eq!(fs::read(held.path().join("file")).unwrap(), b"content");
                    }
                });
            }
        });
        let last = get(directory.path(), "c", make).unwrap();
        assert_eq!(names(directory.path()), ["c"]);
        drop(last);
    }
}
