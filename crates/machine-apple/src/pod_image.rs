//! The image that machines run, and that Apple's store has it.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Deserialize;
use tracing::{info, warn};

use crate::Error;
use crate::command::{Container, Image};

/// The most of the archive's index that is read, in bytes.
const INDEX_LIMIT: u64 = 64 << 10;

/// Which name an image of an archive gets (`AnnotationKeys` of containerization).
const NAME_ANNOTATIONS: [&str; 3] = [
    "com.apple.containerization.image.name",
    "io.containerd.image.name",
    "org.opencontainers.image.ref.name",
];

/// The image in an archive.
#[derive(Debug)]
pub(crate) struct PodImage {
    archive: PathBuf,
    image: Image,
    /// Whether it was found in the store, by this daemon.
    found: AtomicBool,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    digest: String,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

impl PodImage {
    /// Looks at an archive. Blocks.
    pub(crate) fn open(archive: &Path) -> Result<Self, Error> {
        let refuse = |reason: String| Error::Archive { path: archive.to_owned(), reason };
        let file = File::open(archive).map_err(|error| refuse(format!("cannot be opened ({error})")))?;
        let unreadable = |error: std::io::Error| refuse(format!("cannot be read ({error})"));
        let mut tar = tar::Archive::new(file);
        for entry in tar.entries().map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let is_index = entry.path().is_ok_and(|path| path == Path::new("index.json"));
            if !is_index {
                continue;
            }
            let mut content = Vec::new();
            entry.take(INDEX_LIMIT).read_to_end(&mut content).map_err(unreadable)?;
            let index: Index = serde_json::from_slice(&content)
                .map_err(|error| refuse(format!("has an index that is not understood ({error})")))?;
            let [entry] = &index.manifests[..] else {
                return Err(refuse(format!("has {} images and not one", index.manifests.len())));
            };
            let name = NAME_ANNOTATIONS.iter().find_map(|key| entry.annotations.get(*key));
            let name = name.ok_or_else(|| refuse("gives its image no name".to_owned()))?.clone();
            let image = Image { name, digest: entry.digest.clone() };
            return Ok(Self { archive: archive.to_owned(), image, found: AtomicBool::new(false) });
        }
        Err(refuse("is no archive of an OCI image layout: there is no index.json".to_owned()))
    }

    pub(crate) fn name(&self) -> &str {
        &self.image.name
    }

    /// Has the store look for it again: it was not there.
    pub(crate) fn forget(&self) {
        self.found.store(false, Ordering::Relaxed);
    }

    /// Loads it into Apple's store unless it is there, of the same digest. Boots
    /// are the only callers, one at a time.
    pub(crate) async fn ensure(&self, container: &Container) -> Result<(), Error> {
        if self.found.load(Ordering::Relaxed) {
            return Ok(());
        }
        if !container.images().await?.contains(&self.image) {
            container.load_image(&self.archive).await?;
            let images = container.images().await?;
            let Some(loaded) = images.iter().find(|image| image.name == self.image.name) else {
                return Err(Error::NotLoaded { name: self.image.name.clone(), path: self.archive.clone() });
            };
            info!(image = loaded.name, "the image of machines was loaded");
            // It was loaded a moment ago, and its name is made of its digest.
            if loaded.digest != self.image.digest {
                warn!(
                    digest = loaded.digest,
                    expected = self.image.digest,
                    "it is listed with another digest"
                );
            }
            self.remove_outdated(container, &images).await;
        }
        self.found.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Removes what earlier versions have loaded, unless a container is of it.
    async fn remove_outdated(&self, container: &Container, images: &[Image]) {
        let Ok(containers) = container.list().await else { return };
        let own = repository(&self.image.name);
        for image in images {
            let outdated = image.name != self.image.name && repository(&image.name) == own;
            if outdated && containers.iter().all(|container| container.image != image.name) {
                match container.delete_image(&image.name).await {
                    Ok(()) => info!(image = image.name, "an outdated image of machines was removed"),
                    Err(error) => warn!(image = image.name, %error, "an outdated image of machines stays"),
                }
            }
        }
    }
}

/// An image's name without its tag.
fn repository(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(index: Option<&str>) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut tar = tar::Builder::new(file.reopen().unwrap());
        let files = [("oci-layout", Some("{}")), ("index.json", index)];
        for (name, content) in files.into_iter().filter_map(|(name, content)| Some((name, content?))) {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, content.as_bytes()).unwrap();
        }
        tar.finish().unwrap();
        file
    }

    #[test]
    fn an_archive_names_its_image() {
        let index = r#"{"manifests":[{"digest":"sha256:ab","annotations":{"io.containerd.image.name":"localhost/p:1"}}]}"#;
        let image = PodImage::open(archive(Some(index)).path()).unwrap();
        assert_eq!((image.name(), image.image.digest.as_str()), ("localhost/p:1", "sha256:ab"));
    }

    #[test]
    fn what_is_no_such_archive_is_refused() {
        for (index, expected) in [
            (None, "no index.json"),
            (Some("{"), "not understood"),
            (Some(r#"{"manifests":[]}"#), "0 images"),
            (Some(r#"{"manifests":[{"digest":"sha256:ab"}]}"#), "no name"),
        ] {
            let error = PodImage::open(archive(index).path()).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("cargo xtask pod-image"), "{error}");
        }
        let error = PodImage::open(Path::new("/nowhere/pod.tar")).unwrap_err().to_string();
        assert!(error.contains("cannot be opened"), "{error}");
    }

    #[test]
    fn repositories_of_names() {
        for (name, expected) in
            [("localhost/p:1", "localhost/p"), ("localhost:5000/p", "localhost:5000/p"), ("p", "p")]
        {
            assert_eq!(repository(name), expected);
        }
    }
}
