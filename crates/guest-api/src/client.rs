//! The host's side of the guest protocol: dialling, the handshake, deadlines and
//! bounds. The guest is hostile: every message is bounded, every wait ends, and
//! nothing that it says is believed beyond its type.
//!
//! A connection is dialled once and never again behind the caller's back: when
//! it is lost, calls in flight and later ones fail with [`GuestError::Gone`].

mod attach;
mod error;
mod exec;
mod forward;
mod log;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::transport::{Channel, Endpoint};

use crate::v1::guest_client::GuestClient as Calls;
use crate::{OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION, v1};

pub use attach::{ATTACH_DEADLINE, AttachInput, AttachResponses, AttachSession};
pub use error::{GuestError, Refusal};
pub use exec::{ExecInput, ExecOutput, ExecResponses, ExecSession};
pub use forward::{PORT_FORWARD_DEADLINE, PortForward, PortForwardInput, PortForwardOutput};
pub use log::{LogAcknowledger, LogReader};

/// The largest message in either direction, in bytes.
pub const MESSAGE_LIMIT_BYTES: usize = 4 << 20;

/// How long one attempt at dialling and shaking hands may take.
pub const ATTEMPT_DEADLINE: Duration = Duration::from_secs(5);
/// The deadline of SetupPod.
pub const SETUP_POD_DEADLINE: Duration = Duration::from_secs(30);
/// The deadline of CreateContainer; mounting many layers on a slow VM is the long part.
pub const CREATE_DEADLINE: Duration = Duration::from_secs(120);
/// The deadline of StartContainer; the guest gives the set-up of the process half a minute, as the start
/// itself.
pub const START_DEADLINE: Duration = Duration::from_secs(90);
/// The deadline of SignalContainer.
pub const SIGNAL_DEADLINE: Duration = Duration::from_secs(10);
/// The deadline of DeleteContainer; removing a large writable layer is the long part.
pub const DELETE_DEADLINE: Duration = Duration::from_secs(120);
/// The deadline of ListContainers, and of the first answer of Events.
pub const LIST_DEADLINE: Duration = Duration::from_secs(10);
/// The deadline of UpdateContainer.
pub const UPDATE_DEADLINE: Duration = Duration::from_secs(10);
/// The deadline of Stats; measuring writable layers is the long part.
pub const STATS_DEADLINE: Duration = Duration::from_secs(15);
/// The deadline of ReopenLog.
pub const REOPEN_DEADLINE: Duration = Duration::from_secs(10);
/// From Exec's request to its `started`.
pub const EXEC_START_DEADLINE: Duration = Duration::from_secs(30);
/// What Shutdown gets beyond its grace.
pub const SHUTDOWN_MARGIN: Duration = Duration::from_secs(30);
/// What an exec with a timeout gets beyond it, for the guest to kill it and say so.
pub const EXEC_TIMEOUT_MARGIN: Duration = Duration::from_secs(10);

const FIRST_RETRY: Duration = Duration::from_millis(1);
/// So often before the pauses grow: a guest on the node's own kernel is there within that time, and
/// a caller waits for it.
const QUICK_RETRIES: u32 = 16;
const LAST_RETRY: Duration = Duration::from_millis(250);
/// No text of the handshake is longer than this; all of them are names.
const HELLO_TEXT_LIMIT: usize = 256;

/// A byte stream to a guest.
pub trait GuestStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> GuestStream for T {}

/// Dials one guest; a machine driver behind it knows how.
#[async_trait]
pub trait Connect: Send + Sync + 'static {
    /// A fresh byte stream each time.
    ///
    /// # Errors
    ///
    /// When there is nothing to connect to; the caller may try again.
    async fn connect(&self) -> io::Result<Box<dyn GuestStream>>;
}

