//! Which images there are, and their names: the content of `index.json`.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use kina_model::Digest;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::config::Limits;
use crate::layout::{Flaw, Layout};
use crate::manifest::{self, Blob, Configuration, Document, ImageConfig};
use crate::reference::Reference;
use crate::seal::Seal;

/// The whole reference that names an image; containerd's annotation.
const NAME: &str = "io.containerd.image.name";
/// The tag alone; OCI image-spec `annotations.md`.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Set on an image that is removed for everyone but those who still use it.
const REMOVED: &str = "dev.kina.image.removed";

/// Begins the names of the index's annotations that tell how a layer image was
/// when it was made; the diff id's digits follow.
const LAYER_IMAGE: &str = "dev.kina.layer-image.";

/// An image in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The digest of its configuration, the CRI's image id.
    pub id: Digest,
    /// Its names with a tag, for example `docker.io/library/busybox:1.36`.
    pub repo_tags: Vec<String>,
    /// Its names with a digest: of the index or manifest that was pulled.
    pub repo_digests: Vec<String>,
    /// Bytes of configuration and layers as transferred.
    pub size: u64,
    /// Bytes of its files in the store, layer images included, each counted once.
    pub stored_size: u64,
    /// Whether all its files were there when they were last needed. What an
    /// incomplete image lacks comes with the next pull.
    pub complete: bool,
    /// When it came into the store.
    pub arrived: SystemTime,
    /// What it says about running it.
    pub config: ImageConfig,
    /// Its layers, lowest first. The same layer can occur more than once.
    pub layers: Vec<Layer>,
    /// The digest of its manifest.
    pub manifest_digest: Digest,
    /// Its operating system, as the image states it.
    pub os: String,
    /// Its processor architecture, as the image states it.
    pub architecture: String,
    /// The architecture's variant, as the image states it.
    pub variant: Option<String>,
}

/// A layer of an image in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// SHA-256 of the uncompressed archive.
    pub diff_id: Digest,
    /// SHA-256 of the layer as transferred.
    pub digest: Digest,
    /// Its EROFS image.
    pub image_path: PathBuf,
    /// Bytes as transferred.
    pub size: u64,
    /// Bytes of its EROFS image; 0 while that is not here.
    pub image_size: u64,
}

/// An image as recorded.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) manifest: Blob,
    pub(crate) config: Blob,
    pub(crate) layers: Vec<(Blob, Digest)>,
    pub(crate) configuration: Arc<Configuration>,
    pub(crate) removed: bool,
    /// A file was missing or of the wrong length when it was last looked at.
    pub(crate) incomplete: bool,
    /// When it came.
    pub(crate) arrived: SystemTime,
}

/// All images and names. Cloned, changed, written, and then swapped in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Records {
    pub(crate) images: BTreeMap<Digest, Record>,
    pub(crate) names: BTreeMap<Reference, Digest>,
    /// How the layer images were when they were made, by diff id.
    pub(crate) seals: BTreeMap<Digest, Seal>,
}

/// Digests of files that are in use.
#[derive(Debug, Default)]
pub(crate) struct Used {
    pub(crate) blobs: HashSet<Digest>,
    pub(crate) layers: HashSet<Digest>,
}

impl Record {
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Digest> {
        let layers = self.layers.iter().map(|(blob, _)| &blob.digest);
        [&self.manifest.digest, &self.config.digest].into_iter().chain(layers)
    }

    pub(crate) fn diff_ids(&self) -> impl Iterator<Item = &Digest> {
        self.layers.iter().map(|(_, diff_id)| diff_id)
    }

