//! Small OCI images made in code, for `kina demo` and for tests: one layer of a
//! few files, as an archive or pushed to a registry on loopback.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use kina_image::Digest;
use serde_json::{Value, json};
use sha2::Digest as _;

/// How long the registry may take over one read or write.
const PATIENCE: Duration = Duration::from_secs(30);

/// No answer of a registry is longer, in bytes.
const ANSWER_LIMIT: u64 = 1 << 20;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What lies in the layer.
#[derive(Clone, Copy, Debug)]
pub enum Entry<'a> {
    /// A directory.
    Directory {
        /// Path without the leading `/`.
        path: &'a str,
        /// Permissions.
        mode: u32,
    },
    /// A file.
    File {
        /// Path without the leading `/`.
        path: &'a str,
        /// Permissions.
        mode: u32,
        /// What is in it.
        content: &'a [u8],
    },
    /// A symbolic link.
    Link {
        /// Path without the leading `/`.
        path: &'a str,
        /// What it points to.
        target: &'a str,
    },
}

/// An image with one layer.
#[derive(Clone, Debug)]
pub struct SmallImage {
    layer: Vec<u8>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

impl SmallImage {
    /// Makes one. `config` is what an image configuration has under that key:
    /// `Env`, `Cmd`, `User` and so on.
    ///
    /// # Errors
    /// When a path is none that an archive can hold.
    pub fn new(entries: &[Entry<'_>], config: &Value) -> io::Result<Self> {
        let layer = layer(entries)?;
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = text(&json!({
            "architecture": architecture,
            "os": "linux",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer).to_string()] },
        }));
        let manifest = text(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        }));
        Ok(Self { layer, config, manifest })
    }

    /// Bytes of its layer.
    #[must_use]
    pub fn layer_bytes(&self) -> usize {
        self.layer.len()
    }

    /// The image as an OCI archive under a name.
    ///
    /// # Errors
    /// None that happens to archives in memory.
    pub fn archive(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut manifest = descriptor(MANIFEST, &self.manifest);
        manifest["annotations"] = json!({ "io.containerd.image.name": name });
        let index = text(&json!({ "schemaVersion": 2, "manifests": [manifest] }));
        let blobs = [&self.manifest, &self.config, &self.layer];
        let names = blobs.map(|blob| format!("blobs/sha256/{}", hex(blob)));
        let mut entries = vec![
            Entry::File { path: "oci-layout", mode: 0o644, content: br#"{"imageLayoutVersion":"1.0.0"}"# },
            Entry::File { path: "index.json", mode: 0o644, content: &index },
        ];
        entries.extend(names.iter().zip(blobs).map(|(path, content)| Entry::File {
            path,
            mode: 0o644,
            content,
        }));
        layer(&entries)
    }

    /// Pushes it over plain http. Blocks.
    ///
    /// # Errors
    /// When the registry cannot be reached or does not take it.
    pub fn push(&self, registry: SocketAddr, repository: &str, tag: &str) -> io::Result<()> {
        for blob in [&self.layer, &self.config] {
            let uploads = format!("/v2/{repository}/blobs/uploads/");
            let begun = exchange(registry, "POST", &uploads, "application/octet-stream", &[])?.expect(202)?;
            let location = begun.header("location").ok_or_else(|| invalid("no Location for the upload"))?;
            let path = location.strip_prefix(&format!("http://{registry}")).unwrap_or(location);
            let joint = if path.contains('?') { '&' } else { '?' };
            let target = format!("{path}{joint}digest={}", digest(blob));
            exchange(registry, "PUT", &target, "application/octet-stream", blob)?.expect(201)?;
        }
        let target = format!("/v2/{repository}/manifests/{tag}");
        exchange(registry, "PUT", &target, MANIFEST, &self.manifest)?.expect(201)?;
        Ok(())
    }
}

/// Whether a registry answers there. Blocks.
#[must_use]
pub fn registry_answers(registry: SocketAddr) -> bool {
    exchange(registry, "GET", "/v2/", "application/json", &[]).is_ok_and(|answer| answer.code == 200)
}

fn layer(entries: &[Entry<'_>]) -> io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        match *entry {
            Entry::Directory { path, mode } => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(mode);
                builder.append_data(&mut header, format!("{path}/"), io::empty())?;
            }
            Entry::File { path, mode, content } => {
                header.set_size(content.len() as u64);
                header.set_mode(mode);
                builder.append_data(&mut header, path, content)?;
            }
            Entry::Link { path, target } => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                builder.append_link(&mut header, path, target)?;
            }
        }
    }
    builder.into_inner()
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(sha2::Sha256::digest(bytes).into())
}

fn hex(bytes: &[u8]) -> String {
    digest(bytes).to_string().split_off("sha256:".len())
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(bytes).to_string(), "size": bytes.len() })
}

fn text(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

/// An HTTP answer.
struct Answer {
    code: u16,
    headers: Vec<(String, String)>,
    body: String,
    request: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn expect(self, code: u16) -> io::Result<Self> {
        if self.code == code {
            return Ok(self);
        }
        Err(invalid(format!("{}: the registry answers {}: {}", self.request, self.code, self.body.trim())))
    }
}

/// One request on a connection of its own.
fn exchange(
    registry: SocketAddr,
    method: &str,
    target: &str,
    media_type: &str,
    body: &[u8],
) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&registry, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "{method} {target} HTTP/1.1\r\nHost: {registry}\r\nContent-Type: {media_type}\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.take(ANSWER_LIMIT).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| invalid("no HTTP answer"))?;
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    let code = status.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok(Answer {
        code: code.ok_or_else(|| invalid(format!("no HTTP status in {status:?}")))?,
        headers: lines
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
            .collect(),
        body: body.to_owned(),
        request: format!("{method} {target}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_what_its_index_names() {
        let image = SmallImage::new(
            &[
                Entry::Directory { path: "etc", mode: 0o755 },
                Entry::File { path: "etc/hello", mode: 0o644, content: b"hello" },
                Entry::Link { path: "hello", target: "etc/hello" },
            ],
            &json!({ "Cmd": ["/hello"] }),
        )
        .unwrap();
        let bytes = image.archive("localhost/hello:1").unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut files = std::collections::BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(entry.path().unwrap().to_str().unwrap().to_owned(), content);
        }
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "localhost/hello:1");
        let path = |value: &Value| format!("blobs/{}", value.as_str().unwrap().replace(':', "/"));
        let manifest: Value =
            serde_json::from_slice(&files[&path(&index["manifests"][0]["digest"])]).unwrap();
        let config: Value = serde_json::from_slice(&files[&path(&manifest["config"]["digest"])]).unwrap();
        assert_eq!(config["config"]["Cmd"][0], "/hello");
        let layer = &files[&path(&manifest["layers"][0]["digest"])];
        assert_eq!(config["rootfs"]["diff_ids"][0], digest(layer).to_string());
    }
}
