//! Which calls are traced, and what their spans say.

use std::sync::{Arc, Mutex};

use opentelemetry::trace::{SpanId, TraceId, TracerProvider as _};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanData, SpanExporter};

use super::*;

#[derive(Clone, Debug, Default)]
struct Kept(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Kept {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

fn tracer(root: Sampler) -> (SdkTracer, Kept) {
    let kept = Kept::default();
    let provider = SdkTracerProvider::builder()
        .with_sampler(Sampler::ParentBased(Box::new(root)))
        .with_simple_exporter(kept.clone())
        .build();
    (provider.tracer("test"), kept)
}

fn headers(traceparent: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", traceparent.parse().unwrap());
    headers
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn sampled() -> HeaderMap {
    headers(&format!("00-{TRACE}-{PARENT}-01"))
}

#[test]
fn the_caller_s_sampling_counts() {
    let (never, _) = tracer(Sampler::AlwaysOff);
    let (always, _) = tracer(Sampler::AlwaysOn);
    let unsampled = headers(&format!("00-{TRACE}-{PARENT}-00"));
    for (tracer, headers, expected) in [
        (&never, sampled(), true),
        (&never, unsampled.clone(), false),
        (&never, HeaderMap::new(), false),
        (&never, headers("nonsense"), false),
        (&always, sampled(), true),
        (&always, unsampled, false),
        (&always, HeaderMap::new(), true),
        (&always, headers("00-0-0-01"), true),
    ] {
        let open = Open::call_by(tracer, "s.S", "M", &headers);
        assert_eq!(open.is_some(), expected, "{headers:?}");
    }
}

#[test]
fn a_call_s_span_says_what_it_was_and_how_it_ended() {
    use tonic::Code;
    let (tracer, kept) = tracer(Sampler::AlwaysOff);
    for (code, error) in [(Code::Ok, false), (Code::NotFound, false), (Code::Internal, true)] {
        let open = Open::call_by(&tracer, "s.S", "M", &sampled()).unwrap();
        open.answered(code, "why");
        drop(open);
        let span = kept.0.lock().unwrap().pop().unwrap();
        assert_eq!(span.name, "s.S/M");
        assert_eq!(span.span_kind, SpanKind::Server);
        assert_eq!(span.span_context.trace_id(), TraceId::from_hex(TRACE).unwrap());
        assert_eq!(span.parent_span_id, SpanId::from_hex(PARENT).unwrap());
        assert!(span.parent_span_is_remote);
        let attributes: Vec<String> =
            span.attributes.iter().map(|one| format!("{}={}", one.key, one.value)).collect();
        let code = format!("rpc.grpc.status_code={}", i32::from(code));
        assert_eq!(attributes, ["rpc.system=grpc", "rpc.service=s.S", "rpc.method=M", code.as_str()]);
        assert_eq!(span.status, if error { Status::error("why") } else { Status::Unset });
    }
}

#[tokio::test]
async fn notes_go_to_the_span_of_whoever_asked() {
    let (tracer, kept) = tracer(Sampler::AlwaysOn);
    assert!(!is_recording());
    note("pod", "nobody's");
    let open = Open::call_by(&tracer, "s.S", "M", &HeaderMap::new()).unwrap();
    let asked = async {
        assert!(is_recording());
        let cause = Cause::current();
        // As an actor does it, whose task has no span.
        tokio::spawn(cause.carry(async { note("pod", "p") })).await.unwrap();
    };
    open.cause().carry(asked).await;
    assert!(!is_recording());
    drop(open);
    let span = kept.0.lock().unwrap().pop().unwrap();
    let noted: Vec<_> = span.attributes.iter().filter(|one| one.key.as_str() == "pod").collect();
    assert_eq!(noted, [&KeyValue::new("pod", "p")]);
}
