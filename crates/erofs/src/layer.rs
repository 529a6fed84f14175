//! From entries to the tree and the image: what OCI layers mean.

use std::fs::File;
use std::io::BufRead;

use crate::error::{Error, Exceeded, shown};
use crate::image::data;
use crate::image::metadata;
use crate::image::sink::Sink;
use crate::tar::{Archive, Entry, EntryKind};
use crate::tree::{Attributes, Inode, InodeId, Kind, Tree};
use crate::xattr;
use crate::{Options, Summary};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What AUFS keeps in the root directory.
const AUFS: &[u8] = b".wh..wh.";
/// Larger files gain nothing beside their inode.
const MAX_INLINE_BYTES: usize = 3072;
/// The hard cap on a file's size: what a chunk map of sane size can describe.
const MAX_FILE_BYTES: u64 = 8 << 40;
/// The hard cap on a link's target: the kernel's `PATH_MAX`, less its end.
const MAX_LINK_TARGET: usize = 4095;

pub(crate) fn write<R: BufRead>(reader: R, out: &mut File, options: &Options) -> Result<Summary, Error> {
    let mut layer = Layer {
        archive: Archive::new(reader, &options.limits),
        sink: Sink::new(out)?,
        tree: Tree::new(options),
        options,
        inline_bytes: 0,
        sparse_bytes: 0,
        summary: Summary::default(),
    };
    while let Some(entry) = layer.archive.next_entry()? {
        layer.summary.entries += 1;
        if layer.summary.entries > options.limits.max_entries {
            let limit = options.limits.max_entries;
            return Err(Error::limit(&entry.path, Exceeded::Entries, limit));
        }
        layer.add(entry)?;
    }
    let mut summary = layer.summary;
    summary.skipped_entries += layer.tree.drop_from_root(|name| name.starts_with(AUFS));
    let written = metadata::write(&layer.tree, layer.sink, options)?;
    summary.inodes = written.inodes;
    summary.image_bytes = written.image_bytes;
    Ok(summary)
}

struct Layer<'a, R> {
    archive: Archive<'a, R>,
    sink: Sink<'a>,
    tree: Tree,
    options: &'a Options,
    inline_bytes: u64,
    sparse_bytes: u64,
    summary: Summary,
}

