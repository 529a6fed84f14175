//! What the driver does with one machine, but for booting it and looking at it.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kina_machine::{
    Attachment, Details, Error as MachineError, Found, MachineNetwork, MachineSpec, MachineState, Overhead,
    Share, ShareKind, Stream, Turns,
};
use kina_model::PodId;
use kina_node::{MachineRecords, Node, Recorded};
use sha2::{Digest as _, Sha256};
use tokio::net::UnixStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::NAME;
use super::look::{Now, state_of};
use super::queue::BootQueue;
use super::record::{Phase, Port, RECORD, Record};
use super::shares;
use crate::command::{Container, Listed, State, container_name};
use crate::greeting::{Greeting, greet};
use crate::pod_image::PodImage;
use crate::{AppleConfig, Error, Version};

/// Where the last words of an ended machine are kept.
const CONSOLE: &str = "console.log";

/// How long Apple's program may take to tell them.
const WORDS_PATIENCE: Duration = Duration::from_secs(3);

/// Bytes of them that are kept.
const KEPT_WORDS: usize = 64 << 10;

/// How long a machine may take to end.
pub(super) const END_PATIENCE: Duration = Duration::from_secs(20);

/// How long a container may be listed whose removal succeeded without a word.
const UNSAID_PATIENCE: Duration = Duration::from_secs(5);

/// Between two looks whether it has.
pub(super) const END_PAUSE: Duration = Duration::from_millis(100);

/// How long a guest that should have ended may answer.
const GONE_PATIENCE: Duration = Duration::from_millis(300);

/// What Apple gives a machine beyond the memory asked for, for its own init
/// (`LinuxContainer`): the rest is the pod's.
const OVERHEAD_BYTES: u64 = 128 << 20;

/// Digits of a daemon's label: enough to tell daemons of one Mac apart.
const HOME_DIGITS: usize = 16;

pub(super) struct Machines {
    /// This computer's files.
    pub(super) node: Arc<dyn Node>,
    pub(super) config: AppleConfig,
    pub(super) container: Container,
    pub(super) version: Version,
    pub(super) image: PodImage,
    pub(super) queue: BootQueue,
    /// What this daemon's machines are labelled with.
    pub(super) home: String,
    pub(super) records: MachineRecords<Record>,
    turns: Turns,
    /// What cancels the starts of each machine, until it is stopped.
    starts: Mutex<HashMap<PodId, CancellationToken>>,
    /// Machines that were listed without a record.
    strangers: Mutex<HashMap<PodId, MachineState>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How an error of this driver is told to its caller.
pub(super) fn told(pod: &PodId, operation: &'static str, error: Error) -> MachineError {
    if error.is_unavailable() {
        return MachineError::Unavailable { driver: NAME, operation, source: Box::new(error) };
    }
    MachineError::node(pod, operation, error)
}

impl Machines {
    pub(super) fn new(
        node: Arc<dyn Node>,
        config: AppleConfig,
        container: Container,
        version: Version,
        image: PodImage,
    ) -> Self {
        let mut digest = Sha256::new();
        digest.update(config.pods_directory.as_os_str().as_encoded_bytes());
        let mut home = hex::encode(digest.finalize());
        home.truncate(HOME_DIGITS);
        let records = MachineRecords::new(Arc::clone(&node), config.pods_directory.clone(), RECORD);
        Self {
            node,
            config,
            container,
            version,
            image,
            queue: BootQueue::new(),
            home,
            records,
            turns: Turns::default(),
            starts: Mutex::default(),
            strangers: Mutex::default(),
        }
    }

    pub(super) fn directory(&self, pod: &PodId) -> PathBuf {
        self.records.directory(pod)
    }

