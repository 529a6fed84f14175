//! Trials from within a pod's network namespace, on a thread that has moved
//! there and ends afterwards.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, Timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto};
use rustix::thread::LinkNameSpaceType;

use super::probe_dns as dns;
use crate::{Error, NetworkProbe, ProbeKind, ProbeStep};

/// Headers before an echo's data: IP and ICMP.
const V4_HEADERS: u32 = 20 + 8;
const V6_HEADERS: u32 = 40 + 8;
/// The smallest packets that the protocols promise to carry (RFC 791, RFC 8200).
const V4_LEAST: u32 = 68;
const V6_LEAST: u32 = 1280;

/// See [`crate::Node::probe_network`]. Blocks, for a few times the probe's
/// patience at most.
pub(crate) fn run(namespace: &Path, probe: &NetworkProbe) -> Result<Vec<ProbeStep>, Error> {
    let failed = |source: io::Error| Error::io("enter network namespace", namespace, source);
    let file = File::open(namespace).map_err(failed)?;
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("probe-network".to_owned())
            .spawn_scoped(scope, || {
                rustix::thread::move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                    .map_err(|error| failed(error.into()))?;
                Ok(steps(probe))
            })
            .map_err(failed)?
            .join()
            .map_err(|_panic| Error::Interrupted { operation: "probe network" })?
    })
}

fn step(kind: ProbeKind, outcome: Result<String, String>, took: Option<Duration>) -> ProbeStep {
    let (good, detail) = match outcome {
        Ok(detail) => (true, detail),
        Err(detail) => (false, detail),
    };
    ProbeStep { kind, good, detail, took: took.filter(|_| good), bytes: None }
}

fn steps(probe: &NetworkProbe) -> Vec<ProbeStep> {
    let mut steps = vec![step(ProbeKind::Interface, interfaces(), None)];
    if let Some(target) = probe.target {
        let way = way_to(target);
        steps.push(step(ProbeKind::Route, way.as_ref().map(Way::to_string).map_err(Clone::clone), None));
        if let Ok(way) = way {
            if let Some(router) = way.router {
                let (outcome, took) = timed(|| echo(router, 56, probe.patience));
                steps.push(step(ProbeKind::Gateway, outcome.map(|()| router.to_string()), took));
            }
            let (outcome, took) = timed(|| echo(target, 56, probe.patience));
            let answers = outcome.is_ok();
            steps.push(step(ProbeKind::Echo, outcome.map(|()| target.to_string()), took));
            if let Some(port) = probe.port {
                let address = SocketAddr::new(target, port);
                let (outcome, took) = timed(|| {
                    TcpStream::connect_timeout(&address, probe.patience).map_err(|error| error.to_string())
                });
                steps.push(step(ProbeKind::Tcp, outcome.map(|_| address.to_string()), took));
            }
            if answers {
                steps.push(path_mtu(target, probe.patience));
            }
        }
    }
    for server in &probe.name_servers {
        let (outcome, took) = timed(|| dns::ask(*server, &probe.name, probe.patience));
        let outcome = outcome
            .map(|answer| format!("{server} says {answer} to {:?}", probe.name))
            .map_err(|error| format!("{server}: {error}"));
        steps.push(step(ProbeKind::NameServer, outcome, took));
    }
    steps
}

fn timed<T>(work: impl FnOnce() -> Result<T, String>) -> (Result<T, String>, Option<Duration>) {
    let begun = Instant::now();
    let result = work();
    (result, Some(begun.elapsed()))
}

/// The namespace's interfaces, as far as /proc tells: a way exists through them.
fn interfaces() -> Result<String, String> {
    let text = fs::read_to_string("/proc/thread-self/net/dev").map_err(|error| error.to_string())?;
    let names: Vec<&str> = text
        .lines()
        .skip(2)
        .filter_map(|line| Some(line.split_once(':')?.0.trim()))
        .filter(|name| *name != "lo")
        .collect();
    if names.is_empty() { Err("there is none but loopback".to_owned()) } else { Ok(names.join(", ")) }
}

/// How the kernel would send to an address.
struct Way {
    source: IpAddr,
    router: Option<IpAddr>,
    interface: String,
}

impl std::fmt::Display for Way {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "from {} through {}", self.source, self.interface)?;
        match self.router {
            Some(router) => write!(formatter, ", router {router}"),
            None => write!(formatter, ", no router between"),
        }
    }
}

