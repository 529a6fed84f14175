//! Results of ADD in all versions of the specification.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::version::{SpecVersion, UnknownVersion};

/// What an ADD made.
///
/// The fields are those of 1.1.0. Results of older versions are converted when
/// they are read, and back when they are written for a plugin or a cache of an
/// older version. Keys that the specification does not know are kept, except in
/// the shape of 0.1.0 and 0.2.0.
///
/// ```
/// use kina_cni::{NetworkResult, SpecVersion};
///
/// let old = br#"{"cniVersion": "0.2.0", "ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1"}}"#;
/// let result = NetworkResult::parse(old, SpecVersion::V0_2_0)?;
/// assert_eq!(result.ips[0].address.to_string(), "10.1.0.5/16");
/// assert_eq!(
///     result.to_value(SpecVersion::V1_1_0)?.to_string(),
///     r#"{"cniVersion":"1.1.0","ips":[{"address":"10.1.0.5/16","gateway":"10.1.0.1"}]}"#,
/// );
/// # Ok::<(), kina_cni::ConvertError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NetworkResult {
    /// Interfaces that the plugins made, on the host and in the container.
    #[serde(default, deserialize_with = "lenient::or_default", skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Addresses, in the plugins' order.
    #[serde(default, deserialize_with = "lenient::or_default", skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpConfig>,
    /// Routes in the container.
    #[serde(default, deserialize_with = "lenient::or_default", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Name servers that the network knows.
    #[serde(default, deserialize_with = "lenient::or_default", skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
    /// Keys that the specification does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    #[serde(default, deserialize_with = "lenient::or_default")]
    pub name: String,
    /// Its hardware address.
    #[serde(default, deserialize_with = "lenient::text", skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Its MTU in bytes.
    #[serde(default, deserialize_with = "lenient::number", skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The network namespace in which it is; none if that is the host's.
    #[serde(default, deserialize_with = "lenient::text", skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// A socket that is the interface.
    #[serde(
        rename = "socketPath",
        default,
        deserialize_with = "lenient::text",
        skip_serializing_if = "Option::is_none"
    )]
    pub socket_path: Option<String>,
    /// The PCI device of the interface.
    #[serde(
        rename = "pciID",
        default,
        deserialize_with = "lenient::text",
        skip_serializing_if = "Option::is_none"
    )]
    pub pci_id: Option<String>,
    /// Keys that the specification does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IpConfig {
    /// With the length of its prefix.
    #[serde(with = "lenient::net")]
    pub address: IpNet,
    /// The subnet's gateway.
    #[serde(default, deserialize_with = "lenient::address", skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Its interface, as an index into [`NetworkResult::interfaces`], which may
    /// not be there.
    #[serde(default, deserialize_with = "lenient::index", skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// Keys that the specification does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Where it leads.
    #[serde(with = "lenient::net")]
    pub dst: IpNet,
    /// The next hop. Without one it may be the gateway of an address.
    #[serde(default, deserialize_with = "lenient::address", skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// MTU of the path in bytes.
    #[serde(default, deserialize_with = "lenient::number", skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// TCP segment size to advertise, in bytes.
    #[serde(default, deserialize_with = "lenient::number", skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Lower comes first.
    #[serde(default, deserialize_with = "lenient::number", skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// The routing table; the main one if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// The kernel's scope: global (0), link (253) or host (254).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u32>,
    /// Keys that the specification does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Name servers that a network knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses of the servers, in order.
    #[serde(default, deserialize_with = "lenient::or_default", skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The domain of short names.
    #[serde(default, deserialize_with = "lenient::text", skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Domains to complete short names with, in order.
    #[serde(default, deserialize_with = "lenient::or_default", skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(default, deserialize_with = "lenient::or_default", skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// Keys that the specification does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Dns {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A result cannot be read, or not be written in a version.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// It is not JSON, or a field has a wrong type.
    #[error("it is not a result of CNI")]
    Json(#[from] serde_json::Error),
    /// It is JSON but not an object.
    #[error("it is not a JSON object")]
    NotAnObject,
    /// A key is missing.
    #[error("the key `{0}` is missing")]
    MissingKey(&'static str),
    /// It is of a version that this crate does not speak.
    #[error(transparent)]
    Version(#[from] UnknownVersion),
    /// 0.1.0 and 0.2.0 need an address.
    #[error("a result of CNI {0} must have an address")]
    NoAddress(SpecVersion),
}

/// The shape of 0.1.0 and 0.2.0.
#[derive(Serialize, Deserialize)]
struct OldResult {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip4: Option<OldIp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip6: Option<OldIp>,
    #[serde(default, deserialize_with = "lenient::or_default")]
    dns: Dns,
}

#[derive(Serialize, Deserialize)]
struct OldIp {
    #[serde(with = "lenient::net")]
    ip: IpNet,
    #[serde(default, deserialize_with = "lenient::address", skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(default, deserialize_with = "lenient::or_default", skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Route>,
}

impl NetworkResult {
    /// Reads a result in the version that it states, or in `default` if it
    /// states none.
    ///
    /// # Errors
    /// It is no result, or of an unknown version.
    pub fn parse(json: &[u8], default: SpecVersion) -> Result<Self, ConvertError> {
        Self::from_value(serde_json::from_slice(json)?, default)
    }

    /// As [`parse`](Self::parse), from JSON that has been read. `null` is a
    /// result without anything, as it is for libcni.
    ///
    /// # Errors
    /// It is no result, or of an unknown version.
    pub fn from_value(value: Value, default: SpecVersion) -> Result<Self, ConvertError> {
        let mut object = match value {
            Value::Object(object) => object,
            Value::Null => Map::new(),
            _ => return Err(ConvertError::NotAnObject),
        };
        let version = match object.remove("cniVersion") {
            Some(Value::String(version)) if !version.is_empty() => version.parse()?,
            _ => default,
        };
        if version <= SpecVersion::V0_2_0 {
            return Ok(Self::from_old(serde_json::from_value(Value::Object(object))?));
        }
        let mut result: Self = serde_json::from_value(Value::Object(object))?;
        if version < SpecVersion::V1_0_0 {
            for ip in &mut result.ips {
                ip.other.remove("version");
            }
        }
        Ok(result)
    }

    /// Writes the result in a version.
    ///
    /// Down to 1.0.0 nothing is lost. Before it interfaces have only name, MAC
    /// and sandbox. In 0.2.0 and before there are no interfaces, one address per
    /// family, and routes have only destination and gateway.
    ///
    /// # Errors
    /// [`ConvertError::NoAddress`]: 0.2.0 and before must have one.
    pub fn to_value(&self, version: SpecVersion) -> Result<Value, ConvertError> {
        let mut value = match version {
            SpecVersion::V0_1_0 | SpecVersion::V0_2_0 => serde_json::to_value(self.to_old(version)?)?,
            SpecVersion::V0_3_0 | SpecVersion::V0_3_1 | SpecVersion::V0_4_0 => {
                serde_json::to_value(self.without_new_fields())?
            }
            SpecVersion::V1_0_0 | SpecVersion::V1_1_0 => serde_json::to_value(self)?,
        };
        if version < SpecVersion::V1_0_0
            && let Some(object) = value.as_object_mut()
        {
            // libcni writes it always.
            object.entry("dns").or_insert_with(|| Value::Object(Map::new()));
        }
        value["cniVersion"] = Value::from(version.as_str());
        Ok(value)
    }

    /// Addresses of an interface in a network namespace, in the plugins' order.
    /// An address that names no interface, or one that is not in the list,
    /// belongs to none.
    pub fn addresses_of(&self, interface: &str) -> impl Iterator<Item = &IpConfig> {
        self.ips.iter().filter(move |ip| {
            let of = ip.interface.and_then(|index| self.interfaces.get(index));
            of.is_some_and(|of| of.name == interface && of.sandbox.is_some())
        })
    }

    fn from_old(old: OldResult) -> Self {
        let mut result = Self { dns: old.dns, ..Self::default() };
        for ip in [old.ip4, old.ip6].into_iter().flatten() {
            let other = Map::new();
            result.ips.push(IpConfig { address: ip.ip, gateway: ip.gateway, interface: None, other });
            result.routes.extend(ip.routes);
        }
        result
    }

    fn to_old(&self, version: SpecVersion) -> Result<OldResult, ConvertError> {
        let family = |is_v4: bool| {
            let ip = self.ips.iter().find(|ip| ip.address.addr().is_ipv4() == is_v4)?;
            let routes = self.routes.iter().filter(|route| route.dst.addr().is_ipv4() == is_v4);
            Some(OldIp {
                ip: ip.address,
                gateway: ip.gateway,
                routes: routes.map(Route::without_new_fields).collect(),
            })
        };
        let old = OldResult { ip4: family(true), ip6: family(false), dns: self.dns.clone() };
        if old.ip4.is_none() && old.ip6.is_none() {
            return Err(ConvertError::NoAddress(version));
        }
        Ok(old)
    }

    /// For 0.3.0 to 0.4.0.
    fn without_new_fields(&self) -> Self {
        let mut result = self.clone();
        for interface in &mut result.interfaces {
            interface.mtu = None;
            interface.socket_path = None;
            interface.pci_id = None;
        }
        for ip in &mut result.ips {
            let family = if ip.address.addr().is_ipv4() { "4" } else { "6" };
            ip.other.insert("version".to_owned(), Value::from(family));
        }
        result
    }
}

impl Route {
    /// A route without anything that is optional.
    #[must_use]
    pub fn new(dst: IpNet) -> Self {
        Self {
            dst,
            gw: None,
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
            other: Map::new(),
        }
    }

    /// For 0.1.0 and 0.2.0.
    fn without_new_fields(&self) -> Self {
        Self { gw: self.gw, ..Self::new(self.dst) }
    }
}

/// Plugins are mostly written in Go, where what is absent, `null`, empty and
/// zero are the same.
mod lenient {
    use std::net::IpAddr;

    use ipnet::IpNet;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer};

    pub(super) fn or_default<'de, D: Deserializer<'de>, T>(deserializer: D) -> Result<T, D::Error>
    where
        T: Default + Deserialize<'de>,
    {
        Ok(Option::deserialize(deserializer)?.unwrap_or_default())
    }

    pub(super) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
        Ok(Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty()))
    }

    pub(super) fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
        Ok(Option::<u32>::deserialize(deserializer)?.filter(|number| *number != 0))
    }

    /// A negative index means that there is none.
    pub(super) fn index<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
        let index = Option::<i64>::deserialize(deserializer)?;
        Ok(index.and_then(|index| usize::try_from(index).ok()))
    }

    pub(super) fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
        text(deserializer)?.map(|text| text.parse().map_err(D::Error::custom)).transpose()
    }

    pub(super) mod net {
        use super::{Deserialize, Deserializer, IpNet};
        use serde::de::Error as _;
        use serde::{Serialize, Serializer};

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
            deserializer: D,
        ) -> Result<IpNet, D::Error> {
            let text = String::deserialize(deserializer)?;
            text.parse().map_err(|_| D::Error::custom(format_args!("{text:?} is no address with a prefix")))
        }

        pub(in super::super) fn serialize<S: Serializer>(
            net: &IpNet,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            net.to_string().serialize(serializer)
        }
    }
}
