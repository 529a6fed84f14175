//! Inodes and directories: placed first, then written in one pass.

use std::collections::VecDeque;

use crate::Options;
use crate::error::Error;
use crate::image::directory::{self, Listing};
use crate::image::format::{
    BLOCK_BYTES, DataLayout, FileType, INODE_BYTES, InodeRecord, SLOT_BYTES, Superblock,
};
use crate::image::sink::{Sink, block_number};
use crate::tree::{Directory, Inode, InodeId, Kind, Tree};
use crate::xattr;

pub(crate) struct Written {
    pub(crate) inodes: u64,
    pub(crate) image_bytes: u64,
}

/// Writes everything behind the file data, and the superblock last.
pub(crate) fn write(tree: &Tree, mut sink: Sink<'_>, options: &Options) -> Result<Written, Error> {
    sink.align()?;
    let base = sink.position();
    let plan = Plan::make(tree);
    // Checked before anything is written, and before any number is cut to 32 bits.
    let total_blocks = base / BLOCK_BYTES + plan.inode_blocks() + plan.extra_blocks;
    let blocks = block_number(total_blocks)?;
    let writer = Writer { tree, first_extra_block: base / BLOCK_BYTES + plan.inode_blocks(), plan: &plan };
    for (number, placed) in plan.order.iter().enumerate() {
        sink.skip(base + placed.offset - sink.position())?;
        writer.inode(&mut sink, number, placed)?;
    }
    sink.skip((base + plan.inode_blocks() * BLOCK_BYTES) - sink.position())?;
    for placed in plan.order.iter().filter(|placed| placed.extra_blocks > 0) {
        writer.extra(&mut sink, placed)?;
    }
    let inodes = plan.order.len() as u64;
    let superblock = Superblock {
        root_nid: u16::try_from(FIRST_OFFSET / SLOT_BYTES).unwrap_or(u16::MAX),
        inodes,
        build_time: options.build_time,
        blocks,
        metadata_block: block_number(base / BLOCK_BYTES)?,
        uuid: options.uuid,
        has_chunked_files: plan.has_chunked_files,
    };
    let image_bytes = sink.finish(&superblock.encode())?;
    Ok(Written { inodes, image_bytes })
}

/// The root's place; not at the very start, so that no inode has the number 0, which some
/// programs take for "none".
const FIRST_OFFSET: u64 = SLOT_BYTES;

/// `fsck.erofs` 1.5 reads an attribute header behind every inode, also where there is none,
/// and must not meet the end of the image there.
const ROOM_BEHIND_LAST_INODE: u64 = 12;

/// Where everything goes.
struct Plan {
    order: Vec<Placed>,
    /// Each inode's offset from the start of the metadata; 0 for those not in the image.
    offsets: Vec<u64>,
    /// Bytes of inodes with what stands behind them.
    end: u64,
    extra_blocks: u64,
    has_chunked_files: bool,
}

/// One inode's place.
struct Placed {
    id: InodeId,
    offset: u64,
    layout: DataLayout,
    size: u64,
    subdirectories: u32,
    /// Whole blocks behind all inodes, and the number of the first, counted from there.
    extra_blocks: u64,
    first_extra: u64,
}

impl Plan {
    fn make(tree: &Tree) -> Self {
        let mut plan = Self {
            order: Vec::new(),
            offsets: vec![0; tree.inodes.len()],
            end: FIRST_OFFSET,
            extra_blocks: 0,
            has_chunked_files: false,
        };
        plan.place(tree, InodeId::ROOT);
        let mut directories = VecDeque::from([InodeId::ROOT]);
        while let Some(id) = directories.pop_front() {
            let Kind::Directory(directory) = &tree.inode(id).kind else {
                continue;
            };
            for &child in directory.children.values() {
                if plan.offsets[child.index()] != 0 {
                    continue; // another name of a file that has its place
                }
                plan.place(tree, child);
                if matches!(tree.inode(child).kind, Kind::Directory(_)) {
                    directories.push_back(child);
                }
            }
        }
        plan
    }

    fn inode_blocks(&self) -> u64 {
        (self.end + ROOM_BEHIND_LAST_INODE).div_ceil(BLOCK_BYTES)
    }

    fn place(&mut self, tree: &Tree, id: InodeId) {
        let inode = tree.inode(id);
        let head = INODE_BYTES + xattr_body(tree, inode).len() as u64;
        let mut subdirectories = 0;
        // Whole blocks, and bytes that may stand behind the inode.
        let (whole, tail) = match &inode.kind {
            Kind::Directory(directory) => {
                let is_directory = |id: &&InodeId| matches!(tree.inode(**id).kind, Kind::Directory(_));
                let count = directory.children.values().filter(is_directory).count();
                subdirectories = u32::try_from(count).unwrap_or(u32::MAX);
                listing(directory, id).size()
            }
            Kind::Inline(data) | Kind::Symlink(data) => (0, data.len() as u64),
            Kind::Blocks { .. }
            | Kind::Chunked(_)
            | Kind::Character(_)
            | Kind::Block(_)
            | Kind::Fifo
            | Kind::Whiteout => (0, 0),
        };
        let mut layout = DataLayout::FlatPlain;
        let mut extra_blocks = whole;
        let mut slot = head;
        if tail > 0 {
            // The kernel wants inode, attributes and tail in one block.
            if head + tail <= BLOCK_BYTES {
                layout = DataLayout::FlatInline;
                slot += tail;
            } else {
                extra_blocks += 1;
            }
        }
        let size = match &inode.kind {
            Kind::Blocks { size, .. } => *size,
            Kind::Chunked(chunked) => {
                layout = DataLayout::ChunkBased;
                self.has_chunked_files = true;
                slot += 4 * chunked.blocks.len() as u64;
                chunked.size
            }
            _ => whole * BLOCK_BYTES + tail,
        };
        let mut offset = self.end.next_multiple_of(SLOT_BYTES);
        let room = BLOCK_BYTES - offset % BLOCK_BYTES;
        if slot > room {
            offset += room;
        }
        self.end = offset + slot;
        self.offsets[id.index()] = offset;
        self.order.push(Placed {
            id,
            offset,
            layout,
            size,
            subdirectories,
            extra_blocks,
            first_extra: self.extra_blocks,
        });
        self.extra_blocks += extra_blocks;
    }
}

