//! Calls about pod sandboxes.

use super::runtime::Service;
use super::{info, whole};
use crate::cri::{self, v1};
use crate::error::Error;
use crate::pod::context::now;

impl Service {
    pub(super) async fn run_pod(
        &self,
        request: v1::RunPodSandboxRequest,
    ) -> Result<v1::RunPodSandboxResponse, Error> {
        let spec = cri::pod_spec(request, |wish| self.runtime.place(wish))?;
        let id = self.runtime.run_pod(spec).await?;
        tracing::info!(pod = %id, "pod is ready");
        Ok(v1::RunPodSandboxResponse { pod_sandbox_id: id.to_string() })
    }

    pub(super) async fn stop_pod(&self, id: &str) -> Result<v1::StopPodSandboxResponse, Error> {
        self.runtime.stop_pod(id).await?;
        Ok(v1::StopPodSandboxResponse {})
    }

    pub(super) async fn remove_pod(&self, id: &str) -> Result<v1::RemovePodSandboxResponse, Error> {
        self.runtime.remove_pod(id).await?;
        Ok(v1::RemovePodSandboxResponse {})
    }

    pub(super) async fn update_pod(
        &self,
        request: v1::UpdatePodSandboxResourcesRequest,
    ) -> Result<v1::UpdatePodSandboxResourcesResponse, Error> {
        let v1::UpdatePodSandboxResourcesRequest { pod_sandbox_id, overhead, resources } = request;
        let overhead = overhead.map(|limits| cri::resources("overhead", limits)).transpose()?;
        let resources = resources.map(|limits| cri::resources("resources", limits)).transpose()?;
        self.runtime.update_pod(&pod_sandbox_id, resources, overhead).await?;
        Ok(v1::UpdatePodSandboxResourcesResponse {})
    }

    pub(super) async fn pod_status(
        &self,
        request: v1::PodSandboxStatusRequest,
    ) -> Result<v1::PodSandboxStatusResponse, Error> {
        let pod = self.runtime.find_pod(&request.pod_sandbox_id)?;
        Ok(v1::PodSandboxStatusResponse {
            status: Some(cri::views::pod_status(&pod)),
            info: if request.verbose {
                info("info", &self.runtime.pod_info(&pod))
            } else {
                Default::default()
            },
            containers_statuses: pod
                .containers
                .values()
                .map(|container| cri::views::container_status(container))
                .collect(),
            timestamp: now(),
        })
    }

    pub(super) async fn list_pods(
        &self,
        request: v1::ListPodSandboxRequest,
    ) -> Result<v1::ListPodSandboxResponse, Error> {
        let filter = request.filter.as_ref();
        let pods = self.runtime.pods();
        let listed = pods.iter().filter(|pod| cri::pod_listed(pod, filter));
        let items = listed.map(|pod| cri::views::pod(pod)).collect();
        whole(v1::ListPodSandboxResponse { items }, "StreamPodSandboxes")
    }

    /// What the kernel of a pod of that handler can do.
    pub(super) fn kernel(&self, handler: &str) -> cri::Kernel {
        let handlers = self.runtime.handlers();
        let recursive_read_only =
            handlers.iter().any(|known| known.name == handler && known.recursive_read_only);
        cri::Kernel { recursive_read_only }
    }
}
