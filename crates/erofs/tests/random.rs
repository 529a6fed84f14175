//! Random trees, written by an independent tar writer and read back by the kernel.
#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

mod common;

use std::collections::BTreeMap;

use common::{Listing, Node, What, assert_same, image_at, read_back};
use proptest::prelude::*;

#[derive(Clone, Debug)]
struct Step {
    path: Vec<Vec<u8>>,
    what: Made,
    mode: u32,
    uid: u32,
    gid: u32,
    seconds: u32,
    nanoseconds: Option<u32>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Clone, Debug)]
enum Made {
    Node(What),
    /// To one of the files there are by then.
    HardLink(prop::sample::Index),
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => prop::sample::select(vec![
            &b"a"[..], b"b", b"c", b"!", b"-", b"...", b".hidden", b"\xff\xfe", b"sp ace", b"new\nline",
        ]).prop_map(<[u8]>::to_vec),
        2 => "[a-z]{1,12}".prop_map(String::into_bytes),
        1 => "[a-z]{90,255}".prop_map(String::into_bytes),
    ]
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    let size = prop_oneof![
        Just(0_usize),
        1..200_usize,
        prop::sample::select(vec![2047, 2048, 2049, 4032, 4095, 4096, 4097, 8192]),
        0..40_000_usize,
    ];
    (size, any::<u8>()).prop_map(|(size, seed)| {
        (0..size).map(|at| (at / 7) as u8 ^ (at as u8).wrapping_mul(31) ^ seed).collect()
    })
}

fn made() -> impl Strategy<Value = Made> {
    prop_oneof![
        5 => content().prop_map(|data| Made::Node(What::File(data))),
        4 => Just(Made::Node(What::Directory)),
        2 => prop::collection::vec(1..=255_u8, 1..300)
            .prop_map(|target| Made::Node(What::Symlink(target))),
        1 => (0..4096_u32, 1..(1_u32 << 20))
            .prop_map(|(major, minor)| Made::Node(What::Character(major, minor))),
        1 => (0..4096_u32, 0..(1_u32 << 20))
            .prop_map(|(major, minor)| Made::Node(What::Block(major, minor))),
        1 => Just(Made::Node(What::Fifo)),
        3 => any::<prop::sample::Index>().prop_map(Made::HardLink),
    ]
}

