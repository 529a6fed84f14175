//! What there is: containers, networks, images, volumes. The fields and their names are those of
//! the Swift types; `golden/fields.tsv` says where each stands.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Problem;

/// Seconds since 1970. How it is written depends on the release: see [`crate::shape`].
pub type Date = f64;

/// Now.
#[must_use]
pub fn now() -> Date {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// `ContainerConfiguration`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named as in the Swift type")]
pub struct Configuration {
    pub id: String,
    pub image: ImageDescription,
    pub mounts: Vec<Filesystem>,
    pub published_ports: Vec<PublishedPort>,
    pub published_sockets: Vec<PublishedSocket>,
    pub labels: BTreeMap<String, String>,
    pub sysctls: BTreeMap<String, String>,
    pub networks: Vec<AttachmentConfiguration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
    pub rosetta: bool,
    pub init_process: Process,
    pub platform: Platform,
    pub resources: Resources,
    pub runtime_handler: String,
    pub virtualization: bool,
    pub ssh: bool,
    pub read_only: bool,
    pub use_init: bool,
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masked_paths: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readonly_paths: Option<Vec<String>>,
    pub creation_date: Date,
}

/// `ImageDescription`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named as in the Swift type")]
pub struct ImageDescription {
    pub reference: String,
    pub descriptor: Descriptor,
}

/// `ContainerizationOCI.Descriptor`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named as in the Swift type")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: String,
    pub size: i64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub annotations: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub platform: Option<Platform>,
}

/// `Filesystem`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named as in the Swift type")]
pub struct Filesystem {
    #[serde(rename = "type")]
    pub kind: FilesystemKind,
    pub source: String,
    pub destination: String,
    pub options: Vec<String>,
}

/// `Filesystem.FSType`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named as in the Swift type")]
pub enum FilesystemKind {
    Virtiofs {},
    Tmpfs {},
    Volume { name: String, format: String, cache: Value, sync: Value },
}

/// `PublishPort`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named as in the Swift type")]
pub struct PublishedPort {
    pub host_address: String,
    pub host_port: u16,
    pub container_port: u16,
    pub proto: String,
    pub count: u16,
}

/// `PublishSocket`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named as in the Swift type")]
pub struct PublishedSocket {
    pub container_path: String,
    pub host_path: String,
}

/// `AttachmentConfiguration`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named as in the Swift type")]
pub struct AttachmentConfiguration {
    pub network: String,
    pub options: AttachmentOptions,
}

/// `AttachmentOptions`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named as in the Swift type")]
pub struct AttachmentOptions {
    pub hostname: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mac_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mtu: Option<u32>,
}

/// `ContainerConfiguration.DNSConfiguration`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named as in the Swift type")]
pub struct Dns {
    pub nameservers: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub domain: Option<String>,
    pub search_domains: Vec<String>,
    pub options: Vec<String>,
}

/// `ProcessConfiguration`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named as in the Swift type")]
pub struct Process {
    pub executable: String,
    pub arguments: Vec<String>,
    pub environment: Vec<String>,
    pub working_directory: String,
    pub terminal: bool,
    pub user: User,
    pub supplemental_groups: Vec<u32>,
    pub rlimits: Vec<Rlimit>,
}

/// `ProcessConfiguration.User`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named as in the Swift type")]
pub enum User {
    #[serde(rename_all = "camelCase")]
    Raw {
        user_string: String,
    },
    Id {
        uid: u32,
        gid: u32,
    },
}

/// `ProcessConfiguration.Rlimit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named as in the Swift type")]
pub struct Rlimit {
    pub limit: String,
    pub soft: u64,
    pub hard: u64,
}

/// `ContainerizationOCI.Platform`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named as in the Swift type")]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub variant: Option<String>,
}

/// `ContainerConfiguration.Resources`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named as in the Swift type")]
pub struct Resources {
    pub cpus: i64,
    pub memory_in_bytes: u64,
    pub cpu_overhead: i64,
}

/// `RuntimeStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named as in the Swift type")]
pub enum State {
    Unknown,
    Stopped,
    Running,
    Stopping,
}

impl State {
    /// Its word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Stopped => "stopped",
            Self::Running => "running",
            Self::Stopping => "stopping",
        }
    }
}

