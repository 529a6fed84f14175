//! The logs of containers whose guest may not write them itself: the guest of a
//! virtual machine keeps records until they are acknowledged, and a task per
//! container writes them to the kubelet's file.
//!
//! What came is written in one piece once there are `BATCH_BYTES` of it, or
//! `COMMIT_PAUSE` after the last piece: then the cursor is recorded, then the
//! guest may drop it. So a container costs at most ten commits a second, a line
//! after a silence is in the file at once, and any other at most that pause
//! later. See [`kina_log::recovery`] for why no order of kills and rotations
//! loses or doubles a line.
//!
//! While the file takes nothing (a full disk) what came waits, at most
//! `PENDING_BYTES` of it; then nothing more is read, the guest's own buffer
//! fills, and the container waits. Nothing is dropped.
//!
//! The file is not synced. A power cut takes what the kernel had not yet
//! written, as it does with the log of any container; the machine is gone then,
//! too.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kina_guest_api::{GuestClient, GuestError, LogAcknowledger, LogReader, Refusal};
use kina_log::{Cursor, DurableLog, Recovery};
use kina_store::{Record, Store};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info, warn};

use crate::error::{Error, chain};
use crate::failpoint;
use crate::metrics::{LogWait, Metrics};

/// So much is written at once, without waiting for more.
const BATCH_BYTES: usize = 64 << 10;

/// The least time between two commits of one container's cursor, unless there
/// is a whole batch.
const COMMIT_PAUSE: Duration = Duration::from_millis(100);

/// So much waits for the disk at most, but for the last message. It is what a
/// guest keeps for a container.
const PENDING_BYTES: usize = kina_log::buffer::DEFAULT_CAPACITY;

/// Between two tries to reach a guest, or to write.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(2);

/// How long the guest may take to take an acknowledgement.
const ACKNOWLEDGE_DEADLINE: Duration = Duration::from_secs(10);

/// Requests to reopen that may wait.
const REOPEN_QUEUE: usize = 4;

/// How long a log that is told to end may take to write what it has.
const LAST_WRITE_DEADLINE: Duration = Duration::from_secs(5);

/// How far a container's log is in its files. The key is the container's id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// Where the last record of it lies.
    pub cursor: Cursor,
    /// Nothing more will come.
    pub complete: bool,
}

impl Record for LogRecord {
    const TABLE: &'static str = "log_cursors";
    const VERSION: u32 = 1;
}

/// Whose log goes where.
#[derive(Clone, Debug)]
pub struct LogSource {
    /// Keeps the cursor.
    pub store: Store,
    /// Has the records. Connections of its own are made with it; it does not
    /// matter if this one is lost.
    pub guest: GuestClient,
    /// The container, as the guest and the store know it.
    pub container: String,
    /// The log file.
    pub path: PathBuf,
    /// What is written, and how often that fails, is counted there.
    pub metrics: Metrics,
}

/// A container's log that is being written. Clones are the same; with the last
/// of them the task ends where it stands, as if the daemon had been killed.
#[derive(Clone, Debug)]
pub struct ContainerLog {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    container: String,
    reopens: mpsc::Sender<Reopened>,
    stop: CancellationToken,
    over: CancellationToken,
    task: AbortHandle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Reopened = oneshot::Sender<Result<(), Error>>;

impl ContainerLog {
    /// Begins the log of a container that has not been started, or goes on with
    /// it after a restart of the daemon. The file is there and the cursor
    /// recorded when this returns.
    ///
    /// # Errors
    /// [`Error::Log`] if the file cannot be opened, [`Error::Store`].
    pub async fn begin(source: LogSource) -> Result<(Self, Option<Recovery>), Error> {
        let (log, recovery) = open(&source).await?;
        let container = source.container.clone();
        Ok((Self::spawn(container, |ends| run(Writer::new(source, log, ends))), recovery))
    }

