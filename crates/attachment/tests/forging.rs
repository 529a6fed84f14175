//! What the root of a machine sends in other pods' names, on a bridge as most plugins
//! make one.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "helpers here are part of tests")]

mod support;

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};

use kina_attachment::tap::{self, Tap};
use kina_attachment::{Damage, Interface, Mac};
use rustix::net::{AddressFamily, Protocol, SocketType};
use support::{Net, eventually, receive, rig};

const OTHER: Mac = Mac([2, 0, 0, 0, 0, 0x0b]);
const ECHO_PORT: u16 = 4000;

/// A node with a bridge and two pods on it. One has a machine, whose root this is.
struct Rig {
    node: Net,
    sandbox: Net,
    _other: Net,
    tap: Tap,
}

impl Rig {
    fn new(forging: bool) -> Self {
        let (node, sandbox, other) = (Net::new(), Net::new(), Net::new());
        node.ip("link add br0 type bridge");
        node.ip("link set br0 up");
        for (name, pod, number) in [("lxca", &sandbox, "a"), ("lxcb", &other, "b")] {
            node.veth(name, pod, "eth0", 1500);
            node.ip(&format!("link set {name} master br0"));
            pod.ip(&format!("link set eth0 address 02:00:00:00:00:0{number}"));
            pod.ip(&format!("address add 10.1.0.1{}/24 dev eth0", u8::from(number == "b")));
            pod.ip(&format!("address add fd00:1::{number}/64 dev eth0 nodad"));
        }
        node.ip("address add 10.1.0.1/24 dev br0");
        node.ip("address add fd00:1::1/64 dev br0 nodad");
        Self { node, sandbox, _other: other, tap: Tap { forging, ..Tap::new("eth0") } }
    }

    async fn attach(&self) -> (Interface, Card) {
        let interface = tap::attach(&self.sandbox.namespace, &self.tap).await.unwrap();
        (interface, Card(tap::open_queue(&self.sandbox.namespace, &self.tap).await.unwrap().into()))
    }

    fn neighbour(&self, address: &str) -> String {
        self.node.ip(&format!("neighbour show {address} dev br0"))
    }
}

/// The machine's card, as its kernel writes to it.
struct Card(File);

impl Card {
    fn send(&mut self, frame: &[u8]) {
        let with_header = [&[0; 10][..], frame].concat();
        assert_eq!(self.0.write(&with_header).unwrap(), with_header.len());
    }
}

fn ip(text: &str) -> Vec<u8> {
    match text.parse().unwrap() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn ethernet(from: Mac, protocol: u16, packet: &[u8]) -> Vec<u8> {
    [&[0xff; 6][..], &from.0, &protocol.to_be_bytes(), packet].concat()
}

fn datagram(from: Mac, source: [u8; 4], port: u16) -> Vec<u8> {
    let mut frame = rig::frame(Mac([0xff; 6]), source, [10, 1, 0, 1], port);
    frame[6..12].copy_from_slice(&from.0);
    frame
}

/// "The one with this address is I": to everybody, unasked (RFC 5227 section 3).
fn announcement(from: Mac, sender: Mac, address: &str) -> Vec<u8> {
    let address = ip(address);
    let packet = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &sender.0, &address, &[0; 6], &address].concat();
    ethernet(from, 0x0806, &packet)
}

/// An ICMPv6 message to all nodes.
fn message(from: Mac, source: &str, body: &[u8]) -> Vec<u8> {
    let (source, target) = (ip(source), ip("ff02::1"));
    let length = u16::try_from(body.len()).unwrap();
    let pseudo = [&source[..], &target, &u32::from(length).to_be_bytes(), &[0, 0, 0, 58], body].concat();
    let mut sum: u32 = pseudo.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let mut body = body.to_vec();
    body[2..4].copy_from_slice(&(!u16::try_from(sum).unwrap()).to_be_bytes());
    let header = [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[58, 255]].concat();
    ethernet(from, 0x86dd, &[&header[..], &source, &target, &body].concat())
}

