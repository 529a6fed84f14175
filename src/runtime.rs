//! What the daemon does, free of any interface's types: the services decode a
//! request, call one of these methods, and encode the answer.

mod about;
mod images;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kina_guest_api::{ExecOutput, v1};
use kina_image::{Images, Lease};
use kina_machine::{Driver, NetworkAttachment};
use kina_machine_apple::AppleConfig;
use kina_machine_host::{HostConfig, HostDriver};
use kina_machine_qemu::QemuConfig;
use kina_model::{
    ContainerId, ContainerSpec, ContainerState, ImageDefaults, Placement, PodId, PodSpec, PodState,
    SpecError, resolve_process,
};
use kina_node::{LocalNodeConfig, Node};
use kina_store::Store;
use tokio::sync::OnceCell;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

pub use self::about::{Condition, Conditions, Handler};
use crate::error::Error;
use crate::events::Events;
use crate::failpoint;
use crate::layers::Layers;
use crate::machines;
use crate::metrics::Metrics;
use crate::network::{Network, NetworkConfig};
use crate::placement::{PlacementPolicy, PlacementRequest, place};
use crate::pod::apparmor::AppArmorPolicy;
use crate::pod::context::{Context, Paths, log_path, now};
use crate::pod::size::{NodeSize, SizePolicy};
use crate::pod::user_namespaces::UserNamespaces;
use crate::pod::view::{ContainerView, PodView};
use crate::pod::volumes::VolumeRoots;
use crate::pod::{ContainerImages, PodHandle};
use crate::recover;
use crate::registry::{Registry, Reservation};
use crate::spans;
use crate::stats;

/// Bytes of each output stream that an ExecSync keeps, as containerd and CRI-O
/// do; what a probe prints beyond that is dropped.
const EXEC_OUTPUT_LIMIT: usize = 16 << 20;

/// How long a daemon that ends waits for layers to be unmounted and directories to be removed.
const TIDY_DEADLINE: Duration = Duration::from_secs(10);

/// What a runtime is made from.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// Where everything lies.
    pub paths: Paths,
    /// The `kina-guest` executable.
    pub guest_program: PathBuf,
    /// What the names of this daemon's network namespaces begin with; differs
    /// between daemons on one node.
    pub netns_prefix: String,
    /// The cgroup below which pods go that name none.
    pub cgroup_parent: String,
    /// Where pods go that name no handler.
    pub placement: PlacementPolicy,
    /// How long a guest may take to answer after its machine was started.
    pub handshake_deadline: Duration,
    /// Machines with a kernel of their own.
    pub machine: MachineConfig,
    /// The image store. Its root is [`Paths::images`].
    pub images: kina_image::Config,
    /// The pods' network.
    pub network: NetworkConfig,
    /// Where specifications of devices are (see [`crate::cdi`]).
    pub cdi_directories: Vec<PathBuf>,
    /// How long a layer stays mounted after its last container.
    pub layers_kept: Duration,
}

/// What machines with a kernel of their own are made by.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// How large they are.
    pub sizes: SizePolicy,
    /// What of the node they may see.
    pub volumes: VolumeRoots,
    /// The driver that has QEMU run them, if it is wanted.
    pub qemu: Option<QemuConfig>,
    /// The driver that has Apple's `container` run them instead, if that is wanted.
    pub apple: Option<AppleConfig>,
}

/// The daemon's state and abilities. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

struct Inner {
    context: Arc<Context>,
    registry: Registry,
    images: Images,
    config: RuntimeConfig,
    boot_id: String,
    /// Ends the tasks that belong to no pod.
    _tasks: DropGuard,
    /// Of containers whose pod is left alone, because its machine has no driver now.
    kept_images: Mutex<Vec<Lease>>,
    /// How busy pods were when somebody asked.
    rates: stats::Rates,
    writable_filesystem: OnceCell<PathBuf>,
}

impl Drop for Inner {
    /// Pods go on without this runtime, and so their images must stay.
    fn drop(&mut self) {
        self.images.close();
    }
}

