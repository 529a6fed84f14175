//! What a group has read from and written to block devices.

use std::collections::BTreeMap;

use crate::group::read;
use crate::{Error, Group};

/// More devices are not told of.
const DEVICES_LIMIT: usize = 64;

/// What went between a group, with those below it, and one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockDeviceStats {
    /// The device's major number.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Requests to read.
    pub reads: u64,
    /// Requests to write.
    pub writes: u64,
}

impl Group {
    /// Reads what went to and from block devices, by device. Empty where the controller is missing.
    ///
    /// # Errors
    /// [`Error::Read`] if the group is gone.
    pub fn block_devices(&self) -> Result<Vec<BlockDeviceStats>, Error> {
        const BYTES: &str = "blkio.throttle.io_service_bytes_recursive";
        const REQUESTS: &str = "blkio.throttle.io_serviced_recursive";
        let mut found = BTreeMap::new();
        if self.is_v1("blkio") {
            for (file, bytes) in [(BYTES, true), (REQUESTS, false)] {
                if let Some(path) = self.control("blkio", file, "") {
                    serviced(&read(&path)?, bytes, &mut found);
                }
            }
        } else if let Some(path) = self.control("io", "", "io.stat") {
            unified(&read(&path)?, &mut found);
        }
        Ok(found.into_values().take(DEVICES_LIMIT).collect())
    }
}

type Found = BTreeMap<(u32, u32), BlockDeviceStats>;

/// The entry of a device that is named as `8:0`.
fn entry<'a>(found: &'a mut Found, device: &str) -> Option<&'a mut BlockDeviceStats> {
    let (major, minor) = device.split_once(':')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    Some(found.entry((major, minor)).or_insert(BlockDeviceStats {
        major,
        minor,
        ..BlockDeviceStats::default()
    }))
}

/// Lines of v1, `8:0 Read 4096`; those of other operations are sums or sorts of the same.
fn serviced(text: &str, bytes: bool, found: &mut Found) {
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(device), Some(operation), Some(Ok(value))) =
            (words.next(), words.next(), words.next().map(str::parse))
        else {
            continue;
        };
        let Some(entry) = entry(found, device) else { continue };
        match (operation, bytes) {
            ("Read", true) => entry.read_bytes = value,
            ("Write", true) => entry.written_bytes = value,
            ("Read", false) => entry.reads = value,
            ("Write", false) => entry.writes = value,
            _ => {}
        }
    }
}

/// Lines of v2, `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`.
fn unified(text: &str, found: &mut Found) {
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(entry) = words.next().and_then(|device| entry(found, device)) else { continue };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            match key {
                "rbytes" => entry.read_bytes = value,
                "wbytes" => entry.written_bytes = value,
                "rios" => entry.reads = value,
                "wios" => entry.writes = value,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPECTED: BlockDeviceStats =
        BlockDeviceStats { major: 8, minor: 16, read_bytes: 4096, written_bytes: 512, reads: 2, writes: 1 };

    #[test]
    fn v1_has_a_file_for_bytes_and_one_for_requests() {
        let mut found = Found::new();
        serviced(
            "8:16 Read 4096\n8:16 Write 512\n8:16 Sync 4608\n8:16 Discard 0\n8:16 Total 4608\nTotal 4608\n",
            true,
            &mut found,
        );
        serviced("8:16 Read 2\n8:16 Write 1\n8:16 Total 3\nnonsense\n8 Read 1\n", false, &mut found);
        assert_eq!(found.into_values().collect::<Vec<_>>(), [EXPECTED]);
    }

    #[test]
    fn v2_has_a_line_for_each_device() {
        let mut found = Found::new();
        unified("8:16 rbytes=4096 wbytes=512 rios=2 wios=1 dbytes=0 dios=0\n8:x rbytes=1\n\n", &mut found);
        assert_eq!(found.into_values().collect::<Vec<_>>(), [EXPECTED]);
    }
}
