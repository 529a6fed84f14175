//! One pass from a layer's bytes to its files in the store.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;
use kina_model::Digest;
use sha2::{Digest as _, Sha256};

use crate::Error;
use crate::config::Limits;
use crate::layout::{Layout, TempFile};
use crate::manifest::Blob;
use crate::pipe::PipeReader;

/// The largest window of a zstd stream, as a power of two: 128 MiB, what zstd
/// itself accepts by default.
const ZSTD_WINDOW_LOG: u32 = 27;
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
    let unreadable = |offset| move |source| kina_erofs::Error::Read { offset, source };
    let mut options = kina_erofs::Options::default();
    options.limits.max_entries = limits.layer_entries;
    options.limits.max_unpacked_bytes = limits.unpacked_layer_bytes;
    let mut archive = Archive {
        decoder: Decoder::sniff(intake).map_err(unreadable(0)).map_err(refused)?,
        hasher: Sha256::new(),
        seen: 0,
        limit: limits.unpacked_layer_bytes,
    };
    let written = kina_erofs::write_layer(&mut archive, image.file(), &options);
    if archive.seen > archive.limit {
        return Err(Error::TooLarge {
            subject: format!("layer {}", blob.digest),
            what: "unpacked bytes",
            limit: archive.limit,
        });
    }
    written.map_err(refused)?;
    Ok((image, Digest::from_sha256(archive.hasher.finalize().into())))
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
                    .map_or_else(String::new, |name| format!("blob sha256:{}", name.to_string_lossy())),
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

/// A compression that shows in a stream's first bytes. Registries label layers
/// wrongly often enough that the label is not asked.
pub(crate) enum Decoder<R: BufRead> {
    Plain(Whole<R>),
    Gzip(Box<MultiGzDecoder<Whole<R>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Whole<R>>>),
}

/// The bytes that were looked at, and those after them.
type Whole<R> = io::Chain<io::Cursor<Vec<u8>>, R>;

impl<R: BufRead> Decoder<R> {
    pub(crate) fn sniff(mut input: R) -> io::Result<Self> {
        let mut start = Vec::new();
        input.by_ref().take(4).read_to_end(&mut start)?;
        let compression = Compression::of(&start);
        let whole = io::Cursor::new(start).chain(input);
        Ok(match compression {
            Compression::Plain => Self::Plain(whole),
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(whole))),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Self::Zstd(Box::new(decoder))
            }
        })
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(input) => input.read(buffer),
            Self::Gzip(input) => input.read(buffer),
            Self::Zstd(input) => input.read(buffer),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    Plain,
    Gzip,
    Zstd,
}

impl Compression {
    pub(crate) fn of(start: &[u8]) -> Self {
        // zstd's skippable frames (RFC 8878 §3.1.2) are 0x184D2A50 to 5F, little endian.
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }
}

/// The uncompressed archive: counted and hashed on its way to the writer.
struct Archive<R: BufRead> {
    decoder: Decoder<R>,
    hasher: Sha256,
    seen: u64,
    limit: u64,
}

impl<R: BufRead> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.decoder.read(buffer)?;
        self.seen += count as u64;
        if self.seen > self.limit {
            return Err(io::Error::other("the archive is longer than the limit"));
        }
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}
