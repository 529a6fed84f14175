//! Clients at a running container's streams.
//!
//! ```text
//! output ──▶ Tee ──▶ the log
//!             └────▶ Audience ──▶ a queue per client ──▶ the client
//! clients ──▶ Input ──▶ standard input, or the terminal
//! ```
//!
//! A piece of output goes to the log first, then to every client. A client whose
//! queue is full holds the next piece back, as the CRI's runtimes do: nothing is
//! dropped silently. Unlike there it has a bounded time for that, which it wins back by
//! reading; one that does not read, or only trickles, is cut off and told, and the
//! container, its log and the other clients go on.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use kina_guest_api::v1;
use kina_guest_api::v1::attach_request::What as Request;
use kina_guest_api::v1::attach_response::What as Response;
use kina_log::Stream as Output;
use tokio::io::{AsyncRead, AsyncWriteExt, Interest, ReadBuf};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use crate::error::Error;
use crate::guest::Guest;
use crate::process::Descriptor;
use crate::streams;

/// Clients of one container at one time.
const CLIENTS_LIMIT: usize = 32;
/// Pieces of output that wait for one client, of at most 16 KiB each.
const QUEUE: usize = 4;
/// Answers on their way to one client beyond that.
const RESPONSES: usize = 1;
/// How long one client may hold output back, in all.
const SLOW_PATIENCE: Duration = Duration::from_secs(5);
/// What it wins back of that with every piece that it takes. Output that was held back comes
/// in pieces of 16 KiB: whoever reads 64 KiB a second is never cut off.
const EARNED_PATIENCE: Duration = Duration::from_millis(250);
/// Pieces of input that wait for the container, of all its clients.
const INPUT_QUEUE: usize = 2;

/// Who listens to a container.
#[derive(Debug, Default)]
pub(crate) struct Audience {
    clients: Mutex<Clients>,
}

#[derive(Debug, Default)]
struct Clients {
    list: Vec<Client>,
    next: u64,
    /// All outputs are at their end.
    silent: bool,
    /// The container has ended.
    exited: bool,
}

impl Clients {
    /// Whether nothing more will come. A container may close its outputs and still
    /// read; one that has ended may have output on its way.
    fn is_over(&self) -> bool {
        self.silent && self.exited
    }
}

#[derive(Debug)]
struct Client {
    number: u64,
    stdout: bool,
    stderr: bool,
    queue: mpsc::Sender<Piece>,
    /// How long it may still hold output back.
    patience: Duration,
    too_slow: Arc<AtomicBool>,
}

impl Client {
    fn took_a_piece(&mut self) {
        self.patience = (self.patience + EARNED_PATIENCE).min(SLOW_PATIENCE);
    }
}

/// A client that is waited for, by its number, and the piece that it has no room for.
struct Waiting {
    number: u64,
    queue: mpsc::Sender<Piece>,
    piece: Piece,
    patience: Duration,
}

type Piece = (Output, Arc<[u8]>);

/// One client's end of it.
struct Seat {
    pieces: mpsc::Receiver<Piece>,
    too_slow: Arc<AtomicBool>,
}

