//! What an interface has.

use std::net::IpAddr;

use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteVia,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::namespace::Namespace;
use super::netlink::Netlink;
use crate::{Address, Error, Interface, Mac, Neighbour, Prefix, Route, Rule};

/// `RT_TABLE_LOCAL`: filled by the kernel from the addresses.
const LOCAL_TABLE: u32 = 255;

/// `RTN_MULTICAST`: made by the kernel for every interface.
const MULTICAST: u8 = 5;

/// Flags of an address that say how it should be, not how it is doing.
const LASTING_FLAGS: AddressFlags =
    AddressFlags::Nodad.union(AddressFlags::Homeaddress).union(AddressFlags::Noprefixroute);

/// The priorities of the rules that the kernel makes: local, main, default.
const KERNEL_RULES: [u32; 3] = [0, 32_766, 32_767];

/// Reads what `name` has in `namespace`, to be put in place elsewhere.
///
/// What the machine will find out by itself is left out: the table `local`,
/// addresses and routes from router advertisements, neighbours that were learnt. What
/// cannot be carried (routes with several next hops or an encapsulation, rules
/// that look at more than addresses, marks and interfaces) is an error: a pod
/// without it would look healthy.
pub async fn inspect(namespace: &Namespace, name: &str) -> Result<Interface, Error> {
    let netlink = Netlink::open(namespace).await?;
    read(&netlink, name).await
}

pub(crate) async fn read(netlink: &Netlink, name: &str) -> Result<Interface, Error> {
    let link = netlink.present_link(name).await?;
    let unfit = |problem| Error::Unfit {
        namespace: netlink.namespace().to_path_buf(),
        interface: name.to_owned(),
        problem,
    };
    let mac = link.mac.ok_or_else(|| unfit("has no Ethernet address: it must be a layer 2 device"))?;
    Ok(Interface {
        name: link.name,
        mac,
        mtu: link.mtu,
        addresses: addresses(netlink, link.index).await?,
        routes: routes(netlink, link.index).await?,
        neighbours: neighbours(netlink, link.index).await?,
        rules: rules(netlink).await?,
    })
}

pub(crate) async fn addresses(netlink: &Netlink, index: u32) -> Result<Vec<Address>, Error> {
    let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let answer = netlink.all(question, "list", "addresses").await?;
    let addresses = answer.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewAddress(message) if message.header.index == index => address(&message),
        _ => None,
    });
    Ok(addresses.collect())
}

/// Whether an address cannot be used yet.
pub(super) async fn is_tentative(netlink: &Netlink, index: u32) -> Result<bool, Error> {
    let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let answer = netlink.all(question, "list", "addresses").await?;
    Ok(answer.iter().any(|message| match message {
        RouteNetlinkMessage::NewAddress(message) => {
            message.header.index == index && message.header.flags.contains(AddressHeaderFlags::Tentative)
        }
        _ => false,
    }))
}

/// The address in a message, if it is permanent.
fn address(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut other, mut broadcast) = (None, None, None);
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => other = Some(*address),
            AddressAttribute::Broadcast(address) => broadcast = Some(IpAddr::V4(*address)),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    if !flags.contains(AddressFlags::Permanent) {
        return None;
    }
    // `Address` is the other end of a point-to-point link, or the address itself.
    let address = local.or(other)?;
    Some(Address {
        prefix: Prefix { address, length: message.header.prefix_len },
        peer: other.filter(|other| *other != address),
        broadcast,
        scope: message.header.scope.into(),
        flags: flags.intersection(LASTING_FLAGS).bits(),
    })
}

pub(crate) async fn routes(netlink: &Netlink, index: u32) -> Result<Vec<Route>, Error> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        let question = RouteNetlinkMessage::GetRoute(question);
        for message in netlink.all(question, "list", "routes").await? {
            if let RouteNetlinkMessage::NewRoute(message) = message
                && message.header.address_family == family
                && let Some(route) = route(netlink, &message, index)?
            {
                routes.push(route);
            }
        }
    }
    Ok(routes)
}

