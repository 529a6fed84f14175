//! One stream: a client's socket on one side, a port of the guest on the other.
//!
//! ```text
//! Asking ──CONNECT──▶ Requested ──RESPONSE──▶ Open ──RST or SHUTDOWN of both──▶ Draining
//! ```
//!
//! What the guest sends goes straight to the socket, and into a buffer of at most
//! [`WINDOW`] bytes when the socket is full: the guest has been told that there is
//! no more room than that, and one that sends more all the same is reset. What the
//! client sends stays in the socket until the guest has room for it. So a stream
//! that nobody reads holds up itself only.
//!
//! The socket's edges are level here: `readable` is cleared only by a read that
//! found nothing.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, recv};

use crate::packet::{Header, Operation, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use crate::{GREETING, REFUSAL};

/// How much of what the guest sends is kept for one client, in bytes.
pub(crate) const WINDOW: u32 = 128 * 1024;
/// The longest line a client may ask with: `CONNECT 4294967295`, and its end.
const LINE_LIMIT: usize = 32;
/// How long a client may take to ask.
const ASK_PATIENCE: Duration = Duration::from_secs(10);
/// How long the guest may take to answer a request. Clients are less patient;
/// this is for those that are not.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);
/// How long the last bytes of a client that is gone wait for room in the guest,
/// counted anew whenever some go.
const STALL_PATIENCE: Duration = Duration::from_secs(30);
/// How long the guest may take to confirm the end of a stream.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// How much is read and thrown away before a socket is closed, so that its client
/// sees an end instead of a reset.
const DISCARD_LIMIT: usize = 512 * 1024;

/// How far a stream has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The client has not said which port it wants. The guest knows nothing.
    Asking,
    /// The guest is asked, once the request is `sent`.
    Requested { sent: bool },
    /// Bytes flow.
    Open,
    /// For the guest it is over; the client has not read everything.
    Draining,
}

/// What becomes of a stream after something happened to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Fate {
    /// It goes on, and may have something to tell the guest.
    Goes,
    /// It is over, and the guest knows.
    Over,
    /// It is over, and the guest must be told so by a reset.
    Reset,
    /// The guest must be told by a reset; the client goes on reading.
    ResetAndDrain,
}

/// What a stream has for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Nothing now.
    Nothing,
    /// A packet whose payload is so long.
    Packet { operation: Operation, flags: u32, length: usize },
    /// Its end.
    Reset,
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Stream {
    socket: UnixStream,
    phase: Phase,
    /// Known once the client has asked.
    guest_port: u32,
    /// Whether it stands in the queue of those that may have output.
    pub(crate) queued: bool,
    /// Set by an edge, cleared by a read that finds nothing.
    readable: bool,
    /// The client has closed its socket.
    gone: bool,
    /// The client reads no more: what comes for it is dropped.
    deaf: bool,
    /// The client's last byte has been taken.
    client_ended: bool,
    /// The guest sends no more.
    guest_ended: bool,
    /// The guest receives no more.
    guest_deaf: bool,
    /// Flags of shutdown that the guest has been told.
    told_flags: u32,
    /// What the guest sent and the socket did not take yet.
    buffer: VecDeque<u8>,
    /// Bytes that left the buffer for the client, and as far as the guest knows.
    forwarded: u32,
    told_forwarded: u32,
    /// The guest wants to know how much room there is.
    credit_asked: bool,
    /// Bytes sent to the guest, and its claims about its buffer for them.
    sent: u32,
    guest_buffer: u32,
    guest_forwarded: u32,
    /// When patience ends, if somebody is waited for.
    deadline: Option<Instant>,
}

impl Stream {
    /// A client that has just come. Its socket must not block.
    pub(crate) fn new(socket: UnixStream, now: Instant) -> Self {
        Self {
            socket,
            phase: Phase::Asking,
            guest_port: 0,
            queued: false,
            readable: true,
            gone: false,
            deaf: false,
            client_ended: false,
            guest_ended: false,
            guest_deaf: false,
            told_flags: 0,
            buffer: VecDeque::new(),
            forwarded: 0,
            told_forwarded: 0,
            credit_asked: false,
            sent: 0,
            guest_buffer: 0,
            guest_forwarded: 0,
            deadline: Some(now + ASK_PATIENCE),
        }
    }

