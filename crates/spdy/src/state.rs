//! What a connection knows. Every method runs under the connection's lock and
//! never waits; the driver does the IO, streams and handles do the waiting.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::connection::Limits;
use crate::entry::{Entry, Sending};
use crate::error::{Closed, OpenError, ProtocolError};
use crate::frame::{Decoded, Encoder, Frame, GoAwayStatus, ResetStatus};
use crate::header::Headers;

/// Control frames that may wait to be written before no more is read, in bytes.
const CONTROL_BYTES: usize = 64 << 10;
/// What one write to the transport gathers, in bytes.
const BATCH: usize = 64 << 10;
/// The longest data frame that is written, in bytes, so that streams take turns.
const TURN: usize = 32 << 10;
/// The last stream number.
const LAST_NUMBER: u32 = 0x7fff_ffff;

/// A connection as its handles, its streams and its driver share it.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// The driver's reading half waits for room.
    pub(crate) room: Notify,
    /// The driver's writing half waits for something to write.
    pub(crate) work: Notify,
    /// Somebody waits for a new stream, or for the end.
    pub(crate) news: Notify,
}

impl Shared {
    pub(crate) fn new(state: State) -> Self {
        Self { state: Mutex::new(state), room: Notify::new(), work: Notify::new(), news: Notify::new() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connection; the first reason stands.
    pub(crate) fn finish(&self, reason: Closed) {
        self.lock().finish(reason);
        self.room.notify_one();
        self.work.notify_one();
        self.news.notify_waiters();
    }

    /// Begins the end: what is queued is still written, then GOAWAY.
    pub(crate) fn begin_close(&self, status: GoAwayStatus) {
        self.lock().goodbye.get_or_insert(Goodbye::Due(status));
        self.room.notify_one();
        self.work.notify_one();
        self.news.notify_waiters();
    }
}

/// The end that was asked for on this side.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Goodbye {
    Due(GoAwayStatus),
    Sent,
}

/// What the driver's writing half does next.
#[derive(Debug, PartialEq)]
pub(crate) enum Next {
    /// Write the batch.
    Write,
    /// Wait for [`Shared::work`].
    Wait,
    /// All is written, GOAWAY last.
    Done,
}

pub(crate) struct State {
    pub(crate) limits: Limits,
    is_server: bool,
    encoder: Encoder,
    control: BytesMut,
    streams: HashMap<u32, Entry>,
    /// Streams with something to write, which take turns.
    ready: VecDeque<u32>,
    /// The peer's streams that nobody has accepted yet.
    waiting: VecDeque<(u32, Headers)>,
    /// The next stream opened here.
    next_number: u32,
    /// The peer's last stream.
    last_number: u32,
    next_ping: u32,
    /// Bytes that came and were not read yet, over all streams.
    held: usize,
    /// The peer takes no more streams, and opens none.
    peer_leaves: bool,
    goodbye: Option<Goodbye>,
    closed: Option<Closed>,
    /// When stream data or a frame other than an answer to our ping last passed.
    pub(crate) active: Instant,
}

impl State {
    pub(crate) fn new(is_server: bool, limits: Limits) -> Self {
        Self {
            limits,
            is_server,
            encoder: Encoder::new(),
            control: BytesMut::new(),
            streams: HashMap::new(),
            ready: VecDeque::new(),
            waiting: VecDeque::new(),
            next_number: if is_server { 2 } else { 1 },
            last_number: 0,
            next_ping: if is_server { 2 } else { 1 },
            held: 0,
            peer_leaves: false,
            goodbye: None,
            closed: None,
            active: Instant::now(),
        }
    }

    pub(crate) fn closed(&self) -> Option<&Closed> {
        self.closed.as_ref()
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.goodbye.is_some()
    }

    pub(crate) fn open_streams(&self) -> usize {
        self.streams.len()
    }

    fn finish(&mut self, reason: Closed) {
        self.closed.get_or_insert(reason);
        self.control = BytesMut::new();
        self.ready.clear();
        // Nobody has a handle of these.
        for (stream, _) in std::mem::take(&mut self.waiting) {
            self.remove(stream, None);
        }
        self.streams.retain(|_, entry| {
            entry.wake();
            entry.outbound = BytesMut::new();
            !entry.abandoned
        });
    }

    fn is_ours(&self, number: u32) -> bool {
        number.is_multiple_of(2) == self.is_server
    }

    fn send(&mut self, frame: &Frame) {
        if self.closed.is_none() {
            self.encoder.encode(frame, &mut self.control);
        }
    }

    /// Removes a stream, with a reset if the peer does not know its end.
    fn remove(&mut self, stream: u32, status: Option<ResetStatus>) {
        if let Some(entry) = self.streams.remove(&stream) {
            self.held -= entry.inbound.len();
        }
        if let Some(status) = status {
            self.send(&Frame::RstStream { stream, status });
        }
    }

