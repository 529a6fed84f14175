//! A VXLAN of the pod's own between the sandbox namespace on a node and the pod's
//! namespace in a virtual machine beside it.
//!
//! ```text
//! machine: pod's namespace │ eth0 (a veth, with the pod's addresses)
//!          root namespace  │ pod0 ⇄ vxlan0 ═══ underlay ═══╗
//! node:    root namespace  │ UDP socket ═══════════════════╝
//!          sandbox         │ vxlan0 ⇄ eth0 (made by CNI) ─ its other end on the node
//! ```
//!
//! A VXLAN's socket stays in the namespace that the device was made in, so neither
//! the sandbox nor the pod can reach the underlay, or has one of its addresses. In
//! the machine the device itself stays outside too: a container may ask what kind
//! its eth0 is and, with NET_ADMIN, change it, and a VXLAN would tell both ends'
//! addresses and take another. Each end lets in only its peer, and only with the
//! pod's own network identifier.

use std::net::IpAddr;
use std::os::fd::AsRawFd;

use rtnetlink::packet_route::link::{InfoData, InfoVeth, InfoVxlan};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteMetric};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{LinkUnspec, LinkVeth, LinkVxlan};

use super::apply::{Target, apply};
use super::link::{Link, check_name};
use super::namespace::Namespace;
use super::netlink::Netlink;
use super::{firewall, inspect, redirect, sink, tap};
use crate::own::{self, Filter};
use crate::{Damage, Error, Interface, plan};

/// IANA's port for VXLAN. Cilium's own tunnels use 8472.
pub const PORT: u16 = 4789;

/// One end of a pod's tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The network identifier, the same at both ends and the pod's alone.
    pub vni: u32,
    /// The UDP port at both ends.
    pub port: u16,
    /// This end's address on the underlay.
    pub local: IpAddr,
    /// The other end's.
    pub remote: IpAddr,
    /// The nftables table that says who may send to us: one for each daemon, which has
    /// the same port for all its tunnels. It stays when the last of them goes.
    pub table: String,
}

/// The VXLAN, in the sandbox namespace and in a machine's root namespace.
const DEVICE: &str = "vxlan0";

/// The machine's end of the pod's interface, in its root namespace. A machine has one
/// pod, so one name will do.
const PAIR: &str = "pod0";

/// A tunnel's path on this end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// This end's address on the way to the peer.
    pub local: IpAddr,
    /// The largest packet on that way in bytes.
    pub mtu: u32,
}

/// The way from `root` to `peer`: what a tunnel must use and how much it may carry.
pub async fn underlay(root: &Namespace, peer: IpAddr) -> Result<Underlay, Error> {
    let netlink = Netlink::open(root).await?;
    let no_way = || Error::NoWay { namespace: root.path().to_path_buf(), peer };
    let mut question = RouteMessage::default();
    let (family, length) =
        if peer.is_ipv4() { (AddressFamily::Inet, 32) } else { (AddressFamily::Inet6, 128) };
    question.header.address_family = family;
    question.header.destination_prefix_length = length;
    question.attributes.push(RouteAttribute::Destination(peer.into()));
    let question = RouteNetlinkMessage::GetRoute(question);
    let answer = match netlink.one(question, "look for the way to", &peer.to_string()).await {
        Ok(answer) => answer,
        Err(Error::Kernel { source, .. })
            if matches!(source.number(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) =>
        {
            return Err(no_way());
        }
        Err(error) => return Err(error),
    };
    let Some(RouteNetlinkMessage::NewRoute(route)) = answer else {
        return Err(no_way());
    };
    let (mut local, mut index, mut limit) = (None, None, u32::MAX);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::PrefSource(address) => local = inspect::ip(address),
            RouteAttribute::Oif(out) => index = Some(*out),
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    if let RouteMetric::Mtu(mtu) = metric {
                        limit = *mtu;
                    }
                }
            }
            _ => {}
        }
    }
    let (local, index) = local.zip(index).ok_or_else(no_way)?;
    let link = netlink.link_by_index(index).await?.ok_or_else(no_way)?;
    Ok(Underlay { local, mtu: link.mtu.min(limit) })
}

