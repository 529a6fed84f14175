//! Finding damaged files, and mending them.
//!
//! A blob is read and compared with the digest that names it, a layer image with
//! the checksum that was recorded when it was made. That costs one reading of
//! the files, no space, and no waiting for anybody else.
//!
//! Mending takes a damaged file's name away and makes the file anew: a layer
//! image from its blob, a blob from the registry of one of the image's names.
//! A kernel that has mounted the old file keeps it until it unmounts it.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kina_model::Digest;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::Error;
use crate::error::chain;
use crate::flight::lock;
use crate::images::{Images, Inner, Pin, blocking};
use crate::layout::{Layout, Stored, TempFile};
use crate::manifest::Blob;
use crate::progress::Progress;
use crate::pull::{Source, bring_in, choose, unpack_stored};
use crate::records::Record;
use crate::reference::Reference;
use crate::seal::Seal;

const CHUNK: usize = 256 << 10;

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Images that were looked at; removed ones too, as long as they are used.
    pub images: usize,
    /// Files that were read.
    pub files: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// What is wrong; empty if nothing is.
    pub findings: Vec<Finding>,
    /// Files that no image has: of pulls under way or failed. They are no
    /// damage; [`Images::gc`] frees them.
    pub unreferenced: Vec<PathBuf>,
}

/// A damaged file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
    /// The ids of the images that have it.
    pub images: Vec<Digest>,
    /// Whether one of them is in use. Mounted damage stays until it is unmounted.
    pub in_use: bool,
    /// What became of mending it, if that was asked for.
    pub repair: Option<Repair>,
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// It is not there.
    Missing,
    /// It is longer or shorter than it was.
    Size {
        /// Bytes that it had.
        expected: u64,
        /// Bytes that it has.
        actual: u64,
    },
    /// Its content is not what it was.
    Content {
        /// The digest or checksum that it had.
        expected: String,
        /// The one that it has.
        actual: String,
    },
    /// The file system does not give it out.
    Unreadable {
        /// Its error.
        reason: String,
    },
}

impl std::fmt::Display for Problem {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => formatter.write_str("is missing"),
            Self::Size { expected, actual } => {
                write!(formatter, "has {actual} bytes instead of {expected}")
            }
            Self::Content { expected, actual } => {
                write!(formatter, "is corrupt: it has {actual} instead of {expected}")
            }
            Self::Unreadable { reason } => write!(formatter, "cannot be read: {reason}"),
        }
    }
}

/// What became of mending a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// It is as it was.
    Done,
    /// It is not.
    Failed {
        /// Why.
        reason: String,
    },
}

/// How far a verification is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Bytes read.
    pub bytes: u64,
    /// Bytes to read.
    pub total_bytes: u64,
}

/// A file to look at.
#[derive(Clone)]
struct Item {
    path: PathBuf,
    file: Stored,
    expected: Expected,
    images: Vec<Digest>,
}

#[derive(Clone)]
enum Expected {
    Blob(Blob),
    /// `None` if none is recorded, which only a record of another make lacks.
    LayerImage(Option<Seal>),
}

/// Images whose files stay for as long as this lives.
struct Kept {
    records: BTreeMap<Digest, Record>,
    leased: HashSet<Digest>,
    _pin: Pin,
}

