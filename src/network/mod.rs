//! The pods' network: which configuration holds, whether its plugins are
//! ready, and the calls of the plugins for each pod.
//!
//! The network in force is a snapshot, replaced by one task (`monitor`);
//! readers never wait for a plugin.
//!
//! Two operations for one pod never run at once, because the pod's actor calls
//! them. Between pods there is no order, but for the collection of what no pod
//! uses any more (GC), during which no plugin may be adding or deleting: the
//! gate is shared by all calls and taken alone by the collection, which gives
//! up rather than keep pods waiting behind a plugin that hangs.

mod bandwidth;
mod choice;
mod cilium;
mod collect;
mod host;
mod monitor;
pub(crate) mod own;
mod parameters;
mod readiness;
pub mod record;
mod trial;
pub mod tunnel;

use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kina_cni::{Attachment, Check, Cleanup, Cni, Deadlines, Options};
use kina_model::{PodId, PodSpec, SpecError};
use kina_node::Node;
use kina_store::Store;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Notify, RwLock, watch};
use tracing::{info, warn};

pub(crate) use self::bandwidth::of as bandwidth;
pub use self::choice::{FileState, InForce, NetworkState, Readiness};
pub use self::collect::Collected;
use self::host::NodeHost;
pub(crate) use self::parameters::INTERFACE;
use self::record::NetworkRecord;
pub(crate) use self::trial::node_dns;
pub use self::trial::{Trial, TrialTarget};
use self::tunnel::Tunnels;
use crate::error::{Error, chain};
use crate::metrics::Metrics;

/// Which of a pod's addresses is its first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AddressPreference {
    /// The first IPv4 address, if there is one.
    #[default]
    Ipv4,
    /// The first IPv6 address, if there is one.
    Ipv6,
    /// The plugins' first.
    Cni,
}

/// Where network configurations and plugins are, and how they are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The directory of network configurations.
    pub config_directory: PathBuf,
    /// Where plugins are looked for, in order.
    pub plugin_directories: Vec<PathBuf>,
    /// Where attachments are recorded, in libcni's format.
    pub cache_directory: PathBuf,
    /// Which of a pod's addresses is its first.
    pub address_preference: AddressPreference,
    /// Whether pods are refused rather than given loopback only while no
    /// network configuration has been seen.
    pub required: bool,
    /// How long an ADD may take, with all its plugins.
    pub add_deadline: Duration,
    /// How long a DEL may take.
    pub delete_deadline: Duration,
    /// How long a STATUS may take.
    pub status_deadline: Duration,
}

/// A pod's place in a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The network's name.
    pub network: String,
    /// The pod's addresses, the preferred one first; one at least.
    pub addresses: Vec<IpAddr>,
}

/// The pods' network. Cheap to clone.
#[derive(Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

struct Inner {
    config: NetworkConfig,
    node: Arc<dyn Node>,
    host: NodeHost,
    store: Store,
    cni: Cni,
    tunnels: Tunnels,
    /// What [`monitor`] has found last.
    state: watch::Sender<Arc<NetworkState>>,
    /// Makes the monitor look at once.
    wake: Notify,
    /// Held for reading by every ADD, DEL and CHECK, for writing by GC.
    gate: RwLock<()>,
    /// Pods without a record whose attachments could not be undone yet.
    strangers: Mutex<HashSet<PodId>>,
}

/// Pauses before a DEL that has failed is tried again. What fails for longer
/// is the caller's to repeat.
const DELETE_PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(500)];

/// How long the plugins of a daemon that was killed may take to die.
const STRAYS_DEADLINE: Duration = Duration::from_secs(10);

/// What tunnels may be numbered with: all that VXLAN has.
const TUNNEL_IDENTIFIERS: RangeInclusive<u32> = 1..=0x00ff_ffff;

