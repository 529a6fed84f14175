//! Which frames a pod may send: those that say they come from it. Pure.
//!
//! A container on the node's kernel may forge addresses only with rights that few
//! have; the root of a virtual machine makes frames as it likes. What must be the
//! pod's own in every frame:
//!
//! - the Ethernet source;
//! - the source of an IPv4 or IPv6 packet;
//! - the sender in ARP (RFC 826), and what a neighbour advertisement (RFC 4861 section
//!   4.4) is about.
//!
//! Nothing else than IPv4, IPv6 and ARP goes out, in no VLAN. Router advertisements
//! and redirects do not, since a pod is no router; nor do IPv6 packets that begin with
//! headers behind which such messages could hide, but for multicast reports (RFC 3810).

use std::net::{IpAddr, Ipv6Addr};

use crate::{Interface, Mac};

/// EtherTypes.
pub(crate) const IPV4: u16 = 0x0800;
pub(crate) const ARP: u16 = 0x0806;
pub(crate) const IPV6: u16 = 0x86dd;

/// Next headers of IPv6.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const ICMPV6: u8 = 58;
const DESTINATION: u8 = 60;

/// Types of `ICMPv6` messages.
const REPORTS: [u8; 3] = [131, 132, 143];
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

/// Where things are, from the beginning of the packet; the Ethernet header is before it.
const ETHERNET_SOURCE: i32 = -8;
const IPV4_SOURCE: i32 = 12;
const IPV6_NEXT: i32 = 6;
const IPV6_SOURCE: i32 = 8;
const IPV6_PAYLOAD: i32 = 40;
/// Of a neighbour advertisement, whose message begins the payload.
const TARGET: i32 = IPV6_PAYLOAD + 8;
const ARP_KIND: i32 = 0;
const ARP_SENDER: i32 = 8;

/// Four bytes of a frame of which some bits must be so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    /// From the beginning of the packet.
    pub(crate) offset: i32,
    pub(crate) value: u32,
    pub(crate) mask: u32,
}

/// What becomes of frames of one kind that look in one way. The first that fits holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    /// The `EtherType`.
    pub(crate) protocol: u16,
    /// All must fit.
    pub(crate) keys: Vec<Key>,
    /// Whether the frame goes on.
    pub(crate) passes: bool,
}

/// The frames that a pod with this interface may send. What fits nowhere is dropped.
pub(crate) fn filters(interface: &Interface) -> Vec<Filter> {
    let mac = interface.mac;
    let (mut four, mut six) = (Vec::new(), Vec::new());
    for address in &interface.addresses {
        match address.prefix.address {
            IpAddr::V4(address) => four.push(address),
            IpAddr::V6(address) => six.push(address),
        }
    }
    let mut filters = Vec::new();
    for address in &four {
        let source = bytes(IPV4_SOURCE, &address.octets());
        filters.push(pass(IPV4, [from(mac), source]));
    }
    for address in &four {
        // Ethernet and IPv4; any operation.
        let kind = bytes(ARP_KIND, &[0, 1, 8, 0, 6, 4]);
        let sender = [&mac.0[..], &address.octets()].concat();
        filters.push(pass(ARP, [from(mac), kind, bytes(ARP_SENDER, &sender)]));
    }
    filters.extend(six_filters(mac, &six));
    filters
}

fn six_filters(mac: Mac, addresses: &[Ipv6Addr]) -> Vec<Filter> {
    let own = |address: &Ipv6Addr| [from(mac), bytes(IPV6_SOURCE, &address.octets())].concat();
    let next = |header: u8| byte(IPV6_NEXT, header);
    let message = |kind: u8| [next(ICMPV6), byte(IPV6_PAYLOAD, kind)].concat();
    let mut filters = Vec::new();
    for source in addresses {
        for target in addresses {
            let about = bytes(TARGET, &target.octets());
            filters.push(pass(IPV6, [message(NEIGHBOUR_ADVERTISEMENT), own(source), about]));
        }
    }
    for source in addresses {
        for report in REPORTS {
            // Its hop-by-hop header is eight bytes: the length field counts from there.
            let options = bytes(IPV6_PAYLOAD, &[ICMPV6, 0]);
            let report = byte(IPV6_PAYLOAD + 8, report);
            filters.push(pass(IPV6, [next(HOP_BY_HOP), options, report, own(source)]));
        }
    }
    for kind in [NEIGHBOUR_ADVERTISEMENT, ROUTER_ADVERTISEMENT, REDIRECT] {
        filters.push(Filter { protocol: IPV6, keys: message(kind), passes: false });
    }
    for header in [HOP_BY_HOP, ROUTING, DESTINATION] {
        filters.push(Filter { protocol: IPV6, keys: next(header), passes: false });
    }
    filters.extend(addresses.iter().map(|address| pass(IPV6, [own(address)])));
    filters
}

fn pass<const N: usize>(protocol: u16, keys: [Vec<Key>; N]) -> Filter {
    Filter { protocol, keys: keys.concat(), passes: true }
}

/// Sent by this card.
fn from(mac: Mac) -> Vec<Key> {
    bytes(ETHERNET_SOURCE, &mac.0)
}

fn byte(offset: i32, value: u8) -> Vec<Key> {
    bytes(offset, &[value])
}

