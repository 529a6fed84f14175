//! Tunnels: two nodes and three pod machines as namespaces on one bridge.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "helpers here are part of tests")]

mod support;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use kina_attachment::tunnel::{self, Tunnel};
use kina_attachment::{Damage, Error, Mac, inspect};
use support::rig::{Pod, Rig, encapsulate, frame};
use support::{Net, PATIENCE, answers, eventually, ping, receive};

#[tokio::test]
async fn every_packet_of_a_pod_passes_the_nodes_end_of_its_interface() {
    let rig = Rig::new(1500);
    let (a, b, c) = (rig.pod(0, 0, 1500, None), rig.pod(0, 1, 1500, None), rig.pod(1, 2, 1500, None));
    for (pod, vni) in [(&a, 101), (&b, 102), (&c, 103)] {
        rig.connect(pod, vni, false).await;
    }
    // What the kernel sends by itself when an interface comes up is over.
    for family in 0..2 {
        ping(&a.inside.udp(a.addresses[family]), b.inside.echo(b.addresses[family]), 1);
        ping(&a.inside.udp(a.addresses[family]), c.inside.echo(c.addresses[family]), 1);
    }
    let before = a.gate.counts();
    let mut sent = 0;
    // On one node, over two, and with the node itself; both families.
    for family in 0..2 {
        let node: IpAddr = if family == 0 { "192.0.2.1" } else { "2001:db8::1" }.parse().unwrap();
        let targets =
            [b.inside.echo(b.addresses[family]), c.inside.echo(c.addresses[family]), rig.nodes[0].echo(node)];
        let socket = a.inside.udp(a.addresses[family]);
        for target in targets {
            for length in 1..=50 {
                ping(&socket, target, length);
                sent += 1;
            }
        }
    }
    let after = a.gate.counts();
    for (before, after) in [(before.0, after.0), (before.1, after.1)] {
        let seen = after - before;
        // Neighbours are asked for now and then; nothing else may add to it.
        assert!((sent..sent + 30).contains(&seen), "{sent} sent, {seen} seen");
    }
    for family in 0..2 {
        for other in [&b, &c] {
            let before = (a.gate.counts().0, other.gate.counts().1);
            a.inside.transfer(&other.inside, other.addresses[family], 4_000_000);
            // Segments may be of 64 KiB until they leave for the underlay.
            let least = 4_000_000 / 65_536;
            assert!(a.gate.counts().0 - before.0 >= least);
            assert!(other.gate.counts().1 - before.1 >= least);
        }
    }
}

#[tokio::test]
async fn nothing_passes_when_the_nodes_end_drops() {
    let rig = Rig::new(1500);
    let (a, b) = (rig.pod(0, 0, 1500, None), rig.pod(1, 1, 1500, None));
    for (pod, vni) in [(&a, 101), (&b, 102)] {
        rig.connect(pod, vni, false).await;
    }
    for family in 0..2 {
        let address = |number| -> IpAddr {
            let text = if family == 0 { format!("192.0.2.{number}") } else { format!("2001:db8::{number}") };
            text.parse().unwrap()
        };
        // The other pod, both nodes, and the underlay's addresses of both machines.
        let targets = [
            b.inside.echo(b.addresses[family]),
            rig.nodes[0].echo(address(1)),
            rig.nodes[1].echo(address(2)),
            rig.machines[0].echo(address(11)),
            rig.machines[1].echo(address(12)),
        ];
        let socket = a.inside.udp(a.addresses[family]);
        ping(&socket, targets[0], 64);
        ping(&socket, targets[1], 64);
        let inward = b.inside.udp(b.addresses[family]);
        let back = a.inside.echo(a.addresses[family]);
        ping(&inward, back, 64);
        a.gate.shut(true);
        for target in targets {
            assert!(!answers(&socket, target), "{target} answers past the node's end");
        }
        assert!(!answers(&inward, back), "the pod is reached past the node's end");
        a.gate.shut(false);
        assert!(answers(&socket, targets[0]), "open again");
    }
}

