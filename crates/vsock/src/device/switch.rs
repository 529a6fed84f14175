//! All streams of one machine, and what each has for its guest.
//!
//! Knows packets, and nothing of rings and memory: [`super::backend`] brings it
//! what the guest sent and takes what it shall get. Memory is bounded: so many
//! streams, each with one window, and for each at most one reset to be told.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::event::epoll::{self, EventData, EventFlags};

use super::stream::{Fate, Output, Stream, WINDOW};
use crate::packet::{HOST_CID, Header, Operation, TYPE_STREAM};

/// Ports of the host: far from those that anybody listens on.
const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = (1 << 31) - 1;
/// How many resets may wait beyond the streams' own: answers to packets that
/// belong to no stream. One more is not given.
const STRAY_LIMIT: usize = 64;

/// The end of a stream, as the guest shall hear it.
#[derive(Clone, Copy, Debug)]
struct Reset {
    host_port: u32,
    guest_port: u32,
}

/// The streams of a machine.
#[derive(Debug)]
pub(crate) struct Switch {
    guest_cid: u64,
    limit: usize,
    /// By their port on the host's side.
    streams: HashMap<u32, Stream>,
    next_port: u32,
    /// Those that may have output, each once; in turn.
    ready: VecDeque<u32>,
    resets: VecDeque<Reset>,
    /// Tells of the streams' sockets: edges, with the port as data.
    poll: OwnedFd,
}

impl Switch {
    /// A switch without streams, of which it takes up to `limit`. The sockets are
    /// watched by `poll`, with their ports as data, which are never below 2³⁰.
    pub(crate) fn new(guest_cid: u32, limit: usize, poll: OwnedFd) -> Self {
        Self {
            guest_cid: guest_cid.into(),
            limit,
            streams: HashMap::new(),
            next_port: FIRST_PORT,
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            poll,
        }
    }

    pub(crate) fn poll(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }

    /// A client that has just come. It may have asked already.
    ///
    /// # Errors
    /// When its socket cannot be watched; it is closed then.
    pub(crate) fn accept(&mut self, socket: UnixStream, now: Instant) -> io::Result<u32> {
        socket.set_nonblocking(true)?;
        let mut stream = Stream::new(socket, now);
        if self.streams.len() + self.resets.len() >= self.limit {
            let _ = stream.refuse("the machine has too many streams");
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let port = self.free_port();
        epoll::add(&self.poll, stream.socket(), EventData::new_u64(port.into()), interest(false))?;
        self.streams.insert(port, stream);
        Ok(port)
    }

    /// Ends: there are fewer streams than ports.
    fn free_port(&mut self) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = if port == LAST_PORT { FIRST_PORT } else { port + 1 };
            if !self.streams.contains_key(&port) {
                return port;
            }
        }
    }

    /// Something happened to the socket of `port`.
    pub(crate) fn on_socket(&mut self, port: u32, flags: EventFlags, now: Instant) {
        let gone = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        if gone || flags.intersects(EventFlags::IN | EventFlags::RDHUP) {
            self.with(port, |stream| stream.on_readable(gone, now));
        }
        if flags.contains(EventFlags::OUT) {
            self.with(port, |stream| if stream.waits_for_room() { stream.on_writable() } else { Fate::Goes });
        }
    }

    /// A packet that the guest sent. `payload` is as long as the header says.
    pub(crate) fn receive(&mut self, header: &Header, payload: &[u8]) {
        if header.source_cid != self.guest_cid || header.destination_cid != HOST_CID {
            // From nobody, or for nobody: not worth an answer.
            return;
        }
        let port = header.destination_port;
        let known = self.streams.get(&port).is_some_and(|stream| stream.is_the_guests(header.source_port));
        if known && header.kind == TYPE_STREAM {
            self.with(port, |stream| stream.receive(port, header, payload));
        } else if header.operation != Some(Operation::Reset) && self.resets.len() < self.limit + STRAY_LIMIT {
            // Requests among them: the guest reaches nothing of the host's.
            self.resets.push_back(Reset { host_port: port, guest_port: header.source_port });
        }
    }

    /// A packet whose payload is not there: its stream is over.
    pub(crate) fn receive_broken(&mut self, header: &Header) {
        let port = header.destination_port;
        if self.streams.get(&port).is_some_and(|stream| stream.is_the_guests(header.source_port)) {
            self.with(port, |_| Fate::Reset);
        }
    }

    /// Lets something happen to a stream.
    fn with(&mut self, port: u32, event: impl FnOnce(&mut Stream) -> Fate) {
        let Some(stream) = self.streams.get_mut(&port) else { return };
        let waited = stream.waits_for_room();
        let fate = event(stream);
        let reset = Reset { host_port: port, guest_port: stream.guest_port() };
        match fate {
            Fate::Goes | Fate::ResetAndDrain => {
                if fate == Fate::ResetAndDrain {
                    self.resets.push_back(reset);
                }
                if !stream.queued {
                    stream.queued = true;
                    self.ready.push_back(port);
                }
                let waits = stream.waits_for_room();
                if waits != waited {
                    let data = EventData::new_u64(port.into());
                    if epoll::modify(&self.poll, stream.socket(), data, interest(waits)).is_err() {
                        // It could be stuck for ever.
                        self.remove(port);
                        self.resets.push_back(reset);
                    }
                }
            }
            Fate::Over => self.remove(port),
            Fate::Reset => {
                self.remove(port);
                self.resets.push_back(reset);
            }
        }
    }

    fn remove(&mut self, port: u32) {
        if self.streams.remove(&port).is_some_and(|stream| stream.queued) {
            self.ready.retain(|waiting| *waiting != port);
        }
    }

    /// Whether the guest may have to be told something.
    pub(crate) fn has_output(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// The next packet for the guest; its payload is put into `payload`, of which
    /// the header says how much.
    pub(crate) fn output(&mut self, payload: &mut [u8], now: Instant) -> Option<Header> {
        loop {
            if let Some(reset) = self.resets.pop_front() {
                return Some(self.header(reset.host_port, reset.guest_port, Operation::Reset));
            }
            let port = self.ready.pop_front()?;
            let Some(stream) = self.streams.get_mut(&port) else { continue };
            stream.queued = false;
            match stream.output(payload, now) {
                Output::Nothing => {}
                Output::Packet { operation, flags, length } => {
                    // Behind the others, if there is more.
                    stream.queued = true;
                    self.ready.push_back(port);
                    let guest_port = stream.guest_port();
                    let forwarded = stream.tell_forwarded();
                    return Some(Header {
                        flags,
                        length: u32::try_from(length).unwrap_or(u32::MAX),
                        buffer: WINDOW,
                        forwarded,
                        ..self.header(port, guest_port, operation)
                    });
                }
                Output::Reset => self.with(port, |_| Fate::Reset),
            }
        }
    }

    fn header(&self, host_port: u32, guest_port: u32, operation: Operation) -> Header {
        Header {
            source_cid: HOST_CID,
            destination_cid: self.guest_cid,
            source_port: host_port,
            destination_port: guest_port,
            length: 0,
            kind: TYPE_STREAM,
            operation: Some(operation),
            flags: 0,
            buffer: 0,
            forwarded: 0,
        }
    }

    /// Ends what has been waited for too long. Returns whether something still has
    /// a deadline.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        let late = |stream: &Stream| stream.deadline().is_some_and(|deadline| deadline <= now);
        let expired: Vec<u32> =
            self.streams.iter().filter(|(_, stream)| late(stream)).map(|(port, _)| *port).collect();
        for port in expired {
            self.with(port, Stream::give_up);
        }
        self.has_deadlines()
    }

    /// Whether something is waited for.
    pub(crate) fn has_deadlines(&self) -> bool {
        self.streams.values().any(|stream| stream.deadline().is_some())
    }

    /// The guest is not the one any more that knew these streams.
    pub(crate) fn clear(&mut self) {
        self.streams.clear();
        self.ready.clear();
        self.resets.clear();
    }

    /// Panics when something that must hold does not.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn check(&self) {
        assert!(self.streams.len() <= self.limit);
        assert!(self.resets.len() <= self.limit + STRAY_LIMIT + self.streams.len());
        assert!(self.ready.len() <= self.streams.len());
        assert!(self.streams.values().all(|stream| stream.buffered() <= WINDOW as usize));
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn count(&self) -> usize {
        self.streams.len()
    }
}

/// What a socket shall tell of.
fn interest(room: bool) -> EventFlags {
    let always = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
    if room { always | EventFlags::OUT } else { always }
}
