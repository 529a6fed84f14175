//! `/metrics` over HTTP.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::prometheus_text::{CONTENT_TYPE as TEXT, encode};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::present;
use crate::error::Error;
use crate::runtime::Runtime;

/// Clients at once; further ones wait to be accepted.
const CLIENTS: usize = 8;

/// How long one may take for its request and for taking the answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// How long the listener rests after it failed.
const REST: Duration = Duration::from_millis(100);

/// Where the metrics are served, until it is dropped.
#[derive(Debug)]
pub struct Endpoint {
    address: SocketAddr,
    _stop: DropGuard,
}

struct Source {
    runtime: Runtime,
    start: SystemTime,
}

impl Endpoint {
    /// Serves the metrics of a runtime; port 0 is any that is free.
    ///
    /// # Errors
    /// [`Error::ListenMetrics`] if the address cannot be had.
    pub async fn start(address: SocketAddr, runtime: Runtime) -> Result<Self, Error> {
        let refuse = |source| Error::ListenMetrics { address, source };
        let listener = TcpListener::bind(address).await.map_err(refuse)?;
        let address = listener.local_addr().map_err(refuse)?;
        let stop = CancellationToken::new();
        let source = Arc::new(Source { runtime, start: SystemTime::now() });
        let (serving, stopped) = (serve(listener, source, stop.clone()), stop.clone());
        tokio::spawn(async move { stopped.run_until_cancelled(serving).await });
        Ok(Self { address, _stop: stop.drop_guard() })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn serve(listener: TcpListener, source: Arc<Source>, stop: CancellationToken) {
    let clients = Arc::new(Semaphore::new(CLIENTS));
    // It is never closed.
    while let Ok(permit) = Arc::clone(&clients).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (source, stop) = (Arc::clone(&source), stop.clone());
                tokio::spawn(async move {
                    let client = tokio::time::timeout(DEADLINE, client(stream, source));
                    stop.run_until_cancelled(client).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept a reader of metrics");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

async fn client(stream: TcpStream, source: Arc<Source>) {
    let service = service_fn(move |request| {
        let source = Arc::clone(&source);
        async move { Ok::<_, Infallible>(respond(&request, &source).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a reader of metrics failed");
    }
}

async fn respond(request: &Request<Incoming>, source: &Arc<Source>) -> Response<Full<Bytes>> {
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n");
    }
    if request.method() != Method::GET {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "use GET\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    let source = Arc::clone(source);
    // It reads files.
    match tokio::task::spawn_blocking(move || source.text()).await {
        Ok(Ok(text)) => {
            let mut response = Response::new(Full::from(text));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(TEXT));
            response
        }
        Ok(Err(_)) | Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written\n"),
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

impl Source {
    fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        self.runtime.metrics().write(&mut text)?;
        let handlers = self.runtime.handlers();
        // The nameless one is one of the others.
        let named: Vec<&'static str> =
            handlers.iter().map(|handler| handler.name).filter(|name| !name.is_empty()).collect();
        for registry in [
            present::of_pods(&self.runtime.pods(), &named),
            present::of_process(),
            present::of_start(self.start),
        ] {
            encode(&mut text, &registry)?;
        }
        Ok(text)
    }
}
