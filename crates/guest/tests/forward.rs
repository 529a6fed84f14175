//! Connections to ports in the pod.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

#[allow(dead_code, reason = "each test program uses a part of it")]
mod support;

use std::time::{Duration, Instant};

use kina_attachment::Namespace;
use kina_guest_api::{PortForward, PortForwardOutput, Refusal, v1};
use support::{Guest, Net, PATIENCE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A pod with a container, whose network namespace the test can enter.
async fn pod() -> (Guest, Namespace) {
    let guest = Guest::with_pod().await;
    let pid = guest.run(guest.container("c", "sleep 1000")).await;
    let namespace = Namespace::open(format!("/proc/{pid}/ns/net")).unwrap();
    (guest, namespace)
}

async fn listen(namespace: &Namespace, address: &'static str) -> (TcpListener, u16) {
    let bound = namespace.run(move || std::net::TcpListener::bind(address).unwrap()).await.unwrap();
    bound.set_nonblocking(true).unwrap();
    let port = bound.local_addr().unwrap().port();
    (TcpListener::from_std(bound).unwrap(), port)
}

async fn accept(listener: &TcpListener) -> TcpStream {
    tokio::time::timeout(PATIENCE, listener.accept()).await.unwrap().unwrap().0
}

async fn read_to_end(output: &mut PortForwardOutput) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(bytes) = tokio::time::timeout(PATIENCE, output.next()).await.unwrap().unwrap() {
        all.extend(bytes);
    }
    all
}

fn data(seed: u32, length: usize) -> Vec<u8> {
    (0..length as u32)
        .map(|number| (number.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8)
        .collect()
}

#[tokio::test]
async fn data_goes_both_ways_and_each_way_ends_by_itself() {
    let (guest, namespace) = pod().await;
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (listener, port) = listen(&namespace, address).await;
        let PortForward { input, mut output } = guest.client.port_forward(port).await.unwrap();
        let server = tokio::spawn(async move {
            let (mut from, mut to) = accept(&listener).await.into_split();
            let send = async {
                to.write_all(&data(1, 8 << 20)).await.unwrap();
            };
            let mut received = Vec::new();
            let ((), read) = tokio::join!(send, from.read_to_end(&mut received));
            read.unwrap();
            // The caller has ended; what it is told now still arrives.
            to.write_all(b"last words").await.unwrap();
            received
        });
        let send = async {
            input.send(&data(2, 8 << 20)).await.unwrap();
            input.end().await.unwrap();
        };
        let ((), received) = tokio::join!(send, read_to_end(&mut output));
        assert_eq!(server.await.unwrap(), data(2, 8 << 20));
        assert_eq!(received, [data(1, 8 << 20), b"last words".to_vec()].concat());
        assert_eq!(output.next().await.unwrap(), None);
    }
}

#[tokio::test]
async fn the_pod_ends_first_and_the_caller_goes_on() {
    let (guest, namespace) = pod().await;
    let (listener, port) = listen(&namespace, "127.0.0.1:0").await;
    let PortForward { input, mut output } = guest.client.port_forward(port).await.unwrap();
    let mut server = accept(&listener).await;
    server.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut output).await, b"");
    input.send(b"still here").await.unwrap();
    input.end().await.unwrap();
    let mut text = String::new();
    tokio::time::timeout(PATIENCE, server.read_to_string(&mut text)).await.unwrap().unwrap();
    assert_eq!(text, "still here");
}

#[tokio::test]
async fn what_nobody_takes_is_refused_with_the_reason() {
    let guest = Guest::start().await;
    let early = guest.client.port_forward(80).await.unwrap_err();
    assert_eq!(early.refusal(), Some(Refusal::WrongState));
    guest.client.setup_pod(guest.pod()).await.unwrap();
    let closed = guest.client.port_forward(1).await.unwrap_err();
    assert_eq!(closed.refusal(), Some(Refusal::WrongState));
    assert!(closed.to_string().contains("port 1 in the pod: Connection refused"), "{closed}");
    assert_eq!(guest.client.port_forward(0).await.unwrap_err().refusal(), Some(Refusal::Invalid));
}

