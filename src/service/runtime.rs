//! The runtime service: which call is which, with its span.

use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::log_span::{debug_span, info_span};
use super::{answer, info, later, whole};
use crate::cri::v1;
use crate::cri::v1::runtime_service_server::RuntimeService;
use crate::error::Error;
use crate::runtime::{Condition, Runtime};
use crate::streaming::Streaming;

/// The version of the kubelet's runtime interface that the kubelet expects in
/// the answer to Version, whatever the runtime's.
const KUBELET_API_VERSION: &str = "0.1.0";

/// The runtime service over a runtime.
pub(super) struct Service {
    pub(super) runtime: Runtime,
    pub(super) streaming: Streaming,
}

impl Service {
    pub(super) fn new(runtime: Runtime, streaming: Streaming) -> Self {
        Self { runtime, streaming }
    }

    async fn status(&self, verbose: bool) -> Result<v1::StatusResponse, Error> {
        let conditions = self.runtime.conditions();
        let condition = |kind: &str, condition: Condition| v1::RuntimeCondition {
            r#type: kind.to_owned(),
            status: condition.ready,
            reason: condition.reason,
            message: condition.message,
        };
        let handler = |handler: crate::runtime::Handler| v1::RuntimeHandler {
            name: handler.name.to_owned(),
            features: Some(v1::RuntimeHandlerFeatures {
                recursive_read_only_mounts: handler.recursive_read_only,
                user_namespaces: handler.user_namespaces,
            }),
        };
        Ok(v1::StatusResponse {
            status: Some(v1::RuntimeStatus {
                conditions: vec![
                    condition("RuntimeReady", conditions.runtime),
                    condition("NetworkReady", conditions.network),
                ],
            }),
            info: if verbose { info("kina", &self.runtime.info()) } else { Default::default() },
            runtime_handlers: self.runtime.handlers().into_iter().map(handler).collect(),
            features: Some(v1::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: false,
                mount_options: true,
            }),
        })
    }

    async fn update_config(
        &self,
        request: v1::UpdateRuntimeConfigRequest,
    ) -> Result<v1::UpdateRuntimeConfigResponse, Error> {
        let network = request.runtime_config.and_then(|config| config.network_config);
        if let Some(network) = network.filter(|network| !network.pod_cidr.is_empty()) {
            self.runtime.set_pod_cidr(&network.pod_cidr)?;
        }
        Ok(v1::UpdateRuntimeConfigResponse {})
    }
}

/// For spans: a pod's name as people know it.
fn pod_name(config: &Option<v1::PodSandboxConfig>) -> String {
    let metadata = config.as_ref().and_then(|config| config.metadata.as_ref());
    metadata.map(|metadata| format!("{}/{}", metadata.namespace, metadata.name)).unwrap_or_default()
}

/// Likewise a container's.
fn container_name(config: &Option<v1::ContainerConfig>) -> &str {
    let metadata = config.as_ref().and_then(|config| config.metadata.as_ref());
    metadata.map_or("", |metadata| metadata.name.as_str())
}

#[tonic::async_trait]
impl RuntimeService for Service {
    type StreamPodSandboxesStream = BoxStream<v1::StreamPodSandboxesResponse>;
    type StreamContainersStream = BoxStream<v1::StreamContainersResponse>;
    type StreamContainerStatsStream = BoxStream<v1::StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = BoxStream<v1::StreamPodSandboxStatsResponse>;
    type GetContainerEventsStream = BoxStream<v1::ContainerEventResponse>;
    type StreamPodSandboxMetricsStream = BoxStream<v1::StreamPodSandboxMetricsResponse>;

