mod retention;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kina_model::Digest;
use tokio::sync::{Semaphore, watch};

use crate::config::Config;
use crate::credentials::Credentials;
use crate::flight::{Flights, lock};
use crate::layout::{Flaw, Layout, Usage};
use crate::progress::{LayerWork, Progress};
use crate::records::{Image, Record, Records, Used};
use crate::reference::Reference;
use crate::registry::Registry;
use crate::{Error, pull};

pub(crate) use self::retention::Pin;

/// Hexadecimal digits that an abbreviated image id must have at least.
const SHORTEST_ID: usize = 7;

/// The image store: pulls, keeps, lists and removes images. Clones share it.
#[derive(Clone)]
pub struct Images {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) layout: Arc<Layout>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) pulls: Flights<(Reference, Option<Credentials>), Result<Digest, Error>, Progress>,
    pub(crate) layers: Flights<(Digest, u64), Result<Digest, Error>, LayerWork>,
    pub(crate) layer_slots: Semaphore,
    runtime: tokio::runtime::Handle,
    /// Held on a blocking thread over change, write and swap. Taken before `tables`.
    writer: Mutex<()>,
    /// Held for moments only, never over a write of content.
    pub(crate) tables: Mutex<Tables>,
    view: watch::Sender<Arc<Vec<Image>>>,
}

#[derive(Default)]
pub(crate) struct Tables {
    pub(crate) records: Records,
    /// By image id; removed images too.
    pub(crate) leases: HashMap<Digest, usize>,
    /// What pulls and imports under way need, by a number of their own.
    pins: HashMap<u64, Used>,
    next_pin: u64,
    /// Images that are being dropped; they cannot be leased any more.
    closing: HashSet<Digest>,
    /// The process ends: leases go, their users do not.
    closed: bool,
}

impl Tables {
    fn has_unused(&self) -> bool {
        self.records.images.iter().any(|(id, record)| self.is_unused(id, record))
    }

    fn is_unused(&self, id: &Digest, record: &Record) -> bool {
        record.removed && !self.closed && !self.leases.contains_key(id)
    }
}

/// What a removal did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// There was no such image.
    None,
    /// A name is gone; the image has others.
    Name {
        /// The image.
        id: Digest,
    },
    /// The image is gone with all its names.
    Image {
        /// The image.
        id: Digest,
        /// Whether its files stay until the last [`Lease`] is dropped.
        in_use: bool,
    },
}

/// Keeps an image's files, even if the image is removed meanwhile.
///
/// Leases are not recorded. A process that ends drops its leases though
/// containers go on: it calls [`Images::close`] before. After a restart the daemon takes those of its
/// containers again before it calls [`Images::gc`]; until then nothing that was
/// leased goes away.
pub struct Lease {
    inner: Arc<Inner>,
    image: Image,
}

impl Lease {
    /// The image as it was when the lease was taken.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let id = &self.image.id;
        let mut tables = lock(&self.inner.tables);
        let last = match tables.leases.get_mut(id) {
            Some(count) if *count > 1 => {
                *count -= 1;
                false
            }
            _ => {
                tables.leases.remove(id);
                true
            }
        };
        let unused = last && tables.records.images.get(id).is_some_and(|record| tables.is_unused(id, record));
        drop(tables);
        if unused {
            let inner = self.inner.clone();
            // Detached: if the runtime ends first, the next gc does it.
            drop(self.inner.runtime.spawn_blocking(move || {
                if let Err(error) = inner.change(|_| ()) {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "removed image stays until the next collection"
                    );
                }
            }));
        }
    }
}

impl Images {
    /// Opens the store, making it if needed, and sweeps what a crash left.
    ///
    /// # Errors
    ///
    /// [`Error::StoreInUse`], [`Error::Storage`], and what is wrong with the
    /// configuration.
    pub async fn open(config: Config) -> Result<Self, Error> {
        let registry = Registry::new(&config)?;
        let root = config.root.clone();
        let limits = config.limits.clone();
        let failpoint = config.failpoint;
        let (layout, records) = blocking("opening the image store", move || {
            let layout = Layout::open(&root, failpoint)?;
            let records = Records::load(&layout, &limits)?;
            Ok((layout, records))
        })
        .await?;
        let (view, _) = watch::channel(Arc::new(records.view(&layout)));
        let inner = Arc::new(Inner {
            layer_slots: Semaphore::new(config.max_concurrent_layers.clamp(1, 64)),
            config,
            layout: Arc::new(layout),
            registry,
            pulls: Flights::new(),
            layers: Flights::new(),
            runtime: tokio::runtime::Handle::current(),
            writer: Mutex::new(()),
            tables: Mutex::new(Tables { records, ..Tables::default() }),
            view,
        });
        Ok(Self { inner })
    }

