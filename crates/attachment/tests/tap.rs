//! Taps, and what is carried over, in namespaces.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "helpers here are part of tests")]

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use kina_attachment::tap::{self, Tap};
use kina_attachment::{Damage, Error, Interface, Namespace, Target, apply, direct, inspect};
use support::{Net, answers, ping};

/// A node, a sandbox on it as a CNI plugin would leave it, and a machine.
struct Rig {
    node: Net,
    sandbox: Net,
    machine: Net,
    tap: Tap,
}

const GATEWAY: &str = "02:00:00:00:01:fe";

impl Rig {
    fn new(mtu: u32) -> Self {
        let (node, sandbox, machine) = (Net::new(), Net::new(), Net::new());
        node.veth("lxc1", &sandbox, "eth0", mtu);
        node.ip(&format!("link set lxc1 address {GATEWAY}"));
        node.ip("address add 10.1.0.1/24 dev lxc1");
        node.ip("address add fd00:1::1/64 dev lxc1 nodad");
        sandbox.ip("address add 10.1.0.2/24 broadcast + dev eth0");
        sandbox.ip("address add fd00:1::2/64 dev eth0 nodad");
        sandbox.ip("route add default via 10.1.0.1");
        sandbox.ip("-6 route add default via fd00:1::1");
        Self { node, sandbox, machine, tap: Tap::new("eth0") }
    }

    async fn attach(&self) -> Interface {
        tap::attach(&self.sandbox.namespace, &self.tap).await.unwrap()
    }

    async fn check(&self) -> Vec<Damage> {
        tap::check(&self.sandbox.namespace, &self.tap).await.unwrap()
    }

    /// The machine's network card: frames go to and from the tap as a machine monitor
    /// would carry them. Returns how many frames went to the machine.
    async fn plug_in(&self, interface: &Interface) -> Arc<AtomicUsize> {
        let card = Tap { name: "nic7".to_owned(), ..self.tap.clone() };
        let outside = tap::open_queue(&self.sandbox.namespace, &self.tap).await.unwrap();
        let inside = tap::open_queue(&self.machine.namespace, &card).await.unwrap();
        self.machine.ip(&format!("link set nic7 address {}", interface.mac));
        let frames = Arc::new(AtomicUsize::new(0));
        carry(outside.try_clone().unwrap(), inside.try_clone().unwrap(), frames.clone());
        carry(inside, outside, Arc::default());
        frames
    }
}

/// Frames, each with its virtio header, from one end to the other.
fn carry(from: OwnedFd, to: OwnedFd, frames: Arc<AtomicUsize>) {
    let (mut from, mut to) = (File::from(from), File::from(to));
    thread::spawn(move || {
        let mut frame = vec![0; 70_000];
        loop {
            match support::uninterrupted(|| from.read(&mut frame)) {
                Ok(length) => {
                    frames.fetch_add(1, Ordering::Relaxed);
                    // A device that is down takes nothing; a real card would not either.
                    let _ = to.write(&frame[..length]);
                }
                // The device is gone.
                Err(error) if error.raw_os_error() == Some(libc::EBADFD) => return,
                // The device is down, which may pass.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => thread::yield_now(),
                Err(_) => return,
            }
        }
    });
}

fn both(node: bool) -> [IpAddr; 2] {
    let number = if node { 1 } else { 2 };
    [format!("10.1.0.{number}").parse().unwrap(), format!("fd00:1::{number}").parse().unwrap()]
}

/// IP packets that a namespace's own stack has been handed.
fn received(net: &Net) -> u64 {
    let text = net.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
    let line = text.lines().filter(|line| line.starts_with("Ip:")).nth(1).unwrap();
    line.split_whitespace().nth(3).unwrap().parse().unwrap()
}

