//! One more process in a running container, its streams and its end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use kina_guest_api::v1;
use kina_guest_api::v1::exec_request::What as Request;
use kina_guest_api::v1::exec_response::What as Response;
use kina_launch::ExecPlan;
use kina_log::Stream as Output;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use crate::container::Container;
use crate::error::Error;
use crate::guest::{Guest, blocking};
use crate::process::{self, Descriptor};
use crate::spec;
use crate::streams::{self, Streams};

/// Answers on their way to the caller; further output waits in the pipe.
const RESPONSES: usize = 4;
/// The largest piece of output in one answer, in bytes.
const PIECE_BYTES: usize = 32 << 10;
/// How long output may still come, once the process has ended, without any coming:
/// something that it left behind may hold its outputs open.
const SILENCE: Duration = Duration::from_millis(500);
/// How long a killed process may take to end.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// What the caller receives.
pub(crate) type Responses = mpsc::Receiver<Result<v1::ExecResponse, Status>>;
type Sender = mpsc::Sender<Result<v1::ExecResponse, Status>>;

/// Starts a process and carries its streams. It is killed when the caller goes away.
pub(crate) async fn run(
    guest: Arc<Guest>,
    start: v1::ExecStart,
    requests: impl Stream<Item = Result<v1::ExecRequest, Status>> + Send + Unpin + 'static,
) -> Result<Responses, Error> {
    let permit = guest.take_exec()?;
    let container = guest.container(&start.container_id)?;
    container.require_running("exec in")?;
    let timeout = (start.timeout_millis > 0).then(|| Duration::from_millis(start.timeout_millis));
    let began = Instant::now();
    let launcher = Arc::clone(&guest.launcher);
    let (created, ends) = blocking("start an exec", move || launch(&launcher, &container, start)).await?;
    let running = Running::new(created, ends)?;
    let (sender, receiver) = mpsc::channel(RESPONSES);
    let end = timeout.and_then(|timeout| began.checked_add(timeout));
    tokio::spawn(async move {
        carry(&guest, running, requests, sender, end).await;
        drop(permit);
    });
    Ok(receiver)
}

/// The blocking part: up to the execution of the program.
fn launch(
    launcher: &kina_launch::Launcher,
    container: &Container,
    start: v1::ExecStart,
) -> Result<(Started, Ends), Error> {
    let made = container.require_running("exec in")?;
    let process = spec::exec_process(&made.spec, start.args, start.terminal, start.size)?;
    let streams = Streams::open(start.terminal, start.stdin, made.root)?;
    let mut ends = Ends { terminal: start.terminal, stdin: streams.stdin, outputs: streams.outputs };
    let plan =
        ExecPlan { container: &made.spec, process, stdio: streams.child, cgroup: Some(made.group.clone()) };
    let failed = |source| Error::Launch { id: container.id.clone(), source };
    let created = launcher.exec(container.process("exec in")?.pidfd.as_fd(), plan).map_err(failed)?;
    let started = Started { pid: created.pid.unsigned_abs(), pidfd: created.pidfd, reaped: false };
    if let Some(terminal) = created.terminal {
        // Also without input: it is what gets resized.
        let copy = terminal.try_clone();
        ends.stdin = Some(copy.map_err(|e| Error::system("duplicate a terminal", e))?);
        ends.outputs.push((Output::Stdout, terminal));
    }
    created.start.start().map_err(failed)?;
    Ok((started, ends))
}

/// A child that is killed and reaped unless it was waited for.
struct Started {
    pid: u32,
    pidfd: OwnedFd,
    reaped: bool,
}

impl Drop for Started {
    fn drop(&mut self) {
        if !self.reaped {
            process::kill_with_group(&self.pidfd, self.pid);
            // Killed: this ends.
            drop(process::reap(&self.pidfd));
        }
    }
}

/// A running exec in the event loop.
struct Running {
    process: Started,
    terminal: bool,
    stdin: Option<Descriptor>,
    outputs: Vec<(Output, Descriptor)>,
}

impl Running {
    fn new(process: Started, ends: Ends) -> Result<Self, Error> {
        let watch = |end, interest| {
            Descriptor::new(end, interest).map_err(|source| Error::system("watch an exec's streams", source))
        };
        let stdin = ends.stdin.map(|end| watch(end, Interest::WRITABLE)).transpose()?;
        let outputs = ends
            .outputs
            .into_iter()
            .map(|(output, end)| Ok((output, watch(end, Interest::READABLE)?)))
            .collect::<Result<_, Error>>()?;
        Ok(Self { process, terminal: ends.terminal, stdin, outputs })
    }
}

