//! The layer's tree in memory, and how entries change it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::Options;
use crate::error::{Error, Exceeded, shown};
use crate::tar::Timestamp;
use crate::xattr::{XattrSet, XattrTable};

/// Linux's own limit on symbolic links in one path.
const MAX_SYMLINK_HOPS: usize = 40;
/// `EROFS_NAME_LEN`
const MAX_NAME_BYTES: usize = 255;

/// An index into [`Tree::inodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InodeId(u32);

impl InodeId {
    pub(crate) const ROOT: Self = Self(0);

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug)]
pub(crate) struct Inode {
    pub(crate) kind: Kind,
    /// Names in the tree; of directories this is not kept.
    pub(crate) links: u32,
    pub(crate) attributes: Attributes,
}

/// What an entry says of an inode, whatever its kind.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Attributes {
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    pub(crate) xattrs: XattrSet,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Directory(Box<Directory>),
    /// A file whose data is in the image, from this block on.
    Blocks {
        block: u32,
        size: u64,
    },
    /// A small (or empty) file.
    Inline(Box<[u8]>),
    Chunked(Box<Chunked>),
    Symlink(Box<[u8]>),
    Character(u32),
    Block(u32),
    Fifo,
    /// Made by `.wh.NAME`.
    Whiteout,
}

#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) parent: InodeId,
    pub(crate) depth: u32,
    pub(crate) opaque: bool,
    /// In EROFS' order, which is that of the bytes.
    pub(crate) children: BTreeMap<Box<[u8]>, InodeId>,
}

/// A sparse file: chunks of equal size, each with its first block or none.
#[derive(Debug)]
pub(crate) struct Chunked {
    pub(crate) size: u64,
    /// The chunk size as a power of two, in blocks.
    pub(crate) bits: u8,
    pub(crate) blocks: Vec<u32>,
}

pub(crate) struct Tree {
    pub(crate) inodes: Vec<Inode>,
    pub(crate) xattrs: XattrTable,
    implied_time: i64,
    max_inodes: u64,
    max_depth: usize,
    memory_bytes: u64,
    max_memory_bytes: u64,
}

impl Tree {
    pub(crate) fn new(options: &Options) -> Self {
        let mut tree = Self {
            inodes: Vec::new(),
            xattrs: XattrTable::default(),
            implied_time: options.implied_directory_time,
            max_inodes: options.limits.max_entries.min(u64::from(u32::MAX) / 2),
            max_depth: options.limits.max_depth,
            memory_bytes: 0,
            max_memory_bytes: options.limits.max_memory_bytes,
        };
        let root = tree.implied_directory(InodeId::ROOT, 0);
        tree.inodes.push(root);
        tree
    }