struct Writer<'a> {
    tree: &'a Tree,
    plan: &'a Plan,
    first_extra_block: u64,
}

impl Writer<'_> {
    /// The inode and what stands behind it.
    fn inode(&self, sink: &mut Sink<'_>, number: usize, placed: &Placed) -> Result<(), Error> {
        let inode = self.tree.inode(placed.id);
        let attributes = &inode.attributes;
        let body = xattr_body(self.tree, inode);
        let first_extra = if placed.extra_blocks > 0 {
            block_number(self.first_extra_block + placed.first_extra)?
        } else {
            0
        };
        let union = match &inode.kind {
            Kind::Blocks { block, .. } => *block,
            Kind::Chunked(chunked) => u32::from(chunked.bits),
            Kind::Character(device) | Kind::Block(device) => *device,
            Kind::Directory(_) | Kind::Inline(_) | Kind::Symlink(_) => first_extra,
            Kind::Fifo | Kind::Whiteout => 0,
        };
        let links = match &inode.kind {
            Kind::Directory(_) => placed.subdirectories.saturating_add(2),
            _ => inode.links,
        };
        let record = InodeRecord {
            layout: placed.layout,
            xattr_icount: xattr::icount(&body),
            file_type: file_type(&inode.kind),
            permissions: attributes.mode,
            size: placed.size,
            union,
            number: u32::try_from(number + 1).unwrap_or(u32::MAX),
            uid: attributes.uid,
            gid: attributes.gid,
            seconds: attributes.mtime.seconds,
            nanoseconds: attributes.mtime.nanoseconds,
            links,
        };
        sink.write(&record.encode())?;
        sink.write(&body)?;
        match (&inode.kind, placed.layout) {
            (Kind::Chunked(chunked), _) => {
                for block in &chunked.blocks {
                    sink.write(&block.to_le_bytes())?;
                }
            }
            (Kind::Inline(data) | Kind::Symlink(data), DataLayout::FlatInline) => {
                sink.write(data)?;
            }
            (Kind::Directory(directory), DataLayout::FlatInline) => {
                let listing = listing(directory, placed.id);
                if let Some((entries, bytes)) = listing.blocks().last() {
                    sink.write(&self.directory_block(entries, bytes))?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The whole blocks of one inode.
    fn extra(&self, sink: &mut Sink<'_>, placed: &Placed) -> Result<(), Error> {
        match &self.tree.inode(placed.id).kind {
            Kind::Directory(directory) => {
                let listing = listing(directory, placed.id);
                let count = usize::try_from(placed.extra_blocks).unwrap_or(usize::MAX);
                for (entries, bytes) in listing.blocks().take(count) {
                    sink.write(&self.directory_block(entries, bytes))?;
                    sink.align()?;
                }
            }
            Kind::Inline(data) | Kind::Symlink(data) => {
                sink.write(data)?;
                sink.align()?;
            }
            _ => {}
        }
        Ok(())
    }

    fn directory_block(&self, entries: &[(&[u8], InodeId)], bytes: usize) -> Vec<u8> {
        directory::encode(entries, bytes, |id| {
            let nid = self.plan.offsets[id.index()] / SLOT_BYTES;
            (nid, file_type(&self.tree.inode(*id).kind))
        })
    }
}

fn listing(directory: &Directory, this: InodeId) -> Listing<'_, InodeId> {
    let children = directory.children.iter();
    let children = children.map(|(name, child)| (name.as_ref(), *child));
    Listing::new(this, directory.parent, children)
}

/// An inode's attributes as stored, the opaque mark with them.
fn xattr_body<'a>(tree: &'a Tree, inode: &Inode) -> std::borrow::Cow<'a, [u8]> {
    let body = tree.xattrs.body(inode.attributes.xattrs);
    match &inode.kind {
        Kind::Directory(directory) if directory.opaque => xattr::with_opaque(body).into(),
        _ => body.into(),
    }
}

fn file_type(kind: &Kind) -> FileType {
    match kind {
        Kind::Directory(_) => FileType::Directory,
        Kind::Blocks { .. } | Kind::Inline(_) | Kind::Chunked(_) => FileType::Regular,
        Kind::Symlink(_) => FileType::Symlink,
        Kind::Character(_) | Kind::Whiteout => FileType::Character,
        Kind::Block(_) => FileType::Block,
        Kind::Fifo => FileType::Fifo,
    }
}
