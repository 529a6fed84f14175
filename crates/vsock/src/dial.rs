//! Streams to a machine's guest, from the host.

use std::fmt;
use std::io;
#[cfg(target_os = "linux")]
use std::os::fd::AsFd as _;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
#[cfg(target_os = "linux")]
use tokio_vsock::{VsockAddr, VsockStream};

use crate::{Error, GREETING, REFUSAL};

/// The longest answer of a device in bytes, its end of line left out.
const ANSWER_LIMIT: usize = 80;

/// Which of the two devices a machine gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// The kernel's: `vhost-vsock-pci` with a CID of the machine's own.
    Kernel,
    /// [`kina-vsock`](crate), one process for each machine: `vhost-user-vsock`.
    User,
}

/// Which device new machines shall get: the kernel's where `/dev/vhost-vsock`
/// opens, [`Transport::User`] elsewhere. Opening it loads the kernel's module where
/// there is one, so this does what a first machine would do.
///
/// What a machine has been given stays with it: record its [`Address`].
#[must_use]
pub fn available() -> Transport {
    choose(std::fs::OpenOptions::new().read(true).write(true).open("/dev/vhost-vsock").map(drop))
}

fn choose(opened: io::Result<()>) -> Transport {
    match opened {
        Ok(()) => Transport::Kernel,
        Err(_) => Transport::User,
    }
}

/// Where a guest listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// Behind the host socket of a [`Transport::User`].
    Unix {
        /// The device's socket on the host.
        socket: PathBuf,
        /// The port in the guest.
        port: u32,
    },
    /// Behind the kernel's device. No machine that tests run on has one: what is
    /// tested is the choice, not this path.
    Kernel {
        /// The machine's context id; 3 or more.
        cid: u32,
        /// The port in the guest.
        port: u32,
    },
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { socket, port } => write!(formatter, "port {port} behind {}", socket.display()),
            Self::Kernel { cid, port } => write!(formatter, "port {port} of vsock {cid}"),
        }
    }
}

/// A fresh stream to the guest that listens at `address`, once: whoever waits for
/// a boot tries again.
///
/// May be dropped at any moment: the device takes back what the guest has seen.
///
/// # Errors
/// [`Error::Refused`] at once when the guest's kernel is up and nobody listens,
/// [`Error::TimedOut`] when it has not answered within `patience`,
/// [`Error::Dial`] when the device itself is gone.
pub async fn connect(address: &Address, patience: Duration) -> Result<Stream, Error> {
    match tokio::time::timeout(patience, dial(address)).await {
        Ok(dialled) => dialled,
        Err(_) => Err(Error::TimedOut { address: address.clone(), patience }),
    }
}

async fn dial(address: &Address) -> Result<Stream, Error> {
    match address {
        Address::Unix { socket, port } => {
            let failed = |source| Error::Dial { address: address.clone(), source };
            let mut stream = UnixStream::connect(socket).await.map_err(failed)?;
            stream.write_all(format!("CONNECT {port}\n").as_bytes()).await.map_err(failed)?;
            let answer = answer(&mut stream).await.map_err(failed)?;
            judge(address, &answer)?;
            Ok(Stream(Inner::Unix(stream)))
        }
        #[cfg(target_os = "linux")]
        Address::Kernel { cid, port } => match VsockStream::connect(VsockAddr::new(*cid, *port)).await {
            Ok(stream) => Ok(Stream(Inner::Kernel(stream))),
            // The guest's kernel answered with a reset.
            Err(source) if source.kind() == io::ErrorKind::ConnectionReset => {
                Err(Error::Refused { address: address.clone(), answer: source.to_string() })
            }
            Err(source) => Err(Error::Dial { address: address.clone(), source }),
        },
        #[cfg(not(target_os = "linux"))]
        Address::Kernel { .. } => {
            Err(Error::Dial { address: address.clone(), source: io::ErrorKind::Unsupported.into() })
        }
    }
}

/// The device's line. Read byte by byte: what follows is the guest's already.
async fn answer(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(ANSWER_LIMIT);
    loop {
        let byte = stream.read_u8().await?;
        if byte == b'\n' || line.len() == ANSWER_LIMIT {
            return Ok(line);
        }
        line.push(byte);
    }
}