    /// As [`ContainerLog::begin`], without waiting for the file: that is tried
    /// again until it can be opened.
    #[must_use]
    pub fn resume(source: LogSource) -> Self {
        Self::spawn(source.container.clone(), |ends| async move {
            let mut pause = FIRST_RETRY;
            loop {
                match open(&source).await {
                    Ok((log, _)) => return run(Writer::new(source, log, ends)).await,
                    Err(error) => {
                        warn!(container = source.container, error = chain(&error), "open the log again");
                    }
                }
                if ends.stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                    return;
                }
                pause = (pause * 2).min(LAST_RETRY);
            }
        })
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(
        container: String,
        task: impl FnOnce(Ends) -> F,
    ) -> Self {
        let (sender, reopens) = mpsc::channel(REOPEN_QUEUE);
        let (stop, over) = (CancellationToken::new(), CancellationToken::new());
        let ends = Ends { reopens, stop: stop.clone(), _over: over.clone().drop_guard() };
        let task = tokio::spawn(task(ends)).abort_handle();
        Self { inner: Arc::new(Inner { container, reopens: sender, stop, over, task }) }
    }

    /// Goes on with the file that the path names now, which the kubelet has
    /// renamed. Records of before are in the renamed file when this returns.
    ///
    /// # Errors
    /// [`Error::Log`] if there can be no new file, and the old one stays in use;
    /// [`Error::LogOver`] once nothing more will be written; [`Error::Store`].
    pub async fn reopen(&self) -> Result<(), Error> {
        let over = || Error::LogOver { container: self.inner.container.clone() };
        let (reply, answer) = oneshot::channel();
        self.inner.reopens.send(reply).await.map_err(|_| over())?;
        answer.await.map_err(|_| over())?
    }

    /// Whether nothing more will be written.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.inner.over.is_cancelled()
    }

    /// Waits until nothing more will be written, at most that long; whether it
    /// is so.
    pub async fn over(&self, patience: Duration) -> bool {
        tokio::time::timeout(patience, self.inner.over.cancelled()).await.is_ok()
    }

    /// Ends the log once it has ended by itself or `patience` is over: what came
    /// is written, if that can be had in bounded time. Nothing is written or
    /// recorded after this returns.
    pub async fn finish(&self, patience: Duration) {
        if self.over(patience).await {
            return;
        }
        self.inner.stop.cancel();
        if !self.over(LAST_WRITE_DEADLINE).await {
            self.inner.task.abort();
            self.inner.over.cancelled().await;
        }
    }
}

/// The task's ends of a [`ContainerLog`].
struct Ends {
    reopens: mpsc::Receiver<Reopened>,
    stop: CancellationToken,
    _over: DropGuard,
}

/// Opens a log where its last cursor says, or anew.
async fn open(source: &LogSource) -> Result<(DurableLog, Option<Recovery>), Error> {
    let table = source.store.table::<LogRecord>();
    let last = table.get(&source.container)?;
    let path = source.path.clone();
    let opened = blocking(move || match last {
        None => Ok((DurableLog::create(path)?, None)),
        Some(last) => {
            let (log, recovery) = DurableLog::recover(path, &last.cursor)?;
            Ok((log, Some(recovery)))
        }
    });
    let (mut log, recovery) =
        failpoint::around("log-open", opened).await?.map_err(|error| source.error(error))?;
    if let Some(recovery) = &recovery {
        info!(container = source.container, ?recovery, "log found again");
    }
    let cursor = log.cursor();
    let record = LogRecord { cursor, complete: false };
    failpoint::around("log-record", table.put(&source.container, &record)).await?;
    log.recorded(&cursor);
    Ok((log, recovery))
}

impl LogSource {
    fn error(&self, source: kina_log::Error) -> Error {
        Error::Log { container: self.container.clone(), source }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::ShuttingDown)
}

/// Why the reading from one connection ended.
enum End {
    /// The guest says that this was all.
    Complete,
    /// The log was told to end.
    Stopped,
    /// The connection is lost, or the guest refuses.
    Guest(GuestError),
    /// What the guest sent are no records.
    Malformed(Error),
}

impl End {
    /// Whether asking the guest again may do better.
    fn may_pass(&self) -> bool {
        match self {
            Self::Complete | Self::Stopped | Self::Malformed(_) => false,
            Self::Guest(error) => match error {
                GuestError::Connect { .. }
                | GuestError::Handshake { .. }
                | GuestError::Gone { .. }
                | GuestError::Deadline { .. } => true,
                GuestError::Version { .. } | GuestError::Protocol { .. } => false,
                GuestError::Refused { code, .. } => match code {
                    Refusal::WrongState | Refusal::Exhausted | Refusal::Internal => true,
                    Refusal::NotFound | Refusal::AlreadyExists | Refusal::Invalid | Refusal::Unsupported => {
                        false
                    }
                },
            },
        }
    }
}

