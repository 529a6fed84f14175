//! How long calls take and how they end, at the edge where all of them pass: counted, and
//! as spans where there are traces.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Response};
use tonic::{Code, Status};

use crate::cri::support::{IMAGE, RUNTIME};
use crate::metrics::Metrics;
use crate::spans::{Cause, Open};

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
    /// If it is traced.
    span: Option<Open>,
}

impl Call {
    /// A call of that service begins. The path is `/SERVICE/METHOD`.
    pub(super) fn begin(metrics: Metrics, service: &'static str, path: &str, headers: &HeaderMap) -> Self {
        let method = path.rsplit('/').next().unwrap_or_default().to_owned();
        let told = if method.len() <= LONGEST_NAME { method.as_str() } else { "other" };
        let span = Open::call(service, told, headers);
        Self { metrics, service, method, begin: Instant::now(), code: Code::Cancelled, span }
    }

    /// On whose behalf its work is done.
    pub(super) fn cause(&self) -> Cause {
        self.span.as_ref().map(Open::cause).unwrap_or_default()
    }

    fn ended(&mut self, status: &Status) {
        self.code = status.code();
        if let Some(span) = self.span.take() {
            span.answered(status.code(), status.message());
        }
    }

    /// Looks on while the answer is sent.
    pub(super) fn watch(mut self, response: Response<Body>) -> Response<Body> {
        if let Some(status) = Status::from_header_map(response.headers()) {
            // There is nothing but headers.
            self.ended(&status);
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
        if let Some(span) = &self.span {
            span.answered(self.code, "");
        }
    }
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
            && let Some(status) = frame.trailers_ref().and_then(Status::from_header_map)
        {
            self.call.ended(&status);
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
