//! Whether somebody answers on a guest's socket. Apple's relay takes connections
//! whether the guest listens or not, so that a connection says nothing.
//!
//! The guest speaks HTTP/2 (RFC 9113, section 3.4): each side begins with a
//! SETTINGS frame. The connection stays open after that, idle, and ends with the
//! machine.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// A client's first words: the preface, and a SETTINGS frame with nothing in it.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
const FRAME_HEADER: usize = 9;
const TYPE_AT: usize = 3;
const SETTINGS: u8 = 4;

/// Between two reads of a stream that should be silent: who floods it costs no more.
const READ_PAUSE: Duration = Duration::from_millis(50);

/// What was found on a socket.
#[derive(Debug)]
pub(crate) enum Greeting {
    /// A guest answers; the stream ends with it.
    Answered(UnixStream),
    /// Somebody holds the connection and says nothing, for the whole time.
    Silent,
    /// Nobody is there, or the connection ended at once.
    Nobody,
}

/// Connects and waits for an answer.
pub(crate) async fn greet(socket: &Path, patience: Duration) -> Greeting {
    let mut stream = match UnixStream::connect(socket).await {
        Ok(stream) => stream,
        Err(_) => return Greeting::Nobody,
    };
    let exchange = async {
        stream.write_all(PREFACE).await?;
        let mut header = [0; FRAME_HEADER];
        stream.read_exact(&mut header).await?;
        match header[TYPE_AT] {
            SETTINGS => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it does not speak HTTP/2")),
        }
    };
    match tokio::time::timeout(patience, exchange).await {
        Ok(Ok(())) => Greeting::Answered(stream),
        Ok(Err(_)) => Greeting::Nobody,
        Err(_) => Greeting::Silent,
    }
}

/// Reads an answered stream to its end.
pub(crate) async fn until_end(mut stream: UnixStream) {
    let mut buffer = [0; 1024];
    while let Ok(1..) = stream.read(&mut buffer).await {
        tokio::time::sleep(READ_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn listener() -> (tempfile::TempDir, std::path::PathBuf, UnixListener) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        (directory, path, listener)
    }

    #[tokio::test]
    async fn a_guest_answers() {
        let (_directory, path, listener) = listener();
        let guest = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut words = vec![0; PREFACE.len()];
            stream.read_exact(&mut words).await.unwrap();
            assert_eq!(words, PREFACE);
            stream.write_all(&[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]).await.unwrap();
            stream
        });
        let Greeting::Answered(stream) = greet(&path, PATIENCE).await else { panic!("no answer") };
        drop(guest.await.unwrap());
        tokio::time::timeout(PATIENCE, until_end(stream)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_floods_is_read_slowly() {
        const FLOOD: usize = 64 << 10;
        let (stream, mut guest) = UnixStream::pair().unwrap();
        let begin = tokio::time::Instant::now();
        let flood = async move { guest.write_all(&[0; FLOOD]).await.unwrap() };
        tokio::join!(until_end(stream), flood);
        assert!(begin.elapsed() >= READ_PAUSE * 64, "{:?}", begin.elapsed());
    }

    #[tokio::test]
    async fn a_relay_without_a_guest_is_nobody() {
        let (_directory, path, listener) = listener();
        tokio::spawn(async move { drop(listener.accept().await.unwrap()) });
        assert!(matches!(greet(&path, PATIENCE).await, Greeting::Nobody));
        assert!(matches!(greet(Path::new("/nowhere/s"), PATIENCE).await, Greeting::Nobody));
    }

    #[tokio::test]
    async fn who_says_nothing_is_there() {
        let (_directory, path, listener) = listener();
        assert!(matches!(greet(&path, Duration::from_millis(20)).await, Greeting::Silent));
        drop(listener);
    }
}
