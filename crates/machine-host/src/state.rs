//! What the driver does with one machine.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kina_machine::{
    Details, Error as MachineError, Found, MachineSpec, MachineState, Overhead, Process, Share, Stream, Turns,
};
use kina_model::PodId;
use kina_node::{
    Error as NodeError, GuestProgram, MAX_SOCKET_PATH, MachineRecords, Node, ProcessIdentity, Recorded,
    find_cgroup,
};
use tracing::warn;

use crate::record::{Phase, Record};
use crate::{Error, HostConfig};

/// The driver's name.
pub(crate) const NAME: &str = "host";

const RECORD: &str = "machine.json";
const SOCKET: &str = "guest.sock";
const LOG: &str = "guest.log";

pub(crate) struct Machines {
    node: Arc<dyn Node>,
    config: HostConfig,
    records: MachineRecords<Record>,
    turns: Turns,
}

/// What a machine does, with what is there in that state.
enum Now {
    Created,
    Running(ProcessIdentity),
    Stopped,
}

impl Now {
    fn state(&self) -> MachineState {
        match self {
            Self::Created => MachineState::Created,
            Self::Running(_) => MachineState::Running,
            Self::Stopped => MachineState::Stopped,
        }
    }
}

/// The system error behind a refusal of the node, where there is one.
fn io_error(error: NodeError) -> io::Error {
    let kind = error.io_kind().unwrap_or(io::ErrorKind::Other);
    io::Error::new(kind, error)
}

impl Machines {
    pub(crate) fn new(node: Arc<dyn Node>, config: HostConfig) -> Self {
        let records = MachineRecords::new(Arc::clone(&node), config.pods_directory.clone(), RECORD);
        Self { node, config, records, turns: Turns::default() }
    }

    pub(crate) fn directory(&self, pod: &PodId) -> PathBuf {
        self.records.directory(pod)
    }

    /// See [`Turns::run`].
    pub(crate) async fn change<F>(
        self: &Arc<Self>,
        pod: &PodId,
        operation: &'static str,
        change: impl FnOnce(Arc<Self>) -> F,
    ) -> Result<(), MachineError>
    where
        F: Future<Output = Result<(), MachineError>> + Send + 'static,
    {
        self.turns.run(pod, operation, change(Arc::clone(self))).await
    }

    /// What is known of a machine. One whose record is damaged has ended: what
    /// runs of it is found by its cgroup, and can be stopped and destroyed.
    async fn record(&self, pod: &PodId) -> Result<Option<Record>, MachineError> {
        let failed = |source| MachineError::node(pod, "read the record", source);
        match self.records.read(pod).await.map_err(failed)? {
            Recorded::Missing => Ok(None),
            Recorded::Whole(record) => Ok(Some(record)),
            Recorded::Damaged(reason) => {
                warn!(pod_id = %pod, reason, "a machine counts as ended");
                let cgroup = find_cgroup(&*self.node, pod).await.map_err(failed)?;
                let cgroup = cgroup.unwrap_or_else(|| format!("/{pod}"));
                Ok(Some(Record { cgroup, netns: None, boot_id: String::new(), phase: Phase::Stopped }))
            }
        }
    }

    async fn write(&self, pod: &PodId, record: &Record) -> Result<(), MachineError> {
        let written = self.records.write(pod, record).await;
        written.map_err(|source| MachineError::node(pod, "write the record", source))
    }

    /// The record of a machine that must exist.
    pub(crate) async fn known(&self, pod: &PodId) -> Result<Record, MachineError> {
        self.record(pod).await?.ok_or_else(|| MachineError::NotFound { pod: pod.clone() })
    }

    async fn boot_id(&self, pod: &PodId) -> Result<String, MachineError> {
        self.node.boot_id().await.map_err(|source| MachineError::node(pod, "read the boot id", source))
    }

    /// Compares a record with what runs.
    async fn now(&self, pod: &PodId, record: &Record) -> Result<Now, MachineError> {
        if record.boot_id != self.boot_id(pod).await? {
            return Ok(Now::Stopped);
        }
        match record.phase {
            Phase::Stopped => Ok(Now::Stopped),
            Phase::Started { pid, start_ticks } => {
                let guest = ProcessIdentity { pid, start_ticks };
                let lives = self
                    .node
                    .process_lives(guest)
                    .await
                    .map_err(|source| MachineError::node(pod, "look for the guest", source))?;
                Ok(if lives { Now::Running(guest) } else { Now::Stopped })
            }
            Phase::Created => {
                let processes = self
                    .node
                    .cgroup_processes(&format!("{}/guest", record.cgroup))
                    .await
                    .map_err(|source| MachineError::node(pod, "look for the guest", source))?;
                // The guest is the first process of its cgroup; it may have
                // started others since.
                let guest = processes.into_iter().min_by_key(|found| (found.start_ticks, found.pid));
                Ok(guest.map_or(Now::Created, Now::Running))
            }
        }
    }

