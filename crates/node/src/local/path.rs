//! What is at a path, and under which other paths.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxFlags};

use super::mountinfo::{self, Mount};
use crate::path_facts::kind_of;
use crate::{Error, MountFacts, PathFacts};

/// See [`crate::Node::inspect_path`].
pub(crate) fn inspect(path: &Path) -> Result<PathFacts, Error> {
    let failed = |source: io::Error| Error::io("inspect", path, source);
    let real = fs::canonicalize(path).map_err(failed)?;
    let found = fs::symlink_metadata(&real).map_err(failed)?;
    let kind = kind_of(&found).ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let mask = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    let id = rustix::fs::statx(rustix::fs::CWD, &real, AtFlags::SYMLINK_NOFOLLOW, mask)
        .map_err(|error| failed(error.into()))?
        .stx_mnt_id;
    let size = rustix::fs::statvfs(&real).map_err(|error| failed(error.into()))?;
    let table = Path::new("/proc/self/mountinfo");
    let mounts = mountinfo::read().map_err(|source| Error::io("read", table, source))?;
    let mount = mounts.iter().find(|mount| mount.id == id).ok_or_else(|| {
        // It was unmounted meanwhile.
        failed(io::ErrorKind::NotFound.into())
    })?;
    let aliases = aliases(&real, mount, &mounts)
        .into_iter()
        // Another mount may lie on top of it.
        .filter(|alias| {
            fs::symlink_metadata(alias)
                .is_ok_and(|there| (there.dev(), there.ino()) == (found.dev(), found.ino()))
        })
        .collect();
    Ok(PathFacts {
        kind,
        mode: found.mode() & 0o7777,
        uid: found.uid(),
        gid: found.gid(),
        mount: MountFacts {
            mountpoint: mount.mountpoint.clone(),
            filesystem: mount.filesystem.clone(),
            size_bytes: size.f_blocks.saturating_mul(size.f_frsize),
        },
        has_mounts_below: mounts
            .iter()
            .any(|mount| mount.mountpoint != real && mount.mountpoint.starts_with(&real)),
        aliases,
        real,
    })
}

/// Where other mounts of the file system should show what `mount` shows at
/// `path`.
fn aliases(path: &Path, mount: &Mount, mounts: &[Mount]) -> Vec<PathBuf> {
    let Ok(below) = path.strip_prefix(&mount.mountpoint) else {
        return Vec::new();
    };
    let within = join(&mount.root, below);
    let others = mounts.iter().filter(|other| other.device == mount.device && other.id != mount.id);
    let mut found: Vec<PathBuf> = others
        .filter_map(|other| Some(join(&other.mountpoint, within.strip_prefix(&other.root).ok()?)))
        .filter(|alias| alias != path)
        .collect();
    found.sort();
    found.dedup();
    found
}

/// As `Path::join`, without the slash that it leaves at the end for nothing.
fn join(directory: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().is_empty() { directory.to_owned() } else { directory.join(rest) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(id: u64, device: &str, root: &str, mountpoint: &str) -> Mount {
        Mount {
            id,
            device: device.into(),
            root: root.into(),
            mountpoint: mountpoint.into(),
            filesystem: "ext4".into(),
        }
    }

    #[test]
    fn other_mounts_show_the_same() {
        let mounts = [
            mount(1, "8:1", "/", "/"),
            mount(2, "8:1", "/data/kubelet", "/var/lib/kubelet"),
            mount(3, "8:1", "/data/kubelet/pods/u/volumes/e/v/sub", "/var/lib/kubelet/pods/u/subpaths/0"),
            mount(4, "0:9", "/", "/run"),
            mount(5, "8:1", "/data/other", "/mnt"),
        ];
        let found = aliases(Path::new("/var/lib/kubelet/pods/u/subpaths/0"), &mounts[2], &mounts);
        let expected = ["/data/kubelet/pods/u/volumes/e/v/sub", "/var/lib/kubelet/pods/u/volumes/e/v/sub"];
        assert_eq!(found, expected.map(PathBuf::from));
        assert!(aliases(Path::new("/run/x"), &mounts[3], &mounts).is_empty());
    }
}