impl Audience {
    fn clients(&self) -> MutexGuard<'_, Clients> {
        // Every change is one step.
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, stdout: bool, stderr: bool) -> Result<Seat, Error> {
        let (queue, pieces) = mpsc::channel(QUEUE);
        let too_slow = Arc::new(AtomicBool::new(false));
        let mut clients = self.clients();
        clients.list.retain(|client| !client.queue.is_closed());
        if clients.list.len() >= CLIENTS_LIMIT {
            return Err(Error::TooMany { what: "clients attached to one container", limit: CLIENTS_LIMIT });
        }
        if !clients.is_over() {
            let number = clients.next;
            clients.next += 1;
            clients.list.push(Client {
                number,
                stdout,
                stderr,
                queue,
                patience: SLOW_PATIENCE,
                too_slow: Arc::clone(&too_slow),
            });
        }
        Ok(Seat { pieces, too_slow })
    }

    /// All outputs are at their end.
    pub(crate) fn set_silent(&self) {
        self.change(|clients| clients.silent = true);
    }

    /// The container has ended.
    pub(crate) fn set_exited(&self) {
        self.change(|clients| clients.exited = true);
    }

    fn change(&self, set: impl FnOnce(&mut Clients)) {
        let mut clients = self.clients();
        set(&mut clients);
        if clients.is_over() {
            clients.list.clear();
        }
    }

    /// Gives every client a piece, and returns those that it still waits for.
    fn offer(&self, output: Output, bytes: &[u8]) -> Vec<Waiting> {
        let mut clients = self.clients();
        if clients.list.is_empty() {
            return Vec::new();
        }
        let bytes: Arc<[u8]> = bytes.into();
        let mut waiting = Vec::new();
        clients.list.retain_mut(|client| {
            let wants = match output {
                Output::Stdout => client.stdout,
                Output::Stderr => client.stderr,
            };
            if !wants {
                return !client.queue.is_closed();
            }
            match client.queue.try_send((output, Arc::clone(&bytes))) {
                Ok(()) => {
                    client.took_a_piece();
                    true
                }
                Err(mpsc::error::TrySendError::Full(piece)) => {
                    let (number, patience) = (client.number, client.patience);
                    waiting.push(Waiting { number, queue: client.queue.clone(), piece, patience });
                    true
                }
                Err(mpsc::error::TrySendError::Closed(_)) => false,
            }
        });
        waiting
    }

    /// Waits for slow clients, and cuts those off that are too slow.
    async fn wait(self: Arc<Self>, waiting: Vec<Waiting>) {
        let each = waiting.into_iter().map(async |Waiting { number, queue, piece, patience }| {
            let begin = Instant::now();
            let sent = tokio::time::timeout(patience, queue.send(piece)).await;
            (number, sent.is_ok().then(|| begin.elapsed()))
        });
        let waited: BTreeMap<u64, Option<Duration>> =
            futures::future::join_all(each).await.into_iter().collect();
        self.clients().list.retain_mut(|client| match waited.get(&client.number) {
            None => true,
            Some(Some(time)) => {
                client.patience = client.patience.saturating_sub(*time);
                client.took_a_piece();
                true
            }
            Some(None) => {
                client.too_slow.store(true, Ordering::Release);
                false
            }
        });
    }
}

/// An output that its audience hears too.
pub(crate) struct Tee {
    output: Output,
    from: Descriptor,
    audience: Arc<Audience>,
    /// Under way while a client is slow; nothing is read meanwhile.
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Tee {
    pub(crate) fn new(output: Output, from: Descriptor, audience: Arc<Audience>) -> Self {
        Self { output, from, audience, waiting: None }
    }
}

impl AsyncRead for Tee {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(waiting) = &mut self.waiting {
            ready!(waiting.as_mut().poll(context));
            self.waiting = None;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.from).poll_read(context, buffer))?;
        let piece = &buffer.filled()[before..];
        let slow = if piece.is_empty() { Vec::new() } else { self.audience.offer(self.output, piece) };
        if !slow.is_empty() {
            self.waiting = Some(Box::pin(Arc::clone(&self.audience).wait(slow)));
        }
        Poll::Ready(Ok(()))
    }
}

/// A container's standard input, or its terminal.
#[derive(Debug, Default)]
pub(crate) struct Input {
    /// `None`: the container was made without.
    sender: Option<mpsc::Sender<Feed>>,
    /// Whether it closes when the first client with input ends.
    once: bool,
    terminal: Option<OwnedFd>,
    task: Option<AbortHandle>,
}

#[derive(Debug)]
enum Feed {
    Bytes(Vec<u8>),
    Close,
}

/// How a container's input is to be.
#[derive(Debug)]
pub(crate) struct InputEnds {
    /// The end that is written to.
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) terminal: Option<OwnedFd>,
    /// Whether it closes when the first client with input ends.
    pub(crate) once: bool,
}

impl Drop for Input {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Input {
    /// Must be called in the runtime.
    pub(crate) fn new(ends: InputEnds) -> Result<Self, Error> {
        // Closing one of a terminal's descriptors would say nothing to the container.
        let once = ends.once && ends.terminal.is_none();
        let mut input = Self { sender: None, once, terminal: ends.terminal, task: None };
        if let Some(stdin) = ends.stdin {
            let to = Descriptor::new(stdin, Interest::WRITABLE)
                .map_err(|source| Error::system("watch a container's input", source))?;
            let (sender, receiver) = mpsc::channel(INPUT_QUEUE);
            input.sender = Some(sender);
            input.task = Some(tokio::spawn(write(receiver, to)).abort_handle());
        }
        Ok(input)
    }

    /// Waits until the container has taken what came before. An input that is closed
    /// takes everything.
    async fn feed(&self, bytes: Vec<u8>) {
        if let Some(sender) = &self.sender {
            drop(sender.send(Feed::Bytes(bytes)).await);
        }
    }