    pub(crate) fn image(&self, layout: &Layout) -> Image {
        let configuration = &*self.configuration;
        let image_size = |diff_id: &Digest| layout.known_seal(diff_id).map_or(0, |seal| seal.size);
        // A plain layer's digest is its diff id.
        let (mut blobs, mut images) = (HashSet::new(), HashSet::new());
        let stored_size = self.layers.iter().fold(
            self.manifest.size.saturating_add(self.config.size),
            |sum, (blob, diff_id)| {
                let blob = if blobs.insert(&blob.digest) { blob.size } else { 0 };
                let image = if images.insert(diff_id) { image_size(diff_id) } else { 0 };
                sum.saturating_add(blob).saturating_add(image)
            },
        );
        Image {
            stored_size,
            complete: !self.incomplete,
            arrived: self.arrived,
            id: self.config.digest.clone(),
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            size: self.layers.iter().fold(self.config.size, |sum, (blob, _)| sum.saturating_add(blob.size)),
            config: configuration.run.clone(),
            layers: self
                .layers
                .iter()
                .map(|(blob, diff_id)| Layer {
                    diff_id: diff_id.clone(),
                    digest: blob.digest.clone(),
                    image_path: layout.layer_image(diff_id),
                    size: blob.size,
                    image_size: image_size(diff_id),
                })
                .collect(),
            manifest_digest: self.manifest.digest.clone(),
            os: configuration.os.clone(),
            architecture: configuration.architecture.clone(),
            variant: configuration.variant.clone(),
        }
    }

    /// The first of its layer images that is not here or not as long as it was:
    /// nothing can run without it. A missing blob comes with the next pull.
    pub(crate) fn flaw(&self, layout: &Layout) -> Option<(PathBuf, Flaw)> {
        self.diff_ids().find_map(|diff_id| {
            let flaw = layout.layer_image_flaw(diff_id)?;
            Some((layout.layer_image(diff_id), flaw))
        })
    }

