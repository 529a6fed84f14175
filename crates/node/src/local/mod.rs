//! The node that is this machine.

mod bind;
mod control_groups;
mod fork;
mod layers;
mod loop_device;
mod mountinfo;
mod netns;
mod path;
mod pipe;
mod probe;
mod probe_dns;
mod process;
mod program;
mod spawn;
mod strays;
mod tree;
mod watch;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use kina_model::{PodId, UserNamespace};
use tokio::sync::mpsc;

use crate::{
    Bind, Daemon, Error, ExitStatus, FilesystemUsage, GuestProgram, LayerImage, LocalNodeConfig,
    MAX_SOCKET_PATH, NetworkProbe, Node, Output, PathFacts, ProbeStep, ProcessIdentity, ProcessUsage,
    Program, files,
};

/// The node that is this machine.
///
/// Effects that can block for long run on blocking threads, where they end also
/// when the caller is dropped.
#[derive(Clone)]
pub struct LocalNode {
    inner: Arc<Inner>,
}

struct Inner {
    config: LocalNodeConfig,
    layers: layers::Layers,
    control_groups: control_groups::ControlGroups,
    started: spawn::Started,
    // One change of a pod's namespace at a time. Taken by blocking code only,
    // for the length of that change.
    namespaces: Mutex<HashMap<PodId, Weak<Mutex<()>>>>,
}

impl LocalNode {
    /// Touches nothing yet.
    #[must_use]
    pub fn new(config: LocalNodeConfig) -> Self {
        let layers = layers::Layers::new(config.run_directory.join("layers"));
        Self {
            inner: Arc::new(Inner {
                config,
                layers,
                control_groups: control_groups::ControlGroups::default(),
                started: spawn::Started::default(),
                namespaces: Mutex::new(HashMap::new()),
            }),
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || work(&inner))
            .await
            .unwrap_or(Err(Error::Interrupted { operation }))
    }
}

impl Inner {
    /// What the paths of this daemon's namespaces begin with; the pod id follows.
    fn namespace_path_prefix(&self) -> String {
        format!("{}/{}", self.config.netns_directory.display(), self.config.netns_prefix)
    }

    fn namespace_path(&self, pod: &PodId) -> PathBuf {
        self.config.netns_directory.join(format!("{}{pod}", self.config.netns_prefix))
    }

    fn change_namespace(
        &self,
        pod: &PodId,
        change: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<PathBuf, Error> {
        let turn = {
            let mut turns = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            turns.get(pod).and_then(Weak::upgrade).unwrap_or_else(|| {
                let turn = Arc::new(Mutex::new(()));
                turns.insert(pod.clone(), Arc::downgrade(&turn));
                turn
            })
        };
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.namespace_path(pod);
        change(&path)?;
        Ok(path)
    }
}

fn check_socket(socket: &Path) -> Result<(), Error> {
    let length = socket.as_os_str().len();
    if length > MAX_SOCKET_PATH {
        return Err(Error::SocketPath { path: socket.to_owned(), length, limit: MAX_SOCKET_PATH });
    }
    Ok(())
}

#[async_trait]
impl Node for LocalNode {
    async fn boot_id(&self) -> Result<String, Error> {
        let path = Path::new("/proc/sys/kernel/random/boot_id");
        let text = std::fs::read_to_string(path).map_err(|source| Error::io("read", path, source))?;
        Ok(text.trim().to_owned())
    }

    async fn create_network_namespace(
        &self,
        pod: &PodId,
        user: Option<UserNamespace>,
    ) -> Result<PathBuf, Error> {
        let pod = pod.clone();
        self.blocking("create network namespace", move |inner| {
            inner.change_namespace(&pod, |path| netns::create(&inner.config.netns_directory, path, user))
        })
        .await
    }

    async fn try_user_namespaces(&self, directory: &Path) -> Result<(), Error> {
        let directory = directory.to_owned();
        self.blocking("try user namespaces", move |_| {
            kina_userns::probe(&directory).map_err(|source| Error::UserNamespace { source: source.into() })
        })
        .await
    }

    async fn remove_network_namespace(&self, pod: &PodId) -> Result<(), Error> {
        let pod = pod.clone();
        self.blocking("remove network namespace", move |inner| {
            inner.change_namespace(&pod, netns::remove).map(drop)
        })
        .await
    }

    async fn network_namespaces(&self) -> Result<Vec<PodId>, Error> {
        let config = &self.inner.config;
        let names = files::list_directory(&config.netns_directory)?;
        Ok(names.iter().filter_map(|name| name.strip_prefix(&config.netns_prefix)?.parse().ok()).collect())
    }

    fn network_namespace(&self, pod: &PodId) -> PathBuf {
        self.inner.namespace_path(pod)
    }

    async fn probe_network(
        &self,
        pod: Option<&PodId>,
        probe: &NetworkProbe,
    ) -> Result<Vec<ProbeStep>, Error> {
        let own = || PathBuf::from("/proc/self/ns/net");
        let namespace = pod.map_or_else(own, |pod| self.inner.namespace_path(pod));
        let probe = probe.clone();
        self.blocking("probe network", move |_| probe::run(&namespace, &probe)).await
    }

    async fn mount_layer(&self, layer: &LayerImage) -> Result<PathBuf, Error> {
        if let Some(directory) = self.inner.layers.find(layer)? {
            return Ok(directory);
        }
        let layer = layer.clone();
        self.blocking("mount layer", move |inner| inner.layers.mount(&layer)).await
    }

    async fn unmount_layer(&self, diff_id: &str) -> Result<(), Error> {
        let diff_id = diff_id.to_owned();
        self.blocking("unmount layer", move |inner| inner.layers.unmount(&diff_id)).await
    }

