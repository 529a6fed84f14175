//! The gRPC services. Handlers decode a request, call the runtime and encode
//! its answer; nothing is decided here.

mod admin;
mod admin_machine;
mod admin_network;
mod authority;
mod containers;
mod deadline;
mod images;
mod keeping;
mod log_span;
mod measure;
mod pods;
mod routes;
mod runtime;
mod stats;
mod status;
mod streaming;
mod streams;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::time::Instant;

use tonic::{Code, Response, Status};
use tracing::{Instrument, Span};

use crate::cri::v1::image_service_server::ImageServiceServer;
use crate::cri::v1::runtime_service_server::RuntimeServiceServer;
use crate::error::{Error, chain};
use crate::runtime::Runtime;
use crate::streaming::Streaming;

pub(crate) use authority::Lenient;
pub use routes::Routes;
use status::later;
pub(crate) use status::status;

/// The largest message in either direction, in bytes: the kubelet's own limit
/// (`maxMsgSize` of its CRI client).
pub const MESSAGE_LIMIT: usize = 16 << 20;

/// The CRI over that runtime, with URLs of that streaming server; [`Routes::with`]
/// puts more beside it.
#[must_use]
pub fn server(runtime: Runtime, streaming: Streaming) -> Routes {
    let images = images::Images::new(runtime.clone());
    Routes::new(runtime.metrics().clone())
        .with(admin::Admin::server(runtime.clone()))
        .with(
            RuntimeServiceServer::new(runtime::Service::new(runtime, streaming))
                .max_decoding_message_size(MESSAGE_LIMIT)
                .max_encoding_message_size(MESSAGE_LIMIT),
        )
        .with(
            ImageServiceServer::new(images)
                .max_decoding_message_size(MESSAGE_LIMIT)
                .max_encoding_message_size(MESSAGE_LIMIT),
        )
}

/// Does a call's work in its span. A failure is logged here and nowhere else.
async fn answer<T>(
    span: Span,
    work: impl Future<Output = Result<T, Error>> + Send,
) -> Result<Response<T>, Status> {
    let timed = async move {
        let begin = Instant::now();
        let result = work.await;
        let millis = begin.elapsed().as_millis();
        match result {
            Ok(message) => {
                tracing::debug!(millis, "done");
                Ok(Response::new(message))
            }
            Err(error) => {
                let code = status::code(&error);
                // The kubelet asks for what is gone all the time.
                if code == Code::NotFound {
                    tracing::debug!(millis, ?code, error = chain(&error), "failed");
                } else {
                    tracing::warn!(millis, ?code, error = chain(&error), "failed");
                }
                Err(status::status(&error))
            }
        }
    };
    timed.instrument(span).await
}

/// A list as one message, if it fits one; `instead` is the call that has no limit.
fn whole<M: prost::Message>(list: M, instead: &'static str) -> Result<M, Error> {
    let bytes = list.encoded_len();
    if bytes > MESSAGE_LIMIT {
        return Err(Error::ListTooLarge { bytes, limit: MESSAGE_LIMIT, instead });
    }
    Ok(list)
}

/// JSON under the one key that kina's verbose answers have.
fn info(key: &str, value: &serde_json::Value) -> std::collections::BTreeMap<String, String> {
    std::collections::BTreeMap::from([(key.to_owned(), value.to_string())])
}
