//! Reads tar streams: entries with everything that extension headers say merged in.

mod entry;
mod header;
mod pax;
mod source;
mod sparse;

use std::io::BufRead;

pub(crate) use self::entry::{Entry, EntryKind, Timestamp};
use self::header::{BLOCK, Field, Header};
use self::pax::Extensions;
use self::source::Source;
pub(crate) use self::sparse::{Segment, SparseMap};
use crate::Limits;
use crate::error::{Error, Exceeded, Place, shown};

/// More extension headers than any writer puts before one entry.
const MAX_EXTENSION_HEADERS: usize = 16;
/// `S_IFMT` and `S_IFSOCK`: some writers put the whole `st_mode` in the mode field.
const FORMAT_MASK: u64 = 0o170_000;
const FORMAT_SOCKET: u64 = 0o140_000;

pub(crate) struct Archive<'a, R> {
    source: Source<R>,
    limits: &'a Limits,
    /// Data of the current entry that is still in the stream, and the padding after it.
    remaining: u64,
    padding: u64,
    declared_bytes: u64,
    /// The entry whose headers were read last.
    last_path: Option<Vec<u8>>,
    /// Its data is not over yet, or its header is being read.
    is_inside: bool,
}

impl<'a, R: BufRead> Archive<'a, R> {
    pub(crate) fn new(reader: R, limits: &'a Limits) -> Self {
        Self {
            source: Source::new(reader),
            limits,
            remaining: 0,
            padding: 0,
            declared_bytes: 0,
            last_path: None,
            is_inside: false,
        }
    }