#[tokio::test]
async fn frames_pass_both_ways_and_the_sandbox_sees_none() {
    for mtu in [1500, 9000] {
        let rig = Rig::new(mtu);
        let interface = rig.attach().await;
        let frames = rig.plug_in(&interface).await;
        let target = Target::WithMac(interface.mac);
        apply(&rig.machine.namespace, &target, &interface).await.unwrap();
        let before = received(&rig.sandbox);
        for (family, headers) in [(0, 28), (1, 48)] {
            let socket = rig.machine.udp(both(false)[family]);
            let echo = rig.node.echo(both(true)[family]);
            for length in [1, mtu as usize - headers, 3 * mtu as usize] {
                ping(&socket, echo, length);
            }
            let inward = rig.node.udp(both(true)[family]);
            ping(&inward, rig.machine.echo(both(false)[family]), mtu as usize - headers);
            support::set_path_mtu_discovery(&socket, family == 1);
            let long = socket.send_to(&vec![0; mtu as usize - headers + 1], echo).unwrap_err();
            assert_eq!(long.raw_os_error(), Some(libc::EMSGSIZE));
            rig.machine.transfer(&rig.node, both(true)[family], 1_000_000);
            rig.node.transfer(&rig.machine, both(false)[family], 1_000_000);
        }
        assert!(frames.load(Ordering::Relaxed) > 100);
        assert_eq!(received(&rig.sandbox), before, "the sandbox's stack answers beside the machine");
    }
}

#[tokio::test]
async fn damage_is_seen_and_healed() {
    let rig = Rig::new(1500);
    rig.attach().await;
    assert_eq!(rig.check().await, []);
    let joint = |from: &str, to: &str| Damage::NotJoined { from: from.to_owned(), to: to.to_owned() };
    let name = || "tap0".to_owned();
    let cases = [
        ("tc", "qdisc del dev eth0 ingress", vec![joint("eth0", "tap0")]),
        ("tc", "filter del dev eth0 ingress", vec![joint("eth0", "tap0")]),
        ("tc", "qdisc del dev tap0 ingress", vec![joint("tap0", "eth0")]),
        ("ip", "link set tap0 mtu 1400", vec![Damage::Changed { device: name(), what: "mtu" }]),
        ("ip", "link set tap0 down", vec![Damage::Down { device: name() }]),
        ("ip", "link del tap0", vec![Damage::Missing { device: name() }]),
    ];
    for (program, command, damage) in cases {
        rig.sandbox.command(program, command).unwrap();
        assert_eq!(rig.check().await, damage, "{command}");
        rig.attach().await;
        assert_eq!(rig.check().await, [], "healed: {command}");
    }
    // A plugin's own kind of qdisc does as well as ours.
    rig.sandbox.command("tc", "qdisc del dev eth0 ingress").unwrap();
    rig.sandbox.command("tc", "qdisc add dev eth0 clsact").unwrap();
    rig.attach().await;
    assert_eq!(rig.check().await, []);
    // Again changes nothing.
    let before = rig.sandbox.ip("link");
    rig.attach().await;
    assert_eq!(rig.sandbox.ip("link"), before);
    assert!(!answers(&rig.node.udp(both(true)[0]), rig.sandbox.echo(both(false)[0])));

    for _ in 0..2 {
        tap::detach(&rig.sandbox.namespace, &rig.tap).await.unwrap();
    }
    assert_eq!(rig.sandbox.ip("-br link").lines().count(), 2, "loopback and eth0");
    // The sandbox's own stack has its interface back, with its addresses.
    let [v4, v6] = both(false).map(|address| rig.sandbox.echo(address));
    ping(&rig.node.udp(both(true)[0]), v4, 64);
    ping(&rig.node.udp(both(true)[1]), v6, 64);
}

