//! Images out into OCI archives.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::Error;
use crate::images::{Images, Inner};
use crate::layout::OCI_LAYOUT;
use crate::manifest::Blob;
use crate::records::{Record, Records};
use crate::reference::Reference;

const BLOCK: usize = 512;
const BUFFER: usize = 256 << 10;

/// Docker's `manifest.json`, so that `docker load` reads the archive too.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

impl Images {
    /// Writes an image with its names as an OCI archive: a tar of an OCI image
    /// layout, which Docker loads too. The same image under the same names gives
    /// the same bytes. Returns how many. On an error the output is incomplete.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownImage`], [`Error::ArchiveStream`] if the output fails,
    /// [`Error::Storage`].
    pub async fn export(&self, any: &str, out: impl AsyncWrite + Unpin + Send) -> Result<u64, Error> {
        let unknown = || Error::UnknownImage { name: any.to_owned() };
        let image = self.resolve(any).ok_or_else(unknown)?;
        // Its files stay as long as this lives.
        let lease = self.lease(&image.id).ok_or_else(unknown)?;
        let (record, names) = self.inner.recorded(&lease.image().id).ok_or_else(unknown)?;
        let mut archive = Archive { inner: &self.inner, out, written: 0 };
        archive.image(&record, &names).await?;
        Ok(archive.written)
    }
}

struct Archive<'a, W> {
    inner: &'a Arc<Inner>,
    out: W,
    written: u64,
}

impl<W: AsyncWrite + Unpin> Archive<'_, W> {
    async fn image(&mut self, record: &Record, names: &[Reference]) -> Result<(), Error> {
        self.small("oci-layout", OCI_LAYOUT.as_bytes()).await?;
        self.small("index.json", &Records::export_index(record, names)).await?;
        let docker = [DockerEntry {
            config: blob_name(&record.config),
            repo_tags: names.iter().filter(|name| name.tag().is_some()).map(ToString::to_string).collect(),
            layers: record.layers.iter().map(|(blob, _)| blob_name(blob)).collect(),
        }];
        let docker = serde_json::to_vec(&docker).expect("strings always serialise");
        self.small("manifest.json", &docker).await?;
        let mut blobs = vec![&record.manifest, &record.config];
        blobs.extend(record.layers.iter().map(|(blob, _)| blob));
        let mut done = std::collections::HashSet::new();
        for blob in blobs {
            if done.insert(&blob.digest) {
                self.blob(blob).await?;
            }
        }
        // The end of a tar archive: two blocks of zeros.
        self.write(&[0; 2 * BLOCK]).await?;
        self.out.flush().await.map_err(write_error)
    }

    async fn small(&mut self, name: &str, content: &[u8]) -> Result<(), Error> {
        self.header(name, content.len() as u64).await?;
        self.write(content).await?;
        self.pad().await
    }

    async fn blob(&mut self, blob: &Blob) -> Result<(), Error> {
        let path: PathBuf = self.inner.layout.blob(&blob.digest);
        let mut file = tokio::fs::File::open(&path).await.map_err(Error::storage("open", &path))?;
        self.header(&blob_name(blob), blob.size).await?;
        let mut buffer = vec![0; BUFFER];
        let mut left = blob.size;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            let count = file.read(&mut buffer[..want]).await.map_err(Error::storage("read", &path))?;
            if count == 0 {
                let subject = format!("blob {}", blob.digest);
                return Err(Error::SizeMismatch { subject, expected: blob.size, actual: blob.size - left });
            }
            self.write(&buffer[..count]).await?;
            left -= count as u64;
        }
        self.pad().await
    }

    async fn header(&mut self, name: &str, size: u64) -> Result<(), Error> {
        let mut header = tar::Header::new_gnu();
        // Names are short, and nothing of this machine goes into the archive.
        header.set_path(name).map_err(write_error)?;
        header.set_size(size);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        self.write(header.as_bytes()).await
    }

    async fn pad(&mut self) -> Result<(), Error> {
        let over = usize::try_from(self.written % BLOCK as u64).unwrap_or(0);
        if over > 0 {
            self.write(&[0; BLOCK][over..]).await?;
        }
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.out.write_all(bytes).await.map_err(write_error)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

fn write_error(source: std::io::Error) -> Error {
    Error::ArchiveStream { operation: "write", source: Arc::new(source) }
}

fn blob_name(blob: &Blob) -> String {
    format!("blobs/sha256/{}", blob.digest.hex())
}
