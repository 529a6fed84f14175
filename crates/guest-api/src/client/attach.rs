use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::{GuestClient, GuestError, within};
use crate::v1;
use crate::v1::attach_request::What as Request;
use crate::v1::attach_response::What as Response;

/// From Attach's request to its `started`.
pub const ATTACH_DEADLINE: Duration = Duration::from_secs(10);

/// Messages on their way to the guest that an [`AttachInput`] holds.
const INPUT_QUEUE: usize = 4;
/// The largest piece of standard input in one message, in bytes.
const INPUT_PIECE_BYTES: usize = 32 << 10;
const CALL: &str = "Attach";

/// A client at a container's streams; see [`GuestClient::attach`]. Dropping `responses`
/// detaches it; the container runs on.
#[derive(Debug)]
pub struct AttachSession {
    /// What the guest found: whether input goes anywhere, and whether there is a terminal.
    pub started: v1::AttachStarted,
    /// Towards the container.
    pub input: AttachInput,
    /// From the container.
    pub responses: AttachResponses,
}

/// What goes to an attached container. Every method waits while the container does not
/// read, and fails with [`GuestError::Gone`] once the session has ended. Dropping it says
/// that there is no more input.
#[derive(Clone, Debug)]
pub struct AttachInput {
    sender: mpsc::Sender<v1::AttachRequest>,
}

/// What comes from an attached container, in order.
pub struct AttachResponses {
    inner: tonic::Streaming<v1::AttachResponse>,
    ended: bool,
}

impl std::fmt::Debug for AttachResponses {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("AttachResponses").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl AttachInput {
    /// Writes to standard input, in pieces.
    ///
    /// # Errors
    ///
    /// [`GuestError::Gone`] once the session has ended.
    pub async fn stdin(&self, bytes: &[u8]) -> Result<(), GuestError> {
        for piece in bytes.chunks(INPUT_PIECE_BYTES) {
            self.send(Request::Stdin(piece.to_vec())).await?;
        }
        Ok(())
    }

    /// Says that there is no more input; whether that closes the container's, the
    /// container was made with.
    ///
    /// # Errors
    ///
    /// [`GuestError::Gone`] once the session has ended.
    pub async fn stdin_end(&self) -> Result<(), GuestError> {
        self.send(Request::StdinEnd(v1::Empty {})).await
    }

    /// Changes the terminal's size; without a terminal nothing happens.
    ///
    /// # Errors
    ///
    /// [`GuestError::Gone`] once the session has ended.
    pub async fn resize(&self, columns: u32, rows: u32) -> Result<(), GuestError> {
        self.send(Request::Resize(v1::WindowSize { columns, rows })).await
    }

    async fn send(&self, what: Request) -> Result<(), GuestError> {
        let request = v1::AttachRequest { what: Some(what) };
        self.sender.send(request).await.map_err(|_| GuestError::Gone { call: CALL })
    }
}

impl AttachResponses {
    /// The next piece of output, then `end` once the container has ended, then `None`.
    ///
    /// # Errors
    ///
    /// [`GuestError::Refused`] of the kind `Exhausted` when output was not taken for too
    /// long; [`GuestError::Gone`] when the connection ends before `end`.
    pub async fn next(&mut self) -> Result<Option<Response>, GuestError> {
        if self.ended {
            return Ok(None);
        }
        let error = match self.inner.next().await {
            Some(Ok(v1::AttachResponse { what: Some(what) })) => {
                self.ended = matches!(what, Response::End(_));
                return Ok(Some(what));
            }
            Some(Ok(v1::AttachResponse { what: None })) => {
                GuestError::Protocol { call: CALL, violation: "an answer without content" }
            }
            Some(Err(status)) => GuestError::from_status(CALL, status),
            None => GuestError::Gone { call: CALL },
        };
        self.ended = true;
        Err(error)
    }
}

impl GuestClient {
    /// Attaches to a running container's streams, on a connection of its own: output from
    /// now on, and input if the container was made with it.
    ///
    /// # Errors
    ///
    /// [`GuestError::Refused`] when the container does not run; connection errors;
    /// [`GuestError::Deadline`] after [`ATTACH_DEADLINE`].
    pub async fn attach(&self, start: v1::AttachStart) -> Result<AttachSession, GuestError> {
        let mut calls = self.bulk().await?;
        let (sender, receiver) = mpsc::channel(INPUT_QUEUE);
        let input = AttachInput { sender };
        input.send(Request::Start(start)).await?;
        let end = Instant::now() + ATTACH_DEADLINE;
        let requests = ReceiverStream::new(receiver);
        let inner = within(CALL, ATTACH_DEADLINE, async move { calls.attach(requests).await }).await?;
        let mut responses = AttachResponses { inner, ended: false };
        let first = tokio::time::timeout_at(end, responses.next())
            .await
            .unwrap_or(Err(GuestError::Deadline { call: CALL }))?;
        match first {
            Some(Response::Started(started)) => Ok(AttachSession { started, input, responses }),
            Some(Response::Stdout(_) | Response::Stderr(_) | Response::End(_)) | None => {
                Err(GuestError::Protocol { call: CALL, violation: "no `started` at first" })
            }
        }
    }
}
