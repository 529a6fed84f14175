//! Directory data: blocks of records and names, sorted over the whole directory.

use crate::image::format::{BLOCK_BYTES, DIRENT_BYTES, FileType};

/// What a directory lists. `T` says what the name stands for.
pub(crate) struct Listing<'a, T> {
    names: Vec<(&'a [u8], T)>,
}

impl<'a, T: Copy> Listing<'a, T> {
    /// `children` are sorted; `.` and `..` take their places among them.
    pub(crate) fn new(this: T, parent: T, children: impl Iterator<Item = (&'a [u8], T)>) -> Self {
        let mut names: Vec<(&[u8], T)> = children.collect();
        for (name, stands_for) in [(&b"."[..], this), (b"..", parent)] {
            let at = names.partition_point(|(other, _)| *other < name);
            names.insert(at, (name, stands_for));
        }
        Self { names }
    }

    /// The entries of each block in turn, with the bytes that they take.
    pub(crate) fn blocks(&self) -> Blocks<'_, 'a, T> {
        Blocks { rest: &self.names }
    }

    /// Whole blocks, and the bytes in a last one that is not full.
    ///
    /// Every block but the last counts as whole: the room at its end is part of the
    /// directory's size.
    pub(crate) fn size(&self) -> (u64, u64) {
        let mut blocks = 0;
        let mut last = 0;
        for (_, bytes) in self.blocks() {
            blocks += 1;
            last = bytes as u64;
        }
        if last == BLOCK_BYTES { (blocks, 0) } else { (blocks - 1, last) }
    }
}

pub(crate) struct Blocks<'s, 'a, T> {
    rest: &'s [(&'a [u8], T)],
}

impl<'s, 'a, T> Iterator for Blocks<'s, 'a, T> {
    type Item = (&'s [(&'a [u8], T)], usize);

    fn next(&mut self) -> Option<Self::Item> {
        let mut bytes = 0;
        let mut count = 0;
        for (name, _) in self.rest {
            let more = bytes + DIRENT_BYTES + name.len();
            if more as u64 > BLOCK_BYTES {
                break;
            }
            bytes = more;
            count += 1;
        }
        if count == 0 {
            return None;
        }
        let (now, later) = self.rest.split_at(count);
        self.rest = later;
        Some((now, bytes))
    }
}

/// One block's bytes: the records, then the names.
pub(crate) fn encode<T>(
    entries: &[(&[u8], T)],
    bytes: usize,
    resolve: impl Fn(&T) -> (u64, FileType),
) -> Vec<u8> {
    let mut block = Vec::with_capacity(bytes);
    let mut name_offset = entries.len() * DIRENT_BYTES;
    for (name, stands_for) in entries {
        let (nid, file_type) = resolve(stands_for);
        block.extend_from_slice(&nid.to_le_bytes());
        // Below the block size.
        block.extend_from_slice(&u16::try_from(name_offset).unwrap_or(u16::MAX).to_le_bytes());
        block.extend_from_slice(&[file_type as u8, 0]);
        name_offset += name.len();
    }
    for (name, _) in entries {
        block.extend_from_slice(name);
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dots_are_sorted_in() {
        let children = [&b"!"[..], b"-", b"...", b"a"];
        let mut children: Vec<_> = children.iter().map(|name| (*name, 0)).collect();
        children.sort_unstable();
        let listing = Listing::new(1, 2, children.into_iter());
        let names: Vec<_> = listing.names.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, [&b"!"[..], b"-", b".", b"..", b"...", b"a"]);
    }

    #[test]
    fn blocks_are_filled_to_the_last_byte_and_no_further() {
        // `.` and `..` take 27 bytes; 16 names of 242 bytes (254 each) leave 5.
        let names: Vec<Vec<u8>> = (0..16).map(|index| vec![b'a' + index; 242]).collect();
        let listing = Listing::new((), (), names.iter().map(|name| (name.as_slice(), ())));
        assert_eq!(listing.size(), (0, 27 + 16 * 254));
        let mut full = names.clone();
        full[15].extend(b"56789");
        let listing = Listing::new((), (), full.iter().map(|name| (name.as_slice(), ())));
        assert_eq!(listing.size(), (1, 0));
        full[15].push(b'x');
        let listing = Listing::new((), (), full.iter().map(|name| (name.as_slice(), ())));
        assert_eq!(listing.size(), (1, 12 + 248));
        assert_eq!(listing.blocks().map(|(entries, _)| entries.len()).sum::<usize>(), 18);
    }
}
