//! Images in from OCI archives and from what `docker save` writes.

use std::cell::Cell;
use std::collections::HashMap;
use std::io::{self, BufReader, Read};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use kina_erofs::{Compression, Decoder};
use kina_model::Digest;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;

use crate::Error;
use crate::config::Limits;
use crate::error::clipped;
use crate::images::{Images, Inner, Pin, blocking};
use crate::layout::{Layout, sha256};
use crate::manifest::{self, Blob, IndexEntry, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use crate::pipe::{PipeReader, PipeWriter, pipe};
use crate::progress::Progress;
use crate::pull::{Source, bring_in, choose};
use crate::records::{Image, archived_name};
use crate::reference::Reference;
use crate::registry::FetchedManifest;

const CHUNK: usize = 64 << 10;
/// Images in one archive.
const MAX_IMAGES: usize = 256;
/// Bytes of an entry's headers, long names and attributes included.
const MAX_HEADERS: u64 = 1 << 20;
/// Bytes of a name in an archive.
const MAX_NAME: usize = 4096;

/// What an archive holds once it is read: its files are blobs of the store.
#[derive(Default)]
struct Contents {
    index: Option<Vec<u8>>,
    docker: Option<Vec<u8>>,
    files: HashMap<String, Stored>,
    /// Symbolic and hard links, by name; old `docker save` has them for equal layers.
    links: HashMap<String, String>,
}

#[derive(Clone)]
struct Stored {
    digest: Digest,
    size: u64,
    compression: Compression,
}

/// An image found in an archive.
struct Found {
    top: Blob,
    names: Vec<Reference>,
}

#[derive(Deserialize)]
struct ArchivedIndex {
    #[serde(default)]
    manifests: Option<Vec<IndexEntry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NewManifest {
    schema_version: u32,
    media_type: &'static str,
    config: Blob,
    layers: Vec<Blob>,
}

impl Images {
    /// Reads images from an OCI archive (a tar of an OCI image layout) or from
    /// what `docker save` writes, plain or compressed by gzip or zstd. Every
    /// image keeps the names that the archive gives it; `name` replaces them if
    /// the archive holds one image.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArchive`], [`Error::ArchiveStream`],
    /// [`Error::AmbiguousName`], and what a pull can say about the content.
    /// Images before the one that failed stay.
    pub async fn import(
        &self,
        archive: impl AsyncRead + Unpin + Send,
        name: Option<&Reference>,
    ) -> Result<Vec<Image>, Error> {
        let inner = &self.inner;
        let pin = Arc::new(inner.pin());
        let contents = read_archive(inner, archive, pin.clone()).await?;
        let mut found = if let Some(index) = &contents.index {
            found_in_index(index)?
        } else if let Some(docker) = contents.docker.clone() {
            let (inner, pin) = (inner.clone(), pin.clone());
            let contents = Arc::new(contents);
            blocking("importing an image archive", move || found_in_docker(&inner, &docker, &contents, &pin))
                .await?
        } else {
            return Err(invalid("it has neither index.json nor manifest.json"));
        };
        if let Some(name) = name {
            match found.as_mut_slice() {
                [one] => one.names = vec![name.clone()],
                _ => return Err(Error::AmbiguousName { images: found.len() }),
            }
        }
        let mut images: Vec<Image> = Vec::new();
        for Found { top, names } in found {
            let id = self.import_one(top, names).await?;
            if !images.iter().any(|image| image.id == id) {
                let image = self.resolve(id.as_str());
                images.push(image.ok_or_else(|| Error::UnknownImage { name: id.to_string() })?);
            }
        }
        // An image that got another name from a later entry shows that one too.
        for image in &mut images {
            if let Some(current) = self.resolve(image.id.as_str()) {
                *image = current;
            }
        }
        Ok(images)
    }

    async fn import_one(&self, top: Blob, names: Vec<Reference>) -> Result<Digest, Error> {
        let inner = &self.inner;
        let subject = format!("manifest {} of the archive", top.digest);
        let layout = inner.layout.clone();
        let limit = inner.config.limits.manifest_bytes;
        let digest = top.digest.clone();
        let bytes = blocking("reading a manifest", move || layout.read_blob(&digest, limit)).await?;
        let bytes =
            bytes.ok_or_else(|| invalid(&format!("its index names {}, which it lacks", top.digest)))?;
        let fetched = FetchedManifest {
            digest: sha256(&bytes),
            bytes: Bytes::from(bytes),
            media_type: Some(top.media_type).filter(|media_type| !media_type.is_empty()),
        };
        let chosen = choose(inner, &Source::Stored, fetched, &subject).await?;
        let (progress, _) = watch::channel(Progress::default());
        bring_in(inner, &Source::Stored, chosen, names, &subject, &progress).await
    }
}

/// What the tar reader says, which can quote the archive's bytes.
fn unreadable(error: io::Error) -> Error {
    invalid(&format!("it is not a readable tar stream: {}", clipped(&error.to_string()).escape_debug()))
}

fn invalid(reason: &str) -> Error {
    Error::InvalidArchive { reason: reason.to_owned() }
}

/// Reads the archive in one pass; its files become pinned blobs.
async fn read_archive(
    inner: &Arc<Inner>,
    archive: impl AsyncRead + Unpin + Send,
    pin: Arc<Pin>,
) -> Result<Contents, Error> {
    let (writer, reader) = pipe();
    let worker = {
        let inner = inner.clone();
        tokio::task::spawn_blocking(move || unpack_archive(&inner.layout, &inner.config.limits, reader, &pin))
    };
    feed(archive, writer).await;
    worker.await.unwrap_or(Err(Error::Interrupted { what: "importing an image archive" }))
}

/// Passes the archive on until its end or until the worker has had enough.
async fn feed(mut archive: impl AsyncRead + Unpin, writer: PipeWriter) {
    loop {
        let mut buffer = BytesMut::with_capacity(CHUNK);
        match archive.read_buf(&mut buffer).await {
            Ok(0) => {
                writer.finish().await;
                return;
            }
            Ok(_) => {
                if !writer.write(buffer.freeze()).await {
                    return;
                }
            }
            Err(source) => {
                writer.fail(Error::ArchiveStream { operation: "read", source: Arc::new(source) }).await;
                return;
            }
        }
    }
}

fn unpack_archive(
    layout: &Layout,
    limits: &Limits,
    mut reader: PipeReader,
    pin: &Pin,
) -> Result<Contents, Error> {
    let outcome = read_entries(layout, limits, &mut reader, pin);
    // A failure of the stream explains whatever else went wrong.
    match reader.failure() {
        Some(failure) => Err(failure),
        None => outcome,
    }
}

fn read_entries(
    layout: &Layout,
    limits: &Limits,
    reader: &mut PipeReader,
    pin: &Pin,
) -> Result<Contents, Error> {
    let too_large = |what, limit| Error::TooLarge { subject: "the image archive".to_owned(), what, limit };
    let decoder = Decoder::sniff(reader).map_err(unreadable)?;
    // One byte more than the limit, so that reaching it shows.
    let mut bounded = decoder.take(limits.archive_bytes.saturating_add(1));
    let mut contents = Contents::default();
    let allowance = Cell::new(0);
    let metered = Metered { input: BufReader::with_capacity(CHUNK, &mut bounded), allowance: &allowance };
    let mut archive = tar::Archive::new(metered);
    let outcome = (|| {
        let mut entries = archive.entries().map_err(unreadable)?;
        for seen in 0.. {
            // Between two entries lie headers only, as every entry is read to its
            // end. The tar reader holds long names and attributes in memory.
            allowance.set(MAX_HEADERS);
            let Some(entry) = entries.next() else { break };
            let mut entry = entry.map_err(unreadable)?;
            allowance.set(u64::MAX);
            if seen == limits.archive_entries {
                return Err(too_large("entries", limits.archive_entries as u64));
            }
            read_entry(layout, limits, &mut entry, pin, &mut contents)?;
        }
        Ok(())
    })();
    drop(archive);
    if bounded.limit() == 0 {
        return Err(too_large("bytes", limits.archive_bytes));
    }
    outcome?;
    // What follows the archive's end is read, so that a broken stream shows.
    io::copy(&mut bounded, &mut io::sink()).map_err(unreadable)?;
    Ok(contents)
}

fn read_entry<R: Read>(
    layout: &Layout,
    limits: &Limits,
    entry: &mut tar::Entry<'_, R>,
    pin: &Pin,
    contents: &mut Contents,
) -> Result<(), Error> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let name = clean_name(&text(&entry.path_bytes()));
    let target = entry.link_name_bytes().map(|target| text(&target)).unwrap_or_default();
    if name.len() > MAX_NAME || target.len() > MAX_NAME {
        return Err(invalid("a name in it is too long"));
    }
    let kind = entry.header().entry_type();
    if !kind.is_file() {
        if entry.size() > 0 {
            return Err(invalid(&format!("{:?} has content but is not a plain file", clipped(&name))));
        }
        if kind.is_symlink() {
            let target = beside(&name, &target);
            contents.links.insert(name, target);
        } else if kind.is_hard_link() {
            contents.links.insert(name, clean_name(&target));
        }
        return Ok(());
    }
    match name.as_str() {
        "index.json" => contents.index = Some(document(entry, limits)?),
        "manifest.json" => contents.docker = Some(document(entry, limits)?),
        "oci-layout" | "repositories" => drop(document(entry, limits)?),
        _ => {
            let announced = entry.size();
            let stored = store_file(layout, entry, &name, pin, announced)?;
            contents.files.insert(name, stored);
        }
    }
    Ok(())
}

/// A reader that gives out as many bytes as it is allowed to.
struct Metered<'a, R> {
    input: R,
    allowance: &'a Cell<u64>,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        let left = self.allowance.get().checked_sub(count as u64);
        self.allowance.set(left.ok_or_else(|| io::Error::other("the headers of an entry are too long"))?);
        Ok(count)
    }
}

