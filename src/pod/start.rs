//! The effects that make a pod and those that undo it, each performed on its
//! own: a start stops at its first failure, a teardown tries everything.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kina_guest_api::{Connect, GuestClient, GuestError, GuestStream, Refusal};
use kina_machine::{
    Attachment, Driver, MachineSpec, NetworkAttachment, SandboxNetwork, Share, ShareKind, Shares,
};
use kina_model::{ContainerId, MachineSize, PodEffect, PodId, PodSpec, Ready, SpecError};
use kina_store::Batch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::context::{CGROUP_DEADLINE, Context, pod_cgroup};
use super::guest_request;
use super::logs::LogRecord;
use super::record::{ContainerRecord, PodRecord};
use super::selinux;
use super::size::size_of;
use crate::error::{Error, chain};
use crate::failpoint;
use crate::metrics::Boot;
use crate::network::{Attached, node_dns};

/// One pod's part in the effects.
#[derive(Clone)]
pub(super) struct Subject {
    pub(super) context: Arc<Context>,
    pub(super) driver: Arc<dyn Driver>,
    pub(super) id: PodId,
    pub(super) spec: Arc<PodSpec>,
}

/// Dials a pod's guest through its machine's driver.
struct Dialer {
    driver: Arc<dyn Driver>,
    pod: PodId,
}

#[async_trait]
impl Connect for Dialer {
    async fn connect(&self) -> io::Result<Box<dyn GuestStream>> {
        match self.driver.connect(&self.pod).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(io::Error::other(chain(&error))),
        }
    }
}

/// Shakes hands with a pod's guest, trying again until the deadline.
pub(crate) async fn connect_guest(
    driver: &Arc<dyn Driver>,
    pod: &PodId,
    deadline: Duration,
) -> Result<GuestClient, Error> {
    let dialer = Dialer { driver: Arc::clone(driver), pod: pod.clone() };
    kina_guest_api::connect(Arc::new(dialer), deadline)
        .await
        .map_err(|source| Error::Guest { pod: pod.clone(), source })
}

/// What the start effects have made so far.
#[derive(Default)]
struct Progress {
    netns: Option<PathBuf>,
    attached: Option<Attached>,
    /// From the machine's start to its guest's answer.
    boot: Option<Boot>,
    guest: Option<GuestClient>,
}

/// Why a start ended early.
pub(super) enum StartError {
    /// It was interrupted.
    Cancelled,
    /// An effect failed.
    Failed(String),
    /// The pod's specification asks for what its machine does not have.
    Refused(SpecError),
}

impl StartError {
    /// In words.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Cancelled => "it was stopped while it started".to_owned(),
            Self::Failed(reason) => reason.clone(),
            Self::Refused(error) => error.to_string(),
        }
    }
}

impl Subject {
    /// Performs the start effects in order. Between two of them, and while it
    /// waits for the guest, `cancel` interrupts.
    pub(super) async fn start(
        &self,
        effects: &[PodEffect],
        cancel: &CancellationToken,
    ) -> Result<(GuestClient, Ready), StartError> {
        let mut progress = Progress::default();
        for effect in effects {
            if cancel.is_cancelled() {
                return Err(StartError::Cancelled);
            }
            failpoint::around(effect.name(), self.start_effect(*effect, &mut progress, cancel))
                .await
                .map_err(|error| match error {
                    StartError::Cancelled => StartError::Cancelled,
                    StartError::Failed(reason) => StartError::Failed(format!("{}: {reason}", effect.name())),
                    StartError::Refused(error) => StartError::Refused(error),
                })?;
        }
        let Progress { attached, guest: Some(guest), .. } = progress else {
            return Err(StartError::Failed("the start has no handshake".to_owned()));
        };
        let hello = guest.hello();
        let (network, addresses) = attached.map(|attached| (attached.network, attached.addresses)).unzip();
        let ready = Ready {
            addresses: addresses.unwrap_or_default(),
            network,
            boot_id: hello.boot_id.clone(),
            kernel: hello.kernel_release.clone(),
            size: self.driver.capabilities().own_kernel.then(|| self.size()),
        };
        Ok((guest, ready))
    }

