//! Which files stay, and which go.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kina_model::Digest;

use super::{Inner, blocking};
use crate::Error;
use crate::flight::lock;
use crate::layout::{Stored, TempFile, Usage};
use crate::records::{Record, Used};

impl Inner {
    /// Frees what has been here for `age` and nothing needs.
    pub(super) async fn free_unneeded(self: &Arc<Self>, age: Duration) -> Result<Usage, Error> {
        let inner = self.clone();
        blocking("collecting unused files", move || {
            inner.change(|_| ())?;
            let (mut blobs, mut layers) = (Vec::new(), Vec::new());
            let layout = &inner.layout;
            let is_old = |path: &Path| {
                let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified());
                // Files of a clock that was ahead are old as well.
                age.is_zero()
                    || modified.is_ok_and(|modified| {
                        SystemTime::now().duration_since(modified).is_ok_and(|passed| passed >= age)
                    })
            };
            for (file, _) in layout.files()? {
                match file {
                    Stored::Blob(digest) if is_old(&layout.blob(&digest)) => blobs.push(digest),
                    Stored::LayerImage(diff_id) if is_old(&layout.layer_image(&diff_id)) => {
                        layers.push(diff_id);
                    }
                    Stored::Blob(_) | Stored::LayerImage(_) | Stored::Other => {}
                }
            }
            let retired = inner.retire(blobs, layers)?;
            let bytes = retired.iter().map(TempFile::allocated).sum();
            Ok(Usage { bytes, inodes: retired.len() as u64 })
        })
        .await
    }

    /// Refuses an image whose layers cannot fit, before they are fetched.
    pub(crate) async fn check_room(self: &Arc<Self>, record: &Record) -> Result<(), Error> {
        let (inner, record) = (self.clone(), record.clone());
        blocking("looking for room", move || {
            let mut counted = HashSet::new();
            let missing = record.layers.iter().filter(|(blob, _)| {
                !inner.layout.has_blob(&blob.digest, blob.size) && counted.insert(&blob.digest)
            });
            let needed = missing.fold(0, |sum: u64, (blob, _)| sum.saturating_add(blob.size));
            inner.layout.check_room(needed)
        })
        .await
    }

    /// Takes those files' names away that nothing needs. The tables stay locked,
    /// so that no pull finds a file that is about to go. Dropping the result
    /// frees the space.
    pub(super) fn retire(&self, blobs: Vec<Digest>, layers: Vec<Digest>) -> Result<Vec<TempFile>, Error> {
        let tables = lock(&self.tables);
        let mut used = tables.records.used();
        for pin in tables.pins.values() {
            used.blobs.extend(pin.blobs.iter().cloned());
            used.layers.extend(pin.layers.iter().cloned());
        }
        let mut retired = Vec::new();
        for digest in blobs.iter().filter(|digest| !used.blobs.contains(digest)) {
            retired.extend(self.layout.retire_blob(digest)?);
        }
        for diff_id in layers.iter().filter(|diff_id| !used.layers.contains(diff_id)) {
            retired.extend(self.layout.retire_layer_image(diff_id)?);
        }
        Ok(retired)
    }

    /// Keeps files from being collected while an image is put together.
    pub(crate) fn pin(self: &Arc<Self>) -> Pin {
        let mut tables = lock(&self.tables);
        let number = tables.next_pin;
        tables.next_pin += 1;
        tables.pins.insert(number, Used::default());
        drop(tables);
        Pin { inner: self.clone(), number }
    }
}

/// Files that must stay until an image is recorded.
pub(crate) struct Pin {
    inner: Arc<Inner>,
    number: u64,
}

impl Pin {
    pub(crate) fn add(
        &self,
        blobs: impl IntoIterator<Item = Digest>,
        layers: impl IntoIterator<Item = Digest>,
    ) {
        let mut tables = lock(&self.inner.tables);
        let pinned = tables.pins.entry(self.number).or_default();
        pinned.blobs.extend(blobs);
        pinned.layers.extend(layers);
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        lock(&self.inner.tables).pins.remove(&self.number);
    }
}
