//! One container.
//!
//! ```text
//! reserved ──▶ Creating ──▶ Created ──start──▶ Running ──▶ Exited ──delete──▶ (nothing)
//!                  └─ fails: (nothing)  └─ start fails, or it is killed ─▲
//! ```
//!
//! A created container is [`Made`]; it has a [`Process`] from its start on.
//!
//! Operations on one container take turns ([`Container::turn`]); its end is
//! noticed by a task of its own, which waits for nobody.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use kina_cgroup::Group;
use kina_guest_api::v1;
use kina_log::{FileSink, LogWriter, PumpMetrics, RecordBuffer, Sink, Stream};
use oci_spec::runtime::Spec;
use tokio::io::Interest;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::attach::{Audience, Input, Tee};
use crate::build::PreparedProcess;
use crate::error::Error;
use crate::ids::Owner;
use crate::layers::LayerUse;
use crate::process::Descriptor;
use crate::rootfs::WritableLayer;

/// The exit code of a container whose process could not be set up; containerd's, too.
const NOT_STARTED: i32 = 128;

/// A container, from the reservation of its id on.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    /// Held by the operation under way.
    pub(crate) turn: Arc<tokio::sync::Mutex<()>>,
    state: Mutex<State>,
    /// True once its processes have ended and the exit is known.
    ended: watch::Sender<bool>,
    /// Set when it is created, and constant from then on.
    made: OnceLock<Made>,
    /// Set by its start, and constant from then on.
    process: OnceLock<Process>,
}

/// What a container consists of but for its process.
#[derive(Debug)]
pub(crate) struct Made {
    /// For later execs, which are confined like it.
    pub(crate) spec: Spec,
    pub(crate) group: Group,
    pub(crate) stop_signal: u32,
    /// The pod's root, to whom the streams of execs belong.
    pub(crate) root: Owner,
    pub(crate) log: Sink,
    pub(crate) created_at_nanos: i64,
    /// Whether its end is the end of its PID namespace, and so of all its processes.
    pub(crate) owns_pid_namespace: bool,
    pub(crate) writable: WritableLayer,
    pub(crate) layers: Mutex<Vec<LayerUse>>,
    pub(crate) audience: Arc<Audience>,
}

/// A container's first process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) pumps: Mutex<Vec<JoinHandle<()>>>,
    pub(crate) input: Arc<Input>,
    /// What could not be had and does not matter much.
    pub(crate) warnings: Vec<String>,
}

#[derive(Debug)]
enum State {
    Creating,
    Created {
        process: Box<PreparedProcess>,
    },
    /// Its process is being set up and started.
    Starting,
    Running {
        started_at_nanos: i64,
    },
    Exited {
        started_at_nanos: i64,
        exit: v1::Exit,
    },
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created { .. } => "created",
            Self::Starting => "starting",
            Self::Running { .. } => "running",
            Self::Exited { .. } => "exited",
        }
    }
}