    pub(crate) fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.index()]
    }

    /// Counts bytes that will be held until the end.
    pub(crate) fn hold(&mut self, bytes: usize, path: &[u8]) -> Result<(), Error> {
        self.memory_bytes += bytes as u64;
        if self.memory_bytes > self.max_memory_bytes {
            let limit = self.max_memory_bytes;
            return Err(Error::limit(path, Exceeded::MemoryBytes, limit));
        }
        Ok(())
    }

    /// The directory that `components` lead to, symbolic links followed inside the tree.
    ///
    /// What is missing is made.
    pub(crate) fn make_directories(&mut self, path: &[u8], components: &[&[u8]]) -> Result<InodeId, Error> {
        let mut walk = Walk::new(path, components, self.max_depth);
        while let Some(name) = walk.next(self)? {
            let directory = self.directory(walk.at, path)?;
            match directory.children.get(name.as_ref()).copied() {
                Some(child) if !matches!(self.inode(child).kind, Kind::Whiteout) => {
                    walk.enter(self, child)?;
                }
                _ => {
                    let made = self.implied_directory(walk.at, directory.depth + 1);
                    walk.at = self.put(path, walk.at, &name, made)?;
                }
            }
        }
        Ok(walk.at)
    }

    /// What the hard link target `components` names, if it is there; its last component
    /// is not followed.
    pub(crate) fn find(&self, path: &[u8], components: &[&[u8]]) -> Result<Option<InodeId>, Error> {
        let Some((name, parents)) = components.split_last() else {
            return Ok(Some(InodeId::ROOT));
        };
        let mut walk = Walk::new(path, parents, self.max_depth);
        while let Some(name) = walk.next(self)? {
            match self.directory(walk.at, path)?.children.get(name.as_ref()) {
                Some(&child) if matches!(self.inode(child).kind, Kind::Whiteout) => {
                    return Ok(None);
                }
                Some(&child) => walk.enter(self, child)?,
                None => return Ok(None),
            }
        }
        let child = self.directory(walk.at, path)?.children.get(*name).copied();
        Ok(child.filter(|&child| !matches!(self.inode(child).kind, Kind::Whiteout)))
    }

    /// Puts a new inode at a name; what was there gives way. The last entry wins.
    pub(crate) fn put(
        &mut self,
        path: &[u8],
        parent: InodeId,
        name: &[u8],
        mut inode: Inode,
    ) -> Result<InodeId, Error> {
        let existing = self.directory(parent, path)?.children.get(name).copied();
        if let (Kind::Directory(new), Some(existing)) = (&mut inode.kind, existing) {
            let old = &mut self.inodes[existing.index()];
            match old.kind {
                Kind::Directory(_) => {
                    old.attributes = inode.attributes;
                    return Ok(existing);
                }
                // The whiteout hid a lower directory, which must not shine through this one.
                Kind::Whiteout => new.opaque = true,
                _ => {}
            }
        }
        if let Kind::Directory(directory) = &inode.kind
            && directory.depth as usize > self.max_depth
        {
            return Err(Error::limit(path, Exceeded::Depth, self.max_depth as u64));
        }
        if self.inodes.len() as u64 >= self.max_inodes {
            return Err(Error::limit(path, Exceeded::Entries, self.max_inodes));
        }
        let id = InodeId(u32::try_from(self.inodes.len()).unwrap_or(u32::MAX));
        self.inodes.push(inode);
        self.name(path, parent, name, id)?;
        Ok(id)
    }

    /// Gives an inode that exists another name.
    pub(crate) fn link(
        &mut self,
        path: &[u8],
        parent: InodeId,
        name: &[u8],
        id: InodeId,
    ) -> Result<(), Error> {
        if self.directory(parent, path)?.children.get(name) == Some(&id) {
            return Ok(());
        }
        self.inodes[id.index()].links += 1;
        self.name(path, parent, name, id)
    }

    /// `.wh.NAME`: hides NAME of lower layers. An entry of this layer stays.
    pub(crate) fn white_out(&mut self, path: &[u8], parent: InodeId, name: &[u8]) -> Result<(), Error> {
        if let Some(&existing) = self.directory(parent, path)?.children.get(name) {
            if let Kind::Directory(directory) = &mut self.inodes[existing.index()].kind {
                directory.opaque = true;
            }
            return Ok(());
        }
        let whiteout = Inode { kind: Kind::Whiteout, links: 1, attributes: Attributes::default() };
        self.put(path, parent, name, whiteout).map(|_| ())
    }

    /// `.wh..wh..opq`: hides all that lower layers have in this directory.
    pub(crate) fn make_opaque(&mut self, id: InodeId) {
        if let Kind::Directory(directory) = &mut self.inodes[id.index()].kind {
            directory.opaque = true;
        }
    }

    /// Drops names in the root directory; says how many.
    pub(crate) fn drop_from_root(&mut self, is_dropped: impl Fn(&[u8]) -> bool) -> u64 {
        let Kind::Directory(root) = &mut self.inodes[0].kind else {
            return 0;
        };
        let names: Vec<_> = root.children.keys().filter(|name| is_dropped(name)).cloned().collect();
        let dropped: Vec<_> = names.iter().filter_map(|name| root.children.remove(name)).collect();
        let count = dropped.len() as u64;
        for id in dropped {
            self.unlink(id);
        }
        count
    }

    fn name(&mut self, path: &[u8], parent: InodeId, name: &[u8], id: InodeId) -> Result<(), Error> {
        if name.len() > MAX_NAME_BYTES {
            return Err(Error::BadPath {
                path: shown(path),
                problem: "has a component longer than 255 bytes",
            });
        }
        self.hold(name.len(), path)?;
        let replaced = self.directory_mut(parent, path)?.children.insert(name.into(), id);
        if let Some(replaced) = replaced {
            self.unlink(replaced);
        }
        Ok(())
    }

    /// Takes one name from an inode; a directory goes with all that is in it.
    fn unlink(&mut self, id: InodeId) {
        let mut pending = vec![id];
        while let Some(id) = pending.pop() {
            let inode = &mut self.inodes[id.index()];
            inode.links = inode.links.saturating_sub(1);
            if inode.links == 0 {
                // The slot stays, with nothing in it.
                let gone = std::mem::replace(&mut inode.kind, Kind::Fifo);
                if let Kind::Directory(directory) = gone {
                    pending.extend(directory.children.into_values());
                }
            }
        }
    }

    /// A directory that no entry describes (yet).
    fn implied_directory(&self, parent: InodeId, depth: u32) -> Inode {
        Inode {
            kind: Kind::Directory(Box::new(Directory {
                parent,
                depth,
                opaque: false,
                children: BTreeMap::new(),
            })),
            links: 1,
            attributes: Attributes {
                mode: 0o755,
                mtime: Timestamp { seconds: self.implied_time, nanoseconds: 0 },
                ..Attributes::default()
            },
        }
    }

    /// A directory to be put below `parent`.
    pub(crate) fn new_directory(
        &self,
        path: &[u8],
        parent: InodeId,
        attributes: Attributes,
    ) -> Result<Inode, Error> {
        let depth = self.directory(parent, path)?.depth + 1;
        Ok(Inode { attributes, ..self.implied_directory(parent, depth) })
    }

    fn directory(&self, id: InodeId, path: &[u8]) -> Result<&Directory, Error> {
        match &self.inodes[id.index()].kind {
            Kind::Directory(directory) => Ok(directory),
            _ => Err(Error::NotADirectory { path: shown(path) }),
        }
    }

    fn directory_mut(&mut self, id: InodeId, path: &[u8]) -> Result<&mut Directory, Error> {
        match &mut self.inodes[id.index()].kind {
            Kind::Directory(directory) => Ok(directory),
            _ => Err(Error::NotADirectory { path: shown(path) }),
        }
    }
}