/// Dials a guest and shakes hands, trying again until `deadline` has passed: a
/// guest that boots is not there at first.
///
/// # Errors
///
/// [`GuestError::Version`] at once, when the guest speaks no version that this
/// build does; otherwise the error of the last attempt.
pub async fn connect(connector: Arc<dyn Connect>, deadline: Duration) -> Result<GuestClient, GuestError> {
    let end = Instant::now() + deadline;
    let (mut pause, mut attempts) = (FIRST_RETRY, 0_u32);
    loop {
        attempts += 1;
        let remaining = end.saturating_duration_since(Instant::now());
        let attempt = dial(&connector, remaining.min(ATTEMPT_DEADLINE)).await;
        let error = match attempt {
            Ok((calls, hello)) => {
                return Ok(GuestClient { calls, hello: Arc::new(hello), connector });
            }
            Err(error) => error,
        };
        if !error.may_pass() || Instant::now() + pause >= end {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        if attempts > QUICK_RETRIES {
            pause = (pause * 2).min(LAST_RETRY);
        }
    }
}

/// One connection with its handshake.
async fn dial(
    connector: &Arc<dyn Connect>,
    deadline: Duration,
) -> Result<(Calls<Channel>, v1::HelloResponse), GuestError> {
    let attempt = async {
        let stream = connector.connect().await.map_err(|source| GuestError::Connect { source })?;
        let mut calls = client_over(stream).await?;
        let request = v1::HelloRequest {
            protocol_version: PROTOCOL_VERSION,
            client_version: env!("CARGO_PKG_VERSION").to_owned(),
            time_nanos: now_nanos(),
        };
        let hello = calls
            .hello(request)
            .await
            .map_err(|status| GuestError::from_status("Hello", status))?
            .into_inner();
        check_hello(&hello)?;
        Ok((calls, hello))
    };
    tokio::time::timeout(deadline, attempt).await.unwrap_or(Err(GuestError::Deadline { call: "Hello" }))
}

/// The clock, or 0 where it is before the epoch.
fn now_nanos() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(0)
}

/// gRPC over a stream that is there already. The channel would dial again by
/// itself; it is given this one stream and no other.
async fn client_over(stream: Box<dyn GuestStream>) -> Result<Calls<Channel>, GuestError> {
    let once = Mutex::new(Some(TokioIo::new(stream)));
    let connector = tower::service_fn(move |_| {
        let stream = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        std::future::ready(stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
    });
    let channel = Endpoint::from_static("http://guest")
        .initial_stream_window_size(256 << 10)
        .initial_connection_window_size(1 << 20)
        .connect_with_connector(connector)
        .await
        .map_err(|source| GuestError::Handshake { source: Box::new(source) })?;
    Ok(Calls::new(channel)
        .max_decoding_message_size(MESSAGE_LIMIT_BYTES)
        .max_encoding_message_size(MESSAGE_LIMIT_BYTES))
}

fn check_hello(hello: &v1::HelloResponse) -> Result<(), GuestError> {
    let supported = OLDEST_PROTOCOL_VERSION..=PROTOCOL_VERSION;
    if !supported.contains(&hello.protocol_version) {
        return Err(GuestError::Version {
            guest: hello.protocol_version,
            oldest: OLDEST_PROTOCOL_VERSION,
            newest: PROTOCOL_VERSION,
        });
    }
    let texts =
        [&hello.guest_version, &hello.boot_id, &hello.kernel_release, &hello.architecture, &hello.pod_id];
    if texts.iter().any(|text| text.len() > HELLO_TEXT_LIMIT) {
        return Err(GuestError::Protocol { call: "Hello", violation: "a text is too long" });
    }
    Ok(())
}

/// A guest that has shaken hands. Clones share the control connection, which
/// closes when the last of them is dropped.
#[derive(Clone)]
pub struct GuestClient {
    calls: Calls<Channel>,
    hello: Arc<v1::HelloResponse>,
    connector: Arc<dyn Connect>,
}

impl std::fmt::Debug for GuestClient {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("GuestClient").field("hello", &self.hello).finish_non_exhaustive()
    }
}