impl Container {
    /// Reserves an id.
    pub(crate) fn reserve(id: String) -> Self {
        Self {
            id,
            turn: Arc::default(),
            state: Mutex::new(State::Creating),
            ended: watch::Sender::new(false),
            made: OnceLock::new(),
            process: OnceLock::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wrong_state(&self, operation: &'static str) -> Error {
        Error::WrongState { id: self.id.clone(), state: self.state().name(), operation }
    }

    /// The container is created.
    pub(crate) fn set_created(&self, made: Made, process: PreparedProcess) {
        // Creation happens once, by who reserved the id.
        drop(self.made.set(made));
        *self.state() = State::Created { process: Box::new(process) };
    }

    /// Its process is there, and about to run.
    pub(crate) fn set_process(&self, process: Process) {
        // A container is started once.
        drop(self.process.set(process));
    }

    /// What it consists of.
    ///
    /// # Errors
    ///
    /// While it is being created.
    pub(crate) fn made(&self, operation: &'static str) -> Result<&Made, Error> {
        self.made.get().ok_or_else(|| self.wrong_state(operation))
    }

    /// Its first process, which may have ended.
    ///
    /// # Errors
    ///
    /// Before its start.
    pub(crate) fn process(&self, operation: &'static str) -> Result<&Process, Error> {
        self.process.get().ok_or_else(|| self.wrong_state(operation))
    }

    /// Takes what the start of a created container needs; `None` if it has been started.
    pub(crate) fn begin_start(&self) -> Result<Option<Box<PreparedProcess>>, Error> {
        let mut state = self.state();
        match std::mem::replace(&mut *state, State::Starting) {
            State::Created { process } => Ok(Some(process)),
            State::Running { started_at_nanos } => {
                *state = State::Running { started_at_nanos };
                Ok(None)
            }
            State::Exited { started_at_nanos, exit } if started_at_nanos != 0 => {
                *state = State::Exited { started_at_nanos, exit };
                Ok(None)
            }
            other @ (State::Creating | State::Starting | State::Exited { .. }) => {
                *state = other;
                drop(state);
                Err(self.wrong_state("start"))
            }
        }
    }

    /// Ends a container that was not started, and returns what its start would have needed. `None` if
    /// it is no such container.
    pub(crate) fn end_unstarted(&self, code: i32) -> Option<(v1::Exit, Box<PreparedProcess>)> {
        let mut state = self.state();
        let exit = v1::Exit { code, finished_at_nanos: now_nanos(), oom_killed: false };
        match std::mem::replace(&mut *state, State::Exited { started_at_nanos: 0, exit }) {
            State::Created { process } => {
                drop(state);
                self.has_ended();
                Some((exit, process))
            }
            other => {
                *state = other;
                None
            }
        }
    }

    /// The end of a container whose start has failed before there was a process.
    pub(crate) fn end_without_process(&self) {
        if self.process.get().is_none() {
            self.set_exited(v1::Exit {
                code: NOT_STARTED,
                finished_at_nanos: now_nanos(),
                oom_killed: false,
            });
            self.has_ended();
        }
    }

    /// Nothing comes out of a container any more that never had a process.
    fn has_ended(&self) {
        if let Some(made) = self.made.get() {
            made.close_streams();
            made.audience.set_exited();
        }
        self.ended.send_replace(true);
    }

    /// The program runs. It may have ended already; then only the time is noted.
    pub(crate) fn set_running(&self, at_nanos: i64) {
        let mut state = self.state();
        match &mut *state {
            State::Exited { started_at_nanos, .. } => *started_at_nanos = at_nanos,
            State::Creating | State::Created { .. } | State::Starting | State::Running { .. } => {
                *state = State::Running { started_at_nanos: at_nanos }
            }
        }
    }

    /// All of it has ended.
    pub(crate) fn set_exited(&self, exit: v1::Exit) {
        let mut state = self.state();
        let started_at_nanos = match &*state {
            State::Running { started_at_nanos } => *started_at_nanos,
            State::Creating | State::Created { .. } | State::Starting | State::Exited { .. } => 0,
        };
        *state = State::Exited { started_at_nanos, exit };
        drop(state);
        self.ended.send_replace(true);
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(*self.state(), State::Running { .. })
    }

    pub(crate) fn has_exited(&self) -> bool {
        matches!(*self.state(), State::Exited { .. })
    }

    /// Whether a program of it may run: it is neither new nor at its end.
    pub(crate) fn is_active(&self) -> bool {
        matches!(*self.state(), State::Running { .. } | State::Starting)
    }

    /// Refuses what needs a running container.
    pub(crate) fn require_running(&self, operation: &'static str) -> Result<&Made, Error> {
        if self.is_running() { self.made(operation) } else { Err(self.wrong_state(operation)) }
    }

    /// Refuses what makes no sense for a container at its end.
    pub(crate) fn require_alive(&self, operation: &'static str) -> Result<&Made, Error> {
        if self.has_exited() { Err(self.wrong_state(operation)) } else { self.made(operation) }
    }

    /// Refuses to delete a container whose program runs.
    pub(crate) fn require_inactive(&self, operation: &'static str) -> Result<(), Error> {
        if self.is_active() { Err(self.wrong_state(operation)) } else { Ok(()) }
    }

    /// Waits until it has ended; `false` if that takes longer than `patience`.
    pub(crate) async fn wait_ended(&self, patience: Duration) -> bool {
        let mut ended = self.ended.subscribe();
        // The sender lives as long as `self`.
        let wait = ended.wait_for(|ended| *ended);
        tokio::time::timeout(patience, wait).await.is_ok()
    }

    /// Its status; `None` while it is being created.
    pub(crate) fn status(&self) -> Option<v1::ContainerStatus> {
        let made = self.made.get()?;
        let (state, started_at_nanos, exit) = match &*self.state() {
            State::Creating => return None,
            State::Created { .. } | State::Starting => (v1::ContainerState::Created, 0, None),
            State::Running { started_at_nanos } => (v1::ContainerState::Running, *started_at_nanos, None),
            State::Exited { started_at_nanos, exit } => {
                (v1::ContainerState::Exited, *started_at_nanos, Some(*exit))
            }
        };
        Some(v1::ContainerStatus {
            id: self.id.clone(),
            state: state.into(),
            pid: self.process.get().map_or(0, |process| process.pid),
            created_at_nanos: made.created_at_nanos,
            started_at_nanos,
            exit,
        })
    }
}

impl Made {
    /// Ends what reads the container's output.
    pub(crate) fn close_streams(&self) {
        self.audience.set_silent();
        if let Sink::Stream(buffer) = &self.log {
            buffer.close();
        }
    }
}

impl Process {
    pub(crate) fn pumps(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.pumps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until its output has been stored, as long as that goes on.
    pub(crate) async fn drain(&self, patience: Duration) -> bool {
        let pumps = std::mem::take(&mut *self.pumps());
        let mut rest = Vec::new();
        let end = tokio::time::Instant::now() + patience;
        for mut pump in pumps {
            if tokio::time::timeout_at(end, &mut pump).await.is_err() {
                rest.push(pump);
            }
        }
        let drained = rest.is_empty();
        // What waits for a slow reader goes on; only deleting the container ends it.
        *self.pumps() = rest;
        drained
    }
}

/// Opens the log that a request asks for.
pub(crate) fn open_log(id: &str, target: Option<&v1::LogTarget>) -> Result<Sink, Error> {
    use v1::log_target::Target;
    let failed = |source| Error::Log { id: id.to_owned(), source };
    match target.and_then(|target| target.target.as_ref()) {
        Some(Target::Path(path)) => {
            let writer = LogWriter::open(path).map_err(failed)?;
            Ok(Sink::File(Arc::new(FileSink::new(writer))))
        }
        Some(Target::Stream(_)) => Ok(Sink::Stream(Arc::new(RecordBuffer::default()))),
        Some(Target::Discard(_)) | None => Ok(Sink::Discard),
    }
}

/// Copies a container's outputs to its log and its audience until they end. Must be
/// called in the runtime.
pub(crate) fn start_pumps(
    outputs: Vec<(Stream, OwnedFd)>,
    log: &Sink,
    audience: &Arc<Audience>,
) -> Result<Vec<JoinHandle<()>>, Error> {
    let metrics = Arc::new(PumpMetrics::default());
    let outputs = outputs
        .into_iter()
        .map(|(stream, output)| Ok((stream, Descriptor::new(output, Interest::READABLE)?)))
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(|source| Error::system("watch a container's output", source))?;
    let left = Arc::new(std::sync::atomic::AtomicUsize::new(outputs.len()));
    let pump = |(stream, output): (Stream, Descriptor)| {
        let (log, metrics, left) = (log.clone(), Arc::clone(&metrics), Arc::clone(&left));
        let audience = Arc::clone(audience);
        let output = Tee::new(stream, output, Arc::clone(&audience));
        tokio::spawn(async move {
            // A read that fails ends the output like its end does.
            drop(kina_log::pump(output, stream, &log, &metrics).await);
            let last = left.fetch_sub(1, std::sync::atomic::Ordering::AcqRel) == 1;
            if last {
                audience.set_silent();
                if let Sink::Stream(buffer) = &log {
                    buffer.close();
                }
            }
        })
    };
    Ok(outputs.into_iter().map(pump).collect())
}

/// Nanoseconds since the epoch.
pub(crate) fn now_nanos() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}