fn document(entry: &mut impl Read, limits: &Limits) -> Result<Vec<u8>, Error> {
    let limit = limits.manifest_bytes;
    let mut bytes = Vec::new();
    entry.take(limit + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > limit {
        return Err(Error::TooLarge { subject: "the archive's index".to_owned(), what: "bytes", limit });
    }
    Ok(bytes)
}

/// Makes a file of the archive a blob of the store.
fn store_file(
    layout: &Layout,
    entry: &mut impl Read,
    name: &str,
    pin: &Pin,
    announced: u64,
) -> Result<Stored, Error> {
    let mut blob = layout.temp_blob()?;
    let mut hasher = Sha256::new();
    let mut size = 0;
    let mut start = Vec::with_capacity(4);
    let mut buffer = vec![0; CHUNK];
    loop {
        let count =
            entry.read(&mut buffer).map_err(|error| invalid(&format!("{:?}: {error}", clipped(name))))?;
        if count == 0 {
            break;
        }
        let chunk = &buffer[..count];
        start.extend(chunk.iter().take(4 - start.len()));
        hasher.update(chunk);
        blob.write(chunk)?;
        size += count as u64;
    }
    if size != announced {
        return Err(invalid(&format!("it ends inside {:?}", clipped(name))));
    }
    let digest = Digest::from_sha256(hasher.finalize().into());
    if let Some(hex) = name.strip_prefix("blobs/sha256/") {
        match format!("sha256:{hex}").parse::<Digest>() {
            Ok(expected) if expected == digest => {}
            Ok(expected) => {
                let subject = format!("{} of the archive", clipped(name));
                return Err(Error::DigestMismatch { subject, expected, actual: digest });
            }
            Err(_) => return Err(invalid(&format!("{:?} is not named by a digest", clipped(name)))),
        }
    }
    pin.add([digest.clone()], []);
    if !layout.has_blob(&digest, size) {
        blob.commit(&layout.blob(&digest))?;
    }
    Ok(Stored { digest, size, compression: Compression::of(&start) })
}

/// Without `./`, `/` and empty components.
fn clean_name(name: &str) -> String {
    let components = name.split('/').filter(|component| !matches!(*component, "" | "."));
    components.collect::<Vec<_>>().join("/")
}

/// A symbolic link's target, seen from the archive's root.
fn beside(name: &str, target: &str) -> String {
    let mut components: Vec<&str> = name.split('/').collect();
    components.pop();
    if target.starts_with('/') {
        components.clear();
    }
    for component in target.split('/') {
        match component {
            "" | "." => {}
            ".." => {
                components.pop();
            }
            other => components.push(other),
        }
    }
    components.join("/")
}

fn found_in_index(index: &[u8]) -> Result<Vec<Found>, Error> {
    let index: ArchivedIndex = manifest::json(index, "the archive", "index.json")?;
    let mut found: Vec<Found> = Vec::new();
    for entry in index.manifests.unwrap_or_default() {
        let top = entry.blob("the archive's index")?;
        // The name, and the digest that it stands for.
        let names: Vec<Reference> = archived_name(entry.annotations.as_ref())
            .map(|name| vec![name.with_digest(&top.digest), name])
            .unwrap_or_default();
        match found.iter_mut().find(|other| other.top.digest == top.digest) {
            Some(other) => other.names.extend(names),
            None => found.push(Found { top, names }),
        }
        if found.len() > MAX_IMAGES {
            return Err(too_many());
        }
    }
    if found.is_empty() { Err(invalid("its index names no image")) } else { Ok(found) }
}

fn docker_entries(docker: &[u8]) -> Result<Vec<DockerEntry>, Error> {
    let entries: Vec<DockerEntry> = manifest::json(docker, "the archive", "manifest.json")?;
    if entries.is_empty() {
        return Err(invalid("its manifest.json names no image"));
    }
    if entries.len() > MAX_IMAGES {
        return Err(too_many());
    }
    Ok(entries)
}

/// Gives every image of a `docker save` archive the manifest that it lacks.
fn found_in_docker(
    inner: &Inner,
    docker: &[u8],
    contents: &Contents,
    pin: &Pin,
) -> Result<Vec<Found>, Error> {
    let mut found = Vec::new();
    for entry in docker_entries(docker)? {
        let config = contents.file(&entry.config)?;
        let layer_names = entry.layers.unwrap_or_default();
        if layer_names.len() > inner.config.limits.layers {
            let limit = inner.config.limits.layers as u64;
            return Err(Error::TooLarge {
                subject: "an image of the archive".to_owned(),
                what: "layers",
                limit,
            });
        }
        let mut layers = Vec::new();
        for name in layer_names {
            let stored = contents.file(&name)?;
            let suffix = match stored.compression {
                Compression::Plain => "",
                Compression::Gzip => "+gzip",
                Compression::Zstd => "+zstd",
            };
            layers.push(stored.blob(format!("{OCI_LAYER}{suffix}")));
        }
        let manifest = NewManifest {
            schema_version: 2,
            media_type: OCI_MANIFEST,
            config: config.blob(OCI_CONFIG.to_owned()),
            layers,
        };
        let bytes = serde_json::to_vec(&manifest).expect("strings and numbers always serialise");
        let digest = sha256(&bytes);
        pin.add([digest.clone()], []);
        inner.layout.write_blob(&digest, &bytes)?;
        let mut names = Vec::new();
        for name in entry.repo_tags.unwrap_or_default() {
            names.push(name.parse::<Reference>()?);
        }
        let top = Blob { media_type: OCI_MANIFEST.to_owned(), digest, size: bytes.len() as u64 };
        found.push(Found { top, names });
    }
    Ok(found)
}

/// What a stranger's indexes go through before the store is touched.
pub(crate) fn fuzz_index(bytes: &[u8]) -> Result<(), Error> {
    let mut contents = Contents::default();
    for entry in docker_entries(bytes).unwrap_or_default() {
        let mut last = clean_name(&entry.config);
        for name in entry.layers.unwrap_or_default() {
            contents.links.insert(clean_name(&name), beside(&last, &name));
            last = clean_name(&name);
        }
        assert!(contents.file(&last).is_err(), "a file from nowhere");
    }
    for found in found_in_index(bytes)? {
        assert!(found.names.len() <= 2 * bytes.len(), "names from nowhere");
    }
    Ok(())
}

fn too_many() -> Error {
    Error::TooLarge { subject: "the image archive".to_owned(), what: "images", limit: MAX_IMAGES as u64 }
}

impl Contents {
    fn file(&self, name: &str) -> Result<&Stored, Error> {
        let mut name = clean_name(name);
        // A link to a link is as far as any tool goes.
        for _ in 0..3 {
            if let Some(stored) = self.files.get(&name) {
                return Ok(stored);
            }
            match self.links.get(&name) {
                Some(target) => name.clone_from(target),
                None => break,
            }
        }
        Err(invalid(&format!("it lacks {:?}", clipped(&name))))
    }
}

impl Stored {
    fn blob(&self, media_type: String) -> Blob {
        Blob { media_type, digest: self.digest.clone(), size: self.size }
    }
}
