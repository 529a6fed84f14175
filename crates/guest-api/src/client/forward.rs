use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::{GuestClient, GuestError, within};
use crate::v1;
use crate::v1::port_forward_request::What as Request;
use crate::v1::port_forward_response::What as Response;

/// From PortForward's request to the connection in the pod.
pub const PORT_FORWARD_DEADLINE: Duration = Duration::from_secs(30);

/// Messages on their way to the guest.
const INPUT_QUEUE: usize = 4;
/// The largest piece of data in one message, in bytes.
const PIECE_BYTES: usize = 32 << 10;
const CALL: &str = "PortForward";

/// A connection to a port in the pod; see [`GuestClient::port_forward`].
#[derive(Debug)]
pub struct PortForward {
    /// Towards the pod.
    pub input: PortForwardInput,
    /// From the pod. Dropping it closes the connection, both ways.
    pub output: PortForwardOutput,
}

/// What goes to the pod. Every method waits while the pod does not read, and fails
/// with [`GuestError::Gone`] once the connection has ended. Dropping it without
/// [`PortForwardInput::end`] closes the connection, both ways.
#[derive(Debug)]
pub struct PortForwardInput {
    sender: mpsc::Sender<v1::PortForwardRequest>,
}

/// What comes from the pod.
pub struct PortForwardOutput {
    inner: tonic::Streaming<v1::PortForwardResponse>,
    ended: bool,
}

impl std::fmt::Debug for PortForwardOutput {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("PortForwardOutput").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl PortForwardInput {
    /// Sends data, in pieces.
    ///
    /// # Errors
    ///
    /// [`GuestError::Gone`] once the connection has ended.
    pub async fn send(&self, bytes: &[u8]) -> Result<(), GuestError> {
        for piece in bytes.chunks(PIECE_BYTES) {
            self.request(Request::Data(piece.to_vec())).await?;
        }
        Ok(())
    }

    /// Says that no more data will come; what comes from the pod goes on.
    ///
    /// # Errors
    ///
    /// [`GuestError::Gone`] once the connection has ended.
    pub async fn end(&self) -> Result<(), GuestError> {
        self.request(Request::End(v1::Empty {})).await
    }

    async fn request(&self, what: Request) -> Result<(), GuestError> {
        self.sender
            .send(v1::PortForwardRequest { what: Some(what) })
            .await
            .map_err(|_| GuestError::Gone { call: CALL })
    }
}

impl PortForwardOutput {
    /// The next data; `None` once the pod has said that no more will come.
    ///
    /// # Errors
    ///
    /// [`GuestError::Refused`] when the pod has broken the connection;
    /// [`GuestError::Gone`] when the guest is lost.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, GuestError> {
        if self.ended {
            return Ok(None);
        }
        let error = match self.inner.next().await {
            Some(Ok(v1::PortForwardResponse { what: Some(Response::Data(bytes)) })) => {
                return Ok(Some(bytes));
            }
            Some(Ok(v1::PortForwardResponse { what: Some(Response::End(_)) })) => {
                self.ended = true;
                return Ok(None);
            }
            Some(Ok(v1::PortForwardResponse { what: None })) => {
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
    /// Connects to a TCP port on the pod's loopback, on a connection of its own.
    ///
    /// # Errors
    ///
    /// [`GuestError::Refused`] of the kind `WrongState` when nothing there takes the
    /// connection; connection errors; [`GuestError::Deadline`] after
    /// [`PORT_FORWARD_DEADLINE`].
    pub async fn port_forward(&self, port: u16) -> Result<PortForward, GuestError> {
        let mut calls = self.bulk().await?;
        let (sender, receiver) = mpsc::channel(INPUT_QUEUE);
        let input = PortForwardInput { sender };
        input.request(Request::Start(v1::PortForwardStart { port: port.into() })).await?;
        let requests = ReceiverStream::new(receiver);
        let inner =
            within(CALL, PORT_FORWARD_DEADLINE, async move { calls.port_forward(requests).await }).await?;
        Ok(PortForward { input, output: PortForwardOutput { inner, ended: false } })
    }
}
