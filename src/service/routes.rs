//! Which service a call is for.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::{Future, ready};
use std::task::{Context, Poll};

use futures::{Stream, TryStreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

use super::authority::Lenient;
use super::deadline::{Bounded, patience};
use super::measure::Call;
use crate::metrics::Metrics;

/// Calls at the same time on one connection; more wait at the caller.
const MAX_STREAMS: u32 = 1024;

type Named = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, Infallible>;

/// Several gRPC services behind one listener.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    metrics: Metrics,
    services: BTreeMap<&'static str, Named>,
}

impl Routes {
    /// No service yet; calls will be counted there.
    #[must_use]
    pub fn new(metrics: Metrics) -> Self {
        Self { metrics, services: BTreeMap::new() }
    }

    /// These and another one, which replaces one of the same name.
    #[must_use]
    pub fn with<S>(mut self, service: S) -> Self
    where
        S: Service<
                http::Request<Body>,
                Response = http::Response<Body>,
                Error = Infallible,
                Future = BoxFuture<http::Response<Body>, Infallible>,
            > + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
    {
        self.services.insert(S::NAME, BoxCloneSyncService::new(service));
        self
    }

    /// Serves every connection that comes in until `signal`, then waits for the
    /// calls that are under way.
    ///
    /// # Errors
    /// When no more connections can be accepted.
    pub async fn serve_with_incoming_shutdown<I, IO, E, F>(
        self,
        incoming: I,
        signal: F,
    ) -> Result<(), tonic::transport::Error>
    where
        I: Stream<Item = Result<IO, E>>,
        IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
        F: Future<Output = ()>,
    {
        settings().serve_with_incoming_shutdown(self, incoming.map_ok(Lenient::new), signal).await
    }
}

/// The server's settings. PINGs need none: h2 answers every one and counts
/// none, so that gRPC clients of any temper get their answers; and over a unix
/// socket the kernel tells when a peer has gone, so that the daemon sends none.
fn settings() -> Server {
    Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        // The kubelet gives up calls by the dozen when its context ends; h2
        // would take more than 20 of them unread for an attack. Whoever may
        // open this socket may do all the rest.
        .http2_max_pending_accept_reset_streams(Some(MAX_STREAMS as usize))
}

impl Service<http::Request<Body>> for Routes {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Each call waits for its own service.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        // A path is /<service>/<call>.
        let path = request.uri().path();
        let name = path.split('/').nth(1).unwrap_or_default();
        match self.services.get_key_value(name) {
            Some((name, service)) => {
                let call = Call::begin(self.metrics.clone(), name, path, request.headers());
                let patience = patience(request.headers());
                let answer = Bounded::new(service.clone().oneshot(request), patience);
                let answer = call.cause().carry(answer);
                Box::pin(async move { Ok(call.watch(answer.await?)) })
            }
            None => {
                let known: Vec<&str> = self.services.keys().copied().collect();
                Box::pin(ready(Ok(super::status::no_service(name, &known).into_http())))
            }
        }
    }
}
