//! The device between clients and a guest that can do anything.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod guest;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use guest::{
    CREDIT_REQUEST, CREDIT_UPDATE, DATA, Descriptor, Guest, PATIENCE, Packet, REQUEST, RESET, RESPONSE,
    SHUTDOWN, Stream, line,
};

const RECEIVE: u32 = 1;
const SEND: u32 = 2;

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

#[test]
fn a_stream_carries_everything_to_the_guest_and_its_end() {
    let mut guest = Guest::boot(8);
    let (mut client, mut stream) = guest.open(5);
    let sent = bytes(3_000_000);
    let (got, end) = std::thread::scope(|scope| {
        scope.spawn(|| {
            client.write_all(&sent).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        loop {
            let packet = guest.next_event();
            if packet.operation != DATA {
                break (got, packet);
            }
            got.extend(packet.payload);
            let taken = u32::try_from(got.len()).unwrap();
            assert!(taken - stream.forwarded <= stream.buffer, "more than there is room for");
            // As late as possible.
            if taken - stream.forwarded == stream.buffer {
                stream.forwarded = taken;
                guest.send(&stream.packet(CREDIT_UPDATE));
            }
        }
    });
    assert!(got == sent);
    assert_eq!((end.operation, end.flags), (SHUTDOWN, SEND));
    // The other direction goes on.
    guest.send(&stream.data(b"still here"));
    guest.send(&stream.shutdown(RECEIVE | SEND));
    assert_eq!(guest.next_event().operation, RESET);
    let mut rest = String::new();
    client.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "still here");
    guest.check();
    guest.off();
}

#[test]
fn a_stream_carries_everything_from_the_guest_and_its_end() {
    let mut guest = Guest::boot(8);
    let (mut client, stream) = guest.open(5);
    let sent = bytes(3_000_000);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut got = Vec::new();
            client.read_to_end(&mut got).unwrap();
            client.write_all(b"thanks").unwrap();
            got
        });
        send_all(&mut guest, &stream, &sent);
        guest.send(&stream.shutdown(SEND));
        assert!(reader.join().unwrap() == sent);
    });
    assert_eq!(guest.next_event().payload, b"thanks");
    drop(client);
    let end = guest.next_event();
    assert_eq!((end.operation, end.flags), (SHUTDOWN, RECEIVE | SEND));
    guest.send(&stream.packet(RESET));
    guest.check();
    guest.off();
}

/// Sends with as much credit as the device gives.
fn send_all(guest: &mut Guest, stream: &Stream, bytes: &[u8]) {
    let (mut sent, mut buffer, mut forwarded) = (0, 0, 0);
    guest.send(&stream.packet(CREDIT_REQUEST));
    while sent < bytes.len() {
        let room = buffer - (sent - forwarded);
        if room == 0 || buffer == 0 {
            let packet = guest.next();
            assert_eq!(packet.operation, CREDIT_UPDATE);
            (buffer, forwarded) = (packet.buffer as usize, packet.forwarded as usize);
            continue;
        }
        let end = bytes.len().min(sent + room.min(64 << 10));
        guest.send(&stream.data(&bytes[sent..end]));
        sent = end;
    }
}

#[test]
fn a_port_without_listener_is_refused_at_once() {
    let mut guest = Guest::boot(8);
    let (mut client, stream) = guest.ask(7);
    guest.send(&stream.packet(RESET));
    assert_eq!(line(&mut client), "ERROR the guest has no listener on that port");
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    guest.off();
}

#[test]
fn the_guest_reaches_nothing_of_the_hosts() {
    let mut guest = Guest::boot(8);
    let (_client, open) = guest.open(5);
    for port in [1024, 1, u32::MAX, open.host_port] {
        let stream = Stream { host_port: port, guest_port: 99, buffer: 4096, forwarded: 0 };
        for operation in [REQUEST, RESPONSE, DATA, SHUTDOWN, CREDIT_REQUEST] {
            guest.send(&stream.packet(operation));
            let answer = guest.next();
            assert_eq!(
                (answer.operation, answer.source_port, answer.destination_port),
                (RESET, port, 99),
                "{operation}"
            );
        }
        // No answer to an answer.
        guest.send(&stream.packet(RESET));
    }
    guest.check();
    guest.off();
}

