//! One pass from a layer's bytes to its files in the store.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;

use kina_erofs::Exceeded;
use kina_model::Digest;
use sha2::{Digest as _, Sha256};

use crate::Error;
use crate::config::Limits;
use crate::layout::{Layout, TempFile};
use crate::manifest::Blob;
use crate::pipe::PipeReader;

const STORED_BUFFER: usize = 256 << 10;

/// Where a layer's bytes come from.
pub(crate) enum LayerSource {
    /// From outside; they are kept.
    Transfer(PipeReader),
    /// From the store's own blob.
    Stored(File),
}

/// Turns a layer into its image, and keeps the blob unless it is here already.
/// Returns the diff id, which names the image. Blocking.
///
/// The digest is judged before anything the content did, so that a broken
/// transfer is never mistaken for a bad layer.
pub(crate) fn unpack(
    layout: &Layout,
    source: LayerSource,
    blob: &Blob,
    limits: &Limits,
) -> Result<Digest, Error> {
    let (input, keep) = match source {
        LayerSource::Transfer(pipe) => (Input::Transfer(pipe), Some(layout.temp_blob()?)),
        LayerSource::Stored(file) => (Input::Stored(BufReader::with_capacity(STORED_BUFFER, file)), None),
    };
    let mut intake = Intake {
        input,
        keep,
        path: layout.blob(&blob.digest),
        hasher: Sha256::new(),
        seen: 0,
        recorded: 0,
        expected: blob.size,
        failure: None,
    };
    let outcome = write_image(layout, &mut intake, blob, limits);
    // The rest has to be read even if it means nothing: it counts in the digest.
    let rest = io::copy(&mut intake, &mut io::sink());
    let Intake { keep, hasher, seen, failure, path, .. } = intake;
    if let Some(failure) = failure {
        return Err(failure);
    }
    rest.map_err(Error::storage("read", &path))?;
    let subject = || format!("layer {}", blob.digest);
    if seen != blob.size {
        return Err(Error::SizeMismatch { subject: subject(), expected: blob.size, actual: seen });
    }
    let actual = Digest::from_sha256(hasher.finalize().into());
    if actual != blob.digest {
        return Err(Error::DigestMismatch { subject: subject(), expected: blob.digest.clone(), actual });
    }
    let (image, diff_id) = outcome?;
    if let Some(keep) = keep {
        keep.commit(&path)?;
    }
    // An image that is here may be mounted; it stays the same file.
    if !layout.has_layer_image(&diff_id) {
        layout.commit_layer_image(image, &diff_id)?;
    }
    Ok(diff_id)
}

fn write_image(
    layout: &Layout,
    intake: &mut Intake,
    blob: &Blob,
    limits: &Limits,
) -> Result<(TempFile, Digest), Error> {
    let mut image = layout.temp_layer()?;
    let image_path = image.path().to_owned();
    let refused = |source| match source {
        kina_erofs::Error::Write { source, .. } => Error::storage("write", &image_path)(source),
        source => Error::LayerRefused { digest: blob.digest.clone(), source: Arc::new(source) },
    };
    let mut options = kina_erofs::Options::default();
    options.limits.max_entries = limits.layer_entries;
    options.limits.max_unpacked_bytes = limits.unpacked_layer_bytes;
    options.limits.max_archive_bytes = limits.unpacked_layer_bytes;
    match kina_erofs::write_packed_layer(intake, image.file(), &options) {
        Ok(packed) => Ok((image, Digest::from_sha256(packed.archive_sha256))),
        Err(kina_erofs::Error::LimitExceeded { exceeded: Exceeded::ArchiveBytes, limit, .. }) => {
            Err(Error::TooLarge { subject: format!("layer {}", blob.digest), what: "unpacked bytes", limit })
        }
        Err(error) => Err(refused(error)),
    }
}

enum Input {
    Transfer(PipeReader),
    Stored(BufReader<File>),
}

/// The blob as it comes: counted, hashed and kept on its way to the decoder.
struct Intake {
    input: Input,
    keep: Option<TempFile>,
    path: std::path::PathBuf,
    hasher: Sha256,
    seen: u64,
    /// How many bytes of the input's current buffer are hashed and kept already.
    recorded: usize,
    expected: u64,
    /// Why reading failed, if not for what the blob holds.
    failure: Option<Error>,
}

impl Intake {
    /// Takes note of the input's next buffer. `Ok(false)` is the end.
    fn advance(&mut self) -> Result<bool, Error> {
        let buffer = match &mut self.input {
            Input::Transfer(pipe) => match pipe.fill_buf() {
                Ok(buffer) => buffer,
                Err(_) => {
                    return Err(pipe.failure().unwrap_or(Error::Interrupted { what: "the transfer" }));
                }
            },
            Input::Stored(file) => file.fill_buf().map_err(Error::storage("read", &self.path))?,
        };
        self.seen += buffer.len() as u64;
        if self.seen > self.expected {
            return Err(Error::SizeMismatch {
                subject: self
                    .path
                    .file_name()
                    .map_or_else(String::new, |name| format!("layer sha256:{}", name.to_string_lossy())),
                expected: self.expected,
                actual: self.seen,
            });
        }
        self.hasher.update(buffer);
        if let Some(keep) = &mut self.keep {
            keep.write(buffer)?;
        }
        self.recorded = buffer.len();
        Ok(!buffer.is_empty())
    }
}

impl BufRead for Intake {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.failure.is_some() {
            return Err(io::Error::other("the layer could not be read on"));
        }
        if self.recorded == 0
            && let Err(failure) = self.advance()
        {
            let text = failure.to_string();
            self.failure = Some(failure);
            return Err(io::Error::other(text));
        }
        match &mut self.input {
            Input::Transfer(pipe) => pipe.fill_buf(),
            Input::Stored(file) => file.fill_buf(),
        }
    }

    fn consume(&mut self, amount: usize) {
        self.recorded -= amount;
        match &mut self.input {
            Input::Transfer(pipe) => pipe.consume(amount),
            Input::Stored(file) => file.consume(amount),
        }
    }
}

impl Read for Intake {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}
