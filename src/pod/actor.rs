//! One task owns one pod. It takes requests from a bounded mailbox, decides
//! with the model's transition functions, performs effects in tasks of its own
//! and publishes a snapshot after every change.
//!
//! A client that gives up changes nothing here: replies go into the void, the
//! effects run to their end.
//!
//! Records are written by the actor itself, in the order of the decisions, so
//! that the store never goes backwards.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures::future::join_all;
use kina_guest_api::GuestClient;
use kina_image::Lease;
use kina_model::{
    ContainerDenied, ContainerEffect, ContainerEvent, ContainerId, ContainerImage, ContainerSpec,
    ContainerState, Digest, MachineSize, Nanos, PodDenied, PodEffect, PodEvent, PodState, Process, Ready,
    Resources, StopCause,
};
use kina_node::LayerImage;
use tokio::sync::{RwLock, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::context::now;
use super::guest_watch::{self, GuestNews};
use super::logs::ContainerLog;
use super::record::{ContainerRecord, PodRecord};
use super::start::{StartError, Subject};
use super::view::{ContainerView, Identity, PodView};
use crate::error::{Error, chain};
use crate::failpoint;
use crate::spans::Cause;

/// Requests that may wait for one pod.
pub(super) const MAILBOX: usize = 128;
/// News from the guest that may wait.
const NEWS: usize = 64;

/// The answer to a request.
pub(super) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// A request.
pub(super) enum Command {
    /// Answers once the pod is ready, or has failed to become so.
    AwaitStarted(Reply<()>),
    /// StopPodSandbox.
    Stop(Reply<()>),
    /// RemovePodSandbox.
    Remove(Reply<()>),
    /// Changes the size of the machine.
    Resize(MachineSize, Reply<()>),
    /// UpdateContainerResources.
    UpdateContainer(ContainerId, Box<Resources>, Reply<()>),
    /// CreateContainer.
    CreateContainer(Box<NewContainer>, Reply<ContainerId>),
    /// StartContainer.
    StartContainer(ContainerId, Reply<()>),
    /// StopContainer.
    StopContainer(ContainerId, Duration, Reply<()>),
    /// RemoveContainer.
    RemoveContainer(ContainerId, Reply<()>),
    /// ReopenContainerLog.
    ReopenLog(ContainerId, Reply<()>),
}

/// A request and on whose behalf it is, which what is done about it is part of, however
/// long it had to wait.
pub(super) struct Request {
    command: Command,
    cause: Cause,
}

impl Request {
    /// A request of whoever's work goes on here.
    pub(super) fn new(command: Command) -> Self {
        Self { command, cause: Cause::current() }
    }
}

/// A container to make.
pub(super) struct NewContainer {
    pub(super) id: ContainerId,
    pub(super) spec: ContainerSpec,
    pub(super) process: Process,
    /// The image, kept for as long as the container is.
    pub(super) image: Lease,
    /// The images that it mounts, likewise, in the order of its mounts.
    pub(super) image_volumes: Vec<Lease>,
    pub(super) log_path: Option<PathBuf>,
}

/// A container as the actor knows it.
pub(super) struct Container {
    pub(super) view: ContainerView,
    /// The layers of all its images by their uncompressed digest.
    pub(super) layers: Vec<Digest>,
    /// Keep the files of its images. Fewer if one was lost while no daemon ran.
    pub(super) _leases: Vec<Lease>,
    /// Its log, while the daemon writes it.
    pub(super) log: Option<ContainerLog>,
    /// It has ended, which is told once its log is complete.
    pub(super) ending: bool,
    /// Its end, seen before the answer to its start: it is told after that.
    pub(super) early_end: Option<ContainerEvent>,
    /// It was asked to end by its stop signal. A second one would tell many programs to
    /// give up what they do in answer to the first.
    pub(super) stop_asked: Arc<AtomicBool>,
    /// Requests that wait for what is under way.
    pub(super) waiting: Vec<Request>,
    /// Who waits for its creation.
    pub(super) creators: Vec<Reply<ContainerId>>,
    /// Who waits for its start.
    pub(super) starters: Vec<Reply<()>>,
    /// Who waits for its removal.
    pub(super) removers: Vec<Reply<()>>,
}

/// What a task of the actor has come to.
enum Done {
    Start(Result<(GuestClient, Ready), StartError>),
    Teardown(Result<(), String>),
    Created(ContainerId, Result<(Identity, Option<ContainerLog>), Error>),
    Started(ContainerId, Result<(Nanos, u32), Error>),
    LogWritten(ContainerId, ContainerEvent),
    Resized(MachineSize, Result<(), Error>, Reply<()>),
    Updated(ContainerId, Box<Resources>, Result<(), Error>, Reply<()>),
    Answer(Result<(), Error>, Reply<()>),
    Removed(ContainerId, Result<(), String>),
}

/// One pod.
pub(super) struct Pod {
    subject: Subject,
    created_at: Nanos,
    state: PodState,
    containers: BTreeMap<ContainerId, Container>,
    guest: Option<GuestClient>,
    publish: watch::Sender<Arc<PodView>>,
    publish_guest: watch::Sender<Option<GuestClient>>,
    mailbox: mpsc::Receiver<Request>,
    news: mpsc::Receiver<GuestNews>,
    news_sender: mpsc::Sender<GuestNews>,
    tasks: JoinSet<(Cause, Done)>,
    /// Ends the watch over the guest.
    guest_watch: CancellationToken,
    /// Interrupts the start effects while they run.
    starting: Option<CancellationToken>,
    /// Teardown effects that wait for the interrupted start to end, and on whose behalf.
    after_start: (Cause, Vec<PodEffect>),
    /// Held for reading by every task that works on a container; teardown
    /// waits for them between ending the machine and freeing the rest.
    container_work: Arc<RwLock<()>>,
    /// Requests that wait for the present phase to end.
    waiting: Vec<Request>,
    start_waiters: Vec<Reply<()>>,
    teardown_waiters: Vec<Reply<()>>,
    /// Why the last phase failed, for those who wait for it.
    failure: Option<StartError>,
}

/// What an actor starts with.
pub(super) struct Beginning {
    pub(super) subject: Subject,
    pub(super) created_at: Nanos,
    pub(super) state: PodState,
    /// What is to be done first, as the model said.
    pub(super) effects: Vec<PodEffect>,
    pub(super) containers: BTreeMap<ContainerId, Container>,
    /// What is to be done with containers first.
    pub(super) container_effects: Vec<(ContainerId, Vec<ContainerEffect>)>,
    /// Ends of containers that are to be told once their logs are complete.
    pub(super) ended: Vec<(ContainerId, ContainerEvent)>,
    /// An adopted pod's guest, and the number of the last event known of it.
    pub(super) guest: Option<(GuestClient, u64)>,
}

/// The ends of an actor's channels that others hold.
pub(super) struct Ends {
    pub(super) mailbox: mpsc::Sender<Request>,
    pub(super) view: watch::Receiver<Arc<PodView>>,
    pub(super) guest: watch::Receiver<Option<GuestClient>>,
}

impl Pod {
    /// Makes an actor; [`Pod::run`] runs it.
    pub(super) fn new(beginning: Beginning) -> (Self, Ends, Start) {
        let Beginning { subject, created_at, state, effects, containers, container_effects, ended, guest } =
            beginning;
        let (mailbox_sender, mailbox) = mpsc::channel(MAILBOX);
        let (news_sender, news) = mpsc::channel(NEWS);
        let view = view(&subject, created_at, &state, &containers);
        let (publish, view) = watch::channel(Arc::new(view));
        let (publish_guest, guest_receiver) = watch::channel(None);
        let pod = Self {
            subject,
            created_at,
            state,
            containers,
            guest: None,
            publish,
            publish_guest,
            mailbox,
            news,
            news_sender,
            tasks: JoinSet::new(),
            guest_watch: CancellationToken::new(),
            starting: None,
            after_start: Default::default(),
            container_work: Arc::default(),
            waiting: Vec::new(),
            start_waiters: Vec::new(),
            teardown_waiters: Vec::new(),
            failure: None,
        };
        let ends = Ends { mailbox: mailbox_sender, view, guest: guest_receiver };
        let cause = Cause::current();
        (pod, ends, Start { effects, container_effects, ended, guest, cause })
    }

    /// Lives as long as the pod does.
    pub(super) async fn run(mut self, start: Start) {
        let _guest_watch = self.guest_watch.clone().drop_guard();
        if let Some((guest, sequence)) = start.guest {
            self.resume_logs(&guest);
            self.adopt_guest(guest, sequence);
        }
        for (container, event) in start.ended {
            self.container_ended(container, event).await;
        }
        for (container, effects) in start.container_effects {
            self.perform_container(&container, effects).await;
        }
        start.cause.carry(self.perform(start.effects)).await;
        while self.state != PodState::Removed {
            tokio::select! {
                // Ends first: who asks afterwards shall see them.
                biased;
                Some(news) = self.news.recv() => self.hear(news).await,
                Some(done) = self.tasks.join_next() => match done {
                    Ok((cause, done)) => cause.carry(self.finish(done)).await,
                    Err(error) => warn!(pod = %self.subject.id, %error, "a task of the pod panicked"),
                },
                command = self.mailbox.recv() => match command {
                    Some(request) => self.obey(request).await,
                    // Nobody can ask any more: the daemon is ending. The pod lives on.
                    None => return,
                },
            }
        }
        // Requests that came too late find the pod gone, which is what they want.
        self.mailbox.close();
        while let Some(request) = self.mailbox.recv().await {
            self.answer_gone(request);
        }
        for request in std::mem::take(&mut self.waiting) {
            self.answer_gone(request);
        }
        for container in std::mem::take(&mut self.containers).into_values() {
            container.waiting.into_iter().for_each(|request| self.answer_gone(request));
            container.removers.into_iter().for_each(|reply| drop(reply.send(Ok(()))));
        }
        // Who waits for a container's end sees that it is no more.
        self.publish();
        while let Some(done) = self.tasks.join_next().await {
            if let Ok((_, Done::Answer(_, reply))) = done {
                let _ = reply.send(Ok(()));
            }
        }
    }

    fn answer_gone(&self, Request { command, .. }: Request) {
        let gone = || Error::PodNotFound { id: self.subject.id.to_string() };
        match command {
            Command::Stop(reply)
            | Command::Remove(reply)
            | Command::StopContainer(_, _, reply)
            | Command::RemoveContainer(_, reply) => drop(reply.send(Ok(()))),
            Command::AwaitStarted(reply)
            | Command::StartContainer(_, reply)
            | Command::ReopenLog(_, reply)
            | Command::Resize(_, reply)
            | Command::UpdateContainer(_, _, reply) => drop(reply.send(Err(gone()))),
            Command::CreateContainer(_, reply) => drop(reply.send(Err(gone()))),
        }
    }

    /// Does work in a task, on behalf of whoever it is begun for here.
    fn spawn(&mut self, work: impl Future<Output = Done> + Send + 'static) {
        let cause = Cause::current();
        self.tasks.spawn(async move { (cause.clone(), cause.carry(work).await) });
    }

    async fn obey(&mut self, Request { command, cause }: Request) {
        cause.carry(self.obey_command(command)).await;
    }

    async fn obey_command(&mut self, command: Command) {
        match command {
            Command::AwaitStarted(reply) => match self.state {
                PodState::Starting => self.start_waiters.push(reply),
                PodState::Ready(_) => drop(reply.send(Ok(()))),
                PodState::Stopping(_)
                | PodState::StopFailed { .. }
                | PodState::Stopped(_)
                | PodState::Removing
                | PodState::Removed => drop(reply.send(Err(self.wrong_state("run again")))),
            },
            Command::Stop(reply) => self.ask(PodEvent::StopAsked, reply, Command::Stop).await,
            Command::Remove(reply) => self.ask(PodEvent::RemoveAsked, reply, Command::Remove).await,
            Command::Resize(size, reply) => self.resize(size, reply),
            Command::UpdateContainer(id, resources, reply) => self.update_container(id, resources, reply),
            Command::CreateContainer(new, reply) => self.create(*new, reply).await,
            Command::StartContainer(id, reply) => self.start_container(id, reply).await,
            Command::StopContainer(id, timeout, reply) => self.stop_container(&id, timeout, reply),
            Command::RemoveContainer(id, reply) => self.remove_container(id, reply).await,
            Command::ReopenLog(id, reply) => self.reopen_log(&id, reply),
        }
    }

    fn wrong_state(&self, operation: &'static str) -> Error {
        Error::PodState { pod: self.subject.id.clone(), state: self.state.name(), operation }
    }

    fn resize(&mut self, size: MachineSize, reply: Reply<()>) {
        if !self.state.is_ready() {
            let _ = reply.send(Err(self.wrong_state("change its size")));
            return;
        }
        let subject = self.subject.clone();
        self.spawn(async move {
            let MachineSize { memory_bytes, cpus } = size;
            let resized = subject.driver.resize(&subject.id, memory_bytes, cpus).await;
            Done::Resized(size, resized.map_err(Error::from), reply)
        });
    }

    async fn resized(&mut self, size: MachineSize, result: Result<(), Error>, reply: Reply<()>) {
        if result.is_ok()
            && let PodState::Ready(ready) = &mut self.state
        {
            ready.size = Some(size);
            // It is large enough now whatever the record says.
            let _ = self.record().await;
            self.publish();
        }
        let _ = reply.send(result);
    }

    /// A request to stop or remove the pod.
    async fn ask(&mut self, event: PodEvent, reply: Reply<()>, again: fn(Reply<()>) -> Command) {
        match self.state.step(event) {
            Ok((next, effects)) if effects.is_empty() => {
                self.state = next;
                let _ = reply.send(Ok(()));
            }
            Ok((next, effects)) => {
                self.teardown_waiters.push(reply);
                self.enter(next, effects).await;
            }
            Err(PodDenied::Later) => self.waiting.push(Request::new(again(reply))),
            Err(PodDenied::Impossible) => drop(reply.send(Err(self.wrong_state("stop")))),
        }
    }

    /// An event that nobody asked for.
    async fn happen(&mut self, event: PodEvent) {
        debug!(pod = %self.subject.id, state = self.state.name(), ?event, "pod event");
        match self.state.step(event) {
            Ok((next, effects)) => self.enter(next, effects).await,
            Err(denied) => {
                warn!(pod = %self.subject.id, state = self.state.name(), %denied, "pod event ignored")
            }
        }
    }

    async fn enter(&mut self, next: PodState, effects: Vec<PodEffect>) {
        if next.name() != self.state.name() {
            info!(pod = %self.subject.id, from = self.state.name(), to = next.name(), "pod");
        }
        self.state = next;
        self.perform(effects).await;
        self.publish();
    }

    /// Performs effects: records at once, the rest in a task.
    async fn perform(&mut self, effects: Vec<PodEffect>) {
        let mut rest = effects.into_iter().peekable();
        while let Some(effect) = rest.peek() {
            match effect {
                PodEffect::Record => {
                    rest.next();
                    if let Err(error) = self.record().await
                        && self.state == PodState::Starting
                    {
                        // Without its record a pod cannot be found again: nothing may be made.
                        let reason = format!("{}: {}", PodEffect::Record.name(), chain(&error));
                        self.spawn(async { Done::Start(Err(StartError::Failed(reason))) });
                        return;
                    }
                }
                PodEffect::CancelStart => {
                    rest.next();
                    if let Some(cancel) = self.starting.clone() {
                        let cancel = async {
                            cancel.cancel();
                            Ok::<_, Infallible>(())
                        };
                        let Ok(()) = failpoint::around(PodEffect::CancelStart.name(), cancel).await;
                        self.after_start = (Cause::current(), rest.collect());
                        return;
                    }
                }
                PodEffect::MakeDirectories
                | PodEffect::CreateNetwork
                | PodEffect::AttachNetwork
                | PodEffect::CreateMachine
                | PodEffect::StartMachine
                | PodEffect::Handshake
                | PodEffect::SetupPod => {
                    self.begin_start(rest.collect());
                    return;
                }
                PodEffect::StopMachine
                | PodEffect::DestroyMachine
                | PodEffect::DetachNetwork
                | PodEffect::RemoveNetwork
                | PodEffect::ReleaseLayers
                | PodEffect::RemoveDirectories
                | PodEffect::DeleteRecords => {
                    self.begin_teardown(rest.collect());
                    return;
                }
            }
        }
    }

    async fn record(&mut self) -> Result<(), Error> {
        let record = PodRecord {
            id: self.subject.id.clone(),
            spec: (*self.subject.spec).clone(),
            state: self.state.clone(),
            created_at: self.created_at,
        };
        let table = self.subject.context.store.table::<PodRecord>();
        let write = table.put(self.subject.id.as_str(), &record);
        let result = failpoint::around(PodEffect::Record.name(), write).await;
        if let Err(error) = &result {
            warn!(pod = %self.subject.id, error = chain(error), "write the pod's record");
        }
        Ok(result?)
    }

    fn adopt_guest(&mut self, guest: GuestClient, sequence: u64) {
        self.guest = Some(guest.clone());
        self.publish_guest.send_replace(Some(guest.clone()));
        let watch = guest_watch::run(self.subject.clone(), guest, sequence, self.news_sender.clone());
        let cancel = self.guest_watch.clone();
        tokio::spawn(async move { cancel.run_until_cancelled(watch).await });
    }

    async fn hear(&mut self, news: GuestNews) {
        match news {
            GuestNews::Exited { id, code, finished_at, oom_killed } => {
                let event = ContainerEvent::ExitSeen { code, finished_at, oom_killed };
                self.container_ended(id, event).await;
            }
            GuestNews::Reconnected(guest) => {
                self.guest = Some(guest.clone());
                self.publish_guest.send_replace(Some(guest));
            }
            GuestNews::MachineEnded(reason) => {
                if self.state.is_ready() {
                    warn!(pod = %self.subject.id, reason, "the machine of the pod has ended");
                }
                self.happen(PodEvent::MachineEnded(reason)).await;
            }
        }
    }

    async fn finish(&mut self, done: Done) {
        match done {
            Done::Start(result) => self.start_ended(result).await,
            Done::Teardown(result) => self.teardown_ended(result).await,
            Done::Created(id, result) => self.created(&id, result).await,
            Done::Started(id, result) => self.started(&id, result).await,
            Done::LogWritten(id, event) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.ending = false;
                }
                self.exit_seen(&id, event).await;
            }
            Done::Resized(size, result, reply) => self.resized(size, result, reply).await,
            Done::Updated(id, resources, result, reply) => {
                self.updated(&id, &resources, result, reply).await;
            }
            Done::Answer(result, reply) => drop(reply.send(result)),
            Done::Removed(id, result) => self.removed(&id, result).await,
        }
    }

    /// A request that had to wait; boxed because it may come back here.
    fn obey_again(&mut self, request: Request) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.obey(request))
    }

    fn publish(&self) {
        let view = view(&self.subject, self.created_at, &self.state, &self.containers);
        let view = Arc::new(view);
        let old = self.publish.send_replace(Arc::clone(&view));
        self.subject.context.events.changed(&old, &view, now());
    }
}

/// What [`Pod::run`] begins with.
pub(super) struct Start {
    effects: Vec<PodEffect>,
    container_effects: Vec<(ContainerId, Vec<ContainerEffect>)>,
    ended: Vec<(ContainerId, ContainerEvent)>,
    guest: Option<(GuestClient, u64)>,
    /// On whose behalf the pod is made.
    cause: Cause,
}

fn view(
    subject: &Subject,
    created_at: Nanos,
    state: &PodState,
    containers: &BTreeMap<ContainerId, Container>,
) -> PodView {
    PodView {
        id: subject.id.clone(),
        spec: Arc::clone(&subject.spec),
        state: state.clone(),
        created_at,
        machine: subject.driver.name(),
        containers: containers
            .iter()
            // Nobody was told the id of one that was not made.
            .filter(|(_, container)| container.view.identity.is_some())
            .map(|(id, container)| (id.clone(), Arc::new(container.view.clone())))
            .collect(),
    }
}

mod containers;
mod logs;
mod phases;
