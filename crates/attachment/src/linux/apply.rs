//! An interface put in place.

use std::net::IpAddr;
use std::os::fd::AsRawFd;

use rtnetlink::LinkUnspec;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteVia,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use tokio::time::{Duration, Instant, sleep};

use super::inspect;
use super::link::{Link, check_name};
use super::namespace::Namespace;
use super::netlink::Netlink;
use crate::{Address, Error, Interface, Mac, Neighbour, Prefix, Route, Rule};

/// How long the kernel may take to let go of new addresses: milliseconds as a rule.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks for a device that is not there yet.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Which device becomes the pod's interface.
#[derive(Clone, Debug)]
pub enum Target {
    /// The one of this name.
    Named(String),
    /// The one with this hardware address, whatever it is called: a virtual machine's
    /// network card, made by the host with the pod's address.
    WithMac(Mac),
}

/// Moves the device with this hardware address from one namespace to another. Waits up
/// to `patience` for it to appear: a machine's drivers are not done at once. One that is
/// in `to` already is fine.
pub async fn carry(from: &Namespace, to: &Namespace, mac: Mac, patience: Duration) -> Result<(), Error> {
    let target = Target::WithMac(mac);
    if find(&Netlink::open(to).await?, &target).await.is_ok() {
        return Ok(());
    }
    let netlink = Netlink::open(from).await?;
    let deadline = Instant::now() + patience;
    let link = loop {
        match find(&netlink, &target).await {
            Err(Error::NoInterface { .. }) if Instant::now() < deadline => sleep(LOOK_AGAIN).await,
            found => break found?,
        }
    };
    let message = LinkUnspec::new_with_index(link.index).setns_by_fd(to.as_fd().as_raw_fd()).build();
    netlink.set_link(message, "move", &link.name).await
}

/// Makes the device in `namespace` look like `interface`, down to its name: up,
/// with these addresses, routes and neighbours and no others. Again is free.
///
/// IPv6 addresses are used at once, without asking the link whether they are taken:
/// CNI has given them to this pod, and the sandbox namespace still shows them.
pub async fn apply(namespace: &Namespace, target: &Target, interface: &Interface) -> Result<(), Error> {
    check_name(&interface.name)?;
    let netlink = Netlink::open(namespace).await?;
    let link = find(&netlink, target).await?;
    shape(&netlink, &link, interface).await?;
    // No address that the kernel makes up, and no probing for those that are given.
    let settings = format!("ipv6/conf/{}", interface.name);
    namespace.set(format!("{settings}/disable_ipv6"), "0").await?;
    namespace.set(format!("{settings}/addr_gen_mode"), "1").await?;
    namespace.set(format!("{settings}/accept_dad"), "0").await?;
    raise(&netlink, link.index, &interface.name).await?;
    fill(&netlink, link.index, interface).await?;
    settle(&netlink, link.index, &interface.name).await
}