    async fn version(
        &self,
        _request: Request<v1::VersionRequest>,
    ) -> Result<Response<v1::VersionResponse>, Status> {
        let version = v1::VersionResponse {
            version: KUBELET_API_VERSION.to_owned(),
            runtime_name: "kina".to_owned(),
            runtime_version: env!("KINA_VERSION").to_owned(),
            runtime_api_version: "v1".to_owned(),
        };
        Ok(Response::new(version))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Result<Response<v1::RunPodSandboxResponse>, Status> {
        let request = request.into_inner();
        let span = info_span!("RunPodSandbox", name = pod_name(&request.config));
        answer(span, self.run_pod(request)).await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Result<Response<v1::StopPodSandboxResponse>, Status> {
        let request = request.into_inner();
        let span = info_span!("StopPodSandbox", pod = request.pod_sandbox_id);
        answer(span, self.stop_pod(&request.pod_sandbox_id)).await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Result<Response<v1::RemovePodSandboxResponse>, Status> {
        let request = request.into_inner();
        let span = info_span!("RemovePodSandbox", pod = request.pod_sandbox_id);
        answer(span, self.remove_pod(&request.pod_sandbox_id)).await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Result<Response<v1::PodSandboxStatusResponse>, Status> {
        let request = request.into_inner();
        let span = debug_span!("PodSandboxStatus", pod = request.pod_sandbox_id);
        answer(span, self.pod_status(request)).await
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Result<Response<v1::ListPodSandboxResponse>, Status> {
        answer(debug_span!("ListPodSandbox"), self.list_pods(request.into_inner())).await
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Result<Response<v1::CreateContainerResponse>, Status> {
        let request = request.into_inner();
        let name = container_name(&request.config);
        let span = info_span!("CreateContainer", pod = request.pod_sandbox_id, name);
        answer(span, self.create_container(request)).await
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Result<Response<v1::StartContainerResponse>, Status> {
        let request = request.into_inner();
        let span = info_span!("StartContainer", container = request.container_id);
        answer(span, self.start_container(&request.container_id)).await
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Result<Response<v1::StopContainerResponse>, Status> {
        let request = request.into_inner();
        let span = info_span!("StopContainer", container = request.container_id);
        answer(span, self.stop_container(request)).await
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Result<Response<v1::RemoveContainerResponse>, Status> {
        let request = request.into_inner();
        let span = info_span!("RemoveContainer", container = request.container_id);
        answer(span, self.remove_container(&request.container_id)).await
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Result<Response<v1::ListContainersResponse>, Status> {
        answer(debug_span!("ListContainers"), self.list_containers(request.into_inner())).await
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Result<Response<v1::ContainerStatusResponse>, Status> {
        let request = request.into_inner();
        let span = debug_span!("ContainerStatus", container = request.container_id);
        answer(span, self.container_status(request)).await
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Result<Response<v1::ReopenContainerLogResponse>, Status> {
        let request = request.into_inner();
        let span = info_span!("ReopenContainerLog", container = request.container_id);
        answer(span, self.reopen_log(&request.container_id)).await
    }

    async fn exec_sync(
        &self,
        request: Request<v1::ExecSyncRequest>,
    ) -> Result<Response<v1::ExecSyncResponse>, Status> {
        let request = request.into_inner();
        let span = info_span!("ExecSync", container = request.container_id);
        answer(span, self.exec_sync(request)).await
    }

    async fn update_runtime_config(
        &self,
        request: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Result<Response<v1::UpdateRuntimeConfigResponse>, Status> {
        answer(info_span!("UpdateRuntimeConfig"), self.update_config(request.into_inner())).await
    }

    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        answer(debug_span!("Status"), self.status(request.into_inner().verbose)).await
    }

    async fn runtime_config(
        &self,
        _request: Request<v1::RuntimeConfigRequest>,
    ) -> Result<Response<v1::RuntimeConfigResponse>, Status> {
        let linux = v1::LinuxRuntimeConfiguration { cgroup_driver: v1::CgroupDriver::Cgroupfs.into() };
        Ok(Response::new(v1::RuntimeConfigResponse { linux: Some(linux) }))
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Result<Response<v1::UpdateContainerResourcesResponse>, Status> {
        let request = request.into_inner();
        let span = info_span!("UpdateContainerResources", container = request.container_id);
        answer(span, self.update_container(request)).await
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Result<Response<v1::ExecResponse>, Status> {
        let request = request.into_inner();
        let span = info_span!("Exec", container = request.container_id);
        answer(span, self.exec(request)).await
    }

    async fn attach(
        &self,
        request: Request<v1::AttachRequest>,
    ) -> Result<Response<v1::AttachResponse>, Status> {
        let request = request.into_inner();
        let span = info_span!("Attach", container = request.container_id);
        answer(span, self.attach(request)).await
    }

    async fn port_forward(
        &self,
        request: Request<v1::PortForwardRequest>,
    ) -> Result<Response<v1::PortForwardResponse>, Status> {
        let request = request.into_inner();
        let span = info_span!("PortForward", pod = request.pod_sandbox_id);
        answer(span, self.port_forward(request)).await
    }

    async fn container_stats(
        &self,
        request: Request<v1::ContainerStatsRequest>,
    ) -> Result<Response<v1::ContainerStatsResponse>, Status> {
        let id = request.into_inner().container_id;
        answer(debug_span!("ContainerStats", container = id), self.container_stats(&id)).await
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Result<Response<v1::ListContainerStatsResponse>, Status> {
        let list = async {
            let stats = self.containers_stats(request.into_inner().filter).await.collect();
            whole(v1::ListContainerStatsResponse { stats }, "StreamContainerStats")
        };
        answer(debug_span!("ListContainerStats"), list).await
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Result<Response<v1::PodSandboxStatsResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        answer(debug_span!("PodSandboxStats", pod = id), self.pod_stats(&id)).await
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Result<Response<v1::ListPodSandboxStatsResponse>, Status> {
        let list = async {
            let stats = self.pods_stats(request.into_inner().filter).await.collect();
            whole(v1::ListPodSandboxStatsResponse { stats }, "StreamPodSandboxStats")
        };
        answer(debug_span!("ListPodSandboxStats"), list).await
    }

    async fn checkpoint_container(
        &self,
        _request: Request<v1::CheckpointContainerRequest>,
    ) -> Result<Response<v1::CheckpointContainerResponse>, Status> {
        Err(later("CheckpointContainer"))
    }

    async fn checkpoint_pod(
        &self,
        _request: Request<v1::CheckpointPodRequest>,
    ) -> Result<Response<v1::CheckpointPodResponse>, Status> {
        Err(later("CheckpointPod"))
    }

    async fn restore_pod(
        &self,
        _request: Request<v1::RestorePodRequest>,
    ) -> Result<Response<v1::RestorePodResponse>, Status> {
        Err(later("RestorePod"))
    }

    async fn list_metric_descriptors(
        &self,
        _request: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Result<Response<v1::ListMetricDescriptorsResponse>, Status> {
        let descriptors = crate::cri::metrics::descriptors();
        Ok(Response::new(v1::ListMetricDescriptorsResponse { descriptors }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _request: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Result<Response<v1::ListPodSandboxMetricsResponse>, Status> {
        let list = async {
            let pod_metrics = self.pods_metrics().await.collect();
            whole(v1::ListPodSandboxMetricsResponse { pod_metrics }, "StreamPodSandboxMetrics")
        };
        answer(debug_span!("ListPodSandboxMetrics"), list).await
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<v1::UpdatePodSandboxResourcesResponse>, Status> {
        let request = request.into_inner();
        let span = info_span!("UpdatePodSandboxResources", pod = request.pod_sandbox_id);
        answer(span, self.update_pod(request)).await
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Result<Response<Self::StreamPodSandboxesStream>, Status> {
        tracing::debug!("StreamPodSandboxes");
        Ok(Response::new(self.pods_in_pieces(request.into_inner())))
    }

    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Result<Response<Self::StreamContainersStream>, Status> {
        tracing::debug!("StreamContainers");
        Ok(Response::new(self.containers_in_pieces(request.into_inner())))
    }

    async fn stream_container_stats(
        &self,
        request: Request<v1::StreamContainerStatsRequest>,
    ) -> Result<Response<Self::StreamContainerStatsStream>, Status> {
        let stream = async { Ok(self.containers_stats_in_pieces(request.into_inner()).await) };
        answer(debug_span!("StreamContainerStats"), stream).await
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxStatsStream>, Status> {
        let stream = async { Ok(self.pods_stats_in_pieces(request.into_inner()).await) };
        answer(debug_span!("StreamPodSandboxStats"), stream).await
    }

    async fn get_container_events(
        &self,
        _request: Request<v1::GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        tracing::debug!("GetContainerEvents");
        Ok(Response::new(self.events()))
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _request: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxMetricsStream>, Status> {
        let stream = async { Ok(self.metrics_in_pieces().await) };
        answer(debug_span!("StreamPodSandboxMetrics"), stream).await
    }
}
