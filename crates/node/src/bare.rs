//! A computer that is no Kubernetes node: a Mac, whose kernel runs no containers.
//! It has files. What takes a Linux kernel is refused; what could only be left of
//! it is not there.

use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use kina_model::{PodId, UserNamespace};
use tokio::sync::mpsc;

use crate::{
    Bind, Daemon, Error, ExitStatus, FilesystemUsage, GuestProgram, LayerImage, LocalNodeConfig, MountFacts,
    NetworkProbe, Node, Output, PathFacts, PathKind, ProbeStep, ProcessIdentity, ProcessUsage, Program,
};

/// Between two looks at a directory that is watched.
const WATCH_PAUSE: Duration = Duration::from_secs(2);

/// Tells temporary files of one process apart.
static TEMPORARY: AtomicU64 = AtomicU64::new(0);

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
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let owned = path.to_owned();
    match tokio::task::spawn_blocking(move || work(&owned)).await {
        Ok(result) => result.map_err(|source| Error::io(operation, path, source)),
        Err(_) => Err(Error::Interrupted { operation }),
    }
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

/// Makes a directory and its parents; those that are made get the mode.
fn create_directory(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

fn remove_tree(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    let removed = if found.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if !is_gone(&error) => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn names(path: &Path) -> io::Result<Vec<String>> {
    match fs::read_dir(path) {
        Ok(entries) => {
            let names = entries.map(|entry| entry.map(|entry| entry.file_name().into_string().ok()));
            names.filter_map(Result::transpose).collect()
        }
        Err(error) if is_gone(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn identity(path: &Path) -> io::Result<Option<String>> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() => {
            let (device, inode, size) = (found.dev(), found.ino(), found.size());
            let (changed, nanos) = (found.ctime(), found.ctime_nsec());
            Ok(Some(format!("{device}:{inode}:{size}:{changed}.{nanos}")))
        }
        Ok(_) => Ok(None),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn write_file(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    let number = TEMPORARY.fetch_add(1, Ordering::Relaxed);
    temporary.push(format!(".{}.{}.{number}", std::process::id(), time.as_nanos()));
    let temporary = path.with_file_name(temporary);
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        drop(file);
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        // What failed matters more.
        drop(fs::remove_file(&temporary));
    }
    written
}

fn facts(path: &Path) -> io::Result<PathFacts> {
    let real = fs::canonicalize(path)?;
    let found = fs::metadata(&real)?;
    let of = found.file_type();
    let kind = if of.is_dir() {
        PathKind::Directory
    } else if of.is_socket() {
        PathKind::Socket
    } else if of.is_fifo() {
        PathKind::Pipe
    } else if of.is_block_device() {
        PathKind::BlockDevice
    } else if of.is_char_device() {
        PathKind::CharacterDevice
    } else {
        PathKind::File
    };
    // The last directory upwards that is on the same device.
    let device = found.dev();
    let same = |path: &&Path| fs::metadata(path).is_ok_and(|found| found.dev() == device);
    let mountpoint = real.ancestors().take_while(same).last().unwrap_or(&real).to_owned();
    let mount = MountFacts { mountpoint, filesystem: String::new(), size_bytes: 0 };
    let (mode, uid, gid) = (found.mode() & 0o7777, found.uid(), found.gid());
    let has_mounts_below = false;
    Ok(PathFacts { real, kind, mode, uid, gid, mount, has_mounts_below, aliases: Vec::new() })
}

/// Blocks and files below a path on its own device, those with several names once
/// for each.
fn measure(path: &Path) -> io::Result<FilesystemUsage> {
    let top = fs::symlink_metadata(path)?;
    let device = top.dev();
    let (mut bytes, mut inodes) = (0_u64, 0_u64);
    let mut pending = vec![(path.to_owned(), top)];
    while let Some((path, found)) = pending.pop() {
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
            let identity = identity(&entry.path()).ok().flatten();
            format!("{} {}", entry.file_name().display(), identity.unwrap_or_default())
        })
        .collect();
    entries.sort();
    Some(entries.join("\n"))
}

#[async_trait]
impl Node for BareNode {
    async fn boot_id(&self) -> Result<String, Error> {
        blocking("read the boot id", Path::new("/"), |_| boot_id()).await
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
        blocking("create directory", path, move |path| create_directory(path, mode)).await
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

    async fn hard_link(&self, source: &Path, target: &Path) -> Result<(), Error> {
        let target = target.to_owned();
        let link = move |source: &Path| match fs::hard_link(source, &target) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let id = |path: &Path| fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()));
                if id(source)? == id(&target)? { Ok(()) } else { Err(error) }
            }
            other => other,
        };
        blocking("link", source, link).await
    }

    async fn create_pipe(&self, _path: &Path, _mode: u32) -> Result<(), Error> {
        refuse("a named pipe")
    }

    async fn exists(&self, path: &Path) -> Result<bool, Error> {
        blocking("inspect", path, |path| path.try_exists()).await
    }

    async fn inspect_path(&self, path: &Path) -> Result<PathFacts, Error> {
        blocking("inspect", path, facts).await
    }

    async fn list_directory(&self, path: &Path) -> Result<Vec<String>, Error> {
        blocking("list", path, names).await
    }

    async fn watch_directory(&self, path: &Path) -> Result<mpsc::Receiver<()>, Error> {
        let mut seen = blocking("watch", path, |path| {
            glimpse(path).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
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
        let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        if !blocking("read", path, |path| Ok(fs::metadata(path)?.is_file())).await? {
            return Err(Error::NotAFile { path: path.to_owned() });
        }
        let read = move |path: &Path| {
            let mut content = Vec::new();
            fs::File::open(path)?.take(most).read_to_end(&mut content)?;
            Ok(content)
        };
        let content = blocking("read", path, read).await?;
        if content.len() > limit {
            return Err(Error::TooLarge { path: path.to_owned(), limit });
        }
        Ok(content)
    }

    async fn read_end(&self, path: &Path, limit: usize) -> Result<Vec<u8>, Error> {
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        let read = move |path: &Path| {
            let mut file = fs::File::open(path)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
            let mut content = Vec::new();
            file.take(limit).read_to_end(&mut content)?;
            Ok(content)
        };
        blocking("read", path, read).await
    }

    async fn file_identity(&self, path: &Path) -> Result<Option<String>, Error> {
        blocking("inspect", path, identity).await
    }

    async fn write_file(&self, path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
        let content = content.to_owned();
        blocking("write", path, move |path| write_file(path, &content, mode)).await
    }

    async fn usage(&self, path: &Path) -> Result<FilesystemUsage, Error> {
        blocking("measure", path, measure).await
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn node() -> (tempfile::TempDir, BareNode) {
        let directory = tempfile::tempdir().unwrap();
        let node = BareNode::new(LocalNodeConfig::new(directory.path().join("run")));
        (directory, node)
    }

    #[tokio::test]
    async fn files_are_as_on_any_node() {
        let (directory, node) = node();
        let at = |name: &str| directory.path().join(name);
        node.create_directory(&at("a/b"), 0o700).await.unwrap();
        node.create_directory(&at("a/b"), 0o700).await.unwrap();
        node.write_file(&at("a/b/file"), b"one", 0o600).await.unwrap();
        let first = node.file_identity(&at("a/b/file")).await.unwrap();
        node.write_file(&at("a/b/file"), b"another", 0o640).await.unwrap();
        assert_ne!(first, node.file_identity(&at("a/b/file")).await.unwrap());
        assert_eq!(fs::metadata(at("a/b/file")).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(node.list_directory(&at("a/b")).await.unwrap(), ["file"]);
        assert_eq!(node.list_directory(&at("none")).await.unwrap(), [""; 0]);
        assert_eq!(node.read_file(&at("a/b/file"), 7).await.unwrap(), b"another");
        assert!(matches!(node.read_file(&at("a/b/file"), 6).await, Err(Error::TooLarge { .. })));
        assert!(matches!(node.read_file(&at("a"), 6).await, Err(Error::NotAFile { .. })));
        assert!(node.read_file(&at("none"), 6).await.unwrap_err().is_not_found());
        assert_eq!(node.read_end(&at("a/b/file"), 3).await.unwrap(), b"her");
        node.hard_link(&at("a/b/file"), &at("a/link")).await.unwrap();
        node.hard_link(&at("a/b/file"), &at("a/link")).await.unwrap();
        assert!(node.hard_link(&at("a/b/file"), &at("a/b")).await.is_err());
        symlink(at("a/b"), at("to-b")).unwrap();
        let facts = node.inspect_path(&at("to-b/file")).await.unwrap();
        assert_eq!(facts.real, at("a/b/file").canonicalize().unwrap());
        assert_eq!((facts.kind, facts.mode), (PathKind::File, 0o640));
        assert!(node.usage(&at("a")).await.unwrap().used_inodes >= 4);
        // A link goes, and what it leads to stays.
        node.remove_tree(&at("to-b")).await.unwrap();
        assert!(node.exists(&at("a/b")).await.unwrap());
        for _ in 0..2 {
            node.remove_tree(&at("a")).await.unwrap();
        }
        assert_eq!(node.list_directory(directory.path()).await.unwrap(), [""; 0]);
        assert_eq!(node.boot_id().await.unwrap().len(), 36);
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
