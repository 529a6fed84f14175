//! `cargo xtask pod-image`: the image that Apple's `container` boots a machine from,
//! with the static `kina-guest` as its program, as an archive to ship beside kina.
//!
//! The archive is an OCI image layout with one index, whose name has the index's
//! digest in it: another guest is another name, and the same guest is the same file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::guest::Processor;
use crate::shell::Workspace;
use crate::{guest, setup};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Names in this are found on no registry.
const REPOSITORY: &str = "localhost/kina-pod";
const TAG_DIGITS: usize = 16;

/// Directories of the image, with their modes: where its kernel's file systems, its
/// shares and the pod's state go.
const DIRECTORIES: [(&str, u32); 11] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("proc", 0o555),
    ("run", 0o755),
    ("run/kina", 0o755),
    ("share", 0o755),
    ("share/layers", 0o755),
    ("share/volumes", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var", 0o755),
];

/// A guest and what it runs on.
struct Guest {
    processor: Processor,
    content: Vec<u8>,
}

impl Guest {
    fn read(processor: Processor, path: &Path) -> Result<Self> {
        let content = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        Ok(Self { processor, content })
    }
}

/// The command: build, and print the path on standard output.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    if let Some(argument) = arguments.first() {
        bail!("`pod-image` takes no argument, got `{argument}`");
    }
    setup::install(workspace, &[])?;
    println!("{}", build(workspace)?.display());
    Ok(())
}

/// Where the image is once made.
pub(crate) fn path(workspace: &Workspace) -> PathBuf {
    workspace.target("guest").join("kina-pod.tar")
}

/// Makes the image of this machine's architecture, and of the other if its guest has
/// been built.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf> {
    let [own, other] = Processor::ALL;
    let mut guests = vec![Guest::read(own, &guest::build(workspace)?)?];
    let built = guest::path_for(workspace, other);
    if built.exists() {
        guests.push(Guest::read(other, &built)?);
    } else {
        eprintln!("note: the image has no guest for {}: {} is not there", other.name(), built.display());
    }
    let path = path(workspace);
    fs::write(&path, pack(&guests)?).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// Makes the image of a Mac's machines from their guest, below `folder`.
pub(crate) fn build_for_mac(guest: &Path, folder: &Path) -> Result<PathBuf> {
    let path = folder.join("kina-pod.tar");
    let image = pack(&[Guest::read(Processor::Arm, guest)?])?;
    fs::write(&path, image).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

fn digest(content: &[u8]) -> String {
    format!("sha256:{}", sha256(content))
}

/// The SHA-256 of a content, in hexadecimal digits.
pub(crate) fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(content), "size": content.len() })
}

fn pack(guests: &[Guest]) -> Result<Vec<u8>> {
    let mut blobs = Vec::new();
    let mut manifests = Vec::new();
    for guest in guests {
        let layer = layer(guest)?;
        let config = json!({
            "architecture": guest.processor.oci_name(),
            "os": "linux",
            "config": { "Entrypoint": ["/kina-guest"], "WorkingDir": "/" },
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config),
            "layers": [descriptor(LAYER, &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        let mut entry = descriptor(MANIFEST, &manifest);
        entry["platform"] = json!({ "architecture": guest.processor.oci_name(), "os": "linux" });
        manifests.push(entry);
        blobs.extend([layer, config, manifest]);
    }
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    let index = index.to_string().into_bytes();
    let digest = digest(&index);
    let hex = digest.trim_start_matches("sha256:");
    let name = format!("{REPOSITORY}:{}", &hex[..TAG_DIGITS]);
    let mut entry = descriptor(INDEX, &index);
    entry["annotations"] =
        json!({ "com.apple.containerization.image.name": name, "io.containerd.image.name": name });
    blobs.push(index);
    let layout = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] }).to_string();

    let mut archive = tar::Builder::new(Vec::new());
    append(&mut archive, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    append(&mut archive, "index.json", 0o644, layout.as_bytes())?;
    for blob in &blobs {
        append(&mut archive, &format!("blobs/{}", self::digest(blob).replace(':', "/")), 0o644, blob)?;
    }
    Ok(archive.into_inner()?)
}

fn layer(guest: &Guest) -> Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    for (name, mode) in DIRECTORIES {
        let mut header = header(mode, 0);
        header.set_entry_type(tar::EntryType::Directory);
        layer.append_data(&mut header, format!("{name}/"), std::io::empty())?;
    }
    append(&mut layer, "kina-guest", 0o755, &guest.content)?;
    Ok(layer.into_inner()?)
}

fn append(archive: &mut tar::Builder<Vec<u8>>, name: &str, mode: u32, content: &[u8]) -> Result<()> {
    Ok(archive.append_data(&mut header(mode, content.len() as u64), name, content)?)
}

/// Root's, and of no time.
fn header(mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use super::*;

    fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(archive);
        archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                (entry.path().unwrap().display().to_string(), content)
            })
            .collect()
    }

    #[test]
    fn every_part_is_where_its_digest_says() {
        let guests = [(Processor::Arm, "arm"), (Processor::X86, "intel")]
            .map(|(processor, content)| Guest { processor, content: content.as_bytes().to_vec() });
        let archive = pack(&guests).unwrap();
        assert_eq!(archive, pack(&guests).unwrap());
        let files = files(&archive);
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            let content = &files[&format!("blobs/{}", digest.replace(':', "/"))];
            assert_eq!(super::digest(content), digest);
            assert_eq!(descriptor["size"], content.len());
            content.clone()
        };
        let json = |content: &[u8]| serde_json::from_slice::<Value>(content).unwrap();
        let entry = &json(&files["index.json"])["manifests"][0];
        let name = entry["annotations"]["com.apple.containerization.image.name"].as_str().unwrap();
        let digits = &entry["digest"].as_str().unwrap()["sha256:".len()..][..TAG_DIGITS];
        assert_eq!(name, format!("localhost/kina-pod:{digits}"));
        for (number, (guest, name)) in guests.iter().zip(["arm64", "amd64"]).enumerate() {
            let manifest = &json(&blob(entry))["manifests"][number];
            assert_eq!(manifest["platform"]["architecture"], name);
            let manifest = json(&blob(manifest));
            let config = json(&blob(&manifest["config"]));
            assert_eq!(config["config"]["Entrypoint"], json!(["/kina-guest"]));
            assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
            let layer = self::files(&blob(&manifest["layers"][0]));
            assert_eq!(layer["kina-guest"], guest.content);
            assert!(layer.contains_key("share/layers/"), "{:?}", layer.keys());
        }
    }
}
