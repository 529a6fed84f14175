//! What the driver does with one machine, but for starting it.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kina_attachment::{Namespace, tap};
use kina_machine::{
    Attachment, Ended, Error as MachineError, Found, MachineSpec, MachineState, Share, ShareKind, Stream,
    Turns,
};
use kina_model::{ContainerId, PodId};
use kina_node::{Error as NodeError, MachineRecords, Node, ProcessIdentity, Recorded, find_cgroup};
use kina_vsock::Address;
use tokio::sync::Semaphore;
use tracing::warn;

use super::NAME;
use super::ended::{Remains, reason};
use super::record::{Network, Phase, Record, Started};
use super::shares::Tree;
use super::streams::Streams;
use crate::boot::BootFiles;
use crate::{Accelerator, Error, QemuConfig};

const RECORD: &str = "qemu.json";
/// Where the console's end is kept.
pub(super) const CONSOLE: &str = "console.log";
/// What the machine's processes write to.
pub(super) const CONSOLE_PIPE: &str = "console.pipe";
/// The guest's streams.
pub(super) const GUEST_SOCKET: &str = "guest.sock";
/// In a machine's storage directory.
pub(super) const DISK: &str = "disk.ext4";
const LAYERS: &str = "layers";

/// The port that guests listen on.
pub(super) const GUEST_PORT: u32 = 1024;

/// How long one stream may take; the caller tries again.
const STREAM_PATIENCE: Duration = Duration::from_secs(4);

/// How long QEMU may take to end after a process beside it has, before that one
/// is to blame.
const QEMU_PATIENCE: Duration = Duration::from_millis(200);

/// In place of a user that is not known.
const NOBODY: u32 = 65534;

/// Bytes of the console in which the reason of an end is looked for.
const LAST_WORDS: usize = 16 * 1024;

/// What every machine starts from.
pub(super) struct Ready {
    pub(super) boot: BootFiles,
    pub(super) accelerator: Accelerator,
    /// What disks are copied from.
    pub(super) template: Option<PathBuf>,
}

pub(super) struct Machines {
    pub(super) node: Arc<dyn Node>,
    pub(super) config: QemuConfig,
    ready: Ready,
    records: MachineRecords<Record>,
    turns: Turns,
    /// One permit, for choosing a user until it is written down.
    users: Semaphore,
}

/// What a machine does, with what is there in that state.
pub(super) enum Now {
    Created,
    Running(Box<Started>),
    /// It was started and something that it needs runs no more.
    Broken(Box<Started>),
    Stopped(String),
}

impl Now {
    fn state(&self) -> MachineState {
        match self {
            Self::Created => MachineState::Created,
            Self::Running(_) => MachineState::Running,
            Self::Broken(_) | Self::Stopped(_) => MachineState::Stopped,
        }
    }
}

/// The system error behind a refusal of the node, where there is one.
fn io_error(error: NodeError) -> io::Error {
    let kind = error.io_kind().unwrap_or(io::ErrorKind::InvalidInput);
    io::Error::new(kind, error)
}

impl Machines {
    pub(super) fn new(node: Arc<dyn Node>, config: QemuConfig, ready: Ready) -> Self {
        let records = MachineRecords::new(Arc::clone(&node), config.pods_directory.clone(), RECORD);
        Self { node, config, ready, records, turns: Turns::default(), users: Semaphore::new(1) }
    }

    pub(super) fn ready(&self) -> &Ready {
        &self.ready
    }

    pub(super) fn directory(&self, pod: &PodId) -> PathBuf {
        self.records.directory(pod)
    }

