//! Streams that are damaged or hostile, each with its error.
#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

mod common;

use common::Raw;
use kina_erofs::{Error, Exceeded, Options, Summary, write_layer};

fn with_options(tar: &[u8], options: &Options) -> Result<Summary, Error> {
    let mut file = tempfile::tempfile().unwrap();
    write_layer(tar, &mut file, options)
}

fn write(tar: &[u8]) -> Result<Summary, Error> {
    with_options(tar, &Options::default())
}

macro_rules! refused {
    ($tar:expr, $error:pat) => {{
        let error = write(&$tar).unwrap_err();
        assert!(matches!(error, $error), "{error} ({error:?})");
    }};
}

#[test]
fn truncated_streams() {
    let tar = Raw::default().pax(&[("path", b"long")]).entry("a", b'0', &[1; 5000]).end();
    let whole = [0, 512 * 13, 512 * 13 + 512, tar.len()];
    for length in 0..tar.len() {
        if whole.contains(&length) {
            write(&tar[..length]).unwrap();
        } else {
            let error = write(&tar[..length]).unwrap_err();
            assert!(matches!(error, Error::Truncated { .. }), "{length}: {error}");
        }
    }
}

#[test]
fn damaged_headers() {
    let mut tar = Raw::default().entry("a", b'0', b"x").end();
    tar[3] ^= 1;
    refused!(tar, Error::BadChecksum { offset: 0, .. });
    refused!([7; 1024], Error::BadNumber { field: "checksum", .. });
    let lone = [vec![0; 512], Raw::default().entry("a", b'0', b"x").end()].concat();
    refused!(lone, Error::LoneZeroBlock { offset: 0, .. });
    let negative = Raw::default().header("a", b'0', |header| {
        header.as_old_mut().size = [0xff; 12];
    });
    refused!(negative.end(), Error::BadNumber { field: "size", .. });
    let owner = Raw::default().header("a", b'0', |header| header.set_uid(1 << 32));
    refused!(owner.end(), Error::BadNumber { field: "uid", .. });
    let kind = Raw::default().entry("a", b'V', b"");
    refused!(kind.end(), Error::UnsupportedType { kind: b'V', .. });
    let no_entry = Raw::default().pax(&[("path", b"a")]);
    refused!(no_entry.end(), Error::Truncated { .. });
}

#[test]
fn paths_and_links_that_leave_the_tree() {
    for name in ["../a", "a/../../b", "/..", "a/.."] {
        refused!(Raw::default().entry(name, b'0', b"x").end(), Error::BadPath { .. });
        refused!(Raw::default().entry("a", b'0', b"x").link("l", b'1', name).end(), Error::BadPath { .. });
    }
    refused!(Raw::default().entry("", b'0', b"x").end(), Error::BadPath { .. });
    refused!(Raw::default().link("l", b'2', "").end(), Error::BadPath { .. });
    let nul = Raw::default().pax(&[("path", b"a\0b")]).entry("a", b'0', b"");
    refused!(nul.end(), Error::BadExtension { .. });
    let long = "n".repeat(256);
    let long = Raw::default().pax(&[("path", long.as_bytes())]).entry("a", b'0', b"");
    refused!(long.end(), Error::BadPath { .. });
    refused!(Raw::default().entry(".", b'0', b"x").end(), Error::RootNotDirectory);
}

#[test]
fn links_to_nothing() {
    refused!(Raw::default().link("l", b'1', "missing").end(), Error::LinkTargetMissing { .. });
    refused!(Raw::default().entry("d", b'5', b"").link("l", b'1', "d").end(), Error::LinkToDirectory { .. });
    refused!(Raw::default().link("l", b'1', "/").end(), Error::LinkToDirectory { .. });
    refused!(
        Raw::default().entry(".wh.gone", b'0', b"").link("l", b'1', "gone").end(),
        Error::LinkTargetMissing { .. }
    );
    // A target that comes later was not there in time.
    refused!(
        Raw::default().link("l", b'1', "later").entry("later", b'0', b"x").end(),
        Error::LinkTargetMissing { .. }
    );
}