    /// Brings an image in, or finds that it is here, and names it.
    ///
    /// A pull that finds the disk full frees what nothing needs, the layers that
    /// it has brought in included.
    ///
    /// Concurrent pulls of the same reference with the same credentials are one.
    /// The work goes on as long as one caller waits; when all futures are
    /// dropped it stops. Layers that are complete by then are kept until
    /// [`Images::gc`]. `progress` shows the latest state; it may be dropped.
    ///
    /// # Errors
    ///
    /// See [`Error`]; nothing changes in the store's list then.
    pub async fn pull(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
        progress: Option<watch::Sender<Progress>>,
    ) -> Result<Image, Error> {
        let key = (reference.clone(), credentials.cloned());
        let (flight, _) = self.inner.pulls.join(key, |shared| {
            let (inner, reference, credentials) =
                (self.inner.clone(), reference.clone(), credentials.cloned());
            async move {
                let result = pull::pull(inner.clone(), reference, credentials, shared).await;
                if result.as_ref().is_err_and(Error::is_no_space) {
                    inner.free_unneeded(Duration::ZERO).await?;
                }
                result
            }
        });
        let report = |current: Progress| {
            if let Some(progress) = &progress {
                progress.send_replace(current);
            }
        };
        let interrupted = || Error::Interrupted { what: "the pull" };
        let id = flight.wait(report).await.unwrap_or_else(|| Err(interrupted()))?;
        let found = self.inner.view.borrow().iter().find(|image| image.id == id).cloned();
        found.ok_or_else(|| Error::UnknownImage { name: id.to_string() })
    }

    /// All images, by id. From memory; never waits.
    #[must_use]
    pub fn list(&self) -> Vec<Image> {
        self.inner.view.borrow().as_ref().clone()
    }

    /// The image that a text means: an id with or without `sha256:`, a name, or
    /// the beginning (7 or more hexadecimal digits) of exactly one id. Names
    /// win over beginnings of ids. From memory; never waits.
    ///
    /// A name with a digest is found by the digest of the index or manifest that
    /// was pulled, and by that of the image's manifest.
    #[must_use]
    pub fn resolve(&self, any: &str) -> Option<Image> {
        let view = self.inner.view.borrow().clone();
        let hex = any.strip_prefix("sha256:").unwrap_or(any);
        if let Ok(id) = format!("sha256:{hex}").parse::<Digest>() {
            return view.iter().find(|image| image.id == id).cloned();
        }
        if let Ok(reference) = any.parse::<Reference>() {
            let name = reference.to_string();
            let prefix = format!("{}@", reference.name());
            let named = view.iter().find(|image| match reference.digest() {
                None => image.repo_tags.contains(&name),
                Some(digest) => {
                    image.repo_digests.contains(&name)
                        || (image.manifest_digest == *digest
                            && image.repo_digests.iter().any(|other| other.starts_with(&prefix)))
                }
            });
            if named.is_some() {
                return named.cloned();
            }
        }
        if hex.len() < SHORTEST_ID || !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let mut matching = view.iter().filter(|image| image.id.hex().starts_with(hex));
        let first = matching.next()?;
        matching.next().is_none().then(|| first.clone())
    }

    /// Removes an image with all its names, as the CRI's `RemoveImage` does.
    /// Files that no other image, pull or [`Lease`] needs are freed.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`].
    pub async fn remove(&self, any: &str) -> Result<Removed, Error> {
        let Some(image) = self.resolve(any) else { return Ok(Removed::None) };
        let inner = self.inner.clone();
        let id = image.id;
        blocking("removing an image", move || {
            inner.change(|edit| {
                let records = &mut edit.records;
                let Some(record) = records.images.get_mut(&id).filter(|record| !record.removed) else {
                    return Removed::None;
                };
                record.removed = true;
                records.names.retain(|_, other| *other != id);
                let in_use = edit.leases.contains_key(&id);
                Removed::Image { id, in_use }
            })
        })
        .await
    }