#[tokio::test]
async fn a_tap_is_as_asked_for() {
    let rig = Rig::new(1500);
    let tap = Tap { multi_queue: true, owner: Some((54_321, 54_322)), ..rig.tap.clone() };
    tap::attach(&rig.sandbox.namespace, &tap).await.unwrap();
    let shown = rig.sandbox.ip("-d link show tap0");
    for word in ["multi_queue", "vnet_hdr on", "pi off", "persist on", "user 54321", "group 54322"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    let _queues = [
        tap::open_queue(&rig.sandbox.namespace, &tap).await.unwrap(),
        tap::open_queue(&rig.sandbox.namespace, &tap).await.unwrap(),
    ];
    // One queue of it is something else, and says so.
    let error = tap::open_queue(&rig.sandbox.namespace, &rig.tap).await.unwrap_err();
    assert!(error.to_string().starts_with("open tap tap0"), "{error}");
}

/// Another process may have a copy of a closed one until it executes its program.
#[tokio::test]
async fn a_queue_that_is_open_is_waited_for() {
    let rig = Rig::new(1500);
    rig.attach().await;
    let first = tap::open_queue(&rig.sandbox.namespace, &rig.tap).await.unwrap();
    let second = tap::open_queue(&rig.sandbox.namespace, &rig.tap);
    tokio::pin!(second);
    let patience = Duration::from_millis(50);
    assert!(tokio::time::timeout(patience, &mut second).await.is_err(), "both are open");
    drop(first);
    second.await.unwrap();
}

#[tokio::test]
async fn everything_is_carried_over() {
    let (sandbox, machine) = (Net::new(), Net::new());
    sandbox.ip("link add eth0 mtu 1500 type veth peer name other");
    sandbox.ip("link set other up");
    sandbox.ip("link set eth0 up");
    for address in [
        "10.1.0.2/24 broadcast +",
        "10.1.0.3/24",
        "172.16.0.1 peer 172.16.0.9/32",
        "fd00:1::2/64 nodad",
        "fd00:2::2/128 nodad",
    ] {
        sandbox.ip(&format!("address add {address} dev eth0"));
    }
    for route in [
        "169.254.1.1 dev eth0 scope link",
        "default via 10.1.0.1 metric 50 mtu 1400",
        "default via 169.254.1.1 metric 60 src 10.1.0.3",
        "10.8.0.0/16 via 10.99.0.1 dev eth0 onlink",
        "10.9.0.0/16 via inet6 fd00:1::9 dev eth0",
        "10.10.0.0/16 via 10.1.0.1 mtu lock 1300 advmss 1200",
        "default via 10.1.0.1 table 100",
        "default via 10.1.0.1 table 100000",
    ] {
        sandbox.ip(&format!("route add {route}"));
    }
    for route in [
        "default via fd00:1::1 metric 50 mtu 1400",
        "default via fe80::1 dev eth0 metric 60",
        "fd00:8::/64 dev eth0 src fd00:2::2",
        "fd00:9::/64 via fd00:77::1 dev eth0 onlink",
        "default via fd00:1::1 table 100",
    ] {
        sandbox.ip(&format!("-6 route add {route}"));
    }
    sandbox.ip("neighbour add 169.254.1.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent");
    sandbox.ip("neighbour add fe80::1 lladdr 02:00:00:00:00:01 dev eth0 router nud permanent");
    sandbox.ip("neighbour add 10.1.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud reachable");
    sandbox.ip("rule add from 10.1.0.3 table 100 priority 500");
    sandbox.ip("rule add to 10.77.0.0/16 iif eth0 table 100 priority 501");
    sandbox.ip("rule add fwmark 0x10/0xf0 table 100000 priority 502");
    sandbox.ip("-6 rule add from fd00:1::/64 table 100 priority 500");

    let made = inspect(&sandbox.namespace, "eth0").await.unwrap();
    let text = serde_json::to_string(&made).unwrap();
    let travelled: Interface = serde_json::from_str(&text).unwrap();
    assert_eq!(travelled, made);

    machine.ip("link add nic3 type veth peer name other");
    machine.ip("link set other up");
    // Something from before, which must go.
    machine.ip("address add 10.66.0.1/24 dev nic3");
    let target = Target::Named("nic3".to_owned());
    apply(&machine.namespace, &target, &travelled).await.unwrap();
    for _ in 0..2 {
        // The kernel fills the table `local` in its own time.
        let deadline = std::time::Instant::now() + support::PATIENCE;
        while shown(&machine) != shown(&sandbox) && std::time::Instant::now() < deadline {
            thread::yield_now();
        }
        assert_eq!(shown(&machine), shown(&sandbox));
        let again = Target::WithMac(made.mac);
        apply(&machine.namespace, &again, &travelled).await.unwrap();
    }
    assert_eq!(inspect(&machine.namespace, "eth0").await.unwrap().rules, made.rules);
}

/// What `ip` says of eth0, without what says who made it.
fn shown(net: &Net) -> Vec<String> {
    let mut lines = Vec::new();
    for command in [
        "-br address show dev eth0",
        "route show table all dev eth0",
        "-6 route show table all dev eth0",
        "neighbour show dev eth0 nud permanent",
        "-6 neighbour show dev eth0 nud permanent",
        "rule",
        "-6 rule",
    ] {
        let mut part: Vec<String> = net
            .ip(command)
            .lines()
            // The state of the other end, which is another device.
            .map(|line| line.replace("eth0@other", "eth0").replace("eth0@if3", "eth0").trim().to_owned())
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        part.sort();
        lines.push(command.to_owned());
        lines.extend(part);
    }
    lines
}

#[tokio::test]
async fn what_cannot_be_carried_is_refused() {
    let rig = Rig::new(1500);
    let cases = [
        ("route add 10.5.0.0/16 nexthop via 10.1.0.1 nexthop via 10.1.0.9", "several next hops"),
        ("rule add from all tos 0x10 table 100 priority 500", "routing rule at 500"),
        ("rule add ipproto tcp table 100 priority 500", "routing rule at 500"),
    ];
    for (command, words) in cases {
        rig.sandbox.ip(command);
        let error = inspect(&rig.sandbox.namespace, "eth0").await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        rig.sandbox.ip(&command.replacen("add", "del", 1));
    }
    inspect(&rig.sandbox.namespace, "eth0").await.unwrap();
}

#[tokio::test]
async fn a_namespace_is_checked_before_containers_enter_it() {
    let rig = Rig::new(1500);
    let namespace = &rig.sandbox.namespace;
    assert_eq!(direct::check(namespace, "eth0").await.unwrap().addresses.len(), 3);
    let error = direct::check(namespace, "eth1").await.unwrap_err();
    assert!(matches!(error, Error::NoInterface { .. }), "{error:?}");
    for (command, words) in [
        ("address flush dev eth0", "has no address"),
        ("link set eth0 down", "eth0 in network namespace"),
        ("link set lo down", "bring it up"),
    ] {
        rig.sandbox.ip(command);
        let error = direct::check(namespace, "eth0").await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
async fn errors_say_where_and_what() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Namespace::open(file.path()).unwrap_err();
    assert!(error.to_string().contains("is not a network namespace"), "{error}");
    let error = Namespace::open("/nowhere/at/all").unwrap_err();
    assert_eq!(error.to_string(), "open network namespace /nowhere/at/all");

    let rig = Rig::new(1500);
    for name in ["", "a/b", "a b", "sixteen-letters!", ".."] {
        let tap = Tap { name: name.to_owned(), ..rig.tap.clone() };
        let error = tap::attach(&rig.sandbox.namespace, &tap).await.unwrap_err();
        assert!(matches!(error, Error::BadName { .. }), "{error:?}");
    }
    rig.sandbox.ip("link add tap0 type bridge");
    let error = tap::attach(&rig.sandbox.namespace, &rig.tap).await.unwrap_err();
    assert!(matches!(error, Error::Unfit { .. }), "{error:?}");

    // The kernel's own words: a next hop that nothing leads to.
    let mut interface = inspect(&rig.sandbox.namespace, "eth0").await.unwrap();
    interface.routes.retain(|route| route.gateway.is_some());
    let target = Target::WithMac(interface.mac);
    rig.machine.ip(&format!("link add nic1 address {} type veth peer name other", interface.mac));
    let error = apply(&rig.machine.namespace, &target, &interface).await.unwrap_err();
    let Error::Kernel { source, .. } = &error else { panic!("{error:?}") };
    assert!(
        error.to_string().starts_with("add route 0.0.0.0/0 of eth0 in network namespace /proc"),
        "{error}"
    );
    assert!(source.to_string().contains("Nexthop has invalid gateway"), "{source}");
}

#[tokio::test]
async fn a_card_is_carried_over_once_it_is_there() {
    let (machine, pod) = (Net::new(), Net::new());
    let mac: kina_attachment::Mac = "02:00:00:00:00:77".parse().unwrap();
    let carry = |patience| kina_attachment::carry(&machine.namespace, &pod.namespace, mac, patience);
    let error = carry(std::time::Duration::ZERO).await.unwrap_err();
    assert!(error.to_string().contains("02:00:00:00:00:77"), "{error}");
    let make = async { machine.ip(&format!("link add nic1 address {mac} type veth peer name other")) };
    let (carried, _) = tokio::join!(carry(support::PATIENCE), make);
    carried.unwrap();
    assert!(pod.ip("link show nic1").contains("02:00:00:00:00:77"));
    assert!(!machine.ip("-brief link").contains("nic1"));
    carry(std::time::Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn no_thread_of_the_runtime_is_ever_elsewhere() {
    let rig = Rig::new(1500);
    let own = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let before = own();
    let inside = rig.sandbox.namespace.run(own).await.unwrap();
    assert_ne!(inside, before);
    assert_eq!(own(), before);
    let error = rig.sandbox.namespace.run(|| panic!("on purpose")).await.unwrap_err();
    assert!(matches!(error, Error::Namespace { .. }), "{error:?}");
}
