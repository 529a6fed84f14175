//! One group: its directories and its processes.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::{Error, Hierarchy};

/// The most of one control file that is read.
const FILE_LIMIT: u64 = 8 << 20;
/// How deep below a group other groups are looked for.
const DEPTH_LIMIT: usize = 64;
/// The v2 controllers that a group's children are given, where the kernel has them.
const V2_CONTROLLERS: [&str; 6] = ["cpu", "memory", "pids", "io", "cpuset", "hugetlb"];

/// One path in every mounted hierarchy. Holding it holds nothing in the kernel.
#[derive(Clone, Debug)]
pub struct Group {
    hierarchy: Hierarchy,
    path: String,
}

impl Group {
    pub(crate) fn new(hierarchy: Hierarchy, path: &str) -> Self {
        Self { hierarchy, path: path.to_owned() }
    }

    /// The path below every controller's mount point; begins with `/`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The hierarchy that the group is in.
    #[must_use]
    pub fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// The group's directory in a v1 controller's hierarchy.
    #[must_use]
    pub fn v1_directory(&self, controller: &str) -> Option<PathBuf> {
        self.hierarchy.v1_root(controller).map(|root| below(root, &self.path))
    }

    /// The group's directory in the cgroup2 mount.
    #[must_use]
    pub fn unified_directory(&self) -> Option<PathBuf> {
        self.hierarchy.unified_root().map(|root| below(root, &self.path))
    }

    /// The group's directory in every hierarchy.
    pub fn directories(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.hierarchy
            .v1_hierarchies()
            .map(|(_, root)| root)
            .chain(self.hierarchy.unified_root())
            .map(|root| below(root, &self.path))
    }

