//! Traces: what a collector gets of a pod's life, and that nothing depends on it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kina::config::Tracing;
use kina::cri::v1;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Code, Request, Response, Status};

use crate::harness::{Daemon, Options, script, wait_until};

const RUNTIME: &str = "runtime.v1.RuntimeService";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// What a collector has got. Clones are the same.
#[derive(Clone, Default)]
struct Collected {
    spans: Arc<Mutex<Vec<Span>>>,
    resource: Arc<Mutex<BTreeMap<String, String>>>,
}

#[tonic::async_trait]
impl TraceService for Collected {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            *self.resource.lock().unwrap() = attributes(&resource.resource.unwrap().attributes);
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.spans.lock().unwrap().extend(spans);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn attributes(pairs: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |one: &KeyValue| match one.value.as_ref().unwrap().value.as_ref().unwrap() {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    pairs.iter().map(|one| (one.key.clone(), text(one))).collect()
}

fn listen() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

impl Collected {
    /// A collector on that socket.
    fn serve(&self, listener: TcpListener, mut server: Server) {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let service = TraceServiceServer::new(self.clone());
        let incoming = TcpListenerStream::new(listener);
        tokio::spawn(server.add_service(service).serve_with_incoming(incoming));
    }

    fn all(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }

    async fn wait_for(&self, name: &str) -> Span {
        let mut found = None;
        wait_until(name, async || {
            found = self.all().into_iter().find(|span| span.name == name);
            found.is_some()
        })
        .await;
        found.unwrap()
    }

    /// Names of the spans below one, in the order of their beginning.
    fn below(&self, parent: &Span) -> Vec<String> {
        let mut spans = self.all();
        spans.retain(|span| span.parent_span_id == parent.span_id);
        spans.sort_by_key(|span| span.start_time_unix_nano);
        spans.into_iter().map(|span| span.name).collect()
    }
}

fn tracing(scheme: &str, listener: &TcpListener, sampling_rate_per_million: u32) -> Tracing {
    let endpoint = format!("{scheme}://localhost:{}", listener.local_addr().unwrap().port());
    Tracing { endpoint, sampling_rate_per_million, ca_bundle: PathBuf::new() }
}

/// A call whose caller has a span of that number, traced or not.
fn called_by<T>(parent: u64, sampled: bool, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let header = format!("00-{TRACE}-{parent:016x}-0{}", u8::from(sampled));
    request.metadata_mut().insert("traceparent", header.parse().unwrap());
    request
}

fn hex(bytes: &[u8]) -> String {
    hex::encode(bytes)
}

/// Whether the daemon has a thread that exports.
fn exports(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok()).any(|name| {
        // As long as a thread's name can be.
        "OpenTelemetry.Traces.BatchProcessor".starts_with(name.trim_end())
    })
}

/// The kubelet traces a pod's life: each call is part of its trace, with what it took.
#[tokio::test]
async fn a_pod_s_life() {
    let plugins = crate::network::bridge(false);
    let mut daemon = Daemon::with(Options { plugins: Some(plugins), ..Options::default() }).await;
    assert!(!exports(daemon.pid()));
    daemon.stop().await;
    let collected = Collected::default();
    let listener = daemon.place.node_network.as_ref().unwrap().enter(listen).join().unwrap();
    let tracing = tracing("http", &listener, 0);
    collected.serve(listener, Server::builder());
    daemon.start_again(Options { tracing, ..Options::default() }).await;
    assert!(exports(daemon.pid()));
    daemon.wait_network(true).await;

    let cri = daemon.cri();
    let mut runtime = cri.client.runtime.clone();
    let run =
        v1::RunPodSandboxRequest { config: Some(cri.pod("p")), runtime_handler: crate::harness::handler() };
    let pod = runtime.run_pod_sandbox(called_by(1, true, run)).await.unwrap().into_inner().pod_sandbox_id;
    let create = v1::CreateContainerRequest {
        pod_sandbox_id: pod.clone(),
        config: Some(script("c", "echo line; exec sleep 1000")),
        sandbox_config: None,
    };
    let created = runtime.create_container(called_by(2, true, create)).await.unwrap();
    let container = created.into_inner().container_id;
    let start = v1::StartContainerRequest { container_id: container.clone() };
    runtime.start_container(called_by(3, true, start)).await.unwrap();
    cri.wait_output(&container, "line").await;
    let missing = v1::StartContainerRequest { container_id: "missing".to_owned() };
    let error = runtime.start_container(called_by(4, true, missing)).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    let stop = v1::StopPodSandboxRequest { pod_sandbox_id: pod.clone() };
    runtime.stop_pod_sandbox(called_by(5, true, stop)).await.unwrap();
    let remove = v1::RemovePodSandboxRequest { pod_sandbox_id: pod.clone() };
    runtime.remove_pod_sandbox(called_by(6, true, remove)).await.unwrap();
    drop((runtime, cri));
    // What was not sent yet is sent at its end.
    daemon.leave_nothing().await;

    let spans = collected.all();
    let call = |parent: u64| {
        let parent = format!("{parent:016x}");
        let mut found = spans.iter().filter(|span| hex(&span.parent_span_id) == parent);
        let span = found.next().unwrap_or_else(|| panic!("no span below {parent}: {spans:#?}"));
        assert!(found.next().is_none(), "{spans:#?}");
        assert_eq!(span.kind(), SpanKind::Server);
        span
    };
    let expect = |parent: u64, method: &str, code: Code, ids: &[(&str, &str)]| {
        let span = call(parent);
        assert_eq!(span.name, format!("{RUNTIME}/{method}"));
        let told = attributes(&span.attributes);
        let code = i32::from(code).to_string();
        let rpc = [("rpc.system", "grpc"), ("rpc.service", RUNTIME), ("rpc.method", method)];
        for (key, value) in rpc.iter().chain(&[("rpc.grpc.status_code", code.as_str())]).chain(ids) {
            assert_eq!(told.get(*key).map(String::as_str), Some(*value), "{key}: {told:?}");
        }
        collected.below(span)
    };
    let started = expect(1, "RunPodSandbox", Code::Ok, &[("pod", &pod), ("name", "it/p")]);
    for step in
        ["pod-record", "pod-create-network", "pod-attach-network", "pod-start-machine", "pod-handshake"]
    {
        assert!(started.iter().any(|name| name == step), "{step}: {started:?}");
    }
    let made = expect(2, "CreateContainer", Code::Ok, &[("pod", &pod), ("container", &container)]);
    assert_eq!(made.first().map(String::as_str), Some("container-record"));
    for step in ["container-mount-layers", "container-guest-create"] {
        assert!(made.iter().any(|name| name == step), "{step}: {made:?}");
    }
    // What the actor does after an effect is the call's, too.
    assert_eq!(made.last().map(String::as_str), Some("container-record"));
    let begun = expect(3, "StartContainer", Code::Ok, &[("container", &container)]);
    assert!(begun.iter().any(|name| name == "container-guest-start"), "{begun:?}");
    assert_eq!(expect(4, "StartContainer", Code::NotFound, &[("container", "missing")]), [""; 0]);
    let stopped = expect(5, "StopPodSandbox", Code::Ok, &[("pod", &pod)]);
    for step in ["pod-stop-machine", "pod-destroy-machine", "pod-detach-network"] {
        assert!(stopped.iter().any(|name| name == step), "{step}: {stopped:?}");
    }
    let removed = expect(6, "RemovePodSandbox", Code::Ok, &[("pod", &pod)]);
    assert!(removed.iter().any(|name| name == "pod-delete-records"), "{removed:?}");

    // The plugin is a step of the step that calls it.
    let add = spans.iter().find(|span| span.name == "cni-add").unwrap();
    assert_eq!(attributes(&add.attributes)["plugin"], "bridge");
    let attach = spans.iter().find(|span| span.span_id == add.parent_span_id).unwrap();
    assert_eq!(attach.name, "pod-attach-network");
    // All of it is the kubelet's trace: nothing else is sampled.
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE), "{spans:#?}");
    assert!(spans.iter().all(|span| span.status.as_ref().is_none_or(|one| one.code() != StatusCode::Error)));
    let resource = collected.resource.lock().unwrap().clone();
    assert_eq!(resource["service.name"], "kina");
    assert!(resource.contains_key("service.version") && resource.contains_key("host.name"), "{resource:?}");
}

