//! Images as the kernel shows them.
#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;

use common::{
    Listing, Raw, What, assert_same, gnu_tar, image_at, mount_image, read_back, walk, with_own_mounts,
};
use kina_erofs::Summary;
use rustix::mount::{MountFlags, mount};

fn written(tar: &[u8]) -> (Summary, Listing) {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let summary = image_at(&image, tar).unwrap();
    assert_eq!(summary.image_bytes, fs::metadata(&image).unwrap().len());
    let listing = read_back(&image);
    let identities: std::collections::BTreeSet<_> = listing.values().map(|node| node.identity).collect();
    assert_eq!(summary.inodes, identities.len() as u64);
    (summary, listing)
}

fn names(listing: &Listing) -> Vec<String> {
    listing.keys().map(|name| name.escape_ascii().to_string()).collect()
}

#[test]
fn an_empty_layer_is_an_empty_root() {
    for tar in [vec![], Raw::default().end()] {
        let (summary, listing) = written(&tar);
        assert_eq!(names(&listing), [""]);
        assert_eq!((listing[&b""[..]].mode, listing[&b""[..]].links), (0o755, 2));
        assert_eq!((summary.entries, summary.inodes, summary.image_bytes), (0, 1, 8192));
    }
}

#[test]
fn every_kind_and_attribute() {
    let tar = Raw::default()
        .header("./", b'5', |header| {
            header.set_mode(0o1777);
            header.set_uid(7);
        })
        .pax(&[
            ("mtime", b"1700000000.123456789"),
            ("uid", b"4000000000"),
            ("gid", b"4000000001"),
            ("SCHILY.xattr.user.note", b"a\0b\n"),
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ])
        .header("bin/su", b'0', |header| {
            header.set_mode(0o4755);
            header.set_size(3);
        })
        .data(b"elf")
        .header("old", b'0', |header| header.as_old_mut().mtime = [0xff; 12])
        .link("link", b'2', "/absolute/../target")
        .header("dev/sda", b'4', |header| {
            header.set_device_major(8).unwrap();
            header.set_device_minor(300).unwrap();
        })
        .header("dev/null", b'3', |header| {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        })
        .entry("fifo", b'6', b"")
        .link("other/su", b'1', "/bin/./su")
        .header("socket", b'0', |header| header.set_mode(0o140_755))
        .end();
    let (summary, listing) = written(&tar);
    assert_eq!(
        names(&listing),
        ["", "bin", "bin/su", "dev", "dev/null", "dev/sda", "fifo", "link", "old", "other", "other/su"]
    );
    assert_eq!((summary.entries, summary.skipped_entries, summary.skipped_xattrs), (9, 1, 1));
    let get = |name: &str| &listing[name.as_bytes()];
    let root = get("");
    assert_eq!((root.mode, root.uid, root.links), (0o1777, 7, 5));
    let su = get("bin/su");
    assert_eq!((su.mode, su.uid, su.gid), (0o4755, 4_000_000_000, 4_000_000_001));
    assert_eq!((su.mtime, su.links), ((1_700_000_000, 123_456_789), 2));
    assert_eq!(su.what, What::File(b"elf".to_vec()));
    assert_eq!(su.xattrs.len(), 2);
    assert_eq!(su.xattrs[&b"user.note"[..]], b"a\0b\n");
    assert_eq!(su.identity, get("other/su").identity);
    assert_eq!(get("old").mtime, (-1, 0));
    assert_eq!(get("link").what, What::Symlink(b"/absolute/../target".to_vec()));
    assert_eq!(get("dev/sda").what, What::Block(8, 300));
    assert_eq!(get("dev/null").what, What::Character(1, 3));
    assert_eq!(get("fifo").what, What::Fifo);
    assert_eq!((get("bin").mode, get("bin").uid, get("bin").mtime), (0o755, 0, (0, 0)));
}

#[test]
fn the_last_entry_of_a_name_wins() {
    let tar = Raw::default()
        .entry("file", b'0', b"first")
        .link("kept", b'1', "file")
        .entry("file", b'0', b"second")
        .entry("tree/a/b", b'0', b"gone")
        .link("saved", b'1', "tree/a/b")
        .entry("tree", b'0', b"now a file")
        .entry("d/child", b'0', b"stays")
        .header("d", b'5', |header| header.set_mode(0o700))
        .link("swap", b'2', "d")
        .entry("swap", b'5', b"")
        .link("self", b'2', "x")
        .link("self", b'1', "self")
        .end();
    let (_, listing) = written(&tar);
    let get = |name: &str| &listing[name.as_bytes()];
    assert_eq!(get("file").what, What::File(b"second".to_vec()));
    assert_eq!(get("kept").what, What::File(b"first".to_vec()));
    assert_eq!((get("file").links, get("kept").links), (1, 1));
    assert_eq!(get("tree").what, What::File(b"now a file".to_vec()));
    assert_eq!((&get("saved").what, get("saved").links), (&What::File(b"gone".to_vec()), 1));
    assert_eq!((get("d").mode, &get("d/child").what), (0o700, &What::File(b"stays".to_vec())));
    assert_eq!(get("swap").what, What::Directory);
    assert_eq!(get("self").links, 1);
}

