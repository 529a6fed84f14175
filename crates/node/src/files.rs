//! Single files and directories, on any Unix.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Error;

/// Tells temporary files of one process apart.
static TEMPORARY: AtomicU64 = AtomicU64::new(0);

/// See [`crate::Node::create_directory`].
pub(crate) fn create_directory(path: &Path, mode: u32) -> Result<(), Error> {
    let failed = |source| Error::io("create directory", path, source);
    if path.is_dir() {
        return Ok(());
    }
    let mut missing = vec![path];
    for ancestor in path.ancestors().skip(1) {
        if ancestor.as_os_str().is_empty() || ancestor.is_dir() {
            break;
        }
        missing.push(ancestor);
    }
    for directory in missing.into_iter().rev() {
        match DirBuilder::new().mode(mode).create(directory) {
            // The umask took bits away.
            Ok(()) => fs::set_permissions(directory, Permissions::from_mode(mode)).map_err(failed)?,
            // Made by another meanwhile; or a file, which is an error.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

/// See [`crate::Node::list_directory`].
pub(crate) fn list_directory(path: &Path) -> Result<Vec<String>, Error> {
    let failed = |source| Error::io("list", path, source);
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

/// See [`crate::Node::file_identity`].
pub(crate) fn file_identity(path: &Path) -> Result<Option<String>, Error> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() => Ok(Some(format!(
            "{}:{}:{}:{}.{}:{}.{}",
            found.dev(),
            found.ino(),
            found.size(),
            found.mtime(),
            found.mtime_nsec(),
            found.ctime(),
            found.ctime_nsec(),
        ))),
        Ok(_) => Ok(None),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(Error::io("inspect", path, error)),
    }
}

/// See [`crate::Node::read_file`].
pub(crate) fn read_file(path: &Path, limit: usize) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::io("read", path, source);
    let file = open_file(path)?;
    let mut content = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    file.take(most).read_to_end(&mut content).map_err(failed)?;
    if content.len() > limit {
        return Err(Error::TooLarge { path: path.to_owned(), limit });
    }
    Ok(content)
}

/// See [`crate::Node::read_end`].
pub(crate) fn read_end(path: &Path, limit: usize) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::io("read", path, source);
    let mut file = open_file(path)?;
    let limit = u64::try_from(limit).unwrap_or(u64::MAX);
    let length = file.metadata().map_err(failed)?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(limit))).map_err(failed)?;
    let mut content = Vec::new();
    file.take(limit).read_to_end(&mut content).map_err(failed)?;
    Ok(content)
}

/// See [`crate::Node::rename`].
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(from).is_err() => {
            Ok(())
        }
        other => other.map_err(|error| Error::io("rename", from, error)),
    }
}

/// See [`crate::Node::hard_link`].
pub(crate) fn hard_link(source: &Path, target: &Path) -> Result<(), Error> {
    match fs::hard_link(source, target) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_same_file(source, target) => Ok(()),
        other => other.map_err(|error| Error::io("link", source, error)),
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    match (fs::symlink_metadata(one), fs::symlink_metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        (Err(_), _) | (_, Err(_)) => false,
    }
}

/// Opens a regular file for reading; anything else is an error.
fn open_file(path: &Path) -> Result<File, Error> {
    let failed = |source| Error::io("read", path, source);
    // Without O_NONBLOCK opening a pipe would wait for its writer.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(Error::NotAFile { path: path.to_owned() });
    }
    Ok(file)
}

/// See [`crate::Node::write_file`]. Readers see the old or the new content,
/// also when this process is killed. It is not synchronised to the disk: what
/// must survive a power failure belongs in the store.
pub(crate) fn write_file(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let failed = |source| Error::io("write", path, source);
    let temporary =
        temporary_beside(path).ok_or_else(|| failed(io::Error::from(io::ErrorKind::InvalidInput)))?;
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(content)?;
        drop::<File>(file);
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        // What failed matters more.
        drop(fs::remove_file(&temporary));
    }
    written.map_err(failed)
}

/// [`crate::temporary_age`] reads the name.
fn temporary_beside(path: &Path) -> Option<PathBuf> {
    // The time tells this process from an earlier one with the same number.
    let time = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_nanos());
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name()?);
    name.push(format!(".{}.{time}.{}", std::process::id(), TEMPORARY.fetch_add(1, Ordering::Relaxed)));
    Some(path.with_file_name(name))
}
