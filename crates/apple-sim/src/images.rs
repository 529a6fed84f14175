//! The store of images: an OCI layout's blobs, and which name is which index.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::error::{Code, Problem};
use crate::resources::{Descriptor, ImageDescription, Platform};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Says that an index was made around an image that came without one.
const INDIRECT: &str = "com.apple.containerization.index.indirect";
/// Where the name of an image stands in an archive, in this order (`LocalOCILayoutClient.swift`).
const NAMES: [&str; 3] = [
    "com.apple.containerization.image.name",
    "io.containerd.image.name",
    "org.opencontainers.image.ref.name",
];

/// What an image says of the process.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// Of the process.
    #[serde(deserialize_with = "list")]
    pub env: Vec<String>,
    /// The words before those of `cmd`.
    #[serde(deserialize_with = "list")]
    pub entrypoint: Vec<String>,
    /// What is run if nothing else is said.
    #[serde(deserialize_with = "list")]
    pub cmd: Vec<String>,
    /// Where.
    pub working_dir: Option<String>,
    /// As whom.
    pub user: Option<String>,
    /// What asks it to end.
    pub stop_signal: Option<String>,
}

fn list<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// One platform's part of an image.
#[derive(Clone, Debug)]
pub struct Variant {
    /// Whose.
    pub platform: Platform,
    /// Of its manifest.
    pub digest: String,
    /// Of all its parts.
    pub size: i64,
    /// As the image has it.
    pub config: Value,
}

/// A store of images in a directory.
#[derive(Clone, Debug)]
pub struct Images {
    directory: PathBuf,
}

