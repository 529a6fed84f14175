//! What a machine sees of this computer: its layers, and parts of the directories
//! that it was created with.

use std::io;
use std::path::{Path, PathBuf};

use super::record::Record;
use crate::Error;
use crate::command::{LAYERS_IN_GUEST, shareable_in_guest};

/// Where a machine's layers are linked.
pub(super) fn layers(storage: &Path) -> PathBuf {
    storage.join("layers")
}

/// The directories of which something may be shared: those that exist, without
/// symbolic links.
pub(super) async fn existing(asked: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for directory in asked {
        match tokio::fs::canonicalize(directory).await {
            Ok(real) if real.is_dir() => {
                if !found.contains(&real) {
                    check(&real)?;
                    found.push(real);
                }
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::file("look at", directory, source)),
        }
    }
    Ok(found)
}

/// Refuses a path that Apple's command line would take for two.
pub(super) fn check(path: &Path) -> Result<(), Error> {
    if path.as_os_str().as_encoded_bytes().contains(&b':') {
        return Err(Error::Colon { path: path.to_owned() });
    }
    Ok(())
}

/// Makes the empty directory of layers; again is free.
pub(super) async fn create(storage: &Path) -> Result<(), Error> {
    let layers = layers(storage);
    tokio::fs::create_dir_all(&layers).await.map_err(|source| Error::file("make", layers, source))
}

/// Shows a layer image, and returns where the guest sees it. A link is as good as
/// the file: whoever removes one leaves the other.
pub(super) async fn layer(storage: &Path, image: &Path) -> io::Result<PathBuf> {
    let name = image.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    match tokio::fs::hard_link(image, layers(storage).join(name)).await {
        // Layers are named by what is in them.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            tokio::fs::metadata(image).await?;
        }
        other => other?,
    }
    Ok(Path::new(LAYERS_IN_GUEST).join(name))
}

/// Where the guest sees a file or directory.
pub(super) async fn volume(record: &Record, source: &Path) -> io::Result<PathBuf> {
    let real = tokio::fs::canonicalize(source).await?;
    for (number, directory) in record.shareable.iter().enumerate() {
        if let Ok(rest) = real.strip_prefix(directory) {
            let place = shareable_in_guest(number);
            // An empty rest would put a slash behind it.
            return Ok(if rest.as_os_str().is_empty() { place } else { place.join(rest) });
        }
    }
    let reason = "it is in none of the directories that the machine was booted with, and Apple's container shares no \
                  other later; add one to machine.share_roots in kina's configuration";
    Err(io::Error::new(io::ErrorKind::Unsupported, reason))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::super::record::Phase;
    use super::*;

    #[tokio::test]
    async fn layers_are_links() {
        let directory = tempfile::tempdir().unwrap();
        let (storage, image) = (directory.path().join("s"), directory.path().join("image"));
        create(&storage).await.unwrap();
        create(&storage).await.unwrap();
        assert_eq!(layer(&storage, &image).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(&image, "x").unwrap();
        for _ in 0..2 {
            assert_eq!(layer(&storage, &image).await.unwrap(), Path::new("/share/layers/image"));
        }
        assert_eq!(std::fs::metadata(&image).unwrap().nlink(), 2);
    }

    #[tokio::test]
    async fn volumes_are_parts_of_what_was_there_at_boot() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let at = |name: &str| root.join(name);
        for name in ["data/a", "other"] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        std::fs::write(at("data/a/file"), "x").unwrap();
        symlink(at("other"), at("data/out")).unwrap();
        symlink(at("data"), at("link")).unwrap();
        let asked = [at("missing"), at("data/a/file"), at("link"), at("data")];
        let shareable = existing(&asked).await.unwrap();
        assert_eq!(shareable, [at("data")]);
        let record = Record {
            storage_directory: at("s"),
            memory_bytes: 0,
            cpus: 0,
            shareable,
            ports: Vec::new(),
            phase: Phase::Created,
        };
        for (source, expected) in [("data", "/share/volumes/0"), ("link/a/file", "/share/volumes/0/a/file")] {
            assert_eq!(volume(&record, &at(source)).await.unwrap(), Path::new(expected));
        }
        // A link is judged by where it leads.
        for source in ["data/out", "other"] {
            let error = volume(&record, &at(source)).await.unwrap_err();
            assert!(error.to_string().contains("machine.share_roots"), "{error}");
        }
        assert_eq!(volume(&record, &at("none")).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::create_dir(at("a:b")).unwrap();
        assert!(matches!(existing(&[at("a:b")]).await, Err(Error::Colon { .. })));
    }
}
