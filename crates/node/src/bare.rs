//! A computer that is no Kubernetes node: a Mac, whose kernel runs no containers.
//! It has files. What takes a Linux kernel is refused; what could only be left of
//! it is not there.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use kina_model::{PodId, UserNamespace};
use tokio::sync::mpsc;

use crate::path_facts::kind_of;
use crate::{
    Bind, Daemon, Error, ExitStatus, FilesystemUsage, GuestProgram, LayerImage, LocalNodeConfig, MountFacts,
    NetworkProbe, Node, Output, PathFacts, ProbeStep, ProcessIdentity, ProcessUsage, Program, files,
};

/// Between two looks at a directory that is watched.
const WATCH_PAUSE: Duration = Duration::from_secs(2);

/// A node with nothing but files.
#[derive(Clone, Debug)]
pub struct BareNode {
    config: LocalNodeConfig,
}

impl BareNode {
    /// Touches nothing.
    #[must_use]
    pub fn new(config: LocalNodeConfig) -> Self {
        Self { config }
    }
}

fn refuse<T>(operation: &'static str) -> Result<T, Error> {
    Err(Error::NeedsLinux { operation })
}

/// Runs what blocks off the event loop.
async fn blocking<T: Send + 'static>(
    operation: &'static str,
    path: &Path,
    work: impl FnOnce(&Path) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let path = path.to_owned();
    let done = tokio::task::spawn_blocking(move || work(&path)).await;
    done.unwrap_or(Err(Error::Interrupted { operation }))
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Linux has it in a file; macOS tells it by a program.
fn boot_id() -> io::Result<String> {
    let text = match fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        Ok(text) => text,
        Err(error) if is_gone(&error) => {
            let arguments = ["-n", "kern.bootsessionuuid"];
            let output = std::process::Command::new("/usr/sbin/sysctl").args(arguments).output()?;
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
        Err(error) => return Err(error),
    };
    match text.trim() {
        "" => Err(io::Error::new(io::ErrorKind::NotFound, "the kernel names no boot")),
        id => Ok(id.to_lowercase()),
    }
}

