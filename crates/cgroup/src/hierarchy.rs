//! Which control group file systems are mounted, and where.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{Error, Group};

/// The most of `/proc/self/mountinfo` that is read.
const MOUNTINFO_LIMIT: u64 = 16 << 20;

/// How the controllers are mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Every controller in a v1 hierarchy; no cgroup2 mount.
    V1,
    /// v1 hierarchies and a cgroup2 mount beside them.
    Hybrid,
    /// One cgroup2 mount.
    V2,
}

/// One mounted v1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct V1Mount {
    /// Controllers, or `name=…` of a named hierarchy.
    pub(crate) controllers: Vec<String>,
    /// Where it is mounted.
    pub(crate) root: PathBuf,
}

#[derive(Debug)]
pub(crate) struct Mounts {
    pub(crate) v1: Vec<V1Mount>,
    pub(crate) unified: Option<PathBuf>,
}

/// The mounted control group file systems. Cheap to clone; found once per process.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    pub(crate) mounts: Arc<Mounts>,
}

impl Hierarchy {
    /// Reads `/proc/self/mountinfo`.
    ///
    /// # Errors
    /// [`Error::NotMounted`] if there is no cgroup mount, [`Error::Read`].
    pub fn detect() -> Result<Self, Error> {
        let path = Path::new("/proc/self/mountinfo");
        let text = crate::group::read_bounded(path, MOUNTINFO_LIMIT)?;
        Self::from_mountinfo(&text, Path::new("/"))
    }

    /// Finds the mounts in the text of a `mountinfo` file, as proc(5) describes it; mount points
    /// are taken below `root`. Tests give a directory of their own.
    ///
    /// # Errors
    /// [`Error::NotMounted`] if there is no cgroup mount.
    pub fn from_mountinfo(text: &str, root: &Path) -> Result<Self, Error> {
        let mut v1: Vec<V1Mount> = Vec::new();
        let mut unified = None;
        for line in text.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let Some(mount_point) = left.split(' ').nth(4) else {
                continue;
            };
            let mut right = right.split(' ');
            let (Some(kind), _, Some(options)) = (right.next(), right.next(), right.next()) else {
                continue;
            };
            let mount_point = unescape(mount_point);
            let place = root.join(mount_point.trim_start_matches('/'));
            match kind {
                "cgroup2" if unified.is_none() => unified = Some(place),
                "cgroup" => {
                    let controllers: Vec<String> = options
                        .split(',')
                        .filter(|option| is_controller(option))
                        .map(str::to_owned)
                        .collect();
                    let known =
                        v1.iter().any(|mount| mount.controllers.iter().any(|c| controllers.contains(c)));
                    if !controllers.is_empty() && !known {
                        v1.push(V1Mount { controllers, root: place });
                    }
                }
                _ => {}
            }
        }
        if v1.is_empty() && unified.is_none() {
            return Err(Error::NotMounted);
        }
        Ok(Self { mounts: Arc::new(Mounts { v1, unified }) })
    }

    /// How the controllers are mounted.
    #[must_use]
    pub fn layout(&self) -> Layout {
        match (self.mounts.v1.is_empty(), &self.mounts.unified) {
            (true, _) => Layout::V2,
            (false, None) => Layout::V1,
            (false, Some(_)) => Layout::Hybrid,
        }
    }

    /// Where a controller's v1 hierarchy is mounted.
    #[must_use]
    pub fn v1_root(&self, controller: &str) -> Option<&Path> {
        self.mounts
            .v1
            .iter()
            .find(|mount| mount.controllers.iter().any(|c| c == controller))
            .map(|mount| mount.root.as_path())
    }

    /// The v1 hierarchies: controllers (or `name=…`) and mount point, in mount order.
    pub fn v1_hierarchies(&self) -> impl Iterator<Item = (&[String], &Path)> {
        self.mounts.v1.iter().map(|mount| (mount.controllers.as_slice(), mount.root.as_path()))
    }

    /// Where cgroup2 is mounted, if it is.
    #[must_use]
    pub fn unified_root(&self) -> Option<&Path> {
        self.mounts.unified.as_deref()
    }

    /// Whether memory and swap can be limited together (v1 needs swap accounting for it).
    #[must_use]
    pub fn limits_swap(&self) -> bool {
        match self.v1_root("memory") {
            Some(root) => root.join("memory.memsw.limit_in_bytes").exists(),
            // The root group of v2 has no limits to look at: the controller brings the file
            // unless the kernel has no swap.
            None => Path::new("/proc/swaps").exists(),
        }
    }

    /// The group at `path`, which is absolute below every controller's mount point. Nothing is
    /// created.
    ///
    /// # Errors
    /// [`Error::InvalidPath`] for a relative path, the root, or one with `.`, `..`, an empty
    /// component, a line feed or a NUL.
    pub fn group(&self, path: &str) -> Result<Group, Error> {
        let valid = path.strip_prefix('/').is_some_and(|rest| {
            rest.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.contains(['\0', '\n']))
        });
        if !valid || path.len() > 3000 {
            return Err(Error::InvalidPath { path: path.to_owned() });
        }
        Ok(Group::new(self.clone(), path))
    }
}

/// Whether a super block option of a v1 mount names a controller or a named hierarchy.
fn is_controller(option: &str) -> bool {
    option.starts_with("name=")
        || matches!(
            option,
            "cpu"
                | "cpuacct"
                | "cpuset"
                | "memory"
                | "devices"
                | "freezer"
                | "blkio"
                | "pids"
                | "hugetlb"
                | "net_cls"
                | "net_prio"
                | "perf_event"
                | "rdma"
                | "misc"
        )
}

/// Undoes the octal escapes of mountinfo (space, tab, line feed, backslash).
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:4 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
52 31 0:29 / /elsewhere rw,relatime - cgroup cgroup rw,cpu,cpuacct
";

    #[test]
    fn finds_each_hierarchy_once() {
        let found = Hierarchy::from_mountinfo(HYBRID, Path::new("/")).unwrap();
        assert_eq!(found.layout(), Layout::Hybrid);
        assert_eq!(found.v1_root("cpuacct").unwrap(), Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(found.v1_hierarchies().count(), 3);
        assert_eq!(found.unified_root().unwrap(), Path::new("/sys/fs/cgroup/unified"));
    }

    #[test]
    fn tells_the_layouts_apart() {
        let only = |word: &str| {
            let text: String =
                HYBRID.lines().filter(|line| line.contains(word)).map(|line| format!("{line}\n")).collect();
            Hierarchy::from_mountinfo(&text, Path::new("/")).map(|h| h.layout())
        };
        assert_eq!(only("cgroup2").unwrap(), Layout::V2);
        assert_eq!(only("memory").unwrap(), Layout::V1);
        assert!(matches!(only("tmpfs"), Err(Error::NotMounted)));
    }

    #[test]
    fn refuses_paths_that_lead_elsewhere() {
        let found = Hierarchy::from_mountinfo(HYBRID, Path::new("/")).unwrap();
        for path in ["", "/", "a", "/a/../b", "/..", "/a//b", "/a/", "/a/./b", "/a\0b"] {
            assert!(found.group(path).is_err(), "{path:?} was accepted");
        }
        assert!(found.group("/kina/pod-1/c_2.x").is_ok());
    }
}