    pub(crate) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    pub(crate) fn guest_port(&self) -> u32 {
        self.guest_port
    }

    /// Whether the guest takes part in it.
    pub(crate) fn is_the_guests(&self, guest_port: u32) -> bool {
        let known = matches!(self.phase, Phase::Requested { sent: true } | Phase::Open);
        known && self.guest_port == guest_port
    }

    /// Bytes that wait for the client.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Whether the socket must say when it has room.
    pub(crate) fn waits_for_room(&self) -> bool {
        !self.buffer.is_empty()
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// How much of the guest's data has gone to the client; for packets to the guest.
    pub(crate) fn tell_forwarded(&mut self) -> u32 {
        self.told_forwarded = self.forwarded;
        self.credit_asked = false;
        self.forwarded
    }

    /// The socket has something to read, or an end to see.
    pub(crate) fn on_readable(&mut self, gone: bool, now: Instant) -> Fate {
        self.readable = true;
        let newly_gone = gone && !self.gone;
        self.gone |= gone;
        match self.phase {
            Phase::Asking => self.ask(now),
            Phase::Requested { sent } if self.gone => {
                if sent {
                    Fate::Reset
                } else {
                    Fate::Over
                }
            }
            Phase::Requested { .. } => Fate::Goes,
            Phase::Open => {
                if newly_gone {
                    self.become_deaf();
                    self.deadline = Some(now + STALL_PATIENCE);
                }
                Fate::Goes
            }
            Phase::Draining if self.gone => Fate::Over,
            Phase::Draining => Fate::Goes,
        }
    }

    /// Looks for the client's line, and leaves what follows where it is.
    fn ask(&mut self, now: Instant) -> Fate {
        let mut line = [0; LINE_LIMIT];
        let seen = match retry_on_intr(|| recv(&self.socket, &mut line, RecvFlags::PEEK)) {
            Ok((0, _)) => return Fate::Over,
            Ok((seen, _)) => &line[..seen],
            Err(Errno::WOULDBLOCK) => return Fate::Goes,
            Err(_) => return Fate::Over,
        };
        let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
            return if seen.len() == LINE_LIMIT {
                self.refuse("the first line is too long")
            } else {
                Fate::Goes
            };
        };
        let port = std::str::from_utf8(&seen[..end])
            .ok()
            .and_then(|line| line.trim_end_matches('\r').strip_prefix("CONNECT "))
            .and_then(|port| port.parse().ok());
        let Some(port) = port else { return self.refuse("say CONNECT and a port") };
        if self.socket.read_exact(&mut line[..=end]).is_err() {
            return Fate::Over;
        }
        self.guest_port = port;
        self.phase = Phase::Requested { sent: false };
        self.deadline = Some(now + ANSWER_PATIENCE);
        Fate::Goes
    }

    /// Says why there is no stream. A client that does not take it knows it by the
    /// end that follows.
    pub(crate) fn refuse(&mut self, why: &str) -> Fate {
        drop(self.socket.write(format!("{REFUSAL}{why}\n").as_bytes()));
        self.discard();
        Fate::Over
    }

