//! The services over a socket, on a runtime without machines.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
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
        paths,
    };
    Runtime::with_drivers(config, node, None, Err("none in tests".to_owned())).await.unwrap()
}

async fn serve(directory: &Path) -> Routes {
    let runtime = runtime(directory).await;
    let config = crate::config::Streaming::default().runtime().unwrap();
    let streaming = Streaming::start(config, runtime.clone()).await.unwrap();
    server(runtime, streaming)
}

/// Serves on a socket in the directory until the runtime of the test ends.
async fn channel(directory: &Path, routes: Routes) -> Channel {
    let path = directory.join("cri.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(
        routes.serve_with_incoming_shutdown(UnixListenerStream::new(listener), std::future::pending()),
    );
    let connect = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://socket").connect_with_connector(connect).await.unwrap()
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
