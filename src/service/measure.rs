//! How long calls take and how they end, at the edge where all of them pass.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Response};
use tonic::{Code, Status};

use crate::cri::support::{IMAGE, RUNTIME};
use crate::metrics::Metrics;

/// Names of calls that are no longer than this are told.
const LONGEST_NAME: usize = 64;

/// A call that goes on. It is counted when it is dropped; one that has no answer
/// by then was given up.
pub(super) struct Call {
    metrics: Metrics,
    service: &'static str,
    method: String,
    begin: Instant,
    code: Code,
}

impl Call {
    /// A call of that service begins. The path is `/SERVICE/METHOD`.
    pub(super) fn begin(metrics: Metrics, service: &'static str, path: &str) -> Self {
        let method = path.rsplit('/').next().unwrap_or_default().to_owned();
        Self { metrics, service, method, begin: Instant::now(), code: Code::Cancelled }
    }

    /// Looks on while the answer is sent.
    pub(super) fn watch(mut self, response: Response<Body>) -> Response<Body> {
        if let Some(code) = code(response.headers()) {
            // There is nothing but headers.
            self.code = code;
            return response;
        }
        response.map(|body| Body::new(Watched { body, call: self }))
    }

    /// The name that is told: a caller can name anything, but only what is here
    /// answers with anything else than that it is not.
    fn name(&self) -> &str {
        let known = RUNTIME.iter().chain(IMAGE).any(|call| call.name == self.method);
        if known || (self.code != Code::Unimplemented && self.method.len() <= LONGEST_NAME) {
            &self.method
        } else {
            "other"
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.metrics.called(self.service, self.name(), code_name(self.code), self.begin);
    }
}

fn code(headers: &HeaderMap) -> Option<Code> {
    Status::from_header_map(headers).map(|status| status.code())
}

/// As gRPC spells it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// An answer, whose trailers say how the call has ended.
struct Watched {
    body: Body,
    call: Call,
}

impl HttpBody for Watched {
    type Data = <Body as HttpBody>::Data;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(code) = frame.trailers_ref().and_then(code)
        {
            self.call.code = code;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
