//! What kernels and their modules are compressed with.

use std::io::{self, Read};

/// The kernel's own form of LZ4: a magic number, then blocks of at most 8 MiB
/// unpacked, each after its length (`lz4 -l`; lib/decompress_unlz4.c).
const LZ4_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
const LZ4_BLOCK: usize = 8 << 20;

/// A form of compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    /// None.
    Plain,
    Gzip,
    Xz,
    Zstd,
    /// For kernels only.
    Lz4,
}

impl Compression {
    /// By a module's file name: the form, and the name once unpacked. `None`
    /// when it is no module's.
    pub(super) fn of_module(file: &str) -> Option<(Self, &str)> {
        let (compression, plain) = match file.rsplit_once('.')? {
            (_, "ko") => (Self::Plain, file),
            (plain, "gz") => (Self::Gzip, plain),
            (plain, "xz") => (Self::Xz, plain),
            (plain, "zst") => (Self::Zstd, plain),
            _ => return None,
        };
        plain.ends_with(".ko").then_some((compression, plain))
    }

    /// By the first bytes of a kernel's payload. `None` for what is not
    /// unpacked here (bzip2, LZMA, LZO).
    pub(super) fn of_payload(payload: &[u8]) -> Option<Self> {
        let forms: [(&[u8], Self); 5] = [
            (b"\x7fELF", Self::Plain),
            (b"\x1f\x8b", Self::Gzip),
            (b"\xfd7zXZ\0", Self::Xz),
            (b"\x28\xb5\x2f\xfd", Self::Zstd),
            (&LZ4_MAGIC, Self::Lz4),
        ];
        forms.into_iter().find(|(magic, _)| payload.starts_with(magic)).map(|(_, form)| form)
    }

    /// Unpacks `packed`; what follows its end is left alone, since the kernel
    /// appends the length there.
    ///
    /// # Errors
    /// When it is damaged, or larger than `limit` once unpacked.
    pub(super) fn unpack(self, packed: &[u8], limit: usize) -> io::Result<Vec<u8>> {
        let reader: Box<dyn Read + '_> = match self {
            Self::Plain => Box::new(packed),
            Self::Gzip => Box::new(flate2::read::GzDecoder::new(packed)),
            Self::Xz => Box::new(lzma_rust2::XzReader::new(packed, false)),
            Self::Zstd => Box::new(zstd::Decoder::with_buffer(packed)?.single_frame()),
            Self::Lz4 => return unpack_lz4(packed, limit),
        };
        let mut unpacked = Vec::new();
        reader.take(limit as u64 + 1).read_to_end(&mut unpacked)?;
        if unpacked.len() > limit { Err(too_large(limit)) } else { Ok(unpacked) }
    }
}

fn unpack_lz4(packed: &[u8], limit: usize) -> io::Result<Vec<u8>> {
    let damaged = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut rest = packed.strip_prefix(&LZ4_MAGIC).ok_or_else(|| damaged("no LZ4".to_owned()))?;
    let mut unpacked = Vec::new();
    let mut block = vec![0; LZ4_BLOCK];
    // Four bytes at the end are the length of everything unpacked.
    while let Some((length, after)) = rest.split_first_chunk::<4>().filter(|(_, after)| !after.is_empty()) {
        let length = u32::from_le_bytes(*length) as usize;
        let compressed = after.get(..length).ok_or_else(|| damaged(format!("an LZ4 block of {length}")))?;
        let filled = lz4_flex::block::decompress_into(compressed, &mut block)
            .map_err(|error| damaged(error.to_string()))?;
        if unpacked.len() + filled > limit {
            return Err(too_large(limit));
        }
        unpacked.extend_from_slice(&block[..filled]);
        rest = &after[length..];
    }
    Ok(unpacked)
}

fn too_large(limit: usize) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("unpacked it is larger than {limit} bytes"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const CONTENT: &[u8] = b"content that repeats, content that repeats, content that repeats";

    fn packed(compression: Compression) -> Vec<u8> {
        match compression {
            Compression::Plain => CONTENT.to_vec(),
            Compression::Gzip => {
                let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                writer.write_all(CONTENT).unwrap();
                writer.finish().unwrap()
            }
            Compression::Xz => {
                let options = lzma_rust2::XzOptions::with_preset(1);
                let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
                writer.write_all(CONTENT).unwrap();
                writer.finish().unwrap()
            }
            Compression::Zstd => zstd::encode_all(CONTENT, 1).unwrap(),
            Compression::Lz4 => {
                let mut packed = LZ4_MAGIC.to_vec();
                for part in CONTENT.chunks(20) {
                    let block = lz4_flex::block::compress(part);
                    packed.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
                    packed.extend(block);
                }
                packed
            }
        }
    }

    const FORMS: [Compression; 4] = [Compression::Gzip, Compression::Xz, Compression::Zstd, Compression::Lz4];

    #[test]
    fn every_form_is_unpacked_and_what_follows_left_alone() {
        for form in FORMS {
            let mut packed = packed(form);
            assert_eq!(Compression::of_payload(&packed), Some(form));
            packed.extend(u32::try_from(CONTENT.len()).unwrap().to_le_bytes());
            assert_eq!(form.unpack(&packed, CONTENT.len()).unwrap(), CONTENT, "{form:?}");
        }
        assert_eq!(Compression::Plain.unpack(CONTENT, CONTENT.len()).unwrap(), CONTENT);
    }

    #[test]
    fn what_is_larger_than_allowed_is_refused() {
        for form in FORMS.into_iter().chain([Compression::Plain]) {
            let error = form.unpack(&packed(form), CONTENT.len() - 1).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge, "{form:?}");
        }
    }

    #[test]
    fn damage_is_an_error() {
        for form in FORMS {
            let packed = packed(form);
            assert!(form.unpack(&packed[..packed.len() / 2], 1 << 20).is_err(), "{form:?}");
        }
    }

    #[test]
    fn modules_are_known_by_their_names() {
        assert_eq!(Compression::of_module("fuse.ko"), Some((Compression::Plain, "fuse.ko")));
        assert_eq!(Compression::of_module("fuse.ko.gz"), Some((Compression::Gzip, "fuse.ko")));
        assert_eq!(Compression::of_module("fuse.ko.xz"), Some((Compression::Xz, "fuse.ko")));
        assert_eq!(Compression::of_module("fuse.ko.zst"), Some((Compression::Zstd, "fuse.ko")));
        assert_eq!(Compression::of_module("fuse.ko.bz2"), None);
        assert_eq!(Compression::of_module("fuse.xz"), None);
    }
}
