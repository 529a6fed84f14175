//! Calls about containers.

use std::path::Path;
use std::time::Duration;

use kina_model::SpecError;

use super::runtime::Service;
use super::{MESSAGE_LIMIT, info, whole};
use crate::cri::{self, v1};
use crate::error::{Error, chain};

/// The longest seccomp profile that is read, in bytes. The defaults of the
/// usual runtimes have less than 20 KiB.
const PROFILE_LIMIT: usize = 1 << 20;

/// What of a message is not output: tags, lengths, the exit code.
const ENVELOPE_BYTES: usize = 64;

/// The longest time that a container gets to end by itself: a hundred years.
const LONGEST_STOP: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

impl Service {
    pub(super) async fn create_container(
        &self,
        request: v1::CreateContainerRequest,
    ) -> Result<v1::CreateContainerResponse, Error> {
        let pod = self.runtime.find_pod(&request.pod_sandbox_id)?;
        let seccomp = match cri::seccomp_file(&request)? {
            Some(path) => Some(self.profile(&path).await?),
            None => None,
        };
        let kernel = self.kernel(&pod.spec.handler);
        let spec = cri::container_spec(request, &pod.spec, kernel, seccomp)?;
        let id = self.runtime.create_container(pod.id.as_str(), spec).await?;
        tracing::info!(container = %id, "container is made");
        Ok(v1::CreateContainerResponse { container_id: id.to_string() })
    }

    /// The text of a seccomp profile on the node.
    async fn profile(&self, path: &Path) -> Result<String, SpecError> {
        let refuse = |reason: &str| {
            let field = "config.linux.security_context.seccomp.localhost_ref";
            SpecError::invalid(field, format!("{}: {reason}", path.display()))
        };
        let read = self.runtime.context().node.read_file(path, PROFILE_LIMIT).await;
        let bytes = read.map_err(|error| refuse(&chain(&error)))?;
        String::from_utf8(bytes).map_err(|_| refuse("is not UTF-8"))
    }

    pub(super) async fn start_container(&self, id: &str) -> Result<v1::StartContainerResponse, Error> {
        self.runtime.start_container(id).await?;
        Ok(v1::StartContainerResponse {})
    }

    pub(super) async fn update_container(
        &self,
        request: v1::UpdateContainerResourcesRequest,
    ) -> Result<v1::UpdateContainerResourcesResponse, Error> {
        // Annotations are for runtimes that know some; kina knows none.
        let v1::UpdateContainerResourcesRequest { container_id, linux, windows, annotations: _ } = request;
        if windows.is_some_and(|windows| windows != v1::WindowsContainerResources::default()) {
            return Err(SpecError::unsupported("windows", "kina runs Linux containers only").into());
        }
        let resources = cri::resources("linux", linux.unwrap_or_default())?;
        self.runtime.update_container(&container_id, resources).await?;
        Ok(v1::UpdateContainerResourcesResponse {})
    }

    pub(super) async fn stop_container(
        &self,
        request: v1::StopContainerRequest,
    ) -> Result<v1::StopContainerResponse, Error> {
        // Less than nothing is at once, as nothing is.
        let seconds = u64::try_from(request.timeout).unwrap_or(0);
        let timeout = Duration::from_secs(seconds).min(LONGEST_STOP);
        self.runtime.stop_container(&request.container_id, timeout).await?;
        Ok(v1::StopContainerResponse {})
    }

    pub(super) async fn remove_container(&self, id: &str) -> Result<v1::RemoveContainerResponse, Error> {
        self.runtime.remove_container(id).await?;
        Ok(v1::RemoveContainerResponse {})
    }

    pub(super) async fn list_containers(
        &self,
        request: v1::ListContainersRequest,
    ) -> Result<v1::ListContainersResponse, Error> {
        let filter = request.filter.as_ref();
        let pods = self.runtime.pods();
        let all = pods.iter().flat_map(|pod| pod.containers.values());
        let listed = all.filter(|container| cri::container_listed(container, filter));
        let containers = listed.map(|container| cri::views::container(container)).collect();
        whole(v1::ListContainersResponse { containers }, "StreamContainers")
    }

    pub(super) async fn container_status(
        &self,
        request: v1::ContainerStatusRequest,
    ) -> Result<v1::ContainerStatusResponse, Error> {
        let container = self.runtime.find_container(&request.container_id)?;
        Ok(v1::ContainerStatusResponse {
            status: Some(cri::views::container_status(&container)),
            info: if request.verbose {
                info("info", &self.runtime.container_info(&container))
            } else {
                Default::default()
            },
        })
    }

    pub(super) async fn exec_sync(
        &self,
        request: v1::ExecSyncRequest,
    ) -> Result<v1::ExecSyncResponse, Error> {
        let v1::ExecSyncRequest { container_id, cmd, timeout } = request;
        if cmd.is_empty() {
            return Err(SpecError::invalid("cmd", "is empty; name a program").into());
        }
        let timeout = match u64::try_from(timeout) {
            Ok(0) => None,
            Ok(seconds) => Some(Duration::from_secs(seconds)),
            Err(_) => {
                let reason = format!("{timeout} is negative; 0 is without limit");
                return Err(SpecError::invalid("timeout", reason).into());
            }
        };
        let mut output = self.runtime.exec_sync(&container_id, cmd, timeout).await?;
        if output.timed_out {
            let limit = timeout.unwrap_or_default();
            return Err(Error::Deadline { what: "the command", limit });
        }
        fit(&mut output.stdout, &mut output.stderr, MESSAGE_LIMIT - ENVELOPE_BYTES);
        Ok(v1::ExecSyncResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.code })
    }

    pub(super) async fn reopen_log(&self, id: &str) -> Result<v1::ReopenContainerLogResponse, Error> {
        self.runtime.reopen_log(id).await?;
        Ok(v1::ReopenContainerLogResponse {})
    }
}

/// Cuts the ends of two outputs that do not fit one message. A caller that got
/// no message would not even learn the exit code.
fn fit(stdout: &mut Vec<u8>, stderr: &mut Vec<u8>, limit: usize) {
    let half = limit / 2;
    let room = limit - stderr.len().min(half);
    stdout.truncate(room);
    stderr.truncate(limit - stdout.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_fit_together() {
        for (out, error, expected) in [
            (0, 0, (0, 0)),
            (10, 0, (10, 0)),
            (11, 0, (10, 0)),
            (0, 11, (0, 10)),
            (20, 20, (5, 5)),
            (20, 2, (8, 2)),
            (2, 20, (2, 8)),
            (5, 5, (5, 5)),
        ] {
            let (mut stdout, mut stderr) = (vec![b'o'; out], vec![b'e'; error]);
            fit(&mut stdout, &mut stderr, 10);
            assert_eq!((stdout.len(), stderr.len()), expected, "{out} {error}");
        }
    }
}