impl Images {
    /// Reads the files of these images, or of all if none is named, and says
    /// which are not as they were; with `repair` mends them. Dropping the future
    /// ends it. `progress` shows the latest state of the reading.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownImage`]; [`Error::Storage`] if the store cannot be listed
    /// or changed. What is wrong with single files is in the report.
    pub async fn verify(
        &self,
        images: &[Digest],
        repair: bool,
        progress: Option<watch::Sender<VerifyProgress>>,
    ) -> Result<Report, Error> {
        let kept = Arc::new(keep(&self.inner, images)?);
        let all = images.is_empty();
        let items = items(&self.inner.layout, &kept);
        let canceller = Canceller::default();
        let cancelled = canceller.0.clone();
        let (inner, looked_at, count) = (self.inner.clone(), items.clone(), kept.records.len());
        let mut report = blocking("verifying images", move || {
            let mut report = look(&looked_at, &cancelled, progress.as_ref())?;
            report.images = count;
            if all {
                report.unreferenced = unreferenced(&inner)?;
            }
            Ok(report)
        })
        .await?;
        for finding in &mut report.findings {
            finding.in_use = finding.images.iter().any(|id| kept.leased.contains(id));
        }
        if repair && !report.findings.is_empty() {
            mend(&self.inner, &kept, &items, &mut report.findings, &canceller).await?;
        }
        Ok(report)
    }
}

/// Ends reading on a blocking thread when its caller is gone.
#[derive(Default)]
struct Canceller(Arc<AtomicBool>);

