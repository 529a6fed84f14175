//! What the server does not do itself.

use std::fmt;

use async_trait::async_trait;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::request::{Attach, Exec};

/// Why a backend could not do what was asked. The client is told the text of it and of its sources.
pub type BackendError = Box<dyn std::error::Error + Send + Sync>;

/// Where a process reads its input from.
pub type Input = Box<dyn AsyncRead + Send + Unpin>;

/// Where a process's output goes. Dropping it ends the stream; what was written still arrives.
pub type Output = Box<dyn AsyncWrite + Send + Unpin>;

/// A forwarded connection. Shutting it down ends one direction; dropping it ends both, and what was written
/// still arrives.
pub type ByteStream = Box<dyn Duplex>;

/// Bytes in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<Anything: AsyncRead + AsyncWrite + Send + Unpin> Duplex for Anything {}

/// What the server calls.
///
/// When the client goes away, or is idle for too long, the call's future is dropped; the backend cleans up in
/// destructors then. Until it returns, a call keeps its client's connection.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Runs a command, and tells its exit code when it has ended and its output was written.
    ///
    /// # Errors
    ///
    /// If the command could not be run, which is not the same as a command that fails.
    async fn exec(&self, exec: &Exec, io: SessionIo) -> Result<i32, BackendError>;

    /// Connects the client with a container's main process until that has ended or the output is over.
    ///
    /// # Errors
    ///
    /// If there is no such process, or it can no longer be reached.
    async fn attach(&self, attach: &Attach, io: SessionIo) -> Result<(), BackendError>;

    /// Connects the client with a port of a pod until both directions have ended.
    ///
    /// # Errors
    ///
    /// If nobody listens there, or the connection breaks.
    async fn port_forward(&self, pod: &str, port: u16, stream: ByteStream) -> Result<(), BackendError>;
}

/// The client's side of a process. A stream that was not asked for is none.
pub struct SessionIo {
    /// Ends when the client closes it; fails when the client has gone.
    pub stdin: Option<Input>,
    /// Standard output; with a terminal, all output.
    pub stdout: Option<Output>,
    /// Standard error; none with a terminal.
    pub stderr: Option<Output>,
    /// Sizes of the client's terminal; only with a terminal.
    pub resizes: Option<Resizes>,
}

impl fmt::Debug for SessionIo {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SessionIo")
            .field("stdin", &self.stdin.is_some())
            .field("stdout", &self.stdout.is_some())
            .field("stderr", &self.stderr.is_some())
            .field("resizes", &self.resizes.is_some())
            .finish()
    }
}

/// A terminal's size, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct TerminalSize {
    /// Columns.
    #[serde(rename = "Width")]
    pub width: u16,
    /// Rows.
    #[serde(rename = "Height")]
    pub height: u16,
}

/// The sizes that a client's terminal takes. Who is slow misses sizes, but never the last.
#[derive(Debug)]
pub struct Resizes(watch::Receiver<Option<TerminalSize>>);

impl Resizes {
    pub(crate) fn channel() -> (watch::Sender<Option<TerminalSize>>, Self) {
        let (sender, receiver) = watch::channel(None);
        (sender, Self(receiver))
    }

    /// The next size; none when there will be no more.
    pub async fn next(&mut self) -> Option<TerminalSize> {
        loop {
            self.0.changed().await.ok()?;
            let size = *self.0.borrow_and_update();
            if size.is_some() {
                return size;
            }
        }
    }
}
