//! Traces of what the daemon does (OpenTelemetry), where they are asked for.
//!
//! A call has a span, which the services' edge makes (`Open::call`); the steps that it
//! takes have spans below it (`step`). Which span work belongs to goes with the task
//! that does it; whoever hands work to another task hands on its `Cause`. Where there is
//! no export, and of calls that are not sampled, nothing is made: a step costs a look at a
//! thread's own variable.
//!
//! The log is independent of all this, but the ids that its spans have are told here, too
//! (`service::log_span`).

mod export;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::OnceLock;

use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{FutureExt as _, SpanKind, Status, TraceContextExt as _, Tracer as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracer;
use tonic::codegen::http::HeaderMap;

pub use export::{Export, ExportConfig, ExportError};

/// Makes the spans; set when the export is started. Spans that end after that has ended
/// are dropped.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// On whose behalf something is done. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cause(Context);

impl Cause {
    /// That of the work which goes on here.
    pub(crate) fn current() -> Self {
        Self(Context::current())
    }

    /// Work that is done on that behalf, whichever task does it.
    pub(crate) fn carry<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        work.with_context(self.0)
    }
}

/// A span that goes on. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Open(Context);

impl Open {
    /// The span of a gRPC call, whose parent is what its caller says by the W3C headers
    /// `traceparent` and `tracestate`. `None` if nobody wants it.
    pub(crate) fn call(service: &'static str, method: &str, headers: &HeaderMap) -> Option<Self> {
        Self::call_by(TRACER.get()?, service, method, headers)
    }

    fn call_by(tracer: &SdkTracer, service: &'static str, method: &str, headers: &HeaderMap) -> Option<Self> {
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
        let method = method.to_owned();
        let builder =
            tracer.span_builder(format!("{service}/{method}")).with_kind(SpanKind::Server).with_attributes([
                KeyValue::new("rpc.system", "grpc"),
                KeyValue::new("rpc.service", service),
                KeyValue::new("rpc.method", method),
            ]);
        Self::wanted(parent.with_span(tracer.build_with_context(builder, &parent)))
    }

    /// The span of a step of what goes on here.
    fn step(name: &'static str) -> Option<Self> {
        let tracer = TRACER.get()?;
        // The span of a call whose caller has gone is at its end; what is done goes on.
        let within = Context::map_current(|current| {
            current.span().span_context().is_sampled().then(|| current.clone())
        })?;
        let builder = tracer.span_builder(name);
        Self::wanted(within.with_span(tracer.build_with_context(builder, &within)))
    }

    fn wanted(context: Context) -> Option<Self> {
        context.span().is_recording().then_some(Self(context))
    }

    /// What is done in it.
    pub(crate) fn cause(&self) -> Cause {
        Cause(self.0.clone())
    }

    /// How the call has ended. Of a server's answers only those are errors of a trace that
    /// say something of the server (OpenTelemetry's conventions for gRPC).
    pub(crate) fn answered(&self, code: tonic::Code, message: &str) {
        use tonic::Code;
        let span = self.0.span();
        span.set_attribute(KeyValue::new("rpc.grpc.status_code", i64::from(i32::from(code))));
        match code {
            Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => span.set_status(Status::error(message.to_owned())),
            Code::Ok
            | Code::Cancelled
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unauthenticated => {}
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.span().end();
    }
}

/// Does a step of what goes on here. One that fails or is given up is a span, too; why it
/// failed is for the call to say.
pub(crate) async fn step<T, E>(name: &'static str, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let Some(open) = Open::step(name) else { return work.await };
    let result = open.cause().carry(work).await;
    if result.is_err() {
        open.0.span().set_status(Status::error(""));
    }
    result
}

/// Whether what is noted here is kept.
pub(crate) fn is_recording() -> bool {
    Context::map_current(|current| current.span().is_recording())
}

/// Notes something of what goes on here, in its span.
pub(crate) fn note(key: &'static str, value: &(impl ToString + ?Sized)) {
    Context::map_current(|current| {
        let span = current.span();
        if span.is_recording() {
            span.set_attribute(KeyValue::new(key, value.to_string()));
        }
    });
}

/// The headers of a call.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|name| name.as_str()).collect()
    }
}