/// These bytes, from this place on.
fn bytes(offset: i32, expected: &[u8]) -> Vec<Key> {
    let word = |bytes: &[u8]| {
        let mut word = [0; 4];
        word[..bytes.len()].copy_from_slice(bytes);
        u32::from_be_bytes(word)
    };
    (offset..)
        .step_by(4)
        .zip(expected.chunks(4))
        .map(|(offset, part)| Key { offset, value: word(part), mask: word(&vec![0xff; part.len()]) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Address, Prefix};

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 7]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 8]);

    fn interface(addresses: &[&str]) -> Interface {
        let address = |text: &&str| Address {
            prefix: Prefix { address: text.parse().unwrap(), length: 24 },
            peer: None,
            broadcast: None,
            scope: 0,
            flags: 0,
        };
        Interface {
            name: "eth0".to_owned(),
            mac: OWN,
            mtu: 1500,
            addresses: addresses.iter().map(address).collect(),
            routes: Vec::new(),
            neighbours: Vec::new(),
            rules: Vec::new(),
        }
    }

    /// What the kernel does with them (`u32_classify`): a key beyond the frame's end
    /// does not fit.
    fn passes(filters: &[Filter], frame: &[u8]) -> bool {
        let protocol = u16::from_be_bytes([frame[12], frame[13]]);
        let fits = |key: &Key| {
            let at = usize::try_from(14 + key.offset).unwrap();
            let word = frame.get(at..at + 4);
            word.is_some_and(|word| u32::from_be_bytes(word.try_into().unwrap()) & key.mask == key.value)
        };
        let found = filters.iter().find(|filter| filter.protocol == protocol && filter.keys.iter().all(fits));
        found.is_some_and(|filter| filter.passes)
    }

    fn frame(mac: Mac, protocol: u16, packet: &[&[u8]]) -> Vec<u8> {
        let mut frame = [&[0xff; 6][..], &mac.0, &protocol.to_be_bytes(), &packet.concat()].concat();
        frame.resize(frame.len().max(120), 0);
        frame
    }

    fn ip(text: &str) -> Vec<u8> {
        match text.parse().unwrap() {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        }
    }

    fn four(mac: Mac, source: &str) -> Vec<u8> {
        frame(mac, IPV4, &[&[0x45; 12], &ip(source), &ip("10.0.0.1")])
    }

    fn arp(mac: Mac, sender: Mac, address: &str) -> Vec<u8> {
        frame(mac, ARP, &[&[0, 1, 8, 0, 6, 4, 0, 2], &sender.0, &ip(address), &[0; 10]])
    }

    fn six(source: &str, next: u8, payload: &[&[u8]]) -> Vec<u8> {
        let header = [0x60, 0, 0, 0, 0, 0, next, 255];
        let packet = [&header[..], &ip(source), &ip("ff02::1"), &payload.concat()].concat();
        frame(OWN, IPV6, &[&packet])
    }

    #[test]
    fn only_what_says_where_it_comes_from() {
        let filters = filters(&interface(&["10.0.0.7", "10.0.0.17", "fd00::7", "fe80::7"]));
        let about = |source, target| six(source, ICMPV6, &[&[136, 0, 0, 0, 0, 0, 0, 0], &ip(target)]);
        let kind = |kind| six("fe80::7", ICMPV6, &[&[kind]]);
        let report = |source, kind| six(source, HOP_BY_HOP, &[&[ICMPV6, 0, 5, 2, 0, 0, 1, 0, kind]]);
        for (what, frame, expected) in [
            ("own", four(OWN, "10.0.0.7"), true),
            ("own second address", four(OWN, "10.0.0.17"), true),
            ("other's address", four(OWN, "10.0.0.8"), false),
            ("other's card", four(OTHER, "10.0.0.7"), false),
            ("no address", four(OWN, "0.0.0.0"), false),
            ("own ARP", arp(OWN, OWN, "10.0.0.7"), true),
            ("ARP for other", arp(OWN, OWN, "10.0.0.8"), false),
            ("ARP for other's card", arp(OWN, OTHER, "10.0.0.7"), false),
            ("ARP from other's card", arp(OTHER, OWN, "10.0.0.7"), false),
            ("own TCP", six("fd00::7", 6, &[]), true),
            ("other's TCP", six("fd00::8", 6, &[]), false),
            ("own advertisement", about("fe80::7", "fd00::7"), true),
            ("advertisement of other", about("fe80::7", "fd00::8"), false),
            ("advertisement by other", about("fd00::8", "fd00::7"), false),
            ("own solicitation", kind(135), true),
            ("own echo", kind(128), true),
            ("router", kind(134), false),
            ("redirect", kind(137), false),
            ("own report", report("fe80::7", 143), true),
            ("other's report", report("fe80::8", 143), false),
            ("hidden advertisement", report("fe80::7", 136), false),
            ("behind a routing header", six("fd00::7", ROUTING, &[]), false),
            ("behind options", six("fd00::7", DESTINATION, &[]), false),
            ("own fragment", six("fd00::7", 44, &[]), true),
            ("VLAN", frame(OWN, 0x8100, &[]), false),
            ("spanning tree", frame(OWN, 0x0027, &[]), false),
        ] {
            assert_eq!(passes(&filters, &frame), expected, "{what}");
        }
        let mut short = four(OWN, "10.0.0.7");
        short.truncate(28);
        assert!(!passes(&filters, &short));
    }

    #[test]
    fn a_pod_without_addresses_says_nothing() {
        let filters = filters(&interface(&[]));
        assert!(!filters.iter().any(|filter| filter.passes));
    }

    #[test]
    fn keys_are_words() {
        assert_eq!(
            bytes(8, &[1, 2, 3, 4, 5]),
            [
                Key { offset: 8, value: 0x0102_0304, mask: 0xffff_ffff },
                Key { offset: 12, value: 0x0500_0000, mask: 0xff00_0000 },
            ]
        );
    }
}
