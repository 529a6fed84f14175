//! What a daemon and its pods leave on a Linux machine, found by looking at the
//! machine and not at any record: the proof of `kina demo` and of the tests
//! that nothing is left, and the broom when something is.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::config::{Config, netns_prefix};

/// Where named network namespaces are (`ip-netns(8)`).
const NETWORK_NAMESPACES: &str = "/run/netns";

/// How long what was killed may take to go.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// What tells one daemon's traces from those of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Its root directory, without symbolic links in it.
    pub root: PathBuf,
    /// Its run directory, likewise.
    pub run: PathBuf,
    /// The cgroup that is the parent of its pods' and of nobody else's.
    pub cgroup_parent: String,
    /// What the names of its network namespaces begin with.
    pub netns_prefix: String,
}

/// Something that is there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trace {
    /// A process in a pod's cgroup, or with one of the directories among its arguments.
    Process {
        /// Its id.
        pid: u32,
        /// Its arguments.
        command: String,
    },
    /// A mount below one of the directories.
    Mount(PathBuf),
    /// A named network namespace.
    NetworkNamespace(PathBuf),
    /// A pod's cgroup, in one of the hierarchies.
    Cgroup(PathBuf),
    /// A loop device of a file below one of the directories.
    LoopDevice {
        /// For example `/dev/loop0`.
        device: PathBuf,
        /// The file.
        file: PathBuf,
    },
    /// A file or directory of a pod.
    File(PathBuf),
}

impl Trace {
    /// Every kind of them, for people.
    pub const KINDS: [&str; 6] =
        ["processes", "mounts", "network namespaces", "cgroups", "loop devices", "pod files"];

    /// Its place in [`Trace::KINDS`].
    #[must_use]
    pub fn kind(&self) -> usize {
        match self {
            Self::Process { .. } => 0,
            Self::Mount(_) => 1,
            Self::NetworkNamespace(_) => 2,
            Self::Cgroup(_) => 3,
            Self::LoopDevice { .. } => 4,
            Self::File(_) => 5,
        }
    }
}

impl Scope {
    /// The traces of a daemon with this configuration.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let canonical = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        Self {
            root: canonical(&config.root),
            run: canonical(&config.run),
            cgroup_parent: config.cgroup_parent.clone(),
            netns_prefix: netns_prefix(&config.root),
        }
    }

    /// Everything that is there now. The daemon itself is among it if it runs.
    /// What vanishes while it is looked at is not there.
    #[must_use]
    pub fn find(&self) -> Vec<Trace> {
        let cgroups = self.cgroups();
        let mut found = self.processes(&cgroups);
        found.extend(self.mounts().into_iter().map(Trace::Mount));
        found.extend(self.network_namespaces().into_iter().map(Trace::NetworkNamespace));
        found.extend(cgroups.into_iter().map(Trace::Cgroup));
        found.extend(self.loop_devices());
        found.extend(self.files().into_iter().map(Trace::File));
        found
    }

    /// Ends and removes all of it but the directories themselves. May be repeated.
    ///
    /// # Errors
    /// When something stays.
    pub fn erase(&self) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let processes = self.processes(&self.cgroups());
            if processes.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{processes:?} does not end")));
            }
            for trace in processes {
                let Trace::Process { pid, .. } = trace else { continue };
                if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                    // It may have ended by itself.
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            std::thread::sleep(PAUSE);
        }
        // The last mounted stands on the others.
        for mount in self.mounts().iter().rev() {
            unmount(mount)?;
        }
        for namespace in self.network_namespaces() {
            // A name that was never bound is no mount.
            let _ = unmount(&namespace);
            remove(fs::remove_file(&namespace))?;
        }
        // Inner ones last in the list; the kernel may take a moment.
        for cgroup in self.cgroups().iter().rev().chain(self.parents().iter()) {
            loop {
                match remove(fs::remove_dir(cgroup)) {
                    Err(error)
                        if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
                    {
                        std::thread::sleep(PAUSE);
                    }
                    other => break other?,
                }
            }
        }
        Ok(())
    }

    fn within(&self, path: &Path) -> bool {
        path.starts_with(&self.root) || path.starts_with(&self.run)
    }

    /// The parent cgroup in every hierarchy that has it.
    fn parents(&self) -> Vec<PathBuf> {
        let relative = self.cgroup_parent.trim_matches('/');
        if relative.is_empty() {
            return Vec::new();
        }
        let mut parents: Vec<PathBuf> = mount_table()
            .into_iter()
            .filter(|mount| matches!(mount.kind.as_str(), "cgroup" | "cgroup2"))
            .map(|mount| mount.point.join(relative))
            .filter(|path| path.is_dir())
            .collect();
        parents.sort();
        parents.dedup();
        parents
    }

    /// Outer ones first.
    fn cgroups(&self) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = self.parents().iter().flat_map(|parent| directories(parent)).collect();
        let mut next = 0;
        while let Some(path) = found.get(next).cloned() {
            found.extend(directories(&path));
            next += 1;
        }
        found
    }

    fn processes(&self, cgroups: &[PathBuf]) -> Vec<Trace> {
        let members = |cgroup: &PathBuf| {
            let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
            text.lines().filter_map(|line| line.parse::<u32>().ok()).collect::<Vec<_>>()
        };
        let members: std::collections::BTreeSet<u32> = cgroups.iter().flat_map(members).collect();
        let own = std::process::id();
        let mut found = Vec::new();
        for name in names(Path::new("/proc")) {
            let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if pid != own && (members.contains(&pid) || self.mentioned(&command)) {
                let command = String::from_utf8_lossy(&command).trim_end_matches('\0').replace('\0', " ");
                found.push(Trace::Process { pid, command });
            }
        }
        found
    }

    /// Whether arguments name one of the directories or something in it.
    fn mentioned(&self, command: &[u8]) -> bool {
        [&self.root, &self.run].into_iter().any(|directory| {
            let name = directory.as_os_str().as_bytes();
            command
                .windows(name.len() + 1)
                .any(|part| part.starts_with(name) && matches!(part[name.len()], b'/' | 0))
        })
    }

    fn mounts(&self) -> Vec<PathBuf> {
        mount_table().into_iter().map(|mount| mount.point).filter(|point| self.within(point)).collect()
    }

    fn network_namespaces(&self) -> Vec<PathBuf> {
        let directory = Path::new(NETWORK_NAMESPACES);
        let prefix = self.netns_prefix.as_bytes();
        let found = names(directory).into_iter().filter(|name| name.as_bytes().starts_with(prefix));
        found.map(|name| directory.join(name)).collect()
    }

    fn loop_devices(&self) -> Vec<Trace> {
        let mut found = Vec::new();
        for name in names(Path::new("/sys/block")) {
            let path = Path::new("/sys/block").join(&name).join("loop/backing_file");
            let Ok(file) = fs::read_to_string(path) else { continue };
            let file = PathBuf::from(file.trim_end());
            if self.within(&file) {
                found.push(Trace::LoopDevice { device: Path::new("/dev").join(name), file });
            }
        }
        found
    }

    fn files(&self) -> Vec<PathBuf> {
        let places = [self.root.join("pods"), self.run.join("pods"), self.run.join("layers")];
        places.iter().flat_map(|place| names(place).into_iter().map(|name| place.join(name))).collect()
    }
}

