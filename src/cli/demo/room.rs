//! The throwaway place of a demo, and what becomes of it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::fs::{FlockOperation, flock};

use crate::config::Config;
use crate::traces::{Scope, Trace};

/// What the names of such places begin with.
const PREFIX: &str = "kina-demo-";

/// A directory for one demo. Its lock tells whether that demo still runs.
pub(super) struct Room {
    path: PathBuf,
    _lock: File,
}

impl Room {
    /// Makes one in a directory, named after this process.
    pub(super) fn new(parent: &Path) -> anyhow::Result<Self> {
        let path = parent.canonicalize()?.join(format!("{PREFIX}{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("create {}", path.display()))?;
        let lock = File::create(path.join("lock")).context("create the demo's lock")?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).context("take the demo's lock")?;
        for directory in ["root", "run", "logs", "registry"] {
            DirBuilder::new().mode(0o711).create(path.join(directory))?;
        }
        Ok(Self { path, _lock: lock })
    }

    /// What demos have left that were killed. Only directories of this user that
    /// nobody else can write to.
    pub(super) fn leftovers(parent: &Path) -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(parent.canonicalize()?)? {
            let entry = entry?;
            if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
                continue;
            }
            // Of the entry itself, not of what a link points to.
            let Ok(metadata) = entry.metadata() else { continue };
            let own = metadata.uid() == rustix::process::geteuid().as_raw();
            if !metadata.is_dir() || !own || metadata.mode() & 0o077 != 0 {
                continue;
            }
            // A demo takes the lock a moment after it makes the directory; one
            // without a lock is left to a later demo.
            let Ok(lock) = File::open(entry.path().join("lock")) else { continue };
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                found.push(Self { path: entry.path(), _lock: lock });
            }
        }
        Ok(found)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The configuration of a daemon that lives here.
    pub(super) fn config(&self, guest: &Path) -> Config {
        let mut config = Config {
            root: self.path.join("root"),
            run: self.path.join("run"),
            cgroup_parent: self.cgroup(),
            ..Config::default()
        };
        config.guest.program = guest.to_owned();
        // Loopback only: the networks of this machine are for its own pods.
        config.network.config_directory = self.path.join("net.d");
        config.network.cache_directory = self.path.join("cni");
        // It starts in milliseconds or never; nobody wants to wait for that.
        config.guest.handshake_seconds = 15;
        config
    }

    fn cgroup(&self) -> String {
        format!("/{}", self.path.file_name().unwrap_or_default().to_string_lossy())
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.path.join("run/kina.sock")
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    pub(super) fn daemon_log(&self) -> PathBuf {
        self.path.join("daemon.log")
    }

    fn scope(&self) -> Scope {
        Scope::of(&self.config(Path::new("")))
    }

    /// What the demo's daemon and its pods have left on the machine.
    pub(super) fn traces(&self) -> Vec<Trace> {
        self.scope().find()
    }

    /// Ends and removes everything: processes, mounts, namespaces, cgroups, files.
    pub(super) fn clear(self) -> anyhow::Result<()> {
        let scope = self.scope();
        // The registry, too, has the place's name among its arguments.
        let everything = Scope { root: self.path.clone(), ..scope };
        everything.erase().with_context(|| format!("clean {}", self.path.display()))?;
        // Nothing may be deleted through a mount.
        let mounts = everything.find().iter().any(|trace| matches!(trace, Trace::Mount(_)));
        anyhow::ensure!(!mounts, "mounts below {} stay", self.path.display());
        fs::remove_dir_all(&self.path).with_context(|| format!("remove {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_room_is_found_once_its_demo_is_gone() {
        let parent = tempfile::tempdir().unwrap();
        let room = Room::new(parent.path()).unwrap();
        let path = room.path().to_owned();
        assert!(Room::leftovers(parent.path()).unwrap().is_empty());
        drop(room);
        let found = Room::leftovers(parent.path()).unwrap();
        assert_eq!(found.iter().map(Room::path).collect::<Vec<_>>(), [path.as_path()]);
        for room in found {
            room.clear().unwrap();
        }
        assert!(!path.exists());
    }

    #[test]
    fn what_others_can_write_to_is_no_room() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("kina-demo-1");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("lock"), "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        std::os::unix::fs::symlink("/", parent.path().join("kina-demo-2")).unwrap();
        assert!(Room::leftovers(parent.path()).unwrap().is_empty());
    }

    #[test]
    fn its_socket_is_short_enough() {
        let parent = tempfile::tempdir().unwrap();
        let room = Room::new(parent.path()).unwrap();
        let config = room.config(Path::new("/guest"));
        config.check().unwrap();
        assert_eq!(config.socket_path(), room.socket());
        room.clear().unwrap();
    }
}