fn xattrs() -> impl Strategy<Value = BTreeMap<Vec<u8>, Vec<u8>>> {
    let name = prop_oneof!["trusted\\.[a-z]{1,20}", "security\\.[a-z]{1,20}", "trusted\\.[a-z.]{200,240}",];
    let value = prop::collection::vec(any::<u8>(), 0..200);
    prop_oneof![
        3 => Just(BTreeMap::new()),
        1 => prop::collection::btree_map(name.prop_map(String::into_bytes), value, 1..4),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let seconds = any::<u32>();
    let nanoseconds = prop::option::of(0..1_000_000_000_u32);
    let owner = prop_oneof![0..70_000_u32, any::<u32>()];
    (
        prop::collection::vec(name(), 1..5),
        made(),
        0..0o10_000_u32,
        (owner.clone(), owner),
        (seconds, nanoseconds),
        xattrs(),
    )
        .prop_map(|(path, what, mode, (uid, gid), (seconds, nanoseconds), xattrs)| Step {
            path,
            what,
            mode,
            uid,
            gid,
            seconds,
            nanoseconds,
            xattrs,
        })
}

/// The tree as it should become, and the stream that says so.
struct Model {
    tree: Listing,
    tar: tar::Builder<Vec<u8>>,
    next_identity: u64,
}

impl Model {
    fn new() -> Self {
        let mut model = Self { tree: Listing::new(), tar: tar::Builder::new(Vec::new()), next_identity: 1 };
        model.imply(Vec::new());
        model
    }

    fn imply(&mut self, path: Vec<u8>) {
        self.next_identity += 1;
        let node = Node {
            what: What::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            links: 0,
            xattrs: BTreeMap::new(),
            identity: self.next_identity,
        };
        self.tree.insert(path, node);
    }

    fn apply(&mut self, step: &Step) {
        if matches!(step.what, Made::HardLink(_)) && !self.tree.values().any(is_file) {
            return;
        }
        for depth in 1..step.path.len() {
            let parent = step.path[..depth].join(&b'/');
            match self.tree.get(&parent) {
                None => self.imply(parent),
                Some(node) if node.what == What::Directory => {}
                // Other tests say what happens below files and links.
                Some(_) => return,
            }
        }
        let path = step.path.join(&b'/');
        match &step.what {
            Made::Node(what) => self.make(path, what, step),
            Made::HardLink(index) => {
                let files = self.tree.iter().filter(|(_, node)| is_file(node));
                let files: Vec<_> = files.map(|(path, _)| path.clone()).collect();
                let target = index.get(&files).clone();
                self.link(path, target);
            }
        }
    }

    fn make(&mut self, path: Vec<u8>, what: &What, step: &Step) {
        if !step.xattrs.is_empty() || step.nanoseconds.is_some() {
            let mut records: Vec<(String, Vec<u8>)> = step
                .xattrs
                .iter()
                .map(|(name, value)| {
                    let name = std::str::from_utf8(name).unwrap();
                    (format!("SCHILY.xattr.{name}"), value.clone())
                })
                .collect();
            if let Some(nanoseconds) = step.nanoseconds {
                let time = format!("{}.{nanoseconds:09}", step.seconds);
                records.push(("mtime".to_owned(), time.into_bytes()));
            }
            let records = records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
            self.tar.append_pax_extensions(records).unwrap();
        }
        let mut header = tar::Header::new_gnu();
        header.set_mode(step.mode);
        header.set_uid(u64::from(step.uid));
        header.set_gid(u64::from(step.gid));
        header.set_mtime(u64::from(step.seconds));
        header.set_size(0);
        let mut data = &[][..];
        let mut target = None;
        let kind = match what {
            What::Directory => tar::EntryType::Directory,
            What::File(content) => {
                data = content;
                header.set_size(content.len() as u64);
                tar::EntryType::Regular
            }
            What::Symlink(to) => {
                target = Some(to);
                tar::EntryType::Symlink
            }
            What::Character(major, minor) | What::Block(major, minor) => {
                header.set_device_major(*major).unwrap();
                header.set_device_minor(*minor).unwrap();
                if matches!(what, What::Block(..)) { tar::EntryType::Block } else { tar::EntryType::Char }
            }
            What::Fifo | What::Socket => tar::EntryType::Fifo,
        };
        header.set_entry_type(kind);
        if let Some(target) = target {
            self.long(b'K', target);
        }
        self.append(&mut header, &path, data);
        let same_directory =
            *what == What::Directory && self.tree.get(&path).is_some_and(|node| node.what == What::Directory);
        if !same_directory {
            self.remove(&path);
        }
        self.next_identity += 1;
        let node = Node {
            what: what.clone(),
            mode: step.mode,
            uid: step.uid,
            gid: step.gid,
            mtime: (i64::from(step.seconds), i64::from(step.nanoseconds.unwrap_or(0))),
            links: 0,
            xattrs: step.xattrs.clone(),
            identity: self.next_identity,
        };
        self.tree.insert(path, node);
    }

    fn link(&mut self, path: Vec<u8>, target: Vec<u8>) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Link);
        header.set_size(0);
        header.set_mode(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        self.long(b'K', &target);
        self.append(&mut header, &path, &[]);
        let node = self.tree[&target].clone();
        self.remove(&path);
        self.tree.insert(path, node);
    }

    /// The writer cleans up targets and cannot cut names that are not UTF-8: long ones by
    /// hand.
    fn append(&mut self, header: &mut tar::Header, path: &[u8], data: &[u8]) {
        self.long(b'L', path);
        let cut = &path[..path.len().min(100)];
        header.as_old_mut().name[..cut.len()].copy_from_slice(cut);
        header.set_cksum();
        self.tar.append(header, data).unwrap();
    }

    fn long(&mut self, kind: u8, text: &[u8]) {
        let mut long = tar::Header::new_gnu();
        long.set_entry_type(tar::EntryType::new(kind));
        long.as_old_mut().name[..13].copy_from_slice(b"././@LongLink");
        long.set_mode(0o644);
        long.set_uid(0);
        long.set_gid(0);
        long.set_mtime(0);
        long.set_size(text.len() as u64 + 1);
        long.set_cksum();
        let with_end = [text, b"\0"].concat();
        self.tar.append(&long, with_end.as_slice()).unwrap();
    }

    fn remove(&mut self, path: &[u8]) {
        let below = [path, b"/"].concat();
        self.tree.retain(|other, _| other != path && !other.starts_with(&below));
    }

    /// Fills in link counts.
    fn finish(mut self) -> (Vec<u8>, Listing) {
        let mut names: BTreeMap<u64, u64> = BTreeMap::new();
        let mut subdirectories: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        for (path, node) in &self.tree {
            *names.entry(node.identity).or_default() += 1;
            if node.what == What::Directory && !path.is_empty() {
                let parent = path.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
                *subdirectories.entry(path[..parent].to_vec()).or_default() += 1;
            }
        }
        for (path, node) in &mut self.tree {
            node.links = match node.what {
                What::Directory => 2 + subdirectories.get(path).copied().unwrap_or(0),
                _ => names[&node.identity],
            };
        }
        (self.tar.into_inner().unwrap(), self.tree)
    }
}

fn is_file(node: &Node) -> bool {
    node.what != What::Directory
}

/// Each case mounts and checks an image, so fewer than usual unless asked for.
fn config() -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { cases: asked.unwrap_or(64), failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_goes_in_comes_out(steps in prop::collection::vec(step(), 0..60)) {
        let mut model = Model::new();
        for step in &steps {
            model.apply(step);
        }
        let (tar, expected) = model.finish();
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        image_at(&image, tar.as_slice()).unwrap();
        assert_same(&read_back(&image), &expected);
    }

    #[test]
    fn damage_never_panics_and_never_makes_an_image_that_fsck_refuses(
        steps in prop::collection::vec(step(), 1..12),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        fix_checksums in any::<bool>(),
    ) {
        let mut model = Model::new();
        for step in &steps {
            model.apply(step);
        }
        let (mut tar, _) = model.finish();
        for (index, byte) in damage {
            let at = index.index(tar.len());
            tar[at] = byte;
            if fix_checksums {
                let block = &mut tar[at / 512 * 512..][..512];
                let mut header = tar::Header::new_old();
                header.as_mut_bytes().copy_from_slice(block);
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        if image_at(&image, tar.as_slice()).is_ok() {
            read_back(&image);
        }
    }
}