    /// The next entry; what was left of the data of the one before is skipped.
    ///
    /// At the end of the archive reads the rest of the stream and gives `None`.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, Error> {
        self.read_entry().map_err(|error| error.placed(|| self.place()))
    }

    /// Where the stream stands.
    fn place(&self) -> Place {
        match &self.last_path {
            None => Place::Start,
            Some(path) if self.is_inside => Place::In(shown(path)),
            Some(path) => Place::After(shown(path)),
        }
    }

    /// The stream ended too early, inside the current entry.
    pub(crate) fn truncated(&self, inside: &'static str) -> Error {
        self.source.truncated(inside).placed(|| self.place())
    }

    fn read_entry(&mut self) -> Result<Option<Entry>, Error> {
        let mut extensions = Extensions::default();
        let mut extension_headers = 0;
        let mut extension_bytes = 0;
        let mut block = [0; BLOCK];
        loop {
            self.finish_entry()?;
            let offset = self.source.offset();
            if !self.source.block(&mut block)? {
                if extension_headers > 0 {
                    return Err(self.source.truncated("an entry's headers"));
                }
                return Ok(None);
            }
            if block == [0; BLOCK] {
                if extension_headers > 0 {
                    return Err(self.source.truncated("an entry's headers"));
                }
                self.finish_archive(offset)?;
                return Ok(None);
            }
            let header = Header::parse(&block, offset)?;
            let kind = header.kind();
            if !matches!(kind, b'x' | b'g' | b'L' | b'K') {
                return self.entry(&header, offset, extensions).map(Some);
            }
            extension_headers += 1;
            if extension_headers > MAX_EXTENSION_HEADERS {
                return Err(Error::BadExtension {
                    offset,
                    place: Place::Start,
                    problem: "too many extension headers before one entry",
                });
            }
            let size = header.unsigned(Field::SIZE)?;
            let limit = self.limits.max_extension_bytes;
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            extension_bytes = size.saturating_add(extension_bytes);
            if extension_bytes > limit {
                return Err(Error::limit_between_entries(Exceeded::ExtensionBytes, limit as u64));
            }
            let data = self.source.take(size, "an extension header")?;
            self.padding = padding(size as u64);
            match kind {
                b'x' => extensions.add_pax(&data, offset)?,
                b'L' => extensions.long_name = Some(until_nul(data)),
                b'K' => extensions.long_link = Some(until_nul(data)),
                // Global headers are ignored, and stand for no entry.
                _ => extension_headers -= 1,
            }
        }
    }

    /// Some of the current entry's data, empty at its end. Consume what was used.
    pub(crate) fn peek_data(&mut self) -> Result<&[u8], Error> {
        if self.remaining == 0 {
            return Ok(&[]);
        }
        let limit = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        match self.source.peek() {
            Ok([]) => return Err(self.truncated("a file's data")),
            Ok(_) => {}
            Err(error) => return Err(error.placed(|| self.place())),
        }
        let shown = self.source.peek()?;
        Ok(&shown[..shown.len().min(limit)])
    }

    pub(crate) fn consume_data(&mut self, count: usize) {
        self.source.consume(count);
        self.remaining -= count as u64;
    }

    /// The whole of a small entry's data.
    pub(crate) fn take_data(&mut self) -> Result<Vec<u8>, Error> {
        let count = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        let data = self.source.take(count, "a file's data");
        let data = data.map_err(|error| error.placed(|| self.place()))?;
        self.remaining = 0;
        Ok(data)
    }

    fn finish_entry(&mut self) -> Result<(), Error> {
        self.source.skip(self.remaining, "a file's data")?;
        self.remaining = 0;
        self.source.skip(self.padding, "a file's padding")?;
        self.padding = 0;
        self.is_inside = false;
        Ok(())
    }

    /// After the first zero block of the end marker.
    fn finish_archive(&mut self, offset: u64) -> Result<(), Error> {
        let mut block = [0; BLOCK];
        if !self.source.block(&mut block)? {
            return Ok(());
        }
        if block != [0; BLOCK] {
            return Err(Error::LoneZeroBlock { offset, place: Place::Start });
        }
        let limit = self.limits.max_trailing_bytes;
        let mut trailing = 0_u64;
        loop {
            let shown = self.source.peek()?.len();
            if shown == 0 {
                return Ok(());
            }
            trailing += shown as u64;
            if trailing > limit {
                return Err(Error::limit_between_entries(Exceeded::TrailingBytes, limit));
            }
            self.source.consume(shown);
        }
    }

    fn entry(
        &mut self,
        header: &Header<'_>,
        offset: u64,
        mut extensions: Extensions,
    ) -> Result<Entry, Error> {
        let xattrs = extensions.take_xattrs();
        let is_pax_sparse = extensions.sparse.major.is_some()
            || extensions.sparse.real_size.is_some()
            || !extensions.sparse.map.is_empty();
        let path = extensions
            .long_name
            .or(extensions.sparse.name.take())
            .or(extensions.path)
            .unwrap_or_else(|| header.path());
        self.last_path.get_or_insert_default().clone_from(&path);
        self.is_inside = true;
        let limit = self.limits.max_path_len;
        if path.len() > limit {
            return Err(Error::limit(&path, Exceeded::PathLength, limit as u64));
        }
        let link = extensions.long_link.or(extensions.link).unwrap_or_else(|| header.link().to_vec());
        let mode = header.unsigned(Field::MODE)?;
        let mut kind = match header.kind() {
            b'0' | b'7' | b'S' | 0 if mode & FORMAT_MASK == FORMAT_SOCKET => EntryKind::Socket,
            b'0' | b'7' | b'S' | 0 => EntryKind::Regular,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::Character,
            b'4' => EntryKind::Block,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => {
                return Err(Error::UnsupportedType { path: shown(&path), kind: other });
            }
        };
        // Only these have data, whatever the size field says.
        let has_data = matches!(kind, EntryKind::Regular | EntryKind::Socket);
        let mut stored_size = match extensions.size {
            _ if !has_data => 0,
            Some(size) => size,
            None => header.unsigned(Field::SIZE)?,
        };
        // Before ustar a directory was a file whose name ends with a slash.
        if kind == EntryKind::Regular && path.ends_with(b"/") {
            kind = EntryKind::Directory;
        }
        self.declared_bytes = self.declared_bytes.saturating_add(stored_size);
        let limit = self.limits.max_unpacked_bytes;
        if self.declared_bytes > limit {
            return Err(Error::limit(&path, Exceeded::UnpackedBytes, limit));
        }
        let data_padding = padding(stored_size);
        let max_segments = self.limits.max_sparse_segments;
        let sparse = if header.kind() == b'S' {
            let pairs = sparse::old_gnu_pairs(&mut self.source, header, offset, &path, max_segments)?;
            let real_size = header.unsigned(Field::REAL_SIZE)?;
            Some(SparseMap::new(&path, real_size, stored_size, &pairs)?)
        } else if is_pax_sparse && kind == EntryKind::Regular {
            let pax = extensions.sparse;
            let missing = || Error::BadSparse { path: shown(&path), problem: "its real size is missing" };
            let real_size = pax.real_size.ok_or_else(missing)?;
            let pairs = match (pax.major.unwrap_or(0), pax.minor.unwrap_or(0)) {
                (0, _) => pax.map,
                (1, 0) => {
                    let (pairs, taken) =
                        sparse::pax_1_0_pairs(&mut self.source, &path, stored_size, max_segments)?;
                    stored_size -= taken;
                    pairs
                }
                _ => {
                    return Err(Error::BadSparse {
                        path: shown(&path),
                        problem: "its sparse format is unknown",
                    });
                }
            };
            sparse::check_segments(&pairs, &path, max_segments)?;
            Some(SparseMap::new(&path, real_size, stored_size, &pairs)?)
        } else {
            None
        };
        self.remaining = stored_size;
        self.padding = data_padding;
        let mtime = match extensions.mtime {
            Some(mtime) => mtime,
            None => Timestamp { seconds: header.signed(Field::MTIME)?, nanoseconds: 0 },
        };
        let device = match kind {
            EntryKind::Character | EntryKind::Block => {
                (header.short(Field::MAJOR)?, header.short(Field::MINOR)?)
            }
            _ => (0, 0),
        };
        Ok(Entry {
            path,
            link,
            kind,
            mode: (mode & 0o7777) as u16,
            uid: match extensions.uid {
                Some(uid) => uid,
                None => header.short(Field::UID)?,
            },
            gid: match extensions.gid {
                Some(gid) => gid,
                None => header.short(Field::GID)?,
            },
            mtime,
            device,
            stored_size,
            sparse,
            xattrs,
        })
    }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn until_nul(mut data: Vec<u8>) -> Vec<u8> {
    if let Some(end) = data.iter().position(|&byte| byte == 0) {
        data.truncate(end);
    }
    data
}