fn judge(address: &Address, answer: &[u8]) -> Result<(), Error> {
    let text = String::from_utf8_lossy(answer);
    if text.strip_prefix(GREETING).is_some_and(|port| port.parse::<u32>().is_ok()) {
        return Ok(());
    }
    match text.strip_prefix(REFUSAL) {
        Some(words) => Err(Error::Refused { address: address.clone(), answer: words.to_owned() }),
        None => Err(Error::Answer { address: address.clone(), answer: text.into_owned() }),
    }
}

/// A byte stream to a guest. Either direction can be closed alone
/// ([`AsyncWriteExt::shutdown`]); dropped, both are.
#[derive(Debug)]
pub struct Stream(Inner);

#[derive(Debug)]
enum Inner {
    Unix(UnixStream),
    #[cfg(target_os = "linux")]
    Kernel(VsockStream),
}

impl Stream {
    /// The stream as a descriptor whose reads and writes block, for threads.
    ///
    /// # Errors
    /// What the system says.
    pub fn into_blocking(self) -> io::Result<OwnedFd> {
        let descriptor = match self.0 {
            Inner::Unix(stream) => OwnedFd::from(stream.into_std()?),
            #[cfg(target_os = "linux")]
            Inner::Kernel(stream) => stream.as_fd().try_clone_to_owned()?,
        };
        rustix::io::ioctl_fionbio(&descriptor, false)?;
        Ok(descriptor)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Inner::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            #[cfg(target_os = "linux")]
            Inner::Kernel(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Inner::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
            #[cfg(target_os = "linux")]
            Inner::Kernel(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Inner::Unix(stream) => Pin::new(stream).poll_flush(context),
            #[cfg(target_os = "linux")]
            Inner::Kernel(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Inner::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            #[cfg(target_os = "linux")]
            Inner::Kernel(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// Dials a device that sends `words` and then closes; what the stream holds.
    async fn dial_one_that_says(words: &'static [u8]) -> Result<Vec<u8>, Error> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("v");
        let listener = UnixListener::bind(&socket).unwrap();
        let device = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 13];
            stream.read_exact(&mut request).await.unwrap();
            assert_eq!(&request, b"CONNECT 1024\n");
            stream.write_all(words).await.unwrap();
        });
        let dialled = connect(&Address::Unix { socket, port: 1024 }, PATIENCE).await;
        device.await.unwrap();
        let mut rest = Vec::new();
        dialled?.read_to_end(&mut rest).await.unwrap();
        Ok(rest)
    }

    #[tokio::test]
    async fn what_follows_the_answer_is_the_guests() {
        assert_eq!(dial_one_that_says(b"OK 1073741824\nfirst bytes").await.unwrap(), b"first bytes");
    }

    #[tokio::test]
    async fn each_failure_has_its_name() {
        let refused = dial_one_that_says(b"ERROR refused\n").await.unwrap_err();
        assert!(matches!(&refused, Error::Refused { answer, .. } if answer == "refused"), "{refused}");
        assert_eq!(refused.into_io().kind(), io::ErrorKind::ConnectionRefused);
        for words in [b"OK \n".as_slice(), b"OK x\n", b"NO\n", &[b'x'; 1000]] {
            let odd = dial_one_that_says(words).await.unwrap_err();
            assert!(matches!(odd, Error::Answer { .. }), "{odd}");
        }
        let ended = dial_one_that_says(b"OK 1").await.unwrap_err();
        assert!(matches!(ended, Error::Dial { .. }), "{ended}");
        let nowhere = Address::Unix { socket: "/nowhere/v".into(), port: 1 };
        let gone = connect(&nowhere, PATIENCE).await.unwrap_err();
        assert_eq!(gone.to_string(), "dial port 1 behind /nowhere/v");
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_does_not_answer_is_not_waited_for_longer() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("v");
        let _listener = UnixListener::bind(&socket).unwrap();
        let silent = connect(&Address::Unix { socket, port: 1 }, PATIENCE).await.unwrap_err();
        assert!(matches!(silent, Error::TimedOut { .. }), "{silent}");
    }

    #[test]
    fn the_kernels_device_is_taken_where_it_opens() {
        assert_eq!(choose(Ok(())), Transport::Kernel);
        for kind in [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied] {
            assert_eq!(choose(Err(kind.into())), Transport::User);
        }
        let expected =
            if std::fs::File::open("/dev/vhost-vsock").is_ok() { Transport::Kernel } else { Transport::User };
        assert_eq!(available(), expected);
    }
}