#[test]
fn a_client_may_vanish_at_any_moment() {
    let mut guest = Guest::boot(8);
    // Before it has said anything, and in the middle of a word.
    drop(guest.client());
    guest.client().write_all(b"CONN").unwrap();
    // Before it is answered.
    let (client, stream) = guest.ask(5);
    drop(client);
    assert_eq!(guest.next_event().operation, RESET);
    // The answer comes all the same.
    guest.send(&stream.packet(RESPONSE));
    assert_eq!(guest.next_event().operation, RESET);
    // Without having read its answer.
    let (client, stream) = guest.ask(5);
    guest.send(&stream.packet(RESPONSE));
    drop(client);
    assert_eq!(guest.next_event().operation, RESET);
    // With bytes for it unread.
    let (client, stream) = guest.open(5);
    guest.send(&stream.data(&bytes(1000)));
    drop(client);
    assert_eq!(guest.next_event().operation, RESET);
    // In the middle of what it says: that arrives, and then the end.
    let (mut client, stream) = guest.open(5);
    client.write_all(&bytes(1000)).unwrap();
    drop(client);
    let mut last = guest.next_event();
    if last.operation == DATA {
        assert_eq!(last.payload, bytes(1000));
        last = guest.next_event();
    }
    // A close has two halves, and the device may look in between.
    if (last.operation, last.flags) == (SHUTDOWN, SEND) {
        last = guest.next_event();
    }
    assert_eq!((last.operation, last.flags), (SHUTDOWN, RECEIVE | SEND));
    guest.send(&stream.packet(RESET));
    guest.check();
    guest.off();
}

#[test]
fn a_client_that_asks_for_nothing_sensible_is_told_so() {
    let mut guest = Guest::boot(8);
    for words in ["CONNECT\n", "CONNECT -1\n", "CONNECT 4294967296\n", "connect 1\n", "\n"] {
        let mut client = guest.client();
        client.write_all(words.as_bytes()).unwrap();
        assert_eq!(line(&mut client), "ERROR say CONNECT and a port", "{words:?}");
    }
    let mut client = guest.client();
    client.write_all(&[b'x'; 32]).unwrap();
    assert_eq!(line(&mut client), "ERROR the first line is too long");
    // What follows the line in one piece belongs to the stream.
    let mut client = guest.client();
    client.write_all(b"CONNECT 9\nearly").unwrap();
    let request = guest.next();
    let stream = Stream { host_port: request.source_port, guest_port: 9, buffer: 3, forwarded: 0 };
    guest.send(&stream.packet(RESPONSE));
    assert_eq!(guest.next().payload, b"ear");
    guest.send(&Stream { forwarded: 3, ..stream }.packet(CREDIT_UPDATE));
    assert_eq!(guest.next().payload, b"ly");
    guest.off();
}

#[test]
fn a_hundred_streams_that_nobody_reads_hold_up_nobody() {
    const STREAMS: usize = 100;
    let mut guest = Guest::boot(1024);
    let mut unread: Vec<(UnixStream, Stream)> = Vec::new();
    for _ in 0..STREAMS {
        let (client, mut stream) = guest.open(5);
        // The guest reads nothing, either.
        stream.buffer = 0;
        client.set_nonblocking(true).unwrap();
        unread.push((client, stream));
    }
    for (client, stream) in &mut unread {
        // Both directions are filled up.
        let filled = loop {
            match client.write(&[7; 65536]) {
                Ok(length) => assert_ne!(length, 0),
                Err(error) => break error,
            }
        };
        assert_eq!(filled.kind(), ErrorKind::WouldBlock);
        fill(&mut guest, stream);
    }
    let begin = Instant::now();
    guest.check();
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    // Each full window is kept, and not much else.
    let resident = guest.resident();
    assert!(resident < 40 << 20, "{} KiB", resident >> 10);
    drop(unread);
    guest.check_later();
    guest.off();
}