    /// Removes one name, as `docker rmi` does: a repository's last tag takes its
    /// digests along, an image's last name the image.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`].
    pub async fn untag(&self, name: &Reference) -> Result<Removed, Error> {
        let inner = self.inner.clone();
        let name = name.clone();
        blocking("removing a name", move || {
            inner.change(|edit| {
                let records = &mut edit.records;
                let Some(id) = records.names.remove(&name) else { return Removed::None };
                let repository = name.name();
                let of_image = |other: &Reference, owner: &Digest| *owner == id && other.name() == repository;
                let tagged = records
                    .names
                    .iter()
                    .any(|(other, owner)| of_image(other, owner) && other.tag().is_some());
                if name.tag().is_some() && !tagged {
                    records.names.retain(|other, owner| !of_image(other, owner));
                }
                if records.names.values().any(|owner| *owner == id) {
                    return Removed::Name { id };
                }
                if let Some(record) = records.images.get_mut(&id) {
                    record.removed = true;
                }
                let in_use = edit.leases.contains_key(&id);
                Removed::Image { id, in_use }
            })
        })
        .await
    }

    /// Keeps an image's files until the lease is dropped; `None` if there is no
    /// such image. An image that was removed while it was leased can be leased
    /// again after a restart, until [`Images::gc`].
    #[must_use]
    pub fn lease(&self, id: &Digest) -> Option<Lease> {
        let mut tables = lock(&self.inner.tables);
        let record = tables.records.images.get(id).filter(|_| !tables.closing.contains(id))?;
        let mut image = record.image(&self.inner.layout);
        for (name, owner) in &tables.records.names {
            if owner == id {
                let names = if name.tag().is_some() { &mut image.repo_tags } else { &mut image.repo_digests };
                names.push(name.to_string());
            }
        }
        *tables.leases.entry(id.clone()).or_insert(0) += 1;
        drop(tables);
        Some(Lease { inner: self.inner.clone(), image })
    }

    /// Looks whether the layer images of an image are here, as long as they were
    /// when they were made. An image without is marked as incomplete, until it
    /// is pulled again.
    ///
    /// # Errors
    ///
    /// [`Error::Incomplete`], [`Error::UnknownImage`].
    pub async fn check(&self, id: &Digest) -> Result<(), Error> {
        let (inner, id) = (self.inner.clone(), id.clone());
        blocking("looking at an image", move || {
            let (record, names) =
                inner.recorded(&id).ok_or_else(|| Error::UnknownImage { name: id.to_string() })?;
            let Some((path, flaw)) = record.flaw(&inner.layout) else { return Ok(()) };
            inner.change(|edit| {
                if let Some(record) = edit.records.images.get_mut(&id) {
                    record.incomplete = true;
                }
            })?;
            let flaw = match flaw {
                Flaw::Missing => "is missing".to_owned(),
                Flaw::Size { expected, actual } => format!("has {actual} bytes instead of {expected}"),
            };
            let name = names.iter().find(|name| name.tag().is_some()).or(names.first());
            let name = name.map_or_else(|| id.to_string(), ToString::to_string);
            Err(Error::Incomplete { image: id, name, path, flaw })
        })
        .await
    }

    /// Gives an image another name, which may have been another image's.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownImage`]; [`Error::InvalidReference`] if the name has a
    /// digest, which only a registry can give.
    pub async fn tag(&self, any: &str, name: &Reference) -> Result<Image, Error> {
        if name.digest().is_some() {
            let reason = "a name that is given to an image has a tag, not a digest";
            return Err(Error::InvalidReference { reference: name.to_string(), reason });
        }
        let unknown = || Error::UnknownImage { name: any.to_owned() };
        let id = self.resolve(any).ok_or_else(unknown)?.id;
        let (inner, name) = (self.inner.clone(), name.clone());
        let named = blocking("naming an image", {
            let id = id.clone();
            move || {
                inner.change(|edit| {
                    let known = edit.records.images.get(&id).is_some_and(|record| !record.removed);
                    if known {
                        edit.records.names.insert(name, id);
                    }
                    known
                })
            }
        });
        // It may have been removed meanwhile.
        if named.await? { self.resolve(id.as_str()).ok_or_else(unknown) } else { Err(unknown()) }
    }

