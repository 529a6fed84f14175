//! The EROFS on-disk format, and writing it.
//!
//! ```text
//! block 0      zeros, superblock at 1024 (written last)
//! block 1..    file data, as the stream brings it, each file from a block's start
//! metadata     inodes, each with its attributes and its small file, link target,
//!              directory tail or chunk map behind it
//! then         whole directory blocks
//! ```
//!
//! An inode's number is its distance from the start of the metadata in units of 32 bytes.
//! The root comes first, since the superblock has 16 bits for it; then the children of
//! each directory stand together, directories in breadth-first order.

pub(crate) mod data;
pub(crate) mod directory;
pub(crate) mod format;
pub(crate) mod metadata;
pub(crate) mod sink;
