//! The Mac's routes, and which of them get in the machines' way. Pure.

use ipnet::Ipv4Net;

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) to: Ipv4Net,
    /// The interface: `en0`, `utun4`.
    pub(super) interface: String,
}

/// Interfaces that a VPN makes.
const TUNNELS: [&str; 4] = ["utun", "ppp", "ipsec", "tun"];

/// Interfaces that macOS makes for virtual machines.
const OWN: [&str; 2] = ["bridge", "vmenet"];

impl Route {
    fn is_by(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.interface.starts_with(name))
    }
}

/// Reads `netstat -rn -f inet`. The default route is left out.
pub(super) fn routes(text: &str) -> Vec<Route> {
    let route = |line: &str| {
        let mut words = line.split_whitespace();
        let to = destination(words.next()?)?;
        // The gateway, the flags; the interface is the fourth.
        Some(Route { to, interface: words.nth(2)?.to_owned() })
    };
    text.lines().filter_map(route).collect()
}

/// `10/8`, `192.168.64`, `172.16.5.4`: octets that are left out are zeros, and
/// without a length there are as many bits as octets.
fn destination(text: &str) -> Option<Ipv4Net> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length.parse().ok()?)),
        None => (text, None),
    };
    let mut octets = [0; 4];
    let mut count = 0;
    for part in address.split('.') {
        *octets.get_mut(usize::from(count))? = part.parse().ok()?;
        count += 1;
    }
    Some(Ipv4Net::new(octets.into(), length.unwrap_or(count * 8)).ok()?.trunc())
}

/// What routes do to a network of machines.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Overlap {
    /// They go before the machines' own: the same network or a part of it, elsewhere.
    pub(super) taken: Vec<Route>,
    /// A VPN has a larger network with this in it. The machines' route goes before
    /// it, unless the VPN forbids what does not go through it.
    pub(super) covered: Vec<Route>,
}

/// Compares a network with the routes.
pub(super) fn overlap(subnet: Ipv4Net, routes: &[Route]) -> Overlap {
    let mut found = Overlap::default();
    for route in routes.iter().filter(|route| !route.is_by(&OWN)) {
        if subnet.contains(&route.to) {
            found.taken.push(route.clone());
        } else if route.to.contains(&subnet) && route.is_by(&TUNNELS) {
            found.covered.push(route.clone());
        }
    }
    found
}