/// A socket in the pod that would get what an intruder sends.
fn trap(pod: &Pod) -> (UdpSocket, u16) {
    let socket = pod.inside.udp(pod.addresses[0]);
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

fn springs(trap: &UdpSocket, patience: Duration) -> bool {
    trap.set_read_timeout(Some(patience)).unwrap();
    receive(trap, &mut [0; 64]).is_ok()
}

const SOON: Duration = Duration::from_millis(200);

async fn intruders_are_kept_out(outer_ipv6: bool) {
    let rig = Rig::new(1500);
    let (a, b) = (rig.pod(0, 0, 1500, None), rig.pod(0, 1, 1500, None));
    let shown = rig.connect(&a, 101, outer_ipv6).await;
    rig.connect(&b, 102, outer_ipv6).await;
    let outside = rig.join(66);
    let address = |number: usize| -> IpAddr {
        let text = if outer_ipv6 { format!("2001:db8::{number}") } else { format!("192.0.2.{number}") };
        text.parse().unwrap()
    };
    let (node, machine) = (address(1), address(11));
    let send = |net: &Net, from: IpAddr, to: IpAddr, packet: &[u8]| {
        net.udp(from).send_to(packet, (to, tunnel::PORT)).unwrap();
    };

    // Into the pod, as if from its node.
    let (trap, port) = trap(&a);
    let packet = encapsulate(101, &frame(shown.mac, [10, 9, 9, 9], [10, 1, 0, 2], port));
    send(&rig.nodes[0], node, machine, &packet);
    assert!(springs(&trap, PATIENCE), "the packet itself is in order");
    for (net, from) in [(&rig.machines[1], address(12)), (&outside, address(66)), (&rig.nodes[1], address(2))]
    {
        send(net, from, machine, &packet);
        assert!(!springs(&trap, SOON), "{from} reached the pod");
    }

    // Out of the tunnel into the node, as if from the pod.
    let receiver = rig.nodes[0].udp("192.0.2.1".parse().unwrap());
    let port = receiver.local_addr().unwrap().port();
    let gateway: Mac = "02:00:00:00:01:fe".parse().unwrap();
    let sent = |mac: Mac, source: [u8; 4]| {
        let mut frame = frame(gateway, source, [192, 0, 2, 1], port);
        frame[6..12].copy_from_slice(&mac.0);
        encapsulate(101, &frame)
    };
    let packet = sent(shown.mac, [10, 1, 0, 2]);
    send(&rig.machines[0], machine, node, &packet);
    assert!(springs(&receiver, PATIENCE), "the packet itself is in order");
    // Nor does its own machine speak for another pod.
    for forged in [sent(gateway, [10, 1, 0, 2]), sent(shown.mac, [10, 1, 0, 3])] {
        send(&rig.machines[0], machine, node, &forged);
        assert!(!springs(&receiver, SOON), "a machine spoke for another pod");
    }
    for (net, from) in [(&rig.machines[1], address(12)), (&outside, address(66))] {
        send(net, from, node, &packet);
        assert!(!springs(&receiver, SOON), "{from} spoke for the pod");
    }

    if outer_ipv6 {
        // In fragments, the first of which does not tell whose tunnel it is for.
        for (net, from, length) in [(&outside, 66, 8), (&outside, 66, 16), (&rig.machines[1], 12, 8)] {
            send_in_fragments(net, address(from), node, &packet, length);
            assert!(!springs(&receiver, SOON), "fragments of {from} spoke for the pod");
        }
        send_in_fragments(&rig.machines[0], machine, node, &packet, 24);
        assert!(springs(&receiver, PATIENCE), "fragments as such get through");
    }
}

#[tokio::test]
async fn intruders_are_kept_out_over_ipv4() {
    intruders_are_kept_out(false).await;
}

#[tokio::test]
async fn intruders_are_kept_out_over_ipv6() {
    intruders_are_kept_out(true).await;
}

/// Sends a UDP datagram as two IPv6 fragments, the first with `first` bytes of it.
fn send_in_fragments(net: &Net, from: IpAddr, to: IpAddr, payload: &[u8], first: usize) {
    let (IpAddr::V6(from), IpAddr::V6(to)) = (from, to) else { panic!("IPv6") };
    let length = u16::try_from(payload.len() + 8).unwrap();
    let mut datagram = Vec::new();
    for part in [4000, tunnel::PORT, length, 0] {
        datagram.extend(part.to_be_bytes());
    }
    datagram.extend(payload);
    let mut summed = from.octets().to_vec();
    summed.extend(to.octets());
    summed.extend(u32::from(length).to_be_bytes());
    summed.extend([0, 0, 0, 17]);
    summed.extend(&datagram);
    let mut sum: u32 = summed
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    datagram[6..8].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    let identification = next_identification();
    let fragment = |start: usize, part: &[u8], more: bool| {
        let mut bytes = vec![17, 0];
        bytes.extend((u16::try_from(start).unwrap() | u16::from(more)).to_be_bytes());
        bytes.extend(identification.to_be_bytes());
        bytes.extend(part);
        bytes
    };
    let fragments = [fragment(0, &datagram[..first], true), fragment(first, &datagram[first..], false)];
    net.run(move || {
        use rustix::net::{AddressFamily, Protocol, SocketAddrV6, SocketType, bind, sendto, socket};
        // Protocol 44: what is sent is the fragment header and what follows.
        let protocol = Protocol::from_raw(std::num::NonZeroU32::new(44).unwrap());
        let raw = socket(AddressFamily::INET6, SocketType::RAW, Some(protocol)).unwrap();
        bind(&raw, &SocketAddrV6::new(from, 0, 0, 0)).unwrap();
        for bytes in fragments {
            sendto(raw.as_fd(), &bytes, rustix::net::SendFlags::empty(), &SocketAddrV6::new(to, 0, 0, 0))
                .unwrap();
        }
    });
}

fn next_identification() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(77);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[tokio::test]
async fn a_pods_packet_does_not_pass_for_its_nodes() {
    let rig = Rig::new(1500);
    let (a, b) = (rig.pod(0, 0, 1500, None), rig.pod(0, 1, 1500, None));
    let shown = rig.connect(&a, 101, false).await;
    rig.connect(&b, 102, false).await;
    let node = &rig.nodes[0];
    // Masquerading without connection tracking, as BPF programs do it.
    for command in [
        "add table ip mask",
        "add chain ip mask post { type filter hook postrouting priority 100 ; }",
        "add rule ip mask post ip saddr 10.1.0.3 ip saddr set 192.0.2.1",
    ] {
        node.command("nft", command).unwrap();
    }
    // The neighbouring pod can speak to the machine of the first, through its node.
    let socket = b.inside.udp(b.addresses[0]);
    let outside = rig.machines[0].udp("192.0.2.11".parse().unwrap());
    socket.send_to(b"who is it?", outside.local_addr().unwrap()).unwrap();
    let (_, from) = receive(&outside, &mut [0; 64]).unwrap();
    assert_eq!(from.ip().to_string(), "192.0.2.1", "the pod is masqueraded");

    let (trap, port) = trap(&a);
    let packet = encapsulate(101, &frame(shown.mac, [10, 9, 9, 9], [10, 1, 0, 2], port));
    socket.send_to(&packet, ("192.0.2.11", tunnel::PORT)).unwrap();
    assert!(!springs(&trap, SOON), "a pod's packet passed for the node's");
    // The table can be listed by those who look after the node.
    assert!(node.command("nft", "list table inet kina-test").unwrap().contains("192.0.2.11"));
}

/// Full packets that must not be fragmented get through, and larger ones are refused
/// where they are sent.
fn full_packets_pass(from: &Pod, to: &Net, target: IpAddr, mtu: u32, family: usize) {
    let socket = from.inside.udp(from.addresses[family]);
    never_fragment(&socket, family == 1);
    let headers = if family == 0 { 28 } else { 48 };
    let most = mtu as usize - headers;
    let target = to.echo(target);
    ping(&socket, target, most);
    let error = socket.send_to(&vec![0; most + 1], target).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "{error}");
}