/// Every unary call is the same but for its name, types and deadline.
macro_rules! control_call {
    ($(#[$doc:meta])* $method:ident, $name:literal, $request:ident -> $response:ident, $deadline:expr) => {
        $(#[$doc])*
        ///
        /// # Errors
        ///
        /// [`GuestError::Refused`] with the guest's reason; [`GuestError::Gone`]
        /// when the connection is lost; [`GuestError::Deadline`].
        pub async fn $method(&self, request: v1::$request) -> Result<v1::$response, GuestError> {
            let mut calls = self.calls.clone();
            within($name, $deadline, async move { calls.$method(request).await }).await
        }
    };
}

impl GuestClient {
    /// What the guest said of itself in the handshake.
    pub fn hello(&self) -> &v1::HelloResponse {
        &self.hello
    }

    control_call!(
        /// Prepares what the pod's containers share. May be repeated.
        setup_pod, "SetupPod", SetupPodRequest -> SetupPodResponse, SETUP_POD_DEADLINE
    );
    control_call!(
        /// Makes a container, all but its process.
        create_container, "CreateContainer",
        CreateContainerRequest -> CreateContainerResponse, CREATE_DEADLINE
    );
    control_call!(
        /// Sets a created container's process up and runs it. May be repeated.
        start_container, "StartContainer",
        StartContainerRequest -> StartContainerResponse, START_DEADLINE
    );
    control_call!(
        /// Sends a signal to a container's first process or all of them. May be repeated.
        signal_container, "SignalContainer",
        SignalContainerRequest -> SignalContainerResponse, SIGNAL_DEADLINE
    );
    control_call!(
        /// Frees what a container holds that does not run. May be repeated.
        delete_container, "DeleteContainer",
        DeleteContainerRequest -> DeleteContainerResponse, DELETE_DEADLINE
    );
    control_call!(
        /// Opens a container's log file anew. May be repeated.
        reopen_log, "ReopenLog", ReopenLogRequest -> ReopenLogResponse, REOPEN_DEADLINE
    );

    control_call!(
        /// Changes the limits of a container that has not ended. May be repeated.
        update_container, "UpdateContainer",
        UpdateContainerRequest -> UpdateContainerResponse, UPDATE_DEADLINE
    );

    control_call!(
        /// What the pod and its containers use now. The guest's figures: one that is hostile
        /// may say anything.
        stats, "Stats", StatsRequest -> StatsResponse, STATS_DEADLINE
    );

    /// The state of every container.
    ///
    /// # Errors
    ///
    /// [`GuestError::Gone`] when the connection is lost; [`GuestError::Deadline`].
    pub async fn list_containers(&self) -> Result<v1::ListContainersResponse, GuestError> {
        let mut calls = self.calls.clone();
        within("ListContainers", LIST_DEADLINE, async move {
            calls.list_containers(v1::ListContainersRequest {}).await
        })
        .await
    }

    /// Ends every container (SIGKILL after `grace`) and then the guest. May be
    /// repeated; a guest that has gone meanwhile answers [`GuestError::Gone`].
    ///
    /// # Errors
    ///
    /// As above, and [`GuestError::Deadline`] after the grace and [`SHUTDOWN_MARGIN`].
    pub async fn shutdown(&self, grace: Duration) -> Result<(), GuestError> {
        let mut calls = self.calls.clone();
        let grace_millis = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let deadline = grace.saturating_add(SHUTDOWN_MARGIN);
        within(
            "Shutdown",
            deadline,
            async move { calls.shutdown(v1::ShutdownRequest { grace_millis }).await },
        )
        .await
        .map(|_: v1::ShutdownResponse| ())
    }

    /// Events with a sequence number higher than `after`, as they happen. The
    /// stream ends with [`GuestError::Gone`] when the guest does.
    ///
    /// # Errors
    ///
    /// As [`GuestClient::list_containers`].
    pub async fn events(&self, after: u64) -> Result<Events, GuestError> {
        let mut calls = self.calls.clone();
        let inner =
            within("Events", LIST_DEADLINE, async move { calls.events(v1::EventsRequest { after }).await })
                .await?;
        Ok(Events { inner, ended: false })
    }

    /// A connection of its own, for a bulk stream.
    async fn bulk(&self) -> Result<Calls<Channel>, GuestError> {
        let (calls, hello) = dial(&self.connector, ATTEMPT_DEADLINE).await?;
        if hello.boot_id != self.hello.boot_id || hello.pod_id != self.hello.pod_id {
            // Another guest answers where this one was.
            return Err(GuestError::Gone { call: "Hello" });
        }
        Ok(calls)
    }
}

async fn within<T>(
    call: &'static str,
    deadline: Duration,
    answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, GuestError> {
    match tokio::time::timeout(deadline, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(GuestError::from_status(call, status)),
        Err(_) => Err(GuestError::Deadline { call }),
    }
}

/// The guest's events; see [`GuestClient::events`].
pub struct Events {
    inner: tonic::Streaming<v1::Event>,
    ended: bool,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Stream for Events {
    type Item = Result<v1::Event, GuestError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let item = std::task::ready!(Pin::new(&mut self.inner).poll_next(context));
        Poll::Ready(match item {
            Some(Ok(event)) => Some(Ok(event)),
            // A guest has no reason to end this stream but its own end.
            None => {
                self.ended = true;
                Some(Err(GuestError::Gone { call: "Events" }))
            }
            Some(Err(status)) => {
                self.ended = true;
                Some(Err(GuestError::from_status("Events", status)))
            }
        })
    }
}