    async fn start_effect(
        &self,
        effect: PodEffect,
        progress: &mut Progress,
        cancel: &CancellationToken,
    ) -> Result<(), StartError> {
        let failed = |error: Error| match error {
            Error::Spec(error) => StartError::Refused(error),
            error => StartError::Failed(chain(&error)),
        };
        match effect {
            PodEffect::MakeDirectories => self.make_directories().await.map_err(failed),
            PodEffect::CreateNetwork => {
                if self.has_namespace() {
                    // A machine with a kernel of its own makes the user namespace inside.
                    let own_kernel = self.driver.capabilities().own_kernel;
                    let user = self.spec.namespaces.user.filter(|_| !own_kernel);
                    let path = self.context.node.create_network_namespace(&self.id, user).await;
                    progress.netns = Some(path.map_err(|error| failed(error.into()))?);
                }
                Ok(())
            }
            PodEffect::AttachNetwork => {
                if self.has_namespace() {
                    let attach = self.context.network.attach(&self.id, &self.spec);
                    progress.attached = tokio::select! {
                        () = cancel.cancelled() => return Err(StartError::Cancelled),
                        attached = attach => attached.map_err(failed)?,
                    };
                }
                Ok(())
            }
            PodEffect::CreateMachine => {
                self.driver.create(&self.machine_spec(progress)).await.map_err(|error| failed(error.into()))
            }
            PodEffect::StartMachine => {
                progress.boot = Some(self.context.metrics.boot(self.driver.name()));
                tokio::select! {
                    // Where boots queue, it would be the last one's turn first.
                    () = cancel.cancelled() => Err(StartError::Cancelled),
                    started = self.driver.start(&self.id) => started.map_err(|error| failed(error.into())),
                }
            }
            PodEffect::Handshake => {
                tokio::select! {
                    () = cancel.cancelled() => Err(StartError::Cancelled),
                    // A guest that ends at once will not answer however long one waits.
                    ended = self.driver.wait(&self.id) => Err(match ended {
                        Ok(ended) => StartError::Failed(format!(
                            "the machine ended before its guest answered: {}",
                            ended.reason
                        )),
                        Err(error) => failed(error.into()),
                    }),
                    guest = self.connect(self.context.handshake_deadline) => {
                        let guest = guest.map_err(failed)?;
                        if let Some(boot) = progress.boot.take() {
                            boot.ready();
                        }
                        self.learn_from(&guest).await;
                        progress.guest = Some(guest);
                        Ok(())
                    }
                }
            }
            PodEffect::SetupPod => self.setup_pod(progress).await.map_err(|error| match error {
                // A sysctl that the pod's kernel has not, for one.
                Error::Guest {
                    source: GuestError::Refused { code: Refusal::Invalid, message, .. }, ..
                } => StartError::Refused(SpecError::invalid("config.linux", message)),
                error => failed(error),
            }),
            PodEffect::Record
            | PodEffect::CancelStart
            | PodEffect::StopMachine
            | PodEffect::DestroyMachine
            | PodEffect::DetachNetwork
            | PodEffect::RemoveNetwork
            | PodEffect::ReleaseLayers
            | PodEffect::RemoveDirectories
            | PodEffect::DeleteRecords => Err(StartError::Failed("it is no start effect".to_owned())),
        }
    }

    /// Shakes hands with the guest, trying again until the deadline.
    pub(super) async fn connect(&self, deadline: Duration) -> Result<GuestClient, Error> {
        connect_guest(&self.driver, &self.id, deadline).await
    }

    /// What the guest of a new machine says that holds for others, too. A later answer is
    /// not taken: the machine may be one of an earlier configuration.
    async fn learn_from(&self, guest: &GuestClient) {
        if self.driver.capabilities().own_kernel {
            let able = guest.hello().features.is_some_and(|features| features.user_namespaces);
            self.context.user_namespaces.learn(&*self.driver, able).await;
        }
    }

    /// How large the pod's machine is made.
    fn size(&self) -> MachineSize {
        size_of(&self.spec, &self.context.sizes, self.context.node_size)
    }

    /// Whether the pod's network is a namespace on the node.
    fn has_namespace(&self) -> bool {
        let own = self.driver.capabilities().network == NetworkAttachment::Machine;
        !self.spec.namespaces.host_network && !own
    }

