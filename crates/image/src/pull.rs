//! From a reference to a recorded image.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use kina_model::Digest;
use tokio::sync::watch;

use crate::Error;
use crate::credentials::Credentials;
use crate::images::{Inner, blocking};
use crate::layout::sha256;
use crate::manifest::{self, Blob, Configuration, Document, Manifest};
use crate::progress::{LayerProgress, LayerState, LayerWork, Progress};
use crate::records::Record;
use crate::reference::Reference;
use crate::registry::{FetchedManifest, Session};
use crate::transfer::fetch_layer;
use crate::unpack::{LayerSource, unpack};

/// Indexes within indexes.
const MAX_INDEX_DEPTH: usize = 3;
/// Manifests fetched to find the platform's.
const MAX_MANIFESTS: usize = 16;
/// Other callers' work on a layer that may fail before we do it ourselves.
const MAX_JOINS: usize = 2;

/// Where an image's content is.
#[derive(Clone)]
pub(crate) enum Source {
    Registry(Arc<Session>),
    /// In the store's blobs already, put there from an archive.
    Stored,
}

/// An image chosen for the platform, its documents at hand.
pub(crate) struct Chosen {
    manifest_bytes: Bytes,
    manifest: Manifest,
    manifest_digest: Digest,
    config_bytes: Bytes,
    configuration: Configuration,
}

/// Pulls an image; returns its id.
pub(crate) async fn pull(
    inner: Arc<Inner>,
    reference: Reference,
    credentials: Option<Credentials>,
    progress: watch::Sender<Progress>,
) -> Result<Digest, Error> {
    let session = inner.registry.session(&reference, credentials.as_ref()).await?;
    let top = session.manifest().await?;
    let names = match reference.digest() {
        Some(_) => vec![reference.clone()],
        None => vec![reference.clone(), reference.with_digest(&top.digest)],
    };
    let source = Source::Registry(session);
    let subject = reference.to_string();
    let chosen = choose(&inner, &source, top, &subject).await?;
    bring_in(&inner, &source, chosen, names, &subject, &progress).await
}

