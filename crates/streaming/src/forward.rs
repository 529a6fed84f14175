//! Port-forward over SPDY: pairs of streams, one with the bytes and one for an error.

use std::collections::HashMap;
use std::collections::hash_map;
use std::sync::Arc;
use std::time::Duration;

use kina_spdy::{Connection, Incoming, ResetStatus, Stream};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::backend::Backend;
use crate::negotiate::parse_port;
use crate::status::chain;

/// Forwards until the client goes.
pub(crate) async fn serve(
    connection: Connection,
    backend: Arc<dyn Backend>,
    pod: &str,
    creation_timeout: Duration,
) {
    let pod: Arc<str> = pod.into();
    // As many as the connection's bound on streams allows.
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut forwards = JoinSet::new();
    loop {
        let next_expiry = halves.values().map(|half| half.expiry).min();
        let expired = async {
            match next_expiry {
                Some(expiry) => sleep_until(expiry).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            incoming = connection.accept() => {
                let Some(incoming) = incoming else { break };
                if let Some(pair) = pair_up(incoming, &mut halves, Instant::now() + creation_timeout) {
                    forwards.spawn(forward(pair, backend.clone(), pod.clone()));
                }
            }
            () = expired => {
                let now = Instant::now();
                for (request, half) in halves.extract_if(|_, half| half.expiry <= now) {
                    tracing::debug!(%pod, request, "a forwarded connection had one stream of two in time");
                    drop(half);
                }
            }
            Some(ended) = forwards.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%pod, %error, "forwarding a connection failed");
                }
            }
        }
    }
    drop(halves);
    // A client that only said goodbye may still have connections open.
    tokio::select! {
        _ = connection.closed() => {}
        () = async { while forwards.join_next().await.is_some() {} } => {
            connection.close().await;
        }
    }
}

/// One stream whose other has not come yet.
struct Half {
    stream: Stream,
    is_error: bool,
    expiry: Instant,
}

struct Pair {
    error: Stream,
    data: Stream,
    port: u16,
}

/// Takes a stream, and tells when that completes a pair.
fn pair_up(incoming: Incoming, halves: &mut HashMap<String, Half>, expiry: Instant) -> Option<Pair> {
    let headers = incoming.headers();
    let is_error = match headers.get("streamType") {
        Some("error") => true,
        Some("data") => false,
        _ => return refuse(incoming),
    };
    if headers.get("port").and_then(parse_port).is_none() {
        return refuse(incoming);
    }
    let request = match headers.get("requestID") {
        Some(request) => request.to_owned(),
        // Old clients open the error stream and right after it the other, two numbers on.
        None => format!("stream {}", incoming.number() - if is_error { 0 } else { 2.min(incoming.number()) }),
    };
    match halves.entry(request) {
        hash_map::Entry::Vacant(vacant) => {
            vacant.insert(Half { stream: incoming.accept(), is_error, expiry });
            None
        }
        hash_map::Entry::Occupied(occupied) if occupied.get().is_error == is_error => refuse(incoming),
        hash_map::Entry::Occupied(occupied) => {
            let first = occupied.remove().stream;
            let second = incoming.accept();
            let (error, data) = if is_error { (second, first) } else { (first, second) };
            let port = data.headers().get("port").and_then(parse_port)?;
            Some(Pair { error, data, port })
        }
    }
}

fn refuse(incoming: Incoming) -> Option<Pair> {
    incoming.refuse(ResetStatus::PROTOCOL_ERROR);
    None
}

async fn forward(pair: Pair, backend: Arc<dyn Backend>, pod: Arc<str>) {
    let Pair { error: mut report, data, port } = pair;
    let result = backend.port_forward(&pod, port, Box::new(data.finish_on_drop())).await;
    if let Err(error) = result {
        let text = failure(&pod, port, &*error);
        tracing::debug!(%pod, port, error = text, "a forwarded connection failed");
        let _: Result<_, _> = report.write_all(text.as_bytes()).await;
    }
    // The client waits for the end of both.
    let _: Result<_, _> = report.shutdown().await;
}

/// What the client is told.
pub(crate) fn failure(pod: &str, port: u16, error: &(dyn std::error::Error + 'static)) -> String {
    format!("error forwarding port {port} to pod {pod}: {}", chain(error))
}
