use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::{GuestClient, GuestError, LIST_DEADLINE, within};
use crate::v1;

/// Acknowledgements on their way; a reader that outruns it waits.
const ACKNOWLEDGEMENT_QUEUE: usize = 4;
/// See [`LogReader::close`].
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);
const CALL: &str = "ReadLog";

/// The records of one container; see [`GuestClient::read_log`].
pub struct LogReader {
    inner: tonic::Streaming<v1::ReadLogResponse>,
    acknowledger: LogAcknowledger,
    offset: u64,
    ended: bool,
}

/// Tells the guest which records it may drop.
#[derive(Clone, Debug)]
pub struct LogAcknowledger {
    id: String,
    sender: mpsc::Sender<v1::ReadLogRequest>,
}

impl std::fmt::Debug for LogReader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("LogReader")
            .field("offset", &self.offset)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl LogAcknowledger {
    /// Everything before `offset` is safe on this side.
    ///
    /// # Errors
    ///
    /// [`GuestError::Gone`] once the stream has ended.
    pub async fn acknowledge(&self, offset: u64) -> Result<(), GuestError> {
        let request = v1::ReadLogRequest { id: self.id.clone(), offset: 0, acknowledged: offset };
        self.sender.send(request).await.map_err(|_| GuestError::Gone { call: CALL })
    }
}

impl LogReader {
    /// The next records; `None` once the container has ended and all was read.
    /// Pieces follow one another without a gap; a guest that leaves one is
    /// refused with [`GuestError::Protocol`].
    ///
    /// # Errors
    ///
    /// [`GuestError::Gone`] when the connection ends before the log does.
    pub async fn next(&mut self) -> Result<Option<v1::ReadLogResponse>, GuestError> {
        if self.ended {
            return Ok(None);
        }
        let response = match self.inner.next().await {
            Some(Ok(response)) => response,
            Some(Err(status)) => {
                self.ended = true;
                return Err(GuestError::from_status(CALL, status));
            }
            None => {
                self.ended = true;
                return Err(GuestError::Gone { call: CALL });
            }
        };
        if response.offset != self.offset {
            self.ended = true;
            return Err(GuestError::Protocol { call: CALL, violation: "a gap in the offsets" });
        }
        self.offset = self.offset.saturating_add(response.records.len() as u64);
        self.ended = response.end;
        if response.end && response.records.is_empty() {
            return Ok(None);
        }
        Ok(Some(response))
    }

    /// Lets what was acknowledged still arrive: for a reader that has read all,
    /// so that the guest need not keep the rest. Clones of the acknowledger must
    /// be gone. Takes a second at most.
    pub async fn close(self) {
        let Self { mut inner, acknowledger, .. } = self;
        drop(acknowledger);
        // The guest ends its side once it has seen the end of this one.
        let ended = async { while let Some(Ok(_)) = inner.next().await {} };
        let _ = tokio::time::timeout(CLOSE_DEADLINE, ended).await;
    }

    /// Where the next records start.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// For acknowledging what was read; may be cloned and used elsewhere.
    pub fn acknowledger(&self) -> &LogAcknowledger {
        &self.acknowledger
    }
}

impl GuestClient {
    /// Reads the log of a container that was made with `log.stream`, from an
    /// offset of its record stream on, on a connection of its own.
    ///
    /// # Errors
    ///
    /// [`GuestError::Refused`] for a container that keeps no records, or an
    /// offset whose records are dropped already; connection errors.
    pub async fn read_log(&self, id: &str, offset: u64) -> Result<LogReader, GuestError> {
        let mut calls = self.bulk().await?;
        let (sender, receiver) = mpsc::channel(ACKNOWLEDGEMENT_QUEUE);
        let first = v1::ReadLogRequest { id: id.to_owned(), offset, acknowledged: offset };
        sender.send(first).await.map_err(|_| GuestError::Gone { call: CALL })?;
        let inner =
            within(CALL, LIST_DEADLINE, async move { calls.read_log(ReceiverStream::new(receiver)).await })
                .await?;
        let acknowledger = LogAcknowledger { id: id.to_owned(), sender };
        Ok(LogReader { inner, acknowledger, offset, ended: false })
    }
}