fn never_fragment(socket: &UdpSocket, ipv6: bool) {
    support::set_path_mtu_discovery(socket, ipv6);
}

async fn walk(outer_ipv6: bool) {
    let overhead = if outer_ipv6 { 70 } else { 50 };
    for underlay in [1350, 1400, 1500, 4000, 9000] {
        let rig = Rig::new(underlay);
        let inner = underlay - overhead;
        let (a, b) = (rig.pod(0, 0, underlay, Some(inner + 7)), rig.pod(1, 1, underlay, Some(inner)));
        let shown = rig.connect(&a, 101, outer_ipv6).await;
        rig.connect(&b, 102, outer_ipv6).await;
        assert!(shown.routes.len() >= 3);
        assert!(shown.routes.iter().all(|route| route.mtu == Some(inner)), "{shown:#?}");
        for family in 0..2 {
            full_packets_pass(&a, &b.inside, b.addresses[family], inner, family);
            a.inside.transfer(&b.inside, b.addresses[family], 300_000);
        }
    }
}

#[tokio::test]
async fn full_packets_pass_at_every_mtu_over_ipv4() {
    walk(false).await;
}

#[tokio::test]
async fn full_packets_pass_at_every_mtu_over_ipv6() {
    walk(true).await;
}

#[tokio::test]
async fn an_underlay_too_small_for_ipv6_carries_ipv4_alone() {
    let rig = Rig::new(1280);
    let both = rig.pod(0, 0, 1500, None);
    for (outer_ipv6, needed) in [(false, 1330), (true, 1350)] {
        let error = rig.try_connect(&both, 101, outer_ipv6).await.unwrap_err();
        assert!(error.to_string().contains(&format!("MTU to {needed}")), "{error}");
    }
    let links = both.sandbox.ip("-br link");
    assert!(!links.contains("vxlan0"), "nothing was made: {links}");
    both.sandbox.ip("-6 address flush dev eth0 scope global");
    let shown = rig.connect(&both, 101, false).await;
    assert!(shown.routes.iter().all(|route| route.mtu == Some(1230)), "{shown:#?}");
    full_packets_pass(&both, &rig.nodes[0], "192.0.2.1".parse().unwrap(), 1230, 0);
}

