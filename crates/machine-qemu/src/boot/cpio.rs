//! Archives in the "newc" form of cpio, which the kernel unpacks as its first
//! file system (Documentation/driver-api/early-userspace/buffer-format.rst).

/// The archive's last entry.
const TRAILER: &str = "TRAILER!!!";
/// File types of `st_mode`.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_000;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind<'a> {
    /// A directory.
    Directory,
    /// A file with that content.
    File(&'a [u8]),
    /// A character device.
    Device {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
}

/// An archive in the making. Everything belongs to root and is of 1970, so that
/// the same content gives the same bytes.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// An archive without entries.
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Adds an entry. Its directory must have been added before; `path` has no
    /// leading slash.
    ///
    /// # Panics
    /// When a file has 4 GiB or more, which the form cannot say.
    pub(super) fn add(&mut self, path: &str, permissions: u32, kind: Kind<'_>) {
        self.entries += 1;
        let number = self.entries;
        match kind {
            Kind::Directory => self.entry(number, path, DIRECTORY | permissions, 2, (0, 0), &[]),
            Kind::File(content) => self.entry(number, path, REGULAR | permissions, 1, (0, 0), content),
            Kind::Device { major, minor } => {
                self.entry(number, path, CHARACTER | permissions, 1, (major, minor), &[]);
            }
        }
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry(0, TRAILER, 0, 1, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, number: u32, name: &str, mode: u32, links: u32, device: (u32, u32), content: &[u8]) {
        let length = |bytes: usize| u32::try_from(bytes).expect("the form's sizes have 32 bits");
        let fields = [
            number,
            mode,
            0, // owner
            0, // group
            links,
            0, // modification time
            length(content.len()),
            0, // the device that holds it
            0,
            device.0,
            device.1,
            length(name.len() + 1),
            0, // checksum, of another form
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    /// Headers and contents begin at multiples of four bytes.
    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive back: name, mode, content.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                let text = std::str::from_utf8(&bytes[6 + index * 8..14 + index * 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = std::str::from_utf8(&bytes[110..110 + name_size - 1]).unwrap().to_owned();
            assert_eq!(bytes[110 + name_size - 1], 0);
            let content = (110 + name_size).next_multiple_of(4);
            let next = (content + size).next_multiple_of(4);
            if name == TRAILER {
                assert_eq!(bytes.len(), next);
                return entries;
            }
            entries.push((name, mode, bytes[content..content + size].to_vec()));
            bytes = &bytes[next..];
        }
    }

    #[test]
    fn what_is_added_is_there() {
        let mut archive = Archive::new();
        archive.add("dev", 0o755, Kind::Directory);
        archive.add("dev/console", 0o600, Kind::Device { major: 5, minor: 1 });
        for length in 0..5 {
            archive.add(&"x".repeat(length + 1), 0o755, Kind::File(&b"content"[..length]));
        }
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let entries = read(&bytes);
        assert_eq!(entries[0], ("dev".to_owned(), 0o040_755, Vec::new()));
        assert_eq!(entries[1], ("dev/console".to_owned(), 0o020_600, Vec::new()));
        for (length, entry) in entries[2..].iter().enumerate() {
            assert_eq!(entry.2, &b"content"[..length]);
        }
        assert_eq!(entries.len(), 7);
    }
}