impl Images {
    /// The store of an application root.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { directory: root.join("content") }
    }

    /// All images, by name.
    ///
    /// # Errors
    /// What the file system says.
    pub fn list(&self) -> Result<Vec<ImageDescription>, Problem> {
        let named: BTreeMap<String, Descriptor> = match fs::read(self.state()) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error.into()),
        };
        Ok(named
            .into_iter()
            .map(|(reference, descriptor)| ImageDescription { reference, descriptor })
            .collect())
    }

    /// An image by one of its names.
    ///
    /// # Errors
    /// A name that is no name.
    pub fn find(&self, name: &str) -> Result<Option<ImageDescription>, Problem> {
        let normalized = normalize(name)?;
        let found = |image: &ImageDescription| image.reference == name || image.reference == normalized;
        Ok(self.list()?.into_iter().find(found))
    }

    /// Takes the images of an archive in.
    ///
    /// # Errors
    /// An archive that is none, or without an image.
    pub fn load(&self, archive: &Path) -> Result<Vec<ImageDescription>, Problem> {
        fs::create_dir_all(self.directory.join("blobs/sha256"))?;
        let mut index = None;
        let mut archive = tar::Archive::new(File::open(archive)?);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = entry.path()?.into_owned();
            let path = path.strip_prefix("./").unwrap_or(&path).to_owned();
            if path == Path::new("index.json") {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes)?;
                index = Some(serde_json::from_slice::<Index>(&bytes)?);
            } else if path.starts_with("blobs/sha256") && entry.header().entry_type().is_file() {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                self.take_in(&mut entry, &name)?;
            }
        }
        let index = index.ok_or_else(|| Problem::new(Code::NotFound, "no index.json in the archive"))?;
        let mut loaded = Vec::new();
        for descriptor in index.manifests {
            let annotations = descriptor.annotations.clone().unwrap_or_default();
            let reference = NAMES
                .iter()
                .find_map(|name| annotations.get(*name).cloned())
                .unwrap_or_else(|| format!("untagged@{}", descriptor.digest));
            let descriptor = self.index_of(descriptor)?;
            loaded.push(ImageDescription { reference, descriptor });
        }
        if loaded.is_empty() {
            return Err(Problem::internal("failed to import image"));
        }
        self.change(|named| {
            for image in &loaded {
                named.insert(image.reference.clone(), image.descriptor.clone());
            }
        })?;
        Ok(loaded)
    }

    /// Gives an image one more name.
    ///
    /// # Errors
    /// What the file system says.
    pub fn tag(&self, image: &ImageDescription, reference: &str) -> Result<(), Problem> {
        self.change(|named| {
            named.insert(reference.to_owned(), image.descriptor.clone());
        })
    }

    /// Takes a name away. The blobs stay: nothing here is short of space.
    ///
    /// # Errors
    /// What the file system says.
    pub fn delete(&self, reference: &str) -> Result<(), Problem> {
        self.change(|named| {
            named.remove(reference);
        })
    }

    /// The parts of an image, by platform.
    ///
    /// # Errors
    /// A blob that is missing or damaged.
    pub fn variants(&self, image: &ImageDescription) -> Result<Vec<Variant>, Problem> {
        let index: Index = self.decoded(&image.descriptor.digest)?;
        let mut variants = Vec::new();
        for descriptor in index.manifests {
            let Some(platform) = descriptor.platform.clone() else {
                continue;
            };
            let manifest: Manifest = self.decoded(&descriptor.digest)?;
            let parts: i64 = manifest.layers.iter().map(|layer| layer.size).sum();
            variants.push(Variant {
                platform,
                size: descriptor.size + manifest.config.size + parts,
                digest: descriptor.digest,
                config: self.decoded(&manifest.config.digest)?,
            });
        }
        Ok(variants)
    }

    /// What an image says of the process on a platform.
    ///
    /// # Errors
    /// If it is not for that platform.
    pub fn config(&self, image: &ImageDescription, platform: &Platform) -> Result<ImageConfig, Problem> {
        let manifest = self.manifest(image, platform)?;
        let config: Value = self.decoded(&manifest.config.digest)?;
        match config.get("config") {
            Some(Value::Object(process)) => Ok(serde_json::from_value(Value::Object(process.clone()))?),
            Some(_) | None => Ok(ImageConfig::default()),
        }
    }

    /// Unpacks an image into a directory that is made.
    ///
    /// # Errors
    /// What the file system or the archives say.
    pub fn unpack(&self, image: &ImageDescription, platform: &Platform, into: &Path) -> Result<(), Problem> {
        fs::create_dir_all(into)?;
        for layer in self.manifest(image, platform)?.layers {
            let blob = File::open(self.blob(&layer.digest)?)?;
            let reader: Box<dyn Read> = if layer.media_type.ends_with("gzip") {
                Box::new(flate2::read::MultiGzDecoder::new(blob))
            } else if layer.media_type.ends_with("zstd") {
                Box::new(zstd::stream::read::Decoder::new(blob)?)
            } else {
                Box::new(blob)
            };
            apply_layer(reader, into)?;
        }
        Ok(())
    }

    fn manifest(&self, image: &ImageDescription, platform: &Platform) -> Result<Manifest, Problem> {
        let index: Index = self.decoded(&image.descriptor.digest)?;
        let same = |other: &Platform| other.os == platform.os && other.architecture == platform.architecture;
        let descriptor = index
            .manifests
            .into_iter()
            .find(|descriptor| descriptor.platform.as_ref().is_some_and(same))
            .ok_or_else(|| {
                let shown = format!("platform {}/{}", platform.os, platform.architecture);
                Problem::new(Code::Unsupported, shown)
            })?;
        self.decoded(&descriptor.digest)
    }

    /// The index of an image; one is made around an image without.
    fn index_of(&self, descriptor: Descriptor) -> Result<Descriptor, Problem> {
        if descriptor.media_type.contains("index") || descriptor.media_type.contains("manifest.list") {
            return Ok(Descriptor { annotations: None, platform: None, ..descriptor });
        }
        let manifest: Manifest = self.decoded(&descriptor.digest)?;
        let platform: Platform = self.decoded(&manifest.config.digest)?;
        let inner = Descriptor { annotations: None, platform: Some(platform), ..descriptor };
        let index = json!({
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [inner],
            "annotations": { INDIRECT: "true" },
        });
        let bytes = crate::swift_json::compact(&index).into_bytes();
        let digest = hex::encode(Sha256::digest(&bytes));
        fs::write(self.directory.join("blobs/sha256").join(&digest), &bytes)?;
        Ok(Descriptor {
            media_type: INDEX.to_owned(),
            digest: format!("sha256:{digest}"),
            size: i64::try_from(bytes.len()).unwrap_or(i64::MAX),
            annotations: None,
            platform: None,
        })
    }

    /// Takes in a blob, whose name is what it must hash to.
    fn take_in(&self, from: &mut impl Read, name: &str) -> Result<(), Problem> {
        let place = self.directory.join("blobs/sha256");
        let new = place.join(format!(".{name}.{}", std::process::id()));
        let mut file = File::create(&new)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = from.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            hash.update(&buffer[..count]);
            file.write_all(&buffer[..count])?;
        }
        if hex::encode(hash.finalize()) != name {
            fs::remove_file(new)?;
            return Err(Problem::invalid(format!("digest mismatch: sha256:{name}")));
        }
        fs::rename(new, place.join(name))?;
        Ok(())
    }

    fn blob(&self, digest: &str) -> Result<PathBuf, Problem> {
        let name = digest
            .strip_prefix("sha256:")
            .filter(|name| name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .ok_or_else(|| Problem::invalid(format!("invalid digest: {digest}")))?;
        Ok(self.directory.join("blobs/sha256").join(name))
    }

    fn decoded<T: serde::de::DeserializeOwned>(&self, digest: &str) -> Result<T, Problem> {
        let bytes = fs::read(self.blob(digest)?)
            .map_err(|_| Problem::new(Code::NotFound, format!("content with digest {digest}")))?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    fn state(&self) -> PathBuf {
        self.directory.join("state.json")
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Descriptor>)) -> Result<(), Problem> {
        fs::create_dir_all(&self.directory)?;
        let lock = File::create(self.directory.join("lock"))?;
        lock.lock()?;
        let mut named: BTreeMap<String, Descriptor> =
            self.list()?.into_iter().map(|image| (image.reference, image.descriptor)).collect();
        change(&mut named);
        let new = self.directory.join("state.json.new");
        fs::write(&new, serde_json::to_vec(&named)?)?;
        fs::rename(new, self.state())?;
        Ok(())
    }
}