    /// Whether the group is there in any hierarchy.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.directories().any(|directory| directory.exists())
    }

    /// Makes the group in every hierarchy; does nothing where it is there already. On v1 new
    /// groups inherit the processors and memory nodes of their parent (a cpuset without them
    /// takes no process); on v2 the ancestors hand down the controllers that they can. A
    /// controller that an ancestor cannot hand down shows when a limit is set.
    ///
    /// # Errors
    /// [`Error::Create`], [`Error::Read`], [`Error::Write`].
    pub fn create(&self) -> Result<(), Error> {
        for (controllers, root) in self.hierarchy.v1_hierarchies() {
            let cpuset = controllers.iter().any(|name| name == "cpuset");
            let directory = below(root, &self.path);
            let complete = if cpuset { make_cpuset(&directory)? } else { make_directory(&directory)? };
            if complete {
                continue;
            }
            for level in levels(root, &self.path) {
                if make_directory(&level)? && cpuset {
                    inherit(&level, "cpuset.cpus")?;
                    inherit(&level, "cpuset.mems")?;
                }
            }
        }
        if let Some(root) = self.hierarchy.unified_root() {
            let directory = below(root, &self.path);
            // Nearly always the groups above were seen to when they were made.
            if make_directory(&directory)? && lacks_nothing(&directory, root) {
                return Ok(());
            }
            let mut parent = root.to_owned();
            for level in levels(root, &self.path) {
                hand_down(&parent)?;
                make_directory(&level)?;
                parent = level;
            }
        }
        Ok(())
    }

    /// Moves a process, with all its threads, into the group in every hierarchy.
    ///
    /// # Errors
    /// [`Error::Add`]; the process may then be in the group in some hierarchies only.
    pub fn add(&self, pid: i32) -> Result<(), Error> {
        for directory in self.directories() {
            join(&directory.join("cgroup.procs"), pid)?;
        }
        Ok(())
    }

    /// The files that [`enter`](Self::enter) writes "0" into, for a process that is to enter the
    /// group by itself.
    #[must_use]
    pub fn entry_files(&self) -> Vec<PathBuf> {
        let v1 = self.hierarchy.v1_hierarchies().map(|(_, root)| below(root, &self.path).join("tasks"));
        let unified = self.unified_directory();
        v1.chain(unified.map(|directory| directory.join("cgroup.procs"))).collect()
    }

    /// Moves the calling process into the group. It must have one thread only. On v1 this is much
    /// cheaper than [`add`](Self::add): a thread that moves itself needs no lock over all
    /// processes of the machine.
    ///
    /// # Errors
    /// [`Error::Add`].
    pub fn enter(&self) -> Result<(), Error> {
        for file in self.entry_files() {
            join(&file, 0)?;
        }
        Ok(())
    }

    /// The processes of the group and of the groups below it, in any hierarchy, each once.
    /// Processes outside the caller's pid namespace are left out. Empty if the group is gone.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub fn processes(&self) -> Result<Vec<i32>, Error> {
        let mut found = Vec::new();
        for directory in self.directories() {
            collect(&directory, DEPTH_LIMIT, &mut found)?;
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Removes the group and the groups below it in every hierarchy. A group that the kernel
    /// still calls busy is tried again until `deadline` has passed. Does nothing where it is gone.
    ///
    /// # Errors
    /// [`Error::Delete`] for the first directory that stays; the others are removed all the same.
    pub fn delete(&self, deadline: Duration) -> Result<(), Error> {
        let begin = Instant::now();
        let mut first = None;
        for directory in self.directories() {
            loop {
                let source = match remove(&directory, DEPTH_LIMIT) {
                    Ok(()) => break,
                    Err(source) => source,
                };
                if source.kind() != ErrorKind::ResourceBusy || begin.elapsed() >= deadline {
                    first.get_or_insert(Error::Delete {
                        path: directory.clone(),
                        waited: begin.elapsed(),
                        source,
                    });
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// The group's file of a control that v1 and v2 name differently: the v1 file if the
    /// controller is in a v1 hierarchy, else the v2 file. `None` if neither exists.
    pub(crate) fn control(&self, controller: &str, v1: &str, v2: &str) -> Option<PathBuf> {
        let file = match self.v1_directory(controller) {
            Some(directory) => directory.join(v1),
            None => self.unified_directory()?.join(v2),
        };
        file.is_file().then_some(file)
    }

    /// Whether a controller is in a v1 hierarchy.
    pub(crate) fn is_v1(&self, controller: &str) -> bool {
        self.hierarchy.v1_root(controller).is_some()
    }
}

/// A group's directory: the path is known to be absolute and without `..`.
fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// The directories from below `root` down to the group.
fn levels(root: &Path, path: &str) -> Vec<PathBuf> {
    let mut level = root.to_owned();
    path.split('/')
        .filter(|part| !part.is_empty())
        .map(|part| {
            level.push(part);
            level.clone()
        })
        .collect()
}

/// `true` if the directory was made or was there, `false` if its parent is missing.
fn make_directory(path: &Path) -> Result<bool, Error> {
    match fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::Create { path: path.to_owned(), source }),
    }
}

/// Makes a cpuset group; `true` if it has processors and memory nodes then, by itself or by its
/// parent.
fn make_cpuset(directory: &Path) -> Result<bool, Error> {
    if !make_directory(directory)? {
        return Ok(false);
    }
    for file in ["cpuset.cpus", "cpuset.mems"] {
        inherit(directory, file)?;
        if read_bounded(&directory.join(file), FILE_LIMIT)?.trim().is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a v2 group has every controller for groups that the kernel has.
fn lacks_nothing(directory: &Path, root: &Path) -> bool {
    let controllers = |of: &Path| read_bounded(&of.join("cgroup.controllers"), FILE_LIMIT);
    let (Ok(has), Ok(all)) = (controllers(directory), controllers(root)) else {
        return false;
    };
    let has_one = |wanted: &str| has.split_whitespace().any(|had| had == wanted);
    all.split_whitespace().filter(|one| V2_CONTROLLERS.contains(one)).all(has_one)
}

/// Copies a cpuset file from the parent if it is empty.
fn inherit(directory: &Path, file: &str) -> Result<(), Error> {
    let own = directory.join(file);
    if !read_bounded(&own, FILE_LIMIT)?.trim().is_empty() {
        return Ok(());
    }
    let Some(parent) = directory.parent() else {
        return Ok(());
    };
    let value = read_bounded(&parent.join(file), FILE_LIMIT)?;
    write(&own, value.trim())
}

/// Lets a v2 group's children have the controllers that it has itself, unless processes are in it
/// and it is not the kernel's root.
fn hand_down(directory: &Path) -> Result<(), Error> {
    if is_occupied(directory)? {
        return Ok(());
    }
    let has = read_bounded(&directory.join("cgroup.controllers"), FILE_LIMIT)?;
    let control = directory.join("cgroup.subtree_control");
    let gives = read_bounded(&control, FILE_LIMIT)?;
    let missing: Vec<String> = V2_CONTROLLERS
        .iter()
        .filter(|name| {
            has.split_whitespace().any(|had| had == **name)
                && !gives.split_whitespace().any(|given| given == **name)
        })
        .map(|name| format!("+{name}"))
        .collect();
    if missing.is_empty() || write(&control, &missing.join(" ")).is_ok() {
        return Ok(());
    }
    // One that cannot be handed down (busy in a v1 hierarchy) must not
    // keep the others back; setting a limit of it fails later and names it.
    for controller in &missing {
        match write(&control, controller) {
            Ok(()) | Err(Error::Write { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether handing something down would spoil the group. It is refused for most controllers while
/// processes are in it; those that know threads are handed down, and no group below takes a
/// process any more ("domain invalid", cgroups(7)). The kernel's root may do both, and has no type.
fn is_occupied(directory: &Path) -> Result<bool, Error> {
    if !directory.join("cgroup.type").exists() {
        return Ok(false);
    }
    match read_bounded(&directory.join("cgroup.procs"), FILE_LIMIT) {
        Ok(processes) => Ok(!processes.trim().is_empty()),
        // A threaded group: its processes are listed by its domain.
        Err(Error::Read { source, .. }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error),
    }
}

fn join(file: &Path, pid: i32) -> Result<(), Error> {
    let done = OpenOptions::new()
        .write(true)
        .open(file)
        .and_then(|mut opened| opened.write_all(pid.to_string().as_bytes()));
    done.map_err(|source| Error::Add { pid, path: file.to_owned(), source })
}

/// The directories of the groups just below one.
pub(crate) fn children(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn collect(directory: &Path, depth: usize, found: &mut Vec<i32>) -> Result<(), Error> {
    let file = directory.join("cgroup.procs");
    let text = match read_bounded(&file, FILE_LIMIT) {
        Ok(text) => text,
        // Gone, or going.
        Err(Error::Read { source, .. })
            if source.kind() == ErrorKind::NotFound || source.raw_os_error() == Some(libc::ENODEV) =>
        {
            return Ok(());
        }
        // A threaded v2 group: its processes are listed by its domain.
        Err(Error::Read { source, .. }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => String::new(),
        Err(error) => return Err(error),
    };
    found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
    if depth > 0 {
        for child in children(directory).unwrap_or_default() {
            collect(&child, depth - 1, found)?;
        }
    }
    Ok(())
}

fn remove(directory: &Path, depth: usize) -> std::io::Result<()> {
    match fs::remove_dir(directory) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if depth > 0 => {
            let below = children(directory).unwrap_or_default();
            if below.is_empty() {
                return Err(error);
            }
            for child in below {
                remove(&child, depth - 1)?;
            }
            match fs::remove_dir(directory) {
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                done => done,
            }
        }
        Err(error) => Err(error),
    }
}

pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<String, Error> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(limit).read_to_string(&mut text))
        .map_err(|source| Error::Read { path: path.to_owned(), source })?;
    Ok(text)
}

pub(crate) fn read(path: &Path) -> Result<String, Error> {
    read_bounded(path, FILE_LIMIT)
}

pub(crate) fn write(path: &Path, value: &str) -> Result<(), Error> {
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|source| Error::Write { path: path.to_owned(), source })
}