    async fn mounted_layers(&self) -> Result<Vec<String>, Error> {
        self.blocking("list layers", |inner| inner.layers.mounted()).await
    }

    async fn run(&self, program: &Program) -> Result<Output, Error> {
        program::run(program).await
    }

    async fn kill_network_plugins(&self, deadline: Duration) -> Result<usize, Error> {
        self.blocking("kill network plugins", move |inner| {
            let prefix = inner.namespace_path_prefix();
            strays::kill(
                |entry| {
                    let namespace =
                        entry.strip_prefix("CNI_NETNS=").and_then(|path| path.strip_prefix(&prefix));
                    namespace.is_some_and(|pod| pod.parse::<PodId>().is_ok())
                },
                deadline,
            )
        })
        .await
    }

    async fn spawn_guest(&self, guest: &GuestProgram) -> Result<ProcessIdentity, Error> {
        check_socket(&guest.socket)?;
        let guest = guest.clone();
        self.blocking("start guest", move |inner| {
            spawn::spawn_guest(&inner.control_groups, &inner.started, &guest)
        })
        .await
    }

    async fn start(&self, daemon: &Daemon) -> Result<ProcessIdentity, Error> {
        let daemon = daemon.clone();
        self.blocking("start daemon", move |inner| {
            spawn::start(&inner.control_groups, &inner.started, &daemon)
        })
        .await
    }

    async fn exit_status(&self, process: ProcessIdentity) -> Option<ExitStatus> {
        self.inner.started.exit_status(process).await
    }

    async fn dial(&self, socket: &Path) -> Result<tokio::net::UnixStream, Error> {
        check_socket(socket)?;
        tokio::net::UnixStream::connect(socket)
            .await
            .map_err(|source| Error::io("connect to", socket, source))
    }

    async fn wait_process(&self, process: ProcessIdentity) -> Result<(), Error> {
        process::wait(process).await
    }

    async fn process_lives(&self, process: ProcessIdentity) -> Result<bool, Error> {
        process::lives(process)
    }

    async fn process_usage(&self, process: ProcessIdentity) -> Result<Option<ProcessUsage>, Error> {
        process::usage(process)
    }

    async fn kill_cgroup(&self, path: &str, deadline: Duration) -> Result<(), Error> {
        // Nearly always whoever was in it has removed it.
        if !self.inner.control_groups.exists(path)? {
            return Ok(());
        }
        let path = path.to_owned();
        self.blocking("kill cgroup", move |inner| inner.control_groups.kill(&path, deadline)).await
    }

    async fn out_of_memory_kills(&self, path: &str) -> Result<u64, Error> {
        self.inner.control_groups.out_of_memory_kills(path)
    }

    async fn remove_idle_cgroup(&self, path: &str) -> Result<(), Error> {
        self.inner.control_groups.remove_idle(path)
    }

    async fn cgroups(&self, parent: &str, prefix: &str) -> Result<Vec<String>, Error> {
        self.inner.control_groups.children(parent, prefix)
    }

    async fn cgroup_processes(&self, path: &str) -> Result<Vec<ProcessIdentity>, Error> {
        self.inner.control_groups.processes(path)
    }

    async fn create_directory(&self, path: &Path, mode: u32) -> Result<(), Error> {
        files::create_directory(path, mode)
    }

    async fn remove_tree(&self, path: &Path) -> Result<(), Error> {
        if let Err(error) = std::fs::symlink_metadata(path)
            && error.kind() == std::io::ErrorKind::NotFound
        {
            return Ok(());
        }
        let path = path.to_owned();
        self.blocking("remove tree", move |_| tree::remove(&path)).await
    }

    async fn bind(&self, bind: &Bind) -> Result<(), Error> {
        let bind = bind.clone();
        self.blocking("bind", move |_| bind::bind(&bind)).await
    }

    async fn unbind(&self, path: &Path) -> Result<(), Error> {
        let path = path.to_owned();
        self.blocking("unbind", move |_| bind::unbind(&path)).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> Result<(), Error> {
        files::rename(from, to)
    }

    async fn hard_link(&self, source: &Path, target: &Path) -> Result<(), Error> {
        files::hard_link(source, target)
    }

    async fn create_pipe(&self, path: &Path, mode: u32) -> Result<(), Error> {
        pipe::create(path, mode)
    }

    async fn exists(&self, path: &Path) -> Result<bool, Error> {
        path.try_exists().map_err(|source| Error::io("inspect", path, source))
    }

    async fn inspect_path(&self, path: &Path) -> Result<PathFacts, Error> {
        let path = path.to_owned();
        self.blocking("inspect path", move |_| path::inspect(&path)).await
    }

    async fn list_directory(&self, path: &Path) -> Result<Vec<String>, Error> {
        files::list_directory(path)
    }

    async fn watch_directory(&self, path: &Path) -> Result<mpsc::Receiver<()>, Error> {
        watch::watch(path)
    }

    async fn file_identity(&self, path: &Path) -> Result<Option<String>, Error> {
        files::file_identity(path)
    }

    async fn read_file(&self, path: &Path, limit: usize) -> Result<Vec<u8>, Error> {
        files::read_file(path, limit)
    }

    async fn read_end(&self, path: &Path, limit: usize) -> Result<Vec<u8>, Error> {
        files::read_end(path, limit)
    }

    async fn write_file(&self, path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
        files::write_file(path, content, mode)
    }

    async fn usage(&self, path: &Path) -> Result<FilesystemUsage, Error> {
        let path = path.to_owned();
        self.blocking("measure tree", move |_| tree::usage(&path)).await
    }
}
