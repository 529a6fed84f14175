//! Exec, Attach and PortForward: URLs for their callers, and the server that these
//! lead to. Each session and each forwarded connection has a connection to the
//! pod's guest of its own, and ends with it.

mod forward;
mod session;

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use kina_guest_api::v1;
use kina_streaming::{
    Attach, Backend, BackendError, ByteStream, Config, Exec, PortForward, Request, Server, SessionIo,
    Streams, TlsFiles,
};
use tokio::net::TcpListener;

use crate::error::Error;
use crate::runtime::Runtime;

/// What is done to a container or pod, as errors name it.
const EXEC: &str = "run a command in it";
const ATTACH: &str = "attach to it";
const FORWARD: &str = "forward a port to it";

/// Where a streaming server is and what its URLs look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamingConfig {
    /// Where it listens; port 0 is any that is free.
    pub address: SocketAddr,
    /// What its URLs begin with; none is made of the address.
    pub base_url: Option<String>,
    /// Speak TLS, with these files.
    pub tls: Option<TlsFiles>,
}

/// A streaming server over a runtime. Each listener of the CRI has one whose URLs
/// its callers can reach. Clones are the same server.
#[derive(Clone)]
pub struct Streaming {
    server: Server,
    runtime: Runtime,
    base: Arc<str>,
}

impl Streaming {
    /// Listens, and serves until it is stopped.
    ///
    /// # Errors
    /// [`Error::Listen`] if the address cannot be had, [`Error::Streaming`] if the
    /// TLS files cannot be used.
    pub async fn start(config: StreamingConfig, runtime: Runtime) -> Result<Self, Error> {
        let StreamingConfig { address, base_url, tls } = config;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let guests = Arc::new(Guests { runtime: runtime.clone() });
        let server = Server::new(Config { tls, ..Config::default() }, guests)?;
        let refuse = |source| Error::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(refuse)?;
        let bound = listener.local_addr().map_err(refuse)?;
        let base = base_url.unwrap_or_else(|| format!("{scheme}://{bound}")).into();
        let serving = server.clone();
        tokio::spawn(async move { serving.serve(listener).await });
        Ok(Self { server, runtime, base })
    }

    /// What its URLs begin with.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Ends all sessions. Nothing is served after that.
    pub async fn stop(&self) {
        self.server.stop().await;
    }

    /// A URL that runs a command in a running container.
    ///
    /// # Errors
    /// [`Error::ContainerNotFound`], [`Error::ContainerState`] if it does not run,
    /// [`Error::Streaming`] if there can be no such streams.
    pub fn exec(&self, container: &str, command: Vec<String>, streams: Streams) -> Result<String, Error> {
        let (container, ..) = self.runtime.running(container, EXEC)?;
        self.url(Request::Exec(Exec { container: container.to_string(), command, streams }))
    }

    /// A URL that attaches to a running container, whatever streams it was made with:
    /// the kubelet passes on what its client wants, and the CRI's other runtimes refuse
    /// none of it. Input to a container made without is dropped, and whether there is a
    /// terminal is the container's affair.
    ///
    /// # Errors
    /// As [`Streaming::exec`].
    pub fn attach(&self, container: &str, streams: Streams) -> Result<String, Error> {
        let (container, ..) = self.runtime.running(container, ATTACH)?;
        self.url(Request::Attach(Attach { container: container.to_string(), streams }))
    }

    /// A URL that forwards connections to a ready pod. No ports are those that the
    /// client names.
    ///
    /// # Errors
    /// [`Error::PodNotFound`], [`Error::PodState`] if it is not ready.
    pub fn port_forward(&self, pod: &str, ports: Vec<u16>) -> Result<String, Error> {
        let (pod, _) = self.runtime.ready(pod, FORWARD)?;
        self.url(Request::PortForward(PortForward { pod: pod.to_string(), ports }))
    }

    fn url(&self, request: Request) -> Result<String, Error> {
        Ok(self.server.url_for(&self.base, request)?)
    }
}

/// The guests of the runtime's pods, as the server sees them.
struct Guests {
    runtime: Runtime,
}

impl Guests {
    /// Counts a session while it goes on, and how it ends.
    async fn counted<T>(
        &self,
        kind: &'static str,
        session: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, BackendError> {
        let counted = self.runtime.metrics().session(kind);
        let result = session.await;
        counted.ended(result.is_ok());
        Ok(result?)
    }
}

#[async_trait]
impl Backend for Guests {
    async fn exec(&self, exec: &Exec, io: SessionIo) -> Result<i32, BackendError> {
        let session = async {
            let (container, pod, guest) = self.runtime.running(&exec.container, EXEC)?;
            let start = v1::ExecStart {
                container_id: container.to_string(),
                args: exec.command.clone(),
                terminal: exec.streams.tty,
                stdin: exec.streams.stdin,
                // The client says it, and whatever it becomes, once it is there.
                size: None,
                timeout_millis: 0,
            };
            let code = async { session::exec(guest.exec(start).await?, io).await };
            code.await.map_err(|source| Error::Guest { pod, source })
        };
        self.counted("exec", session).await
    }

    async fn attach(&self, attach: &Attach, io: SessionIo) -> Result<(), BackendError> {
        let session = async {
            let (container, pod, guest) = self.runtime.running(&attach.container, ATTACH)?;
            let Streams { stdin, stdout, stderr, tty: _ } = attach.streams;
            let start =
                v1::AttachStart { container_id: container.to_string(), stdin, stdout, stderr, size: None };
            let end = async { session::attach(guest.attach(start).await?, io).await };
            end.await.map_err(|source| Error::Guest { pod, source })
        };
        self.counted("attach", session).await
    }

    async fn port_forward(&self, pod: &str, port: u16, stream: ByteStream) -> Result<(), BackendError> {
        let session = async {
            let (pod, guest) = self.runtime.ready(pod, FORWARD)?;
            let end = async { forward::run(guest.port_forward(port).await?, stream).await };
            end.await.map_err(|source| Error::Guest { pod, source })
        };
        self.counted("port-forward", session).await
    }
}
