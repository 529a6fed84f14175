//! The devices of a container: nodes in its `/dev`, and who may use what.

use std::path::{Path, PathBuf};

use kina_cgroup::{DeviceKind, DeviceRule};
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType};

use super::clean;
use crate::error::Error;
use crate::order::DeviceOrder;

/// The devices of `/dev`: those that every container has, and the spec's own.
pub(super) fn devices(linux: &Linux, fill_dev: bool) -> Result<Vec<DeviceOrder>, Error> {
    const USUAL: [(&str, u32, u32); 6] = [
        ("/dev/null", 1, 3),
        ("/dev/random", 1, 8),
        ("/dev/full", 1, 7),
        ("/dev/tty", 5, 0),
        ("/dev/zero", 1, 5),
        ("/dev/urandom", 1, 9),
    ];
    if !fill_dev {
        // runc does the same: a `/dev` that comes from outside is left alone.
        return Ok(Vec::new());
    }
    let own: Vec<DeviceOrder> = linux.devices().iter().flatten().map(device).collect::<Result<_, _>>()?;
    let usual = USUAL.iter().map(|(path, major, minor)| DeviceOrder {
        path: PathBuf::from(path),
        mode: libc::S_IFCHR | 0o666,
        major: *major,
        minor: *minor,
        uid: 0,
        gid: 0,
    });
    let mut all: Vec<DeviceOrder> =
        usual.filter(|usual| !own.iter().any(|device| device.path == usual.path)).collect();
    all.extend(own);
    Ok(all)
}

/// Device rules that outrank the spec's, as runc has them: every container may use the usual
/// devices and its terminals, and make device nodes (which it then may not open).
pub(super) fn always_allowed() -> impl Iterator<Item = DeviceRule> {
    let rule = |kind, major, minor, open| DeviceRule {
        allow: true,
        kind,
        major,
        minor,
        read: open,
        write: open,
        mknod: true,
    };
    let character = DeviceKind::Character;
    let opened = [
        (1, Some(3)),
        (1, Some(8)),
        (1, Some(7)),
        (5, Some(0)),
        (1, Some(5)),
        (1, Some(9)),
        (5, Some(1)),
        (136, None),
        (5, Some(2)),
    ];
    [rule(character, None, None, false), rule(DeviceKind::Block, None, None, false)]
        .into_iter()
        .chain(opened.into_iter().map(move |(major, minor)| rule(character, Some(major), minor, true)))
}

fn device(device: &LinuxDevice) -> Result<DeviceOrder, Error> {
    const FIELD: &str = "linux.devices";
    let path = clean(device.path())
        .filter(|path| path != Path::new("/"))
        .ok_or_else(|| Error::refused(FIELD, &format!("{:?} is not absolute", device.path())))?;
    let kind = match device.typ() {
        LinuxDeviceType::B => libc::S_IFBLK,
        LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
        LinuxDeviceType::P => libc::S_IFIFO,
        LinuxDeviceType::A => return Err(Error::refused(FIELD, "type a is not a device")),
    };
    let number = |value: i64| {
        u32::try_from(value).map_err(|_| Error::refused(FIELD, &format!("{value} is not a device number")))
    };
    Ok(DeviceOrder {
        path,
        mode: kind | device.file_mode().unwrap_or(0o666) & 0o7777,
        major: number(device.major())?,
        minor: number(device.minor())?,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}