impl Network {
    /// Reads the configurations; [`Network::monitor`] keeps at it.
    pub async fn open(config: NetworkConfig, node: Arc<dyn Node>, store: Store, metrics: Metrics) -> Self {
        let deadlines = Deadlines {
            add: config.add_deadline,
            del: config.delete_deadline,
            check: config.add_deadline,
            gc: config.delete_deadline,
            status: config.status_deadline,
            version: config.status_deadline,
        };
        let options = Options {
            plugin_directories: config.plugin_directories.clone(),
            cache_directory: config.cache_directory.clone(),
            deadlines,
            ..Options::default()
        };
        let host = NodeHost { node: Arc::clone(&node), metrics };
        let cni = Cni::new(Arc::new(host.clone()), options);
        let (state, _) = watch::channel(Arc::default());
        let (wake, gate, strangers) = (Notify::new(), RwLock::new(()), Mutex::default());
        let tunnels = Tunnels::new(store.clone(), TUNNEL_IDENTIFIERS);
        let inner = Inner { config, node, host, store, cni, tunnels, state, wake, gate, strangers };
        let network = Self { inner: Arc::new(inner) };
        network.rescan().await;
        network
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &NetworkConfig {
        &self.inner.config
    }

    /// The identifiers of pods' tunnels.
    #[must_use]
    pub fn tunnels(&self) -> &Tunnels {
        &self.inner.tunnels
    }

    /// The network as of the last look. Never waits.
    #[must_use]
    pub fn state(&self) -> Arc<NetworkState> {
        Arc::clone(&self.inner.state.borrow())
    }

    /// Waits until the plugins have been asked, if there are any, but no longer
    /// than that.
    pub async fn asked(&self, limit: Duration) {
        let mut states = self.inner.state.subscribe();
        let known =
            states.wait_for(|state| state.in_force.is_none() || state.readiness != Readiness::Unknown);
        // Either way the state says what it is.
        let _ = tokio::time::timeout(limit, known).await;
    }

    /// Looks at the plugins of a network.
    pub async fn inspect(&self, network: &kina_cni::Network) -> Vec<kina_cni::PluginReport> {
        self.inner.cni.inspect(network).await
    }

    /// How many attachments of pods there are.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn attachments(&self) -> Result<usize, Error> {
        Ok(self.inner.store.table::<NetworkRecord>().list_each()?.len())
    }

    /// About the network, for the verbose status.
    #[must_use]
    pub fn info(&self) -> serde_json::Value {
        let state = self.state();
        let files = state.files.iter().map(|file| match &file.network {
            Ok(network) => json!({
                "path": file.path,
                "network": network.name(),
                "cniVersion": network.version().as_str(),
            }),
            Err(reason) => json!({ "path": file.path, "problem": reason }),
        });
        json!({
            "ready": state.is_ready(),
            "message": state.message(&self.inner.config),
            "network": state.in_force.as_ref().map(|one| one.network.name()),
            "file": state.in_force.as_ref().map(|one| &one.path),
            "files": files.collect::<Vec<_>>(),
            "pluginDirectories": self.inner.config.plugin_directories,
            "cacheDirectory": self.inner.config.cache_directory,
        })
    }

    /// The network that a new pod comes into; `None` if it gets loopback only.
    fn in_force(&self) -> Result<Option<Arc<InForce>>, Error> {
        let state = self.state();
        match &state.in_force {
            Some(network) => Ok(Some(Arc::clone(network))),
            // The kubelet starts no pod that needs the network while it is told
            // that there is none. Others may have their reasons.
            None if !state.seen && !self.inner.config.required => Ok(None),
            None => Err(Error::NetworkUnavailable { reason: state.message(&self.inner.config) }),
        }
    }

    /// Refuses a pod that the network in force cannot serve, before anything is
    /// made for it.
    ///
    /// # Errors
    /// [`Error::NetworkUnavailable`]; or the field that asks for too much.
    pub fn admit(&self, spec: &PodSpec) -> Result<(), Error> {
        if spec.namespaces.host_network {
            return Ok(());
        }
        let network = self.in_force()?;
        parameters::check(spec, network.as_ref().map(|network| &network.network))?;
        Ok(())
    }

    fn attachment(&self, pod: &PodId, spec: &PodSpec) -> Result<Attachment, SpecError> {
        let netns = self.inner.node.network_namespace(pod);
        parameters::attachment(pod, spec, &netns.to_string_lossy())
    }