#[test]
fn symbolic_links_on_the_way_are_followed_inside_the_layer() {
    let tar = Raw::default()
        .entry("usr/lib/", b'5', b"")
        .link("lib", b'2', "usr/lib")
        .entry("lib/one", b'0', b"1")
        .link("a/up", b'2', "../../../../etc")
        .entry("a/up/passwd", b'0', b"2")
        .link("abs", b'2', "/made/on/the/way")
        .entry("abs/three", b'0', b"3")
        .link("hard", b'1', "lib/one")
        .end();
    let (_, listing) = written(&tar);
    let get = |name: &str| &listing[name.as_bytes()];
    assert_eq!(get("usr/lib/one").what, What::File(b"1".to_vec()));
    assert_eq!(get("etc/passwd").what, What::File(b"2".to_vec()));
    assert_eq!(get("made/on/the/way/three").what, What::File(b"3".to_vec()));
    assert_eq!(get("lib").what, What::Symlink(b"usr/lib".to_vec()));
    assert_eq!(get("hard").identity, get("usr/lib/one").identity);
}

#[test]
fn whiteouts_hide_lower_layers_through_overlayfs() {
    let lower = Raw::default()
        .entry("plain", b'0', b"lower")
        .entry("gone", b'0', b"lower")
        .entry("gone-tree/x", b'0', b"lower")
        .entry("opaque/lower", b'0', b"lower")
        .entry("merged/lower", b'0', b"lower")
        .entry("replaced/lower", b'0', b"lower")
        .entry("late/lower", b'0', b"lower")
        .entry("implied/lower", b'0', b"lower")
        .entry("both", b'0', b"lower")
        .end();
    let upper = Raw::default()
        .entry(".wh.gone", b'0', b"")
        .entry(".wh.gone-tree", b'0', b"")
        .entry("opaque/upper", b'0', b"upper")
        .entry("opaque/.wh..wh..opq", b'0', b"")
        .entry("merged/upper", b'0', b"upper")
        .entry(".wh.replaced", b'0', b"")
        .entry("replaced", b'5', b"")
        .entry("late/upper", b'0', b"upper")
        .entry(".wh.late", b'0', b"")
        .entry(".wh.implied", b'0', b"")
        .entry("implied/upper", b'0', b"upper")
        .entry(".wh.both", b'0', b"")
        .entry("both", b'0', b"upper")
        .entry("fresh/.wh..wh..opq", b'0', b"")
        .entry(".wh..wh.plnk/17", b'0', b"linked")
        .link("from-plnk", b'1', ".wh..wh.plnk/17")
        .entry(".wh..wh.aufs", b'0', b"")
        .end();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    image_at(&at("lower.img"), lower.as_slice()).unwrap();
    let summary = image_at(&at("upper.img"), upper.as_slice()).unwrap();
    assert_eq!((summary.whiteouts, summary.skipped_entries), (8, 2));
    let upper = read_back(&at("upper.img"));
    assert_eq!(upper[&b"gone"[..]].what, What::Character(0, 0));
    let mark = BTreeMap::from([(b"trusted.overlay.opaque".to_vec(), b"y".to_vec())]);
    assert_eq!(upper[&b"opaque"[..]].xattrs, mark);
    assert_eq!(upper[&b"from-plnk"[..]].links, 1);

    let seen = with_own_mounts(|| {
        mount_image(&at("lower.img"), &at("lower"));
        mount_image(&at("upper.img"), &at("upper"));
        fs::create_dir(at("merged")).unwrap();
        let options = format!("lowerdir={}:{}", at("upper").display(), at("lower").display());
        let options = std::ffi::CString::new(options).unwrap();
        mount("overlay", at("merged"), "overlay", MountFlags::RDONLY, options.as_c_str()).unwrap();
        walk(&at("merged"))
    });
    let mut seen: BTreeMap<String, String> = seen
        .iter()
        .map(|(name, node)| {
            let content = match &node.what {
                What::File(data) => String::from_utf8(data.clone()).unwrap(),
                other => format!("{other:?}"),
            };
            (String::from_utf8(name.clone()).unwrap(), content)
        })
        .collect();
    seen.retain(|_, content| content != "directory");
    let expected = [
        ("both", "upper"),
        ("from-plnk", "linked"),
        ("implied/upper", "upper"),
        ("late/upper", "upper"),
        ("merged/lower", "lower"),
        ("merged/upper", "upper"),
        ("opaque/upper", "upper"),
        ("plain", "lower"),
    ];
    let expected = expected.map(|(name, content)| (name.to_owned(), content.to_owned()));
    assert_eq!(seen, BTreeMap::from(expected));
}

