//! HTTP: from a connection to an upgraded session.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use kina_spdy::{Connection, Limits};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backend::Backend;
use crate::command;
use crate::config::Config;
use crate::error::Error;
use crate::forward;
use crate::negotiate::{self, ACCEPTED_PROTOCOLS, Choice, STREAM_PROTOCOL, TUNNEL, Upgrade};
use crate::request::{PortForward, Request};
use crate::session::Command;
use crate::status::{Outcome, chain};
use crate::token::{Tokens, parse_path};
use crate::websocket::{Socket, Times, tunnel_pipe};

type Response = hyper::Response<Full<Bytes>>;

/// Ports that one WebSocket forwards, each with two channels: as many as there are ASCII characters for,
/// which base64 protocols begin messages with.
const PORTS: usize = 32;
/// How long the listener rests after it failed.
const REST: Duration = Duration::from_millis(100);

/// The streaming server. Clones are the same server.
#[derive(Clone)]
pub struct Server {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    tls: Option<TlsAcceptor>,
    backend: Arc<dyn Backend>,
    tokens: Tokens,
    connections: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl fmt::Debug for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Server").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

impl Server {
    /// A server that listens nowhere yet.
    ///
    /// # Errors
    ///
    /// If the TLS files cannot be used.
    pub fn new(config: Config, backend: Arc<dyn Backend>) -> Result<Self, Error> {
        let tls = config.tls.as_ref().map(|files| files.load().map(TlsAcceptor::from)).transpose()?;
        let inner = Inner {
            tls,
            backend,
            tokens: Tokens::new(config.token_lifetime, config.tokens),
            connections: Arc::new(Semaphore::new(config.connections)),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            config,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// A URL below `base`, such as `http://10.0.0.1:10250`, that does what is requested: once, and only soon.
    ///
    /// # Errors
    ///
    /// If the streams contradict each other, or too many URLs wait to be used.
    pub fn url_for(&self, base: &str, request: Request) -> Result<String, Error> {
        match &request {
            Request::Exec(exec) => exec.streams.check()?,
            Request::Attach(attach) => attach.streams.check()?,
            Request::PortForward(_) => {}
        }
        let kind = request.kind().name();
        let token = self.inner.tokens.issue(request)?;
        Ok(format!("{}/{kind}/{token}", base.trim_end_matches('/')))
    }

    /// Serves a listener until the server is stopped.
    pub async fn serve(&self, listener: TcpListener) {
        self.inner.stop.run_until_cancelled(self.accept(listener)).await;
    }

    async fn accept(&self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    // Keystrokes should not wait for each other.
                    let _: Result<_, _> = stream.set_nodelay(true);
                    self.serve_stream(stream).await;
                }
                Err(error) => {
                    tracing::warn!(error = chain(&Error::Accept(error)), "the streaming server goes on");
                    tokio::time::sleep(REST).await;
                }
            }
        }
    }

    /// Serves one connection from elsewhere, in a task of its own. It waits if there are too many.
    pub async fn serve_stream(&self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        if let Ok(permit) = self.inner.connections.clone().acquire_owned().await {
            self.start(stream, permit);
        }
    }

    /// Ends all sessions, and waits until they have gone. Nothing is served after that.
    pub async fn stop(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// Connections that are served.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.inner.config.connections - self.inner.connections.available_permits()
    }

    fn start(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        permit: OwnedSemaphorePermit,
    ) {
        let inner = self.inner.clone();
        let permit = Arc::new(permit);
        let connection = async move {
            let Some(tls) = inner.tls.clone() else { return inner.http(stream, permit).await };
            match timeout(inner.config.request_timeout, tls.accept(stream)).await {
                Ok(Ok(stream)) => inner.http(stream, permit).await,
                Ok(Err(error)) => tracing::debug!(%error, "a streaming client failed to speak TLS"),
                Err(_) => tracing::debug!("a streaming client did not speak TLS in time"),
            }
        };
        let stop = self.inner.stop.clone();
        self.inner.tasks.spawn(async move {
            stop.run_until_cancelled(connection).await;
        });
    }
}

