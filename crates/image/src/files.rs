//! Files on their way into the store and out of it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Error;
use crate::failpoint::{Failpoints, Step};

const TEMP_PREFIX: &str = ".incoming-";

/// A file or directory, as found.
pub(crate) struct Listed {
    pub(crate) name: String,
    /// Which file it is: device and inode.
    pub(crate) identity: (u64, u64),
    /// Bytes of disk.
    pub(crate) allocated: u64,
}

impl Listed {
    pub(crate) fn is_temporary(&self) -> bool {
        self.name.starts_with(TEMP_PREFIX)
    }

    fn new(name: String, metadata: &fs::Metadata) -> Self {
        let identity = (metadata.dev(), metadata.ino());
        // `st_blocks` counts in units of 512 bytes, whatever the file system's blocks are.
        Self { name, identity, allocated: metadata.blocks() * 512 }
    }
}

/// What lies in a directory.
pub(crate) fn list(directory: &Path) -> Result<Vec<Listed>, Error> {
    let mut listed = Vec::new();
    for entry in fs::read_dir(directory).map_err(Error::storage("list", directory))? {
        let entry = entry.map_err(Error::storage("list", directory))?;
        // A file can go away meanwhile.
        let Ok(metadata) = entry.metadata() else { continue };
        listed.push(Listed::new(entry.file_name().to_string_lossy().into_owned(), &metadata));
    }
    Ok(listed)
}

/// One file or directory.
pub(crate) fn look_at(path: &Path) -> Result<Listed, Error> {
    let metadata = fs::symlink_metadata(path).map_err(Error::storage("look at", path))?;
    Ok(Listed::new(path.to_string_lossy().into_owned(), &metadata))
}

/// Removes what a killed process left.
pub(crate) fn sweep(directory: &Path, failpoints: Failpoints) -> Result<(), Error> {
    for entry in list(directory)?.iter().filter(|entry| entry.is_temporary()) {
        let path = directory.join(&entry.name);
        match failpoints.around(Step::Sweep, || fs::remove_file(&path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::storage("remove", &path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A file's content if it is no longer than the limit; `None` if there is none.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::storage("open", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::storage("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(Error::TooLarge { subject: path.display().to_string(), what: "bytes", limit });
    }
    Ok(Some(bytes))
}

fn temp_path(directory: &Path) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    directory.join(format!("{TEMP_PREFIX}{}-{number}", std::process::id()))
}

/// A file under a temporary name, removed unless it is committed.
#[derive(Debug)]
pub(crate) struct TempFile {
    path: PathBuf,
    file: File,
    committed: bool,
    failpoints: Failpoints,
}

impl TempFile {
    pub(crate) fn create(directory: &Path, failpoints: Failpoints) -> Result<Self, Error> {
        let path = temp_path(directory);
        let create = || OpenOptions::new().read(true).write(true).create_new(true).mode(0o644).open(&path);
        let file = failpoints.around(Step::Create, create).map_err(Error::storage("create", &path))?;
        Ok(Self { path, file, committed: false, failpoints })
    }

    /// Takes a file's name away at once, so that nobody finds it any more; its
    /// space is freed when the result is dropped. `None` if there is none.
    pub(crate) fn retire(path: &Path, failpoints: Failpoints) -> Result<Option<Self>, Error> {
        let retired = temp_path(path.parent().unwrap_or(path));
        match failpoints.around(Step::Retire, || fs::rename(path, &retired)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::storage("remove", path)(error)),
        }
        let file = File::open(&retired).map_err(Error::storage("open", &retired))?;
        Ok(Some(Self { path: retired, file, committed: false, failpoints }))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Bytes of disk that go when this is dropped.
    pub(crate) fn allocated(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.blocks() * 512)
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.failpoints
            .around(Step::Write, || self.file.write_all(bytes))
            .map_err(Error::storage("write", &self.path))
    }

    /// Makes the content durable, and then the name.
    pub(crate) fn commit(mut self, path: &Path) -> Result<(), Error> {
        let failpoints = self.failpoints;
        failpoints.around(Step::Sync, || self.file.sync_all()).map_err(Error::storage("sync", &self.path))?;
        failpoints
            .around(Step::Rename, || fs::rename(&self.path, path))
            .map_err(Error::storage("rename to", path))?;
        self.committed = true;
        if let Some(directory) = path.parent() {
            failpoints
                .around(Step::SyncDirectory, || {
                    File::open(directory).and_then(|directory| directory.sync_all())
                })
                .map_err(Error::storage("sync", directory))?;
        }
        Ok(())
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.committed {
            // A file that stays is swept at the next start.
            if let Err(error) = self.failpoints.around(Step::Free, || fs::remove_file(&self.path)) {
                tracing::debug!(path = %self.path.display(), %error, "temporary file stays");
            }
        }
    }
}
