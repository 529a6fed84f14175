//! Reads an image back and checks that all of it holds together, knowing the
//! on-disk format (Linux, `fs/erofs/erofs_fs.h`) and nothing of the writer.

use std::collections::{BTreeMap, BTreeSet};

use kina_erofs::{Limits, Summary};

const BLOCK: usize = 4096;
const HOLE: u32 = u32::MAX;

/// An inode, and where its parts are in the image.
struct Inode {
    at: usize,
    layout: u16,
    kind: u16,
    size: u64,
    union: u32,
    number: u32,
    links: u32,
    /// Behind the inode and its attributes.
    body: usize,
}

/// A directory's entries: name, inode, and the type stated beside them.
type Entries = Vec<(Vec<u8>, u64, u8)>;

struct Image<'a> {
    bytes: &'a [u8],
    metadata: usize,
}

/// Panics unless the image is whole and says what the summary says.
pub(crate) fn check(bytes: &[u8], summary: &Summary, limits: &Limits) {
    assert_eq!(bytes.len() as u64, summary.image_bytes);
    assert!(bytes.len().is_multiple_of(BLOCK));
    let mut first = bytes[1024..BLOCK].to_vec();
    assert_eq!(u32_at(&first, 0), 0xe0f5_e1e2, "magic");
    let checksum = u32_at(&first, 4);
    first[4..8].fill(0);
    assert_eq!(crc32c(&first), checksum, "the superblock's checksum");
    assert_eq!(first[12], 12, "block bits");
    assert_eq!(u32_at(&first, 36) as usize * BLOCK, bytes.len(), "blocks");
    assert_eq!(u64_at(&first, 16), summary.inodes, "inodes");
    let image = Image { bytes, metadata: u32_at(&first, 40) as usize * BLOCK };
    image.walk(u64::from(u16_at(&first, 14)), summary, limits);
}

