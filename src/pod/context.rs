//! What all pods share.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kina_machine::Driver;
use kina_model::{ContainerId, Nanos, Placement, PodId};
use kina_node::Node;
use kina_store::Store;
use tokio_util::task::TaskTracker;

use super::apparmor::AppArmorPolicy;
use super::size::{NodeSize, SizePolicy};
use super::user_namespaces::UserNamespaces;
use super::volumes::VolumeRoots;
use crate::error::chain;
use crate::events::Events;
use crate::layers::Layers;
use crate::metrics::Metrics;
use crate::network::Network;

/// After each attempt at removing a directory; what then stays is left to the next daemon.
const REMOVAL_PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(10), Duration::ZERO];

/// What the name of a directory begins with that is to be removed; no id does.
const DISCARDED: &str = ".discarded-";

/// Where things lie, how long they may take, and who does them.
pub struct Context {
    /// The node.
    pub node: Arc<dyn Node>,
    /// The pods' network.
    pub network: Network,
    /// The driver for pods placed on the node's kernel.
    pub shared: Option<Arc<dyn Driver>>,
    /// The driver for pods placed in a virtual machine, or why there is none.
    pub vm: Result<Arc<dyn Driver>, String>,
    /// Records.
    pub store: Store,
    /// Layer mounts.
    pub layers: Layers,
    /// What happens to pods.
    pub events: Events,
    /// What is counted.
    pub metrics: Metrics,
    /// Where everything lies.
    pub paths: Paths,
    /// How long a guest may take to answer after its machine was started.
    pub handshake_deadline: Duration,
    /// How large machines are made.
    pub sizes: SizePolicy,
    /// What the node has for them.
    pub node_size: NodeSize,
    /// What of the node machines with a kernel of their own may see.
    pub volumes: VolumeRoots,
    /// Where pods can have user namespaces.
    pub user_namespaces: UserNamespaces,
    /// kina's own AppArmor profile.
    pub apparmor: AppArmorPolicy,
    /// Where specifications of devices are (see [`crate::cdi`]).
    pub cdi_directories: Vec<PathBuf>,
    /// Directories that are being removed.
    pub removals: TaskTracker,
}

impl Context {
    /// The driver for a placement, if this node has one.
    #[must_use]
    pub fn driver(&self, placement: Placement) -> Option<&Arc<dyn Driver>> {
        match placement {
            Placement::Shared => self.shared.as_ref(),
            Placement::Vm => self.vm.as_ref().ok(),
        }
    }

    /// Takes a directory of a pod away: it has another name when this returns, and is removed
    /// after that. Removing directories one by one can take many milliseconds where a disk is
    /// busy, for which nobody needs to wait. A starting daemon removes what an earlier one did
    /// not get to.
    ///
    /// # Errors
    /// When the node cannot.
    pub async fn discard_directory(&self, path: &Path) -> Result<(), kina_node::Error> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let discarded = path.with_file_name(format!("{DISCARDED}{name}"));
        self.node.rename(path, &discarded).await?;
        let node = Arc::clone(&self.node);
        self.removals.spawn(async move {
            for pause in REMOVAL_PAUSES {
                let Err(error) = remove_directory(&*node, &discarded).await else { return };
                tracing::warn!(path = %discarded.display(), error = chain(&error), "remove a directory");
                tokio::time::sleep(pause).await;
            }
        });
        Ok(())
    }

    /// Removes what was [discarded](Self::discard_directory) by a daemon that died.
    ///
    /// # Errors
    /// When the node cannot.
    pub async fn remove_discarded(&self) -> Result<(), kina_node::Error> {
        for directory in [self.paths.pods(), self.paths.run_pods()] {
            for name in self.node.list_directory(&directory).await? {
                if name.starts_with(DISCARDED) {
                    self.remove_directory(&directory.join(name)).await?;
                }
            }
        }
        Ok(())
    }

    /// Removes one of kina's own directories.
    ///
    /// # Errors
    /// When the node cannot.
    pub async fn remove_directory(&self, path: &Path) -> Result<(), kina_node::Error> {
        remove_directory(&*self.node, path).await
    }
}

/// A guest on a kernel before 6.15 mounts memory and images in a pod's directories, and
/// cannot take them away when it is killed; what is found of them is unmounted.
async fn remove_directory(node: &dyn Node, path: &Path) -> Result<(), kina_node::Error> {
    match node.remove_tree(path).await {
        Err(kina_node::Error::MountInside { .. }) => {
            node.unbind(path).await?;
            node.remove_tree(path).await
        }
        removed => removed,
    }
}

/// The daemon's directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// What lasts: records, images, writable layers.
    pub root: PathBuf,
    /// What does not outlive a boot: sockets, mounts.
    pub run: PathBuf,
}

impl Paths {
    /// The record file.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.root.join("records.redb")
    }

    /// The image store.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// What machines are made from, kept between boots.
    #[must_use]
    pub fn machines(&self) -> PathBuf {
        self.root.join("machine")
    }

    /// What a pod's machine said last, once it is gone.
    #[must_use]
    pub fn console(&self, pod: &PodId) -> PathBuf {
        self.pod(pod).join("console.log")
    }

    /// Where pods keep what lasts.
    #[must_use]
    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// A pod's share of it, which its guest sees.
    #[must_use]
    pub fn pod(&self, pod: &PodId) -> PathBuf {
        self.pods().join(pod.as_str())
    }

    /// A container's writable layer.
    #[must_use]
    pub fn container(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.pod(pod).join("containers").join(container.as_str())
    }

    /// Where pods keep what does not last.
    #[must_use]
    pub fn run_pods(&self) -> PathBuf {
        self.run.join("pods")
    }

    /// A pod's share of it.
    #[must_use]
    pub fn run_pod(&self, pod: &PodId) -> PathBuf {
        self.run_pods().join(pod.as_str())
    }

    /// Where a pod's machine keeps what is large and lasts: see
    /// [`kina_machine::MachineSpec::storage_directory`].
    #[must_use]
    pub fn machine_storage(&self, pod: &PodId) -> PathBuf {
        self.pod(pod).join("machine")
    }

    /// The directory of a pod's machine.
    #[must_use]
    pub fn machine(&self, pod: &PodId) -> PathBuf {
        self.run_pod(pod).join("machine")
    }
}

/// The cgroup of a pod below its parent.
#[must_use]
pub fn pod_cgroup(parent: &str, pod: &PodId) -> String {
    format!("{}/kina-{pod}", parent.trim_end_matches('/'))
}

/// How long killed processes may take to be gone.
pub(crate) const CGROUP_DEADLINE: Duration = Duration::from_secs(10);

/// Where a log file lies, and the directory that must exist for it.
#[must_use]
pub fn log_path(directory: Option<&Path>, file: &str) -> Option<PathBuf> {
    directory.filter(|_| !file.is_empty()).map(|directory| directory.join(file))
}

/// The time now.
#[must_use]
pub fn now() -> Nanos {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Nanos::try_from(since.as_nanos()).unwrap_or(Nanos::MAX)
}
