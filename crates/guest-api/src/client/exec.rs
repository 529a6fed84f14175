use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::{EXEC_START_DEADLINE, EXEC_TIMEOUT_MARGIN, GuestClient, GuestError, within};
use crate::v1;
use crate::v1::exec_request::What as Request;
use crate::v1::exec_response::What as Response;

/// Messages on their way to the guest that an [`ExecInput`] holds.
const INPUT_QUEUE: usize = 8;
/// The largest piece of standard input in one message, in bytes.
const INPUT_PIECE_BYTES: usize = 32 << 10;
const CALL: &str = "Exec";

/// A process in a container, running. Dropping `responses` kills it; dropping
/// `input` closes its standard input.
#[derive(Debug)]
pub struct ExecSession {
    /// The process's id, as the guest sees it.
    pub pid: u32,
    /// Towards the process.
    pub input: ExecInput,
    /// From the process.
    pub responses: ExecResponses,
}

/// What goes to an exec's process. Every method waits while the guest does not
/// read, and fails with [`GuestError::Gone`] once the exec has ended.
#[derive(Clone, Debug)]
pub struct ExecInput {
    sender: mpsc::Sender<v1::ExecRequest>,
}

/// What comes from an exec's process, in order.
pub struct ExecResponses {
    inner: tonic::Streaming<v1::ExecResponse>,
    ended: bool,
}

/// What [`GuestClient::exec_sync`] collects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// The exit code, 0 to 255; a signal's number plus 128.
    pub code: i32,
    /// Standard output, as far as it fits.
    pub stdout: Vec<u8>,
    /// Standard error, as far as it fits.
    pub stderr: Vec<u8>,
    /// Output beyond the limit was dropped.
    pub truncated: bool,
    /// The process was killed for taking too long.
    pub timed_out: bool,
}

impl std::fmt::Debug for ExecResponses {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ExecResponses").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl ExecInput {
    /// Writes to standard input, in pieces.
    ///
    /// # Errors
    ///
    /// [`GuestError::Gone`] once the exec has ended.
    pub async fn stdin(&self, bytes: &[u8]) -> Result<(), GuestError> {
        for piece in bytes.chunks(INPUT_PIECE_BYTES) {
            self.send(Request::Stdin(piece.to_vec())).await?;
        }
        Ok(())
    }

    /// Closes standard input.
    ///
    /// # Errors
    ///
    /// [`GuestError::Gone`] once the exec has ended.
    pub async fn stdin_end(&self) -> Result<(), GuestError> {
        self.send(Request::StdinEnd(v1::Empty {})).await
    }

    /// Changes the terminal's size; without a terminal nothing happens.
    ///
    /// # Errors
    ///
    /// [`GuestError::Gone`] once the exec has ended.
    pub async fn resize(&self, columns: u32, rows: u32) -> Result<(), GuestError> {
        self.send(Request::Resize(v1::WindowSize { columns, rows })).await
    }

    /// Sends a signal, a number of the guest's kernel, to the process.
    ///
    /// # Errors
    ///
    /// [`GuestError::Gone`] once the exec has ended.
    pub async fn signal(&self, signal: u32) -> Result<(), GuestError> {
        self.send(Request::Signal(signal)).await
    }

    async fn send(&self, what: Request) -> Result<(), GuestError> {
        self.sender
            .send(v1::ExecRequest { what: Some(what) })
            .await
            .map_err(|_| GuestError::Gone { call: CALL })
    }
}

impl ExecResponses {
    /// The next piece of output, then `exited`, then `None`.
    ///
    /// # Errors
    ///
    /// [`GuestError::Gone`] when the connection ends before `exited`.
    pub async fn next(&mut self) -> Result<Option<Response>, GuestError> {
        if self.ended {
            return Ok(None);
        }
        match self.inner.next().await {
            Some(Ok(v1::ExecResponse { what: Some(what) })) => {
                self.ended = matches!(what, Response::Exited(_));
                Ok(Some(what))
            }
            Some(Ok(v1::ExecResponse { what: None })) => {
                self.ended = true;
                Err(GuestError::Protocol { call: CALL, violation: "an answer without content" })
            }
            Some(Err(status)) => {
                self.ended = true;
                Err(GuestError::from_status(CALL, status))
            }
            None => {
                self.ended = true;
                Err(GuestError::Gone { call: CALL })
            }
        }
    }
}

