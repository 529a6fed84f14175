//! What the driver remembers of a machine: `<machine directory>/apple.json`.

use std::net::IpAddr;
use std::path::PathBuf;

use kina_machine::{PortProtocol, PublishedPort};
use serde::{Deserialize, Serialize};

/// The record's name in the machine's directory.
pub(super) const RECORD: &str = "apple.json";

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) storage_directory: PathBuf,
    pub(super) memory_bytes: u64,
    pub(super) cpus: u32,
    pub(super) shareable: Vec<PathBuf>,
    pub(super) ports: Vec<Port>,
    pub(super) phase: Phase,
}

/// A published port, as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Port {
    address: Option<IpAddr>,
    node: u16,
    machine: u16,
    udp: bool,
}

impl From<&PublishedPort> for Port {
    fn from(port: &PublishedPort) -> Self {
        let PublishedPort { address, node, machine, protocol } = *port;
        Self { address, node, machine, udp: protocol == PortProtocol::Udp }
    }
}

impl From<&Port> for PublishedPort {
    fn from(port: &Port) -> Self {
        let Port { address, node, machine, udp } = *port;
        let protocol = if udp { PortProtocol::Udp } else { PortProtocol::Tcp };
        Self { address, node, machine, protocol }
    }
}

/// How far a machine has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Phase {
    /// Nothing has been asked of Apple.
    Created,
    /// A boot has been asked for and did not come to its end: there may be anything.
    Booting,
    Started(Started),
    Stopped {
        reason: String,
        /// Whether Apple may still have something of it.
        remains: bool,
    },
}

/// A machine that has booted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Started {
    pub(super) network: String,
    pub(super) address: IpAddr,
    pub(super) image: String,
    /// Of Apple's program.
    pub(super) version: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_they_were_written() {
        let port = PublishedPort { address: None, node: 1, machine: 2, protocol: PortProtocol::Udp };
        for (phase, written) in [
            (Phase::Created, r#""created""#),
            (Phase::Booting, r#""booting""#),
            (
                Phase::Started(Started {
                    network: "n".into(),
                    address: [10, 0, 0, 1].into(),
                    image: "i".into(),
                    version: "1.2.2".into(),
                }),
                r#"{"started":{"network":"n","address":"10.0.0.1","image":"i","version":"1.2.2"}}"#,
            ),
            (
                Phase::Stopped { reason: "r".into(), remains: true },
                r#"{"stopped":{"reason":"r","remains":true}}"#,
            ),
        ] {
            let record = Record {
                storage_directory: "/s".into(),
                memory_bytes: 1,
                cpus: 2,
                shareable: vec!["/d".into()],
                ports: vec![Port::from(&port)],
                phase,
            };
            let text = serde_json::to_string(&record).unwrap();
            assert!(text.ends_with(&format!("\"phase\":{written}}}")), "{text}");
            assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
            assert_eq!(PublishedPort::from(&record.ports[0]), port);
        }
    }
}