#[test]
fn sizes_around_every_boundary() {
    let sizes = [
        0, 1, 2047, 2048, 2049, 3967, 4032, 4033, 4095, 4096, 4097, 8191, 8192, 8193, 1_048_576, 1_048_577,
        3_000_001,
    ];
    let mut tar = Raw::default();
    for size in sizes {
        let data: Vec<u8> = (0..size).map(|at| (at % 251) as u8 + 1).collect();
        tar = tar.entry(&format!("{size}"), b'0', &data);
        let target = "t".repeat(size.clamp(1, 4095));
        tar = tar.entry("@LongLink", b'K', target.as_bytes()).link(&format!("l{size}"), b'2', "");
    }
    let (_, listing) = written(&tar.end());
    for size in sizes {
        let data: Vec<u8> = (0..size).map(|at| (at % 251) as u8 + 1).collect();
        let (file, link) = (format!("{size}"), format!("l{size}"));
        assert_eq!(listing[file.as_bytes()].what, What::File(data));
        let target = What::Symlink(vec![b't'; size.clamp(1, 4095)]);
        assert_eq!(listing[link.as_bytes()].what, target);
    }
}

#[test]
fn large_directories_and_attributes() {
    let mut tar = Raw::default();
    for index in 0..3000 {
        let name = format!("d/{}{index}", "n".repeat(index % 80));
        tar = tar.entry(&name, b'0', b"");
    }
    for size in [3000, 3960, 4000, 4096, 60_000] {
        let value = vec![b'v'; size];
        let records: &[(&str, &[u8])] =
            &[("SCHILY.xattr.trusted.big", &value), ("SCHILY.xattr.trusted.small", b"s")];
        tar = tar.pax(records).entry(&format!("f{size}"), b'0', b"with a tail");
        tar = tar.pax(records).entry(&format!("d{size}"), b'5', b"");
        tar = tar.pax(records).link(&format!("l{size}"), b'2', "target");
    }
    let (_, listing) = written(&tar.end());
    assert_eq!(listing.keys().filter(|name| name.starts_with(b"d/")).count(), 3000);
    for size in [3000, 3960, 4000, 4096, 60_000] {
        for kind in ["f", "d", "l"] {
            let node = &listing[format!("{kind}{size}").as_bytes()];
            assert_eq!(node.xattrs[&b"trusted.big"[..]], vec![b'v'; size]);
            assert_eq!(node.xattrs[&b"trusted.small"[..]], b"s");
        }
        let file = &listing[format!("f{size}").as_bytes()].what;
        assert_eq!(*file, What::File(b"with a tail".to_vec()));
    }
}

#[test]
fn names_from_every_header_form() {
    let long = format!("{}/{}", "p".repeat(150), "n".repeat(200));
    let tar = Raw::default()
        .header("name", b'0', |header| {
            let bytes = header.as_mut_bytes();
            bytes[257..265].copy_from_slice(b"ustar\x0000");
            bytes[345..351].copy_from_slice(b"prefix");
        })
        .entry("@LongLink", b'L', format!("gnu/{long}\0").as_bytes())
        .entry("cut", b'0', b"g")
        .pax(&[("path", format!("pax/{long}").as_bytes())])
        .entry("cut", b'0', b"p")
        .entry("pax_global_header", b'g', b"16 path=ignored\n")
        .entry("plain", b'7', b"c")
        .entry("v7-directory/", 0, b"")
        .header("cut", b'0', |header| {
            // A full field has no NUL at its end.
            header.as_old_mut().name = [b'f'; 100];
        })
        .end();
    let (_, listing) = written(&tar);
    for (name, what) in [
        ("prefix/name".to_owned(), What::File(vec![])),
        (format!("gnu/{long}"), What::File(b"g".to_vec())),
        (format!("pax/{long}"), What::File(b"p".to_vec())),
        ("plain".to_owned(), What::File(b"c".to_vec())),
        ("v7-directory".to_owned(), What::Directory),
        ("f".repeat(100), What::File(vec![])),
    ] {
        assert_eq!(listing[name.as_bytes()].what, what, "{name}");
    }
}

