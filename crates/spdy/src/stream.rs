//! One stream of a connection.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::frame::ResetStatus;
use crate::header::Headers;
use crate::state::Shared;

/// A stream: bytes in both directions.
///
/// Shutting it down ends the sending direction after what was written. Dropping it after that still sends
/// all; dropping it before resets the stream with [`ResetStatus::CANCEL`], unless it
/// [finishes on drop](Self::finish_on_drop).
///
/// A read fails with `ConnectionReset` when the peer reset the stream, after what came before was read, and
/// with `ConnectionAborted` when the connection ended before the stream did.
pub struct Stream {
    shared: Arc<Shared>,
    number: u32,
    headers: Headers,
    /// What the peer is told when the stream is dropped.
    status: ResetStatus,
    finishes: bool,
}

impl Stream {
    pub(crate) fn new(shared: Arc<Shared>, number: u32, headers: Headers) -> Self {
        Self { shared, number, headers, status: ResetStatus::CANCEL, finishes: false }
    }

    /// The headers that it was opened with.
    #[must_use]
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// Its number in the connection.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The stream with another meaning of dropping it: what was written is sent, and then its end.
    #[must_use]
    pub fn finish_on_drop(mut self) -> Self {
        self.finishes = true;
        self
    }

    /// Ends it at once. What was shut down before is still sent.
    pub fn reset(mut self, status: ResetStatus) {
        self.status = status;
        self.finishes = false;
    }

    pub(crate) fn reply(&self) {
        self.shared.lock().reply(self.number);
        self.shared.work.notify_one();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.lock().abandon(self.number, self.status, self.finishes);
        self.shared.work.notify_one();
        self.shared.room.notify_one();
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, headers, .. } = self;
        formatter
            .debug_struct("Stream")
            .field("number", number)
            .field("headers", headers)
            .finish_non_exhaustive()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let poll = self.shared.lock().poll_read(self.number, context, buffer);
        if poll.is_ready() {
            self.shared.room.notify_one();
        }
        poll
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let poll = self.shared.lock().poll_write(self.number, context, data);
        self.shared.work.notify_one();
        poll
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.lock().poll_flush(self.number, context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = self.shared.lock().poll_shutdown(self.number, context);
        self.shared.work.notify_one();
        poll
    }
}