/// Sends to a client that does not read, until there is no room; what
/// that was.
fn fill(guest: &mut Guest, stream: &Stream) -> Vec<u8> {
    /// Updates come unasked, too: an answer may be an older one.
    const SURE: u32 = 8;
    let (mut sent, mut forwarded, mut full) = (Vec::new(), 0_u32, 0);
    while full < SURE {
        guest.send(&stream.packet(CREDIT_REQUEST));
        let answer = loop {
            let packet = guest.next();
            if packet.operation == CREDIT_UPDATE && packet.source_port == stream.host_port {
                break packet;
            }
        };
        forwarded = forwarded.max(answer.forwarded);
        let waiting = u32::try_from(sent.len()).unwrap() - forwarded;
        let room = (answer.buffer - waiting).min(64 << 10);
        if room == 0 {
            full += 1;
            continue;
        }
        let more = bytes(room as usize);
        guest.send(&stream.data(&more));
        sent.extend(more);
        full = 0;
    }
    sent
}

impl Guest {
    /// Like [`Guest::check`], while other streams end.
    fn check_later(&mut self) {
        let mut client = self.client();
        client.write_all(b"CONNECT 77\n").unwrap();
        let end = Instant::now() + PATIENCE;
        let request = loop {
            let packet = self.next_until(end).expect("the request comes");
            if packet.operation == REQUEST {
                break packet;
            }
        };
        let stream = Stream { host_port: request.source_port, guest_port: 77, buffer: 4096, forwarded: 0 };
        self.send(&stream.packet(RESPONSE));
        assert!(line(&mut client).starts_with("OK "));
    }
}

#[test]
fn what_was_sent_arrives_after_the_guest_has_ended_its_side() {
    let mut guest = Guest::boot(8);
    for last in [RESET, SHUTDOWN] {
        let (mut client, stream) = guest.open(5);
        let sent = fill(&mut guest, &stream);
        // Either all at once, or this side only.
        guest.send(&Packet { operation: last, ..stream.shutdown(SEND) });
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
        if last == SHUTDOWN {
            client.write_all(b"to the end").unwrap();
            assert_eq!(guest.next_event().payload, b"to the end");
        }
    }
    guest.off();
}

#[test]
fn more_than_the_window_is_the_end_of_a_stream() {
    let mut guest = Guest::boot(8);
    let (mut client, stream) = guest.open(5);
    let (_other, idle) = guest.open(6);
    fill(&mut guest, &stream);
    guest.send(&stream.data(b"x"));
    assert_eq!(guest.next_event().operation, RESET);
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    // The other stream knows nothing of it.
    guest.send(&idle.data(b"fine"));
    guest.check();
    guest.off();
}