/// One container's log and what waits to be written to it.
struct Writer {
    source: LogSource,
    ends: Ends,
    /// Locked by the thread that writes, never across an await.
    log: Arc<Mutex<DurableLog>>,
    /// Tells the guest on the present connection what it may drop.
    acknowledger: Option<LogAcknowledger>,
    /// What follows the file's content: whole records, unless the guest lies.
    pending: Vec<u8>,
    /// When to write it.
    due: Instant,
    /// The pause after the last write, if that failed.
    retry: Option<Duration>,
    /// Counts that time.
    wait: Option<LogWait>,
    /// Nothing more will come.
    complete: bool,
}

async fn run(mut writer: Writer) {
    let mut pause = FIRST_RETRY;
    let end = loop {
        let before = writer.written();
        let end = writer.read().await;
        if !end.may_pass() {
            break end;
        }
        if let End::Guest(error) = &end {
            debug!(container = writer.source.container, error = chain(error), "the log's connection is lost");
        }
        // What is not in the file now the guest sends again.
        if let Err(end) = writer.commit().await {
            break end;
        }
        if writer.written() != before {
            pause = FIRST_RETRY;
        }
        if let Err(end) = writer.serve(tokio::time::sleep(pause)).await {
            break end;
        }
        pause = (pause * 2).min(LAST_RETRY);
    };
    let why = match &end {
        End::Complete | End::Stopped | End::Guest(GuestError::Refused { code: Refusal::NotFound, .. }) => {
            None
        }
        End::Guest(error) => Some(chain(error)),
        End::Malformed(error) => Some(chain(error)),
    };
    if let Some(why) = why {
        warn!(container = writer.source.container, error = why, "the log ends early");
    }
    writer.end().await;
}

impl Writer {
    fn new(source: LogSource, log: DurableLog, ends: Ends) -> Self {
        Self {
            source,
            ends,
            log: Arc::new(Mutex::new(log)),
            acknowledger: None,
            pending: Vec::new(),
            due: Instant::now(),
            retry: None,
            wait: None,
            complete: false,
        }
    }

    fn log<T>(&self, look: impl FnOnce(&mut DurableLog) -> T) -> T {
        look(&mut lock(&self.log))
    }

    /// The stream offset up to which the file has everything.
    fn written(&self) -> u64 {
        self.log(|log| log.next_offset())
    }

    fn is_dirty(&self) -> bool {
        !self.pending.is_empty() || !self.log(|log| log.is_recorded())
    }

    /// Reads on a new connection for as long as that lasts.
    async fn read(&mut self) -> End {
        self.pending.clear();
        let (guest, container, offset) =
            (self.source.guest.clone(), self.source.container.clone(), self.written());
        let asked = self.serve(async move { guest.read_log(&container, offset).await }).await;
        let mut reader = match asked {
            Ok(Ok(reader)) => reader,
            Ok(Err(error)) => return End::Guest(error),
            Err(end) => return end,
        };
        self.acknowledger = Some(reader.acknowledger().clone());
        let end = self.follow(&mut reader).await;
        self.acknowledger = None;
        match end {
            Ok(()) => {
                reader.close().await;
                End::Complete
            }
            Err(end) => end,
        }
    }

    /// Takes what comes until the guest says that it was all, and that is in the file.
    async fn follow(&mut self, reader: &mut LogReader) -> Result<(), End> {
        loop {
            if self.pending.len() >= PENDING_BYTES {
                self.drain().await?;
            }
            match self.serve(reader.next()).await? {
                Ok(Some(chunk)) => {
                    self.pending.extend_from_slice(&chunk.records);
                    if self.pending.len() >= BATCH_BYTES && self.retry.is_none() {
                        self.due = Instant::now();
                    }
                }
                Ok(None) => {
                    self.complete = true;
                    self.drain().await?;
                    return Ok(());
                }
                Err(error) => return Err(End::Guest(error)),
            }
        }
    }

    /// Does everything else until `work` is done. Reads what is there before it
    /// writes, so that a commit is worth its price.
    async fn serve<T>(&mut self, work: impl Future<Output = T>) -> Result<T, End> {
        tokio::pin!(work);
        loop {
            let dirty = self.is_dirty();
            tokio::select! {
                biased;
                () = self.ends.stop.cancelled() => return Err(End::Stopped),
                Some(reply) = self.ends.reopens.recv() => self.reopen(reply).await,
                done = &mut work => return Ok(done),
                () = tokio::time::sleep_until(self.due), if dirty => self.commit().await?,
            }
        }
    }