#[test]
fn sparse_files_keep_their_holes() {
    let source = tempfile::tempdir().unwrap();
    let make = |name: &str, size: u64, pieces: &[(u64, &[u8])]| {
        let file = fs::File::create(source.path().join(name)).unwrap();
        for (offset, data) in pieces {
            file.write_all_at(data, *offset).unwrap();
        }
        file.set_len(size).unwrap();
    };
    let noise: Vec<u8> = (0..50_000_u32).map(|at| (at % 255) as u8 + 1).collect();
    make("empty", 10_000_000, &[]);
    make("end", 5_000_001, &[(4_999_999, b"yz")]);
    make("middle", 8_000_000, &[(1_000_000, &noise), (7_000_003, &noise)]);
    make("full", 50_000, &[(0, &noise)]);
    let many: Vec<(u64, &[u8])> = (0..60).map(|at| (at * 65_536 + 4_096, &b"piece"[..])).collect();
    make("many", 60 * 65_536, &many);
    let expected = walk(source.path());
    for format in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let mut arguments = format.to_vec();
        arguments.extend(["--hole-detection=raw", "-S", "--mtime=@0", "-c", "."]);
        let tar = gnu_tar(source.path(), &arguments);
        assert!(tar.len() < 1 << 20, "tar found no holes");
        let (summary, listing) = written(&tar);
        assert!(summary.image_bytes < 1 << 20, "{format:?}: {}", summary.image_bytes);
        for (name, node) in &expected {
            let found = &listing[name];
            assert_eq!(found.what, node.what, "{format:?} {}", name.escape_ascii());
        }
    }
}

#[test]
fn a_huge_sparse_file_is_small() {
    let tar = Raw::default()
        .pax(&[
            ("GNU.sparse.size", b"4398046511104"),
            ("GNU.sparse.map", b"0,1,4000000000000,3,4398046511103,1"),
        ])
        .entry("lastlog", b'0', b"abcde")
        .end();
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let summary = image_at(&image, tar.as_slice()).unwrap();
    assert!(summary.image_bytes < 64 << 20, "{}", summary.image_bytes);
    with_own_mounts(|| {
        mount_image(&image, &directory.path().join("mounted"));
        let file = fs::File::open(directory.path().join("mounted/lastlog")).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 4 << 40);
        let read = |offset, length| {
            let mut data = vec![0xaa; length];
            file.read_exact_at(&mut data, offset).unwrap();
            data
        };
        assert_eq!(read(0, 2), b"a\0");
        assert_eq!(read(1 << 40, 3), [0; 3]);
        assert_eq!(read(3_999_999_999_999, 5), b"\0bcd\0");
        assert_eq!(read((4 << 40) - 2, 2), b"\0e");
    });
}

#[test]
fn the_same_stream_gives_the_same_image() {
    let tar = gnu_tar("/usr/share/doc".as_ref(), &["--format=posix", "-c", "./git", "./tar"]);
    let tar = if tar.len() > 10240 { tar } else { panic!("no documents to pack") };
    let directory = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| {
        let path = directory.path().join(name);
        // What was in the file before must not show.
        fs::write(&path, vec![name.len() as u8; 3_000_000]).unwrap();
        // Short reads must not show either.
        struct Short<'a>(&'a [u8], usize);
        impl std::io::Read for Short<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                let count = self.1.min(buffer.len());
                self.0.read(&mut buffer[..count])
            }
        }
        let length = if name == "first" { 1 << 20 } else { 777 };
        image_at(&path, Short(&tar, length)).unwrap();
        fs::read(path).unwrap()
    });
    assert!(first == second);
}

#[test]
fn a_real_tree_comes_back_byte_for_byte() {
    let root = std::path::Path::new("/usr/lib/python3");
    let root = if root.exists() { root } else { "/usr/share/doc".as_ref() };
    let tar = gnu_tar(root, &["--format=posix", "--xattrs", "--numeric-owner", "-c", "."]);
    let (_, found) = written(&tar);
    assert_same(&found, &walk(root));
}

