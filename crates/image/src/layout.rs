//! The files of the store.
//!
//! ```text
//! <root>/lock                       held while the store is open
//! <root>/oci/oci-layout             an OCI image layout 1.1
//! <root>/oci/index.json             one descriptor per name
//! <root>/oci/blobs/sha256/<hex>     manifests, configurations, layers as transferred
//! <root>/layers/<hex>.erofs         layer images, by diff id
//! ```
//!
//! Every file comes into being under a temporary name beside its own, is synced
//! and then renamed. What a crash leaves has a temporary name and is swept when
//! the store is opened; a file without one is complete.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use kina_model::Digest;

use crate::Error;

const TEMP_PREFIX: &str = ".incoming-";
const IMAGE_SUFFIX: &str = ".erofs";

/// What the store takes of its file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of disk, as allocated.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

/// An open store's directories. The lock is held as long as this lives.
#[derive(Debug)]
pub(crate) struct Layout {
    root: PathBuf,
    blobs: PathBuf,
    layers: PathBuf,
    _lock: File,
}

impl Layout {
    /// Makes what is missing, takes the lock and sweeps temporary files.
    pub(crate) fn open(root: &Path) -> Result<Self, Error> {
        let blobs = root.join("oci/blobs/sha256");
        let layers = root.join("layers");
        for directory in [&blobs, &layers] {
            fs::create_dir_all(directory).map_err(Error::storage("create", directory))?;
        }
        let lock_path = root.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(Error::storage("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                return Err(Error::StoreInUse { path: root.to_owned() });
            }
            Err(fs::TryLockError::Error(source)) => {
                return Err(Error::storage("lock", &lock_path)(source));
            }
        }
        let layout = Self { root: root.to_owned(), blobs, layers, _lock: lock };
        for directory in [&layout.root.join("oci"), &layout.blobs, &layout.layers] {
            for entry in list(directory)? {
                if entry.name.starts_with(TEMP_PREFIX) {
                    remove(&directory.join(&entry.name))?;
                }
            }
        }
        let marker = layout.root.join("oci/oci-layout");
        if !marker.exists() {
            layout.write_file(&marker, OCI_LAYOUT.as_bytes())?;
        }
        Ok(layout)
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    pub(crate) fn layer_image(&self, diff_id: &Digest) -> PathBuf {
        self.layers.join(format!("{}{IMAGE_SUFFIX}", diff_id.hex()))
    }

    pub(crate) fn temp_blob(&self) -> Result<TempFile, Error> {
        TempFile::create(&self.blobs)
    }

    pub(crate) fn temp_layer(&self) -> Result<TempFile, Error> {
        TempFile::create(&self.layers)
    }

    /// Whether a blob of this size is here.
    pub(crate) fn has_blob(&self, digest: &Digest, size: u64) -> bool {
        fs::metadata(self.blob(digest)).is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
    }

    pub(crate) fn has_layer_image(&self, diff_id: &Digest) -> bool {
        fs::metadata(self.layer_image(diff_id)).is_ok_and(|metadata| metadata.is_file())
    }

    /// A small blob's content, checked against its digest; `None` if it is not here.
    pub(crate) fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        let path = self.blob(digest);
        let Some(bytes) = read_bounded(&path, limit)? else { return Ok(None) };
        let actual = sha256(&bytes);
        if actual != *digest {
            let subject = path.display().to_string();
            return Err(Error::DigestMismatch { subject, expected: digest.clone(), actual });
        }
        Ok(Some(bytes))
    }