fn way_to(target: IpAddr) -> Result<Way, String> {
    let any = match target {
        IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        IpAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    // Connecting a datagram socket sends nothing, and asks the routing table.
    let socket = UdpSocket::bind(any).map_err(|error| error.to_string())?;
    socket.connect((target, 9)).map_err(|error| format!("to {target}: {error}"))?;
    let source = socket.local_addr().map_err(|error| error.to_string())?.ip();
    let routes = match target {
        IpAddr::V4(_) => v4_routes(),
        IpAddr::V6(_) => v6_routes(),
    };
    let longest = routes.into_iter().filter(|route| route.holds(target)).max_by_key(|route| route.length);
    let (interface, router) =
        longest.map_or_else(|| ("lo".to_owned(), None), |route| (route.interface, route.router));
    Ok(Way { source, router, interface })
}

struct Route {
    network: IpAddr,
    length: u32,
    router: Option<IpAddr>,
    interface: String,
}

impl Route {
    fn holds(&self, address: IpAddr) -> bool {
        match (self.network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - self.length).unwrap_or(0);
                (network.to_bits() ^ address.to_bits()) & mask == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - self.length).unwrap_or(0);
                (network.to_bits() ^ address.to_bits()) & mask == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

fn v4_routes() -> Vec<Route> {
    let text = fs::read_to_string("/proc/thread-self/net/route").unwrap_or_default();
    text.lines().skip(1).filter_map(v4_route).collect()
}

/// A line of /proc/net/route: addresses are hexadecimal, in the machine's own
/// order of bytes.
fn v4_route(line: &str) -> Option<Route> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let address = |at: usize| {
        let number = u32::from_str_radix(fields.get(at)?, 16).ok()?;
        Some(Ipv4Addr::from(number.to_ne_bytes()))
    };
    let router = address(2)?;
    Some(Route {
        network: IpAddr::V4(address(1)?),
        length: address(7)?.to_bits().count_ones(),
        router: (!router.is_unspecified()).then_some(IpAddr::V4(router)),
        interface: (*fields.first()?).to_owned(),
    })
}

fn v6_routes() -> Vec<Route> {
    let text = fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap_or_default();
    text.lines().filter_map(v6_route).filter(|route| route.interface != "lo").collect()
}

/// A line of /proc/net/ipv6_route.
fn v6_route(line: &str) -> Option<Route> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let address = |at: usize| u128::from_str_radix(fields.get(at)?, 16).ok().map(Ipv6Addr::from_bits);
    let router = address(4)?;
    Some(Route {
        network: IpAddr::V6(address(0)?),
        length: u32::from_str_radix(fields.get(1)?, 16).ok()?,
        router: (!router.is_unspecified()).then_some(IpAddr::V6(router)),
        interface: (*fields.last()?).to_owned(),
    })
}

/// A raw ICMP socket that fragments nothing and is told no path MTU.
fn icmp_socket(target: IpAddr, patience: Duration) -> Result<OwnedFd, Errno> {
    let (family, protocol) = match target {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let socket = rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?;
    sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(patience.min(Duration::from_millis(100))))?;
    match target {
        IpAddr::V4(_) => sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?,
        IpAddr::V6(_) => sockopt::set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?,
    }
    Ok(socket)
}

/// Sends an echo request with that many bytes of data and waits for its answer.
fn echo(target: IpAddr, data: u32, patience: Duration) -> Result<(), String> {
    let no_answer = || format!("{target} does not answer");
    let socket = icmp_socket(target, patience).map_err(|error| error.to_string())?;
    // Told apart from other echoes of this machine by process and time.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mark = (std::process::id() ^ now.subsec_nanos()).to_be_bytes();
    let (request, reply) = if target.is_ipv4() { (8, 0) } else { (128, 129) };
    let mut packet = vec![request, 0, 0, 0, mark[0], mark[1], mark[2], mark[3]];
    packet.resize(packet.len() + usize::try_from(data).unwrap_or(0), b'k');
    if target.is_ipv4() {
        let sum = checksum(&packet).to_be_bytes();
        packet[2..4].copy_from_slice(&sum);
    }
    let address = SocketAddr::new(target, 0);
    rustix::net::sendto(&socket, &packet, SendFlags::empty(), &address)
        .map_err(|error| format!("{target}: {}", io::Error::from(error)))?;
    let deadline = Instant::now() + patience;
    let mut buffer = vec![0; 65536];
    while Instant::now() < deadline {
        let length = match rustix::net::recvfrom(&socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((length, _, _)) => length,
            Err(Errno::AGAIN | Errno::INTR) => continue,
            Err(error) => return Err(format!("{target}: {}", io::Error::from(error))),
        };
        let packet = &buffer[..length];
        // The kernel leaves the IPv4 header before the message.
        let skipped = match (target, packet.first()) {
            (IpAddr::V4(_), Some(first)) => usize::from(first & 0x0f) * 4,
            (IpAddr::V4(_) | IpAddr::V6(_), _) => 0,
        };
        let Some(message) = packet.get(skipped..) else { continue };
        match (message.first(), message.get(4..8)) {
            (Some(kind), Some(found)) if *kind == reply && found == mark => return Ok(()),
            // Unreachable: the message that it is about follows its header.
            (Some(3), _) if target.is_ipv4() && message.windows(4).any(|part| part == mark) => {
                return Err(format!("{target} is said to be unreachable"));
            }
            (Some(1), _) if target.is_ipv6() && message.windows(4).any(|part| part == mark) => {
                return Err(format!("{target} is said to be unreachable"));
            }
            _ => {}
        }
    }
    Err(no_answer())
}

