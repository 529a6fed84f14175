//! Header blocks: what a frame says about its stream, compressed.

use std::collections::BTreeMap;
use std::collections::btree_map;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::dictionary::dictionary;
use crate::error::ProtocolError;

/// Headers of a stream: names in lower case, each once. A name with several values has them in one text,
/// separated by NUL, as on the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(BTreeMap<String, String>);

impl Headers {
    /// No headers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of a name, in whatever case the name is given.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return self.0.get(&name.to_ascii_lowercase()).map(String::as_str);
        }
        self.0.get(name).map(String::as_str)
    }

    /// Sets a value; the name becomes lower case.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.0.insert(name.to_ascii_lowercase(), value.into());
    }

    /// The same with one more value.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.set(name, value);
        self
    }

    /// Names and values, in the order of the names.
    pub fn iter(&self) -> btree_map::Iter<'_, String, String> {
        self.0.iter()
    }

    fn encode(&self) -> Vec<u8> {
        let mut block = Vec::new();
        let length = |block: &mut Vec<u8>, length: usize| {
            block.extend(u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
        };
        length(&mut block, self.0.len());
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            length(&mut block, text.len());
            block.extend(text.as_bytes());
        }
        block
    }

    /// `Ok(None)` if the block is well formed but its fields are not: a name that is empty, doubled or not
    /// in lower case, or text that is not UTF-8. That concerns one stream only.
    fn decode(block: &[u8]) -> Result<Option<Self>, ProtocolError> {
        let mut rest = block;
        let count = number(&mut rest)?;
        let mut headers = BTreeMap::new();
        let mut good = true;
        // Each takes eight bytes at least, so that the block's own bound holds for their number.
        for _ in 0..count {
            let name = field(&mut rest)?;
            let value = field(&mut rest)?;
            let lower = !name.is_empty() && !name.iter().any(u8::is_ascii_uppercase);
            match (std::str::from_utf8(name), std::str::from_utf8(value)) {
                (Ok(name), Ok(value)) if lower => {
                    good &= headers.insert(name.to_owned(), value.to_owned()).is_none();
                }
                _ => good = false,
            }
        }
        if !rest.is_empty() {
            return Err(ProtocolError::HeaderBlock);
        }
        Ok(good.then_some(Self(headers)))
    }
}

impl<Name: AsRef<str>, Value: Into<String>> FromIterator<(Name, Value)> for Headers {
    fn from_iter<Fields: IntoIterator<Item = (Name, Value)>>(fields: Fields) -> Self {
        fields.into_iter().fold(Self::new(), |headers, (name, value)| headers.with(name.as_ref(), value))
    }
}

fn number(rest: &mut &[u8]) -> Result<u32, ProtocolError> {
    let (number, tail) = rest.split_first_chunk().ok_or(ProtocolError::HeaderBlock)?;
    *rest = tail;
    Ok(u32::from_be_bytes(*number))
}

fn field<'block>(rest: &mut &'block [u8]) -> Result<&'block [u8], ProtocolError> {
    let length = number(rest)? as usize;
    let (field, tail) = rest.split_at_checked(length).ok_or(ProtocolError::HeaderBlock)?;
    *rest = tail;
    Ok(field)
}

/// Compresses the header blocks of one direction of a connection. Every block that went through must reach
/// the peer, in order.
#[derive(Debug)]
pub(crate) struct Compressor {
    zlib: Compress,
}

impl Compressor {
    pub(crate) fn new() -> Self {
        let mut zlib = Compress::new(Compression::fast(), true);
        // Fails only after something was compressed.
        let set = zlib.set_dictionary(&dictionary());
        debug_assert!(set.is_ok(), "{set:?}");
        Self { zlib }
    }

    pub(crate) fn compress(&mut self, headers: &Headers) -> Vec<u8> {
        let block = headers.encode();
        let mut compressed = Vec::with_capacity(block.len() + 64);
        let start = self.zlib.total_in();
        loop {
            let taken = usize::try_from(self.zlib.total_in() - start).unwrap_or(block.len());
            let result = self.zlib.compress_vec(&block[taken..], &mut compressed, FlushCompress::Sync);
            debug_assert!(result.is_ok(), "{result:?}");
            // Room that is left over means that all was flushed.
            if compressed.len() < compressed.capacity() || result.is_err() {
                return compressed;
            }
            compressed.reserve(block.len() + 64);
        }
    }
}

/// Decompresses the header blocks of one direction of a connection.
#[derive(Debug)]
pub(crate) struct Decompressor {
    zlib: Decompress,
    limit: usize,
}

impl Decompressor {
    pub(crate) fn new(limit: usize) -> Self {
        Self { zlib: Decompress::new(true), limit }
    }