    fn machine_spec(&self, progress: &Progress) -> MachineSpec {
        let MachineSize { memory_bytes, cpus } = self.size();
        MachineSpec {
            pod: self.id.clone(),
            directory: self.context.paths.machine(&self.id),
            storage_directory: self.context.paths.machine_storage(&self.id),
            cgroup: pod_cgroup(&self.spec.cgroup_parent, &self.id),
            network: progress.netns.as_ref().map(|namespace| SandboxNetwork {
                namespace: namespace.clone(),
                interface: progress.attached.as_ref().map(|_| crate::network::INTERFACE.to_owned()),
            }),
            ports: match self.driver.capabilities().network {
                NetworkAttachment::Machine => crate::network::own::ports(&self.spec),
                NetworkAttachment::Netns | NetworkAttachment::Tap | NetworkAttachment::Tunnel => Vec::new(),
            },
            shareable: match self.driver.capabilities().shares {
                Shares::AtBoot => self.context.volumes.of_pod(&self.spec.metadata.uid),
                Shares::Dynamic => Vec::new(),
            },
            memory_bytes,
            cpus,
            user: self.spec.namespaces.user,
        }
    }

    async fn make_directories(&self) -> Result<(), Error> {
        let (node, paths) = (&self.context.node, &self.context.paths);
        node.create_directory(&paths.pod(&self.id), 0o711).await?;
        node.create_directory(&paths.machine(&self.id), 0o700).await?;
        if self.driver.capabilities().own_kernel {
            node.create_directory(&paths.machine_storage(&self.id), 0o700).await?;
        }
        if let Some(directory) = &self.spec.log_directory {
            node.create_directory(directory, 0o755).await?;
        }
        Ok(())
    }

    async fn setup_pod(&self, progress: &mut Progress) -> Result<(), Error> {
        let Some(guest) = progress.guest.clone() else {
            return Ok(());
        };
        selinux::admit(guest.hello().features.unwrap_or_default(), &self.spec)?;
        let (state, cgroup) = if self.driver.capabilities().own_kernel {
            (PathBuf::from(kina_guest_api::MACHINE_STATE_DIRECTORY), MACHINE_POD_CGROUP.to_owned())
        } else {
            let source = self.context.paths.pod(&self.id);
            let share = Share { source, readonly: false, readonly_below: false, kind: ShareKind::State };
            let state = self.driver.share(&self.id, &share).await?;
            (state, pod_cgroup(&self.spec.cgroup_parent, &self.id))
        };
        let network = if self.spec.namespaces.host_network {
            None
        } else {
            Some(self.driver.attach_network(&self.id).await?)
        };
        if let Some(Attachment::Machine(own)) = &network {
            let (network, addresses) = (own.name.clone(), own.addresses.clone());
            progress.attached = Some(Attached { network, addresses });
        }
        let resolver = match (&self.spec.dns, &network) {
            (Some(dns), _) => Some(dns.clone()),
            // It was given one with its network.
            (None, Some(Attachment::Machine(_))) => None,
            // It has none of its own.
            (None, _) if self.driver.capabilities().own_kernel => Some(node_dns(&*self.context.node).await),
            (None, _) => None,
        };
        let request =
            guest_request::setup_pod(&self.id, &self.spec, &state, network, resolver.as_ref(), &cgroup)?;
        guest
            .setup_pod(request)
            .await
            .map(|_| ())
            .map_err(|source| Error::Guest { pod: self.id.clone(), source })
    }

    /// Performs one teardown effect. It succeeds when there is nothing to undo.
    /// `guest` is the pod's, if it has been heard of.
    pub(super) async fn teardown_effect(
        &self,
        effect: PodEffect,
        containers: &[ContainerId],
        guest: Option<&GuestClient>,
    ) -> Result<(), String> {
        failpoint::around(effect.name(), self.undo(effect, containers, guest))
            .await
            .map_err(|error| format!("{}: {}", effect.name(), chain(&error)))
    }

