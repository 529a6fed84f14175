//! SELinux labels: of a container's processes, of the file systems that are made for it, and of
//! the volumes that it asks to be relabelled.

use std::ffi::{CStr, OsStr};
use std::fs;
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use kina_guest_api::v1;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use crate::error::Error;
use crate::unattached::descriptor_path;

/// Where the kernel shows its policy.
const KERNEL: &str = "/sys/fs/selinux";
/// Where a system has the rest of it.
const CONFIGURATION: &str = "/etc/selinux";
/// The files of the configuration have less, in bytes.
const FILE_LIMIT: u64 = 64 << 10;
/// A file's label.
const ATTRIBUTE: &str = "security.selinux";
/// No more files of a volume are relabelled.
const ENTRIES_LIMIT: usize = 10_000_000;
/// So many levels, of which each takes a descriptor.
const DEPTH_LIMIT: usize = 100;

/// Whether the kernel has it switched on. There may be no policy yet.
pub(crate) fn enabled() -> bool {
    Path::new(KERNEL).join("enforce").exists()
}

/// The labels of a container or pod; without, the kernel's policy decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Labels {
    /// Of processes.
    pub(crate) process: Option<String>,
    /// Of files in mounts that are made for it, and in volumes that are relabelled.
    pub(crate) files: Option<String>,
}

impl Labels {
    /// The labels that are asked for, as far as the policy knows them.
    pub(crate) fn of(asked: Option<&v1::SelinuxOptions>) -> Result<Self, Error> {
        let Some(asked) = asked else {
            return Ok(Self::default());
        };
        if !enabled() {
            return Err(Error::Unsupported {
                what: "an SELinux label (the kernel has none, or no selinuxfs)",
            });
        }
        let labels = resolve(asked, &Defaults::read(Path::new(CONFIGURATION)))?;
        for label in labels.process.iter().chain(&labels.files) {
            // The kernel's own answer to whether a label makes sense.
            fs::write(Path::new(KERNEL).join("context"), label).map_err(|error| {
                let reason = format!("{label:?} is no label of the policy that is loaded: {error}");
                Error::invalid("selinux", reason)
            })?;
        }
        Ok(labels)
    }
}

/// What the policy's makers have foreseen for containers.
#[derive(Debug, Default)]
struct Defaults {
    process: Option<String>,
    files: Option<String>,
}

impl Defaults {
    /// From `contexts/lxc_contexts` of the policy that is configured; where there is none, there
    /// are none.
    fn read(configuration: &Path) -> Self {
        let config = text(&configuration.join("config"));
        let Some(policy) = value(&config, "SELINUXTYPE").filter(|name| !name.contains('/')) else {
            return Self::default();
        };
        let contexts = text(&configuration.join(policy).join("contexts/lxc_contexts"));
        Self { process: value(&contexts, "process"), files: value(&contexts, "file") }
    }
}

fn text(path: &Path) -> String {
    let mut text = String::new();
    match fs::File::open(path).and_then(|file| file.take(FILE_LIMIT).read_to_string(&mut text)) {
        Ok(_) => text,
        Err(_) => String::new(),
    }
}

/// The value of a key: `key = "value"`, with or without blanks and quotes.
fn value(text: &str, key: &str) -> Option<String> {
    let found =
        text.lines().find_map(|line| line.trim().strip_prefix(key)?.trim_start().strip_prefix('='))?;
    let found = found.trim().trim_matches('"');
    (!found.is_empty()).then(|| found.to_owned())
}

/// User, role, type and level of a label; without a level where the policy has none.
fn parts(label: &str) -> [Option<&str>; 4] {
    let mut parts = label.splitn(4, ':');
    std::array::from_fn(|_| parts.next())
}

