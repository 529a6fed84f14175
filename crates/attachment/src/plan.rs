//! What becomes of an interface on its way through a tunnel. Pure.

use std::net::IpAddr;

use crate::{Error, Interface};

/// The least MTU that IPv6 runs on (RFC 8200 section 5).
pub const IPV6_LEAST: u32 = 1280;

/// The least MTU that IPv4 runs on (RFC 791).
const IPV4_LEAST: u32 = 68;

/// What a VXLAN adds to an inner packet: the inner Ethernet header, the VXLAN
/// header, UDP and the outer IP header (RFC 7348).
pub fn overhead(outer_ipv6: bool) -> u32 {
    14 + 8 + 8 + if outer_ipv6 { 40 } else { 20 }
}

/// The interface as the machine must show it at the far end of a tunnel: nothing it
/// sends needs fragments outside. The MTU of each route becomes the least of its own,
/// the interface's, and what the underlay leaves.
///
/// The interface itself keeps its MTU, because that also says how long a packet may be
/// that comes in, and the node may send one that fills the CNI interface.
///
/// Planning twice changes nothing more, and both ends may plan: the narrower wins.
pub fn through_tunnel(interface: &Interface, underlay: u32, outer_ipv6: bool) -> Result<Interface, Error> {
    let overhead = overhead(outer_ipv6);
    let inner = interface.mtu.min(underlay.saturating_sub(overhead));
    let mut planned = interface.clone();
    if inner < IPV4_LEAST {
        return Err(Error::TooSmall { underlay });
    }
    if inner < IPV6_LEAST {
        if interface.addresses.iter().any(|address| is_routable_ipv6(&address.prefix.address)) {
            return Err(Error::TooSmallForIpv6 { underlay, inner, needed: IPV6_LEAST + overhead });
        }
        // The kernel has no IPv6 at all on so narrow an interface, not even on the link.
        planned.addresses.retain(|address| address.prefix.address.is_ipv4());
        planned.routes.retain(|route| route.destination.address.is_ipv4());
        planned.neighbours.retain(|neighbour| neighbour.address.is_ipv4());
        planned.rules.retain(|rule| !rule.ipv6);
    }
    for route in &mut planned.routes {
        let least = route.mtu.unwrap_or(interface.mtu).min(inner);
        route.mtu = (least < interface.mtu).then_some(least);
    }
    Ok(planned)
}

fn is_routable_ipv6(address: &IpAddr) -> bool {
    match address {
        IpAddr::V6(address) => !address.is_unicast_link_local(),
        IpAddr::V4(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Address, Mac, Prefix, Route};

    fn interface(mtu: u32, addresses: &[&str], route_mtus: &[Option<u32>]) -> Interface {
        let addresses = addresses
            .iter()
            .map(|address| Address {
                prefix: Prefix { address: address.parse().unwrap(), length: 24 },
                peer: None,
                broadcast: None,
                scope: 0,
                flags: 0,
            })
            .collect();
        let routes = route_mtus
            .iter()
            .map(|mtu| Route {
                destination: Prefix::everything(false),
                gateway: None,
                onlink: false,
                source: None,
                scope: 253,
                kind: 1,
                protocol: 3,
                service: 0,
                table: 254,
                metric: None,
                mtu: *mtu,
                mtu_locked: false,
                segment: None,
            })
            .collect();
        Interface {
            name: "eth0".to_owned(),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            mtu,
            addresses,
            routes,
            neighbours: Vec::new(),
            rules: Vec::new(),
        }
    }

    #[test]
    fn the_least_of_all_mtus_counts() {
        let cases = [
            // interface, route, underlay, outer IPv6: route inside, if not the interface's
            (1500, Some(1450), 1500, false, Some(1450)),
            (1500, Some(1450), 1500, true, Some(1430)),
            (1500, None, 1500, false, Some(1450)),
            (1400, Some(1500), 1500, false, None),
            (9000, Some(8950), 9000, false, Some(8950)),
            (1500, Some(1370), 9000, false, Some(1370)),
            (1500, None, 9000, false, None),
        ];
        for (mtu, route, underlay, ipv6, inside) in cases {
            let planned = through_tunnel(&interface(mtu, &["10.0.0.2"], &[route]), underlay, ipv6).unwrap();
            assert_eq!((planned.mtu, planned.routes[0].mtu), (mtu, inside));
        }
    }

    #[test]
    fn an_underlay_too_small_for_ipv6_refuses_it_and_says_what_would_do() {
        let both = interface(1500, &["10.0.0.2", "fd00::2"], &[]);
        let error = through_tunnel(&both, 1329, false).unwrap_err();
        assert!(matches!(error, Error::TooSmallForIpv6 { underlay: 1329, inner: 1279, needed: 1330 }));
        assert!(error.to_string().contains("1330"), "{error}");
        assert!(through_tunnel(&both, 1330, false).is_ok());
        let error = through_tunnel(&both, 1349, true).unwrap_err();
        assert!(matches!(error, Error::TooSmallForIpv6 { needed: 1350, .. }));
        assert!(through_tunnel(&both, 1350, true).is_ok());
    }

    #[test]
    fn ipv4_alone_goes_through_where_ipv6_cannot() {
        let both = interface(1500, &["10.0.0.2", "fe80::2"], &[None]);
        let planned = through_tunnel(&both, 1280, false).unwrap();
        assert_eq!(planned.routes[0].mtu, Some(1230));
        assert_eq!(planned.addresses.len(), 1, "no IPv6 on the link either");
    }

    #[test]
    fn nothing_goes_through_where_nothing_fits() {
        let error = through_tunnel(&interface(1500, &["10.0.0.2"], &[]), 100, false).unwrap_err();
        assert!(matches!(error, Error::TooSmall { underlay: 100 }));
    }

    proptest! {
        #[test]
        fn planning_again_changes_nothing(
            mtu in 68_u32..65536,
            route in proptest::option::of(68_u32..65536),
            underlay in 200_u32..65536,
            ipv6: bool,
        ) {
            if let Ok(once) = through_tunnel(&interface(mtu, &["10.0.0.2", "fd00::2"], &[route]), underlay, ipv6) {
                prop_assert!(once.routes[0].mtu.unwrap_or(once.mtu) + overhead(ipv6) <= underlay);
                prop_assert_eq!(&through_tunnel(&once, underlay, ipv6).unwrap(), &once);
            }
        }
    }
}