impl Image<'_> {
    fn walk(&self, root: u64, summary: &Summary, limits: &Limits) {
        // For each inode: its names, and the link count that it states.
        let mut names: BTreeMap<u64, u32> = BTreeMap::new();
        let mut numbers = BTreeSet::new();
        let mut pending = vec![(root, root, 0_usize)];
        while let Some((nid, parent, depth)) = pending.pop() {
            let count = names.entry(nid).or_default();
            *count += 1;
            let first_visit = *count == 1;
            let inode = self.inode(nid);
            let is_directory = inode.kind == 0o040_000;
            assert!(first_visit || !is_directory, "a directory with two names");
            // A file may lie in the deepest directory.
            assert!(!is_directory || depth <= limits.max_depth, "deeper than allowed");
            if !first_visit {
                continue;
            }
            assert!(numbers.insert(inode.number), "an inode number twice");
            if !is_directory {
                self.check_data(&inode);
                continue;
            }
            let entries = self.directory(&inode);
            let find = |name: &[u8]| entries.iter().find(|(other, ..)| other == name).map(|(_, nid, _)| *nid);
            assert_eq!((find(b"."), find(b"..")), (Some(nid), Some(parent)), "the dots");
            let mut directories = 0;
            for (name, child, stated) in &entries {
                let kind = self.inode(*child).kind;
                assert_eq!(u16::from(*stated), type_of(kind), "{}", name.escape_ascii());
                if matches!(&name[..], b"." | b"..") {
                    continue;
                }
                directories += u32::from(kind == 0o040_000);
                pending.push((*child, nid, depth + 1));
            }
            assert_eq!(inode.links, directories + 2, "links of a directory");
        }
        assert_eq!(names.len() as u64, summary.inodes, "inodes that have names");
        for (nid, count) in names {
            let inode = self.inode(nid);
            assert!(inode.kind == 0o040_000 || inode.links == count, "links of {nid}");
        }
    }

    fn inode(&self, nid: u64) -> Inode {
        let at = self.metadata + usize::try_from(nid).expect("a small number") * 32;
        let record = &self.bytes[at..at + 64];
        let format = u16_at(record, 0);
        assert_eq!(format & 1, 1, "the extended form");
        let mode = u16_at(record, 4);
        let attributes = match usize::from(u16_at(record, 2)) {
            0 => 0,
            count => 12 + 4 * (count - 1),
        };
        let inode = Inode {
            at,
            layout: format >> 1,
            kind: mode & 0o170_000,
            size: u64_at(record, 8),
            union: u32_at(record, 16),
            number: u32_at(record, 20),
            links: u32_at(record, 44),
            body: at + 64 + attributes,
        };
        assert!(u32_at(record, 40) < 1_000_000_000, "nanoseconds");
        self.check_attributes(&self.bytes[at + 64..inode.body], inode.kind);
        inode
    }

    fn check_attributes(&self, area: &[u8], kind: u16) {
        let mut rest = area.get(12..).unwrap_or_default();
        let mut seen = BTreeSet::new();
        while !rest.is_empty() {
            let (name_length, index) = (usize::from(rest[0]), rest[1]);
            let value_length = usize::from(u16_at(rest, 2));
            let name = &rest[4..4 + name_length];
            let value = &rest[4 + name_length..4 + name_length + value_length];
            assert!(matches!(index, 1 | 2 | 3 | 4 | 6), "the prefix of an attribute");
            assert!(seen.insert((index, name.to_vec())), "an attribute twice");
            if matches!(index, 1 | 4) && name.starts_with(b"overlay.") {
                // Only whiteouts speak to overlayfs.
                assert_eq!((index, name, value), (4, &b"overlay.opaque"[..], &b"y"[..]));
                assert_eq!(kind, 0o040_000, "an opaque file");
            }
            rest = &rest[(4 + name_length + value_length).next_multiple_of(4)..];
        }
    }

    /// All data of a file or link is inside the image, and none of it is metadata of others.
    fn check_data(&self, inode: &Inode) {
        match inode.kind {
            0o100_000 if inode.layout == 4 => self.check_chunks(inode),
            0o100_000 => drop(self.data(inode)),
            0o120_000 => {
                let target = self.data(inode);
                assert!((1..=4095).contains(&target.len()) && !target.contains(&0), "a link's target");
            }
            0o020_000 | 0o060_000 | 0o010_000 => assert_eq!(inode.size, 0),
            other => panic!("a file of type {other:o}"),
        }
    }

    fn check_chunks(&self, inode: &Inode) {
        let bits = inode.union & 0x1f;
        let chunk = (BLOCK as u64) << bits;
        let blocks = self.bytes.len() as u64 / BLOCK as u64;
        for index in 0..inode.size.div_ceil(chunk) {
            let block = u32_at(self.bytes, inode.body + 4 * usize::try_from(index).expect("a small number"));
            if block == HOLE {
                continue;
            }
            let length = (inode.size - index * chunk).min(chunk);
            let end = u64::from(block) + length.div_ceil(BLOCK as u64);
            assert!(block > 0 && end <= blocks, "a chunk outside the image");
            assert!(end * BLOCK as u64 <= self.metadata as u64, "a chunk in the metadata");
        }
    }

    /// What a flat inode holds.
    fn data(&self, inode: &Inode) -> Vec<u8> {
        let size = usize::try_from(inode.size).expect("it fits into the image");
        let tail = if inode.layout == 2 { size % BLOCK } else { 0 };
        let whole = size - tail;
        assert!(matches!(inode.layout, 0 | 2), "layout {}", inode.layout);
        let mut data = Vec::new();
        if whole > 0 {
            let start = inode.union as usize * BLOCK;
            assert!(start > 0 && start + whole.next_multiple_of(BLOCK) <= self.bytes.len());
            data.extend(&self.bytes[start..start + whole]);
        }
        if tail > 0 {
            let end = inode.body + tail;
            assert_eq!(inode.at / BLOCK, (end - 1) / BLOCK, "a tail in another block than its inode");
            data.extend(&self.bytes[inode.body..end]);
        }
        data
    }

    fn directory(&self, inode: &Inode) -> Entries {
        let data = self.data(inode);
        let mut entries = Entries::new();
        for block in data.chunks(BLOCK) {
            let count = usize::from(u16_at(block, 8)) / 12;
            assert!(count > 0, "a directory block without entries");
            for index in 0..count {
                let record = &block[12 * index..];
                let start = usize::from(u16_at(record, 8));
                let end = if index + 1 < count { usize::from(u16_at(record, 20)) } else { block.len() };
                let name = block[start..end].split(|byte| *byte == 0).next().unwrap_or_default();
                assert!((1..=255).contains(&name.len()) && !name.contains(&b'/'), "a name");
                assert!(index + 1 == count || name.len() == end - start, "a NUL in a name");
                if let Some((before, ..)) = entries.last() {
                    assert!(before[..] < *name, "names out of order");
                }
                entries.push((name.to_vec(), u64_at(record, 0), record[10]));
            }
        }
        entries
    }
}

/// `EROFS_FT_*` of a mode's type bits.
fn type_of(kind: u16) -> u16 {
    match kind {
        0o100_000 => 1,
        0o040_000 => 2,
        0o020_000 => 3,
        0o060_000 => 4,
        0o010_000 => 5,
        0o120_000 => 7,
        other => panic!("no type {other:o}"),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// CRC-32C, seeded with all ones and not inverted at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)))
    })
}
