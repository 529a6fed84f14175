//! Raw tar streams.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Seek};

use kina_erofs::{Limits, Options, write_layer};

use crate::erofs;

const BLOCK: usize = 512;

/// Writes the stream's image, and reads that back if there is one.
pub(crate) fn run(input: &[u8]) {
    let mut stream = input.to_vec();
    repair(&mut stream);
    check(&stream);
}

/// What every stream has to do: be refused, or give a good image.
pub(crate) fn check(stream: &[u8]) {
    thread_local! {
        static FILE: RefCell<Option<File>> = const { RefCell::new(None) };
    }
    let options = Options { limits: limits(), ..Options::default() };
    FILE.with_borrow_mut(|file| {
        let file = file.get_or_insert_with(|| tempfile::tempfile().expect("a temporary file"));
        let Ok(summary) = write_layer(stream, file, &options) else { return };
        let mut image = Vec::new();
        file.rewind().expect("a file has a start");
        file.read_to_end(&mut image).expect("the image can be read");
        erofs::check(&image, &summary, &options.limits);
    });
}

/// Small, so that every one of them is met, and no run takes long.
fn limits() -> Limits {
    Limits {
        max_entries: 100,
        max_unpacked_bytes: 1 << 20,
        max_path_len: 600,
        max_depth: 8,
        max_xattr_bytes: 8 << 10,
        max_extension_bytes: 16 << 10,
        max_sparse_segments: 50,
        max_memory_bytes: 2 << 20,
        max_trailing_bytes: 8 << 10,
        ..Limits::default()
    }
}

/// Makes the checksum of each header right: a fuzzer does not guess them.
fn repair(stream: &mut [u8]) {
    let mut at = 0;
    while let Some(block) = stream.get_mut(at..at + BLOCK) {
        at += BLOCK;
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let size = block[124..136].iter().take_while(|byte| matches!(byte, b'0'..=b'7'));
        let size = size.fold(0_usize, |size, byte| size * 8 + usize::from(byte - b'0'));
        let has_data = matches!(block[156], 0 | b'0' | b'7' | b'S' | b'x' | b'g' | b'L' | b'K');
        if has_data {
            at = at.saturating_add(size.next_multiple_of(BLOCK));
        }
    }
}