/// The guest's ends of an exec's pipes.
struct Ends {
    terminal: bool,
    stdin: Option<OwnedFd>,
    outputs: Vec<(Output, OwnedFd)>,
}

/// Carries streams and control until the process has ended and its output is told.
async fn carry(
    guest: &Guest,
    running: Running,
    requests: impl Stream<Item = Result<v1::ExecRequest, Status>> + Send + Unpin + 'static,
    sender: Sender,
    end: Option<Instant>,
) {
    let Running { mut process, terminal, stdin, outputs } = running;
    let started = v1::ExecStarted { pid: process.pid };
    if sender.send(response(Response::Started(started))).await.is_err() {
        return;
    }
    let ended = watch::Sender::new(false);
    let forwards: Vec<_> = outputs
        .into_iter()
        .map(|(output, from)| tokio::spawn(forward(output, from, sender.clone(), ended.subscribe())))
        .collect();
    let control = match process.pidfd.try_clone() {
        Ok(pidfd) => tokio::spawn(feed(requests, pidfd, terminal, stdin)),
        Err(error) => {
            guest.journal.line(format_args!("exec {}: {error}", process.pid));
            return;
        }
    };
    let mut timed_out = false;
    let code = tokio::select! {
        biased;
        code = process::wait(&process.pidfd) => Some(code),
        () = until(end) => {
            timed_out = true;
            None
        }
        // The caller has gone.
        () = sender.closed() => None,
    };
    let code = match code {
        Some(code) => code,
        None => {
            process::kill_with_group(&process.pidfd, process.pid);
            tokio::time::timeout(KILL_PATIENCE, process::wait(&process.pidfd))
                .await
                .unwrap_or(Err(io::ErrorKind::TimedOut.into()))
        }
    };
    control.abort();
    process.reaped = true;
    let code = code.unwrap_or_else(|error| {
        guest.journal.line(format_args!("wait for exec {}: {error}", process.pid));
        255
    });
    ended.send_replace(true);
    for forward in forwards {
        // It ends with its output, after a silence, or with the caller.
        drop(forward.await);
    }
    let exited = v1::ExecExited { code, timed_out };
    drop(sender.send(response(Response::Exited(exited))).await);
}

fn response(what: Response) -> Result<v1::ExecResponse, Status> {
    Ok(v1::ExecResponse { what: Some(what) })
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// Sends one output to the caller, as fast as the caller takes it.
async fn forward(output: Output, mut from: Descriptor, sender: Sender, mut ended: watch::Receiver<bool>) {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = tokio::select! {
            biased;
            read = from.read(&mut piece) => read,
            () = silence(&mut ended) => return,
        };
        let bytes = match read {
            // The end of a terminal is an error.
            Ok(0) | Err(_) => return,
            Ok(length) => piece[..length].to_vec(),
        };
        let what = match output {
            Output::Stdout => Response::Stdout(bytes),
            Output::Stderr => Response::Stderr(bytes),
        };
        if sender.send(response(what)).await.is_err() {
            return;
        }
    }
}

async fn silence(ended: &mut watch::Receiver<bool>) {
    // A sender that is gone has ended as well.
    drop(ended.wait_for(|ended| *ended).await);
    tokio::time::sleep(SILENCE).await;
}

/// Carries out what the caller sends.
async fn feed(
    mut requests: impl Stream<Item = Result<v1::ExecRequest, Status>> + Send + Unpin,
    pidfd: OwnedFd,
    terminal: bool,
    mut stdin: Option<Descriptor>,
) {
    while let Some(Ok(request)) = requests.next().await {
        match request.what {
            Some(Request::Stdin(bytes)) => {
                if let Some(pipe) = &mut stdin
                    && pipe.write_all(&bytes).await.is_err()
                {
                    // Nobody reads it any more; that is the process's choice.
                    stdin = None;
                }
            }
            Some(Request::StdinEnd(_)) if !terminal => stdin = None,
            Some(Request::Resize(size)) if terminal => {
                if let Some(terminal) = &stdin {
                    streams::resize(terminal, size);
                }
            }
            Some(Request::Signal(number)) => drop(process::signal(&pidfd, number)),
            Some(Request::StdinEnd(_) | Request::Resize(_) | Request::Start(_)) | None => {}
        }
    }
    if terminal {
        // Closing one of the terminal's descriptors would say nothing to the process.
        std::future::pending::<()>().await;
    }
}
