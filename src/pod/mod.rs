//! Pods: one actor each, and the handle by which the rest of the daemon talks
//! to it.

mod actor;
pub mod apparmor;
mod containers;
pub mod context;
mod guest_request;
mod guest_watch;
pub mod logs;
pub mod record;
mod selinux;
pub mod size;
mod start;
pub mod user_namespaces;
pub mod view;
pub mod volumes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kina_guest_api::GuestClient;
use kina_image::Lease;
use kina_machine::Driver;
use kina_model::{
    ContainerEffect, ContainerEvent, ContainerId, ContainerSpec, MachineSize, Nanos, PodEffect, PodId,
    PodSpec, PodState, Process, Resources, pod,
};
use tokio::sync::{mpsc, oneshot, watch};

use self::actor::{Beginning, Command, Container, NewContainer, Pod, Reply, Request};
use self::context::Context;
use self::record::ContainerRecord;
use self::start::Subject;
pub(crate) use self::start::connect_guest;
use self::view::{ContainerView, PodView};
use crate::error::Error;

/// A pod's actor, seen from outside. Cheap to clone.
#[derive(Clone)]
pub struct PodHandle {
    id: PodId,
    mailbox: mpsc::Sender<Request>,
    view: watch::Receiver<Arc<PodView>>,
    guest: watch::Receiver<Option<GuestClient>>,
}

impl std::fmt::Debug for PodHandle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("PodHandle").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A pod's actor that is still to be run.
pub struct PodTask {
    pod: Pod,
    start: actor::Start,
}

impl PodTask {
    /// Lives until the pod is removed, or nobody has a handle any more.
    pub async fn run(self) {
        self.pod.run(self.start).await;
    }
}

/// A pod as a starting daemon finds it.
pub struct Recovered {
    /// Its id.
    pub id: PodId,
    /// As asked for.
    pub spec: PodSpec,
    /// When.
    pub created_at: Nanos,
    /// What the model makes of its record and of what is found.
    pub state: PodState,
    /// What is to be done.
    pub effects: Vec<PodEffect>,
    /// Its containers with what is to be done about each.
    pub containers: Vec<RecoveredContainer>,
    /// Its guest, and the number of the last event that `containers` knows of.
    pub guest: Option<(GuestClient, u64)>,
}

/// The images that a container is made of, kept for as long as it is.
pub struct ContainerImages {
    /// The one that it runs.
    pub root: Lease,
    /// Those that it mounts, in the order of its mounts.
    pub volumes: Vec<Lease>,
}

/// A container as a starting daemon finds it.
pub struct RecoveredContainer {
    /// Its record, with the state that the model makes of it.
    pub record: ContainerRecord,
    /// Keep its images.
    pub leases: Vec<Lease>,
    /// What is to be done.
    pub effects: Vec<ContainerEffect>,
    /// Its end, if the guest has seen it and it is not yet told: its log may
    /// not be complete.
    pub ended: Option<ContainerEvent>,
}

impl PodHandle {
    /// A new pod; its task makes it.
    #[must_use]
    pub fn create(
        context: Arc<Context>,
        driver: Arc<dyn Driver>,
        id: PodId,
        spec: PodSpec,
    ) -> (Self, PodTask) {
        Self::begin(Beginning {
            subject: Subject { context, driver, id, spec: Arc::new(spec) },
            created_at: context::now(),
            state: PodState::Starting,
            effects: pod::START.to_vec(),
            containers: BTreeMap::new(),
            container_effects: Vec::new(),
            ended: Vec::new(),
            guest: None,
        })
    }

    /// A pod of an earlier daemon.
    #[must_use]
    pub fn recover(context: Arc<Context>, driver: Arc<dyn Driver>, recovered: Recovered) -> (Self, PodTask) {
        let Recovered { id, spec, created_at, state, effects, containers, guest } = recovered;
        let mut known = BTreeMap::new();
        let (mut container_effects, mut all_ended) = (Vec::new(), Vec::new());
        for RecoveredContainer { record, leases, effects, ended } in containers {
            all_ended.extend(ended.map(|event| (record.id.clone(), event)));
            if !effects.is_empty() {
                container_effects.push((record.id.clone(), effects));
            }
            let view = ContainerView {
                id: record.id.clone(),
                pod: record.pod,
                spec: Arc::new(record.spec),
                image: record.image,
                image_volumes: record.image_volumes,
                process: record.process,
                log_path: record.log_path,
                state: record.state,
                created_at: record.created_at,
                identity: record.identity,
            };
            let container = Container {
                view,
                layers: record.layers,
                _leases: leases,
                log: None,
                ending: false,
                early_end: None,
                stop_asked: Arc::default(),
                waiting: Vec::new(),
                creators: Vec::new(),
                starters: Vec::new(),
                removers: Vec::new(),
            };
            known.insert(record.id, container);
        }
        Self::begin(Beginning {
            subject: Subject { context, driver, id, spec: Arc::new(spec) },
            created_at,
            state,
            effects,
            containers: known,
            container_effects,
            ended: all_ended,
            guest,
        })
    }