    /// Stores a small blob, whose digest the caller has checked. One that is here
    /// is read first: if it is damaged, it is replaced.
    pub(crate) fn write_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        match self.read_blob(digest, bytes.len() as u64) {
            Ok(Some(_)) => Ok(()),
            Ok(None) | Err(Error::DigestMismatch { .. } | Error::TooLarge { .. }) => {
                self.write_file(&self.blob(digest), bytes)
            }
            Err(error) => Err(error),
        }
    }

    /// The names, `None` in a new store.
    pub(crate) fn read_index(&self) -> Result<Option<Vec<u8>>, Error> {
        const LIMIT: u64 = 256 << 20;
        read_bounded(&self.index(), LIMIT)
    }

    pub(crate) fn write_index(&self, bytes: &[u8]) -> Result<(), Error> {
        self.write_file(&self.index(), bytes)
    }

    fn index(&self) -> PathBuf {
        self.root.join("oci/index.json")
    }

    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        let mut file = TempFile::create(path.parent().unwrap_or(&self.root))?;
        file.write(bytes)?;
        file.commit(path)
    }

    /// Every blob that is here, by digest.
    pub(crate) fn blobs(&self) -> Result<Vec<Digest>, Error> {
        let names = list(&self.blobs)?;
        Ok(names.iter().filter_map(|entry| digest_of(&entry.name)).collect())
    }

    /// Every layer image that is here, by diff id.
    pub(crate) fn layer_images(&self) -> Result<Vec<Digest>, Error> {
        let names = list(&self.layers)?;
        Ok(names.iter().filter_map(|entry| digest_of(entry.name.strip_suffix(IMAGE_SUFFIX)?)).collect())
    }

    /// Takes a file's name away at once, so that nobody finds it any more; its
    /// space is freed when the result is dropped.
    pub(crate) fn retire(&self, path: &Path) -> Result<Option<TempFile>, Error> {
        let retired = temp_path(path.parent().unwrap_or(&self.root));
        match fs::rename(path, &retired) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::storage("remove", path)(error)),
        }
        let file = File::open(&retired).map_err(Error::storage("open", &retired))?;
        Ok(Some(TempFile { path: retired, file, committed: false }))
    }

    /// What the store takes, counted now.
    pub(crate) fn usage(&self) -> Result<Usage, Error> {
        let mut usage = Usage::default();
        let oci = self.root.join("oci");
        let directories = [&self.root, &oci, &oci.join("blobs"), &self.blobs, &self.layers];
        for directory in directories {
            for entry in list(directory)? {
                usage.bytes += entry.allocated;
                usage.inodes += 1;
            }
        }
        Ok(usage)
    }
}

/// `oci-layout`'s content, OCI image-spec `image-layout.md`.
pub(crate) const OCI_LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    use sha2::Digest as _;
    Digest::from_sha256(sha2::Sha256::digest(bytes).into())
}

fn digest_of(hex: &str) -> Option<Digest> {
    format!("sha256:{hex}").parse().ok()
}

struct Listed {
    name: String,
    allocated: u64,
}

fn list(directory: &Path) -> Result<Vec<Listed>, Error> {
    let mut listed = Vec::new();
    for entry in fs::read_dir(directory).map_err(Error::storage("list", directory))? {
        let entry = entry.map_err(Error::storage("list", directory))?;
        // A file can go away meanwhile.
        let Ok(metadata) = entry.metadata() else { continue };
        listed.push(Listed {
            name: entry.file_name().to_string_lossy().into_owned(),
            allocated: metadata.blocks() * 512,
        });
    }
    Ok(listed)
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::storage("remove", path)(error)),
        _ => Ok(()),
    }
}

fn read_bounded(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
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
}

impl TempFile {
    fn create(directory: &Path) -> Result<Self, Error> {
        let path = temp_path(directory);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&path)
            .map_err(Error::storage("create", &path))?;
        Ok(Self { path, file, committed: false })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(Error::storage("write", &self.path))
    }

    /// Makes the content durable, and then the name.
    pub(crate) fn commit(mut self, path: &Path) -> Result<(), Error> {
        self.file.sync_all().map_err(Error::storage("sync", &self.path))?;
        fs::rename(&self.path, path).map_err(Error::storage("rename to", path))?;
        self.committed = true;
        if let Some(directory) = path.parent() {
            File::open(directory)
                .and_then(|directory| directory.sync_all())
                .map_err(Error::storage("sync", directory))?;
        }
        Ok(())
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.committed {
            // A file that stays is swept at the next start.
            if let Err(error) = fs::remove_file(&self.path) {
                tracing::debug!(path = %self.path.display(), %error, "temporary file stays");
            }
        }
    }
}