/// `Attachment`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named as in the Swift type")]
pub struct Attachment {
    pub network: String,
    pub hostname: String,
    pub ipv4_address: String,
    pub ipv4_gateway: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ipv6_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mac_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub variant: Option<String>,
}

/// `ContainerSnapshot`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named as in the Swift type")]
pub struct Snapshot {
    pub configuration: Configuration,
    pub status: State,
    pub networks: Vec<Attachment>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub started_date: Option<Date>,
}

/// `ContainerStats`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named as in the Swift type")]
pub struct Stats {
    pub id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_usage_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_usage_usec: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_rx_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_tx_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_read_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_write_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_processes: Option<u64>,
}

/// `NetworkConfiguration`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named as in the Swift type")]
pub struct NetworkConfiguration {
    pub name: String,
    pub creation_date: Date,
    pub mode: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4_subnet: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6_subnet: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub plugin: String,
    pub options: BTreeMap<String, String>,
}

/// `NetworkResource`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named as in the Swift type")]
pub struct Network {
    pub id: String,
    pub configuration: NetworkConfiguration,
    pub status: NetworkStatus,
}

/// The label of what the system makes itself.
pub const ROLE: (&str, &str) = ("com.apple.container.resource.role", "builtin");

impl Network {
    /// Whether the system made it itself.
    #[must_use]
    pub fn is_builtin(&self) -> bool {
        self.configuration.labels.get(ROLE.0).is_some_and(|role| role == ROLE.1)
    }
}

/// `NetworkStatus`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named as in the Swift type")]
pub struct NetworkStatus {
    pub ipv4_subnet: String,
    pub ipv4_gateway: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6_subnet: Option<String>,
}

/// `VolumeConfiguration`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named as in the Swift type")]
pub struct Volume {
    pub name: String,
    pub driver: String,
    pub format: String,
    pub source: String,
    pub creation_date: Date,
    pub labels: BTreeMap<String, String>,
    pub options: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_in_bytes: Option<u64>,
}

/// An IPv4 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// Its first address.
    pub first: Ipv4Addr,
    /// The length of its prefix.
    pub bits: u8,
}

impl Subnet {
    /// Reads `a.b.c.d/n`.
    ///
    /// # Errors
    /// If it is not that.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let wrong = || Problem::invalid(format!("invalid CIDR: {text}"));
        let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let bits: u8 = bits.parse().ok().filter(|bits| *bits <= 32).ok_or_else(wrong)?;
        let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
        Ok(Self { first: Ipv4Addr::from(u32::from(address) & mask), bits })
    }

    /// How many addresses it has.
    #[must_use]
    pub fn size(self) -> u32 {
        1_u32.checked_shl(32 - u32::from(self.bits)).unwrap_or(u32::MAX)
    }

    /// One of its addresses.
    #[must_use]
    pub fn address(self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.first).wrapping_add(index))
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.first, self.bits)
    }
}

/// The address that a card makes of a prefix of 64 bits (`MACAddress.ipv6Address(network:)`).
#[must_use]
pub fn eui64(prefix: Ipv6Addr, mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let mut bytes = prefix.octets();
    bytes[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_are_read_and_counted() {
        let subnet = Subnet::parse("192.168.64.7/24").unwrap();
        assert_eq!(subnet.to_string(), "192.168.64.0/24");
        assert_eq!((subnet.size(), subnet.address(2)), (256, Ipv4Addr::new(192, 168, 64, 2)));
        for wrong in ["", "1.2.3.4", "1.2.3.4/33", "x/3"] {
            assert!(Subnet::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_card_makes_its_address() {
        let address = eui64("fd00::".parse().unwrap(), [0xf2, 1, 2, 3, 4, 5]);
        assert_eq!(address.to_string(), "fd00::f001:2ff:fe03:405");
    }

    #[test]
    fn enums_are_as_swift_encodes_them() {
        let user = User::Raw { user_string: "root".to_owned() };
        assert_eq!(serde_json::to_string(&user).unwrap(), r#"{"raw":{"userString":"root"}}"#);
        let kind = serde_json::to_string(&FilesystemKind::Virtiofs {}).unwrap();
        assert_eq!(kind, r#"{"virtiofs":{}}"#);
    }
}