/// Unpacks a layer over what is there. Nothing outside of it is touched, wherever its links lead.
fn apply_layer(layer: impl Read, into: &Path) -> Result<(), Problem> {
    let into = &into.canonicalize()?;
    let mut archive = tar::Archive::new(layer);
    archive.set_preserve_permissions(true);
    // Owners are set below: archives may leave them out.
    archive.set_preserve_ownerships(false);
    archive.set_unpack_xattrs(true);
    archive.set_overwrite(true);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?;
        // The root that a name may begin with is the image's.
        let path: PathBuf = path.components().filter(|part| *part != Component::RootDir).collect();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(hidden) = name.strip_prefix(".wh.") else {
            if entry.unpack_in(into)? {
                own(&into.join(&path), entry.header())?;
            }
            continue;
        };
        let Ok(parent) = into.join(path.parent().unwrap_or(Path::new(""))).canonicalize() else {
            // What is not there need not be hidden.
            continue;
        };
        if !parent.starts_with(into) {
            return Err(Problem::invalid(format!("{} leads out of the image", path.display())));
        }
        if hidden == ".wh..opq" {
            for child in fs::read_dir(&parent)? {
                remove(&child?.path())?;
            }
        } else {
            remove(&parent.join(hidden))?;
        }
    }
    Ok(())
}

/// Gives a file to whom its header says, and back what that takes away.
fn own(path: &Path, header: &tar::Header) -> io::Result<()> {
    let number =
        |field: io::Result<u64>| field.ok().and_then(|number| u32::try_from(number).ok()).unwrap_or(0);
    std::os::unix::fs::lchown(path, Some(number(header.uid())), Some(number(header.gid())))?;
    let kind = header.entry_type();
    // A link of an earlier layer may stand where this one has a directory.
    if (kind.is_file() || kind.is_dir()) && !path.is_symlink() {
        fs::set_permissions(path, fs::Permissions::from_mode(header.mode()? & 0o7777))?;
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    }
}

/// A name in full: with its registry, its path and its tag (`Reference.swift`,
/// `ClientImage.normalizeReference`).
///
/// # Errors
/// What is no name.
pub fn normalize(name: &str) -> Result<String, Problem> {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        Some(_) | None => ("docker.io", name),
    };
    let (repository, digest) = match path.split_once('@') {
        Some((repository, digest)) => (repository, Some(digest)),
        None => (path, None),
    };
    let (repository, tag) = match repository.rsplit_once(':') {
        Some((repository, tag)) => (repository, Some(tag)),
        None => (repository, None),
    };
    let ordinary =
        |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || "/._-".contains(letter);
    if repository.is_empty() || !repository.chars().all(ordinary) || tag.is_some_and(str::is_empty) {
        return Err(Problem::invalid(format!("cannot parse path for reference {name}")));
    }
    let library = domain == "docker.io" && !repository.contains('/');
    let repository = if library { format!("library/{repository}") } else { repository.to_owned() };
    Ok(match (digest, tag) {
        (Some(digest), _) => format!("{domain}/{repository}@{digest}"),
        (None, Some(tag)) => format!("{domain}/{repository}:{tag}"),
        (None, None) => format!("{domain}/{repository}:latest"),
    })
}

