//! Layers as registries send them.
#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};

use common::Raw;
use flate2::write::GzEncoder;
use kina_erofs::{Compression, Error, Exceeded, Options, Packed, write_layer, write_packed_layer};
use sha2::{Digest as _, Sha256};

/// More than all the buffers between the threads hold.
fn archive() -> Vec<u8> {
    let data: Vec<u8> = (0..5_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    Raw::default().entry("etc/motd", b'0', b"hello").entry("big", b'0', &data).end()
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 1).unwrap()
}

fn pack(layer: impl BufRead + Send, options: &Options) -> Result<(Packed, Vec<u8>), Error> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let packed = write_packed_layer(layer, &mut file.reopen().unwrap(), options)?;
    Ok((packed, std::fs::read(file.path()).unwrap()))
}

fn refused(layer: impl BufRead + Send, options: &Options) -> Error {
    pack(layer, options).map(|_| ()).unwrap_err()
}

/// The text of an error with its causes.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[test]
fn every_compression_gives_the_same_image_and_diff_id() {
    let archive = archive();
    let file = tempfile::NamedTempFile::new().unwrap();
    let summary = write_layer(archive.as_slice(), &mut file.reopen().unwrap(), &Options::default()).unwrap();
    let expected = std::fs::read(file.path()).unwrap();
    let (first, second) = archive.split_at(1_234_567);
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"any"].concat();
    for (packed, compression) in [
        (archive.clone(), Compression::Plain),
        (gzip(&archive), Compression::Gzip),
        ([gzip(first), gzip(second)].concat(), Compression::Gzip),
        (zstd(&archive), Compression::Zstd),
        ([zstd(first), zstd(second)].concat(), Compression::Zstd),
        ([skippable, zstd(&archive)].concat(), Compression::Zstd),
    ] {
        // Also when the bytes come one by one.
        for capacity in [13, 1 << 18] {
            let reader = BufReader::with_capacity(capacity, packed.as_slice());
            let (packed, image) = pack(reader, &Options::default()).unwrap();
            assert_eq!(packed.summary, summary);
            assert_eq!(packed.compression, compression);
            assert_eq!(packed.archive_sha256, <[u8; 32]>::from(Sha256::digest(&archive)));
            assert_eq!(packed.archive_bytes, archive.len() as u64);
            assert!(image == expected);
        }
    }
}

#[test]
fn damaged_compression_is_a_read_error() {
    let archive = archive();
    for good in [gzip(&archive), zstd(&archive)] {
        let cut = good.len() / 2;
        let mut broken = good.clone();
        broken[cut] ^= 0xff;
        let mut damaged = vec![good[..cut].to_vec(), good[..good.len() - 1].to_vec()];
        // zstd's checksum is optional; what it does not find, the blob's digest does.
        if Compression::of(&good) == Compression::Gzip {
            damaged.push(broken);
        }
        for damaged in damaged {
            let error = refused(damaged.as_slice(), &Options::default());
            // A flipped bit may also show in the archive first.
            assert!(
                matches!(error, Error::Read { .. } | Error::BadChecksum { .. } | Error::Truncated { .. }),
                "{}",
                chain(&error)
            );
        }
        let trailing = [good, b"garbage".to_vec()].concat();
        let error = refused(trailing.as_slice(), &Options::default());
        assert!(matches!(error, Error::Read { .. }), "{}", chain(&error));
    }
}

#[test]
fn a_bomb_is_stopped_at_the_limit() {
    let mut options = Options::default();
    options.limits.max_archive_bytes = 1 << 20;
    // Behind the end of the archive, where no entry counts it.
    let zeros = [Raw::default().entry("a", b'0', b"x").end(), vec![0; 64 << 20]].concat();
    for packed in [gzip(&zeros), zstd(&zeros)] {
        let error = refused(packed.as_slice(), &options);
        let exceeded = Exceeded::ArchiveBytes;
        assert!(
            matches!(error, Error::LimitExceeded { exceeded: found, .. } if found == exceeded),
            "{}",
            chain(&error)
        );
    }
    // A window of 2 GiB, which the decoder would have to hold.
    let huge_window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00];
    let error = refused(huge_window.as_slice(), &options);
    assert!(matches!(error, Error::Read { .. }), "{}", chain(&error));
}

#[test]
fn a_failing_reader_ends_the_work_and_is_quoted() {
    struct Failing<'a>(&'a [u8]);
    impl Read for Failing<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(std::io::Error::other("the cable is cut")),
                count => Ok(count),
            }
        }
    }
    for packed in [archive(), gzip(&archive()), zstd(&archive())] {
        let reader = BufReader::new(Failing(&packed[..packed.len() / 2]));
        let error = refused(reader, &Options::default());
        assert!(chain(&error).contains("the cable is cut"), "{}", chain(&error));
    }
}

#[test]
fn a_bad_archive_stops_the_decoder_too() {
    let mut bad = Raw::default().entry("../up", b'0', b"x").end();
    bad.resize(64 << 20, 0);
    for packed in [bad.clone(), gzip(&bad), zstd(&bad)] {
        let error = refused(packed.as_slice(), &Options::default());
        assert!(matches!(error, Error::BadPath { .. }), "{}", chain(&error));
    }
}