#[tokio::test]
async fn a_caller_that_goes_away_ends_the_connection() {
    let (guest, namespace) = pod().await;
    let (listener, port) = listen(&namespace, "127.0.0.1:0").await;
    for half in [true, false] {
        let PortForward { input, output } = guest.client.port_forward(port).await.unwrap();
        let mut server = accept(&listener).await;
        // Dropping either is going away.
        if half {
            drop(input);
            drop(output);
        } else {
            drop(output);
            drop(input);
        }
        let read = tokio::time::timeout(PATIENCE, server.read(&mut [0; 8])).await.unwrap();
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    }
    // A connection that the pod breaks is told.
    let PortForward { input: _input, mut output } = guest.client.port_forward(port).await.unwrap();
    let server = accept(&listener).await;
    server.set_zero_linger().unwrap();
    drop(server);
    let broken = tokio::time::timeout(PATIENCE, output.next()).await.unwrap().unwrap_err();
    assert!(broken.to_string().contains("reset"), "{broken}");
}

/// Fills a connection until nothing more of it is taken for a while.
async fn fill(stream: &mut TcpStream) -> usize {
    let piece = vec![7; 64 << 10];
    let mut sent = 0;
    while let Ok(Ok(length)) = tokio::time::timeout(Duration::from_millis(200), stream.write(&piece)).await {
        sent += length;
    }
    sent
}

#[tokio::test]
async fn unread_streams_stall_themselves_only() {
    let (guest, namespace) = pod().await;
    let (listener, port) = listen(&namespace, "127.0.0.1:0").await;
    let mut forwards = Vec::new();
    let mut servers = tokio::task::JoinSet::new();
    for _ in 0..100 {
        forwards.push(guest.client.port_forward(port).await.unwrap());
        let mut server = accept(&listener).await;
        servers.spawn(async move {
            let sent = fill(&mut server).await;
            (server, sent)
        });
    }
    let filled = tokio::time::timeout(PATIENCE, servers.join_all()).await.unwrap();
    let begin = Instant::now();
    guest.client.list_containers().await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    // Sockets, windows and pieces; the rest waits in the pod.
    let most = filled.iter().map(|(_, sent)| *sent).max().unwrap();
    assert!(most < 16 << 20, "{most}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", guest.process.id())).unwrap();
    let resident = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap().to_owned();
    let kilobytes: usize = resident.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kilobytes < 64 << 10, "{resident}");
    // They go on once they are read.
    let PortForward { input: _input, mut output } = forwards.pop().unwrap();
    let stalled = tokio::time::timeout(PATIENCE, output.next()).await.unwrap().unwrap();
    assert!(stalled.is_some());
    drop(forwards);
    let (mut other, _) = filled.into_iter().next().unwrap();
    let ended = tokio::time::timeout(PATIENCE, other.read(&mut [0; 8])).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
}

#[tokio::test]
async fn a_pod_on_the_machines_network_is_reached_there() {
    let machine = Net::new();
    machine.ip("link set lo up").await;
    let guest = Guest::start_in(&machine.namespace).await;
    let network = Some(v1::PodNetwork { kind: Some(v1::pod_network::Kind::Host(v1::Empty {})) });
    let pod = v1::SetupPodRequest { network, ..guest.pod() };
    guest.client.setup_pod(pod).await.unwrap();
    let (listener, port) = listen(&machine.namespace, "127.0.0.1:0").await;
    let PortForward { input, mut output } = guest.client.port_forward(port).await.unwrap();
    let mut server = accept(&listener).await;
    server.write_all(b"hello").await.unwrap();
    drop(server);
    assert_eq!(read_to_end(&mut output).await, b"hello");
    drop(input);
}