impl Runtime {
    /// Opens the store and the images, finds the pods of an earlier daemon and
    /// adopts or cleans them.
    ///
    /// # Errors
    /// When another daemon uses the same directories, when the store or the
    /// images cannot be read, or when the node cannot be asked.
    pub async fn open(config: RuntimeConfig) -> Result<Self, Error> {
        let paths = config.paths.clone();
        let node_config = LocalNodeConfig {
            netns_prefix: config.netns_prefix.clone(),
            ..LocalNodeConfig::new(paths.run.clone())
        };
        let node = kina_node::local_node(node_config);
        let host = HostConfig::new(config.guest_program.clone(), paths.run_pods());
        let shared: Option<Arc<dyn Driver>> = match kina_node::RUNS_PODS {
            true => Some(Arc::new(HostDriver::new(Arc::clone(&node), host))),
            false => None,
        };
        let vm = machines::vm_driver(&node, &config).await;
        match &vm {
            Ok(driver) => tracing::info!(driver = driver.name(), "pods can have virtual machines"),
            Err(reason) => tracing::info!(reason, "pods cannot have virtual machines"),
        }
        Self::with_drivers(config, node, shared, vm).await
    }

    /// As [`Runtime::open`], on another node and with other machines; `vm` may
    /// say why there are none.
    ///
    /// # Errors
    /// As [`Runtime::open`].
    pub async fn with_drivers(
        config: RuntimeConfig,
        node: Arc<dyn Node>,
        shared: Option<Arc<dyn Driver>>,
        vm: Result<Arc<dyn Driver>, String>,
    ) -> Result<Self, Error> {
        let paths = config.paths.clone();
        node.create_directory(&paths.root, 0o711).await?;
        node.create_directory(&paths.pods(), 0o711).await?;
        node.create_directory(&paths.run, 0o711).await?;
        node.create_directory(&paths.run_pods(), 0o700).await?;
        let store_path = paths.store();
        let store = tokio::task::spawn_blocking(move || Store::open(store_path))
            .await
            .map_err(|_| Error::ShuttingDown)??;
        let images = kina_image::Config { failpoint: failpoint::OF_IMAGES, ..config.images.clone() };
        let images = Images::open(images).await?;
        let boot_id = node.boot_id().await?;
        let records = recover::read(&store)?;
        let layers = Layers::adopt(Arc::clone(&node), records.layer_users(), config.layers_kept).await?;
        let metrics = Metrics::default();
        let network =
            Network::open(config.network.clone(), Arc::clone(&node), store.clone(), metrics.clone()).await;
        let node_size = NodeSize::of(&*node).await;
        let vm_driver = vm.as_deref().ok();
        let user_namespaces = UserNamespaces::of(&node, &paths, vm_driver, &store).await?;
        let apparmor = AppArmorPolicy::new(&paths);
        let context = Arc::new(Context {
            node,
            network: network.clone(),
            shared,
            vm,
            store,
            layers,
            events: Events::default(),
            metrics,
            paths,
            handshake_deadline: config.handshake_deadline,
            sizes: config.machine.sizes,
            node_size,
            volumes: config.machine.volumes.clone(),
            user_namespaces,
            apparmor,
            cdi_directories: config.cdi_directories.clone(),
            removals: TaskTracker::new(),
        });
        let tasks = CancellationToken::new();
        let registry = Registry::default();
        let _tasks = tasks.clone().drop_guard();
        let kept_images = Mutex::default();
        let inner = Inner {
            context,
            registry,
            images,
            config,
            boot_id,
            _tasks,
            kept_images,
            rates: stats::Rates::default(),
            writable_filesystem: OnceCell::new(),
        };
        let runtime = Self { inner: Arc::new(inner) };
        recover::run(&runtime, records).await?;
        // Not before: what it collects must not be a pod that is still to be found.
        tokio::spawn(async move { tasks.run_until_cancelled(network.monitor()).await });
        runtime.collect_images(Duration::ZERO).await;
        runtime.keep_collecting_images();
        Ok(runtime)
    }

