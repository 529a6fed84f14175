//! The tree that a virtual machine sees: its program, its charter, and what is shared with it.
//!
//! It is put together in a mount namespace of the helper's own, so that nothing of it is left when
//! the helper ends, whatever ends it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::error::{Code, Problem};
use crate::resources::{Configuration, Filesystem, FilesystemKind};
use crate::runtime::seam::{CHARTER, Charter, PROGRAM, SHARE};
use crate::runtime::spec::is_socket;

/// Gives this process a mount namespace of its own, in which what the host mounts appears and from
/// which nothing gets out. To be called with one thread.
pub(super) fn leave_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    Ok(mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE)?)
}

const NONE: Option<&str> = None;

/// A tree.
pub(super) struct Tree {
    root: PathBuf,
    /// The container's mounts, as they are in the machine.
    pub(super) mounts: Vec<Filesystem>,
}

impl Tree {
    /// Puts the shares of a container in place, each once.
    pub(super) fn make(root: &Path, configuration: &Configuration, program: &Path) -> Result<Self, Problem> {
        fs::create_dir_all(root)?;
        let within = root.join(PROGRAM);
        File::create(&within)?;
        let told = |error: io::Error| Problem::internal(format!("{}: {error}", program.display()));
        bind(program, &within, true).map_err(told)?;
        let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
        let mut mounts = Vec::new();
        for mounted in &configuration.mounts {
            if mounted.kind == (FilesystemKind::Tmpfs {}) {
                mounts.push(mounted.clone());
                continue;
            }
            if is_socket(&mounted.source) {
                let message = format!(
                    "the simulator's virtual machines reach no socket of the host: {}",
                    mounted.source
                );
                return Err(Problem::new(Code::Unsupported, message));
            }
            let count = numbers.len();
            let known = numbers.contains_key(mounted.source.as_str());
            let number = *numbers.entry(&mounted.source).or_insert(count);
            let (directory, file) = shared(Path::new(&mounted.source));
            if !known {
                // What is said of a source last holds for all of its mounts.
                let last = configuration.mounts.iter().rfind(|other| other.source == mounted.source);
                let readonly = last.is_some_and(|last| last.options.iter().any(|word| word == "ro"));
                let at = root.join(number.to_string());
                fs::create_dir_all(&at)?;
                bind(directory, &at, readonly)
                    .map_err(|error| Problem::internal(format!("share {}: {error}", directory.display())))?;
            }
            let mut source = Path::new(SHARE).join(number.to_string());
            source.extend(file);
            let source = source.to_string_lossy().into_owned();
            mounts.push(Filesystem { source, ..mounted.clone() });
        }
        Ok(Self { root: root.to_owned(), mounts })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Tells the machine what it is.
    pub(super) fn write(&self, charter: &Charter) -> Result<(), Problem> {
        Ok(fs::write(self.root.join(CHARTER), serde_json::to_vec(charter)?)?)
    }
}

/// What is shared of a source: directories. A file shows what is beside it, too.
fn shared(source: &Path) -> (&Path, Option<&Path>) {
    match (source.is_dir(), source.parent(), source.file_name()) {
        (false, Some(parent), Some(name)) => (parent, Some(Path::new(name))),
        _ => (source, None),
    }
}

fn bind(source: &Path, target: &Path, readonly: bool) -> io::Result<()> {
    mount(Some(source), target, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
    if readonly {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(NONE, target, NONE, flags, NONE)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_shared() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(shared(directory.path()), (directory.path(), None));
        assert_eq!(shared(&file), (directory.path(), Some(Path::new("file"))));
    }
}
