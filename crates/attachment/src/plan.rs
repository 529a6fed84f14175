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

/// The interface as the machine at the far end of a tunnel must show it: nothing it
/// sends needs fragments outside. The MTUs of the interface and of each route are
/// the least of their own, the interface's, and what the underlay leaves.
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
    planned.mtu = inner;
    for route in &mut planned.routes {
        route.mtu = route.mtu.map(|mtu| mtu.min(inner));
    }
    Ok(planned)
}

/// Whether both addresses are of one family.
pub(crate) fn same_family(local: IpAddr, remote: IpAddr) -> bool {
    local.is_ipv4() == remote.is_ipv4()
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
            // interface, route, underlay, outer IPv6: interface and route inside
            (1500, Some(1450), 1500, false, 1450, Some(1450)),
            (1500, Some(1450), 1500, true, 1430, Some(1430)),
            (1500, None, 1500, false, 1450, None),
            (1400, Some(1500), 1500, false, 1400, Some(1400)),
            (9000, Some(8950), 9000, false, 8950, Some(8950)),
            (1500, Some(1370), 9000, false, 1500, Some(1370)),
        ];
        for (mtu, route, underlay, ipv6, inner, inner_route) in cases {
            let planned = through_tunnel(&interface(mtu, &["10.0.0.2"], &[route]), underlay, ipv6).unwrap();
            assert_eq!((planned.mtu, planned.routes[0].mtu), (inner, inner_route));
        }
    }

    #[test]
    fn an_underlay_too_small_for_ipv6_refuses_it_and_says_what_would_do() {
        let both = interface(1500, &["10.0.0.2", "fd00::2"], &[]);
        let error = through_tunnel(&both, 1329, false).unwrap_err();
        assert!(matches!(error, Error::TooSmallForIpv6 { underlay: 1329, inner: 1279, needed: 1330 }));
        assert!(error.to_string().contains("1330"), "{error}");
        assert_eq!(through_tunnel(&both, 1330, false).unwrap().mtu, 1280);
        let error = through_tunnel(&both, 1349, true).unwrap_err();
        assert!(matches!(error, Error::TooSmallForIpv6 { needed: 1350, .. }));
        assert_eq!(through_tunnel(&both, 1350, true).unwrap().mtu, 1280);
    }

    #[test]
    fn ipv4_alone_goes_through_where_ipv6_cannot() {
        let planned = through_tunnel(&interface(1500, &["10.0.0.2", "fe80::2"], &[]), 1280, false).unwrap();
        assert_eq!(planned.mtu, 1230);
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
                prop_assert!(once.mtu + overhead(ipv6) <= underlay);
                prop_assert_eq!(&through_tunnel(&once, underlay, ipv6).unwrap(), &once);
            }
        }
    }
}