/// The caller decides; if it says nothing, the sampling rate does.
#[tokio::test]
async fn sampling() {
    let mut daemon = Daemon::start().await;
    for rate in [0, 1_000_000] {
        daemon.stop().await;
        let collected = Collected::default();
        let listener = listen();
        let tracing = tracing("http", &listener, rate);
        collected.serve(listener, Server::builder());
        daemon.start_again(Options { tracing, ..Options::default() }).await;
        let cri = daemon.cri();
        let mut runtime = cri.client.runtime.clone();
        let version = v1::VersionRequest::default();
        let list = v1::ListPodSandboxRequest::default();
        // Not traced by its caller; by a caller that does not trace; by one that does.
        runtime.list_pod_sandbox(called_by(1, false, list.clone())).await.unwrap();
        runtime.status(v1::StatusRequest::default()).await.unwrap();
        runtime.version(called_by(2, true, version)).await.unwrap();
        let span = collected.wait_for(&format!("{RUNTIME}/Version")).await;
        assert_eq!(hex(&span.parent_span_id), format!("{:016x}", 2));
        drop((runtime, cri));
        daemon.stop().await;
        let names: Vec<String> = collected.all().into_iter().map(|span| span.name).collect();
        assert!(!names.contains(&format!("{RUNTIME}/ListPodSandbox")), "{names:?}");
        if rate == 0 {
            assert_eq!(names, [format!("{RUNTIME}/Version")]);
        } else {
            let status = collected.wait_for(&format!("{RUNTIME}/Status")).await;
            assert_eq!(hex(&status.parent_span_id), "");
            assert_ne!(hex(&status.trace_id), TRACE);
        }
        daemon.start_again(Options::default()).await;
        assert!(!exports(daemon.pid()));
    }
    daemon.leave_nothing().await;
}