#[tokio::test]
async fn fragments_and_packets_too_long_for_the_tunnel_arrive() {
    for outer_ipv6 in [false, true] {
        let rig = Rig::new(1500);
        let (a, b) = (rig.pod(0, 0, 1500, None), rig.pod(1, 1, 1500, None));
        rig.connect(&a, 101, outer_ipv6).await;
        rig.connect(&b, 102, outer_ipv6).await;
        for family in 0..2 {
            let target = b.inside.echo(b.addresses[family]);
            ping(&a.inside.udp(a.addresses[family]), target, 3000);
            // Without a route MTU the node sends whole packets of 1500 bytes, which
            // must not be fragmented inside: they are outside. IPv6 outside does not.
            if outer_ipv6 {
                continue;
            }
            let receiver = a.inside.udp(a.addresses[family]);
            let node: IpAddr = if family == 0 { "192.0.2.1" } else { "2001:db8::1" }.parse().unwrap();
            let sender = rig.nodes[0].udp(node);
            never_fragment(&sender, family == 1);
            let whole = vec![7; 1500 - if family == 0 { 28 } else { 48 }];
            sender.send_to(&whole, receiver.local_addr().unwrap()).unwrap();
            let (length, _) = receive(&receiver, &mut [0; 2000]).unwrap();
            assert_eq!(length, whole.len());
        }
    }
}

#[tokio::test]
async fn a_pod_shows_what_cni_made_and_nothing_of_the_tunnel() {
    let rig = Rig::new(1500);
    let pod = rig.pod(0, 0, 1500, Some(1450));
    let made = inspect(&pod.sandbox.namespace, "eth0").await.unwrap();
    let shown = rig.connect(&pod, 101, false).await;
    assert_eq!((shown.mac, &shown.name), (made.mac, &made.name));
    assert_eq!(shown.mtu, 1500);
    let found = inspect(&pod.inside.namespace, "eth0").await.unwrap();
    assert_eq!(found.mac, made.mac);
    assert_eq!(found.routes, shown.routes);
    assert_eq!(found.routes.len(), made.routes.len());
    assert_eq!(found.neighbours, made.neighbours);
    let prefixes = |interface: &kina_attachment::Interface| {
        let mut all: Vec<_> = interface.addresses.iter().map(|address| address.prefix).collect();
        all.sort();
        all
    };
    assert_eq!(prefixes(&found), prefixes(&made));

    let links = pod.inside.ip("-br link");
    assert_eq!(links.lines().count(), 2, "loopback and eth0: {links}");
    let addresses = pod.inside.ip("address");
    assert!(!addresses.contains("192.0.2.") && !addresses.contains("2001:db8:"), "{addresses}");
    // Not even to those who ask what kind eth0 is.
    let detailed = pod.inside.ip("-d link show eth0");
    assert!(!detailed.contains("vxlan") && !detailed.contains("192.0.2."), "{detailed}");
    // The machine's own namespace does not have the pod's address.
    let outside = rig.machines[0].ip("address");
    assert!(!outside.contains("10.1.0.2") && !outside.contains("fd00:1:"), "{outside}");
    let node = rig.nodes[0].ip("link");
    assert!(!node.contains("vxlan"), "{node}");
}

