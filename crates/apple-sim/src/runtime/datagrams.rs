//! Published ports of UDP (`UDPForwarder.swift`).

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, setns};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

/// What is read of a datagram, in bytes; the rest of it is lost (`DatagramChannel` of swift-nio).
const LONGEST: usize = 2048;
/// Of how many clients it is known where answers go. Another takes the place of who was silent
/// for the longest time.
const CLIENTS: usize = 256;

/// A client, and the socket from which the machine hears it.
type Client = (SocketAddr, UdpSocket);

/// A port of the host, until it is dropped.
pub(super) struct Datagrams {
    /// Its other end tells the thread that this is gone.
    _listens: OwnedFd,
}

impl Datagrams {
    /// Forwards what comes to `outside` to a machine's address, which is reached from a network
    /// namespace.
    pub(super) fn forward(outside: SocketAddr, machine: SocketAddr, namespace: File) -> io::Result<Self> {
        let port = UdpSocket::bind(outside)?;
        port.set_nonblocking(true)?;
        let (end, listens) = pipe_with(PipeFlags::CLOEXEC)?;
        std::thread::spawn(move || {
            // Enters it for good.
            if setns(namespace, CloneFlags::CLONE_NEWNET).is_ok() {
                serve(&port, machine, &end);
            }
        });
        Ok(Self { _listens: listens })
    }
}

fn serve(port: &UdpSocket, machine: SocketAddr, end: &OwnedFd) {
    let mut clients: Vec<Client> = Vec::new();
    let mut datagram = [0; LONGEST];
    loop {
        let mut polled = vec![PollFd::new(end, PollFlags::IN), PollFd::new(port, PollFlags::IN)];
        polled.extend(clients.iter().map(|(_, socket)| PollFd::new(socket, PollFlags::IN)));
        match poll(&mut polled, None) {
            Err(Errno::INTR) => continue,
            Err(_) => return,
            Ok(_) => {}
        }
        let ready: Vec<bool> = polled.iter().map(|one| !one.revents().is_empty()).collect();
        let [ended, asked, answered @ ..] = ready.as_slice() else { return };
        if *ended {
            return;
        }
        // What cannot be sent is lost, as datagrams are.
        for ((client, socket), _) in clients.iter().zip(answered).filter(|(_, answered)| **answered) {
            if let Ok((length, _)) = socket.recv_from(&mut datagram) {
                let _ = port.send_to(&datagram[..length], client);
            }
        }
        if *asked && let Ok((length, client)) = port.recv_from(&mut datagram) {
            let _ =
                known(&mut clients, client).and_then(|socket| socket.send_to(&datagram[..length], machine));
        }
    }
}

/// The socket of a client, which from now on is the last that was heard.
fn known(clients: &mut Vec<Client>, client: SocketAddr) -> io::Result<&UdpSocket> {
    let place = clients.iter().position(|(known, _)| *known == client);
    let entry = match place {
        Some(place) => clients.remove(place),
        None => {
            // Of IPv4, whatever the machine's address is: that of IPv6 is never reached.
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_nonblocking(true)?;
            if clients.len() == CLIENTS {
                clients.remove(0);
            }
            (client, socket)
        }
    };
    clients.push(entry);
    Ok(&clients[clients.len() - 1].1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_silent_for_the_longest_time_is_forgotten() {
        let client = |port: usize| SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()));
        let mut clients = Vec::new();
        for port in 1..=CLIENTS {
            known(&mut clients, client(port)).unwrap();
        }
        let first = known(&mut clients, client(1)).unwrap().local_addr().unwrap();
        known(&mut clients, client(CLIENTS + 1)).unwrap();
        assert_eq!(clients.len(), CLIENTS);
        assert!(clients.iter().all(|(known, _)| *known != client(2)));
        assert_eq!(known(&mut clients, client(1)).unwrap().local_addr().unwrap(), first);
    }
}