    /// Where streams to a pod's guest begin.
    pub(super) fn socket(&self, pod: &PodId) -> PathBuf {
        self.config.socket_directory.join(format!("{pod}.sock"))
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

    /// What a stop of the machine cancels the start with that begins now.
    pub(super) fn begin_start(&self, pod: &PodId) -> CancellationToken {
        lock(&self.starts).entry(pod.clone()).or_default().child_token()
    }

    /// Cancels the starts of a machine that wait for their turn or boot.
    pub(super) fn cancel_start(&self, pod: &PodId) {
        if let Some(token) = lock(&self.starts).remove(pod) {
            token.cancel();
        }
    }

    /// What is known of a machine. One whose record is damaged has ended, and may
    /// have left anything.
    pub(super) async fn record(&self, pod: &PodId) -> Result<Option<Record>, MachineError> {
        let read =
            self.records.read(pod).await.map_err(|error| told(pod, "read the record", error.into()))?;
        match read {
            Recorded::Missing => Ok(None),
            Recorded::Whole(record) => Ok(Some(record)),
            Recorded::Damaged(reason) => {
                warn!(pod_id = %pod, reason, "a machine counts as ended");
                Ok(Some(Record {
                    storage_directory: self.directory(pod),
                    memory_bytes: 0,
                    cpus: 0,
                    shareable: Vec::new(),
                    ports: Vec::new(),
                    phase: Phase::Stopped { reason, remains: true },
                }))
            }
        }
    }

    pub(super) async fn write(&self, pod: &PodId, record: &Record) -> Result<(), MachineError> {
        self.records.write(pod, record).await.map_err(|error| told(pod, "write the record", error.into()))
    }

    /// The record of a machine that must exist.
    pub(super) async fn known(&self, pod: &PodId) -> Result<Record, MachineError> {
        self.record(pod).await?.ok_or_else(|| MachineError::NotFound { pod: pod.clone() })
    }

    pub(super) async fn create(&self, spec: &MachineSpec) -> Result<(), MachineError> {
        let pod = &spec.pod;
        let refuse = |error: Error| told(pod, "create", error);
        let expected = self.directory(pod);
        if spec.directory != expected {
            return Err(refuse(Error::Directory { path: spec.directory.clone(), expected }));
        }
        if let Some(record) = self.record(pod).await? {
            return match state_of(&self.now(pod, &record).await?) {
                MachineState::Created => shares::create(&record.storage_directory).await.map_err(refuse),
                MachineState::Running => Err(MachineError::wrong_state(pod, "create", "running")),
                MachineState::Stopped => Err(MachineError::wrong_state(pod, "create", "stopped")),
            };
        }
        shares::check(&spec.storage_directory).map_err(refuse)?;
        let record = Record {
            storage_directory: spec.storage_directory.clone(),
            memory_bytes: spec.memory_bytes,
            cpus: spec.cpus,
            shareable: shares::existing(&spec.shareable).await.map_err(refuse)?,
            ports: spec.ports.iter().map(Port::from).collect(),
            phase: Phase::Created,
        };
        self.write(pod, &record).await?;
        let made = shares::create(&record.storage_directory).await.map_err(refuse);
        if made.is_err()
            && let Err(error) = self.destroy(pod).await
        {
            warn!(pod_id = %pod, %error, "a machine that was not made is not removed either");
        }
        made
    }

    /// Gives a running machine time to end by itself.
    pub(super) async fn wait_for_end(
        self: &Arc<Self>,
        pod: &PodId,
        grace: Duration,
    ) -> Result<(), MachineError> {
        if grace.is_zero() {
            return Ok(());
        }
        let Some(Record { phase: Phase::Started(_), .. }) = self.record(pod).await? else { return Ok(()) };
        match tokio::time::timeout(grace, self.wait(pod)).await {
            Ok(Ok(_)) | Err(_) => {}
            // It is ended next, which does not depend on having waited.
            Ok(Err(error)) => warn!(pod_id = %pod, %error, "cannot wait for the machine to end"),
        }
        Ok(())
    }

    pub(super) async fn stop(&self, pod: &PodId) -> Result<(), MachineError> {
        let Some(mut record) = self.record(pod).await? else { return Ok(()) };
        let reason = match &record.phase {
            Phase::Created | Phase::Booting => "it was stopped".to_owned(),
            Phase::Started(_) => match self.now(pod, &record).await {
                Ok(Now::Stopped(reason)) => reason,
                Ok(Now::Created | Now::Running) | Err(_) => "it was stopped".to_owned(),
            },
            Phase::Stopped { reason, .. } => reason.clone(),
        };
        self.end(pod, &record).await?;
        record.phase = Phase::Stopped { reason, remains: false };
        self.write(pod, &record).await
    }

    /// Ends whatever Apple may have of a machine, and keeps its last words.
    async fn end(&self, pod: &PodId, record: &Record) -> Result<(), MachineError> {
        match &record.phase {
            Phase::Created | Phase::Stopped { remains: false, .. } => return Ok(()),
            Phase::Started(_) | Phase::Stopped { remains: true, .. } => drop(self.keep_words(pod).await),
            Phase::Booting => {}
        }
        self.delete(pod).await
    }

    /// Has Apple remove a machine's container, which ends the machine.
    pub(super) async fn delete(&self, pod: &PodId) -> Result<(), MachineError> {
        const OPERATION: &str = "end the machine";
        let _first = self.queue.end();
        let name = container_name(pod);
        let (deadline, unsaid) = (Instant::now() + END_PATIENCE, Instant::now() + UNSAID_PATIENCE);
        loop {
            match self.container.delete(&name).await {
                Ok(true) | Err(Error::NotFound { .. }) => break,
                // Its exit code alone is not enough where the list says otherwise.
                Ok(false) if !matches!(self.listed(pod).await, Ok(Some(_))) => break,
                Ok(false) if Instant::now() < unsaid => {}
                Ok(false) => return Err(told(pod, OPERATION, Error::NotDeleted { name })),
                // It is about to end by itself, or has just ended.
                Err(Error::Stopping { .. } | Error::NotRunning { .. }) if Instant::now() < deadline => {}
                Err(error) => return Err(told(pod, OPERATION, error)),
            }
            tokio::time::sleep(END_PAUSE).await;
        }
        // What the service has forgotten may run all the same, and not say a word.
        let socket = self.socket(pod);
        while !matches!(greet(&socket, GONE_PATIENCE).await, Greeting::Nobody) {
            if Instant::now() >= deadline {
                let survivors = format!(
                    "Apple's container has no {name} any more, but its socket is held; type `container system stop`, \
                     then `container system start` (which ends all machines)"
                );
                return Err(MachineError::Survives { pod: pod.clone(), survivors });
            }
            tokio::time::sleep(END_PAUSE).await;
        }
        self.node.remove_tree(&socket).await.map_err(|error| told(pod, OPERATION, error.into()))
    }

    pub(super) async fn destroy(&self, pod: &PodId) -> Result<(), MachineError> {
        match self.record(pod).await? {
            Some(record) => {
                self.end(pod, &record).await?;
                let layers = shares::layers(&record.storage_directory);
                let removed = self.node.remove_tree(&layers).await;
                removed.map_err(|error| told(pod, "destroy", error.into()))?;
            }
            None if lock(&self.strangers).contains_key(pod) => self.delete(pod).await?,
            None => {}
        }
        lock(&self.strangers).remove(pod);
        self.forget(pod).await.map_err(|error| told(pod, "destroy", error))
    }

    /// Removes everything in the machine's directory, the record last.
    async fn forget(&self, pod: &PodId) -> Result<(), Error> {
        let directory = self.directory(pod);
        let mut names = self.node.list_directory(&directory).await?;
        names.sort_by_key(|name| name == RECORD);
        for name in names {
            self.node.remove_tree(&directory.join(name)).await?;
        }
        Ok(())
    }

    /// What is recorded, and what is labelled as this daemon's. While Apple's
    /// program gives no list that can be read that is what is recorded.
    pub(super) async fn list(&self) -> Result<Vec<Found>, MachineError> {
        let failed = |error: Error| MachineError::List { driver: NAME, source: Box::new(error) };
        let listed = self.readable_list().await;
        let pods = self.records.pods().await.map_err(|error| failed(error.into()))?;
        // Side by side: each may take the time that a guest has to answer.
        let looks = pods.into_iter().map(|pod| self.look(pod, listed.as_deref()));
        let mut found = Vec::new();
        for looked in futures::future::join_all(looks).await {
            found.extend(looked?);
        }
        let unrecorded = |pod: &PodId| found.iter().all(|known| known.pod != *pod);
        let Some(listed) = listed else { return Ok(found) };
        let strangers = self.strangers(&listed, &unrecorded).await.map_err(failed)?;
        let Some(strangers) = strangers else { return Ok(found) };
        found.extend(strangers.iter().map(|(pod, state)| Found { pod: pod.clone(), state: *state }));
        *lock(&self.strangers) = strangers;
        Ok(found)
    }

    /// What Apple's program lists, if it can be read.
    async fn readable_list(&self) -> Option<Vec<Listed>> {
        match self.container.list().await {
            Ok(listed) => Some(listed),
            Err(error) => {
                warn!(error = super::chain(&error), "machines are listed from their records");
                None
            }
        }
    }

    /// The machines of this daemon that are listed and of which there is no record. One that
    /// was made or destroyed meanwhile is none: it has a record now, or is not listed again.
    /// `None` if there is no second list.
    async fn strangers(
        &self,
        listed: &[Listed],
        unrecorded: &impl Fn(&PodId) -> bool,
    ) -> Result<Option<HashMap<PodId, MachineState>>, Error> {
        let own = |listed: &[Listed]| -> Vec<_> {
            let pods = listed.iter().filter_map(|container| Some((self.own(container)?, container.state)));
            pods.filter(|(pod, _)| unrecorded(pod)).collect()
        };
        let mut strangers = HashMap::new();
        if own(listed).is_empty() {
            return Ok(Some(strangers));
        }
        let Some(again) = self.readable_list().await else { return Ok(None) };
        for (pod, state) in own(&again) {
            if matches!(self.records.read(&pod).await?, Recorded::Missing) {
                let state = match state {
                    State::Running | State::Stopping => MachineState::Running,
                    State::Stopped | State::Unknown => MachineState::Stopped,
                };
                strangers.insert(pod, state);
            }
        }
        Ok(Some(strangers))
    }

    /// What a pod's machine does by a list that is there; `None` if it has none.
    async fn look(&self, pod: PodId, listed: Option<&[Listed]>) -> Result<Option<Found>, MachineError> {
        let Some(record) = self.record(&pod).await? else { return Ok(None) };
        let state = state_of(&self.now_listed(&pod, &record, listed).await);
        Ok(Some(Found { pod, state }))
    }

    pub(super) async fn status(&self, pod: &PodId) -> Result<MachineState, MachineError> {
        match self.record(pod).await? {
            Some(record) => Ok(state_of(&self.now(pod, &record).await?)),
            None => {
                let stranger = lock(&self.strangers).get(pod).copied();
                stranger.ok_or_else(|| MachineError::NotFound { pod: pod.clone() })
            }
        }
    }

    pub(super) async fn connect(&self, pod: &PodId) -> Result<Box<dyn Stream>, MachineError> {
        let failed = |source| MachineError::Connect { pod: pod.clone(), source };
        let record = self.known(pod).await?;
        let Phase::Started(_) = record.phase else {
            return Err(failed(io::ErrorKind::ConnectionRefused.into()));
        };
        let refused = match UnixStream::connect(self.socket(pod)).await {
            Ok(stream) => return Ok(Box::new(stream)),
            Err(error) => error,
        };
        // The relay is gone for good, or the machine is.
        match self.listed(pod).await {
            Ok(Some(container)) if container.state == State::Running => {
                let relay = self.container.relay(&container.id).map_err(failed)?;
                Ok(Box::new(relay))
            }
            Ok(_) => Err(failed(refused)),
            Err(error) => Err(failed(io::Error::new(refused.kind(), error))),
        }
    }

    pub(super) async fn share(&self, pod: &PodId, share: &Share) -> Result<PathBuf, MachineError> {
        let record = self.known(pod).await?;
        if let Phase::Stopped { .. } = record.phase {
            return Err(MachineError::wrong_state(pod, "share", "stopped"));
        }
        let shared = match &share.kind {
            ShareKind::Layer => shares::layer(&record.storage_directory, &share.source).await,
            ShareKind::Volume(_) => shares::volume(&record, &share.source).await,
            ShareKind::State => {
                let words = "a virtual machine keeps the pod's state itself";
                Err(io::Error::new(io::ErrorKind::Unsupported, words))
            }
        };
        shared.map_err(|source| MachineError::Share { pod: pod.clone(), path: share.source.clone(), source })
    }

    pub(super) async fn attach_network(&self, pod: &PodId) -> Result<Attachment, MachineError> {
        match self.known(pod).await?.phase {
            Phase::Started(started) => Ok(Attachment::Machine(MachineNetwork {
                name: started.network,
                addresses: vec![started.address],
            })),
            Phase::Created | Phase::Booting => {
                Err(MachineError::wrong_state(pod, "join the network", "created"))
            }
            Phase::Stopped { .. } => Err(MachineError::wrong_state(pod, "join the network", "stopped")),
        }
    }

    pub(super) async fn overhead(&self, pod: &PodId) -> Result<Overhead, MachineError> {
        let record = self.known(pod).await?;
        let runs = matches!(self.now(pod, &record).await?, Now::Running);
        Ok(Overhead { memory_bytes: if runs { OVERHEAD_BYTES } else { 0 }, cpu_nanos: 0 })
    }

    pub(super) async fn inspect(&self, pod: &PodId) -> Result<Details, MachineError> {
        let record = self.known(pod).await?;
        let mut facts = vec![("container", container_name(pod))];
        if let Phase::Started(started) = &record.phase {
            facts.push(("version", started.version.clone()));
            facts.push(("image", started.image.clone()));
            facts.push(("address", format!("{} ({})", started.address, started.network)));
            let relay = tokio::fs::try_exists(self.socket(pod)).await.unwrap_or(false);
            facts.push(("streams", if relay { "socket" } else { "exec" }.to_owned()));
        }
        let kernel = self
            .config
            .kernel
            .as_ref()
            .map_or("as `container` is configured".to_owned(), |path| path.display().to_string());
        facts.push(("kernel", kernel));
        // The process that holds the machine is launchd's and nobody's to name.
        Ok(Details { processes: Vec::new(), facts })
    }

    pub(super) async fn console(&self, pod: &PodId, limit: usize) -> Result<Vec<u8>, MachineError> {
        let record = self.known(pod).await?;
        let mut words = match record.phase {
            Phase::Created => Vec::new(),
            Phase::Booting | Phase::Started(_) => self.words(pod).await,
            Phase::Stopped { .. } => self.kept_words(pod).await,
        };
        words.drain(..words.len().saturating_sub(limit));
        Ok(words)
    }

    /// What kernel and guest of a machine have said last, as far as Apple tells soon:
    /// ends of machines wait for them.
    pub(super) async fn words(&self, pod: &PodId) -> Vec<u8> {
        let name = container_name(pod);
        let (kernel, guest) = tokio::join!(
            tokio::time::timeout(WORDS_PATIENCE, self.container.boot_log(&name)),
            tokio::time::timeout(WORDS_PATIENCE, self.container.log(&name)),
        );
        let mut words = Vec::new();
        for said in [kernel, guest].into_iter().flatten().flatten() {
            words.extend(said);
        }
        words
    }

    async fn kept_words(&self, pod: &PodId) -> Vec<u8> {
        self.node.read_end(&self.directory(pod).join(CONSOLE), KEPT_WORDS).await.unwrap_or_default()
    }

    /// Keeps the last words of a machine that is about to go. Not to have them is no
    /// reason to keep the machine.
    pub(super) async fn keep_words(&self, pod: &PodId) -> Vec<u8> {
        let mut words = self.words(pod).await;
        if words.is_empty() {
            return self.kept_words(pod).await;
        }
        words.drain(..words.len().saturating_sub(KEPT_WORDS));
        let path = self.directory(pod).join(CONSOLE);
        if let Err(error) = self.node.write_file(&path, &words, 0o600).await {
            warn!(pod_id = %pod, %error, "keep the machine's last words");
        }
        words
    }
}