/// The route in a message, if it is one through `index` that somebody made.
fn route(netlink: &Netlink, message: &RouteMessage, index: u32) -> Result<Option<Route>, Error> {
    let ipv6 = message.header.address_family == AddressFamily::Inet6;
    let mut route = Route {
        destination: Prefix::everything(ipv6),
        gateway: None,
        onlink: message.header.flags.contains(RouteFlags::Onlink),
        source: None,
        scope: message.header.scope.into(),
        kind: message.header.kind.into(),
        protocol: message.header.protocol.into(),
        service: message.header.tos,
        table: message.header.table.into(),
        metric: None,
        mtu: None,
        mtu_locked: false,
        segment: None,
    };
    route.destination.length = message.header.destination_prefix_length;
    let (mut ours, mut strange) = (false, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(out) => ours |= *out == index,
            RouteAttribute::Destination(address) => {
                route.destination.address = ip(address).unwrap_or(route.destination.address);
            }
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::Via(RouteVia::Inet(address)) => route.gateway = Some((*address).into()),
            RouteAttribute::Via(RouteVia::Inet6(address)) => route.gateway = Some((*address).into()),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Priority(metric) => route.metric = Some(*metric),
            RouteAttribute::Metrics(metrics) => read_metrics(&mut route, metrics),
            RouteAttribute::MultiPath(hops) => {
                ours |= hops.iter().any(|hop| hop.interface_index == index);
                strange = Some("several next hops");
            }
            RouteAttribute::Encap(_) => strange = Some("an encapsulation"),
            RouteAttribute::NhId(_) => strange = Some("a next-hop object"),
            RouteAttribute::Source(_) => strange = Some("a source"),
            _ => {}
        }
    }
    let by_itself = route.table == LOCAL_TABLE
        || route.kind == MULTICAST
        || message.header.protocol == RouteProtocol::Ra
        || message.header.flags.contains(RouteFlags::Cloned);
    if !ours || by_itself {
        return Ok(None);
    }
    match strange {
        None => Ok(Some(route)),
        Some(what) => Err(Error::NotCarried {
            namespace: netlink.namespace().to_path_buf(),
            what: format!("a route to {} with {what}", route.destination),
        }),
    }
}

fn read_metrics(route: &mut Route, metrics: &[RouteMetric]) {
    /// The bit of `RTAX_LOCK` that is about the MTU.
    const MTU_LOCK: u32 = 1 << 2;
    for metric in metrics {
        match metric {
            RouteMetric::Mtu(mtu) => route.mtu = Some(*mtu),
            RouteMetric::Advmss(segment) => route.segment = Some(*segment),
            RouteMetric::Lock(locks) => route.mtu_locked = locks & MTU_LOCK != 0,
            _ => {}
        }
    }
}

pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

pub(crate) async fn neighbours(netlink: &Netlink, index: u32) -> Result<Vec<Neighbour>, Error> {
    let mut neighbours = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = NeighbourMessage::default();
        question.header.family = family;
        question.header.ifindex = index;
        let question = RouteNetlinkMessage::GetNeighbour(question);
        for message in netlink.all(question, "list", "neighbours").await? {
            if let RouteNetlinkMessage::NewNeighbour(message) = message
                && message.header.ifindex == index
                && message.header.state == NeighbourState::Permanent
            {
                neighbours.extend(neighbour(&message));
            }
        }
    }
    Ok(neighbours)
}

fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some((*ip).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some((*ip).into()),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok().map(Mac),
            _ => {}
        }
    }
    Some(Neighbour { address: address?, mac: mac?, flags: message.header.flags.bits() })
}

async fn rules(netlink: &Netlink) -> Result<Vec<Rule>, Error> {
    let mut rules = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RuleMessage::default();
        question.header.family = family;
        let question = RouteNetlinkMessage::GetRule(question);
        for message in netlink.all(question, "list", "rules").await? {
            if let RouteNetlinkMessage::NewRule(message) = message
                && message.header.family == family
            {
                rules.extend(rule(netlink, &message)?);
            }
        }
    }
    Ok(rules)
}

fn rule(netlink: &Netlink, message: &RuleMessage) -> Result<Option<Rule>, Error> {
    let ipv6 = message.header.family == AddressFamily::Inet6;
    let mut rule = Rule {
        ipv6,
        priority: 0,
        source: None,
        destination: None,
        input: None,
        output: None,
        mark: None,
        table: message.header.table.into(),
    };
    let (mut mark, mut mask) = (None, u32::MAX);
    let mut strange = message.header.action != RuleAction::ToTable || message.header.tos != 0;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::Source(address) => {
                rule.source = Some(Prefix { address: *address, length: message.header.src_len });
            }
            RuleAttribute::Destination(address) => {
                rule.destination = Some(Prefix { address: *address, length: message.header.dst_len });
            }
            RuleAttribute::Iifname(name) => rule.input = Some(name.clone()),
            RuleAttribute::Oifname(name) => rule.output = Some(name.clone()),
            RuleAttribute::FwMark(value) => mark = Some(*value),
            RuleAttribute::FwMask(value) => mask = *value,
            RuleAttribute::Protocol(_) => {}
            // -1: nothing is suppressed.
            RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::SuppressIfGroup(u32::MAX) => {}
            RuleAttribute::Other(_) => {}
            _ => strange = true,
        }
    }
    rule.mark = mark.map(|mark| (mark, mask));
    if KERNEL_RULES.contains(&rule.priority) {
        return Ok(None);
    }
    if strange {
        return Err(Error::NotCarried {
            namespace: netlink.namespace().to_path_buf(),
            what: format!("a routing rule at {} that looks at more than addresses", rule.priority),
        });
    }
    Ok(Some(rule))
}
