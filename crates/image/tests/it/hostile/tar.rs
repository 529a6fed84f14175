//! Tar streams made header by header, without the checks of a well-meaning writer.

use std::io::Read;

use flate2::read::MultiGzDecoder;

use crate::fixtures::gzip;

#[derive(Clone, Default)]
pub(crate) struct Raw(pub(crate) Vec<u8>);

impl Raw {
    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(name, b'0', data)
    }

    pub(crate) fn entry(self, name: &str, kind: u8, data: &[u8]) -> Self {
        let mut made = self.header(name, kind, |header| header.set_size(data.len() as u64));
        made.0.extend(data);
        made.0.resize(made.0.len().next_multiple_of(512), 0);
        made
    }

    pub(crate) fn link(self, name: &str, kind: u8, target: &str) -> Self {
        self.header(name, kind, |header| {
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        })
    }

    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length += 1;
            }
            data.extend(format!("{length} {key}=").bytes());
            data.extend(*value);
            data.push(b'\n');
        }
        self.entry("pax", b'x', &data)
    }

    pub(crate) fn header(mut self, name: &str, kind: u8, change: impl FnOnce(&mut ::tar::Header)) -> Self {
        let mut header = ::tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(::tar::EntryType::new(kind));
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        change(&mut header);
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }

    /// The whole, compressed.
    pub(crate) fn gz(self) -> Vec<u8> {
        gzip(&self.end())
    }
}

/// An archive of one good file, uncompressed.
pub(crate) fn good() -> Vec<u8> {
    Raw::default().file("good", b"good").end()
}

/// What a layer unpacks to, as far as it does; bombs in part.
pub(crate) fn unpacked(packed: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let whole = match packed {
        [0x1f, 0x8b, ..] => MultiGzDecoder::new(packed).take(4 << 20).read_to_end(&mut bytes),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            zstd::stream::read::Decoder::new(packed).unwrap().take(4 << 20).read_to_end(&mut bytes)
        }
        _ => return packed.to_vec(),
    };
    // Broken ones are refused before this counts.
    drop(whole);
    bytes
}
