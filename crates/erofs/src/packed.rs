//! Layers as registries send them: compressed by gzip or zstd, or plain.
//!
//! Two threads share the work, since decompression alone takes longer than all the rest:
//! one reads and decompresses, the caller's hashes the archive and writes the image.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Exceeded, Place};
use crate::{Options, Summary, write_layer};

/// The largest window of a zstd stream, as a power of two: 128 MiB, what zstd itself
/// accepts by default.
const ZSTD_WINDOW_LOG: u32 = 27;
/// Buffers between the threads.
const BUFFERS: usize = 4;
const BUFFER_BYTES: usize = 256 << 10;

/// What [`write_packed_layer`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Packed {
    /// What [`write_layer`] did.
    pub summary: Summary,
    /// How the layer was compressed.
    pub compression: Compression,
    /// SHA-256 of the uncompressed archive: OCI's diff id.
    pub archive_sha256: [u8; 32],
    /// Bytes of the uncompressed archive.
    pub archive_bytes: u64,
}

/// Reads one layer, compressed or not, from `reader` to its end and writes its image to
/// `out`, as [`write_layer`] does. Blocking; a second thread decompresses.
///
/// # Errors
///
/// As of [`write_layer`]; damage to the compressed stream is [`Error::Read`], and an
/// archive of more than [`Limits::max_archive_bytes`](crate::Limits::max_archive_bytes) is
/// [`Error::LimitExceeded`].
pub fn write_packed_layer<R: BufRead + Send>(
    reader: R,
    out: &mut File,
    options: &Options,
) -> Result<Packed, Error> {
    let unreadable = |source| Error::Read { offset: 0, place: Place::Start, source };
    let decoder = Decoder::sniff(reader).map_err(unreadable)?;
    let compression = decoder.compression();
    let limit = options.limits.max_archive_bytes;
    let (to_writer, filled) = sync_channel(BUFFERS);
    let (to_decoder, empty) = sync_channel(BUFFERS);
    for _ in 1..BUFFERS {
        // There is room for them. The last one comes with the first read.
        let _ = to_decoder.send(Vec::new());
    }
    thread::scope(|scope| {
        thread::Builder::new()
            .name("layer-decoder".to_owned())
            .spawn_scoped(scope, move || decode(decoder, limit, &empty, &to_writer))
            .map_err(unreadable)?;
        let mut archive = Archive {
            filled,
            to_decoder,
            current: Vec::new(),
            at: 0,
            ended: false,
            over_limit: false,
            hasher: Sha256::new(),
            bytes: 0,
        };
        let written = write_layer(&mut archive, out, options);
        if archive.over_limit {
            return Err(Error::limit(b"", Exceeded::ArchiveBytes, limit));
        }
        Ok(Packed {
            summary: written?,
            compression,
            archive_sha256: archive.hasher.finalize().into(),
            archive_bytes: archive.bytes,
        })
    })
}

/// What the decoder has to say.
enum Piece {
    Data(Vec<u8>),
    Failed(io::Error),
    OverLimit,
}

/// Fills buffers until the end, an error, or until nobody takes them any more.
fn decode<R: BufRead>(
    mut decoder: Decoder<R>,
    limit: u64,
    empty: &Receiver<Vec<u8>>,
    to_writer: &SyncSender<Piece>,
) {
    let mut bytes = 0_u64;
    while let Ok(mut buffer) = empty.recv() {
        buffer.resize(BUFFER_BYTES, 0);
        let (count, failure) = fill(&mut decoder, &mut buffer);
        buffer.truncate(count);
        bytes += count as u64;
        let last = if bytes > limit { Some(Piece::OverLimit) } else { failure.map(Piece::Failed) };
        let is_end = count == 0 || last.is_some();
        let pieces = (count > 0).then_some(Piece::Data(buffer)).into_iter().chain(last);
        for piece in pieces {
            if to_writer.send(piece).is_err() {
                return;
            }
        }
        if is_end {
            return;
        }
    }
}

/// Reads until the buffer is full, the stream ends, or reading fails.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> (usize, Option<io::Error>) {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (filled, Some(error)),
        }
    }
    (filled, None)
}

/// The uncompressed archive: hashed on its way to the writer.
struct Archive {
    filled: Receiver<Piece>,
    to_decoder: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    ended: bool,
    over_limit: bool,
    hasher: Sha256,
    bytes: u64,
}

impl BufRead for Archive {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.current.len() && !self.ended {
            // Never blocks: there is room for all. A decoder that has ended needs no buffer.
            let _ = self.to_decoder.send(std::mem::take(&mut self.current));
            self.at = 0;
            match self.filled.recv() {
                Ok(Piece::Data(data)) => {
                    self.hasher.update(&data);
                    self.bytes += data.len() as u64;
                    self.current = data;
                }
                Ok(Piece::Failed(error)) => {
                    self.ended = true;
                    return Err(error);
                }
                Ok(Piece::OverLimit) => {
                    self.ended = true;
                    self.over_limit = true;
                    return Err(io::Error::other("the archive is longer than the limit"));
                }
                Err(_) => self.ended = true,
            }
        }
        Ok(&self.current[self.at..])
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}

impl Read for Archive {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

/// Decompresses what shows in a stream's first bytes. Registries label layers wrongly often
/// enough that the label is not asked.
pub struct Decoder<R: BufRead>(Inner<R>);

enum Inner<R: BufRead> {
    Plain(Whole<R>),
    Gzip(Box<MultiGzDecoder<Whole<R>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Whole<R>>>),
}

/// The bytes that were looked at, and those after them.
type Whole<R> = io::Chain<io::Cursor<Vec<u8>>, R>;

impl<R: BufRead> Decoder<R> {
    /// Looks at the first bytes of `input`.
    ///
    /// # Errors
    ///
    /// What the reader says, or that there is no memory for a decoder.
    pub fn sniff(mut input: R) -> io::Result<Self> {
        let mut start = Vec::new();
        input.by_ref().take(4).read_to_end(&mut start)?;
        let compression = Compression::of(&start);
        let whole = io::Cursor::new(start).chain(input);
        Ok(Self(match compression {
            Compression::Plain => Inner::Plain(whole),
            Compression::Gzip => Inner::Gzip(Box::new(MultiGzDecoder::new(whole))),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Inner::Zstd(Box::new(decoder))
            }
        }))
    }

    /// Which compression it is.
    pub fn compression(&self) -> Compression {
        match self.0 {
            Inner::Plain(_) => Compression::Plain,
            Inner::Gzip(_) => Compression::Gzip,
            Inner::Zstd(_) => Compression::Zstd,
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Inner::Plain(input) => input.read(buffer),
            Inner::Gzip(input) => input.read(buffer),
            Inner::Zstd(input) => input.read(buffer),
        }
    }
}

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Plain,
    /// By gzip, in one member or several.
    Gzip,
    /// By zstd, in one frame or several.
    Zstd,
}

impl Compression {
    /// What the first bytes of a stream (four are enough) say.
    pub fn of(start: &[u8]) -> Self {
        // zstd's skippable frames (RFC 8878 §3.1.2) are 0x184D2A50 to 5F, little endian.
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }
}