/// Waits until all addresses can be used. Nothing is asked on the link, but the kernel
/// makes even that known from a queue of its own.
async fn settle(netlink: &Netlink, index: u32, name: &str) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    while inspect::is_tentative(netlink, index).await? {
        if Instant::now() > deadline {
            return Err(Error::Unfit {
                namespace: netlink.namespace().to_path_buf(),
                interface: name.to_owned(),
                problem: "has an IPv6 address that the kernel holds back",
            });
        }
        sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

async fn find(netlink: &Netlink, target: &Target) -> Result<Link, Error> {
    let mac = match target {
        Target::Named(name) => return netlink.present_link(name).await,
        Target::WithMac(mac) => *mac,
    };
    netlink.links().await?.into_iter().find(|link| link.mac == Some(mac)).ok_or_else(|| Error::NoInterface {
        namespace: netlink.namespace().to_path_buf(),
        interface: format!("with the hardware address {mac}"),
    })
}

/// Name, hardware address and MTU.
async fn shape(netlink: &Netlink, link: &Link, interface: &Interface) -> Result<(), Error> {
    let name = &interface.name;
    if link.name != *name || link.mac != Some(interface.mac) {
        // Both want the device down, on older kernels and some drivers.
        if link.up {
            let down = LinkUnspec::new_with_index(link.index).down().build();
            netlink.set_link(down, "take down", &link.name).await?;
        }
        let change = LinkUnspec::new_with_index(link.index).name(name).address(interface.mac.0.to_vec());
        netlink.set_link(change.build(), "name and address", &link.name).await?;
    }
    if link.mtu != interface.mtu {
        let change = LinkUnspec::new_with_index(link.index).mtu(interface.mtu).build();
        netlink.set_link(change, "set the MTU of", name).await?;
    }
    Ok(())
}

pub(crate) async fn raise(netlink: &Netlink, index: u32, name: &str) -> Result<(), Error> {
    netlink.set_link(LinkUnspec::new_with_index(index).up().build(), "bring up", name).await
}

/// Addresses, routes, neighbours and rules.
async fn fill(netlink: &Netlink, index: u32, interface: &Interface) -> Result<(), Error> {
    let name = &interface.name;
    for stale in inspect::addresses(netlink, index).await? {
        if !interface.addresses.iter().any(|wanted| wanted.prefix == stale.prefix) {
            let message = RouteNetlinkMessage::DelAddress(address_message(&stale, index));
            tolerate(netlink.change(message, 0, "remove address", &on(&stale.prefix, name)).await)?;
        }
    }
    // The kernel lists IPv4 addresses as they came and IPv6 addresses the newest first;
    // among equals, the order decides which is a packet's source.
    let ordered = |ipv6| interface.addresses.iter().filter(move |one| one.prefix.address.is_ipv6() == ipv6);
    for address in ordered(false).chain(ordered(true).rev()) {
        let message = RouteNetlinkMessage::NewAddress(address_message(address, index));
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        netlink.change(message, flags, "add address", &on(&address.prefix, name)).await?;
    }
    for stale in inspect::routes(netlink, index).await? {
        if !interface.routes.iter().any(|wanted| same_place(wanted, &stale)) {
            let message = RouteNetlinkMessage::DelRoute(route_message(&stale, index));
            tolerate(netlink.change(message, 0, "remove route", &on(&stale.destination, name)).await)?;
        }
    }
    // A gateway must be reachable by a route that is there already.
    let (direct, by_gateway): (Vec<&Route>, Vec<&Route>) =
        interface.routes.iter().partition(|route| route.gateway.is_none());
    for route in direct.into_iter().chain(by_gateway) {
        let message = RouteNetlinkMessage::NewRoute(route_message(route, index));
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        netlink.change(message, flags, "add route", &on(&route.destination, name)).await?;
    }
    for stale in inspect::neighbours(netlink, index).await? {
        if !interface.neighbours.iter().any(|wanted| wanted.address == stale.address) {
            let message = RouteNetlinkMessage::DelNeighbour(neighbour_message(&stale, index));
            tolerate(netlink.change(message, 0, "remove neighbour", &on(&stale.address, name)).await)?;
        }
    }
    for neighbour in &interface.neighbours {
        let message = RouteNetlinkMessage::NewNeighbour(neighbour_message(neighbour, index));
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        netlink.change(message, flags, "add neighbour", &on(&neighbour.address, name)).await?;
    }
    for rule in &interface.rules {
        let message = RouteNetlinkMessage::NewRule(rule_message(rule));
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let object = format!("at priority {}", rule.priority);
        match netlink.change(message, flags, "add rule", &object).await {
            Err(Error::Kernel { source, .. }) if source.number() == Some(libc::EEXIST) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Something that was to be removed is gone: with the address that brought it, say.
fn tolerate(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::Kernel { source, .. })
            if matches!(source.number(), Some(libc::ESRCH | libc::ENOENT | libc::EADDRNOTAVAIL)) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn on(what: &dyn std::fmt::Display, name: &str) -> String {
    format!("{what} of {name}")
}

/// Whether putting one route replaces the other.
fn same_place(one: &Route, other: &Route) -> bool {
    (one.destination, one.table, one.metric.unwrap_or(0), one.service, one.gateway)
        == (other.destination, other.table, other.metric.unwrap_or(0), other.service, other.gateway)
}

fn family(address: &IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn address_message(address: &Address, index: u32) -> AddressMessage {
    let mut message = AddressMessage::default();
    let mut flags = AddressFlags::from_bits_retain(address.flags);
    // The subnet's route is among the routes, with the metric and MTU it had.
    flags |= AddressFlags::Noprefixroute;
    if address.prefix.address.is_ipv6() {
        flags |= AddressFlags::Nodad;
    }
    message.header.family = family(&address.prefix.address);
    message.header.prefix_len = address.prefix.length;
    message.header.scope = AddressScope::from(address.scope);
    message.header.index = index;
    // The header has room for the lower eight flags only.
    message.header.flags = AddressHeaderFlags::from_bits_truncate(flags.bits().to_le_bytes()[0]);
    message.attributes.push(AddressAttribute::Local(address.prefix.address));
    message.attributes.push(AddressAttribute::Address(address.peer.unwrap_or(address.prefix.address)));
    if let Some(IpAddr::V4(broadcast)) = address.broadcast {
        message.attributes.push(AddressAttribute::Broadcast(broadcast));
    }
    message.attributes.push(AddressAttribute::Flags(flags));
    message
}

fn route_message(route: &Route, index: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(&route.destination.address);
    header.destination_prefix_length = route.destination.length;
    header.tos = route.service;
    header.protocol = route.protocol.into();
    header.scope = route.scope.into();
    header.kind = route.kind.into();
    // Higher tables have no room in the header: `RT_TABLE_UNSPEC`, and the attribute counts.
    header.table = u8::try_from(route.table).unwrap_or(0);
    if route.onlink {
        header.flags |= RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Table(route.table));
    attributes.push(RouteAttribute::Oif(index));
    if route.destination.length > 0 {
        attributes.push(RouteAttribute::Destination(route.destination.address.into()));
    }
    match (route.destination.address, route.gateway) {
        (_, None) => {}
        (IpAddr::V4(_), Some(IpAddr::V6(gateway))) => {
            attributes.push(RouteAttribute::Via(RouteVia::Inet6(gateway)));
        }
        (_, Some(gateway)) => attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway))),
    }
    if let Some(source) = route.source {
        attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    if let Some(metric) = route.metric {
        attributes.push(RouteAttribute::Priority(metric));
    }
    let mut metrics = Vec::new();
    if let Some(mtu) = route.mtu {
        metrics.push(RouteMetric::Mtu(mtu));
        if route.mtu_locked {
            metrics.push(RouteMetric::Lock(1 << 2));
        }
    }
    metrics.extend(route.segment.map(RouteMetric::Advmss));
    if !metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

fn neighbour_message(neighbour: &Neighbour, index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(&neighbour.address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::from_bits_retain(neighbour.flags);
    let address = match neighbour.address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    };
    message.attributes.push(NeighbourAttribute::Destination(address));
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(neighbour.mac.0.to_vec()));
    message
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = if rule.ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    message.header.action = RuleAction::ToTable;
    message.header.table = u8::try_from(rule.table).unwrap_or(0);
    let attributes = &mut message.attributes;
    attributes.push(RuleAttribute::Table(rule.table));
    attributes.push(RuleAttribute::Priority(rule.priority));
    if let Some(Prefix { address, length }) = rule.source {
        message.header.src_len = length;
        attributes.push(RuleAttribute::Source(address));
    }
    if let Some(Prefix { address, length }) = rule.destination {
        message.header.dst_len = length;
        attributes.push(RuleAttribute::Destination(address));
    }
    if let Some(name) = &rule.input {
        attributes.push(RuleAttribute::Iifname(name.clone()));
    }
    if let Some(name) = &rule.output {
        attributes.push(RuleAttribute::Oifname(name.clone()));
    }
    if let Some((mark, mask)) = rule.mark {
        attributes.push(RuleAttribute::FwMark(mark));
        attributes.push(RuleAttribute::FwMask(mask));
    }
    message
}
