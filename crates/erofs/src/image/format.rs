//! The numbers and records of the EROFS on-disk format
//! (Linux, `fs/erofs/erofs_fs.h`; numbers are little-endian).

pub(crate) const BLOCK_BITS: u8 = 12;
pub(crate) const BLOCK_BYTES: u64 = 1 << BLOCK_BITS;
pub(crate) const NULL_BLOCK: u32 = u32::MAX;
/// Inode numbers count units of this size.
pub(crate) const SLOT_BYTES: u64 = 32;
/// The extended form, the only one written here: the compact one has no time of its own.
pub(crate) const INODE_BYTES: u64 = 64;
pub(crate) const DIRENT_BYTES: usize = 12;

const MAGIC: u32 = 0xe0f5_e1e2;
const SUPERBLOCK_OFFSET: usize = 1024;
const COMPAT_CHECKSUM: u32 = 0x1;
/// The inode's time is the modification (not the change) time.
const COMPAT_MTIME: u32 = 0x2;
const INCOMPAT_CHUNKED_FILE: u32 = 0x4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DataLayout {
    FlatPlain,
    FlatInline,
    ChunkBased,
}

impl DataLayout {
    fn code(self) -> u16 {
        match self {
            Self::FlatPlain => 0,
            Self::FlatInline => 2,
            Self::ChunkBased => 4,
        }
    }
}

/// `EROFS_FT_*`, which are also the kernel's `FT_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileType {
    Regular = 1,
    Directory = 2,
    Character = 3,
    Block = 4,
    Fifo = 5,
    Symlink = 7,
}

impl FileType {
    /// The type bits of `st_mode`.
    pub(crate) fn mode(self) -> u16 {
        match self {
            Self::Regular => 0o100_000,
            Self::Directory => 0o040_000,
            Self::Character => 0o020_000,
            Self::Block => 0o060_000,
            Self::Fifo => 0o010_000,
            Self::Symlink => 0o120_000,
        }
    }
}

pub(crate) struct Superblock {
    pub(crate) root_nid: u16,
    pub(crate) inodes: u64,
    pub(crate) build_time: u64,
    pub(crate) blocks: u32,
    pub(crate) metadata_block: u32,
    pub(crate) uuid: [u8; 16],
    pub(crate) has_chunked_files: bool,
}

impl Superblock {
    /// The image's first block.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; 1 << BLOCK_BITS];
        let fields = &mut block[SUPERBLOCK_OFFSET..];
        let mut set = |offset: usize, bytes: &[u8]| {
            fields[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        set(0, &MAGIC.to_le_bytes());
        set(8, &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        set(12, &[BLOCK_BITS]);
        set(14, &self.root_nid.to_le_bytes());
        set(16, &self.inodes.to_le_bytes());
        set(24, &self.build_time.to_le_bytes());
        set(36, &self.blocks.to_le_bytes());
        set(40, &self.metadata_block.to_le_bytes());
        set(48, &self.uuid);
        let incompat = if self.has_chunked_files { INCOMPAT_CHUNKED_FILE } else { 0 };
        set(80, &incompat.to_le_bytes());
        // The checksum covers the rest of the block, with itself as zero.
        let checksum = crc32c(&block[SUPERBLOCK_OFFSET..]);
        let at = SUPERBLOCK_OFFSET + 4;
        block[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
        block
    }
}

/// `struct erofs_inode_extended`
pub(crate) struct InodeRecord {
    pub(crate) layout: DataLayout,
    pub(crate) xattr_icount: u16,
    pub(crate) file_type: FileType,
    pub(crate) permissions: u16,
    pub(crate) size: u64,
    /// First block, device number or chunk format, by kind.
    pub(crate) union: u32,
    pub(crate) number: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
    pub(crate) links: u32,
}

impl InodeRecord {
    pub(crate) fn encode(&self) -> [u8; INODE_BYTES as usize] {
        let mut record = [0; INODE_BYTES as usize];
        let mut set = |offset: usize, bytes: &[u8]| {
            record[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        let extended = 1;
        set(0, &(extended | self.layout.code() << 1).to_le_bytes());
        set(2, &self.xattr_icount.to_le_bytes());
        set(4, &(self.file_type.mode() | self.permissions).to_le_bytes());
        set(8, &self.size.to_le_bytes());
        set(16, &self.union.to_le_bytes());
        set(20, &self.number.to_le_bytes());
        set(24, &self.uid.to_le_bytes());
        set(28, &self.gid.to_le_bytes());
        set(32, &self.seconds.to_le_bytes());
        set(40, &self.nanoseconds.to_le_bytes());
        set(44, &self.links.to_le_bytes());
        record
    }
}

/// CRC-32C as EROFS uses it: seeded with all ones, not inverted at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 0 { 0 } else { 0x82f6_3b78 };
        }
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_feature_needs_more_than_the_oldest_kernel_and_the_barest_configuration() {
        // Debian 12 has Linux 6.1. Apple's default kernel has EROFS_FS with XATTR and
        // SECURITY, which whiteouts' opaque marks and file capabilities need; what
        // EROFS_FS_POSIX_ACL, ZIP and later options bring is used nowhere.
        let block = Superblock {
            root_nid: 1,
            inodes: 1,
            build_time: 0,
            blocks: 2,
            metadata_block: 1,
            uuid: [0; 16],
            has_chunked_files: true,
        }
        .encode();
        let number = |at: usize| u32::from_le_bytes(block[1024 + at..][..4].try_into().unwrap());
        // SB_CHKSUM and MTIME; kernels ignore compatible features that they do not know.
        assert_eq!(number(8), 0x3);
        // CHUNKED_FILE, since 5.15. Any other bit would be refused at the mount.
        assert_eq!(number(80), 0x4);
        // No extended slots, shared attributes, compression, devices or directory blocks of
        // another size.
        assert!(block[1024 + 13..1024 + 14] == [0] && block[1024 + 44..1024 + 48] == [0; 4]);
        assert!(block[1024 + 84..1024 + 128].iter().all(|&byte| byte == 0));
        for layout in [DataLayout::FlatPlain, DataLayout::FlatInline, DataLayout::ChunkBased] {
            // 1 and 3 are the compressed ones.
            assert!(matches!(layout.code(), 0 | 2 | 4));
        }
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        // The check value of CRC-32/ISCSI, before its final inversion.
        assert_eq!(crc32c(b"123456789"), !0xe306_9283);
    }
}
