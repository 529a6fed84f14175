//! The services over a socket, on a runtime without machines.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use kina_model::PodState;
use kina_node::{LocalNode, LocalNodeConfig, Node};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::{Routes, server};
use crate::cri::v1;
use crate::cri::v1::image_service_client::ImageServiceClient;
use crate::cri::v1::runtime_service_client::RuntimeServiceClient;
use crate::pod::context::Paths;
use crate::pod::view;
use crate::runtime::{Runtime, RuntimeConfig};
use crate::streaming::Streaming;

async fn runtime(directory: &Path) -> Runtime {
    let paths = Paths { root: directory.join("root"), run: directory.join("run") };
    let node = LocalNodeConfig {
        netns_prefix: "kina-test-service-".into(),
        ..LocalNodeConfig::new(paths.run.clone())
    };
    let node: Arc<dyn Node> = Arc::new(LocalNode::new(node));
    let config = RuntimeConfig {
        guest_program: directory.join("no-guest"),
        netns_prefix: "kina-test-service-".into(),
        cgroup_parent: "/kina-test-service".into(),
        placement: Default::default(),
        handshake_deadline: Duration::from_secs(5),
        machine: crate::config::Machine::default().runtime(&directory.join("no-guest"), &paths),
        images: kina_image::Config { root: paths.images(), ..Default::default() },
        network: crate::config::Network {
            config_directory: directory.join("net.d"),
            cache_directory: directory.join("cni"),
            ..Default::default()
        }
        .runtime(),
        cdi_directories: Vec::new(),
        layers_kept: Duration::ZERO,
        paths,
    };
    Runtime::with_drivers(config, node, None, Err("none in tests".to_owned())).await.unwrap()
}

async fn serve(directory: &Path) -> Routes {
    serve_runtime(runtime(directory).await).await
}

async fn serve_runtime(runtime: Runtime) -> Routes {
    let config = crate::config::Streaming::default().runtime().unwrap();
    let streaming = Streaming::start(config, runtime.clone()).await.unwrap();
    server(runtime, streaming)
}

/// A value of the runtime's metrics; `None` if there is none of that name and labels.
fn metric(runtime: &Runtime, sample: &str) -> Option<f64> {
    let mut text = String::new();
    runtime.metrics().write(&mut text).unwrap();
    text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok())
}

/// Serves on a socket in the directory until the runtime of the test ends.
async fn channel(directory: &Path, routes: Routes) -> Channel {
    let listener = UnixListener::bind(directory.join("cri.sock")).unwrap();
    tokio::spawn(
        routes.serve_with_incoming_shutdown(UnixListenerStream::new(listener), std::future::pending()),
    );
    connect(directory, Endpoint::from_static("http://socket")).await
}

/// Another connection to that socket.
async fn connect(directory: &Path, endpoint: Endpoint) -> Channel {
    let path = directory.join("cri.sock");
    let connect = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connect).await.unwrap()
}

fn image(name: &str) -> Option<v1::ImageSpec> {
    Some(v1::ImageSpec { image: name.to_owned(), ..Default::default() })
}