/// The internet checksum (RFC 1071).
fn checksum(packet: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
    let mut sum: u32 = packet.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

/// The largest echo that is answered; the target has answered a small one.
fn path_mtu(target: IpAddr, patience: Duration) -> ProbeStep {
    let (headers, least) = if target.is_ipv4() { (V4_HEADERS, V4_LEAST) } else { (V6_HEADERS, V6_LEAST) };
    let first = match first_mtu(target) {
        Ok(mtu) => mtu.max(least),
        Err(error) => return step(ProbeKind::PathMtu, Err(error.to_string()), None),
    };
    let fits = |mtu: u32| {
        // Once more: a lost packet is no small MTU.
        (0..2).any(|_| echo(target, mtu.saturating_sub(headers), patience.min(SHORT)).is_ok())
    };
    let (mut good, mut bad) = (least, first + 1);
    if fits(first) {
        good = first;
    } else {
        bad = first;
        while good + 1 < bad {
            let middle = good.midpoint(bad);
            if fits(middle) { good = middle } else { bad = middle }
        }
    }
    debug_assert!(good < bad);
    let note = if good == first { String::new() } else { format!(", though the way out takes {first}") };
    ProbeStep { bytes: Some(good), ..step(ProbeKind::PathMtu, Ok(format!("{good} bytes{note}")), None) }
}

/// How long one of the many packets of a search is waited for.
const SHORT: Duration = Duration::from_millis(300);

/// What the kernel takes the way's MTU for: the interface's, or the route's.
fn first_mtu(target: IpAddr) -> io::Result<u32> {
    let any = match target {
        IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        IpAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect((target, 9))?;
    Ok(match target {
        IpAddr::V4(_) => sockopt::ip_mtu(&socket)?,
        IpAddr::V6(_) => sockopt::ipv6_mtu(&socket)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_parsed() {
        let line = "eth0\t00000000\t0100580A\t0003\t0\t0\t0\t00000000\t0\t0\t0";
        let route = v4_route(line).unwrap();
        assert_eq!(
            (route.length, route.router, route.interface.as_str()),
            (0, "10.88.0.1".parse().ok(), "eth0")
        );
        assert!(route.holds("192.0.2.1".parse().unwrap()));
        let line = "eth0\t0000580A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0";
        let route = v4_route(line).unwrap();
        assert_eq!((route.length, route.router), (16, None));
        assert!(route.holds("10.88.3.4".parse().unwrap()) && !route.holds("10.89.0.1".parse().unwrap()));
        let line = "fd000000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0";
        let route = v6_route(line).unwrap();
        assert_eq!((route.length, route.router), (64, None));
        assert!(route.holds("fd00::7".parse().unwrap()) && !route.holds("fd01::7".parse().unwrap()));
        assert!(v4_route("").is_none() && v6_route("x y").is_none());
    }

    #[test]
    fn checksums() {
        // RFC 1071, section 3.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(checksum(&[0xff]), 0x00ff);
    }

    #[test]
    fn loopback_answers() {
        for target in ["127.0.0.1", "::1"] {
            let target: IpAddr = target.parse().unwrap();
            if target.is_ipv6() && way_to(target).is_err() {
                continue;
            }
            echo(target, 56, Duration::from_secs(5)).unwrap();
            let mtu = path_mtu(target, Duration::from_secs(5));
            assert!(mtu.good && mtu.bytes.is_some_and(|bytes| bytes >= 1280), "{mtu:?}");
        }
    }
}