#[tokio::test]
async fn damage_is_seen_and_healed() {
    let rig = Rig::new(1500);
    let pod = rig.pod(0, 0, 1500, None);
    rig.connect(&pod, 101, false).await;
    let [near, _] = rig.tunnels(&pod, 101, false);
    let (root, sandbox) = (&rig.nodes[0].namespace, &pod.sandbox.namespace);
    let target = rig.nodes[0].echo("192.0.2.1".parse().unwrap());
    let socket = pod.inside.udp(pod.addresses[0]);
    let seen = async || tunnel::check(root, sandbox, "eth0", &near).await.unwrap();
    assert_eq!(seen().await, []);

    let joint = |from: &str, to: &str| Damage::NotJoined { from: from.to_owned(), to: to.to_owned() };
    let vxlan = || "vxlan0".to_owned();
    let (net, node) = (&pod.sandbox, &rig.nodes[0]);
    let cases: [(&Net, &str, &str, Vec<Damage>); 8] = [
        (net, "tc", "qdisc del dev eth0 ingress", vec![joint("eth0", "vxlan0")]),
        (net, "tc", "qdisc del dev vxlan0 ingress", vec![joint("vxlan0", "eth0")]),
        (net, "ip", "link set vxlan0 down", vec![Damage::Down { device: vxlan() }]),
        (net, "ip", "link set vxlan0 mtu 1300", vec![Damage::Changed { device: vxlan(), what: "mtu" }]),
        (net, "ip", "link del vxlan0", vec![Damage::Missing { device: vxlan() }]),
        (node, "nft", "delete table inet kina-test", vec![Damage::Unguarded]),
        (net, "nft", "delete table netdev kina", vec![Damage::Unguarded]),
        (net, "tc", "filter del dev vxlan0 ingress prio 2 protocol arp", vec![joint("vxlan0", "eth0")]),
    ];
    for (net, program, command, damage) in cases {
        let program = match program {
            "tc" => "tc",
            "nft" => "nft",
            _ => "ip",
        };
        net.command(program, command).unwrap();
        assert_eq!(seen().await, damage, "{command}");
        tunnel::attach(root, sandbox, "eth0", &near).await.unwrap();
        assert_eq!(seen().await, [], "healed: {command}");
        ping(&socket, target, 64);
    }
    // Again changes nothing.
    let before = pod.sandbox.ip("link show vxlan0");
    rig.connect(&pod, 101, false).await;
    assert_eq!(pod.sandbox.ip("link show vxlan0"), before);

    for _ in 0..2 {
        tunnel::detach(root, Some(sandbox), "eth0", &near).await.unwrap();
    }
    let links = pod.sandbox.ip("-br link");
    assert_eq!(links.lines().count(), 2, "loopback and eth0: {links}");
    assert!(!node.command("nft", "list ruleset").unwrap().contains("192.0.2.11"));
    // The sandbox's own stack has its interface back.
    let own = pod.sandbox.echo(pod.addresses[0]);
    ping(&rig.nodes[0].udp("192.0.2.1".parse().unwrap()), own, 64);
    tunnel::detach(root, None, "eth0", &near).await.unwrap();
}