    // ---- What the driver does ----

    /// Whether a frame may be received now; if not, the driver waits for [`Shared::room`].
    pub(crate) fn admits(&self, decoded: &Decoded) -> bool {
        if self.closed.is_some() || self.goodbye.is_some() {
            return true;
        }
        if self.control.len() >= CONTROL_BYTES {
            return false;
        }
        let Decoded::Frame(Frame::Data { stream, data, .. }) = decoded else { return true };
        let Some(entry) = self.streams.get(stream) else { return true };
        let fits = |held: usize, limit: usize| held == 0 || held + data.len() <= limit;
        entry.abandoned
            || entry.reset.is_some()
            || fits(entry.inbound.len(), self.limits.stream_buffer)
                && fits(self.held, self.limits.connection_buffer)
    }

    /// Takes in what the peer sent. True if somebody may wait for it as [`Shared::news`].
    pub(crate) fn receive(&mut self, decoded: Decoded) -> Result<bool, ProtocolError> {
        if !matches!(&decoded, Decoded::Frame(Frame::Ping { id }) if self.is_ours(*id)) {
            self.active = Instant::now();
        }
        let frame = match decoded {
            Decoded::Frame(frame) => frame,
            Decoded::Malformed { stream, opens } => {
                if opens {
                    self.number(stream)?;
                }
                self.break_off(stream, ResetStatus::PROTOCOL_ERROR);
                return Ok(false);
            }
        };
        match frame {
            Frame::SynStream { stream, fin, unidirectional, headers, .. } => {
                self.number(stream)?;
                if self.goodbye.is_some() || self.closed.is_some() {
                    return Ok(false);
                }
                if self.streams.len() >= self.limits.streams {
                    self.send(&Frame::RstStream { stream, status: ResetStatus::REFUSED_STREAM });
                    return Ok(false);
                }
                let sending = if unidirectional { Sending::Ended } else { Sending::Open };
                self.streams.insert(stream, Entry::new(fin, sending));
                self.waiting.push_back((stream, headers));
                return Ok(true);
            }
            Frame::SynReply { stream, fin, .. } => {
                if let Some(entry) = self.streams.get_mut(&stream) {
                    entry.replied = true;
                    entry.wake_reader();
                }
                self.heard_all(stream, fin);
            }
            Frame::Headers { stream, fin, .. } => self.heard_all(stream, fin),
            Frame::RstStream { stream, status } => self.reset_by_peer(stream, status),
            Frame::Ping { id } => {
                if !self.is_ours(id) && self.goodbye.is_none() {
                    self.send(&Frame::Ping { id });
                }
            }
            Frame::GoAway { last_stream, .. } => {
                self.peer_leaves = true;
                let refused: Vec<u32> = self
                    .streams
                    .iter()
                    .filter(|(number, entry)| {
                        self.is_ours(**number) && **number > last_stream && !entry.replied
                    })
                    .map(|(number, _)| *number)
                    .collect();
                for stream in refused {
                    self.reset_by_peer(stream, ResetStatus::REFUSED_STREAM);
                }
                return Ok(true);
            }
            Frame::Data { stream, fin, data } => self.data(stream, fin, &data),
            // Nobody who speaks to Kubernetes counts on them; see the README.
            Frame::Settings { .. } | Frame::WindowUpdate { .. } => {}
        }
        Ok(false)
    }

    fn number(&mut self, stream: u32) -> Result<(), ProtocolError> {
        if self.is_ours(stream) || stream <= self.last_number {
            return Err(ProtocolError::StreamNumber { stream, last: self.last_number });
        }
        self.last_number = stream;
        Ok(())
    }

    /// Ends a stream because of what the peer did on it.
    fn break_off(&mut self, stream: u32, status: ResetStatus) {
        self.reset_by_peer(stream, status);
        self.send(&Frame::RstStream { stream, status });
    }

    fn reset_by_peer(&mut self, stream: u32, status: ResetStatus) {
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        entry.reset = Some(status);
        entry.outbound = BytesMut::new();
        entry.wake();
        if entry.abandoned {
            self.remove(stream, None);
        }
    }

    fn heard_all(&mut self, stream: u32, fin: bool) {
        let Some(entry) = self.streams.get_mut(&stream).filter(|_| fin) else { return };
        entry.heard_all = true;
        entry.wake_reader();
    }