#[test]
fn a_hundred_and_twenty_seven_layers_stack_up() {
    const LAYERS: usize = 127;
    let directory = tempfile::tempdir().unwrap();
    let at = |name: String| directory.path().join(name);
    for number in 0..LAYERS {
        let own = format!("own/{number}");
        let mut tar = Raw::default().entry("top", b'0', number.to_string().as_bytes()).entry(&own, b'0', b"");
        if number % 2 == 1 {
            tar = tar.entry(&format!("own/.wh.{}", number - 1), b'0', b"");
        }
        image_at(&at(format!("{number}.img")), tar.end().as_slice()).unwrap();
    }
    let seen = with_own_mounts(|| {
        use rustix::mount::{
            FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_string,
            fsmount, fsopen, move_mount,
        };
        let context = fsopen("overlay", FsOpenFlags::empty()).unwrap();
        // The topmost first. One by one, since mount(2) takes one page of options.
        for number in (0..LAYERS).rev() {
            let lower = at(number.to_string());
            mount_image(&at(format!("{number}.img")), &lower);
            fsconfig_set_string(&context, "lowerdir+", lower).unwrap();
        }
        fsconfig_create(&context).unwrap();
        let mounted = fsmount(&context, FsMountFlags::empty(), MountAttrFlags::empty()).unwrap();
        let merged = at("merged".to_owned());
        fs::create_dir(&merged).unwrap();
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&mounted, "", rustix::fs::CWD, &merged, flags).unwrap();
        walk(&merged)
    });
    assert_eq!(seen[&b"top"[..]].what, What::File(b"126".to_vec()));
    let own = seen.keys().filter(|name| name.starts_with(b"own/")).count();
    assert_eq!(own, 64, "the even ones below the top are whited out");
}

#[test]
fn mkfs_erofs_makes_the_same_of_what_tar_extracts() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("source");
    let make = |name: &str, data: &[u8]| {
        let path = source.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, data).unwrap();
        path
    };
    for size in [0, 1, 100, 2048, 4095, 4096, 5000, 200_000] {
        make(&format!("sizes/{size}"), &vec![size as u8 | 1; size]);
    }
    for index in 0..400 {
        make(&format!("many/a-name-of-some-length-{index}"), b"x");
    }
    let file = make("etc/file", b"linked");
    fs::hard_link(&file, source.join("sizes/link")).unwrap();
    let symlink = |target: &str, name: &str| std::os::unix::fs::symlink(target, source.join(name)).unwrap();
    symlink("../etc/file", "sizes/symlink");
    symlink(&"t".repeat(3000), "long");
    let none = rustix::fs::XattrFlags::empty();
    for (name, value) in [("trusted.note", &b"\0binary"[..]), ("security.note", b"s")] {
        rustix::fs::lsetxattr(&file, name, value, none).unwrap();
    }
    // struct vfs_cap_data, revision 2: CAP_NET_RAW, permitted and effective.
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rustix::fs::lsetxattr(source.join("sizes/5000"), "security.capability", &capability, none).unwrap();
    // struct posix_acl_xattr_header and its entries: user::rw-, user 7: r--, group::r--, mask, other.
    let entry =
        |tag: u8, permissions: u8, id: u32| [[tag, 0, permissions, 0].as_slice(), &id.to_le_bytes()].concat();
    let unset = u32::MAX;
    let acl = [
        vec![2, 0, 0, 0],
        entry(1, 6, unset),
        entry(2, 4, 7),
        entry(4, 4, unset),
        entry(0x10, 4, unset),
        entry(0x20, 4, unset),
    ]
    .concat();
    rustix::fs::lsetxattr(source.join("sizes/100"), "system.posix_acl_access", &acl, none).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o640);
    let device = rustix::fs::makedev(259, 70_000);
    for (name, kind) in [
        ("block", rustix::fs::FileType::BlockDevice),
        ("character", rustix::fs::FileType::CharacterDevice),
        ("fifo", rustix::fs::FileType::Fifo),
    ] {
        rustix::fs::mknodat(rustix::fs::CWD, source.join(name), kind, mode, device).unwrap();
    }
    let set_mode = |name: &str, mode| {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(source.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    std::os::unix::fs::chown(source.join("sizes/1"), Some(70_001), Some(4_000_000_000)).unwrap();
    set_mode("sizes/1", 0o6755);
    set_mode("many", 0o1777);
    let xattrs = ["--format=posix", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-c", "."];
    let tar = gnu_tar(&source, &xattrs);

    let extracted = directory.path().join("extracted");
    fs::create_dir(&extracted).unwrap();
    let archive = directory.path().join("archive.tar");
    fs::write(&archive, &tar).unwrap();
    let extract = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", archive.to_str().unwrap()];
    gnu_tar(&extracted, &extract);
    let theirs = directory.path().join("theirs");
    let made = std::process::Command::new("mkfs.erofs").arg("--quiet").arg(&theirs).arg(&extracted).output();
    let made = made.unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    let (_, found) = written(&tar);
    let expected = read_back(&theirs);
    assert!(found[&b"sizes/100"[..]].xattrs.contains_key(&b"system.posix_acl_access"[..]));
    assert_same(&found, &expected);
}