/// The node's end: makes what is missing of the VXLAN in `sandbox`, of its joint with
/// the CNI interface `interface` and of the packet filter in `root`, the namespace
/// whose underlay is used. Returns the interface as the machine must show it.
/// Again is free, and heals.
pub async fn attach(
    root: &Namespace,
    sandbox: &Namespace,
    interface: &str,
    tunnel: &Tunnel,
) -> Result<Interface, Error> {
    let netlink = Netlink::open(sandbox).await?;
    let inspected = inspect::read(&netlink, interface).await?;
    let planned = plan_for(root, tunnel, &inspected).await?;
    // Before the device is there, so that nothing comes in unchecked.
    firewall::allow(root, tunnel).await?;
    make(root, sandbox, tunnel).await?;
    tap::silence(sandbox, interface, DEVICE).await?;
    // The machine's root may not be believed, wherever the machine is.
    sink::open(sandbox, DEVICE).await?;
    join(&netlink, interface, inspected.mtu, Some(&own::filters(&inspected))).await?;
    Ok(planned)
}

/// What is wrong with the node's end; nothing if it is intact.
pub async fn check(
    root: &Namespace,
    sandbox: &Namespace,
    interface: &str,
    tunnel: &Tunnel,
) -> Result<Vec<Damage>, Error> {
    let netlink = Netlink::open(sandbox).await?;
    let outer = netlink.present_link(interface).await?;
    let inspected = inspect::read(&netlink, interface).await?;
    let mut damage = check_joint(&netlink, &outer, tunnel, Some(&own::filters(&inspected))).await?;
    if damage.iter().all(|one| !matches!(one, Damage::Missing { .. }))
        && !sink::is_open(sandbox, DEVICE).await?
    {
        damage.push(Damage::Unguarded);
    }
    if !firewall::is_guarded(root, tunnel).await? {
        damage.push(Damage::Unguarded);
    }
    Ok(damage)
}

/// Removes the node's end. What is gone already is fine: the CNI interface, the
/// device, and, with `None`, the whole sandbox namespace.
pub async fn detach(
    root: &Namespace,
    sandbox: Option<&Namespace>,
    interface: &str,
    tunnel: &Tunnel,
) -> Result<(), Error> {
    if let Some(sandbox) = sandbox {
        let netlink = Netlink::open(sandbox).await?;
        if let Some(outer) = netlink.link(interface).await? {
            redirect::part(&netlink, &outer).await?;
        }
        netlink.remove_link(DEVICE).await?;
        sink::close(sandbox, DEVICE).await?;
    }
    // Last, so that nothing comes in unchecked.
    firewall::forbid(root, tunnel).await
}

/// The machine's end: makes what is missing of the VXLAN and the packet filter in the
/// machine's `root` namespace and of the pod's interface in `pod`, and puts in place
/// there what the node's end planned. Again is free, and heals. Returns what the pod
/// shows, which is narrower than what was planned if this end's underlay is.
pub async fn attach_machine(
    root: &Namespace,
    pod: &Namespace,
    interface: &Interface,
    tunnel: &Tunnel,
) -> Result<Interface, Error> {
    let planned = plan_for(root, tunnel, interface).await?;
    check_name(&planned.name)?;
    firewall::allow(root, tunnel).await?;
    make(root, root, tunnel).await?;
    make_pair(root, pod, &planned).await?;
    for device in [PAIR, DEVICE] {
        root.set(format!("ipv6/conf/{device}/disable_ipv6"), "1").await?;
    }
    let netlink = Netlink::open(root).await?;
    let pair = netlink.present_link(PAIR).await?;
    tap::complete(&netlink, &pair, planned.mtu).await?;
    join(&netlink, PAIR, planned.mtu, None).await?;
    apply(pod, &Target::Named(planned.name.clone()), &planned).await?;
    Ok(planned)
}

