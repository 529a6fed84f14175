//! A switch between clients and a guest that do whatever some bytes say: what a
//! fuzzer runs, and the property tests.
//!
//! Every byte on a stream follows from its place in it, so that loss, doubling and
//! mixing up show. At the end all clients go, and nothing may be left.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use super::stream::WINDOW;
use super::switch::Switch;
use crate::GREETING;
use crate::packet::{HEADER, HOST_CID, Header, Operation, TYPE_STREAM};

const GUEST_CID: u32 = 3;
/// Fewer streams than there are clients.
const STREAMS: usize = 5;
const CLIENTS: usize = 7;
/// The longest line that a client is told.
const LINE_LIMIT: usize = 80;

/// Runs one trial. Panics when something does not hold that must.
///
/// Each step is a byte for the kind, and then what it takes. Kinds, modulo 12:
/// 0 a client comes, 1 it writes, 2 it reads, 3 it ends its side, 4 it goes; 5, 6
/// and 7 a packet of the guest's to a stream that it knows; 8 any packet; 9 and 10
/// the guest takes packets; 11 time passes.
pub(crate) fn run(input: &[u8]) {
    let mut trial = Trial::new(input);
    while let Some(kind) = trial.bytes.next() {
        trial.step(kind % 12);
        trial.events();
        trial.switch.check();
    }
    trial.end();
}

#[derive(Default)]
struct Client {
    socket: Option<UnixStream>,
    /// Its line so far, and whether it is the one for a stream.
    line: Vec<u8>,
    /// Its stream, once it has been told.
    port: Option<u32>,
    written: usize,
    read: usize,
}

/// A stream as the guest knows it.
#[derive(Clone, Copy, Default)]
struct Known {
    guest_port: u32,
    /// What the guest said last of its buffer.
    buffer: u32,
    forwarded: u32,
    /// Bytes in either direction.
    taken: usize,
    given: usize,
    /// Either side has reset it.
    over: bool,
}

struct Bytes<'a>(std::slice::Iter<'a, u8>);

impl Bytes<'_> {
    fn next(&mut self) -> Option<u8> {
        self.0.next().copied()
    }

    fn byte(&mut self) -> usize {
        self.next().unwrap_or(0).into()
    }

    /// A length: mostly small, now and then larger than a window.
    fn length(&mut self) -> usize {
        let byte = self.byte();
        if byte < 128 { byte } else { (byte - 127) * 1031 }
    }
}

struct Trial<'a> {
    bytes: Bytes<'a>,
    switch: Switch,
    clients: Vec<Client>,
    known: HashMap<u32, Known>,
    /// In the order of their requests.
    ports: Vec<u32>,
    now: Instant,
}

impl<'a> Trial<'a> {
    fn new(input: &'a [u8]) -> Self {
        let poll = epoll::create(CreateFlags::CLOEXEC).expect("the process has a descriptor left");
        Self {
            bytes: Bytes(input.iter()),
            switch: Switch::new(GUEST_CID, STREAMS, poll),
            clients: (0..CLIENTS).map(|_| Client::default()).collect(),
            known: HashMap::new(),
            ports: Vec::new(),
            now: Instant::now(),
        }
    }

    fn step(&mut self, kind: u8) {
        match kind {
            0..=4 => {
                let client = self.bytes.byte() % CLIENTS;
                match kind {
                    0 => self.come(client),
                    1 => self.write(client),
                    2 => self.read(client),
                    3 => {
                        if let Some(socket) = &self.clients[client].socket {
                            drop(socket.shutdown(Shutdown::Write));
                        }
                    }
                    _ => self.clients[client].socket = None,
                }
            }
            5..=7 => self.guest_sends(kind),
            8 => {
                let mut bytes = [0; HEADER];
                bytes.fill_with(|| self.bytes.next().unwrap_or(0));
                let header = Header::decode(&bytes);
                let length = header.length.min(WINDOW) as usize;
                if self.bytes.byte() < 128 {
                    self.switch.receive(&header, &vec![0; length]);
                } else {
                    self.switch.receive_broken(&header);
                }
                // Its words on a known stream count as all others.
                if let Some(known) = self.known.get_mut(&header.destination_port) {
                    (known.buffer, known.forwarded) = (header.buffer, header.forwarded);
                    known.over |= header.operation == Some(Operation::Reset);
                }
            }
            9 | 10 => {
                for _ in 0..self.bytes.byte() % 32 {
                    let space = self.bytes.length();
                    if !self.guest_takes(space) {
                        break;
                    }
                }
            }
            _ => {
                self.now += Duration::from_secs(self.bytes.byte() as u64 / 8);
                self.switch.expire(self.now);
            }
        }
    }