/// Walks from a manifest or index to the image for the platform.
pub(crate) async fn choose(
    inner: &Arc<Inner>,
    source: &Source,
    top: FetchedManifest,
    subject: &str,
) -> Result<Chosen, Error> {
    let config = &inner.config;
    let mut waiting: VecDeque<(Blob, usize)> = VecDeque::new();
    let mut available = Vec::new();
    let mut first_error = None;
    let mut fetched = 0;
    let mut next = Some((top, 0));
    loop {
        let (current, depth) = match next.take() {
            Some(current) => current,
            None => {
                let Some((blob, depth)) = waiting.pop_front() else { break };
                fetched += 1;
                if fetched > MAX_MANIFESTS {
                    return Err(Error::InvalidManifest {
                        subject: subject.to_owned(),
                        reason: format!(
                            "more than {MAX_MANIFESTS} manifests have to be fetched to find the platform's"
                        ),
                    });
                }
                match fetch_manifest(inner, source, &blob).await {
                    Ok(manifest) => (manifest, depth),
                    // Archives leave other platforms' manifests out.
                    Err(error) if matches!(error.kind(), Error::NotFound { .. }) => {
                        first_error.get_or_insert(error);
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        let parsed =
            manifest::parse(&current.bytes, current.media_type.as_deref(), subject, config.limits.layers);
        match parsed {
            Ok(Document::Index(entries)) => {
                if depth >= MAX_INDEX_DEPTH {
                    return Err(Error::InvalidManifest {
                        subject: subject.to_owned(),
                        reason: format!("indexes are nested deeper than {MAX_INDEX_DEPTH}"),
                    });
                }
                available.extend(manifest::offered(&entries));
                // An inner index's entries come before the outer one's rest.
                for entry in manifest::candidates(&entries, &config.platform).into_iter().rev() {
                    match entry.blob(subject) {
                        Ok(blob) => waiting.push_front((blob, depth + 1)),
                        Err(error) => first_error = Some(error),
                    }
                }
                waiting.truncate(MAX_MANIFESTS + 1);
            }
            Ok(Document::Image(manifest)) => {
                let config_bytes = fetch_config(inner, source, &manifest.config).await?;
                let configuration =
                    manifest::parse_configuration(&config_bytes, subject, manifest.layers.len())?;
                if configuration.runs_on(&config.platform) {
                    let manifest_digest = current.digest;
                    return Ok(Chosen {
                        manifest_bytes: current.bytes,
                        manifest,
                        manifest_digest,
                        config_bytes,
                        configuration,
                    });
                }
                let platform = configuration.platform_text();
                // An index that says otherwise has said so above.
                available.push(match depth {
                    0 => platform,
                    _ => format!("{platform} by its configuration"),
                });
            }
            // Something else than an image beside images.
            Err(error @ Error::UnsupportedMediaType { .. }) if depth > 0 => {
                first_error.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(first_error.unwrap_or_else(|| Error::NoPlatform {
        subject: subject.to_owned(),
        wanted: config.platform.to_string(),
        available,
    }))
}

async fn fetch_manifest(inner: &Arc<Inner>, source: &Source, blob: &Blob) -> Result<FetchedManifest, Error> {
    match source {
        Source::Registry(session) => session.manifest_of(blob).await,
        Source::Stored => {
            let bytes = stored(inner, blob, inner.config.limits.manifest_bytes).await?;
            let media_type = Some(blob.media_type.clone());
            Ok(FetchedManifest { digest: sha256(&bytes), bytes, media_type })
        }
    }
}

async fn fetch_config(inner: &Arc<Inner>, source: &Source, blob: &Blob) -> Result<Bytes, Error> {
    let limit = inner.config.limits.config_bytes;
    match source {
        Source::Registry(session) => session.small_blob(blob, limit).await,
        Source::Stored => stored(inner, blob, limit).await,
    }
}

async fn stored(inner: &Arc<Inner>, blob: &Blob, limit: u64) -> Result<Bytes, Error> {
    let layout = inner.layout.clone();
    let blob = blob.clone();
    blocking("reading a blob", move || {
        let missing =
            || Error::NotFound { subject: format!("blob {}", blob.digest), host: "the archive".to_owned() };
        let bytes = layout.read_blob(&blob.digest, limit)?.ok_or_else(missing)?;
        let actual = bytes.len() as u64;
        if actual != blob.size {
            let subject = format!("blob {}", blob.digest);
            return Err(Error::SizeMismatch { subject, expected: blob.size, actual });
        }
        Ok(Bytes::from(bytes))
    })
    .await
}

/// Gets every layer, keeps the documents and records the image.
pub(crate) async fn bring_in(
    inner: &Arc<Inner>,
    source: &Source,
    chosen: Chosen,
    names: Vec<Reference>,
    subject: &str,
    progress: &watch::Sender<Progress>,
) -> Result<Digest, Error> {
    let Chosen { manifest_bytes, manifest, manifest_digest, config_bytes, configuration } = chosen;
    let layers: Vec<(Blob, Digest)> =
        manifest.layers.into_iter().zip(configuration.diff_ids.iter().cloned()).collect();
    let record = Record {
        manifest: Blob {
            media_type: manifest.media_type.to_owned(),
            digest: manifest_digest,
            size: manifest_bytes.len() as u64,
        },
        config: manifest.config,
        layers,
        configuration: Arc::new(configuration),
        removed: false,
        incomplete: false,
        arrived: SystemTime::UNIX_EPOCH,
    };
    for (blob, _) in &record.layers {
        if blob.size > inner.config.limits.layer_bytes {
            let subject = format!("layer {} of {subject}", blob.digest);
            return Err(Error::TooLarge { subject, what: "bytes", limit: inner.config.limits.layer_bytes });
        }
    }
    // From here on what is found in the store stays there until it is recorded.
    let pin = inner.pin();
    pin.add(record.blobs().cloned(), record.diff_ids().cloned());
    inner.check_room(&record).await?;
    progress.send_replace(Progress {
        layers: record
            .layers
            .iter()
            .map(|(blob, _)| LayerProgress {
                digest: blob.digest.clone(),
                size: blob.size,
                fetched: 0,
                transferred: 0,
                resumed: 0,
                state: LayerState::Waiting,
            })
            .collect(),
    });
    let mut work = Vec::with_capacity(record.layers.len());
    for (number, (blob, diff_id)) in record.layers.iter().enumerate() {
        let report = move |edit: &dyn Fn(&mut LayerProgress)| {
            progress.send_modify(|progress| {
                if let Some(layer) = progress.layers.get_mut(number) {
                    edit(layer);
                }
            });
        };
        work.push(obtain_layer(inner, source, blob, diff_id, subject, report));
    }
    futures::stream::iter(work)
        .buffer_unordered(inner.config.max_concurrent_layers.clamp(1, 64))
        .try_collect::<()>()
        .await?;
    let inner = inner.clone();
    let id = record.config.digest.clone();
    blocking("recording an image", move || {
        inner.layout.write_blob(&record.config.digest, &config_bytes)?;
        inner.layout.write_blob(&record.manifest.digest, &manifest_bytes)?;
        inner.record(record, names)?;
        drop(pin);
        Ok(id)
    })
    .await
}

/// Makes sure that a layer's blob and image are here, and that they belong together.
async fn obtain_layer(
    inner: &Arc<Inner>,
    source: &Source,
    blob: &Blob,
    diff_id: &Digest,
    subject: &str,
    report: impl Fn(&dyn Fn(&mut LayerProgress)),
) -> Result<(), Error> {
    let done = |layer: &mut LayerProgress| {
        layer.fetched = blob.size;
        layer.state = LayerState::Done;
    };
    if is_here(inner, blob, diff_id).await? {
        report(&done);
        return Ok(());
    }
    let mut joins = 0;
    let actual = loop {
        let key = (blob.digest.clone(), blob.size);
        let (flight, own) = inner
            .layers
            .join(key, |progress| layer_work(inner.clone(), source.clone(), blob.clone(), progress));
        let show = |work: LayerWork| {
            report(&|layer| {
                layer.fetched = work.fetched;
                layer.transferred = work.transferred;
                layer.resumed = work.resumed;
                layer.state = if work.unpacking { LayerState::Unpacking } else { LayerState::Fetching };
            });
        };
        let outcome = flight.wait(show).await;
        match outcome.unwrap_or(Err(Error::Interrupted { what: "fetching a layer" })) {
            Ok(actual) => break actual,
            // Another pull's registry or credentials failed; ours may do.
            Err(_) if !own && joins < MAX_JOINS => joins += 1,
            Err(error) => return Err(error),
        }
    };
    if actual != *diff_id {
        return Err(Error::DiffIdMismatch {
            subject: subject.to_owned(),
            layer: blob.digest.clone(),
            expected: diff_id.clone(),
            actual,
        });
    }
    report(&done);
    Ok(())
}

async fn is_here(inner: &Arc<Inner>, blob: &Blob, diff_id: &Digest) -> Result<bool, Error> {
    let (layout, blob, diff_id) = (inner.layout.clone(), blob.clone(), diff_id.clone());
    blocking("looking for a layer", move || {
        Ok(layout.has_layer_image(&diff_id) && layout.has_blob(&blob.digest, blob.size))
    })
    .await
}

/// One layer, for all that wait for it: its diff id.
async fn layer_work(
    inner: Arc<Inner>,
    source: Source,
    blob: Blob,
    progress: watch::Sender<LayerWork>,
) -> Result<Digest, Error> {
    let Ok(_slot) = inner.layer_slots.acquire().await else {
        return Err(Error::Interrupted { what: "fetching a layer" });
    };
    let on_start = {
        let (progress, fetched) = (progress.clone(), blob.size);
        move || {
            progress.send_replace(LayerWork { fetched, unpacking: true, ..LayerWork::default() });
        }
    };
    match (unpack_stored(&inner, &blob, on_start).await, source) {
        (Ok(Some(diff_id)), _) => Ok(diff_id),
        (Ok(None), Source::Stored) => {
            Err(Error::NotFound { subject: format!("layer {}", blob.digest), host: "the archive".to_owned() })
        }
        (Ok(None), Source::Registry(session)) => fetch_layer(&inner, &session, &blob, &progress).await,
        (Err(error @ Error::DigestMismatch { .. }), Source::Registry(session)) => {
            tracing::warn!(layer = %blob.digest, %error, "stored layer is damaged; fetching it again");
            fetch_layer(&inner, &session, &blob, &progress).await
        }
        (Err(error), _) => Err(error),
    }
}

/// Makes the image from the store's own blob, if that is here.
pub(crate) async fn unpack_stored(
    inner: &Arc<Inner>,
    blob: &Blob,
    on_start: impl FnOnce() + Send + 'static,
) -> Result<Option<Digest>, Error> {
    let (inner, blob) = (inner.clone(), blob.clone());
    blocking("unpacking a layer", move || {
        let layout = &inner.layout;
        if !layout.has_blob(&blob.digest, blob.size) {
            return Ok(None);
        }
        on_start();
        let path = layout.blob(&blob.digest);
        let file = File::open(&path).map_err(Error::storage("open", &path))?;
        unpack(layout, LayerSource::Stored(file), &blob, &inner.config.limits).map(Some)
    })
    .await
}