#[tokio::test]
async fn what_can_be_asked_without_a_pod() {
    let directory = tempfile::tempdir().unwrap();
    let channel = channel(directory.path(), serve(directory.path()).await).await;
    let mut runtime = RuntimeServiceClient::new(channel.clone());
    let mut images = ImageServiceClient::new(channel);

    let version = runtime.version(v1::VersionRequest::default()).await.unwrap().into_inner();
    assert_eq!((version.runtime_name.as_str(), version.runtime_api_version.as_str()), ("kina", "v1"));
    assert!(version.runtime_version.starts_with(env!("CARGO_PKG_VERSION")));
    let config = runtime.runtime_config(v1::RuntimeConfigRequest {}).await.unwrap().into_inner();
    assert_eq!(config.linux.unwrap().cgroup_driver(), v1::CgroupDriver::Cgroupfs);

    let status = runtime.status(v1::StatusRequest { verbose: true }).await.unwrap().into_inner();
    let kinds: Vec<_> =
        status.status.unwrap().conditions.into_iter().map(|condition| condition.r#type).collect();
    assert_eq!(kinds, ["RuntimeReady", "NetworkReady"]);
    assert!(serde_json::from_str::<serde_json::Value>(&status.info["kina"]).unwrap().is_object());
    assert!(runtime.status(v1::StatusRequest::default()).await.unwrap().into_inner().info.is_empty());

    // Repeating what is done already succeeds.
    let id = || "0123456789abcdef".to_owned();
    runtime.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id() }).await.unwrap();
    runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: id() }).await.unwrap();
    runtime.stop_container(v1::StopContainerRequest { container_id: id(), timeout: i64::MAX }).await.unwrap();
    runtime.remove_container(v1::RemoveContainerRequest { container_id: id() }).await.unwrap();
    images.remove_image(v1::RemoveImageRequest { image: image("busybox") }).await.unwrap();

    let unknown = runtime
        .pod_sandbox_status(v1::PodSandboxStatusRequest { pod_sandbox_id: id(), verbose: true })
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    let unknown =
        runtime.start_container(v1::StartContainerRequest { container_id: id() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    let status = images.image_status(v1::ImageStatusRequest { image: image("busybox"), verbose: true }).await;
    assert_eq!(status.unwrap().into_inner(), v1::ImageStatusResponse::default());

    assert!(
        runtime
            .list_pod_sandbox(v1::ListPodSandboxRequest::default())
            .await
            .unwrap()
            .into_inner()
            .items
            .is_empty()
    );
    assert!(
        runtime
            .list_containers(v1::ListContainersRequest::default())
            .await
            .unwrap()
            .into_inner()
            .containers
            .is_empty()
    );
    assert!(
        images.list_images(v1::ListImagesRequest::default()).await.unwrap().into_inner().images.is_empty()
    );
    let usage = images.image_fs_info(v1::ImageFsInfoRequest {}).await.unwrap().into_inner();
    assert!(usage.image_filesystems[0].timestamp > 0);
    assert!(Path::new(&usage.container_filesystems[0].fs_id.clone().unwrap().mountpoint).is_absolute());
}

#[tokio::test]
async fn refusals_name_the_field() {
    let directory = tempfile::tempdir().unwrap();
    let channel = channel(directory.path(), serve(directory.path()).await).await;
    let mut runtime = RuntimeServiceClient::new(channel.clone());
    let mut images = ImageServiceClient::new(channel);

    let refused = runtime.run_pod_sandbox(v1::RunPodSandboxRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(refused.message(), "config: is missing");
    let metadata = Some(v1::PodSandboxMetadata { name: "a".into(), ..Default::default() });
    let config = Some(v1::PodSandboxConfig { metadata, ..Default::default() });
    let refused = runtime
        .run_pod_sandbox(v1::RunPodSandboxRequest { config, runtime_handler: "vm".into() })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(refused.message().starts_with("runtime_handler: "), "{refused}");
    let request = v1::ExecSyncRequest { container_id: "a".into(), ..Default::default() };
    let refused = runtime.exec_sync(request).await.unwrap_err();
    assert!(refused.message().starts_with("cmd: "), "{refused}");
    let refused =
        images.pull_image(v1::PullImageRequest { image: image("UPPER"), ..Default::default() }).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    // A handler that is known has the images of every other.
    let of = |handler: &str| {
        let runtime_handler = handler.to_owned();
        Some(v1::ImageSpec { image: "busybox".to_owned(), runtime_handler, ..v1::ImageSpec::default() })
    };
    let filter =
        |handler: &str| v1::ListImagesRequest { filter: Some(v1::ImageFilter { image: of(handler) }) };
    for handler in ["", "vm", "shared"] {
        assert_eq!(images.list_images(filter(handler)).await.unwrap().into_inner().images, []);
        let status = v1::ImageStatusRequest { image: of(handler), verbose: false };
        assert_eq!(images.image_status(status).await.unwrap().into_inner().image, None);
        images.remove_image(v1::RemoveImageRequest { image: of(handler) }).await.unwrap();
    }
    let of = || of("runc");
    let status = v1::ImageStatusRequest { image: of(), verbose: false };
    let pull = v1::PullImageRequest { image: of(), ..v1::PullImageRequest::default() };
    for (refused, field) in [
        (images.list_images(filter("runc")).await.unwrap_err(), "filter.image.runtime_handler: "),
        (images.image_status(status).await.unwrap_err(), "image.runtime_handler: "),
        (images.pull_image(pull).await.unwrap_err(), "image.runtime_handler: "),
        (
            images.remove_image(v1::RemoveImageRequest { image: of() }).await.unwrap_err(),
            "image.runtime_handler: ",
        ),
    ] {
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().starts_with(&format!("{field}\"runc\" is unknown")), "{refused}");
    }
    let cidr = Some(v1::NetworkConfig { pod_cidr: "no".into() });
    let runtime_config = Some(v1::RuntimeConfig { network_config: cidr });
    let request = v1::UpdateRuntimeConfigRequest { runtime_config };
    assert_eq!(runtime.update_runtime_config(request).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn other_calls_and_services_are_unimplemented() {
    let directory = tempfile::tempdir().unwrap();
    let channel = channel(directory.path(), serve(directory.path()).await).await;
    let mut runtime = RuntimeServiceClient::new(channel);
    let refused = runtime.restore_pod(v1::RestorePodRequest::default()).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unimplemented, "RestorePod is not implemented in this version of kina")
    );

    let directory = tempfile::tempdir().unwrap();
    let nothing = self::channel(directory.path(), Routes::default()).await;
    let refused =
        RuntimeServiceClient::new(nothing).version(v1::VersionRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(refused.message().contains("runtime.v1.RuntimeService"), "{refused}");
}

/// Sent without tonic's client, which would end the call by a timer of its own.
#[tokio::test]
async fn a_call_that_takes_too_long_says_so() {
    use http_body_util::Full;
    use hyper_util::rt::TokioExecutor;
    use prost::Message as _;
    use prost::bytes::Bytes;

    let directory = tempfile::tempdir().unwrap();
    let _served = channel(directory.path(), serve(directory.path()).await).await;
    // A registry that takes connections and says nothing.
    let registry = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let name = format!("127.0.0.1:{}/library/busybox:1", registry.local_addr().unwrap().port());
    let socket = UnixStream::connect(directory.path().join("cri.sock")).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await.unwrap();
    tokio::spawn(connection);

    let message = v1::PullImageRequest { image: image(&name), ..Default::default() }.encode_to_vec();
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend(message);
    for patience in ["1n", "1m", "2m", "3m", "5m", "20m", "100m"] {
        let request = tonic::codegen::http::Request::post("http://socket/runtime.v1.ImageService/PullImage")
            .header("content-type", "application/grpc")
            .header("grpc-timeout", patience)
            .body(Full::new(Bytes::from(frame.clone())))
            .unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "4", "{patience}: {answer:?}");
    }
}

#[tokio::test]
async fn calls_are_counted_by_their_code() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = runtime(directory.path()).await;
    let channel = channel(directory.path(), serve_runtime(runtime.clone()).await).await;
    let mut client = RuntimeServiceClient::new(channel.clone());
    client.version(v1::VersionRequest::default()).await.unwrap();
    client
        .stream_containers(v1::StreamContainersRequest::default())
        .await
        .unwrap()
        .into_inner()
        .message()
        .await
        .unwrap();
    client.container_status(v1::ContainerStatusRequest::default()).await.unwrap_err();
    client.restore_pod(v1::RestorePodRequest::default()).await.unwrap_err();
    // Nothing that a caller makes up becomes a label.
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/runtime.v1.RuntimeService/MadeUp");
    let codec = tonic_prost::ProstCodec::<v1::VersionRequest, v1::VersionResponse>::default();
    grpc.unary(tonic::Request::new(v1::VersionRequest::default()), path, codec).await.unwrap_err();
    // A stream that its reader gives up.
    let events = client.get_container_events(v1::GetEventsRequest {}).await.unwrap();
    drop(events);
    let calls = |method: &str, code: &str| {
        let labels = format!("service=\"runtime.v1.RuntimeService\",method=\"{method}\",code=\"{code}\"");
        metric(&runtime, &format!("kina_calls_total{{{labels}}}"))
    };
    for (method, code) in [
        ("Version", "OK"),
        ("StreamContainers", "OK"),
        ("ContainerStatus", "NOT_FOUND"),
        ("RestorePod", "UNIMPLEMENTED"),
        ("other", "UNIMPLEMENTED"),
        ("GetContainerEvents", "CANCELLED"),
    ] {
        // The server hears of it a moment later.
        let counted = async {
            while calls(method, code) != Some(1.0) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(20), counted).await.is_ok(), "{method} {code}");
    }
    assert_eq!(calls("MadeUp", "UNIMPLEMENTED"), None);
    let labels = "service=\"runtime.v1.RuntimeService\",method=\"Version\"";
    assert_eq!(metric(&runtime, &format!("kina_call_duration_seconds_count{{{labels}}}")), Some(1.0));
}