    fn come(&mut self, client: usize) {
        let (ours, theirs) = UnixStream::pair().expect("the process has descriptors left");
        ours.set_nonblocking(true).expect("a socket takes it");
        let mut came = Client::default();
        let line = match self.bytes.byte() {
            0..200 => format!("CONNECT {}\n", self.bytes.byte()),
            200..220 => "CONNECT ".to_owned(),
            220..240 => "CONNECT 4294967296\n".to_owned(),
            _ => "GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n".to_owned(),
        };
        drop((&ours).write(line.as_bytes()));
        came.socket = Some(ours);
        self.clients[client] = came;
        drop(self.switch.accept(theirs, self.now));
    }

    fn write(&mut self, client: usize) {
        let length = self.bytes.length();
        let client = &mut self.clients[client];
        let Some(mut socket) = client.socket.as_ref() else { return };
        // What is sent early belongs to the stream, too.
        let bytes: Vec<u8> = (client.written..client.written + length).map(pattern).collect();
        client.written += socket.write(&bytes).unwrap_or(0);
    }

    fn read(&mut self, client: usize) {
        let mut bytes = vec![0; self.bytes.length()];
        let client = &mut self.clients[client];
        let Some(mut socket) = client.socket.as_ref() else { return };
        let length = socket.read(&mut bytes).unwrap_or(0);
        for byte in &bytes[..length] {
            if client.port.is_some() {
                assert_eq!(*byte, pattern(client.read), "byte {} of a client", client.read);
                client.read += 1;
            } else if *byte == b'\n' {
                let line = String::from_utf8(std::mem::take(&mut client.line)).expect("a line is text");
                client.port = line.strip_prefix(GREETING).map(|port| port.parse().expect("a port"));
            } else {
                client.line.push(*byte);
                assert!(client.line.len() < LINE_LIMIT, "{:?}", String::from_utf8_lossy(&client.line));
            }
        }
        if let Some(known) = client.port.and_then(|port| self.known.get(&port)) {
            assert!(client.read <= known.given, "{} of {} bytes", client.read, known.given);
        }
    }

    fn guest_sends(&mut self, kind: u8) {
        let chosen = self.bytes.byte();
        let Some(port) = self.ports.get(chosen % self.ports.len().max(1)).copied() else { return };
        let Some(known) = self.known.get_mut(&port) else { return };
        // Mostly what a guest would say.
        let operation = match (kind, self.bytes.byte()) {
            (5, _) => Operation::Response,
            (6, _) => Operation::Data,
            (_, 0..120) => Operation::CreditUpdate,
            (_, 120..150) => Operation::CreditRequest,
            (_, 150..220) => Operation::Shutdown,
            (_, 220..245) => Operation::Reset,
            (_, _) => Operation::Request,
        };
        let length = if operation == Operation::Data { self.bytes.length() } else { 0 };
        known.buffer = u32::try_from(self.bytes.length()).unwrap_or(0);
        known.forwarded = match self.bytes.byte() {
            0..240 => u32::try_from(known.taken).unwrap_or(0),
            wild => u32::MAX / 16 * u32::try_from(wild - 240).unwrap_or(0),
        };
        let payload: Vec<u8> = (known.given..known.given + length).map(pattern).collect();
        known.given += length;
        known.over |= operation == Operation::Reset;
        let header = Header {
            source_cid: GUEST_CID.into(),
            destination_cid: HOST_CID,
            source_port: known.guest_port,
            destination_port: port,
            length: u32::try_from(length).unwrap_or(0),
            kind: TYPE_STREAM,
            operation: Some(operation),
            flags: u32::try_from(self.bytes.byte()).unwrap_or(0),
            buffer: known.buffer,
            forwarded: known.forwarded,
        };
        self.switch.receive(&header, &payload);
    }