    /// From now on a lease that is dropped frees nothing: the process ends, and
    /// what its leases stand for may go on without it.
    pub fn close(&self) {
        lock(&self.inner.tables).closed = true;
    }

    /// Frees what nothing needs: removed images without a lease, and what pulls
    /// that failed have left. Call it once the leases of recovered containers
    /// are taken. What was freed is told.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`].
    pub async fn gc(&self) -> Result<Usage, Error> {
        self.gc_older(Duration::ZERO).await
    }

    /// The same, but what came into the store within `age` stays: a pull that is
    /// tried again soon finds its layers.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`].
    pub async fn gc_older(&self, age: Duration) -> Result<Usage, Error> {
        self.inner.free_unneeded(age).await
    }
}

impl Inner {
    /// Changes the records: computed, written, then swapped in. Removed images
    /// without a lease are dropped on the way, with their files. Blocking.
    pub(crate) fn change<T>(&self, edit: impl FnOnce(&mut Edit<'_>) -> T) -> Result<T, Error> {
        let _writer = lock(&self.writer);
        let outcome = self.change_once(edit)?;
        // A lease that ended during the write left its image to us.
        while lock(&self.tables).has_unused() {
            self.change_once(|_| ())?;
        }
        Ok(outcome)
    }

    fn change_once<T>(&self, edit: impl FnOnce(&mut Edit<'_>) -> T) -> Result<T, Error> {
        let (outcome, next, dropped, changed) = {
            let mut tables = lock(&self.tables);
            let mut next = tables.records.clone();
            let outcome = edit(&mut Edit { records: &mut next, leases: &tables.leases });
            let mut dropped: Vec<(Digest, Record)> = Vec::new();
            next.images.retain(|id, record| {
                let unused = tables.is_unused(id, record);
                if unused {
                    dropped.push((id.clone(), record.clone()));
                }
                !unused
            });
            let changed = next.to_index() != tables.records.to_index();
            tables.closing = dropped.iter().map(|(id, _)| id.clone()).collect();
            (outcome, next, dropped, changed)
        };
        let written = if changed { self.layout.write_index(&next.to_index()) } else { Ok(()) };
        let view = Arc::new(next.view(&self.layout));
        {
            let mut tables = lock(&self.tables);
            tables.closing.clear();
            written?;
            tables.records = next;
        }
        self.view.send_if_modified(|current| {
            let changed = *current != view;
            *current = view;
            changed
        });
        if !dropped.is_empty() {
            let blobs = dropped.iter().flat_map(|(_, record)| record.blobs().cloned()).collect();
            let layers = dropped.iter().flat_map(|(_, record)| record.diff_ids().cloned()).collect();
            drop(self.retire(blobs, layers)?);
        }
        Ok(outcome)
    }

    /// Records an image and its names. Blocking; the caller holds a pin on it.
    pub(crate) fn record(&self, mut record: Record, names: Vec<Reference>) -> Result<(), Error> {
        record.arrived = self.layout.blob_arrived(&record.manifest.digest);
        let mut seals = Vec::new();
        for diff_id in record.diff_ids() {
            seals.push((diff_id.clone(), self.layout.seal(diff_id)?));
        }
        self.change(|edit| {
            let id = record.config.digest.clone();
            let known = edit.records.images.entry(id.clone()).or_insert_with(|| record.clone());
            if known.incomplete {
                *known = record;
            }
            known.removed = false;
            for name in names {
                edit.records.names.insert(name, id.clone());
            }
            edit.records.seals.extend(seals);
        })
    }

    /// The images as everyone sees them.
    pub(crate) fn view(&self) -> Arc<Vec<Image>> {
        self.view.borrow().clone()
    }

    /// An image's record and names.
    pub(crate) fn recorded(&self, id: &Digest) -> Option<(Record, Vec<Reference>)> {
        let tables = lock(&self.tables);
        let record = tables.records.images.get(id)?.clone();
        let names = tables.records.names.iter().filter(|(_, owner)| *owner == id);
        Some((record, names.map(|(name, _)| name.clone()).collect()))
    }
}

/// What an edit of the records sees.
pub(crate) struct Edit<'a> {
    pub(crate) records: &'a mut Records,
    pub(crate) leases: &'a HashMap<Digest, usize>,
}

/// Runs file system work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Error::Interrupted { what }))
}