    /// A client with input has no more. Again is free.
    async fn end(&self) {
        if let (Some(sender), true) = (&self.sender, self.once) {
            drop(sender.send(Feed::Close).await);
        }
    }
}

/// Writes what clients send, as fast as the container takes it.
async fn write(mut pieces: mpsc::Receiver<Feed>, mut to: Descriptor) {
    while let Some(Feed::Bytes(bytes)) = pieces.recv().await {
        if to.write_all(&bytes).await.is_err() {
            // Nobody reads it any more: that is the container's choice.
            return;
        }
    }
}

/// What the caller receives.
pub(crate) type Responses = mpsc::Receiver<Result<v1::AttachResponse, Status>>;
type Sender = mpsc::Sender<Result<v1::AttachResponse, Status>>;

/// Attaches a client to a running container, until the container ends or the client
/// goes away.
pub(crate) fn run(
    guest: &Guest,
    start: &v1::AttachStart,
    requests: impl Stream<Item = Result<v1::AttachRequest, Status>> + Send + Unpin + 'static,
) -> Result<Responses, Error> {
    let container = guest.container(&start.container_id)?;
    let made = container.require_running("attach to")?;
    let permit = guest.take_attach()?;
    let seat = made.audience.join(start.stdout, start.stderr)?;
    let input = Arc::clone(&container.process("attach to")?.input);
    let stdin = start.stdin && input.sender.is_some();
    if let (Some(size), Some(terminal)) = (start.size, &input.terminal) {
        streams::resize(terminal, size);
    }
    let started = v1::AttachStarted { stdin, terminal: input.terminal.is_some() };
    let (sender, receiver) = mpsc::channel(RESPONSES);
    tokio::spawn(async move {
        tokio::select! {
            () = tell(started, seat, &sender) => {}
            () = listen(requests, &input, stdin) => {}
            // The client has gone.
            () = sender.closed() => {}
        }
        drop(permit);
        if stdin {
            input.end().await;
        }
    });
    Ok(receiver)
}

/// Carries out what the client sends. Does not end by itself.
async fn listen(
    mut requests: impl Stream<Item = Result<v1::AttachRequest, Status>> + Send + Unpin,
    input: &Input,
    stdin: bool,
) {
    while let Some(Ok(request)) = requests.next().await {
        match (request.what, &input.terminal) {
            (Some(Request::Stdin(bytes)), _) if stdin => input.feed(bytes).await,
            (Some(Request::StdinEnd(_)), _) if stdin => input.end().await,
            (Some(Request::Resize(size)), Some(terminal)) => streams::resize(terminal, size),
            _ => {}
        }
    }
    if stdin {
        input.end().await;
    }
    std::future::pending().await
}

/// Sends output to the client, as fast as the client takes it.
async fn tell(started: v1::AttachStarted, mut seat: Seat, sender: &Sender) {
    let answer = |what| Ok(v1::AttachResponse { what: Some(what) });
    if sender.send(answer(Response::Started(started))).await.is_err() {
        return;
    }
    while let Some((output, bytes)) = seat.pieces.recv().await {
        let what = match output {
            Output::Stdout => Response::Stdout(bytes.to_vec()),
            Output::Stderr => Response::Stderr(bytes.to_vec()),
        };
        if sender.send(answer(what)).await.is_err() {
            return;
        }
    }
    let last = if seat.too_slow.load(Ordering::Acquire) {
        let held = SLOW_PATIENCE.as_secs();
        Err(Status::resource_exhausted(format!(
            "output was read so slowly that the container waited {held} s for it: attach again, and read faster"
        )))
    } else {
        answer(Response::End(v1::Empty {}))
    };
    drop(sender.send(last).await);
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    /// How long `pieces` pieces are held up by a client that takes one every `pause`, and
    /// whether it was cut off.
    async fn hold_up(pieces: usize, pause: Duration) -> (Duration, bool) {
        let audience = Arc::new(Audience::default());
        let Seat { pieces: mut queue, too_slow } = audience.join(true, false).unwrap();
        let client = tokio::spawn(async move {
            while queue.recv().await.is_some() {
                tokio::time::sleep(pause).await;
            }
        });
        let mut held = Duration::ZERO;
        for _ in 0..pieces {
            let begin = Instant::now();
            let waiting = audience.offer(Output::Stdout, b"piece");
            Arc::clone(&audience).wait(waiting).await;
            held += begin.elapsed();
        }
        client.abort();
        (held, too_slow.load(Ordering::Acquire))
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_trickles_is_cut_off_and_one_that_reads_is_not() {
        for pause in [SLOW_PATIENCE * 2, SLOW_PATIENCE - Duration::from_millis(1), Duration::from_secs(1)] {
            let (held, cut) = hold_up(1000, pause).await;
            assert!(cut && held < SLOW_PATIENCE * 2, "{pause:?}: {held:?}");
        }
        let (held, cut) = hold_up(1000, EARNED_PATIENCE).await;
        assert!(!cut && held > Duration::from_secs(200), "{held:?}");
    }
}
