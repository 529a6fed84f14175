//! Published ports: what comes to a port of the host goes to a port of the machine.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sched::{CloneFlags, setns};

use super::datagrams::Datagrams;
use crate::error::{Code, Problem};
use crate::resources::{Attachment, Configuration};
use crate::vmnet;

/// A port of the host, until it is dropped.
pub(super) enum Forwarder {
    Connections { _port: Connections },
    Datagrams { _port: Datagrams },
}

/// Forwards all ports that a container publishes, to its first card's addresses.
pub(super) fn forward(
    configuration: &Configuration,
    networks: &UnixStream,
    first: Option<&Attachment>,
) -> Result<Vec<Forwarder>, Problem> {
    let ports = &configuration.published_ports;
    let (Some(first), false) = (first, ports.is_empty()) else {
        return Ok(Vec::new());
    };
    let namespace = PathBuf::from(format!("/proc/{}/ns/net", vmnet::keeper(networks)?));
    let mut forwarders = Vec::new();
    for port in ports {
        let host = parsed(&port.host_address)?;
        let machine = address(first, host)?;
        for offset in 0..port.count {
            let outside = SocketAddr::new(host, port.host_port + offset);
            let inside = SocketAddr::new(machine, port.container_port + offset);
            forwarders.push(match port.proto.as_str() {
                "udp" => {
                    let port = Datagrams::forward(outside, inside, File::open(&namespace)?)?;
                    Forwarder::Datagrams { _port: port }
                }
                _ => {
                    let port = Connections::forward(outside, inside, namespace.clone())?;
                    Forwarder::Connections { _port: port }
                }
            });
        }
    }
    Ok(forwarders)
}

/// The machine's address of the kind of the host's.
fn address(first: &Attachment, host: IpAddr) -> Result<IpAddr, Problem> {
    let text = match host {
        IpAddr::V4(_) => Some(&first.ipv4_address),
        IpAddr::V6(_) => first.ipv6_address.as_ref(),
    };
    let text = text.ok_or_else(|| {
        let message = "cannot configure IPv6 port forwarding for container with unknown IPv6 address";
        Problem::new(Code::InvalidState, message)
    })?;
    parsed(text.split('/').next().unwrap_or_default())
}

fn parsed(address: &str) -> Result<IpAddr, Problem> {
    address.parse().map_err(|_| Problem::invalid(format!("invalid address: {address}")))
}

/// A port of TCP (`TCPForwarder.swift`).
pub(super) struct Connections {
    address: SocketAddr,
    stopped: Arc<AtomicBool>,
}

impl Connections {
    fn forward(outside: SocketAddr, inside: SocketAddr, namespace: PathBuf) -> io::Result<Self> {
        let listener = TcpListener::bind(outside)?;
        let forwarder = Self { address: listener.local_addr()?, stopped: Arc::default() };
        let stopped = Arc::clone(&forwarder.stopped);
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(connection), namespace) = (connection, namespace.clone()) else { return };
                std::thread::spawn(move || match dial(inside, namespace) {
                    Ok(machine) => glue(&connection, &machine),
                    // The connection ends, which is all that its other end is told.
                    Err(_) => drop(connection),
                });
            }
        });
        Ok(forwarder)
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes whoever waits for a connection.
        drop(TcpStream::connect(self.address));
    }
}

/// Connects from a network namespace, which this thread enters for good.
fn dial(address: SocketAddr, namespace: PathBuf) -> io::Result<TcpStream> {
    setns(File::open(namespace)?, CloneFlags::CLONE_NEWNET)?;
    TcpStream::connect(address)
}

/// Passes bytes on both ways. Either side that says no more ends both ways: half a connection is
/// not kept (`GlueHandler.swift`, whose channels do not ask for it).
fn glue(client: &TcpStream, machine: &TcpStream) {
    let pass = |mut from: &TcpStream, mut to: &TcpStream| {
        // Whatever ends it, both sides are told; that fails only if one has ended.
        drop(io::copy(&mut from, &mut to));
        for side in [client, machine] {
            drop(side.shutdown(Shutdown::Both));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| pass(client, machine));
        pass(machine, client);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lead_to_those_of_their_kind() {
        let mut attachment = Attachment {
            network: "default".to_owned(),
            hostname: "web".to_owned(),
            ipv4_address: "192.168.64.2/24".to_owned(),
            ipv4_gateway: "192.168.64.1".to_owned(),
            ipv6_address: Some("fd00::2/64".to_owned()),
            mac_address: None,
            mtu: None,
            variant: None,
        };
        let led = |attachment: &Attachment, host: &str| {
            address(attachment, host.parse().unwrap()).map(|address| address.to_string())
        };
        assert_eq!(led(&attachment, "0.0.0.0").unwrap(), "192.168.64.2");
        assert_eq!(led(&attachment, "::1").unwrap(), "fd00::2");
        attachment.ipv6_address = None;
        assert!(led(&attachment, "::1").unwrap_err().message.contains("unknown IPv6 address"));
    }
}