    /// Leaves the node as it is but for layers that no container uses, directories of
    /// removed pods, and the cgroup of pods without a parent, which goes if no pod is
    /// in it. For a daemon that ends.
    pub async fn close(&self) {
        self.inner.images.close();
        let context = &self.inner.context;
        context.removals.close();
        let tidy = async { tokio::join!(context.layers.close(), context.removals.wait()) };
        if tokio::time::timeout(TIDY_DEADLINE, tidy).await.is_err() {
            tracing::warn!("unused layers or directories of removed pods are left to the next daemon");
        }
        let parent = &self.inner.config.cgroup_parent;
        if parent.trim_end_matches('/').is_empty() {
            return;
        }
        if let Err(error) = self.inner.context.node.remove_idle_cgroup(parent).await {
            tracing::warn!(error = crate::error::chain(&error), "remove the pods' cgroup");
        }
    }

    /// What the pods use that are `wanted`, as their guests say now.
    pub(crate) async fn usage(&self, wanted: impl Fn(&PodView) -> bool) -> Vec<stats::PodUsage> {
        let pods = self.inner.registry.pods().into_iter().filter_map(|handle| {
            let view = handle.view();
            (is_visible(&view) && wanted(&view)).then_some((handle, view))
        });
        stats::collect(&self.inner.rates, pods.collect(), now()).await
    }

    /// Ends what would not end by itself, before the daemon waits for calls that
    /// are under way.
    pub fn end_streams(&self) {
        self.inner.context.events.close();
    }

    /// What is counted.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.inner.context.metrics
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.inner.context
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    pub(crate) fn boot_id(&self) -> &str {
        &self.inner.boot_id
    }

    /// Runs a pod's actor until the pod is removed.
    pub(crate) fn spawn(&self, handle: &PodHandle, task: crate::pod::PodTask) {
        let id = handle.id().clone();
        // The registry holds the pod's handle: a strong reference here would
        // keep both alive for ever.
        let registry = self.inner.registry.downgrade();
        let span = tracing::info_span!(parent: None, "pod", id = %id);
        let run = async move {
            task.run().await;
            if let Some(registry) = registry.upgrade() {
                registry.remove(&id);
            }
        };
        tokio::spawn(run.instrument(span));
    }

    /// Places a pod.
    ///
    /// # Errors
    /// See [`place`].
    pub fn place(&self, request: &PlacementRequest<'_>) -> Result<Placement, SpecError> {
        let context = &self.inner.context;
        let vm = context.vm.as_ref().map(|_| ()).map_err(String::as_str);
        place(request, self.inner.config.placement, vm, context.shared.is_some())
    }

    /// Makes a pod and returns when it is ready. A repeated request for the
    /// same pod waits for the same pod.
    ///
    /// # Errors
    /// [`Error::NameTaken`], or why it does not start; nothing is left then.
    pub async fn run_pod(&self, mut spec: PodSpec) -> Result<PodId, Error> {
        if spec.cgroup_parent.is_empty() {
            spec.cgroup_parent.clone_from(&self.inner.config.cgroup_parent);
        }
        let context = &self.inner.context;
        let driver = context.driver(spec.placement).ok_or_else(|| {
            SpecError::unsupported(
                "runtime_handler",
                format!("{:?} has no machine driver on this node", spec.placement),
            )
        })?;
        match driver.capabilities().network {
            NetworkAttachment::Machine => crate::network::own::check(&spec)?,
            NetworkAttachment::Netns | NetworkAttachment::Tap | NetworkAttachment::Tunnel => {
                context.network.admit(&spec)?;
            }
        }
        context.user_namespaces.admit(&spec)?;
        let handle = loop {
            let make =
                || PodHandle::create(Arc::clone(context), Arc::clone(driver), PodId::random(), spec.clone());
            match self.inner.registry.reserve(&spec, make)? {
                Reservation::New(handle, task) => {
                    self.spawn(&handle, task);
                    break handle;
                }
                Reservation::Existing(handle) => break handle,
                // Ends: a removal comes to its end or fails, each in bounded time.
                Reservation::Leaving(handle) => {
                    if handle.left().await? {
                        self.inner.registry.remove(handle.id());
                    }
                }
            }
        };
        spans::note("pod", handle.id());
        handle.started().await?;
        Ok(handle.id().clone())
    }

