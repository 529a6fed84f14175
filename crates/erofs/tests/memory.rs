//! How much memory a layer takes, whatever its size: each case in a process of its own.
//!
//! `KINA_LAYER_SCALE=10` makes them as much larger, for figures.
#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]
#![allow(clippy::print_stdout, reason = "the child tells its parent")]

mod common;

use std::io::{BufReader, Read};
use std::process::Command;

use common::Raw;
use kina_erofs::{Options, write_layer};

const CHILD: &str = "KINA_LAYER_MEMORY_CASE";

fn scale() -> u64 {
    std::env::var("KINA_LAYER_SCALE").ok().and_then(|scale| scale.parse().ok()).unwrap_or(1)
}

/// A stream that is made while it is read.
struct Stream<F> {
    next: F,
    current: Vec<u8>,
    at: usize,
}

impl<F: FnMut(&mut Vec<u8>)> Stream<F> {
    fn new(next: F) -> Self {
        Self { next, current: Vec::new(), at: 0 }
    }
}

impl<F: FnMut(&mut Vec<u8>)> Read for Stream<F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.current.len() {
            self.current.clear();
            self.at = 0;
            (self.next)(&mut self.current);
        }
        let count = buffer.len().min(self.current.len() - self.at);
        buffer[..count].copy_from_slice(&self.current[self.at..][..count]);
        self.at += count;
        Ok(count)
    }
}

/// One file of this many bytes.
fn large_file(bytes: u64) -> impl Read {
    let mut header = Some(Raw::default().header("large", b'0', |header| header.set_size(bytes)).0);
    let mut left = bytes;
    Stream::new(move |piece| {
        if let Some(header) = header.take() {
            *piece = header;
        } else if left > 0 {
            piece.resize(usize::try_from(left.min(1 << 20)).unwrap(), 7);
            left -= piece.len() as u64;
        }
    })
}

/// So many small files in directories of a thousand.
fn many_files(count: u64) -> impl Read {
    let mut number = 0;
    Stream::new(move |piece| {
        while number < count && piece.len() < 1 << 16 {
            let name = format!("usr/share/package-{}/file-{number}", number / 1000);
            piece.append(&mut Raw::default().entry(&name, b'0', b"a few bytes of content").0);
            number += 1;
        }
    })
}

fn write(reader: impl Read) {
    let mut image = tempfile::tempfile().unwrap();
    write_layer(BufReader::with_capacity(1 << 18, reader), &mut image, &Options::default()).unwrap();
}

#[test]
#[ignore = "the other tests run it in a process of its own"]
fn child() {
    let Ok(case) = std::env::var(CHILD) else { return };
    match case.as_str() {
        "nothing" => write(&[][..]),
        "large" => write(large_file(scale() * (200 << 20))),
        "sparse" => {
            let map: Vec<String> = (0..4096_u64).map(|at| format!("{},1", at << 29)).collect();
            let map = map.join(",");
            let records: &[(&str, &[u8])] =
                &[("GNU.sparse.size", b"2199023255552"), ("GNU.sparse.map", map.as_bytes())];
            write(Raw::default().pax(records).entry("sparse", b'0', &[1; 4096]).end().as_slice());
        }
        "many" => write(many_files(scale() * 100_000)),
        other => panic!("{other}"),
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", status.lines().find(|line| line.starts_with("VmHWM:")).unwrap());
}

/// The peak of a process that writes this case's layer, in KiB.
fn peak(case: &str) -> u64 {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "child", "--nocapture"])
        .env(CHILD, case)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{case}: {text}{}", String::from_utf8_lossy(&output.stderr));
    let line = text.lines().find_map(|line| line.split_once("VmHWM:")).unwrap().1;
    let peak = line.trim().trim_end_matches(" kB").parse().unwrap();
    println!("{case}: {peak} KiB");
    peak
}

#[test]
fn the_size_of_files_costs_nothing() {
    let base = peak("nothing");
    let large = peak("large");
    assert!(large < base + 4096, "{large} KiB for a large file, {base} KiB for none");
    // The map: four bytes a chunk, and what the header says.
    let sparse = peak("sparse");
    assert!(sparse < base + 8192, "{sparse} KiB for 2 TiB of holes, {base} KiB for none");
}

#[test]
fn entries_cost_a_few_hundred_bytes_each() {
    let base = peak("nothing");
    let many = peak("many");
    let each = (many - base) * 1024 / (scale() * 100_000);
    assert!(each < 512, "{each} bytes an entry: {many} KiB, {base} KiB for none");
}