/// A neighbour advertisement that replaces what is known.
fn advertisement(from: Mac, source: &str, about: &str) -> Vec<u8> {
    let body = [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &ip(about), &[2, 1], &from.0].concat();
    message(from, source, &body)
}

#[tokio::test]
async fn with_forging_a_machine_can_be_another_pod_and_without_it_cannot() {
    for forging in [true, false] {
        let rig = Rig::new(forging);
        let (interface, mut card) = rig.attach().await;
        let own = interface.mac;
        let socket = rig.node.run(|| std::net::UdpSocket::bind(("10.1.0.1", ECHO_PORT)).unwrap());
        socket.set_read_timeout(Some(support::PATIENCE)).unwrap();
        // Who they are, before.
        for (address, mac) in [("10.1.0.11", OTHER), ("fd00:1::b", OTHER)] {
            rig.node.ip(&format!("neighbour replace {address} lladdr {mac} dev br0 nud stale"));
        }
        card.send(&announcement(own, own, "10.1.0.11"));
        card.send(&advertisement(own, "fd00:1::a", "fd00:1::b"));
        card.send(&datagram(own, [10, 1, 0, 11], ECHO_PORT));
        card.send(&datagram(OTHER, [10, 1, 0, 10], ECHO_PORT));
        // What it may send comes behind.
        for (address, mac) in [("10.1.0.10", OTHER), ("fd00:1::a", OTHER)] {
            rig.node.ip(&format!("neighbour replace {address} lladdr {mac} dev br0 nud stale"));
        }
        card.send(&announcement(own, own, "10.1.0.10"));
        card.send(&advertisement(own, "fd00:1::a", "fd00:1::a"));
        card.send(&datagram(own, [10, 1, 0, 10], ECHO_PORT));
        for address in ["10.1.0.10", "fd00:1::a"] {
            eventually("its own address", || rig.neighbour(address).contains(&own.to_string()));
        }
        let believed = |address: &str| rig.neighbour(address).contains(&own.to_string());
        assert_eq!(believed("10.1.0.11"), forging, "{}", rig.neighbour("10.1.0.11"));
        assert_eq!(believed("fd00:1::b"), forging, "{}", rig.neighbour("fd00:1::b"));
        let mut senders = Vec::new();
        while senders.last() != Some(&"10.1.0.10".to_owned()) || (forging && senders.len() < 3) {
            let (_, from): (usize, SocketAddr) = receive(&socket, &mut [0; 64]).unwrap();
            senders.push(from.ip().to_string());
        }
        let expected: &[&str] =
            if forging { &["10.1.0.11", "10.1.0.10", "10.1.0.10"] } else { &["10.1.0.10"] };
        assert_eq!(senders, expected);
        let ports = rig.node.command("bridge", "fdb show br br0").unwrap();
        let moved = ports.lines().any(|line| line.starts_with(&OTHER.to_string()) && line.contains("lxca"));
        assert_eq!(moved, forging, "{ports}");
        let dropped = rig.sandbox.command("nft", "list ruleset").unwrap_or_default();
        println!("forging {forging}: {dropped}");
        assert_eq!(dropped.contains("packets 4"), !forging, "{dropped}");
    }
}