impl Drop for Canceller {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The images asked for, their files kept from being freed.
fn keep(inner: &Arc<Inner>, wanted: &[Digest]) -> Result<Kept, Error> {
    let pin = inner.pin();
    let (records, leased) = {
        let tables = lock(&inner.tables);
        let records = &tables.records.images;
        if let Some(id) = wanted.iter().find(|id| !records.contains_key(*id)) {
            return Err(Error::UnknownImage { name: id.to_string() });
        }
        let chosen = records.iter().filter(|(id, _)| wanted.is_empty() || wanted.contains(*id));
        let chosen: BTreeMap<_, _> = chosen.map(|(id, record)| (id.clone(), record.clone())).collect();
        (chosen, tables.leases.keys().cloned().collect())
    };
    // A removal between the two steps shows as missing files of a removed image.
    for record in records.values() {
        pin.add(record.blobs().cloned(), record.diff_ids().cloned());
    }
    Ok(Kept { records, leased, _pin: pin })
}

/// Each file of the images once.
fn items(layout: &Layout, kept: &Kept) -> Vec<Item> {
    let mut items: BTreeMap<PathBuf, Item> = BTreeMap::new();
    for (id, record) in &kept.records {
        let layers = record.layers.iter();
        let blobs = [&record.manifest, &record.config].into_iter().chain(layers.map(|(blob, _)| blob));
        let blobs = blobs.map(|blob| {
            (layout.blob(&blob.digest), Stored::Blob(blob.digest.clone()), Expected::Blob(blob.clone()))
        });
        let images = record.diff_ids().map(|diff_id| {
            let expected = Expected::LayerImage(layout.known_seal(diff_id));
            (layout.layer_image(diff_id), Stored::LayerImage(diff_id.clone()), expected)
        });
        for (path, file, expected) in blobs.chain(images) {
            let item = Item { path: path.clone(), file, expected, images: Vec::new() };
            let images = &mut items.entry(path).or_insert(item).images;
            if images.last() != Some(id) {
                images.push(id.clone());
            }
        }
    }
    items.into_values().collect()
}

/// Reads the files. Blocking.
fn look(
    items: &[Item],
    cancelled: &AtomicBool,
    progress: Option<&watch::Sender<VerifyProgress>>,
) -> Result<Report, Error> {
    let length = |item: &Item| std::fs::metadata(&item.path).map_or(0, |metadata| metadata.len());
    let mut state = VerifyProgress { bytes: 0, total_bytes: items.iter().map(length).sum() };
    let mut report = Report::default();
    for item in items {
        let problem = examine(item, |count| {
            state.bytes += count;
            if let Some(progress) = progress {
                progress.send_replace(state);
            }
            if cancelled.load(Ordering::Relaxed) {
                return Err(Error::Interrupted { what: "verifying images" });
            }
            Ok(())
        })?;
        report.files += 1;
        report.findings.extend(problem.map(|problem| Finding {
            path: item.path.clone(),
            problem,
            images: item.images.clone(),
            in_use: false,
            repair: None,
        }));
    }
    report.bytes = state.bytes;
    Ok(report)
}

/// What is wrong with a file, if anything is. Blocking.
fn examine(item: &Item, progress: impl FnMut(u64) -> Result<(), Error>) -> Result<Option<Problem>, Error> {
    let actual = match std::fs::metadata(&item.path) {
        Ok(metadata) if metadata.is_file() => metadata.len(),
        _ => return Ok(Some(Problem::Missing)),
    };
    let expected = match &item.expected {
        Expected::Blob(blob) => Some(blob.size),
        Expected::LayerImage(seal) => seal.map(|seal| seal.size),
    };
    if let Some(expected) = expected.filter(|expected| *expected != actual) {
        return Ok(Some(Problem::Size { expected, actual }));
    }
    let compared = match &item.expected {
        Expected::Blob(blob) => hash(&item.path, progress)
            .map(|actual| (actual != blob.digest).then(|| (blob.digest.to_string(), actual.to_string()))),
        Expected::LayerImage(seal) => Seal::of(&item.path, progress).map(|actual| {
            let expected = seal.unwrap_or(actual);
            (actual != expected).then(|| (expected.checksum_text(), actual.checksum_text()))
        }),
    };
    match compared {
        Ok(None) => Ok(None),
        Ok(Some((expected, actual))) => Ok(Some(Problem::Content { expected, actual })),
        Err(Error::Storage { source, .. }) => Ok(Some(match source.kind() {
            io::ErrorKind::NotFound => Problem::Missing,
            _ => Problem::Unreadable { reason: source.to_string() },
        })),
        Err(error) => Err(error),
    }
}

fn hash(path: &Path, mut progress: impl FnMut(u64) -> Result<(), Error>) -> Result<Digest, Error> {
    let mut file = File::open(path).map_err(Error::storage("open", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = file.read(&mut buffer).map_err(Error::storage("read", path))?;
        if count == 0 {
            return Ok(Digest::from_sha256(hasher.finalize().into()));
        }
        hasher.update(&buffer[..count]);
        progress(count as u64)?;
    }
}

/// Files that no record has. Blocking.
fn unreferenced(inner: &Inner) -> Result<Vec<PathBuf>, Error> {
    let used = lock(&inner.tables).records.used();
    let layout = &inner.layout;
    let files = layout.files()?.into_iter().filter_map(|(file, _)| match file {
        Stored::Blob(digest) if !used.blobs.contains(&digest) => Some(layout.blob(&digest)),
        Stored::LayerImage(diff_id) if !used.layers.contains(&diff_id) => Some(layout.layer_image(&diff_id)),
        Stored::Blob(_) | Stored::LayerImage(_) | Stored::Other => None,
    });
    Ok(files.collect())
}

/// Makes the damaged files anew and says of each whether that succeeded.
async fn mend(
    inner: &Arc<Inner>,
    kept: &Arc<Kept>,
    items: &[Item],
    findings: &mut [Finding],
    canceller: &Canceller,
) -> Result<(), Error> {
    let damaged: HashSet<&Path> = findings.iter().map(|finding| finding.path.as_path()).collect();
    let damaged: Vec<Item> =
        items.iter().filter(|item| damaged.contains(item.path.as_path())).cloned().collect();
    let taken = {
        let (inner, damaged) = (inner.clone(), damaged.clone());
        blocking("setting damaged files aside", move || {
            let mut taken: Vec<TempFile> = Vec::new();
            for item in &damaged {
                taken.extend(match &item.file {
                    Stored::Blob(digest) => inner.layout.retire_blob(digest)?,
                    Stored::LayerImage(diff_id) => inner.layout.retire_layer_image(diff_id)?,
                    Stored::Other => None,
                });
            }
            Ok(taken)
        })
    };
    drop(taken.await?);
    let affected: HashSet<&Digest> = damaged.iter().flat_map(|item| &item.images).collect();
    let mut failures: BTreeMap<Digest, String> = BTreeMap::new();
    for id in affected {
        if let Some(record) = kept.records.get(id)
            && let Err(error) = restore(inner, id, record).await
        {
            failures.insert(id.clone(), chain(&error));
        }
    }
    // Whatever was done, the files themselves tell how it went.
    let (layout, cancelled) = (inner.layout.clone(), canceller.0.clone());
    let again: Vec<Item> = damaged
        .into_iter()
        .map(|mut item| {
            if let Stored::LayerImage(diff_id) = &item.file {
                item.expected = Expected::LayerImage(layout.known_seal(diff_id));
            }
            item
        })
        .collect();
    let left = blocking("verifying images", move || look(&again, &cancelled, None)).await?.findings;
    for finding in findings.iter_mut() {
        let still = left.iter().find(|left| left.path == finding.path);
        finding.repair = Some(match still {
            None => Repair::Done,
            Some(still) => {
                let reasons = finding.images.iter().filter_map(|id| failures.get(id).cloned());
                let reason = reasons.chain([format!("the file {}", still.problem)]).next();
                Repair::Failed { reason: reason.unwrap_or_default() }
            }
        });
    }
    let images = Images { inner: inner.clone() };
    for id in kept.records.keys() {
        // Marks what could not be mended, so that the next pull is known to be needed.
        if let Err(error @ Error::Storage { .. }) = images.check(id).await {
            return Err(error);
        }
    }
    Ok(())
}

/// Brings the missing files of an image back: layer images from their blobs,
/// and if one of those is missing too, from a registry.
async fn restore(inner: &Arc<Inner>, id: &Digest, record: &Record) -> Result<(), Error> {
    let mut rebuilt = true;
    for (blob, diff_id) in &record.layers {
        if !inner.layout.has_blob(&blob.digest, blob.size) {
            rebuilt = false;
        } else if !inner.layout.has_layer_image(diff_id) {
            rebuilt &= unpack_stored(inner, blob, || ()).await?.as_ref() == Some(diff_id);
        }
    }
    let documents = [&record.manifest, &record.config];
    rebuilt &= documents.iter().all(|blob| inner.layout.has_blob(&blob.digest, blob.size));
    if !rebuilt {
        return fetch(inner, id, record).await;
    }
    let (inner, record) = (inner.clone(), record.clone());
    blocking("recording an image", move || {
        let mut seals = Vec::new();
        for diff_id in record.diff_ids() {
            seals.push((diff_id.clone(), inner.layout.seal(diff_id)?));
        }
        inner.change(|edit| {
            edit.records.seals.extend(seals);
            if let Some(known) = edit.records.images.get_mut(&record.config.digest) {
                known.incomplete = false;
            }
        })
    })
    .await
}

/// Pulls an image's own manifest again from the repositories of its names.
async fn fetch(inner: &Arc<Inner>, id: &Digest, record: &Record) -> Result<(), Error> {
    let names = inner.recorded(id).map(|(_, names)| names).unwrap_or_default();
    let mut repositories: Vec<Reference> = Vec::new();
    for name in names {
        if !repositories.iter().any(|other| other.name() == name.name()) {
            repositories.push(name.with_digest(&record.manifest.digest));
        }
    }
    // A removed image has no name left.
    let mut result = Err(Error::UnknownImage { name: id.to_string() });
    for reference in repositories {
        result = fetch_from(inner, &reference).await;
        if result.is_ok() {
            break;
        }
    }
    result
}

async fn fetch_from(inner: &Arc<Inner>, reference: &Reference) -> Result<(), Error> {
    let session = inner.registry.session(reference, None).await?;
    let top = session.manifest().await?;
    let (source, subject) = (Source::Registry(session), reference.to_string());
    let chosen = choose(inner, &source, top, &subject).await?;
    let (progress, _) = watch::channel(Progress::default());
    // It has its names.
    bring_in(inner, &source, chosen, Vec::new(), &subject, &progress).await.map(drop)
}
