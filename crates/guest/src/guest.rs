//! The guest: a pod, its containers and what happens to them.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kina_cgroup::{Group, Hierarchy};
use kina_guest_api::v1;
use kina_launch::Launcher;
use kina_log::Sink;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::build::Prepared;
use crate::container::{Container, now_nanos};
use crate::error::Error;
use crate::events::Events;
use crate::journal::Journal;
use crate::layers::LayerStore;
use crate::pod::{PidMode, Pod};
use crate::process::{self, SignalError};
use crate::spec::PidNamespace;

/// No pod has more containers.
pub(crate) const CONTAINERS_LIMIT: usize = 256;
/// Execs at one time.
pub(crate) const EXECS_LIMIT: usize = 128;
/// Forwarded connections at one time.
pub(crate) const FORWARDS_LIMIT: usize = 128;
/// Attached clients at one time, of all containers.
pub(crate) const ATTACHES_LIMIT: usize = 128;
const ID_LIMIT: usize = 128;
/// The exit code of what SIGKILL has ended.
const KILLED: i32 = 128 + 9;
/// How long killed processes may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// How long an ended container's output may take to be stored before its end is told.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);
/// How long a cgroup may be busy after its last process.
pub(crate) const CGROUP_PATIENCE: Duration = Duration::from_secs(2);

/// Everything that the guest knows.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) pod_id: String,
    pub(crate) hierarchy: Hierarchy,
    pub(crate) features: v1::Features,
    pub(crate) boot_id: String,
    pub(crate) journal: Journal,
    pub(crate) events: Events,
    pub(crate) launcher: Arc<Launcher>,
    execs: Arc<Semaphore>,
    forwards: Arc<Semaphore>,
    attaches: Arc<Semaphore>,
    /// Held while usage is measured.
    pub(crate) measuring: tokio::sync::Mutex<()>,
    pod: tokio::sync::Mutex<Option<Arc<Pod>>>,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    pub(crate) layers: Arc<LayerStore>,
    closing: AtomicBool,
    /// True when the guest is to end.
    finished: watch::Sender<bool>,
}

impl Guest {
    /// `state` is where the pod's state will be in a machine of its own.
    pub(crate) fn new(
        pod_id: String,
        hierarchy: Hierarchy,
        journal: Journal,
        launcher: Launcher,
        state: Option<&Path>,
    ) -> Self {
        Self {
            pod_id,
            features: crate::features::probe(Some(&hierarchy), state),
            hierarchy,
            boot_id: crate::features::boot_id(),
            journal,
            events: Events::default(),
            launcher: Arc::new(launcher),
            execs: Arc::new(Semaphore::new(EXECS_LIMIT)),
            forwards: Arc::new(Semaphore::new(FORWARDS_LIMIT)),
            attaches: Arc::new(Semaphore::new(ATTACHES_LIMIT)),
            measuring: tokio::sync::Mutex::default(),
            pod: tokio::sync::Mutex::default(),
            containers: Mutex::default(),
            layers: Arc::default(),
            closing: AtomicBool::new(false),
            finished: watch::Sender::new(false),
        }
    }

    /// Wakes when the guest is to end.
    pub(crate) fn finished(&self) -> watch::Receiver<bool> {
        self.finished.subscribe()
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Arc<Container>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the place of an exec, for as long as it lasts.
    pub(crate) fn take_exec(&self) -> Result<OwnedSemaphorePermit, Error> {
        take(&self.execs, "execs", EXECS_LIMIT)
    }

    /// Takes the place of a forwarded connection.
    pub(crate) fn take_forward(&self) -> Result<OwnedSemaphorePermit, Error> {
        take(&self.forwards, "forwarded connections", FORWARDS_LIMIT)
    }

    /// Takes the place of an attached client.
    pub(crate) fn take_attach(&self) -> Result<OwnedSemaphorePermit, Error> {
        take(&self.attaches, "attached clients", ATTACHES_LIMIT)
    }

    /// Every container.
    pub(crate) fn all(&self) -> Vec<Arc<Container>> {
        self.containers().values().cloned().collect()
    }

    /// A container by id.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        self.containers().get(id).cloned().ok_or_else(|| Error::NoContainer { id: id.to_owned() })
    }

    fn require_open(&self) -> Result<(), Error> {
        if self.closing.load(Ordering::Acquire) { Err(Error::ShuttingDown) } else { Ok(()) }
    }

    /// Sets the pod up, once. Must run on the main thread (see [`Pod::create`]).
    pub(crate) async fn setup_pod(&self, request: v1::SetupPodRequest) -> Result<(), Error> {
        let mut pod = self.pod.lock().await;
        self.require_open()?;
        match &*pod {
            Some(pod) if pod.is(&request) => Ok(()),
            Some(_) => Err(Error::PodDiffers),
            None => {
                *pod = Some(Arc::new(Pod::create(request, &self.hierarchy).await?));
                Ok(())
            }
        }
    }