    /// Writes everything that waits, however long it takes.
    async fn drain(&mut self) -> Result<(), End> {
        while self.is_dirty() {
            tokio::select! {
                biased;
                () = self.ends.stop.cancelled() => return Err(End::Stopped),
                Some(reply) = self.ends.reopens.recv() => self.reopen(reply).await,
                () = tokio::time::sleep_until(self.due) => self.commit().await?,
            }
        }
        Ok(())
    }

    /// Writes what waits. If that fails it waits on, and is tried again later.
    async fn commit(&mut self) -> Result<(), End> {
        let failure = match self.try_commit().await {
            Ok(()) => {
                self.wait = None;
                if self.retry.take().is_some() {
                    info!(container = self.source.container, "the log can be written again");
                }
                self.due = Instant::now() + COMMIT_PAUSE;
                return self.acknowledge().await;
            }
            Err(error) => error,
        };
        if matches!(failure, Error::Log { source: kina_log::Error::Malformed { .. }, .. }) {
            return Err(End::Malformed(failure));
        }
        if self.retry.is_none() {
            let error = chain(&failure);
            warn!(container = self.source.container, error, "the log cannot be written; the container waits");
            self.wait = Some(self.source.metrics.log_wait());
        }
        let pause = self.retry.map_or(FIRST_RETRY, |pause| (pause * 2).min(LAST_RETRY));
        self.retry = Some(pause);
        self.due = Instant::now() + pause;
        Ok(())
    }

    async fn try_commit(&mut self) -> Result<(), Error> {
        if !self.log(|log| log.is_recorded()) {
            self.record().await?;
        }
        if self.pending.is_empty() {
            return Ok(());
        }
        let (log, batch) = (Arc::clone(&self.log), std::mem::take(&mut self.pending));
        let write = blocking(move || {
            let mut log = lock(&log);
            let offset = log.next_offset();
            let written = log.write(offset, &batch).map(drop);
            (batch, written)
        });
        let (batch, written) = failpoint::around("log-write", write).await?;
        if let Err(source) = written {
            self.pending = batch;
            if let kina_log::Error::Malformed { at, .. } = &source {
                // What came before the nonsense is true.
                self.pending.truncate(*at);
            }
            return Err(self.source.error(source));
        }
        self.source.metrics.log_written(batch.len());
        self.record().await
    }

    async fn record(&mut self) -> Result<(), Error> {
        let cursor = self.log(|log| log.cursor());
        let record = LogRecord { cursor, complete: self.complete && self.pending.is_empty() };
        let table = self.source.store.table::<LogRecord>();
        failpoint::around("log-record", table.put(&self.source.container, &record)).await?;
        self.log(|log| log.recorded(&cursor));
        Ok(())
    }

    /// Tells the guest what it may drop: all that is recorded.
    async fn acknowledge(&self) -> Result<(), End> {
        let Some(acknowledger) = &self.acknowledger else {
            return Ok(());
        };
        let told = acknowledger.acknowledge(self.written());
        match failpoint::around("log-acknowledge", tokio::time::timeout(ACKNOWLEDGE_DEADLINE, told)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(End::Guest(error)),
            Err(_) => Err(End::Guest(GuestError::Deadline { call: "ReadLog" })),
        }
    }

    async fn reopen(&mut self, reply: Reopened) {
        let result = self.try_reopen().await;
        let _ = reply.send(result);
    }

    async fn try_reopen(&mut self) -> Result<(), Error> {
        let log = Arc::clone(&self.log);
        let reopen = blocking(move || lock(&log).reopen().map(drop));
        failpoint::around("log-reopen", reopen).await?.map_err(|source| self.source.error(source))?;
        self.record().await
    }

    /// The last try to write what came, and the note that nothing more will.
    async fn end(mut self) {
        self.ends.reopens.close();
        self.complete = true;
        let result = match self.try_commit().await {
            Ok(()) => self.record().await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            let (lost, error) = (self.pending.len(), chain(&error));
            warn!(container = self.source.container, lost, error, "the end of the log is not written");
        }
        // Who waits for an answer finds that the log is over.
        while self.ends.reopens.recv().await.is_some() {}
    }
}

fn lock(log: &Mutex<DurableLog>) -> MutexGuard<'_, DurableLog> {
    // Sound between any two of its steps.
    log.lock().unwrap_or_else(PoisonError::into_inner)
}
