//! Images made in code, as OCI image layout archives.

use std::io::Write;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A file of a layer.
pub struct File<'a> {
    /// Path without a leading slash.
    pub path: &'a str,
    /// Permissions.
    pub mode: u32,
    /// Content.
    pub content: &'a [u8],
}

/// An archive with one image of that name: one layer per slice of files, and
/// the image configuration's `config` object as given.
pub fn archive(name: &str, layers: &[&[File<'_>]], config: Value) -> Vec<u8> {
    let layers: Vec<Vec<u8>> = layers.iter().map(|files| layer(files)).collect();
    pack(name, &layers, config)
}

fn pack(name: &str, layers: &[Vec<u8>], config: Value) -> Vec<u8> {
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|layer| digest(layer)).collect::<Vec<_>>() },
    })
    .to_string()
    .into_bytes();
    let layer_type = "application/vnd.oci.image.layer.v1.tar";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": layers.iter().map(|layer| descriptor(layer_type, layer)).collect::<Vec<_>>(),
    })
    .to_string()
    .into_bytes();
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] =
        json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": name });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();

    let mut archive = tar::Builder::new(Vec::new());
    append(&mut archive, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#);
    append(&mut archive, "index.json", 0o644, index.as_bytes());
    for blob in layers.iter().chain([&config, &manifest]) {
        append(&mut archive, &format!("blobs/{}", digest(blob).replace(':', "/")), 0o644, blob);
    }
    archive.into_inner().expect("writing to memory does not fail")
}

/// An image that runs Debian's static busybox: `/bin/busybox` with its applets
/// as hard links, a few users and groups.
///
/// # Panics
/// When Debian's package busybox-static is not installed.
pub fn busybox(name: &str) -> Vec<u8> {
    pack(name, &[busybox_layer()], json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"] }))
}

/// The one layer of [`busybox`]'s image: an uncompressed tar archive.
///
/// # Panics
/// When Debian's package busybox-static is not installed.
pub fn busybox_layer() -> Vec<u8> {
    let busybox = std::fs::read("/bin/busybox").expect("install Debian's package busybox-static");
    layer_of(&busybox)
}

/// The same layer with another busybox: that of another processor.
pub fn layer_of(busybox: &[u8]) -> Vec<u8> {
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n";
    let group = b"root:x:0:\nwww-data:x:33:\nstaff:x:50:alice\nalice:x:1000:\n";
    let mut files = vec![
        File { path: "bin/busybox", mode: 0o755, content: busybox },
        File { path: "etc/passwd", mode: 0o644, content: passwd },
        File { path: "etc/group", mode: 0o644, content: group },
    ];
    let script = applets();
    for applet in &script {
        files.push(File { path: applet, mode: 0o755, content: b"" });
    }
    layer(&files)
}

/// Writes the EROFS image of an uncompressed layer.
///
/// # Errors
/// As [`kina_erofs::write_layer`].
pub fn write_erofs(layer: &[u8], image: &mut std::fs::File) -> Result<(), kina_erofs::Error> {
    kina_erofs::write_layer(layer, image, &kina_erofs::Options::default()).map(|_| ())
}

/// Applets that tests use; an empty file in `bin` is a link to busybox.
fn applets() -> Vec<String> {
    let names = [
        "sh", "cat", "echo", "sleep", "true", "false", "ls", "id", "ps", "kill", "grep", "wget", "httpd",
        "hostname", "mount", "touch", "rm", "mkdir", "head", "tail", "seq", "date", "dd", "env", "stat",
        "readlink", "test", "nc", "yes", "wc", "ip", "awk", "sed", "tr", "usleep", "trap", "top",
    ];
    names.iter().map(|name| format!("bin/{name}")).collect()
}

fn layer(files: &[File<'_>]) -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    for directory in ["bin", "etc", "tmp", "proc", "sys", "dev", "root", "var"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(if directory == "tmp" { 0o1777 } else { 0o755 });
        header.set_size(0);
        layer.append_data(&mut header, directory, std::io::empty()).expect("writing to memory does not fail");
    }
    for file in files {
        if file.content.is_empty() && file.path.starts_with("bin/") {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Link);
            header.set_mode(file.mode);
            header.set_size(0);
            layer
                .append_link(&mut header, file.path, "bin/busybox")
                .expect("writing to memory does not fail");
        } else {
            append(&mut layer, file.path, file.mode, file.content);
        }
    }
    layer.into_inner().expect("writing to memory does not fail")
}

fn append<W: Write>(archive: &mut tar::Builder<W>, path: &str, mode: u32, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, path, content).expect("writing to memory does not fail");
}

/// The digest of some content, `sha256:<hex>`.
pub fn digest(content: &[u8]) -> String {
    let hash = Sha256::digest(content);
    hash.iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(content), "size": content.len() })
}
