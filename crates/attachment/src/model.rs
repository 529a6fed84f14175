use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A pod's interface as a machine must show it: what CNI made, with everything
/// that routes through it. Numbers are the kernel's own (rtnetlink(7)), so that
/// what is not understood here is carried all the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// The name inside the pod, `eth0` as a rule.
    pub name: String,
    /// The hardware address. The machine must use it: policy and neighbours on the
    /// node know the pod by it.
    pub mac: Mac,
    /// The largest packet in bytes.
    pub mtu: u32,
    /// Permanent addresses, of both families.
    pub addresses: Vec<Address>,
    /// Routes through the interface in every table but `local`, which the kernel
    /// fills itself.
    pub routes: Vec<Route>,
    /// Permanent neighbours.
    pub neighbours: Vec<Neighbour>,
    /// Routing rules beyond the kernel's own.
    pub rules: Vec<Rule>,
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self}")
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            *byte = parts
                .next()
                .filter(|part| part.len() == 2)
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(|| format!("{text:?} is no Ethernet address"))?;
        }
        match parts.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(format!("{text:?} is no Ethernet address")),
        }
    }
}

/// An address with the length of a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Prefix {
    /// The address.
    pub address: IpAddr,
    /// How many leading bits count.
    pub length: u8,
}

impl Prefix {
    /// The prefix that everything of one family matches.
    pub fn everything(ipv6: bool) -> Self {
        let address = if ipv6 { IpAddr::from([0_u8; 16]) } else { IpAddr::from([0_u8; 4]) };
        Self { address, length: 0 }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.length)
    }
}

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address and the length of its subnet's prefix.
    pub prefix: Prefix,
    /// The other end, on a point-to-point link.
    pub peer: Option<IpAddr>,
    /// The broadcast address, IPv4 only.
    pub broadcast: Option<IpAddr>,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// `IFA_F_*`, without those that only describe a state.
    pub flags: u32,
}

/// A route through the interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub destination: Prefix,
    /// The next hop; none for what is on the link. May be IPv6 for an IPv4 route.
    pub gateway: Option<IpAddr>,
    /// Whether the next hop counts as on the link although no address says so.
    pub onlink: bool,
    /// The preferred source address.
    pub source: Option<IpAddr>,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// `RTN_*`; 1 is unicast.
    pub kind: u8,
    /// `RTPROT_*`: who made it.
    pub protocol: u8,
    /// The type of service that it is for; 0 for any.
    pub service: u8,
    /// The routing table; 254 is `main`.
    pub table: u32,
    /// The priority among routes to the same destination, lower first.
    pub metric: Option<u32>,
    /// The largest packet on this route in bytes.
    pub mtu: Option<u32>,
    /// Whether that MTU is fixed, path MTU discovery or not.
    pub mtu_locked: bool,
    /// What TCP announces as the largest segment.
    pub segment: Option<u32>,
}

/// A permanent neighbour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// Its hardware address.
    pub mac: Mac,
    /// `NTF_*`, such as router.
    pub flags: u8,
}

/// A routing rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Whether it is for IPv6.
    pub ipv6: bool,
    /// When it is tried, lower first.
    pub priority: u32,
    /// Where the packet comes from.
    pub source: Option<Prefix>,
    /// Where it goes to.
    pub destination: Option<Prefix>,
    /// The interface it came in by.
    pub input: Option<String>,
    /// The interface it is bound to.
    pub output: Option<String>,
    /// The packet's mark and the bits of it that count.
    pub mark: Option<(u32, u32)>,
    /// The table that is looked at.
    pub table: u32,
}

/// What is missing or wrong in an attachment that was made earlier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// A device of ours is gone.
    Missing {
        /// Its name.
        device: String,
    },
    /// A device of ours is there and not as it was made.
    Changed {
        /// Its name.
        device: String,
        /// In what: "mtu", "the peer".
        what: &'static str,
    },
    /// A device is down.
    Down {
        /// Its name.
        device: String,
    },
    /// Frames no longer go from one device to the other.
    NotJoined {
        /// Where they come in.
        from: String,
        /// Where they should go.
        to: String,
    },
    /// The peer's packets are not let in, or those of others are not kept out.
    Unguarded,
}

impl fmt::Display for Damage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { device } => write!(formatter, "device {device} is gone"),
            Self::Changed { device, what } => write!(formatter, "device {device} has changed in {what}"),
            Self::Down { device } => write!(formatter, "device {device} is down"),
            Self::NotJoined { from, to } => write!(formatter, "frames of {from} do not go to {to}"),
            Self::Unguarded => write!(formatter, "the packet filter is not in place"),
        }
    }
}