/// A collector may be down or never answer: pods do not notice, and the daemon's end
/// waits for it no longer than a moment.
#[tokio::test]
async fn a_collector_that_is_of_no_use() {
    let mut daemon = Daemon::start().await;
    // Nobody accepts, but the kernel does.
    let hanging = listen();
    let gone = tracing("http", &listen(), 1_000_000);
    for (name, tracing) in [("gone", gone), ("hanging", tracing("http", &hanging, 1_000_000))] {
        daemon.stop().await;
        daemon.start_again(Options { tracing: tracing.clone(), ..Options::default() }).await;
        let cri = daemon.cri();
        let pod = cri.make_pod(name).await;
        let (status, text) = cri.run_to_end(&pod, script("c", "echo done")).await;
        assert_eq!((status.exit_code, text.as_str()), (0, "done\n"));
        // More than wait in the queue.
        for _ in 0..3000 {
            cri.client.runtime.clone().version(v1::VersionRequest::default()).await.unwrap();
        }
        cri.stop_pod(&pod).await.unwrap();
        cri.remove_pod(&pod).await.unwrap();
        let path = daemon.place.path("daemon.log");
        let complaints =
            || std::fs::read_to_string(&path).unwrap().matches("traces cannot be exported").count();
        wait_until("a word about it", async || complaints() > 0).await;
        drop(cri);
        let begin = Instant::now();
        daemon.stop().await;
        // It would be four batches of five seconds.
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
        assert_eq!(complaints(), 1, "{}", daemon.place.daemon_log());
        std::fs::remove_file(&path).unwrap();
        daemon.start_again(Options::default()).await;
    }
    daemon.leave_nothing().await;
}

/// With TLS, by an authority of one's own.
#[tokio::test]
async fn by_tls() {
    let mut daemon = Daemon::start().await;
    daemon.stop().await;
    let collected = Collected::default();
    let listener = listen();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let ca_bundle = daemon.place.path("ca.pem");
    std::fs::write(&ca_bundle, &certificate).unwrap();
    let tracing = Tracing { ca_bundle, ..tracing("https", &listener, 0) };
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key));
    collected.serve(listener, Server::builder().tls_config(tls).unwrap());
    daemon.start_again(Options { tracing, ..Options::default() }).await;
    let version = called_by(1, true, v1::VersionRequest::default());
    daemon.cri().client.runtime.clone().version(version).await.unwrap();
    let span = collected.wait_for(&format!("{RUNTIME}/Version")).await;
    assert_eq!(hex(&span.trace_id), TRACE);
    daemon.leave_nothing().await;
}