    /// The pod, once it is set up.
    pub(crate) async fn pod(&self) -> Result<Arc<Pod>, Error> {
        self.pod.lock().await.clone().ok_or(Error::NoPod)
    }

    /// Makes a container, all but its process.
    pub(crate) async fn create(
        self: Arc<Self>,
        request: v1::CreateContainerRequest,
    ) -> Result<v1::CreateContainerResponse, Error> {
        check_id(&request.id)?;
        let pod = self.pod().await?;
        let pid = self.pid_namespace(&request, &pod)?;
        let container = Arc::new(Container::reserve(request.id.clone()));
        // Nobody else knows the container yet.
        let _turn = Arc::clone(&container.turn).lock_owned().await;
        {
            let mut containers = self.containers();
            self.require_open()?;
            if containers.contains_key(&request.id) {
                return Err(Error::ContainerExists { id: request.id });
            }
            if containers.len() >= CONTAINERS_LIMIT {
                return Err(Error::TooMany { what: "containers", limit: CONTAINERS_LIMIT });
            }
            containers.insert(request.id.clone(), Arc::clone(&container));
        }
        let guest = Arc::clone(&self);
        let prepared = blocking("create a container", move || guest.prepare(&request, &pod, &pid)).await;
        match prepared {
            Ok(Prepared { made, process, response }) => {
                container.set_created(made, process);
                Ok(response)
            }
            Err(error) => {
                self.containers().remove(&container.id);
                Err(error)
            }
        }
    }

    fn pid_namespace(&self, request: &v1::CreateContainerRequest, pod: &Pod) -> Result<PidNamespace, Error> {
        use v1::NamespaceMode;
        Ok(match (request.pid(), &pod.pid) {
            (NamespaceMode::Container, _) | (NamespaceMode::Unspecified, PidMode::Container(_)) => {
                PidNamespace::Own
            }
            (NamespaceMode::Host, _) | (NamespaceMode::Unspecified, PidMode::Host) => PidNamespace::Host,
            (NamespaceMode::Unspecified | NamespaceMode::Pod, PidMode::Pod(common)) => {
                PidNamespace::Shared(common.path())
            }
            (NamespaceMode::Pod, PidMode::Container(made)) => PidNamespace::Shared(pod.common_pid(made)?),
            (NamespaceMode::Pod, PidMode::Host) => {
                return Err(Error::invalid("pid", "the pod has the machine's PID namespace"));
            }
            (NamespaceMode::Target, _) => {
                let target = self.container(&request.pid_target)?;
                let operation = "share the PID namespace of";
                target.require_running(operation)?;
                let pid = target.process(operation)?.pid;
                PidNamespace::Shared(format!("/proc/{pid}/ns/pid").into())
            }
        })
    }

    /// Sets up a created container's process and runs its program.
    pub(crate) async fn start(self: Arc<Self>, id: String) -> Result<v1::StartContainerResponse, Error> {
        let container = self.container(&id)?;
        let _turn = container.turn.lock().await;
        self.require_open()?;
        if let Some(prepared) = container.begin_start()? {
            let (guest, kept) = (Arc::clone(&self), Arc::clone(&container));
            let launched = blocking("start a container", move || guest.launch(&kept, *prepared)).await;
            match launched {
                Ok(started_at_nanos) => container.set_running(started_at_nanos),
                Err(error) => {
                    // A process that there is ends, and is seen to. Of none there is no event: the
                    // error says it, and an event could overtake it.
                    container.end_without_process();
                    return Err(error);
                }
            }
        }
        let process = container.process("start")?;
        Ok(v1::StartContainerResponse {
            started_at_nanos: container.status().unwrap_or_default().started_at_nanos,
            pid: process.pid,
            warnings: process.warnings.clone(),
        })
    }

    /// Sends a signal.
    pub(crate) async fn signal(self: Arc<Self>, id: String, number: u32, all: bool) -> Result<(), Error> {
        let container = self.container(&id)?;
        let invalid = || Error::invalid("signal", format!("{number} is none"));
        let code = i32::try_from(number).ok().filter(|number| (1..=64).contains(number));
        let code = 128 + code.ok_or_else(invalid)?;
        if container.process("signal").is_err() {
            // Its start, if it is under way, comes to a process or to the container's end.
            let _turn = container.turn.lock().await;
            if let Some(exit) = end_unstarted(&container, code).await {
                let exited = v1::ContainerExited { id, exit: Some(exit) };
                self.events.emit(v1::event::What::Exited(exited));
            }
        }
        if container.has_exited() {
            return Ok(());
        }
        let sent = if all {
            let group = container.made("signal")?.group.clone();
            let pids = blocking("list processes", move || {
                group.processes().map_err(|source| cgroup_error(&group, source))
            })
            .await?;
            process::signal_each(&pids, number)
        } else {
            process::signal(&container.process("signal")?.pidfd, number)
        };
        sent.map_err(|error| match error {
            SignalError::Number => invalid(),
            SignalError::Send(source) => Error::system("send a signal", source),
        })
    }