    /// Ends everything in a pod. An unknown one is stopped already.
    ///
    /// # Errors
    /// [`Error::TeardownFailed`]; it may be repeated.
    pub async fn stop_pod(&self, id: &str) -> Result<(), Error> {
        match self.inner.registry.pod(id) {
            Ok(handle) => handle.stop().await,
            Err(Error::PodNotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Stops a pod and forgets it. An unknown one is removed already.
    ///
    /// # Errors
    /// [`Error::TeardownFailed`]; it may be repeated.
    pub async fn remove_pod(&self, id: &str) -> Result<(), Error> {
        match self.inner.registry.pod(id) {
            Ok(handle) => {
                handle.remove().await?;
                // The actor's end does the same, a moment later.
                self.inner.registry.remove(handle.id());
                Ok(())
            }
            Err(Error::PodNotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// All pods but those that are still being made. Never waits.
    #[must_use]
    pub fn pods(&self) -> Vec<Arc<PodView>> {
        let views = self.inner.registry.pods().into_iter().map(|handle| handle.view());
        views.filter(|view| is_visible(view)).collect()
    }

    /// A pod by its id or a unique beginning of it. Never waits.
    ///
    /// # Errors
    /// [`Error::PodNotFound`], [`Error::AmbiguousId`].
    pub fn find_pod(&self, id: &str) -> Result<Arc<PodView>, Error> {
        let view = self.inner.registry.pod(id)?.view();
        if is_visible(&view) { Ok(view) } else { Err(Error::PodNotFound { id: id.to_owned() }) }
    }

    /// Makes a container in a ready pod. A repeated request for the same
    /// container gets the same container, until that is started.
    ///
    /// # Errors
    /// When the image is not here, when the process cannot be resolved, or the
    /// failed effect's; nothing is left then.
    pub async fn create_container(&self, pod: &str, spec: ContainerSpec) -> Result<ContainerId, Error> {
        let handle = self.inner.registry.pod(pod)?;
        let lease = self.lease_image(&spec.image).await?;
        let mut volumes = Vec::new();
        for volume in spec.image_volumes() {
            let lease = self.lease_image(&volume.requested).await;
            volumes.push(lease.map_err(|error| Error::ImageVolume(Box::new(error)))?);
        }
        let config = &lease.image().config;
        let defaults = ImageDefaults {
            entrypoint: config.entrypoint.clone(),
            cmd: config.cmd.clone(),
            env: config.env.clone(),
            working_dir: config.working_dir.clone(),
            user: config.user.clone(),
            stop_signal: config.stop_signal.clone().unwrap_or_default(),
        };
        let process = resolve_process(&spec, &defaults)?;
        let log = log_path(handle.view().spec.log_directory.as_deref(), &spec.log_path);
        let id = ContainerId::random();
        self.inner.registry.add_container(id.clone(), handle.id());
        let images = ContainerImages { root: lease, volumes };
        let result = handle.create_container(id.clone(), spec, process, images, log).await;
        if result.as_ref().is_ok_and(|made| *made != id) || result.is_err() {
            self.inner.registry.remove_container(&id);
        }
        if let Ok(made) = &result {
            spans::note("container", made);
        }
        result
    }

    /// Starts a container. Starting one that runs succeeds.
    ///
    /// # Errors
    /// See [`PodHandle::start_container`].
    pub async fn start_container(&self, id: &str) -> Result<(), Error> {
        let (container, pod) = self.inner.registry.container(id)?;
        pod.start_container(container).await
    }

    /// Ends a container. An unknown one is stopped already.
    ///
    /// # Errors
    /// See [`PodHandle::stop_container`].
    pub async fn stop_container(&self, id: &str, timeout: Duration) -> Result<(), Error> {
        match self.inner.registry.container(id) {
            Ok((container, pod)) => pod.stop_container(container, timeout).await,
            Err(Error::ContainerNotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Ends a container and forgets it. An unknown one is removed already.
    ///
    /// # Errors
    /// See [`PodHandle::remove_container`].
    pub async fn remove_container(&self, id: &str) -> Result<(), Error> {
        match self.inner.registry.container(id) {
            Ok((container, pod)) => {
                pod.remove_container(container.clone()).await?;
                self.inner.registry.remove_container(&container);
                Ok(())
            }
            Err(Error::ContainerNotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A container by its id or a unique beginning of it. Never waits.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`], [`Error::AmbiguousId`].
    pub fn find_container(&self, id: &str) -> Result<Arc<ContainerView>, Error> {
        Ok(self.inner.registry.container_view(id)?.1)
    }

    /// A running container with its pod's guest.
    pub(crate) fn running(
        &self,
        id: &str,
        operation: &'static str,
    ) -> Result<(ContainerId, PodId, kina_guest_api::GuestClient), Error> {
        let (container, pod) = self.inner.registry.container(id)?;
        let (_, view) = self.inner.registry.container_view(container.as_str())?;
        match (pod.guest(), &view.state) {
            (Some(guest), ContainerState::Running(_)) => Ok((container, pod.id().clone(), guest)),
            (_, state) => Err(Error::ContainerState { container, state: state.name(), operation }),
        }
    }

    /// A ready pod with its guest.
    pub(crate) fn ready(
        &self,
        id: &str,
        operation: &'static str,
    ) -> Result<(PodId, kina_guest_api::GuestClient), Error> {
        let pod = self.find_pod(id)?;
        match self.inner.registry.pod(pod.id.as_str())?.guest() {
            Some(guest) if pod.state.is_ready() => Ok((pod.id.clone(), guest)),
            Some(_) | None => {
                Err(Error::PodState { pod: pod.id.clone(), state: pod.state.name(), operation })
            }
        }
    }

    /// Runs a command in a running container and returns what it printed.
    ///
    /// # Errors
    /// [`Error::ContainerState`] if it does not run; [`Error::Deadline`] after
    /// `timeout`, the command killed; [`Error::Guest`] if it cannot be run.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, Error> {
        let (container, pod, guest) = self.running(id, "run a command in it")?;
        let output = guest
            .exec_sync(container.as_str(), command, timeout, EXEC_OUTPUT_LIMIT)
            .await
            .map_err(|source| Error::Guest { pod, source })?;
        match timeout {
            Some(limit) if output.timed_out => Err(Error::Deadline { what: "the command", limit }),
            _ => Ok(output),
        }
    }

    /// Opens a running container's log anew, after the caller has renamed it.
    ///
    /// # Errors
    /// [`Error::ContainerState`] if it does not run.
    pub async fn reopen_log(&self, id: &str) -> Result<(), Error> {
        let (container, pod, guest) = self.running(id, "reopen its log")?;
        let handle = self.inner.registry.pod(pod.as_str())?;
        let placement = handle.view().spec.placement;
        let driver = self.inner.context.driver(placement);
        if driver.is_some_and(|driver| !driver.capabilities().guest_writes_logs) {
            return handle.reopen_log(container).await;
        }
        let request = v1::ReopenLogRequest { id: container.to_string() };
        guest.reopen_log(request).await.map(|_| ()).map_err(|source| Error::Guest { pod, source })
    }

    /// The pods' network.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.inner.context.network
    }
}

/// Whether callers may see a pod: not before it is ready for the first time.
fn is_visible(view: &PodView) -> bool {
    !matches!(view.state, PodState::Starting | PodState::Removed)
}