/// A way through the tree, with the components that are still to come.
struct Walk<'a> {
    path: &'a [u8],
    at: InodeId,
    /// In reverse.
    pending: Vec<Cow<'a, [u8]>>,
    hops: usize,
    steps_left: usize,
    max_depth: usize,
}

impl<'a> Walk<'a> {
    fn new(path: &'a [u8], components: &[&'a [u8]], max_depth: usize) -> Self {
        Self {
            path,
            at: InodeId::ROOT,
            pending: components.iter().rev().map(|&name| Cow::Borrowed(name)).collect(),
            hops: 0,
            // Long detours through symbolic links would cost time out of proportion.
            steps_left: 4 * max_depth,
            max_depth,
        }
    }

    /// The next component that is a name.
    fn next(&mut self, tree: &Tree) -> Result<Option<Cow<'a, [u8]>>, Error> {
        while let Some(name) = self.pending.pop() {
            self.steps_left = self
                .steps_left
                .checked_sub(1)
                .ok_or_else(|| Error::limit(self.path, Exceeded::Depth, self.max_depth as u64))?;
            // Only a symbolic link can bring one here.
            if name.as_ref() != b".." {
                return Ok(Some(name));
            }
            if let Kind::Directory(directory) = &tree.inode(self.at).kind {
                self.at = directory.parent;
            }
        }
        Ok(None)
    }

    /// Goes on to a child, which may be a symbolic link.
    fn enter(&mut self, tree: &Tree, child: InodeId) -> Result<(), Error> {
        match &tree.inode(child).kind {
            Kind::Directory(_) => self.at = child,
            Kind::Symlink(target) => {
                self.hops += 1;
                if self.hops > MAX_SYMLINK_HOPS {
                    return Err(Error::SymlinkLoop { path: shown(self.path) });
                }
                if target.first() == Some(&b'/') {
                    self.at = InodeId::ROOT;
                }
                let names = target.split(|&byte| byte == b'/').rev();
                let names = names.filter(|name| !matches!(*name, b"" | b"."));
                self.pending.extend(names.map(|name| Cow::Owned(name.to_vec())));
            }
            _ => {
                return Err(Error::NotADirectory { path: shown(self.path) });
            }
        }
        Ok(())
    }
}