impl GuestClient {
    /// Runs a process in a running container, on a connection of its own, and
    /// returns once it runs.
    ///
    /// # Errors
    ///
    /// [`GuestError::Refused`] when the container does not run or the program
    /// cannot; connection errors; [`GuestError::Deadline`] after
    /// [`EXEC_START_DEADLINE`].
    pub async fn exec(&self, start: v1::ExecStart) -> Result<ExecSession, GuestError> {
        let mut calls = self.bulk().await?;
        let (sender, receiver) = mpsc::channel(INPUT_QUEUE);
        let input = ExecInput { sender };
        input.send(Request::Start(start)).await?;
        let end = Instant::now() + EXEC_START_DEADLINE;
        let inner =
            within(CALL, EXEC_START_DEADLINE, async move { calls.exec(ReceiverStream::new(receiver)).await })
                .await?;
        let mut responses = ExecResponses { inner, ended: false };
        let first = tokio::time::timeout_at(end, responses.next())
            .await
            .unwrap_or(Err(GuestError::Deadline { call: CALL }))?;
        match first {
            Some(Response::Started(started)) => Ok(ExecSession { pid: started.pid, input, responses }),
            Some(Response::Stdout(_) | Response::Stderr(_) | Response::Exited(_)) | None => {
                Err(GuestError::Protocol { call: CALL, violation: "no `started` at first" })
            }
        }
    }

    /// Runs a process to its end and collects at most `max_output` bytes of
    /// each stream of its output. Without a timeout it runs until it ends by
    /// itself or the caller drops the future, which kills it.
    ///
    /// # Errors
    ///
    /// As [`GuestClient::exec`]; [`GuestError::Deadline`] only when the guest
    /// does not keep the timeout: one that does gives `timed_out`.
    pub async fn exec_sync(
        &self,
        container: &str,
        args: Vec<String>,
        timeout: Option<Duration>,
        max_output: usize,
    ) -> Result<ExecOutput, GuestError> {
        let timeout_millis =
            timeout.map_or(0, |timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1));
        let session = self
            .exec(v1::ExecStart {
                container_id: container.to_owned(),
                args,
                timeout_millis,
                ..v1::ExecStart::default()
            })
            .await?;
        let end = timeout
            .and_then(|timeout| timeout.checked_add(EXEC_TIMEOUT_MARGIN))
            .and_then(|timeout| Instant::now().checked_add(timeout));
        let collected = collect(session.responses, max_output);
        match end {
            Some(end) => tokio::time::timeout_at(end, collected)
                .await
                .unwrap_or(Err(GuestError::Deadline { call: CALL })),
            None => collected.await,
        }
    }
}

/// Keeps what still fits; whether something did not.
fn keep(stream: &mut Vec<u8>, bytes: &[u8], limit: usize) -> bool {
    let kept = bytes.len().min(limit.saturating_sub(stream.len()));
    stream.extend_from_slice(&bytes[..kept]);
    kept < bytes.len()
}

async fn collect(mut responses: ExecResponses, limit: usize) -> Result<ExecOutput, GuestError> {
    let mut output =
        ExecOutput { code: 0, stdout: Vec::new(), stderr: Vec::new(), truncated: false, timed_out: false };
    loop {
        match responses.next().await? {
            Some(Response::Stdout(bytes)) => output.truncated |= keep(&mut output.stdout, &bytes, limit),
            Some(Response::Stderr(bytes)) => output.truncated |= keep(&mut output.stderr, &bytes, limit),
            Some(Response::Exited(exited)) => {
                output.code = exited.code;
                output.timed_out = exited.timed_out;
                return Ok(output);
            }
            Some(Response::Started(_)) => {
                return Err(GuestError::Protocol { call: CALL, violation: "`started` twice" });
            }
            None => return Err(GuestError::Gone { call: CALL }),
        }
    }
}