#[test]
fn ways_that_do_not_lead_on() {
    refused!(
        Raw::default().entry("f", b'0', b"x").entry("f/a", b'0', b"x").end(),
        Error::NotADirectory { .. }
    );
    refused!(
        Raw::default().link("a", b'2', "b").link("b", b'2', "a").entry("a/x", b'0', b"").end(),
        Error::SymlinkLoop { .. }
    );
    refused!(Raw::default().entry(".wh.", b'0', b"").end(), Error::BadWhiteout { .. });
    refused!(Raw::default().entry("a/.wh...", b'0', b"").end(), Error::BadWhiteout { .. });
    refused!(Raw::default().entry(".wh.a/b", b'0', b"").end(), Error::BadWhiteout { .. });
}

#[test]
fn impossible_devices() {
    let device = Raw::default().header("d", b'3', |header| {
        header.set_device_major(4096).unwrap();
        header.set_device_minor(0).unwrap();
    });
    refused!(device.end(), Error::BadPath { .. });
}

#[test]
fn limits() {
    let check = |tar: Vec<u8>, exceeded: Exceeded, change: &dyn Fn(&mut kina_erofs::Limits)| {
        write(&tar).unwrap_or_else(|error| panic!("{exceeded:?} by default: {error}"));
        let mut options = Options::default();
        change(&mut options.limits);
        match with_options(&tar, &options) {
            Err(Error::LimitExceeded { exceeded: found, .. }) => assert_eq!(found, exceeded),
            other => panic!("{exceeded:?}: {other:?}"),
        }
    };
    let file = || Raw::default().entry("a/b/c", b'0', &[1; 3000]).end();
    check(file(), Exceeded::Entries, &|limits| limits.max_entries = 3);
    check(file(), Exceeded::UnpackedBytes, &|limits| limits.max_unpacked_bytes = 2999);
    check(file(), Exceeded::FileBytes, &|limits| limits.max_file_bytes = 2999);
    check(file(), Exceeded::PathLength, &|limits| limits.max_path_len = 4);
    check(file(), Exceeded::Depth, &|limits| limits.max_depth = 1);
    check(file(), Exceeded::MemoryBytes, &|limits| limits.max_memory_bytes = 2);
    let pax = || {
        let records: &[(&str, &[u8])] = &[("SCHILY.xattr.user.a", &[b'v'; 100])];
        Raw::default().pax(records).entry("a", b'0', b"x").end()
    };
    check(pax(), Exceeded::XattrBytes, &|limits| limits.max_xattr_bytes = 105);
    check(pax(), Exceeded::ExtensionBytes, &|limits| limits.max_extension_bytes = 100);
    let link = Raw::default().link("a", b'2', "target").end();
    check(link, Exceeded::LinkTarget, &|limits| limits.max_link_target = 5);
    let mut trailing = file();
    trailing.resize(trailing.len() + 1000, 7);
    check(trailing, Exceeded::TrailingBytes, &|limits| limits.max_trailing_bytes = 999);
    let sparse = Raw::default()
        .pax(&[("GNU.sparse.size", b"9000"), ("GNU.sparse.map", b"0,1,8000,1")])
        .entry("a", b'0', b"xy")
        .end();
    check(sparse, Exceeded::SparseSegments, &|limits| limits.max_sparse_segments = 1);
}

#[test]
fn absurd_sizes_are_refused_before_they_are_read() {
    let huge = |kind| Raw::default().header("a", kind, |header| header.set_size(1 << 60)).end();
    for kind in [b'0', b'x', b'L', b'K', b'g'] {
        refused!(huge(kind), Error::LimitExceeded { .. });
    }
    let sparse = Raw::default()
        .pax(&[("GNU.sparse.size", b"9000000000000000000"), ("GNU.sparse.map", b"0,1")])
        .entry("a", b'0', b"x");
    refused!(sparse.end(), Error::LimitExceeded { exceeded: Exceeded::FileBytes, .. });
    // A few hundred bytes that would stretch the image over terabytes.
    let map: Vec<String> = (0..5000_u64).map(|at| format!("{},1", at << 29)).collect();
    let scattered = Raw::default()
        .pax(&[("GNU.sparse.size", b"8796093022208"), ("GNU.sparse.map", map.join(",").as_bytes())])
        .entry("a", b'0', &[1; 5000]);
    refused!(scattered.end(), Error::LimitExceeded { exceeded: Exceeded::UnpackedBytes, .. });
    let mut many = Raw::default();
    for _ in 0..17 {
        many = many.pax(&[("path", b"a")]);
    }
    refused!(many.entry("a", b'0', b"").end(), Error::BadExtension { .. });
}