    pub(crate) async fn create(&self, spec: &MachineSpec) -> Result<(), MachineError> {
        let pod = &spec.pod;
        let refuse = |error: Error| MachineError::node(pod, "create", error);
        let expected = self.directory(pod);
        if spec.directory != expected {
            return Err(refuse(Error::Directory { path: spec.directory.clone(), expected }));
        }
        let socket = expected.join(SOCKET);
        let length = socket.as_os_str().len();
        if length > MAX_SOCKET_PATH {
            return Err(refuse(Error::SocketPath { path: socket, length, limit: MAX_SOCKET_PATH }));
        }
        let cgroup = spec.cgroup.trim_end_matches('/').to_owned();
        if let Some(record) = self.record(pod).await? {
            let state = self.now(pod, &record).await?.state();
            return match state {
                MachineState::Created if record.cgroup == cgroup => Ok(()),
                MachineState::Created => {
                    Err(refuse(Error::Cgroup { existing: record.cgroup, asked: cgroup }))
                }
                MachineState::Running => Err(MachineError::wrong_state(pod, "create", "running")),
                MachineState::Stopped => Err(MachineError::wrong_state(pod, "create", "stopped")),
            };
        }
        let boot_id = self.boot_id(pod).await?;
        let netns = spec.network.as_ref().map(|network| network.namespace.clone());
        self.write(pod, &Record { cgroup, netns, boot_id, phase: Phase::Created }).await
    }

    pub(crate) async fn start(&self, pod: &PodId) -> Result<(), MachineError> {
        let mut record = self.known(pod).await?;
        let guest = match self.now(pod, &record).await? {
            Now::Running(guest) => guest,
            Now::Stopped => return Err(MachineError::wrong_state(pod, "start", "stopped")),
            Now::Created => self.spawn(pod, &record).await?,
        };
        let phase = Phase::started(guest);
        if record.phase != phase {
            record.phase = phase;
            self.write(pod, &record).await?;
        }
        Ok(())
    }

    async fn spawn(&self, pod: &PodId, record: &Record) -> Result<ProcessIdentity, MachineError> {
        let directory = self.directory(pod);
        let guest = GuestProgram {
            pod: pod.clone(),
            program: self.config.guest_program.clone(),
            socket: directory.join(SOCKET),
            log: directory.join(LOG),
            cgroup: record.cgroup.clone(),
        };
        match self.node.spawn_guest(&guest).await {
            Ok(guest) => Ok(guest),
            Err(NodeError::Execute { path, source }) => Err(MachineError::Guest { path, source }),
            Err(error) => Err(MachineError::node(pod, "start the guest", error)),
        }
    }

    /// Gives a running guest time to end by itself.
    pub(crate) async fn wait_for_end(&self, pod: &PodId, grace: Duration) -> Result<(), MachineError> {
        if grace.is_zero() {
            return Ok(());
        }
        let Some(record) = self.record(pod).await? else { return Ok(()) };
        let Now::Running(guest) = self.now(pod, &record).await? else { return Ok(()) };
        match tokio::time::timeout(grace, self.node.wait_process(guest)).await {
            Ok(Ok(())) | Err(_) => {}
            // It is killed next, which does not depend on having waited.
            Ok(Err(error)) => warn!(pod_id = %pod, %error, "cannot wait for the guest to end"),
        }
        Ok(())
    }

    async fn kill(&self, pod: &PodId, record: &Record) -> Result<(), MachineError> {
        match self.node.kill_cgroup(&record.cgroup, self.config.kill_deadline).await {
            Ok(()) => Ok(()),
            Err(error @ NodeError::Survivors { .. }) => {
                Err(MachineError::Survives { pod: pod.clone(), survivors: error.to_string() })
            }
            Err(error) => Err(MachineError::node(pod, "kill the processes", error)),
        }
    }

    pub(crate) async fn stop(&self, pod: &PodId) -> Result<(), MachineError> {
        let Some(mut record) = self.record(pod).await? else { return Ok(()) };
        // Also of an earlier boot or after the guest's death: what it left in
        // the cgroup goes with it.
        self.kill(pod, &record).await?;
        record.phase = Phase::Stopped;
        self.write(pod, &record).await?;
        self.remove(pod, SOCKET).await
    }