#[tokio::test]
async fn a_reader_of_events_that_does_not_read_is_told() {
    const EVENTS: i64 = 6_000;
    let directory = tempfile::tempdir().unwrap();
    let runtime = runtime(directory.path()).await;
    let channel = channel(directory.path(), serve_runtime(runtime.clone()).await).await;
    let mut client = RuntimeServiceClient::new(channel);
    // Its own connection, which takes little, as those of other gRPC libraries.
    let small = Endpoint::from_static("http://socket").initial_stream_window_size(65_535);
    let mut lazy = RuntimeServiceClient::new(connect(directory.path(), small).await);
    let mut slow = lazy.get_container_events(v1::GetEventsRequest {}).await.unwrap().into_inner();
    let mut quick = client.get_container_events(v1::GetEventsRequest {}).await.unwrap().into_inner();
    let id: kina_model::PodId = "a".repeat(32).parse().unwrap();
    let view = |state| {
        let mut view = view::test_support::pod(id.clone(), state, Default::default());
        Arc::make_mut(&mut view.spec).labels.insert("long".to_owned(), "x".repeat(2_000));
        Arc::new(view)
    };
    let (before, after) = (view(PodState::Removing), view(PodState::Removed));
    let events = runtime.context().events.clone();
    // More bytes than the connection's buffers hold, and more events than the queue.
    for number in 0..EVENTS {
        events.changed(&before, &after, number);
        if number % 100 != 99 {
            continue;
        }
        for number in number - 99..=number {
            let event = quick.message().await.unwrap().unwrap();
            assert_eq!((event.container_id.as_str(), event.created_at), (id.as_str(), number));
            assert_eq!(event.container_event_type(), v1::ContainerEventType::ContainerDeletedEvent);
        }
    }
    // What it gets is in order and without a gap; then it is told.
    let mut next = 0;
    let end = loop {
        match slow.message().await {
            Ok(Some(event)) => assert_eq!(event.created_at, next),
            Ok(None) => panic!("it ends after {next} without a word"),
            Err(status) => break status,
        }
        next += 1;
    };
    assert_eq!(end.code(), Code::ResourceExhausted, "{end}");
    assert!(next > 0 && next < EVENTS, "{next}");
    assert_eq!(metric(&runtime, "kina_event_streams_lost_total"), Some(1.0));
}