impl<R: BufRead> Layer<'_, R> {
    fn add(&mut self, entry: Entry) -> Result<(), Error> {
        let path = entry.path.as_slice();
        if entry.kind == EntryKind::Socket {
            self.summary.skipped_entries += 1;
            return Ok(());
        }
        let components = split(path)?;
        let Some((&name, parents)) = components.split_last() else {
            return self.set_root(&entry);
        };
        if passes_through_whiteout(parents) {
            return Err(Error::BadWhiteout { path: shown(path) });
        }
        let is_bookkeeping = parents.is_empty() && name.starts_with(AUFS) && name != OPAQUE;
        let parent = self.tree.make_directories(path, parents)?;
        if name == OPAQUE {
            self.summary.whiteouts += 1;
            self.tree.make_opaque(parent);
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT)
            && !is_bookkeeping
        {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(Error::BadWhiteout { path: shown(path) });
            }
            self.summary.whiteouts += 1;
            return self.tree.white_out(path, parent, hidden);
        }
        if entry.kind == EntryKind::HardLink {
            return self.add_hard_link(&entry, parent, name);
        }
        let attributes = self.attributes(&entry)?;
        let kind = match entry.kind {
            EntryKind::Directory => {
                let directory = self.tree.new_directory(path, parent, attributes)?;
                return self.tree.put(path, parent, name, directory).map(|_| ());
            }
            EntryKind::Symlink => self.symlink(&entry)?,
            EntryKind::Character => Kind::Character(device_number(&entry)?),
            EntryKind::Block => Kind::Block(device_number(&entry)?),
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::Regular | EntryKind::HardLink | EntryKind::Socket => self.file(&entry)?,
        };
        let inode = Inode { kind, links: 1, attributes };
        self.tree.put(path, parent, name, inode).map(|_| ())
    }

    fn set_root(&mut self, entry: &Entry) -> Result<(), Error> {
        if entry.kind != EntryKind::Directory {
            return Err(Error::RootNotDirectory);
        }
        let attributes = self.attributes(entry)?;
        self.tree.inodes[InodeId::ROOT.index()].attributes = attributes;
        Ok(())
    }

    fn add_hard_link(&mut self, entry: &Entry, parent: InodeId, name: &[u8]) -> Result<(), Error> {
        let path = entry.path.as_slice();
        let components = split(&entry.link)?;
        let target = self.tree.find(path, &components)?;
        let target = target
            .ok_or_else(|| Error::LinkTargetMissing { path: shown(path), target: shown(&entry.link) })?;
        if matches!(self.tree.inode(target).kind, Kind::Directory(_)) {
            return Err(Error::LinkToDirectory { path: shown(path), target: shown(&entry.link) });
        }
        self.tree.link(path, parent, name, target)
    }

    fn symlink(&mut self, entry: &Entry) -> Result<Kind, Error> {
        let limit = self.options.limits.max_link_target.min(MAX_LINK_TARGET);
        if entry.link.len() > limit {
            return Err(Error::limit(&entry.path, Exceeded::LinkTarget, limit as u64));
        }
        if entry.link.is_empty() {
            return Err(Error::BadPath {
                path: shown(&entry.path),
                problem: "is a symbolic link to nothing",
            });
        }
        self.tree.hold(entry.link.len(), &entry.path)?;
        Ok(Kind::Symlink(entry.link.as_slice().into()))
    }

    fn file(&mut self, entry: &Entry) -> Result<Kind, Error> {
        let path = entry.path.as_slice();
        let size = entry.sparse.as_ref().map_or(entry.stored_size, |map| map.real_size);
        let limit = self.options.limits.max_file_bytes.min(MAX_FILE_BYTES);
        if size > limit {
            return Err(Error::limit(path, Exceeded::FileBytes, limit));
        }
        self.summary.unpacked_bytes += entry.stored_size;
        if let Some(map) = &entry.sparse {
            let geometry = data::ChunkGeometry::of(map.real_size);
            // Few bytes far apart cost a chunk each.
            self.sparse_bytes = self.sparse_bytes.saturating_add(geometry.allocated_bytes(map));
            let limit = self.options.limits.max_unpacked_bytes;
            if self.sparse_bytes > limit {
                return Err(Error::limit(path, Exceeded::UnpackedBytes, limit));
            }
            self.tree.hold(4 * geometry.chunks(), path)?;
            let chunked = data::write_sparse(&mut self.archive, &mut self.sink, map, geometry)?;
            return Ok(Kind::Chunked(Box::new(chunked)));
        }
        let largest = self.options.inline_file_bytes.min(MAX_INLINE_BYTES) as u64;
        if size == 0 || (size <= largest && self.inline_bytes + size <= self.options.inline_total_bytes) {
            let data = self.archive.take_data()?;
            self.inline_bytes += size;
            self.tree.hold(data.len(), path)?;
            return Ok(Kind::Inline(data.into()));
        }
        let block = data::write_plain(&mut self.archive, &mut self.sink)?;
        Ok(Kind::Blocks { block, size })
    }

    fn attributes(&mut self, entry: &Entry) -> Result<Attributes, Error> {
        let limit = self.options.limits.max_xattr_bytes;
        let bytes: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        let encoded = xattr::encode(&entry.xattrs);
        if bytes > limit || encoded.too_large {
            return Err(Error::limit(&entry.path, Exceeded::XattrBytes, limit as u64));
        }
        self.summary.skipped_xattrs += encoded.skipped;
        let (xattrs, held) = self.tree.xattrs.intern(encoded.body);
        self.tree.hold(held, &entry.path)?;
        Ok(Attributes { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime, xattrs })
    }
}

/// The names in a path, as tar reads it: without empty ones and `.`.
fn split(path: &[u8]) -> Result<Vec<&[u8]>, Error> {
    let bad = |problem| Error::BadPath { path: shown(path), problem };
    if path.is_empty() {
        return Err(Error::BadPath { path: "\"\"".to_owned(), problem: "is empty" });
    }
    if path.contains(&0) {
        return Err(bad("has a NUL byte in it"));
    }
    let names: Vec<_> =
        path.split(|&byte| byte == b'/').filter(|name| !matches!(*name, b"" | b".")).collect();
    if names.contains(&&b".."[..]) {
        return Err(bad("has a `..` in it"));
    }
    Ok(names)
}

/// Whether a directory on the way is named as a whiteout is; AUFS' own may be.
fn passes_through_whiteout(parents: &[&[u8]]) -> bool {
    let is_bookkeeping = parents.first().is_some_and(|name| name.starts_with(AUFS));
    let rest = if is_bookkeeping { &parents[1..] } else { parents };
    rest.iter().any(|name| name.starts_with(WHITEOUT))
}

/// Linux' 32-bit form: 12 bits of major, 20 of minor.
fn device_number(entry: &Entry) -> Result<u32, Error> {
    let (major, minor) = entry.device;
    if major >= 1 << 12 || minor >= 1 << 20 {
        return Err(Error::BadPath {
            path: shown(&entry.path),
            problem: "is a device whose number Linux cannot hold",
        });
    }
    Ok((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_split_as_tar_does() {
        assert_eq!(split(b"/a//./b/").unwrap(), [b"a", b"b"]);
        assert!(split(b"./").unwrap().is_empty());
        assert_eq!(split(b"..a/b..").unwrap(), [&b"..a"[..], b"b.."]);
        for path in [&b"../a"[..], b"a/../b", b"a/..", b"", b"a\0b"] {
            assert!(split(path).is_err(), "{}", path.escape_ascii());
        }
    }
}
