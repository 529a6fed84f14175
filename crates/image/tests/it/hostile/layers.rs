//! Layers: paths, links, whiteouts, sizes, counts and compression.

use std::io::Write;

use super::tar::{Raw, good};
use super::{ACCEPTED, Case};
use crate::fixtures::gzip;

fn raw() -> Raw {
    Raw::default()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// Not compressed: where it breaks does not depend on the compressor.
fn stored(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn cut(mut bytes: Vec<u8>, less: usize) -> Vec<u8> {
    bytes.truncate(bytes.len() - less);
    bytes
}

/// A sparse file with this map and size, and two bytes of data.
fn sparse(size: &str, map: &str) -> Vec<u8> {
    raw()
        .pax(&[("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes())])
        .file("sparse", b"xy")
        .gz()
}

fn chain_of_links(length: usize) -> Raw {
    (0..length).fold(raw().entry("d", b'5', b""), |tar, number| match number {
        0 => tar.link("l0", b'2', "d"),
        _ => tar.link(&format!("l{number}"), b'2', &format!("l{}", number - 1)),
    })
}

pub(crate) const CASES: &[Case] = &[
    // Paths.
    Case::layer(
        "a path that begins with `..`",
        "layer (layer) was refused: the path ../etc/passwd is refused: it has a `..` in it",
        || raw().file("../etc/passwd", b"x").gz(),
    ),
    Case::layer(
        "a path with `..` inside",
        "layer (layer) was refused: the path usr/../../etc/passwd is refused: it has a `..` in it",
        || raw().file("usr/../../etc/passwd", b"x").gz(),
    ),
    Case::layer(
        "a path that is `..`",
        "layer (layer) was refused: the path .. is refused: it has a `..` in it",
        || raw().entry("..", b'5', b"").gz(),
    ),
    Case::layer("an absolute path, which stays inside the layer", ACCEPTED, || {
        raw().file("/etc/passwd", b"x").gz()
    }),
    Case::layer("an empty path", "layer (layer) was refused: the path \"\" is refused: it is empty", || {
        raw().file("", b"x").gz()
    }),
    Case::layer(
        "a path with a NUL byte",
        "layer (layer) was refused: the tar extension header at byte 0, before the first entry, is bad: a path has a NUL byte in it",
        || raw().pax(&[("path", b"a\0b")]).file("a", b"x").gz(),
    ),
    Case::layer(
        "a name of 256 bytes",
        "layer (layer) was refused: the path nn[...] is refused: it has a component longer than 255 bytes",
        || raw().pax(&[("path", "n".repeat(256).as_bytes())]).file("a", b"x").gz(),
    ),
    Case::layer(
        "a path of 5000 bytes",
        "layer (layer) was refused: n/n/[...]... exceeds the limit of 4096 bytes in a path",
        || raw().pax(&[("path", "n/".repeat(2500).as_bytes())]).file("a", b"x").gz(),
    ),
    Case::layer(
        "a path with 300 directories",
        "layer (layer) was refused: d/d/[...]... exceeds the limit of 64 entries",
        || raw().pax(&[("path", "d/".repeat(300).as_bytes())]).file("a", b"x").gz(),
    ),
    Case::layer(
        "a name with terminal escapes",
        "layer (layer) was refused: the path \\x1b[2J/../x is refused: it has a `..` in it",
        || raw().file("\x1b[2J/../x", b"x").gz(),
    ),
    Case::layer(
        "a file below a file",
        "layer (layer) was refused: f/a lies below something that is not a directory",
        || raw().file("f", b"x").file("f/a", b"x").gz(),
    ),
    Case::layer(
        "a file in place of the root",
        "layer (layer) was refused: the root of the layer must be a directory",
        || raw().file(".", b"x").gz(),
    ),
    // Links.
    Case::layer(
        "a hard link out of the tree",
        "layer (layer) was refused: the path ../../etc/shadow is refused: it has a `..` in it",
        || raw().link("l", b'1', "../../etc/shadow").gz(),
    ),
    Case::layer(
        "a hard link to an absolute path outside",
        "layer (layer) was refused: l is a hard link to /etc/shadow, which is not in the layer before it",
        || raw().link("l", b'1', "/etc/shadow").gz(),
    ),
    Case::layer(
        "a hard link to itself",
        "layer (layer) was refused: l is a hard link to l, which is not in the layer before it",
        || raw().link("l", b'1', "l").gz(),
    ),
    Case::layer(
        "a hard link to what comes later",
        "layer (layer) was refused: l is a hard link to later, which is not in the layer before it",
        || raw().link("l", b'1', "later").file("later", b"x").gz(),
    ),
    Case::layer(
        "a hard link to a directory",
        "layer (layer) was refused: l is a hard link to the directory d",
        || raw().entry("d", b'5', b"").link("l", b'1', "d").gz(),
    ),
    Case::layer(
        "a hard link through a symbolic link out of the tree",
        "layer (layer) was refused: l is a hard link to out/shadow, which is not in the layer before it",
        || raw().link("out", b'2', "../../../etc").link("l", b'1', "out/shadow").gz(),
    ),
    Case::layer("a file through a link to `../../etc`, which stays inside the layer", ACCEPTED, || {
        raw().link("out", b'2', "../../etc").file("out/passwd", b"x").gz()
    }),
    Case::layer("a file through a link to `/etc`, which stays inside the layer", ACCEPTED, || {
        raw().link("out", b'2', "/etc").file("out/passwd", b"x").gz()
    }),
    Case::layer(
        "a file through two links that name each other",
        "layer (layer) was refused: too many symbolic links on the way to a/x",
        || raw().link("a", b'2', "b").link("b", b'2', "a").file("a/x", b"x").gz(),
    ),
    Case::layer(
        "a file through a link to itself",
        "layer (layer) was refused: too many symbolic links on the way to a/x",
        || raw().link("a", b'2', "a").file("a/x", b"x").gz(),
    ),
    Case::layer(
        "a file through a chain of 41 links",
        "layer (layer) was refused: too many symbolic links on the way to l40/x",
        || chain_of_links(41).file("l40/x", b"x").gz(),
    ),
    Case::layer(
        "a symbolic link to nothing",
        "layer (layer) was refused: the path l is refused: it is a symbolic link to nothing",
        || raw().link("l", b'2', "").gz(),
    ),
    Case::layer(
        "a symbolic link whose target has 5000 bytes",
        "layer (layer) was refused: l exceeds the limit of 4095 bytes in a link target",
        || raw().entry("long", b'K', &[b't'; 5000]).link("l", b'2', "t").gz(),
    ),
    // Types and whiteouts.
    Case::layer(
        "an entry of an unknown type",
        "layer (layer) was refused: volume has the unsupported tar entry type 0x56",
        || raw().entry("volume", b'V', b"").gz(),
    ),
    Case::layer(
        "a device that Linux cannot number",
        "layer (layer) was refused: the path dev is refused: it is a device whose number Linux cannot hold",
        || {
            raw()
                .header("dev", b'3', |header| {
                    header.set_device_major(4096).unwrap();
                    header.set_device_minor(0).unwrap();
                })
                .gz()
        },
    ),
    Case::layer("a whiteout of nothing", "layer (layer) was refused: a/.wh. is not a valid whiteout", || {
        raw().file("a/.wh.", b"").gz()
    }),
    Case::layer("a whiteout of `..`", "layer (layer) was refused: a/.wh... is not a valid whiteout", || {
        raw().file("a/.wh...", b"").gz()
    }),
    Case::layer("a whiteout of `.`", "layer (layer) was refused: a/.wh.. is not a valid whiteout", || {
        raw().file("a/.wh..", b"").gz()
    }),
    Case::layer(
        "a whiteout outside the tree",
        "layer (layer) was refused: the path ../.wh.passwd is refused: it has a `..` in it",
        || raw().file("../.wh.passwd", b"").gz(),
    ),
    Case::layer(
        "a file below a whiteout",
        "layer (layer) was refused: .wh.a/b is not a valid whiteout",
        || raw().file(".wh.a/b", b"x").gz(),
    ),
    // Sizes.
    Case::layer(
        "a header that announces 8 GiB",
        "layer (layer) was refused: big exceeds the limit of 1048576 unpacked bytes",
        || raw().header("big", b'0', |header| header.set_size(8 << 30)).gz(),
    ),
    Case::layer(
        "a header that announces more than the stream has",
        "layer (layer) was refused: the tar stream ends at byte 512, inside a file's data, in big",
        || gzip(&raw().header("big", b'0', |header| header.set_size(900_000)).0),
    ),
    Case::layer(
        "a negative size in base 256",
        "layer (layer) was refused: the tar header at byte 0, in f, has a bad size",
        || raw().header("f", b'0', |header| header.as_old_mut().size = [0xff; 12]).gz(),
    ),
    Case::layer(
        "a size in base 256 beyond 64 bits",
        "layer (layer) was refused: the tar header at byte 0, in f, has a bad size",
        || {
            raw()
                .header("f", b'0', |header| {
                    header.as_old_mut().size = [0xbf; 12];
                })
                .gz()
        },
    ),
    Case::layer(
        "a PAX size beyond 64 bits",
        "layer (layer) was refused: the tar header at byte 0, before the first entry, has a bad size",
        || raw().pax(&[("size", b"99999999999999999999")]).file("f", b"x").gz(),
    ),
    Case::layer(
        "a negative PAX size",
        "layer (layer) was refused: the tar header at byte 0, before the first entry, has a bad size",
        || raw().pax(&[("size", b"-1")]).file("f", b"x").gz(),
    ),
    Case::layer(
        "a PAX size that is no number",
        "layer (layer) was refused: the tar header at byte 0, before the first entry, has a bad size",
        || raw().pax(&[("size", b"NaN")]).file("f", b"x").gz(),
    ),
    Case::layer(
        "a PAX size beyond the stream",
        "layer (layer) was refused: the tar stream ends at byte 3072, inside a file's data, in f",
        || raw().pax(&[("size", b"900000")]).file("f", b"x").gz(),
    ),
    Case::layer(
        "an owner beyond 32 bits",
        "layer (layer) was refused: the tar header at byte 0, in f, has a bad uid",
        || raw().header("f", b'0', |header| header.set_uid(1 << 32)).gz(),
    ),
    Case::layer(
        "a time that is no number",
        "layer (layer) was refused: the tar header at byte 0, before the first entry, has a bad mtime",
        || raw().pax(&[("mtime", b"NaN")]).file("f", b"x").gz(),
    ),
    // Sparse files.
    Case::layer(
        "a sparse map whose pieces overlap",
        "layer (layer) was refused: the sparse file sparse is bad: its segments overlap or are out of order",
        || sparse("100", "0,1,0,1"),
    ),
    Case::layer(
        "a sparse map beyond the file",
        "layer (layer) was refused: the sparse file sparse is bad: a segment ends behind the end of the file",
        || sparse("100", "0,1,100,1"),
    ),
    Case::layer(
        "a sparse map for more data than there is",
        "layer (layer) was refused: the sparse file sparse is bad: its segments are not what is stored",
        || sparse("100", "0,9"),
    ),
    Case::layer(
        "a sparse map that overflows",
        "layer (layer) was refused: the tar header at byte 0, before the first entry, has a bad GNU.sparse.map",
        || sparse("100", "18446744073709551615,2"),
    ),
    Case::layer(
        "a sparse file of 9 EB",
        "layer (layer) was refused: sparse exceeds the limit of 8796093022208 bytes in one file",
        || sparse("9000000000000000000", "0,2"),
    ),
    Case::layer(
        "a sparse file with two bytes terabytes apart",
        "layer (layer) was refused: sparse exceeds the limit of 1048576 unpacked bytes",
        || sparse("8796093022208", "0,1,8000000000000,1"),
    ),
    Case::layer(
        "a sparse file without a size",
        "layer (layer) was refused: the sparse file sparse is bad: its real size is missing",
        || raw().pax(&[("GNU.sparse.map", b"0,1")]).file("sparse", b"x").gz(),
    ),
    Case::layer(
        "a sparse file of an unknown version",
        "layer (layer) was refused: the sparse file sparse is bad: its sparse format is unknown",
        || raw().pax(&[("GNU.sparse.major", b"7"), ("GNU.sparse.realsize", b"9")]).file("sparse", b"x").gz(),
    ),
    Case::layer(
        "a sparse map of a trillion pieces",
        "layer (layer) was refused: sparse exceeds the limit of 262144 segments in a sparse file",
        || {
            let mut map = b"1000000000000\n".to_vec();
            map.resize(512, 0);
            raw()
                .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"9")])
                .file("sparse", &map)
                .gz()
        },
    ),
    // Counts.
    Case::layer(
        "65 entries where 64 are allowed",
        "layer (layer) was refused: f63 exceeds the limit of 64 entries",
        || (0..65).fold(raw(), |tar, number| tar.file(&format!("f{number}"), b"")).gz(),
    ),
    Case::layer(
        "33 entries that make 33 more directories",
        "layer (layer) was refused: d31/f exceeds the limit of 64 entries",
        || (0..33).fold(raw(), |tar, number| tar.file(&format!("d{number}/f"), b"")).gz(),
    ),
    Case::layer(
        "200 KiB of extended attributes on one file",
        "layer (layer) was refused: f exceeds the limit of 131072 bytes of extended attributes",
        || {
            let value = [b'v'; 50 << 10];
            let names: Vec<String> = (0..4).map(|number| format!("SCHILY.xattr.user.{number}")).collect();
            let records: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &value[..])).collect();
            raw().pax(&records).file("f", b"x").gz()
        },
    ),
    Case::layer(
        "a PAX header of 2 GiB",
        "layer (layer) was refused: what comes before the first entry exceeds the limit of 1048576 bytes in extension headers",
        || raw().header("pax", b'x', |header| header.set_size(2 << 30)).gz(),
    ),
    Case::layer(
        "a GNU long name of 2 GiB",
        "layer (layer) was refused: what comes before the first entry exceeds the limit of 1048576 bytes in extension headers",
        || raw().header("long", b'L', |header| header.set_size(2 << 30)).gz(),
    ),
    Case::layer(
        "17 extension headers before one entry",
        "layer (layer) was refused: the tar extension header at byte 16384, before the first entry, is bad: too many extension headers before one entry",
        || (0..17).fold(raw(), |tar, _| tar.pax(&[("path", b"a")])).file("a", b"x").gz(),
    ),
    Case::layer(
        "a PAX record longer than its header",
        "layer (layer) was refused: the tar extension header at byte 0, before the first entry, is bad: a record is longer than the header",
        || raw().entry("pax", b'x', b"99 path=a\n").file("a", b"x").gz(),
    ),
    Case::layer(
        "a PAX record without an equals sign",
        "layer (layer) was refused: the tar extension header at byte 0, before the first entry, is bad: a record has no equals sign",
        || raw().entry("pax", b'x', b"7 path\n").file("a", b"x").gz(),
    ),
    Case::layer(
        "a PAX header with no entry behind it",
        "layer (layer) was refused: the tar stream ends at byte 1536, inside an entry's headers, before the first entry",
        || raw().pax(&[("path", b"a")]).gz(),
    ),
    Case::layer(
        "a header with a wrong checksum",
        "layer (layer) was refused: the tar header at byte 0, before the first entry, has a wrong checksum",
        || {
            let mut tar = good();
            tar[0] ^= 1;
            gzip(&tar)
        },
    ),
    Case::layer(
        "a lone zero block",
        "layer (layer) was refused: a lone zero block at byte 0 in the tar stream, before the first entry",
        || gzip(&[vec![0; 512], good()].concat()),
    ),
    // Compression.
    Case::layer(
        "a gzip bomb in one file",
        "layer (layer) was refused: zeros exceeds the limit of 1048576 unpacked bytes",
        || raw().file("zeros", &vec![0; 8 << 20]).gz(),
    ),
    Case::layer(
        "a gzip bomb behind the archive's end",
        "layer (layer): unpacked bytes exceed the limit of 1048576",
        || {
            let mut tar = good();
            tar.resize(8 << 20, 0);
            gzip(&tar)
        },
    ),
    Case::layer(
        "a zstd bomb in one file",
        "layer (layer) was refused: zeros exceeds the limit of 1048576 unpacked bytes",
        || zstd(&raw().file("zeros", &vec![0; 8 << 20]).end()),
    ),
    Case::layer(
        "a zstd bomb behind the archive's end",
        "layer (layer): unpacked bytes exceed the limit of 1048576",
        || {
            let mut tar = good();
            tar.resize(8 << 20, 0);
            zstd(&tar)
        },
    ),
    Case::layer(
        "a gzip archive in a gzip stream",
        "layer (layer) was refused: the tar header at byte 0, before the first entry, has a wrong checksum",
        || gzip(&stored(&good())),
    ),
    Case::layer(
        "ten thousand empty gzip members before the archive, bounded by the layer's size",
        ACCEPTED,
        || [gzip(&[]).repeat(10_000), gzip(&good())].concat(),
    ),
    Case::layer(
        "a gzip header whose file name has 100 kB",
        "layer (layer) was refused: cannot read the tar stream at byte 0, before the first entry: gzip header field too long",
        || {
            let mut stream = vec![0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 255];
            stream.resize(100_000, b'n');
            stream
        },
    ),
    Case::layer(
        "a zstd window of 1 GiB",
        "layer (layer) was refused: cannot read the tar stream at byte 0, before the first entry: Frame requires too much memory for decoding",
        || vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0xa0, 1, 0, 0],
    ),
    Case::layer(
        "a zstd stream that needs a dictionary",
        "layer (layer) was refused: cannot read the tar stream at byte 0, before the first entry: Dictionary mismatch",
        || vec![0x28, 0xb5, 0x2f, 0xfd, 0x21, 7, 1, 9, 0, 0, b'x'],
    ),
    Case::layer(
        "a truncated gzip stream",
        "layer (layer) was refused: cannot read the tar stream at byte 2044, after good: incomplete deflate stream",
        || cut(stored(&good()), 12),
    ),
    Case::layer(
        "a truncated zstd stream",
        "layer (layer) was refused: cannot read the tar stream at byte 0, before the first entry: incomplete frame",
        || cut(zstd(&good()), 3),
    ),
    Case::layer(
        "a truncated archive in a whole gzip stream",
        "layer (layer) was refused: the tar stream ends at byte 700, inside a file's padding, in good",
        || gzip(&good()[..700]),
    ),
    Case::layer(
        "a gzip stream with a wrong checksum",
        "layer (layer) was refused: cannot read the tar stream at byte 2048, after good: corrupt gzip stream does not have a matching checksum",
        || {
            let mut packed = gzip(&good());
            let at = packed.len() - 8;
            packed[at] ^= 1;
            packed
        },
    ),
    Case::layer(
        "garbage behind the gzip stream",
        "layer (layer) was refused: cannot read the tar stream at byte 2048, after good: invalid gzip header",
        || [gzip(&good()), b"garbage, no gzip".to_vec()].concat(),
    ),
    Case::layer(
        "garbage behind the zstd stream",
        "layer (layer) was refused: cannot read the tar stream at byte 2048, after good: Unknown frame descriptor",
        || [zstd(&good()), b"garbage, no zstd".to_vec()].concat(),
    ),
    Case::layer(
        "an xz stream",
        "layer (layer) was refused: the tar header at byte 0, before the first entry, has a bad checksum",
        || [&[0xfd, b'7', b'z', b'X', b'Z', 0][..], &[7; 600]].concat(),
    ),
    Case::layer(
        "a web page",
        "layer (layer) was refused: the tar header at byte 0, before the first entry, has a bad checksum",
        || b"<!DOCTYPE html><html><body>Please log in.</body></html>".repeat(20),
    ),
    Case::layer("zstd labelled gzip: the first bytes count, not the label", ACCEPTED, || zstd(&good())),
    Case::layer("no compression, labelled gzip: the first bytes count, not the label", ACCEPTED, good),
];