/// What is left out is what containers have by default; files get the level of the processes.
fn resolve(asked: &v1::SelinuxOptions, defaults: &Defaults) -> Result<Labels, Error> {
    let [user, role, kind, level] = defaults.process.as_deref().map(parts).unwrap_or_default();
    let part = |field: &'static str, asked: &str, default: Option<&str>| match (asked, default) {
        ("", Some(default)) => Ok(default.to_owned()),
        ("", None) => {
            let reason = "is left out, and this pod's system has no default for containers \
                          (contexts/lxc_contexts of its policy); give it";
            Err(Error::invalid(field, reason))
        }
        (asked, _) => Ok(asked.to_owned()),
    };
    let mut process = vec![
        part("selinux.user", &asked.user, user)?,
        part("selinux.role", &asked.role, role)?,
        part("selinux.type", &asked.r#type, kind)?,
    ];
    let level = match asked.level.as_str() {
        "" => level,
        level => Some(level),
    };
    process.extend(level.map(str::to_owned));
    let files = defaults.files.as_deref().map(|label| {
        let [user, role, kind, _] = parts(label);
        let parts: Vec<&str> = [user, role, kind, level].into_iter().flatten().collect();
        parts.join(":")
    });
    Ok(Labels { process: Some(process.join(":")), files })
}

fn directory(at: impl AsFd, name: &CStr) -> Result<Dir, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened: OwnedFd = rustix::fs::openat(at, name, flags, Mode::empty())?;
    Dir::new(opened)
}

/// Directories of the machine that are never relabelled: it could not work any more.
const NEVER: [&str; 24] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/passwd",
    "/etc/shadow",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
    "/var/lib",
    "/var/log",
];