#[test]
fn a_detour_through_links_is_bounded() {
    let mut tar = Raw::default().entry("d", b'5', b"");
    tar = tar.link("l0", b'2', "d/../d/../d/../d/../d");
    let chain = (0..6).fold(tar, |tar, level| {
        let target = format!("l{level}/../l{level}/../l{level}/../l{level}/../l{level}/.");
        tar.link(&format!("l{}", level + 1), b'2', &target)
    });
    // 5^6 hops if nothing stopped it.
    refused!(chain.entry("l6/x", b'0', b"").end(), Error::SymlinkLoop { .. });
}

#[test]
fn what_the_reader_and_the_file_say_is_passed_on() {
    struct Failing;
    impl std::io::Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("broken"))
        }
    }
    let mut file = tempfile::tempfile().unwrap();
    let error = write_layer(std::io::BufReader::new(Failing), &mut file, &Options::default()).unwrap_err();
    assert!(matches!(error, Error::Read { offset: 0, .. }), "{error}");
    let mut read_only = std::fs::File::open("/dev/null").unwrap();
    let error = write_layer(&[][..], &mut read_only, &Options::default()).unwrap_err();
    assert!(matches!(error, Error::Write { .. }), "{error}");
}

#[test]
fn hostile_names_are_shown_escaped() {
    let error = write(&Raw::default().entry("\x1b[2J/../x", b'0', b"").end()).unwrap_err();
    assert_eq!(error.to_string(), r"the path \x1b[2J/../x is refused: it has a `..` in it");
}