    /// Has the plugins connect a pod, whose namespace exists; `None` if it gets
    /// loopback only.
    ///
    /// Dropping the call kills the plugin that runs. What was made by then is
    /// undone by [`Network::detach`].
    ///
    /// # Errors
    /// As [`Network::admit`]; or what a plugin says.
    pub async fn attach(&self, pod: &PodId, spec: &PodSpec) -> Result<Option<Attached>, Error> {
        let Some(in_force) = self.in_force()? else { return Ok(None) };
        let network = &in_force.network;
        parameters::check(spec, Some(network))?;
        let attachment = self.attachment(pod, spec)?;
        let _shared = self.inner.gate.read().await;
        let record = NetworkRecord {
            pod: pod.clone(),
            network: network.name().to_owned(),
            configuration: String::from_utf8_lossy(network.json()).into_owned(),
        };
        let records = self.inner.store.table::<NetworkRecord>();
        records.put(pod.as_str(), &record).await?;
        let result = match self.inner.cni.add(network, &attachment).await {
            Ok(result) => result,
            Err(error) => {
                match &error.cleanup {
                    Cleanup::NotNeeded | Cleanup::Done => records.delete(pod.as_str()).await?,
                    // Tried again when the pod is torn down.
                    Cleanup::Failed(cleanup) => {
                        warn!(%pod, error = chain(cleanup), "undo what plugins had made before one failed");
                    }
                }
                return Err(error.into());
            }
        };
        let addresses = parameters::addresses(&result, self.inner.config.address_preference);
        if addresses.is_empty() {
            let network = network.name().to_owned();
            return Err(Error::NoAddress { network, interface: parameters::INTERFACE });
        }
        Ok(Some(Attached { network: network.name().to_owned(), addresses }))
    }

    /// Has the plugins undo what they have made for a pod, with the
    /// configuration that they had then, whether or not its namespace or the
    /// cached result is there. Does nothing for a pod that they were never
    /// called for.
    ///
    /// # Errors
    /// What a plugin says after some attempts; the call may be repeated.
    pub async fn detach(&self, pod: &PodId, spec: &PodSpec) -> Result<(), Error> {
        let records = self.inner.store.table::<NetworkRecord>();
        let Some(record) = records.get(pod.as_str())? else { return Ok(()) };
        self.delete(&record, &self.attachment(pod, spec)?).await?;
        Ok(records.delete(pod.as_str()).await?)
    }

    async fn delete(&self, record: &NetworkRecord, attachment: &Attachment) -> Result<(), Error> {
        let network = kina_cni::Network::from_list(record.configuration.as_bytes()).ok();
        let mut pauses = DELETE_PAUSES.iter();
        loop {
            let deleted = {
                let _shared = self.inner.gate.read().await;
                self.inner.cni.del_cached(&record.network, network.as_ref(), attachment).await
            };
            match (deleted, pauses.next()) {
                (Ok(()), _) => return Ok(()),
                // That was long enough.
                (Err(error @ kina_cni::Error::Deadline { .. }), _) => return Err(error.into()),
                (Err(error), Some(pause)) => {
                    info!(pod = %record.pod, error = chain(&error), "a DEL has failed and is tried again");
                    tokio::time::sleep(*pause).await;
                }
                (Err(error), None) => return Err(error.into()),
            }
        }
    }

    /// Asks the plugins whether a pod's attachment is as they made it.
    ///
    /// # Errors
    /// [`Error::NotAttached`]; or what a plugin finds.
    pub async fn check(&self, pod: &PodId, spec: &PodSpec) -> Result<Check, Error> {
        let record = self.inner.store.table::<NetworkRecord>().get(pod.as_str())?;
        let record = record.ok_or_else(|| Error::NotAttached { pod: pod.clone() })?;
        let network = kina_cni::Network::from_list(record.configuration.as_bytes())
            .map_err(|problem| kina_cni::Error::Config { origin: format!("of pod {pod}"), problem })?;
        let _shared = self.inner.gate.read().await;
        Ok(self.inner.cni.check(&network, &self.attachment(pod, spec)?).await?)
    }