    /// Frees what a container holds.
    pub(crate) async fn delete(self: Arc<Self>, id: String) -> Result<(), Error> {
        let Ok(container) = self.container(&id) else {
            return Ok(());
        };
        let _turn = container.turn.lock().await;
        // Its creation may have failed meanwhile, or another delete been first.
        if self.container(&id).is_ok_and(|known| Arc::ptr_eq(&known, &container)) {
            self.delete_in_turn(&container).await?;
        }
        Ok(())
    }

    async fn delete_in_turn(&self, container: &Arc<Container>) -> Result<(), Error> {
        container.require_inactive("delete")?;
        let made = container.made("delete")?;
        end_unstarted(container, KILLED).await;
        let process = container.process("delete").ok();
        if let Some(process) = process.filter(|_| !container.has_exited()) {
            drop(process::signal(&process.pidfd, 9));
            if !container.wait_ended(KILL_PATIENCE + DRAIN_PATIENCE).await {
                return Err(Error::WrongState {
                    id: container.id.clone(),
                    state: "killed and does not end",
                    operation: "delete",
                });
            }
        }
        for pump in process.iter().flat_map(|process| std::mem::take(&mut *process.pumps())) {
            pump.abort();
        }
        made.close_streams();
        let kept = Arc::clone(container);
        blocking("delete a container", move || {
            let made = kept.made("delete")?;
            let group = &made.group;
            group.delete(CGROUP_PATIENCE).map_err(|source| cgroup_error(group, source))?;
            made.writable.remove()?;
            made.layers.lock().unwrap_or_else(PoisonError::into_inner).clear();
            Ok(())
        })
        .await?;
        self.containers().remove(&container.id);
        Ok(())
    }

    /// Every container's state.
    pub(crate) fn list(&self) -> v1::ListContainersResponse {
        // Read first: an event that comes meanwhile is told twice, not never.
        let sequence = self.events.newest();
        let containers = self.containers().values().filter_map(|c| c.status()).collect();
        v1::ListContainersResponse { containers, sequence }
    }

    /// Opens a container's log file anew.
    pub(crate) fn reopen_log(&self, id: &str) -> Result<(), Error> {
        let container = self.container(id)?;
        match &container.made("reopen the log of")?.log {
            Sink::File(file) => file.reopen().map_err(|source| Error::Log { id: id.to_owned(), source }),
            Sink::Stream(_) | Sink::Discard => {
                Err(Error::invalid("id", format!("container {id} has no log file")))
            }
        }
    }

    /// Ends every container, frees what the pod holds, and has the guest end.
    /// The second call waits for the first.
    pub(crate) async fn shutdown(self: Arc<Self>, grace: Duration) {
        if self.closing.swap(true, Ordering::AcqRel) {
            let mut finished = self.finished();
            drop(finished.wait_for(|finished| *finished).await);
            return;
        }
        self.journal.line(format_args!("shutting down, grace {grace:?}"));
        let containers = self.all();
        let each = containers.iter().map(|container| self.end(container, grace));
        futures::future::join_all(each).await;
        let pod = self.pod.lock().await.take();
        if let Some(pod) = pod {
            let guest = Arc::clone(&self);
            let cleaned = blocking("free the pod", move || {
                guest.free_pod(&pod);
                Ok(())
            });
            if let Err(error) = cleaned.await {
                self.journal.line(format_args!("shutdown: {}", chain(&error)));
            }
        }
        self.journal.line(format_args!("shut down"));
        self.finished.send_replace(true);
    }

