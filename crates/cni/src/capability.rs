//! Capability arguments: what the runtime tells those plugins that ask for it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Capability arguments of an attachment, by the name of the capability. A
/// plugin gets those that its configuration has the capability for.
///
/// The methods cover the [well-known capabilities][conventions]; with
/// [`insert`](Self::insert) any other can be given.
///
/// ```
/// use kina_cni::{Capabilities, PortMapping, Protocol};
///
/// let mut capabilities = Capabilities::new();
/// capabilities
///     .port_mappings(&[PortMapping::new(8080, 80, Protocol::Tcp)])
///     .cgroup_path("/kubepods/pod1")
///     .insert("io.kubernetes.cri.pod-annotations", serde_json::json!({"team": "a"}));
/// assert_eq!(
///     serde_json::to_string(&capabilities)?,
///     concat!(
///         r#"{"cgroupPath":"/kubepods/pod1","io.kubernetes.cri.pod-annotations":{"team":"a"},"#,
///         r#""portMappings":[{"containerPort":80,"hostPort":8080,"protocol":"tcp"}]}"#,
///     )
/// );
/// # Ok::<(), serde_json::Error>(())
/// ```
///
/// [conventions]: https://github.com/containernetworking/cni/blob/main/CONVENTIONS.md
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Capabilities(BTreeMap<String, Value>);

impl Capabilities {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value for a capability.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// Names and values, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.0.iter()
    }

    /// Sets the value for any capability.
    pub fn insert(&mut self, name: &str, value: Value) -> &mut Self {
        self.0.insert(name.to_owned(), value);
        self
    }

    /// `portMappings`: ports of the host that lead into the container.
    pub fn port_mappings(&mut self, mappings: &[PortMapping]) -> &mut Self {
        self.insert("portMappings", mappings.iter().map(PortMapping::to_value).collect())
    }

    /// `bandwidth`: limits of the interface.
    pub fn bandwidth(&mut self, bandwidth: Bandwidth) -> &mut Self {
        let rates = [
            ("ingressRate", bandwidth.ingress_rate),
            ("ingressBurst", bandwidth.ingress_burst),
            ("egressRate", bandwidth.egress_rate),
            ("egressBurst", bandwidth.egress_burst),
        ];
        let limits = rates.into_iter().filter(|(_, value)| *value != 0);
        self.insert("bandwidth", limits.map(|(name, value)| (name, Value::from(value))).collect())
    }

    /// `ipRanges`: for each address to allocate, the ranges to take it from.
    pub fn ip_ranges(&mut self, ranges: &[Vec<IpRange>]) -> &mut Self {
        let pool = |pool: &Vec<IpRange>| pool.iter().map(IpRange::to_value).collect::<Value>();
        self.insert("ipRanges", ranges.iter().map(pool).collect())
    }

    /// `dns`: the name servers of the container.
    pub fn dns(&mut self, dns: &DnsServers) -> &mut Self {
        let lists = [("servers", &dns.servers), ("searches", &dns.searches), ("options", &dns.options)];
        let given = lists.into_iter().filter(|(_, list)| !list.is_empty());
        self.insert("dns", given.map(|(name, list)| (name, Value::from(list.clone()))).collect())
    }

    /// `ips`: addresses that the interface shall have.
    pub fn ips(&mut self, addresses: &[RequestedIp]) -> &mut Self {
        let text = |address: &RequestedIp| match address {
            RequestedIp::Address(address) => Value::from(address.to_string()),
            RequestedIp::WithPrefix(address) => Value::from(address.to_string()),
        };
        self.insert("ips", addresses.iter().map(text).collect())
    }

    /// `mac`: the hardware address that the interface shall have.
    pub fn mac(&mut self, address: &str) -> &mut Self {
        self.insert("mac", Value::from(address))
    }

    /// `infinibandGUID`: the InfiniBand GUID that the interface shall have.
    pub fn infiniband_guid(&mut self, guid: &str) -> &mut Self {
        self.insert("infinibandGUID", Value::from(guid))
    }

    /// `deviceID`: the device for the network, such as a PCI address.
    pub fn device_id(&mut self, id: &str) -> &mut Self {
        self.insert("deviceID", Value::from(id))
    }

    /// `aliases`: names for the addresses of the interface.
    pub fn aliases(&mut self, names: &[String]) -> &mut Self {
        self.insert("aliases", Value::from(names.to_vec()))
    }

    /// `cgroupPath`: the control group of the pod.
    pub fn cgroup_path(&mut self, path: &str) -> &mut Self {
        self.insert("cgroupPath", Value::from(path))
    }
}

/// A port of the host that leads to one of the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMapping {
    /// Port on the host.
    pub host_port: u16,
    /// Port in the container.
    pub container_port: u16,
    /// Protocol of both.
    pub protocol: Protocol,
    /// The host's address; all if there is none.
    pub host_ip: Option<IpAddr>,
}

impl PortMapping {
    /// On all addresses of the host.
    #[must_use]
    pub fn new(host_port: u16, container_port: u16, protocol: Protocol) -> Self {
        Self { host_port, container_port, protocol, host_ip: None }
    }

    fn to_value(&self) -> Value {
        let mut mapping = serde_json::json!({
            "hostPort": self.host_port,
            "containerPort": self.container_port,
            "protocol": match self.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Sctp => "sctp",
            },
        });
        if let Some(address) = self.host_ip {
            mapping["hostIP"] = Value::from(address.to_string());
        }
        mapping
    }
}

/// What is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// Limits of an interface as the container sees it; 0 is no limit. The plugin
/// `bandwidth` wants a burst with each rate, below 2³⁵ bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// Into the container, bits per second.
    pub ingress_rate: u64,
    /// Into the container at once, bits.
    pub ingress_burst: u64,
    /// Out of the container, bits per second.
    pub egress_rate: u64,
    /// Out of the container at once, bits.
    pub egress_burst: u64,
}

/// Addresses to choose from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpRange {
    /// The subnet.
    pub subnet: IpNet,
    /// First address; the subnet's first if there is none.
    pub range_start: Option<IpAddr>,
    /// Last address; the subnet's last if there is none.
    pub range_end: Option<IpAddr>,
    /// The gateway; the plugin's choice if there is none.
    pub gateway: Option<IpAddr>,
}

impl IpRange {
    /// A whole subnet.
    #[must_use]
    pub fn new(subnet: IpNet) -> Self {
        Self { subnet, range_start: None, range_end: None, gateway: None }
    }

    fn to_value(&self) -> Value {
        let mut range = serde_json::json!({"subnet": self.subnet.to_string()});
        let bounds =
            [("rangeStart", self.range_start), ("rangeEnd", self.range_end), ("gateway", self.gateway)];
        for (name, address) in bounds {
            if let Some(address) = address {
                range[name] = Value::from(address.to_string());
            }
        }
        range
    }
}

/// The name servers of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsServers {
    /// Addresses of the servers, in order.
    pub servers: Vec<String>,
    /// Domains to complete names with, in order.
    pub searches: Vec<String>,
    /// Options of the resolver.
    pub options: Vec<String>,
}

/// An address that an interface shall have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestedIp {
    /// The prefix is the plugin's choice. Some plugins want one.
    Address(IpAddr),
    /// With the length of its prefix.
    WithPrefix(IpNet),
}
