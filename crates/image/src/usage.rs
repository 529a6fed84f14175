//! What images take of the disk, and freeing those that nobody uses.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kina_model::Digest;

use crate::Error;
use crate::flight::lock;
use crate::images::{Images, Inner, blocking};
use crate::layout::{Stored, Usage};
use crate::records::{Image, Record};

/// What the store takes of its file system and for what. The parts add up:
/// `total.bytes` is the sum of all images' `unique_bytes`, `shared_bytes`,
/// `unreferenced_bytes` and `other_bytes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskUse {
    /// Everything, as `du` counts it.
    pub total: Usage,
    /// The images by id; removed ones too, as long as they are used.
    pub images: Vec<ImageUse>,
    /// Files that several images have, each counted once.
    pub shared_bytes: u64,
    /// Files that no image has: of pulls under way or failed.
    pub unreferenced_bytes: u64,
    /// Directories, the list of images, and files on their way.
    pub other_bytes: u64,
    /// What would be free if all unused images were removed and the store
    /// collected.
    pub reclaimable_bytes: u64,
}

/// What one image takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUse {
    /// The image; without names once it is removed.
    pub image: Image,
    /// All its files, as allocated.
    pub bytes: u64,
    /// Those that no other image has.
    pub unique_bytes: u64,
    /// Whether a [`crate::Lease`] keeps it.
    pub in_use: bool,
    /// Whether it is removed for everyone but its users.
    pub removed: bool,
}

/// Which unused images to remove.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PruneFilter {
    /// Those with a tag too.
    pub tagged: bool,
    /// Only those that came at least that long ago.
    pub age: Duration,
    /// Tell only what would be done.
    pub dry_run: bool,
}

/// What pruning did, or would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pruned {
    /// The images, as they were.
    pub images: Vec<Image>,
    /// Bytes of disk that are free by it.
    pub freed_bytes: u64,
}

fn files_of(record: &Record) -> HashSet<Stored> {
    let blobs = record.blobs().cloned().map(Stored::Blob);
    blobs.chain(record.diff_ids().cloned().map(Stored::LayerImage)).collect()
}

impl Images {
    /// What the store takes of its file system, counted now.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`].
    pub async fn usage(&self) -> Result<Usage, Error> {
        let layout = self.inner.layout.clone();
        blocking("counting the image store", move || layout.usage()).await
    }

    /// What each image takes, counted now.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`].
    pub async fn disk_use(&self) -> Result<DiskUse, Error> {
        let inner = self.inner.clone();
        blocking("counting the image store", move || disk_use(&inner)).await
    }

    /// Whether a [`crate::Lease`] keeps an image.
    #[must_use]
    pub fn in_use(&self, id: &Digest) -> bool {
        lock(&self.inner.tables).leases.contains_key(id)
    }

    /// Removes images that no [`crate::Lease`] keeps, and frees whatever nothing
    /// needs.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`].
    pub async fn prune(&self, filter: PruneFilter) -> Result<Pruned, Error> {
        let inner = self.inner.clone();
        let images = blocking("removing unused images", move || prune(&inner, filter)).await?;
        if filter.dry_run {
            let unreferenced = self.disk_use().await?.unreferenced_bytes;
            return Ok(Pruned { freed_bytes: images.freed_bytes + unreferenced, ..images });
        }
        let rest = self.gc().await?;
        Ok(Pruned { freed_bytes: images.freed_bytes + rest.bytes, ..images })
    }
}

fn disk_use(inner: &Arc<Inner>) -> Result<DiskUse, Error> {
    let files = inner.layout.files()?;
    let (records, leased) = {
        let tables = lock(&inner.tables);
        (tables.records.images.clone(), tables.leases.keys().cloned().collect::<HashSet<_>>())
    };
    let view = inner.view();
    let sizes: HashMap<&Stored, u64> =
        files.iter().filter(|(file, _)| *file != Stored::Other).map(|(file, size)| (file, *size)).collect();
    let mut users: HashMap<Stored, usize> = HashMap::new();
    let mut needed: HashSet<Stored> = HashSet::new();
    for (id, record) in &records {
        for file in files_of(record) {
            if leased.contains(id) {
                needed.insert(file.clone());
            }
            *users.entry(file).or_insert(0) += 1;
        }
    }
    let size = |file: &Stored| sizes.get(file).copied().unwrap_or(0);
    let images = records.iter().map(|(id, record)| {
        let files = files_of(record);
        let named = view.iter().find(|image| image.id == *id).cloned();
        ImageUse {
            image: named.unwrap_or_else(|| record.image(&inner.layout)),
            bytes: files.iter().map(size).sum(),
            unique_bytes: files.iter().filter(|file| users.get(file) == Some(&1)).map(size).sum(),
            in_use: leased.contains(id),
            removed: record.removed,
        }
    });
    let sum = |wanted: &dyn Fn(&Stored) -> bool| -> u64 {
        files.iter().filter(|(file, _)| wanted(file)).map(|(_, size)| size).sum()
    };
    let is_kept = |file: &Stored| *file != Stored::Other;
    Ok(DiskUse {
        images: images.collect(),
        shared_bytes: sum(&|file| users.get(file).is_some_and(|count| *count > 1)),
        unreferenced_bytes: sum(&|file| is_kept(file) && !users.contains_key(file)),
        other_bytes: sum(&|file| !is_kept(file)),
        reclaimable_bytes: sum(&|file| is_kept(file) && !needed.contains(file)),
        total: Usage { bytes: sum(&|_| true), inodes: files.len() as u64 },
    })
}

fn prune(inner: &Arc<Inner>, filter: PruneFilter) -> Result<Pruned, Error> {
    let sizes: HashMap<Stored, u64> = inner.layout.files()?.into_iter().collect();
    let view = inner.view();
    let now = SystemTime::now();
    let is_old = |image: &Image| {
        filter.age.is_zero() || now.duration_since(image.arrived).is_ok_and(|passed| passed >= filter.age)
    };
    let wanted = |image: &Image| (filter.tagged || image.repo_tags.is_empty()) && is_old(image);
    inner.change(|edit| {
        let leases = edit.leases;
        let images = view.iter().filter(|image| wanted(image) && !leases.contains_key(&image.id));
        let images: Vec<Image> = images.cloned().collect();
        let going: HashSet<&Digest> = images.iter().map(|image| &image.id).collect();
        let (mut lost, mut kept) = (HashSet::new(), HashSet::new());
        for (id, record) in &edit.records.images {
            if going.contains(id) { &mut lost } else { &mut kept }.extend(files_of(record));
        }
        let freed = lost.difference(&kept).map(|file| sizes.get(file).copied().unwrap_or(0)).sum();
        if !filter.dry_run {
            edit.records.names.retain(|_, owner| !going.contains(owner));
            for (id, record) in &mut edit.records.images {
                record.removed |= going.contains(id);
            }
        }
        drop(going);
        Pruned { images, freed_bytes: freed }
    })
}
