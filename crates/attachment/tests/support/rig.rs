//! Two nodes and three pod machines on one bridge; pods as a CNI plugin like
//! Cilium would make them.

use std::net::IpAddr;

use kina_attachment::tunnel::{self, Tunnel};
use kina_attachment::{Interface, Mac};

use super::Net;
use super::bpf::Gate;

pub struct Rig {
    pub bridge: Net,
    pub nodes: Vec<Net>,
    pub machines: Vec<Net>,
    pub mtu: u32,
}

/// One pod: its sandbox on a node and its namespace in a machine.
pub struct Pod {
    pub node: usize,
    pub machine: usize,
    pub sandbox: Net,
    pub inside: Net,
    /// The node's end of the interface, with the program on it.
    pub host_end: String,
    pub gate: Gate,
    pub addresses: [IpAddr; 2],
}

impl Rig {
    /// The bridge, with an MTU, and everybody on it.
    pub fn new(mtu: u32) -> Self {
        let bridge = Net::new();
        bridge.ip(&format!("link add br0 mtu {mtu} type bridge"));
        bridge.ip("link set br0 up");
        let mut rig = Self { bridge, nodes: Vec::new(), machines: Vec::new(), mtu };
        rig.nodes = (1..=2).map(|number| rig.join(number)).collect();
        rig.machines = (11..=13).map(|number| rig.join(number)).collect();
        for (this, other) in [(0, 1), (1, 0)] {
            rig.nodes[this].sysctl("ipv4/ip_forward", "1");
            rig.nodes[this].sysctl("ipv6/conf/all/forwarding", "1");
            rig.nodes[this].ip(&format!("route add 10.{}.0.0/16 via 192.0.2.{}", other + 1, other + 1));
            rig.nodes[this].ip(&format!("route add fd00:{}::/32 via 2001:db8::{}", other + 1, other + 1));
        }
        rig
    }

    /// A newcomer on the bridge.
    pub fn join(&self, number: usize) -> Net {
        let net = Net::new();
        net.veth("under0", &self.bridge, &format!("port{number}"), self.mtu);
        self.bridge.ip(&format!("link set port{number} master br0"));
        net.ip(&format!("address add 192.0.2.{number}/24 dev under0"));
        if self.mtu >= 1280 {
            net.ip(&format!("address add 2001:db8::{number}/64 dev under0"));
        }
        net
    }

    /// What a CNI plugin does: a veth pair, a single address of each family, a gateway
    /// with a permanent neighbour, and the node's program on its end.
    pub fn pod(&self, node: usize, machine: usize, mtu: u32, route_mtu: Option<u32>) -> Pod {
        let (net, sandbox) = (&self.nodes[node], Net::new());
        let number = machine + 2;
        let host_end = format!("lxc{number}");
        net.veth(&host_end, &sandbox, "eth0", mtu);
        net.ip(&format!("link set {host_end} address 02:00:00:00:{:02x}:fe", node + 1));
        net.ip(&format!("address add fe80::fe/64 dev {host_end}"));
        let [v4, v6] = [format!("10.{}.0.{number}", node + 1), format!("fd00:{}::{number}", node + 1)];
        net.ip(&format!("route add {v4}/32 dev {host_end}"));
        net.ip(&format!("route add {v6}/128 dev {host_end}"));
        let gateway = format!("02:00:00:00:{:02x}:fe", node + 1);
        let route_mtu = route_mtu.map_or(String::new(), |mtu| format!("mtu {mtu}"));
        sandbox.ip(&format!("address add {v4}/32 dev eth0"));
        sandbox.ip(&format!("address add {v6}/128 dev eth0"));
        sandbox.ip(&format!("route add 169.254.1.1 dev eth0 scope link {route_mtu}"));
        sandbox.ip(&format!("route add default via 169.254.1.1 dev eth0 {route_mtu}"));
        sandbox.ip(&format!("neighbour add 169.254.1.1 lladdr {gateway} dev eth0 nud permanent"));
        sandbox.ip(&format!("-6 route add default via fe80::fe dev eth0 {route_mtu}"));
        sandbox.ip(&format!("neighbour add fe80::fe lladdr {gateway} dev eth0 nud permanent"));
        let gate = Gate::on(net, &host_end);
        let addresses = [v4.parse().unwrap(), v6.parse().unwrap()];
        Pod { node, machine, sandbox, inside: Net::new(), host_end, gate, addresses }
    }

    /// Both ends of a pod's tunnel, the node's first.
    pub fn tunnels(&self, pod: &Pod, vni: u32, outer_ipv6: bool) -> [Tunnel; 2] {
        let address = |number: usize| -> IpAddr {
            let text = if outer_ipv6 { format!("2001:db8::{number}") } else { format!("192.0.2.{number}") };
            text.parse().unwrap()
        };
        let (node, machine) = (address(pod.node + 1), address(pod.machine + 11));
        let end =
            |local, remote| Tunnel { vni, port: tunnel::PORT, local, remote, table: "kina-test".to_owned() };
        [end(node, machine), end(machine, node)]
    }

    /// Makes both ends, and returns what the pod shows.
    pub async fn connect(&self, pod: &Pod, vni: u32, outer_ipv6: bool) -> Interface {
        self.try_connect(pod, vni, outer_ipv6).await.unwrap()
    }

    pub async fn try_connect(
        &self,
        pod: &Pod,
        vni: u32,
        outer_ipv6: bool,
    ) -> Result<Interface, kina_attachment::Error> {
        let [near, far] = self.tunnels(pod, vni, outer_ipv6);
        let root = &self.nodes[pod.node].namespace;
        let planned = tunnel::attach(root, &pod.sandbox.namespace, "eth0", &near).await?;
        // As it travels to the machine.
        let planned: Interface = serde_json::from_str(&serde_json::to_string(&planned).unwrap()).unwrap();
        let machine = &self.machines[pod.machine].namespace;
        tunnel::attach_machine(machine, &pod.inside.namespace, &planned, &far).await
    }
}

/// An Ethernet frame with an IPv4 UDP datagram in it, as an intruder would make it.
pub fn frame(destination: Mac, source: [u8; 4], target: [u8; 4], port: u16) -> Vec<u8> {
    let payload = b"let me in";
    let udp_length = 8 + payload.len();
    let mut ip = vec![0x45, 0, 0, (20 + udp_length) as u8, 0, 0, 0, 0, 64, 17, 0, 0];
    ip.extend(source);
    ip.extend(target);
    let mut sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    ip[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    let mut frame = destination.0.to_vec();
    frame.extend([2, 9, 9, 9, 9, 9, 8, 0]);
    frame.extend(ip);
    frame.extend(999_u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend((udp_length as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

/// A frame in a VXLAN packet: what follows the UDP header.
pub fn encapsulate(vni: u32, frame: &[u8]) -> Vec<u8> {
    let mut packet = vec![8, 0, 0, 0];
    packet.extend(&vni.to_be_bytes()[1..]);
    packet.push(0);
    packet.extend(frame);
    packet
}
