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

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use kina_model::Digest;

use crate::Error;
use crate::error::free_space;
use crate::failpoint::{Failpoint, Failpoints};
pub(crate) use crate::files::TempFile;
use crate::files::{Listed, list, look_at, read_bounded, sweep};
use crate::flight::lock;
use crate::seal::Seal;

const IMAGE_SUFFIX: &str = ".erofs";

/// What the store takes of its file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of disk, as allocated.
    pub bytes: u64,
    /// Files and directories; one with several names counts once.
    pub inodes: u64,
}

/// Where a file of the store belongs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stored {
    Blob(Digest),
    LayerImage(Digest),
    /// A file that no image can need: temporary, or not the store's.
    Other,
}

/// An open store's directories. The lock is held as long as this lives.
#[derive(Debug)]
pub(crate) struct Layout {
    root: PathBuf,
    blobs: PathBuf,
    layers: PathBuf,
    failpoints: Failpoints,
    /// How the layer images that are recorded were when they were made.
    seals: Mutex<HashMap<Digest, Seal>>,
    _lock: File,
}

impl Layout {
    /// Makes what is missing, takes the lock and sweeps temporary files.
    pub(crate) fn open(root: &Path, failpoint: Option<Failpoint>) -> Result<Self, Error> {
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
        let failpoints = Failpoints(failpoint);
        let layout =
            Self { root: root.to_owned(), blobs, layers, failpoints, seals: Mutex::default(), _lock: lock };
        for directory in [&layout.root.join("oci"), &layout.blobs, &layout.layers] {
            sweep(directory, failpoints)?;
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
        TempFile::create(&self.blobs, self.failpoints)
    }

    pub(crate) fn temp_layer(&self) -> Result<TempFile, Error> {
        TempFile::create(&self.layers, self.failpoints)
    }

    /// Whether a blob of this size is here.
    pub(crate) fn has_blob(&self, digest: &Digest, size: u64) -> bool {
        self.blob_flaw(digest, size).is_none()
    }

    /// Whether a layer image is here, as long as it was when it was made.
    pub(crate) fn has_layer_image(&self, diff_id: &Digest) -> bool {
        self.layer_image_flaw(diff_id).is_none()
    }

    /// What is wrong with a layer image at a glance.
    pub(crate) fn layer_image_flaw(&self, diff_id: &Digest) -> Option<Flaw> {
        let seal = lock(&self.seals).get(diff_id).copied();
        match fs::metadata(self.layer_image(diff_id)) {
            Ok(metadata) if metadata.is_file() => {
                let expected = seal.map_or(metadata.len(), |seal| seal.size);
                let actual = metadata.len();
                (actual != expected).then_some(Flaw::Size { expected, actual })
            }
            _ => Some(Flaw::Missing),
        }
    }

    /// What a blob's file has wrong at a glance.
    pub(crate) fn blob_flaw(&self, digest: &Digest, expected: u64) -> Option<Flaw> {
        match fs::metadata(self.blob(digest)) {
            Ok(metadata) if metadata.is_file() => {
                let actual = metadata.len();
                (actual != expected).then_some(Flaw::Size { expected, actual })
            }
            _ => Some(Flaw::Missing),
        }
    }

    /// When a blob came in.
    pub(crate) fn blob_arrived(&self, digest: &Digest) -> SystemTime {
        let modified = fs::metadata(self.blob(digest)).and_then(|metadata| metadata.modified());
        modified.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Takes over what is recorded about a layer image.
    pub(crate) fn set_seal(&self, diff_id: &Digest, seal: Seal) {
        lock(&self.seals).insert(diff_id.clone(), seal);
    }

    /// What is recorded about a layer image.
    pub(crate) fn known_seal(&self, diff_id: &Digest) -> Option<Seal> {
        lock(&self.seals).get(diff_id).copied()
    }

    /// What a layer image is to be compared with later. The first to ask reads
    /// it: it was complete when it got its name.
    pub(crate) fn seal(&self, diff_id: &Digest) -> Result<Seal, Error> {
        if let Some(seal) = self.known_seal(diff_id) {
            return Ok(seal);
        }
        let seal = Seal::of(&self.layer_image(diff_id), |_| Ok(()))?;
        self.set_seal(diff_id, seal);
        Ok(seal)
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
        let mut file = TempFile::create(path.parent().unwrap_or(&self.root), self.failpoints)?;
        file.write(bytes)?;
        file.commit(path)
    }

    /// Refuses what cannot fit.
    pub(crate) fn check_room(&self, needed: u64) -> Result<(), Error> {
        let (free_bytes, free_files) = free_space(&self.root);
        // A file system that tells nothing is asked by writing to it.
        if needed <= free_bytes || (free_bytes, free_files) == (0, 0) {
            return Ok(());
        }
        Err(Error::NoSpace {
            operation: "fetch layers into",
            path: self.blobs.clone(),
            needed_bytes: Some(needed),
            free_bytes,
            free_files,
            source: Arc::new(std::io::ErrorKind::StorageFull.into()),
        })
    }

    /// Keeps a new layer image, and how it is.
    pub(crate) fn commit_layer_image(&self, image: TempFile, diff_id: &Digest) -> Result<(), Error> {
        let seal = Seal::of(image.path(), |_| Ok(()))?;
        image.commit(&self.layer_image(diff_id))?;
        self.set_seal(diff_id, seal);
        Ok(())
    }

    /// Takes a blob's name away; see [`TempFile::retire`].
    pub(crate) fn retire_blob(&self, digest: &Digest) -> Result<Option<TempFile>, Error> {
        TempFile::retire(&self.blob(digest), self.failpoints)
    }

    /// Takes a layer image's name away; see [`TempFile::retire`].
    pub(crate) fn retire_layer_image(&self, diff_id: &Digest) -> Result<Option<TempFile>, Error> {
        let retired = TempFile::retire(&self.layer_image(diff_id), self.failpoints)?;
        lock(&self.seals).remove(diff_id);
        Ok(retired)
    }

    /// Every file and directory with the disk that it takes, each once.
    pub(crate) fn files(&self) -> Result<Vec<(Stored, u64)>, Error> {
        let oci = self.root.join("oci");
        let blobs = oci.join("blobs");
        let directories: [(&Path, Kind); 5] = [
            (&self.root, |_| Stored::Other),
            (&oci, |_| Stored::Other),
            (&blobs, |_| Stored::Other),
            (&self.blobs, |entry| digest_of(&entry.name).map_or(Stored::Other, Stored::Blob)),
            (&self.layers, |entry| {
                let diff_id = entry.name.strip_suffix(IMAGE_SUFFIX).and_then(digest_of);
                diff_id.map_or(Stored::Other, Stored::LayerImage)
            }),
        ];
        let top = look_at(&self.root)?;
        let mut seen = HashSet::from([top.identity]);
        let mut files = vec![(Stored::Other, top.allocated)];
        for (directory, kind) in directories {
            let mut found: Vec<(Stored, Listed)> =
                list(directory)?.into_iter().map(|entry| (kind(&entry), entry)).collect();
            // Of a file's names the store's own counts.
            found.sort_by_key(|(kind, _)| *kind == Stored::Other);
            for (kind, entry) in found {
                if seen.insert(entry.identity) {
                    files.push((kind, entry.allocated));
                }
            }
        }
        Ok(files)
    }

    /// What the store takes, counted now.
    pub(crate) fn usage(&self) -> Result<Usage, Error> {
        let files = self.files()?;
        Ok(Usage { bytes: files.iter().map(|(_, allocated)| allocated).sum(), inodes: files.len() as u64 })
    }
}

/// What a file of a directory is.
type Kind = fn(&Listed) -> Stored;

/// What is wrong with a file at a glance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    Missing,
    Size { expected: u64, actual: u64 },
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
