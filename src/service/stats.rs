//! Calls about what pods and containers use.

use tonic::codegen::BoxStream;

use super::runtime::Service;
use super::streams::pieces;
use crate::cri::stats::Disk;
use crate::cri::{self, v1};
use crate::error::Error;
use crate::pod::view::{ContainerView, PodView};
use crate::stats::PodUsage;

impl Service {
    /// The file system of writable layers, as ImageFsInfo names it.
    async fn disk(&self) -> String {
        self.runtime.writable_filesystem().await.display().to_string()
    }

    pub(super) async fn container_stats(&self, id: &str) -> Result<v1::ContainerStatsResponse, Error> {
        let container = self.runtime.find_container(id)?;
        let usage = self.runtime.usage(|pod| pod.id == container.pod).await;
        let gone = || Error::ContainerNotFound { id: id.to_owned() };
        let usage = usage.first().ok_or_else(gone)?;
        let stats = cri::stats::container_stats(&container, usage, Disk(&self.disk().await));
        Ok(v1::ContainerStatsResponse { stats: Some(stats) })
    }

    pub(super) async fn containers_stats(
        &self,
        filter: Option<v1::ContainerStatsFilter>,
    ) -> impl Iterator<Item = v1::ContainerStats> + Send + use<> {
        let listed = move |container: &ContainerView| cri::container_stats_listed(container, filter.as_ref());
        let usage = self.runtime.usage(|pod| pod.containers.values().any(|one| listed(one))).await;
        let disk = self.disk().await;
        usage.into_iter().flat_map(move |usage| {
            let containers = usage.pod.containers.values().filter(|container| listed(container));
            let stats = containers.filter_map(|container| cri::stats::listed(container, &usage, Disk(&disk)));
            stats.collect::<Vec<_>>()
        })
    }

    pub(super) async fn pod_stats(&self, id: &str) -> Result<v1::PodSandboxStatsResponse, Error> {
        let pod = self.runtime.find_pod(id)?;
        let usage = self.runtime.usage(|other| other.id == pod.id).await;
        let gone = || Error::PodNotFound { id: id.to_owned() };
        let usage = usage.first().ok_or_else(gone)?;
        let stats = cri::stats::pod_stats(usage, Disk(&self.disk().await));
        Ok(v1::PodSandboxStatsResponse { stats: Some(stats) })
    }

    pub(super) async fn pods_stats(
        &self,
        filter: Option<v1::PodSandboxStatsFilter>,
    ) -> impl Iterator<Item = v1::PodSandboxStats> + Send + use<> {
        let usage = self.ready_usage(|pod| cri::pod_stats_listed(pod, filter.as_ref())).await;
        let disk = self.disk().await;
        usage.into_iter().map(move |usage| cri::stats::pod_stats(&usage, Disk(&disk)))
    }

    pub(super) async fn pods_metrics(&self) -> impl Iterator<Item = v1::PodSandboxMetrics> + Send + use<> {
        let usage = self.ready_usage(|_| true).await;
        usage.into_iter().map(|usage| cri::metrics::pod_metrics(&usage))
    }

    /// Of pods that are ready: one that has ended uses nothing.
    async fn ready_usage(&self, listed: impl Fn(&PodView) -> bool) -> Vec<PodUsage> {
        self.runtime.usage(|pod| pod.state.is_ready() && listed(pod)).await
    }

    pub(super) async fn containers_stats_in_pieces(
        &self,
        request: v1::StreamContainerStatsRequest,
    ) -> BoxStream<v1::StreamContainerStatsResponse> {
        let stats = self.containers_stats(request.filter).await;
        pieces(stats, |container_stats| v1::StreamContainerStatsResponse { container_stats })
    }

    pub(super) async fn pods_stats_in_pieces(
        &self,
        request: v1::StreamPodSandboxStatsRequest,
    ) -> BoxStream<v1::StreamPodSandboxStatsResponse> {
        let stats = self.pods_stats(request.filter).await;
        pieces(stats, |pod_sandbox_stats| v1::StreamPodSandboxStatsResponse { pod_sandbox_stats })
    }

    pub(super) async fn metrics_in_pieces(&self) -> BoxStream<v1::StreamPodSandboxMetricsResponse> {
        let metrics = self.pods_metrics().await;
        pieces(metrics, |pod_sandbox_metrics| v1::StreamPodSandboxMetricsResponse { pod_sandbox_metrics })
    }
}