impl Inner {
    async fn http(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        permit: Arc<OwnedSemaphorePermit>,
    ) {
        let timeout = self.config.request_timeout;
        let service = service_fn(move |request| {
            let response = self.respond(request, &permit);
            async move { Ok::<_, Infallible>(response) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(timeout)
            .max_buf_size(64 << 10)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "a streaming client's connection failed");
        }
    }

    fn respond(
        self: &Arc<Self>,
        request: hyper::Request<Incoming>,
        permit: &Arc<OwnedSemaphorePermit>,
    ) -> Response {
        let Some((kind, token)) = parse_path(request.uri().path()) else {
            return text(StatusCode::NOT_FOUND, "there is nothing here");
        };
        if request.method() != Method::GET && request.method() != Method::POST {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "use GET or POST");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST"));
            return response;
        }
        let Some(wanted) = self.tokens.redeem(kind, token) else {
            let message =
                "this URL is unknown, was used already or is too old; ask the runtime for a new one";
            return text(StatusCode::NOT_FOUND, message);
        };
        match negotiate::upgrade(request.headers()) {
            Some(Upgrade::Spdy) => self.spdy(request, wanted, permit.clone()),
            Some(Upgrade::WebSocket) => self.websocket(request, wanted, permit.clone()),
            None => text(StatusCode::BAD_REQUEST, "ask for an upgrade to SPDY/3.1 or WebSocket"),
        }
    }

    fn spdy(
        self: &Arc<Self>,
        mut request: hyper::Request<Incoming>,
        wanted: Request,
        permit: Arc<OwnedSemaphorePermit>,
    ) -> Response {
        let known = match wanted {
            Request::Exec(_) | Request::Attach(_) => negotiate::COMMAND_OVER_SPDY,
            Request::PortForward(_) => negotiate::FORWARD_OVER_SPDY,
        };
        let protocol = match negotiate::spdy_protocol(request.headers(), known) {
            Choice::Agreed(protocol) => protocol,
            Choice::Unnamed => {
                let message = format!("the header {STREAM_PROTOCOL} is missing; name one of {known:?}");
                return text(StatusCode::BAD_REQUEST, message);
            }
            Choice::Nothing => return no_protocol(known),
        };
        let upgrade = hyper::upgrade::on(&mut request);
        let inner = self.clone();
        self.spawn(permit, async move {
            let Ok(upgraded) = upgrade.await else { return };
            let connection = Connection::server(TokioIo::new(upgraded), inner.limits());
            match wanted {
                Request::Exec(exec) => inner.command(connection, Command::Exec(exec), protocol).await,
                Request::Attach(attach) => {
                    inner.command(connection, Command::Attach(attach), protocol).await;
                }
                Request::PortForward(forward) => inner.forward(connection, &forward).await,
            }
        });
        let mut response = switching("SPDY/3.1");
        response.headers_mut().insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
        response
    }

    fn limits(&self) -> Limits {
        Limits {
            idle_timeout: self.config.idle_timeout,
            ping_interval: Some(self.config.keepalive),
            ..Limits::default()
        }
    }

    async fn command(&self, connection: Connection, command: Command, protocol: &str) {
        let timeout = self.config.creation_timeout;
        report(&command, command::serve(connection, &*self.backend, &command, protocol, timeout).await);
    }

    async fn forward(&self, connection: Connection, forward: &PortForward) {
        forward::serve(connection, self.backend.clone(), &forward.pod, self.config.creation_timeout).await;
    }