    /// Ends the plugins that a daemon before this one had running when it was
    /// killed, and removes files that it had half written. Before anything is
    /// undone: they could still be making it.
    ///
    /// # Errors
    /// When they do not die.
    pub async fn end_strays(&self) -> Result<(), Error> {
        let killed = self.inner.node.kill_network_plugins(STRAYS_DEADLINE).await?;
        if killed > 0 {
            warn!(killed, "plugins of an earlier daemon were still at work and have been killed");
        }
        match self.inner.cni.remove_leftovers().await {
            Ok(0) => {}
            Ok(removed) => info!(removed, "half-written files have been removed from the cache of networks"),
            // Not worth keeping pods waiting.
            Err(error) => warn!(error = chain(&error), "remove half-written files"),
        }
        Ok(())
    }

    /// Undoes the attachments of pods that nobody knows any more: those that
    /// have no pod's record, and those of lost records that the cache tells of.
    /// What cannot be undone now is collected later.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn detach_unknown(&self, known: &HashSet<PodId>) -> Result<(), Error> {
        let records = self.inner.store.table::<NetworkRecord>();
        for (key, record) in records.list_each()? {
            let Ok(record) = record else {
                warn!(pod = key, "the record of an attachment cannot be understood");
                continue;
            };
            if known.contains(&record.pod) {
                continue;
            }
            if let Err(error) = self.detach_stranger(&record).await {
                warn!(pod = key, error = chain(&error), "detach a pod without a record");
                self.strangers().insert(record.pod);
            }
        }
        for cached in self.cached_of_this_daemon().await {
            let id = &cached.attachment.id.container_id;
            if id.parse().is_ok_and(|id| known.contains(&id)) {
                continue;
            }
            warn!(pod = id, network = cached.network, "detaching a pod without a record");
            let _shared = self.inner.gate.read().await;
            if let Err(error) = self.inner.cni.del_cached(&cached.network, None, &cached.attachment).await {
                warn!(pod = id, error = chain(&error), "detach a pod without a record");
            }
        }
        Ok(())
    }

    /// Tries again what [`Network::detach_unknown`] could not undo.
    async fn detach_strangers(&self) -> Result<(), Error> {
        let strangers: Vec<PodId> = self.strangers().iter().cloned().collect();
        for pod in strangers {
            if let Some(record) = self.inner.store.table::<NetworkRecord>().get(pod.as_str())? {
                self.detach_stranger(&record).await?;
            }
            self.strangers().remove(&pod);
        }
        Ok(())
    }

    async fn detach_stranger(&self, record: &NetworkRecord) -> Result<(), Error> {
        let netns = self.inner.node.network_namespace(&record.pod);
        let pod = record.pod.as_str();
        let attachment = Attachment::new(pod, parameters::INTERFACE, &netns.to_string_lossy());
        self.delete(record, &attachment).await?;
        Ok(self.inner.store.table::<NetworkRecord>().delete(pod).await?)
    }

    fn strangers(&self) -> MutexGuard<'_, HashSet<PodId>> {
        // Nothing panics while it holds the lock.
        self.inner.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cached attachments to namespaces that are this daemon's.
    async fn cached_of_this_daemon(&self) -> Vec<kina_cni::CachedAttachment> {
        let mut cached = self.cached().await;
        cached.retain(|one| self.is_own(one));
        cached
    }

    fn is_own(&self, cached: &kina_cni::CachedAttachment) -> bool {
        let (pod, netns) = (cached.attachment.id.container_id.parse(), &cached.attachment.netns);
        let own = pod.ok().map(|pod| self.inner.node.network_namespace(&pod));
        own.is_some_and(|own| netns.as_ref().is_some_and(|netns| Path::new(netns) == own))
    }

    async fn cached(&self) -> Vec<kina_cni::CachedAttachment> {
        self.inner.cni.cached_attachments().await.unwrap_or_else(|error| {
            warn!(error = chain(&error), "read the cached attachments");
            Vec::new()
        })
    }
}