    /// Reads a record's documents back; `None` if one of them is missing. Of
    /// layers only presence and length are looked at.
    fn load(layout: &Layout, manifest: Blob, removed: bool, limits: &Limits) -> Result<Option<Self>, Error> {
        let subject = format!("manifest {}", manifest.digest);
        let Some(bytes) = layout.read_blob(&manifest.digest, limits.manifest_bytes)? else { return Ok(None) };
        let parsed = manifest::parse(&bytes, Some(&manifest.media_type), &subject, limits.layers)?;
        let Document::Image(document) = parsed else { return Ok(None) };
        let Some(bytes) = layout.read_blob(&document.config.digest, limits.config_bytes)? else {
            return Ok(None);
        };
        let configuration = manifest::parse_configuration(&bytes, &subject, document.layers.len())?;
        let layers: Vec<_> =
            document.layers.into_iter().zip(configuration.diff_ids.iter().cloned()).collect();
        let arrived = layout.blob_arrived(&manifest.digest);
        let configuration = Arc::new(configuration);
        let config = document.config;
        let mut record =
            Self { manifest, config, layers, configuration, removed, incomplete: false, arrived };
        if let Some((path, flaw)) = record.flaw(layout) {
            tracing::warn!(image = %record.config.digest, path = %path.display(), ?flaw, "image is incomplete");
            record.incomplete = true;
        }
        Ok(Some(record))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredIndex {
    schema_version: u32,
    media_type: String,
    manifests: Vec<StoredEntry>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct StoredEntry {
    #[serde(flatten)]
    manifest: Blob,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

impl Records {
    /// Reads the names and the images they stand for. An image whose manifest or
    /// configuration is missing or damaged is left out, so that a pull brings it
    /// back; one that lacks a layer is marked.
    pub(crate) fn load(layout: &Layout, limits: &Limits) -> Result<Self, Error> {
        let mut records = Self::default();
        let Some(bytes) = layout.read_index()? else { return Ok(records) };
        let index: StoredIndex = manifest::json(&bytes, "the image store", "index.json")?;
        for (name, text) in &index.annotations {
            let diff_id = name.strip_prefix(LAYER_IMAGE).and_then(|hex| format!("sha256:{hex}").parse().ok());
            if let (Some(diff_id), Ok(seal)) = (diff_id, text.parse::<Seal>()) {
                layout.set_seal(&diff_id, seal);
                records.seals.insert(diff_id, seal);
            }
        }
        for entry in index.manifests {
            let digest = entry.manifest.digest.clone();
            let removed = entry.annotations.contains_key(REMOVED);
            let name = entry.annotations.get(NAME).and_then(|name| name.parse::<Reference>().ok());
            let known = records.images.iter().find(|(_, record)| record.manifest.digest == digest);
            let id = if let Some((id, _)) = known {
                id.clone()
            } else {
                match Record::load(layout, entry.manifest, removed, limits) {
                    Ok(Some(record)) => {
                        let id = record.config.digest.clone();
                        records.images.entry(id.clone()).or_insert(record);
                        id
                    }
                    Ok(None) => {
                        tracing::warn!(manifest = %digest, ?name, "image lacks a document; forgotten");
                        continue;
                    }
                    Err(error @ Error::Storage { .. }) => return Err(error),
                    Err(error) => {
                        tracing::warn!(manifest = %digest, ?name, %error, "image is damaged; forgotten");
                        continue;
                    }
                }
            };
            if let Some(name) = name {
                records.names.insert(name, id);
            }
        }
        Ok(records)
    }

    /// The text of `index.json`.
    pub(crate) fn to_index(&self) -> Vec<u8> {
        let entry = |record: &Record, name: Option<&Reference>| StoredEntry {
            manifest: record.manifest.clone(),
            annotations: annotations(name, record.removed),
        };
        let mut named = HashSet::new();
        let mut manifests = Vec::new();
        for (name, id) in &self.names {
            if let Some(record) = self.images.get(id) {
                named.insert(id);
                manifests.push(entry(record, Some(name)));
            }
        }
        let nameless = self.images.iter().filter(|(id, _)| !named.contains(id));
        manifests.extend(nameless.map(|(_, record)| entry(record, None)));
        let used: HashSet<&Digest> = self.images.values().flat_map(Record::diff_ids).collect();
        let seals = self.seals.iter().filter(|(diff_id, _)| used.contains(diff_id));
        let seals = seals.map(|(id, seal)| (format!("{LAYER_IMAGE}{}", id.hex()), seal.to_string()));
        index_json(manifests, seals.collect())
    }

    /// An `index.json` for one image under these names.
    pub(crate) fn export_index(record: &Record, names: &[Reference]) -> Vec<u8> {
        let entry = |name: Option<&Reference>| StoredEntry {
            manifest: record.manifest.clone(),
            annotations: annotations(name, false),
        };
        let manifests = if names.is_empty() {
            vec![entry(None)]
        } else {
            names.iter().map(|name| entry(Some(name))).collect()
        };
        index_json(manifests, BTreeMap::new())
    }

    /// What the records need.
    pub(crate) fn used(&self) -> Used {
        let mut used = Used::default();
        for record in self.images.values() {
            used.blobs.extend(record.blobs().cloned());
            used.layers.extend(record.diff_ids().cloned());
        }
        used
    }

    /// The images as everyone sees them: without the removed ones.
    pub(crate) fn view(&self, layout: &Layout) -> Vec<Image> {
        let mut view: BTreeMap<&Digest, Image> = self
            .images
            .iter()
            .filter(|(_, record)| !record.removed)
            .map(|(id, record)| (id, record.image(layout)))
            .collect();
        for (name, id) in &self.names {
            if let Some(image) = view.get_mut(id) {
                let names = if name.tag().is_some() { &mut image.repo_tags } else { &mut image.repo_digests };
                names.push(name.to_string());
            }
        }
        view.into_values().collect()
    }
}

fn annotations(name: Option<&Reference>, removed: bool) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::new();
    if let Some(name) = name {
        annotations.insert(NAME.to_owned(), name.to_string());
        if let Some(tag) = name.tag() {
            annotations.insert(REF_NAME.to_owned(), tag.to_owned());
        }
    }
    if removed {
        annotations.insert(REMOVED.to_owned(), "true".to_owned());
    }
    annotations
}

/// The name that an archive gives an entry of its index, if it gives a whole one.
pub(crate) fn archived_name(annotations: Option<&BTreeMap<String, String>>) -> Option<Reference> {
    let annotations = annotations?;
    if let Some(name) = annotations.get(NAME) {
        return name.parse().ok();
    }
    // Some tools put the whole reference here, others the tag alone.
    let name = annotations.get(REF_NAME)?;
    if name.contains([':', '/']) { name.parse().ok() } else { None }
}

fn index_json(manifests: Vec<StoredEntry>, annotations: BTreeMap<String, String>) -> Vec<u8> {
    let media_type = manifest::OCI_INDEX.to_owned();
    let index = StoredIndex { schema_version: 2, media_type, manifests, annotations };
    serde_json::to_vec(&index).expect("strings and numbers always serialise")
}