    fn websocket(
        self: &Arc<Self>,
        mut request: hyper::Request<Incoming>,
        wanted: Request,
        permit: Arc<OwnedSemaphorePermit>,
    ) -> Response {
        let accept = match websocket_accept(request.headers()) {
            Ok(accept) => accept,
            Err(message) => return text(StatusCode::BAD_REQUEST, message),
        };
        let known = match wanted {
            Request::Exec(_) | Request::Attach(_) => negotiate::COMMAND_OVER_WEBSOCKET,
            Request::PortForward(_) => negotiate::FORWARD_OVER_WEBSOCKET,
        };
        let (protocol, named) = match negotiate::websocket_protocol(request.headers(), known) {
            Choice::Agreed(protocol) => (protocol, true),
            // Clients that name none speak the first one.
            Choice::Unnamed if matches!(wanted, Request::PortForward(_)) => ("v4.channel.k8s.io", false),
            Choice::Unnamed => ("channel.k8s.io", false),
            Choice::Nothing => return no_protocol(known),
        };
        let mut ports = Vec::new();
        if let Request::PortForward(forward) = &wanted
            && protocol != TUNNEL
        {
            ports = forward.ports.clone();
            if ports.is_empty() {
                match negotiate::query_ports(request.uri().query().unwrap_or_default()) {
                    Some(named) => ports = named,
                    None => return text(StatusCode::BAD_REQUEST, "a port in the query is no port"),
                }
            }
            if ports.is_empty() || ports.len() > PORTS {
                let message = format!("name 1 to {PORTS} ports in the query, such as ?port=80&port=443");
                return text(StatusCode::BAD_REQUEST, message);
            }
        }
        let upgrade = hyper::upgrade::on(&mut request);
        let inner = self.clone();
        self.spawn(permit, async move {
            let Ok(upgraded) = upgrade.await else { return };
            let times = Times { idle: inner.config.idle_timeout, keepalive: inner.config.keepalive };
            let socket = Socket::new(TokioIo::new(upgraded), times).await;
            let command = match wanted {
                Request::Exec(exec) => Command::Exec(exec),
                Request::Attach(attach) => Command::Attach(attach),
                Request::PortForward(forward) if protocol == TUNNEL => {
                    let (near, far) = tunnel_pipe();
                    let connection = Connection::server(far, inner.limits());
                    tokio::join!(socket.tunnel(near), inner.forward(connection, &forward));
                    return;
                }
                Request::PortForward(forward) => {
                    return socket.forward(&*inner.backend, &forward.pod, &ports, protocol).await;
                }
            };
            report(&command, socket.command(&*inner.backend, &command, protocol).await);
        });
        let mut response = switching("websocket");
        let headers = response.headers_mut();
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        if named {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
        }
        response
    }

    /// A session, which keeps its connection's permit and ends with the server.
    fn spawn(&self, permit: Arc<OwnedSemaphorePermit>, session: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(session).await;
            drop(permit);
        });
    }
}

fn report(command: &Command, outcome: Result<Outcome, &'static str>) {
    let container = match command {
        Command::Exec(exec) => &exec.container,
        Command::Attach(attach) => &attach.container,
    };
    match outcome {
        Ok(Outcome::Success | Outcome::Exit(_)) => {}
        Ok(Outcome::Failure(error)) => tracing::warn!(container, error, "a streaming session failed"),
        Err(reason) => tracing::debug!(container, reason, "a streaming session was cut"),
    }
}

fn websocket_accept(headers: &HeaderMap) -> Result<HeaderValue, &'static str> {
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err("only version 13 of WebSocket is spoken");
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or("the header Sec-WebSocket-Key is missing")?;
    HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(|_| "the Sec-WebSocket-Key is wrong")
}

fn switching(to: &'static str) -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(to));
    response
}

fn no_protocol(known: &[&'static str]) -> Response {
    let message = format!("none of the client's protocols is known here; these are: {known:?}");
    let mut response = text(StatusCode::FORBIDDEN, message);
    for protocol in known {
        response.headers_mut().append(ACCEPTED_PROTOCOLS, HeaderValue::from_static(protocol));
    }
    response
}

fn text(status: StatusCode, message: impl Into<String>) -> Response {
    let mut message = message.into();
    message.push('\n');
    let mut response = Response::new(Full::from(message));
    *response.status_mut() = status;
    // One request a connection. (Telling hyper so would take the upgrades' own Connection header away.)
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