#[test]
fn packets_of_a_hostile_guest_end_at_most_their_own_stream() {
    let mut guest = Guest::boot(64);
    let (_kept, kept) = guest.open(4);
    type Change = fn(&mut Packet);
    let changes: [(Change, bool); 12] = [
        (|packet| packet.source_cid = 4, false),
        (|packet| packet.destination_cid = 1, false),
        (|packet| packet.destination_cid = u64::MAX, false),
        (|packet| packet.kind = 2, true),
        (|packet| packet.kind = 0, true),
        (|packet| packet.operation = 0, true),
        (|packet| packet.operation = 8, true),
        (|packet| packet.operation = u16::MAX, true),
        (|packet| packet.operation = REQUEST, true),
        (|packet| packet.operation = RESPONSE, true),
        // Less is there than it says; and more than fits anywhere.
        (|packet| packet.length = 5, true),
        (|packet| packet.length = u32::MAX, true),
    ];
    let mut clients = Vec::new();
    for (number, (change, resets)) in changes.into_iter().enumerate() {
        let (client, stream) = guest.open(5);
        clients.push(client);
        let mut packet = stream.data(b"four");
        change(&mut packet);
        guest.send(&packet);
        if resets {
            assert_eq!(guest.next_event().operation, RESET, "change {number}");
        }
    }
    // Claims that make no sense concern their own stream only.
    let claims = [(0, 0), (u32::MAX, 12345), (10, u32::MAX), (u32::MAX, u32::MAX)];
    let open: Vec<_> = claims.iter().map(|_| guest.open(5)).collect();
    for ((mut client, stream), (buffer, forwarded)) in open.into_iter().zip(claims) {
        guest.send(&Stream { buffer, forwarded, ..stream }.packet(CREDIT_UPDATE));
        client.write_all(b"x").unwrap();
        clients.push(client);
    }
    guest.send(&kept.packet(CREDIT_REQUEST));
    loop {
        let packet = guest.next();
        if packet.operation == CREDIT_UPDATE && packet.source_port == kept.host_port {
            break;
        }
    }
    guest.off();
}

#[test]
fn chains_of_a_hostile_guest_are_given_back() {
    let mut guest = Guest::boot(8);
    let (_client, _stream) = guest.open(5);
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;
    let chains: [&[(u16, Descriptor)]; 8] = [
        // Nowhere, across the end, past all addresses.
        &[(0, (1 << 40, 44, 0, 0))],
        &[(0, ((32 << 20) - 20, 44, 0, 0))],
        &[(0, (u64::MAX - 10, 44, 0, 0))],
        // Too short for a header; nothing at all; nothing to read.
        &[(0, (0x40_0000, 43, 0, 0))],
        &[(0, (0x40_0000, 0, 0, 0))],
        &[(0, (0x40_0000, 4096, WRITE, 0))],
        // In a circle; a table of descriptors that was not agreed upon, in nowhere.
        &[(0, (0x40_0000, 4, NEXT, 1)), (1, (0x40_0000, 4, NEXT, 0))],
        &[(0, (1 << 41, 16 * 65535, INDIRECT, 0))],
    ];
    for chain in chains {
        guest.send_chain(chain);
    }
    // A table that consists of itself.
    guest.send_chain(&[(3, (0x40_0000, 16, INDIRECT, 0))]);
    guest.check();
    guest.off();
}

#[test]
fn a_ring_without_sense_ends_the_channel_until_the_driver_starts_anew() {
    let mut guest = Guest::boot(8);
    let (mut client, _stream) = guest.open(5);
    guest.break_ring();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    guest.restart();
    guest.check();
    guest.off();
}

#[test]
fn a_guest_that_was_reset_knows_no_stream() {
    let mut guest = Guest::boot(8);
    let (mut client, stream) = guest.open(5);
    guest.restart();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    guest.send(&stream.data(b"old"));
    assert_eq!(guest.next().operation, RESET);
    guest.check();
    guest.off();
}

#[test]
fn one_stream_more_than_the_limit_is_refused() {
    let mut guest = Guest::boot(3);
    let mut open: Vec<_> = (0..3).map(|_| guest.open(5)).collect();
    let mut client = guest.client();
    assert_eq!(line(&mut client), "ERROR the machine has too many streams");
    let (_client, stream) = open.pop().unwrap();
    guest.send(&stream.packet(RESET));
    guest.check();
    guest.off();
}

#[test]
fn clients_see_the_end_of_the_emulator() {
    let mut guest = Guest::boot(8);
    let (mut client, _stream) = guest.open(5);
    let mut asking = guest.client();
    guest.off();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    assert_eq!(asking.read(&mut [0]).unwrap_or(0), 0);
}