    pub(super) fn tree(&self, pod: &PodId, storage: &Path) -> Tree<'_> {
        Tree::new(&*self.node, &self.directory(pod), storage)
    }

    /// See [`Turns::run`].
    pub(super) async fn change<T, F>(
        self: &Arc<Self>,
        pod: &PodId,
        operation: &'static str,
        change: impl FnOnce(Arc<Self>) -> F,
    ) -> Result<T, MachineError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, MachineError>> + Send + 'static,
    {
        self.turns.run(pod, operation, change(Arc::clone(self))).await
    }

    /// What is known of a machine. One whose record is damaged has ended: what
    /// runs of it is found by its cgroup, and can be stopped and destroyed. Its
    /// layers and its disk are left to the caller, whose directory they are in.
    async fn record(&self, pod: &PodId) -> Result<Option<Record>, MachineError> {
        let failed = |source| MachineError::node(pod, "read the record", source);
        match self.records.read(pod).await.map_err(failed)? {
            Recorded::Missing => Ok(None),
            Recorded::Whole(record) => Ok(Some(record)),
            Recorded::Damaged(reason) => {
                warn!(pod_id = %pod, reason, "a machine counts as ended");
                let cgroup = find_cgroup(&*self.node, pod).await.map_err(failed)?;
                Ok(Some(Record {
                    cgroup: cgroup.unwrap_or_else(|| format!("/{pod}")),
                    storage_directory: self.directory(pod),
                    network: None,
                    uid: NOBODY,
                    memory_bytes: 0,
                    cpus: 0,
                    user: None,
                    boot_id: String::new(),
                    phase: Phase::Stopped { reason },
                }))
            }
        }
    }

    pub(super) async fn write(&self, pod: &PodId, record: &Record) -> Result<(), MachineError> {
        let written = self.records.write(pod, record).await;
        written.map_err(|source| MachineError::node(pod, "write the record", source))
    }

    /// The record of a machine that must exist.
    pub(super) async fn known(&self, pod: &PodId) -> Result<Record, MachineError> {
        self.record(pod).await?.ok_or_else(|| MachineError::NotFound { pod: pod.clone() })
    }

    async fn boot_id(&self, pod: &PodId) -> Result<String, MachineError> {
        self.node.boot_id().await.map_err(|source| MachineError::node(pod, "read the boot id", source))
    }

    async fn lives(&self, pod: &PodId, process: ProcessIdentity) -> Result<bool, MachineError> {
        let lives = self.node.process_lives(process).await;
        lives.map_err(|source| MachineError::node(pod, "look for the machine", source))
    }

    /// Compares a record with what runs.
    pub(super) async fn now(&self, pod: &PodId, record: &Record) -> Result<Now, MachineError> {
        let this_boot = record.boot_id == self.boot_id(pod).await?;
        match &record.phase {
            Phase::Stopped { reason } => Ok(Now::Stopped(reason.clone())),
            Phase::Created | Phase::Started(_) if !this_boot => {
                Ok(Now::Stopped("the node was started anew".to_owned()))
            }
            Phase::Created => Ok(Now::Created),
            Phase::Started(started) => {
                let mut runs = self.lives(pod, started.qemu.identity()).await?;
                for (_, helper) in started.helpers() {
                    runs = runs && self.lives(pod, helper).await?;
                }
                Ok(if runs { Now::Running(started.clone()) } else { Now::Broken(started.clone()) })
            }
        }
    }

    pub(super) async fn create(&self, spec: &MachineSpec) -> Result<(), MachineError> {
        let pod = &spec.pod;
        let refuse = |error: Error| MachineError::node(pod, "create", error);
        let expected = self.directory(pod);
        if spec.directory != expected {
            return Err(refuse(Error::Directory { path: spec.directory.clone(), expected }));
        }
        let cgroup = spec.cgroup.trim_end_matches('/').to_owned();
        if let Some(record) = self.record(pod).await? {
            return match self.now(pod, &record).await? {
                Now::Created if record.cgroup == cgroup => self.create_tree(pod, &record).await,
                Now::Created => Err(refuse(Error::Cgroup { existing: record.cgroup, asked: cgroup })),
                Now::Running(_) => Err(MachineError::wrong_state(pod, "create", "running")),
                Now::Broken(_) | Now::Stopped(_) => Err(MachineError::wrong_state(pod, "create", "stopped")),
            };
        }
        let boot_id = self.boot_id(pod).await?;
        let network = spec.network.as_ref().map(|network| Network {
            namespace: network.namespace.clone(),
            interface: network.interface.clone(),
        });
        let record = {
            let _permit =
                self.users.acquire().await.map_err(|closed| MachineError::node(pod, "create", closed))?;
            let record = Record {
                cgroup,
                storage_directory: spec.storage_directory.clone(),
                network,
                uid: self.free_user(pod).await?,
                memory_bytes: spec.memory_bytes,
                cpus: spec.cpus.max(1),
                user: spec.user,
                boot_id,
                phase: Phase::Created,
            };
            self.write(pod, &record).await?;
            record
        };
        let made = self.create_tree(pod, &record).await;
        if made.is_err()
            && let Err(error) = self.destroy(pod).await
        {
            warn!(pod_id = %pod, %error, "a machine that was not made is not removed either");
        }
        made
    }

    async fn create_tree(&self, pod: &PodId, record: &Record) -> Result<(), MachineError> {
        let made = self.tree(pod, &record.storage_directory).create().await;
        made.map_err(|source| MachineError::node(pod, "make the shared tree", source))
    }

    /// The first user that no machine has, with one after it for its helpers.
    async fn free_user(&self, pod: &PodId) -> Result<u32, MachineError> {
        let mut taken = BTreeSet::new();
        for other in self.pods().await? {
            // A record that is damaged keeps its pod from being used, not others.
            if let Ok(Recorded::Whole(record)) = self.records.read(&other).await {
                taken.extend([record.uid, record.helper_uid()]);
            }
        }
        let users = self.config.users.clone();
        let pairs = users.clone().step_by(2).filter(|user| users.contains(&(user + 1)));
        let free = pairs.into_iter().find(|user| ![*user, user + 1].iter().any(|user| taken.contains(user)));
        free.ok_or_else(|| {
            MachineError::node(pod, "create", Error::Users { users: self.config.users.clone() })
        })
    }

    pub(super) async fn start(&self, pod: &PodId) -> Result<(), MachineError> {
        let mut record = self.known(pod).await?;
        match self.now(pod, &record).await? {
            Now::Running(_) => return Ok(()),
            Now::Broken(_) | Now::Stopped(_) => {
                return Err(MachineError::wrong_state(pod, "start", "stopped"));
            }
            Now::Created => {}
        }
        // What a daemon left that was killed while it did this.
        self.kill(pod, &machine_cgroup(&record)).await?;
        match self.boot(pod, &record).await {
            Ok(started) => {
                record.phase = Phase::Started(Box::new(started));
                self.write(pod, &record).await
            }
            Err(error) => {
                // It is still created, and may be started again.
                if let Err(error) = self.kill(pod, &machine_cgroup(&record)).await {
                    warn!(pod_id = %pod, %error, "a machine that does not start is not ended either");
                }
                Err(error)
            }
        }
    }

    /// Gives a running machine time to switch itself off.
    pub(super) async fn wait_for_end(
        self: &Arc<Self>,
        pod: &PodId,
        grace: Duration,
    ) -> Result<(), MachineError> {
        if grace.is_zero() {
            return Ok(());
        }
        let Some(record) = self.record(pod).await? else { return Ok(()) };
        let Now::Running(_) = self.now(pod, &record).await? else { return Ok(()) };
        match tokio::time::timeout(grace, self.wait(pod)).await {
            Ok(Ok(_)) | Err(_) => {}
            // It is killed next, which does not depend on having waited.
            Ok(Err(error)) => warn!(pod_id = %pod, %error, "cannot wait for the machine to end"),
        }
        Ok(())
    }

    /// Ends everything in a cgroup: the machine's own, or the pod's.
    async fn kill(&self, pod: &PodId, cgroup: &str) -> Result<(), MachineError> {
        match self.node.kill_cgroup(cgroup, self.config.kill_deadline).await {
            Ok(()) => Ok(()),
            Err(error @ NodeError::Survivors { .. }) => {
                Err(MachineError::Survives { pod: pod.clone(), survivors: error.to_string() })
            }
            Err(error) => Err(MachineError::node(pod, "kill the processes", error)),
        }
    }

    pub(super) async fn stop(&self, pod: &PodId) -> Result<(), MachineError> {
        let Some(mut record) = self.record(pod).await? else { return Ok(()) };
        let reason = match self.now(pod, &record).await? {
            Now::Created | Now::Running(_) => "it was stopped".to_owned(),
            Now::Broken(started) => self.reason(pod, &record, &started).await?,
            Now::Stopped(reason) => reason,
        };
        self.kill(pod, &record.cgroup).await?;
        record.phase = Phase::Stopped { reason };
        self.write(pod, &record).await?;
        self.detach(pod, &record).await?;
        self.remove(pod, &self.directory(pod).join(GUEST_SOCKET)).await
    }

    /// Takes the tap out of the pod's namespace, if that is still there.
    async fn detach(&self, pod: &PodId, record: &Record) -> Result<(), MachineError> {
        let Some((namespace, tap)) = self.card_of(record) else { return Ok(()) };
        let failed = |source| MachineError::node(pod, "take the network back", source);
        let namespace = match Namespace::open(&namespace) {
            Ok(namespace) => namespace,
            // It went with everything in it.
            Err(kina_attachment::Error::Namespace { .. } | kina_attachment::Error::NotANamespace { .. }) => {
                return Ok(());
            }
            Err(error) => return Err(failed(error)),
        };
        tap::detach(&namespace, &tap).await.map_err(failed)
    }

    pub(super) async fn destroy(&self, pod: &PodId) -> Result<(), MachineError> {
        let directory = self.directory(pod);
        if let Some(record) = self.record(pod).await? {
            self.kill(pod, &record.cgroup).await?;
            self.detach(pod, &record).await?;
            let removed = self.tree(pod, &record.storage_directory).remove().await;
            removed.map_err(|source| MachineError::node(pod, "remove the shared tree", source))?;
            for name in [LAYERS, DISK] {
                self.remove(pod, &record.storage_directory.join(name)).await?;
            }
        }
        let names = self.node.list_directory(&directory).await;
        let names = names.map_err(|source| MachineError::node(pod, "list the machine's files", source))?;
        for name in names.iter().filter(|name| *name != RECORD) {
            self.remove(pod, &directory.join(name)).await?;
        }
        // Last: while it is there the machine is found and destroyed again.
        self.remove(pod, &directory.join(RECORD)).await
    }

    pub(super) async fn remove(&self, pod: &PodId, path: &Path) -> Result<(), MachineError> {
        let removed = self.node.remove_tree(path).await;
        removed.map_err(|source| MachineError::node(pod, "remove the machine's files", source))
    }

    async fn pods(&self) -> Result<Vec<PodId>, MachineError> {
        let pods = self.records.pods().await;
        pods.map_err(|source| MachineError::List { driver: NAME, source: Box::new(source) })
    }

    pub(super) async fn list(&self) -> Result<Vec<Found>, MachineError> {
        let mut found = Vec::new();
        for pod in self.pods().await? {
            match self.status(&pod).await {
                Ok(state) => found.push(Found { pod, state }),
                Err(MachineError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    pub(super) async fn status(&self, pod: &PodId) -> Result<MachineState, MachineError> {
        let record = self.known(pod).await?;
        Ok(self.now(pod, &record).await?.state())
    }

    pub(super) async fn wait(self: &Arc<Self>, pod: &PodId) -> Result<Ended, MachineError> {
        let record = self.known(pod).await?;
        match self.now(pod, &record).await? {
            Now::Created => return Err(MachineError::wrong_state(pod, "wait", "created")),
            Now::Stopped(reason) => return Ok(Ended { reason }),
            Now::Broken(_) => {}
            Now::Running(started) => {
                let qemu = std::iter::once(started.qemu.identity());
                let all = qemu.chain(started.helpers().into_iter().map(|(_, process)| process));
                let waits = all.map(|process| self.node.wait_process(process));
                let (ended, _, _) = futures::future::select_all(waits).await;
                ended.map_err(|source| MachineError::node(pod, "wait for the machine", source))?;
            }
        }
        let owned = pod.clone();
        self.change(pod, "wait", move |machines| async move { machines.settle(&owned).await }).await
    }

    /// Ends what is left of a machine that has ended, and writes down why.
    async fn settle(&self, pod: &PodId) -> Result<Ended, MachineError> {
        let Some(mut record) = self.record(pod).await? else {
            return Ok(Ended { reason: "it was destroyed".to_owned() });
        };
        let reason = match self.now(pod, &record).await? {
            Now::Stopped(reason) => return Ok(Ended { reason }),
            Now::Broken(started) => self.reason(pod, &record, &started).await?,
            // It was destroyed, and made and started anew.
            Now::Created | Now::Running(_) => return Ok(Ended { reason: "it was destroyed".to_owned() }),
        };
        self.kill(pod, &machine_cgroup(&record)).await?;
        record.phase = Phase::Stopped { reason: reason.clone() };
        self.write(pod, &record).await?;
        Ok(Ended { reason })
    }

    /// Why a machine has ended, before what is left of it is killed.
    async fn reason(&self, pod: &PodId, record: &Record, started: &Started) -> Result<String, MachineError> {
        let qemu = started.qemu.identity();
        // The processes beside QEMU end with it, in any order.
        let ended = tokio::time::timeout(QEMU_PATIENCE, self.node.wait_process(qemu)).await;
        let mut helper = None;
        if ended.is_err() {
            for (name, process) in started.helpers() {
                if helper.is_none() && !self.lives(pod, process).await? {
                    helper = Some(name);
                }
            }
        }
        let kills = self.node.out_of_memory_kills(&machine_cgroup(record)).await;
        let kills = kills.map_err(|source| MachineError::node(pod, "look why the machine ended", source))?;
        let status = if helper.is_some() { None } else { self.node.exit_status(qemu).await };
        let console = self.console(pod, LAST_WORDS).await?;
        Ok(reason(&Remains { helper, status, out_of_memory: kills, console }))
    }

    pub(super) async fn console(&self, pod: &PodId, limit: usize) -> Result<Vec<u8>, MachineError> {
        // The keeper begins a new file when one is full.
        let mut words = Vec::new();
        for name in [format!("{CONSOLE}.old"), CONSOLE.to_owned()] {
            match self.node.read_end(&self.directory(pod).join(name), limit).await {
                Ok(content) => words.extend(content),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(MachineError::node(pod, "read the console", error)),
            }
        }
        words.drain(..words.len().saturating_sub(limit));
        Ok(words)
    }

    pub(super) async fn connect(&self, pod: &PodId) -> Result<Box<dyn Stream>, MachineError> {
        let failed = |source| MachineError::Connect { pod: pod.clone(), source };
        let record = self.known(pod).await?;
        let address = match self.now(pod, &record).await? {
            Now::Running(started) => self.address(pod, started.streams),
            Now::Created | Now::Broken(_) | Now::Stopped(_) => {
                return Err(failed(io::ErrorKind::ConnectionRefused.into()));
            }
        };
        match kina_vsock::connect(&address, STREAM_PATIENCE).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(failed(io::Error::other(error))),
        }
    }

    pub(super) async fn share(&self, pod: &PodId, share: &Share) -> Result<PathBuf, MachineError> {
        let record = self.known(pod).await?;
        let failed = |source| MachineError::Share { pod: pod.clone(), path: share.source.clone(), source };
        if let Now::Broken(_) | Now::Stopped(_) = self.now(pod, &record).await? {
            return Err(MachineError::wrong_state(pod, "share", "stopped"));
        }
        let tree = self.tree(pod, &record.storage_directory);
        let shared = match &share.kind {
            ShareKind::Layer => tree.layer(&share.source).await,
            ShareKind::Volume(container) => tree.volume(container, share).await,
            ShareKind::State => {
                let words = "a virtual machine keeps the pod's state itself";
                return Err(failed(io::Error::new(io::ErrorKind::Unsupported, words)));
            }
        };
        shared.map_err(|error| failed(io_error(error)))
    }

    pub(super) async fn unshare(&self, pod: &PodId, container: &ContainerId) -> Result<(), MachineError> {
        let Some(record) = self.record(pod).await? else { return Ok(()) };
        let taken = self.tree(pod, &record.storage_directory).unshare(container).await;
        taken.map_err(|source| MachineError::node(pod, "take volumes back", source))
    }

    pub(super) async fn attach_network(&self, pod: &PodId) -> Result<Attachment, MachineError> {
        let record = self.known(pod).await?;
        let Some((namespace, tap)) = self.card_of(&record) else { return Ok(Attachment::Loopback) };
        let failed = |source| MachineError::node(pod, "join the network", source);
        let namespace = Namespace::open(&namespace).map_err(failed)?;
        let interface = tap::attach(&namespace, &tap).await.map_err(failed)?;
        Ok(Attachment::Interface(Box::new(interface)))
    }

    /// Where a machine's guest listens.
    fn address(&self, pod: &PodId, streams: Streams) -> Address {
        match streams {
            Streams::Device(_) => {
                Address::Unix { socket: self.directory(pod).join(GUEST_SOCKET), port: GUEST_PORT }
            }
            Streams::Kernel { cid } => Address::Kernel { cid, port: GUEST_PORT },
        }
    }

    /// The namespace of a machine with a network card, and what the card is
    /// connected to.
    pub(super) fn card_of(&self, record: &Record) -> Option<(PathBuf, tap::Tap)> {
        let network = record.network.as_ref()?;
        let interface = network.interface.as_ref()?;
        // QEMU is given it open: nobody else may open it.
        let tap = tap::Tap { forging: self.config.forging, ..tap::Tap::new(interface) };
        Some((network.namespace.clone(), tap))
    }
}

/// Where the machine's own processes are.
pub(super) fn machine_cgroup(record: &Record) -> String {
    format!("{}/machine", record.cgroup)
}
