//! The devices of a container, and which of them it may use.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use kina_guest_api::v1;
use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
};

use super::built;
use crate::error::Error;
use crate::user::Identity;

/// Device nodes below one directory.
const DEVICES_LIMIT: usize = 4096;
const DEPTH_LIMIT: usize = 8;
/// What of /dev is each container's own, or no device of the machine's.
const NOT_SHARED: [&str; 5] = ["pts", "shm", "fd", "mqueue", "console"];

/// A device node that a container gets.
pub(super) struct Node {
    /// Where it is in the machine.
    pub(super) source: PathBuf,
    /// What it is in the container.
    pub(super) device: LinuxDevice,
}

/// The nodes that a container gets and the access rules. A privileged one has all of the
/// machine's; what is asked for by name is beside them, or in the place of one of them.
pub(super) fn build(
    request: &v1::CreateContainerRequest,
    identity: &Identity,
) -> Result<(Vec<Node>, Vec<LinuxDeviceCgroup>), Error> {
    let mut devices = Vec::new();
    let every = LinuxDeviceCgroupBuilder::default().allow(request.privileged).access("rwm").build();
    let mut rules = vec![built(every)?];
    if request.privileged {
        collect(Path::new("/dev"), Path::new("/dev"), 0, true, &mut devices)?;
    }
    for asked in &request.devices {
        let permissions = permissions(asked)?;
        let mut nodes = Vec::new();
        match &asked.node {
            Some(node) => nodes.push(described(asked, node, identity)?),
            None => collect(Path::new(&asked.source), destination(asked), 0, false, &mut nodes)?,
        }
        if request.privileged {
            let replaced = |known: &Node| nodes.iter().any(|node| node.device.path() == known.device.path());
            devices.retain(|known| !replaced(known));
        } else {
            for Node { device, .. } in &nodes {
                rules.push(built(
                    LinuxDeviceCgroupBuilder::default()
                        .allow(true)
                        .typ(device.typ())
                        .major(device.major())
                        .minor(device.minor())
                        .access(permissions)
                        .build(),
                )?);
            }
        }
        devices.append(&mut nodes);
        if devices.len() > DEVICES_LIMIT {
            return Err(Error::TooMany { what: "devices", limit: DEVICES_LIMIT });
        }
    }
    Ok((devices, rules))
}

/// Where a device is in the container.
fn destination(device: &v1::Device) -> &Path {
    Path::new(if device.destination.is_empty() { &device.source } else { &device.destination })
}

fn permissions(device: &v1::Device) -> Result<&str, Error> {
    let permissions = device.permissions.as_str();
    if permissions.chars().all(|c| "rwm".contains(c)) && permissions.len() <= 3 {
        Ok(if permissions.is_empty() { "rwm" } else { permissions })
    } else {
        Err(Error::invalid("devices.permissions", format!("{permissions:?}")))
    }
}

/// A node that is not in all like that at its source.
fn described(asked: &v1::Device, node: &v1::DeviceNode, identity: &Identity) -> Result<Node, Error> {
    let (kind, major, minor, mode) = match &node.number {
        Some(number) => {
            let kind = if number.block { LinuxDeviceType::B } else { LinuxDeviceType::C };
            (kind, i64::from(number.major), i64::from(number.minor), 0o666)
        }
        None => {
            let mut found = Vec::new();
            collect(Path::new(&asked.source), Path::new(&asked.source), 0, false, &mut found)?;
            let [Node { device, .. }] = found.as_slice() else {
                return Err(Error::invalid("devices.node", format!("{} is no single device", asked.source)));
            };
            (device.typ(), device.major(), device.minor(), device.file_mode().unwrap_or(0o666))
        }
    };
    let device = built(
        LinuxDeviceBuilder::default()
            .path(destination(asked))
            .typ(kind)
            .major(major)
            .minor(minor)
            .file_mode(node.mode.unwrap_or(mode) & 0o7777)
            .uid(node.uid.unwrap_or(identity.uid))
            .gid(node.gid.unwrap_or(identity.gid))
            .build(),
    )?;
    Ok(Node { source: PathBuf::from(&asked.source), device })
}

/// Refuses nodes that are described: in a user namespace none can be made, and the
/// machine's own are as they are.
pub(super) fn require_as_they_are(request: &v1::CreateContainerRequest) -> Result<(), Error> {
    let described = |device: &&v1::Device| {
        let node = device.node.as_ref();
        node.is_some_and(|node| {
            node.number.is_some() || node.mode.is_some() || node.uid.is_some() || node.gid.is_some()
        })
    };
    match request.devices.iter().find(described) {
        None => Ok(()),
        Some(device) => {
            let path = destination(device).display();
            let reason = "cannot have a number, mode or owner of its own in a user namespace; leave them out";
            Err(Error::invalid("devices.node", format!("{path} {reason}")))
        }
    }
}