#[tokio::test]
async fn the_kernel_lets_through_what_it_should() {
    let rig = Rig::new(false);
    let (interface, mut card) = rig.attach().await;
    let own = interface.mac;
    let packets = rig.node.run(|| {
        let all = u32::from(3_u16.to_be());
        rustix::net::socket(
            AddressFamily::PACKET,
            SocketType::RAW,
            Some(Protocol::from_raw(all.try_into().unwrap())),
        )
        .unwrap()
    });
    rustix::net::sockopt::set_socket_timeout(
        &packets,
        rustix::net::sockopt::Timeout::Recv,
        Some(support::PATIENCE),
    )
    .unwrap();
    let kind = |kind: u8| message(own, "fd00:1::a", &[&[kind][..], &[0; 23]].concat());
    let extension = |header: u8| {
        let mut frame = kind(128);
        frame[14 + 6] = header;
        frame
    };
    let tagged = [&[0xff; 6][..], &own.0, &[0x81, 0, 0, 5, 8, 0], &datagram(own, [10, 1, 0, 10], 1)[14..]];
    let cases = [
        ("own", datagram(own, [10, 1, 0, 10], 1), true),
        ("in a VLAN", tagged.concat(), false),
        ("own echo", kind(128), true),
        ("own solicitation", kind(135), true),
        ("a router", kind(134), false),
        ("a redirect", kind(137), false),
        ("behind a routing header", extension(43), false),
        ("behind options", extension(60), false),
        ("own fragment", extension(44), true),
        ("spanning tree", ethernet(own, 0x0027, &[0x42, 0x42, 3]), false),
        ("a short one", ethernet(own, 0x0800, &[0x45]), false),
        ("no address", datagram(own, [0, 0, 0, 0], 1), false),
        ("own at last", datagram(own, [10, 1, 0, 10], 2), true),
    ];
    let mark = |number: usize| format!("<mark {number:02}>").into_bytes();
    for (number, (_, frame, _)) in cases.iter().enumerate() {
        card.send(&[&frame[..], &mark(number)].concat());
    }
    let mut seen = vec![false; cases.len()];
    while !seen[cases.len() - 1] {
        let mut frame = vec![0; 2048];
        let (length, _) =
            rustix::net::recv(&packets, &mut frame[..], rustix::net::RecvFlags::empty()).unwrap();
        let tail = &frame[..length];
        for (number, seen) in seen.iter_mut().enumerate() {
            *seen |= tail.ends_with(&mark(number));
        }
    }
    for ((what, _, expected), seen) in cases.iter().zip(seen) {
        assert_eq!(seen, *expected, "{what}");
    }
}

#[tokio::test]
async fn damage_is_seen_and_healed() {
    let rig = Rig::new(false);
    let check = async || tap::check(&rig.sandbox.namespace, &rig.tap).await.unwrap();
    drop(rig.attach().await);
    assert_eq!(check().await, []);
    let joint = Damage::NotJoined { from: "tap0".to_owned(), to: "eth0".to_owned() };
    for (program, command, damage) in [
        ("nft", "flush ruleset", Damage::Unguarded),
        ("nft", "flush chain netdev kina tap0", Damage::Unguarded),
        ("tc", "filter del dev tap0 ingress prio 1 protocol ip", joint.clone()),
        (
            "tc",
            "filter add dev tap0 ingress prio 3 protocol ipv6 u32 match u32 0 0 action mirred egress redirect dev eth0",
            joint.clone(),
        ),
        // Another address of the pod.
        ("ip", "address add 10.1.0.99/24 dev eth0", joint),
    ] {
        rig.sandbox.command(program, command).unwrap();
        assert_eq!(check().await, [damage], "{command}");
        drop(rig.attach().await);
        assert_eq!(check().await, [], "healed: {command}");
    }
    // A daemon that is told otherwise changes it, and back.
    for forging in [true, false, true] {
        let tap = Tap { forging, ..rig.tap.clone() };
        tap::attach(&rig.sandbox.namespace, &tap).await.unwrap();
        assert_eq!(tap::check(&rig.sandbox.namespace, &tap).await.unwrap(), []);
        let rules = rig.sandbox.command("nft", "list ruleset").unwrap();
        assert_eq!(rules.contains("drop"), !forging, "{rules}");
    }
    tap::detach(&rig.sandbox.namespace, &rig.tap).await.unwrap();
    assert_eq!(rig.sandbox.command("nft", "list ruleset").unwrap(), "");
}