    /// The headers of a block; `Ok(None)` if its fields are not allowed, see [`Headers::decode`].
    ///
    /// # Errors
    ///
    /// If the block cannot be read. The connection's later blocks cannot be read either then.
    pub(crate) fn decompress(&mut self, compressed: &[u8]) -> Result<Option<Headers>, ProtocolError> {
        let mut block = Vec::new();
        let mut rest = compressed;
        // One more than the limit, so that what goes beyond it shows.
        let mut piece = [0; 2048];
        loop {
            let (before_in, before_out) = (self.zlib.total_in(), self.zlib.total_out());
            let result = self.zlib.decompress(rest, &mut piece, FlushDecompress::Sync);
            let taken = usize::try_from(self.zlib.total_in() - before_in).unwrap_or(rest.len());
            let made = usize::try_from(self.zlib.total_out() - before_out).unwrap_or(0);
            rest = &rest[taken..];
            block.extend_from_slice(&piece[..made]);
            if block.len() > self.limit {
                return Err(ProtocolError::HeaderBlockTooLong { limit: self.limit });
            }
            match result {
                Ok(Status::Ok | Status::BufError) => {}
                // No block is a connection's last.
                Ok(Status::StreamEnd) => return Err(ProtocolError::Compression),
                Err(error) if error.needs_dictionary().is_some() => {
                    self.zlib.set_dictionary(&dictionary()).map_err(|_| ProtocolError::Compression)?;
                    continue;
                }
                Err(_) => return Err(ProtocolError::Compression),
            }
            // A piece that is not full means that there is no more to come out of what went in.
            if rest.is_empty() && made < piece.len() {
                return Headers::decode(&block);
            }
            if taken == 0 && made == 0 {
                return Err(ProtocolError::Compression);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Headers {
        [("streamType", "stdin"), ("requestID", "7"), ("port", "80")].into_iter().collect()
    }

    #[test]
    fn names_are_in_lower_case() {
        assert_eq!(sample().get("streamtype"), Some("stdin"));
        assert_eq!(sample().get("StreamType"), Some("stdin"));
        assert_eq!(sample().iter().map(|(name, _)| name.as_str()).next(), Some("port"));
    }

    #[test]
    fn blocks_share_one_state() {
        let mut compressor = Compressor::new();
        let mut decompressor = Decompressor::new(1024);
        let first = compressor.compress(&sample());
        let second = compressor.compress(&sample());
        let none = compressor.compress(&Headers::new());
        assert!(second.len() < first.len(), "{} {}", first.len(), second.len());
        assert_eq!(decompressor.decompress(&first), Ok(Some(sample())));
        assert_eq!(decompressor.decompress(&second), Ok(Some(sample())));
        assert_eq!(decompressor.decompress(&none), Ok(Some(Headers::new())));
    }

    #[test]
    fn the_dictionary_is_asked_for_by_its_checksum() {
        let block = Compressor::new().compress(&sample());
        // A zlib header with the flag FDICT, and the checksum.
        assert_eq!(block[1] & 0x20, 0x20);
        assert_eq!(block[2..6], [0xe3, 0xc6, 0xa7, 0xc2]);
    }

    #[test]
    fn a_block_that_inflates_too_far_is_refused() {
        let bomb = Headers::new().with("a", "b".repeat(1 << 20));
        let compressed = Compressor::new().compress(&bomb);
        assert!(compressed.len() < 16384, "{}", compressed.len());
        assert_eq!(
            Decompressor::new(4096).decompress(&compressed),
            Err(ProtocolError::HeaderBlockTooLong { limit: 4096 })
        );
    }

    #[test]
    fn another_dictionary_is_refused() {
        let mut block = Compressor::new().compress(&sample());
        block[2] ^= 1;
        assert_eq!(Decompressor::new(4096).decompress(&block), Err(ProtocolError::Compression));
    }

    #[test]
    fn a_cut_block_is_refused() {
        let mut block = Compressor::new().compress(&sample());
        block.truncate(block.len() - 8);
        assert!(Decompressor::new(4096).decompress(&block).is_err());
        assert!(Decompressor::new(4096).decompress(b"").is_err());
    }

    #[test]
    fn fields_that_are_not_allowed_concern_their_stream_only() {
        let cases: &[&[u8]] = &[
            b"\0\0\0\x01\0\0\0\x01A\0\0\0\x01v",
            b"\0\0\0\x01\0\0\0\x00\0\0\0\x01v",
            b"\0\0\0\x01\0\0\0\x01a\0\0\0\x01\xff",
            b"\0\0\0\x02\0\0\0\x01a\0\0\0\x01v\0\0\0\x01a\0\0\0\x01v",
        ];
        for case in cases {
            assert_eq!(Headers::decode(case), Ok(None), "{}", case.escape_ascii());
        }
    }

    #[test]
    fn lengths_must_add_up() {
        let cases: &[&[u8]] = &[
            b"",
            b"\0\0\0",
            b"\0\0\0\x01",
            b"\0\0\0\0\0",
            b"\xff\xff\xff\xff\0\0\0\x01a\0\0\0\0",
            b"\0\0\0\x01\xff\xff\xff\xffa\0\0\0\0",
        ];
        for case in cases {
            assert_eq!(Headers::decode(case), Err(ProtocolError::HeaderBlock), "{}", case.escape_ascii());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_compressed_comes_out_again(
            blocks in prop::collection::vec(
                prop::collection::btree_map("[a-z0-9-]{1,20}", "\\PC{0,300}", 0..6), 1..6)
        ) {
            let mut compressor = Compressor::new();
            let mut decompressor = Decompressor::new(1 << 20);
            for block in blocks {
                let headers: Headers = block.into_iter().collect();
                let compressed = compressor.compress(&headers);
                prop_assert_eq!(decompressor.decompress(&compressed), Ok(Some(headers)));
            }
        }
    }
}