/// Adds a device node, or those below a directory; links are not followed below it.
fn collect(
    source: &Path,
    destination: &Path,
    depth: usize,
    all_of_dev: bool,
    devices: &mut Vec<Node>,
) -> Result<(), Error> {
    let failed = |error| Error::file("inspect device", source, error);
    let status = if depth == 0 { fs::metadata(source) } else { fs::symlink_metadata(source) };
    let status = match status {
        Ok(status) => status,
        // It has gone meanwhile.
        Err(error) if depth > 0 && error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    let kind = status.file_type();
    if kind.is_dir() {
        if depth == DEPTH_LIMIT {
            return Ok(());
        }
        let mut names: Vec<PathBuf> = fs::read_dir(source)
            .and_then(|entries| entries.map(|entry| Ok(entry?.file_name().into())).collect())
            .map_err(failed)?;
        names.sort();
        for name in names {
            let skip = depth == 0 && NOT_SHARED.iter().any(|skip| Path::new(skip) == name);
            if !(skip && all_of_dev) {
                let below = (source.join(&name), destination.join(&name));
                collect(&below.0, &below.1, depth + 1, all_of_dev, devices)?;
            }
        }
        return Ok(());
    }
    let kind = if kind.is_char_device() {
        LinuxDeviceType::C
    } else if kind.is_block_device() {
        LinuxDeviceType::B
    } else if depth > 0 {
        return Ok(());
    } else {
        return Err(Error::invalid("devices", format!("{} is no device", source.display())));
    };
    if devices.len() == DEVICES_LIMIT {
        return Err(Error::TooMany { what: "devices", limit: DEVICES_LIMIT });
    }
    let device = built(
        LinuxDeviceBuilder::default()
            .path(destination)
            .typ(kind)
            .major(i64::from(rustix::fs::major(status.rdev())))
            .minor(i64::from(rustix::fs::minor(status.rdev())))
            .file_mode(status.mode() & 0o7777)
            .uid(status.uid())
            .gid(status.gid())
            .build(),
    )?;
    devices.push(Node { source: source.to_owned(), device });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(devices: Vec<v1::Device>) -> v1::CreateContainerRequest {
        v1::CreateContainerRequest { devices, ..v1::CreateContainerRequest::default() }
    }

    fn device(source: &str, destination: &str, permissions: &str) -> v1::Device {
        v1::Device {
            source: source.to_owned(),
            destination: destination.to_owned(),
            permissions: permissions.to_owned(),
            node: None,
        }
    }

    fn user(uid: u32) -> Identity {
        Identity { uid, gid: uid, groups: vec![uid], home: "/".to_owned() }
    }

    #[test]
    fn a_described_device_is_what_is_said_of_it() {
        let node = |node| v1::Device { node: Some(node), ..device("/dev/null", "/dev/x", "rw") };
        let number = v1::DeviceNumber { block: true, major: 7, minor: 3 };
        let said = v1::DeviceNode { number: Some(number), mode: Some(0o640), uid: Some(5), gid: None };
        let mut asked = request(vec![node(said)]);
        for privileged in [false, true] {
            asked.privileged = privileged;
            let (devices, rules) = build(&asked, &user(9)).unwrap();
            let made = devices.iter().find(|node| node.device.path() == Path::new("/dev/x")).unwrap();
            let made = &made.device;
            assert_eq!((made.typ(), made.major(), made.minor()), (LinuxDeviceType::B, 7, 3));
            assert_eq!((made.file_mode(), made.uid(), made.gid()), (Some(0o640), Some(5), Some(9)));
            assert!(rules.last().unwrap().allow());
        }
        let as_there = v1::DeviceNode { number: None, mode: None, ..said };
        let (devices, _) = build(&request(vec![node(as_there)]), &user(9)).unwrap();
        let made = &devices[0].device;
        assert_eq!((made.typ(), made.major(), made.minor()), (LinuxDeviceType::C, 1, 3));
        assert!(require_as_they_are(&asked).is_err());
        let plain = v1::DeviceNode::default();
        assert!(require_as_they_are(&request(vec![node(plain)])).is_ok());
        let several = v1::Device { source: "/dev".to_owned(), ..node(as_there) };
        assert!(build(&request(vec![several]), &user(9)).is_err());
    }

    #[test]
    fn a_device_is_made_and_allowed() {
        let asked = vec![device("/dev/null", "/dev/nothing", "rw")];
        let (devices, rules) = build(&request(asked), &user(0)).unwrap();
        let Node { source, device } = &devices[0];
        assert_eq!(
            (source.as_path(), device.path().as_path()),
            (Path::new("/dev/null"), Path::new("/dev/nothing"))
        );
        assert_eq!((device.major(), device.minor()), (1, 3));
        assert!(!rules[0].allow());
        assert!(rules[1].allow());
        assert_eq!(rules[1].access().as_deref(), Some("rw"));
    }

    #[test]
    fn what_is_no_device_is_refused() {
        for (source, permissions) in [("/etc/passwd", "rw"), ("/no/such", "rw"), ("/dev/null", "x")] {
            assert!(build(&request(vec![device(source, "", permissions)]), &user(0)).is_err(), "{source}");
        }
    }

    #[test]
    fn privileged_has_them_all() {
        let all = v1::CreateContainerRequest { privileged: true, ..request(Vec::new()) };
        let (devices, rules) = build(&all, &user(0)).unwrap();
        assert!(devices.iter().any(|node| node.device.path() == Path::new("/dev/null")));
        assert!(!devices.iter().any(|node| node.device.path().starts_with("/dev/pts")));
        assert!(rules[0].allow());

        // And those that are asked for by another name, or by the name of another one.
        let asked = vec![device("/dev/null", "/dev/nothing", "r"), device("/dev/null", "/dev/zero", "rw")];
        let (devices, rules) =
            build(&v1::CreateContainerRequest { devices: asked, ..all }, &user(0)).unwrap();
        for path in ["/dev/nothing", "/dev/zero"] {
            let found: Vec<&Node> =
                devices.iter().filter(|node| node.device.path() == Path::new(path)).collect();
            assert_eq!(found.len(), 1, "{path}");
            assert_eq!((found[0].device.major(), found[0].device.minor()), (1, 3), "{path}");
        }
        assert_eq!(rules.len(), 1);
    }
}