    pub(crate) async fn destroy(&self, pod: &PodId) -> Result<(), MachineError> {
        let directory = self.directory(pod);
        if let Some(record) = self.record(pod).await? {
            self.kill(pod, &record).await?;
        }
        let names = self
            .node
            .list_directory(&directory)
            .await
            .map_err(|source| MachineError::node(pod, "list the machine's files", source))?;
        for name in names.iter().filter(|name| *name != RECORD) {
            self.remove(pod, name).await?;
        }
        // Last: while it is there the machine is found and destroyed again.
        self.remove(pod, RECORD).await
    }

    async fn remove(&self, pod: &PodId, name: &str) -> Result<(), MachineError> {
        self.node
            .remove_tree(&self.directory(pod).join(name))
            .await
            .map_err(|source| MachineError::node(pod, "remove the machine's files", source))
    }

    pub(crate) async fn list(&self) -> Result<Vec<Found>, MachineError> {
        let pods = self.records.pods().await;
        let pods = pods.map_err(|source| MachineError::List { driver: NAME, source: Box::new(source) })?;
        let mut found = Vec::new();
        for pod in pods {
            match self.status(&pod).await {
                Ok(state) => found.push(Found { pod, state }),
                Err(MachineError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    pub(crate) async fn status(&self, pod: &PodId) -> Result<MachineState, MachineError> {
        let record = self.known(pod).await?;
        Ok(self.now(pod, &record).await?.state())
    }

    pub(crate) async fn wait(&self, pod: &PodId) -> Result<(), MachineError> {
        let record = self.known(pod).await?;
        match self.now(pod, &record).await? {
            Now::Created => Err(MachineError::wrong_state(pod, "wait", "created")),
            Now::Stopped => Ok(()),
            Now::Running(guest) => self
                .node
                .wait_process(guest)
                .await
                .map_err(|source| MachineError::node(pod, "wait for the guest", source)),
        }
    }

    pub(crate) async fn connect(&self, pod: &PodId) -> Result<Box<dyn Stream>, MachineError> {
        match self.node.dial(&self.directory(pod).join(SOCKET)).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => {
                self.known(pod).await?;
                Err(MachineError::Connect { pod: pod.clone(), source: io_error(error) })
            }
        }
    }

    pub(crate) async fn share(&self, pod: &PodId, share: &Share) -> Result<PathBuf, MachineError> {
        self.known(pod).await?;
        let failed = |source| MachineError::Share { pod: pod.clone(), path: share.source.clone(), source };
        match self.node.exists(&share.source).await {
            Ok(true) => Ok(share.source.clone()),
            Ok(false) => Err(failed(io::Error::from(io::ErrorKind::NotFound))),
            Err(error) => Err(failed(io_error(error))),
        }
    }

    pub(crate) async fn overhead(&self, pod: &PodId) -> Result<Overhead, MachineError> {
        let guest = self.guest(pod).await?;
        Ok(guest.map_or_else(Overhead::default, |guest| Overhead {
            memory_bytes: guest.memory_bytes,
            cpu_nanos: guest.cpu_nanos,
        }))
    }

    /// The guest's process; none when it does not run.
    async fn guest(&self, pod: &PodId) -> Result<Option<Process>, MachineError> {
        let record = self.known(pod).await?;
        let Now::Running(guest) = self.now(pod, &record).await? else {
            return Ok(None);
        };
        let usage = self
            .node
            .process_usage(guest)
            .await
            .map_err(|source| MachineError::node(pod, "measure the guest", source))?;
        // It may have ended meanwhile.
        Ok(usage.map(|usage| Process {
            role: "guest",
            pid: guest.pid,
            memory_bytes: usage.memory_bytes,
            cpu_nanos: usage.cpu_nanos,
        }))
    }

    pub(crate) async fn console(&self, pod: &PodId, limit: usize) -> Result<Vec<u8>, MachineError> {
        self.known(pod).await?;
        match self.node.read_end(&self.directory(pod).join(LOG), limit).await {
            Ok(words) => Ok(words),
            // It has not been started, or has said nothing yet.
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            Err(error) => Err(MachineError::node(pod, "read the guest's log", error)),
        }
    }

    pub(crate) async fn inspect(&self, pod: &PodId) -> Result<Details, MachineError> {
        let record = self.known(pod).await?;
        let boot_id = self.boot_id(pod).await?;
        let mut facts = vec![("kernel", "the node's".to_owned()), ("boot id", boot_id)];
        facts.push(("cgroup", record.cgroup));
        if let Some(netns) = record.netns {
            facts.push(("network namespace", netns.display().to_string()));
        }
        facts.push(("socket", self.directory(pod).join(SOCKET).display().to_string()));
        Ok(Details { processes: self.guest(pod).await?.into_iter().collect(), facts })
    }
}