#[cfg(test)]
mod tests {
    use kina_testkit::images::{File, archive};

    use super::*;
    use crate::client::host_platform;

    #[test]
    fn names_are_made_full() {
        for (name, full) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("a/b:1", "docker.io/a/b:1"),
            ("ghcr.io/x/guest:1", "ghcr.io/x/guest:1"),
            ("localhost/x", "localhost/x:latest"),
            ("h:5000/x@sha256:00", "h:5000/x@sha256:00"),
        ] {
            assert_eq!(normalize(name).unwrap(), full);
        }
        assert!(normalize("").is_err() && normalize("UPPER").is_err() && normalize("x:").is_err());
    }

    #[test]
    fn an_archive_is_loaded_named_unpacked_and_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let images = Images::new(directory.path());
        let lower = [
            File { path: "etc/gone", mode: 0o600, content: b"1" },
            File { path: "etc/kept", mode: 0o640, content: b"2" },
        ];
        let upper = [File { path: "etc/.wh.gone", mode: 0o600, content: b"" }];
        let tar = directory.path().join("a.tar");
        let config = json!({ "Entrypoint": ["/x"], "Cmd": null, "User": "7" });
        fs::write(&tar, archive("docker.io/library/a:1", &[&lower, &upper], config)).unwrap();
        let loaded = images.load(&tar).unwrap();
        assert_eq!(loaded[0].reference, "docker.io/library/a:1");
        assert_eq!(loaded[0].descriptor.media_type, INDEX);
        let image = images.find("a:1").unwrap().unwrap();
        let platform = host_platform();
        let config = images.config(&image, &platform).unwrap();
        assert_eq!((config.entrypoint, config.user.as_deref()), (vec!["/x".to_owned()], Some("7")));
        let rootfs = directory.path().join("rootfs");
        images.unpack(&image, &platform, &rootfs).unwrap();
        assert!(!rootfs.join("etc/gone").exists() && rootfs.join("etc/kept").exists());
        assert_eq!(images.variants(&image).unwrap().len(), 1);
        let other = Platform { architecture: "riscv64".to_owned(), ..platform };
        assert_eq!(images.config(&image, &other).unwrap_err().code, Code::Unsupported);
        images.tag(&image, "docker.io/library/b:2").unwrap();
        images.delete(&image.reference).unwrap();
        assert!(images.find("a:1").unwrap().is_none() && images.find("b:2").unwrap().is_some());
    }

    #[test]
    fn a_layer_hides_nothing_outside_of_its_image() {
        let directory = tempfile::tempdir().unwrap();
        let (outside, rootfs) = (directory.path().join("outside"), directory.path().join("rootfs"));
        for made in [&outside, &rootfs] {
            fs::create_dir(made).unwrap();
        }
        fs::write(outside.join("file"), "").unwrap();
        std::os::unix::fs::symlink(&outside, rootfs.join("link")).unwrap();
        let layer = |name: &str| {
            let mut layer = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            // `append_data` refuses such names.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_mode(0o600);
            header.set_size(0);
            header.set_cksum();
            layer.append(&header, io::empty()).unwrap();
            layer.into_inner().unwrap()
        };
        for name in ["link/.wh.file", "link/.wh..wh..opq", "../outside/.wh.file", "/link/.wh.file"] {
            let error = apply_layer(layer(name).as_slice(), &rootfs).unwrap_err();
            assert!(error.message.ends_with("leads out of the image"), "{name}: {}", error.message);
        }
        let file = outside.join("file");
        let mode = || fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        let before = mode();
        assert_ne!(before, 0o600);
        // The name is one in the image.
        apply_layer(layer(file.to_str().unwrap()).as_slice(), &rootfs).unwrap();
        assert!(rootfs.join(file.strip_prefix("/").unwrap()).exists());
        assert_eq!(mode(), before);
    }

    #[test]
    fn a_damaged_archive_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let images = Images::new(directory.path());
        let tar = directory.path().join("a.tar");
        let mut bytes = archive("a", &[&[File { path: "x", mode: 0o600, content: b"content" }]], json!({}));
        let place = bytes.windows(7).position(|window| window == b"content").unwrap();
        bytes[place] = b'C';
        fs::write(&tar, bytes).unwrap();
        assert!(images.load(&tar).unwrap_err().message.starts_with("digest mismatch"));
        fs::write(&tar, "").unwrap();
        assert!(images.load(&tar).is_err());
    }
}
