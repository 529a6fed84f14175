//! Entries of every kind in any order, built from bytes: tar headers are right
//! by construction, so that inputs reach what lies behind them.

use crate::tar::check;

/// What paths are made of: few names, so that entries meet.
const NAMES: &[&[u8]] = &[
    b"a",
    b"b",
    b"c",
    b".",
    b"..",
    b".wh.a",
    b".wh.b",
    b".wh..wh..opq",
    b".wh..wh.plnk",
    b".wh.",
    b".wh...",
    b"",
    b"-",
    b"\xff",
    b"!",
    b"d",
];
const SIZES: &[usize] = &[0, 1, 511, 512, 513, 2047, 2048, 2049, 4031, 4032, 4033, 4096, 4097, 9000, 20_000];

pub(crate) fn run(input: &[u8]) {
    let mut plan = Plan(input);
    let mut stream = Vec::new();
    while let Some(operation) = plan.byte() {
        entry(&mut stream, &mut plan, operation);
    }
    stream.resize(stream.len() + 1024, 0);
    check(&stream);
}

/// The input, read as decisions; zero once it has ended.
struct Plan<'a>(&'a [u8]);

impl Plan<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn next(&mut self) -> u8 {
        self.byte().unwrap_or(0)
    }

    fn path(&mut self) -> Vec<u8> {
        let mut path = Vec::new();
        for _ in 0..=self.next() % 4 {
            if !path.is_empty() {
                path.push(b'/');
            }
            let choice = usize::from(self.next());
            if choice < 240 {
                path.extend(NAMES[choice % NAMES.len()]);
            } else {
                path.resize(path.len() + 16 * (choice - 224), b'n');
            }
        }
        path
    }

    fn size(&mut self) -> usize {
        SIZES[usize::from(self.next()) % SIZES.len()]
    }
}

fn entry(stream: &mut Vec<u8>, plan: &mut Plan<'_>, operation: u8) {
    let mut records = Vec::new();
    if operation & 0x10 != 0 {
        let value = vec![b'v'; usize::from(plan.next()) * 8];
        let names =
            ["user.a", "trusted.overlay.opaque", "security.capability", "system.posix_acl_access", "odd"];
        let name = names[usize::from(plan.next()) % names.len()];
        pax(&mut records, format!("SCHILY.xattr.{name}").as_bytes(), &value);
    }
    if operation & 0x20 != 0 {
        pax(&mut records, b"mtime", format!("{}.{}", plan.next(), plan.next()).as_bytes());
        pax(&mut records, b"uid", format!("{}", u32::from(plan.next()) << 20).as_bytes());
    }
    let mut data = Vec::new();
    let mut link = Vec::new();
    let mut kind = b"0512346S"[usize::from(operation & 7)];
    let path = plan.path();
    match kind {
        b'0' => data = vec![plan.next(); plan.size()],
        b'1' | b'2' => link = plan.path(),
        b'S' => {
            kind = b'0';
            let mut map = Vec::new();
            let mut at = 0;
            for _ in 0..plan.next() % 5 {
                at += plan.size() as u64 * if plan.next() & 1 == 0 { 1 } else { 1 << 20 };
                let length = plan.size();
                map.extend([at.to_string(), length.to_string()]);
                data.resize(data.len() + length, b's');
                at += length as u64;
            }
            at += plan.size() as u64;
            pax(&mut records, b"GNU.sparse.size", at.to_string().as_bytes());
            pax(&mut records, b"GNU.sparse.map", map.join(",").as_bytes());
        }
        _ => {}
    }
    if path.len() > 100 {
        pax(&mut records, b"path", &path);
    }
    if link.len() > 100 {
        pax(&mut records, b"linkpath", &link);
    }
    if !records.is_empty() {
        header(stream, b"pax", b'x', b"", &records);
    }
    header(stream, &path, kind, &link, &data);
}

fn pax(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length += 1;
    }
    records.extend(format!("{length} ").bytes());
    records.extend(key);
    records.push(b'=');
    records.extend(value);
    records.push(b'\n');
}

fn header(stream: &mut Vec<u8>, path: &[u8], kind: u8, link: &[u8], data: &[u8]) {
    let mut block = [0; 512];
    let mut set = |at: usize, room: usize, text: &[u8]| {
        let text = &text[..text.len().min(room)];
        block[at..at + text.len()].copy_from_slice(text);
    };
    set(0, 100, path);
    set(100, 8, b"0000755\0");
    set(108, 8, b"0000000\0");
    set(116, 8, b"0000000\0");
    set(124, 12, format!("{:011o}\0", data.len()).as_bytes());
    set(136, 12, b"00000000000\0");
    set(148, 8, b"        ");
    set(156, 1, &[kind]);
    set(157, 100, link);
    set(257, 8, b"ustar\x0000");
    set(329, 8, b"0000001\0");
    set(337, 8, b"0000003\0");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    stream.extend(block);
    stream.extend(data);
    stream.resize(stream.len().next_multiple_of(512), 0);
}
