//! Connections and their limits.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;

use crate::driver;
use crate::error::{Closed, OpenError};
use crate::frame::{GoAwayStatus, ResetStatus};
use crate::header::Headers;
use crate::state::{Shared, State};
use crate::stream::Stream;

/// Bounds on what a connection takes and holds.
///
/// In memory a connection has at most `connection_buffer` bytes that came in, `stream_buffer` bytes to be
/// written for each of its `streams`, and a few hundred KiB besides.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The longest control frame, in bytes. Default: 16 KiB.
    pub control_frame: usize,
    /// The longest header block after decompression, in bytes. Default: 64 KiB.
    pub header_block: usize,
    /// Streams that are open at once; further ones of the peer are refused. Default: 512.
    pub streams: usize,
    /// Bytes that one stream holds in each direction. Default: 64 KiB.
    pub stream_buffer: usize,
    /// Bytes that came in and were not read yet, over all streams. Default: 4 MiB.
    pub connection_buffer: usize,
    /// How long nothing may pass, pings of the peer included, before the connection is closed. Default: 4 h.
    pub idle_timeout: Duration,
    /// How often a quiet peer is pinged, so that a vanished one is noticed. Default: 30 s.
    pub ping_interval: Option<Duration>,
    /// How long an end may take once it was begun. Default: 5 s.
    pub close_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            control_frame: 16 << 10,
            header_block: 64 << 10,
            streams: 512,
            stream_buffer: 64 << 10,
            connection_buffer: 4 << 20,
            idle_timeout: Duration::from_secs(4 * 60 * 60),
            ping_interval: Some(Duration::from_secs(30)),
            close_timeout: Duration::from_secs(5),
        }
    }
}

/// A SPDY connection. Dropping it cuts the transport; [`close`](Self::close) ends it in order.
pub struct Connection {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Connection {
    /// Serves the other side of a transport. Must be called within a tokio runtime.
    pub fn server(transport: impl AsyncRead + AsyncWrite + Send + 'static, limits: Limits) -> Self {
        Self::start(transport, limits, true)
    }

    /// Is the client of the other side of a transport. Must be called within a tokio runtime.
    pub fn client(transport: impl AsyncRead + AsyncWrite + Send + 'static, limits: Limits) -> Self {
        Self::start(transport, limits, false)
    }

    fn start(
        transport: impl AsyncRead + AsyncWrite + Send + 'static,
        limits: Limits,
        is_server: bool,
    ) -> Self {
        let shared = Arc::new(Shared::new(State::new(is_server, limits.clone())));
        let task = tokio::spawn(driver::run(transport, limits, shared.clone()));
        Self { shared, task }
    }

    /// The next stream that the peer opens; none when the connection ends or the peer has said that it opens
    /// no more. Cancelling the call loses nothing.
    pub async fn accept(&self) -> Option<Incoming> {
        loop {
            let mut news = std::pin::pin!(self.shared.news.notified());
            news.as_mut().enable();
            let accepted = self.shared.lock().accept();
            if let Some(accepted) = accepted {
                let (stream, headers) = accepted?;
                return Some(Incoming { stream: Stream::new(self.shared.clone(), stream, headers) });
            }
            news.await;
        }
    }

    /// Opens a stream, and waits until the peer has accepted it.
    ///
    /// # Errors
    ///
    /// If the connection has ended, the peer refuses, or a limit is reached.
    pub async fn open(&self, headers: Headers) -> Result<Stream, OpenError> {
        let number = self.shared.lock().open(&headers)?;
        self.shared.work.notify_one();
        // Dropped, it resets the stream.
        let stream = Stream::new(self.shared.clone(), number, headers);
        poll_fn(|context| self.shared.lock().poll_opened(number, context)).await?;
        Ok(stream)
    }

    /// Waits until the connection has ended, and tells why.
    pub async fn closed(&self) -> Closed {
        self.shared.closed().await
    }

    /// Streams that are open, in whatever state.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.shared.lock().open_streams()
    }

    /// Writes what streams were given and GOAWAY, and hears the peer out until it closes too, for
    /// [`Limits::close_timeout`] at most. Cancelling the call cuts the transport.
    pub async fn close(self) -> Closed {
        self.shared.begin_close(GoAwayStatus::OK);
        self.shared.closed().await
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
        self.shared.finish(Closed::Here);
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Connection").field("streams", &self.open_streams()).finish_non_exhaustive()
    }
}

impl Shared {
    /// Waits for the end.
    pub(crate) async fn closed(&self) -> Closed {
        loop {
            let mut news = std::pin::pin!(self.news.notified());
            news.as_mut().enable();
            if let Some(reason) = self.lock().closed().cloned() {
                return reason;
            }
            news.await;
        }
    }

    /// Waits until an end was begun.
    pub(crate) async fn closing(&self) {
        loop {
            let mut news = std::pin::pin!(self.news.notified());
            news.as_mut().enable();
            if self.lock().is_closing() {
                return;
            }
            news.await;
        }
    }
}

/// A stream that the peer wants to open. Dropping it refuses it.
#[derive(Debug)]
pub struct Incoming {
    stream: Stream,
}

impl Incoming {
    /// What the peer says that it is for.
    #[must_use]
    pub fn headers(&self) -> &Headers {
        self.stream.headers()
    }

    /// Its number in the connection.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.stream.number()
    }

    /// Takes it.
    #[must_use]
    pub fn accept(self) -> Stream {
        self.stream.reply();
        self.stream
    }

    /// Refuses it with a status.
    pub fn refuse(self, status: ResetStatus) {
        self.stream.reset(status);
    }
}