#[tokio::test]
async fn damage_in_the_machine_is_seen_and_healed() {
    let rig = Rig::new(1500);
    let pod = rig.pod(0, 0, 1500, None);
    let shown = rig.connect(&pod, 101, false).await;
    let [_, far] = rig.tunnels(&pod, 101, false);
    let (root, inside) = (&rig.machines[0].namespace, &pod.inside.namespace);
    let target = rig.nodes[0].echo("192.0.2.1".parse().unwrap());
    let seen = async || tunnel::check_machine(root, inside, &shown, &far).await.unwrap();
    assert_eq!(seen().await, []);
    let joint = |from: &str, to: &str| Damage::NotJoined { from: from.to_owned(), to: to.to_owned() };
    let changed = |what| Damage::Changed { device: "eth0".to_owned(), what };
    let missing = |device: &str| Damage::Missing { device: device.to_owned() };
    let (net, machine) = (&pod.inside, &rig.machines[0]);
    let cases: [(&Net, &'static str, &str, Vec<Damage>); 8] = [
        (machine, "tc", "qdisc del dev pod0 ingress", vec![joint("pod0", "vxlan0")]),
        (machine, "ip", "link del vxlan0", vec![missing("vxlan0")]),
        (machine, "ip", "link del pod0", vec![missing("eth0")]),
        (machine, "nft", "flush chain inet kina-test input", vec![Damage::Unguarded]),
        (net, "ip", "link del eth0", vec![missing("eth0")]),
        (net, "ip", "route change default via 169.254.1.1 dev eth0 mtu 9000", vec![changed("routes")]),
        (net, "ip", "neighbour del 169.254.1.1 dev eth0", vec![changed("neighbours")]),
        (net, "ip", "link set eth0 mtu 1400", vec![changed("mtu"), changed("routes")]),
    ];
    for (net, program, command, damage) in cases {
        net.command(program, command).unwrap();
        assert_eq!(seen().await, damage, "{command}");
        assert_eq!(tunnel::attach_machine(root, inside, &shown, &far).await.unwrap(), shown);
        assert_eq!(seen().await, [], "healed: {command}");
        ping(&pod.inside.udp(pod.addresses[0]), target, 64);
    }
    for _ in 0..2 {
        tunnel::detach_machine(root, &far).await.unwrap();
    }
    assert_eq!(pod.inside.ip("-br link").lines().count(), 1, "loopback");
    assert!(!machine.ip("link").contains("vxlan0"));
}

#[tokio::test]
async fn a_pod_that_comes_again_gets_a_new_tunnel() {
    let rig = Rig::new(1500);
    let pod = rig.pod(0, 0, 1500, None);
    rig.connect(&pod, 101, false).await;
    // Another number: both ends are made anew.
    rig.connect(&pod, 104, false).await;
    let target = rig.nodes[0].echo("192.0.2.1".parse().unwrap());
    ping(&pod.inside.udp(pod.addresses[0]), target, 64);
    // A number that somebody else has on this node is refused in the kernel's words.
    let other = rig.pod(0, 1, 1500, None);
    let error = rig.try_connect(&other, 104, false).await.unwrap_err();
    let Error::Kernel { source, .. } = &error else { panic!("{error:?}") };
    assert!(error.to_string().starts_with("make tunnel 104"), "{error}");
    assert!(source.to_string().contains("VNI"), "{source}");
    // The peers were not mixed up by that.
    eventually("the first pod still works", || answers(&pod.inside.udp(pod.addresses[0]), target));
}

#[tokio::test]
async fn the_way_to_a_peer_says_how_much_fits() {
    let rig = Rig::new(1500);
    let node = &rig.nodes[0];
    let peer: IpAddr = "192.0.2.11".parse().unwrap();
    let way = tunnel::underlay(&node.namespace, peer).await.unwrap();
    assert_eq!((way.local, way.mtu), ("192.0.2.1".parse().unwrap(), 1500));
    node.ip("route add 192.0.2.11 dev under0 mtu 1400");
    assert_eq!(tunnel::underlay(&node.namespace, peer).await.unwrap().mtu, 1400);
    let nowhere: SocketAddr = "203.0.113.1:1".parse().unwrap();
    let error = tunnel::underlay(&node.namespace, nowhere.ip()).await.unwrap_err();
    assert!(matches!(error, Error::NoWay { .. }), "{error:?}");
}

#[tokio::test]
async fn many_pods_come_and_go_at_once() {
    let rig = Rig::new(1500);
    let node = &rig.nodes[0];
    let mut pods = Vec::new();
    for number in 0..12_u8 {
        let sandbox = Net::new();
        node.veth(&format!("many{number}"), &sandbox, "eth0", 1500);
        let tunnel = Tunnel {
            vni: 200 + u32::from(number),
            port: tunnel::PORT,
            local: [192, 0, 2, 1].into(),
            remote: [192, 0, 2, 100 + number].into(),
            table: "kina-test".to_owned(),
        };
        pods.push((sandbox, tunnel));
    }
    let root = &node.namespace;
    let all = pods.iter().map(|(sandbox, tunnel)| async move {
        let sandbox = &sandbox.namespace;
        tunnel::attach(root, sandbox, "eth0", tunnel).await.unwrap();
        assert_eq!(tunnel::check(root, sandbox, "eth0", tunnel).await.unwrap(), []);
    });
    futures::future::join_all(all).await;
    let listed = node.command("nft", "list table inet kina-test").unwrap();
    assert_eq!(listed.matches("192.0.2.1").count(), pods.len(), "{listed}");
    let all = pods.iter().map(|(sandbox, tunnel)| async move {
        tunnel::detach(root, Some(&sandbox.namespace), "eth0", tunnel).await.unwrap();
    });
    futures::future::join_all(all).await;
    let listed = node.command("nft", "list table inet kina-test").unwrap();
    assert!(!listed.contains("elements"), "{listed}");
}
