//! Images made in code.

use std::io::Write;
use std::path::Path;

use kina_image::Digest;
use serde_json::{Value, json};
use sha2::Digest as _;

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(sha2::Sha256::digest(bytes).into())
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// A layer with one file.
#[derive(Clone)]
pub(crate) struct TestLayer {
    pub(crate) archive: Vec<u8>,
    pub(crate) packed: Vec<u8>,
    pub(crate) media_type: &'static str,
}

impl TestLayer {
    pub(crate) fn new(name: &str, content: &[u8], packing: Packing) -> Self {
        let archive = tar_of(&[(name, content)]);
        let (packed, media_type) = match packing {
            Packing::Plain => (archive.clone(), "application/vnd.oci.image.layer.v1.tar"),
            Packing::Gzip => (gzip(&archive), "application/vnd.oci.image.layer.v1.tar+gzip"),
            Packing::Zstd => {
                (zstd::encode_all(&archive[..], 1).unwrap(), "application/vnd.oci.image.layer.v1.tar+zstd")
            }
        };
        Self { archive, packed, media_type }
    }

    /// A layer whose packed form is not small.
    pub(crate) fn noise(name: &str, bytes: usize) -> Self {
        // Numbers of a linear congruential generator do not compress.
        let mut state = 1_u64;
        let content: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(bytes)
        .collect();
        Self::new(name, &content, Packing::Gzip)
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// An image: manifest, configuration and layers.
#[derive(Clone)]
pub(crate) struct TestImage {
    pub(crate) layers: Vec<TestLayer>,
    pub(crate) config: Value,
    pub(crate) manifest_value: Value,
    pub(crate) manifest: Vec<u8>,
    pub(crate) manifest_type: String,
    /// Configuration and packed layers.
    pub(crate) blobs: Vec<Vec<u8>>,
}

impl TestImage {
    pub(crate) fn new(layers: Vec<TestLayer>) -> Self {
        Self::for_architecture(layers, "amd64")
    }

    pub(crate) fn for_architecture(layers: Vec<TestLayer>, architecture: &str) -> Self {
        let diff_ids: Vec<_> = layers.iter().map(|layer| digest(&layer.archive)).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "created": "2024-01-02T03:04:05Z",
            "config": {
                "Env": ["PATH=/bin"], "Entrypoint": ["/bin/app"], "Cmd": ["--serve"], "WorkingDir": "/srv",
                "User": "1000:1000", "Labels": {"a": "b"}, "StopSignal": "SIGINT",
                "Volumes": {"/data": {}}, "ExposedPorts": {"80/tcp": {}},
            },
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        Self::with_config(layers, config)
    }

    pub(crate) fn with_config(layers: Vec<TestLayer>, config: Value) -> Self {
        let config_bytes = serde_json::to_vec(&config).unwrap();
        let manifest_value = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config_bytes),
            "layers": layers.iter().map(|layer| descriptor(layer.media_type, &layer.packed)).collect::<Vec<_>>(),
        });
        let mut blobs = vec![config_bytes];
        blobs.extend(layers.iter().map(|layer| layer.packed.clone()));
        Self {
            layers,
            config,
            manifest: serde_json::to_vec(&manifest_value).unwrap(),
            manifest_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            manifest_value,
            blobs,
        }
    }

    /// The same with another manifest.
    pub(crate) fn with_manifest(mut self, edit: impl FnOnce(&mut Value)) -> Self {
        edit(&mut self.manifest_value);
        self.manifest = serde_json::to_vec(&self.manifest_value).unwrap();
        if let Some(media_type) = self.manifest_value["mediaType"].as_str() {
            self.manifest_type = media_type.to_owned();
        }
        self
    }

    /// The same in Docker's types.
    pub(crate) fn docker(self) -> Self {
        self.with_manifest(|manifest| {
            manifest["mediaType"] = json!("application/vnd.docker.distribution.manifest.v2+json");
            manifest["config"]["mediaType"] = json!("application/vnd.docker.container.image.v1+json");
            for layer in manifest["layers"].as_array_mut().unwrap() {
                layer["mediaType"] = json!("application/vnd.docker.image.rootfs.diff.tar.gzip");
            }
        })
    }

    pub(crate) fn id(&self) -> Digest {
        digest(&self.blobs[0])
    }

    pub(crate) fn manifest_digest(&self) -> Digest {
        digest(&self.manifest)
    }

    pub(crate) fn size(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.len() as u64).sum()
    }
}

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

/// One image of one small layer.
pub(crate) fn small_image(content: &str) -> TestImage {
    TestImage::new(vec![TestLayer::new("file", content.as_bytes(), Packing::Gzip)])
}

/// File names in a directory, sorted.
pub(crate) fn names_in(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub(crate) fn blobs_in(root: &Path) -> Vec<String> {
    names_in(&root.join("oci/blobs/sha256"))
}

pub(crate) fn layers_in(root: &Path) -> Vec<String> {
    names_in(&root.join("layers"))
}

pub(crate) fn no_temporary_files(root: &Path) -> bool {
    [root.join("oci"), root.join("oci/blobs/sha256"), root.join("layers")]
        .iter()
        .all(|directory| names_in(directory).iter().all(|name| !name.starts_with('.')))
}

/// Waits until a condition holds; fails after a generous deadline.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "timed out: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

pub(crate) fn copy_tree(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// What `du` says of a directory: bytes of disk and inodes.
pub(crate) fn du(directory: &Path) -> (u64, u64) {
    let ask = |unit: &str| -> u64 {
        let output = std::process::Command::new("du").arg("-s").arg(unit).arg(directory).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_whitespace().next().unwrap().parse().unwrap()
    };
    (ask("--block-size=1"), ask("--inodes"))
}
