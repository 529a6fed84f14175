//! The kernel's mount table, `/proc/self/mountinfo` (proc(5)).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// One line of the table.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// The kernel's number of this mount; statx(2) gives it for a path.
    pub(crate) id: u64,
    /// The file system's device number, `major:minor`.
    pub(crate) device: String,
    /// Which directory of the file system is mounted.
    pub(crate) root: PathBuf,
    /// Where it is mounted.
    pub(crate) mountpoint: PathBuf,
    /// The file system's type.
    pub(crate) filesystem: String,
}

/// The table as it is now. Lines of another form are left out.
pub(crate) fn read() -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

// id parent major:minor root mountpoint options optional... - type source super
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = String::from_utf8_lossy(fields.nth(1)?).into_owned();
    let root = unescape(fields.next()?);
    let mountpoint = unescape(fields.next()?);
    let filesystem = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mount {
        id,
        device,
        root: PathBuf::from(OsString::from_vec(root)),
        mountpoint: PathBuf::from(OsString::from_vec(mountpoint)),
        filesystem: String::from_utf8_lossy(filesystem).into_owned(),
    })
}

// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = (first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match escaped {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed() {
        let table = b"36 35 98:0 /mnt1 /mnt\\040two rw,noatime master:1 shared:2 - ext3 /dev/root rw\n\
            nonsense\n\
            37 35 0:7 / /run\\134x rw - tmpfs - rw\n";
        let mount = |id, device: &str, root: &str, mountpoint: &str, filesystem: &str| Mount {
            id,
            device: device.into(),
            root: root.into(),
            mountpoint: mountpoint.into(),
            filesystem: filesystem.into(),
        };
        assert_eq!(
            parse(table),
            [mount(36, "98:0", "/mnt1", "/mnt two", "ext3"), mount(37, "0:7", "/", "/run\\x", "tmpfs"),]
        );
    }

    #[test]
    fn the_root_is_in_the_table() {
        assert!(read().unwrap().iter().any(|mount| mount.mountpoint.as_os_str() == "/"));
    }
}
