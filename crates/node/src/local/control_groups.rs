//! Control groups of pods and their guests.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use kina_cgroup::{Group, Hierarchy};

use super::process;
use crate::{Error, ProcessIdentity};

/// The control groups of this machine, found on first use.
#[derive(Default)]
pub(crate) struct ControlGroups {
    hierarchy: OnceLock<Hierarchy>,
}

/// What a process needs to be in a group.
pub(crate) struct Membership {
    /// In each v1 hierarchy, the file through which a process of one thread
    /// moves itself by writing `0`. Moving one thread, the kernel need not stop
    /// every fork and exit of the machine as it does for `cgroup.procs`.
    pub(crate) tasks: Vec<File>,
    pub(crate) unified: Option<Unified>,
}

/// A group in the cgroup2 hierarchy.
pub(crate) struct Unified {
    /// For clone3(2), which makes a process in the group (Linux 5.7). Moving one
    /// there waits for a grace period of RCU, some ten milliseconds.
    pub(crate) directory: File,
    /// For the move, where that is not possible.
    pub(crate) processes: File,
}

fn failed(
    operation: &'static str,
    path: &str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    Error::Cgroup { operation, path: path.to_owned(), source: source.into() }
}

impl ControlGroups {
    fn hierarchy(&self) -> Result<&Hierarchy, Error> {
        if let Some(found) = self.hierarchy.get() {
            return Ok(found);
        }
        let found = Hierarchy::detect().map_err(|source| failed("find", "/", source))?;
        Ok(self.hierarchy.get_or_init(|| found))
    }

    fn group(&self, path: &str) -> Result<Group, Error> {
        self.hierarchy()?.group(path).map_err(|source| failed("name", path, source))
    }

    /// Whether a group is there in any hierarchy.
    pub(crate) fn exists(&self, path: &str) -> Result<bool, Error> {
        Ok(self.group(path)?.exists())
    }

    /// See [`crate::Node::remove_idle_cgroup`].
    pub(crate) fn remove_idle(&self, path: &str) -> Result<(), Error> {
        use io::ErrorKind::{DirectoryNotEmpty, NotFound, ResourceBusy};
        for directory in self.group(path)?.directories() {
            match fs::remove_dir(&directory) {
                Err(error) if !matches!(error.kind(), NotFound | ResourceBusy | DirectoryNotEmpty) => {
                    return Err(Error::io("remove", &directory, error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Makes a group and opens what a new process needs to be in it from its
    /// first instruction on.
    pub(crate) fn create_and_open(&self, path: &str) -> Result<Membership, Error> {
        let group = self.group(path)?;
        group.create().map_err(|source| failed("create", path, source))?;
        let open = |file: &Path, write: bool| {
            OpenOptions::new()
                .read(!write)
                .write(write)
                .open(file)
                .map_err(|source| Error::io("open", file, source))
        };
        let relative = path.trim_start_matches('/');
        let tasks = group
            .hierarchy()
            .v1_hierarchies()
            .map(|(_, root)| open(&root.join(relative).join("tasks"), true))
            .collect::<Result<_, _>>()?;
        let unified = match group.unified_directory() {
            Some(directory) => Some(Unified {
                processes: open(&directory.join("cgroup.procs"), true)?,
                directory: open(&directory, false)?,
            }),
            None => None,
        };
        Ok(Membership { tasks, unified })
    }

    /// See [`crate::Node::kill_cgroup`]. Blocks.
    pub(crate) fn kill(&self, path: &str, deadline: Duration) -> Result<(), Error> {
        let begin = Instant::now();
        let group = self.group(path)?;
        group.kill_all(deadline).map_err(|error| match error {
            kina_cgroup::Error::NotEmpty { path, count, waited } => Error::Survivors { path, count, waited },
            error => failed("kill the processes of", path, error),
        })?;
        // Removing waits for the kernel to let go of what was killed, which a
        // caller that asks for no wait gets a moment for all the same.
        let left = deadline.saturating_sub(begin.elapsed()).max(Duration::from_millis(100));
        group.delete(left).map_err(|source| failed("remove", path, source))
    }

    /// See [`crate::Node::out_of_memory_kills`].
    pub(crate) fn out_of_memory_kills(&self, path: &str) -> Result<u64, Error> {
        let group = self.group(path)?;
        if !group.directories().any(|directory| directory.exists()) {
            return Ok(0);
        }
        let count = group.oom_kill_count();
        Ok(count.map_err(|source| failed("count kills in", path, source))?.unwrap_or(0))
    }

    /// See [`crate::Node::cgroup_processes`]. Blocks.
    pub(crate) fn processes(&self, path: &str) -> Result<Vec<ProcessIdentity>, Error> {
        let group = self.group(path)?;
        let mut numbers = BTreeSet::new();
        for directory in group.directories() {
            match fs::read_to_string(directory.join("cgroup.procs")) {
                Ok(text) => numbers.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
                // ENODEV: it was removed while it was open.
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound
                        || error.raw_os_error() == Some(libc::ENODEV) => {}
                Err(error) => return Err(failed("list the processes of", path, error)),
            }
        }
        // 0 stands for processes outside this pid namespace.
        let known = numbers.into_iter().filter(|number| *number != 0);
        known.filter_map(|number| process::identity(number).transpose()).collect()
    }

    /// See [`crate::Node::cgroups`]. Blocks.
    pub(crate) fn children(&self, parent: &str, prefix: &str) -> Result<Vec<String>, Error> {
        let hierarchy = self.hierarchy()?;
        let directories: Vec<PathBuf> = if parent == "/" {
            let roots = hierarchy.v1_hierarchies().map(|(_, root)| root);
            roots.chain(hierarchy.unified_root()).map(PathBuf::from).collect()
        } else {
            self.group(parent)?.directories().collect()
        };
        let mut names = BTreeSet::new();
        for directory in directories {
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed("list the children of", parent, error)),
            };
            for entry in entries {
                let entry = entry.map_err(|error| failed("list the children of", parent, error))?;
                let is_group = entry.file_type().is_ok_and(|kind| kind.is_dir());
                if let Some(name) = entry.file_name().to_str()
                    && is_group
                    && name.starts_with(prefix)
                {
                    names.insert(format!("{}/{name}", parent.trim_end_matches('/')));
                }
            }
        }
        Ok(names.into_iter().collect())
    }
}