#[test]
fn every_error_names_the_entry_and_the_reason() {
    let good = || Raw::default().entry("etc/good", b'0', &[1; 600]);
    let number = |change: &dyn Fn(&mut tar::Header)| good().header("bad", b'0', |h| change(h)).end();
    let pax = |key: &str, value: &[u8]| good().pax(&[(key, value)]).entry("bad", b'0', b"").end();
    let sparse = |size: &str, map: &str| {
        let records: &[(&str, &[u8])] =
            &[("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes())];
        good().pax(records).entry("bad", b'0', b"12345").end()
    };
    let mut checksum = good().entry("bad", b'0', b"").end();
    checksum[1537] ^= 1;
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (good().0[..700].to_vec(), "inside a file's data, in etc/good"),
        (good().0[..1200].to_vec(), "inside a file's padding, in etc/good"),
        ([good().0, vec![b'x'; 100]].concat(), "inside a header, after etc/good"),
        (good().pax(&[("path", b"x")]).0, "inside an entry's headers, after etc/good"),
        (checksum, "the tar header at byte 1536, after etc/good, has a wrong checksum"),
        ([good().0, vec![0; 512], vec![1; 512]].concat(), "a lone zero block at byte 1536"),
        (number(&|h| h.as_old_mut().size = [0xff; 12]), "in bad, has a bad size"),
        (number(&|h| h.as_old_mut().size = *b"nonsense\0\0\0\0"), "in bad, has a bad size"),
        (number(&|h| h.as_old_mut().mode = *b"9999999\0"), "in bad, has a bad mode"),
        (number(&|h| h.as_old_mut().mtime = *b"99999999999\0"), "in bad, has a bad mtime"),
        (number(&|h| h.set_uid(1 << 32)), "in bad, has a bad uid"),
        (number(&|h| h.set_gid(1 << 40)), "in bad, has a bad gid"),
        (pax("size", b"-1"), "after etc/good, has a bad size"),
        (pax("uid", b"4294967296"), "after etc/good, has a bad uid"),
        (pax("mtime", b"1e9"), "after etc/good, has a bad mtime"),
        (pax("mtime", b"99999999999999999999"), "after etc/good, has a bad mtime"),
        (pax("path", b"a\0b"), "after etc/good, is bad: a path has a NUL byte in it"),
        (pax("SCHILY.xattr.", b"v"), "after etc/good, is bad: it names an impossible extended attribute"),
        (pax("LIBARCHIVE.xattr.user.a", b"!!"), "an extended attribute is not base64"),
        (pax("LIBARCHIVE.xattr.user.%zz", b"dg"), "it names an impossible extended attribute"),
        (pax("GNU.sparse.major", b"2"), "bad is bad: its real size is missing"),
        (good().entry("x", b'x', b"99 path=a\n").end(), "a record is longer than the header"),
        (good().entry("x", b'x', b"path=a\n").end(), "a record has no length"),
        (good().entry("x", b'x', b"8 path=ab").end(), "a record does not end with a newline"),
        (
            good().header("x", b'x', |h| h.set_size(1 << 60)).end(),
            "what comes after etc/good exceeds the limit",
        ),
        (sparse("100", "0,10"), "bad is bad: its segments are not what is stored"),
        (sparse("3", "0,5"), "bad is bad: a segment ends behind the end of the file"),
        (sparse("100", "5,3,0,2"), "bad is bad: its segments overlap or are out of order"),
        (sparse("100", "0,5,9"), "bad is bad: its map has an offset without a length"),
        (sparse("18446744073709551615", "0,5"), "after etc/good, has a bad GNU.sparse.size"),
        (sparse("9223372036854775807", "0,5"), "bad exceeds the limit of 8796093022208 bytes in one file"),
        (good().entry("../bad", b'0', b"").end(), "../bad is refused: it has a `..` in it"),
        (good().entry("/../../bad", b'5', b"").end(), "it has a `..` in it"),
        (good().link("bad", b'1', "../../etc/shadow").end(), "../../etc/shadow is refused"),
        (good().link("bad", b'1', "etc/none").end(), "bad is a hard link to etc/none, which is not"),
        (good().link("bad", b'1', "etc").end(), "bad is a hard link to the directory etc"),
        (good().entry("etc/good/bad", b'0', b"").end(), "etc/good/bad lies below something"),
        (good().link("bad", b'2', "bad").entry("bad/x", b'0', b"").end(), "on the way to bad/x"),
        (good().entry("bad", b'V', b"").end(), "bad has the unsupported tar entry type 0x56"),
        (good().entry("bad/.wh.", b'0', b"").end(), "bad/.wh. is not a valid whiteout"),
        (good().header("bad", b'0', |h| h.set_size(1 << 50)).end(), "bad exceeds the limit of"),
    ];
    for (tar, expected) in cases {
        let error = write(&tar).map(|_| ()).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    }
}

#[test]
fn many_links_and_names_cost_what_they_are_counted_for() {
    // A thousand names of 4000 bytes each, in one extension header after the other.
    let mut options = Options::default();
    options.limits.max_memory_bytes = 1 << 20;
    let mut bomb = Raw::default();
    for index in 0..1000 {
        let path = format!("{}{index}", "long-name/".repeat(390));
        bomb = bomb.pax(&[("path", path.as_bytes())]).entry("x", b'0', b"");
    }
    let error = with_options(&bomb.end(), &options).unwrap_err().to_string();
    assert!(error.contains("exceeds the limit of 256 levels of directories"), "{error}");
    let mut bomb = Raw::default();
    for index in 0..20_000 {
        let value = format!("{index:4000}");
        bomb = bomb.pax(&[("SCHILY.xattr.user.bomb", value.as_bytes())]).entry("x", b'0', b"");
    }
    let error = with_options(&bomb.end(), &options).unwrap_err().to_string();
    assert_eq!(error, "x exceeds the limit of 1048576 bytes of metadata held in memory");
}