/// What is gone already is removed.
fn remove(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn unmount(path: &Path) -> io::Result<()> {
    let output = Command::new("umount")
        .arg("--lazy")
        .arg("--no-canonicalize")
        .arg(path)
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

fn names(directory: &Path) -> Vec<OsString> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name()).collect()
}

fn directories(parent: &Path) -> Vec<PathBuf> {
    let children = names(parent).into_iter().map(|name| parent.join(name));
    children.filter(|path| path.is_dir()).collect()
}

struct Mount {
    point: PathBuf,
    kind: String,
}

/// This mount namespace's table, in the order of mounting.
fn mount_table() -> Vec<Mount> {
    let text = fs::read("/proc/self/mountinfo").unwrap_or_default();
    text.split(|byte| *byte == b'\n').filter_map(mount).collect()
}

/// A line of `/proc/self/mountinfo` (proc(5)): the fifth field is the mount
/// point, the first after a lone `-` the kind of file system.
fn mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let point = unescape(fields.nth(4)?);
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mount { point: OsString::from_vec(point).into(), kind: String::from_utf8_lossy(kind).into_owned() })
}

/// Blanks and backslashes are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|_| *first == b'\\');
        let code = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(byte) => {
                text.push(byte);
                rest = &tail[3..];
            }
            None => {
                text.push(*first);
                rest = tail;
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(directory: &Path) -> Scope {
        Scope {
            root: directory.join("root"),
            run: directory.join("run"),
            cgroup_parent: "/kina-no-such-cgroup".to_owned(),
            netns_prefix: "kina-no-such-prefix-".to_owned(),
        }
    }

    #[test]
    fn a_line_of_the_mount_table() {
        let line = br"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        let found = mount(line).unwrap();
        assert_eq!(found.point, Path::new("/mnt 2"));
        assert_eq!(found.kind, "ext3");
        assert!(mount(b"").is_none());
        assert_eq!(unescape(br"a\134b\9"), br"a\b\9");
    }

    #[test]
    fn arguments_that_name_the_directories() {
        let scope = scope(Path::new("/tmp/x"));
        for (command, expected) in [
            (&b"kina\0serve\0--root\0/tmp/x/root\0"[..], true),
            (b"guest\0--socket=/tmp/x/run/pods/1/s\0", true),
            (b"cat\0/tmp/x/roots\0", false),
            (b"", false),
        ] {
            assert_eq!(scope.mentioned(command), expected, "{}", String::from_utf8_lossy(command));
        }
    }

    #[test]
    fn a_process_and_a_file_are_found_and_erased() {
        let directory = tempfile::tempdir().unwrap();
        let scope = scope(directory.path());
        assert_eq!(scope.find(), []);
        let mut child = Command::new("sleep").arg0_of(&scope.root).spawn().unwrap();
        fs::create_dir_all(scope.root.join("pods/one")).unwrap();
        let deadline = Instant::now() + PATIENCE;
        // Between fork and exec it still has this test's arguments.
        while scope.find().len() < 2 && Instant::now() < deadline {
            std::thread::sleep(PAUSE);
        }
        let found = scope.find();
        assert_eq!(found.iter().map(Trace::kind).collect::<Vec<_>>(), [0, 5], "{found:?}");
        // A zombie has no arguments, so that erasing does not wait for it.
        scope.erase().unwrap();
        assert!(!child.wait().unwrap().success());
        assert_eq!(scope.find(), [Trace::File(scope.root.join("pods/one"))]);
    }

    trait Named {
        fn arg0_of(&mut self, path: &Path) -> &mut Self;
    }

    impl Named for Command {
        fn arg0_of(&mut self, path: &Path) -> &mut Self {
            use std::os::unix::process::CommandExt;
            self.arg0(path).arg("1000")
        }
    }
}