    /// A packet of the guest's for this stream.
    pub(crate) fn receive(&mut self, host_port: u32, header: &Header, payload: &[u8]) -> Fate {
        let Some(operation) = header.operation else { return Fate::Reset };
        self.guest_buffer = header.buffer;
        self.guest_forwarded = header.forwarded;
        match (self.phase, operation) {
            (Phase::Requested { sent: true }, Operation::Response) => self.open(host_port),
            (Phase::Requested { .. }, Operation::Reset) => {
                self.refuse("the guest has no listener on that port")
            }
            (Phase::Open, Operation::Data) => self.deliver(payload),
            (Phase::Open, Operation::CreditUpdate) => Fate::Goes,
            (Phase::Open, Operation::CreditRequest) => {
                self.credit_asked = true;
                Fate::Goes
            }
            (Phase::Open, Operation::Shutdown) => self.shut_down(header.flags),
            (Phase::Open, Operation::Reset) => self.drain(Fate::Over, Fate::Goes),
            // Nothing else has a meaning here.
            (
                Phase::Asking | Phase::Requested { .. } | Phase::Draining | Phase::Open,
                Operation::Request
                | Operation::Response
                | Operation::Reset
                | Operation::Shutdown
                | Operation::Data
                | Operation::CreditUpdate
                | Operation::CreditRequest,
            ) => Fate::Reset,
        }
    }

    fn open(&mut self, host_port: u32) -> Fate {
        let answer = format!("{GREETING}{host_port}\n");
        // The first bytes on this socket: they fit, or nobody is there.
        match self.socket.write(answer.as_bytes()) {
            Ok(length) if length == answer.len() => {
                self.phase = Phase::Open;
                self.deadline = None;
                Fate::Goes
            }
            Ok(_) | Err(_) => Fate::Reset,
        }
    }