/// What is wrong with the machine's end; nothing if it is intact. `interface` is what
/// [`attach_machine`] returned.
pub async fn check_machine(
    root: &Namespace,
    pod: &Namespace,
    interface: &Interface,
    tunnel: &Tunnel,
) -> Result<Vec<Damage>, Error> {
    let (outside, inside) = (Netlink::open(root).await?, Netlink::open(pod).await?);
    let name = &interface.name;
    let Some((pair, link)) = find_pair(&outside, &inside, name).await? else {
        return Ok(vec![Damage::Missing { device: name.clone() }]);
    };
    let mut damage = check_joint(&outside, &pair, tunnel, None).await?;
    if !link.up {
        damage.push(Damage::Down { device: name.clone() });
    }
    let found = inspect::read(&inside, name).await?;
    let changed = [
        ("hardware address", found.mac != interface.mac),
        ("mtu", found.mtu != interface.mtu),
        ("addresses", !covers(&found.addresses, &interface.addresses, |a, b| a.prefix == b.prefix)),
        ("routes", !covers(&found.routes, &interface.routes, |a, b| a == b)),
        ("neighbours", !covers(&found.neighbours, &interface.neighbours, |a, b| a == b)),
    ];
    for (what, _) in changed.into_iter().filter(|(_, changed)| *changed) {
        damage.push(Damage::Changed { device: name.clone(), what });
    }
    if !firewall::is_guarded(root, tunnel).await? {
        damage.push(Damage::Unguarded);
    }
    Ok(damage)
}

/// Whether all of `wanted` is in `found`.
fn covers<T>(found: &[T], wanted: &[T], same: impl Fn(&T, &T) -> bool) -> bool {
    wanted.iter().all(|one| found.iter().any(|other| same(one, other)))
}

/// Removes the machine's end, and with it the pod's interface.
pub async fn detach_machine(root: &Namespace, tunnel: &Tunnel) -> Result<(), Error> {
    let netlink = Netlink::open(root).await?;
    netlink.remove_link(PAIR).await?;
    netlink.remove_link(DEVICE).await?;
    firewall::forbid(root, tunnel).await
}

/// Joins the VXLAN with the interface `outer`. It is as wide as that: a packet that is
/// too long for the underlay all the same is sent in fragments outside instead of
/// being lost.
async fn join(netlink: &Netlink, outer: &str, mtu: u32, allowed: Option<&[Filter]>) -> Result<(), Error> {
    let inner = netlink.present_link(DEVICE).await?;
    tap::complete(netlink, &inner, mtu).await?;
    let outer = netlink.present_link(outer).await?;
    redirect::join(netlink, &outer, &inner, allowed).await?;
    tap::raise_if_down(netlink, &outer).await
}

/// What is wrong with the VXLAN and its joint with `outer`.
async fn check_joint(
    netlink: &Netlink,
    outer: &Link,
    tunnel: &Tunnel,
    allowed: Option<&[Filter]>,
) -> Result<Vec<Damage>, Error> {
    let Some(inner) = netlink.link(DEVICE).await?.filter(Link::is_vxlan) else {
        return Ok(vec![Damage::Missing { device: DEVICE.to_owned() }]);
    };
    let mut damage = tap::check_devices(outer, &inner);
    if !is_tunnel(&inner, tunnel) {
        damage.push(Damage::Changed { device: DEVICE.to_owned(), what: "the tunnel" });
    }
    damage.extend(redirect::check(netlink, outer, &inner, allowed).await?);
    Ok(damage)
}

/// Both ends of the pod's interface in a machine, if they belong together.
async fn find_pair(outside: &Netlink, inside: &Netlink, name: &str) -> Result<Option<(Link, Link)>, Error> {
    let found = outside.link(PAIR).await?.zip(inside.link(name).await?);
    Ok(found.filter(|(pair, link)| pair.peer == Some(link.index) && link.peer == Some(pair.index)))
}