    /// Ends and deletes one container, waiting for an operation under way.
    async fn end(&self, container: &Arc<Container>, grace: Duration) {
        let _turn = container.turn.lock().await;
        let Ok(made) = container.made("end") else {
            return;
        };
        if let Some(process) = container.process("end").ok().filter(|_| container.is_active()) {
            drop(process::signal(&process.pidfd, made.stop_signal));
            if !container.wait_ended(grace).await {
                drop(process::signal(&process.pidfd, 9));
                container.wait_ended(KILL_PATIENCE).await;
            }
        }
        if let Sink::Stream(buffer) = &made.log {
            // The last of the log is worth a moment, if somebody reads it.
            let read = async {
                while buffer.start() < buffer.end() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            drop(tokio::time::timeout(DRAIN_PATIENCE, read).await);
        }
        if let Err(error) = self.delete_in_turn(container).await {
            self.journal.line(format_args!("container {}: {}", container.id, chain(&error)));
        }
    }

    /// Kills what is left in the pod's cgroup, but for the guest, and removes the groups.
    fn free_pod(&self, pod: &Pod) {
        let complain = |error: &dyn std::error::Error| {
            self.journal.line(format_args!("shutdown: {}", chain(error)));
        };
        let mut names = std::collections::BTreeSet::new();
        for directory in pod.group.directories() {
            let Ok(entries) = std::fs::read_dir(directory) else { continue };
            names.extend(
                entries
                    .flatten()
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|entry| entry.file_name().to_string_lossy().into_owned()),
            );
        }
        names.remove("guest");
        for name in names {
            match child_group(&pod.group, &name) {
                Ok(group) => {
                    for done in [group.kill_all(KILL_PATIENCE), group.delete(CGROUP_PATIENCE)] {
                        if let Err(error) = done {
                            complain(&error);
                        }
                    }
                }
                Err(error) => complain(&error),
            }
        }
        if let Err(error) = pod.remove_files() {
            complain(&error);
        }
    }
}

/// Ends a container that was not started, and frees the root file system that waits for its start.
/// `None` if it is no such container.
async fn end_unstarted(container: &Container, code: i32) -> Option<v1::Exit> {
    let (exit, prepared) = container.end_unstarted(code)?;
    // Unmounting blocks.
    let freed = blocking("free a root file system", move || {
        drop(prepared);
        Ok(())
    });
    drop(freed.await);
    Some(exit)
}

fn take(places: &Arc<Semaphore>, what: &'static str, limit: usize) -> Result<OwnedSemaphorePermit, Error> {
    Arc::clone(places).try_acquire_owned().map_err(|_| Error::TooMany { what, limit })
}

/// Notices a container's end and tells it, once all of it has ended and its log
/// is complete.
pub(crate) async fn watch_end(guest: Arc<Guest>, container: Arc<Container>) {
    let (Ok(made), Ok(process)) = (container.made("watch"), container.process("watch")) else {
        return;
    };
    let code = match process::wait(&process.pidfd).await {
        Ok(code) => code,
        Err(error) => {
            guest.journal.line(format_args!("wait for container {}: {error}", container.id));
            255
        }
    };
    let finished_at_nanos = now_nanos();
    let group = made.group.clone();
    let kill = !made.owns_pid_namespace;
    let oom_killed = blocking("end a container", move || {
        if kill {
            group.kill_all(KILL_PATIENCE).map_err(|source| cgroup_error(&group, source))?;
        }
        let count = group.oom_kill_count().map_err(|source| cgroup_error(&group, source))?;
        Ok(count.is_some_and(|count| count > 0))
    })
    .await
    .unwrap_or_else(|error| {
        guest.journal.line(format_args!("end of container {}: {}", container.id, chain(&error)));
        false
    });
    if !process.drain(DRAIN_PATIENCE).await {
        guest.journal.line(format_args!("container {} ended, its log is not read yet", container.id));
    }
    let exit = v1::Exit { code, finished_at_nanos, oom_killed };
    container.set_exited(exit);
    made.audience.set_exited();
    if oom_killed {
        let id = container.id.clone();
        guest.events.emit(v1::event::What::Oom(v1::ContainerOom { id }));
    }
    let id = container.id.clone();
    guest.events.emit(v1::event::What::Exited(v1::ContainerExited { id, exit: Some(exit) }));
}

/// Runs what blocks off the event loop.
pub(crate) async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Error::Interrupted { operation }))
}

/// Carries an operation through to its end, also when its caller goes away.
pub(crate) async fn complete<T: Send + 'static>(
    operation: &'static str,
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    tokio::spawn(work).await.unwrap_or(Err(Error::Interrupted { operation }))
}

pub(crate) fn cgroup_error(group: &Group, source: kina_cgroup::Error) -> Error {
    Error::Cgroup { path: group.path().to_owned(), source }
}

pub(crate) fn child_group(parent: &Group, name: &str) -> Result<Group, Error> {
    let path = format!("{}/{name}", parent.path().trim_end_matches('/'));
    parent.hierarchy().group(&path).map_err(|source| Error::Cgroup { path, source })
}

fn check_id(id: &str) -> Result<(), Error> {
    let fine = (1..=ID_LIMIT).contains(&id.len())
        && !id.starts_with('.')
        && id != "guest"
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    if fine { Ok(()) } else { Err(Error::invalid("id", format!("{id:?}"))) }
}

/// An error with all of its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