    fn deliver(&mut self, payload: &[u8]) -> Fate {
        if self.guest_ended || payload.len() > WINDOW as usize - self.buffer.len() {
            return Fate::Reset;
        }
        if self.deaf {
            self.forward(payload.len());
            return Fate::Goes;
        }
        let mut rest = payload;
        if self.buffer.is_empty() {
            while !rest.is_empty() {
                match self.socket.write(rest) {
                    Ok(length) => {
                        self.forward(length);
                        rest = &rest[length..];
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if would_block(&error) => break,
                    Err(_) => {
                        self.become_deaf();
                        self.forward(rest.len());
                        return Fate::Goes;
                    }
                }
            }
        }
        self.buffer.extend(rest);
        Fate::Goes
    }

    /// The socket has room.
    pub(crate) fn on_writable(&mut self) -> Fate {
        while !self.buffer.is_empty() {
            let (first, _) = self.buffer.as_slices();
            match self.socket.write(first) {
                Ok(length) => {
                    self.buffer.drain(..length);
                    self.forward(length);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if would_block(&error) => return Fate::Goes,
                Err(_) => self.become_deaf(),
            }
        }
        // A stream that has been stuck once is mostly idle: its buffer goes.
        self.buffer = VecDeque::new();
        if self.phase == Phase::Draining {
            self.discard();
            return Fate::Over;
        }
        if self.guest_ended {
            self.end_towards_client();
        }
        Fate::Goes
    }

    fn forward(&mut self, length: usize) {
        // At most a window.
        self.forwarded = self.forwarded.wrapping_add(u32::try_from(length).unwrap_or(u32::MAX));
    }

    /// The client takes nothing any more, so the guest need not wait for it to.
    fn become_deaf(&mut self) {
        self.deaf = true;
        let waiting = std::mem::take(&mut self.buffer).len();
        self.forward(waiting);
    }

    fn shut_down(&mut self, flags: u32) -> Fate {
        self.guest_ended |= flags & SHUTDOWN_SEND != 0;
        self.guest_deaf |= flags & SHUTDOWN_RECEIVE != 0;
        if self.guest_ended && self.guest_deaf {
            return self.drain(Fate::Reset, Fate::ResetAndDrain);
        }
        if self.guest_deaf {
            // The client learns it from its next write.
            drop(self.socket.shutdown(Shutdown::Read));
        }
        if self.guest_ended && self.buffer.is_empty() {
            self.end_towards_client();
        }
        Fate::Goes
    }

    /// The guest is through with the stream. `over` if the client has everything,
    /// `drains` if it has not.
    fn drain(&mut self, over: Fate, drains: Fate) -> Fate {
        self.phase = Phase::Draining;
        self.deadline = None;
        if self.buffer.is_empty() {
            self.discard();
            return over;
        }
        drains
    }

    fn end_towards_client(&mut self) {
        // Fails when the client is gone, which its own event tells.
        drop(self.socket.shutdown(Shutdown::Write));
    }

    /// Takes what the client has written and nobody will read.
    fn discard(&mut self) {
        let mut bytes = [0; 4096];
        for _ in 0..DISCARD_LIMIT / bytes.len() {
            match self.socket.read(&mut bytes) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    /// What the guest is to be told next; data goes into `payload`, at most as much
    /// as fits there.
    pub(crate) fn output(&mut self, payload: &mut [u8], now: Instant) -> Output {
        match self.phase {
            Phase::Requested { sent: false } => {
                self.phase = Phase::Requested { sent: true };
                Output::packet(Operation::Request)
            }
            Phase::Asking | Phase::Requested { sent: true } | Phase::Draining => Output::Nothing,
            Phase::Open => {
                if self.owes_credit() {
                    return Output::packet(Operation::CreditUpdate);
                }
                match self.take_data(payload) {
                    Ok(0) => {}
                    Ok(length) => {
                        if self.gone {
                            self.deadline = Some(now + STALL_PATIENCE);
                        }
                        return Output::Packet { operation: Operation::Data, flags: 0, length };
                    }
                    Err(_) => return Output::Reset,
                }
                let mut flags = self.told_flags;
                if self.client_ended || (self.gone && self.guest_deaf) {
                    flags |= SHUTDOWN_SEND;
                }
                if self.deaf {
                    flags |= SHUTDOWN_RECEIVE;
                }
                if flags == self.told_flags {
                    return Output::Nothing;
                }
                self.told_flags = flags;
                if flags == SHUTDOWN_BOTH {
                    self.deadline = Some(now + END_PATIENCE);
                }
                Output::Packet { operation: Operation::Shutdown, flags, length: 0 }
            }
        }
    }

    /// Whether the guest should hear how much room there is.
    fn owes_credit(&self) -> bool {
        let unknown = self.forwarded.wrapping_sub(self.told_forwarded);
        !self.guest_ended && (self.credit_asked || unknown >= WINDOW / 2)
    }

    /// How many bytes the guest has room for, by its own account.
    fn credit(&self) -> u32 {
        self.guest_buffer.saturating_sub(self.sent.wrapping_sub(self.guest_forwarded))
    }

    /// Moves bytes from the client to `payload`; 0 when there are none, there is no
    /// room, or there will be none.
    ///
    /// # Errors
    /// When the client vanished without reading what it had got.
    fn take_data(&mut self, payload: &mut [u8]) -> io::Result<usize> {
        if !self.readable || self.client_ended || self.guest_deaf {
            return Ok(0);
        }
        let room = payload.len().min(self.credit() as usize);
        loop {
            let taken = if room > 0 {
                self.socket.read(&mut payload[..room])
            } else {
                // Without room the end can still be seen.
                recv(&self.socket, &mut [0; 1], RecvFlags::PEEK).map(|(length, _)| length).map_err(Into::into)
            };
            match taken {
                Ok(0) => {
                    self.client_ended = true;
                    return Ok(0);
                }
                Ok(_) if room == 0 => return Ok(0),
                Ok(length) => {
                    self.sent = self.sent.wrapping_add(u32::try_from(length).unwrap_or(u32::MAX));
                    return Ok(length);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if would_block(&error) => {
                    self.readable = false;
                    return Ok(0);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Patience has ended.
    pub(crate) fn give_up(&mut self) -> Fate {
        match self.phase {
            Phase::Asking => self.refuse("nothing was asked for in time"),
            Phase::Requested { sent } => {
                let fate = self.refuse("the guest does not answer");
                if sent { Fate::Reset } else { fate }
            }
            Phase::Open => Fate::Reset,
            Phase::Draining => Fate::Over,
        }
    }
}

impl Output {
    fn packet(operation: Operation) -> Self {
        Self::Packet { operation, flags: 0, length: 0 }
    }
}

fn would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}