fn remove_tree(path: &Path) -> Result<(), Error> {
    let remove = || match fs::symlink_metadata(path)?.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
    match remove() {
        Err(error) if !is_gone(&error) => Err(Error::io("remove", path, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn facts(path: &Path) -> Result<PathFacts, Error> {
    let failed = |source: io::Error| Error::io("inspect", path, source);
    let real = fs::canonicalize(path).map_err(failed)?;
    let found = fs::symlink_metadata(&real).map_err(failed)?;
    let kind = kind_of(&found).ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    // The last directory upwards that is on the same device.
    let device = found.dev();
    let same = |path: &&Path| fs::metadata(path).is_ok_and(|found| found.dev() == device);
    let mountpoint = real.ancestors().take_while(same).last().unwrap_or(&real).to_owned();
    let mount = MountFacts { mountpoint, filesystem: String::new(), size_bytes: 0 };
    let (mode, uid, gid) = (found.mode() & 0o7777, found.uid(), found.gid());
    let has_mounts_below = false;
    Ok(PathFacts { real, kind, mode, uid, gid, mount, has_mounts_below, aliases: Vec::new() })
}

/// Blocks and files below a path on its own device, those with several names once.
fn measure(path: &Path) -> Result<FilesystemUsage, Error> {
    let top = fs::symlink_metadata(path).map_err(|source| Error::io("measure", path, source))?;
    let device = top.dev();
    let (mut bytes, mut inodes) = (0_u64, 0_u64);
    let mut several = HashSet::new();
    let mut pending = vec![(path.to_owned(), top)];
    while let Some((path, found)) = pending.pop() {
        if !found.is_dir() && found.nlink() > 1 && !several.insert(found.ino()) {
            continue;
        }
        bytes = bytes.saturating_add(found.blocks().saturating_mul(512));
        inodes += 1;
        if !found.is_dir() {
            continue;
        }
        // What vanishes meanwhile is not counted.
        for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
            if let Ok(found) = entry.path().symlink_metadata()
                && found.dev() == device
            {
                pending.push((entry.path(), found));
            }
        }
    }
    Ok(FilesystemUsage { mountpoint: facts(path)?.mount.mountpoint, used_bytes: bytes, used_inodes: inodes })
}

/// A text that changes with what is in a directory; `None` when that is gone.
fn glimpse(path: &Path) -> Option<String> {
    let mut entries: Vec<String> = fs::read_dir(path)
        .ok()?
        .flatten()
        .map(|entry| {
            let identity = files::file_identity(&entry.path()).ok().flatten();
            format!("{} {}", entry.file_name().display(), identity.unwrap_or_default())
        })
        .collect();
    entries.sort();
    Some(entries.join("\n"))
}

#[async_trait]
impl Node for BareNode {
    async fn boot_id(&self) -> Result<String, Error> {
        blocking("read the boot id", Path::new("/"), |path| {
            boot_id().map_err(|source| Error::io("read the boot id of", path, source))
        })
        .await
    }

    async fn create_network_namespace(
        &self,
        _pod: &PodId,
        _user: Option<UserNamespace>,
    ) -> Result<PathBuf, Error> {
        refuse("a network namespace")
    }

    async fn try_user_namespaces(&self, _directory: &Path) -> Result<(), Error> {
        refuse("a user namespace")
    }

    async fn remove_network_namespace(&self, _pod: &PodId) -> Result<(), Error> {
        Ok(())
    }

    async fn network_namespaces(&self) -> Result<Vec<PodId>, Error> {
        Ok(Vec::new())
    }

    fn network_namespace(&self, pod: &PodId) -> PathBuf {
        self.config.netns_directory.join(format!("{}{pod}", self.config.netns_prefix))
    }

    async fn probe_network(
        &self,
        _pod: Option<&PodId>,
        _probe: &NetworkProbe,
    ) -> Result<Vec<ProbeStep>, Error> {
        refuse("a look from a pod's network")
    }

    async fn mount_layer(&self, _layer: &LayerImage) -> Result<PathBuf, Error> {
        refuse("mounting a layer")
    }

    async fn unmount_layer(&self, _diff_id: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn mounted_layers(&self) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }

    async fn run(&self, _program: &Program) -> Result<Output, Error> {
        refuse("running a network plugin")
    }

    async fn kill_network_plugins(&self, _deadline: Duration) -> Result<usize, Error> {
        Ok(0)
    }

    async fn spawn_guest(&self, _guest: &GuestProgram) -> Result<ProcessIdentity, Error> {
        refuse("a pod on this computer's own kernel")
    }

    async fn start(&self, _daemon: &Daemon) -> Result<ProcessIdentity, Error> {
        refuse("a process in a control group")
    }

    async fn exit_status(&self, _process: ProcessIdentity) -> Option<ExitStatus> {
        None
    }

    async fn dial(&self, socket: &Path) -> Result<tokio::net::UnixStream, Error> {
        tokio::net::UnixStream::connect(socket)
            .await
            .map_err(|source| Error::io("connect to", socket, source))
    }

    async fn wait_process(&self, _process: ProcessIdentity) -> Result<(), Error> {
        Ok(())
    }

    async fn process_lives(&self, _process: ProcessIdentity) -> Result<bool, Error> {
        Ok(false)
    }

    async fn process_usage(&self, _process: ProcessIdentity) -> Result<Option<ProcessUsage>, Error> {
        Ok(None)
    }

    async fn kill_cgroup(&self, _path: &str, _deadline: Duration) -> Result<(), Error> {
        Ok(())
    }

    async fn out_of_memory_kills(&self, _path: &str) -> Result<u64, Error> {
        Ok(0)
    }

    async fn remove_idle_cgroup(&self, _path: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn cgroups(&self, _parent: &str, _prefix: &str) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }

    async fn cgroup_processes(&self, _path: &str) -> Result<Vec<ProcessIdentity>, Error> {
        Ok(Vec::new())
    }

    async fn create_directory(&self, path: &Path, mode: u32) -> Result<(), Error> {
        blocking("create directory", path, move |path| files::create_directory(path, mode)).await
    }

    async fn remove_tree(&self, path: &Path) -> Result<(), Error> {
        blocking("remove", path, remove_tree).await
    }

    async fn bind(&self, _bind: &Bind) -> Result<(), Error> {
        refuse("showing a file at a second place")
    }

    async fn unbind(&self, _path: &Path) -> Result<(), Error> {
        Ok(())
    }

    async fn rename(&self, from: &Path, to: &Path) -> Result<(), Error> {
        let to = to.to_owned();
        blocking("rename", from, move |from| files::rename(from, &to)).await
    }

    async fn hard_link(&self, source: &Path, target: &Path) -> Result<(), Error> {
        let target = target.to_owned();
        blocking("link", source, move |source| files::hard_link(source, &target)).await
    }

    async fn create_pipe(&self, _path: &Path, _mode: u32) -> Result<(), Error> {
        refuse("a named pipe")
    }

    async fn exists(&self, path: &Path) -> Result<bool, Error> {
        blocking("inspect", path, |path| {
            path.try_exists().map_err(|source| Error::io("inspect", path, source))
        })
        .await
    }

    async fn inspect_path(&self, path: &Path) -> Result<PathFacts, Error> {
        blocking("inspect", path, facts).await
    }

    async fn list_directory(&self, path: &Path) -> Result<Vec<String>, Error> {
        blocking("list", path, files::list_directory).await
    }

    async fn watch_directory(&self, path: &Path) -> Result<mpsc::Receiver<()>, Error> {
        let mut seen = blocking("watch", path, |path| {
            glimpse(path).ok_or_else(|| Error::io("watch", path, io::ErrorKind::NotFound))
        })
        .await?;
        // One is enough: it says that there is something to look at.
        let (changed, receiver) = mpsc::channel(1);
        let path = path.to_owned();
        tokio::spawn(async move {
            while !changed.is_closed() {
                tokio::time::sleep(WATCH_PAUSE).await;
                let Ok(Some(now)) = blocking("watch", &path, |path| Ok(glimpse(path))).await else { return };
                if now != seen {
                    seen = now;
                    // Full: it has been said.
                    let _said = changed.try_send(());
                }
            }
        });
        Ok(receiver)
    }

    async fn read_file(&self, path: &Path, limit: usize) -> Result<Vec<u8>, Error> {
        blocking("read", path, move |path| files::read_file(path, limit)).await
    }

    async fn read_end(&self, path: &Path, limit: usize) -> Result<Vec<u8>, Error> {
        blocking("read", path, move |path| files::read_end(path, limit)).await
    }

    async fn file_identity(&self, path: &Path) -> Result<Option<String>, Error> {
        blocking("inspect", path, files::file_identity).await
    }

    async fn write_file(&self, path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
        let content = content.to_owned();
        blocking("write", path, move |path| files::write_file(path, &content, mode)).await
    }

    async fn usage(&self, path: &Path) -> Result<FilesystemUsage, Error> {
        blocking("measure", path, measure).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> (tempfile::TempDir, BareNode) {
        let directory = tempfile::tempdir().unwrap();
        let node = BareNode::new(LocalNodeConfig::new(directory.path().join("run")));
        (directory, node)
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_told() {
        let (directory, node) = node();
        let mut changes = node.watch_directory(directory.path()).await.unwrap();
        node.write_file(&directory.path().join("new"), b"", 0o600).await.unwrap();
        changes.recv().await.unwrap();
        drop(directory);
        assert_eq!(changes.recv().await, None);
        assert!(node.watch_directory(Path::new("/nowhere/at/all")).await.is_err());
    }

    #[tokio::test]
    async fn what_takes_linux_is_refused_and_never_left() {
        let (_directory, node) = node();
        let pod = PodId::random();
        let error = node.create_network_namespace(&pod, None).await.unwrap_err();
        assert!(error.to_string().contains("a network namespace"), "{error}");
        node.remove_network_namespace(&pod).await.unwrap();
        assert_eq!(node.network_namespaces().await.unwrap(), []);
        node.kill_cgroup("/x", Duration::ZERO).await.unwrap();
        assert_eq!(node.mounted_layers().await.unwrap(), [""; 0]);
    }
}
