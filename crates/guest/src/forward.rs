//! A connection from outside to a port in the pod.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as StdStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use kina_guest_api::v1;
use kina_guest_api::v1::port_forward_request::What as Request;
use kina_guest_api::v1::port_forward_response::What as Response;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use crate::error::Error;
use crate::guest::{Guest, blocking};
use crate::namespaces::{enter_network, in_thread};
use crate::pod::Pod;

/// Answers on their way to the caller; further data waits in the socket.
const RESPONSES: usize = 2;
/// The largest piece of data in one answer, in bytes.
const PIECE_BYTES: usize = 16 << 10;
/// How long one address of the pod may take to answer. It is on loopback: what does
/// not answer at once has a full backlog.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// What the caller receives.
pub(crate) type Responses = mpsc::Receiver<Result<v1::PortForwardResponse, Status>>;
type Sender = mpsc::Sender<Result<v1::PortForwardResponse, Status>>;

/// Connects to a port on the pod's loopback and carries data both ways, until both
/// have ended or the caller goes away.
pub(crate) async fn run(
    guest: Arc<Guest>,
    start: v1::PortForwardStart,
    requests: impl Stream<Item = Result<v1::PortForwardRequest, Status>> + Send + Unpin + 'static,
) -> Result<Responses, Error> {
    let permit = guest.take_forward()?;
    let port = u16::try_from(start.port)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| Error::invalid("port", format!("{} is none", start.port)))?;
    let stream = connect(guest.pod().await?, port).await?;
    let (sender, receiver) = mpsc::channel(RESPONSES);
    tokio::spawn(async move {
        carry(stream, requests, sender).await;
        drop(permit);
    });
    Ok(receiver)
}

/// Connects by IPv4, else by IPv6: a server may listen on either only.
async fn connect(pod: Arc<Pod>, port: u16) -> Result<TcpStream, Error> {
    let sockets = blocking("make sockets in the pod", move || {
        in_thread("make sockets in the pod", move || sockets(&pod))
    })
    .await?;
    let addresses = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let mut first = None;
    for (address, socket) in addresses.into_iter().zip(sockets) {
        let attempt = async {
            let socket = TcpSocket::from_std_stream(StdStream::from(socket?));
            socket.connect(SocketAddr::new(address, port)).await
        };
        let connected = tokio::time::timeout(CONNECT_PATIENCE, attempt).await;
        match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => return Ok(stream),
            Err(error) => drop(first.get_or_insert(error)),
        }
    }
    let source = first.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into());
    Err(Error::Connect { port, source })
}

/// Makes a socket of each family in the pod's network namespace, where they stay.
fn sockets(pod: &Pod) -> Result<[io::Result<OwnedFd>; 2], Error> {
    if let Some(namespace) = &pod.namespaces.network {
        enter_network(namespace)?;
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok([AddressFamily::INET, AddressFamily::INET6].map(|family| {
        rustix::net::socket_with(family, SocketType::STREAM, flags, None).map_err(io::Error::from)
    }))
}

async fn carry(
    stream: TcpStream,
    requests: impl Stream<Item = Result<v1::PortForwardRequest, Status>> + Send + Unpin,
    sender: Sender,
) {
    // Pieces are as large as they came; waiting for more would only delay them.
    drop(stream.set_nodelay(true));
    let (from, to) = stream.into_split();
    let both = async { tokio::try_join!(outward(from, &sender), inward(requests, to)) };
    let failed = tokio::select! {
        done = both => done.err(),
        // The caller has gone.
        () = sender.closed() => None,
    };
    if let Some(status) = failed {
        drop(sender.send(Err(status)).await);
    }
}

/// From the pod to the caller, as fast as the caller takes it.
async fn outward(mut from: OwnedReadHalf, sender: &Sender) -> Result<(), Status> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let length = from.read(&mut piece).await.map_err(|error| Status::aborted(error.to_string()))?;
        let what = match length {
            0 => Response::End(v1::Empty {}),
            length => Response::Data(piece[..length].to_vec()),
        };
        let response = v1::PortForwardResponse { what: Some(what) };
        let sent = sender.send(Ok(response)).await;
        if length == 0 || sent.is_err() {
            return Ok(());
        }
    }
}

/// From the caller to the pod, as fast as the pod takes it.
async fn inward<S>(mut requests: S, mut to: OwnedWriteHalf) -> Result<S, Status>
where
    S: Stream<Item = Result<v1::PortForwardRequest, Status>> + Unpin,
{
    loop {
        let request =
            requests.next().await.ok_or_else(|| Status::cancelled("the caller ended without `end`"))??;
        let done = match request.what {
            Some(Request::Data(bytes)) => to.write_all(&bytes).await.is_err(),
            Some(Request::End(_)) => true,
            Some(Request::Start(_)) | None => return Err(Status::invalid_argument("neither data nor end")),
        };
        if done {
            // What the pod does not want to read any more is not its last word.
            drop(to.shutdown().await);
            return Ok(requests);
        }
    }
}