/// Labels what is at `source` and, if it is a directory, all below it on the same file system.
/// The tree may be a container's: nothing in it is followed out of it.
pub(crate) fn relabel(source: &Path, label: &str) -> Result<(), Error> {
    let failed = |errno: Errno| Error::file("relabel", source, errno);
    if let Ok(real) = fs::canonicalize(source)
        && NEVER.iter().any(|never| real == Path::new(never))
    {
        let reason = format!("{} is the system's own; mount a directory below it", real.display());
        return Err(Error::invalid("mounts.relabel", reason));
    }
    let root = rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let status = rustix::fs::fstat(&root).map_err(failed)?;
    let set = |path: &Path, followed: bool| {
        let (value, flags) = (label.as_bytes(), XattrFlags::empty());
        match followed {
            true => rustix::fs::setxattr(path, ATTRIBUTE, value, flags),
            false => rustix::fs::lsetxattr(path, ATTRIBUTE, value, flags),
        }
    };
    match set(&descriptor_path(&root), true) {
        Ok(()) => {}
        // A file system whose files have no labels of their own.
        Err(Errno::NOTSUP) => return Ok(()),
        Err(errno) => return Err(failed(errno)),
    }
    if FileType::from_raw_mode(status.st_mode) != FileType::Directory {
        return Ok(());
    }
    // Opened directories only, as when a tree is measured.
    let mut open = vec![directory(&root, c".").map_err(failed)?];
    let mut entries = 0;
    while let Some(top) = open.last_mut() {
        let Some(entry) = top.read() else {
            open.pop();
            continue;
        };
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        entries += 1;
        if entries > ENTRIES_LIMIT {
            return Err(Error::TooMany { what: "files to relabel", limit: ENTRIES_LIMIT });
        }
        let at = top.fd().map_err(failed)?;
        // What is gone meanwhile needs no label.
        let Ok(found) = rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        if found.st_dev != status.st_dev {
            continue;
        }
        let path = Path::new("/proc/self/fd").join(at.as_raw_fd().to_string());
        match set(&path.join(OsStr::from_bytes(name.to_bytes())), false) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed(errno)),
        }
        if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
            continue;
        }
        let limit = DEPTH_LIMIT;
        match directory(at, name) {
            Ok(_) if open.len() >= limit => {
                return Err(Error::TooMany { what: "levels of directories to relabel", limit });
            }
            Ok(below) => open.push(below),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;

    fn asked(user: &str, role: &str, kind: &str, level: &str) -> v1::SelinuxOptions {
        let [user, role, kind, level] = [user, role, kind, level].map(str::to_owned);
        v1::SelinuxOptions { user, role, r#type: kind, level }
    }

    #[test]
    fn what_is_left_out_is_the_systems_default() {
        let directory = tempfile::tempdir().unwrap();
        let contexts = directory.path().join("targeted/contexts");
        fs::create_dir_all(&contexts).unwrap();
        let none = Defaults::read(directory.path());
        fs::write(directory.path().join("config"), "# comment\nSELINUX=enforcing\nSELINUXTYPE=targeted\n")
            .unwrap();
        let lxc = "process = \"system_u:system_r:container_t:s0\"\n\
                   file = \"system_u:object_r:container_file_t:s0\"\nro_file=\"x:y:z:s0\"\n";
        fs::write(contexts.join("lxc_contexts"), lxc).unwrap();
        let some = Defaults::read(directory.path());
        let labels = |options: &v1::SelinuxOptions, defaults: &Defaults| {
            resolve(options, defaults).map(|labels| (labels.process.unwrap(), labels.files))
        };
        let (process, files) = labels(&asked("", "", "", ""), &some).unwrap();
        assert_eq!(process, "system_u:system_r:container_t:s0");
        assert_eq!(files.as_deref(), Some("system_u:object_r:container_file_t:s0"));
        let (process, files) = labels(&asked("", "", "spc_t", "s0:c1,c2"), &some).unwrap();
        assert_eq!(process, "system_u:system_r:spc_t:s0:c1,c2");
        assert_eq!(files.as_deref(), Some("system_u:object_r:container_file_t:s0:c1,c2"));
        // Without defaults all is needed but a level, which not every policy has.
        assert_eq!(labels(&asked("u", "r", "t", ""), &none).unwrap(), ("u:r:t".to_owned(), None));
        for (options, field) in [
            (asked("", "r", "t", "s0"), "selinux.user"),
            (asked("u", "", "t", "s0"), "selinux.role"),
            (asked("u", "r", "", "s0"), "selinux.type"),
        ] {
            let error = labels(&options, &none).unwrap_err().to_string();
            assert!(error.starts_with(field) && error.contains("lxc_contexts"), "{error}");
        }
    }

    fn label(path: &Path) -> Option<String> {
        let mut text = [0; 64];
        let length = rustix::fs::lgetxattr(path, ATTRIBUTE, &mut text).ok()?;
        Some(String::from_utf8_lossy(&text[..length]).trim_end_matches('\0').to_owned())
    }

    struct Tree {
        directory: tempfile::TempDir,
        inside: Vec<PathBuf>,
    }

    fn tree() -> Tree {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir_all(at("volume/a/b")).unwrap();
        fs::create_dir(at("outside")).unwrap();
        fs::write(at("volume/a/file"), "").unwrap();
        fs::write(at("outside/file"), "").unwrap();
        symlink(at("outside"), at("volume/a/out")).unwrap();
        symlink(at("outside/file"), at("volume/out")).unwrap();
        let inside = ["volume", "volume/a", "volume/a/b", "volume/a/file", "volume/a/out", "volume/out"];
        Tree { inside: inside.map(at).to_vec(), directory }
    }

    #[test]
    fn all_of_a_tree_is_relabelled_and_nothing_else() {
        if enabled() {
            // The kernel would want labels of its policy.
            return;
        }
        let tree = tree();
        let volume = tree.directory.path().join("volume");
        relabel(&volume, "u:object_r:t:s0:c1").unwrap();
        for path in &tree.inside {
            assert_eq!(label(path).as_deref(), Some("u:object_r:t:s0:c1"), "{}", path.display());
        }
        for path in ["outside", "outside/file"] {
            assert_eq!(label(&tree.directory.path().join(path)), None, "{path}");
        }
        // By a descriptor, as volumes of the pod's own are known; and a file alone.
        let held = fs::File::open(&volume).unwrap();
        relabel(&descriptor_path(&held.into()), "u:object_r:t:s0:c2").unwrap();
        assert_eq!(label(&tree.inside[3]).as_deref(), Some("u:object_r:t:s0:c2"));
        relabel(&tree.inside[3], "u:object_r:t:s0:c3").unwrap();
        assert_eq!(label(&tree.inside[3]).as_deref(), Some("u:object_r:t:s0:c3"));
        assert_eq!(label(&volume).as_deref(), Some("u:object_r:t:s0:c2"));
    }

    #[test]
    fn the_system_is_not_relabelled() {
        for path in ["/", "/etc", "/usr/../etc/", "/proc/self/root", "/etc/passwd"] {
            let error = relabel(Path::new(path), "u:object_r:t:s0").unwrap_err().to_string();
            assert!(error.starts_with("mounts.relabel: "), "{path}: {error}");
        }
        // What has no labels needs none.
        relabel(Path::new("/proc/self/status"), "u:object_r:t:s0").unwrap();
    }
}