    /// Ends the machine. One with a kernel of its own ends as its guest does,
    /// which is asked first; a guest that does not do as it is asked costs that
    /// time and no more.
    async fn stop_machine(&self, guest: Option<&GuestClient>) -> Result<(), Error> {
        let mut grace = Duration::ZERO;
        if self.driver.capabilities().own_kernel
            && let Some(guest) = guest
        {
            let asked = guest.shutdown(CONTAINER_GRACE);
            match tokio::time::timeout(CONTAINER_GRACE + SHUTDOWN_MARGIN, asked).await {
                Ok(Ok(()) | Err(GuestError::Gone { .. })) => grace = MACHINE_GRACE,
                Ok(Err(error)) => warn!(pod = %self.id, error = chain(&error), "ask the guest to end"),
                Err(_) => warn!(pod = %self.id, "the guest does not answer the request to end"),
            }
        }
        Ok(self.driver.stop(&self.id, grace).await?)
    }

    /// Keeps the last words of a machine that is about to go. Not to have them
    /// is no reason to keep the machine.
    async fn keep_console(&self) {
        let Ok(words) = self.driver.console(&self.id, KEPT_CONSOLE).await else {
            return;
        };
        let path = self.context.paths.console(&self.id);
        if words.is_empty() || !self.driver.capabilities().own_kernel {
            return;
        }
        if let Err(error) = self.context.node.write_file(&path, &words, 0o600).await {
            warn!(pod = %self.id, error = chain(&error), "keep the machine's console");
        }
    }

    async fn undo(
        &self,
        effect: PodEffect,
        containers: &[ContainerId],
        guest: Option<&GuestClient>,
    ) -> Result<(), Error> {
        let (node, paths) = (&self.context.node, &self.context.paths);
        match effect {
            PodEffect::StopMachine => self.stop_machine(guest).await,
            PodEffect::DestroyMachine => {
                self.keep_console().await;
                self.driver.destroy(&self.id).await?;
                // The driver only knows what it made; a pod's cgroup may hold more.
                let cgroup = pod_cgroup(&self.spec.cgroup_parent, &self.id);
                Ok(node.kill_cgroup(&cgroup, CGROUP_DEADLINE).await?)
            }
            PodEffect::DetachNetwork => self.context.network.detach(&self.id, &self.spec).await,
            PodEffect::RemoveNetwork => Ok(node.remove_network_namespace(&self.id).await?),
            PodEffect::ReleaseLayers => {
                let mut result = Ok(());
                for container in containers {
                    result = result.and(self.context.layers.release(container).await);
                }
                result
            }
            PodEffect::RemoveDirectories => {
                let volatile = self.context.discard_directory(&paths.run_pod(&self.id)).await;
                let lasting = self.context.discard_directory(&paths.pod(&self.id)).await;
                Ok(volatile.and(lasting)?)
            }
            PodEffect::DeleteRecords => {
                // As long as the pod is known, its machine may be there.
                self.context.network.tunnels().release(&self.id).await?;
                let mut batch = Batch::new();
                batch.delete::<PodRecord>(self.id.as_str());
                for container in containers {
                    batch.delete::<ContainerRecord>(container.as_str());
                    batch.delete::<LogRecord>(container.as_str());
                }
                Ok(self.context.store.commit(batch).await?)
            }
            PodEffect::Record
            | PodEffect::MakeDirectories
            | PodEffect::CreateNetwork
            | PodEffect::AttachNetwork
            | PodEffect::CreateMachine
            | PodEffect::StartMachine
            | PodEffect::Handshake
            | PodEffect::SetupPod
            | PodEffect::CancelStart => Ok(()),
        }
    }
}

/// The pod's cgroup in a machine of its own.
const MACHINE_POD_CGROUP: &str = "/pod";

/// How much of a machine's console is kept after its end, in bytes.
const KEPT_CONSOLE: usize = 64 << 10;

/// How long the containers of a machine of its own have to end when their pod is
/// stopped. The kubelet has stopped them before.
const CONTAINER_GRACE: Duration = Duration::from_secs(2);

/// What the guest has beyond that to answer.
const SHUTDOWN_MARGIN: Duration = Duration::from_secs(1);

/// How long a machine may take to end after its guest has agreed to.
const MACHINE_GRACE: Duration = Duration::from_secs(2);
