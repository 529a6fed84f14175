//! Sparse files: which parts of a file the stream holds.

use std::io::BufRead;

use crate::error::{Error, Exceeded, shown};
use crate::tar::header::{BLOCK, Field, Header};
use crate::tar::pax::decimal;
use crate::tar::source::Source;

/// A file with holes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SparseMap {
    /// The file's size, holes included.
    pub(crate) real_size: u64,
    /// Ascending, disjoint, not empty, inside the file.
    pub(crate) segments: Vec<Segment>,
}

/// Bytes that the stream holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl SparseMap {
    /// Checks the pairs of offset and length against each other and both sizes.
    pub(crate) fn new(path: &[u8], real_size: u64, stored_size: u64, pairs: &[u64]) -> Result<Self, Error> {
        let bad = |problem| Error::BadSparse { path: shown(path), problem };
        let mut segments = Vec::with_capacity(pairs.len() / 2);
        let mut end = 0_u64;
        let mut stored = 0_u64;
        let (pairs, rest) = pairs.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(bad("its map has an offset without a length"));
        }
        for &[offset, length] in pairs {
            if offset < end {
                return Err(bad("its segments overlap or are out of order"));
            }
            end = offset
                .checked_add(length)
                .filter(|&end| end <= real_size)
                .ok_or_else(|| bad("a segment ends behind the end of the file"))?;
            stored += length;
            if length > 0 {
                segments.push(Segment { offset, length });
            }
        }
        if stored != stored_size {
            return Err(bad("its segments are not what is stored"));
        }
        Ok(Self { real_size, segments })
    }
}

/// The map of an old GNU sparse entry: four pairs in the header, then blocks of 21.
pub(crate) fn old_gnu_pairs<R: BufRead>(
    source: &mut Source<R>,
    header: &Header<'_>,
    header_offset: u64,
    path: &[u8],
    max_segments: usize,
) -> Result<Vec<u64>, Error> {
    let mut pairs = Vec::new();
    read_pairs(header, 386, 4, &mut pairs)?;
    let mut more = header.byte(482) != 0;
    let mut block = [0; BLOCK];
    while more {
        if !source.block(&mut block)? {
            return Err(source.truncated("a sparse map"));
        }
        let extension = Header::unchecked(&block, header_offset);
        read_pairs(&extension, 0, 21, &mut pairs)?;
        more = extension.byte(504) != 0;
        check_segments(&pairs, path, max_segments)?;
    }
    Ok(pairs)
}

fn read_pairs(header: &Header<'_>, base: usize, count: usize, pairs: &mut Vec<u64>) -> Result<(), Error> {
    for index in 0..count {
        // An unused pair is all NUL, and the map ends there.
        if header.byte(base + 24 * index) == 0 {
            break;
        }
        pairs.push(header.unsigned(Field::sparse(base, 2 * index))?);
        pairs.push(header.unsigned(Field::sparse(base, 2 * index + 1))?);
    }
    Ok(())
}

/// The map of a PAX 1.0 sparse file, which stands before its data: decimal numbers, one a
/// line, padded to whole blocks. Gives the pairs and how many bytes the map took.
pub(crate) fn pax_1_0_pairs<R: BufRead>(
    source: &mut Source<R>,
    path: &[u8],
    stored_size: u64,
    max_segments: usize,
) -> Result<(Vec<u64>, u64), Error> {
    let bad = |problem| Error::BadSparse { path: shown(path), problem };
    let mut reader = MapReader { block: [0; BLOCK], at: BLOCK, taken: 0, limit: stored_size };
    let malformed = "its map is malformed or longer than the entry";
    let count = reader.number(source)?.ok_or_else(|| bad(malformed))?;
    let too_many = || Error::limit(path, Exceeded::SparseSegments, max_segments as u64);
    let count = usize::try_from(count).map_err(|_| too_many())?;
    if count > max_segments {
        return Err(too_many());
    }
    let mut pairs = Vec::new();
    for _ in 0..2 * count {
        pairs.push(reader.number(source)?.ok_or_else(|| bad(malformed))?);
    }
    Ok((pairs, reader.taken))
}

/// Refuses a map with too many segments.
pub(crate) fn check_segments(pairs: &[u64], path: &[u8], max_segments: usize) -> Result<(), Error> {
    if pairs.len() / 2 > max_segments {
        return Err(Error::limit(path, Exceeded::SparseSegments, max_segments as u64));
    }
    Ok(())
}

struct MapReader {
    block: [u8; BLOCK],
    at: usize,
    taken: u64,
    limit: u64,
}

impl MapReader {
    /// `None`: malformed.
    fn number<R: BufRead>(&mut self, source: &mut Source<R>) -> Result<Option<u64>, Error> {
        let mut digits = Vec::with_capacity(20);
        loop {
            if self.at == BLOCK {
                if self.taken + BLOCK as u64 > self.limit {
                    return Ok(None);
                }
                if !source.block(&mut self.block)? {
                    return Err(source.truncated("a sparse map"));
                }
                self.taken += BLOCK as u64;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            if byte == b'\n' {
                return Ok(decimal(&digits));
            }
            if digits.len() == 20 {
                return Ok(None);
            }
            digits.push(byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_checked() {
        let map = SparseMap::new(b"f", 100, 15, &[0, 10, 50, 5, 100, 0]).unwrap();
        assert_eq!(map.segments.len(), 2);
        for (real, stored, pairs) in [
            (100, 15, &[50, 5, 0, 10][..]),
            (100, 20, &[0, 10, 5, 10]),
            (100, 10, &[95, 10]),
            (100, 11, &[0, 10]),
            (100, 10, &[0, 10, 20]),
            (100, 10, &[u64::MAX, 10]),
        ] {
            let error = SparseMap::new(b"f", real, stored, pairs).unwrap_err();
            assert!(matches!(error, Error::BadSparse { .. }), "{pairs:?}");
        }
    }

    #[test]
    fn the_pax_1_0_map_is_bounded_by_the_entry() {
        let mut data = b"1\n0\n7\n".to_vec();
        data.resize(512, 0);
        let read = |data: &[u8], size, segments| pax_1_0_pairs(&mut Source::new(data), b"f", size, segments);
        assert_eq!(read(&data, 519, 9).unwrap(), (vec![0, 7], 512));
        assert!(matches!(read(&data, 511, 9), Err(Error::BadSparse { .. })));
        assert!(matches!(read(&data, 519, 0), Err(Error::LimitExceeded { .. })));
        assert!(matches!(read(&data[..100], 519, 9), Err(Error::Truncated { .. })));
        assert!(matches!(read(&[b'1'; 512], 519, 9), Err(Error::BadSparse { .. })));
    }
}