    /// Whether there was something.
    fn guest_takes(&mut self, space: usize) -> bool {
        let mut payload = vec![0; space];
        let Some(header) = self.switch.output(&mut payload, self.now) else { return false };
        assert_eq!((header.source_cid, header.destination_cid), (HOST_CID, GUEST_CID.into()));
        assert_eq!(header.kind, TYPE_STREAM);
        let operation = header.operation.expect("the switch says what it wants");
        if operation == Operation::Request {
            let known = Known { guest_port: header.destination_port, ..Known::default() };
            assert!(self.known.insert(header.source_port, known).is_none(), "a port is used twice");
            self.ports.push(header.source_port);
        }
        if operation == Operation::Reset
            && let Some(known) = self.known.get_mut(&header.source_port)
        {
            known.over |= known.guest_port == header.destination_port;
        }
        if operation != Operation::Data {
            assert_eq!(header.length, 0);
            assert!(operation != Operation::Response, "the guest asked for nothing");
            return true;
        }
        let known = self.known.get_mut(&header.source_port).expect("data on a stream that was asked for");
        assert_eq!(header.destination_port, known.guest_port);
        let length = header.length as usize;
        for (at, byte) in (known.taken..).zip(&payload[..length]) {
            assert_eq!(*byte, pattern(at), "byte {at} for the guest");
        }
        known.taken += length;
        let waiting = u32::try_from(known.taken).unwrap_or(0).wrapping_sub(known.forwarded);
        assert!(waiting <= known.buffer, "{waiting} bytes for a buffer of {}", known.buffer);
        true
    }

    fn events(&mut self) {
        let none = epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
        let mut events = [none; 16];
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let count = epoll::wait(self.switch.poll(), &mut events, Some(&at_once)).unwrap_or(0);
        for event in &events[..count] {
            let port = u32::try_from(event.data.u64()).expect("a port");
            self.switch.on_socket(port, event.flags, self.now);
        }
    }

    fn end(mut self) {
        for client in 0..CLIENTS {
            self.bytes = Bytes([255].iter());
            self.read(client);
        }
        self.clients.clear();
        // Each event, and then the ends that the guest does not confirm.
        self.events();
        self.events();
        while self.guest_takes(4096) {}
        self.events();
        self.switch.expire(self.now + Duration::from_secs(3600));
        while self.guest_takes(4096) {}
        assert_eq!(self.switch.count(), 0, "streams are left");
        for (port, known) in &self.known {
            assert!(known.over, "the guest does not know that {port} is over");
        }
        assert!(!self.switch.has_output() && !self.switch.has_deadlines());
    }
}

/// The byte at a place in a stream; its period is no power of two.
fn pattern(at: usize) -> u8 {
    u8::try_from(at % 251).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A client asks, is answered, and both sides talk.
    const TALK: &[u8] = &[
        0, 0, 0, 80, 9, 1, 100, 5, 0, 0, 100, 0, 0, 1, 0, 90, 9, 3, 50, 50, 50, 6, 0, 0, 70, 100, 0, 0, 2, 0,
        127, 7, 0, 0, 100, 0, 3,
    ];

    #[test]
    fn a_conversation_goes_both_ways() {
        run(TALK);
        let mut trial = Trial::new(TALK);
        while let Some(kind) = trial.bytes.next() {
            trial.step(kind % 12);
            trial.events();
        }
        assert_eq!(trial.clients[0].read, 70);
        assert_eq!(trial.known[&trial.ports[0]].taken, 90);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        #[test]
        fn nothing_is_lost_left_or_without_bounds(
            steps in prop::collection::vec(any::<u8>(), 0..300),
            talks in 0_usize..4,
        ) {
            let mut input = TALK.repeat(talks);
            input.extend(steps);
            run(&input);
        }

        #[test]
        fn steps_that_make_sense_lead_far(
            steps in prop::collection::vec((0_u8..12, prop::collection::vec(0_u8..140, 6)), 0..120),
        ) {
            let input: Vec<u8> =
                steps.into_iter().flat_map(|(kind, bytes)| std::iter::once(kind).chain(bytes)).collect();
            run(&input);
        }
    }
}
