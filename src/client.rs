//! Clients of a daemon's socket: for the command line, and for tests.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::admin::v1::admin_client::AdminClient;
use crate::cri::v1::image_service_client::ImageServiceClient;
use crate::cri::v1::runtime_service_client::RuntimeServiceClient;
use crate::service::MESSAGE_LIMIT;

/// How long a daemon may take to accept a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// No daemon answers on the socket.
#[derive(Debug, thiserror::Error)]
#[error("no kina answers on {socket}")]
pub struct ConnectError {
    /// The socket.
    pub socket: PathBuf,
    /// Why.
    #[source]
    pub source: Unreachable,
}

/// Why there is no connection, in the operating system's words where it has some:
/// tonic's around them say nothing.
#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    /// The socket is not there, or nobody listens on it.
    #[error("{0}; is the daemon running, and is this its socket? (`kina serve`, --socket)")]
    Io(std::io::Error),
    /// Anything else.
    #[error(transparent)]
    Transport(tonic::transport::Error),
}

impl From<tonic::transport::Error> for Unreachable {
    fn from(error: tonic::transport::Error) -> Self {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(current) = cause {
            if let Some(found) = current.downcast_ref::<std::io::Error>()
                && let Some(code) = found.raw_os_error()
            {
                return Self::Io(std::io::Error::from_raw_os_error(code));
            }
            cause = current.source();
        }
        Self::Transport(error)
    }
}

/// Clients of all that a daemon serves, on one connection.
#[derive(Clone, Debug)]
pub struct Client {
    /// CRI: pods and containers.
    pub runtime: RuntimeServiceClient<Channel>,
    /// CRI: images.
    pub images: ImageServiceClient<Channel>,
    /// The rest.
    pub admin: AdminClient<Channel>,
}

impl Client {
    /// Connects to the daemon on a socket.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn connect(socket: impl Into<PathBuf>) -> Result<Self, ConnectError> {
        let socket = socket.into();
        let channel =
            channel(&socket).await.map_err(|error| ConnectError { socket, source: error.into() })?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_LIMIT)
                .max_encoding_message_size(MESSAGE_LIMIT),
            images: ImageServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_LIMIT)
                .max_encoding_message_size(MESSAGE_LIMIT),
            admin: AdminClient::new(channel),
        })
    }
}

async fn channel(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    let socket = socket.to_owned();
    let connect = move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    };
    // The address only fills the `:authority` of requests.
    Endpoint::from_static("http://localhost")
        .connect_timeout(CONNECT_DEADLINE)
        .connect_with_connector(service_fn(connect))
        .await
}