/// Makes the pod's interface with its other end in `root`, if it is not there.
async fn make_pair(root: &Namespace, pod: &Namespace, interface: &Interface) -> Result<(), Error> {
    let (outside, inside) = (Netlink::open(root).await?, Netlink::open(pod).await?);
    let name = &interface.name;
    if find_pair(&outside, &inside, name).await?.is_some() {
        return Ok(());
    }
    if inside.link(name).await?.is_some() {
        return Err(in_the_way(pod, name));
    }
    // Left over from a pod namespace that is gone, or that something moved.
    outside.remove_link(PAIR).await?;
    let peer = LinkUnspec::new_with_name(name)
        .setns_by_fd(pod.as_fd().as_raw_fd())
        .address(interface.mac.0.to_vec())
        .mtu(interface.mtu)
        .build();
    let pair = LinkVeth::new(PAIR, name).set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
    outside.add_link(pair.build(), &format!("{PAIR} with {name} in {}", pod.path().display())).await
}

fn in_the_way(namespace: &Namespace, interface: &str) -> Error {
    Error::Unfit {
        namespace: namespace.path().to_path_buf(),
        interface: interface.to_owned(),
        problem: "is in the way of the pod's tunnel: it is something else",
    }
}

async fn plan_for(root: &Namespace, tunnel: &Tunnel, interface: &Interface) -> Result<Interface, Error> {
    let Tunnel { local, remote, .. } = *tunnel;
    if local.is_ipv4() != remote.is_ipv4() {
        return Err(Error::MixedFamilies { local, remote });
    }
    let way = underlay(root, remote).await?;
    plan::through_tunnel(interface, way.mtu, remote.is_ipv6())
}

/// Makes the VXLAN in `inside` with its socket in `root`, if it is not there as it
/// should be. It appears in `inside` at once.
async fn make(root: &Namespace, inside: &Namespace, tunnel: &Tunnel) -> Result<(), Error> {
    let inner = Netlink::open(inside).await?;
    match inner.link(DEVICE).await? {
        Some(link) if link.is_vxlan() && is_tunnel(&link, tunnel) => return Ok(()),
        // Another tunnel's, from an earlier life of this pod.
        Some(link) if link.is_vxlan() => inner.remove_link(DEVICE).await?,
        Some(_) => return Err(in_the_way(inside, DEVICE)),
        None => {}
    }
    let mut message = LinkVxlan::new(DEVICE, tunnel.vni);
    for setting in settings(tunnel) {
        message = message.append_info_data(setting);
    }
    message = message.setns_by_fd(inside.as_fd().as_raw_fd());
    let outer = Netlink::open(root).await?;
    outer.add_link(message.build(), &format!("tunnel {} to {}", tunnel.vni, tunnel.remote)).await
}

/// How the device is made, beside its identifier: one peer and nothing learnt.
fn settings(tunnel: &Tunnel) -> Vec<InfoVxlan> {
    let (local, remote) = match (tunnel.local, tunnel.remote) {
        (IpAddr::V4(local), IpAddr::V4(remote)) => (InfoVxlan::Local(local), InfoVxlan::Group(remote)),
        (IpAddr::V6(local), IpAddr::V6(remote)) => (InfoVxlan::Local6(local), InfoVxlan::Group6(remote)),
        // Refused before.
        _ => return Vec::new(),
    };
    vec![local, remote, InfoVxlan::Port(tunnel.port), InfoVxlan::Learning(false)]
}

/// Whether a device is this tunnel.
fn is_tunnel(link: &Link, tunnel: &Tunnel) -> bool {
    link.vxlan.contains(&InfoVxlan::Id(tunnel.vni))
        && settings(tunnel).iter().all(|setting| link.vxlan.contains(setting))
}
