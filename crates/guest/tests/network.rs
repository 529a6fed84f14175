//! The pod's network: the machine's network card carried into the pod's namespace.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

#[allow(dead_code, reason = "each test program uses a part of it")]
mod support;

use std::io::Read;
use std::net::{IpAddr, TcpListener};

use kina_attachment::{Address, Interface, Mac, Neighbour, Prefix, Route, Rule};
use kina_guest_api::v1;
use support::{Guest, Net};

const MAC: &str = "02:4b:00:00:00:02";
const NODE_MAC: &str = "02:4b:00:00:00:01";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefix(address: &str, length: u8) -> Prefix {
    Prefix { address: ip(address), length }
}

fn route(destination: Prefix, gateway: Option<&str>) -> Route {
    Route {
        destination,
        gateway: gateway.map(ip),
        onlink: false,
        source: None,
        scope: if gateway.is_some() { 0 } else { 253 },
        kind: 1,
        protocol: 3,
        service: 0,
        table: 254,
        metric: Some(100),
        mtu: None,
        mtu_locked: false,
        segment: None,
    }
}

fn interface() -> Interface {
    let address = |prefix| Address { prefix, peer: None, broadcast: None, scope: 0, flags: 0 };
    Interface {
        name: "eth0".to_owned(),
        mac: MAC.parse().unwrap(),
        mtu: 1400,
        addresses: vec![address(prefix("10.88.7.2", 24)), address(prefix("fd88::2", 64))],
        routes: vec![
            route(prefix("10.88.7.0", 24), None),
            route(prefix("fd88::", 64), None),
            route(Prefix::everything(false), Some("10.88.7.1")),
            route(Prefix::everything(true), Some("fd88::1")),
        ],
        neighbours: vec![Neighbour {
            address: ip("10.88.7.1"),
            mac: NODE_MAC.parse::<Mac>().unwrap(),
            flags: 0,
        }],
        rules: vec![Rule {
            ipv6: false,
            priority: 777,
            source: Some(prefix("10.88.7.2", 32)),
            destination: None,
            input: None,
            output: None,
            mark: None,
            table: 254,
        }],
    }
}

/// A node's end of a wire whose other end is in the machine, as a card of another name.
async fn wire(node: &Net, machine: &Net) {
    let make = format!(
        "link add node0 address {NODE_MAC} type veth peer name card7 address {MAC} netns {}",
        machine.path()
    );
    node.ip(&make).await;
    for command in [
        "link set lo up",
        "link set node0 up",
        "address add 10.88.7.1/24 dev node0",
        "address add fd88::1/64 dev node0 nodad",
        "address add 192.0.2.9/32 dev lo",
    ] {
        node.ip(command).await;
    }
}

#[tokio::test]
async fn the_machines_card_becomes_the_pods_interface() {
    let (node, machine) = (Net::new(), Net::new());
    machine.ip("link set lo up").await;
    let guest = Guest::start_in(&machine.namespace).await;
    let json = serde_json::to_vec(&interface()).unwrap();
    let network = Some(v1::PodNetwork { kind: Some(v1::pod_network::Kind::Interface(json)) });
    let sysctls = [("net.ipv4.conf.eth0.forwarding".to_owned(), "1".to_owned())].into();
    let pod = v1::SetupPodRequest { network, sysctls, ..guest.pod() };
    // The card comes late.
    let (set_up, ()) = tokio::join!(guest.client.setup_pod(pod.clone()), wire(&node, &machine));
    set_up.unwrap();
    guest.client.setup_pod(pod).await.unwrap();
    assert!(!machine.ip("-brief link").await.contains("card7"));

    guest.run(guest.container("c", "sleep 1000")).await;
    let link = guest.exec("c", "busybox ip link show dev eth0").await;
    assert!(link.contains(MAC) && link.contains("mtu 1400"), "{link}");
    let addresses = guest.exec("c", "busybox ip addr show dev eth0").await;
    assert!(addresses.contains("10.88.7.2/24") && addresses.contains("fd88::2/64"), "{addresses}");
    assert!(!addresses.contains("fe80::"), "{addresses}");
    let rules = guest.exec("c", "busybox ip rule").await;
    assert!(rules.contains("777:"), "{rules}");
    assert_eq!(guest.exec("c", "cat /proc/sys/net/ipv4/conf/eth0/forwarding").await, "1\n");
    let hosts = guest.exec("c", "cat /etc/hosts").await;
    assert!(hosts.ends_with("10.88.7.2\ttestpod\nfd88::2\ttestpod\n"), "{hosts}");
    let own = guest.exec("c", "readlink /proc/self/ns/net").await;
    let machines = std::fs::read_link(machine.path()).unwrap();
    assert_ne!(own.trim(), machines.to_str().unwrap());

    // On the link, behind the gateway, and by IPv6.
    for address in ["10.88.7.1", "192.0.2.9", "fd88::1"] {
        let target = ip(address);
        let listen = node.namespace.run(move || TcpListener::bind((target, 0)).unwrap());
        let listener = listen.await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = tokio::task::spawn_blocking(move || {
            let (mut stream, peer) = listener.accept().unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            (text, peer.ip())
        });
        guest.exec("c", &format!("echo hello | busybox nc -w 5 {address} {port}")).await;
        let from = if target.is_ipv6() { "fd88::2" } else { "10.88.7.2" };
        assert_eq!(heard.await.unwrap(), ("hello\n".to_owned(), ip(from)));
    }
    let stats = guest.client.stats(v1::StatsRequest::default()).await.unwrap();
    let [eth0] = &stats.interfaces[..] else { panic!("{:?}", stats.interfaces) };
    assert!(eth0.name == "eth0" && eth0.rx_bytes > 0 && eth0.tx_packets > 0, "{eth0:?}");
}

#[tokio::test]
async fn a_namespace_that_exists_gives_its_addresses_their_name() {
    let sandbox = Net::new();
    for command in
        ["link set lo up", "link add eth0 type veth peer name other", "address add 10.88.8.3/24 dev eth0"]
    {
        sandbox.ip(command).await;
    }
    let guest = Guest::start().await;
    let network = Some(v1::PodNetwork { kind: Some(v1::pod_network::Kind::NamespacePath(sandbox.path())) });
    guest.client.setup_pod(v1::SetupPodRequest { network, ..guest.pod() }).await.unwrap();
    let hosts = std::fs::read_to_string(guest.state().join("hosts")).unwrap();
    assert!(hosts.starts_with("127.0.0.1\tlocalhost\n"), "{hosts}");
    assert!(hosts.ends_with("10.88.8.3\ttestpod\n"), "{hosts}");
}

#[tokio::test]
async fn an_interface_that_is_none_is_refused() {
    let guest = Guest::start().await;
    let refused = async |json: Vec<u8>| {
        let network = Some(v1::PodNetwork { kind: Some(v1::pod_network::Kind::Interface(json)) });
        guest.client.setup_pod(v1::SetupPodRequest { network, ..guest.pod() }).await.unwrap_err().to_string()
    };
    assert!(refused(b"{".to_vec()).await.contains("network.interface"));
}
