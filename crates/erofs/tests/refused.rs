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
    refused!(tar, Error::BadChecksum { offset: 0 });
    refused!([7; 1024], Error::BadNumber { field: "checksum", .. });
    let lone = [vec![0; 512], Raw::default().entry("a", b'0', b"x").end()].concat();
    refused!(lone, Error::LoneZeroBlock { offset: 0 });
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
