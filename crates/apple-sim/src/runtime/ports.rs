//! Published ports: connections to a port of the host go to a port of the machine.

use std::fs::File;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sched::{CloneFlags, setns};

use super::relay::join;
use crate::error::{Code, Problem};
use crate::resources::{Attachment, Configuration, PublishedPort};
use crate::vmnet;

/// A port of the host, until it is dropped.
pub(super) struct Forwarder {
    address: std::net::SocketAddr,
    stopped: Arc<AtomicBool>,
}

impl Forwarder {
    /// Listens on all ports of a specification.
    pub(super) fn start(port: &PublishedPort, machine: &str, networks: i32) -> Result<Vec<Self>, Problem> {
        if port.proto != "tcp" {
            let message = format!("the simulator does not forward {}", port.proto);
            return Err(Problem::new(Code::Unsupported, message));
        }
        (0..port.count)
            .map(|offset| {
                let outside = format!("{}:{}", bracketed(&port.host_address), port.host_port + offset);
                let inside = format!("{machine}:{}", port.container_port + offset);
                Self::listen(&outside, inside, networks)
            })
            .collect()
    }

    fn listen(outside: &str, inside: String, networks: i32) -> Result<Self, Problem> {
        let listener = TcpListener::bind(outside)?;
        let forwarder = Self { address: listener.local_addr()?, stopped: Arc::default() };
        let stopped = Arc::clone(&forwarder.stopped);
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(connection), inside) = (connection, inside.clone()) else { return };
                std::thread::spawn(move || match dial(&inside, networks) {
                    Ok(machine) => join(connection, machine),
                    // The connection ends, which is all that its other end is told.
                    Err(_) => drop(connection),
                });
            }
        });
        Ok(forwarder)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes whoever waits for a connection.
        drop(TcpStream::connect(self.address));
    }
}

/// Forwards all ports that a container publishes, to its first address.
pub(super) fn forward(
    configuration: &Configuration,
    networks: &UnixStream,
    first: Option<&Attachment>,
) -> Result<Vec<Forwarder>, Problem> {
    let ports = &configuration.published_ports;
    let (Some(first), false) = (first, ports.is_empty()) else {
        return Ok(Vec::new());
    };
    let keeper = vmnet::keeper(networks)?;
    let address = first.ipv4_address.split('/').next().unwrap_or_default();
    let mut forwarders = Vec::new();
    for port in ports {
        forwarders.extend(Forwarder::start(port, address, keeper)?);
    }
    Ok(forwarders)
}

fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

/// Connects from the namespace of the networks, which this thread enters for good.
fn dial(address: &str, networks: i32) -> io::Result<TcpStream> {
    let namespace = File::open(format!("/proc/{networks}/ns/net"))?;
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    TcpStream::connect(address)
}
