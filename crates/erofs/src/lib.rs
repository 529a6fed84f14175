//! Writes container layers as EROFS images, straight from their tar streams.
//!
//! [`write_layer`] reads one uncompressed OCI (or Docker) layer and writes one
//! plain, read-only EROFS image that Linux 5.15 and later mounts. Nothing is unpacked
//! on the way: no root, no Linux and no file system that knows owners, devices or
//! extended attributes is needed, so a layer can be made on any host.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let mut layer = tar::Builder::new(Vec::new());
//! # let mut header = tar::Header::new_gnu();
//! # header.set_size(5);
//! # header.set_mode(0o644);
//! # layer.append_data(&mut header, "etc/motd", &b"hello"[..])?;
//! # let layer = layer.into_inner()?;
//! let mut image = std::fs::File::create(directory.path().join("layer.erofs"))?;
//! let summary = kina_erofs::write_layer(layer.as_slice(), &mut image, &kina_erofs::Options::default())?;
//! assert_eq!(summary.entries, 1);
//! assert_eq!(summary.inodes, 3); // the root, etc, etc/motd
//! # Ok(())
//! # }
//! ```
//!
//! # What is kept
//!
//! Owners (32 bits), modes with set-id and sticky bits, modification times (nanoseconds
//! where PAX gives them), extended attributes (`SCHILY.xattr.*`, and libarchive's form
//! where that is missing), hard links, symbolic
//! links, devices, fifos, holes of sparse files. The formats read are v7, ustar, PAX and
//! GNU, with all four sparse layouts (old GNU, PAX 0.0, 0.1 and 1.0). Global PAX headers
//! are ignored, as containerd does. Entries whose mode says "socket" are skipped, and so
//! are extended attributes that EROFS cannot name
//! ([`Summary::skipped_xattrs`] counts them).
//!
//! # Whiteouts
//!
//! OCI whiteouts become what overlayfs understands: `.wh.NAME` a character device 0/0
//! called NAME, `.wh..wh..opq` the extended attribute `trusted.overlay.opaque=y` on its
//! directory. A whiteout hides only what *lower* layers hold, wherever it stands in the
//! stream (OCI image-spec, `layer.md`): next to an entry of the same name the entry
//! stays, and if it is a directory it is made opaque. Entries in the top directory whose
//! name begins with `.wh..wh.` are AUFS bookkeeping: hard links may point at them, and
//! they are left out of the image. `*.overlay.*` attributes in the stream are dropped:
//! only whiteouts may speak to overlayfs.
//!
//! An overlay mounted with `userxattr` reads `user.overlay.opaque` instead and would not
//! see the mark; none is needed, since only root can mount EROFS at all.
//!
//! # What the kernel must have
//!
//! Linux 5.15 or later with `EROFS_FS`; `EROFS_FS_XATTR` for opaque directories and
//! attributes, `EROFS_FS_SECURITY` for file capabilities. Apple's default kernel and Debian's
//! have them. POSIX ACLs are stored, and shown where `EROFS_FS_POSIX_ACL` is on. Compression,
//! shared attributes, and all other optional features are used nowhere.
//!
//! # Which entry wins
//!
//! The last entry of a path wins; a directory entry over a directory replaces its
//! metadata and keeps its children. Missing parents are made (0755, root, time 0).
//! Leading `/` and `.` components are dropped; `..` is refused, in names and in hard link
//! targets. A symbolic link of the same layer on the way to an entry is followed inside
//! the layer, as containerd does when it unpacks: absolute targets start at the
//! layer's root, `..` stops there, and what is missing is made as directories. The
//! last component is never followed. Nothing in this can name anything outside the tree,
//! which exists only in memory.
//!
//! # Cost
//!
//! File data goes to the image as it comes; memory holds the tree only and is bounded
//! by [`Limits::max_memory_bytes`] and [`Limits::max_entries`]. The same stream and
//! options give the same image, byte for byte.

mod error;
mod image;
mod layer;
mod packed;
mod tar;
mod tree;
mod xattr;

use std::fs::File;
use std::io::BufRead;

pub use crate::error::{Error, Exceeded, Place};
pub use crate::packed::{Compression, Decoder, Packed, write_packed_layer};