    fn data(&mut self, stream: u32, fin: bool, data: &[u8]) {
        if self.goodbye.is_some() || self.closed.is_some() {
            return;
        }
        let known = if self.is_ours(stream) { stream < self.next_number } else { stream <= self.last_number };
        let Some(entry) = self.streams.get_mut(&stream) else {
            // What is still on its way when a stream ends here is nobody's fault.
            if !known {
                self.send(&Frame::RstStream { stream, status: ResetStatus::INVALID_STREAM });
            }
            return;
        };
        if entry.heard_all {
            self.break_off(stream, ResetStatus::PROTOCOL_ERROR);
            return;
        }
        if !entry.abandoned && entry.reset.is_none() && !data.is_empty() {
            entry.inbound.extend_from_slice(data);
            self.held += data.len();
            entry.wake_reader();
        }
        self.heard_all(stream, fin);
    }

    /// Gathers what is to be written next.
    pub(crate) fn next_batch(&mut self, batch: &mut BytesMut) -> Next {
        batch.clear();
        if self.closed.is_some() {
            return Next::Done;
        }
        batch.extend_from_slice(&self.control);
        self.control.clear();
        while batch.len() < BATCH {
            let Some(stream) = self.ready.pop_front() else { break };
            self.turn(stream, batch);
        }
        if !batch.is_empty() {
            return Next::Write;
        }
        match self.goodbye {
            None => Next::Wait,
            Some(Goodbye::Due(status)) => {
                self.goodbye = Some(Goodbye::Sent);
                self.encoder.encode(&Frame::GoAway { last_stream: self.last_number, status }, batch);
                Next::Write
            }
            Some(Goodbye::Sent) => Next::Done,
        }
    }

    /// One data frame of a stream.
    fn turn(&mut self, stream: u32, batch: &mut BytesMut) {
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        entry.queued = false;
        if entry.reset.is_some() {
            return;
        }
        let length = entry.outbound.len().min(TURN);
        let last = entry.sending == Sending::Ending && length == entry.outbound.len();
        if length == 0 && !last {
            return;
        }
        batch.put_u32(stream);
        batch.put_u32(u32::from(last) << 24 | length as u32);
        batch.extend_from_slice(&entry.outbound[..length]);
        entry.outbound.advance(length);
        if let Some(waker) = entry.writer.take() {
            waker.wake();
        }
        if !entry.outbound.is_empty() || entry.sending == Sending::Ending && !last {
            entry.queued = true;
            self.ready.push_back(stream);
        }
        if last {
            entry.sending = Sending::Ended;
            if entry.abandoned {
                let status = (!entry.heard_all).then_some(ResetStatus::CANCEL);
                self.remove(stream, status);
            }
        }
        self.active = Instant::now();
    }

    /// Queues a ping of ours if nothing has passed for so long, unless something waits to be written anyway.
    pub(crate) fn ping_after(&mut self, quiet: Duration) {
        if self.active.elapsed() >= quiet && self.control.is_empty() && self.goodbye.is_none() {
            let id = self.next_ping;
            self.next_ping = id.wrapping_add(2);
            self.send(&Frame::Ping { id });
        }
    }

    // ---- What handles and streams do ----

    /// The next stream of the peer; `None` inside if there will be none.
    pub(crate) fn accept(&mut self) -> Option<Option<(u32, Headers)>> {
        if let Some(waiting) = self.waiting.pop_front() {
            return Some(Some(waiting));
        }
        (self.closed.is_some() || self.goodbye.is_some() || self.peer_leaves).then_some(None)
    }

    pub(crate) fn reply(&mut self, stream: u32) {
        if self.streams.get(&stream).is_some_and(|entry| entry.reset.is_none()) {
            self.send(&Frame::SynReply { stream, fin: false, headers: Headers::new() });
        }
    }

    pub(crate) fn open(&mut self, headers: &Headers) -> Result<u32, OpenError> {
        if let Some(reason) = &self.closed {
            return Err(OpenError::Closed(reason.clone()));
        }
        if self.goodbye.is_some() {
            return Err(OpenError::Closed(Closed::Here));
        }
        if self.peer_leaves {
            return Err(OpenError::GoingAway);
        }
        if self.streams.len() >= self.limits.streams {
            return Err(OpenError::TooMany { limit: self.limits.streams });
        }
        let length: usize = headers.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
        if length > self.limits.header_block.min(self.limits.control_frame / 2) {
            return Err(OpenError::HeadersTooLong);
        }
        if self.next_number > LAST_NUMBER {
            return Err(OpenError::OutOfNumbers);
        }
        let stream = self.next_number;
        self.next_number += 2;
        self.streams.insert(stream, Entry::new(false, Sending::Open));
        self.send(&Frame::SynStream {
            stream,
            associated: 0,
            priority: 0,
            fin: false,
            unidirectional: false,
            headers: headers.clone(),
        });
        Ok(stream)
    }

