//! Byte streams to a guest through the unix socket of a vhost-user vsock device.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use kina_guest_api::{Connect, GuestStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// How long a caller waits for the answer: the guest's kernel gives it.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long a stream is kept that is not answered, though nobody waits any more.
const KEEP: Duration = Duration::from_secs(60);
/// The longest answer: `OK 4294967295`.
const ANSWER_LIMIT: usize = 32;

/// Dials a port of a machine: `CONNECT <port>` on the device's socket, answered
/// by `OK <port>`, after which the stream is the guest's. While nobody listens
/// in the guest the device ends the connection instead.
///
/// A stream is not closed before it is answered, even if its caller has gone:
/// vhost-device-vsock 0.3 panics when it cannot write its answer, and all other
/// streams of the machine end with it. (So they do when this process is killed
/// at that moment.)
#[derive(Clone, Debug)]
pub struct VsockConnector {
    socket: PathBuf,
    port: u32,
}

impl VsockConnector {
    /// A connector for a port behind the device's socket.
    pub fn new(socket: impl Into<PathBuf>, port: u32) -> Self {
        Self { socket: socket.into(), port }
    }

    async fn dial(self) -> io::Result<UnixStream> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        // In one piece: the device reads once.
        stream.write_all(format!("CONNECT {}\n", self.port).as_bytes()).await?;
        // Byte by byte: what follows the line is the guest's already.
        let mut answer = Vec::with_capacity(ANSWER_LIMIT);
        loop {
            let byte = stream.read_u8().await?;
            if byte == b'\n' {
                break;
            }
            answer.push(byte);
            if answer.len() > ANSWER_LIMIT {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        if answer.starts_with(b"OK ") {
            Ok(stream)
        } else {
            let answer = String::from_utf8_lossy(&answer).into_owned();
            Err(io::Error::new(io::ErrorKind::InvalidData, format!("the vsock device says {answer:?}")))
        }
    }
}

#[async_trait]
impl Connect for VsockConnector {
    async fn connect(&self) -> io::Result<Box<dyn GuestStream>> {
        let timed_out = |_| io::Error::from(io::ErrorKind::TimedOut);
        // A task of its own, which goes on when this is given up.
        let dialling = tokio::spawn(tokio::time::timeout(KEEP, self.clone().dial()));
        let joined = tokio::time::timeout(PATIENCE, dialling).await.map_err(timed_out)?;
        let dialled = joined.map_err(io::Error::other)?;
        Ok(Box::new(dialled.map_err(timed_out)??))
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    /// Dials a device that sends `answer` and then closes.
    async fn dial(answer: &'static [u8]) -> io::Result<Vec<u8>> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("v");
        let listener = UnixListener::bind(&socket).unwrap();
        let device = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 13];
            stream.read_exact(&mut request).await.unwrap();
            assert_eq!(&request, b"CONNECT 1024\n");
            stream.write_all(answer).await.unwrap();
        });
        let dialled = VsockConnector::new(&socket, 1024).connect().await;
        device.await.unwrap();
        let mut rest = Vec::new();
        dialled?.read_to_end(&mut rest).await?;
        Ok(rest)
    }

    #[tokio::test]
    async fn what_follows_the_answer_is_the_guests() {
        assert_eq!(dial(b"OK 1024\nfirst bytes").await.unwrap(), b"first bytes");
    }

    #[tokio::test]
    async fn a_stream_is_kept_until_it_is_answered() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("v");
        let listener = UnixListener::bind(&socket).unwrap();
        let connector = VsockConnector::new(&socket, 1024);
        let given_up = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_exact(&mut [0; 13]).await.unwrap();
            stream
        };
        let mut stream = tokio::select! {
            _ = connector.connect() => panic!("nobody has answered"),
            stream = given_up => stream,
        };
        stream.write_all(b"OK 1024\n").await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn no_guest_is_an_error() {
        assert_eq!(dial(b"").await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(dial(b"NO\n").await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(dial(&[b'x'; 100]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