/// How to write an image.
#[derive(Clone, Debug)]
pub struct Options {
    /// What a layer may ask for.
    pub limits: Limits,
    /// The file system's UUID; all zeros mean none.
    pub uuid: [u8; 16],
    /// The file system's build time, in seconds since 1970.
    pub build_time: u64,
    /// The modification time of directories that no entry describes, in seconds since 1970.
    pub implied_directory_time: i64,
    /// Files up to this size (capped at 3072 bytes) are stored beside their inode instead
    /// of in a block of their own; 0 stores none so.
    pub inline_file_bytes: usize,
    /// How much of such files is held in memory until the end; later ones get blocks.
    pub inline_total_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            uuid: [0; 16],
            build_time: 0,
            implied_directory_time: 0,
            inline_file_bytes: 2048,
            inline_total_bytes: 64 << 20,
        }
    }
}

/// What a layer may ask for; above it, [`write_layer`] refuses.
///
/// The defaults hold every sane image: 2 Mi entries, 64 GiB of data.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Entries in the stream, and inodes in the image (parents that are made count).
    pub max_entries: u64,
    /// Bytes of file data in the stream, in all; and as much again for what sparse files
    /// take in the image (holes do not count, but data is rounded up to chunks).
    pub max_unpacked_bytes: u64,
    /// Bytes of the whole archive, headers and trailing bytes included. Only
    /// [`write_packed_layer`] asks.
    pub max_archive_bytes: u64,
    /// The size of one file, holes included. Capped at 8 TiB.
    pub max_file_bytes: u64,
    /// Bytes of one entry's path.
    pub max_path_len: usize,
    /// Levels of directories.
    pub max_depth: usize,
    /// Bytes of names and values of one entry's extended attributes. Capped at 256 KiB,
    /// about what one EROFS inode can have.
    pub max_xattr_bytes: usize,
    /// Bytes of a symbolic link's target. Capped at 4095, Linux's own limit.
    pub max_link_target: usize,
    /// Bytes of PAX or GNU extension headers before one entry.
    pub max_extension_bytes: usize,
    /// Pieces of data in one sparse file.
    pub max_sparse_segments: usize,
    /// Bytes of names, link targets, attributes, small files and block maps held in
    /// memory. (Each entry costs about another 150 bytes.)
    pub max_memory_bytes: u64,
    /// Bytes read and ignored after the archive's end marker.
    pub max_trailing_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_entries: 2 << 20,
            max_unpacked_bytes: 64 << 30,
            max_archive_bytes: 128 << 30,
            max_file_bytes: 8 << 40,
            max_path_len: 4096,
            max_depth: 256,
            max_xattr_bytes: 128 << 10,
            max_link_target: 4095,
            max_extension_bytes: 1 << 20,
            max_sparse_segments: 1 << 18,
            max_memory_bytes: 512 << 20,
            max_trailing_bytes: 64 << 20,
        }
    }
}

/// What [`write_layer`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Entries read from the stream, whiteouts and skipped ones included, extension
    /// headers not.
    pub entries: u64,
    /// Inodes in the image, made parents and the root included.
    pub inodes: u64,
    /// The image's size in bytes, a multiple of 4096.
    pub image_bytes: u64,
    /// Bytes of file data read from the stream, data of later replaced files included.
    pub unpacked_bytes: u64,
    /// Whiteouts and opaque markers read.
    pub whiteouts: u64,
    /// Entries left out: sockets and AUFS bookkeeping.
    pub skipped_entries: u64,
    /// Extended attributes left out: names that EROFS cannot hold, and overlayfs' own.
    pub skipped_xattrs: u64,
}

/// Reads one uncompressed layer from `reader` to its end and writes its image to `out`.
///
/// `out` is emptied first and written from its start; it must be a regular file, and is
/// not synced. On an error its content is undefined (and no valid image: the superblock
/// is written last). The reader is read to its end, beyond the archive's end marker too,
/// so a digest computed over it covers the whole stream. The reader's own buffer is the only
/// one: let it hold some hundred KiB.
///
/// # Errors
///
/// Whatever [`Error`] lists; the first problem stops the work.
pub fn write_layer<R: BufRead>(reader: R, out: &mut File, options: &Options) -> Result<Summary, Error> {
    layer::write(reader, out, options)
}