    fn begin(beginning: Beginning) -> (Self, PodTask) {
        let id = beginning.subject.id.clone();
        let (pod, ends, start) = Pod::new(beginning);
        let handle = Self { id, mailbox: ends.mailbox, view: ends.view, guest: ends.guest };
        (handle, PodTask { pod, start })
    }

    /// The pod's id.
    #[must_use]
    pub fn id(&self) -> &PodId {
        &self.id
    }

    /// The pod as of its last change. Never waits.
    #[must_use]
    pub fn view(&self) -> Arc<PodView> {
        Arc::clone(&self.view.borrow())
    }

    /// The pod's guest, while the pod is ready.
    #[must_use]
    pub fn guest(&self) -> Option<GuestClient> {
        self.guest.borrow().clone()
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        match self.mailbox.try_send(Request::new(command(reply))) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => return Err(Error::Busy { pod: self.id.clone() }),
            Err(mpsc::error::TrySendError::Closed(_)) => {
                return Err(Error::PodNotFound { id: self.id.to_string() });
            }
        }
        // The actor answers everything that it has taken, unless the daemon ends.
        answer.await.map_err(|_| Error::ShuttingDown)?
    }

    /// Waits until the pod is ready.
    ///
    /// # Errors
    /// [`Error::StartFailed`] with the reason; [`Error::Spec`] if it asks for what its machine
    /// does not have; [`Error::PodState`] if it has been ready and is no longer.
    pub async fn started(&self) -> Result<(), Error> {
        self.ask(Command::AwaitStarted).await
    }

    /// Ends everything in the pod and frees what it holds.
    ///
    /// # Errors
    /// [`Error::TeardownFailed`]; it may be repeated.
    pub async fn stop(&self) -> Result<(), Error> {
        gone_is_done(self.ask(Command::Stop).await)
    }

    /// Stops the pod and forgets it.
    ///
    /// # Errors
    /// [`Error::TeardownFailed`]; it may be repeated.
    pub async fn remove(&self) -> Result<(), Error> {
        gone_is_done(self.ask(Command::Remove).await)
    }

    /// Waits while the pod is being removed; whether it is gone then.
    ///
    /// # Errors
    /// [`Error::ShuttingDown`].
    pub async fn left(&self) -> Result<bool, Error> {
        let mut view = self.view.clone();
        let left = view.wait_for(|view| view.state != PodState::Removing).await;
        let left = left.map_err(|_| Error::ShuttingDown)?;
        Ok(left.state == PodState::Removed)
    }

    /// Changes the size of the pod's machine.
    ///
    /// # Errors
    /// [`Error::PodState`] if the pod is not ready, or why it cannot change.
    pub async fn resize(&self, size: MachineSize) -> Result<(), Error> {
        self.ask(|reply| Command::Resize(size, reply)).await
    }

    /// Makes a container.
    ///
    /// # Errors
    /// [`Error::PodState`], [`Error::NameTaken`], or the failed effect's; nothing
    /// is left then.
    pub async fn create_container(
        &self,
        id: ContainerId,
        spec: ContainerSpec,
        process: Process,
        images: ContainerImages,
        log_path: Option<PathBuf>,
    ) -> Result<ContainerId, Error> {
        let ContainerImages { root: image, volumes: image_volumes } = images;
        let new = Box::new(NewContainer { id, spec, process, image, image_volumes, log_path });
        self.ask(|reply| Command::CreateContainer(new, reply)).await
    }

    /// Changes the limits of a container; what is not named stays.
    ///
    /// # Errors
    /// [`Error::ContainerState`] if it has ended, or why it cannot be limited so.
    pub async fn update_container(&self, id: ContainerId, resources: Resources) -> Result<(), Error> {
        self.ask(|reply| Command::UpdateContainer(id, Box::new(resources), reply)).await
    }

    /// Starts a container. Starting one that runs succeeds.
    ///
    /// # Errors
    /// [`Error::ContainerState`] if it has already run, or why it cannot run.
    pub async fn start_container(&self, id: ContainerId) -> Result<(), Error> {
        self.ask(|reply| Command::StartContainer(id, reply)).await
    }

    /// Ends a container: its stop signal, then SIGKILL after `timeout`.
    /// Stopping one that does not run succeeds.
    ///
    /// # Errors
    /// [`Error::Deadline`] if it survives.
    pub async fn stop_container(&self, id: ContainerId, timeout: Duration) -> Result<(), Error> {
        gone_is_done(self.ask(|reply| Command::StopContainer(id, timeout, reply)).await)
    }

    /// Goes on with the file that the container's log path names now. For
    /// containers whose log is not written by their guest.
    ///
    /// # Errors
    /// [`Error::ContainerState`] if nothing more is written,
    /// [`Error::Log`].
    pub async fn reopen_log(&self, id: ContainerId) -> Result<(), Error> {
        self.ask(|reply| Command::ReopenLog(id, reply)).await
    }

    /// Ends a container and forgets it.
    ///
    /// # Errors
    /// When something of it is left; it may be repeated.
    pub async fn remove_container(&self, id: ContainerId) -> Result<(), Error> {
        gone_is_done(self.ask(|reply| Command::RemoveContainer(id, reply)).await)
    }
}

/// A pod that has been removed meanwhile is stopped and removed.
fn gone_is_done(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::PodNotFound { .. }) => Ok(()),
        other => other,
    }
}