    pub(crate) fn poll_opened(&mut self, stream: u32, context: &Context<'_>) -> Poll<Result<(), OpenError>> {
        let entry = self.streams.get_mut(&stream);
        match (entry, &self.closed) {
            // What came before the connection's end can still be read.
            (Some(Entry { replied: true, .. }), _) => Poll::Ready(Ok(())),
            (_, Some(reason)) => Poll::Ready(Err(OpenError::Closed(reason.clone()))),
            (None, None) => Poll::Ready(Err(OpenError::Closed(Closed::Here))),
            (Some(Entry { reset: Some(status), .. }), None) => {
                Poll::Ready(Err(OpenError::Refused { status: *status }))
            }
            (Some(entry), None) => {
                entry.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Reads into `buffer`; the driver may go on reading then.
    pub(crate) fn poll_read(
        &mut self,
        stream: u32,
        context: &Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(entry) = self.streams.get_mut(&stream) else { return Poll::Ready(Err(ended(&self.closed))) };
        if !entry.inbound.is_empty() {
            let length = entry.inbound.len().min(buffer.remaining());
            buffer.put_slice(&entry.inbound[..length]);
            entry.inbound.advance(length);
            self.held -= length;
            return Poll::Ready(Ok(()));
        }
        if entry.heard_all {
            return Poll::Ready(Ok(()));
        }
        if let Some(status) = entry.reset {
            return Poll::Ready(Err(reset(status)));
        }
        if self.closed.is_some() {
            return Poll::Ready(Err(ended(&self.closed)));
        }
        entry.reader = Some(context.waker().clone());
        Poll::Pending
    }

    pub(crate) fn poll_write(
        &mut self,
        stream: u32,
        context: &Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let limit = self.limits.stream_buffer;
        let entry = match self.writable(stream) {
            Ok(entry) => entry,
            Err(error) => return Poll::Ready(Err(error)),
        };
        if entry.sending != Sending::Open {
            let error = io::Error::new(io::ErrorKind::BrokenPipe, "the stream was shut down");
            return Poll::Ready(Err(error));
        }
        let room = limit.saturating_sub(entry.outbound.len());
        if room == 0 {
            entry.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let length = data.len().min(room);
        entry.outbound.extend_from_slice(&data[..length]);
        self.enqueue(stream);
        Poll::Ready(Ok(length))
    }

    pub(crate) fn poll_flush(&mut self, stream: u32, context: &Context<'_>) -> Poll<io::Result<()>> {
        match self.writable(stream) {
            Err(error) => Poll::Ready(Err(error)),
            Ok(entry) if entry.outbound.is_empty() => Poll::Ready(Ok(())),
            Ok(entry) => {
                entry.writer = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Ends the sending direction; ready when its end was given to the transport.
    pub(crate) fn poll_shutdown(&mut self, stream: u32, context: &Context<'_>) -> Poll<io::Result<()>> {
        let entry = match self.writable(stream) {
            Ok(entry) => entry,
            // It has ended, if not as was asked.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Poll::Ready(Ok(())),
            Err(error) => return Poll::Ready(Err(error)),
        };
        if entry.sending == Sending::Ended {
            return Poll::Ready(Ok(()));
        }
        entry.writer = Some(context.waker().clone());
        if entry.sending == Sending::Open {
            entry.sending = Sending::Ending;
            self.enqueue(stream);
        }
        Poll::Pending
    }

    fn writable(&mut self, stream: u32) -> io::Result<&mut Entry> {
        if self.closed.is_some() {
            return Err(ended(&self.closed));
        }
        match self.streams.get_mut(&stream) {
            None => Err(ended(&None)),
            Some(Entry { reset: Some(status), .. }) => Err(reset(*status)),
            Some(entry) => Ok(entry),
        }
    }

    fn enqueue(&mut self, stream: u32) {
        if let Some(entry) = self.streams.get_mut(&stream).filter(|entry| !entry.queued) {
            entry.queued = true;
            self.ready.push_back(stream);
        }
    }

    /// The handle of a stream goes away. What was shut down, or `finishes` now, is still sent; else the stream
    /// is reset.
    pub(crate) fn abandon(&mut self, stream: u32, status: ResetStatus, finishes: bool) {
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        entry.abandoned = true;
        self.held -= entry.inbound.len();
        entry.inbound = BytesMut::new();
        (entry.reader, entry.writer) = (None, None);
        if entry.reset.is_some() || self.closed.is_some() {
            return self.remove(stream, None);
        }
        match entry.sending {
            Sending::Open if finishes => {
                entry.sending = Sending::Ending;
                self.enqueue(stream);
            }
            Sending::Open => self.remove(stream, Some(status)),
            Sending::Ending => {}
            Sending::Ended => {
                let status = (!entry.heard_all).then_some(status);
                self.remove(stream, status);
            }
        }
    }
}

fn reset(status: ResetStatus) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, format!("the peer reset the stream with {status}"))
}

fn ended(closed: &Option<Closed>) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, closed.clone().unwrap_or(Closed::Here))
}
